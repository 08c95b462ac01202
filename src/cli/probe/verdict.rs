//! What is wrong with a server, and what to do about it. Facts in, verdicts out.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::facts::{Credentials, Distrust, Facts, Knock, Speech, Stage, Traffic, Trouble};
use crate::base::Transport;
use crate::base::addr::is_private;
use crate::cli::credentials::utc;
use crate::cli::units::{percent, rate, span};

/// Clocks that differ by more seconds than this are worth a word.
const SKEW_SECS: u64 = 60;

/// Certificates that end within this many seconds are worth a word.
const EXPIRES_SOON_SECS: u64 = 14 * 86_400;

/// Loss of small packets from this share on hurts calls.
const LOSS: f64 = 0.05;

/// Loss of a burst from this share on, while little is lost otherwise, is a limit.
const BURST_LOSS: f64 = 0.1;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Works, but somebody should know.
    Warning,
    /// Clients fail.
    Fault,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// A name that stays the same, for programs.
    pub code: &'static str,
    /// What is wrong, in a line.
    pub wrong: String,
    /// What to do, in a line.
    pub remedy: String,
}

/// Everything that is wrong, the worst first.
pub fn judge(facts: &Facts) -> Vec<Verdict> {
    let mut court = Court {
        facts,
        verdicts: Vec::new(),
    };
    // A relayed address that is nowhere explains the rest.
    court.judge_addresses();
    match &facts.end {
        Some(end) => court.judge_end(end.stage, &end.trouble),
        None => court.judge_data(),
    }
    court.judge_extras();
    court
        .verdicts
        .sort_by_key(|verdict| std::cmp::Reverse(verdict.level));
    court.verdicts
}

struct Court<'a> {
    facts: &'a Facts,
    verdicts: Vec<Verdict>,
}

impl Court<'_> {
    fn fault(&mut self, code: &'static str, wrong: impl Into<String>, remedy: impl Into<String>) {
        self.find(Level::Fault, code, wrong, remedy);
    }

    fn warn(&mut self, code: &'static str, wrong: impl Into<String>, remedy: impl Into<String>) {
        self.find(Level::Warning, code, wrong, remedy);
    }

    fn find(
        &mut self,
        level: Level,
        code: &'static str,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.verdicts.push(Verdict {
            level,
            code,
            wrong: wrong.into(),
            remedy: remedy.into(),
        });
    }

    /// The server's address and port, or what was asked for.
    fn place(&self) -> String {
        self.facts.server.map_or_else(
            || format!("{}:{}", self.facts.host, self.facts.port),
            |server| server.to_string(),
        )
    }

    /// The URI with another scheme or transport.
    fn uri(&self, scheme: &str, query: &str) -> String {
        let host = match self.facts.host.contains(':') {
            true => format!("[{}]", self.facts.host),
            false => self.facts.host.clone(),
        };
        format!("{scheme}:{host}:{}{query}", self.facts.port)
    }

    fn judge_end(&mut self, stage: Stage, trouble: &Trouble) {
        match trouble {
            Trouble::NoName { why } => self.fault(
                "name",
                format!("{} does not resolve: {why}", self.facts.host),
                "look for a typing error, add the A and AAAA records, or see whether this host's resolver works",
            ),
            Trouble::NoRoute { why } => self.fault(
                "route",
                format!("this host has no way to {}: {why}", self.place()),
                "see whether this host is online, and has an address of that family",
            ),
            Trouble::Rejected { why } => match self.facts.around.tcp {
                Some(Knock::Answers) => self.fault(
                    "udp_blocked",
                    format!(
                        "UDP is turned away on the way to {} ({why}), while TURN over TCP answers there",
                        self.place()
                    ),
                    self.open_udp(),
                ),
                _ => self.fault(
                    "unreachable",
                    format!("packets to {} are turned away: {why}", self.place()),
                    "see whether the host is up and this its address; a firewall or router on the way may reject them",
                ),
            },
            Trouble::Host { why } => self.fault(
                "host",
                format!("this host cannot reach {}: {why}", self.place()),
                "look at the firewall and the limits of this host",
            ),
            Trouble::Certificate(distrust) => self.judge_certificate(distrust),
            Trouble::Handshake { why } => self.fault(
                "tls",
                format!("the TLS handshake with {} fails: {why}", self.place()),
                "see whether the server has a certificate and key, and speaks TLS 1.2 or 1.3",
            ),
            Trouble::Refused { code } => self.judge_refusal(stage, *code),
            Trouble::Integrity => self.fault(
                "integrity",
                format!("the answer to {} is not signed with this password", step(stage)),
                "somebody between here and the server forges answers, or the server has another password for this user: \
                 compare them",
            ),
            Trouble::Malformed => self.fault(
                "malformed",
                format!("the answer to {} lacks what it has to hold", step(stage)),
                "this is a bug of the server, or no TURN server at all: look at its version",
            ),
            Trouble::BidDown => self.fault(
                "bid_down",
                format!(
                    "the challenge to {} lacks PASSWORD-ALGORITHMS, which its nonce promises",
                    step(stage)
                ),
                "somebody between here and the server weakens the authentication: look for what rewrites STUN on the way, or \
                 use a turns: URI",
            ),
            Trouble::NotTurn => self.judge_speech(),
            Trouble::Closed | Trouble::Silence | Trouble::HungUp if stage <= Stage::Binding => {
                self.judge_unreachable(stage, trouble);
            }
            Trouble::Closed | Trouble::HungUp => self.fault(
                "gone",
                format!("the server went away before {}", step(stage)),
                "look into its log: it may have restarted, crashed, or limited this address",
            ),
            Trouble::Silence => self.fault(
                "silent",
                format!("the server answered before, but not {}", step(stage)),
                "look into its log: it may limit this address, or the path may lose packets; then try again",
            ),
        }
    }

    /// The URI that goes over TCP.
    fn over_tcp(&self) -> String {
        let note = if self.facts.relays {
            ""
        } else {
            " (STUN there takes a turn: URI)"
        };
        self.uri("turn", "?transport=tcp") + note
    }

    fn open_udp(&self) -> String {
        format!(
            "open UDP {} in the firewalls of the server, its cloud and this network; until then, use {}",
            self.facts.port,
            self.over_tcp()
        )
    }

    fn judge_unreachable(&mut self, stage: Stage, trouble: &Trouble) {
        let place = self.place();
        let port = self.facts.port;
        let around = &self.facts.around;
        if self.facts.transport == Transport::Udp {
            return match (trouble, around.tcp) {
                (Trouble::Closed, Some(Knock::Answers)) => self.fault(
                    "udp_closed",
                    format!(
                        "nobody listens for UDP at {place}, while TURN over TCP answers there"
                    ),
                    format!(
                        "turn UDP on in the server (a listener with \"udp\"; coturn: no no-udp), and see whether a firewall rejects \
                         it; or use {}",
                        self.over_tcp()
                    ),
                ),
                (Trouble::Closed, _) => self.fault(
                    "closed",
                    format!("nobody listens at {place} for UDP: the port is closed"),
                    "start the server, or correct the host and port; look at what it listens on (ss -lun)",
                ),
                (_, Some(Knock::Answers)) => self.fault(
                    "udp_blocked",
                    format!(
                        "UDP is blocked on the way to {place}: no answer, while TURN over TCP answers there"
                    ),
                    self.open_udp(),
                ),
                (_, Some(Knock::Opens | Knock::Closed)) => self.fault(
                    "udp_silent",
                    format!("no answer from {place} over UDP, though the host is there"),
                    format!("start the server, or correct the port; open UDP {port} in its firewall"),
                ),
                _ => self.fault(
                    "silent",
                    format!("no answer from {place}, over UDP or TCP"),
                    format!("see whether the host is up and this its address; open UDP and TCP {port} in its firewall and its cloud's"),
                ),
            };
        }
        let over_udp = match self.facts.relays {
            true => self.uri("turn", ""),
            false => self.uri("stun", ""),
        };
        let protocol = match self.facts.transport {
            Transport::Tls => "TLS",
            _ => "TCP",
        };
        match (trouble, stage) {
            (Trouble::Closed, _) if around.udp == Some(Knock::Answers) => self.fault(
                "tcp_closed",
                format!("nobody listens for TCP at {place}, while UDP answers there"),
                format!("give the server a listener for {protocol} there, or use {over_udp}"),
            ),
            (Trouble::Closed, _) => self.fault(
                "closed",
                format!("nobody listens at {place} for TCP: the connection is refused"),
                "start the server, or correct the host and port; look at what it listens on (ss -ltn)",
            ),
            (Trouble::Silence, Stage::Connect) if around.udp == Some(Knock::Answers) => self.fault(
                "tcp_blocked",
                format!("TCP is blocked on the way to {place}: no answer, while UDP answers there"),
                format!("open TCP {port} in the firewalls of the server, its cloud and this network, or use {over_udp}"),
            ),
            (Trouble::Silence, Stage::Connect) => self.fault(
                "silent",
                format!("no answer from {place} to a TCP connection"),
                format!("see whether the host is up and this its address; open TCP {port} in its firewall and its cloud's"),
            ),
            _ => self.judge_speech(),
        }
    }

    /// Connections open, and nothing sensible comes.
    fn judge_speech(&mut self) {
        let place = self.place();
        match self.facts.around.speaks {
            Some(Speech::Turn) => self.fault(
                "not_tls",
                format!("{place} speaks TURN without TLS"),
                format!("use {}, or give the server a certificate and a TLS listener", self.uri("turn", "?transport=tcp")),
            ),
            Some(Speech::Tls) => self.fault(
                "tls_only",
                format!("{place} speaks TLS"),
                format!("use {}", self.uri("turns", "?transport=tcp")),
            ),
            Some(Speech::Http) => self.fault(
                "http",
                format!("{place} is a web server, and speaks no TURN"),
                "correct the port; where one port serves both, let the TURN server have it, or send TURN on to it by first bytes",
            ),
            None if self.facts.transport == Transport::Tls => self.fault(
                "not_tls",
                format!("{place} takes connections, and speaks no TLS"),
                "correct the port, or give the server a certificate and a TLS listener",
            ),
            None => self.fault(
                "not_turn",
                format!("{place} takes connections, and answers no STUN"),
                "correct the port: another service listens there, or a proxy that lets no TURN through",
            ),
        }
    }

    fn judge_certificate(&mut self, distrust: &Distrust) {
        let host = &self.facts.host;
        let known = self.facts.certificate.as_ref();
        let names = known.map_or_else(String::new, |known| match known.names.as_slice() {
            [] => "no name".to_owned(),
            names => names.join(", "),
        });
        let self_signed = known.is_some_and(|known| known.self_signed);
        let day =
            |unix: Option<u64>| unix.map_or_else(String::new, |unix| format!(" ({})", utc(unix)));
        match distrust {
            Distrust::Name => self.fault(
                "certificate_name",
                format!("the certificate is for {names}, not for {host}"),
                format!("use a name of the certificate in the URI, or get one for {host}"),
            ),
            Distrust::Expired => self.fault(
                "certificate_expired",
                format!("the certificate has expired{}", day(known.map(|known| known.not_after_unix))),
                "renew it and reload the server; if it is valid, set this host's clock",
            ),
            Distrust::NotYet => self.fault(
                "certificate_not_yet",
                format!("the certificate is not valid yet{}", day(known.map(|known| known.not_before_unix))),
                "set the clock of this host, or of the one that made the certificate",
            ),
            _ if self_signed => self.self_signed(),
            Distrust::Issuer => self.fault(
                "certificate_issuer",
                format!(
                    "nobody that this host trusts has signed the certificate; its issuer is {}",
                    known.map_or("unknown", |known| &known.issuer)
                ),
                "serve the whole chain (fullchain.pem), or name the private authority with --ca FILE; browsers need a public one",
            ),
            Distrust::Other { why } => self.fault(
                "certificate",
                format!("the certificate is not to be trusted: {why}"),
                "get a certificate for this host from a public authority",
            ),
        }
    }

    fn self_signed(&mut self) {
        self.fault(
            "certificate_self_signed",
            "the certificate is signed by itself: browsers refuse it",
            "get one from a public authority (ACME); to test without one, use --insecure",
        );
    }

    fn judge_refusal(&mut self, stage: Stage, code: u16) {
        let step = step(stage);
        match code {
            401 => self.judge_credentials(),
            300 => self.fault(
                "redirected",
                match self.facts.redirected {
                    Some(other) => format!("the server sends clients to {other}, which sends them on"),
                    None => "the server sends clients elsewhere without saying where".to_owned(),
                },
                "it drains or is full, and so are its alternates: let one of them take clients",
            ),
            403 if stage == Stage::Allocate => self.fault(
                "forbidden",
                "this user or address may not allocate (403)",
                "look at the server's rules for users, clients and origins",
            ),
            403 => {
                let peer = self.facts.relayed.map(|relayed| relayed.ip());
                let shown = peer.map_or_else(String::new, |ip| format!(" {ip}"));
                let (what, how) = match peer {
                    Some(ip) if ip.is_loopback() => (
                        "loopback peers",
                        format!("peers.allow = [\"loopback\"]; coturn: allow-loopback-peers and allowed-peer-ip={ip}"),
                    ),
                    Some(ip) if is_private(ip) => (
                        "private peers",
                        format!("peers.allow = [\"{ip}\"]; coturn: allowed-peer-ip={ip}"),
                    ),
                    Some(ip) => (
                        "these peers",
                        format!("peers.allow = [\"{ip}\"]; coturn: allowed-peer-ip={ip}"),
                    ),
                    None => ("these peers", "peers.allow; coturn: allowed-peer-ip".to_owned()),
                };
                self.fault(
                    "peer_forbidden",
                    format!("the server forbids its own relayed address{shown} as a peer (403): two of its clients cannot reach each other"),
                    format!("relay from a public address, or permit {what}: {how}"),
                );
            }
            400 => self.fault(
                "bad_request",
                format!("the server does not understand {step} (400)"),
                "look into its log; a proxy may change messages, or the server is very old",
            ),
            420 => self.fault(
                "unknown_attribute",
                format!("the server does not know an attribute of {step} (420)"),
                "upgrade the server: RFC 5766 and later know it",
            ),
            437 => self.fault(
                "mismatch",
                format!("the server says that {step} does not fit an allocation (437)"),
                "an earlier one from the same port still lives, or the server restarted: try again; a NAT that gives out one port \
                 twice, or a balancer that sends packets of one client to several servers, does this for good",
            ),
            438 => self.fault(
                "stale_nonce",
                "the server calls every nonce stale, its newest as well (438)",
                "several servers answer at this address, each with nonces of its own: have the balancer stick to the client's \
                 address, or give them one nonce secret",
            ),
            440 => self.fault(
                "family",
                "the server relays neither IPv4 nor IPv6 (440)",
                "give it a relay address: relay.addresses; coturn: relay-ip",
            ),
            441 => self.fault(
                "wrong_credentials",
                format!("the server wants {step} from whoever made the allocation (441)"),
                "another user has an allocation from the same address and port: try again; see whether a NAT mixes up clients",
            ),
            442 => self.fault(
                "unsupported_transport",
                "the server relays no UDP (442)",
                "turn UDP relaying on; coturn: remove no-udp-relay",
            ),
            443 => self.fault(
                "peer_family",
                "the allocation and its peer are of different families (443)",
                "this is a bug of the server: both are its own relayed addresses",
            ),
            486 => self.fault(
                "quota",
                "no more allocations for this user or address (486)",
                "end old ones (turnix allocations, turnix disconnect), or raise limits.allocations, limits.allocations_per_user, \
                 limits.allocations_per_address; coturn: user-quota, total-quota",
            ),
            500 => self.fault(
                "server_error",
                format!("the server failed at {step} (500)"),
                "look into its log: it may be out of descriptors or memory",
            ),
            508 => self.fault(
                "capacity",
                "the server has no relay port left (508)",
                "widen relay.ports (coturn: min-port, max-port), raise its limit of open files, or add a server",
            ),
            code => self.fault(
                "refused",
                format!("the server refuses {step} with {code}"),
                "look into its log",
            ),
        }
    }

    /// 401 to Allocate.
    fn judge_credentials(&mut self) {
        let realm = match &self.facts.realm {
            Some(realm) => format!("realm {realm:?}"),
            None => "its realm".to_owned(),
        };
        let server = self.facts.server_unix;
        let skew = server.map(|server| {
            (
                server.abs_diff(self.facts.now_unix),
                server > self.facts.now_unix,
            )
        });
        let skewed = |(secs, ahead): (u64, bool)| {
            let way = if ahead { "ahead of" } else { "behind" };
            format!("the server's clock is {} {way} this host's", span(secs))
        };
        let expires = match self.facts.credentials {
            Credentials::None => {
                return self.warn(
                    "credentials_wanted",
                    format!("the server wants credentials of {realm}: only that it answers has been tested"),
                    "give --user and --password, or the shared secret with --secret-file",
                );
            }
            Credentials::Password { expires_unix } => expires_unix,
            Credentials::Secret { expires_unix } => Some(expires_unix),
        };
        if let (Some(expires), Some(server), Some(skew)) = (expires, server, skew)
            && expires <= server
            && expires > self.facts.now_unix
        {
            return self.fault(
                "clock_skew",
                format!(
                    "the credential is over by the server's clock: {}, so what is made here ends {} too early",
                    skewed(skew),
                    span(skew.0)
                ),
                "set the clocks of the server and of whoever makes credentials (NTP); longer ones hide it",
            );
        }
        if let Some(expires) = expires
            && expires <= self.facts.now_unix
        {
            return self.fault(
                "credential_expired",
                format!("the credential ended {} ago, at {}", span(self.facts.now_unix - expires), utc(expires)),
                "make a new one; applications have to ask for fresh credentials before the old ones end",
            );
        }
        let clocks = match skew {
            Some(skew) if skew.0 > SKEW_SECS => format!("; {}", skewed(skew)),
            _ => String::new(),
        };
        match self.facts.credentials {
            Credentials::Secret { .. } => self.fault(
                "wrong_secret",
                format!("the server of {realm} does not take a credential made with this secret (401){clocks}"),
                "compare the secret with auth.secrets (coturn: static-auth-secret, with use-auth-secret), blanks and line \
                 ends included; a clock that is wrong by more than an hour does the same",
            ),
            _ => {
                let mut remedy = format!(
                    "compare both with the server's; the user has to belong to {realm}: passwords that coturn stores hashed \
                     hold for one realm only"
                );
                if expires.is_some() {
                    remedy.push_str("; a time-limited name takes the password that goes with it and a server with the same secret");
                }
                self.fault(
                    "wrong_password",
                    format!("the server of {realm} does not take this user and password (401){clocks}"),
                    remedy,
                );
            }
        }
    }

    /// The probe went to its end: what came of the data?
    fn judge_data(&mut self) {
        let facts = self.facts;
        let arrives = |traffic: &Option<Traffic>| traffic.as_ref().map(|one| one.received > 0);
        let ways = [arrives(&facts.indications), arrives(&facts.channel_data)];
        match ways {
            [Some(false), Some(false)] if !self.verdicts.is_empty() => return,
            [Some(false), Some(false)] => {
                let relayed = shown(facts.relayed);
                return self.fault(
                    "relay_lost",
                    format!("data to the relayed address {relayed} does not come back: allocations work, the relay does not"),
                    "open the relay's ports for UDP in the firewall of the server and its cloud: relay.ports, 49152-65535 unless \
                     set (coturn: min-port, max-port); behind 1:1 NAT, the server also has to reach its own external address",
                );
            }
            [Some(false), Some(true)] => self.fault(
                "indications_lost",
                "data in Send indications is lost, while channels carry it",
                "this is a bug or a rule of the server: clients use indications until their channel is bound",
            ),
            [Some(true), Some(false)] => self.fault(
                "channels_lost",
                "data in channels is lost, while Send indications carry it",
                "this is a bug of the server, or a firewall that does not take ChannelData for TURN",
            ),
            _ => {}
        }
        let loss = |traffic: &Option<Traffic>| traffic.as_ref().map_or(0.0, Traffic::loss);
        let small = loss(&facts.latency);
        if facts
            .latency
            .as_ref()
            .is_some_and(|small| small.received > 0)
            && facts
                .large
                .as_ref()
                .is_some_and(|large| large.received == 0)
        {
            return self.fault(
                "mtu",
                "packets of 1200 bytes are lost while small ones pass",
                "a link on the way has a small MTU and ICMP is filtered: let \"fragmentation needed\" through, lower the MTU of \
                 the server's interface to that of its tunnel (VPN, PPPoE), or clamp what applications send",
            );
        }
        if small >= LOSS {
            self.fault(
                "loss",
                format!("{} of small packets at a slow pace are lost: calls will suffer", percent(small)),
                match facts.transport {
                    Transport::Udp => {
                        "look at the path (mtr) and at the server's load and turn_dropped_packets_total; compare with another network"
                    }
                    _ => "the server drops what a slow connection does not take: look at the path and at the server's load",
                },
            );
        } else if let Some(burst) = &facts.burst
            && burst.loss() >= BURST_LOSS
        {
            self.warn(
                "limited",
                format!(
                    "{} are lost at {}, of which {} arrive, while little is lost at a slow pace",
                    percent(burst.loss()),
                    rate(asked(burst)),
                    rate(burst.bits_per_second())
                ),
                "this is what the line carries, or a limit of the server: limits.bandwidth_per_allocation; coturn: max-bps; \
                 --rate asks for less",
            );
        }
    }

    fn judge_addresses(&mut self) {
        let facts = self.facts;
        let Some(relayed) = facts.relayed.map(|relayed| relayed.ip()) else {
            return;
        };
        let server = facts.server.map(|server| server.ip().to_canonical());
        let remedy =
            "set the server's public address: relay.external_address (coturn: external-ip)";
        let is_near = |ip: IpAddr| is_private(ip) || ip.is_loopback();
        if relayed.is_unspecified() {
            self.fault(
                "relay_unspecified",
                format!("the relayed address is {relayed}, which is nowhere"),
                remedy,
            );
        } else if is_near(relayed) && server.is_some_and(|server| !is_near(server)) {
            self.fault(
                "relay_private",
                format!("the relayed address {relayed} is private, while the server is reached at a public one: it is behind NAT"),
                remedy,
            );
        } else if relayed.is_loopback() && server.is_some_and(|server| !server.is_loopback()) {
            self.fault(
                "relay_private",
                format!("the relayed address {relayed} is good on the server's own host only"),
                remedy,
            );
        }
    }

    fn judge_extras(&mut self) {
        let facts = self.facts;
        if let Some(certificate) = (facts.certificate.as_ref()).filter(|_| facts.end.is_none()) {
            let left = certificate.not_after_unix.saturating_sub(facts.now_unix);
            if facts.verified && left < EXPIRES_SOON_SECS {
                self.warn(
                    "certificate_ends",
                    format!("the certificate ends in {}", span(left)),
                    "renew it, and see why that did not happen by itself",
                );
            }
        }
        for dead in &facts.dead {
            if matches!(dead.trouble, Trouble::NoRoute { .. }) {
                continue;
            }
            self.warn(
                "address_dead",
                format!("{} does not answer ({}), while another address of {} does", dead.address, dead.trouble, facts.host),
                "have the server listen there, or remove that address from DNS: clients that try it first lose time",
            );
        }
        if let Some(trouble) = &facts.binding_trouble {
            self.warn(
                "binding",
                format!("the server answers Allocate, but Binding comes to nothing: {trouble}"),
                "clients learn their own address from it: allow STUN (coturn: no no-stun, no secure-stun), or leave it to another server",
            );
        }
        if facts.credentials == Credentials::None && facts.lifetime_secs.is_some() {
            self.warn(
                "open_relay",
                "the server relays for anybody, without credentials",
                "ask for credentials (coturn: lt-cred-mech or use-auth-secret), or strangers use it to hide and to attack others",
            );
        }
        if let Some(trouble) = &facts.single {
            self.warn(
                "single",
                format!("there was no second allocation ({trouble}): data went to the relayed address of the first and back"),
                "clients of this user can have one call at a time: raise limits.allocations_per_user (coturn: user-quota)",
            );
        }
        if facts.released == Some(false) {
            self.warn(
                "not_released",
                "the server did not confirm that the allocations are gone",
                "they end by themselves when their lifetime is over",
            );
        }
    }
}

fn step(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve => "the name",
        Stage::Connect => "the connection",
        Stage::Tls => "the TLS handshake",
        Stage::Binding => "Binding",
        Stage::Allocate => "Allocate",
        Stage::Permission => "CreatePermission",
        Stage::Channel => "ChannelBind",
        Stage::Indications
        | Stage::ChannelData
        | Stage::Latency
        | Stage::Large
        | Stage::Throughput => "the data",
        Stage::Release => "Refresh",
    }
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(String::new, |address| address.to_string())
}

/// Bits of application data per second that were sent.
fn asked(burst: &Traffic) -> f64 {
    let seconds = burst.sending.as_secs_f64();
    if seconds == 0.0 {
        return 0.0;
    }
    f64::from(burst.sent) * burst.bytes as f64 * 8.0 / seconds
}

#[cfg(test)]
mod tests;
