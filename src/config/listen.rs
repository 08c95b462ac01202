//! Where the server listens and relays: `[[listen]]` and `[relay]`.

use std::net::{IpAddr, SocketAddr};

use super::problem::{Origin, Problem};
use super::reader::Reader;
use super::sharing::{of_streams, read_sharing};
use super::source::{Node, Value};
use super::values::{self, Converted, Fault};
use super::{External, Listener, Mapping, Relay};
use crate::external::{self, Cloud};
use crate::stream::Protocols;

pub(super) fn read_listeners(
    r: &mut Reader<'_>,
    has_certificate: bool,
) -> Option<Vec<(Origin, Listener)>> {
    let listeners = r.tables(
        "listen",
        "listen.",
        "address",
        r#"at least one [[listen]] with an address such as "[::]:3478""#,
        &["{}", r#"{ address = "[::]:443" }"#],
        |entry| read_listener(entry, has_certificate),
    )?;
    for (index, (origin, listener)) in listeners.iter().enumerate() {
        let mut earlier = listeners.iter().take(index);
        if let Some((_, other)) =
            earlier.find(|(_, other)| collide(other.address, listener.address))
        {
            let problem = Problem {
                origin: origin.clone(),
                key: "listen.address".into(),
                found: format!("{} collides with {}", listener.address, other.address),
                remedy: "give it another port, or name all protocols in one [[listen]] (\"[::]\" takes IPv4 too)".into(),
            };
            r.problems.push(problem);
        }
    }
    Some(listeners)
}

fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let dual = |ip: IpAddr| ip.is_unspecified() && ip.is_ipv6();
    let (x, y) = (a.ip(), b.ip());
    a.port() == b.port()
        && a.port() != 0
        && (x == y || (dual(x) && y.is_unspecified()) || (dual(y) && x.is_unspecified()))
}

fn read_listener(r: &mut Reader<'_>, has_certificate: bool) -> Option<Listener> {
    let address = r.key(
        "listen.address",
        r#""[::]:3478""#,
        r#"an IP address and a port such as "[::]:3478""#,
        values::parsed(values::socket_address),
    );
    let protocols = r.key(
        "listen.protocols",
        r#"["udp", "tcp", "http"]"#,
        r#"some of "udp", "tcp", "tls", "http", "dtls""#,
        protocols,
    );
    let sharing = read_sharing(r);
    let address = address?;
    let (udp, mut streams, dtls) = protocols?;
    let sharing = sharing?;
    if has_certificate && !r.has("listen.protocols") {
        streams.tls = true;
    }
    Some(Listener {
        address,
        udp,
        streams,
        sharing: of_streams(r, sharing, streams)?,
        dtls,
    })
}

fn protocols(node: &Node) -> Converted<(bool, Protocols, bool)> {
    let (mut udp, mut dtls) = (false, false);
    let mut streams = Protocols::default();
    let names = values::list(|item| {
        let name = values::text(item)?;
        match name.as_str() {
            "udp" | "tcp" | "tls" | "http" | "dtls" => Ok(name),
            _ => Err(Fault::of(item)),
        }
    })(node)?;
    if names.is_empty() {
        return Err(Fault::with(
            node,
            "names no protocol",
            "name at least one of \"udp\", \"tcp\", \"tls\", \"http\", \"dtls\"",
        ));
    }
    for name in names {
        match name.as_str() {
            "udp" => udp = true,
            "tcp" => streams.tcp = true,
            "tls" => streams.tls = true,
            "dtls" => dtls = true,
            _ => streams.http = true,
        }
    }
    Ok((udp, streams, dtls))
}

pub(super) fn read_relay(r: &mut Reader<'_>) -> Option<Relay> {
    let addresses = r.key(
        "relay.addresses",
        "[]",
        "a list of this host's IP addresses",
        values::list(values::parsed(values::unicast)),
    );
    let external = r.key(
        "relay.external_address",
        r#""auto""#,
        r#""auto", an IP address, or a list of "external/local""#,
        external,
    );
    let metadata = r.key(
        "relay.metadata",
        r#""off""#,
        r#""off", or one or more of "aws", "gcp", "azure", "digitalocean", "hetzner", "oracle""#,
        metadata,
    );
    let stun_servers = r.key(
        "relay.stun_servers",
        "[]",
        r#"two STUN servers such as ["stun.example.org:3478", "192.0.2.1"], or none"#,
        stun_servers,
    );
    if matches!(external, Some(External::Mapped(_))) {
        for key in ["relay.metadata", "relay.stun_servers"] {
            let asks = match key {
                "relay.metadata" => metadata.as_ref().is_some_and(|clouds| !clouds.is_empty()),
                _ => (stun_servers.as_ref()).is_some_and(|servers| !servers.is_empty()),
            };
            if asks {
                r.problem(
                    key,
                    "asks for addresses, and relay.external_address names them",
                    "write relay.external_address = \"auto\", or remove this",
                );
            }
        }
    }
    let ports = r.key(
        "relay.ports",
        r#""49152-65535""#,
        r#"a range of ports such as "49152-65535""#,
        values::parsed(values::ports),
    );
    Some(Relay {
        addresses: addresses?,
        external: external?,
        discovery: external::Settings {
            metadata: metadata?,
            stun_servers: stun_servers?,
            ..external::Settings::default()
        },
        ports: ports?,
    })
}

fn metadata(node: &Node) -> Converted<Vec<Cloud>> {
    let split;
    let words: &[Node] = match &node.value {
        Value::Text(text) => {
            split = values::split_commas(text, &node.origin);
            &split
        }
        Value::List(items) => items,
        _ => return Err(Fault::of(node)),
    };
    let mut clouds = Vec::new();
    let mut off = words.is_empty();
    for word in words {
        match values::text(word)?.as_str() {
            "off" => off = true,
            name => match Cloud::ALL.iter().find(|(known, _)| *known == name) {
                Some((_, cloud)) if !clouds.contains(cloud) => clouds.push(*cloud),
                Some(_) => {}
                None => return Err(Fault::of(word)),
            },
        }
    }
    if off && !clouds.is_empty() {
        return Err(Fault::with(
            node,
            "names clouds and \"off\"",
            "write one or the other",
        ));
    }
    Ok(clouds)
}

fn stun_servers(node: &Node) -> Converted<Vec<String>> {
    let mut servers = values::list(values::parsed(external::stun_server))(node)?;
    let named = servers.len();
    servers.sort_unstable();
    servers.dedup();
    match servers.len() {
        1 => Err(Fault::with(
            node,
            "names one server",
            "name two: what one says alone is not believed",
        )),
        0..=8 if servers.len() == named => Ok(servers),
        0..=8 => Err(Fault::with(
            node,
            "names a server twice",
            "name two different ones",
        )),
        _ => Err(Fault::with(
            node,
            format!("names {named} servers"),
            "two are enough, and eight are the most",
        )),
    }
}

fn external(node: &Node) -> Converted<External> {
    if let Value::Text(text) = &node.value {
        if text == "auto" {
            return Ok(External::Auto);
        }
        if !text.contains(',') {
            return mapping(node).map(|one| External::Mapped(vec![one]));
        }
    }
    let mappings = values::list(mapping)(node)?;
    if mappings.is_empty() {
        return Err(Fault::with(
            node,
            "found an empty list",
            "write \"auto\", or the address that clients reach this host by",
        ));
    }
    for (index, one) in mappings.iter().enumerate() {
        let same = |other: &&Mapping| {
            other.local == one.local && other.external.is_ipv4() == one.external.is_ipv4()
        };
        if mappings.iter().take(index).any(|other| same(&other)) {
            return Err(Fault::with(
                node,
                format!(
                    "maps one local address twice, the second time to {}",
                    one.external
                ),
                "say which is which: \"external/local\"",
            ));
        }
    }
    Ok(External::Mapped(mappings))
}

pub(super) fn mapping(node: &Node) -> Converted<Mapping> {
    let text = values::text(node)?;
    if text.starts_with("stun:") || text.starts_with("stuns:") {
        return Err(Fault::with(
            node,
            format!(
                "found {}, and this version takes STUN servers elsewhere",
                node.shown()
            ),
            "write \"auto\" here, and two servers in relay.stun_servers",
        ));
    }
    let (outside, inside) = match text.split_once('/') {
        Some((outside, inside)) => (outside, Some(inside)),
        None => (text.as_str(), None),
    };
    let parse = |text: &str| values::unicast(text.trim()).map_err(|_| Fault::of(node));
    let mapping = Mapping {
        external: parse(outside)?,
        local: inside.map(parse).transpose()?,
    };
    match mapping.local {
        Some(local) if local.is_ipv4() != mapping.external.is_ipv4() => Err(Fault::with(
            node,
            format!("found {}, which mixes IPv4 and IPv6", node.shown()),
            "map an address to one of its own family",
        )),
        _ => Ok(mapping),
    }
}
