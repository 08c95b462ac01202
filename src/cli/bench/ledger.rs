//! What is in every packet, and the books over what was sent and what came: lost, duplicated, reordered.

/// Bytes at the front of every payload that the generator writes itself.
pub const STAMP: usize = 24;

/// The front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Drawn per run: tells our packets from all others.
    pub tag: u32,
    /// Which lane sent it.
    pub lane: u32,
    /// Counts the packets of the lane from 0.
    pub sequence: u64,
    /// When it was sent, in nanoseconds since the run began.
    pub sent_ns: u64,
}

impl Stamp {
    /// The bytes that a payload begins with.
    pub fn encode(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        bytes[..4].copy_from_slice(&self.tag.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.lane.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..].copy_from_slice(&self.sent_ns.to_be_bytes());
        bytes
    }

    /// Reads the front of a payload; `None` if it is too short.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let bytes = payload.first_chunk::<STAMP>()?;
        Some(Self {
            tag: u32::from_be_bytes(*bytes[..4].first_chunk()?),
            lane: u32::from_be_bytes(*bytes[4..8].first_chunk()?),
            sequence: u64::from_be_bytes(*bytes[8..16].first_chunk()?),
            sent_ns: u64::from_be_bytes(*bytes[16..].first_chunk()?),
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
