//! ALTERNATE-SERVER (RFC 8489 §10, §14.15).

use stun::attributes::{ATTR_ALTERNATE_SERVER, AttrType};
use turnix::turn::{Newcomers, Reject, outcome_index};
use turnix::wire::{ErrorCode, Method};

use crate::common::wire::{Reply, Request};
use crate::common::world::{World, addr, udp};

const CLIENT: &str = "192.0.2.7:4000";
const OTHERS: [&str; 3] = [
    "198.51.100.8:3478",
    "[2001:db8::8]:3478",
    "198.51.100.9:443",
];

/// MAPPED-ADDRESS's form: family, port and address as they are.
fn alternate(reply: &Reply) -> Option<(u8, u16, Vec<u8>)> {
    let kind: AttrType = ATTR_ALTERNATE_SERVER;
    let value = reply.attr(kind)?;
    let port = u16::from_be_bytes([value[2], value[3]]);
    Some((value[1], port, value[4..].to_vec()))
}

fn sent_elsewhere(refuse: bool, alternates: &[&str]) -> World {
    let mut world = World::new();
    world.server.set_newcomers(Newcomers {
        alternates: alternates.iter().map(|text| addr(text)).collect(),
        refuse,
    });
    world
}

#[test]
fn rfc8489_10_newcomers_are_sent_to_servers_of_their_family_in_turn() {
    let mut world = sent_elsewhere(true, &OTHERS);
    let mut seen = Vec::new();
    for client in [CLIENT, "192.0.2.8:1", "192.0.2.9:1", "[2001:db8:1::7]:1"] {
        // Strangers are challenged as ever: nobody is sent anywhere who has not proven who he is.
        assert_eq!(world.code(udp(client), &Request::allocate()), 401);
        let alice = world.alice(udp(client));
        let reply = world.ask(udp(client), &Request::allocate().sign(&alice));
        assert_eq!(reply.code(), 300);
        assert!(reply.is_signed_by(&alice));
        seen.push(alternate(&reply).expect("where to"));
    }
    let v4 = |last, port| (1, port, vec![198, 51, 100, last]);
    let mut v6 = vec![0; 16];
    v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    v6[15] = 8;
    seen[..3].sort();
    assert!(
        seen[..3].contains(&v4(8, 3478)) && seen[..3].contains(&v4(9, 443)),
        "{seen:?}"
    );
    assert_eq!(seen[3], (2, 3478, v6));
    assert!(world.server.is_empty());
    let requests = world.server.stats().requests[Method::Allocate as usize][0];
    assert_eq!(requests[outcome_index(Err(ErrorCode::TryAlternate))], 4);
    assert_eq!(Reject::TryAlternate(addr(OTHERS[0])).code().code(), 300);
}

#[test]
fn rfc8489_14_15_no_server_of_the_family_is_no_alternate() {
    let v6 = "[2001:db8:1::7]:1";
    for (refuse, code) in [(true, 486), (false, 0)] {
        let mut world = sent_elsewhere(refuse, &OTHERS[..1]);
        let alice = world.alice(udp(v6));
        let reply = world.ask(udp(v6), &Request::allocate().sign(&alice));
        assert_eq!(reply.code(), code);
        assert_eq!(alternate(&reply), None);
    }
}

#[test]
fn rfc8489_10_who_has_an_allocation_notices_nothing() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    world.server.set_newcomers(Newcomers {
        alternates: vec![addr(OTHERS[0])],
        refuse: true,
    });
    let peer = addr("203.0.114.9:1000");
    for request in [
        Request::refresh(600),
        Request::create_permission(&[peer]),
        Request::channel_bind(0x4000, peer),
    ] {
        assert_eq!(world.code(udp(CLIENT), &request.sign(&alice)), 0);
    }
    assert_eq!(world.code(udp(CLIENT), &Request::binding()), 0);
    // Its own five-tuple is taken, which is what a second Allocate is told.
    assert_eq!(
        world.code(udp(CLIENT), &Request::allocate().sign(&alice)),
        437
    );
    assert_eq!(
        world.code(udp(CLIENT), &Request::refresh(0).sign(&alice)),
        0
    );
    assert_eq!(
        world.code(udp(CLIENT), &Request::allocate().sign(&alice)),
        300
    );
    world.server.set_newcomers(Newcomers::default());
    assert_eq!(
        world.code(udp(CLIENT), &Request::allocate().sign(&alice)),
        0
    );
}
