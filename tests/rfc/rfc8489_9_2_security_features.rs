//! Security features of RFC 8489 (§9.2, §14.6, §14.11, §14.12, §18.1): what is offered where, and how it is answered.

use turnix::access::AuthFailure;
use turnix::base::FiveTuple;
use turnix::turn::{SecurityFeatures, Settings};

use crate::common::security::{MD5, Modern, SHA256, features};
use crate::common::wire::{Reply, Request};
use crate::common::world::{PASSWORD, USER, World, access_settings, seed, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";

/// A server with static users only.
fn world(wanted: SecurityFeatures) -> World {
    let mut settings = Settings::default();
    settings.protocol.security_features = wanted;
    let mut access = access_settings();
    access.secrets.clear();
    World::with(settings, &access, seed())
}

fn challenge(world: &mut World, from: FiveTuple) -> Reply {
    let reply = world.ask(from, &Request::allocate());
    assert_eq!(reply.code(), 401);
    reply
}

fn alice(world: &mut World, from: FiveTuple) -> Modern {
    Modern::answering(&challenge(world, from), USER, PASSWORD)
}

#[test]
fn rfc8489_9_2_5_a_client_that_follows_the_challenge_gets_its_allocation() {
    let mut world = world(SecurityFeatures::Streams);
    let alice = alice(&mut world, tcp(CLIENT));
    assert_eq!(features(&alice.nonce), Some([0xC0, 0, 0]));
    assert_eq!(alice.algorithms, Some([SHA256, MD5].concat()));
    assert!(alice.anonymous);
    let reply = world.ask(tcp(CLIENT), &alice.sign(Request::allocate()));
    assert_eq!(reply.code(), 0);
    assert!(alice.has_signed(&reply));
    for request in [Request::refresh(600), Request::refresh(0)] {
        let reply = world.ask(tcp(CLIENT), &alice.sign(request));
        assert_eq!(reply.code(), 0);
        assert!(alice.has_signed(&reply));
    }
    let failures = world.server.stats().auth_failures;
    assert_eq!(failures[AuthFailure::Missing as usize], 1);
    assert_eq!(failures.iter().sum::<u64>(), 1);
}
