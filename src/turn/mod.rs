//! The TURN server as a function of its inputs (RFC 8489, RFC 8656).
//!
//! Owns allocations, permissions, channel bindings and their lifetimes. Opens no socket, reads no clock, spawns
//! nothing, locks nothing: inputs are datagrams and the time, outputs are a verdict on the datagram in hand
//! ([`Forward`]) and a queue of effects ([`Output`]) that the caller carries out in order.
//!
//! ```text
//!            handle_input ─────► Forward   ChannelData, Send            (data path: by value, no queue)
//!  client ──►      │
//!                  └───────────► Output…   answers, OpenRelay, Ended    (control path: poll_output)
//!  peer   ──► handle_peer_input ► Forward  ChannelData, Data indication
//!  ICMP   ──► handle_icmp ──────► Output…  Data indication
//!  time   ──► handle_timeout ───► Output…
//! ```

mod abuse;
pub mod affected;
mod allocation;
pub mod attempts;
mod auth;
mod change;
mod connections;
mod contacts;
mod counters;
mod discovery;
mod flight;
mod icmp;
mod limits;
mod mobility;
pub mod police;
mod purses;
mod reject;
mod relay;
mod relayed;
mod requests;
mod routes;
mod server;
mod snapshot;
pub mod stats;
mod ticket;
mod timers;
mod trace;

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::access::{PermittedPeer, RealmName, Scope};
use crate::base::{Family, FiveTuple, RelayTransport};
use crate::quality;
use crate::wire::Header;

pub use allocation::{AllocationId, AllocationView, CHANNEL_LIFETIME, PERMISSION_LIFETIME};
pub use attempts::{Attempts, Client, Fate};
pub use auth::NONCE_LENGTH;
pub use change::Newcomers;
pub use connections::{CONNECTION_TIMEOUT, ConnectionId};
pub use discovery::{NatDiscovery, Vantage};
pub use flight::{Event, Name, Remembered, Subject, What};
pub use icmp::IcmpFate;
pub use police::Bandwidth;
pub use purses::{PurseId, Settlement};
pub use reject::Reject;
pub use relayed::Opened;
pub use server::Server;
pub use snapshot::{SNAPSHOT_FORMAT, Snapshot, SnapshotError, Tenant};
pub use stats::{
    BANDWIDTH_BOUNDS, DURATION_BOUNDS_SECS, Direction, DropReason, Histogram, OUTCOMES, Outcome,
    Path, RATE_WINDOW_SECS, RelayKind, Stats, Traffic, outcome_index,
};

/// What an allocation gets when its client asks for nothing or for less (RFC 8656 §3).
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);

/// What an allocation that reaches no further than a loop may relay, in each direction: bits per second. A lower
/// [`Bandwidth::per_allocation`] holds as well.
pub const LOOP_BITS_PER_SECOND: u64 = 2_000_000;

/// The data path's verdict on the datagram that the caller holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Forward {
    /// Send this slice of the input to `peer` from the relayed address of `allocation`.
    ToPeer {
        /// Whose relayed address.
        allocation: AllocationId,
        /// Where to, and by which roads it may go.
        peer: PermittedPeer,
        /// Where the application data lies in the input, in bytes.
        payload: Range<u16>,
        /// Nobody may cut the datagram up (DONT-FRAGMENT, RFC 8656 §11.2).
        dont_fragment: bool,
    },
    /// Write `header` right in front of the input, its padding behind, and send all of it to the client.
    ToClient {
        /// The client.
        five_tuple: FiveTuple,
        /// What goes in front.
        header: Header,
    },
    /// A control message, or nothing to do: drain `poll_output`.
    Consumed,
    /// Give this datagram, and what follows on its five-tuple, to another shard: its ticket names an allocation there
    /// (RFC 8016).
    ToShard {
        /// Which.
        shard: u8,
    },
    /// It goes no further, and is counted.
    Drop(DropReason),
}

/// One effect of the control path, to be carried out in order.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Send a message to a client.
    ToClient {
        /// The client.
        five_tuple: FiveTuple,
        /// A whole STUN message.
        message: Vec<u8>,
    },
    /// Open a relay socket, then call `handle_relay_opened`.
    OpenRelay {
        /// Whose.
        id: AllocationId,
        /// In which family.
        family: Family,
        /// Whether its port has to be even (EVEN-PORT, RFC 8656 §7.2).
        even_port: bool,
        /// User id, for quotas.
        user: Arc<str>,
        /// The realm that knows the user, for quotas; `None`: the default one.
        realm: Option<RealmName>,
        /// How far the user's credentials reach, for quotas.
        scope: Scope,
        /// The client's address, for quotas.
        client: IpAddr,
        /// Whether the socket is for datagrams, or listens for connections (RFC 6062 §5.1).
        transport: RelayTransport,
        /// Whether the port above it is to be kept for the client (EVEN-PORT with the R bit).
        reserve: bool,
        /// The port is one that was kept for the client, whatever its family (RESERVATION-TOKEN).
        token: Option<u64>,
    },
    /// Close the relay socket and give back what opening it reserved.
    CloseRelay {
        /// Whose.
        id: AllocationId,
        /// In which family.
        family: Family,
    },
    /// An allocation that was live is over.
    Ended(Box<Ended>),
    /// Connect to `peer` from the relayed address of `allocation`, then call `handle_peer_connected` (RFC 6062 §5.2).
    ConnectPeer {
        /// Names the connection from now on.
        connection: ConnectionId,
        /// Whose relayed address.
        allocation: AllocationId,
        /// Where to, and by which roads it may go.
        peer: PermittedPeer,
    },
    /// What the client on `five_tuple` sends behind this request is for the peer of `connection`, as it is, and the other
    /// way round (RFC 6062 §5.4).
    BindPeer {
        /// Which.
        connection: ConnectionId,
        /// The client's data connection, once it has its answer.
        five_tuple: FiveTuple,
    },
    /// Close a connection with a peer, whether there is one yet or not, and the client's data connection that is bound
    /// to it.
    ClosePeer {
        /// Which.
        connection: ConnectionId,
    },
    /// Count the allocation for this address rather than the one so far, then call `handle_client_moved`.
    MoveClient {
        /// Which.
        id: AllocationId,
        /// The client's address, for quotas.
        client: IpAddr,
    },
    /// An allocation that has moved is no longer on this five-tuple.
    Left {
        /// Where it was.
        five_tuple: FiveTuple,
    },
}

/// The last word on an allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Its state when it ended.
    pub view: AllocationView,
    /// How long it lived.
    pub duration: Duration,
    /// Why it ended.
    pub reason: EndReason,
}

/// Why an allocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The client refreshed it to zero.
    Released,
    /// Its lifetime ran out.
    Expired,
    /// The client's TCP or TLS connection closed.
    ClientClosed,
    /// An operator ended it.
    Administrative,
    /// It is revoked, or its user is gone from the configuration or has another password.
    Revoked,
    /// The UDP listener of its client is gone from the configuration.
    ListenerClosed,
    /// Its relay socket failed.
    RelayFailed,
    /// The server stops.
    Shutdown,
    /// It looked like abuse rather than like a call, and `quality.abuse` says so.
    Abuse,
}

impl EndReason {
    /// The word in logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Expired => "expired",
            Self::ClientClosed => "client_closed",
            Self::Administrative => "administrative",
            Self::Revoked => "revoked",
            Self::ListenerClosed => "listener_closed",
            Self::RelayFailed => "relay_failed",
            Self::Shutdown => "shutdown",
            Self::Abuse => "abuse",
        }
    }
}

/// Why a relay socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A quota is used up: 486.
    Quota,
    /// No port is free, or none is kept under that token: 508.
    Capacity,
}

/// Which channel numbers clients may bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChannelRange {
    /// 0x4000 to 0x4FFF (RFC 8656 §12).
    #[default]
    Rfc8656,
    /// 0x4000 to 0x7FFE (RFC 5766 §11), for old clients.
    Rfc5766,
}

/// In which family a relayed address is that a client asks for without REQUESTED-ADDRESS-FAMILY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DefaultFamily {
    /// IPv4 (RFC 8656 §7.2).
    #[default]
    Ipv4,
    /// That of the client's address, if there are relayed addresses in it; IPv4 else.
    SameAsClient,
}

/// On which transports clients are offered what RFC 8489 has beyond MD5 and MESSAGE-INTEGRITY: MESSAGE-INTEGRITY-SHA256,
/// SHA-256 keys, and USERHASH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SecurityFeatures {
    /// On none.
    Off,
    /// On those where clients have proven their address, since it enlarges the answers to strangers: all but plain UDP.
    #[default]
    Streams,
    /// On all.
    Always,
}

/// What DSCP and ECN of relayed datagrams are (RFC 8656 §14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dscp {
    /// What they were when the datagram came, between UDP clients and peers.
    #[default]
    Preserve,
    /// Best effort, Not-ECT.
    Zero,
}

/// What of the protocols is offered: the core's part of `[protocol]`.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Where a client names no family.
    pub default_family: DefaultFamily,
    /// Channel numbers that may be bound.
    pub channels: ChannelRange,
    /// Where security features are offered.
    pub security_features: SecurityFeatures,
    /// Allocations in both families (ADDITIONAL-ADDRESS-FAMILY, RFC 8656 §7.2); the attribute is ignored else.
    pub dual_allocation: bool,
    /// Ports kept for a second allocation (EVEN-PORT with the R bit, RFC 8656 §7.2); 508 else.
    pub reservations: bool,
    /// Whether clients may ask for datagrams that nobody cuts up.
    pub dont_fragment: bool,
    /// DSCP and ECN of what is relayed.
    pub dscp: Dscp,
    /// Whether clients are told of ICMP errors.
    pub icmp: bool,
    /// Addresses that clients may discover their NAT by, at most one of each family.
    pub nat_discovery: Vec<NatDiscovery>,
    /// Whether clients of RFC 3489 are answered.
    pub rfc3489: bool,
    /// Allocations that relay connections (RFC 6062).
    pub tcp_allocations: bool,
    /// Whether clients may move their allocations (RFC 8016).
    pub mobility: bool,
}

impl Default for Protocol {
    fn default() -> Self {
        Self {
            default_family: DefaultFamily::default(),
            channels: ChannelRange::default(),
            nat_discovery: Vec::new(),
            rfc3489: false,
            security_features: SecurityFeatures::default(),
            tcp_allocations: true,
            dual_allocation: true,
            reservations: true,
            dont_fragment: true,
            dscp: Dscp::default(),
            icmp: true,
            mobility: true,
        }
    }
}

/// How the core behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The longest lifetime a client may ask for.
    pub max_lifetime: Duration,
    /// How long a nonce is good for.
    pub nonce_lifetime: Duration,
    /// What is offered.
    pub protocol: Protocol,
    /// Live permissions one allocation may hold.
    pub permissions_per_allocation: usize,
    /// Live channel bindings one allocation may hold.
    pub channels_per_allocation: usize,
    /// Answers per second to requests without credentials from one address over UDP, as
    /// [`AddressRate`](crate::access::AddressRate) has it; 0 is no limit.
    pub unauthenticated_per_address: u32,
    /// The same for requests with wrong credentials.
    pub auth_failures_per_address: u32,
    /// What may be relayed.
    pub bandwidth: Bandwidth,
    /// Peers that one allocation may address each second for the first time in a while, and several times as many at
    /// once; 0 is no limit.
    pub new_peers_per_second: u32,
    /// Connections with peers that one TCP allocation may have, those that wait to be made or bound included.
    pub connections_per_allocation: usize,
    /// What is looked at of what is relayed.
    pub quality: quality::Settings,
}

impl Settings {
    /// What allocations are held to.
    fn rates(&self) -> police::ScopedRates {
        police::ScopedRates::new(self.bandwidth, self.quality.abuse_bits_per_second)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_lifetime: Duration::from_secs(3600),
            nonce_lifetime: Duration::from_secs(3600),
            protocol: Protocol::default(),
            permissions_per_allocation: 128,
            channels_per_allocation: 64,
            unauthenticated_per_address: 100,
            auth_failures_per_address: 10,
            bandwidth: Bandwidth::default(),
            new_peers_per_second: 50,
            connections_per_allocation: 16,
            quality: quality::Settings::default(),
        }
    }
}

/// What is random in a server and what the host offers: inputs as well, so that a run can be repeated.
#[derive(Clone)]
pub struct Seed {
    /// Keys nonces; the same in every shard, secret.
    pub nonce_key: [u8; 32],
    /// Keys the hash tables and the transaction ids of Data indications.
    pub hash: [u64; 4],
    /// Families that relayed addresses exist in.
    pub families: Vec<Family>,
}

/// Where a datagram of a peer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FromPeer {
    /// The peer's transport address; a relayed address of ours where `path` is `Hairpin`.
    pub peer: SocketAddr,
    /// The road it took.
    pub path: Path,
    /// How far the credentials of the sending allocation reach where `path` is `Hairpin`; what anybody sent through the
    /// kernel is of [`Scope::Policy`].
    pub scope: Scope,
}
