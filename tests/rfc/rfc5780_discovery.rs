//! NAT behaviour discovery (RFC 5780): four addresses, and answers from another one.

use std::net::SocketAddr;

use stun::attributes::{
    ATTR_ERROR_CODE, ATTR_FINGERPRINT, ATTR_MAPPED_ADDRESS, ATTR_UNKNOWN_ATTRIBUTES, AttrType,
};
use turnix::base::{FiveTuple, ListenerId, Transport};
use turnix::turn::{DropReason, Forward, Vantage};

use crate::common::wire::{Reply, Request};
use crate::common::world::{World, addr, udp};

const CHANGE_REQUEST: u16 = 0x0003;
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
const RESPONSE_ORIGIN: AttrType = AttrType(0x802B);
const OTHER_ADDRESS: AttrType = AttrType(0x802C);

const CLIENT: &str = "192.0.2.7:4000";

/// Listener 0 is not among them, so that an ordinary client goes by.
fn vantage() -> Vantage {
    Vantage {
        listeners: [
            [ListenerId(10), ListenerId(11)],
            [ListenerId(20), ListenerId(21)],
        ],
        seen: [
            [addr("198.51.100.1:3478"), addr("198.51.100.1:3479")],
            [addr("198.51.100.2:3478"), addr("198.51.100.2:3479")],
        ],
    }
}

fn world() -> World {
    let mut world = World::new();
    world.server.set_vantages(vec![vantage()]);
    world
}

fn at(listener: u16) -> FiveTuple {
    FiveTuple::new(Transport::Udp, addr(CLIENT), ListenerId(listener))
}

/// The only answer, and where it goes.
fn ask(world: &mut World, from: FiveTuple, request: &Request) -> (FiveTuple, Reply, usize) {
    world.sent.clear();
    world.input(from, &request.bytes());
    assert_eq!(world.sent.len(), 1, "exactly one answer");
    let (to, bytes) = world.sent.remove(0);
    (to, Reply::parse(&bytes), bytes.len())
}

/// What a plain address attribute says (RFC 8489 §14.1).
fn plain(reply: &Reply, kind: AttrType) -> SocketAddr {
    match reply.attr(kind).unwrap()[..] {
        [0, 1, high, low, a, b, c, d] => {
            SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))
        }
        ref other => panic!("{other:?}"),
    }
}

fn change(flags: u8) -> Request {
    Request::binding().attr(CHANGE_REQUEST, &[0, 0, 0, flags])
}

#[test]
fn rfc5780_7_3_and_4_every_binding_says_where_else_to_ask() {
    let mut world = world();
    for (listener, origin, other) in [
        (10, "198.51.100.1:3478", "198.51.100.2:3479"),
        (11, "198.51.100.1:3479", "198.51.100.2:3478"),
        (20, "198.51.100.2:3478", "198.51.100.1:3479"),
        (21, "198.51.100.2:3479", "198.51.100.1:3478"),
    ] {
        let (to, reply, length) = ask(&mut world, at(listener), &Request::binding());
        assert_eq!(to, at(listener));
        assert_eq!(reply.mapped(), addr(CLIENT));
        assert_eq!(plain(&reply, RESPONSE_ORIGIN), addr(origin));
        assert_eq!(plain(&reply, OTHER_ADDRESS), addr(other));
        assert_eq!(plain(&reply, ATTR_MAPPED_ADDRESS), addr(CLIENT));
        assert_eq!(length, 32 + 36, "nothing else");
    }
}

#[test]
fn rfc5780_7_2_the_answer_leaves_from_what_was_asked_for() {
    let mut world = world();
    for (flags, listener, origin) in [
        (0, 10, "198.51.100.1:3478"),
        (2, 11, "198.51.100.1:3479"),
        (4, 20, "198.51.100.2:3478"),
        (6, 21, "198.51.100.2:3479"),
        // Bits that are not defined say nothing.
        (0xF9, 10, "198.51.100.1:3478"),
    ] {
        let (to, reply, _) = ask(&mut world, at(10), &change(flags).fingerprint());
        assert_eq!(to, at(listener), "{flags:#x}");
        assert_eq!(plain(&reply, RESPONSE_ORIGIN), addr(origin));
        // As seen from where the request came in, whatever it asks for.
        assert_eq!(plain(&reply, OTHER_ADDRESS), addr("198.51.100.2:3479"));
        assert!(reply.attr(ATTR_FINGERPRINT).is_some());
    }
    let (to, ..) = ask(&mut world, at(21), &change(6));
    assert_eq!(to, at(10));
}

#[test]
fn rfc5780_7_5_the_answer_goes_to_another_port_of_the_same_address() {
    let mut world = world();
    for value in [&[0x17, 0x70][..], &[0x17, 0x70, 0, 0]] {
        let request = Request::binding().attr(RESPONSE_PORT, value);
        let (to, reply, _) = ask(&mut world, at(10), &request);
        assert_eq!(to.client(), addr("192.0.2.7:6000"));
        assert_eq!(to.listener(), ListenerId(10));
        assert_eq!(reply.mapped(), addr(CLIENT));
    }
    world.sent.clear();
    let none = Request::binding().attr(RESPONSE_PORT, &[0, 0]);
    world.input(at(10), &none.bytes());
    assert!(world.sent.is_empty(), "port 0 is nobody's");
    // A service of this very server is not answered on another's word.
    let own = FiveTuple::new(Transport::Udp, addr("198.51.100.1:4000"), ListenerId(20));
    let request = Request::binding().attr(RESPONSE_PORT, &3478_u16.to_be_bytes());
    world.input(own, &request.bytes());
    assert!(world.sent.is_empty());
}

#[test]
fn rfc5780_7_6_padding_is_returned_as_it_came() {
    let mut world = world();
    let bare = 32 + 36;
    for (sent, returned) in [(0, 0), (4, 4), (1000, 1000), (1500, 1500), (1999, 1500)] {
        let request = Request::binding().attr(PADDING, &vec![0; sent]);
        let size = request.bytes().len();
        let (_, reply, length) = ask(&mut world, at(10), &request);
        assert_eq!(reply.attr(AttrType(PADDING)).unwrap().len(), returned);
        assert_eq!(length, bare + 4 + returned);
        assert!(length <= size + bare - 20, "no more than without padding");
    }
    let both = Request::binding()
        .attr(PADDING, &[0; 4])
        .attr(RESPONSE_PORT, &[0x17, 0x70]);
    assert_eq!(ask(&mut world, at(10), &both).1.code(), 400);
}

#[test]
fn what_is_malformed_or_unknown_is_refused_where_it_was_asked() {
    let mut world = world();
    for (request, code) in [
        (Request::binding().attr(CHANGE_REQUEST, &[0, 0, 6]), 400),
        (Request::binding().attr(RESPONSE_PORT, &[1]), 400),
        (change(6).attr(0x7ABC, &[]), 420),
    ] {
        let (to, reply, _) = ask(&mut world, at(10), &request);
        assert_eq!((to, reply.code()), (at(10), code));
        let unknown = reply.attr(ATTR_UNKNOWN_ATTRIBUTES);
        assert_eq!(unknown, (code == 420).then(|| vec![0x7A, 0xBC]));
    }
}

#[test]
fn elsewhere_nobody_knows_of_it() {
    let mut world = world();
    let stream = FiveTuple::new(Transport::Tcp, addr(CLIENT), ListenerId(10));
    for from in [udp(CLIENT), stream] {
        let reply = world.ask(from, &Request::binding());
        assert_eq!(reply.attribute_types(), [0x0020]);
        for kind in [CHANGE_REQUEST, PADDING, RESPONSE_PORT] {
            let reply = world.ask(from, &Request::binding().attr(kind, &[0; 4]));
            assert_eq!(reply.code(), 420, "{kind:#x}");
            assert!(reply.attr(ATTR_ERROR_CODE).is_some());
        }
    }
}

#[test]
fn answers_elsewhere_cost_tokens_like_any() {
    let mut world = world();
    let mut answered = 0;
    let limited = (0..10_000).find_map(|_| match world.input(at(10), &change(6).bytes()) {
        Forward::Drop(reason) => Some(reason),
        _ => {
            answered += 1;
            None
        }
    });
    assert_eq!(limited, Some(DropReason::RateLimited));
    assert_eq!(world.sent.len(), answered);
}
