//! Servers without fault, and how the probe says so.

use std::process::Command;

use serde_json::Value;

use super::server::{ALICE, SECRET, Server, ended, probe, text, turnix, until};

fn json(arguments: &[&str]) -> Value {
    let output = turnix(&[&["probe", "--json"], arguments].concat())
        .output()
        .unwrap();
    let (code, all) = ended(&output);
    assert_eq!(code, 0, "{all}");
    assert!(output.stderr.is_empty(), "{all}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_server_without_fault_over_every_transport() {
    let server = Server::start("");
    let ca = server.certificate_file();
    let ca = ca.to_str().unwrap();
    let uris = ["udp", "tcp", "tls"].map(|transport| server.uri(transport));
    let uris = [&uris[0], &uris[1], &uris[2]].map(String::as_str);
    let options = [&ALICE[..], &["--ca", ca, "--seconds", "0.3"]].concat();
    let found = json(&[&uris[..], &options[..]].concat());
    assert_eq!(found["fault"], false);
    let probes = found["probes"].as_array().unwrap();
    assert_eq!(probes.len(), 3);
    for (one, transport) in probes.iter().zip(["udp", "tcp", "tls"]) {
        assert_eq!(one["transport"], transport);
        assert_eq!(one["verdicts"], Value::Array(vec![]), "{one:#}");
        assert_eq!(one["realm"], "turn.example.org");
        assert_eq!(one["mapped"], one["local"], "no NAT on loopback");
        assert_eq!(one["lifetime_secs"], 600);
        assert_eq!(one["released"], true);
        for (phase, sent, bytes) in [
            ("indications", 6, 100),
            ("channel_data", 6, 100),
            ("latency", 50, 160),
            ("large", 6, 1200),
            ("burst", 90, 1000),
        ] {
            let phase = &one[phase];
            assert_eq!(phase["sent"], sent, "{phase}");
            assert_eq!(phase["bytes"], bytes, "{phase}");
            let rtt = |name: &str| phase["rtt"][name].as_f64().unwrap();
            assert!(
                rtt("p50_ms") > 0.0 && rtt("p50_ms") <= rtt("p99_ms"),
                "{phase}"
            );
        }
        let names = &one["certificate"]["names"];
        assert_eq!(names.is_array(), transport == "tls", "{names}");
    }
    assert!(server.allocations().is_empty(), "everything was given back");
}

#[test]
fn lines_for_people() {
    let server = Server::start("");
    let uri = server.uri("udp");
    let (code, all) = probe(&[&[uri.as_str()], &ALICE[..]].concat());
    assert_eq!(code, 0, "{all}");
    let steps: Vec<&str> = all
        .lines()
        .filter_map(|line| line.strip_prefix("  ok    "))
        .collect();
    for (step, line) in [
        "resolve",
        "connect",
        "binding",
        "allocate",
        "second client",
        "permission",
        "indications",
        "channel",
        "channel data",
        "latency",
        "1200 bytes",
        "release",
    ]
    .iter()
    .zip(&steps)
    {
        assert!(line.starts_with(step), "{step}: {all}");
    }
    assert!(
        all.ends_with("no fault: the server answers, allocates and relays\n"),
        "{all}"
    );
    assert!(
        !all.contains('\u{1b}') && !all.contains('\r'),
        "plain where it is piped: {all:?}"
    );
}

#[test]
fn ipv6_and_stun() {
    let server = Server::with("::1", r#""udp", "tcp", "tls""#, "");
    let uri = server.uri("udp");
    let stun = format!("stun:[::1]:{}", server.address.port());
    let (code, all) = probe(&[&[uri.as_str(), stun.as_str()], &ALICE[..]].concat());
    assert_eq!(code, 0, "{all}");
    assert!(all.contains("no fault: the server answers\n"), "{all}");
    // Of several, a table.
    let table = all.rsplit("\n\n").next().unwrap();
    assert_eq!(table.lines().count(), 2, "{all}");
    assert!(
        table.lines().all(|line| line.starts_with("ok    ")),
        "{all}"
    );
}

#[test]
fn credentials_come_from_wherever_they_are() {
    let server = Server::start("");
    let uri = server.uri("udp");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let file = file.to_str().unwrap();
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command: Command =
            turnix(&[&["probe", "--seconds", "0", &uri], arguments].concat());
        ended(&command.envs(environment.iter().copied()).output().unwrap())
    };
    type Environment<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&[&str], Environment<'_>)] = &[
        (&["--secret", SECRET], &[]),
        (&["--secret", SECRET, "--user", "carol"], &[]),
        (&["--secret-file", file], &[]),
        (&[], &[("TURNIX_AUTH__SECRETS", SECRET)]),
        (
            &[],
            &[
                ("TURN_USERNAME", "alice"),
                ("TURN_CREDENTIAL", "wonderland"),
            ],
        ),
        (&["--user", "alice"], &[("TURN_CREDENTIAL", "wonderland")]),
        // The command line comes first.
        (
            &ALICE,
            &[
                ("TURNIX_AUTH__SECRETS", "other"),
                ("TURN_CREDENTIAL", "other"),
            ],
        ),
    ];
    // Each takes a second or more, and most of it is waiting.
    std::thread::scope(|scope| {
        for (arguments, environment) in cases {
            let run = &run;
            scope.spawn(move || {
                let (code, all) = run(arguments, environment);
                assert_eq!(code, 0, "{arguments:?} {environment:?}: {all}");
                assert!(all.contains("no fault"), "{all}");
                assert!(
                    !all.contains(SECRET) && !all.contains("wonderland"),
                    "{all}"
                );
            });
        }
    });
    // Nothing to ask with: that it answers is something.
    let (code, all) = run(&[], &[]);
    assert_eq!(code, 0, "{all}");
    assert!(
        all.contains("warning: the server wants credentials of realm \"turn.example.org\""),
        "{all}"
    );
    let (code, all) = run(&["--user", "alice"], &[]);
    assert_eq!(code, 1, "{all}");
    assert!(all.contains("--password"), "{all}");
}

#[test]
fn what_cannot_be_asked_for() {
    for (arguments, wanted) in [
        (&["example.org"][..], "expected stun:host"),
        (&["turns:example.org?transport=udp"], "DTLS"),
        (&["turn:a", "--rate", "1Gbit"], "8kbit to 100Mbit"),
        (&["turn:a", "--seconds", "31"], "0 to 30"),
        (&["turn:a", "--timeout", "1h"], "1s to 60s"),
        (&["turn:a", "--password", "x"], "--user"),
        (&["turns:a", "--ca", "/nonexistent"], "/nonexistent"),
        (&[], "URI"),
    ] {
        let output = turnix(&[&["probe"], arguments].concat()).output().unwrap();
        let (code, all) = ended(&output);
        assert!(code == 1 || code == 2, "{arguments:?}: {code} {all}");
        assert!(all.contains(wanted), "{arguments:?}: {all}");
    }
}

#[test]
fn an_interrupted_probe_gives_back_what_it_has() {
    let server = Server::start("");
    let uri = server.uri("udp");
    let arguments = [&["probe", &uri, "--seconds", "30"], &ALICE[..]].concat();
    let child = turnix(&arguments).spawn().unwrap();
    until("two allocations", || {
        (server.allocations().len() == 2).then_some(())
    });
    let signalled = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(signalled.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("interrupted"),
        "{}",
        text(&output.stderr)
    );
    assert!(server.allocations().is_empty(), "they were given back");
}

#[test]
fn help_reads_well() {
    for (command, words) in [
        (
            "probe",
            &["URI", "--secret-file", "--insecure", "Ends with 3"][..],
        ),
        ("top", &["--once", "--sort", "q quits"]),
        ("trace", &["USER|ADDRESS", "--for", "--stop"]),
    ] {
        let output = turnix(&["help", command]).output().unwrap();
        let help = text(&output.stdout);
        for word in words {
            assert!(help.contains(word), "{command}: {word} in {help}");
        }
    }
}
