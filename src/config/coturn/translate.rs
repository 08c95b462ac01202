//! What becomes of each option, and of all of them together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;

use super::lines::{is_on, number, settings};
use super::options::Line;
use super::render::Draft;
use super::{Finding, Import, Input, Outcome, Place, peers};
use crate::base::Secret;

/// What becomes of an option, without saying which.
pub(super) struct Verdict {
    outcome: Outcome,
    keys: Vec<&'static str>,
    reason: String,
}

impl Verdict {
    pub fn new(outcome: Outcome, keys: &[&'static str], reason: impl Into<String>) -> Self {
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
    /// The ranges of `peers.deny`.
    pub denied: Vec<IpNet>,
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
    pub fn last(&self, name: &str) -> Option<&Line<'a>> {
        self.lines.iter().rev().find(|line| line.known.name == name)
    }

    pub fn all(&self, name: &str) -> impl Iterator<Item = &Line<'a>> {
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

    pub fn speaks_tls(&self) -> bool {
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

    pub fn port_of(&self, name: &str, default: u16) -> (u16, String) {
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
        let port = plain.0;
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
        // What coturn is kept to and nobody can tell here is not opened to everybody: the result is refused at this value.
        let unread = (self.all("listening-ip").chain(self.all("listening-device")))
            .next()
            .filter(|_| ips.is_empty())
            .map(|line| (line.value.to_owned(), line.note()));
        if let Some((value, note)) = unread {
            let protocols = self.protocols();
            return self
                .draft
                .listen(format!("{value}:{port}"), protocols, note);
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
        if on("cert") && on("pkey") && !on("no-dtls") && !on("dtls") {
            say(
                "DTLS",
                Verdict::refused(
                    "off unless \"dtls\" is added to listen.protocols, which takes a certificate with an ECDSA key; \
                     \"turns:\" over TCP is what browsers use",
                ),
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
    pub fn resolved(&self, path: &str) -> String {
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

/// A port that can be served.
pub(super) fn port(value: &str) -> Option<u16> {
    number(value)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
}
