//! Each fault provoked, and what the probe says about it: exit code 3, one line of what is wrong and one of what to do.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, SystemTime};

use rcgen::date_time_ymd;
use turnix::wire::ErrorCode;

use super::scripted::{Answer, Script, lossy, serve, tls, web};
use super::server::{ALICE, SECRET, Server, certificate, probe};

/// Probes as alice, and expects a fault that is told so.
fn fault(uri: &str, more: &[&str], wrong: &str, remedy: &str) {
    let (code, all) = probe(&[&[uri], &ALICE[..], &["--timeout", "3s"], more].concat());
    assert_eq!(code, 3, "{uri}: {all}");
    let verdict = all
        .lines()
        .find(|line| line.starts_with("fault: "))
        .unwrap_or_else(|| panic!("{all}"));
    assert!(verdict.contains(wrong), "{uri}: {wrong:?} in {all}");
    let way_out = all
        .lines()
        .find(|line| line.starts_with("  what to do: "))
        .unwrap();
    assert!(way_out.contains(remedy), "{uri}: {remedy:?} in {all}");
}

/// The same for a server of a script.
fn scripted(script: Script, wrong: &str, remedy: &str) {
    let server = serve(script);
    fault(&format!("turn:{}", server.address), &[], wrong, remedy);
}

/// Several at once: most of a probe is waiting.
fn faults(cases: &[(&str, &[&str], &str, &str)]) {
    std::thread::scope(|scope| {
        for (uri, more, wrong, remedy) in cases {
            scope.spawn(move || fault(uri, more, wrong, remedy));
        }
    });
}

#[test]
fn names_and_ports() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = format!("stun:{}", socket.local_addr().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("turn:{}?transport=tcp", listener.local_addr().unwrap());
    // Port 9 is below those that the kernel gives to whoever asks: nobody listens there.
    faults(&[
        (
            "turn:nowhere.invalid",
            &[],
            "nowhere.invalid does not resolve",
            "resolver",
        ),
        (
            "turn:127.0.0.1:9?transport=tcp",
            &[],
            "is refused",
            "ss -ltn",
        ),
        ("turn:127.0.0.1:9", &[], "the port is closed", "ss -lun"),
        (&silent, &[], "no answer from 127.0.0.1", "open UDP"),
        (
            &mute,
            &["--timeout", "1s"],
            "answers no STUN",
            "correct the port",
        ),
    ]);
}

#[test]
fn one_transport_of_two() {
    let tcp = Server::with("127.0.0.1", r#""tcp""#, "");
    fault(
        &tcp.uri("udp"),
        &[],
        "nobody listens for UDP",
        "?transport=tcp",
    );
    // Bound, so that nothing says that the port is closed, and never read: what a firewall looks like.
    let _firewall = UdpSocket::bind(tcp.address).unwrap();
    fault(
        &tcp.uri("udp"),
        &[],
        "UDP is blocked on the way",
        "open UDP",
    );
    let udp = Server::with("127.0.0.1", r#""udp""#, "");
    fault(
        &udp.uri("tcp"),
        &[],
        "nobody listens for TCP",
        "use turn:127.0.0.1",
    );
}

#[test]
fn ports_that_speak_something_else() {
    let plain = Server::with("127.0.0.1", r#""udp", "tcp""#, "");
    fault(
        &plain.uri("tls"),
        &[],
        "speaks TURN without TLS",
        "?transport=tcp",
    );
    let secure = Server::with("127.0.0.1", r#""tls""#, "");
    fault(&secure.uri("tcp"), &[], "speaks TLS", "turns:127.0.0.1");
    let web = web(0, SystemTime::UNIX_EPOCH);
    fault(
        &format!("turn:{}?transport=tcp", web.address),
        &[],
        "web server",
        "correct the port",
    );
    fault(
        &format!("turns:{}", web.address),
        &[],
        "web server",
        "correct the port",
    );
}

#[test]
fn certificates() {
    let dir = tempfile::tempdir().unwrap();
    let with = |made: &(String, String)| Server::certified("127.0.0.1", r#""tls""#, "", made);
    let server = with(&certificate("localhost", |_| {}));
    fault(&server.uri("tls"), &[], "signed by itself", "--insecure");

    let server = with(&certificate("other.example.org", |_| {}));
    let ca = server.certificate_file();
    let trusted = ["--ca", ca.to_str().unwrap()];
    fault(
        &server.uri("tls"),
        &trusted,
        "is for other.example.org, not for localhost",
        "URI",
    );
    let uri = server.uri("tls");
    let insecure = [&[uri.as_str(), "--insecure"], &ALICE[..]].concat();
    let (code, all) = probe(&insecure);
    assert_eq!(code, 0, "{all}");
    assert!(all.contains("other.example.org, not verified"), "{all}");

    // Nothing of turnix serves one that is over.
    let over = certificate("localhost", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &over.0).unwrap();
    let server = tls(&over);
    let uri = format!("turns:localhost:{}", server.address.port());
    let trusted = ["--ca", ca.to_str().unwrap()];
    fault(&uri, &trusted, "has expired (2021-01-01", "renew it");
}

#[test]
fn credentials() {
    let server = Server::start("");
    let uri = server.uri("udp");
    let (code, all) = probe(&[&uri, "--user", "alice", "--password", "other"]);
    assert_eq!(code, 3, "{all}");
    assert!(
        all.contains("does not take this user and password"),
        "{all}"
    );
    let (code, all) = probe(&[&uri, "--user", "1000000001:alice", "--password", "x"]);
    assert_eq!(code, 3, "{all}");
    assert!(
        all.contains("the credential ended") && all.contains("2001-09-09"),
        "{all}"
    );
    let (code, all) = probe(&[&uri, "--secret", "another"]);
    assert_eq!(code, 3, "{all}");
    assert!(all.contains("made with this secret"), "{all}");
    let (code, all) = probe(&[&uri, "--secret", SECRET]);
    assert_eq!(code, 0, "{all}");
}

#[test]
fn a_clock_that_is_ahead() {
    let server = serve(Script {
        allocate: Answer::Refuse(ErrorCode::Unauthenticated),
        ..Script::default()
    });
    let tomorrow = SystemTime::UNIX_EPOCH
        + Duration::from_secs(turnix::base::Clock.now().unix_secs() + 2 * 86_400);
    let _web = web(server.address.port(), tomorrow);
    let uri = format!("turn:{}", server.address);
    let (code, all) = probe(&[&uri, "--secret", SECRET]);
    assert_eq!(code, 3, "{all}");
    assert!(
        all.contains("over by the server's clock") && all.contains("NTP"),
        "{all}"
    );
}

#[test]
fn refusals() {
    for (code, wrong, remedy) in [
        (ErrorCode::Forbidden, "may not allocate", "rules"),
        (ErrorCode::AllocationMismatch, "(437)", "try again"),
        (ErrorCode::StaleNonce, "calls every nonce stale", "balancer"),
        (ErrorCode::WrongCredentials, "(441)", "another user"),
        (ErrorCode::UnsupportedTransport, "(442)", "no-udp-relay"),
        (
            ErrorCode::AllocationQuotaReached,
            "(486)",
            "limits.allocations",
        ),
        (ErrorCode::InsufficientCapacity, "(508)", "relay.ports"),
    ] {
        let allocate = Answer::Refuse(code);
        scripted(
            Script {
                allocate,
                ..Script::default()
            },
            wrong,
            remedy,
        );
    }
    let permission = Answer::Refuse(ErrorCode::Forbidden);
    scripted(
        Script {
            permission,
            ..Script::default()
        },
        "forbids its own relayed address 127.0.0.1",
        "allow-loopback-peers",
    );
}

#[test]
fn a_challenge_that_somebody_weakened() {
    scripted(
        Script {
            nonce: "obMatJos2gAAAf//499k954d6",
            ..Script::default()
        },
        "lacks PASSWORD-ALGORITHMS",
        "turns:",
    );
}

#[test]
fn a_server_that_answers_no_binding_may_yet_relay() {
    let server = serve(Script {
        binding: Answer::Silence,
        ..Script::default()
    });
    let uri = format!("turn:{}", server.address);
    let (_, all) = probe(&[&[&uri as &str, "--timeout", "2s"], &ALICE[..]].concat());
    assert!(
        all.contains("answers Allocate, but Binding comes to nothing"),
        "{all}"
    );
}

#[test]
fn alternates() {
    let other = Server::start("");
    let sending = |there| Script {
        allocate: Answer::Elsewhere(there),
        ..Script::default()
    };
    let server = serve(sending(other.address));
    let uri = format!("turn:{}", server.address);
    let (code, all) = probe(&[&[uri.as_str()], &ALICE[..]].concat());
    assert_eq!(code, 0, "{all}");
    assert!(
        all.contains(&format!("sends clients to {}", other.address)),
        "{all}"
    );
    let first = serve(sending(server.address));
    let uri = format!("turn:{}", first.address);
    fault(
        &uri,
        &[],
        &format!("to {}, which sends them on", server.address),
        "alternates",
    );
}

#[test]
fn a_relay_that_does_not_relay() {
    let silent = serve(Script::default());
    let nowhere = serve(Script {
        relayed: "0.0.0.0:50000",
        ..Script::default()
    });
    let [silent, nowhere] = [silent, nowhere].map(|one| (format!("turn:{}", one.address), one));
    faults(&[
        (
            &silent.0,
            &[],
            "127.0.0.1:9 does not come back",
            "relay.ports",
        ),
        (&nowhere.0, &[], "nowhere", "relay.external_address"),
    ]);
}

#[test]
fn paths_that_lose() {
    let server = Server::start("");
    let large = lossy(server.address, |_, datagram| datagram.len() > 1100);
    // Channel data only: what is lost of requests is sent again.
    let some = lossy(server.address, |count, datagram| {
        datagram[0] >> 6 == 1 && count % 4 == 0
    });
    let all = lossy(server.address, |_, datagram| datagram[0] >> 6 == 1);
    let [large, some, all] =
        [large, some, all].map(|path| (format!("turn:{}", path.address), path));
    faults(&[
        (&large.0, &[], "packets of 1200 bytes are lost", "MTU"),
        (
            &some.0,
            &[],
            "of small packets at a slow pace are lost",
            "mtr",
        ),
        (&all.0, &[], "data in channels is lost", "ChannelData"),
    ]);
}

#[test]
fn a_quota_of_one() {
    let server = Server::start("[limits]\nallocations_per_user = 1");
    let uri = server.uri("udp");
    let (code, all) = probe(&[&[uri.as_str()], &ALICE[..]].concat());
    assert_eq!(code, 0, "the one allocation talks to itself: {all}");
    assert!(
        all.contains("warning: there was no second allocation (refused with 486"),
        "{all}"
    );
    assert!(all.contains("6 of 6 arrive"), "{all}");
}

#[test]
fn a_limit_shows_in_the_burst() {
    let server = Server::start("[limits]\nbandwidth_per_allocation = \"500kbit\"");
    let uri = server.uri("udp");
    let arguments = [
        &[uri.as_str(), "--seconds", "1", "--rate", "8Mbit"],
        &ALICE[..],
    ]
    .concat();
    let (code, all) = probe(&arguments);
    assert_eq!(code, 0, "{all}");
    assert!(
        all.contains("warning: ") && all.contains("limits.bandwidth_per_allocation"),
        "{all}"
    );
}
