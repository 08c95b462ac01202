//! ICMP errors in Data indications (RFC 8656 §11.5, §18.13). Real ones are in `tests/loopback/headers.rs`.

use std::net::SocketAddr;

use stun::attributes::{ATTR_DATA, AttrType};
use turnix::base::FiveTuple;
use turnix::turn::{AllocationId, IcmpFate, Protocol, Settings};
use turnix::wire::{Icmp, attribute};

use crate::common::wire::{Reply, Request};
use crate::common::world::{World, access_settings, addr, secs, seed, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";
const PEER: &str = "203.0.114.9:1000";
const PEER_V6: &str = "[2a00::9]:1000";

const PORT_UNREACHABLE: Icmp = Icmp {
    kind: 3,
    code: 3,
    data: 0,
};

/// What the client is told when its relay socket meets with `icmp` on the way to `peer`, if it is.
fn told(world: &mut World, id: AllocationId, peer: SocketAddr, icmp: Icmp) -> Option<Reply> {
    world.sent.clear();
    world.server.handle_icmp(world.now, id, peer, icmp);
    world.drain();
    assert!(world.sent.len() <= 1);
    let (to, bytes) = world.sent.pop()?;
    assert_eq!(Some(to), client_of(world, id));
    let indication = Reply::parse(&bytes);
    assert_eq!(indication.0.typ.value(), 0x0017);
    assert_eq!(indication.peer(), peer);
    assert!(indication.attr(ATTR_DATA).is_none());
    Some(indication)
}

fn client_of(world: &World, id: AllocationId) -> Option<FiveTuple> {
    (world.server.tenants())
        .find(|tenant| tenant.id == id)
        .map(|tenant| tenant.five_tuple)
}

fn fates(world: &World) -> [u64; IcmpFate::ALL.len()] {
    world.server.stats().icmp
}

/// An allocation of `family` with a permission for `peer`.
fn permitted(world: &mut World, client: FiveTuple, family: u8, peer: &str) -> AllocationId {
    let alice = world.alice(client);
    let allocate = Request::allocate().family(family).sign(&alice);
    assert_eq!(world.code(client, &allocate), 0);
    let permission = Request::create_permission(&[addr(peer)]).sign(&alice);
    assert_eq!(world.code(client, &permission), 0);
    *world.opened.last().unwrap()
}

#[test]
fn rfc8656_11_5_the_types_that_clients_are_told_of() {
    let mut world = World::new();
    for (client, family, peer, kinds) in [
        (udp(CLIENT), 1, PEER, &[3, 11][..]),
        (tcp(CLIENT), 1, PEER, &[3, 11]),
        (udp("192.0.2.7:2"), 2, PEER_V6, &[1, 2, 3]),
    ] {
        let id = permitted(&mut world, client, family, peer);
        for kind in 0..=255 {
            world.pass(secs(1));
            let icmp = Icmp {
                kind,
                code: 1,
                data: 7,
            };
            let indication = told(&mut world, id, addr(peer), icmp);
            assert_eq!(indication.is_some(), kinds.contains(&kind), "{kind}");
            let Some(indication) = indication else {
                continue;
            };
            // Only what is too big has data (RFC 8656 §18.13).
            let data = if family == 2 && kind == 2 { 7 } else { 0 };
            let value = indication.attr(AttrType(attribute::ICMP)).unwrap();
            assert_eq!(value, [0, 0, kind, 1, 0, 0, 0, data]);
            assert_eq!(
                indication.attribute_types(),
                [attribute::XOR_PEER_ADDRESS, attribute::ICMP]
            );
        }
    }
    let [told, no_permission, rate_limited, ignored] = fates(&world);
    assert_eq!((told, no_permission, rate_limited), (7, 0, 0));
    assert_eq!(ignored, 3 * 256 - 7);
}

#[test]
fn rfc8656_18_13_too_big_carries_the_mtu() {
    let mut world = World::new();
    let id = permitted(&mut world, udp(CLIENT), 1, PEER);
    let icmp = Icmp {
        kind: 3,
        code: 4,
        data: 0x0001_0514,
    };
    let indication = told(&mut world, id, addr(PEER), icmp).unwrap();
    let value = indication.attr(AttrType(attribute::ICMP)).unwrap();
    assert_eq!(value, [0, 0, 3, 4, 0, 1, 5, 0x14]);
}

#[test]
fn rfc8656_11_5_no_permission_no_indication() {
    let mut world = World::new();
    let id = permitted(&mut world, udp(CLIENT), 1, PEER);
    assert!(told(&mut world, id, addr("203.0.114.10:1000"), PORT_UNREACHABLE).is_none());
    assert!(told(&mut world, id, addr(PEER_V6), PORT_UNREACHABLE).is_none());
    // A permission is for every port of the IP, but not for what policy refuses.
    assert!(told(&mut world, id, addr("203.0.114.9:1"), PORT_UNREACHABLE).is_some());
    let own = SocketAddr::new(addr("198.51.100.1:0").ip(), 3478);
    assert!(told(&mut world, id, own, PORT_UNREACHABLE).is_none());
    world.pass(secs(299));
    assert!(told(&mut world, id, addr(PEER), PORT_UNREACHABLE).is_some());
    world.pass_unnoticed(secs(1));
    assert!(told(&mut world, id, addr(PEER), PORT_UNREACHABLE).is_none());
    world.pass_unnoticed(secs(600));
    assert!(told(&mut world, id, addr(PEER), PORT_UNREACHABLE).is_none());
    let gone = AllocationId {
        slot: 99,
        generation: 0,
    };
    assert!(told(&mut world, gone, addr(PEER), PORT_UNREACHABLE).is_none());
}

#[test]
fn rfc8656_11_5_a_peer_with_a_channel_is_told_of_by_its_address() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    let bind = Request::channel_bind(0x4000, addr(PEER)).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &bind), 0);
    assert!(told(&mut world, id, addr(PEER), PORT_UNREACHABLE).is_some());
}

/// Twenty at once and ten a second, whatever comes, for each allocation by itself.
#[test]
fn a_flood_of_errors_is_a_trickle_for_the_client() {
    let mut world = World::new();
    let one = permitted(&mut world, udp(CLIENT), 1, PEER);
    let other = permitted(&mut world, udp("192.0.2.7:4001"), 1, PEER);
    let flood = |world: &mut World, id| {
        (0..10_000)
            .filter(|_| told(world, id, addr(PEER), PORT_UNREACHABLE).is_some())
            .count()
    };
    assert_eq!(flood(&mut world, one), 20);
    world.pass(secs(1));
    assert_eq!(flood(&mut world, one), 10);
    assert_eq!(flood(&mut world, other), 20);
    let [told, _, rate_limited, _] = fates(&world);
    assert_eq!((told, rate_limited), (50, 30_000 - 50));
}

#[test]
fn errors_are_kept_from_clients_where_that_is_switched_off() {
    let settings = Settings {
        protocol: Protocol {
            icmp: false,
            ..Protocol::default()
        },
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let id = permitted(&mut world, udp(CLIENT), 1, PEER);
    assert!(told(&mut world, id, addr(PEER), PORT_UNREACHABLE).is_none());
}

#[test]
fn transaction_ids_differ_from_those_of_data() {
    let mut world = World::new();
    let id = permitted(&mut world, udp(CLIENT), 1, PEER);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let indication = told(&mut world, id, addr(PEER), PORT_UNREACHABLE).unwrap();
        assert!(seen.insert(indication.0.transaction_id.0));
    }
}
