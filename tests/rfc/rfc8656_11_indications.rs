//! Send and Data indications (RFC 8656 §11).

use turnix::turn::{Direction, DropReason, Forward, FromPeer, Path};

use crate::common::wire::{Reply, Request};
use crate::common::world::{World, addr, udp};

const CLIENT: &str = "192.0.2.7:4000";
const PEER: &str = "203.0.114.9:1000";

#[test]
fn rfc8656_11_2_send_goes_to_the_peer_byte_for_byte() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    for length in [0_usize, 1, 2, 3, 4, 1200] {
        let data: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let bytes = Request::send(addr(PEER), &data).bytes();
        let Forward::ToPeer {
            allocation,
            peer,
            payload,
            dont_fragment: false,
        } = world.input(udp(CLIENT), &bytes)
        else {
            panic!("not relayed");
        };
        assert_eq!(allocation, id);
        assert_eq!(peer.address(), addr(PEER));
        assert_eq!(
            &bytes[usize::from(payload.start)..usize::from(payload.end)],
            data
        );
    }
}

#[test]
fn rfc8656_11_2_send_is_dropped_in_silence() {
    let mut world = World::new();
    let no_allocation = world.input(udp(CLIENT), &Request::send(addr(PEER), b"x").bytes());
    assert_eq!(no_allocation, Forward::Drop(DropReason::NoAllocation));
    let (alice, _, _) = world.allocate(udp(CLIENT));
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    let method = stun::message::METHOD_SEND;
    let class = stun::message::CLASS_INDICATION;
    let without_data = Request::of_class(method, class).peer(addr(PEER));
    let without_peer = Request::of_class(method, class).attr(0x0013, b"x");
    let cases = [
        (
            Request::send(addr("203.0.114.10:1000"), b"x"),
            DropReason::NoPermission,
        ),
        (
            Request::send(addr("[2a00::9]:1000"), b"x"),
            DropReason::Family,
        ),
        (
            Request::send(addr("203.0.114.9:0"), b"x"),
            DropReason::PeerDenied,
        ),
        (without_data, DropReason::Malformed),
        (without_peer, DropReason::Malformed),
        // An unknown required attribute discards an indication.
        (
            Request::send(addr(PEER), b"x").attr(0x001B, &[]),
            DropReason::Malformed,
        ),
    ];
    for (request, reason) in cases {
        let forward = world.input(udp(CLIENT), &request.bytes());
        assert_eq!(forward, Forward::Drop(reason));
        assert!(world.sent.is_empty());
    }
    let optional = Request::send(addr(PEER), b"x").attr(0x8ABC, &[1]);
    assert!(matches!(
        world.input(udp(CLIENT), &optional.bytes()),
        Forward::ToPeer { .. }
    ));
}

#[test]
fn rfc8656_11_3_data_indications_read_as_the_rfc_says() {
    let mut world = World::new();
    for (family, client, peer) in [
        (1, udp("192.0.2.7:1"), "203.0.114.9:1000"),
        (2, udp("192.0.2.7:2"), "[2a00::9]:1000"),
        (2, udp("[2a00::7]:3"), "[2a00::9]:65535"),
    ] {
        let alice = world.alice(client);
        world.ask(client, &Request::allocate().family(family).sign(&alice));
        let id = *world.opened.last().unwrap();
        world.ask(
            client,
            &Request::create_permission(&[addr(peer)]).sign(&alice),
        );
        for length in [0_usize, 1, 2, 3, 4, 1201] {
            let data: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let Forward::ToClient { five_tuple, header } = world.peer_input(id, addr(peer), &data)
            else {
                panic!("not relayed");
            };
            assert_eq!(five_tuple, client);
            let mut bytes = header.bytes().to_vec();
            bytes.extend_from_slice(&data);
            bytes.extend(std::iter::repeat_n(0, header.padding()));
            let indication = Reply::parse(&bytes);
            assert_eq!(indication.0.typ.value(), 0x0017);
            assert_eq!(indication.peer(), addr(peer));
            assert_eq!(indication.data(), data);
        }
    }
}

#[test]
fn transaction_ids_of_data_indications_differ() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let Forward::ToClient { header, .. } = world.peer_input(id, addr(PEER), b"x") else {
            panic!("not relayed");
        };
        assert!(seen.insert(header.bytes()[8..20].to_vec()));
    }
}

#[test]
fn datagrams_too_large_for_a_data_indication_are_dropped() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    let forward = world.peer_input(id, addr(PEER), &vec![0; 65_530]);
    assert_eq!(forward, Forward::Drop(DropReason::TooLarge));
}

#[test]
fn traffic_is_counted_by_direction_path_and_allocation() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.ask(
        udp(CLIENT),
        &Request::create_permission(&[addr(PEER)]).sign(&alice),
    );
    world.input(udp(CLIENT), &Request::send(addr(PEER), &[0; 100]).bytes());
    for path in [Path::Kernel, Path::Hairpin, Path::Hairpin] {
        let from = FromPeer {
            peer: addr(PEER),
            path,
            scope: turnix::access::Scope::Policy,
        };
        world
            .server
            .handle_peer_input(world.now, id, from, &[0; 10]);
    }
    let (views, more) = world.server.views(world.now, 0, 10);
    assert!(!more);
    assert_eq!(views[0].traffic[Direction::ToPeer as usize].bytes, 100);
    assert_eq!(views[0].traffic[Direction::ToClient as usize].packets, 3);
    let relayed = world.server.stats().relayed[Direction::ToClient as usize];
    assert_eq!(relayed[Path::Kernel as usize].bytes, 10);
    assert_eq!(relayed[Path::Hairpin as usize].bytes, 20);
}
