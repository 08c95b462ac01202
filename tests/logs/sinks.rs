//! The whole server: what leaves it by every sink, and how much.

use std::time::Duration;

use serde_json::{Value, json};

use super::binary::{Binary, address, http, http_as};
use super::client::Client;
use super::common::wire::{Request, channel_data};
use super::receiver::Receiver;
use super::server::{peer, receive, until};

const SECRET: &str = "a secret of the test";

fn setting(key: &str, value: impl std::fmt::Display) -> String {
    format!("{key}={value}")
}

#[test]
fn no_sink_shows_an_address_that_ip_privacy_hides() {
    for mode in ["full", "truncate", "hash", "off"] {
        let receiver = Receiver::start(&[], None);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("records");
        let mut server = Binary::start(&[
            setting("log.level", "trace"),
            setting("log.ip_privacy", mode),
            setting("records.interim", "1s"),
            setting("records.webhook", format!("http://{}/", receiver.address)),
            setting("records.webhook_secret", SECRET),
            setting("records.file", format!("'{}'", file.display())),
        ]);
        let (ip, peer_ip, scanner) = (address(77), address(88), address(99));
        let trace = |subject: Value| {
            let (status, body) = http(server.admin, "POST", "/api/v1/trace", &subject.to_string());
            assert_eq!(status, 201, "{body}");
        };
        trace(json!({"address": ip, "minutes": 5}));
        trace(json!({"user": "alice", "minutes": 5}));

        let mut client = server.client(ip);
        let name = client.local();
        let relayed = client.allocate();
        let friend = peer(peer_ip);
        client.bind(0x4000, friend.local_addr().unwrap());
        client.send_channel(0x4000, b"hello");
        receive(&friend);
        friend.send_to(b"back", relayed).unwrap();
        assert_eq!(client.expect_channel(0x4000), b"back");
        // Refused: a peer, a channel, a datagram of a stranger, one of nobody.
        let denied = client.ask_signed(Request::create_permission(&["10.99.188.177:5"
            .parse()
            .unwrap()]));
        assert_eq!(denied.code(), 403);
        client.send(&channel_data(0x4FFF, b"unbound"));
        peer(scanner).send_to(b"uninvited", relayed).unwrap();
        let socket = std::net::UdpSocket::bind((scanner, 0)).unwrap();
        socket.send_to(b"\xFFnonsense", server.address).unwrap();
        let connection =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        connection
            .bind(&std::net::SocketAddr::from((scanner, 0)).into())
            .unwrap();
        connection.connect(&server.address.into()).unwrap();
        connection.send(b"\xFFnonsense").unwrap();

        let allocations = http(server.admin, "GET", "/api/v1/allocations", "").1;
        let traces = http(server.admin, "GET", "/api/v1/trace", "").1;
        let search = |query: String| {
            let path = format!("/api/v1/allocations?{query}");
            http(server.admin, "GET", &path, "").1
        };
        // Nor is an address confirmed to whoever asks for it.
        let searched = [
            search(format!("address={ip}")),
            search(format!("address={name}")),
            search(format!("search={ip}")),
        ];
        let relayed_found = search(format!("address={relayed}"));
        let metrics = http(server.admin, "GET", "/metrics", "").1;
        until("an interim record", || !receiver.taken().is_empty());
        client.release();
        until("drops are logged", || {
            let log = server.log();
            log.contains("not_stun") && log.contains("connection refused")
        });
        server.stop();
        let log = server.log();
        let records = std::fs::read_to_string(&file).unwrap();
        let bodies: Vec<u8> = receiver
            .all()
            .into_iter()
            .flat_map(|one| one.body)
            .collect();
        let bodies = String::from_utf8(bodies).unwrap();

        let record = receiver.taken().pop().unwrap();
        let shown: Value = serde_json::from_str(&allocations).unwrap();
        assert_eq!(record["client"], shown[0]["client"], "the same everywhere");
        let kept = record["client"].as_str().unwrap();
        assert!(log.contains(kept), "{mode}: no {kept} in {log}");
        for line in [
            "peer refused by policy",
            "traced: dropped",
            "allocation ended",
            "\"session\":",
            "connection refused",
        ] {
            assert!(log.contains(line), "{mode}: no {line:?} in {log}");
        }
        // The server's own addresses are no secret.
        assert!(bodies.contains(&relayed.to_string()));
        let [_, b, c, _] = ip.octets();
        let expected = match mode {
            "full" => name.to_string(),
            "truncate" => format!("127.{b}.{c}.0:{}", name.port()),
            "off" => "-".to_owned(),
            _ => {
                let (hash, port) = kept.split_once(':').unwrap();
                assert_eq!(port, name.port().to_string());
                assert!(hash.starts_with("ip-") && hash.len() == 19, "{hash}");
                kept.to_owned()
            }
        };
        assert_eq!(kept, expected);
        let full = mode == "full";
        assert!(relayed_found.contains(&relayed.to_string()));
        for found in searched {
            assert_eq!(found != "[]", full, "{mode}: {found}");
        }
        for (sink, text) in [
            ("log", &log),
            ("webhook", &bodies),
            ("file", &records),
            ("allocations", &allocations),
            ("traces", &traces),
        ] {
            assert_eq!(
                text.contains(&ip.to_string()),
                full,
                "{mode}, {sink}: {text}"
            );
        }
        assert!(!metrics.contains(&ip.to_string()));
        for other in [
            peer_ip.to_string(),
            scanner.to_string(),
            "10.99.188.177".to_owned(),
        ] {
            assert_eq!(log.contains(&other), full, "{mode}, {other}: {log}");
            for text in [&bodies, &records, &allocations, &traces, &metrics] {
                assert!(!text.contains(&other), "{mode}: {text}");
            }
        }
    }
}

#[test]
fn a_trace_tells_of_one_user_whatever_the_level_is() {
    let server = Binary::start(&[setting("log.level", "error")]);
    let ask =
        |method: &str, body: Value| http(server.admin, method, "/api/v1/trace", &body.to_string());
    let (alice, bob) = (
        json!({"user": "alice", "minutes": 5}),
        json!({"user": "alice", "minutes": 0}),
    );
    assert_eq!(ask("POST", alice.clone()).0, 201);
    let use_it = |user: &str, password: &str| {
        let mut client: Client = server.client([127, 0, 0, 1]);
        client.login(user, password);
        client.allocate();
        client.permit("127.0.0.1:9".parse().unwrap());
        client.release();
    };
    use_it("bob", "builder");
    use_it("alice", "wonderland");
    until("alice's traces", || {
        server.log().contains("traced: allocation ended")
    });
    let log = server.log();
    assert!(log.contains("alice") && !log.contains("bob"), "{log}");
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&event["level"], &event["target"]),
            (&json!("DEBUG"), &json!("turnix::trace"))
        );
    }
    let methods = ["allocate", "create_permission", "refresh"];
    assert!(
        methods
            .iter()
            .all(|method| log.contains(&format!("\"method\":\"{method}\""))),
        "{log}"
    );

    let shown: Value = serde_json::from_str(&ask("GET", Value::Null).1).unwrap();
    assert_eq!(shown[0]["user"], "alice");
    assert!((1..=300).contains(&shown[0]["seconds_left"].as_u64().unwrap()));
    assert_eq!(ask("POST", bob.clone()).0, 204);
    assert_eq!(ask("POST", bob).0, 404);
    assert_eq!(ask("GET", Value::Null).1, "[]");
    // The answer to a request comes after the change has reached the shards.
    let before = server.log();
    use_it("alice", "wonderland");
    assert_eq!(server.log(), before);

    for (body, status) in [
        (json!({"user": "alice"}), 422),
        (json!({"minutes": 5}), 400),
        (
            json!({"user": "alice", "address": "192.0.2.1", "minutes": 5}),
            400,
        ),
        (json!({"user": "", "minutes": 5}), 400),
        (json!({"address": "nowhere", "minutes": 5}), 422),
        (
            json!({"user": "alice", "minutes": 5, "level": "trace"}),
            422,
        ),
        (json!({"user": "alice", "minutes": 100_000}), 400),
    ] {
        let (got, answer) = ask("POST", body.clone());
        assert_eq!(got, status, "{body}: {answer}");
        assert!(serde_json::from_str::<Value>(&answer).unwrap()["error"].is_string());
    }
    // What a page of another origin may send without asking first.
    let simple = http_as(
        server.admin,
        "POST",
        "/api/v1/trace",
        "text/plain",
        &alice.to_string(),
    );
    assert_eq!(simple.0, 415);
    for number in 0..16 {
        assert_eq!(
            ask("POST", json!({"user": number.to_string(), "minutes": 1})).0,
            201
        );
    }
    assert_eq!(
        ask("POST", json!({"user": "one too many", "minutes": 1})).0,
        409
    );
}

#[test]
fn a_flood_of_refused_requests_is_no_flood_of_lines() {
    const REQUESTS: usize = 1000;
    let mut server = Binary::start(&[
        setting("log.level", "debug"),
        setting("log.events_per_second", 2),
    ]);
    let mut client = server.client([127, 0, 0, 1]);
    for _ in 0..REQUESTS {
        // Loopback is not limited.
        assert_eq!(client.ask(&Request::allocate()).code(), 401);
    }
    std::thread::sleep(Duration::from_millis(10));
    server.stop();
    let log = server.log();
    let lines: Vec<Value> = (log.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let message = |line: &&Value| line["fields"]["message"] == "request refused";
    let written = lines.iter().filter(message).count();
    assert!((20..200).contains(&written), "{written}");
    let suppressed: u64 = (lines.iter())
        .filter(|line| line["fields"]["record"] == "request refused")
        .filter_map(|line| line["fields"]["suppressed"].as_u64())
        .sum();
    assert_eq!(suppressed as usize, REQUESTS - written, "{log}");
    assert!(lines.last().unwrap()["fields"]["message"] != "request refused");
    assert!(log.contains("SIGTERM"));
}

#[test]
fn a_journal_that_is_not_there_is_a_problem_where_it_was_asked_for_and_a_warning_elsewhere() {
    if std::path::Path::new(turnix::logging::journal::SOCKET).exists() {
        println!("SKIPPED: this host has a journal");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let run = |set: &str, journal_stream: &str| {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_turnix"))
            .args(["serve", "--set", set])
            // A start that fails once logging has started: nothing is bound.
            .args(["--set", "relay.addresses=192.0.2.1", "--set", "http.admin="])
            .args([
                "--set",
                "auth.secrets=s3cret",
                "--set",
                "listen=127.0.0.1:0",
            ])
            .args(["-c", "/dev/null"])
            .env_clear()
            .env("JOURNAL_STREAM", journal_stream)
            .stderr(log)
            .status()
            .unwrap();
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
        (status.code(), log)
    };
    let (code, log) = run("log.format=journald", "");
    assert_eq!(code, Some(2), "{log}");
    assert!(
        log.starts_with("error: host: log.format: /run/systemd"),
        "{log}"
    );
    let (_, log) = run("log.format=auto", "1:1");
    assert!(!log.contains("journal"), "{log}");
    // Opened anew it is the same file.
    let file = std::fs::metadata(directory.path().join("log")).unwrap();
    use std::os::unix::fs::MetadataExt;
    let (_, log) = run("log.format=auto", &format!("{}:{}", file.dev(), file.ino()));
    assert!(log.contains("the journal cannot be reached"), "{log}");
}
