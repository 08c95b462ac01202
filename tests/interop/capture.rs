//! Captures, as `turnix capture` writes them, in tshark and capinfos of Wireshark: a call of coturn's load generator, and RTP
//! of the `turn` crate's client.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

use crate::server::{Options, PASSWORD, REALM, Server, USER, get, is_free, is_stand_in};
use crate::tools::{Process, find_tool, one_at_a_time, run, wait_for};

const TIMEOUT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_secs(20);

/// What `turnix capture` does with `arguments`, its output in `log`.
fn capture(server: &Server, arguments: &[&str], log: &str) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
    command
        .args(["capture", "--admin"])
        .arg(format!("http://127.0.0.1:{}", server.admin))
        .args(arguments)
        .current_dir(server.dir());
    Process::start(&mut command, server.dir().join(log))
}

/// What it said, once it has ended.
#[track_caller]
fn ended(mut process: Process, code: i32) -> String {
    let status = wait_for("the end of a capture", TIMEOUT, || process.ended());
    assert_eq!(status.code(), Some(code), "{}", process.output());
    process.output()
}

/// The id of the first live allocation that fits.
fn allocation(server: &Server, fits: impl Fn(&Value) -> bool) -> String {
    wait_for("an allocation", TIMEOUT, || {
        let listed = get(server.admin, "/api/v1/allocations")?.body;
        let listed: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
        let found = listed.into_iter().find(&fits)?;
        Some(found["id"].as_str().expect("an id").to_owned())
    })
}

/// The lines that tshark prints for `arguments` about `file`, in which nothing may be malformed.
#[track_caller]
fn tshark(file: &Path, arguments: &[&str]) -> Vec<String> {
    let tell = |arguments: &[&str]| {
        let output = Command::new("tshark")
            .arg("-r")
            .arg(file)
            .args(arguments)
            .output()
            .expect("tshark runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let complaint = (errors.lines()).find(|line| !line.starts_with("Running as user"));
        assert!(output.status.success() && complaint.is_none(), "{errors}");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let decode: Vec<&str> = (arguments.windows(2))
        .filter(|pair| pair[0] == "-d")
        .flatten()
        .copied()
        .collect();
    let malformed = tell(&[&decode[..], &["-Y", "_ws.malformed"]].concat());
    assert!(malformed.is_empty(), "{malformed:?}");
    tell(arguments)
}

#[test]
fn wireshark_reads_a_call_and_no_packet_of_it_is_missing() {
    let test = "capture";
    let tools = ["tshark", "capinfos", "turnutils_uclient", "turnutils_peer"];
    if is_stand_in() || tools.iter().any(|tool| find_tool(test, tool).is_none()) {
        return;
    }
    let _turn = one_at_a_time();
    let server = Server::start(Options {
        loopback_peers: true,
        ..Options::default()
    });
    let echo_port = server.port + 15;
    assert!(
        is_free(echo_port) && is_free(echo_port + 1),
        "port of the echo peer"
    );
    let mut echo = Command::new("turnutils_peer");
    echo.args(["-L", "127.0.0.1", "-p", &echo_port.to_string()]);
    let _echo = Process::start(&mut echo, server.dir().join("peer.log"));
    let messages = 100_u64;
    let (port, echo_port) = (server.port.to_string(), echo_port.to_string());
    let mut uclient = Command::new("turnutils_uclient");
    uclient
        .args([
            "-u", USER, "-w", PASSWORD, "-X", "-c", "-m", "1", "-l", "200",
        ])
        .args(["-e", "127.0.0.1", "-r", &echo_port, "-p", &port])
        .args(["-n", &messages.to_string(), "-z", "20", "127.0.0.1"]);
    let mut call = Process::start(&mut uclient, server.dir().join("uclient.log"));
    // It makes another one before, to look around.
    let id = allocation(&server, |one| one["permissions"] != 0);
    let running = capture(&server, &[&id, "--seconds", "60", "--json"], "capture.log");
    let relayed = |direction| {
        let metrics = server.metrics().expect("metrics");
        let relayed = [("direction", direction), ("path", "kernel")];
        metrics.sum("turn_relayed_packets_total", &relayed) as u64
    };
    server.wait_for_metrics("the capture has begun", |metrics| {
        metrics.sum("turn_captures_total", &[("payload", "false")]) == 1.0
    });
    // What may have passed before.
    let before = relayed("to_peer");
    // The client gives its allocation back, which ends the capture.
    let said: Value = serde_json::from_str(&ended(running, 0)).expect("JSON");
    wait_for("the end of the call", TIMEOUT, || call.ended());
    assert_eq!(
        (relayed("to_peer"), relayed("to_client")),
        (messages, messages)
    );
    let file = server.dir().join(format!("turnix-{id}.pcapng"));
    assert_eq!(
        (&said["lost"], &said["complete"]),
        (&0.into(), &true.into())
    );

    // Ports other than 3478 have to be told.
    let decode = format!("udp.port=={port},stun");
    let fields = [
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "_ws.col.Protocol",
        "-e",
        "_ws.col.Info",
    ];
    let lines = tshark(&file, &[&["-d", &decode], &fields[..]].concat());
    assert_eq!(said["packets"], lines.len());
    let count = |wanted: &str| lines.iter().filter(|line| line.starts_with(wanted)).count() as u64;
    let framed = count("client-udp\tSTUN\tChannelData TURN Message");
    let plain = count("peers\t");
    assert!(
        framed >= 2 * (messages - before) && framed <= 2 * messages,
        "{framed} {before}"
    );
    assert_eq!(plain, framed);
    assert_eq!(
        count("client-udp\tSTUN\tRefresh Request lifetime: 0"),
        1,
        "{lines:?}"
    );
    assert_eq!(
        count("client-udp\tSTUN\tRefresh Success Response lifetime: 0"),
        1
    );
    let truth = Command::new("capinfos")
        .arg(&file)
        .output()
        .expect("capinfos");
    let truth = String::from_utf8_lossy(&truth.stdout).into_owned();
    for line in [
        "File timestamp precision:  nanoseconds (9)",
        "Strict time order:   True",
        "Name = client-udp",
        "Name = peers",
    ] {
        assert!(truth.contains(line), "{line}: {truth}");
    }
    let log = server.log();
    for event in ["a capture of packets begins", "a capture of packets ends"] {
        let line = log
            .lines()
            .find(|line| line.contains(event))
            .expect("an audit event");
        for part in [&id, USER, "127.0.0.1"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

/// Sends `count` packets of RTP to the peer at `peer` and back.
async fn talk(server: &Server, peer: Ipv4Addr, count: u16) {
    let peer = UdpSocket::bind((peer, 0)).await.expect("peer");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port)).to_string();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("client");
    let client = Client::new(ClientConfig {
        stun_serv_addr: address.clone(),
        turn_serv_addr: address,
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
        realm: REALM.to_owned(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::new(socket),
        vnet: None,
    });
    let client = client.await.expect("client");
    client.listen().await.expect("client");
    let relay = timeout(STEP, client.allocate())
        .await
        .expect("in time")
        .expect("Allocate");
    let relayed = relay.local_addr().expect("relayed address");
    let port = peer.local_addr().expect("peer").port();
    let file = server.dir().join("rtp.pcapng");
    let running = capture(
        server,
        &["--user", USER, "-o", file.to_str().expect("a path")],
        "capture.log",
    );
    server.wait_for_metrics("the capture has begun", |metrics| {
        metrics.sum("turn_captures_total", &[("payload", "false")]) == 1.0
    });
    let mut buffer = [0; 2048];
    for sequence in 0..count {
        let [high, low] = sequence.to_be_bytes();
        let mut rtp = vec![
            0x80, 0x6F, high, low, 0, 0, high, low, 0xC0, 0xFF, 0xEE, 0x11,
        ];
        rtp.extend([b's'; 160]);
        timeout(STEP, relay.send_to(&rtp, peer.local_addr().expect("peer")))
            .await
            .expect("in time")
            .expect("sent");
        let (length, _) = timeout(STEP, peer.recv_from(&mut buffer))
            .await
            .expect("in time")
            .expect("at the peer");
        peer.send_to(&buffer[..length], relayed)
            .await
            .expect("sent back");
        timeout(STEP, relay.recv_from(&mut buffer))
            .await
            .expect("in time")
            .expect("relayed");
    }
    timeout(STEP, relay.close())
        .await
        .expect("in time")
        .expect("Refresh with lifetime 0");
    let said = ended(running, 0);
    assert!(said.contains("read it with: wireshark"), "{said}");
    check_rtp(&file, port, count);
}

fn check_rtp(file: &Path, port: u16, count: u16) {
    let decode = format!("udp.port=={port},rtp");
    let fields = [
        "-Y",
        "rtp",
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "rtp.seq",
        "-e",
        "rtp.ssrc",
    ];
    let lines = tshark(file, &[&["-d", &decode], &fields[..]].concat());
    let expected: Vec<_> = (0..count)
        .flat_map(|sequence| {
            let line = format!("peers\t{sequence}\t0xc0ffee11");
            [line.clone(), line]
        })
        .collect();
    assert_eq!(lines, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn wireshark_reads_rtp() {
    if is_stand_in() || find_tool("capture", "tshark").is_none() {
        return;
    }
    let server = Server::start(Options {
        loopback_peers: true,
        ..Options::default()
    });
    talk(&server, Ipv4Addr::LOCALHOST, 30).await;
    let file = std::fs::read(server.dir().join("rtp.pcapng")).expect("the file");
    assert!(!file.windows(8).any(|part| part == b"ssssssss"), "payload");
    assert!(file.windows(4).any(|part| part == [127, 0, 0, 1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_addresses_are_hidden_here_too() {
    if is_stand_in() || find_tool("capture", "tshark").is_none() {
        return;
    }
    let server = Server::start(Options {
        loopback_peers: true,
        privacy: Some("hash"),
        ..Options::default()
    });
    let peer = Ipv4Addr::new(127, 9, 8, 7);
    talk(&server, peer, 5).await;
    let path = server.dir().join("rtp.pcapng");
    let file = std::fs::read(&path).expect("the file");
    let octets = peer.octets();
    let plain = file.windows(4).any(|part| part == octets);
    let xored: Vec<u8> = (octets.iter().zip([0x21, 0x12, 0xA4, 0x42]))
        .map(|(a, b)| a ^ b)
        .collect();
    let masked = file.windows(4).any(|part| part == xored);
    assert!(!plain && !masked, "the address of a peer, {plain} {masked}");
    // One pseudonym for the address, in headers and in XOR-PEER-ADDRESS.
    let decode = format!("udp.port=={},stun", server.port);
    let told = tshark(
        &path,
        &[
            "-d",
            &decode,
            "-Y",
            "stun.att.ipv4-xord",
            "-T",
            "fields",
            "-e",
            "stun.att.ipv4",
        ],
    );
    let seen = tshark(
        &path,
        &[
            "-Y",
            "frame.interface_id == 1 && frame.p2p_dir == 1",
            "-T",
            "fields",
            "-e",
            "ip.src",
        ],
    );
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|ip| *ip == seen[0]), "{seen:?}");
    let first: u8 = seen[0]
        .split('.')
        .next()
        .and_then(|octet| octet.parse().ok())
        .expect("IPv4");
    assert!(first >= 240, "{seen:?}");
    assert!(told.contains(&seen[0]), "{told:?} {seen:?}");
}

#[test]
fn what_cannot_be_captured() {
    if is_stand_in() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(Options {
        privacy: Some("truncate"),
        ..Options::default()
    });
    let said = |arguments: &[&str]| ended(capture(&server, arguments, "capture.log"), 1);
    assert!(said(&["0-0-1"]).contains("no live allocation is named 0-0-1"));
    assert!(said(&["--user", "nobody"]).contains("nobody has no live allocation"));
    let whole = said(&["0-0-1", "--payload"]);
    assert!(whole.contains("log.ip_privacy hides"), "{whole}");
    assert!(
        !server.dir().join("turnix-0-0-1.pcapng").exists(),
        "no file of nothing"
    );
    // On a terminal, which `script` makes.
    if find_tool("capture", "script").is_some() {
        let line = format!("{} capture 0-0-1 -o -", env!("CARGO_BIN_EXE_turnix"));
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]);
        let (status, output) = run(&mut command, dir.path(), TIMEOUT);
        assert_eq!(status.and_then(|status| status.code()), Some(1), "{output}");
        assert!(output.contains("no text for a terminal"), "{output}");
    }
}
