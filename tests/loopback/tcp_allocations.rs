//! TCP allocations (RFC 6062) with real sockets: both ways of a connection, over TCP and TLS, across shards, whoever
//! reads slowly or ends first.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use turnix::base::{Family, RelayTransport, Transport};
use turnix::turn::{Bandwidth, Direction, DropReason, Path};

use super::client::{Client, Frame, Link};
use super::common::wire::Request;
use super::common::world::{PASSWORD, USER};
use super::server::{BOTH, PATIENCE, Server, now, quiet_address, until};

const STREAMS: [Transport; 2] = [Transport::Tcp, Transport::Tls];

/// A client with a TCP allocation, and its relayed address.
fn allocate(server: &Server, transport: Transport) -> (Client, SocketAddr) {
    let mut client = Client::new(server, transport, Family::V4);
    client.login(USER, PASSWORD);
    let reply = client.ask_signed(Request::allocate_tcp());
    assert_eq!(reply.code(), 0);
    (client, reply.relayed())
}

fn listener() -> TcpListener {
    TcpListener::bind((quiet_address(), 0)).unwrap()
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, from) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, from)
}

/// Connects to `peer`; the id.
#[track_caller]
fn connect(control: &mut Client, peer: SocketAddr) -> u32 {
    let reply = control.ask_signed(Request::connect(peer));
    assert_eq!(reply.code(), 0);
    reply.connection_id()
}

/// The data connection of `id`, by the nonce of the control connection.
#[track_caller]
fn bind(server: &Server, transport: Transport, control: &Client, id: u32) -> Client {
    let mut data = Client::new(server, transport, control.family);
    data.signer = control.signer.clone();
    assert_eq!(data.ask_signed(Request::connection_bind(id)).code(), 0);
    data
}

/// Whom the server announces, and by which id.
#[track_caller]
fn attempt(control: &mut Client) -> (SocketAddr, u32) {
    match control.expect() {
        Frame::Message(attempt) => {
            assert_eq!(attempt.0.typ.to_string(), "ConnectionAttempt indication");
            (attempt.peer(), attempt.connection_id())
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn exchange(data: &mut Client, peer: &mut TcpStream, bytes: &[u8]) {
    data.send(bytes);
    let mut got = vec![0; bytes.len()];
    peer.read_exact(&mut got).unwrap();
    assert!(got == bytes);
    peer.write_all(bytes).unwrap();
    assert!(data.read_raw(bytes.len()) == bytes);
}

#[track_caller]
fn is_over(peer: &mut TcpStream) {
    let mut rest = Vec::new();
    if let Err(error) = peer.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert!(rest.is_empty());
}

#[track_caller]
fn nothing_is_left(server: &Server) {
    until("nothing is left", || {
        let snapshot = server.snapshot();
        snapshot.stats.connections == 0
            && snapshot.stream_connections.iter().all(|count| *count == 0)
            && server.live() == 0
            && server.capacity_ratio() == 0.0
    });
}

#[test]
fn a_client_connects_to_peers_and_data_crosses_whatever_shard_has_it() {
    let server = Server::new();
    for control in STREAMS {
        for transport in STREAMS {
            let (mut control, relayed) = allocate(&server, control);
            let listener = listener();
            let view = server.allocation(relayed).view;
            assert_eq!(view.relay_transport, RelayTransport::Tcp);
            // Streams take the shards in turn: data connections come to either.
            for turn in 0..3 {
                let at = listener.local_addr().unwrap();
                let id = connect(&mut control, at);
                let (mut peer, from) = accept(&listener);
                assert_eq!(from, relayed, "from the relayed address");
                let again = Request::connect(at);
                assert_eq!(control.ask_signed(again).code(), 446);
                peer.write_all(b"before it is bound").unwrap();
                let mut data = bind(&server, transport, &control, id);
                assert_eq!(data.read_raw(18), b"before it is bound");
                exchange(&mut data, &mut peer, b"hello");
                exchange(&mut data, &mut peer, &vec![turn; 300_000]);
                assert_eq!(server.allocation(relayed).view.connections, 1);
                // The client ends its half, hears the rest, and it is over.
                data.finish();
                let mut rest = Vec::new();
                peer.read_to_end(&mut rest).unwrap();
                assert!(rest.is_empty());
                peer.write_all(b"last words").unwrap();
                drop(peer);
                assert_eq!(data.read_raw(100), b"last words");
                drop(data);
                until("the connection is gone", || {
                    server.allocation(relayed).view.connections == 0
                });
                // The same two ends may rest in TIME_WAIT.
                if turn == 0 {
                    continue;
                }
                break;
            }
        }
    }
    nothing_is_left(&server);
}

#[test]
fn what_comes_with_the_request_is_data_already() {
    let server = Server::new();
    let (mut control, _) = allocate(&server, Transport::Tcp);
    for transport in STREAMS {
        for _ in 0..2 {
            let listener = listener();
            let id = connect(&mut control, listener.local_addr().unwrap());
            let (mut peer, _) = accept(&listener);
            let mut data = Client::new(&server, transport, Family::V4);
            let signer = control.signer.clone().unwrap();
            let binding = Request::binding();
            let bind = Request::connection_bind(id).sign(&signer);
            // Looks like a message, and is none any more.
            let bytes = [binding.bytes(), bind.bytes(), Request::binding().bytes()].concat();
            data.send(&bytes);
            data.answer_to(&binding);
            assert_eq!(data.answer_to(&bind).code(), 0);
            let mut got = [0; 20];
            peer.read_exact(&mut got).unwrap();
            assert_eq!(got[..2], [0, 1]);
            exchange(&mut data, &mut peer, b"\x00\x01\x02\x03 and so on");
        }
    }
}

#[test]
fn peers_that_are_permitted_come_in_and_others_do_not() {
    let server = Server::new();
    let (mut control, relayed) = allocate(&server, Transport::Tcp);
    let mut stranger = TcpStream::connect(relayed).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    is_over(&mut stranger);
    assert_eq!(server.dropped(DropReason::NoPermission), 1);
    control.permit("127.0.0.1:1".parse().unwrap());
    for transport in STREAMS {
        for _ in 0..2 {
            let mut peer = TcpStream::connect(relayed).unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            let (from, id) = attempt(&mut control);
            assert_eq!(from, peer.local_addr().unwrap());
            peer.write_all(b"who is there?").unwrap();
            let mut data = bind(&server, transport, &control, id);
            assert_eq!(data.read_raw(13), b"who is there?");
            exchange(&mut data, &mut peer, b"it is me");
            // Once.
            let mut second = Client::new(&server, transport, Family::V4);
            second.signer = control.signer.clone();
            let again = second.ask_signed(Request::connection_bind(id));
            assert_eq!(again.code(), 400);
            drop(peer);
            assert_eq!(data.read_raw(1), b"");
        }
    }
    let count = server.relayed(Direction::ToClient, Path::Kernel);
    assert_eq!(count.bytes, 4 * (13 + 8));
    drop(control);
    nothing_is_left(&server);
}

/// Two clients of this server, each with a relayed address of it: the kernel takes them to each other, though policy
/// permits no other peer on this host.
#[test]
fn two_tcp_relayed_addresses_reach_each_other() {
    let relay = quiet_address();
    let relays = format!("relay.addresses=['{relay}']");
    let server = Server::with(BOTH, &[&relays, "peers.allow=[]"]);
    for transport in STREAMS {
        let (mut alice, from) = allocate(&server, transport);
        let (mut bob, to) = allocate(&server, transport);
        bob.permit(from);
        let id = connect(&mut alice, to);
        let (peer, bobs) = attempt(&mut bob);
        assert_eq!(peer, from);
        // They are connected already, and an own address is no peer of itself.
        assert_eq!(bob.ask_signed(Request::connect(from)).code(), 446);
        assert_eq!(bob.ask_signed(Request::connect(to)).code(), 403);
        let mut data = bind(&server, transport, &alice, id);
        let mut bobs = bind(&server, transport, &bob, bobs);
        data.send(b"through two relays");
        assert_eq!(bobs.read_raw(18), b"through two relays");
        bobs.send(b"and back");
        assert_eq!(data.read_raw(8), b"and back");
        // The end of one is the end of both.
        alice.release();
        assert_eq!(data.read_raw(1), b"");
        assert_eq!(bobs.read_raw(1), b"");
        drop((data, bobs));
        until("the connection is gone", || {
            server.allocation(to).view.connections == 0
        });
        // It listens no more.
        let gone = bob.ask_signed(Request::connect(from));
        assert_eq!(gone.code(), 447);
    }
    nothing_is_left(&server);
}

/// A reader that does not read stops its sender, in either direction; nothing is lost, and nothing piles up here.
#[test]
fn whoever_does_not_read_stops_who_sends() {
    const MOST: usize = 64 << 20;
    let server = Server::new();
    for transport in STREAMS {
        let (mut control, _) = allocate(&server, Transport::Tcp);
        let listener = listener();
        let id = connect(&mut control, listener.local_addr().unwrap());
        let (mut peer, _) = accept(&listener);
        let mut data = bind(&server, transport, &control, id);
        let block: Vec<u8> = (0..65_536).map(|at| (at % 251) as u8).collect();
        let fill = |write: &mut dyn FnMut(&[u8]) -> std::io::Result<usize>| {
            let mut sent = 0;
            let mut since = now();
            while now() < since + Duration::from_millis(500) {
                let from = sent % block.len();
                match write(&block[from..]) {
                    Ok(written) => {
                        sent += written;
                        since = now();
                        assert!(sent < MOST, "it piles up");
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            sent
        };
        let is_block = |bytes: &[u8]| {
            bytes
                .iter()
                .enumerate()
                .all(|(at, byte)| *byte == block[at % block.len()])
        };

        peer.set_nonblocking(true).unwrap();
        let sent = fill(&mut |bytes| peer.write(bytes));
        peer.set_nonblocking(false).unwrap();
        assert!(is_block(&data.read_raw(sent)));

        if let Link::Tcp(socket) = &mut data.link {
            socket.set_nonblocking(true).unwrap();
            let sent = fill(&mut |bytes| socket.write(bytes));
            socket.set_nonblocking(false).unwrap();
            let mut got = vec![0; sent];
            peer.read_exact(&mut got).unwrap();
            assert!(is_block(&got));
        }
        exchange(&mut data, &mut peer, b"it goes on");
    }
}

#[test]
fn the_end_of_an_allocation_is_the_end_of_its_connections() {
    let server = Server::new();
    for end in ["release", "hang up", "administrative"] {
        for transport in STREAMS {
            let (mut control, relayed) = allocate(&server, transport);
            control.permit("127.0.0.1:1".parse().unwrap());
            let listener = listener();
            let id = connect(&mut control, listener.local_addr().unwrap());
            let (mut bound, _) = accept(&listener);
            let mut data = bind(&server, transport, &control, id);
            exchange(&mut data, &mut bound, b"hello");
            let mut waiting = TcpStream::connect(relayed).unwrap();
            waiting.set_read_timeout(Some(PATIENCE)).unwrap();
            attempt(&mut control);
            let mut control = Some(control);
            match (end, &mut control) {
                ("release", Some(control)) => control.release(),
                ("administrative", _) => server.end_user(USER),
                _ => control = None,
            }
            is_over(&mut bound);
            is_over(&mut waiting);
            assert_eq!(data.read_raw(1), b"");
            until("nobody listens", || TcpStream::connect(relayed).is_err());
            drop((data, control));
            nothing_is_left(&server);
        }
    }
}

#[test]
fn what_cannot_be_reached_is_447_and_leaves_nothing() {
    let server = Server::new();
    let (mut control, relayed) = allocate(&server, Transport::Tcp);
    let closed = {
        let listener = listener();
        listener.local_addr().unwrap()
    };
    for _ in 0..3 {
        assert_eq!(control.ask_signed(Request::connect(closed)).code(), 447);
    }
    // A relay port that nobody has, or that a UDP allocation has.
    let datagrams = Client::tcp(&server).allocate();
    assert_ne!(datagrams, relayed);
    assert_eq!(control.ask_signed(Request::connect(datagrams)).code(), 447);
    assert_eq!(server.allocation(relayed).view.connections, 0);
    // A peer that is gone again before it is bound.
    control.permit("127.0.0.1:1".parse().unwrap());
    drop(TcpStream::connect(relayed).unwrap());
    let (_, id) = attempt(&mut control);
    let mut data = bind(&server, Transport::Tcp, &control, id);
    assert_eq!(data.read_raw(1), b"");
    drop((data, control));
    nothing_is_left(&server);
}

#[test]
fn bandwidth_slows_a_stream_and_loses_nothing_of_it() {
    let server = Server::with(&["127.0.0.1:0"], &["limits.bandwidth_per_user=8Mbit"]);
    let (mut control, _) = allocate(&server, Transport::Tcp);
    let listener = listener();
    let id = connect(&mut control, listener.local_addr().unwrap());
    let (mut peer, _) = accept(&listener);
    let mut data = bind(&server, Transport::Tcp, &control, id);
    // 1 MB a second.
    let bytes = vec![7; 2_500_000];
    let begin = now();
    let written = bytes.clone();
    let writer = std::thread::spawn(move || {
        peer.write_all(&written).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        peer
    });
    assert!(data.read_raw(bytes.len()) == bytes);
    let took = now() - begin;
    assert!(took >= Duration::from_secs(2), "{took:?}");
    drop(writer.join().unwrap());
    let dropped = server.snapshot().stats.policed;
    assert_eq!(
        dropped
            .as_flattened()
            .iter()
            .map(|t| t.packets)
            .sum::<u64>(),
        0
    );
    // Without a limit what waits goes on at once.
    server.set_limits(Bandwidth::default(), 50);
}

#[test]
fn descriptors_and_ports_come_back() {
    let ports = "relay.ports='52000-52003'";
    let relay = format!("relay.addresses=['{}']", quiet_address());
    let server = Server::with(
        &["127.0.0.1:0"],
        &[ports, &relay, "limits.share_per_user=0"],
    );
    for _ in 0..3 {
        let mut clients: Vec<_> = (0..4).map(|_| allocate(&server, Transport::Tcp)).collect();
        let mut more = Client::tcp(&server);
        more.login(USER, PASSWORD);
        // TCP and UDP take from the same ports.
        assert_eq!(more.ask_signed(Request::allocate()).code(), 508);
        assert_eq!(more.ask_signed(Request::allocate_tcp()).code(), 508);
        for (client, _) in &mut clients {
            client.release();
        }
        assert_eq!(server.capacity_ratio(), 0.0);
    }
}
