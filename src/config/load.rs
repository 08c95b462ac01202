//! Every key, read in the order of `conf/turnix.toml`: the only place that names keys.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::auth::read_auth;
use super::problem::{Origin, Problem, Problems, Sources};
use super::reader::{Declared, Reader};
use super::server::read_server;
use super::source::{Node, Table, Value, merge};
use super::values::{self, Converted, Fault};
use super::{Config, External, Listener, Log, LogFormat, LogLevel, Mapping, Relay, Tls};
use crate::access::{self, Limits, peers};
use crate::base::{Clock, PiiMode};
use crate::stream::{Protocols, certificates};
use crate::turn::{self, ChannelRange};

impl Config {
    /// Reads every source, the files of `auth.secret_files` included.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let (table, whole) = merge(sources, &mut problems);
        let absent = match &sources.file {
            Some(path) => Origin::File(path.as_path().into(), None),
            None => Origin::Default,
        };
        let mut reader = Reader::new(&table, absent);
        let config = read(&mut reader, sources);
        reader.reject_unknown();
        let mut found = reader.problems;
        if !whole {
            // A key that seems to be missing may stand on a line that could not be read.
            found.retain(|problem| !matches!(problem.origin, Origin::File(_, None)));
        }
        problems.extend(found);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => {
                if problems.is_empty() {
                    debug_assert!(false, "a key was refused without saying why");
                    problems.push(Problem {
                        origin: Origin::Default,
                        key: String::new(),
                        found: "a key was refused without a reason".into(),
                        remedy: "report this as a bug of turnix".into(),
                    });
                }
                Err(Problems::new(problems))
            }
        }
    }
}

/// Every key there is, in the order they are read.
pub fn declared() -> Vec<Declared> {
    let table = Table::new();
    let mut reader = Reader::new(&table, Origin::Default);
    read(&mut reader, &Sources::default());
    reader.declared
}

/// The name of this machine, or `localhost` if it has none.
pub fn host_name() -> String {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

fn read(r: &mut Reader<'_>, sources: &Sources) -> Option<Config> {
    let realm = r.key(
        "realm",
        r#""turnix""#,
        "1 to 127 characters, usually the server's domain name",
        realm,
    );
    let tls = read_tls(r);
    let has_certificate = r.is_set("tls.certificate") || r.is_set("tls.key");
    let listeners = read_listeners(r, has_certificate);
    let relay = read_relay(r);
    let auth = read_auth(r, sources);
    let limits = read_limits(r);
    let peers = read_peers(r);
    let channels = r.key(
        "protocol.channels",
        r#""rfc8656""#,
        r#""rfc8656" or "rfc5766""#,
        values::one_of(&[
            ("rfc8656", ChannelRange::Rfc8656),
            ("rfc5766", ChannelRange::Rfc5766),
        ]),
    );
    let admin = r.key(
        "http.admin",
        r#""127.0.0.1:9641""#,
        r#"a loopback address and port such as "127.0.0.1:9641", or "" to turn it off"#,
        admin,
    );
    r.key(
        "api.keys",
        "[]",
        "an empty list",
        must_be_empty_list(
            "this version has no ICE configuration service; remove it and use `turnix credentials`",
        ),
    );
    let node = r.key("cluster.node", r#""""#, "a name", values::text);
    let region = r.key("cluster.region", r#""""#, "a name", values::text);
    let per_allocation = r.key(
        "metrics.per_allocation",
        "1000",
        "a number from 0 to 100000",
        values::number(0..=100_000),
    );
    let server = read_server(r);
    let log = read_log(r);
    check_tls(r, tls.as_ref(), listeners.as_deref());

    let auth = auth?;
    let limits = limits?;
    Some(Config {
        access: access::Settings {
            realm: realm?,
            users: auth.users,
            secrets: auth.secrets,
            strict_expiry: auth.strict_expiry,
            peers: peers?,
            limits: limits.quotas,
        },
        listeners: listeners?
            .into_iter()
            .map(|(_, listener)| listener)
            .collect(),
        relay: relay?,
        turn: turn::Settings {
            max_lifetime: limits.max_lifetime,
            nonce_lifetime: auth.nonce_lifetime,
            channels: channels?,
            permissions_per_allocation: limits.permissions,
            channels_per_allocation: limits.channels,
            unauthenticated_per_address: limits.unauthenticated,
            auth_failures_per_address: limits.auth_failures,
        },
        connections_per_address: limits.connections_per_address,
        tls: tls?,
        admin: admin?,
        per_allocation: per_allocation? as usize,
        server: server?,
        log: log?,
        node: node.map(|name| if name.is_empty() { host_name() } else { name })?,
        region: region?,
    })
}

fn realm(node: &Node) -> Converted<String> {
    let realm = values::text(node)?;
    let length = realm.chars().count();
    if (1..=127).contains(&length) && !realm.chars().any(char::is_control) {
        Ok(realm)
    } else {
        Err(Fault::of(node))
    }
}

fn read_listeners(r: &mut Reader<'_>, has_certificate: bool) -> Option<Vec<(Origin, Listener)>> {
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
        r#"some of "udp", "tcp", "tls", "http""#,
        protocols,
    );
    r.key(
        "listen.trusted_proxies",
        "[]",
        "an empty list",
        must_be_empty_list(
            "this version does not read PROXY protocol headers; remove it and let the balancer keep client addresses",
        ),
    );
    let address = address?;
    let (udp, mut streams) = protocols?;
    if has_certificate && !r.has("listen.protocols") {
        streams.tls = true;
    }
    Some(Listener {
        address,
        udp,
        streams,
    })
}

fn protocols(node: &Node) -> Converted<(bool, Protocols)> {
    let mut udp = false;
    let mut streams = Protocols::default();
    let names = values::list(|item| {
        let name = values::text(item)?;
        match name.as_str() {
            "udp" | "tcp" | "tls" | "http" => Ok(name),
            "dtls" => Err(Fault::with(
                item,
                "found \"dtls\", which this version does not speak",
                "remove it; \"tls\" encrypts over TCP",
            )),
            _ => Err(Fault::of(item)),
        }
    })(node)?;
    if names.is_empty() {
        return Err(Fault::with(
            node,
            "names no protocol",
            "name at least one of \"udp\", \"tcp\", \"tls\", \"http\"",
        ));
    }
    for name in names {
        match name.as_str() {
            "udp" => udp = true,
            "tcp" => streams.tcp = true,
            "tls" => streams.tls = true,
            _ => streams.http = true,
        }
    }
    Ok((udp, streams))
}

fn read_relay(r: &mut Reader<'_>) -> Option<Relay> {
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
    let ports = r.key(
        "relay.ports",
        r#""49152-65535""#,
        r#"a range of ports such as "49152-65535""#,
        values::parsed(values::ports),
    );
    Some(Relay {
        addresses: addresses?,
        external: external?,
        ports: ports?,
    })
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

fn mapping(node: &Node) -> Converted<Mapping> {
    let text = values::text(node)?;
    if text.starts_with("stun:") || text.starts_with("stuns:") {
        return Err(Fault::with(
            node,
            format!(
                "found {}, and this version asks no STUN server",
                node.shown()
            ),
            "write the address itself, or \"auto\"",
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

struct LimitKeys {
    quotas: Limits,
    connections_per_address: u32,
    max_lifetime: Duration,
    permissions: usize,
    channels: usize,
    unauthenticated: u32,
    auth_failures: u32,
}

fn read_limits(r: &mut Reader<'_>) -> Option<LimitKeys> {
    const COUNT: &str = "a number of allocations, 0 for no limit";
    const RATE: &str = "a number of answers per second up to 1000000, 0 for no limit";
    let all = values::number(0..=u32::MAX);
    let allocations = r.key("limits.allocations", "0", COUNT, &all);
    let per_user = r.key("limits.allocations_per_user", "0", COUNT, &all);
    let per_address = r.key("limits.allocations_per_address", "0", COUNT, &all);
    let connections = r.key(
        "limits.connections_per_address",
        "1024",
        "a number of connections, 0 for no limit",
        &all,
    );
    for name in [
        "limits.bandwidth_per_allocation",
        "limits.bandwidth_per_user",
        "limits.bandwidth",
    ] {
        r.key(name, r#""0""#, r#""0""#, no_bandwidth);
    }
    let max_lifetime = r.key(
        "limits.allocation_lifetime",
        r#""1h""#,
        r#"a duration of "1s" or more, or "0" for no limit"#,
        |node: &Node| {
            let lifetime = values::parsed(values::duration)(node)?;
            // LIFETIME counts seconds in 32 bits (RFC 8656 §18.2).
            let longest = Duration::from_secs(u32::MAX.into());
            match lifetime {
                Duration::ZERO => Ok(longest),
                some if some < Duration::from_secs(1) => Err(Fault::of(node)),
                some => Ok(some.min(longest)),
            }
        },
    );
    let permissions = r.key(
        "limits.permissions_per_allocation",
        "128",
        "a number from 1 to 65535",
        values::number(1..=65_535),
    );
    let channels = r.key(
        "limits.channels_per_allocation",
        "64",
        "a number from 1 to 16383",
        values::number(1..=16_383),
    );
    let rate = values::number(0..=1_000_000);
    let unauthenticated = r.key("limits.unauthenticated_per_address", "100", RATE, &rate);
    let auth_failures = r.key("limits.auth_failures_per_address", "10", RATE, &rate);
    Some(LimitKeys {
        quotas: Limits {
            allocations: allocations?,
            allocations_per_user: per_user?,
            allocations_per_address: per_address?,
        },
        connections_per_address: connections?,
        max_lifetime: max_lifetime?,
        permissions: permissions? as usize,
        channels: channels? as usize,
        unauthenticated: unauthenticated?,
        auth_failures: auth_failures?,
    })
}

fn no_bandwidth(node: &Node) -> Converted<()> {
    match values::parsed(values::rate)(node)? {
        0 => Ok(()),
        _ => Err(Fault::with(
            node,
            format!(
                "found {}, and this version enforces no bandwidth",
                node.shown()
            ),
            "write \"0\" and limit it in the kernel (tc), or the number of allocations",
        )),
    }
}

fn read_peers(r: &mut Reader<'_>) -> Option<peers::Settings> {
    const RULES: &str = r#"a list of CIDRs such as "198.51.100.0/24" or names such as "private", with ports if need be: "10.1.2.0/24:10000-20000""#;
    let rule = |text: &str| text.parse::<peers::Rule>();
    let deny = r.key(
        "peers.deny",
        "[]",
        RULES,
        values::list(values::parsed(rule)),
    );
    let allow = r.key(
        "peers.allow",
        "[]",
        RULES,
        values::list(values::parsed(rule)),
    );
    let nat64 = r.key(
        "peers.nat64",
        "[]",
        r#"a list of IPv6 prefixes such as "2001:db8:64::/96""#,
        values::list(values::parsed(|text: &str| text.parse::<peers::Nat64>())),
    );
    Some(peers::Settings {
        deny: deny?,
        allow: allow?,
        nat64: nat64?,
    })
}

fn read_tls(r: &mut Reader<'_>) -> Option<Option<Tls>> {
    const PATH: &str = "the path of a PEM file";
    let certificate = r.key("tls.certificate", r#""""#, PATH, values::text);
    let key = r.key("tls.key", r#""""#, PATH, values::text);
    let (certificate, key) = (certificate?, key?);
    match (certificate.is_empty(), key.is_empty()) {
        (true, true) => return Some(None),
        (false, false) => {}
        (true, false) => {
            r.problem(
                "tls.certificate",
                "empty, and tls.key is not",
                "name both, or neither",
            );
            return None;
        }
        (false, true) => {
            r.problem(
                "tls.key",
                "empty, and tls.certificate is not",
                "name both, or neither",
            );
            return None;
        }
    }
    let (certificate, key) = (PathBuf::from(certificate), PathBuf::from(key));
    match certificates::load(&certificate, &key) {
        Ok(loaded) => {
            let now_unix = Clock.now().unix_secs();
            if loaded.not_after_unix() <= now_unix {
                let days = (now_unix - loaded.not_after_unix()) / 86_400;
                r.problem(
                    "tls.certificate",
                    format!("{} expired {days} days ago", certificate.display()),
                    "renew it, or correct the clock",
                );
                return None;
            }
            Some(Some(Tls { certificate, key }))
        }
        Err(error) => {
            let name = if error.file == certificate {
                "tls.certificate"
            } else {
                "tls.key"
            };
            let text = error.to_string();
            let (found, remedy) = text
                .split_once("; ")
                .unwrap_or((&text, "name a PEM file that this user may read"));
            r.problem(name, found, remedy);
            None
        }
    }
}

fn check_tls(
    r: &mut Reader<'_>,
    tls: Option<&Option<Tls>>,
    listeners: Option<&[(Origin, Listener)]>,
) {
    let (Some(tls), Some(listeners)) = (tls, listeners) else {
        return;
    };
    let speaks = listeners.iter().any(|(_, listener)| listener.streams.tls);
    if speaks && tls.is_none() {
        r.problem(
            "tls.certificate",
            "empty, and a [[listen]] names \"tls\"",
            "name tls.certificate and tls.key, or remove \"tls\" from listen.protocols",
        );
    }
    let chosen = r.origin("tls.certificate") == Origin::QuickStart;
    if !speaks && tls.is_some() && !chosen {
        r.problem(
            "tls.certificate",
            "given, and no [[listen]] names \"tls\"",
            "add \"tls\" to listen.protocols, or remove the certificate",
        );
    }
}

fn read_log(r: &mut Reader<'_>) -> Option<Log> {
    let format = r.key(
        "log.format",
        r#""auto""#,
        r#""auto", "text" or "json""#,
        |node: &Node| match values::text(node)?.as_str() {
            "journald" => Err(Fault::with(
                node,
                "found \"journald\", which this version does not write",
                "use \"json\" or \"text\": systemd puts standard error into the journal",
            )),
            _ => values::one_of(&[
                ("auto", LogFormat::Auto),
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
            ])(node),
        },
    );
    let level = r.key(
        "log.level",
        r#""info""#,
        r#""error", "warn", "info", "debug" or "trace""#,
        values::one_of(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]),
    );
    let ip_privacy = r.key(
        "log.ip_privacy",
        r#""full""#,
        r#""full", "truncate", "hash" or "off""#,
        values::one_of(&[
            ("full", PiiMode::Full),
            ("truncate", PiiMode::Truncate),
            ("hash", PiiMode::Hash),
            ("off", PiiMode::Off),
        ]),
    );
    Some(Log {
        format: format?,
        level: level?,
        ip_privacy: ip_privacy?,
    })
}

fn admin(node: &Node) -> Converted<Option<SocketAddr>> {
    let text = values::text(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    let address: SocketAddr = text.parse().map_err(|_| Fault::of(node))?;
    if address.ip().to_canonical().is_loopback() {
        Ok(Some(address))
    } else {
        Err(Fault::with(
            node,
            format!(
                "{address} can be reached from outside, and this version has no TLS or token there"
            ),
            "use \"127.0.0.1:9641\" and reach it through a reverse proxy that asks who it is, \
             or by ssh -L 9641:127.0.0.1:9641",
        ))
    }
}

/// A key whose only meaning in this version is its default.
fn must_be_empty_list(remedy: &'static str) -> impl Fn(&Node) -> Converted<()> {
    move |node| match &node.value {
        Value::List(items) if items.is_empty() => Ok(()),
        Value::Text(text) if text.is_empty() && node.raw.is_some() => Ok(()),
        _ => Err(Fault::with(
            node,
            "found entries, which this version does not support",
            remedy,
        )),
    }
}
