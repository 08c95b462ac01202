//! TCP allocations as a way into the network: whom Connect reaches, who is let in, and what floods and slow peers cost.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use turnix::access::{Access, DeniedRule};
use turnix::base::{Family, Transport};
use turnix::turn::{DropReason, Settings};
use turnix::wire::Method;

use super::client::{Client, Frame};
use super::common::wire::{Request, Signer};
use super::common::world::{
    EPOCH, PASSWORD, RELAY_V4, USER, VISITS, World, addr, own_addresses, seed, tcp,
};
use super::peers::{
    PERMITTED, PORT, REFUSED, access, family_of, five_tuple, peer_at, quiet_server, roomy,
};
use super::server::{PATIENCE, Server, quiet_address, until};

const EVERYTHING: &[&str] = &["0.0.0.0/0", "::/0", "64:ff9b:1::/48", "metadata"];

/// Every transport that has TCP allocations, family of the client and family of the relayed address.
fn everywhere() -> impl Iterator<Item = (Transport, Family, Family)> {
    [Transport::Tcp, Transport::Tls]
        .into_iter()
        .flat_map(|transport| {
            (Family::ALL.into_iter())
                .flat_map(move |client| Family::ALL.map(|relay| (transport, client, relay)))
        })
}

fn allocate(family: Family) -> Request {
    match family {
        Family::V4 => Request::allocate_tcp(),
        Family::V6 => Request::allocate_tcp().family(2),
    }
}

/// What a client of a TCP allocation sends to reach `peer` by `method`, and the code of one that policy refuses.
fn attempt(method: Method, peer: SocketAddr) -> Option<Request> {
    match method {
        Method::Connect => Some(Request::connect(peer)),
        Method::CreatePermission => Some(Request::create_permission(&[peer])),
        // For datagrams: refused whoever the peer is (`rfc6062_tcp_allocations.rs`).
        Method::ChannelBind | Method::Send => None,
        Method::Binding
        | Method::Allocate
        | Method::Refresh
        | Method::Data
        | Method::ConnectionBind
        | Method::ConnectionAttempt
        | Method::Unknown => None,
    }
}

#[track_caller]
fn counted(world: &mut World, mut act: impl FnMut(&mut World)) -> Vec<DeniedRule> {
    let before = world.server.stats().peer_denied;
    act(world);
    let after = world.server.stats().peer_denied;
    let times = |rule: &DeniedRule| after[*rule as usize] - before[*rule as usize];
    (DeniedRule::ALL.into_iter())
        .flat_map(|rule| std::iter::repeat_n(rule, times(&rule) as usize))
        .collect()
}

#[test]
fn refused_peers_are_connected_to_by_no_way() {
    for (transport, client, relay) in everywhere() {
        let mut world = World::with(roomy(), &access(&[], &[]), seed());
        let from = five_tuple(transport, client);
        let signer = world.alice(from);
        assert_eq!(world.code(from, &allocate(relay).sign(&signer)), 0);
        for &(text, rule) in REFUSED {
            for port in [1, 53, PORT, 49_152, 65_535] {
                let peer = peer_at(text, port);
                for method in Method::ALL {
                    let Some(request) = attempt(method, peer) else {
                        continue;
                    };
                    let request = request.sign(&signer);
                    let same = family_of(peer) == relay;
                    let rules = counted(&mut world, |world| {
                        let code = world.code(from, &request);
                        assert_eq!(code, if same { 403 } else { 443 }, "{method:?} {peer}");
                    });
                    assert_eq!(rules, if same { vec![rule] } else { vec![] }, "{peer}");
                }
            }
        }
        assert!(world.connects.is_empty());
    }
}

/// The table refuses what it does for the reason it gives.
#[test]
fn public_peers_are_connected_to() {
    for (transport, client, relay) in everywhere() {
        let settings = Settings {
            connections_per_allocation: 100,
            ..roomy()
        };
        let mut world = World::with(settings, &access(&[], &[]), seed());
        let from = five_tuple(transport, client);
        let signer = world.alice(from);
        assert_eq!(world.code(from, &allocate(relay).sign(&signer)), 0);
        let mut seen = Vec::new();
        for text in PERMITTED {
            let peer = peer_at(text, PORT);
            let canonical = SocketAddr::new(peer.ip().to_canonical(), PORT);
            if family_of(peer) != relay || seen.contains(&canonical) {
                continue;
            }
            seen.push(canonical);
            let request = Request::connect(peer).sign(&signer);
            assert!(world.ask_raw(from, &request.bytes()).is_empty(), "{peer}");
            let (.., permitted) = *world.connects.last().unwrap();
            assert_eq!(permitted.address(), canonical);
            assert!(permitted.may_use_kernel() && !permitted.may_be_own_relay());
        }
        assert_eq!(world.connects.len(), seen.len());
    }
}

/// A permission that another policy gave is no proof: who comes in is judged when it comes.
#[test]
fn refused_peers_do_not_come_in_whatever_was_permitted() {
    let strict = Arc::new(Access::new(&access(&[], &[]), own_addresses()));
    for (transport, client, relay) in everywhere() {
        let mut world = World::with(roomy(), &access(&[], EVERYTHING), seed());
        let from = five_tuple(transport, client);
        let signer = world.alice(from);
        assert_eq!(world.code(from, &allocate(relay).sign(&signer)), 0);
        let id = *world.opened.last().unwrap();
        let peers: Vec<_> = (REFUSED.iter())
            .map(|&(text, rule)| (peer_at(text, PORT), rule))
            .filter(|(peer, _)| family_of(*peer) == relay)
            .collect();
        for (peer, _) in &peers {
            let permit = Request::create_permission(&[*peer]).sign(&signer);
            assert_eq!(world.code(from, &permit), 0, "{peer}");
        }
        world.server.set_access(world.now, Arc::clone(&strict));
        world.drain();
        world.sent.clear();
        for (peer, _) in peers {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            assert_eq!(world.accepted(id, peer), None, "{peer}");
        }
        assert!(world.sent.is_empty(), "the client hears nothing");
    }
}

/// With rules that have ports, the port that a peer comes from is judged although its IP is permitted.
#[test]
fn a_port_that_no_rule_allows_neither_comes_in_nor_is_connected_to() {
    let allow = ["10.1.2.3:5004"];
    let mut world = World::with(roomy(), &access(&[], &allow), seed());
    let from = tcp("192.0.2.7:4000");
    let (signer, id, _) = world.allocate_tcp(from);
    let good = addr("10.1.2.3:5004");
    let permit = Request::create_permission(&[good]).sign(&signer);
    assert_eq!(world.code(from, &permit), 0);
    for port in [0, 1, 5003, 5005] {
        let bad = SocketAddr::new(good.ip(), port);
        assert_eq!(world.accepted(id, bad), None, "{bad}");
        let connect = Request::connect(bad).sign(&signer);
        assert_eq!(world.code(from, &connect), 403, "{bad}");
    }
    assert!(world.accepted(id, good).is_some());
}

#[test]
fn own_services_and_what_is_no_relay_port_are_not_connected_to() {
    for allow in [&[][..], EVERYTHING] {
        let mut world = World::with(roomy(), &access(&[], allow), seed());
        let from = tcp("192.0.2.7:4000");
        let (signer, id, relayed) = world.allocate_tcp(from);
        for port in own_addresses().service_ports {
            let peer = peer_at(RELAY_V4, port);
            let connect = Request::connect(peer).sign(&signer);
            assert_eq!(world.code(from, &connect), 403, "{peer}");
        }
        let itself = Request::connect(relayed).sign(&signer);
        assert_eq!(world.code(from, &itself), 403);
        if allow.is_empty() {
            let connect = Request::connect(peer_at(RELAY_V4, 22)).sign(&signer);
            assert_eq!(world.code(from, &connect), 403);
            // What is bound to a relay port and is no allocation's.
            let permit = Request::create_permission(&[relayed]).sign(&signer);
            assert_eq!(world.code(from, &permit), 0);
            let forged = peer_at(RELAY_V4, 60_000);
            let waits = (world.server).handle_peer_accepted(world.now, id, forged, false);
            assert_eq!(waits, None);
        }
    }
}

/// Loops are kept in memory, which connections are not: visitors of the test page get none.
#[test]
fn a_visitor_has_no_tcp_allocation() {
    let mut world = World::new();
    let from = tcp("192.0.2.7:4000");
    let expires = EPOCH.as_secs() + 300;
    let secret = turnix::base::Secret::new(VISITS.to_owned());
    let (username, password) =
        turnix::access::rest::mint(&secret, Some("turnix-test:0123456789abcdef"), expires);
    let visitor = Signer::new(&username, &password, &world.nonce(from));
    let request = Request::allocate_tcp().sign(&visitor);
    assert_eq!(world.code(from, &request), 442);
    assert!(world.opened.is_empty());
}

/// A client with a TCP allocation on the real server.
fn client(server: &Server) -> (Client, SocketAddr) {
    let mut client = Client::tcp(server);
    client.login(USER, PASSWORD);
    let reply = client.ask_signed(Request::allocate_tcp());
    assert_eq!(reply.code(), 0);
    (client, reply.relayed())
}

#[test]
fn the_server_connects_to_nobody_whom_policy_refuses() {
    let (server, relay) = quiet_server(&["peers.allow=[]"]);
    let traps = [
        TcpListener::bind((quiet_address(), 0)).unwrap(),
        // A stranger among the relay ports.
        (49_152..=u16::MAX)
            .find_map(|port| TcpListener::bind((relay, port)).ok())
            .unwrap(),
    ];
    let (mut client, _) = client(&server);
    for (trap, code) in traps.iter().zip([403, 447]) {
        let at = trap.local_addr().unwrap();
        let found = client.ask_signed(Request::connect(at)).code();
        assert_eq!(found, code, "{at}");
        trap.set_nonblocking(true).unwrap();
        let caught = trap.accept().unwrap_err();
        assert_eq!(caught.kind(), ErrorKind::WouldBlock, "{at}");
    }
    // Where everything is allowed, its own services are not.
    let (server, relay) = quiet_server(&["peers.allow=['0.0.0.0/0']", "http.admin='127.0.0.1:0'"]);
    let (mut client, _) = self::client(&server);
    for port in [server.address(Family::V4).port(), server.admin().port()] {
        for text in ["127.0.0.1", "0.0.0.0", &relay.to_string()] {
            let peer = peer_at(text, port);
            let found = client.ask_signed(Request::connect(peer)).code();
            assert_eq!(found, 403, "{peer}");
        }
    }
    assert_eq!(server.snapshot().stats.connections, 0);
}

/// Peers that connect and say nothing: as many wait as may, the others are closed, and the client hears of no more.
#[test]
fn a_flood_of_peers_costs_as_many_connections_as_one_may_have() {
    const FLOOD: usize = 200;
    let (server, _) = quiet_server(&["limits.connections_per_allocation=4"]);
    let (mut client, relayed) = client(&server);
    for _ in 0..20 {
        let mut stranger = TcpStream::connect(relayed).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(stranger.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
    assert_eq!(server.dropped(DropReason::NoPermission), 20);
    client.permit("127.0.0.1:1".parse().unwrap());
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(TcpStream::connect(relayed).unwrap());
    }
    for _ in 0..FLOOD {
        drop(TcpStream::connect(relayed).unwrap());
    }
    // The kernel keeps what the queue of the listener has no room for.
    until("the others are closed", || {
        server.dropped(DropReason::Connections) > 0
    });
    assert_eq!(server.snapshot().stats.connections, 4);
    for _ in 0..4 {
        assert!(matches!(client.expect(), Frame::Message(_)));
    }
    let silence = client.next(Duration::from_millis(200));
    assert!(silence.is_err(), "no word of the others: {silence:?}");
    client.ask(&Request::binding());
    client.release();
    for mut peer in waiting {
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(peer.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
}

/// Whoever guesses ids gets nothing, is sent from shard to shard at no great cost, and is told nothing but 400.
#[test]
fn ids_are_not_guessed_and_a_moving_client_stays_a_stranger() {
    let (server, _) = quiet_server(&[]);
    let (mut control, _) = client(&server);
    let listener = TcpListener::bind((quiet_address(), 0)).unwrap();
    let reply = control.ask_signed(Request::connect(listener.local_addr().unwrap()));
    let id = reply.connection_id();
    let mut guesser = Client::tcp(&server);
    for guess in 0..200_u32 {
        // Both shards, and some that do not exist.
        let guess = (guess % 5) << 25 | (id ^ guess.wrapping_mul(0x9E37) ^ 1) & 0x1FF_FFFF;
        guesser.login("bob", "builder");
        let code = guesser.ask_signed(Request::connection_bind(guess)).code();
        assert_eq!(code, 400);
    }
    // The right one is still of no use to anybody else, and good for its owner.
    assert_eq!(guesser.ask_signed(Request::connection_bind(id)).code(), 441);
    let mut data = Client::tcp(&server);
    data.signer = control.signer.clone();
    assert_eq!(data.ask_signed(Request::connection_bind(id)).code(), 0);
    let (mut peer, _) = listener.accept().unwrap();
    data.send(b"mine");
    let mut got = [0; 4];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"mine");
    peer.write_all(b"yours").unwrap();
    assert_eq!(data.read_raw(5), b"yours");
}
