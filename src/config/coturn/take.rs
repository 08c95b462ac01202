//! One function for each option that has something to write, in the order of the table.

use std::net::{IpAddr, SocketAddr};

use super::lines::{is_on, number};
use super::options::Line;
use super::translate::{Translation, Verdict, port};
use super::{Outcome, peers};
use crate::access::stored_key;

/// Below this, and above it, `limits.bandwidth…` takes nothing, in bits per second.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 32_000..=1_000_000_000_000;

/// What is said of a value that cannot be read.
fn unreadable(wanted: &str) -> Verdict {
    Verdict::refused(format!("its value is not {wanted}"))
}

/// `bits` per second as the configuration writes it.
fn rate(bits: u64) -> String {
    match bits {
        bits if bits.is_multiple_of(1_000_000) => format!("{}Mbit", bits / 1_000_000),
        bits if bits.is_multiple_of(1000) => format!("{}kbit", bits / 1000),
        bits => format!("{bits}bit"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes}B"),
    }
}

pub(super) fn listen(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match line.known.name {
        "listening-port" if port(line.value).is_none() => unreadable("a port from 1 to 65535"),
        "tls-listening-port" if port(line.value).is_none() => unreadable("a port from 1 to 65535"),
        "tls-listening-port" if !t.speaks_tls() => {
            Verdict::idle("no port of its own: there is no TLS, and coturn does not open it either")
        }
        "listening-ip" => match line.value.parse::<IpAddr>() {
            Ok(_) => Verdict::mapped("listen.address"),
            Err(_) => unreadable("an IP address"),
        },
        "aux-server" => match line.value.parse::<SocketAddr>() {
            Ok(_) => Verdict::mapped("listen.address"),
            Err(_) => unreadable("an IP address and a port"),
        },
        "no-udp" | "no-tcp" | "no-tls" => {
            let left_none = t.on("no-udp") && t.on("no-tcp") && !t.speaks_tls();
            match is_on(line.value) {
                Some(true) if left_none => {
                    Verdict::refused("together with the others it leaves nothing to serve")
                }
                _ => Verdict::mapped("listen.protocols"),
            }
        }
        _ => Verdict::mapped("listen.address"),
    }
}

pub(super) fn relay_ip(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match line.value.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => unreadable("an address of this host"),
        Ok(ip) => {
            t.draft
                .add("relay.addresses", &ip.to_string(), &line.note());
            Verdict::mapped("relay.addresses")
        }
        Err(_) => unreadable("an IP address"),
    }
}

pub(super) fn external_ip(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "relay.external_address";
    let (outside, inside) = match line.value.split_once('/') {
        Some((outside, inside)) => (outside, Some(inside)),
        None => (line.value, None),
    };
    let parse = |text: &str| text.trim().parse::<IpAddr>().ok();
    let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    let outside = parse(outside).filter(usable);
    let (Some(outside), Ok(inside)) = (
        outside,
        inside
            .map(|text| parse(text).filter(usable).ok_or(()))
            .transpose(),
    ) else {
        return unreadable(
            "an IP address, or public/private; write the address that clients reach this host by",
        );
    };
    if inside.is_some_and(|inside| inside.is_ipv4() != outside.is_ipv4()) {
        return Verdict::refused("it maps an address to one of another family");
    }
    let same_local = |other: &Line<'_>| {
        let (ip, local) = other
            .value
            .split_once('/')
            .map_or((other.value, None), |(a, b)| (a, Some(b)));
        local.and_then(parse) == inside
            && parse(ip).is_some_and(|ip| ip.is_ipv4() == outside.is_ipv4())
    };
    let first = t.all("external-ip").find(|other| same_local(other));
    if first.is_some_and(|first| first.number < line.number) {
        return Verdict::refused("an earlier line maps the same address");
    }
    let text = match inside {
        Some(inside) => format!("{outside}/{inside}"),
        None => outside.to_string(),
    };
    t.draft.add(KEY, &text, &line.note());
    Verdict::mapped(KEY)
}

pub(super) fn ports(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let (first, _) = t.port_of("min-port", 49152);
    let (last, _) = t.port_of("max-port", 65535);
    if port(line.value).is_none() {
        return unreadable("a port from 1 to 65535");
    }
    if first > last {
        return Verdict::refused("min-port is above max-port");
    }
    let lines: Vec<String> = ["min-port", "max-port"]
        .iter()
        .filter_map(|name| t.last(name).map(Line::note))
        .collect();
    let note = lines.join(", ");
    t.draft
        .set_text("relay.ports", &format!("{first}-{last}"), note);
    Verdict::mapped("relay.ports")
}

pub(super) fn relay_threads(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match number(line.value) {
        None => unreadable("a number"),
        Some(threads) => {
            // Without relay threads coturn relays in its listener's one.
            let shards = threads.clamp(1, u64::from(crate::shard::MAX_SHARDS));
            t.draft
                .set("server.shards", shards.to_string(), line.note());
            if shards == threads {
                Verdict::mapped("server.shards")
            } else {
                Verdict::near("server.shards", format!("{shards} in place of {threads}"))
            }
        }
    }
}

pub(super) fn sock_buf_size(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let Some(bytes) = number(line.value).filter(|bytes| *bytes > 0) else {
        return unreadable("a number of bytes");
    };
    let taken = bytes.clamp(64 << 10, 512 << 20);
    for key in ["server.listener_buffer", "server.relay_buffer"] {
        t.draft.set_text(key, &size(taken), line.note());
    }
    let keys = ["server.listener_buffer", "server.relay_buffer"];
    if taken == bytes {
        Verdict::new(Outcome::Mapped, &keys, "")
    } else {
        Verdict::new(
            Outcome::Approximated,
            &keys,
            format!("{} in place of {bytes} bytes", size(taken)),
        )
    }
}

pub(super) fn default_family(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match line.value {
        "ipv4" => Verdict::idle("a client that asks for no family gets IPv4"),
        "keep" => same_as_client(t, line),
        _ => Verdict::refused(
            "a client that asks for no family gets IPv4 (RFC 8656 §7.2), or that of its own address",
        ),
    }
}

pub(super) fn no_tcp_relay(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "protocol.tcp_allocations";
    t.draft.set(KEY, "false", line.note());
    Verdict::mapped(KEY)
}

pub(super) fn keep_family(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match is_on(line.value) {
        Some(false) => Verdict::idle("switched off"),
        _ => same_as_client(t, line),
    }
}

fn same_as_client(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "protocol.default_family";
    t.draft.set_text(KEY, "same-as-client", line.note());
    Verdict::new(Outcome::Mapped, &[KEY], "")
}

pub(super) fn user(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let Some((name, password)) = line.value.split_once(':') else {
        return unreadable("name:password");
    };
    if name.is_empty() || name.len() > 508 || password.is_empty() {
        return unreadable(
            "name:password, 1 to 508 bytes before the colon and something behind it",
        );
    }
    if t.has_secrets_only() {
        return Verdict::refused(
            "coturn looks at no users while use-auth-secret is set; turnix takes both, so write the user into [auth.users] \
             if it is wanted",
        );
    }
    let stored = password
        .strip_prefix("0x")
        .map(|digits| format!("md5:{digits}"));
    let password = match &stored {
        Some(key) if matches!(stored_key(key), Some(Ok(_))) && t.realm.is_none() => {
            return Verdict::refused(
                "its key is made of name, realm and password, and the file names no realm; set the realm of the key",
            );
        }
        Some(key) if matches!(stored_key(key), Some(Ok(_))) => key,
        Some(_) => {
            return Verdict::refused(
                "behind 0x are not the 32 digits of a key (turnadmin -k makes them)",
            );
        }
        None if stored_key(password).is_some() => {
            return Verdict::refused(
                "a password that begins with md5: or sha256: is taken for a key by turnix; give the user another",
            );
        }
        None => password,
    };
    if t.draft.add_user(name, password, &line.note()) {
        Verdict::mapped("auth.users")
    } else {
        Verdict::refused("an earlier line has the user")
    }
}

pub(super) fn secret(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    if line.value.is_empty() {
        return unreadable("a secret: it is empty");
    }
    t.draft.add("auth.secrets", line.value, &line.note());
    Verdict::mapped("auth.secrets")
}

pub(super) fn separator(_: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match line.value.chars().next() {
        None | Some(':') => Verdict::idle("a colon is what turnix expects"),
        Some(_) => Verdict::refused(
            "turnix expects a colon between time and user; have the application write \"expiry:user\"",
        ),
    }
}

pub(super) fn realm(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let length = line.value.chars().count();
    if (1..=127).contains(&length) && !line.value.chars().any(char::is_control) {
        return Verdict::mapped("realm");
    }
    t.realm = None;
    unreadable("1 to 127 characters")
}

pub(super) fn database(_: &mut Translation<'_>, _: &Line<'_>) -> Verdict {
    Verdict::idle(
        "read once, now; turnix keeps users in its own file (auth.users_file is read again when it changes)",
    )
}

pub(super) fn other_database(_: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let way = match line.known.name {
        "redis-userdb" => {
            "turnix asks no database; secrets: redis-cli SMEMBERS turn/realm/REALM/secret, into auth.secrets; users: \
             redis-cli GET turn/realm/REALM/user/NAME/key, as NAME:md5:KEY into auth.users_file"
        }
        "mongo-userdb" => {
            "turnix asks no database; export collection turn_secret into auth.secrets, and turnusers_lt as NAME:md5:HMACKEY into \
             auth.users_file"
        }
        _ => {
            "turnix asks no database; SELECT value FROM turn_secret, into auth.secrets; SELECT concat(name, ':md5:', hmackey) FROM \
             turnusers_lt WHERE realm = 'REALM', into auth.users_file"
        }
    };
    Verdict::refused(way)
}

pub(super) fn stale_nonce(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "auth.nonce_lifetime";
    let secs = if line.value.is_empty() {
        Some(600)
    } else {
        number(line.value)
    };
    let Some(secs) = secs else {
        return unreadable("a number of seconds");
    };
    let taken = match secs {
        0 => 86_400,
        secs => secs.clamp(10, 86_400),
    };
    t.draft.set_text(KEY, &format!("{taken}s"), line.note());
    if taken == secs {
        Verdict::mapped(KEY)
    } else {
        Verdict::near(KEY, "a nonce is good for 10 seconds to 24 hours")
    }
}

pub(super) fn quota(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let key = match line.known.name {
        "user-quota" => "limits.allocations_per_user",
        _ => "limits.allocations",
    };
    match number(line.value).and_then(|count| u32::try_from(count).ok()) {
        Some(count) => {
            t.draft.set(key, count.to_string(), line.note());
            Verdict::mapped(key)
        }
        None => unreadable("a number of allocations"),
    }
}

pub(super) fn bandwidth(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let total = line.known.name == "bps-capacity";
    match number(line.value) {
        Some(bytes) => t.limit_bandwidth(total, bytes, &line.note()),
        None => unreadable("a number of bytes per second"),
    }
}

impl Translation<'_> {
    /// Writes a limit of `bytes` per second, for everybody together or for each allocation.
    pub fn limit_bandwidth(&mut self, total: bool, bytes: u64, note: &str) -> Verdict {
        let key = if total {
            "limits.bandwidth"
        } else {
            "limits.bandwidth_per_allocation"
        };
        let bits = bytes.saturating_mul(8);
        let taken = match bits {
            0 => 0,
            bits => bits.clamp(*BANDWIDTH.start(), *BANDWIDTH.end()),
        };
        let text = if taken == 0 {
            "0".to_owned()
        } else {
            rate(taken)
        };
        let note = format!("{note}, in bytes per second");
        self.draft.set_text(key, &text, note);
        let reason = format!("{bytes} bytes per second are {}", rate(bits));
        if taken != bits {
            Verdict::near(
                key,
                format!("{reason}, and \"{text}\" is the nearest that turnix takes"),
            )
        } else if total && bits > 0 {
            Verdict::near(
                key,
                format!(
                    "{reason}; coturn sets it apart for allocations beforehand and refuses more of them, turnix shares it among \
                     those that send"
                ),
            )
        } else if bits == 0 {
            Verdict::mapped(key)
        } else {
            Verdict::mapped_as(key, reason)
        }
    }
}

pub(super) fn allocate_lifetime(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "limits.allocation_lifetime";
    let secs = if line.value.is_empty() {
        Some(3600)
    } else {
        number(line.value)
    };
    match secs.filter(|secs| (1..=u64::from(u32::MAX)).contains(secs)) {
        Some(secs) => {
            t.draft.set_text(KEY, &format!("{secs}s"), line.note());
            Verdict::mapped(KEY)
        }
        None => unreadable("a number of seconds"),
    }
}

pub(super) fn fixed_lifetime(_: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let (lifetime, section) = match line.known.name {
        "channel-lifetime" => (600, "RFC 8656 §12"),
        _ => (300, "RFC 8656 §9"),
    };
    match number(line.value) {
        None if line.value.is_empty() => Verdict::idle(format!("it is {lifetime} seconds")),
        Some(secs) if secs == lifetime => Verdict::idle(format!("it is {lifetime} seconds")),
        _ => Verdict::refused(format!(
            "it is {lifetime} seconds, as clients rely on ({section})"
        )),
    }
}

pub(super) fn unauthorized_rate(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "limits.unauthenticated_per_address";
    match number(line.value) {
        Some(rate @ 1..=1_000_000) => {
            t.draft.set(KEY, rate.to_string(), line.note());
            Verdict::near(
                KEY,
                "answers to Binding count as well, and ten seconds' worth may leave at once",
            )
        }
        _ => unreadable("a number from 1 to 1000000"),
    }
}

pub(super) fn denied(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    t.deny(line.value, &line.note())
}

pub(super) fn allowed(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    t.allow(line.value, &line.note())
}

impl Translation<'_> {
    /// Refuses peers in `range`.
    pub fn deny(&mut self, range: &str, note: &str) -> Verdict {
        match peers::ranges(range) {
            Ok(nets) => {
                for net in &nets {
                    self.draft.add("peers.deny", &peers::written(net), note);
                }
                self.denied.extend(nets);
                Verdict::mapped("peers.deny")
            }
            Err(what) => Verdict::refused(format!("it {what}; coturn ignores it")),
        }
    }

    /// Permits peers in `range`.
    pub fn allow(&mut self, range: &str, note: &str) -> Verdict {
        match peers::ranges(range) {
            Ok(nets) if nets.iter().any(peers::touches_host) => Verdict::refused(
                "the range holds loopback, unspecified or multicast addresses, which peers.allow would open; public addresses are \
                 permitted anyway, so name the private ranges that are wanted",
            ),
            Ok(nets) => {
                for net in &nets {
                    self.draft.add("peers.allow", &peers::written(net), note);
                }
                Verdict::mapped("peers.allow")
            }
            Err(what) => Verdict::refused(format!("it {what}; coturn ignores it")),
        }
    }
}

pub(super) fn certificate(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    let key = match line.known.name {
        "cert" => "tls.certificate",
        _ => "tls.key",
    };
    if t.on("no-tls") {
        return Verdict::idle("not needed: no-tls is set");
    }
    if !t.speaks_tls() {
        return Verdict::refused("TLS needs both cert and pkey, and one of them is not there");
    }
    let path = t.resolved(line.value);
    t.draft.set_text(key, &path, line.note());
    if path == line.value {
        Verdict::mapped(key)
    } else {
        Verdict::near(key, "a relative path: taken from the folder of the file")
    }
}

pub(super) fn alternate(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "drain.alternates";
    let value = line.value;
    let ip = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(value);
    let address = value
        .parse::<SocketAddr>()
        .or_else(|_| ip.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 3478)))
        .ok()
        .filter(|address| address.port() != 0 && !address.ip().is_unspecified());
    match address {
        Some(address) => {
            t.draft.add(KEY, &address.to_string(), &line.note());
            Verdict::near(
                KEY,
                "coturn sends every client there; turnix while it is drained, or from drain.overload on",
            )
        }
        None => unreadable("an IP address with or without a port"),
    }
}

pub(super) fn log_level(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "log.level";
    let level = match (line.known.name, line.value.to_ascii_lowercase().as_str()) {
        ("Verbose", _) if is_on(line.value) == Some(false) => return Verdict::idle("switched off"),
        ("Verbose", _) | (_, "debug") => "debug",
        (_, "info") => "info",
        (_, "warning" | "warn") => "warn",
        (_, "error" | "critical") => "error",
        _ => return unreadable("one of debug, info, warning, error"),
    };
    t.draft.set_text(KEY, level, line.note());
    Verdict::mapped(KEY)
}

pub(super) fn log_file(_: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match line.value {
        "syslog" => Verdict::idle(
            "under systemd the journal gets every record with its fields (log.format)",
        ),
        "stdout" | "-" => Verdict::near("log.format", "records go to standard error"),
        _ => Verdict::refused(
            "turnix writes no log file: journalctl -u turnix shows the records; without systemd, they go to standard error",
        ),
    }
}

pub(super) fn prometheus(t: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    const KEY: &str = "http.admin";
    match line.known.name {
        "prometheus-port" if port(line.value).is_none() => unreadable("a port from 1 to 65535"),
        "prometheus-port" | "prometheus-address" if !t.on("prometheus") => {
            Verdict::idle("it means something together with prometheus only")
        }
        "prometheus-address" => match line.value.parse::<IpAddr>() {
            Ok(ip) if ip.is_loopback() => Verdict::mapped(KEY),
            _ => Verdict::refused(
                "metrics tell addresses and users: beyond loopback they need http.tls and http.token_file",
            ),
        },
        "prometheus" if is_on(line.value) == Some(false) => Verdict::idle("switched off"),
        "prometheus" => Verdict::near(
            KEY,
            "GET /metrics, names and labels are others (docs/operations.md), and without prometheus-address it is on \
             loopback only",
        ),
        _ => Verdict::mapped(KEY),
    }
}

pub(super) fn prometheus_path(_: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match line.value {
        "/metrics" => Verdict::idle("metrics are in GET /metrics"),
        _ => Verdict::refused("metrics are in GET /metrics"),
    }
}

pub(super) fn username_labels(_: &mut Translation<'_>, _: &Line<'_>) -> Verdict {
    Verdict::near(
        "metrics.per_allocation",
        "series of live allocations have the user as a label, those of the busiest 1000, and are gone with them",
    )
}
