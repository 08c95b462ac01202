//! Captures of the running server: what is in them, and when they end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use turnix::base::{Family, Transport};

use super::client::Client;
use super::common::world::USER;
use super::pcapng::{File, Packet};
use super::server::{BOTH, PATIENCE, Server, peer, quiet_address, receive};

const CLIENT: usize = 0;
const PEER: usize = 1;

/// A capture that has begun.
struct Running {
    connection: TcpStream,
    file: Vec<u8>,
}

/// Status, body so far, and the connection that more of it comes by.
fn ask(server: &Server, id: &str, query: &str) -> (u16, Vec<u8>, TcpStream) {
    let to = server.admin();
    let mut connection = TcpStream::connect(to).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    // In version 1.0 a body has no chunks.
    let path = format!("/api/v1/allocations/{id}/capture{query}");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut said = Vec::new();
    let body = loop {
        let mut some = [0; 4096];
        let length = connection.read(&mut some).unwrap();
        said.extend_from_slice(&some[..length]);
        let head = said.windows(4).position(|four| four == b"\r\n\r\n");
        match head {
            Some(head) if said.len() > head + 4 => break said.split_off(head + 4),
            _ => assert!(length > 0, "{}", String::from_utf8_lossy(&said)),
        }
    };
    let head = String::from_utf8(said).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 200 {
        assert!(
            head.contains("content-type: application/x-pcapng"),
            "{head}"
        );
        assert!(
            head.contains(&format!("filename=\"turnix-{id}.pcapng\"")),
            "{head}"
        );
    }
    (status, body, connection)
}

impl Running {
    /// Packets are taken from now on.
    fn begin(server: &Server, id: &str, query: &str) -> Self {
        let (status, file, connection) = ask(server, id, query);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&file));
        Self { connection, file }
    }

    /// All of it, once it has ended.
    fn end(mut self) -> File {
        self.connection.read_to_end(&mut self.file).unwrap();
        let file = File::read(&self.file);
        assert_eq!(file.statistics.len(), 2, "it ended in order");
        for counted in &file.statistics {
            let packets = file.packets.iter();
            let written = packets
                .filter(|packet| packet.interface == counted.interface)
                .count();
            assert_eq!(counted.received - counted.dropped, written as u64);
        }
        file
    }
}

fn server() -> Server {
    Server::with(BOTH, &["http.admin='127.0.0.1:0'"])
}

/// What RTP says in the clear, then what nobody may see.
fn rtp(sequence: u16) -> Vec<u8> {
    let mut packet = vec![0x80, 0x6F];
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0xC0, 0xFF, 0xEE, 0x11]);
    packet.extend([b's', b'e', b'c', b'r', b'e', b't'].repeat(20));
    packet
}

/// Of a STUN message, its type; else the length.
fn kind(packet: &Packet) -> String {
    let (leg, way) = (
        ["client", "peer"][packet.interface],
        if packet.inbound { "in" } else { "out" },
    );
    let what = match packet.data[..] {
        [high @ 0..=3, low, ..] => format!("{:#06x}", u16::from_be_bytes([high, low])),
        [0x40, 0x00, ..] => "channel".into(),
        [0x80, ..] => "rtp".into(),
        _ => format!("{} bytes", packet.data.len()),
    };
    let dropped = packet.comment.as_deref().unwrap_or_default();
    format!("{leg} {way} {what} {dropped}")
        .trim_end()
        .to_owned()
}

#[test]
fn both_legs_of_a_call_by_every_transport() {
    let server = server();
    for (transport, family) in [
        (Transport::Udp, Family::V4),
        (Transport::Udp, Family::V6),
        (Transport::Tcp, Family::V4),
        (Transport::Tls, Family::V6),
        (Transport::Dtls, Family::V4),
    ] {
        let mut client = Client::new(&server, transport, family);
        let relayed = client.allocate();
        let id = server.allocation(relayed).name;
        let capture = Running::begin(&server, &id, "?seconds=60");
        let peer = peer(relayed.ip());
        let at = peer.local_addr().unwrap();
        client.bind(0x4000, at);
        for sequence in 0..3 {
            client.send_channel(0x4000, &rtp(sequence));
            assert_eq!(receive(&peer).0, rtp(sequence));
            peer.send_to(&rtp(100 + sequence), relayed).unwrap();
            assert_eq!(client.expect_channel(0x4000), rtp(100 + sequence));
        }
        // A channel that nobody bound.
        client.send_channel(0x4001, &rtp(7));
        client.release();
        let file = capture.end();

        let shown: Vec<_> = file.packets.iter().map(kind).collect();
        let way = [
            "client in channel",
            "peer out rtp",
            "peer in rtp",
            "client out channel",
        ];
        let expected: Vec<_> = ["client in 0x0009", "client out 0x0109"]
            .into_iter()
            .chain(way.into_iter().cycle().take(12))
            .chain(["client in 16 bytes dropped: no_channel"])
            .chain(["client in 0x0004", "client out 0x0104"])
            .collect();
        assert_eq!(shown, expected, "{transport:?} {family:?}");
        assert!(file.statistics.iter().all(|counted| {
            counted.dropped == 0 && counted.comment == "Ended: the allocation ended."
        }));
        assert!(
            file.comment
                .contains(&format!("Allocation {id}; headers only"))
        );
        let (name, description) = &file.interfaces[CLIENT];
        assert_eq!(*name, format!("client-{}", transport.label()));
        assert_eq!(description.contains("as if"), transport != Transport::Udp);

        let local = server.address(family);
        let mut before = 0;
        for packet in &file.packets {
            assert!(packet.nanos >= before, "in order");
            before = packet.nanos;
            let ends = match (packet.interface, packet.inbound) {
                (CLIENT, true) => (client.local(), local),
                (CLIENT, false) => (local, client.local()),
                (_, true) => (at, relayed),
                (_, false) => (relayed, at),
            };
            assert_eq!((packet.from, packet.to), ends);
        }
        let media = |interface| {
            let packets = file.packets.iter();
            packets.filter(move |packet| packet.interface == interface)
        };
        for (count, packet) in media(PEER).enumerate() {
            // Header, and nothing else.
            let sequence = count as u16 / 2 + if packet.inbound { 100 } else { 0 };
            assert_eq!(packet.data, rtp(sequence)[..12]);
            assert_eq!(packet.length, rtp(0).len());
        }
        let names = file
            .packets
            .iter()
            .any(|packet| (packet.data.windows(USER.len())).any(|part| part == USER.as_bytes()));
        assert!(!names, "a user's name");
    }
}

#[test]
fn whole_packets_where_that_is_asked() {
    let server = server();
    let mut client = Client::udp(&server);
    let relayed = client.allocate();
    let id = server.allocation(relayed).name;
    let capture = Running::begin(&server, &id, "?payload=true");
    let peer = peer(relayed.ip());
    let at = peer.local_addr().unwrap();
    client.permit(at);
    client.send_indication(at, &rtp(1));
    receive(&peer);
    peer.send_to(b"pong", relayed).unwrap();
    assert_eq!(client.expect_data(), (at, b"pong".to_vec()));
    client.release();
    let file = capture.end();
    assert!(file.comment.contains("whole packets"));
    let shown: Vec<_> = file.packets.iter().map(kind).collect();
    assert_eq!(
        shown,
        [
            "client in 0x0008",
            "client out 0x0108",
            "client in 0x0016",
            "peer out rtp",
            "peer in 4 bytes",
            "client out 0x0017",
            "client in 0x0004",
            "client out 0x0104",
        ]
    );
    assert_eq!(file.packets[3].data, rtp(1));
    assert_eq!(file.packets[4].data, b"pong");
    assert!(
        file.packets
            .iter()
            .all(|packet| packet.data.len() == packet.length)
    );
    let request = &file.packets[0].data;
    assert!((request.windows(USER.len())).any(|part| part == USER.as_bytes()));
}

#[test]
fn between_two_relayed_addresses_and_from_who_is_refused() {
    let server = server();
    let mut client = Client::udp(&server);
    let mut other = Client::udp(&server);
    let (relayed, there) = (client.allocate(), other.allocate());
    client.permit(there);
    other.permit(relayed);
    let id = server.allocation(relayed).name;
    let first = Running::begin(&server, &id, "?seconds=60");
    // Others of the same allocation, and of another one, at the same time.
    let second = Running::begin(&server, &id, "?seconds=60");
    let others = Running::begin(&server, &server.allocation(there).name, "?seconds=60");
    client.send_indication(there, &rtp(1));
    assert_eq!(other.expect_data(), (relayed, rtp(1)));
    let stranger = peer(quiet_address());
    stranger.send_to(&rtp(2), relayed).unwrap();
    other.send_indication(relayed, &rtp(3));
    assert_eq!(client.expect_data(), (there, rtp(3)));
    client.release();
    let file = first.end();
    let mut shown: Vec<_> = file.packets.iter().map(kind).collect();
    // It comes by the kernel, beside what goes in memory.
    let refused = shown
        .iter()
        .position(|line| line == "peer in rtp dropped: no_permission");
    let stranger_packet = &file.packets[refused.expect("what is refused")];
    assert_eq!(stranger_packet.from, stranger.local_addr().unwrap());
    shown.remove(refused.unwrap());
    assert_eq!(
        shown,
        [
            "client in 0x0016",
            "peer out rtp",
            "peer in rtp",
            "client out 0x0017",
            "client in 0x0004",
            "client out 0x0104",
        ]
    );
    assert_eq!(second.end().packets.len(), file.packets.len());
    other.release();
    assert_eq!(others.end().packets.len(), 6);
}

#[test]
fn ends_with_its_time_or_its_packets() {
    let server = server();
    let mut client = Client::udp(&server);
    let relayed = client.allocate();
    let id = server.allocation(relayed).name;
    let file = Running::begin(&server, &id, "?seconds=1").end();
    assert!(file.packets.is_empty());
    assert_eq!(file.statistics[0].comment, "Ended: its time is over.");

    let peer = peer(relayed.ip());
    let capture = Running::begin(&server, &id, "?packets=5");
    client.bind(0x4000, peer.local_addr().unwrap());
    for sequence in 0..10 {
        client.send_channel(0x4000, &rtp(sequence));
        receive(&peer);
    }
    let file = capture.end();
    assert_eq!(file.packets.len(), 5);
    assert_eq!(
        file.statistics[0].comment,
        "Ended: it has as many packets as it may."
    );
    // Nobody is left who copies anything.
    client.send_channel(0x4000, &rtp(1));
    receive(&peer);
}

#[test]
fn refusals_say_why() {
    let server = server();
    let mut client = Client::udp(&server);
    let relayed = client.allocate();
    let id = server.allocation(relayed).name;
    let refused = |server: &Server, id: &str, query: &str, status: u16, why: &str| {
        let (answered, body, _) = ask(server, id, query);
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(
            answered == status && body.contains(why),
            "{query}: {answered} {body}"
        );
    };
    refused(&server, "0-999-9", "", 404, "no live allocation");
    refused(&server, "nonsense", "", 404, "no live allocation");
    for query in [
        "?seconds=0",
        "?seconds=601",
        "?packets=0",
        "?packets=1000001",
    ] {
        refused(&server, &id, query, 400, "1 to 600 seconds");
    }
    refused(&server, &id, "?payload=1", 400, "payload");
    refused(&server, &id, "?bytes=9", 400, "bytes");

    let closed = Server::with(
        &["127.0.0.1:0"],
        &["http.admin='127.0.0.1:0'", "quality.capture=false"],
    );
    let mut client = Client::udp(&closed);
    let relayed: SocketAddr = client.allocate();
    assert_eq!(relayed.ip(), Ipv4Addr::LOCALHOST);
    let id = closed.allocation(relayed).name;
    refused(&closed, &id, "", 403, "set quality.capture = true");
}
