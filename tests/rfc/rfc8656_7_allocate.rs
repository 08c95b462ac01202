//! Allocate (RFC 8656 §7).

use std::time::Duration;

use stun::attributes::*;
use stun::message::METHOD_ALLOCATE;

use turnix::base::Family;
use turnix::turn::{DefaultFamily, EndReason, OpenError, Protocol, Settings};

use crate::common::wire::{Reply, Request, Signer};
use crate::common::world::{USER, World, access_settings, addr, secs, seed, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";

#[test]
fn rfc8656_7_2_success_carries_relayed_mapped_and_lifetime() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&alice));
    assert!(reply.is_signed_by(&alice));
    assert_eq!(reply.relayed(), addr("198.51.100.1:50000"));
    assert_eq!(reply.mapped(), addr(CLIENT));
    assert_eq!(reply.lifetime(), 600);
    assert_eq!(
        reply.attribute_types().len(),
        4,
        "nothing else but integrity"
    );
}

#[test]
fn rfc8656_7_2_answered_only_once_the_relay_is_open() {
    let mut world = World::new();
    world.open = None;
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate().sign(&alice);
    assert!(world.ask_raw(udp(CLIENT), &request.bytes()).is_empty());
    assert!(
        world.ask_raw(udp(CLIENT), &request.bytes()).is_empty(),
        "retransmission"
    );
    assert_eq!(world.opened.len(), 1);
    let id = world.opened[0];
    world.opened(id, Family::V4, Ok(()));
    world.drain();
    assert_eq!(world.sent.len(), 1);
    assert!(Reply::parse(&world.sent[0].1).is_success());
}

#[test]
fn rfc8656_7_2_retransmission_gets_the_first_answer_again() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate()
        .lifetime(1000)
        .sign(&alice)
        .fingerprint();
    let first = world.ask_raw(udp(CLIENT), &request.bytes());
    world.pass(secs(5));
    assert_eq!(world.ask_raw(udp(CLIENT), &request.bytes()), first);
    assert_eq!(world.opened.len(), 1, "one allocation");
    let refresh = Request::refresh(2000).sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &refresh).lifetime(), 2000);
    assert_eq!(world.ask_raw(udp(CLIENT), &request.bytes()), first);
}

#[test]
fn rfc8656_7_2_another_users_transaction_is_no_retransmission() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate();
    let first = world.ask(udp(CLIENT), &request.clone().sign(&alice));
    assert_eq!(first.code(), 0);
    let bob = Signer::new("bob", "builder", &alice.nonce);
    let reply = world.ask(udp(CLIENT), &request.sign(&bob));
    assert_eq!(reply.code(), 437);
}

#[test]
fn rfc8656_7_2_second_allocate_is_437() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let again = world.ask(udp(CLIENT), &Request::allocate().sign(&alice));
    assert_eq!(again.code(), 437);
    // Any part of the five-tuple makes another one.
    for other in [udp("192.0.2.7:4001"), udp("192.0.2.8:4000"), tcp(CLIENT)] {
        world.allocate(other);
    }
    assert_eq!(world.server.len(), 4);
}

#[test]
fn rfc8656_7_2_requested_transport() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let missing = Request::new(METHOD_ALLOCATE).sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &missing).code(), 400);
    for (value, code) in [
        (&[132, 0, 0, 0][..], 442),
        (&[0, 0, 0, 0], 442),
        (&[17, 0], 400),
        (&[], 400),
    ] {
        let request = Request::new(METHOD_ALLOCATE)
            .attr(ATTR_REQUESTED_TRANSPORT.0, value)
            .sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &request).code(), code, "{value:?}");
    }
    assert_eq!(world.server.len(), 0);
}

#[test]
fn rfc8656_7_2_order_of_checks() {
    // Credentials come before everything, the five-tuple before the transport, the transport before unknown
    // attributes, those before the family.
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let wrong = Signer::new("alice", "guess", &alice.nonce);
    let bad_everything = || {
        Request::new(METHOD_ALLOCATE)
            .attr(ATTR_REQUESTED_TRANSPORT.0, &[132, 0, 0, 0])
            .attr(0x7ABC, &[])
            .family(9)
    };
    assert_eq!(
        world
            .ask(udp(CLIENT), &bad_everything().sign(&wrong))
            .code(),
        401
    );
    assert_eq!(
        world
            .ask(udp(CLIENT), &bad_everything().sign(&alice))
            .code(),
        442
    );
    let request = Request::allocate().attr(0x7ABC, &[]).family(9);
    let reply = world.ask(udp(CLIENT), &request.sign(&alice));
    assert_eq!(reply.code(), 420);
    assert_eq!(reply.attr(ATTR_UNKNOWN_ATTRIBUTES).unwrap(), [0x7A, 0xBC]);
    assert_eq!(
        world
            .ask(udp(CLIENT), &Request::allocate().family(9).sign(&alice))
            .code(),
        440
    );
    world.allocate(udp(CLIENT));
    assert_eq!(
        world
            .ask(udp(CLIENT), &bad_everything().sign(&alice))
            .code(),
        437
    );
}

#[test]
fn rfc8656_7_2_address_families() {
    let mut world = World::new();
    for (client, family, relayed) in [
        (udp("192.0.2.7:1"), Some(1), "198.51.100.1:50000"),
        (udp("192.0.2.7:2"), Some(2), "[2a00::1]:50001"),
        (udp("[2a00::7]:3"), None, "198.51.100.1:50002"),
        (udp("[2a00::7]:4"), Some(2), "[2a00::1]:50003"),
    ] {
        let alice = world.alice(client);
        let request = Request::allocate();
        let request = match family {
            Some(family) => request.family(family),
            None => request,
        };
        let reply = world.ask(client, &request.sign(&alice));
        assert_eq!(reply.relayed(), addr(relayed));
    }
    let mut only_v4 = seed();
    only_v4.families = vec![Family::V4];
    let mut world = World::with(Settings::default(), &access_settings(), only_v4);
    let alice = world.alice(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &Request::allocate().family(2).sign(&alice));
    assert_eq!(reply.code(), 440);
    let mut only_v6 = seed();
    only_v6.families = vec![Family::V6];
    let mut world = World::with(Settings::default(), &access_settings(), only_v6);
    let alice = world.alice(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&alice));
    assert_eq!(reply.code(), 440, "the default family is IPv4");
}

#[test]
fn rfc8656_7_2_the_family_of_clients_that_name_none() {
    let of_client = |families: &[Family], default_family| {
        let settings = Settings {
            protocol: Protocol {
                default_family,
                ..Protocol::default()
            },
            ..Settings::default()
        };
        let mut seed = seed();
        seed.families = families.to_vec();
        let mut world = World::with(settings, &access_settings(), seed);
        ["192.0.2.7:1", "[2a00::7]:2", "[::ffff:192.0.2.7]:3"].map(|client| {
            let alice = world.alice(udp(client));
            let reply = world.ask(udp(client), &Request::allocate().sign(&alice));
            match reply.code() {
                0 => Ok(Family::of(reply.relayed().ip())),
                code => Err(code),
            }
        })
    };
    let (v4, v6) = (Ok(Family::V4), Ok(Family::V6));
    let both = [Family::V4, Family::V6];
    assert_eq!(of_client(&both, DefaultFamily::Ipv4), [v4, v4, v4]);
    assert_eq!(of_client(&both, DefaultFamily::SameAsClient), [v4, v6, v4]);
    let only = [Family::V4];
    assert_eq!(of_client(&only, DefaultFamily::SameAsClient), [v4, v4, v4]);
    let only = [Family::V6];
    let none = Err(440);
    assert_eq!(
        of_client(&only, DefaultFamily::SameAsClient),
        [none, v6, none]
    );
    assert_eq!(of_client(&only, DefaultFamily::Ipv4), [none, none, none]);
}

#[test]
fn rfc8656_7_2_attributes_not_offered_are_420() {
    let settings = Settings {
        protocol: Protocol {
            dont_fragment: false,
            ..Protocol::default()
        },
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate().attr(ATTR_DONT_FRAGMENT.0, &[]);
    let reply = world.ask(udp(CLIENT), &request.sign(&alice));
    assert_eq!(reply.code(), 420);
    assert_eq!(
        reply.attr(ATTR_UNKNOWN_ATTRIBUTES).unwrap(),
        ATTR_DONT_FRAGMENT.0.to_be_bytes()
    );
}

#[test]
fn rfc8656_7_2_even_port() {
    let mut world = World::new();
    for (value, code, even) in [
        (&[0][..], 0, Some(true)),
        (&[0x80], 0, Some(true)),
        (&[], 400, None),
        (&[0, 0], 400, None),
    ] {
        let alice = world.alice(udp(CLIENT));
        world.even_ports.clear();
        let request = Request::allocate()
            .attr(ATTR_EVEN_PORT.0, value)
            .sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &request).code(), code, "{value:?}");
        assert_eq!(world.even_ports.first().copied(), even);
        world.ask_raw(udp(CLIENT), &Request::refresh(0).sign(&alice).bytes());
    }
}

#[test]
fn rfc8656_7_2_lifetime_between_default_and_maximum() {
    let mut world = World::new();
    for (port, (asked, granted)) in [
        (None, 600),
        (Some(0), 600),
        (Some(1), 600),
        (Some(600), 600),
        (Some(601), 601),
        (Some(3600), 3600),
        (Some(3601), 3600),
        (Some(u32::MAX), 3600),
    ]
    .into_iter()
    .enumerate()
    {
        let client = udp(&format!("192.0.2.7:{}", 4000 + port));
        let alice = world.alice(client);
        let request = match asked {
            Some(secs) => Request::allocate().lifetime(secs),
            None => Request::allocate(),
        };
        let reply = world.ask(client, &request.sign(&alice));
        assert_eq!(reply.lifetime(), granted, "{asked:?}");
    }
}

#[test]
fn rfc8656_7_2_quota_is_486_and_capacity_508() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    for (error, code) in [(OpenError::Quota, 486), (OpenError::Capacity, 508)] {
        world.open = Some(Err(error));
        let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&alice));
        assert_eq!(reply.code(), code);
        assert!(reply.is_signed_by(&alice));
        assert_eq!(world.server.len(), 0);
    }
    world.open = Some(Ok(()));
    let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&alice));
    assert_eq!(reply.code(), 0, "nothing is left behind");
    assert_eq!(world.closed, [], "nothing was open");
}

#[test]
fn whoever_gets_no_allocation_is_counted_once() {
    let mut world = World::new();
    let affected = |world: &World| world.server.stats().affected.count(world.now.unix_secs());
    let forged = Signer::new("mallory", "guess", "a nonce that is not ours");
    let (forger, other) = (udp("192.0.2.9:4000"), udp("192.0.2.10:4000"));
    let _ = world.ask(forger, &Request::allocate());
    let _ = world.ask(forger, &Request::allocate().sign(&forged));
    assert_eq!(
        affected(&world),
        0,
        "challenges, and who may have forged its address"
    );

    for _ in 0..2 {
        let wrong = Signer::new(USER, "guess", &world.nonce(other));
        let _ = world.ask(other, &Request::allocate().sign(&wrong));
    }
    assert_eq!(
        affected(&world),
        1,
        "wrong credentials, from an address that is proven"
    );
    world.open = Some(Err(OpenError::Capacity));
    for client in ["192.0.2.7:4000", "192.0.2.8:4000"] {
        let alice = world.alice(udp(client));
        let _ = world.ask(udp(client), &Request::allocate().sign(&alice));
    }
    assert_eq!(affected(&world), 2, "one user at two addresses");
    world.pass(secs(600));
    assert_eq!(affected(&world), 0);
}

#[test]
fn rfc8656_8_allocations_end_at_their_lifetime_to_the_second() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.pass(secs(600) - Duration::from_millis(1));
    assert_eq!(world.server.len(), 1);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.server.len(), 0);
    assert_eq!(world.closed, [id]);
    assert_eq!(world.ended[0].reason, EndReason::Expired);
    assert_eq!(world.ended[0].duration, secs(600));
    let reply = world.ask(udp(CLIENT), &Request::refresh(600).sign(&alice));
    assert_eq!(reply.code(), 437);
    assert_eq!(world.server.poll_timeout(), None);
}

#[test]
fn a_late_timer_does_not_lengthen_an_allocation() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    world.pass_unnoticed(secs(600));
    let reply = world.ask(udp(CLIENT), &Request::refresh(600).sign(&alice));
    assert_eq!(reply.code(), 437);
    assert_eq!(world.closed, [id]);
}

#[test]
fn rfc8656_7_2_the_five_tuple_is_free_again_at_once() {
    let mut world = World::new();
    let (alice, first, _) = world.allocate(udp(CLIENT));
    assert_eq!(
        world
            .ask(udp(CLIENT), &Request::refresh(0).sign(&alice))
            .lifetime(),
        0
    );
    let (_, second, _) = world.allocate(udp(CLIENT));
    assert_ne!(first, second, "a stale id misses");
}

#[test]
fn a_closed_stream_ends_its_allocation() {
    let mut world = World::new();
    let (_, id, _) = world.allocate(tcp(CLIENT));
    world
        .server
        .handle_client_closed(world.now, tcp("192.0.2.7:9"));
    world.drain();
    assert!(world.closed.is_empty());
    world.server.handle_client_closed(world.now, tcp(CLIENT));
    world.drain();
    assert_eq!(world.closed, [id]);
    assert_eq!(world.ended[0].reason, EndReason::ClientClosed);
}

#[test]
fn the_lifetime_counts_from_the_answer_that_grants_it() {
    let mut world = World::new();
    world.open = None;
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate().sign(&alice);
    assert!(world.ask_raw(udp(CLIENT), &request.bytes()).is_empty());
    world.pass(secs(5));
    world.opened(world.opened[0], Family::V4, Ok(()));
    world.drain();
    let reply = Reply::parse(&world.sent[0].1);
    world.pass(secs(u64::from(reply.lifetime()) - 1));
    assert!(world.server.has_allocation(udp(CLIENT)));
    world.pass(secs(1));
    assert!(!world.server.has_allocation(udp(CLIENT)));
}
