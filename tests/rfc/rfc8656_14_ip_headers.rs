//! DONT-FRAGMENT (RFC 8656 §7.2, §11.2, §13, §14). What sockets do with it and with DSCP and ECN is in
//! `tests/loopback/headers.rs`.

use stun::attributes::{ATTR_DONT_FRAGMENT, ATTR_UNKNOWN_ATTRIBUTES};
use turnix::base::FiveTuple;
use turnix::turn::{DropReason, Forward, Protocol, Settings};

use crate::common::wire::{Request, channel_data};
use crate::common::world::{World, access_settings, addr, seed, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";
const PEER: &str = "203.0.114.9:1000";
const PEER_V6: &str = "[2a00::9]:1000";

fn without() -> World {
    let settings = Settings {
        protocol: Protocol {
            dont_fragment: false,
            ..Protocol::default()
        },
        ..Settings::default()
    };
    World::with(settings, &access_settings(), seed())
}

fn send(peer: &str) -> Request {
    Request::send(addr(peer), b"x").attr(ATTR_DONT_FRAGMENT.0, &[])
}

/// Whether what `request` has for its peer goes there whole.
fn goes_whole(world: &mut World, client: FiveTuple, bytes: &[u8]) -> bool {
    match world.input(client, bytes) {
        Forward::ToPeer { dont_fragment, .. } => dont_fragment,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rfc8656_7_2_dont_fragment_may_be_asked_for() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate().attr(ATTR_DONT_FRAGMENT.0, &[]);
    assert_eq!(world.code(udp(CLIENT), &request.sign(&alice)), 0);
    let other = udp("192.0.2.7:4001");
    let alice = world.alice(other);
    let malformed = Request::allocate().attr(ATTR_DONT_FRAGMENT.0, &[0; 4]);
    assert_eq!(world.code(other, &malformed.sign(&alice)), 400);
}

#[test]
fn rfc8656_7_2_dont_fragment_is_420_where_it_is_switched_off() {
    let mut world = without();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate().attr(ATTR_DONT_FRAGMENT.0, &[]);
    let reply = world.ask(udp(CLIENT), &request.sign(&alice));
    assert_eq!(reply.code(), 420);
    assert_eq!(
        reply.attr(ATTR_UNKNOWN_ATTRIBUTES).unwrap(),
        ATTR_DONT_FRAGMENT.0.to_be_bytes()
    );
    assert_eq!(
        world.code(udp(CLIENT), &Request::allocate().sign(&alice)),
        0
    );
}

#[test]
fn rfc8656_11_2_dont_fragment_in_send() {
    let mut world = World::new();
    for client in [udp(CLIENT), tcp(CLIENT)] {
        let (alice, ..) = world.allocate(client);
        let permission = Request::create_permission(&[addr(PEER)]).sign(&alice);
        assert_eq!(world.code(client, &permission), 0);
        assert!(goes_whole(&mut world, client, &send(PEER).bytes()));
        let plain = Request::send(addr(PEER), b"x").bytes();
        assert!(!goes_whole(&mut world, client, &plain));
        let bind = Request::channel_bind(0x4000, addr(PEER)).sign(&alice);
        assert_eq!(world.code(client, &bind), 0);
        let data = channel_data(0x4000, &[0; 4]);
        assert!(!goes_whole(&mut world, client, &data));
        let malformed = Request::send(addr(PEER), b"x").attr(ATTR_DONT_FRAGMENT.0, &[0; 4]);
        assert_eq!(
            world.input(client, &malformed.bytes()),
            Forward::Drop(DropReason::Malformed)
        );
    }
}

#[test]
fn rfc8656_11_2_send_with_dont_fragment_is_dropped_where_it_is_switched_off() {
    let mut world = without();
    let (alice, ..) = world.allocate(udp(CLIENT));
    let permission = Request::create_permission(&[addr(PEER)]).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &permission), 0);
    assert_eq!(
        world.input(udp(CLIENT), &send(PEER).bytes()),
        Forward::Drop(DropReason::Malformed)
    );
    let plain = Request::send(addr(PEER), b"x").bytes();
    assert!(!goes_whole(&mut world, udp(CLIENT), &plain));
}

#[test]
fn rfc8656_13_dont_fragment_is_ignored_with_ipv6_on_either_side() {
    let mut world = World::new();
    for (client, family, peer) in [
        (udp("192.0.2.7:1"), 2, PEER_V6),
        (udp("[2a00::7]:2"), 2, PEER_V6),
        (udp("[2a00::7]:3"), 1, PEER),
    ] {
        let alice = world.alice(client);
        let allocate = Request::allocate().family(family).sign(&alice);
        assert_eq!(world.code(client, &allocate), 0);
        let permission = Request::create_permission(&[addr(peer)]).sign(&alice);
        assert_eq!(world.code(client, &permission), 0);
        assert!(!goes_whole(&mut world, client, &send(peer).bytes()));
    }
}
