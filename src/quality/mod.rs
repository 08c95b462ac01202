//! How calls go, as far as whoever relays them can see: without keys, and without help of the clients.
//!
//! A [`Watch`] hangs off an allocation and is shown every datagram that is relayed for it. STUN checks that pass one way and their
//! answers that pass the other tell the round-trip time from here to either side; RTP headers, which SRTP leaves in the
//! clear, tell loss, reordering and jitter of what arrives here. Nothing of the payload is kept, and what is kept is
//! bounded, whoever sends.
//!
//! Pure: no clock, no socket. Times are nanoseconds since the server began.

mod checks;
mod rtp;
mod watch;

use std::time::Duration;

use crate::base::Direction;

pub use watch::{Image, Watch};

/// How much of what is relayed is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Off,
    /// Every STUN and DTLS message, and the media of some seconds out of many.
    #[default]
    Sampled,
    /// Everything.
    Full,
}

/// What becomes of an allocation that looks like abuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Nobody looks.
    Off,
    /// It is logged and counted.
    #[default]
    Note,
    /// It gets no more than [`Settings::abuse_bits_per_second`] in each direction as well.
    Throttle,
    /// It ends.
    End,
}

/// What is looked at, and what follows: `[quality]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How much is looked at.
    pub mode: Mode,
    /// Events that a shard remembers to tell why calls fail; 0: none.
    pub events: usize,
    /// What becomes of what looks like abuse.
    pub abuse: Action,
    /// What is left to an allocation that is throttled, in each direction: bits per second.
    pub abuse_bits_per_second: u64,
    /// Whether operators may have the packets of an allocation.
    pub capture: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            events: 4096,
            abuse: Action::default(),
            abuse_bits_per_second: 256_000,
            capture: true,
        }
    }
}

/// A side of an allocation, seen from the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Leg {
    /// Between the relay and the client.
    Client,
    /// Between the relay and the peer.
    Peer,
}

impl Leg {
    /// Both, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Client, Self::Peer];

    /// The label of metrics and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
        }
    }
}

/// Round-trip times of one leg.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rtt {
    /// Of the latest check that was answered.
    pub latest: Duration,
    /// Smoothed, as RFC 6298 smooths.
    pub smoothed: Duration,
    /// The shortest.
    pub least: Duration,
    /// How many there were.
    pub samples: u32,
}

/// STUN checks that were relayed in one direction (RFC 8445).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Different ones.
    pub sent: u32,
    /// Those that were sent again under the same transaction id, each time. Chromium's agents never do that: each of theirs
    /// is another.
    pub repeated: u32,
    /// Those whose answer came back, errors included.
    pub answered: u32,
    /// Those that waited ten seconds in vain. Candidates that nobody is behind are among them, and before media flows
    /// nothing else tells of loss.
    pub unanswered: u32,
}

/// What a stream of RTP carries, as far as its headers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// A packet every few milliseconds, all much alike.
    Audio,
    /// Bursts of packets with one timestamp.
    Video,
    /// Retransmissions, error correction or probes: gaps in it are no loss.
    Auxiliary,
    /// Too little of it was seen.
    Unknown,
}

impl Media {
    /// The word in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Auxiliary => "auxiliary",
            Self::Unknown => "unknown",
        }
    }
}

/// One stream of RTP in one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// SSRC.
    pub ssrc: u32,
    /// Which way it flows.
    pub direction: Direction,
    /// What it carries.
    pub media: Media,
    /// The payload type of the latest packet.
    pub payload_type: u8,
    /// Packets that were looked at.
    pub received: u64,
    /// Packets that did not come, or not yet, among those looked at.
    pub lost: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Interarrival jitter (RFC 3550 §6.4.1) of packets that begin another timestamp, averaged over 512 of them; `None`
    /// while the clock rate is unknown.
    pub jitter: Option<Duration>,
    /// The clock of its timestamps in Hz, once it is inferred.
    pub clock_rate: Option<u32>,
}

/// Loss and jitter of all media in one direction, auxiliary streams aside.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Packets that were looked at.
    pub received: u64,
    /// Packets that did not come, among those looked at.
    pub lost: u64,
    /// Share of packets that did not come over the last seconds that were looked at, 0.0 to 1.0; `None`: no media.
    pub recent_loss: Option<f64>,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// The jitter of the stream with the most packets.
    pub jitter: Option<Duration>,
}

impl Flow {
    /// Share of packets that did not come, 0.0 to 1.0; `None` where there were none.
    pub fn loss_ratio(&self) -> Option<f64> {
        let expected = self.received + self.lost;
        (expected > 0).then(|| self.lost as f64 / expected as f64)
    }
}

/// Whether a call came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Session {
    /// Nothing was relayed, or in one direction only, and it is early.
    #[default]
    Waiting,
    /// Nothing was relayed within ten seconds.
    Unused,
    /// Data flows, or flowed, in this direction alone, ten seconds after the first.
    OneWay(Direction),
    /// Data was relayed in both directions within ten seconds.
    Established,
    /// It was established and nothing was relayed for ten seconds.
    Silent,
}

impl Session {
    /// The word in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Unused => "unused",
            Self::OneWay(Direction::ToPeer) => "to_peer_only",
            Self::OneWay(Direction::ToClient) => "to_client_only",
            Self::Established => "established",
            Self::Silent => "silent",
        }
    }
}

/// What is known of one allocation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// By [`Leg`].
    pub rtt: [Option<Rtt>; Leg::ALL.len()],
    /// By the [`Direction`] that the checks were sent in.
    pub checks: [Checks; Direction::ALL.len()],
    /// By [`Direction`].
    pub flows: [Flow; Direction::ALL.len()],
    /// Eight at most.
    pub streams: Vec<Stream>,
    /// When the first data was relayed, since the watch began, by [`Direction`].
    pub first: [Option<Duration>; Direction::ALL.len()],
    /// How long nothing was relayed, by [`Direction`]; `None`: nothing ever was.
    pub idle: [Option<Duration>; Direction::ALL.len()],
    /// DTLS handshake messages were seen, by [`Direction`].
    pub dtls: [bool; Direction::ALL.len()],
    /// RTP or RTCP was seen, by [`Direction`].
    pub media: [bool; Direction::ALL.len()],
    /// Whether a call came about.
    pub session: Session,
    /// How long no RTP was relayed, by [`Direction`]; `None`: none ever was. A call whose checks go on while this grows is
    /// silent, or is heard on one side alone.
    pub media_idle: [Option<Duration>; Direction::ALL.len()],
}
