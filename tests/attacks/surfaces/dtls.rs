//! DTLS: floods of handshakes that nobody means, cookies of others, records that are none.

use std::net::{Ipv4Addr, UdpSocket};

use turnix::base::{Family, Transport};
use turnix::stream::certificates;
use turnix::turn::DropReason;

use super::super::client::Client;
use super::super::common::dtls::{DtlsLink, client_hello, hello_with_cookie};
use super::super::process::Process;
use super::super::server::{PATIENCE, Server, peer, quiet_address, until};
use super::answers;

/// Handshakes of one address at once, in one shard.
const HANDSHAKES_OF_ONE: usize = 16;

/// ClientHellos of a flood, and how many wait for their answer at once.
const COUNT: usize = 30_000;
const WINDOW: usize = 64;

fn socket(server: &Server, from: impl Into<std::net::IpAddr>) -> UdpSocket {
    let socket = peer(from);
    socket.connect(server.address(Family::V4)).unwrap();
    socket
}

fn sessions(server: &Server) -> u64 {
    server.snapshot().stream_connections[Transport::Dtls as usize]
}

#[test]
fn tens_of_thousands_of_client_hellos_leave_memory_as_it_was_and_get_less_than_they_bring() {
    let directory = tempfile::tempdir().unwrap();
    let now = turnix::base::Clock.now().unix_secs();
    let made = certificates::self_signed(&["127.0.0.1".to_owned()], now).unwrap();
    let pem = directory.path().join("tls.pem");
    std::fs::write(&pem, made.certificate_pem.clone() + made.key_pem.expose()).unwrap();
    let [certificate, key] =
        ["certificate", "key"].map(|name| format!("tls.{name}={}", pem.display()));
    let listen = r#"listen=[{ address = "127.0.0.1:0", protocols = ["udp", "dtls"] }]"#;
    let more = "[auth]\nusers = { alice = \"wonderland\" }\n";
    let set = ["--set", listen, "--set", &certificate, "--set", &key];
    let process = Process::start(directory, more, &set, &[]);
    let hello = client_hello();
    let socket = peer(Ipv4Addr::LOCALHOST);
    socket.connect(process.turn).unwrap();
    let mut buffer = [0; 2048];
    let mut flood = |count: usize| {
        let mut received = 0;
        for number in 0..count {
            let mut hello = hello.clone();
            // Another client each: its random.
            hello[30..38].copy_from_slice(&(number as u64).to_be_bytes());
            socket.send(&hello).unwrap();
            if number >= WINDOW {
                received += socket.recv(&mut buffer).expect("an answer");
            }
        }
        for _ in 0..WINDOW {
            received += socket.recv(&mut buffer).expect("an answer");
        }
        received
    };
    flood(2000);
    let before = process.resident();
    let received = flood(COUNT);
    let after = process.resident();
    assert!(received < COUNT * hello.len(), "{received} bytes");
    // Forty bytes each would be more.
    let grown = after.saturating_sub(before);
    assert!(grown < 1 << 20, "memory grew by {grown} bytes");
}

#[test]
fn a_cookie_is_good_for_nobody_else() {
    let server = Server::new();
    let theirs = hello_with_cookie(&socket(&server, Ipv4Addr::LOCALHOST));
    let before = server.dropped(DropReason::Dtls);
    let ours = socket(&server, quiet_address());
    ours.send(&theirs).unwrap();
    until("it is refused", || {
        server.dropped(DropReason::Dtls) == before + 1
    });
    ours.set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    assert!(
        ours.recv(&mut [0; 2048]).is_err(),
        "nothing is sent in their name"
    );
}

#[test]
fn handshakes_that_are_never_finished_leave_others_their_places() {
    let server = Server::new();
    let attacker = quiet_address();
    let mut client = Client::new(&server, Transport::Dtls, Family::V4);
    client.allocate();
    let before = server.dropped(DropReason::Dtls);
    // Two shards have so many places for one address each.
    let count = 4 * HANDSHAKES_OF_ONE;
    let sockets: Vec<_> = (0..count).map(|_| socket(&server, attacker)).collect();
    let mut begun = 0;
    for socket in &sockets {
        let hello = hello_with_cookie(socket);
        socket.send(&hello).unwrap();
    }
    until("some are refused", || {
        server.dropped(DropReason::Dtls) >= before + (count - 2 * HANDSHAKES_OF_ONE) as u64
    });
    for socket in &sockets {
        socket.set_nonblocking(true).unwrap();
        begun += usize::from(socket.recv(&mut [0; 2048]).is_ok());
    }
    assert!(begun > 0 && begun <= 2 * HANDSHAKES_OF_ONE, "{begun}");
    assert_eq!(sessions(&server), 1);
    // Somebody from elsewhere has room, and whoever was there notices nothing.
    DtlsLink::connect(socket(&server, quiet_address()), PATIENCE).unwrap();
    answers(&mut client);
}

#[test]
fn sessions_count_as_connections_of_their_address() {
    let server = Server::with(&["127.0.0.1:0"], &["limits.connections_per_address=3"]);
    let from = quiet_address();
    let all: Vec<_> = (0..3)
        .map(|_| DtlsLink::connect(socket(&server, from), PATIENCE).unwrap())
        .collect();
    let hello = |socket: &UdpSocket| {
        let hello = hello_with_cookie(socket);
        socket.send(&hello).unwrap();
    };
    let before = server.dropped(DropReason::Dtls);
    hello(&socket(&server, from));
    until("the fourth is refused", || {
        server.dropped(DropReason::Dtls) == before + 1
    });
    DtlsLink::connect(socket(&server, quiet_address()), PATIENCE).unwrap();
    drop(all);
}

#[test]
fn forged_and_broken_records_cost_a_call_nothing() {
    let server = Server::new();
    let mut client = Client::new(&server, Transport::Dtls, Family::V4);
    client.allocate();
    let raw = client.dtls().socket.try_clone().unwrap();
    let record = |kind: u8, epoch: u8, payload: &[u8]| {
        let mut bytes = vec![kind, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 1, 0];
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend(payload);
        bytes
    };
    for datagram in [
        // Alerts, close_notify among them, that nobody signed.
        record(21, 0, &[2, 40]),
        record(21, 0, &[1, 0]),
        record(21, 1, &[1, 0]),
        record(21, 1, &[7; 40]),
        record(20, 0, &[1]),
        record(23, 0, b"in clear"),
        record(23, 1, &[0; 64]),
        record(23, 9, &[0; 64]),
        record(22, 0, &[0; 30]),
        record(22, 1, &[1; 60]),
        record(63, 1, &[1; 60]),
        vec![22],
        vec![23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        client_hello(),
    ] {
        raw.send(&datagram).unwrap();
    }
    answers(&mut client);
    assert_eq!((server.live(), sessions(&server)), (1, 1));
}
