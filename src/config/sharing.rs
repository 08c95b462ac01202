//! With whom the TCP port of a `[[listen]]` is shared: proxies in front of it, another server behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::Listener;
use super::problem::{Origin, Problem};
use super::reader::Reader;
use super::source::Node;
use super::values::{self, Converted, Fault};
use crate::net::host;
use crate::stream::{Protocols, Sharing, Upstream};

/// What a passage may be silent for, at least and at most.
const IDLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

pub(super) fn read_sharing(r: &mut Reader<'_>) -> Option<Sharing> {
    let trusted = r.key(
        "listen.trusted_proxies",
        "[]",
        r#"a list of CIDRs or addresses such as ["10.0.0.0/24", "2001:db8::7"]"#,
        values::list(network),
    );
    let address = r.key(
        "listen.upstream",
        r#""""#,
        r#"the IP address and port of another server such as "127.0.0.1:8443", or """#,
        upstream,
    );
    let proxy_protocol = r.key(
        "listen.upstream_proxy_protocol",
        "false",
        "true or false",
        values::boolean,
    );
    let idle = r.key(
        "listen.upstream_idle",
        r#""10m""#,
        r#"a duration from "1s" to "24h""#,
        |node: &Node| match values::parsed(values::duration)(node)? {
            idle if (IDLE.0..=IDLE.1).contains(&idle) => Ok(idle),
            _ => Err(Fault::of(node)),
        },
    );
    let (trusted, address, proxy_protocol, idle) = (trusted?, address?, proxy_protocol?, idle?);
    if address.is_none() && proxy_protocol {
        r.problem(
            "listen.upstream_proxy_protocol",
            "true, and listen.upstream is empty",
            "name the server that is to be told, or remove this",
        );
        return None;
    }
    Some(Sharing {
        trusted_proxies: trusted.into(),
        upstream: address.map(|address| Upstream {
            address,
            proxy_protocol,
            idle,
        }),
    })
}

fn network(node: &Node) -> Converted<IpNet> {
    let text = values::text(node)?;
    let network = (text.parse::<IpNet>().ok())
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        .ok_or_else(|| Fault::of(node))?;
    let network = canonical(network);
    // The mapped addresses are all of IPv4's.
    if network.prefix_len() == 0 || covers_mapped(network) {
        return Err(Fault::with(
            node,
            format!(
                "found {}, so anybody could pass for anybody else",
                node.shown()
            ),
            "name the addresses of your proxies",
        ));
    }
    Ok(network.trunc())
}

/// A network of mapped IPv4 addresses as the one that it is: clients are known by their IPv4 addresses.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else {
        return network;
    };
    let length = mapped.prefix_len().checked_sub(96);
    let inner = (mapped.addr().to_ipv4_mapped()).zip(length);
    inner
        .and_then(|(ip, length)| Ipv4Net::new(ip, length).ok())
        .map_or(network, IpNet::V4)
}

fn covers_mapped(network: IpNet) -> bool {
    let mapped = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
    network.contains(&mapped)
}

fn upstream(node: &Node) -> Converted<Option<SocketAddr>> {
    let text = values::text(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(Some(address)),
        _ => Err(Fault::of(node)),
    }
}

/// `sharing`, if there is a TCP port to share.
pub(super) fn of_streams(
    r: &mut Reader<'_>,
    sharing: Sharing,
    streams: Protocols,
) -> Option<Sharing> {
    let given = [
        (
            "listen.trusted_proxies",
            !sharing.trusted_proxies.is_empty(),
        ),
        ("listen.upstream", sharing.upstream.is_some()),
    ];
    if streams == Protocols::default()
        && let Some((key, _)) = given.into_iter().find(|(_, given)| *given)
    {
        r.problem(
            key,
            "given, and listen.protocols name nothing that is spoken over TCP",
            "add \"tcp\" or \"tls\" to listen.protocols, or remove this",
        );
        return None;
    }
    Some(sharing)
}

/// Whether what is passed through would come back to this server, or reach its admin listener, to which this host's
/// processes are trusted.
pub(super) fn check_upstreams(
    r: &mut Reader<'_>,
    listeners: Option<&[(Origin, Listener)]>,
    admin: Option<SocketAddr>,
) {
    let listeners = listeners.unwrap_or_default();
    for (origin, listener) in listeners {
        let Some(upstream) = &listener.sharing.upstream else {
            continue;
        };
        let address = upstream.address;
        let own = |bound: SocketAddr| {
            bound.port() == address.port() && is_bound(bound.ip(), address.ip())
        };
        let others = listeners.iter().map(|(_, other)| other);
        let found = if others
            .filter(|other| other.has_streams())
            .any(|other| own(other.address))
        {
            format!("{address} is a listener of this server: connections would go in circles")
        } else if admin.is_some_and(own) {
            format!("{address} is http.admin, which would be open to everybody")
        } else {
            continue;
        };
        r.problems.push(Problem {
            origin: origin.clone(),
            key: "listen.upstream".into(),
            found,
            remedy: "name the address and port of another server".into(),
        });
    }
}

/// Whether a socket bound to `bound` gets what is sent from this host to `address`.
fn is_bound(bound: IpAddr, address: IpAddr) -> bool {
    let (bound, address) = (bound.to_canonical(), address.to_canonical());
    bound == address
        || (bound.is_unspecified()
            && (bound.is_ipv6() || address.is_ipv4())
            && (address.is_loopback() || host::interface_addresses().contains(&address)))
}
