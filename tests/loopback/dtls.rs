//! What is DTLS's own (RFC 7350): who gets a session, and how it ends. That calls, limits and policies are those of every
//! other transport is told where they are.

use std::net::UdpSocket;
use std::time::Duration;

use turnix::base::{Family, Transport};
use turnix::turn::DropReason;

use super::client::{Client, Ended, Frame};
use super::common::dtls::{DtlsLink, client_hello};
use super::common::wire::Request;
use super::server::{BOTH, PATIENCE, Server, loopback, now, peer, receive, until};

const CHANNEL: u16 = 0x4000;

/// How long nothing has to come before it counts as nothing.
const MOMENT: Duration = Duration::from_millis(300);

fn sessions(server: &Server) -> u64 {
    server.snapshot().stream_connections[Transport::Dtls as usize]
}

fn client(server: &Server) -> Client {
    Client::new(server, Transport::Dtls, Family::V4)
}

/// A socket that is connected to the server.
fn socket(server: &Server) -> UdpSocket {
    let socket = peer(loopback(Family::V4));
    socket.connect(server.address(Family::V4)).unwrap();
    socket
}

#[test]
fn who_asks_gets_a_cookie_and_no_session() {
    let server = Server::new();
    let socket = socket(&server);
    let hello = client_hello();
    for _ in 0..3 {
        socket.send(&hello).unwrap();
        let (answer, _) = receive(&socket);
        assert_eq!(answer[13], 3, "HelloVerifyRequest");
        assert!(answer.len() < hello.len());
    }
    assert_eq!(sessions(&server), 0);
}

#[test]
fn a_session_stands_beside_the_plain_client_of_the_same_port() {
    let server = Server::new();
    let mut secure = client(&server);
    assert_eq!(sessions(&server), 1);
    let relayed = secure.allocate();
    // The same socket, without DTLS: another five-tuple.
    let link = secure.dtls();
    let mut plain = Client::on(link.socket.try_clone().unwrap());
    let other = plain.allocate();
    assert_ne!(relayed, other);
    assert_eq!(server.live(), 2);
    let transports: Vec<_> = [relayed, other]
        .map(|relayed| server.allocation(relayed).view.transport)
        .into();
    assert_eq!(transports, [Transport::Dtls, Transport::Udp]);
}

#[test]
fn several_messages_in_one_datagram_arrive_each() {
    let server = Server::new();
    let mut client = client(&server);
    client.allocate();
    let far = peer(loopback(Family::V4));
    let to = far.local_addr().unwrap();
    client.bind(CHANNEL, to);
    // Records are made by a link that sends to nobody but us.
    let link = client.dtls();
    let real = link.socket.try_clone().unwrap();
    let between = peer(loopback(Family::V4));
    let sink = peer(loopback(Family::V4));
    between.connect(sink.local_addr().unwrap()).unwrap();
    let server_socket = std::mem::replace(&mut link.socket, between);
    let mut datagram = Vec::new();
    for text in ["first", "second", "a third one that is longer"] {
        client.send_channel(CHANNEL, text.as_bytes());
        datagram.extend(receive(&sink).0);
    }
    client.dtls().socket = server_socket;
    real.send(&datagram).unwrap();
    let heard: Vec<Vec<u8>> = (0..3).map(|_| receive(&far).0).collect();
    assert_eq!(
        heard,
        [&b"first"[..], b"second", b"a third one that is longer"]
    );
    // And not a second time.
    real.send(&datagram).unwrap();
    client.send_channel(CHANNEL, b"afterwards");
    assert_eq!(receive(&far).0, b"afterwards");
}

#[test]
fn the_clients_goodbye_ends_its_allocation() {
    let server = Server::new();
    let mut client = client(&server);
    client.allocate();
    assert_eq!((server.live(), sessions(&server)), (1, 1));
    client.dtls().close();
    until("it is gone", || {
        (server.live(), sessions(&server)) == (0, 0)
    });
}

#[test]
fn a_session_outlives_its_allocation_and_may_have_another() {
    let server = Server::new();
    let mut client = client(&server);
    client.allocate();
    client.release();
    assert_eq!((server.live(), sessions(&server)), (0, 1));
    client.allocate();
    assert_eq!(server.live(), 1);
}

#[test]
fn rfc6347_4_2_8_a_client_that_has_lost_its_session_begins_another() {
    let server = Server::new();
    let mut before = client(&server);
    before.allocate();
    let socket = before.dtls().socket.try_clone().unwrap();
    // Who asks from there without a cookie, or with rubbish, changes nothing.
    socket.send(&client_hello()).unwrap();
    receive(&socket);
    socket
        .send(&[23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 9, 0, 1, 7])
        .unwrap();
    assert_eq!(before.ask(&Request::binding()).code(), 0);
    assert_eq!(server.live(), 1);
    // Who brings one has the address, and what was there before is over.
    let mut after = Client::on_dtls(DtlsLink::connect(socket, PATIENCE).unwrap());
    assert_eq!((server.live(), sessions(&server)), (0, 1));
    after.allocate();
    assert_eq!(server.live(), 1);
}

#[test]
fn records_of_no_session_are_dropped_and_counted() {
    let server = Server::new();
    let mut client = client(&server);
    client.allocate();
    let before = server.dropped(DropReason::Dtls);
    let stranger = socket(&server);
    for datagram in [
        &[23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 9, 0, 1, 7][..],
        &[22, 0xfe, 0xfd, 0, 0],
        &[20],
        &[63; 100],
    ] {
        stranger.send(datagram).unwrap();
    }
    until("they are counted", || {
        server.dropped(DropReason::Dtls) == before + 4
    });
    stranger.set_read_timeout(Some(MOMENT)).unwrap();
    assert!(stranger.recv(&mut [0; 100]).is_err(), "nobody answers");
    assert_eq!(client.ask(&Request::binding()).code(), 0);
}

#[test]
fn where_it_is_not_named_nobody_answers() {
    let config = super::server::config(BOTH, r#"["udp"]"#, Vec::new());
    let running = turnix::app::start(config).unwrap();
    let to = running.started.listeners[0].address;
    let socket = peer(loopback(Family::V4));
    socket.connect(to).unwrap();
    socket.send(&client_hello()).unwrap();
    socket.set_read_timeout(Some(MOMENT)).unwrap();
    assert!(socket.recv(&mut [0; 100]).is_err());
    running.stop();
}

#[test]
fn a_large_datagram_goes_through_and_one_that_is_too_large_is_counted() {
    let server = Server::new();
    let mut client = client(&server);
    let relayed = client.allocate();
    let far = peer(loopback(Family::V4));
    client.bind(CHANNEL, far.local_addr().unwrap());
    let large: Vec<u8> = (0..16_000).map(|byte| byte as u8).collect();
    client.send_channel(CHANNEL, &large);
    assert_eq!(receive(&far).0, large);
    far.send_to(&large, relayed).unwrap();
    assert_eq!(client.expect_channel(CHANNEL), large);
    // A record holds 16 KiB; a datagram that does not fit ends neither session nor allocation.
    let before = server.dropped(DropReason::TooLarge);
    far.send_to(&vec![7; 20_000], relayed).unwrap();
    until("it is counted", || {
        server.dropped(DropReason::TooLarge) == before + 1
    });
    far.send_to(b"small again", relayed).unwrap();
    assert_eq!(client.expect_channel(CHANNEL), b"small again");
}

#[test]
fn nothing_is_said_to_a_client_in_clear() {
    let server = Server::new();
    let mut client = client(&server);
    let relayed = client.allocate();
    let far = peer(loopback(Family::V4));
    client.permit(far.local_addr().unwrap());
    let link = client.dtls();
    let raw = link.socket.try_clone().unwrap();
    far.send_to(b"recognizable", relayed).unwrap();
    let mut buffer = [0; 2048];
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = raw.recv(&mut buffer).unwrap();
    let record = &buffer[..length];
    assert_eq!(record[..3], [23, 0xfe, 0xfd]);
    assert!(!record.windows(12).any(|bytes| bytes == b"recognizable"));
}

#[test]
fn stopping_says_goodbye() {
    let server = Server::new();
    let mut client = client(&server);
    client.allocate();
    drop(server);
    let begun = now();
    let ended = loop {
        match client.next(PATIENCE) {
            Ok(Frame::Message(_) | Frame::Channel(..)) => {}
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended, Ended::Closed);
    assert!(now() < begun + PATIENCE);
}
