//! One allocation in both families: ADDITIONAL-ADDRESS-FAMILY and ADDRESS-ERROR-CODE (RFC 8656 §7, §8).

use stun::attributes::*;

use turnix::base::{Family, Transport};
use turnix::turn::{DropReason, EndReason, Forward, OpenError, Protocol, RelayKind, Settings};

use crate::common::wire::{Reply, Request, Signer, channel_data};
use crate::common::world::{World, access_settings, addr, secs, seed, udp};

const CLIENT: &str = "192.0.2.7:4000";
const ADDITIONAL: u16 = 0x8000;
const ADDRESS_ERROR: AttrType = AttrType(0x8001);
const PEER_V4: &str = "8.8.8.8:5000";
const PEER_V6: &str = "[2a01::5]:6000";

fn both() -> Request {
    Request::allocate().attr(ADDITIONAL, &[2, 0, 0, 0])
}

fn live(world: &World) -> [u64; 3] {
    world.server.stats().live[Transport::Udp as usize]
}

/// Alice's allocation in both families.
fn allocate(world: &mut World) -> Signer {
    let alice = world.alice(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &both().sign(&alice));
    assert_eq!(reply.all_relayed().len(), 2);
    alice
}

/// Both families, with a permission and a channel in each.
fn busy(world: &mut World) -> Signer {
    let alice = allocate(world);
    for (channel, peer) in [(0x4000, PEER_V4), (0x4001, PEER_V6)] {
        let bind = Request::channel_bind(channel, addr(peer)).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &bind), 0);
    }
    alice
}

fn world_in(families: &[Family]) -> World {
    let mut seed = seed();
    seed.families = families.to_vec();
    World::with(Settings::default(), &access_settings(), seed)
}

#[test]
fn rfc8656_7_2_both_addresses_ipv4_first() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = both().lifetime(1000).sign(&alice);
    let reply = world.ask(udp(CLIENT), &request);
    assert!(reply.is_signed_by(&alice));
    let expected = [addr("198.51.100.1:50000"), addr("[2a00::1]:50001")];
    assert_eq!(reply.all_relayed(), expected);
    assert_eq!((reply.mapped(), reply.lifetime()), (addr(CLIENT), 1000));
    assert!(reply.attr(ADDRESS_ERROR).is_none());
    assert_eq!(world.opened_in, [Family::V4, Family::V6]);
    assert_eq!(world.server.len(), 1, "one allocation");
    assert_eq!(live(&world), [0, 0, 1]);
    let (views, _) = world.server.views(world.now, 0, 9);
    assert_eq!(views[0].relayed, expected[0]);
    assert_eq!(views[0].additional, Some(expected[1]));
    // The same again for its retransmission.
    let again = world.ask(udp(CLIENT), &request);
    assert_eq!(again.0.raw, reply.0.raw);
    assert_eq!(world.opened.len(), 2);
    assert_eq!(world.code(udp(CLIENT), &both().sign(&alice)), 437);
}

#[test]
fn the_number_that_coturn_gives_the_attribute_means_the_same() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate().attr(0x8032, &[2, 0, 0, 0]);
    let reply = world.ask(udp(CLIENT), &request.sign(&alice));
    assert_eq!(reply.all_relayed().len(), 2);
}

#[test]
fn rfc8656_7_2_answered_once_both_are_open() {
    let mut world = World::new();
    world.open = None;
    let alice = world.alice(udp(CLIENT));
    let request = both().sign(&alice);
    assert!(world.ask_raw(udp(CLIENT), &request.bytes()).is_empty());
    let id = world.opened[0];
    assert_eq!(world.opened_in, [Family::V4], "one after the other");
    world.opened(id, Family::V4, Ok(()));
    world.drain();
    assert_eq!(world.opened_in, [Family::V4, Family::V6]);
    assert!(world.sent.is_empty());
    // Nothing to act on yet, not even for a retransmission.
    assert!(world.ask_raw(udp(CLIENT), &request.bytes()).is_empty());
    let refresh = Request::refresh(600).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &refresh), 437);
    world.pass(secs(100));
    world.opened(id, Family::V6, Ok(()));
    world.drain();
    let reply = Reply::parse(&world.sent[0].1);
    assert_eq!(reply.all_relayed().len(), 2);
    // The lifetime of both counts from the answer.
    world.pass(secs(599));
    assert_eq!(live(&world), [0, 0, 1]);
    world.pass(secs(1));
    assert_eq!((live(&world), world.server.len()), ([0, 0, 0], 0));
    assert_eq!(world.closed_in, [Family::V4, Family::V6]);
    assert_eq!(world.ended.len(), 1, "one allocation has ended");
}

#[test]
fn rfc8656_7_2_client_gone_while_half_is_open() {
    for first in [false, true] {
        let mut world = World::new();
        world.open = None;
        let alice = world.alice(udp(CLIENT));
        world.ask_raw(udp(CLIENT), &both().sign(&alice).bytes());
        let id = world.opened[0];
        if first {
            world.opened(id, Family::V4, Ok(()));
            world.drain();
        }
        world.server.handle_client_closed(world.now, udp(CLIENT));
        world.drain();
        let asked = &[Family::V4, Family::V6][..1 + usize::from(first)];
        assert_eq!(world.closed_in, asked);
        assert!(world.server.is_empty() && world.ended.is_empty());
        // What opens late is closed again.
        let late = *asked.last().unwrap();
        world.opened(id, late, Ok(()));
        world.drain();
        assert_eq!(world.closed_in.last(), Some(&late));
        assert_eq!(world.closed_in.len(), asked.len() + 1);
        assert_eq!(world.server.poll_timeout(), None);
    }
}

/// What the answer says of a family that could not be had.
fn refused(reply: &Reply) -> (u8, u16) {
    let value = reply.attr(ADDRESS_ERROR).expect("ADDRESS-ERROR-CODE");
    assert_eq!(value.len(), 4, "no reason phrase");
    (value[0], u16::from(value[2]) * 100 + u16::from(value[3]))
}

#[test]
fn rfc8656_7_2_one_family_that_is_not_there() {
    for (families, got, lacks) in [
        (&[Family::V4][..], "198.51.100.1:50000", 2),
        (&[Family::V6], "[2a00::1]:50000", 1),
    ] {
        let mut world = world_in(families);
        let alice = world.alice(udp(CLIENT));
        let request = both().sign(&alice);
        let reply = world.ask(udp(CLIENT), &request);
        assert_eq!(reply.all_relayed(), [addr(got)]);
        assert_eq!(refused(&reply), (lacks, 440));
        assert_eq!(world.opened.len(), 1);
        assert_eq!(world.ask(udp(CLIENT), &request).0.raw, reply.0.raw);
        let refresh = Request::refresh(0).family(lacks).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &refresh), 443);
        assert_eq!(
            world.code(udp(CLIENT), &Request::refresh(0).sign(&alice)),
            0
        );
        assert_eq!(world.closed_in, families);
    }
    let mut world = world_in(&[]);
    let alice = world.alice(udp(CLIENT));
    assert_eq!(world.code(udp(CLIENT), &both().sign(&alice)), 440);
}

#[test]
fn rfc8656_7_2_one_family_that_is_used_up() {
    let outcomes = [
        (Err(OpenError::Capacity), Ok(()), Ok((1, 508))),
        (Err(OpenError::Quota), Ok(()), Ok((1, 486))),
        (Ok(()), Err(OpenError::Capacity), Ok((2, 508))),
        (Ok(()), Err(OpenError::Quota), Ok((2, 486))),
        // Nothing at all: what is wrong with the family that clients come for.
        (Err(OpenError::Quota), Err(OpenError::Capacity), Err(486)),
        (Err(OpenError::Capacity), Err(OpenError::Quota), Err(508)),
    ];
    for (v4, v6, expected) in outcomes {
        let mut world = World::new();
        world.open = None;
        let alice = world.alice(udp(CLIENT));
        let request = both().sign(&alice);
        assert!(world.ask_raw(udp(CLIENT), &request.bytes()).is_empty());
        let id = world.opened[0];
        for (family, outcome) in [(Family::V4, v4), (Family::V6, v6)] {
            assert_eq!(world.opened_in.last(), Some(&family));
            world.opened(id, family, outcome);
            world.drain();
        }
        let (_, message) = world.sent.pop().expect("an answer");
        let reply = Reply::parse(&message);
        assert!(reply.is_signed_by(&alice));
        match expected {
            Err(code) => {
                assert_eq!(reply.code(), code);
                assert!(world.server.is_empty());
                assert_eq!(live(&world), [0, 0, 0]);
            }
            Ok(lacks) => {
                assert_eq!(refused(&reply), lacks);
                assert_eq!(reply.all_relayed(), [reply.relayed()]);
                let family = Family::of(reply.relayed().ip());
                let mut counted = [0; 3];
                counted[RelayKind::of(family, false) as usize] = 1;
                assert_eq!(live(&world), counted);
                world.open = Some(Ok(()));
                let again = world.ask(udp(CLIENT), &request);
                assert_eq!(again.0.raw, message);
                let refresh = Request::refresh(0).sign(&alice);
                assert_eq!(world.code(udp(CLIENT), &refresh), 0);
                assert_eq!(live(&world), [0, 0, 0]);
                assert_eq!(world.closed_in, [family]);
            }
        }
    }
}

#[test]
fn rfc8656_7_2_what_cannot_be_asked_together_is_400() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    for family in [1, 2] {
        let request = both().family(family).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &request), 400);
    }
    let reserving = both().attr(ATTR_EVEN_PORT.0, &[0x80]).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &reserving), 400);
    let claiming = both().attr(ATTR_RESERVATION_TOKEN.0, &[7; 8]);
    assert_eq!(world.code(udp(CLIENT), &claiming.sign(&alice)), 400);
    // IPv6 is its only value (§18.11).
    for value in [&[1, 0, 0, 0][..], &[0, 0, 0, 0], &[3, 0, 0, 0], &[2], &[]] {
        let request = Request::allocate().attr(ADDITIONAL, value).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &request), 400, "{value:?}");
    }
    assert!(world.server.is_empty());
    // EVEN-PORT without the R bit holds for both.
    let even = both().attr(ATTR_EVEN_PORT.0, &[0]).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &even), 0);
    assert_eq!(world.even_ports, [true, true]);
}

#[test]
fn both_families_relay_each_to_its_own() {
    let mut world = World::new();
    let alice = busy(&mut world);
    let id = world.opened[0];
    for (channel, peer) in [(0x4000, PEER_V4), (0x4001, PEER_V6)] {
        let Forward::ToPeer {
            allocation,
            peer: to,
            ..
        } = world.input(udp(CLIENT), &channel_data(channel, b"out"))
        else {
            panic!("no road to {peer}");
        };
        assert_eq!((allocation, to.address()), (id, addr(peer)));
        let sent = world.input(udp(CLIENT), &Request::send(addr(peer), b"out").bytes());
        assert!(matches!(sent, Forward::ToPeer { .. }));
        let received = world.peer_input(id, addr(peer), b"in");
        assert!(matches!(received, Forward::ToClient { .. }));
    }
    // One request may name peers of both.
    let peers = [addr("8.8.4.4:1"), addr("[2a01::6]:1")];
    let permit = Request::create_permission(&peers).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &permit), 0);
    for peer in peers {
        let received = world.peer_input(id, peer, b"in");
        assert!(matches!(received, Forward::ToClient { .. }));
    }
}

/// Only `left` relays; peers of the other family are those of an allocation that never had it.
fn relays_only(world: &mut World, alice: &Signer, left: Family) {
    let id = world.opened[0];
    let all = [(0x4000, PEER_V4, 1), (0x4001, PEER_V6, 2)];
    for (channel, peer, number) in all {
        let there = Family::of(addr(peer).ip()) == left;
        let data = world.input(udp(CLIENT), &channel_data(channel, b"out"));
        assert_eq!(matches!(data, Forward::ToPeer { .. }), there, "{data:?}");
        let send = world.input(udp(CLIENT), &Request::send(addr(peer), b"out").bytes());
        match there {
            true => assert!(matches!(send, Forward::ToPeer { .. })),
            false => assert_eq!(send, Forward::Drop(DropReason::Family)),
        }
        let received = world.peer_input(id, addr(peer), b"in");
        assert_eq!(matches!(received, Forward::ToClient { .. }), there);
        let code = if there { 0 } else { 443 };
        for request in [
            Request::create_permission(&[addr(peer)]),
            Request::channel_bind(channel, addr(peer)),
            Request::refresh(600).family(number),
        ] {
            assert_eq!(world.code(udp(CLIENT), &request.sign(alice)), code);
        }
    }
    let (views, _) = world.server.views(world.now, 0, 9);
    assert_eq!(Family::of(views[0].relayed.ip()), left);
    assert_eq!((views[0].additional, views[0].channels), (None, 1));
    let mut counted = [0; 3];
    counted[RelayKind::of(left, false) as usize] = 1;
    assert_eq!(live(world), counted);
}

#[test]
fn rfc8656_8_2_zero_with_a_family_ends_that_one_only() {
    for (number, gone) in [(1, Family::V4), (2, Family::V6)] {
        let mut world = World::new();
        let alice = busy(&mut world);
        let release = Request::refresh(0).family(number).sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &release).lifetime(), 0);
        assert_eq!(world.closed_in, [gone]);
        assert!(world.ended.is_empty(), "the allocation lives");
        relays_only(&mut world, &alice, gone.other());
        // Its retransmission finds nothing of that family.
        assert_eq!(world.code(udp(CLIENT), &release), 443);
        let release = Request::refresh(0).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &release), 0);
        assert_eq!(world.closed_in, [gone, gone.other()]);
        assert_eq!(world.ended[0].reason, EndReason::Released);
        assert_eq!(live(&world), [0, 0, 0]);
        assert_eq!(world.server.poll_timeout(), None);
    }
}

#[test]
fn rfc8656_8_2_zero_without_a_family_ends_both() {
    let mut world = World::new();
    let alice = busy(&mut world);
    let release = Request::refresh(0).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &release), 0);
    assert_eq!(world.closed_in, [Family::V4, Family::V6]);
    assert_eq!(world.ended.len(), 1);
    assert_eq!(live(&world), [0, 0, 0]);
}

#[test]
fn rfc8656_8_2_each_family_ends_on_its_own_unless_refreshed() {
    for (number, kept) in [(1, Family::V4), (2, Family::V6)] {
        let mut world = World::new();
        let alice = busy(&mut world);
        world.pass(secs(290));
        let refresh = Request::refresh(1200).family(number).sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &refresh).lifetime(), 1200);
        for (channel, peer) in [(0x4000, PEER_V4), (0x4001, PEER_V6)] {
            let bind = Request::channel_bind(channel, addr(peer)).sign(&alice);
            assert_eq!(world.code(udp(CLIENT), &bind), 0);
        }
        world.pass(secs(290));
        for peer in [PEER_V4, PEER_V6] {
            let permit = Request::create_permission(&[addr(peer)]).sign(&alice);
            assert_eq!(world.code(udp(CLIENT), &permit), 0);
        }
        // Late timers do not forward.
        world.pass_unnoticed(secs(20));
        let (gone, channel) = match kept {
            Family::V4 => (PEER_V6, 0x4001),
            Family::V6 => (PEER_V4, 0x4000),
        };
        let data = world.input(udp(CLIENT), &channel_data(channel, b"late"));
        assert_eq!(data, Forward::Drop(DropReason::NoChannel));
        let send = world.input(udp(CLIENT), &Request::send(addr(gone), b"late").bytes());
        assert_eq!(send, Forward::Drop(DropReason::Family));
        let id = world.opened[0];
        let received = world.peer_input(id, addr(gone), b"late");
        assert_eq!(received, Forward::Drop(DropReason::NoPermission));
        world.timeout();
        assert_eq!(world.closed_in, [kept.other()]);
        relays_only(&mut world, &alice, kept);
        world.pass(secs(1200));
        assert_eq!(world.ended[0].reason, EndReason::Expired);
        assert_eq!(world.closed_in, [kept.other(), kept]);
        assert!(world.server.is_empty());
    }
}

#[test]
fn a_dead_relay_socket_costs_one_family() {
    for dead in [Family::V4, Family::V6] {
        let mut world = World::new();
        let alice = busy(&mut world);
        let id = world.opened[0];
        world.server.handle_relay_failed(world.now, id, dead);
        world.drain();
        assert_eq!(world.closed_in, [dead]);
        relays_only(&mut world, &alice, dead.other());
        world.server.handle_relay_failed(world.now, id, dead);
        world.drain();
        assert_eq!(world.server.len(), 1, "it has gone before");
        world
            .server
            .handle_relay_failed(world.now, id, dead.other());
        world.drain();
        assert_eq!(world.ended[0].reason, EndReason::RelayFailed);
    }
}

#[test]
fn without_dual_allocation_the_attribute_is_ignored() {
    let settings = Settings {
        protocol: Protocol {
            dual_allocation: false,
            ..Protocol::default()
        },
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let alice = world.alice(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &both().sign(&alice));
    assert_eq!(reply.all_relayed(), [addr("198.51.100.1:50000")]);
    assert!(reply.attr(ADDRESS_ERROR).is_none());
    let other = udp("192.0.2.7:4001");
    let alice = world.alice(other);
    let reply = world.ask(other, &both().family(2).sign(&alice));
    assert_eq!(reply.all_relayed(), [addr("[2a00::1]:50001")]);
}
