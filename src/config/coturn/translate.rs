//! What becomes of each option, and of all of them together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;

use super::lines::{is_on, number, settings};
use super::options::Line;
use super::render::Draft;
use super::{Finding, Import, Input, Outcome, Place, peers};
use crate::access::stored_key;
use crate::base::Secret;

/// Below this, and above it, `limits.bandwidth…` takes nothing, in bits per second.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 32_000..=1_000_000_000_000;

/// What becomes of an option, without saying which.
pub(super) struct Verdict {
    outcome: Outcome,
    keys: Vec<&'static str>,
    reason: String,
}

impl Verdict {
    fn new(outcome: Outcome, keys: &[&'static str], reason: impl Into<String>) -> Self {
        Self {
            outcome,
            keys: keys.to_vec(),
            reason: reason.into(),
        }
    }

    pub fn mapped(key: &'static str) -> Self {
        Self::new(Outcome::Mapped, &[key], "")
    }

    pub fn mapped_as(key: &'static str, reason: impl Into<String>) -> Self {
        Self::new(Outcome::Mapped, &[key], reason)
    }

    /// There is nothing to write.
    pub fn idle(reason: impl Into<String>) -> Self {
        Self::new(Outcome::Mapped, &[], reason)
    }

    pub fn near(key: &'static str, reason: impl Into<String>) -> Self {
        Self::new(Outcome::Approximated, &[key], reason)
    }

    pub fn refused(reason: impl Into<String>) -> Self {
        Self::new(Outcome::Refused, &[], reason)
    }

    pub fn finding(self, place: Place, option: &str) -> Finding {
        Finding {
            place,
            option: option.to_owned(),
            outcome: self.outcome,
            keys: self.keys,
            reason: self.reason,
        }
    }
}

/// An import in the making.
pub(super) struct Translation<'a> {
    pub draft: Draft,
    pub findings: Vec<Finding>,
    /// What is authenticated in; the file's, else that of the database's only realm.
    pub realm: Option<String>,
    folder: &'a Path,
    lines: Vec<Line<'a>>,
    denied: Vec<IpNet>,
}

pub(super) fn translate(input: &Input<'_>) -> Import {
    let mut findings = Vec::new();
    let lines = effective(input.text, &mut findings);
    let mut t = Translation {
        draft: Draft::default(),
        findings,
        realm: None,
        folder: input.folder,
        lines: Vec::new(),
        denied: Vec::new(),
    };
    t.lines = lines;
    t.realm = t.last("realm").map(|line| line.value.trim().to_owned());
    t.realm = t.realm.take().filter(|realm| !realm.is_empty());
    t.adopt_realm(input.database);
    // Each line is told with all of them in view; they are put back for what follows.
    let lines = std::mem::take(&mut t.lines);
    t.lines = lines.iter().map(Line::again).collect();
    for line in &lines {
        let verdict = line.apply(&mut t);
        let finding = verdict.finding(Place::Line(line.number), line.known.name);
        t.findings.push(finding);
    }
    t.listeners();
    t.admin();
    if let Some(database) = input.database {
        t.take_database(database);
    }
    t.defaults(input.fresh_secret);
    t.findings.sort_by_key(|finding| finding.place);
    let heading = [
        format!("Imported from {}. Every key that is not here has its default: see the", input.name),
        "turnix.toml that comes with turnix. `turnix check -c FILE` says whether this host can serve it.".to_owned(),
    ];
    Import {
        toml: Secret::new(t.draft.render(&heading, &remarks(&t.findings))),
        findings: t.findings,
    }
}

/// The lines that count; what is unknown, and what a later line overrides, goes to `findings`.
fn effective<'a>(text: &'a str, findings: &mut Vec<Finding>) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for setting in settings(text) {
        let place = Place::Line(setting.line);
        let Some((known, as_argument)) = setting.known() else {
            findings.push(
                Verdict::new(
                    Outcome::Unknown,
                    &[],
                    "coturn has no such option, and ignores the line",
                )
                .finding(place, setting.written),
            );
            continue;
        };
        if as_argument {
            findings.push(
                Verdict::new(
                    Outcome::Approximated,
                    &[],
                    format!(
                        "taken for {}, though coturn ignores the line: it reads long names without dashes",
                        known.name
                    ),
                )
                .finding(place, setting.written),
            );
        }
        let earlier = lines
            .iter()
            .position(|line| line.known.name == known.name && !known.many);
        if let Some(at) = earlier {
            let overridden = lines.remove(at);
            let reason = format!(
                "line {} says it again, and the last one counts",
                setting.line
            );
            let place = Place::Line(overridden.number);
            findings.push(Verdict::refused(reason).finding(place, known.name));
        }
        lines.push(Line {
            known,
            number: setting.line,
            value: setting.value,
        });
    }
    lines
}

/// What was not taken over, as comments of the result.
fn remarks(findings: &[Finding]) -> Vec<String> {
    let left: Vec<&Finding> = findings
        .iter()
        .filter(|finding| matches!(finding.outcome, Outcome::Refused | Outcome::Unknown))
        .filter(|finding| finding.place != Place::Default)
        .collect();
    let lines = left.iter().map(|finding| {
        let place = finding.place;
        format!("  {place}: {}: {}", finding.option, finding.reason)
    });
    let heading = (!left.is_empty()).then(|| "Not taken over:".to_owned());
    heading.into_iter().chain(lines).collect()
}

impl<'a> Translation<'a> {
    /// The one line of the option that counts.
    fn last(&self, name: &str) -> Option<&Line<'a>> {
        self.lines.iter().rev().find(|line| line.known.name == name)
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &Line<'a>> {
        self.lines
            .iter()
            .filter(move |line| line.known.name == name)
    }

    /// Whether the switch is on.
    pub fn on(&self, name: &str) -> bool {
        self.last(name)
            .is_some_and(|line| is_on(line.value).unwrap_or(true))
    }

    /// Whether users are those of a shared secret; coturn does not look at others then.
    pub fn has_secrets_only(&self) -> bool {
        self.on("use-auth-secret") || self.last("static-auth-secret").is_some()
    }

    fn speaks_tls(&self) -> bool {
        let named = |name| self.last(name).is_some_and(|line| !line.value.is_empty());
        named("cert") && named("pkey") && !self.on("no-tls")
    }

    /// What every port speaks.
    fn protocols(&self) -> Vec<&'static str> {
        let mut protocols = Vec::new();
        if !self.on("no-udp") {
            protocols.push("udp");
        }
        if !self.on("no-tcp") {
            protocols.push("tcp");
        }
        if self.speaks_tls() {
            protocols.push("tls");
        }
        if protocols.is_empty() {
            protocols.extend(["udp", "tcp"]);
        }
        protocols
    }

    fn port_of(&self, name: &str, default: u16) -> (u16, String) {
        let line = self.last(name);
        let port = line.and_then(|line| port(line.value));
        match (port, line) {
            (Some(port), Some(line)) => (port, line.note()),
            _ => (default, format!("coturn's default: {name}")),
        }
    }

    fn listeners(&mut self) {
        let plain = self.port_of("listening-port", 3478);
        let tls = self.port_of("tls-listening-port", 5349);
        let mut ports = vec![plain];
        if self.speaks_tls() {
            ports.push(tls);
        }
        let mut ips: Vec<(IpAddr, String)> = (self.all("listening-ip"))
            .filter_map(|line| Some((line.value.parse().ok()?, line.note())))
            .collect();
        let dual = |ip: &IpAddr| ip.is_ipv6() && ip.is_unspecified();
        if ips.iter().any(|(ip, _)| dual(ip)) {
            ips.retain(|(ip, _)| dual(ip) || !ip.is_unspecified());
        }
        if ips.is_empty() {
            let note = "every address; \"0.0.0.0\" where IPv6 is switched off".to_owned();
            ips.push((IpAddr::from([0_u16; 8]), note));
        }
        let mut addresses: Vec<(SocketAddr, String)> = Vec::new();
        for (port, from) in &ports {
            for (ip, note) in &ips {
                addresses.push((SocketAddr::new(*ip, *port), format!("{from}; {note}")));
            }
        }
        let aux = self.all("aux-server");
        addresses.extend(aux.filter_map(|line| Some((line.value.parse().ok()?, line.note()))));
        let protocols = self.protocols();
        let mut taken: Vec<SocketAddr> = Vec::new();
        for (address, note) in addresses {
            if !taken.contains(&address) {
                taken.push(address);
                self.draft
                    .listen(address.to_string(), protocols.clone(), note);
            }
        }
    }

    fn admin(&mut self) {
        let port = self.port_of("prometheus-port", 9641).0;
        if !self.on("prometheus") {
            return;
        }
        let ip = self
            .last("prometheus-address")
            .and_then(|line| line.value.parse::<IpAddr>().ok())
            .filter(IpAddr::is_loopback)
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let note = self.last("prometheus").map(Line::note).unwrap_or_default();
        let address = SocketAddr::new(ip, port).to_string();
        self.draft.set_text("http.admin", &address, note);
    }

    /// What coturn does without being told, and what becomes of it; a secret where nobody could come in.
    fn defaults(&mut self, fresh_secret: &Secret<String>) {
        let mut say = |option: &str, verdict: Verdict| {
            let finding = verdict.finding(Place::Default, option);
            self.findings.push(finding);
        };
        if !self.lines.iter().any(|line| line.known.name == "realm") {
            let verdict = match &self.realm {
                Some(_) => Verdict::near(
                    "realm",
                    "the file names none: that of the users in the database",
                ),
                None => Verdict::idle("the file names none: clients are told \"turnix\""),
            };
            say("realm", verdict);
        }
        if !peers::cover_private(&self.denied) {
            say(
                "private addresses of peers",
                Verdict::refused(
                    "coturn relays to them unless they are denied, turnix unless they are allowed; where clients have to \
                     reach a media server inside, name it: peers.allow = [\"10.1.2.3:10000-20000\"]",
                ),
            );
        }
        let on = |name: &str| self.lines.iter().any(|line| line.known.name == name);
        if !on("no-tcp-relay") {
            say(
                "TCP relay",
                Verdict::refused(
                    "turnix relays UDP, which is all that WebRTC uses, and not TCP (RFC 6062)",
                ),
            );
        }
        if on("cert") && on("pkey") && !on("no-dtls") && !on("dtls") {
            say(
                "DTLS",
                Verdict::refused("turnix speaks no DTLS; \"turns:\" over TCP is what browsers use"),
            );
        }
        say(
            "channel numbers",
            Verdict::mapped_as(
                "protocol.channels",
                "coturn takes those of RFC 5766 as well",
            ),
        );
        self.draft.set_text(
            "protocol.channels",
            "rfc5766",
            "coturn takes channel numbers of the old range as well",
        );
        if let Some(realm) = &self.realm {
            let line = self
                .lines
                .iter()
                .rev()
                .find(|line| line.known.name == "realm");
            let note = line.map_or_else(|| "the database".to_owned(), Line::note);
            self.draft.set_text("realm", realm, note);
        }
        if !self.draft.has_access() {
            self.draft.add(
                "auth.secrets",
                fresh_secret.expose(),
                "fresh: nobody could authenticate; `turnix credentials -c FILE` makes credentials with it",
            );
            let reason = "nothing that was imported says who may come in; a fresh secret is written, with which \
                          `turnix credentials` makes credentials";
            self.findings.push(
                Verdict::near("auth.secrets", reason).finding(Place::Default, "authentication"),
            );
        }
    }

    /// `path` as it is from the folder of the file.
    fn resolved(&self, path: &str) -> String {
        if Path::new(path).is_absolute() {
            path.to_owned()
        } else {
            self.folder.join(path).to_string_lossy().into_owned()
        }
    }
}

impl<'a> Line<'a> {
    fn again(&self) -> Line<'a> {
        Line {
            known: self.known,
            number: self.number,
            value: self.value,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Table(name) => write!(f, "table {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

fn port(value: &str) -> Option<u16> {
    number(value)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
}

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

// One function for each option that has something to write, in the order of the table.

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

pub(super) fn default_family(_: &mut Translation<'_>, line: &Line<'_>) -> Verdict {
    match line.value {
        "ipv4" => Verdict::idle("a client that asks for no family gets IPv4"),
        _ => Verdict::refused("a client that asks for no family gets IPv4 (RFC 8656 §7.2)"),
    }
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
                "a password that begins with md5: is taken for a key by turnix; give the user another",
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
