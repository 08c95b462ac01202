//! Permissions (RFC 8656 §9, §10).

use std::time::Duration;

use turnix::turn::{DropReason, Forward, Settings};

use crate::common::wire::{Reply, Request};
use crate::common::world::{World, access_settings, addr, secs, seed, udp};

const CLIENT: &str = "192.0.2.7:4000";
const PEER: &str = "203.0.114.9:1000";

fn reaches_client(forward: &Forward) -> bool {
    matches!(forward, Forward::ToClient { .. })
}

#[test]
fn rfc8656_9_data_passes_only_with_a_permission_and_for_any_port_of_the_ip() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    let before = world.peer_input(id, addr(PEER), b"hello");
    assert_eq!(before, Forward::Drop(DropReason::NoPermission));
    let reply = world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    assert_eq!(reply.code(), 0);
    assert!(reply.is_signed_by(&alice));
    for peer in [PEER, "203.0.114.9:1", "203.0.114.9:65535"] {
        assert!(
            reaches_client(&world.peer_input(id, addr(peer), b"hello")),
            "{peer}"
        );
    }
    let stranger = world.peer_input(id, addr("203.0.114.10:1000"), b"hello");
    assert_eq!(stranger, Forward::Drop(DropReason::NoPermission));
}

#[test]
fn rfc8656_9_permissions_end_after_300_seconds_to_the_second() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    world.pass(secs(300) - Duration::from_millis(1));
    assert!(reaches_client(&world.peer_input(id, addr(PEER), b"x")));
    world.pass(Duration::from_millis(1));
    let late = world.peer_input(id, addr(PEER), b"x");
    assert_eq!(late, Forward::Drop(DropReason::NoPermission));
    let send = Request::send(addr(PEER), b"x").bytes();
    let late = world.input(udp(CLIENT), &send);
    assert_eq!(late, Forward::Drop(DropReason::NoPermission));
}

#[test]
fn a_late_timer_does_not_lengthen_a_permission() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    world.pass_unnoticed(secs(300));
    let late = world.peer_input(id, addr(PEER), b"x");
    assert_eq!(late, Forward::Drop(DropReason::NoPermission));
}

#[test]
fn rfc8656_10_2_refreshing_a_permission_starts_it_anew() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    let permit = Request::create_permission(&[addr(PEER)]).sign(&alice);
    world.ask(udp(CLIENT), &permit);
    world.pass(secs(299));
    world.ask(udp(CLIENT), &permit);
    world.pass(secs(299));
    assert!(reaches_client(&world.peer_input(id, addr(PEER), b"x")));
    world.pass(secs(1));
    assert!(!reaches_client(&world.peer_input(id, addr(PEER), b"x")));
}

#[test]
fn rfc8656_10_2_several_peers_all_or_nothing() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    let (a, b, v6) = (addr(PEER), addr("203.0.114.10:5"), addr("[2a00::9]:5"));
    let private = addr("10.0.0.1:5");
    for (peers, code) in [
        (vec![a, v6], 443),
        (vec![a, private, b], 403),
        (vec![], 400),
    ] {
        let reply = world.ask(
            udp(CLIENT),
            &Request::create_permission(&peers).sign(&alice),
        );
        assert_eq!(reply.code(), code, "{peers:?}");
        assert!(!reaches_client(&world.peer_input(id, a, b"x")), "{peers:?}");
    }
    let reply = world.ask(
        udp(CLIENT),
        &Request::create_permission(&[a, b]).sign(&alice),
    );
    assert_eq!(reply.code(), 0);
    assert!(reaches_client(&world.peer_input(id, a, b"x")));
    assert!(reaches_client(&world.peer_input(id, b, b"x")));
}

#[test]
fn malformed_peer_addresses_are_400() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    for value in [
        &[0, 1, 0, 0, 1][..],
        &[0, 9, 0, 0, 1, 2, 3, 4],
        &[],
        &[0, 2, 0, 0, 1, 2, 3, 4],
    ] {
        let request = Request::new(stun::message::METHOD_CREATE_PERMISSION)
            .attr(0x0012, value)
            .sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &request).code(), 400, "{value:?}");
    }
}

#[test]
fn rfc8656_10_2_without_an_allocation_is_437() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let reply = world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    assert_eq!(reply.code(), 437);
}

#[test]
fn permissions_of_one_allocation_are_bounded() {
    let settings = Settings {
        permissions_per_allocation: 3,
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let peer = |host: u8| addr(&format!("203.0.114.{host}:1000"));
    let permit = |world: &mut World, peers: &[_]| {
        world
            .ask(udp(CLIENT), &Request::create_permission(peers).sign(&alice))
            .code()
    };
    assert_eq!(permit(&mut world, &[peer(1), peer(2), peer(1)]), 0);
    assert_eq!(permit(&mut world, &[peer(3), peer(4)]), 508);
    assert_eq!(permit(&mut world, &[peer(3)]), 0);
    assert_eq!(permit(&mut world, &[peer(4)]), 508);
    assert_eq!(
        permit(&mut world, &[peer(2)]),
        0,
        "refreshing takes no place"
    );
    world.pass(secs(300));
    assert_eq!(permit(&mut world, &[peer(4), peer(5), peer(6)]), 0);
}

#[test]
fn rfc8656_10_retransmission_is_idempotent() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let permit = Request::create_permission(&[addr(PEER)])
        .sign(&alice)
        .bytes();
    let first = world.ask_raw(udp(CLIENT), &permit);
    assert_eq!(world.ask_raw(udp(CLIENT), &permit), first);
    assert!(Reply::parse(&first[0]).is_success());
    let (views, _) = world.server.views(world.now, 0, 10);
    assert_eq!(views[0].permissions, 1);
}

#[test]
fn own_relayed_addresses_are_always_permitted_and_other_own_ports_never() {
    let mut world = World::new();
    let (alice, _, relayed) = world.allocate(udp(CLIENT));
    let permit = Request::create_permission(&[relayed]).sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &permit).code(), 0);
    let bind = Request::channel_bind(0x4000, addr("198.51.100.1:3478")).sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &bind).code(), 403);
    let send = Request::send(addr("198.51.100.1:9641"), b"x").bytes();
    let forward = world.input(udp(CLIENT), &send);
    assert_eq!(forward, Forward::Drop(DropReason::PeerDenied));
}
