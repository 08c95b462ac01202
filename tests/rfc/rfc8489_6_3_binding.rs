//! Binding (RFC 8489 §6.3) and the sizes strangers get.

use stun::attributes::*;
use stun::message::*;
use turnix::turn::{DropReason, Forward};

use crate::common::wire::{Reply, Request, Signer};
use crate::common::world::{World, addr, tcp, udp};

#[test]
fn rfc8489_6_3_1_binding_needs_no_credentials_on_any_transport() {
    let mut world = World::new();
    for (client, address) in [
        (udp("192.0.2.7:4000"), "192.0.2.7:4000"),
        (udp("[2a00::7]:4000"), "[2a00::7]:4000"),
        (tcp("192.0.2.7:4000"), "192.0.2.7:4000"),
        (udp("[::ffff:192.0.2.7]:4000"), "192.0.2.7:4000"),
    ] {
        let reply = world.ask(client, &Request::binding());
        assert!(reply.is_success());
        assert_eq!(reply.mapped(), addr(address));
        assert_eq!(reply.attribute_types(), [ATTR_XORMAPPED_ADDRESS.0]);
    }
}

#[test]
fn answers_to_strangers_are_as_small_as_the_rfcs_allow() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let binding = world.ask_raw(client, &Request::binding().bytes());
    assert_eq!(binding[0].len(), 32, "header and XOR-MAPPED-ADDRESS");
    let allocate = Request::allocate().bytes();
    let challenge = world.ask_raw(client, &allocate);
    // ERROR-CODE 8, REALM of 11 characters 16, NONCE of 24 characters 28.
    assert_eq!(challenge[0].len(), 20 + 8 + 16 + 28);
    assert!(challenge[0].len() * 10 <= allocate.len() * 26);
}

#[test]
fn rfc8489_7_fingerprint_is_answered_where_it_was_asked() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let reply = world.ask(client, &Request::binding().fingerprint());
    assert_eq!(
        reply.attribute_types(),
        [ATTR_XORMAPPED_ADDRESS.0, ATTR_FINGERPRINT.0]
    );
    stun::fingerprint::FINGERPRINT.check(&reply.0).unwrap();
}

#[test]
fn rfc8489_7_wrong_fingerprint_is_discarded() {
    let mut world = World::new();
    let mut bytes = Request::binding().fingerprint().bytes();
    *bytes.last_mut().unwrap() ^= 1;
    let forward = world.input(udp("192.0.2.7:4000"), &bytes);
    assert_eq!(forward, Forward::Drop(DropReason::Fingerprint));
    assert!(world.sent.is_empty());
}

#[test]
fn rfc8489_6_3_1_unknown_required_attributes_are_listed_in_420() {
    let mut world = World::new();
    let request = Request::binding()
        .attr(0x7ABC, &[1, 2, 3])
        .attr(0x8ABC, &[1])
        .attr(0x7ABD, &[]);
    let reply = world.ask(udp("192.0.2.7:4000"), &request);
    assert_eq!(reply.code(), 420);
    assert_eq!(
        reply.attr(ATTR_UNKNOWN_ATTRIBUTES).unwrap(),
        [0x7A, 0xBC, 0x7A, 0xBD]
    );
}

#[test]
fn rfc8489_6_3_unknown_optional_attributes_are_ignored() {
    let mut world = World::new();
    let request = Request::binding().attr(0x8ABC, &[1; 40]);
    assert!(world.ask(udp("192.0.2.7:4000"), &request).is_success());
}

#[test]
fn rfc8489_6_3_2_binding_indications_are_accepted_in_silence() {
    let mut world = World::new();
    let indication = Request::of_class(METHOD_BINDING, CLASS_INDICATION);
    let forward = world.input(udp("192.0.2.7:4000"), &indication.bytes());
    assert_eq!(forward, Forward::Consumed);
    assert!(world.sent.is_empty());
}

#[test]
fn responses_unknown_methods_and_server_indications_get_no_answer() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let mut unknown_method = Request::binding().bytes();
    unknown_method[0] = 0x0F;
    for bytes in [
        Request::of_class(METHOD_BINDING, CLASS_SUCCESS_RESPONSE).bytes(),
        Request::of_class(METHOD_ALLOCATE, CLASS_ERROR_RESPONSE).bytes(),
        Request::of_class(METHOD_DATA, CLASS_INDICATION).bytes(),
        Request::of_class(METHOD_ALLOCATE, CLASS_INDICATION).bytes(),
        Request::new(METHOD_SEND).bytes(),
        unknown_method,
    ] {
        let forward = world.input(client, &bytes);
        assert_eq!(forward, Forward::Drop(DropReason::Unexpected));
        assert!(world.sent.is_empty());
    }
}

#[test]
fn clients_at_port_zero_cannot_be_answered() {
    let mut world = World::new();
    let forward = world.input(udp("192.0.2.7:0"), &Request::binding().bytes());
    assert_eq!(forward, Forward::Drop(DropReason::Unanswerable));
}

#[test]
fn padding_in_answers_is_zero() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let answer = world
        .ask_raw(client, &Request::allocate().bytes())
        .remove(0);
    // REALM is eleven characters long: one byte of padding follows it.
    let realm = answer
        .windows(11)
        .position(|w| w == b"example.org")
        .unwrap();
    assert_eq!(answer[realm + 11], 0);
    let signer = Signer::new("alice", "wrong", &Reply::parse(&answer).nonce());
    let request = Request::allocate().attr(0x7ABC, &[9]).sign(&signer);
    let answer = world.ask_raw(client, &request.bytes()).remove(0);
    assert!(Reply::parse(&answer).code() == 401);
}
