//! TLS: handshakes that are none, are too much, or are too old.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConnection, HandshakeKind, StreamOwned};
use turnix::base::{Family, Transport};

use super::super::client::{Client, Link};
use super::super::server::{PATIENCE, Server, now};
use super::{answers, connect, exchange, until_closed};

/// A ClientHello in one record: `version` as TLS 1.2 and older say it (RFC 5246 §7.4.1.2), then `extensions`.
pub fn client_hello(version: [u8; 2], extensions: &[u8]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend([7; 32]);
    // No session; ECDHE with AES-GCM and two suites of old versions; no compression.
    body.extend([
        0, 0, 8, 0xC0, 0x2B, 0xC0, 0x2C, 0xC0, 0x09, 0x00, 0x2F, 1, 0,
    ]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    record(&handshake(body.len(), &body))
}

/// What an ordinary client says: signature_algorithms, supported_groups, ec_point_formats, extended_master_secret.
pub fn extensions() -> Vec<u8> {
    let mut all = Vec::new();
    all.extend(extension(13, &[0, 4, 4, 3, 8, 4]));
    all.extend(extension(10, &[0, 4, 0, 29, 0, 23]));
    all.extend(extension(11, &[1, 0]));
    all.extend(extension(23, &[]));
    all
}

fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
    [
        &kind.to_be_bytes(),
        &(value.len() as u16).to_be_bytes(),
        value,
    ]
    .concat()
}

/// A ClientHello's message that claims `length`.
fn handshake(length: usize, body: &[u8]) -> Vec<u8> {
    let length = (length as u32).to_be_bytes();
    [&[1, length[1], length[2], length[3]], body].concat()
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x16, 3, 1, length[0], length[1]], payload].concat()
}

fn tls(client: &mut Client) -> &mut StreamOwned<ClientConnection, TcpStream> {
    match &mut client.link {
        Link::Tls(stream) => stream,
        Link::Udp(_) | Link::Tcp(_) | Link::Dtls(_) => panic!("not over TLS"),
    }
}

/// The fatal alert that `said` ends with (RFC 8446 §6).
fn alert(said: &[u8]) -> Option<u8> {
    match said {
        [.., 21, 3, _, 0, 2, 2, description] => Some(*description),
        _ => None,
    }
}

#[test]
fn old_versions_are_refused() {
    let server = Server::new();
    let to = server.address(Family::V4);
    // The same words in TLS 1.2 are answered, or the others would prove nothing.
    let mut connection = connect(to);
    connection
        .write_all(&client_hello([3, 3], &extensions()))
        .unwrap();
    let socket = connection.try_clone().unwrap();
    let mut header = [0; 6];
    std::io::Read::read_exact(&mut &socket, &mut header).unwrap();
    assert_eq!((header[0], header[5]), (0x16, 2), "a ServerHello");
    for version in [[3, 0], [3, 1], [3, 2]] {
        let said = exchange(to, &client_hello(version, &extensions()));
        assert_eq!(
            alert(&said),
            Some(70),
            "protocol_version to {version:?}: {said:02x?}"
        );
        // Nor where it is hidden in supported_versions.
        let offered = [extensions(), extension(43, &[2, version[0], version[1]])].concat();
        let said = exchange(to, &client_hello([3, 3], &offered));
        assert_eq!(alert(&said), Some(70), "{version:?}: {said:02x?}");
    }
    // SSL 2 begins with neither.
    assert_eq!(
        exchange(to, &[0x80, 0x2E, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10]),
        b""
    );
}

#[test]
fn early_data_is_refused() {
    let mut server = Server::new();
    let mut eager = (*server.tls).clone();
    eager.enable_early_data = true;
    server.tls = Arc::new(eager);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut client = Client::new(&server, Transport::Tls, Family::V4);
        // What is sent before the handshake's end could be sent again by anybody: no ticket allows it.
        assert!(tls(&mut client).conn.early_data().is_none());
        answers(&mut client);
        let connection = &tls(&mut client).conn;
        assert!(!connection.is_early_data_accepted());
        assert_eq!(connection.handshake_kind(), Some(expected));
    }
}

#[test]
fn what_is_no_handshake_ends_at_once() {
    let server = Server::new();
    let to = server.address(Family::V4);
    let mut udp = Client::udp(&server);
    // A record that is there to its end; random lengths would be worth waiting for now and then.
    let mut noise = vec![0x16, 3, 1, 0x0F, 0x00, 0x63, 0xFF];
    noise.extend((0..4000).map(|_| rand::random::<u8>()));
    let hello = client_hello([3, 3], &extensions());
    let mut twisted = hello.clone();
    twisted[43] = 0xFF;
    let name = |length| extension(0, &vec![b'a'; length]);
    let cases: [(&str, Vec<u8>); 11] = [
        ("noise", noise),
        (
            "a record longer than any",
            vec![0x16, 3, 1, 0xFF, 0xFF, 1, 2, 3, 4],
        ),
        ("a session id that is too long", twisted),
        ("a message of no known kind", record(&[99, 0, 0, 0])),
        (
            "application data in a handshake",
            [&record(&[])[..], &[23, 3, 3, 0, 1, 0]].concat(),
        ),
        ("empty records without end", record(&[]).repeat(5000)),
        ("a ServerHello", record(&[2, 0, 0, 4, 3, 3, 0, 0])),
        (
            "extensions that end early",
            client_hello([3, 3], &[0, 13, 0xFF, 0xFF]),
        ),
        (
            "the same extension twice",
            client_hello([3, 3], &extensions().repeat(2)),
        ),
        (
            "a server name that is none",
            client_hello([3, 3], &[extensions(), name(9)].concat()),
        ),
        (
            "a very long server name",
            client_hello([3, 3], &[extensions(), name(16_000)].concat()),
        ),
    ];
    for (what, bytes) in cases {
        let begin = now();
        let said = exchange(to, &bytes);
        // An alert at most: nothing that a spoofed hello could be worth.
        assert!(said.len() <= 32, "{what}: {said:02x?}");
        assert!(
            now() - begin < Duration::from_secs(5),
            "{what} was listened to"
        );
        answers(&mut udp);
    }
}

#[test]
fn a_hello_without_end_is_not_listened_to() {
    // What a handshake message may claim at most, what fits rustls, and what no client needs.
    const CLAIMED: [usize; 3] = [0xFF_FFFF, 0xFF_FF, 40_000];
    let server = Server::new();
    let mut udp = Client::udp(&server);
    for claimed in CLAIMED {
        let mut connection = connect(server.address(Family::V4));
        // All but the last byte.
        let body = vec![3; claimed.min(1 << 20) - 1];
        let mut pieces = body.chunks(16_000);
        let first = handshake(claimed, pieces.next().unwrap());
        let begin = now();
        let _ = connection.write_all(&record(&first));
        for piece in pieces {
            let _ = connection.write_all(&record(piece));
        }
        let socket = connection.try_clone().unwrap();
        until_closed(&mut connection, &socket, PATIENCE).expect("closed");
        assert!(
            now() - begin < Duration::from_secs(5),
            "{claimed} were waited for"
        );
        answers(&mut udp);
    }
}

#[test]
fn after_the_handshake_nonsense_ends_the_connection() {
    let server = Server::new();
    let mut udp = Client::udp(&server);
    let nonsense: [&[u8]; 4] = [
        // A second handshake inside the first, records that do not decrypt, a new handshake, a heartbeat.
        b"",
        &[
            23, 3, 3, 0, 32, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9,
            9, 9, 9, 9, 9, 9, 9, 9, 9,
        ],
        &[0x16, 3, 3, 0, 4, 1, 0, 0, 0],
        &[24, 3, 3, 0, 3, 1, 0xFF, 0xFF],
    ];
    for bytes in nonsense {
        let mut client = Client::new(&server, Transport::Tls, Family::V4);
        if bytes.is_empty() {
            client.send(&client_hello([3, 3], &extensions()));
        } else {
            answers(&mut client);
            tls(&mut client).sock.write_all(bytes).unwrap();
        }
        let socket = tls(&mut client).sock.try_clone().unwrap();
        let mut raw = socket.try_clone().unwrap();
        until_closed(&mut raw, &socket, PATIENCE).expect("closed");
        answers(&mut udp);
    }
}
