//! The keys of `[protocol]`: what of the protocols is offered.

use std::net::{IpAddr, SocketAddr};

use crate::turn::{ChannelRange, DefaultFamily, Dscp, NatDiscovery, Protocol, SecurityFeatures};

use super::listen::mapping;
use super::problem::Origin;
use super::reader::Reader;
use super::values;
use super::{Listener, Mapping};

pub(super) fn read_protocol(
    r: &mut Reader<'_>,
    listeners: Option<&[(Origin, Listener)]>,
) -> Option<Protocol> {
    let channels = r.key(
        "protocol.channels",
        r#""rfc8656""#,
        r#""rfc8656" or "rfc5766""#,
        values::one_of(&[
            ("rfc8656", ChannelRange::Rfc8656),
            ("rfc5766", ChannelRange::Rfc5766),
        ]),
    );
    let default_family = r.key(
        "protocol.default_family",
        r#""ipv4""#,
        r#""ipv4" or "same-as-client""#,
        values::one_of(&[
            ("ipv4", DefaultFamily::Ipv4),
            ("same-as-client", DefaultFamily::SameAsClient),
        ]),
    );
    let security_features = r.key(
        "protocol.security_features",
        r#""streams""#,
        r#""streams", "always" or "off""#,
        values::one_of(&[
            ("streams", SecurityFeatures::Streams),
            ("always", SecurityFeatures::Always),
            ("off", SecurityFeatures::Off),
        ]),
    );
    let tcp_allocations = r.key(
        "protocol.tcp_allocations",
        "true",
        "true or false",
        values::boolean,
    );
    let dont_fragment = r.key(
        "protocol.dont_fragment",
        "true",
        "true or false",
        values::boolean,
    );
    let dual_allocation = r.key(
        "protocol.dual_allocation",
        "true",
        "true or false",
        values::boolean,
    );
    let reservations = r.key(
        "protocol.reservations",
        "true",
        "true or false",
        values::boolean,
    );
    let dscp = r.key(
        "protocol.dscp",
        r#""preserve""#,
        r#""preserve" or "zero""#,
        values::one_of(&[("preserve", Dscp::Preserve), ("zero", Dscp::Zero)]),
    );
    let icmp = r.key("protocol.icmp", "true", "true or false", values::boolean);
    let addresses = r.key(
        "protocol.nat_discovery",
        "[]",
        r#"two addresses of this host such as ["192.0.2.1", "192.0.2.2"], or as "external/local"; two of each family at most"#,
        values::list(mapping),
    );
    let rfc3489 = r.key(
        "protocol.rfc3489",
        "false",
        "true or false",
        values::boolean,
    );
    let nat_discovery = match (addresses, listeners) {
        (Some(addresses), Some(listeners)) => read_nat_discovery(r, &addresses, listeners),
        _ => None,
    };
    let mobility = r.key(
        "protocol.mobility",
        "true",
        "true or false",
        values::boolean,
    );
    Some(Protocol {
        channels: channels?,
        default_family: default_family?,
        dont_fragment: dont_fragment?,
        dscp: dscp?,
        icmp: icmp?,
        nat_discovery: nat_discovery?,
        rfc3489: rfc3489?,
        security_features: security_features?,
        tcp_allocations: tcp_allocations?,
        dual_allocation: dual_allocation?,
        reservations: reservations?,
        mobility: mobility?,
    })
}

/// What clients may discover their NAT by (RFC 5780 §6): the two `addresses` of each family, and the first two UDP ports
/// that both have.
fn read_nat_discovery(
    r: &mut Reader<'_>,
    addresses: &[Mapping],
    listeners: &[(Origin, Listener)],
) -> Option<Vec<NatDiscovery>> {
    const KEY: &str = "protocol.nat_discovery";
    let mut all = Vec::new();
    for of_family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let mut ours = (addresses.iter()).filter(|one| of_family(&one.external));
        let (first, second) = match (ours.next(), ours.next(), ours.next()) {
            (None, _, _) => continue,
            (Some(first), Some(second), None) => (first, second),
            _ => {
                let found = "found something else than two addresses of a family";
                r.problem(KEY, found, "name two, or none to have it off");
                return None;
            }
        };
        let local = [first, second].map(|one| one.local.unwrap_or(one.external));
        let seen = [first.external, second.external];
        if local[0] == local[1] || seen[0] == seen[1] {
            r.problem(KEY, "found one address twice", "a client compares two");
            return None;
        }
        let Some(ports) = common_ports(local, listeners) else {
            r.problem(
                KEY,
                format!(
                    "there are no two UDP ports that both {} and {} listen on",
                    local[0], local[1]
                ),
                "add a [[listen]] such as \"[::]:3479\" with protocols = [\"udp\"]",
            );
            return None;
        };
        all.push(NatDiscovery { local, seen, ports });
    }
    Some(all)
}

fn common_ports(local: [IpAddr; 2], listeners: &[(Origin, Listener)]) -> Option<[u16; 2]> {
    let udp = || (listeners.iter()).filter_map(|(_, one)| one.udp.then_some(one.address));
    let covers = |at: SocketAddr, ip: IpAddr| {
        at.ip() == ip || (at.ip().is_unspecified() && (at.is_ipv6() || ip.is_ipv4()))
    };
    let has = |ip: IpAddr, port: u16| udp().any(|at| at.port() == port && covers(at, ip));
    let mut ports = udp()
        .map(|at| at.port())
        .filter(|port| *port != 0 && local.iter().all(|ip| has(*ip, *port)));
    let first = ports.next()?;
    Some([first, ports.find(|port| *port != first)?])
}
