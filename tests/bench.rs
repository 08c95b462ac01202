//! `turnix bench`, the built binary, against a server in this process: every direction over every transport.

use std::net::SocketAddr;
use std::process::{Command, Output};

use serde_json::Value;
use turnix::app::{self, Running};
use turnix::base::Clock;
use turnix::config::{Config, Sources};

const SECRET: &str = "looking-glass";

struct Server {
    running: Option<Running>,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let path = dir.path().display();
        let config = format!(
            r#"
realm = "turn.example.org"
[[listen]]
address = "127.0.0.1:0"
protocols = ["udp", "tcp", "tls"]
[relay]
addresses = ["127.0.0.1"]
[auth]
users = {{ alice = "wonderland" }}
secrets = ["{SECRET}"]
[tls]
certificate = "{path}/cert.pem"
key = "{path}/key.pem"
[http]
admin = ""
{more}
"#
        );
        let file = dir.path().join("turnix.toml");
        std::fs::write(&file, config).unwrap();
        let config = Config::load(&Sources {
            file: Some(file),
            base: None,
            environment: Vec::new(),
            set: Vec::new(),
        })
        .unwrap();
        let running = app::start(config).unwrap();
        let address = running.started.listeners[0].address;
        Self {
            running: Some(running),
            address,
            dir,
        }
    }

    fn bench(&self, transport: &str, arguments: &[&str]) -> Output {
        let port = self.address.port();
        let uri = match transport {
            "udp" => format!("turn:127.0.0.1:{port}?transport=udp"),
            "tcp" => format!("turn:127.0.0.1:{port}?transport=tcp"),
            _ => format!("turns:localhost:{port}?transport=tcp"),
        };
        Command::new(env!("CARGO_BIN_EXE_turnix"))
            .args(["bench", &uri, "--warmup", "0.2"])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Runs with alice's password and returns the JSON.
    fn json(&self, transport: &str, arguments: &[&str]) -> Value {
        let common = ["--user", "alice", "--password", "wonderland", "--json"];
        let output = self.bench(transport, &[&common[..], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{transport} {arguments:?}: {error}"
        );
        assert_eq!(error, "", "no warnings");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fails(&self, transport: &str, arguments: &[&str]) -> String {
        let output = self.bench(transport, arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

const LOOPBACK: &str = "[peers]\nallow = [\"loopback\"]";

fn is_clean(report: &Value) {
    assert!(report["delivered"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["delivered_total"], report["sent_total"], "{report}");
    for nothing in ["lost", "duplicates", "foreign", "unsent"] {
        assert_eq!(report[nothing], 0, "{nothing}: {report}");
    }
    // What arrives after it was given up counts as late, and a busy machine makes it wait that long.
    if report["stalls"] == 0 {
        assert_eq!(report["reordered"], 0, "{report}");
    }
    let latency = &report["latency"];
    let us = |name: &str| latency[name].as_f64().unwrap();
    assert!(
        0.0 < us("p50_us") && us("p50_us") <= us("p99_us"),
        "{report}"
    );
    assert!(us("p99_us") <= us("p99_9_us") && us("p99_9_us") <= us("max_us"));
    assert!(report["setup"]["allocations_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn every_direction_over_every_transport() {
    let server = Server::start(LOOPBACK);
    let ca = server.dir.path().join("cert.pem");
    for transport in ["udp", "tcp", "tls"] {
        for direction in ["to_peer", "to_client", "both", "echo", "hairpin"] {
            let mut arguments = vec!["--direction", direction, "--seconds", "0.5"];
            arguments.extend(["--allocations", "6", "--window", "12"]);
            if transport == "tls" {
                arguments.extend(["--ca", ca.to_str().unwrap()]);
            }
            let report = server.json(transport, &arguments);
            is_clean(&report);
            assert_eq!(report["direction"], direction);
            assert_eq!(report["transport"], transport);
            assert_eq!(report["server"], Value::Null);
        }
    }
    // Every run has released what it allocated, so that the next one finds the quota free.
}

#[test]
fn a_rate_is_held_and_a_process_is_watched() {
    let server = Server::start(LOOPBACK);
    let pid = std::process::id().to_string();
    let arguments = [
        "--allocations",
        "4",
        "--rate",
        "500",
        "--seconds",
        "1",
        "--pid",
        &pid,
        "--size",
        "1001",
    ];
    let report = server.json("udp", &arguments);
    is_clean(&report);
    let rate = report["packets_per_second"].as_f64().unwrap();
    // A busy machine may hold it up, but nothing makes it faster than it catches up.
    assert!(0.0 < rate && rate <= 600.0, "{report}");
    assert!(report["server"]["cpu_ns_per_packet"].as_f64().unwrap() > 0.0);
    assert!(report["server"]["resident_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(report["latency"]["kind"], "round_trip");
    assert_eq!(report["generator"]["limited"], false);
}

#[test]
fn indications_bursts_segments_and_shared_peers() {
    let server = Server::start(LOOPBACK);
    for transport in ["udp", "tcp"] {
        for more in [
            &["--indications", "--direction", "both", "--size", "33"][..],
            &[
                "--burst",
                "8",
                "--gso",
                "--size",
                "1200",
                "--direction",
                "both",
            ],
            &["--peers", "1", "--direction", "both"],
            &["--sources", "3", "--peer-address", "127.0.0.9"],
        ] {
            let common = ["--allocations", "6", "--window", "16", "--seconds", "0.3"];
            is_clean(&server.json(transport, &[&common[..], more].concat()));
        }
    }
}

#[test]
fn clients_that_share_sockets() {
    let server = Server::start(LOOPBACK);
    for direction in ["to_peer", "to_client", "both", "echo", "hairpin"] {
        // Three sockets, the last of them with two clients only.
        for more in [&["--peers", "1"][..], &["--peers", "3", "--indications"]] {
            let common = ["--allocations", "8", "--sources", "3", "--seconds", "0.3"];
            let arguments = [&common[..], &["--direction", direction], more].concat();
            is_clean(&server.json("udp", &arguments));
        }
    }
    // More addresses than clients, and a rate.
    let sparse = ["--allocations", "2", "--sources", "250", "--rate", "400"];
    is_clean(&server.json("udp", &[&sparse[..], &["--seconds", "0.5"]].concat()));
}

#[test]
fn sharing_is_for_loopback_of_ipv4() {
    let output = Command::new(env!("CARGO_BIN_EXE_turnix"))
        .args(["bench", "turn:[::1]:3478", "--sources", "2"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("--sources") && error.contains("127.0.0.1"),
        "{error}"
    );
}

#[test]
fn trains_are_counted_datagram_by_datagram() {
    let server = Server::start(LOOPBACK);
    for direction in ["to_peer", "to_client", "both", "echo", "hairpin"] {
        for sources in ["1", "4"] {
            let common = ["--allocations", "4", "--sources", sources, "--peers", "1"];
            let trains = ["--gso", "--gro", "--burst", "16", "--window", "64"];
            let more = [
                "--direction",
                direction,
                "--seconds",
                "0.3",
                "--size",
                "301",
            ];
            let report = server.json("udp", &[&common[..], &trains, &more].concat());
            is_clean(&report);
            assert_eq!(report["gro"], true);
        }
    }
}

#[test]
fn credentials_from_the_secret() {
    let server = Server::start(LOOPBACK);
    let output = server.bench(
        "udp",
        &[
            "--secret",
            SECRET,
            "--user",
            "carol",
            "--seconds",
            "0.2",
            "--allocations",
            "2",
        ],
    );
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "target",
        "set-up",
        "delivered",
        "lost",
        "latency",
        "generator",
    ] {
        assert!(
            text.contains(&format!("\n{line} ")) || text.starts_with(line),
            "{text}"
        );
    }
}

#[test]
fn failures_say_what_to_do() {
    let server = Server::start("[limits]\nallocations_per_user = 3");
    let alice = ["--user", "alice", "--password", "wonderland"];
    let with = |more: &[&'static str]| [&alice[..], more].concat();
    let error = server.fails("udp", &["--user", "alice", "--password", "wrong"]);
    assert!(
        error.contains("401") && error.contains("--password"),
        "{error}"
    );
    let error = server.fails("udp", &[]);
    assert!(
        error.contains("401") && error.contains("--secret"),
        "{error}"
    );
    // Not 127.0.0.1: that is where the server relays from, and its own relayed addresses are always permitted.
    let elsewhere = ["--allocations", "2", "--peer-address", "127.0.0.9"];
    let error = server.fails("udp", &with(&elsewhere));
    assert!(
        error.contains("403") && error.contains("peers.allow"),
        "{error}"
    );
    let error = server.fails("udp", &with(&["--allocations", "9"]));
    assert!(
        error.contains("486") && error.contains("--allocations"),
        "{error}"
    );
    let error = server.fails("tls", &with(&[]));
    assert!(error.contains("--insecure"), "{error}");
    let error = server.fails(
        "udp",
        &with(&["--direction", "hairpin", "--allocations", "3"]),
    );
    assert!(error.contains("even"), "{error}");
    // What was allocated before a failure was released: the quota of three is free again.
    let hairpin = [
        "--direction",
        "hairpin",
        "--allocations",
        "2",
        "--seconds",
        "0.2",
    ];
    is_clean(&server.json("udp", &hairpin));
}

#[test]
fn nobody_there() {
    // An address of its own, so that no other test takes the port meanwhile.
    let unused = std::net::UdpSocket::bind("127.0.0.6:0").unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    for transport in ["udp", "tcp"] {
        let begin = Clock.now().mono;
        let output = Command::new(env!("CARGO_BIN_EXE_turnix"))
            .args([
                "bench",
                &format!("turn:127.0.0.6:{port}?transport={transport}"),
            ])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            error.contains(&format!("127.0.0.6:{port}")) && error.contains("listen"),
            "{error}"
        );
        // Without being told, the generator waits for eight seconds.
        let elapsed = Clock.now().mono - begin;
        assert!(elapsed.as_secs() < 5, "{transport}");
    }
}
