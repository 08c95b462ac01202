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
//!
//! A rule with ports covers these ports only. A permission is per IP (RFC 8656 §9), so it is given if any port of the IP
//! is permitted; what is sent, bound or received is judged by its port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ranges::{MAPPED, NAT64_LOCAL, embedded, low_ipv4, rfc6052, safe_default};
use super::scope::Scope;
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
    /// Anything but a relayed address of the same visit, for credentials that reach no further ([`Scope::Loop`]).
    LoopOnly,
}

impl DeniedRule {
    /// Every rule, in the order of their discriminants.
    pub const ALL: [Self; 17] = [
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
        Self::LoopOnly,
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
            Self::LoopOnly => "loop_only",
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
    /// prefix needs a rule within 64:ff9b:1::/48, whose length says where the translator finds the IPv4 address unless
    /// `nat64` does.
    pub allow: Vec<Rule>,
    /// Where translators of the local network find IPv4 addresses. Opens nothing: what is inside is judged as well.
    pub nat64: Vec<Nat64>,
}

/// A CIDR or a named range, with or without ports, as the configuration file writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    range: Range,
    ports: Ports,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    Net(IpNet),
    /// Everything whose narrowest safe default is this one; what has none is `public`.
    Named(Option<DeniedRule>),
}

/// From `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    const ALL: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    /// Whether `port` is one of them; `None` is a port that no rule names.
    fn cover(self, port: Option<u16>) -> bool {
        match port {
            Some(port) => self.first <= port && port <= self.last,
            None => self == Self::ALL,
        }
    }
}

impl FromStr for Ports {
    type Err = ();

    /// Reads `5004` or `10000-20000`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let port = |text: &str| match text.parse() {
            Ok(port @ 1_u16..) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
            _ => Err(()),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first <= last {
            Ok(Self { first, last })
        } else {
            Err(())
        }
    }
}

/// The names a [`Rule`] can be written as.
const NAMES: [(&str, Option<DeniedRule>); 13] = [
    ("public", None),
    ("loopback", Some(DeniedRule::Loopback)),
    ("private", Some(DeniedRule::Private)),
    ("cgnat", Some(DeniedRule::Cgnat)),
    ("link-local", Some(DeniedRule::LinkLocal)),
    ("unique-local", Some(DeniedRule::UniqueLocal)),
    ("multicast", Some(DeniedRule::Multicast)),
    ("documentation", Some(DeniedRule::Documentation)),
    ("benchmarking", Some(DeniedRule::Benchmarking)),
    ("reserved", Some(DeniedRule::Reserved)),
    ("metadata", Some(DeniedRule::Metadata)),
    ("unspecified", Some(DeniedRule::Unspecified)),
    ("broadcast", Some(DeniedRule::Broadcast)),
];

impl Rule {
    /// Whether `ip` is in the range, on whatever ports. A mapped IPv4 address counts as IPv4.
    ///
    /// A name covers what no narrower name does: `link-local` leaves out the metadata addresses within.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match self.range {
            Range::Net(net) => net.contains(&ip),
            Range::Named(name) => safe_default(ip) == name,
        }
    }

    /// Whether the rule, in `deny`, refuses `port` of `ip`.
    fn refuses(&self, ip: IpAddr, port: Option<u16>) -> bool {
        self.ports.cover(port) && self.contains(ip)
    }

    /// Whether the rule, in `allow`, opens `port` of `ip`, whose narrowest safe default is `default`.
    fn opens(&self, ip: IpAddr, port: Option<u16>, default: Option<DeniedRule>) -> bool {
        self.ports.cover(port)
            && match self.range {
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
                Range::Named(name) => default == name,
            }
    }
}

impl From<IpNet> for Rule {
    /// Every port of `net`, bits after its prefix ignored; a range of mapped IPv4 addresses is that of IPv4.
    fn from(net: IpNet) -> Self {
        let net = net.trunc();
        Self {
            range: Range::Net(match net {
                IpNet::V6(v6) if MAPPED.contains(&v6) => {
                    Ipv4Net::new(low_ipv4(v6.addr()), v6.prefix_len() - MAPPED.prefix_len())
                        .map_or(net, IpNet::V4)
                }
                _ => net,
            }),
            ports: Ports::ALL,
        }
    }
}

impl FromStr for Rule {
    type Err = String;

    /// Reads a CIDR, a single address or a name; `:port` or `:first-last` may follow, with IPv6 in brackets before it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (range, ports) = match text
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("]:"))
        {
            Some((inside, ports)) if inside.contains(':') => (inside, Some(ports)),
            // An IPv6 address without brackets has two colons or more.
            _ => match text.split_once(':') {
                Some((range, ports)) if !ports.contains(':') => (range, Some(ports)),
                _ => (text, None),
            },
        };
        let rule = whole_range(range, text)?;
        let ports = match ports.map(str::parse) {
            None => Ports::ALL,
            Some(Ok(ports)) => ports,
            Some(Err(())) => {
                return Err(format!(
                    "\"{}\" does not end in ports: write one such as \"10.1.2.3:5004\", or the first and the last, 1 to 65535, such as \"10.1.2.0/24:10000-20000\" or \"[2001:db8::/32]:10000-20000\"",
                    text.escape_debug(),
                ));
            }
        };
        Ok(Self { ports, ..rule })
    }
}

/// Every port of the range that `range` names; errors show the whole `text`.
fn whole_range(range: &str, text: &str) -> Result<Rule, String> {
    if let Ok(ip) = range.parse::<IpAddr>() {
        return Ok(IpNet::from(ip).into());
    }
    if let Ok(net) = range.parse::<IpNet>() {
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
    let name = range.to_ascii_lowercase().replace('_', "-");
    if let Some(&(_, name)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(Rule {
            range: Range::Named(name),
            ports: Ports::ALL,
        });
    }
    let names = NAMES.map(|(name, _)| format!("\"{name}\"")).join(", ");
    Err(format!(
        "\"{}\" is not a range of addresses: write a CIDR such as \"10.0.0.0/8\" or \"2001:db8::/32\", an address, or one of {names}",
        text.escape_debug(),
    ))
}

impl fmt::Display for Rule {
    /// In the form that `from_str` reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_ports = self.ports != Ports::ALL;
        let brackets = with_ports && matches!(self.range, Range::Net(IpNet::V6(_)));
        f.write_str(if brackets { "[" } else { "" })?;
        match self.range {
            Range::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                fmt::Display::fmt(&net.addr(), f)
            }
            Range::Net(net) => fmt::Display::fmt(&net, f),
            Range::Named(named) => match NAMES.iter().find(|(_, name)| *name == named) {
                Some((name, _)) => f.write_str(name),
                None => f.write_str(named.map_or("public", DeniedRule::label)),
            },
        }?;
        f.write_str(if brackets { "]" } else { "" })?;
        match self.ports {
            _ if !with_ports => Ok(()),
            Ports { first, last } if first == last => write!(f, ":{first}"),
            Ports { first, last } => write!(f, ":{first}-{last}"),
        }
    }
}

/// A prefix behind which a translator finds IPv4 addresses (RFC 6052 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat64(Ipv6Net);

impl Nat64 {
    /// The IPv4 address that `ip` carries, if it is behind this prefix.
    pub fn extract(&self, ip: Ipv6Addr) -> Option<Ipv4Addr> {
        (self.0.contains(&ip)).then(|| rfc6052(ip, self.0.prefix_len()))
    }
}

impl FromStr for Nat64 {
    type Err = String;

    /// Reads an IPv6 CIDR of one of the lengths that RFC 6052 knows.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<Ipv6Net>() {
            Ok(net)
                if matches!(net.prefix_len(), 32 | 40 | 48 | 56 | 64 | 96)
                    && net.addr() == net.network() =>
            {
                Ok(Self(net))
            }
            _ => Err(format!(
                "\"{}\" is not a prefix of a translator: write one such as \"2001:db8:64::/96\", of 32, 40, 48, 56, 64 or 96 bits, no bit set after them",
                text.escape_debug(),
            )),
        }
    }
}

impl fmt::Display for Nat64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What belongs to this server.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    scope: Scope,
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

    /// Whose allocation it has to be if it is a relayed address of ours.
    pub const fn scope(self) -> Scope {
        self.scope
    }
}

/// Decides which peers may be reached; equal ones decide alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    deny: Box<[Rule]>,
    allow: Box<[Rule]>,
    nat64: Box<[Nat64]>,
    own: OwnAddresses,
    /// Relayed addresses of earlier configurations that may live.
    earlier: Box<[(IpAddr, RangeInclusive<u16>)]>,
    /// Some rule has ports.
    by_port: bool,
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
            nat64: settings.nat64.as_slice().into(),
            own,
            earlier: Box::default(),
            by_port: (settings.deny.iter().chain(&settings.allow))
                .any(|rule| rule.ports != Ports::ALL),
        }
    }

    /// Also reaches relayed addresses of earlier configurations, in memory: those that live are peers of each other.
    #[must_use]
    pub fn with_earlier_relays(self, earlier: Vec<(IpAddr, RangeInclusive<u16>)>) -> Self {
        let canonical = |(ip, ports): (IpAddr, _)| (ip.to_canonical(), ports);
        Self {
            earlier: earlier.into_iter().map(canonical).collect(),
            ..self
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
        let ordinary = self.roads(ip, None);
        let decide = self.port_rules(ip);
        if decide.is_empty() {
            return match ordinary {
                Ok(_) => Ok(PermittedIp { ip }),
                Err(rule) => Err(Denied { rule }),
            };
        }
        let mut refusal = ordinary.err();
        for port in self.turning_points(&decide) {
            match self.roads(ip, Some(port)) {
                Ok(_) => return Ok(PermittedIp { ip }),
                Err(rule) => refusal = refusal.or(Some(rule)),
            }
        }
        Err(Denied {
            rule: refusal.unwrap_or(DeniedRule::Configured),
        })
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
                scope: Scope::Policy,
            }),
            Err(rule) => Err(Denied { rule }),
        }
    }

    /// The same as [`permit_ip`](Self::permit_ip), for an allocation of `scope`. The canary, which nobody else can be,
    /// meets itself on any address of this host as well: so it sees what the kernel delivers.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn permit_ip_within(&self, scope: Scope, ip: IpAddr) -> Result<PermittedIp, Denied> {
        let ip = ip.to_canonical();
        if scope.is_canary() && self.own.host.contains(&ip) {
            return Ok(PermittedIp { ip });
        }
        let permitted = self.permit_ip(ip)?;
        if scope.is_loop() && !self.is_own_relay(permitted.ip, None) {
            return Err(Denied {
                rule: DeniedRule::LoopOnly,
            });
        }
        Ok(permitted)
    }

    /// The same as [`permit`](Self::permit), for an allocation of `scope`.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn permit_within(&self, scope: Scope, peer: SocketAddr) -> Result<PermittedPeer, Denied> {
        let address = canonical(peer);
        let own_port = address.port() != 0 && !self.is_own_service(address);
        if scope.is_canary() && own_port && self.own.host.contains(&address.ip()) {
            return Ok(PermittedPeer {
                address,
                own_relay: self.is_own_relay(address.ip(), Some(address.port())),
                kernel: true,
                scope,
            });
        }
        let permitted = self.permit(peer)?;
        match scope {
            Scope::Policy => Ok(permitted),
            Scope::Loop(_) if permitted.own_relay => Ok(PermittedPeer {
                kernel: false,
                scope,
                ..permitted
            }),
            Scope::Loop(_) => Err(Denied {
                rule: DeniedRule::LoopOnly,
            }),
        }
    }

    /// May what comes from an allocation of `from`, or through the kernel from anybody, be passed on to one of `to`? The
    /// canary has to see what its relay gets from the kernel.
    ///
    /// # Errors
    /// One of them reaches no further than a loop, and the other is not of the same visit.
    pub fn join(from: Scope, to: Scope) -> Result<(), Denied> {
        if from == to || to.is_canary() {
            Ok(())
        } else {
            Err(Denied {
                rule: DeniedRule::LoopOnly,
            })
        }
    }

    /// May data from `peer` be passed on, given that its IP has a permission?
    ///
    /// Where rules have ports they hold in both directions; where none has, there is nothing to look up.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn admit(&self, peer: SocketAddr) -> Result<(), Denied> {
        if self.by_port {
            self.permit(peer).map(drop)
        } else {
            Ok(())
        }
    }

    /// The same as [`admit`](Self::admit), for an allocation of `scope`.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn admit_within(&self, scope: Scope, peer: SocketAddr) -> Result<(), Denied> {
        if self.by_port {
            self.permit_within(scope, peer).map(drop)
        } else {
            Ok(())
        }
    }

    /// The ports of the rules with ports that speak of the canonical `ip` or of what it carries.
    fn port_rules(&self, ip: IpAddr) -> Vec<Ports> {
        if !self.by_port {
            return Vec::new();
        }
        let carried = self.embedded(ip).map(IpAddr::from);
        let judged: Vec<IpAddr> = std::iter::once(ip).chain(carried).collect();
        let with_ports = |rule: &&Rule| rule.ports != Ports::ALL;
        (self.allow.iter().chain(&self.deny))
            .filter(with_ports)
            .filter(|rule| judged.iter().any(|ip| rule.contains(*ip)))
            .map(|rule| rule.ports)
            .collect()
    }

    /// Ports of which one has the verdict of each other port, where rules with the ports `decide` are all that speak of
    /// an IP: where a range begins, and right after it ends.
    fn turning_points(&self, decide: &[Ports]) -> impl Iterator<Item = u16> {
        let services = self.own.service_ports.iter().map(|&port| (port, port));
        let ranges = std::iter::once(&self.own.relay_ports);
        let relays = (ranges.chain(self.earlier.iter().map(|(_, ports)| ports)))
            .map(|ports| (*ports.start(), *ports.end()));
        let rules = decide.iter().map(|ports| (ports.first, ports.last));
        std::iter::once((1, u16::MAX))
            .chain(rules)
            .chain(services)
            .chain(relays)
            .flat_map(|(first, last)| [Some(first), last.checked_add(1)])
            .flatten()
            .filter(|&port| port != 0)
    }

    /// Whether `address` is a port of our own services: what comes from there was forged.
    pub fn is_own_service(&self, address: SocketAddr) -> bool {
        self.own.service_ports.contains(&address.port())
            && self.own.host.contains(&address.ip().to_canonical())
    }

    /// Whether `port` of the canonical `ip`, or any port of it, can be a relayed address of this server.
    fn is_own_relay(&self, ip: IpAddr, port: Option<u16>) -> bool {
        let within = |ports: &RangeInclusive<u16>| port.is_none_or(|port| ports.contains(&port));
        (self.own.relays.contains(&ip) && within(&self.own.relay_ports))
            || (self.earlier.iter()).any(|(earlier, ports)| *earlier == ip && within(ports))
    }

    /// Which roads lead to `port` of the canonical `ip`; `None` is a port that no rule and no service has.
    fn roads(&self, ip: IpAddr, port: Option<u16>) -> Result<Roads, DeniedRule> {
        let default = safe_default(ip);
        let allowed = (self.allow.iter()).any(|rule| rule.opens(ip, port, default));
        // The kernel delivers to any of these what is sent to it, listed among the host's addresses or not.
        let local = matches!(
            default,
            Some(DeniedRule::Loopback | DeniedRule::Unspecified)
        );
        let own_relay = self.is_own_relay(ip, None);
        if own_relay || local || self.own.host.contains(&ip) {
            if port.is_some_and(|port| self.own.service_ports.contains(&port)) {
                return Err(DeniedRule::OwnAddress);
            }
            let roads = Roads {
                own_relay: own_relay && self.is_own_relay(ip, port),
                kernel: allowed && self.check_embedded(ip, port).is_ok(),
            };
            return match default {
                _ if roads.own_relay || roads.kernel => Ok(roads),
                Some(rule) if local => Err(rule),
                _ => Err(DeniedRule::OwnAddress),
            };
        }
        if !allowed && self.deny.iter().any(|rule| rule.refuses(ip, port)) {
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
        for inner in self.embedded(ip) {
            if !self.roads(inner.into(), port)?.kernel {
                return Err(DeniedRule::OwnAddress);
            }
        }
        Ok(())
    }

    /// The IPv4 addresses inside an IPv6 address.
    fn embedded(&self, ip: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
        let ip = match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip),
        };
        ip.into_iter().flat_map(|ip| {
            let named = self.nat64.iter().any(|prefix| prefix.0.contains(&ip));
            let configured = (self.nat64.iter()).filter_map(move |prefix| prefix.extract(ip));
            let local = self.allow.iter().filter_map(move |rule| match rule.range {
                Range::Net(IpNet::V6(net))
                    if !named && NAT64_LOCAL.contains(&net) && net.contains(&ip) =>
                {
                    Some(rfc6052(ip, net.prefix_len()))
                }
                _ => None,
            });
            (embedded(ip).into_iter().flatten())
                .chain(configured)
                .chain(local)
        })
    }
}
