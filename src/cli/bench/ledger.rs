//! What is in every packet, and the books over what was sent and what came: lost, duplicated, reordered.

/// Bytes at the front of every payload that the generator writes itself.
pub const STAMP: usize = 24;

/// The front of a payload: an RTP header (RFC 3550 §5.1) and 12 bytes more, so that a server does with it what it does with
/// media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Drawn per run: tells our packets from all others.
    pub tag: u32,
    /// Which lane sent it: the SSRC.
    pub lane: u32,
    /// Counts the packets of the lane from 0, 48 bits of it.
    pub sequence: u64,
    /// When it was sent, in nanoseconds since the run began, 48 bits of it.
    pub sent_ns: u64,
}

/// Version 2, and a dynamic payload type.
const RTP: [u8; 2] = [0x80, 111];

/// What the timestamp advances by from packet to packet. It is odd, so that the timestamp tells the sequence number.
const STEP: u32 = 961;
const INVERSE: u32 = {
    // Newton's iteration: each doubles the bits that are right.
    let mut inverse = STEP;
    let mut rounds = 0;
    while rounds < 4 {
        inverse = inverse.wrapping_mul(2_u32.wrapping_sub(STEP.wrapping_mul(inverse)));
        rounds += 1;
    }
    inverse
};

impl Stamp {
    /// The bytes that a payload begins with.
    pub fn encode(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        let timestamp = (self.sequence as u32).wrapping_mul(STEP);
        bytes[..2].copy_from_slice(&RTP);
        bytes[2..4].copy_from_slice(&(self.sequence as u16).to_be_bytes());
        bytes[4..8].copy_from_slice(&timestamp.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.lane.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.tag.to_be_bytes());
        bytes[16..].copy_from_slice(&self.sent_ns.to_be_bytes());
        bytes[16..18].copy_from_slice(&((self.sequence >> 32) as u16).to_be_bytes());
        bytes
    }

    /// Reads the front of a payload; `None` if it is too short or something else.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let bytes = payload.first_chunk::<STAMP>()?;
        let word = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let rest = u64::from_be_bytes(*bytes[16..].first_chunk()?);
        let sequence = word(4)?.wrapping_mul(INVERSE);
        (bytes[..2] == RTP).then_some(Self {
            tag: word(12)?,
            lane: word(8)?,
            sequence: (rest >> 48) << 32 | u64::from(sequence),
            sent_ns: rest & ((1 << 48) - 1),
        })
    }
}

/// What an arrival means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// In order or after a gap: this many packets are not in flight any more, itself and what was lost before it.
    Fresh(u64),
    /// Behind a later one; it was given up before.
    Late,
    /// Seen before.
    Duplicate,
    /// Never sent.
    Foreign,
}

/// The books of one lane: packets that go one way between the same two ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    /// Sequence number of the next packet to send.
    pub next: u64,
    /// One more than the highest sequence number that arrived or was given up.
    settled: u64,
    /// Bit `n`: `settled - 1 - n` has arrived.
    seen: u128,
}

impl Ledger {
    /// Books an arrival.
    pub fn arrived(&mut self, sequence: u64) -> Arrival {
        if sequence >= self.next {
            return Arrival::Foreign;
        }
        if sequence >= self.settled {
            let ahead = sequence + 1 - self.settled;
            self.seen = match u32::try_from(ahead) {
                Ok(ahead) => self.seen.checked_shl(ahead).unwrap_or(0) | 1,
                Err(_) => 1,
            };
            self.settled = sequence + 1;
            return Arrival::Fresh(ahead);
        }
        let behind = self.settled - 1 - sequence;
        let Some(bit) = u32::try_from(behind)
            .ok()
            .and_then(|n| 1u128.checked_shl(n))
        else {
            // Too old to tell; duplicates are the rarer case.
            return Arrival::Late;
        };
        if self.seen & bit != 0 {
            return Arrival::Duplicate;
        }
        self.seen |= bit;
        Arrival::Late
    }

    /// Gives up everything in flight.
    pub fn give_up(&mut self) {
        let ahead = self.next - self.settled;
        let shifted = u32::try_from(ahead)
            .ok()
            .and_then(|n| self.seen.checked_shl(n));
        self.seen = shifted.unwrap_or(0);
        self.settled = self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_the_round_trip() {
        let stamp = Stamp {
            tag: 0xfeed_beef,
            lane: 7,
            sequence: 1 << 40,
            sent_ns: 123_456_789,
        };
        assert_eq!(Stamp::decode(&stamp.encode()), Some(stamp));
        assert_eq!(Stamp::decode(&[0; STAMP - 1]), None);
    }

    #[test]
    fn gaps_lateness_and_duplicates_are_told_apart() {
        let mut ledger = Ledger {
            next: 10,
            ..Ledger::default()
        };
        assert_eq!(ledger.arrived(0), Arrival::Fresh(1));
        assert_eq!(ledger.arrived(3), Arrival::Fresh(3));
        assert_eq!(ledger.arrived(3), Arrival::Duplicate);
        assert_eq!(ledger.arrived(1), Arrival::Late);
        assert_eq!(ledger.arrived(1), Arrival::Duplicate);
        assert_eq!(ledger.arrived(0), Arrival::Duplicate);
        assert_eq!(ledger.arrived(10), Arrival::Foreign);
        ledger.give_up();
        assert_eq!(ledger.arrived(9), Arrival::Late);
        assert_eq!(ledger.arrived(9), Arrival::Duplicate);
        ledger.next = 400;
        assert_eq!(ledger.arrived(399), Arrival::Fresh(390));
        assert_eq!(ledger.arrived(5), Arrival::Late);
    }
}
