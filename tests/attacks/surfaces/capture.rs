//! Captures: who gets them, and what a reader can cost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::client::Client;
use crate::pcapng::File;
use crate::server::{PATIENCE, Server, peer, receive, until};

use super::{connect, exchange, metric};

fn request(to: SocketAddr, id: &str, query: &str, headers: &str) -> Vec<u8> {
    let path = format!("/api/v1/allocations/{id}/capture{query}");
    format!("GET {path} HTTP/1.0\r\nHost: {to}\r\n{headers}\r\n").into_bytes()
}

/// A capture that has begun: something of it has come.
fn begin(server: &Server, id: &str, query: &str) -> (TcpStream, Vec<u8>) {
    let mut connection = connect(server.admin());
    let asked = request(server.admin(), id, query, "");
    connection.write_all(&asked).unwrap();
    let mut said = vec![0; 4096];
    let length = connection.read(&mut said).unwrap();
    said.truncate(length);
    assert!(
        said.starts_with(b"HTTP/1.0 200"),
        "{}",
        String::from_utf8_lossy(&said)
    );
    (connection, said)
}

fn status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_default()
}

#[test]
fn packets_are_for_whoever_has_the_token() {
    let token = "down-the-rabbit-hole-and-further";
    let server = Server::with(
        &["127.0.0.1:0"],
        &["http.admin='127.0.0.1:0'", &format!("http.token='{token}'")],
    );
    let mut client = Client::udp(&server);
    let id = server.allocation(client.allocate()).name;
    let to = server.admin();
    let ask = |headers: &str| status(&exchange(to, &request(to, &id, "?seconds=1", headers)));
    assert_eq!(ask(""), 401);
    assert_eq!(
        ask("Authorization: Bearer down-the-rabbit-hole-and-furthes\r\n"),
        401
    );
    let shown = format!("Authorization: Bearer {token}\r\n");
    // Nor for a page of another origin, or one that a link leads from.
    assert_eq!(
        ask(&format!("{shown}Origin: https://evil.example\r\n")),
        403
    );
    let link = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Dest: document\r\n";
    assert_eq!(ask(&format!("{shown}{link}")), 403);
    assert_eq!(ask(&shown), 200);
}

#[test]
fn a_handful_of_captures_runs_at_once_and_who_leaves_makes_room() {
    let server = Server::with(&["127.0.0.1:0"], &["http.admin='127.0.0.1:0'"]);
    let mut client = Client::udp(&server);
    let id = server.allocation(client.allocate()).name;
    let to = server.admin();
    let mut running: Vec<_> = (0..4)
        .map(|_| begin(&server, &id, "?seconds=600"))
        .collect();
    let refused = exchange(to, &request(to, &id, "", ""));
    assert_eq!(status(&refused), 429);
    assert!(String::from_utf8_lossy(&refused).contains("4 captures run already"));
    // It says nothing and nothing is relayed: its place is free all the same.
    running.pop();
    until("room for another one", || {
        let mut connection = connect(to);
        connection
            .write_all(&request(to, &id, "?seconds=600", ""))
            .unwrap();
        let mut said = [0; 12];
        connection.read_exact(&mut said).unwrap();
        match &said[9..] {
            b"200" => true,
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(20));
                false
            }
        }
    });
    assert!(metric(&server, "turn_captures_total{payload=\"false\"}") >= 5.0);
}

#[test]
fn a_reader_that_does_not_read_costs_packets_of_its_capture_alone() {
    const PACKETS: usize = 16_000;
    const LENGTH: usize = 1200;
    let server = Server::with(&["127.0.0.1:0"], &["http.admin='127.0.0.1:0'"]);
    let mut client = Client::udp(&server);
    let relayed = client.allocate();
    let peer = peer(relayed.ip());
    client.bind(0x4000, peer.local_addr().unwrap());
    let id = server.allocation(relayed).name;
    let (mut reader, mut said) = begin(&server, &id, "?seconds=600&payload=true");
    reader.set_read_timeout(Some(PATIENCE)).unwrap();
    for count in 0..PACKETS {
        client.send_channel(0x4000, &[1; LENGTH]);
        // So that no buffer on the way runs over: whatever is missing then the capture has cost.
        if count % 16 == 15 {
            for _ in 0..16 {
                assert_eq!(receive(&peer).0.len(), LENGTH);
            }
        }
    }
    client.release();
    reader.read_to_end(&mut said).unwrap();
    let head = said
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let body = &said[head + 4..];
    let file = File::read(body);
    let counted =
        |of: fn(&crate::pcapng::Statistics) -> u64| -> u64 { file.statistics.iter().map(of).sum() };
    // Both legs, and the Refresh with its answer.
    assert_eq!(counted(|one| one.received), 2 * PACKETS as u64 + 2);
    let lost = counted(|one| one.dropped);
    assert_eq!(file.packets.len() as u64 + lost, 2 * PACKETS as u64 + 2);
    // What waited: 4 MiB of packets, some chunks, and what the kernel takes for a connection, which is no more than
    // this on any host.
    assert!(
        lost > PACKETS as u64 / 4 && body.len() < 24 << 20,
        "{lost} {}",
        body.len()
    );
}
