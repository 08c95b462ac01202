//! Whether an allocation is used for a call at all: signs of scans, tunnels and bulk transfers, and a score of them.
//!
//! A call shows itself by what it is made of: ICE checks, DTLS records, RTP and RTCP, ZRTP, told apart by their first byte
//! (RFC 7983) and by a few more, since a first byte is met by chance as well. Whatever else is relayed for long, and how
//! peers are addressed, are signs. None of them is a proof, and most weigh too little alone: a game with a protocol of
//! its own has no pattern either.
//!
//! A datagram costs a comparison of seconds and a sum, and a look at its first bytes until the pattern was found in the
//! second that is going on; so all are looked at where media are sampled as well.

use serde::{Deserialize, Serialize, Serializer};

use crate::base::Direction;

/// What an allocation does that calls do not, or seldom. Other processes go on with their numbers: new ones come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Signal {
    /// Data flows, and for half a minute none of it was ICE, DTLS, RTP, RTCP or ZRTP.
    NoPattern,
    /// So much of it for so long that it is a transfer or a tunnel.
    Bulk,
    /// Much of it, and nearly all in one direction.
    OneSided,
    /// New peers are addressed faster than any call has candidates.
    ManyPeers,
    /// Nearly none of the peers that were addressed lately has answered.
    SilentPeers,
    /// One host was addressed on many ports, and many were silent.
    ManyPorts,
    /// A peer has a port of a well-known service that answers datagrams.
    ServicePort,
    /// A peer has a port of the Web, which some media servers have as well.
    WebPort,
}

impl Signal {
    /// Every signal, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::NoPattern,
        Self::Bulk,
        Self::OneSided,
        Self::ManyPeers,
        Self::SilentPeers,
        Self::ManyPorts,
        Self::ServicePort,
        Self::WebPort,
    ];

    /// The word in metrics, JSON and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoPattern => "no_pattern",
            Self::Bulk => "bulk",
            Self::OneSided => "one_sided",
            Self::ManyPeers => "many_peers",
            Self::SilentPeers => "silent_peers",
            Self::ManyPorts => "many_ports",
            Self::ServicePort => "service_port",
            Self::WebPort => "web_port",
        }
    }

    /// What it adds to the score.
    pub const fn weight(self) -> u8 {
        match self {
            Self::Bulk => 50,
            Self::SilentPeers => 35,
            Self::ServicePort => 30,
            Self::ManyPorts => 25,
            Self::NoPattern | Self::OneSided | Self::ManyPeers => 20,
            Self::WebPort => 10,
        }
    }
}

/// The score from which on something follows.
pub const THRESHOLD: u8 = 50;

/// A set of signals.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals(u8);

impl Signals {
    /// With `signal` as well, if it `holds`.
    #[must_use]
    pub const fn with(self, signal: Signal, holds: bool) -> Self {
        Self(self.0 | (holds as u8) << signal as u8)
    }

    /// Whether `signal` is among them.
    pub const fn has(self, signal: Signal) -> bool {
        self.0 >> signal as u8 & 1 == 1
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are not among `others`.
    #[must_use]
    pub const fn beyond(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        Signal::ALL
            .into_iter()
            .filter(move |signal| self.has(*signal))
    }

    /// What they weigh together, 0 to 100.
    pub fn score(self) -> u8 {
        let sum: u16 = self.iter().map(|signal| u16::from(signal.weight())).sum();
        sum.min(100) as u8
    }
}

impl std::fmt::Display for Signals {
    /// Their words, with commas between them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, signal) in self.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}", signal.label())?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signals({self})")
    }
}

impl Serialize for Signals {
    /// A list of their words.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Signal::label))
    }
}

/// How much an allocation looks like abuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Abuse {
    /// 0 to 100; something follows from [`THRESHOLD`] on.
    pub score: u8,
    /// What it is made of.
    pub signals: Signals,
    /// All that were told of since the watch began: those of every moment at which something followed.
    pub noted: Signals,
    /// Whether it gets less bandwidth for it.
    pub throttled: bool,
}

/// What is known of the peers that an allocation addressed lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Those that are remembered.
    pub remembered: usize,
    /// Those of them that never answered.
    pub silent: usize,
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How long a call may be without its pattern: as long as the consent of its ICE lasts (RFC 7675 §5.1). In seconds.
const HOLD: u8 = 30;

/// From here on data flows, in bits per second: beyond keepalives and probes.
const FLOWS: u64 = 10_000;

/// A transfer, in bits per second.
const BULK: u64 = 1_000_000;

/// Much in one direction, in bits per second, and how many times as much as in the other.
const ONE_SIDED: u64 = 256_000;
const TIMES: u64 = 20;

/// Seconds that have to be like that, and what is remembered of them at most.
const BULK_SECS: u8 = 6;
const FLOWS_SECS: u8 = 10;
const MOST_SECS: u8 = 20;

/// New peers that may be addressed each second for long, and how many at once: more than a call has candidates. What is
/// beyond is forgotten at that rate too, from this many on.
const PEERS_PER_SECOND: u32 = 6;
const PEERS_AT_ONCE: u16 = 64;
const MOST_PEERS: u16 = 256;

/// Peers that have to be remembered before their silence says anything.
const PEERS_TO_JUDGE: usize = 64;

/// What a new port of a host adds, where each second takes one away: the public address of a NAT has new ports all the
/// time, in each ICE restart.
const PORT: u16 = 4;
const MANY_PORTS: u16 = 64 * PORT;

/// Ports of services that answer strangers, often with more than they got: chargen, SMTP, DNS, portmap, NTP, NetBIOS, SNMP,
/// CLDAP. From 1024 on any port may be that of a client behind a NAT.
const SERVICE_PORTS: [u16; 8] = [19, 25, 53, 111, 123, 137, 161, 389];
const WEB_PORTS: [u16; 2] = [80, 443];

/// How long an allocation that is throttled has to be below the threshold, in seconds.
const CALM: u32 = 60;

/// Of a throttled allocation this share of what is left to it, in quarters, is as much as a transfer was before.
const QUARTERS: u64 = 3;

/// A judgement counts for so long while nothing is relayed, in seconds.
const LASTS: u32 = 30;

/// As one byte, for another process.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Signals;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(signals: &Signals, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(signals.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Signals, D::Error> {
        u8::deserialize(deserializer).map(Signals)
    }
}

/// What is kept of an allocation to judge it by. Another process goes on with it, by the same clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signs {
    /// The second, counted from the server's start, that `bytes` counts.
    second: u32,
    /// By `Direction`.
    bytes: [u32; Direction::ALL.len()],
    /// Seconds since the pattern of a call was seen; 0 is the one that is going on.
    stale: u8,
    /// A DTLS handshake was seen: later records tell less of themselves.
    dtls: bool,
    /// Whether it is time to judge.
    due: bool,
    /// Whether it gets less bandwidth.
    throttled: bool,
    /// SSRC and sequence number of what may be RTP, by `Direction`: by chance no two of them follow each other.
    rtp: [(u32, u16); Direction::ALL.len()],
    /// SSRC of what may be RTCP, by `Direction`.
    rtcp: [u32; Direction::ALL.len()],
    /// Seconds of each kind without a pattern.
    flowing: u8,
    bulk: u8,
    one_sided: u8,
    /// New peers beyond those that may be.
    peers: u16,
    /// The host that has most new ports of all, unless there are many hosts, and what they add up to.
    host: u32,
    ports: u16,
    /// Of ports that were addressed ever.
    #[serde(with = "bits")]
    services: Signals,
    /// What was told already.
    #[serde(with = "bits")]
    noted: Signals,
    /// The latest judgement, and its second.
    #[serde(with = "bits")]
    signals: Signals,
    judged: u32,
    /// Seconds below the threshold.
    calm: u32,
    /// A transfer, in bits per second.
    transfer: u64,
}

impl Signs {
    /// Nothing was seen. `at`: nanoseconds since the server began.
    pub const fn new(at: u64) -> Self {
        let second = (at / NANOS_PER_SECOND) as u32;
        Self {
            second,
            bytes: [0; Direction::ALL.len()],
            stale: u8::MAX,
            dtls: false,
            due: false,
            throttled: false,
            rtp: [(0, 0); Direction::ALL.len()],
            rtcp: [0; Direction::ALL.len()],
            flowing: 0,
            bulk: 0,
            one_sided: 0,
            peers: 0,
            host: 0,
            ports: 0,
            services: Signals(0),
            noted: Signals(0),
            signals: Signals(0),
            judged: second,
            calm: 0,
            transfer: BULK,
        }
    }

    /// Takes one datagram that is relayed in `direction`.
    pub fn observe(&mut self, at: u64, direction: Direction, datagram: &[u8]) {
        let second = (at / NANOS_PER_SECOND) as u32;
        if second > self.second {
            self.turn_to(second);
        }
        let bytes = &mut self.bytes[direction as usize];
        *bytes = bytes.saturating_add(datagram.len() as u32);
        if self.stale > 0 && self.is_of_a_call(direction, datagram) {
            self.stale = 0;
        }
    }

    /// Takes a peer that was not addressed lately. `host`: a hash of its IP.
    pub fn addressed(&mut self, host: u32, port: u16) {
        self.peers = self.peers.saturating_add(1).min(MOST_PEERS);
        self.services = self
            .services
            .with(Signal::ServicePort, SERVICE_PORTS.contains(&port))
            .with(Signal::WebPort, WEB_PORTS.contains(&port));
        // Votes of a majority: a host that is addressed more often than all others together stays.
        if host == self.host {
            self.ports = self.ports.saturating_add(PORT).min(2 * MANY_PORTS);
        } else if self.ports > 0 {
            self.ports = self.ports.saturating_sub(PORT);
        } else {
            (self.host, self.ports) = (host, PORT);
        }
    }

    /// Whether it is time to [`judge`](Self::judge): a second has passed in which data was relayed.
    pub const fn is_due(&self) -> bool {
        self.due
    }

    /// Nothing is to be judged before the next second.
    pub const fn pass(&mut self) {
        self.due = false;
    }

    /// Weighs all there is.
    pub fn judge(&mut self, peers: Peers) -> Signals {
        self.due = false;
        let known = peers.remembered >= PEERS_TO_JUDGE;
        let at_least = |tenths: usize| known && peers.silent * 10 >= peers.remembered * tenths;
        let signals = self
            .services
            .with(Signal::NoPattern, self.flowing >= FLOWS_SECS)
            .with(Signal::Bulk, self.bulk >= BULK_SECS)
            .with(Signal::OneSided, self.one_sided >= FLOWS_SECS)
            .with(Signal::ManyPeers, self.peers > PEERS_AT_ONCE)
            .with(Signal::SilentPeers, at_least(9))
            .with(Signal::ManyPorts, at_least(5) && self.ports > MANY_PORTS);
        let elapsed = self.second.saturating_sub(self.judged);
        self.calm = match signals.score() < THRESHOLD {
            true => self.calm.saturating_add(elapsed),
            false => 0,
        };
        self.signals = signals;
        self.judged = self.second;
        signals
    }

    /// Takes note that `signals` are told of; those that were not before.
    pub const fn note(&mut self, signals: Signals) -> Signals {
        let new = signals.beyond(self.noted);
        self.noted = Signals(self.noted.0 | signals.0);
        new
    }

    /// Takes note that so many bits per second are left in each direction, or that there is no such limit: what was a
    /// transfer before is one as long as it takes what it gets.
    pub fn throttle(&mut self, bits_per_second: Option<u64>) {
        if self.throttled != bits_per_second.is_some() {
            self.throttled = !self.throttled;
            self.calm = 0;
        }
        self.transfer = bits_per_second.map_or(BULK, |bits| (bits / 4 * QUARTERS).min(BULK));
    }

    /// Whether it gets less bandwidth.
    pub const fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Whether it was below the threshold for long.
    pub const fn is_calm(&self) -> bool {
        self.calm >= CALM
    }

    /// What is known at `at`.
    pub fn abuse(&self, at: u64) -> Abuse {
        let second = (at / NANOS_PER_SECOND) as u32;
        let lasts = second.saturating_sub(self.judged) <= LASTS;
        let signals = if lasts {
            self.signals
        } else {
            Signals::default()
        };
        Abuse {
            score: signals.score(),
            signals,
            noted: self.noted,
            throttled: self.throttled,
        }
    }

    /// Ends the second that was going on.
    #[cold]
    fn turn_to(&mut self, second: u32) {
        let elapsed = second - self.second;
        let [a, b] = self.bytes.map(|bytes| u64::from(bytes) * 8);
        let (most, least) = (a.max(b), a.min(b));
        if self.stale <= HOLD {
            (self.flowing, self.bulk, self.one_sided) = (0, 0, 0);
        } else {
            let count = |seconds: &mut u8, holds: bool| {
                *seconds = seconds.saturating_add(holds.into()).min(MOST_SECS);
                // Those that were not like that, in which nothing came.
                let others = elapsed - u32::from(holds);
                *seconds = seconds.saturating_sub(others.min(255) as u8);
            };
            count(&mut self.flowing, most >= FLOWS);
            count(&mut self.bulk, most >= self.transfer);
            count(
                &mut self.one_sided,
                most >= ONE_SIDED && most >= TIMES * least,
            );
        }
        let some = |per_second: u32| elapsed.saturating_mul(per_second).min(65_535) as u16;
        self.peers = self.peers.saturating_sub(some(PEERS_PER_SECOND));
        self.ports = self.ports.saturating_sub(some(1));
        self.stale = self.stale.saturating_add(elapsed.min(255) as u8);
        self.bytes = [0; Direction::ALL.len()];
        self.second = second;
        self.due = true;
    }

    /// Whether `datagram` is what calls are made of, by more than chance.
    fn is_of_a_call(&mut self, direction: Direction, datagram: &[u8]) -> bool {
        let Some(head) = datagram.first_chunk::<12>() else {
            return false;
        };
        let [first, second, c, d, e, f, g, h, i, j, k, l] = *head;
        match first {
            0..=3 => is_stun(datagram.len(), u16::from_be_bytes([c, d]), [e, f, g, h]),
            16..=19 => [e, f, g, h] == *b"ZRTP",
            // A record with its version (RFC 6347 §4.1), whose length needs the thirteenth byte.
            20..=26 if second == 0xFE && matches!(c, 0xFD | 0xFF) => {
                let Some(&m) = datagram.get(12) else {
                    return false;
                };
                let fits = usize::from(u16::from_be_bytes([l, m])) + 13 <= datagram.len();
                self.dtls |= fits && first == 22;
                fits
            }
            // The short header of version 1.3 (RFC 9147 §4), which tells its length if it has to.
            32..=63 if self.dtls => true,
            32..=63 => {
                let (has_id, wide, has_length) = (first & 16 > 0, first & 8 > 0, first & 4 > 0);
                let at = if wide { [d, e] } else { [c, d] };
                let header = if wide { 5 } else { 4 };
                let length = usize::from(u16::from_be_bytes(at));
                has_length && !has_id && length >= 16 && length + header == datagram.len()
            }
            // RTCP (RFC 5761 §4): two of one sender.
            128..=191 if matches!(second, 192..=223) => {
                let length = usize::from(u16::from_be_bytes([c, d])) * 4 + 4;
                if length > datagram.len() {
                    return false;
                }
                let ssrc = u32::from_be_bytes([e, f, g, h]);
                std::mem::replace(&mut self.rtcp[direction as usize], ssrc) == ssrc
            }
            // RTP: two of one stream, one soon after the other.
            128..=191 => {
                let ssrc = u32::from_be_bytes([i, j, k, l]);
                let sequence = u16::from_be_bytes([c, d]);
                let rtp = &mut self.rtp[direction as usize];
                let (before, last) = std::mem::replace(rtp, (ssrc, sequence));
                before == ssrc && (1..=256).contains(&sequence.wrapping_sub(last))
            }
            _ => false,
        }
    }
}

/// Whether a message of `datagram` bytes is STUN: by the magic cookie, or, without one (RFC 3489), by its exact length.
const fn is_stun(datagram: usize, length: u16, cookie: [u8; 4]) -> bool {
    const COOKIE: u32 = 0x2112_A442;
    let cookie = u32::from_be_bytes(cookie) == COOKIE;
    let exact = length as usize + 20 == datagram;
    length.is_multiple_of(4)
        && if cookie {
            length as usize + 20 <= datagram
        } else {
            exact
        }
}
