//! Every fault with the facts that give it away.

use std::time::Duration;

use super::*;
use crate::cli::probe::facts::{Dead, End};
use crate::cli::tls::Certificate;

const NOW: u64 = 1_800_000_000;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn traffic(sent: u32, received: u32) -> Option<Traffic> {
    Some(Traffic {
        bytes: 100,
        sent,
        received,
        sending: Duration::from_secs(1),
        receiving: Duration::from_secs(1),
        rtt: None,
    })
}

/// A server without fault.
fn healthy() -> Facts {
    let mut facts = Facts::new(
        "turn:turn.example.org".into(),
        "turn.example.org".into(),
        3478,
        Transport::Udp,
        true,
    );
    facts.credentials = Credentials::Password { expires_unix: None };
    facts.now_unix = NOW;
    facts.addresses = vec![addr("203.0.113.7:3478")];
    facts.server = Some(addr("203.0.113.7:3478"));
    facts.local = Some(addr("192.168.1.5:40000"));
    facts.mapped = Some(addr("198.51.100.9:40000"));
    facts.realm = Some("example.org".into());
    facts.relayed = Some(addr("203.0.113.7:50000"));
    facts.lifetime_secs = Some(600);
    facts.indications = traffic(6, 6);
    facts.channel_data = traffic(6, 6);
    facts.latency = traffic(50, 50);
    facts.large = traffic(6, 6);
    facts.burst = traffic(450, 450);
    facts.released = Some(true);
    facts
}

/// One that got no further than `stage`.
fn ended(stage: Stage, trouble: Trouble) -> Facts {
    let mut facts = healthy();
    facts.end = Some(End { stage, trouble });
    if stage <= Stage::Allocate {
        facts.relayed = None;
        facts.lifetime_secs = None;
        facts.released = None;
    }
    (facts.indications, facts.channel_data) = (None, None);
    (facts.latency, facts.large, facts.burst) = (None, None, None);
    facts
}

fn refused(stage: Stage, code: u16) -> Facts {
    ended(stage, Trouble::Refused { code })
}

fn with(mut facts: Facts, change: impl FnOnce(&mut Facts)) -> Facts {
    change(&mut facts);
    facts
}

fn over(transport: Transport, facts: Facts) -> Facts {
    with(facts, |facts| {
        facts.transport = transport;
        facts.verified = transport == Transport::Tls;
    })
}

fn certificate(self_signed: bool) -> Option<Certificate> {
    Some(Certificate {
        names: vec!["other.example.org".into()],
        issuer: "CN=Private CA".into(),
        self_signed,
        not_before_unix: NOW - 86_400 * 90,
        not_after_unix: NOW - 86_400,
    })
}

fn distrusted(distrust: Distrust, self_signed: bool) -> Facts {
    with(
        over(
            Transport::Tls,
            ended(Stage::Tls, Trouble::Certificate(distrust)),
        ),
        |facts| facts.certificate = certificate(self_signed),
    )
}

fn limited(expires_unix: u64) -> Credentials {
    Credentials::Password {
        expires_unix: Some(expires_unix),
    }
}

/// The facts, the code of the first verdict, and what its two lines have to say.
#[test]
fn every_fault_is_named_with_its_way_out() {
    use Stage::{Allocate, Binding, Channel, Connect, Latency, Permission, Resolve, Tls};
    use Transport::{Tcp, Udp};
    let why = || "why".to_owned();
    let table: Vec<(Facts, &str, &str, &str)> = vec![
        // Getting there.
        (
            ended(Resolve, Trouble::NoName { why: why() }),
            "name",
            "turn.example.org does not resolve",
            "A and AAAA",
        ),
        (
            ended(Connect, Trouble::NoRoute { why: why() }),
            "route",
            "no way to 203.0.113.7:3478",
            "online",
        ),
        (
            ended(Connect, Trouble::Host { why: why() }),
            "host",
            "this host",
            "firewall",
        ),
        (
            ended(Binding, Trouble::Closed),
            "closed",
            "for UDP: the port is closed",
            "ss -lun",
        ),
        (
            with(ended(Binding, Trouble::Closed), |facts| {
                facts.around.tcp = Some(Knock::Answers)
            }),
            "udp_closed",
            "nobody listens for UDP",
            "turn:turn.example.org:3478?transport=tcp",
        ),
        (
            with(ended(Binding, Trouble::Silence), |facts| {
                facts.around.tcp = Some(Knock::Answers)
            }),
            "udp_blocked",
            "UDP is blocked on the way to 203.0.113.7:3478",
            "open UDP 3478",
        ),
        (
            with(ended(Binding, Trouble::Silence), |facts| {
                facts.around.tcp = Some(Knock::Closed)
            }),
            "udp_silent",
            "though the host is there",
            "open UDP 3478",
        ),
        (
            with(ended(Binding, Trouble::Silence), |facts| {
                facts.around.tcp = Some(Knock::Silent)
            }),
            "silent",
            "over UDP or TCP",
            "open UDP and TCP 3478",
        ),
        (
            over(Tcp, ended(Connect, Trouble::Closed)),
            "closed",
            "refused",
            "ss -ltn",
        ),
        (
            with(over(Tcp, ended(Connect, Trouble::Closed)), |facts| {
                facts.around.udp = Some(Knock::Answers)
            }),
            "tcp_closed",
            "while UDP answers",
            "use turn:turn.example.org:3478",
        ),
        (
            over(Tcp, ended(Connect, Trouble::Silence)),
            "silent",
            "TCP connection",
            "open TCP 3478",
        ),
        (
            with(over(Tcp, ended(Connect, Trouble::Silence)), |facts| {
                facts.around.udp = Some(Knock::Answers)
            }),
            "tcp_blocked",
            "TCP is blocked",
            "open TCP 3478",
        ),
        (
            ended(Connect, Trouble::Rejected { why: why() }),
            "unreachable",
            "turned away: why",
            "reject",
        ),
        (
            with(ended(Binding, Trouble::Rejected { why: why() }), |facts| {
                facts.around.tcp = Some(Knock::Answers);
            }),
            "udp_blocked",
            "UDP is turned away",
            "open UDP 3478",
        ),
        // What listens there.
        (
            over(Tcp, ended(Binding, Trouble::NotTurn)),
            "not_turn",
            "answers no STUN",
            "correct the port",
        ),
        (
            with(over(Tcp, ended(Binding, Trouble::HungUp)), |facts| {
                facts.around.speaks = Some(Speech::Tls)
            }),
            "tls_only",
            "speaks TLS",
            "turns:turn.example.org:3478",
        ),
        (
            with(over(Tcp, ended(Binding, Trouble::HungUp)), |facts| {
                facts.around.speaks = Some(Speech::Http)
            }),
            "http",
            "web server",
            "correct the port",
        ),
        (
            with(
                over(Transport::Tls, ended(Tls, Trouble::NotTurn)),
                |facts| facts.around.speaks = Some(Speech::Turn),
            ),
            "not_tls",
            "TURN without TLS",
            "turn:turn.example.org:3478?transport=tcp",
        ),
        (
            over(Transport::Tls, ended(Tls, Trouble::HungUp)),
            "not_tls",
            "no TLS",
            "certificate",
        ),
        // TLS.
        (
            distrusted(Distrust::Name, false),
            "certificate_name",
            "for other.example.org, not for turn.example.org",
            "get one for",
        ),
        (
            distrusted(Distrust::Expired, false),
            "certificate_expired",
            "has expired (2027-01-14",
            "renew it",
        ),
        (
            distrusted(Distrust::NotYet, false),
            "certificate_not_yet",
            "not valid yet",
            "clock",
        ),
        (
            distrusted(Distrust::Issuer, false),
            "certificate_issuer",
            "CN=Private CA",
            "fullchain.pem",
        ),
        (
            distrusted(Distrust::Issuer, true),
            "certificate_self_signed",
            "signed by itself",
            "--insecure",
        ),
        (
            distrusted(Distrust::Other { why: why() }, false),
            "certificate",
            "why",
            "public authority",
        ),
        (
            over(
                Transport::Tls,
                ended(Tls, Trouble::Handshake { why: why() }),
            ),
            "tls",
            "handshake",
            "TLS 1.2",
        ),
        // Credentials.
        (
            refused(Allocate, 401),
            "wrong_password",
            "realm \"example.org\" does not take",
            "compare both",
        ),
        (
            with(refused(Allocate, 401), |facts| {
                facts.credentials = limited(NOW - 90)
            }),
            "credential_expired",
            "1 min 30 s ago",
            "fresh credentials",
        ),
        (
            with(refused(Allocate, 401), |facts| {
                facts.credentials = Credentials::Secret {
                    expires_unix: NOW + 3600,
                };
                facts.server_unix = Some(NOW + 7200);
            }),
            "clock_skew",
            "2 h ahead of this host's",
            "NTP",
        ),
        (
            with(refused(Allocate, 401), |facts| {
                facts.credentials = Credentials::Secret {
                    expires_unix: NOW + 3600,
                };
                facts.server_unix = Some(NOW + 1);
            }),
            "wrong_secret",
            "made with this secret (401)",
            "static-auth-secret",
        ),
        (
            with(refused(Allocate, 401), |facts| {
                facts.credentials = limited(NOW + 3600);
                facts.server_unix = Some(NOW - 600);
            }),
            "wrong_password",
            "10 min behind this host's",
            "same secret",
        ),
        (
            with(refused(Allocate, 401), |facts| {
                facts.credentials = Credentials::None
            }),
            "credentials_wanted",
            "wants credentials of realm \"example.org\"",
            "--secret-file",
        ),
        (
            ended(Allocate, Trouble::Integrity),
            "integrity",
            "not signed",
            "password",
        ),
        (
            ended(Allocate, Trouble::BidDown),
            "bid_down",
            "lacks PASSWORD-ALGORITHMS",
            "turns:",
        ),
        // Refusals.
        (
            refused(Allocate, 300),
            "redirected",
            "without saying where",
            "drains",
        ),
        (
            with(refused(Allocate, 300), |facts| {
                facts.redirected = Some(addr("203.0.113.8:3478"))
            }),
            "redirected",
            "to 203.0.113.8:3478, which sends them on",
            "alternates",
        ),
        (refused(Allocate, 400), "bad_request", "(400)", "log"),
        (
            refused(Allocate, 403),
            "forbidden",
            "may not allocate",
            "rules",
        ),
        (
            refused(Allocate, 420),
            "unknown_attribute",
            "(420)",
            "upgrade",
        ),
        (refused(Allocate, 437), "mismatch", "(437)", "try again"),
        (refused(Allocate, 438), "stale_nonce", "stale", "balancer"),
        (refused(Allocate, 440), "family", "(440)", "relay.addresses"),
        (
            refused(Channel, 441),
            "wrong_credentials",
            "ChannelBind",
            "another user",
        ),
        (
            refused(Allocate, 442),
            "unsupported_transport",
            "no UDP",
            "no-udp-relay",
        ),
        (refused(Permission, 443), "peer_family", "(443)", "bug"),
        (
            refused(Allocate, 486),
            "quota",
            "(486)",
            "limits.allocations_per_user",
        ),
        (refused(Allocate, 500), "server_error", "(500)", "log"),
        (
            refused(Allocate, 508),
            "capacity",
            "no relay port",
            "relay.ports",
        ),
        (refused(Allocate, 599), "refused", "with 599", "log"),
        (
            refused(Permission, 403),
            "peer_forbidden",
            "203.0.113.7",
            "allowed-peer-ip=203.0.113.7",
        ),
        (
            with(refused(Permission, 403), |facts| {
                facts.server = Some(addr("127.0.0.1:3478"));
                facts.relayed = Some(addr("127.0.0.1:50000"));
            }),
            "peer_forbidden",
            "127.0.0.1",
            "peers.allow = [\"loopback\"]",
        ),
        (
            with(refused(Permission, 403), |facts| {
                facts.server = Some(addr("10.0.0.1:3478"));
                facts.relayed = Some(addr("10.0.0.1:50000"));
            }),
            "peer_forbidden",
            "10.0.0.1",
            "permit private peers",
        ),
        (
            ended(Allocate, Trouble::Malformed),
            "malformed",
            "Allocate",
            "bug",
        ),
        (
            ended(Allocate, Trouble::Silence),
            "silent",
            "not Allocate",
            "log",
        ),
        (
            over(Tcp, ended(Latency, Trouble::HungUp)),
            "gone",
            "before the data",
            "log",
        ),
        // The relay.
        (
            with(healthy(), |facts| {
                (facts.indications, facts.channel_data) = (traffic(6, 0), traffic(6, 0));
            }),
            "relay_lost",
            "203.0.113.7:50000 does not come back",
            "49152-65535",
        ),
        (
            with(healthy(), |facts| facts.indications = traffic(6, 0)),
            "indications_lost",
            "Send indications",
            "bug",
        ),
        (
            with(healthy(), |facts| facts.channel_data = traffic(6, 0)),
            "channels_lost",
            "channels is lost",
            "ChannelData",
        ),
        (
            with(healthy(), |facts| facts.large = traffic(6, 0)),
            "mtu",
            "1200 bytes",
            "MTU",
        ),
        (
            with(healthy(), |facts| facts.latency = traffic(50, 45)),
            "loss",
            "10 % of small",
            "mtr",
        ),
        (
            over(
                Udp,
                with(healthy(), |facts| facts.burst = traffic(450, 200)),
            ),
            "limited",
            "56 % are lost at 360 kbit/s, of which 160 kbit/s arrive",
            "limits.bandwidth_per_allocation",
        ),
        (
            with(healthy(), |facts| {
                facts.relayed = Some(addr("10.0.0.5:50000"))
            }),
            "relay_private",
            "10.0.0.5 is private",
            "relay.external_address",
        ),
        (
            with(healthy(), |facts| {
                facts.relayed = Some(addr("0.0.0.0:50000"))
            }),
            "relay_unspecified",
            "0.0.0.0",
            "external-ip",
        ),
        (
            with(healthy(), |facts| {
                facts.server = Some(addr("192.168.1.2:3478"));
                facts.relayed = Some(addr("127.0.0.1:50000"));
            }),
            "relay_private",
            "own host only",
            "relay.external_address",
        ),
        // Works, and yet.
        (
            with(healthy(), |facts| {
                facts.dead.push(Dead {
                    address: addr("[2001:db8::7]:3478"),
                    trouble: Trouble::Silence,
                });
            }),
            "address_dead",
            "[2001:db8::7]:3478 does not answer (no answer)",
            "DNS",
        ),
        (
            with(healthy(), |facts| {
                facts.binding_trouble = Some(Trouble::Silence)
            }),
            "binding",
            "Binding comes to nothing",
            "no-stun",
        ),
        (
            with(healthy(), |facts| facts.credentials = Credentials::None),
            "open_relay",
            "anybody",
            "credentials",
        ),
        (
            with(healthy(), |facts| {
                facts.single = Some(Trouble::Refused { code: 486 })
            }),
            "single",
            "no second allocation",
            "allocations_per_user",
        ),
        (
            with(healthy(), |facts| facts.released = Some(false)),
            "not_released",
            "did not confirm",
            "lifetime",
        ),
        (
            over(
                Transport::Tls,
                with(healthy(), |facts| {
                    facts.certificate = certificate(false);
                    facts.certificate.as_mut().unwrap().not_after_unix = NOW + 3 * 86_400;
                }),
            ),
            "certificate_ends",
            "ends in 3 d",
            "renew it",
        ),
    ];
    for (facts, code, wrong, remedy) in &table {
        let verdicts = judge(facts);
        let first = verdicts
            .first()
            .unwrap_or_else(|| panic!("{code}: nothing is wrong"));
        assert_eq!(first.code, *code, "{verdicts:?}");
        assert!(
            first.wrong.contains(wrong),
            "{code}: {:?} lacks {wrong:?}",
            first.wrong
        );
        assert!(
            first.remedy.contains(remedy),
            "{code}: {:?} lacks {remedy:?}",
            first.remedy
        );
        for verdict in &verdicts {
            let both = [&verdict.wrong, &verdict.remedy];
            assert!(
                both.iter()
                    .all(|line| !line.is_empty() && !line.contains('\n')),
                "{verdict:?}"
            );
        }
    }
}

#[test]
fn a_server_without_fault_has_none() {
    assert_eq!(judge(&healthy()), []);
    for transport in Transport::ALL {
        let facts = with(over(transport, healthy()), |facts| {
            facts.certificate = certificate(false);
            facts.certificate.as_mut().unwrap().not_after_unix = NOW + 90 * 86_400;
            // One in fifty is no fault.
            facts.latency = traffic(50, 49);
            facts.large = traffic(6, 5);
            facts.burst = traffic(450, 440);
        });
        assert_eq!(judge(&facts), [], "{transport:?}");
    }
    // A server in the same private network.
    let near = with(healthy(), |facts| {
        facts.server = Some(addr("10.0.0.1:3478"));
        facts.relayed = Some(addr("10.0.0.1:50000"));
    });
    assert_eq!(judge(&near), []);
    // This host has no IPv6, which is not the server's fault.
    let no_route = with(healthy(), |facts| {
        facts.dead.push(Dead {
            address: addr("[2001:db8::7]:3478"),
            trouble: Trouble::NoRoute { why: "no".into() },
        });
    });
    assert_eq!(judge(&no_route), []);
}

#[test]
fn faults_come_before_warnings() {
    let facts = with(healthy(), |facts| {
        facts.released = Some(false);
        facts.relayed = Some(addr("10.0.0.5:50000"));
        facts.large = traffic(6, 0);
    });
    let levels: Vec<_> = judge(&facts).iter().map(|verdict| verdict.level).collect();
    assert_eq!(levels, [Level::Fault, Level::Fault, Level::Warning]);
}

#[test]
fn an_address_that_is_nowhere_explains_that_nothing_arrives() {
    let facts = with(healthy(), |facts| {
        facts.relayed = Some(addr("0.0.0.0:50000"));
        (facts.indications, facts.channel_data) = (traffic(6, 0), traffic(6, 0));
    });
    let codes: Vec<_> = judge(&facts).iter().map(|verdict| verdict.code).collect();
    assert_eq!(codes, ["relay_unspecified"]);
}

#[test]
fn uris_in_advice_keep_ipv6_in_brackets() {
    let facts = with(ended(Stage::Binding, Trouble::Closed), |facts| {
        facts.host = "2001:db8::7".into();
        facts.around.tcp = Some(Knock::Answers);
    });
    let remedy = &judge(&facts)[0].remedy;
    assert!(
        remedy.contains("turn:[2001:db8::7]:3478?transport=tcp"),
        "{remedy}"
    );
}
