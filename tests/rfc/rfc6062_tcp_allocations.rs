//! TCP allocations (RFC 6062).

use std::sync::Arc;
use std::time::Duration;

use stun::message::{CLASS_INDICATION, METHOD_CONNECT, METHOD_CONNECTION_ATTEMPT};
use turnix::access::Access;
use turnix::base::{FiveTuple, ListenerId, RelayTransport, Transport};
use turnix::turn::{
    CONNECTION_TIMEOUT, ConnectionId, Direction, DropReason, EndReason, Forward, Protocol, Settings,
};
use turnix::wire::Method;

use crate::common::wire::{Reply, Request, Signer};
use crate::common::world::{
    EPOCH, SECRET, World, access_settings, addr, own_addresses, secs, seed, tcp, udp,
};

const CLIENT: &str = "192.0.2.7:4000";
const DATA: &str = "192.0.2.7:4001";
const PEER: &str = "203.0.114.9:1000";
const OTHER: &str = "203.0.114.9:2000";

fn tls(client: &str) -> FiveTuple {
    FiveTuple::new(Transport::Tls, client.parse().unwrap(), ListenerId(2))
}

fn world(settings: Settings) -> World {
    World::with(settings, &access_settings(), seed())
}

/// Connects to `peer`; the id.
fn connect(world: &mut World, alice: &Signer, peer: &str) -> ConnectionId {
    let request = Request::connect(addr(peer)).sign(alice);
    assert!(world.ask_raw(tcp(CLIENT), &request.bytes()).is_empty());
    let (connection, ..) = *world.connects.last().unwrap();
    let replies = world.connected(connection, true);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].code(), 0);
    assert_eq!(replies[0].0.transaction_id, request.0.transaction_id);
    assert!(replies[0].is_signed_by(alice));
    assert_eq!(replies[0].connection_id(), connection.0);
    connection
}

fn permit(world: &mut World, alice: &Signer, peer: &str) {
    let request = Request::create_permission(&[addr(peer)]).sign(alice);
    assert_eq!(world.code(tcp(CLIENT), &request), 0);
}

fn live(world: &World) -> u64 {
    world.server.stats().connections
}

#[test]
fn rfc6062_5_1_an_allocation_over_tcp_or_tls_relays_connections() {
    for from in [tcp(CLIENT), tls(CLIENT)] {
        let mut world = World::new();
        let alice = world.alice(from);
        let request = Request::allocate_tcp().lifetime(1200).sign(&alice);
        let reply = world.ask(from, &request);
        assert_eq!((reply.code(), reply.lifetime()), (0, 1200));
        assert_eq!(reply.mapped(), from.client());
        let (views, _) = world.server.views(world.now, 0, 10);
        assert_eq!(views[0].relay_transport, RelayTransport::Tcp);
        assert_eq!(views[0].relayed, reply.relayed());
        assert!(world.server.has_tcp_allocation(from));
        // The same answer to the same request; another one finds an allocation.
        assert_eq!(world.ask(from, &request).relayed(), reply.relayed());
        let again = Request::allocate_tcp().sign(&alice);
        assert_eq!(world.code(from, &again), 437);
        assert_eq!(world.code(from, &Request::refresh(0).sign(&alice)), 0);
        assert_eq!(world.ended[0].reason, EndReason::Released);
    }
}

#[test]
fn rfc6062_5_1_not_over_udp_and_not_with_what_is_for_datagrams() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate_tcp().sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &request), 400);
    let alice = world.alice(tcp(CLIENT));
    for (kind, value) in [
        (0x0018, &[0x00][..]),
        (0x0018, &[0x80]),
        (0x001A, &[]),
        (0x0022, &[1, 2, 3, 4, 5, 6, 7, 8]),
    ] {
        let request = Request::allocate_tcp().attr(kind, value).sign(&alice);
        assert_eq!(world.code(tcp(CLIENT), &request), 400, "{kind:#06x}");
    }
    let request = Request::allocate_tcp().attr(0x7777, &[]).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &request), 420);
    // Neither UDP nor TCP.
    let other = Request::new(stun::message::METHOD_ALLOCATE).attr(0x0019, &[132, 0, 0, 0]);
    assert_eq!(world.code(tcp(CLIENT), &other.sign(&alice)), 442);
    assert!(world.opened.is_empty());
    // The other family, as RFC 8656 has it.
    let request = Request::allocate_tcp().family(2).sign(&alice);
    let reply = world.ask(tcp(CLIENT), &request);
    assert!(reply.relayed().is_ipv6());
    let connect = Request::connect(addr(PEER)).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &connect), 443);
}

#[test]
fn switched_off_nothing_of_it_is_there() {
    let mut world = world(Settings {
        protocol: Protocol {
            tcp_allocations: false,
            ..Protocol::default()
        },
        ..Settings::default()
    });
    let alice = world.alice(tcp(CLIENT));
    let request = Request::allocate_tcp().sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &request), 442);
    for request in [Request::connect(addr(PEER)), Request::connection_bind(1)] {
        let bytes = request.sign(&alice).bytes();
        let forward = world.input(tcp(CLIENT), &bytes);
        assert_eq!(forward, Forward::Drop(DropReason::Unexpected));
    }
}

#[test]
fn rfc6062_5_2_connect_is_answered_once_the_peer_has_accepted() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate_tcp(tcp(CLIENT));
    // Of one that is not there, and of one that relays datagrams.
    let request = Request::connect(addr(PEER));
    let stranger = world.alice(tcp(DATA));
    assert_eq!(world.code(tcp(DATA), &request.clone().sign(&stranger)), 437);
    let (bob, ..) = world.allocate(tcp("192.0.2.8:1"));
    let of_datagrams = request.clone().sign(&bob);
    assert_eq!(world.code(tcp("192.0.2.8:1"), &of_datagrams), 403);
    let nobody = Request::new(METHOD_CONNECT).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &nobody), 400);
    assert_eq!(world.code(tcp(CLIENT), &Request::connect(addr(PEER))), 401);

    // It takes no permission, and makes none.
    let connection = connect(&mut world, &alice, PEER);
    let (_, from, peer) = world.connects[0];
    assert_eq!((from, peer.address()), (id, addr(PEER)));
    assert_eq!(world.accepted(id, addr(OTHER)), None);
    let (views, _) = world.server.views(world.now, 0, 1);
    assert_eq!((views[0].connections, views[0].permissions), (1, 0));
    assert_eq!(connection.shard(), 0);
}

#[test]
fn rfc6062_5_2_one_connection_to_a_peer_and_447_when_there_is_none() {
    let mut world = World::new();
    let (alice, ..) = world.allocate_tcp(tcp(CLIENT));
    let request = Request::connect(addr(PEER)).sign(&alice);
    assert!(world.ask_raw(tcp(CLIENT), &request.bytes()).is_empty());
    let again = Request::connect(addr(PEER)).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &again), 446, "pending");
    let (failed, ..) = world.connects[0];
    let replies = world.connected(failed, false);
    assert_eq!(replies[0].code(), 447);
    assert_eq!(replies[0].0.transaction_id, request.0.transaction_id);
    assert!(replies[0].is_signed_by(&alice));
    assert_eq!(
        (live(&world), world.disconnects.as_slice()),
        (0, &[failed][..])
    );
    // What is told late changes nothing.
    assert!(world.connected(failed, true).is_empty());

    let connection = connect(&mut world, &alice, PEER);
    let again = Request::connect(addr(PEER)).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &again), 446, "to be bound");
    let bind = Request::connection_bind(connection.0).sign(&alice);
    assert_eq!(world.code(tcp(DATA), &bind), 0);
    let again = Request::connect(addr(PEER)).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &again), 446, "active");
    // Another port is another peer.
    connect(&mut world, &alice, OTHER);
    (world.server).handle_connection_closed(world.now, connection);
    connect(&mut world, &alice, PEER);
    let answered = world.server.stats().requests[Method::Connect as usize];
    assert_eq!(answered[Transport::Tcp as usize].iter().sum::<u64>(), 7);
}

#[test]
fn rfc6062_5_2_a_peer_has_thirty_seconds_to_accept() {
    let mut world = World::new();
    let (alice, ..) = world.allocate_tcp(tcp(CLIENT));
    let request = Request::connect(addr(PEER)).sign(&alice);
    assert!(world.ask_raw(tcp(CLIENT), &request.bytes()).is_empty());
    let (connection, ..) = world.connects[0];
    world.pass(CONNECTION_TIMEOUT - Duration::from_millis(1));
    assert!(world.sent.is_empty());
    world.pass(Duration::from_millis(1));
    let (to, answer) = world.sent.pop().unwrap();
    assert_eq!((to, Reply::parse(&answer).code()), (tcp(CLIENT), 447));
    assert_eq!(world.disconnects, [connection]);
    assert_eq!(live(&world), 0);
}

#[test]
fn rfc6062_5_3_an_expected_peer_is_announced() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate_tcp(tcp(CLIENT));
    assert_eq!(world.accepted(id, addr(PEER)), None, "without a permission");
    let dropped = |world: &World, reason| world.server.stats().dropped[reason as usize];
    assert_eq!(dropped(&world, DropReason::NoPermission), 1);
    assert!(world.sent.is_empty());

    permit(&mut world, &alice, OTHER);
    world.sent.clear();
    let connection = world.accepted(id, addr(PEER)).expect("any port of it");
    let (to, message) = world.sent.pop().unwrap();
    assert_eq!(to, tcp(CLIENT));
    let attempt = Reply::parse(&message);
    assert_eq!(attempt.0.typ.class, CLASS_INDICATION);
    assert_eq!(attempt.0.typ.method, METHOD_CONNECTION_ATTEMPT);
    assert_eq!(attempt.peer(), addr(PEER));
    assert_eq!(attempt.connection_id(), connection.0);
    assert_eq!(attempt.attribute_types(), [0x0012, 0x002A]);
    // It exists, whoever began it.
    let again = Request::connect(addr(PEER)).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &again), 446);
    // The permission ends, and with it what comes anew; not what is there.
    world.pass(CONNECTION_TIMEOUT);
    assert_eq!(world.disconnects, [connection], "nobody has bound it");
    world.pass(secs(300));
    assert_eq!(world.accepted(id, addr(PEER)), None);
}

#[test]
fn rfc6062_5_4_a_connection_is_bound_once_by_its_owner() {
    let mut world = World::new();
    let (alice, ..) = world.allocate_tcp(tcp(CLIENT));
    let connection = connect(&mut world, &alice, PEER);
    let bind = |id: u32, signer: &Signer| Request::connection_bind(id).sign(signer);

    // Without credentials, without an id, with none that there is, over UDP, on the control connection.
    let unsigned = Request::connection_bind(connection.0);
    assert_eq!(world.code(tcp(DATA), &unsigned), 401);
    let there = world.alice(tcp(DATA));
    let none = Request::new(stun::message::METHOD_CONNECTION_BIND).sign(&there);
    assert_eq!(world.code(tcp(DATA), &none), 400);
    let short = Request::new(stun::message::METHOD_CONNECTION_BIND).attr(0x002A, &[1, 2, 3]);
    assert_eq!(world.code(tcp(DATA), &short.sign(&there)), 400);
    let wrong = bind(connection.0 ^ 1, &there);
    assert_eq!(world.code(tcp(DATA), &wrong), 400);
    let over_udp = world.alice(udp(DATA));
    assert_eq!(world.code(udp(DATA), &bind(connection.0, &over_udp)), 400);
    assert_eq!(world.code(tcp(CLIENT), &bind(connection.0, &alice)), 400);
    // Somebody else.
    let nonce = there.nonce.clone();
    let bob = Signer::new("bob", "builder", &nonce);
    assert_eq!(world.code(tcp(DATA), &bind(connection.0, &bob)), 441);
    assert!(world.bound.is_empty());

    // All that has used nothing up. Over TLS it may come, too, and with the nonce of the control connection.
    let reply = world.ask(tls(DATA), &bind(connection.0, &alice));
    assert_eq!(reply.code(), 0);
    assert!(reply.is_signed_by(&alice));
    assert_eq!(world.bound, [(connection, tls(DATA))]);
    assert_eq!(world.code(tcp(DATA), &bind(connection.0, &there)), 400);
    // Bound, it lives as long as the allocation.
    world.pass(secs(599));
    assert_eq!(live(&world), 1);
    assert!(world.disconnects.is_empty());
    world.pass(secs(1));
    assert_eq!(world.disconnects, [connection]);
    assert_eq!(live(&world), 0);
}

#[test]
fn rfc6062_5_4_of_one_that_is_being_made_nobody_knows() {
    let mut world = World::new();
    let (alice, ..) = world.allocate_tcp(tcp(CLIENT));
    let request = Request::connect(addr(PEER)).sign(&alice);
    assert!(world.ask_raw(tcp(CLIENT), &request.bytes()).is_empty());
    let (connection, ..) = world.connects[0];
    let bind = Request::connection_bind(connection.0).sign(&alice);
    assert_eq!(world.code(tcp(DATA), &bind), 400);
    // Nor of one whose time is over, though the timer is late.
    world.connected(connection, true);
    world.pass_unnoticed(CONNECTION_TIMEOUT);
    let bind = Request::connection_bind(connection.0).sign(&alice);
    assert_eq!(world.code(tcp(DATA), &bind), 400);
    world.timeout();
    assert_eq!(world.disconnects, [connection]);
}

/// Whoever could allocate can bind what the allocation has, when its time-limited credential is over by then.
#[test]
fn the_owner_of_an_allocation_binds_with_the_credential_it_has() {
    let mut world = World::new();
    let expires = EPOCH.as_secs() + 60;
    let secret = turnix::base::Secret::new(SECRET.to_owned());
    let (username, password) = turnix::access::rest::mint(&secret, Some("carol"), expires);
    let carol = Signer::new(&username, &password, &world.nonce(tcp(CLIENT)));
    let reply = world.ask(tcp(CLIENT), &Request::allocate_tcp().sign(&carol));
    assert_eq!(reply.code(), 0);
    world.pass(secs(61));
    let connection = connect(&mut world, &carol, PEER);
    let nonce = world.nonce(tcp(DATA));
    let bind = Request::connection_bind(connection.0).sign(&carol.nonce(&nonce));
    assert_eq!(world.code(tcp(DATA), &bind), 0);
}

#[test]
fn rfc6062_5_5_connections_end_with_their_allocation() {
    for end in ["release", "close", "expire", "end"] {
        let mut world = World::new();
        let (alice, id, _) = world.allocate_tcp(tcp(CLIENT));
        permit(&mut world, &alice, PEER);
        let bound = connect(&mut world, &alice, PEER);
        let bind = Request::connection_bind(bound.0).sign(&alice);
        assert_eq!(world.code(tcp(DATA), &bind), 0);
        world.pass(secs(580));
        permit(&mut world, &alice, PEER);
        let waiting = world.accepted(id, addr(OTHER)).unwrap();
        let request = Request::connect(addr("8.8.8.8:80")).sign(&alice);
        assert!(world.ask_raw(tcp(CLIENT), &request.bytes()).is_empty());
        let (making, ..) = *world.connects.last().unwrap();
        assert_eq!(live(&world), 3);
        match end {
            "release" => {
                let release = Request::refresh(0).sign(&alice);
                assert_eq!(world.code(tcp(CLIENT), &release), 0);
            }
            "close" => (world.server).handle_client_closed(world.now, tcp(CLIENT)),
            "expire" => world.pass(secs(20)),
            _ => {
                let reason = EndReason::Administrative;
                assert!((world.server).end_allocation(world.now, id, reason));
            }
        }
        world.drain();
        assert_eq!(world.disconnects, [bound, waiting, making], "{end}");
        assert_eq!((world.closed.as_slice(), live(&world)), (&[id][..], 0));
        assert_eq!(world.ended[0].view.relay_transport, RelayTransport::Tcp);
        assert!(world.connected(making, true).is_empty());
        assert_eq!(world.server.poll_timeout(), None);
    }
}

#[test]
fn channels_and_indications_are_not_for_it() {
    let mut world = World::new();
    let (alice, ..) = world.allocate_tcp(tcp(CLIENT));
    permit(&mut world, &alice, PEER);
    let bind = Request::channel_bind(0x4000, addr(PEER)).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &bind), 403);
    let send = Request::send(addr(PEER), b"x").bytes();
    let forward = world.input(tcp(CLIENT), &send);
    assert_eq!(forward, Forward::Drop(DropReason::Unexpected));
    for method in [METHOD_CONNECTION_ATTEMPT, METHOD_CONNECT] {
        let message = Request::of_class(method, CLASS_INDICATION).bytes();
        let forward = world.input(tcp(CLIENT), &message);
        assert_eq!(forward, Forward::Drop(DropReason::Unexpected));
    }
}

#[test]
fn connections_are_bounded_and_new_peers_are_counted() {
    let mut world = world(Settings {
        connections_per_allocation: 3,
        ..Settings::default()
    });
    let (alice, id, _) = world.allocate_tcp(tcp(CLIENT));
    permit(&mut world, &alice, PEER);
    connect(&mut world, &alice, PEER);
    for port in [1, 2] {
        let peer = std::net::SocketAddr::new(addr(PEER).ip(), port);
        assert!(world.accepted(id, peer).is_some());
    }
    assert_eq!(world.accepted(id, addr(OTHER)), None);
    let dropped = world.server.stats().dropped[DropReason::Connections as usize];
    assert_eq!(dropped, 1);
    let request = Request::connect(addr("8.8.8.8:80")).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &request), 508);
    // A scan of ports meets the limit of new peers, however soon each attempt is over.
    let mut refused = 0;
    world.pass(CONNECTION_TIMEOUT);
    for port in 1..=500 {
        let peer = std::net::SocketAddr::new(addr("203.0.114.77:1").ip(), port);
        let request = Request::connect(peer).sign(&alice);
        match world.ask_raw(tcp(CLIENT), &request.bytes()).first() {
            None => {
                let (connection, ..) = *world.connects.last().unwrap();
                world.connected(connection, false);
            }
            Some(answer) => {
                assert_eq!(Reply::parse(answer).code(), 508);
                refused += 1;
            }
        }
    }
    assert!((90..=110).contains(&refused), "{refused}");
    assert_eq!(world.server.stats().new_peers_refused, refused);
}

#[test]
fn a_policy_that_forbids_a_peer_ends_its_connections() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate_tcp(tcp(CLIENT));
    permit(&mut world, &alice, PEER);
    let bound = connect(&mut world, &alice, PEER);
    let bind = Request::connection_bind(bound.0).sign(&alice);
    assert_eq!(world.code(tcp(DATA), &bind), 0);
    let waiting = world.accepted(id, addr(OTHER)).unwrap();
    let kept = connect(&mut world, &alice, "8.8.8.8:80");
    let request = Request::connect(addr("203.0.114.10:1")).sign(&alice);
    assert!(world.ask_raw(tcp(CLIENT), &request.bytes()).is_empty());
    let (making, ..) = *world.connects.last().unwrap();
    let mut settings = access_settings();
    settings.peers.deny = vec!["203.0.114.0/24".parse().unwrap()];
    let stricter = Arc::new(Access::new(&settings, own_addresses()));
    world.sent.clear();
    world.server.set_access(world.now, stricter);
    world.drain();
    assert_eq!(world.disconnects, [bound, waiting, making]);
    let (to, answer) = world.sent.pop().unwrap();
    assert_eq!((to, Reply::parse(&answer).code()), (tcp(CLIENT), 403));
    assert_eq!(live(&world), 1);
    let bind = Request::connection_bind(kept.0).sign(&alice);
    assert_eq!(world.code(tcp(DATA), &bind), 0);
    let again = Request::connect(addr(PEER)).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &again), 403);
}

#[test]
fn ids_differ_and_name_their_shard() {
    let mut seen = std::collections::HashSet::new();
    for shard in [0, 1, 127] {
        let mut world = world(Settings {
            connections_per_allocation: 100,
            ..Settings::default()
        });
        world.server.set_shard(shard);
        let (alice, ..) = world.allocate_tcp(tcp(CLIENT));
        for port in 1..=100 {
            let peer = std::net::SocketAddr::new(addr(PEER).ip(), port);
            let connection = connect(&mut world, &alice, &peer.to_string());
            assert_eq!(connection.shard(), shard);
            assert!(seen.insert(connection), "{connection:?}");
        }
    }
    let mut low: Vec<_> = (seen.iter().filter(|id| id.shard() == 0))
        .map(|id| id.0)
        .collect();
    low.sort_unstable();
    let beside = |two: &&[u32]| two[1] - two[0] < 1000;
    assert!(low.windows(2).filter(beside).count() < 5, "{low:?}");
}

#[test]
fn data_is_counted_and_waits_for_its_bandwidth() {
    let mut limited = Settings::default();
    limited.bandwidth.per_allocation = 800_000;
    let mut world = world(limited);
    let (alice, ..) = world.allocate_tcp(tcp(CLIENT));
    let connection = connect(&mut world, &alice, PEER);
    let bind = Request::connection_bind(connection.0).sign(&alice);
    assert_eq!(world.code(tcp(DATA), &bind), 0);
    let mut sent = 0;
    let end = world.now + secs(10);
    while world.now.mono < end.mono {
        let (server, now) = (&mut world.server, world.now);
        match server.stream_pause(now, connection, Direction::ToPeer) {
            Some(pause) => world.now = now + pause,
            None => {
                server.count_stream(now, connection, Direction::ToPeer, 16_384);
                sent += 16_384;
            }
        }
    }
    // 100 000 bytes a second, and what a full bucket holds.
    assert!((980_000..=1_040_000).contains(&sent), "{sent}");
    let (views, _) = world.server.views(world.now, 0, 1);
    let traffic = views[0].traffic[Direction::ToPeer as usize];
    assert_eq!((traffic.bytes, traffic.packets), (sent, sent / 16_384));
    // The other direction has a bucket of its own.
    let now = world.now;
    let pause = (world.server).stream_pause(now, connection, Direction::ToClient);
    assert_eq!(pause, None);
}

/// Nothing of it can be moved to another process, so it stays, and takes nothing new.
#[test]
fn another_process_gets_none_of_it() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate_tcp(tcp(CLIENT));
    permit(&mut world, &alice, PEER);
    let connection = connect(&mut world, &alice, PEER);
    let (_, moved, _) = world.allocate(tcp("192.0.2.8:1"));
    let snapshot = world.server.snapshot(world.now, |_| true);
    assert_eq!(world.server.leave(|_| true), [moved]);
    let successor = turnix::turn::Server::restore(
        world.now,
        Settings::default(),
        seed().families,
        Arc::clone(&world.access),
        snapshot,
    );
    assert_eq!(successor.len(), 1);
    assert!(!successor.has_allocation(tcp(CLIENT)));
    assert_eq!(world.server.len(), 1);
    let bind = Request::connection_bind(connection.0).sign(&alice);
    assert_eq!(world.code(tcp(DATA), &bind), 0, "what is there goes on");
    assert_eq!(world.accepted(id, addr(OTHER)), None);
    let request = Request::connect(addr("8.8.8.8:80")).sign(&alice);
    assert_eq!(world.code(tcp(CLIENT), &request), 508);
}
