//! Plain counters of the core. A shard owns them, so counting costs neither an atomic nor a lock; readers get copies.

use serde::{Deserialize, Serialize};

use crate::access::{AuthFailure, DeniedRule};
pub use crate::base::Direction;
use crate::base::{Family, Transport};
use crate::quality::score::Signal;
use crate::quality::{Action, Ending};
use crate::wire::{ErrorCode, Method};

use super::affected::Affected;
use super::icmp::IcmpFate;
use super::police::Limit;
use super::reject::Reject;

/// Which road a relayed datagram took between the relayed address and the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Path {
    /// Through a socket.
    Kernel,
    /// In memory, to or from another relayed address of this server.
    Hairpin,
}

impl Path {
    /// Every path, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Kernel, Self::Hairpin];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Hairpin => "hairpin",
        }
    }
}

/// Why a datagram or an indication went no further. Each is one label of `turn_dropped_packets_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Neither STUN nor ChannelData.
    NotStun,
    /// A STUN message or ChannelData that does not parse.
    Malformed,
    /// A STUN response, an indication that only servers send, or Send on a TCP allocation.
    Unexpected,
    /// FINGERPRINT is present and wrong.
    Fingerprint,
    /// ChannelData or Send from a client without an allocation.
    NoAllocation,
    /// ChannelData on a channel that is not bound.
    NoChannel,
    /// No permission for the peer.
    NoPermission,
    /// Peer policy refuses the peer of a Send indication.
    PeerDenied,
    /// The peer is of the other address family.
    Family,
    /// The own relayed address that the peer names is not allocated.
    NoRelay,
    /// A datagram too large for what carries it.
    TooLarge,
    /// The queue of a stream client is full: the oldest media was dropped.
    StreamQueue,
    /// The mailbox of another shard is full.
    Mailbox,
    /// The kernel's send buffer was full.
    SendBuffer,
    /// The kernel refused to send, for instance for want of a route.
    SendError,
    /// The sender's port is 0, or its address one of our own: nobody asked.
    Unanswerable,
    /// An address that has proven nothing asks more often than it is answered.
    RateLimited,
    /// The kernel dropped it because our receive buffer was full.
    ReceiveBuffer,
    /// The allocation is over its bandwidth.
    BandwidthAllocation,
    /// The user is over the bandwidth of all its allocations.
    BandwidthUser,
    /// The server is over its bandwidth.
    BandwidthTotal,
    /// The allocation addresses new peers faster than it may.
    NewPeers,
    /// A DTLS record of no session, or a ClientHello that none can begin with.
    Dtls,
    /// A peer's connection to an allocation that has as many as it may.
    Connections,
    /// The allocation looks like abuse, and is throttled or ends.
    Abuse,
}

impl DropReason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 25] = [
        Self::NotStun,
        Self::Malformed,
        Self::Unexpected,
        Self::Fingerprint,
        Self::NoAllocation,
        Self::NoChannel,
        Self::NoPermission,
        Self::PeerDenied,
        Self::Family,
        Self::NoRelay,
        Self::TooLarge,
        Self::StreamQueue,
        Self::Mailbox,
        Self::SendBuffer,
        Self::SendError,
        Self::Unanswerable,
        Self::RateLimited,
        Self::ReceiveBuffer,
        Self::BandwidthAllocation,
        Self::BandwidthUser,
        Self::BandwidthTotal,
        Self::NewPeers,
        Self::Dtls,
        Self::Connections,
        Self::Abuse,
    ];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotStun => "not_stun",
            Self::Malformed => "malformed",
            Self::Unexpected => "unexpected",
            Self::Fingerprint => "fingerprint",
            Self::NoAllocation => "no_allocation",
            Self::NoChannel => "no_channel",
            Self::NoPermission => "no_permission",
            Self::PeerDenied => "peer_denied",
            Self::Family => "family",
            Self::NoRelay => "no_relay",
            Self::TooLarge => "too_large",
            Self::StreamQueue => "stream_queue",
            Self::Mailbox => "mailbox",
            Self::SendBuffer => "send_buffer",
            Self::SendError => "send_error",
            Self::Unanswerable => "unanswerable",
            Self::RateLimited => "rate_limited",
            Self::ReceiveBuffer => "receive_buffer",
            Self::BandwidthAllocation => "bandwidth_allocation",
            Self::BandwidthUser => "bandwidth_user",
            Self::BandwidthTotal => "bandwidth_total",
            Self::NewPeers => "new_peers",
            Self::Dtls => "dtls",
            Self::Connections => "connections",
            Self::Abuse => "abuse",
        }
    }
}

/// Bytes and packets of application data; headers of TURN, UDP and IP do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Payload bytes.
    pub bytes: u64,
    /// Datagrams.
    pub packets: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.packets += 1;
    }
}

/// A histogram with fixed upper bounds; the last bucket is unbounded.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram<const N: usize> {
    /// Observations per bucket, not cumulative; `overflow` holds those above the last bound.
    pub buckets: [u64; N],
    /// Observations above the last bound.
    pub overflow: u64,
    /// Sum of all observations.
    pub sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            buckets: [0; N],
            overflow: 0,
            sum: 0.0,
        }
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts `value` in the first bucket whose bound is not below it.
    pub fn observe(&mut self, bounds: &[f64; N], value: f64) {
        match self
            .buckets
            .iter_mut()
            .zip(bounds)
            .find(|(_, bound)| value <= **bound)
        {
            Some((bucket, _)) => *bucket += 1,
            None => self.overflow += 1,
        }
        self.sum += value;
    }

    /// Adds the observations of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.overflow += other.overflow;
        self.sum += other.sum;
    }
}

/// Bounds of `turn_allocation_duration_seconds`.
pub const DURATION_BOUNDS_SECS: [f64; 10] = [
    1.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0, 86_400.0,
];

/// Bounds of `turn_allocation_bandwidth_bits_per_second`.
pub const BANDWIDTH_BOUNDS: [f64; 10] = [1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8];

/// In which families an allocation relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RelayKind {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Dual,
}

impl RelayKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Dual];

    /// That of an allocation in `family`, or in `both`.
    pub const fn of(family: Family, both: bool) -> Self {
        match (both, family) {
            (true, _) => Self::Dual,
            (false, Family::V4) => Self::V4,
            (false, Family::V6) => Self::V6,
        }
    }

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::V4 => Family::V4.label(),
            Self::V6 => Family::V6.label(),
            Self::Dual => "dual",
        }
    }
}

/// `Ok` or the error code of an answer.
pub type Outcome = Result<(), ErrorCode>;

/// Number of outcomes: success and each error code.
pub const OUTCOMES: usize = 1 + ErrorCode::ALL.len();

/// The row of `outcome` in tables of `OUTCOMES` entries.
pub const fn outcome_index(outcome: Outcome) -> usize {
    match outcome {
        Ok(()) => 0,
        Err(code) => 1 + code as usize,
    }
}

/// Everything one server counted since it was made. Indexed by discriminants.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Answered requests: method, transport, outcome.
    pub requests: [[[u64; OUTCOMES]; Transport::ALL.len()]; Method::ALL.len()],
    /// Live allocations: transport, which relayed addresses.
    pub live: [[u64; RelayKind::ALL.len()]; Transport::ALL.len()],
    /// Relayed application data: direction, path.
    pub relayed: [[Traffic; Path::ALL.len()]; Direction::ALL.len()],
    /// Datagrams that went no further.
    pub dropped: [u64; DropReason::ALL.len()],
    /// Dropped for want of bandwidth: limit, direction. Their datagrams are among `dropped` as well.
    pub policed: [[Traffic; Direction::ALL.len()]; Limit::ALL.len()],
    /// New peers that an allocation was not let address so soon.
    pub new_peers_refused: u64,
    /// Allocations many of whose peers never answered.
    pub scan_suspects: u64,
    /// Refreshes with a ticket, by outcome.
    pub mobility: [u64; OUTCOMES],
    /// Failed authentications.
    pub auth_failures: [u64; AuthFailure::ALL.len()],
    /// Refused peers.
    pub peer_denied: [u64; DeniedRule::ALL.len()],
    /// Who failed to get an allocation of late.
    pub affected: Affected,
    /// How long ended allocations lived, in seconds.
    pub duration: Histogram<{ DURATION_BOUNDS_SECS.len() }>,
    /// Mean bits/s of ended allocations over their life, per direction.
    pub bandwidth: [Histogram<{ BANDWIDTH_BOUNDS.len() }>; Direction::ALL.len()],
    /// Connections of TCP allocations with peers, those that wait to be made or bound included.
    pub connections: u64,
    /// ICMP errors about datagrams to peers.
    pub icmp: [u64; IcmpFate::ALL.len()],
    /// What became of the calls of ended allocations.
    pub sessions: [u64; Ending::ALL.len()],
    /// Requests that were answered with an error: method, reason by [`Reject::LABELS`].
    pub refused: [[u64; Reject::LABELS.len()]; Method::ALL.len()],
    /// Signals of allocations that looked like abuse, by what followed: each once for an allocation and action.
    pub abuse: [[u64; Action::ALL.len()]; Signal::ALL.len()],
    /// Live allocations that get less bandwidth for it.
    pub throttled: u64,
}

/// Outcomes of Allocate requests; challenges (401 without credentials, 438) are none and stay 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Those that got an allocation.
    pub succeeded: u64,
    /// Those that got another error than a challenge, by [`ErrorCode::ALL`].
    pub refused: [u64; ErrorCode::ALL.len()],
    /// Wrong credentials by [`AuthFailure::ALL`], in requests of any method.
    pub wrong_credentials: [u64; AuthFailure::ALL.len()],
}

impl Allocated {
    /// How many got none.
    pub fn failed(&self) -> u64 {
        self.refused.iter().chain(&self.wrong_credentials).sum()
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            requests: [[[0; OUTCOMES]; Transport::ALL.len()]; Method::ALL.len()],
            live: [[0; RelayKind::ALL.len()]; Transport::ALL.len()],
            relayed: [[Traffic::default(); Path::ALL.len()]; Direction::ALL.len()],
            dropped: [0; DropReason::ALL.len()],
            policed: [[Traffic::default(); Direction::ALL.len()]; Limit::ALL.len()],
            new_peers_refused: 0,
            scan_suspects: 0,
            mobility: [0; OUTCOMES],
            auth_failures: [0; AuthFailure::ALL.len()],
            peer_denied: [0; DeniedRule::ALL.len()],
            affected: Affected::default(),
            duration: Histogram::default(),
            bandwidth: Default::default(),
            connections: 0,
            icmp: [0; IcmpFate::ALL.len()],
            sessions: [0; Ending::ALL.len()],
            refused: [[0; Reject::LABELS.len()]; Method::ALL.len()],
            abuse: [[0; Action::ALL.len()]; Signal::ALL.len()],
            throttled: 0,
        }
    }
}

impl Stats {
    /// Counts a datagram that went no further.
    pub fn drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }

    /// Counts a datagram of `bytes` that `limit` stands against, by all but its reason, which follows. The limit of an
    /// allocation that is `throttled` is none of the configured ones.
    pub(super) fn policed(
        &mut self,
        limit: Limit,
        throttled: bool,
        direction: Direction,
        bytes: usize,
    ) -> DropReason {
        if throttled && limit == Limit::Allocation {
            return DropReason::Abuse;
        }
        self.policed[limit as usize][direction as usize].add(bytes);
        limit.reason()
    }

    /// Counts an answered request.
    pub fn answered(&mut self, method: Method, transport: Transport, outcome: Outcome) {
        self.requests[method as usize][transport as usize][outcome_index(outcome)] += 1;
    }

    /// Counts why a request was answered with an error, beside [`answered`](Self::answered).
    pub(super) fn refuse(&mut self, method: Method, reject: Reject) {
        self.refused[method as usize][reject.index()] += 1;
    }

    /// What became of those who wanted an allocation. A challenge is a step on the way and no outcome.
    pub fn allocated(&self) -> Allocated {
        let of = |outcome: Outcome| -> u64 {
            (self.requests[Method::Allocate as usize].iter())
                .map(|row| row[outcome_index(outcome)])
                .sum()
        };
        Allocated {
            succeeded: of(Ok(())),
            refused: ErrorCode::ALL.map(|code| match code {
                ErrorCode::Unauthenticated | ErrorCode::StaleNonce => 0,
                _ => of(Err(code)),
            }),
            wrong_credentials: AuthFailure::ALL.map(|failure| match failure {
                AuthFailure::Missing | AuthFailure::StaleNonce => 0,
                _ => self.auth_failures[failure as usize],
            }),
        }
    }

    /// Adds the counts of `other`, for totals over shards.
    pub fn merge(&mut self, other: &Self) {
        fn add(mine: &mut u64, theirs: &u64) {
            *mine += theirs;
        }
        let pairs = self.requests.as_flattened_mut().as_flattened_mut();
        let theirs = other.requests.as_flattened().as_flattened();
        pairs.iter_mut().zip(theirs).for_each(|(a, b)| add(a, b));
        let live = other.live.as_flattened();
        (self.live.as_flattened_mut().iter_mut().zip(live)).for_each(|(a, b)| add(a, b));
        (self.dropped.iter_mut().zip(&other.dropped)).for_each(|(a, b)| add(a, b));
        (self.auth_failures.iter_mut().zip(&other.auth_failures)).for_each(|(a, b)| add(a, b));
        (self.peer_denied.iter_mut().zip(&other.peer_denied)).for_each(|(a, b)| add(a, b));
        self.new_peers_refused += other.new_peers_refused;
        self.scan_suspects += other.scan_suspects;
        self.connections += other.connections;
        self.throttled += other.throttled;
        let abuse = other.abuse.as_flattened();
        (self.abuse.as_flattened_mut().iter_mut().zip(abuse)).for_each(|(a, b)| add(a, b));
        (self.icmp.iter_mut().zip(&other.icmp)).for_each(|(a, b)| add(a, b));
        (self.sessions.iter_mut().zip(&other.sessions)).for_each(|(a, b)| add(a, b));
        (self.mobility.iter_mut().zip(&other.mobility)).for_each(|(a, b)| add(a, b));
        let refused = other.refused.as_flattened();
        (self.refused.as_flattened_mut().iter_mut().zip(refused)).for_each(|(a, b)| add(a, b));
        let mine =
            (self.relayed.as_flattened_mut().iter_mut()).chain(self.policed.as_flattened_mut());
        let theirs = (other.relayed.as_flattened().iter()).chain(other.policed.as_flattened());
        for (mine, theirs) in mine.zip(theirs) {
            mine.bytes += theirs.bytes;
            mine.packets += theirs.packets;
        }
        self.affected.merge(&other.affected);
        self.duration.merge(&other.duration);
        for (mine, theirs) in self.bandwidth.iter_mut().zip(&other.bandwidth) {
            mine.merge(theirs);
        }
    }
}

/// Seconds a live bandwidth figure looks back.
pub const RATE_WINDOW_SECS: u64 = 10;

/// Payload bytes of the last ten whole seconds, one bucket a second: a live rate for the price of one comparison a packet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct RateWindow {
    /// The second, counted from the server's start, that `buckets[second % 11]` is filling.
    second: u32,
    buckets: [u32; BUCKETS],
    /// Bytes in the busiest second before it.
    peak: u32,
}

const BUCKETS: usize = RATE_WINDOW_SECS as usize + 1;

impl RateWindow {
    pub(super) fn add(&mut self, second: u32, bytes: usize) {
        self.turn_to(second);
        let bucket = &mut self.buckets[bucket_of(second)];
        *bucket = bucket.saturating_add(bytes as u32);
    }

    /// Bits per second over the ten whole seconds before `second`.
    pub(super) fn bits_per_second(&self, second: u32) -> u64 {
        let mut window = self.clone();
        window.turn_to(second);
        let current = bucket_of(second);
        let bytes: u64 = (window.buckets.iter().enumerate())
            .filter(|(index, _)| *index != current)
            .map(|(_, bytes)| u64::from(*bytes))
            .sum();
        bytes * 8 / RATE_WINDOW_SECS
    }

    /// Bits in the busiest second so far, the one that is going on included.
    pub(super) fn peak_bits_per_second(&self) -> u64 {
        u64::from(self.peak.max(self.buckets[bucket_of(self.second)])) * 8
    }

    fn turn_to(&mut self, second: u32) {
        if second <= self.second {
            return;
        }
        self.peak = self.peak.max(self.buckets[bucket_of(self.second)]);
        let steps = (second - self.second).min(BUCKETS as u32);
        for step in 0..steps {
            self.buckets[bucket_of(second - step)] = 0;
        }
        self.second = second;
    }
}

const fn bucket_of(second: u32) -> usize {
    second as usize % BUCKETS
}
