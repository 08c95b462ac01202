//! What the RFCs forbid, method by method: attributes that nobody knows, requests that come again, requests that are
//! none, and clients whose transactions look alike.

use std::net::SocketAddr;

use stun::attributes::*;
use stun::message::*;

use turnix::base::FiveTuple;
use turnix::turn::{DropReason, Forward};

use crate::common::wire::{Reply, Request, Signer};
use crate::common::world::{World, addr, secs, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";
const PEER: &str = "8.8.8.8:5000";

/// Every request that a client with an allocation makes, but for the Allocate itself.
fn requests() -> [Request; 4] {
    [
        Request::binding(),
        Request::refresh(900),
        Request::create_permission(&[addr(PEER)]),
        Request::channel_bind(0x4000, addr(PEER)),
    ]
}

fn signed(request: Request, signer: &Signer) -> Request {
    match request.0.typ.method {
        METHOD_BINDING => request,
        _ => request.sign(signer),
    }
}

/// Permissions and channels of the only allocation, and how many were ever made.
fn made(world: &World) -> (usize, usize, u32, u32) {
    let (views, _) = world.server.views(world.now, 0, 9);
    let [view] = &views[..] else {
        panic!("one allocation: {views:?}");
    };
    let made = (view.permissions_made, view.channels_made);
    (view.permissions, view.channels, made.0, made.1)
}

#[test]
fn rfc8489_6_3_1_unknown_required_attributes_are_420_with_all_of_them() {
    // Of other protocols, of none, and answers' own; an odd and an even number of them.
    let unknown: &[&[u16]] = &[&[0x7ABC], &[0x0024, 0x7FFF], &[0x0002, 0x0025, 0x4001]];
    for kinds in unknown {
        let with = |request: Request| {
            (kinds.iter()).fold(request, |request, kind| request.attr(*kind, &[1, 2, 3]))
        };
        let refused = |reply: &Reply| {
            assert_eq!(reply.code(), 420);
            let listed = reply.attr(ATTR_UNKNOWN_ATTRIBUTES).expect("the list");
            let expected: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_be_bytes()).collect();
            assert_eq!(listed, expected);
        };
        let mut world = World::new();
        let alice = world.alice(udp(CLIENT));
        let allocate = with(Request::allocate()).sign(&alice);
        refused(&world.ask(udp(CLIENT), &allocate));
        assert!(world.server.is_empty() && world.opened.is_empty());
        let (alice, ..) = world.allocate(udp(CLIENT));
        for request in requests() {
            let reply = world.ask(udp(CLIENT), &signed(with(request), &alice));
            refused(&reply);
        }
        assert_eq!(made(&world), (0, 0, 0, 0), "nothing was done");
        world.pass(secs(600));
        assert!(world.server.is_empty(), "nor refreshed");
        // An indication has no answer.
        let (alice, ..) = world.allocate(udp(CLIENT));
        let permit = Request::create_permission(&[addr(PEER)]).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &permit), 0);
        let send = with(Request::send(addr(PEER), b"data"));
        let dropped = world.input(udp(CLIENT), &send.bytes());
        assert_eq!(dropped, Forward::Drop(DropReason::Malformed));
    }
}

#[test]
fn rfc8489_6_3_1_unknown_optional_attributes_are_ignored() {
    let with = |request: Request| {
        [0x8ABC, 0xC001, 0xFFFF]
            .into_iter()
            .fold(request, |request, kind| request.attr(kind, &[7; 5]))
    };
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let allocate = with(Request::allocate()).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &allocate), 0);
    for request in requests() {
        assert_eq!(world.code(udp(CLIENT), &signed(with(request), &alice)), 0);
    }
    let send = with(Request::send(addr(PEER), b"data"));
    let sent = world.input(udp(CLIENT), &send.bytes());
    assert!(matches!(sent, Forward::ToPeer { .. }));
}

#[test]
fn rfc8489_6_3_1_attributes_that_are_known_and_of_no_use_here_are_ignored() {
    let stray: &[(u16, &[u8])] = &[
        (ATTR_LIFETIME.0, &[0, 0, 3, 132]),
        (ATTR_CHANNEL_NUMBER.0, &[0x40, 1, 0, 0]),
        (ATTR_DATA.0, b"data"),
        (ATTR_REQUESTED_TRANSPORT.0, &[6, 0, 0, 0]),
        (ATTR_EVEN_PORT.0, &[0x80]),
        (ATTR_RESERVATION_TOKEN.0, &[7; 8]),
        (ATTR_XORMAPPED_ADDRESS.0, &[0, 1, 1, 1, 1, 1, 1, 1]),
    ];
    let mut world = World::new();
    let (alice, ..) = world.allocate(udp(CLIENT));
    for request in &requests()[1..] {
        for (kind, value) in stray {
            // The first of duplicates counts: these stand behind what the request is about.
            let request = request.clone().attr(*kind, value);
            let reply = world.ask(udp(CLIENT), &request.sign(&alice));
            assert_eq!(reply.code(), 0, "{kind:#06x}");
        }
    }
    assert_eq!(made(&world), (1, 1, 1, 1));
}

#[test]
fn rfc8489_6_3_1_every_request_may_come_again() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let allocate = Request::allocate().sign(&alice);
    let first = world.ask(udp(CLIENT), &allocate);
    for request in requests() {
        let request = signed(request, &alice);
        let answer = world.ask(udp(CLIENT), &request);
        assert_eq!(answer.code(), 0);
        let before = made(&world);
        world.pass(secs(3));
        for _ in 0..3 {
            let again = world.ask(udp(CLIENT), &request);
            assert_eq!(again.0.raw, answer.0.raw, "the same answer");
        }
        assert_eq!(made(&world), before, "nothing more was made");
    }
    assert_eq!(made(&world), (1, 1, 1, 1));
    assert_eq!(world.ask(udp(CLIENT), &allocate).0.raw, first.0.raw);
    assert_eq!((world.opened.len(), world.server.len()), (1, 1));
    // The end as well: clients take the second answer for success (RFC 8656 §8.3).
    let release = Request::refresh(0).sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &release).lifetime(), 0);
    for _ in 0..3 {
        assert_eq!(world.code(udp(CLIENT), &release), 437);
    }
    assert_eq!((world.closed.len(), world.ended.len()), (1, 1));
}

#[test]
fn requests_that_were_refused_may_come_again() {
    let mut world = World::new();
    let (alice, ..) = world.allocate(udp(CLIENT));
    let private: SocketAddr = addr("10.0.0.1:5000");
    for (request, code) in [
        (Request::allocate(), 437),
        (Request::refresh(600).family(2), 443),
        (Request::create_permission(&[]), 400),
        (Request::create_permission(&[private]), 403),
        (Request::create_permission(&[addr("[2a01::5]:6000")]), 443),
        (Request::channel_bind(0x4000, private), 403),
        (Request::channel_bind(0x3FFF, addr(PEER)), 400),
        (Request::channel_bind(0x5000, addr(PEER)), 400),
        (Request::channel_bind(0xFFFF, addr(PEER)), 400),
    ] {
        let request = request.sign(&alice);
        let answer = world.ask(udp(CLIENT), &request);
        assert_eq!(answer.code(), code);
        assert_eq!(world.ask(udp(CLIENT), &request).0.raw, answer.0.raw);
        assert!(answer.is_signed_by(&alice));
    }
    assert_eq!(made(&world), (0, 0, 0, 0));
}

/// Two clients whose transaction ids are the same ones at the same time.
#[test]
fn rfc8489_6_transactions_of_one_client_are_not_anothers() {
    let pairs: [[FiveTuple; 2]; 3] = [
        [udp(CLIENT), udp("192.0.2.7:4001")],
        [udp(CLIENT), udp("192.0.2.8:4000")],
        [udp(CLIENT), tcp(CLIENT)],
    ];
    for [one, other] in pairs {
        let mut world = World::new();
        world.open = None;
        let signers = [one, other].map(|client| world.alice(client));
        let id = Request::allocate().0.transaction_id;
        let alike = |request: Request, signer: &Signer| {
            let mut request = request;
            request.0.transaction_id = id;
            request.0.write_header();
            signed(request, signer)
        };
        for (client, signer) in [one, other].into_iter().zip(&signers) {
            let allocate = alike(Request::allocate(), signer);
            assert!(world.ask_raw(client, &allocate.bytes()).is_empty());
        }
        let [first, second] = world.opened[..] else {
            panic!("an allocation for each");
        };
        // The relays open in the other order.
        let mut relayed = Vec::new();
        for (client, allocation) in [(other, second), (one, first)] {
            world.opened(allocation, turnix::base::Family::V4, Ok(()));
            world.drain();
            let (to, message) = world.sent.pop().expect("an answer");
            assert_eq!(to, client);
            let reply = Reply::parse(&message);
            assert_eq!(reply.mapped(), client.client());
            relayed.push(reply.relayed());
        }
        assert_ne!(relayed[0], relayed[1]);
        for (client, signer) in [one, other].into_iter().zip(&signers) {
            for request in requests() {
                assert_eq!(world.code(client, &alike(request, signer)), 0);
            }
        }
        let release = alike(Request::refresh(0), &signers[0]);
        assert_eq!(world.code(one, &release), 0);
        assert!(!world.server.has_allocation(one) && world.server.has_allocation(other));
        // Nobody's nonce is good from elsewhere, whatever its transaction is called.
        let stolen = alike(Request::refresh(0), &signers[0]);
        assert_eq!(world.code(other, &stolen), 438);
        assert!(world.server.has_allocation(other));
    }
}

#[test]
fn rfc8656_requests_of_who_has_no_allocation_are_437() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    for request in &requests()[1..] {
        let request = request.clone().sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &request), 437);
    }
    let send = world.input(udp(CLIENT), &Request::send(addr(PEER), b"data").bytes());
    assert_eq!(send, Forward::Drop(DropReason::NoAllocation));
}

/// Methods that are indications only are no requests, requests are no indications, and nobody answers a server.
#[test]
fn rfc8489_6_3_what_is_no_request_gets_no_answer() {
    let mut world = World::new();
    let (alice, ..) = world.allocate(udp(CLIENT));
    let peer = |request: Request| request.peer(addr(PEER)).attr(ATTR_DATA.0, b"data");
    let mut unexpected = vec![
        peer(Request::new(METHOD_SEND)),
        peer(Request::new(METHOD_DATA)),
        peer(Request::of_class(METHOD_DATA, CLASS_INDICATION)),
    ];
    for request in &requests()[1..] {
        for class in [
            CLASS_INDICATION,
            CLASS_SUCCESS_RESPONSE,
            CLASS_ERROR_RESPONSE,
        ] {
            let mut request = request.clone();
            request
                .0
                .set_type(MessageType::new(request.0.typ.method, class));
            unexpected.push(request);
        }
    }
    for message in unexpected {
        for message in [message.clone(), message.sign(&alice)] {
            world.sent.clear();
            let forward = world.input(udp(CLIENT), &message.bytes());
            assert_eq!(forward, Forward::Drop(DropReason::Unexpected));
            assert!(world.sent.is_empty());
        }
    }
    assert_eq!(made(&world), (0, 0, 0, 0));
}
