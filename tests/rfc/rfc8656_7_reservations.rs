//! EVEN-PORT with the R bit, and RESERVATION-TOKEN (RFC 8656 §7.2), as far as the core goes.

use stun::attributes::*;

use turnix::turn::{OpenError, Protocol, Settings};

use crate::common::wire::Request;
use crate::common::world::{World, access_settings, secs, seed, udp};

const CLIENT: &str = "192.0.2.7:4000";
const OTHER: &str = "192.0.2.7:4001";

fn reserving() -> Request {
    Request::allocate().attr(ATTR_EVEN_PORT.0, &[0x80])
}

fn claiming(token: u64) -> Request {
    Request::allocate().attr(ATTR_RESERVATION_TOKEN.0, &token.to_be_bytes())
}

#[test]
fn rfc8656_7_2_the_token_is_in_the_answer_and_in_that_to_its_retransmission() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = reserving().sign(&alice);
    let reply = world.ask(udp(CLIENT), &request);
    let token = world.token.to_be_bytes().to_vec();
    assert_eq!(reply.attr(ATTR_RESERVATION_TOKEN), Some(token.clone()));
    assert!(reply.is_signed_by(&alice));
    assert_eq!(world.reserve, (true, None));
    assert_eq!(world.even_ports, [true]);
    world.token += 1;
    world.pass(secs(5));
    let again = world.ask(udp(CLIENT), &request);
    assert_eq!(again.0.raw, reply.0.raw);
    assert_eq!(world.opened.len(), 1);
}

#[test]
fn rfc8656_7_2_without_the_r_bit_nothing_is_kept() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate().attr(ATTR_EVEN_PORT.0, &[0]);
    let reply = world.ask(udp(CLIENT), &request.sign(&alice));
    assert_eq!(reply.code(), 0);
    assert!(reply.attr(ATTR_RESERVATION_TOKEN).is_none());
    assert_eq!(
        (world.reserve, &world.even_ports[..]),
        ((false, None), &[true][..])
    );
}

#[test]
fn rfc8656_7_2_a_token_claims_what_is_kept() {
    let mut world = World::new();
    let alice = world.alice(udp(OTHER));
    let request = claiming(0xFEDC_BA98_7654_3210).sign(&alice);
    let reply = world.ask(udp(OTHER), &request);
    assert_eq!(reply.code(), 0);
    assert!(reply.attr(ATTR_RESERVATION_TOKEN).is_none());
    assert_eq!(world.reserve, (false, Some(0xFEDC_BA98_7654_3210)));
    assert_eq!(world.even_ports, [false]);
    assert_eq!(world.ask(udp(OTHER), &request).0.raw, reply.0.raw);
    // Nobody keeps anything under another one.
    let third = udp("192.0.2.7:4002");
    let alice = world.alice(third);
    world.open = Some(Err(OpenError::Capacity));
    assert_eq!(world.code(third, &claiming(1).sign(&alice)), 508);
    assert_eq!(world.server.len(), 1);
}

#[test]
fn rfc8656_7_2_what_cannot_go_with_a_token_is_400() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    for request in [
        claiming(1).attr(ATTR_EVEN_PORT.0, &[0]),
        claiming(1).attr(ATTR_EVEN_PORT.0, &[0x80]),
        claiming(1).family(1),
        claiming(1).family(2),
        claiming(1).attr(0x8000, &[2, 0, 0, 0]),
    ] {
        assert_eq!(world.code(udp(CLIENT), &request.sign(&alice)), 400);
    }
    for value in [&[][..], &[0; 4], &[0; 7], &[0; 9]] {
        let request = Request::allocate().attr(ATTR_RESERVATION_TOKEN.0, value);
        assert_eq!(world.code(udp(CLIENT), &request.sign(&alice)), 400);
    }
    for value in [&[][..], &[0x80, 0]] {
        let request = Request::allocate().attr(ATTR_EVEN_PORT.0, value);
        assert_eq!(world.code(udp(CLIENT), &request.sign(&alice)), 400);
    }
    assert!(world.server.is_empty() && world.opened.is_empty());
}

#[test]
fn rfc8656_7_2_where_no_pair_is_free_is_508() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    for (error, code) in [(OpenError::Capacity, 508), (OpenError::Quota, 486)] {
        world.open = Some(Err(error));
        assert_eq!(world.code(udp(CLIENT), &reserving().sign(&alice)), code);
    }
    assert!(world.server.is_empty());
}

#[test]
fn without_reservations_both_are_508() {
    let settings = Settings {
        protocol: Protocol {
            reservations: false,
            ..Protocol::default()
        },
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let alice = world.alice(udp(CLIENT));
    for request in [reserving(), claiming(1)] {
        assert_eq!(world.code(udp(CLIENT), &request.sign(&alice)), 508);
    }
    let even = Request::allocate()
        .attr(ATTR_EVEN_PORT.0, &[0])
        .sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &even), 0);
}
