//! The peer policy: the one door to every peer, whatever transport or method asks.
//!
//! A [`PermittedIp`] or [`PermittedPeer`] can be made here only, and everything that sends to a peer takes one. The
//! order of decisions, first match wins:
//!
//! ```text
//! port 0                        -> denied
//! an address of this server     -> a service port: denied, whatever is allowed
//!                                  a relay port of a relayed address: permitted in memory
//!                                  covered by `allow`: permitted through the kernel
//!                                  otherwise: denied
//! covered by `allow`            -> permitted
//! covered by `deny`             -> denied
//! a safe default                -> denied
//! anything else                 -> permitted
//! ```
//!
//! An IPv6 address that carries IPv4 addresses is permitted only if each of them is: a translator on the way would
//! deliver to them. `allow` speaks for the address it names, not for what is inside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::base::addr::canonical;

/// Which rule refused a peer: one label each of `turn_peer_denied_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeniedRule {
    /// Port 0 of any address.
    PortZero,
    /// An address of this server where nothing but a relayed address may be reached, or a port of its services.
    OwnAddress,
    /// `peers.deny`.
    Configured,
    /// Where clouds serve instance metadata and credentials, within several of the ranges below.
    Metadata,
    /// 127.0.0.0/8, ::1.
    Loopback,
    /// 0.0.0.0/8, ::.
    Unspecified,
    /// 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 (RFC 1918).
    Private,
    /// 100.64.0.0/10 (RFC 6598).
    Cgnat,
    /// fc00::/7 (RFC 4193).
    UniqueLocal,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32, 3fff::/20.
    Documentation,
    /// 198.18.0.0/15, 2001:2::/48.
    Benchmarking,
    /// What else is not for unicast between hosts of the Internet: 192.0.0.0/24, 192.88.99.0/24, 240.0.0.0/4,
    /// 2001::/23, and of IPv6 whatever lies outside 2000::/3 and 64:ff9b::/96.
    Reserved,
    /// 64:ff9b:1::/48, a translator of the local network (RFC 8215).
    Translated,
}

impl DeniedRule {
    /// Every rule, in the order of their discriminants.
    pub const ALL: [Self; 16] = [
        Self::PortZero,
        Self::OwnAddress,
        Self::Configured,
        Self::Metadata,
        Self::Loopback,
        Self::Unspecified,
        Self::LinkLocal,
        Self::Private,
        Self::Cgnat,
        Self::UniqueLocal,
        Self::Multicast,
        Self::Broadcast,
        Self::Documentation,
        Self::Benchmarking,
        Self::Reserved,
        Self::Translated,
    ];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PortZero => "port_zero",
            Self::OwnAddress => "own_address",
            Self::Configured => "configured",
            Self::Metadata => "metadata",
            Self::Loopback => "loopback",
            Self::Unspecified => "unspecified",
            Self::LinkLocal => "link_local",
            Self::Private => "private",
            Self::Cgnat => "cgnat",
            Self::UniqueLocal => "unique_local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Documentation => "documentation",
            Self::Benchmarking => "benchmarking",
            Self::Reserved => "reserved",
            Self::Translated => "translated",
        }
    }
}

/// Peer policy as configured.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Ranges refused in addition to the safe defaults.
    pub deny: Vec<Rule>,
    /// Exceptions to everything that is refused, but for the ports of our own services.
    ///
    /// Metadata addresses need the name `metadata` or the very address: no wider range opens them. A local NAT64
    /// prefix needs a rule within 64:ff9b:1::/48, whose length says where the translator finds the IPv4 address.
    pub allow: Vec<Rule>,
}

/// A CIDR or a named range, as the configuration file writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(Range);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    Net(IpNet),
    /// Everything whose narrowest safe default is this one.
    Named(DeniedRule),
}

/// The names a [`Rule`] can be written as.
const NAMES: [(&str, DeniedRule); 12] = [
    ("loopback", DeniedRule::Loopback),
    ("private", DeniedRule::Private),
    ("cgnat", DeniedRule::Cgnat),
    ("link-local", DeniedRule::LinkLocal),
    ("unique-local", DeniedRule::UniqueLocal),
    ("multicast", DeniedRule::Multicast),
    ("documentation", DeniedRule::Documentation),
    ("benchmarking", DeniedRule::Benchmarking),
    ("reserved", DeniedRule::Reserved),
    ("metadata", DeniedRule::Metadata),
    ("unspecified", DeniedRule::Unspecified),
    ("broadcast", DeniedRule::Broadcast),
];

impl Rule {
    /// Whether `ip` is in the range. A mapped IPv4 address counts as IPv4.
    ///
    /// A name covers what no narrower name does: `link-local` leaves out the metadata addresses within.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match self.0 {
            Range::Net(net) => net.contains(&ip),
            Range::Named(rule) => safe_default(ip) == Some(rule),
        }
    }

    /// Whether the range, in `allow`, opens `ip`, whose narrowest safe default is `default`.
    fn opens(&self, ip: IpAddr, default: Option<DeniedRule>) -> bool {
        match self.0 {
            Range::Net(net) => {
                net.contains(&ip)
                    && match default {
                        Some(DeniedRule::Metadata) => net.prefix_len() == net.max_prefix_len(),
                        Some(DeniedRule::Translated) => {
                            net.prefix_len() >= NAT64_LOCAL.prefix_len()
                        }
                        _ => true,
                    }
            }
            Range::Named(rule) => default == Some(rule),
        }
    }
}

impl From<IpNet> for Rule {
    /// The range of `net`, bits after its prefix ignored; a range of mapped IPv4 addresses is that of IPv4.
    fn from(net: IpNet) -> Self {
        let net = net.trunc();
        Self(Range::Net(match net {
            IpNet::V6(v6) if MAPPED.contains(&v6) => {
                Ipv4Net::new(low_ipv4(v6.addr()), v6.prefix_len() - MAPPED.prefix_len())
                    .map_or(net, IpNet::V4)
            }
            _ => net,
        }))
    }
}

impl FromStr for Rule {
    type Err = String;

    /// Reads a CIDR, a single address or a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(IpNet::from(ip).into());
        }
        if let Ok(net) = text.parse::<IpNet>() {
            // Either the prefix or the address is a mistake, and the two differ in how much they open.
            if net.addr() != net.network() {
                return Err(format!(
                    "\"{net}\" has bits set after its prefix: write \"{}\" for the range or \"{}\" for the one address",
                    net.trunc(),
                    net.addr(),
                ));
            }
            return Ok(net.into());
        }
        let name = text.to_ascii_lowercase().replace('_', "-");
        if let Some(&(_, rule)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Self(Range::Named(rule)));
        }
        let names = NAMES.map(|(name, _)| format!("\"{name}\"")).join(", ");
        Err(format!(
            "\"{}\" is not a range of addresses: write a CIDR such as \"10.0.0.0/8\" or \"2001:db8::/32\", an address, or one of {names}",
            text.escape_debug(),
        ))
    }
}

impl fmt::Display for Rule {
    /// In the form that `from_str` reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Range::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                fmt::Display::fmt(&net.addr(), f)
            }
            Range::Net(net) => fmt::Display::fmt(&net, f),
            Range::Named(named) => match NAMES.iter().find(|(_, rule)| *rule == named) {
                Some((name, _)) => f.write_str(name),
                None => f.write_str(named.label()),
            },
        }
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

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer denied: {}", self.rule.label())
    }
}

impl std::error::Error for Denied {}

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
    /// The permitted IP, a mapped IPv4 address in its IPv4 form.
    pub const fn ip(self) -> IpAddr {
        self.ip
    }
}

impl PermittedPeer {
    /// The permitted transport address, a mapped IPv4 address in its IPv4 form.
    pub const fn address(self) -> SocketAddr {
        self.address
    }

    /// Proof for its IP: an IP is permitted if some port of it is.
    pub const fn ip(self) -> PermittedIp {
        PermittedIp {
            ip: self.address.ip(),
        }
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
pub struct PeerPolicy {
    deny: Box<[Rule]>,
    allow: Box<[Rule]>,
    own: OwnAddresses,
}

/// The roads to a permitted peer; at least one is open.
#[derive(Clone, Copy)]
struct Roads {
    own_relay: bool,
    kernel: bool,
}

impl PeerPolicy {
    /// Compiles the policy.
    pub fn new(settings: &Settings, mut own: OwnAddresses) -> Self {
        for ip in own.relays.iter_mut().chain(&mut own.host) {
            *ip = ip.to_canonical();
        }
        Self {
            deny: settings.deny.as_slice().into(),
            allow: settings.allow.as_slice().into(),
            own,
        }
    }

    /// May a permission be created for `ip`?
    ///
    /// A permission is per IP (RFC 8656 §9): an IP is permitted if some port of it is.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn permit_ip(&self, ip: IpAddr) -> Result<PermittedIp, Denied> {
        let ip = ip.to_canonical();
        match self.roads(ip, None) {
            Ok(_) => Ok(PermittedIp { ip }),
            Err(rule) => Err(Denied { rule }),
        }
    }

    /// May data be sent to `peer`?
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn permit(&self, peer: SocketAddr) -> Result<PermittedPeer, Denied> {
        let address = canonical(peer);
        if address.port() == 0 {
            return Err(Denied {
                rule: DeniedRule::PortZero,
            });
        }
        match self.roads(address.ip(), Some(address.port())) {
            Ok(Roads { own_relay, kernel }) => Ok(PermittedPeer {
                address,
                own_relay,
                kernel,
            }),
            Err(rule) => Err(Denied { rule }),
        }
    }

    /// Whether `address` is a port of our own services: what comes from there was forged.
    pub fn is_own_service(&self, address: SocketAddr) -> bool {
        self.own.service_ports.contains(&address.port())
            && self.own.host.contains(&address.ip().to_canonical())
    }

    /// Which roads lead to the canonical `ip`, on some port if `port` is `None`.
    fn roads(&self, ip: IpAddr, port: Option<u16>) -> Result<Roads, DeniedRule> {
        let default = safe_default(ip);
        let allowed = self.allow.iter().any(|rule| rule.opens(ip, default));
        // The kernel delivers to any of these what is sent to it, listed among the host's addresses or not.
        let local = matches!(
            default,
            Some(DeniedRule::Loopback | DeniedRule::Unspecified)
        );
        let own_relay = self.own.relays.contains(&ip);
        if own_relay || local || self.own.host.contains(&ip) {
            if port.is_some_and(|port| self.own.service_ports.contains(&port)) {
                return Err(DeniedRule::OwnAddress);
            }
            let roads = Roads {
                own_relay: own_relay
                    && port.is_none_or(|port| self.own.relay_ports.contains(&port)),
                kernel: allowed && self.check_embedded(ip, port).is_ok(),
            };
            return match default {
                _ if roads.own_relay || roads.kernel => Ok(roads),
                Some(rule) if local => Err(rule),
                _ => Err(DeniedRule::OwnAddress),
            };
        }
        if !allowed && self.deny.iter().any(|rule| rule.contains(ip)) {
            return Err(DeniedRule::Configured);
        }
        // What an address carries says more about why it is refused than that its block is reserved.
        let narrow = default.filter(|&rule| rule != DeniedRule::Reserved);
        match narrow {
            Some(rule) if !allowed => return Err(rule),
            _ => self.check_embedded(ip, port)?,
        }
        match default {
            Some(rule) if !allowed => Err(rule),
            _ => Ok(Roads {
                own_relay: false,
                kernel: true,
            }),
        }
    }

    /// Checks the IPv4 addresses inside an IPv6 address. They are reached through the kernel or not at all.
    fn check_embedded(&self, ip: IpAddr, port: Option<u16>) -> Result<(), DeniedRule> {
        let IpAddr::V6(ip) = ip else {
            return Ok(());
        };
        let local = self.allow.iter().filter_map(|rule| match rule.0 {
            Range::Net(IpNet::V6(net)) if NAT64_LOCAL.contains(&net) && net.contains(&ip) => {
                Some(rfc6052(ip, net.prefix_len()))
            }
            _ => None,
        });
        for inner in embedded(ip).into_iter().flatten().chain(local) {
            if !self.roads(inner.into(), port)?.kernel {
                return Err(DeniedRule::OwnAddress);
            }
        }
        Ok(())
    }
}

/// The narrowest range of the safe defaults that holds the canonical `ip`.
fn safe_default(ip: IpAddr) -> Option<DeniedRule> {
    if METADATA.contains(&ip) {
        return Some(DeniedRule::Metadata);
    }
    match ip {
        IpAddr::V4(ip) => IPV4
            .iter()
            .find(|(net, _)| net.contains(&ip))
            .map(|&(_, rule)| rule),
        IpAddr::V6(ip) => IPV6
            .iter()
            .find(|(net, _)| net.contains(&ip))
            .map(|&(_, rule)| rule)
            .or_else(|| {
                let unicast = GLOBAL_UNICAST.contains(&ip) || NAT64.contains(&ip);
                (!unicast).then_some(DeniedRule::Reserved)
            }),
    }
}

/// The IPv4 addresses that `ip` carries in the forms that translators and tunnels of the Internet understand.
///
/// Mapped addresses are not among them: they are canonicalized before.
fn embedded(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let [_, a, b, c, d, e, f, g] = ip.segments();
    let first = if TEREDO.contains(&ip) {
        // The server, RFC 4380 §4.
        Some(ipv4(b, c))
    } else if SIX_TO_FOUR.contains(&ip) {
        Some(ipv4(a, b))
    } else if NAT64.contains(&ip)
        || SIIT.contains(&ip)
        || (COMPATIBLE.contains(&ip) && !ip.is_unspecified() && !ip.is_loopback())
    {
        Some(low_ipv4(ip))
    } else {
        None
    };
    // The client behind its NAT, with its bits inverted, RFC 4380 §4.
    let teredo_client = TEREDO.contains(&ip).then(|| ipv4(!f, !g));
    // An interface identifier under any prefix, RFC 5214 §6.1.
    let isatap = (matches!(d, 0 | 0x200) && e == 0x5efe).then(|| low_ipv4(ip));
    [first, teredo_client, isatap]
}

/// The IPv4 address in `ip` behind a NAT64 prefix of 48 bits or more (RFC 6052 §2.2).
///
/// A length between those of the RFC counts as the next shorter one.
const fn rfc6052(ip: Ipv6Addr, prefix_len: u8) -> Ipv4Addr {
    let [_, _, _, _, _, _, g, h, _, j, k, l, m, n, o, p] = ip.octets();
    match prefix_len {
        ..56 => Ipv4Addr::new(g, h, j, k),
        56..64 => Ipv4Addr::new(h, j, k, l),
        64..96 => Ipv4Addr::new(j, k, l, m),
        96.. => Ipv4Addr::new(m, n, o, p),
    }
}

const fn ipv4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(((high as u32) << 16) | low as u32)
}

const fn low_ipv4(ip: Ipv6Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(ip.to_bits() as u32)
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

/// The network whose first four groups are given and whose others are zero.
const fn v6(groups: [u16; 4], prefix_len: u8) -> Ipv6Net {
    let [a, b, c, d] = groups;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), prefix_len)
}

const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
/// RFC 4291 §2.5.5.1.
const COMPATIBLE: Ipv6Net = v6([0; 4], 96);
/// RFC 2765 §2.1, "IPv4-translated".
const SIIT: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96);
/// RFC 6052 §2.1.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 96);
/// RFC 8215.
const NAT64_LOCAL: Ipv6Net = v6([0x64, 0xff9b, 1, 0], 48);
/// RFC 3056.
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0], 16);
/// RFC 4380.
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0], 32);
/// All that IANA allocates from.
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0], 3);

/// AWS and everyone who copied it, ECS, EKS, Scaleway, Alibaba, Azure, Oracle; over IPv6 AWS, EKS, Scaleway, Google.
const METADATA: [IpAddr; 11] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Of ranges that overlap, the narrower comes first.
const IPV4: [(Ipv4Net, DeniedRule); 16] = [
    (v4(0, 0, 0, 0, 8), DeniedRule::Unspecified),
    (v4(127, 0, 0, 0, 8), DeniedRule::Loopback),
    (v4(169, 254, 0, 0, 16), DeniedRule::LinkLocal),
    (v4(10, 0, 0, 0, 8), DeniedRule::Private),
    (v4(172, 16, 0, 0, 12), DeniedRule::Private),
    (v4(192, 168, 0, 0, 16), DeniedRule::Private),
    (v4(100, 64, 0, 0, 10), DeniedRule::Cgnat),
    (v4(192, 0, 0, 0, 24), DeniedRule::Reserved),
    (v4(192, 0, 2, 0, 24), DeniedRule::Documentation),
    (v4(198, 51, 100, 0, 24), DeniedRule::Documentation),
    (v4(203, 0, 113, 0, 24), DeniedRule::Documentation),
    (v4(192, 88, 99, 0, 24), DeniedRule::Reserved),
    (v4(198, 18, 0, 0, 15), DeniedRule::Benchmarking),
    (v4(224, 0, 0, 0, 4), DeniedRule::Multicast),
    (v4(255, 255, 255, 255, 32), DeniedRule::Broadcast),
    (v4(240, 0, 0, 0, 4), DeniedRule::Reserved),
];

/// As above. What is not here and not in [`GLOBAL_UNICAST`] is reserved too, as 100::/64, 5f00::/16 and fec0::/10 are.
const IPV6: [(Ipv6Net, DeniedRule); 10] = [
    (
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128),
        DeniedRule::Unspecified,
    ),
    (
        Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
        DeniedRule::Loopback,
    ),
    (NAT64_LOCAL, DeniedRule::Translated),
    (v6([0xfe80, 0, 0, 0], 10), DeniedRule::LinkLocal),
    (v6([0xfc00, 0, 0, 0], 7), DeniedRule::UniqueLocal),
    (v6([0xff00, 0, 0, 0], 8), DeniedRule::Multicast),
    (v6([0x2001, 0xdb8, 0, 0], 32), DeniedRule::Documentation),
    (v6([0x3fff, 0, 0, 0], 20), DeniedRule::Documentation),
    (v6([0x2001, 2, 0, 0], 48), DeniedRule::Benchmarking),
    (v6([0x2001, 0, 0, 0], 23), DeniedRule::Reserved),
];
