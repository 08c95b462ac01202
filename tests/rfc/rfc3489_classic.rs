//! Binding for clients without a magic cookie (RFC 3489), where that is on.

use turnix::base::{FiveTuple, ListenerId, Transport};
use turnix::turn::{DropReason, Forward, Protocol, Settings, Vantage};

use crate::common::world::{World, access_settings, addr, seed, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";
const TRANSACTION: [u8; 16] = *b"sixteen bytes id";

const MAPPED: u16 = 1;
const CHANGE_REQUEST: u16 = 3;
const SOURCE: u16 = 4;
const CHANGED: u16 = 5;

fn world() -> World {
    let settings = Settings {
        protocol: Protocol {
            rfc3489: true,
            ..Protocol::default()
        },
        ..Settings::default()
    };
    World::with(settings, &access_settings(), seed())
}

fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    message(0x0001, attributes)
}

fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let body: Vec<u8> = (attributes.iter())
        .flat_map(|(kind, value)| {
            let length = value.len() as u16;
            [&kind.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
        })
        .collect();
    let length = body.len() as u16;
    [
        &kind.to_be_bytes()[..],
        &length.to_be_bytes(),
        &TRANSACTION,
        &body,
    ]
    .concat()
}

const fn v4(last: u8, port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [0, 1, high, low, 198, 51, 100, last]
}

#[test]
fn rfc3489_8_1_the_answer_is_in_the_clear_and_keeps_all_128_bits() {
    let mut world = world();
    let mapped = [0, 1, 0x0F, 0xA0, 192, 0, 2, 7];
    let answer = message(0x0101, &[(MAPPED, &mapped)]);
    // Users of those days sent flags that ask for nothing, names, and signatures that no secret was shared for.
    let cases: [&[(u16, &[u8])]; 4] = [
        &[],
        &[(CHANGE_REQUEST, &[0; 4])],
        &[(6, b"name"), (8, &[0; 20])],
        &[(0x8ABC, &[1, 2, 3, 4])],
    ];
    for attributes in cases {
        let answers = world.ask_raw(udp(CLIENT), &request(attributes));
        assert_eq!(answers, std::slice::from_ref(&answer), "{attributes:?}");
    }
}

#[test]
fn rfc3489_8_1_what_is_not_understood_is_named() {
    let mut world = world();
    for (attribute, value) in [
        (CHANGE_REQUEST, &[0, 0, 0, 4][..]),
        // RESPONSE-ADDRESS has the answer sent to whomever the client names.
        (2, &[0, 1, 0, 80, 203, 0, 113, 9]),
        (0x0020, &[0; 8]),
    ] {
        let answers = world.ask_raw(udp(CLIENT), &request(&[(attribute, value)]));
        let [high, low] = attribute.to_be_bytes();
        let unknown = [high, low, high, low];
        let expected = message(0x0111, &[(9, &[0, 0, 4, 20]), (0x000A, &unknown)]);
        assert_eq!(answers, [expected]);
    }
}

#[test]
fn with_four_addresses_answers_come_from_where_they_are_wanted() {
    let mut world = world();
    world.server.set_vantages(vec![Vantage {
        listeners: [[10, 11].map(ListenerId), [20, 21].map(ListenerId)],
        seen: [
            [addr("198.51.100.1:3478"), addr("198.51.100.1:3479")],
            [addr("198.51.100.2:3478"), addr("198.51.100.2:3479")],
        ],
    }]);
    let at = |listener| FiveTuple::new(Transport::Udp, addr(CLIENT), ListenerId(listener));
    for (flags, listener, source) in [
        (0, 10, v4(1, 3478)),
        (2, 11, v4(1, 3479)),
        (4, 20, v4(2, 3478)),
        (6, 21, v4(2, 3479)),
    ] {
        world.sent.clear();
        world.input(at(10), &request(&[(CHANGE_REQUEST, &[0, 0, 0, flags])]));
        let mapped = [0, 1, 0x0F, 0xA0, 192, 0, 2, 7];
        let changed = v4(2, 3479);
        let expected = message(
            0x0101,
            &[(MAPPED, &mapped), (SOURCE, &source), (CHANGED, &changed)],
        );
        assert_eq!(world.sent, [(at(listener), expected)]);
    }
}

#[test]
fn what_is_no_binding_request_is_dropped() {
    let mut world = world();
    let good = request(&[(6, b"name")]);
    let mut others = vec![
        message(0x0101, &[]),
        message(0x0002, &[]),
        message(0x0003, &[]),
        // Attributes were whole words then.
        request(&[(6, b"nam")]),
        [&good[..], &[0]].concat(),
    ];
    others.extend((1..good.len()).map(|length| good[..length].to_vec()));
    for bytes in others {
        let forward = world.input(udp(CLIENT), &bytes);
        assert!(matches!(forward, Forward::Drop(_)), "{bytes:?}");
    }
    assert!(world.sent.is_empty());
    let forward = world.input(tcp(CLIENT), &good);
    assert_eq!(forward, Forward::Drop(DropReason::NotStun));
}

#[test]
fn it_is_off_by_default() {
    let mut world = World::new();
    let forward = world.input(udp(CLIENT), &request(&[]));
    assert_eq!(forward, Forward::Drop(DropReason::NotStun));
    assert!(world.sent.is_empty());
}

#[test]
fn strangers_get_no_more_of_it_than_of_anything() {
    let mut world = world();
    let limited = (0..10_000)
        .any(|_| world.input(udp(CLIENT), &request(&[])) == Forward::Drop(DropReason::RateLimited));
    assert!(limited);
    let own = udp("198.51.100.1:3478");
    world.sent.clear();
    let forward = world.input(own, &request(&[]));
    assert_eq!(forward, Forward::Drop(DropReason::Unanswerable));
    assert!(world.sent.is_empty());
}
