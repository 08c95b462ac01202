//! Tickets of mobility (RFC 8016): stolen, forged, used again, in floods; and allocations that nobody comes back for.

use stun::attributes::AttrType;
use turnix::base::{Family, FiveTuple};
use turnix::turn::{AllocationId, DropReason, Forward, Seed, Settings, outcome_index};
use turnix::wire::ErrorCode;

use super::client::Client;
use super::common::wire::{Request, Signer, channel_data};
use super::common::world::{PASSWORD, USER, World, access_settings, addr, secs, seed, tcp, udp};
use super::server::{BOTH, Server};

const TICKET: AttrType = AttrType(0x8030);
const HOME: &str = "192.0.2.7:4000";
const AWAY: &str = "203.0.113.9:5000";
const PEER: &str = "8.8.8.8:5000";
const CHANNEL: u16 = 0x4001;

fn by(ticket: &[u8]) -> Request {
    Request::refresh(600).attr(TICKET.0, ticket)
}

/// Alice's mobile allocation with a channel, and its ticket.
fn allocate(world: &mut World, from: FiveTuple) -> (AllocationId, Vec<u8>) {
    let alice = world.alice(from);
    let reply = world.ask(from, &Request::allocate().attr(TICKET.0, &[]).sign(&alice));
    let bind = Request::channel_bind(CHANNEL, addr(PEER)).sign(&alice);
    assert_eq!(world.code(from, &bind), 0);
    let ticket = reply.attr(TICKET).expect("a ticket");
    (*world.opened.last().unwrap(), ticket)
}

/// Nothing has come of it: alice is where she was, alone.
fn is_at_home(world: &mut World, id: AllocationId) {
    assert_eq!(world.server.len(), 1);
    assert!(world.counted.is_empty() && world.left.is_empty());
    let forward = world.peer_input(id, addr(PEER), b"for alice");
    let at_home =
        matches!(forward, Forward::ToClient { five_tuple, .. } if five_tuple == udp(HOME));
    assert!(at_home, "{forward:?}");
}

#[test]
fn another_users_ticket() {
    let mut world = World::new();
    let (id, ticket) = allocate(&mut world, udp(HOME));
    let bob = Signer::new("bob", "builder", &world.nonce(udp(AWAY)));
    for lifetime in [0, 600] {
        let request = Request::refresh(lifetime).attr(TICKET.0, &ticket);
        assert_eq!(world.code(udp(AWAY), &request.sign(&bob)), 441);
    }
    assert!(!world.server.has_allocation(udp(AWAY)));
    is_at_home(&mut world, id);
}

#[test]
fn a_ticket_without_its_owners_password() {
    let mut world = World::new();
    let (id, ticket) = allocate(&mut world, udp(HOME));
    let alice = world.alice_at(udp(HOME));
    let nonce = world.nonce(udp(AWAY));
    assert_eq!(world.code(udp(AWAY), &by(&ticket)), 401);
    let wrong = Signer::new(USER, "wrong", &nonce);
    assert_eq!(world.code(udp(AWAY), &by(&ticket).sign(&wrong)), 401);
    // As captured, from another address.
    assert_eq!(world.code(udp(AWAY), &by(&ticket).sign(&alice)), 438);
    is_at_home(&mut world, id);
}

#[test]
fn forged_and_cut_tickets() {
    let mut world = World::new();
    let (id, ticket) = allocate(&mut world, udp(HOME));
    let alice = world.alice(udp(AWAY));
    for index in 0..ticket.len() {
        for wrong in [b'A', b'/', 0, 0xFF] {
            let mut forged = ticket.clone();
            if std::mem::replace(&mut forged[index], wrong) != wrong {
                assert_eq!(world.code(udp(AWAY), &by(&forged).sign(&alice)), 400);
            }
        }
        let cut = by(&ticket[..index]).sign(&alice);
        assert_eq!(world.code(udp(AWAY), &cut), 400);
    }
    let long = [&ticket[..], &ticket[..]].concat();
    assert_eq!(world.code(udp(AWAY), &by(&long).sign(&alice)), 400);
    is_at_home(&mut world, id);
}

#[test]
fn a_ticket_of_another_server_or_of_a_process_that_has_ended() {
    let mut before = World::new();
    let (_, ticket) = allocate(&mut before, udp(HOME));
    let seed = Seed {
        nonce_key: [8; 32],
        ..seed()
    };
    let mut world = World::with(Settings::default(), &access_settings(), seed);
    // The same slot and generation are somebody's here.
    let (id, _) = allocate(&mut world, udp(HOME));
    let alice = world.alice(udp(AWAY));
    assert_eq!(world.code(udp(AWAY), &by(&ticket).sign(&alice)), 400);
    is_at_home(&mut world, id);
}

#[test]
fn a_flood_of_tickets_from_strangers_leaves_nothing() {
    let mut world = World::new();
    let (id, ticket) = allocate(&mut world, udp(HOME));
    let mut answers = 0;
    for number in 0..10_000_u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let from = udp(&format!("8.{a}.{b}.{c}:4000"));
        let request = by(&ticket);
        let request = match number % 3 {
            0 => request,
            1 => request.sign(&Signer::new(USER, "wrong", "0123456789abcdefghijklmn")),
            _ => request.sign(&Signer::new(USER, PASSWORD, "0123456789abcdefghijklmn")),
        };
        let forward = world.input(from, &request.bytes());
        assert!(matches!(
            forward,
            Forward::Consumed | Forward::Drop(DropReason::RateLimited)
        ));
        answers += world.sent.drain(..).count();
        assert!(!world.server.has_allocation(from));
    }
    assert!(answers > 0);
    // Nobody got as far as having a ticket looked at.
    assert_eq!(world.server.stats().mobility.iter().sum::<u64>(), 0);
    is_at_home(&mut world, id);
}

#[test]
fn a_flood_of_one_used_ticket_by_its_owner_leaves_nothing() {
    let mut world = World::new();
    let (id, ticket) = allocate(&mut world, udp(HOME));
    let alice = world.alice(udp(AWAY));
    assert_eq!(world.code(udp(AWAY), &by(&ticket).sign(&alice)), 0);
    const REPLAYS: u64 = 2000;
    for port in 1..=REPLAYS {
        // A nonce costs an address a token over UDP.
        let from = tcp(&format!("203.0.113.10:{port}"));
        let alice = world.alice(from);
        assert_eq!(world.code(from, &by(&ticket).sign(&alice)), 400);
        assert!(!world.server.has_allocation(from));
    }
    let stats = world.server.stats();
    let refused = outcome_index(Err(ErrorCode::BadRequest));
    assert_eq!((stats.mobility[0], stats.mobility[refused]), (1, REPLAYS));
    assert_eq!(world.counted.len(), 1, "no quota was asked");
    let forward = world.peer_input(id, addr(PEER), b"for alice");
    assert!(matches!(forward, Forward::ToClient { .. }), "{forward:?}");
}

/// A move opens no way that the policy closes, and none stays open behind it.
#[test]
fn a_stricter_policy_holds_on_both_ways_of_a_move() {
    let mut world = World::new();
    let (id, ticket) = allocate(&mut world, udp(HOME));
    let alice = world.alice(udp(AWAY));
    assert_eq!(world.code(udp(AWAY), &by(&ticket).sign(&alice)), 0);
    for from in [udp(HOME), udp(AWAY)] {
        for refused in ["10.0.0.1:80", "127.0.0.1:80", "169.254.169.254:80"] {
            let forward = world.input(from, &Request::send(addr(refused), b"x").bytes());
            assert_eq!(forward, Forward::Drop(DropReason::PeerDenied));
        }
    }
    let mut settings = access_settings();
    settings.peers.deny = vec!["8.8.8.0/24".parse().unwrap()];
    let own = super::common::world::own_addresses();
    let access = std::sync::Arc::new(turnix::access::Access::new(&settings, own));
    world.server.set_access(world.now, access);
    world.drain();
    for from in [udp(HOME), udp(AWAY)] {
        let forward = world.input(from, &channel_data(CHANNEL, b"x"));
        assert_eq!(forward, Forward::Drop(DropReason::NoChannel));
        let forward = world.input(from, &Request::send(addr(PEER), b"x").bytes());
        assert_eq!(forward, Forward::Drop(DropReason::PeerDenied));
    }
    let forward = world.peer_input(id, addr(PEER), b"x");
    assert_eq!(forward, Forward::Drop(DropReason::NoPermission));
}

/// Whoever is revoked, or whose user is gone, ends wherever it is going.
#[test]
fn an_end_leaves_neither_way_open() {
    for moved in [false, true] {
        let mut world = World::new();
        let (id, ticket) = allocate(&mut world, udp(HOME));
        let alice = world.alice(udp(AWAY));
        assert_eq!(world.code(udp(AWAY), &by(&ticket).sign(&alice)), 0);
        if moved {
            world.input(udp(AWAY), &channel_data(CHANNEL, b"x"));
        }
        let mut settings = access_settings();
        settings.users.retain(|(user, _)| user != USER);
        let own = super::common::world::own_addresses();
        let access = std::sync::Arc::new(turnix::access::Access::new(&settings, own));
        assert_eq!(world.server.set_access(world.now, access), 1);
        world.drain();
        assert_eq!(world.closed, [id]);
        for from in [udp(HOME), udp(AWAY)] {
            assert!(!world.server.has_allocation(from) && world.left.contains(&from));
            let forward = world.input(from, &channel_data(CHANNEL, b"x"));
            assert_eq!(forward, Forward::Drop(DropReason::NoChannel));
        }
    }
}

/// Connections that are closed and opened again and again pile nothing up: what is adrift counts, and ends.
#[test]
fn a_flood_of_orphans_stays_within_the_quota_and_ends() {
    let server = Server::with(BOTH, &["limits.allocations_per_user=3"]);
    for number in 0..8 {
        let mut client = Client::tcp(&server);
        client.login(USER, PASSWORD);
        let code = client.code_of(Request::allocate().attr(TICKET.0, &[]));
        assert_eq!(code, if number < 3 { 0 } else { 486 });
        drop(client);
        // Whether it has ended or is adrift, the connection is gone before the next one comes.
        super::server::until("the connection is gone", || {
            server.snapshot().stream_connections.iter().sum::<u64>() == 0
        });
    }
    assert_eq!(server.live(), 3);

    let mut world = World::new();
    for number in 0..100 {
        let from = tcp(&format!("192.0.2.7:{}", 4000 + number));
        allocate(&mut world, from);
        world.server.handle_client_closed(world.now, from);
    }
    assert_eq!(world.server.len(), 100);
    world.pass(secs(30));
    assert!(world.server.is_empty());
}

#[test]
fn moving_makes_no_room_for_more() {
    let server = Server::with(BOTH, &["limits.allocations_per_user=1"]);
    let mut home = Client::udp(&server);
    home.login(USER, PASSWORD);
    let reply = home.ask_signed(Request::allocate().attr(TICKET.0, &[]));
    let ticket = reply.attr(TICKET).expect("a ticket");
    let mut away = Client::new(&server, turnix::base::Transport::Udp, Family::V4);
    away.login(USER, PASSWORD);
    assert_eq!(away.ask_signed(by(&ticket)).code(), 0);
    let mut more = Client::udp(&server);
    more.login(USER, PASSWORD);
    assert_eq!(more.code_of(Request::allocate()), 486);
    assert_eq!(home.code_of(Request::allocate()), 437);
    away.permit("127.0.0.1:9".parse().unwrap());
    assert_eq!(home.code_of(Request::allocate()), 486);
}
