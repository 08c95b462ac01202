//! Channels (RFC 8656 §12).

use std::time::Duration;

use turnix::turn::{ChannelRange, Direction, DropReason, Forward, Protocol, Settings};

use crate::common::wire::{Request, channel_data};
use crate::common::world::{World, access_settings, addr, secs, seed, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";
const PEER: &str = "203.0.114.9:1000";
const OTHER: &str = "203.0.114.9:1001";

fn bound() -> (
    World,
    crate::common::wire::Signer,
    turnix::turn::AllocationId,
) {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    let bind = Request::channel_bind(0x4001, addr(PEER)).sign(&alice);
    let reply = world.ask(udp(CLIENT), &bind);
    assert_eq!(reply.code(), 0);
    assert!(reply.is_signed_by(&alice));
    (world, alice, id)
}

#[test]
fn rfc8656_12_6_channel_data_goes_to_the_peer() {
    let (mut world, _, id) = bound();
    for length in [0_usize, 1, 3, 4, 1200] {
        let mut bytes = channel_data(0x4001, &vec![7; length]);
        // Padding is not required over UDP, and allowed.
        for padding in [0, 3] {
            bytes.extend(vec![0; padding]);
            let Forward::ToPeer {
                allocation,
                peer,
                payload,
                dont_fragment: false,
            } = world.input(udp(CLIENT), &bytes)
            else {
                panic!("not relayed");
            };
            assert_eq!((allocation, peer.address()), (id, addr(PEER)));
            assert_eq!(payload, 4..4 + length as u16);
        }
    }
}

#[test]
fn rfc8656_12_6_channel_data_that_goes_nowhere() {
    let (mut world, _, _) = bound();
    for (bytes, reason) in [
        (channel_data(0x4002, b"x"), DropReason::NoChannel),
        (channel_data(0x7FFF, b"x"), DropReason::NoChannel),
        (vec![0x40, 0x01, 0x00], DropReason::Malformed),
        (vec![0x40, 0x01, 0x00, 0x02, 0x00], DropReason::Malformed),
        (vec![0x40, 0x01, 0xFF, 0xFF], DropReason::Malformed),
    ] {
        assert_eq!(world.input(udp(CLIENT), &bytes), Forward::Drop(reason));
    }
    let stranger = world.input(udp("192.0.2.8:4000"), &channel_data(0x4001, b"x"));
    assert_eq!(stranger, Forward::Drop(DropReason::NoChannel));
}

#[test]
fn rfc8656_12_7_data_of_a_bound_peer_comes_as_channel_data() {
    let (mut world, _, id) = bound();
    let Forward::ToClient { five_tuple, header } = world.peer_input(id, addr(PEER), b"hello")
    else {
        panic!("not relayed");
    };
    assert_eq!(five_tuple, udp(CLIENT));
    assert_eq!(header.bytes(), [0x40, 0x01, 0, 5]);
    assert_eq!(header.padding(), 0, "over UDP nothing is padded");
    // Another port of the same IP has the permission, not the channel.
    let Forward::ToClient { header, .. } = world.peer_input(id, addr(OTHER), b"hello") else {
        panic!("not relayed");
    };
    assert_eq!(header.bytes()[..2], [0x00, 0x17]);
}

#[test]
fn rfc8656_12_5_channel_data_over_streams_is_padded() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(tcp(CLIENT));
    world.ask(
        tcp(CLIENT),
        &Request::channel_bind(0x4001, addr(PEER)).sign(&alice),
    );
    for (length, padding) in [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0)] {
        let data = vec![1; length];
        let Forward::ToClient { header, .. } = world.peer_input(id, addr(PEER), &data) else {
            panic!("not relayed");
        };
        assert_eq!(header.bytes(), [0x40, 0x01, 0, length as u8]);
        assert_eq!(header.padding(), padding);
    }
}

#[test]
fn rfc8656_12_2_channel_numbers() {
    let cases = |range, cases: &[(u16, u16)]| {
        let settings = Settings {
            protocol: Protocol {
                channels: range,
                ..Protocol::default()
            },
            ..Settings::default()
        };
        let mut world = World::with(settings, &access_settings(), seed());
        let (alice, _, _) = world.allocate(udp(CLIENT));
        for (index, (number, code)) in cases.iter().enumerate() {
            let peer = addr(&format!("203.0.114.9:{}", 2000 + index));
            let bind = Request::channel_bind(*number, peer).sign(&alice);
            assert_eq!(world.ask(udp(CLIENT), &bind).code(), *code, "{number:#x}");
        }
    };
    cases(
        ChannelRange::Rfc8656,
        &[
            (0x0000, 400),
            (0x0001, 400),
            (0x3FFF, 400),
            (0x4000, 0),
            (0x4FFF, 0),
            (0x5000, 400),
            (0x7FFE, 400),
            (0x8000, 400),
            (0xFFFF, 400),
        ],
    );
    cases(
        ChannelRange::Rfc5766,
        &[
            (0x3FFF, 400),
            (0x4000, 0),
            (0x5000, 0),
            (0x7FFE, 0),
            (0x7FFF, 400),
        ],
    );
}

#[test]
fn rfc8656_12_2_missing_attributes_are_400() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let method = stun::message::METHOD_CHANNEL_BIND;
    for request in [
        Request::new(method).channel(0x4000),
        Request::new(method).peer(addr(PEER)),
        Request::new(method).peer(addr(PEER)).attr(0x000C, &[0x40]),
    ] {
        assert_eq!(world.ask(udp(CLIENT), &request.sign(&alice)).code(), 400);
    }
}

#[test]
fn rfc8656_12_2_channel_and_peer_are_bound_to_each_other_only() {
    let (mut world, alice, _) = bound();
    for (number, peer, code) in [
        (0x4001, OTHER, 400),
        (0x4002, PEER, 400),
        (0x4001, PEER, 0),
        (0x4002, OTHER, 0),
    ] {
        let bind = Request::channel_bind(number, addr(peer)).sign(&alice);
        assert_eq!(
            world.ask(udp(CLIENT), &bind).code(),
            code,
            "{number:#x} {peer}"
        );
    }
}

#[test]
fn rfc8656_12_2_policy_and_family() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    for (peer, code) in [
        ("[2a00::9]:1000", 443),
        ("127.0.0.1:1000", 403),
        ("10.0.0.1:1000", 403),
        ("169.254.169.254:80", 403),
        ("203.0.114.9:0", 403),
        ("203.0.114.9:1", 0),
    ] {
        let bind = Request::channel_bind(0x4000, addr(peer)).sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &bind).code(), code, "{peer}");
    }
    assert_eq!(world.server.stats().peer_denied.iter().sum::<u64>(), 4);
}

#[test]
fn rfc8656_12_channels_end_after_600_seconds_to_the_second() {
    let (mut world, alice, id) = bound();
    let refresh = Request::refresh(3600).sign(&alice);
    world.ask(udp(CLIENT), &refresh);
    let permit = Request::create_permission(&[addr(PEER)]).sign(&alice);
    world.pass(secs(299));
    world.ask(udp(CLIENT), &permit);
    world.pass(secs(299));
    world.ask(udp(CLIENT), &permit);
    world.pass(secs(2) - Duration::from_millis(1));
    let data = channel_data(0x4001, b"x");
    assert!(matches!(
        world.input(udp(CLIENT), &data),
        Forward::ToPeer { .. }
    ));
    let Forward::ToClient { header, .. } = world.peer_input(id, addr(PEER), b"x") else {
        panic!("not relayed");
    };
    assert_eq!(header.bytes().len(), 4);
    world.pass(Duration::from_millis(1));
    assert_eq!(
        world.input(udp(CLIENT), &data),
        Forward::Drop(DropReason::NoChannel)
    );
    let Forward::ToClient { header, .. } = world.peer_input(id, addr(PEER), b"x") else {
        panic!("the permission lives on");
    };
    assert_eq!(header.bytes()[..2], [0x00, 0x17], "as a Data indication");
    // The number is free for another peer.
    let bind = Request::channel_bind(0x4001, addr(OTHER)).sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &bind).code(), 0);
}

#[test]
fn rfc8656_12_a_channel_outlives_its_permission_towards_the_peer_only() {
    let (mut world, alice, id) = bound();
    world.pass(secs(300));
    let data = channel_data(0x4001, b"x");
    assert!(matches!(
        world.input(udp(CLIENT), &data),
        Forward::ToPeer { .. }
    ));
    let from_peer = world.peer_input(id, addr(PEER), b"x");
    assert_eq!(from_peer, Forward::Drop(DropReason::NoPermission));
    // A permission of any kind opens the way back, with the channel.
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    let Forward::ToClient { header, .. } = world.peer_input(id, addr(PEER), b"x") else {
        panic!("not relayed");
    };
    assert_eq!(header.bytes(), [0x40, 0x01, 0, 1]);
}

#[test]
fn channels_end_with_their_allocation_even_if_timers_are_late() {
    let (mut world, alice, id) = bound();
    world.pass(secs(500));
    world.ask(
        udp(CLIENT),
        &Request::channel_bind(0x4001, addr(PEER)).sign(&alice),
    );
    world.pass_unnoticed(secs(100));
    let data = channel_data(0x4001, b"x");
    assert_eq!(
        world.input(udp(CLIENT), &data),
        Forward::Drop(DropReason::NoChannel)
    );
    let from_peer = world.peer_input(id, addr(PEER), b"x");
    assert_eq!(from_peer, Forward::Drop(DropReason::NoPermission));
}

#[test]
fn channels_of_a_released_allocation_are_gone_for_its_successor() {
    let (mut world, alice, old) = bound();
    world.ask(udp(CLIENT), &Request::refresh(0).sign(&alice));
    let (_, new, _) = world.allocate(udp(CLIENT));
    let data = channel_data(0x4001, b"x");
    assert_eq!(
        world.input(udp(CLIENT), &data),
        Forward::Drop(DropReason::NoChannel)
    );
    for id in [old, new] {
        assert!(matches!(
            world.peer_input(id, addr(PEER), b"x"),
            Forward::Drop(_)
        ));
    }
}

#[test]
fn channels_of_one_allocation_are_bounded() {
    let settings = Settings {
        channels_per_allocation: 2,
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let mut bind = |number: u16| {
        let peer = addr(&format!("203.0.114.9:{number}"));
        let bind = Request::channel_bind(number, peer).sign(&alice);
        world.ask(udp(CLIENT), &bind).code()
    };
    assert_eq!(
        [0x4000, 0x4001, 0x4002, 0x4000].map(&mut bind),
        [0, 0, 508, 0]
    );
}

#[test]
fn live_rates_look_back_ten_seconds() {
    let (mut world, _, _) = bound();
    let rate = |world: &World| {
        let (views, _) = world.server.views(world.now, 0, 1);
        views[0].bits_per_second[Direction::ToPeer as usize]
    };
    for _ in 0..10 {
        world.input(udp(CLIENT), &channel_data(0x4001, &[0; 1000]));
        world.pass(secs(1));
    }
    assert_eq!(rate(&world), 8000, "10 000 bytes in ten whole seconds");
    world.pass(secs(5));
    assert_eq!(rate(&world), 4000);
    world.pass(secs(6));
    assert_eq!(rate(&world), 0);
    world.pass(secs(100));
    assert_eq!(rate(&world), 0);
}
