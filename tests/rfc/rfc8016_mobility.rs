//! Mobility with TURN (RFC 8016).

use std::net::SocketAddr;

use stun::attributes::{ATTR_LIFETIME, ATTR_MESSAGE_INTEGRITY, AttrType};
use turnix::base::{FiveTuple, ListenerId, Transport};
use turnix::turn::{AllocationId, DropReason, EndReason, Forward, OpenError, Protocol, Settings};

use crate::common::wire::{Reply, Request, Signer, channel_data};
use crate::common::world::{EPOCH, SECRET, World, access_settings, addr, secs, seed, tcp, udp};

const TICKET: AttrType = AttrType(0x8030);

const OLD: &str = "192.0.2.7:4000";
const NEW: &str = "203.0.113.9:5000";
const THIRD: &str = "203.0.113.77:6000";
const PEER: &str = "8.8.8.8:5000";
const CHANNEL: u16 = 0x4001;

fn tls(client: &str) -> FiveTuple {
    FiveTuple::new(Transport::Tls, client.parse().unwrap(), ListenerId(1))
}

fn ticket(reply: &Reply) -> Vec<u8> {
    reply.attr(TICKET).expect("MOBILITY-TICKET")
}

fn mobile() -> Request {
    Request::allocate().attr(TICKET.0, &[])
}

fn by(ticket: &[u8]) -> Request {
    Request::refresh(600).attr(TICKET.0, ticket)
}

/// A mobile allocation of alice with a channel, at `from`, and its ticket.
fn allocate(world: &mut World, from: FiveTuple) -> (Signer, AllocationId, SocketAddr, Vec<u8>) {
    let alice = world.alice(from);
    let reply = world.ask(from, &mobile().sign(&alice));
    assert_eq!(reply.code(), 0);
    let bind = Request::channel_bind(CHANNEL, addr(PEER)).sign(&alice);
    assert_eq!(world.code(from, &bind), 0);
    let id = *world.opened.last().unwrap();
    (alice, id, reply.relayed(), ticket(&reply))
}

/// Moves by `ticket` to `to`; the answer.
fn go(world: &mut World, to: FiveTuple, ticket: &[u8]) -> Reply {
    let alice = world.alice(to);
    world.ask(to, &by(ticket).sign(&alice))
}

/// Where data of the peer goes.
fn reached(world: &mut World, id: AllocationId) -> FiveTuple {
    match world.peer_input(id, addr(PEER), b"hello") {
        Forward::ToClient { five_tuple, .. } => five_tuple,
        other => panic!("{other:?}"),
    }
}

fn sends(world: &mut World, from: FiveTuple) -> bool {
    let forward = world.input(from, &channel_data(CHANNEL, b"data"));
    matches!(forward, Forward::ToPeer { .. })
}

#[test]
fn rfc8016_3_1_an_empty_ticket_asks_for_one() {
    let mut world = World::new();
    let (alice, _, _, first) = allocate(&mut world, udp(OLD));
    assert!(!first.is_empty() && first.iter().all(u8::is_ascii_graphic));
    let plain = world.ask(udp(NEW), &Request::allocate().sign(&alice));
    assert_eq!(plain.code(), 438, "alice's nonce is of another address");
    let alice = world.alice(udp(NEW));
    let plain = world.ask(udp(NEW), &Request::allocate().sign(&alice));
    assert_eq!((plain.code(), plain.attr(TICKET)), (0, None));
    // Tickets of two allocations have nothing in common that could be seen.
    let (.., second) = allocate(&mut world, udp(THIRD));
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(first.len() == second.len() && same < first.len() / 2);
}

#[test]
fn rfc8016_3_1_2_a_retransmitted_allocate_gets_the_same_ticket() {
    let mut world = World::new();
    let alice = world.alice(udp(OLD));
    let request = mobile().sign(&alice).bytes();
    let answers = world.ask_raw(udp(OLD), &request);
    assert_eq!(world.ask_raw(udp(OLD), &request), answers);
}

#[test]
fn rfc8016_3_1_2_a_ticket_in_allocate_is_400_and_405_where_nothing_moves() {
    let mut world = World::new();
    let alice = world.alice(udp(OLD));
    let request = Request::allocate().attr(TICKET.0, b"ticket").sign(&alice);
    assert_eq!(world.code(udp(OLD), &request), 400);
    let off = Settings {
        protocol: Protocol {
            mobility: false,
            ..Protocol::default()
        },
        ..Settings::default()
    };
    let mut world = World::with(off, &access_settings(), seed());
    let alice = world.alice(udp(OLD));
    let reply = world.ask(udp(OLD), &mobile().sign(&alice));
    assert_eq!(reply.code(), 405);
    assert!(reply.is_signed_by(&alice));
    let reply = world.ask(udp(OLD), &by(b"ticket").sign(&alice));
    assert_eq!(reply.code(), 405);
    // RFC 8016 §3.1.4: the client asks without.
    let reply = world.ask(udp(OLD), &Request::allocate().sign(&alice));
    assert_eq!(reply.code(), 0);
}

#[test]
fn a_tcp_allocation_does_not_move() {
    let mut world = World::new();
    let alice = world.alice(tcp(OLD));
    let request = Request::allocate_tcp().attr(TICKET.0, &[]).sign(&alice);
    assert_eq!(world.code(tcp(OLD), &request), 405);
}

#[test]
fn rfc8016_3_2_2_a_refresh_with_a_ticket_moves_the_allocation() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    assert!(sends(&mut world, udp(OLD)));
    let reply = go(&mut world, udp(NEW), &first);
    assert_eq!((reply.code(), reply.lifetime()), (0, 600));
    assert_ne!(ticket(&reply), first);
    let types = reply.attribute_types();
    assert_eq!(types, [ATTR_LIFETIME.0, TICKET.0, ATTR_MESSAGE_INTEGRITY.0]);
    assert_eq!(world.counted, [addr(NEW).ip()]);
    // Both ways are open, and the peer's data takes the old one until the client has sent on the new one.
    assert_eq!(reached(&mut world, id), udp(OLD));
    assert!(sends(&mut world, udp(OLD)));
    assert_eq!(reached(&mut world, id), udp(OLD));
    assert!(sends(&mut world, udp(NEW)));
    assert_eq!(reached(&mut world, id), udp(NEW));
    assert_eq!(world.left, [udp(OLD)]);
    assert!(!sends(&mut world, udp(OLD)));
    assert!(!world.server.has_allocation(udp(OLD)));
    let view = &world.server.views(world.now, 0, 9).0[0];
    assert_eq!(view.client, addr(NEW));
    assert_eq!(world.opened, [id], "no relay was opened for it");
    assert!(world.closed.is_empty());
    // Everything goes on there.
    let alice = world.alice(udp(NEW));
    let permission = Request::create_permission(&[addr("8.8.4.4:1")]).sign(&alice);
    assert_eq!(world.code(udp(NEW), &permission), 0);
    assert_eq!(world.code(udp(NEW), &Request::refresh(0).sign(&alice)), 0);
    assert_eq!(world.ended[0].reason, EndReason::Released);
    assert!(world.server.is_empty());
}

#[test]
fn rfc8016_3_2_2_a_send_indication_settles_it_too() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    go(&mut world, udp(NEW), &first);
    let data = Request::send(addr(PEER), b"data").bytes();
    assert!(matches!(
        world.input(udp(NEW), &data),
        Forward::ToPeer { allocation, .. } if allocation == id
    ));
    assert_eq!(reached(&mut world, id), udp(NEW));
    // So does a request: a client that only receives has nothing else to say.
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    go(&mut world, udp(NEW), &first);
    let alice = world.alice(udp(NEW));
    let permission = Request::create_permission(&[addr("8.8.4.4:1")]).sign(&alice);
    assert_eq!(world.code(udp(NEW), &permission), 0);
    assert_eq!(reached(&mut world, id), udp(NEW));
}

#[test]
fn rfc8016_3_2_2_a_retransmission_gets_the_same_answer_for_thirty_seconds() {
    let mut world = World::new();
    let (.., first) = allocate(&mut world, udp(OLD));
    let alice = world.alice(udp(NEW));
    let request = by(&first).sign(&alice).bytes();
    let answers = world.ask_raw(udp(NEW), &request);
    assert_eq!(answers.len(), 1);
    world.pass(secs(29));
    assert_eq!(world.ask_raw(udp(NEW), &request), answers);
    sends(&mut world, udp(NEW));
    assert_eq!(world.ask_raw(udp(NEW), &request), answers);
    world.pass(secs(1));
    let late = world.ask_raw(udp(NEW), &request);
    assert_eq!(Reply::parse(&late[0]).code(), 400);
    assert_eq!(world.server.stats().mobility.iter().sum::<u64>(), 4);
}

#[test]
fn rfc8016_3_2_2_the_refusals() {
    let mut world = World::new();
    let (alice, _, _, first) = allocate(&mut world, udp(OLD));
    // The same five-tuple.
    assert_eq!(world.code(udp(OLD), &by(&first).sign(&alice)), 400);
    // No ticket of this server's.
    let at_new = world.alice(udp(NEW));
    for wrong in [&[][..], b"ticket", &first[1..], &[0; 32], &[b'A'; 32]] {
        assert_eq!(world.code(udp(NEW), &by(wrong).sign(&at_new)), 400);
    }
    // Another user.
    let bob = Signer::new("bob", "builder", &at_new.nonce);
    let reply = world.ask(udp(NEW), &by(&first).sign(&bob));
    assert_eq!(reply.code(), 441);
    assert!(reply.is_signed_by(&bob));
    // Nobody, and a nonce of another address.
    assert_eq!(world.code(udp(NEW), &by(&first)), 401);
    assert_eq!(world.code(udp(NEW), &by(&first).sign(&alice)), 438);
    // The other family of relayed addresses.
    let other = by(&first).family(2).sign(&at_new);
    assert_eq!(world.code(udp(NEW), &other), 443);
    // Where an allocation is already.
    let (_, third, _) = world.allocate(udp(THIRD));
    let at_third = world.alice_at(udp(THIRD));
    assert_eq!(world.code(udp(THIRD), &by(&first).sign(&at_third)), 437);
    // None of that has changed anything.
    assert!(sends(&mut world, udp(OLD)));
    assert_eq!(world.server.len(), 2);
    // A ticket is good once.
    assert_eq!(world.code(udp(NEW), &by(&first).sign(&at_new)), 0);
    assert!(
        world
            .server
            .end_allocation(world.now, third, EndReason::Administrative)
    );
    world.drain();
    let reply = go(&mut world, udp(THIRD), &first);
    assert_eq!(reply.code(), 400);
    // And not beyond the end of its allocation, nor for the next one in its place.
    let at_new = world.alice_at(udp(NEW));
    assert_eq!(world.code(udp(NEW), &Request::refresh(0).sign(&at_new)), 0);
    assert_eq!(go(&mut world, udp(THIRD), &first).code(), 437);
    let (_, _, _, next) = allocate(&mut world, udp(OLD));
    assert_eq!(go(&mut world, udp(THIRD), &first).code(), 437);
    assert_eq!(go(&mut world, udp(THIRD), &next).code(), 0);
}

#[test]
fn rfc8016_3_2_zero_ends_it_from_anywhere() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    let alice = world.alice(udp(NEW));
    let request = Request::refresh(0).attr(TICKET.0, &first).sign(&alice);
    let reply = world.ask(udp(NEW), &request);
    assert_eq!((reply.code(), reply.lifetime()), (0, 0));
    assert_eq!(world.closed, [id]);
    assert_eq!(world.ended[0].reason, EndReason::Released);
}

#[test]
fn rfc8016_3_2_2_a_client_may_change_its_mind() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    let second = ticket(&go(&mut world, udp(NEW), &first));
    let third = ticket(&go(&mut world, udp(THIRD), &second));
    // It was never at the second place.
    assert_eq!(world.left, [udp(NEW)]);
    assert!(!sends(&mut world, udp(NEW)));
    assert_eq!(reached(&mut world, id), udp(OLD));
    assert!(sends(&mut world, udp(THIRD)));
    assert_eq!(reached(&mut world, id), udp(THIRD));
    // And back to where it began.
    assert_eq!(go(&mut world, udp(OLD), &third).code(), 0);
    assert!(sends(&mut world, udp(OLD)));
    assert_eq!(reached(&mut world, id), udp(OLD));
}

#[test]
fn rfc8016_it_moves_across_transports() {
    for (from, to) in [
        (udp(OLD), tcp(NEW)),
        (udp(OLD), tls(NEW)),
        (tls(OLD), udp(NEW)),
        (tcp(OLD), tls(NEW)),
    ] {
        let mut world = World::new();
        let (_, id, _, first) = allocate(&mut world, from);
        let live = |world: &World, of: FiveTuple| {
            (world.server.stats().live[of.transport() as usize].iter()).sum::<u64>()
        };
        assert_eq!((live(&world, from), live(&world, to)), (1, 0));
        assert_eq!(go(&mut world, to, &first).code(), 0);
        assert!(sends(&mut world, to));
        assert_eq!((live(&world, from), live(&world, to)), (0, 1));
        assert_eq!(reached(&mut world, id), to);
        let Forward::ToClient { header, .. } = world.peer_input(id, addr(PEER), b"hello") else {
            panic!();
        };
        let padded = if to.transport().is_stream() { 3 } else { 0 };
        assert_eq!(header.padding(), padded);
        world.server.handle_client_closed(world.now, from);
        world.drain();
        assert_eq!(
            reached(&mut world, id),
            to,
            "the old connection is nothing to it"
        );
    }
}

#[test]
fn rfc8016_3_2_2_the_end_of_the_old_connection_settles_it() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, tcp(OLD));
    go(&mut world, udp(NEW), &first);
    assert_eq!(reached(&mut world, id), tcp(OLD));
    world.server.handle_client_closed(world.now, tcp(OLD));
    world.drain();
    assert_eq!(reached(&mut world, id), udp(NEW));
    assert!(world.ended.is_empty());
}

#[test]
fn rfc8016_the_end_of_the_new_connection_leaves_it_where_it_was() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    let second = ticket(&go(&mut world, tcp(NEW), &first));
    world.server.handle_client_closed(world.now, tcp(NEW));
    world.drain();
    assert_eq!(world.counted, [addr(NEW).ip(), addr(OLD).ip()]);
    assert_eq!(reached(&mut world, id), udp(OLD));
    assert_eq!(go(&mut world, tcp(THIRD), &second).code(), 0);
}

/// Break before make: the client comes back within half a minute, or its allocation has ended with its connection.
#[test]
fn rfc8016_3_2_2_a_client_whose_connection_broke_comes_back() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, tcp(OLD));
    world.server.handle_client_closed(world.now, tcp(OLD));
    world.drain();
    assert!(world.ended.is_empty() && !world.server.has_allocation(tcp(OLD)));
    // Whoever has that five-tuple next gets nothing of it.
    for peer in [PEER, "8.8.8.8:5001"] {
        let forward = world.peer_input(id, addr(peer), b"hello");
        assert_eq!(forward, Forward::Drop(DropReason::NoAllocation));
    }
    assert!(!sends(&mut world, tcp(OLD)));
    let (_, other, _) = world.allocate(tcp(OLD));
    world.pass(secs(29));
    let reply = go(&mut world, tcp(NEW), &first);
    assert_eq!((reply.code(), reply.lifetime()), (0, 600));
    assert_eq!(reached(&mut world, id), tcp(NEW));
    assert!(sends(&mut world, tcp(NEW)));
    assert!(world.server.has_allocation(tcp(OLD)), "the other one stays");
    world
        .server
        .end_allocation(world.now, other, EndReason::Administrative);
    world.pass(secs(599));
    assert_eq!(world.server.len(), 1, "for its lifetime again");

    world.server.handle_client_closed(world.now, tcp(NEW));
    world.pass(secs(1));
    assert_eq!(world.ended.last().unwrap().reason, EndReason::ClientClosed);
    assert!(world.server.is_empty());

    let (..) = allocate(&mut world, tcp(OLD));
    world.server.handle_client_closed(world.now, tcp(OLD));
    world.pass(secs(30));
    assert!(world.server.is_empty(), "nobody came");
}

#[test]
fn an_address_that_has_its_share_takes_no_more() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    world.moves = Err(OpenError::Quota);
    let reply = go(&mut world, udp(NEW), &first);
    assert_eq!(reply.code(), 486);
    assert!(!world.server.has_allocation(udp(NEW)));
    assert_eq!(reached(&mut world, id), udp(OLD));
    world.moves = Ok(());
    assert_eq!(
        go(&mut world, udp(NEW), &first).code(),
        0,
        "nothing was used"
    );
}

/// The call goes on as long as its client refreshes, wherever that is: as without a move.
#[test]
fn a_credential_that_is_over_moves_what_it_has() {
    let minted = |nonce: &str| {
        let secret = turnix::base::Secret::new(SECRET.to_owned());
        let expires = EPOCH.as_secs() + 60;
        let (user, password) = turnix::access::rest::mint(&secret, Some("carol"), expires);
        Signer::new(&user, &password, nonce)
    };
    for strict in [false, true] {
        let mut access = access_settings();
        access.strict_expiry = strict;
        let mut world = World::with(Settings::default(), &access, seed());
        let nonce = world.nonce(udp(OLD));
        let reply = world.ask(udp(OLD), &mobile().sign(&minted(&nonce)));
        let first = ticket(&reply);
        world.pass(secs(120));
        let nonce = world.nonce(udp(NEW));
        let code = world.code(udp(NEW), &by(&first).sign(&minted(&nonce)));
        assert_eq!(code, if strict { 401 } else { 0 });
        let late = world.code(udp(THIRD), &Request::allocate().sign(&minted(&nonce)));
        assert_eq!(late, 401, "it allocates nothing any more");
    }
}

#[test]
fn a_ticket_of_another_shard_leads_there() {
    let mut owner = World::new();
    owner.server.set_shard(3);
    let (.., first) = allocate(&mut owner, udp(OLD));
    let mut porter = World::new();
    let bob = Signer::new("bob", "builder", &porter.nonce(udp(NEW)));
    let wrong = Signer::new("alice", "wrong", &bob.nonce);
    assert_eq!(porter.code(udp(NEW), &by(&first).sign(&wrong)), 401);
    assert_eq!(porter.code(udp(NEW), &by(&first)), 401);
    let alice = porter.alice(udp(NEW));
    let request = by(&first).sign(&alice).bytes();
    assert_eq!(
        porter.input(udp(NEW), &request),
        Forward::ToShard { shard: 3 }
    );
    assert!(porter.sent.is_empty() && porter.server.is_empty());
    let answers = owner.ask_raw(udp(NEW), &request);
    assert_eq!(Reply::parse(&answers[0]).code(), 0);
    // An allocation of the other user's is found out by who has it.
    let (.., theirs) = allocate(&mut owner, udp(THIRD));
    let request = by(&theirs).sign(&bob).bytes();
    assert_eq!(
        porter.input(udp(NEW), &request),
        Forward::ToShard { shard: 3 }
    );
    let to = udp("203.0.113.9:5001");
    let bob = Signer::new("bob", "builder", &owner.nonce(to));
    assert_eq!(owner.code(to, &by(&theirs).sign(&bob)), 441);
}

#[test]
fn what_was_under_way_goes_on_in_another_process() {
    let mut world = World::new();
    let (_, id, _, first) = allocate(&mut world, udp(OLD));
    let alice = world.alice(udp(NEW));
    let request = by(&first).sign(&alice).bytes();
    let answers = world.ask_raw(udp(NEW), &request);
    let second = ticket(&Reply::parse(&answers[0]));
    world.hand_over();
    assert_eq!(reached(&mut world, id), udp(OLD));
    assert_eq!(world.ask_raw(udp(NEW), &request), answers);
    assert!(sends(&mut world, udp(NEW)));
    assert_eq!(reached(&mut world, id), udp(NEW));
    assert_eq!(go(&mut world, udp(THIRD), &first).code(), 400);
    assert_eq!(go(&mut world, udp(THIRD), &second).code(), 0);
    assert_eq!(world.server.stats().mobility.iter().sum::<u64>(), 4);
}
