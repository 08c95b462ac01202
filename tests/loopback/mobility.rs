//! Clients that move (RFC 8016), on a server with two shards: what they had is there, wherever the kernel takes them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use stun::attributes::AttrType;
use turnix::base::{Family, Transport};
use turnix::turn::DropReason;

use super::client::{Client, Frame};
use super::common::wire::{Reply, Request};
use super::common::world::{PASSWORD, USER};
use super::server::{BOTH, Server, loopback, peer, receive, until};

use Transport::{Tcp, Tls, Udp};

const TICKET: AttrType = AttrType(0x8030);
const CHANNEL: u16 = 0x4000;

/// Moves to other ports of UDP: the kernel takes all of them to one shard once in four thousand runs.
const PORTS: usize = 12;

fn ticket(reply: &Reply) -> Vec<u8> {
    reply.attr(TICKET).expect("MOBILITY-TICKET")
}

/// A mobile allocation with a channel to `peer`: its relayed address and its ticket.
fn allocate(client: &mut Client, peer: SocketAddr) -> (SocketAddr, Vec<u8>) {
    client.login(USER, PASSWORD);
    let reply = client.ask_signed(Request::allocate().attr(TICKET.0, &[]));
    assert_eq!(reply.code(), 0);
    client.bind(CHANNEL, peer);
    (reply.relayed(), ticket(&reply))
}

fn by(ticket: &[u8]) -> Request {
    Request::refresh(600).attr(TICKET.0, ticket)
}

/// Brings the allocation of `ticket` to `client`; the next ticket.
fn go(client: &mut Client, by_ticket: &[u8]) -> Vec<u8> {
    client.login(USER, PASSWORD);
    let reply = client.ask_signed(by(by_ticket));
    assert_eq!(reply.code(), 0);
    ticket(&reply)
}

/// Data goes both ways, and both ways are the right ones.
fn talk(client: &mut Client, peer: &UdpSocket, relayed: SocketAddr) {
    client.send_channel(CHANNEL, b"to the peer");
    assert_eq!(receive(peer), (b"to the peer".to_vec(), relayed));
    peer.send_to(b"to the client", relayed).unwrap();
    assert_eq!(client.expect_channel(CHANNEL), b"to the client");
}

#[test]
fn a_client_moves_over_and_over() {
    let server = Server::new();
    let peer = peer(loopback(Family::V4));
    let mut client = Client::udp(&server);
    let (relayed, mut ticket) = allocate(&mut client, peer.local_addr().unwrap());
    talk(&mut client, &peer, relayed);
    let first = server.allocation(relayed);
    let ports = [Udp; PORTS].into_iter();
    let others = [Tls, Udp, Tcp, Tls, Udp, Tcp, Tcp, Tls, Tls, Tls, Udp];
    let mut moves = 0;
    for transport in ports.chain(others) {
        let mut next = Client::new(&server, transport, Family::V4);
        ticket = go(&mut next, &ticket);
        talk(&mut next, &peer, relayed);
        // What hangs off it can be changed from there.
        next.bind(CHANNEL, peer.local_addr().unwrap());
        next.permit("127.0.0.1:1".parse().unwrap());
        let named = server.allocation(relayed);
        assert_eq!((named.shard, named.view.id), (first.shard, first.view.id));
        assert_eq!(named.view.client, next.local());
        assert_eq!(named.view.transport, transport);
        // The end of the connection it came from is nothing to it.
        drop(std::mem::replace(&mut client, next));
        talk(&mut client, &peer, relayed);
        moves += 1;
    }
    let stats = server.snapshot().stats;
    assert_eq!(stats.mobility[0], moves);
    assert_eq!(stats.mobility.iter().sum::<u64>(), moves);
    assert_eq!(stats.dropped.iter().sum::<u64>(), 0, "{:?}", stats.dropped);
    client.release();
    until("the allocation is gone", || server.live() == 0);
    let connections = || server.snapshot().stream_connections.iter().sum::<u64>();
    until("the connections are gone", || connections() == 0);
}

/// What a peer sends all the time, and what of it came.
struct Media {
    sent: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    arrived: BTreeMap<u32, usize>,
}

impl Media {
    fn start(peer: &UdpSocket, relayed: SocketAddr) -> Self {
        let socket = peer.try_clone().unwrap();
        let (sent, stop) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, told) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let number = counter.load(Ordering::Relaxed);
                socket.send_to(&number.to_be_bytes(), relayed).unwrap();
                counter.store(number + 1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            sent,
            stop,
            thread: Some(thread),
            arrived: BTreeMap::new(),
        }
    }

    fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Takes what has come to `client`, until so much has, or nothing more comes.
    fn take(&mut self, client: &mut Client, most: usize) -> usize {
        let mut taken = 0;
        while taken < most {
            let Ok(frame) = client.next(Duration::from_millis(300)) else {
                break;
            };
            let Frame::Channel(CHANNEL, data) = frame else {
                panic!("{frame:?}");
            };
            let number = u32::from_be_bytes(data.try_into().unwrap());
            *self.arrived.entry(number).or_default() += 1;
            taken += 1;
        }
        taken
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Make before break: the client listens on both ways, and loses nothing.
fn media_goes_on(from: Transport, to: Transport) {
    let server = Server::new();
    let peer = peer(loopback(Family::V4));
    let mut old = Client::new(&server, from, Family::V4);
    let (relayed, ticket) = allocate(&mut old, peer.local_addr().unwrap());
    talk(&mut old, &peer, relayed);
    let mut media = Media::start(&peer, relayed);
    assert_eq!(media.take(&mut old, 50), 50);
    let mut new = Client::new(&server, to, Family::V4);
    go(&mut new, &ticket);
    assert_eq!(
        media.take(&mut old, 20),
        20,
        "nobody has sent from there yet"
    );
    new.send_channel(CHANNEL, b"here");
    assert_eq!(media.take(&mut new, 100), 100);
    media.end();
    media.take(&mut old, usize::MAX);
    media.take(&mut new, usize::MAX);
    let sent = media.sent();
    let all: BTreeMap<u32, usize> = (0..sent).map(|number| (number, 1)).collect();
    assert_eq!(media.arrived, all, "each once");
    assert_eq!(receive(&peer), (b"here".to_vec(), relayed));
}

#[test]
fn media_goes_on_from_udp_to_udp() {
    for _ in 0..4 {
        media_goes_on(Udp, Udp);
    }
}

#[test]
fn media_goes_on_from_udp_to_tls() {
    media_goes_on(Udp, Tls);
    media_goes_on(Udp, Tls);
}

#[test]
fn media_goes_on_from_tls_to_udp() {
    media_goes_on(Tls, Udp);
    media_goes_on(Tls, Udp);
}

/// Break before make: what is lost is what the peer sent before the client spoke up again, and no more.
#[test]
fn media_comes_back_after_a_break() {
    for (from, to) in [(Udp, Udp), (Udp, Tls), (Tcp, Udp), (Tls, Tls)] {
        let server = Server::new();
        let peer = peer(loopback(Family::V4));
        let mut old = Client::new(&server, from, Family::V4);
        let (relayed, ticket) = allocate(&mut old, peer.local_addr().unwrap());
        let mut media = Media::start(&peer, relayed);
        assert_eq!(media.take(&mut old, 20), 20);
        let before = media.sent();
        drop(old);
        let mut new = Client::new(&server, to, Family::V4);
        go(&mut new, &ticket);
        new.send_channel(CHANNEL, b"here");
        assert_eq!(receive(&peer).0, b"here");
        let back = media.sent();
        assert_eq!(media.take(&mut new, 100), 100);
        media.end();
        media.take(&mut new, usize::MAX);
        // One may have been on its way when the peer heard of it.
        let lost = (back + 1..media.sent()).filter(|n| !media.arrived.contains_key(n));
        assert_eq!(
            lost.collect::<Vec<_>>(),
            Vec::<u32>::new(),
            "{before} to {back}"
        );
        assert!(media.arrived.values().all(|times| *times == 1));
    }
}

#[test]
fn a_port_that_was_moved_to_is_as_good_as_any_later() {
    let server = Server::new();
    let peer = peer(loopback(Family::V4));
    for _ in 0..PORTS / 2 {
        let mut old = Client::udp(&server);
        let (relayed, ticket) = allocate(&mut old, peer.local_addr().unwrap());
        let mut new = Client::udp(&server);
        let ticket = go(&mut new, &ticket);
        talk(&mut new, &peer, relayed);
        // A move there that is refused leaves no trace.
        let mut refused = Client::udp(&server);
        refused.login(USER, PASSWORD);
        let used = by(b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(refused.ask_signed(used).code(), 400);
        // The client gives up what it had, and asks for another one from the same port.
        new.release();
        let next = new.try_allocate();
        assert_eq!(next.code(), 0);
        new.bind(CHANNEL, peer.local_addr().unwrap());
        talk(&mut new, &peer, next.relayed());
        // The ticket of the one that is gone leads nowhere, and its port is as good as any.
        assert_eq!(refused.ask_signed(by(&ticket)).code(), 437);
        let third = refused.allocate();
        refused.bind(CHANNEL, peer.local_addr().unwrap());
        talk(&mut refused, &peer, third);
        new.release();
        refused.release();
    }
    until("all of them are gone", || server.live() == 0);
    assert_eq!(server.dropped(DropReason::NoChannel), 0);
}

#[test]
fn a_used_ticket_is_refused_wherever_it_comes() {
    let server = Server::new();
    let peer = peer(loopback(Family::V4));
    let mut client = Client::udp(&server);
    let (relayed, first) = allocate(&mut client, peer.local_addr().unwrap());
    let mut new = Client::udp(&server);
    go(&mut new, &first);
    talk(&mut new, &peer, relayed);
    for transport in [Udp, Udp, Udp, Udp, Tcp, Tcp, Tls, Tls] {
        let mut late = Client::new(&server, transport, Family::V4);
        late.login(USER, PASSWORD);
        assert_eq!(late.ask_signed(by(&first)).code(), 400);
        // It is where it was, and as good as any other client.
        let own = late.allocate();
        assert_ne!(own, relayed);
        late.release();
        late.login("bob", "builder");
        assert_eq!(late.ask_signed(by(&first)).code(), 441);
    }
    talk(&mut new, &peer, relayed);
}

#[test]
fn the_quota_of_an_address_moves_along() {
    let server = Server::with(BOTH, &["limits.allocations_per_address=1"]);
    let peer = peer(loopback(Family::V4));
    let at = |host: u8| {
        let to = server.address(Family::V4);
        Client::between(&server, Udp, [127, 0, 0, host].into(), to)
    };
    let mut alice = at(2);
    let (relayed, ticket) = allocate(&mut alice, peer.local_addr().unwrap());
    let mut other = at(3);
    other.allocate();
    let mut new = at(3);
    new.login(USER, PASSWORD);
    assert_eq!(new.ask_signed(by(&ticket)).code(), 486);
    talk(&mut alice, &peer, relayed);
    other.release();
    let ticket = go(&mut new, &ticket);
    talk(&mut new, &peer, relayed);
    other.login(USER, PASSWORD);
    assert_eq!(other.try_allocate().code(), 486, "its address has one");
    let mut second = at(2);
    second.allocate();
    second.release();
    // Moving within one address takes no second place.
    let mut beside = at(3);
    go(&mut beside, &ticket);
    talk(&mut beside, &peer, relayed);
    beside.release();
    other.allocate();
}

#[test]
fn a_ticket_leads_a_connection_to_its_shard_with_all_it_has_sent() {
    let server = Server::new();
    let peer = peer(loopback(Family::V4));
    for transport in [Tcp, Tls, Tcp, Tls] {
        let mut old = Client::new(&server, transport, Family::V4);
        let (relayed, ticket) = allocate(&mut old, peer.local_addr().unwrap());
        let mut new = Client::new(&server, transport, Family::V4);
        new.login(USER, PASSWORD);
        let signer = new.signer.clone().unwrap();
        // Two Refreshes, as retransmitted, data, and the first half of more, in one go.
        let request = by(&ticket).sign(&signer);
        let mut bytes = [request.bytes(), request.bytes()].concat();
        let data = new.channel_frame(CHANNEL, b"at once");
        bytes.extend_from_slice(&data);
        let (half, rest) = data.split_at(7);
        bytes.extend_from_slice(half);
        new.send(&bytes);
        assert_eq!(new.answer_to(&request).code(), 0);
        assert_eq!(new.answer_to(&request).code(), 0);
        assert_eq!(receive(&peer), (b"at once".to_vec(), relayed));
        new.send(rest);
        assert_eq!(receive(&peer), (b"at once".to_vec(), relayed));
        talk(&mut new, &peer, relayed);
        new.release();
    }
}

#[test]
fn nothing_moves_where_it_is_switched_off() {
    let server = Server::with(BOTH, &["protocol.mobility=false"]);
    let mut client = Client::udp(&server);
    client.login(USER, PASSWORD);
    let reply = client.ask_signed(Request::allocate().attr(TICKET.0, &[]));
    assert_eq!(reply.code(), 405);
    client.allocate();
}
