//! The peer policy.
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// Which rule refused a peer: one label each of `turn_peer_denied_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeniedRule {
    /// placeholder: the access module completes this list.
    Loopback,
}

impl DeniedRule {
    /// Every rule, in the order of their discriminants.
    pub const ALL: [Self; 1] = [Self::Loopback];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        "loopback"
    }
}

/// Peer policy as configured.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Ranges refused in addition to the safe defaults.
    pub deny: Vec<Rule>,
    /// Exceptions to everything that is refused.
    pub allow: Vec<Rule>,
}

/// A CIDR or a named range, as the configuration file writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {}

impl std::str::FromStr for Rule {
    type Err = String;
    fn from_str(_: &str) -> Result<Self, Self::Err> {
        todo!()
    }
}

/// What belongs to this server.
#[derive(Clone, Debug)]
pub struct OwnAddresses {
    /// Relayed addresses as clients see them (external where there is 1:1 NAT).
    pub relays: Vec<IpAddr>,
    /// Ports that relayed addresses are taken from.
    pub relay_ports: RangeInclusive<u16>,
    /// Every address of the host, and its external ones.
    pub host: Vec<IpAddr>,
    /// Ports of our listeners and of the admin listener: never reachable by relaying, whatever is allowed.
    pub service_ports: Vec<u16>,
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The rule that refused.
    pub rule: DeniedRule,
}

/// Proof that policy lets clients exchange data with this IP on some port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermittedIp {
    ip: IpAddr,
}

/// Proof that policy lets clients send to this transport address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermittedPeer {
    address: SocketAddr,
    own_relay: bool,
    kernel: bool,
}

impl PermittedIp {
    /// The permitted IP.
    pub const fn ip(self) -> IpAddr {
        self.ip
    }
}

impl PermittedPeer {
    /// The permitted transport address.
    pub const fn address(self) -> SocketAddr {
        self.address
    }

    /// Whether it can be one of our own relayed addresses, reached in memory.
    pub const fn may_be_own_relay(self) -> bool {
        self.own_relay
    }

    /// Whether it may be reached through the kernel when it is not a live relayed address of ours.
    pub const fn may_use_kernel(self) -> bool {
        self.kernel
    }
}

/// Decides which peers may be reached.
#[derive(Debug)]
pub struct PeerPolicy {}

impl PeerPolicy {
    /// Compiles the policy.
    pub fn new(_settings: &Settings, _own: OwnAddresses) -> Self {
        todo!()
    }

    /// May a permission be created for `ip`?
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn permit_ip(&self, _ip: IpAddr) -> Result<PermittedIp, Denied> {
        todo!()
    }

    /// May data be sent to `peer`?
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn permit(&self, _peer: SocketAddr) -> Result<PermittedPeer, Denied> {
        todo!()
    }
}
