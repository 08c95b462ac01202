//! Security features of RFC 8489 (§9.2, §14.6, §14.11, §14.12, §18.1): what is offered where, and how it is answered.

use md5::Digest;
use stun::attributes::{ATTR_ERROR_CODE, ATTR_MESSAGE_INTEGRITY, ATTR_NONCE, ATTR_REALM, AttrType};
use turnix::access::rest::mint;
use turnix::access::{Access, AuthFailure};
use turnix::base::{Family, FiveTuple, Secret};
use turnix::turn::{SecurityFeatures, Server, Settings, Snapshot};
use turnix::wire::attribute::{MESSAGE_INTEGRITY_SHA256, PASSWORD_ALGORITHMS};

use crate::common::security::{MD5, Modern, SHA256, features, sha256};
use crate::common::wire::{REALM, Reply, Request, Signer};
use crate::common::world::{
    PASSWORD, SECRET, USER, World, access_settings, own_addresses, secs, seed, tcp, udp,
};

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

#[test]
fn rfc8489_9_2_4_challenges_and_stale_nonces_say_what_is_offered() {
    let mut world = world(SecurityFeatures::Streams);
    let types = [
        ATTR_ERROR_CODE.0,
        ATTR_REALM.0,
        ATTR_NONCE.0,
        PASSWORD_ALGORITHMS,
    ];
    let first = challenge(&mut world, tcp(CLIENT));
    assert_eq!(first.attribute_types(), types);
    let alice = alice(&mut world, tcp(CLIENT));
    world.pass(secs(3601));
    let stale = world.ask(tcp(CLIENT), &alice.sign(Request::allocate()));
    assert_eq!(
        (stale.code(), stale.attribute_types()),
        (438, types.to_vec())
    );
    let again = Modern::answering(&stale, USER, PASSWORD);
    assert_eq!(world.code(tcp(CLIENT), &again.sign(Request::allocate())), 0);
    // Wrong credentials are told the same.
    let guess = Modern {
        password: "guess".into(),
        ..again
    };
    let refused = world.ask(tcp("192.0.2.8:1"), &guess.sign(Request::allocate()));
    assert_eq!(
        (refused.code(), refused.attribute_types()),
        (401, types.to_vec())
    );
}

#[test]
fn rfc8489_9_2_4_clients_that_know_none_of_it_are_served_with_md5() {
    for from in [tcp(CLIENT), udp(CLIENT)] {
        let mut world = world(SecurityFeatures::Always);
        let nonce = world.nonce(from);
        assert!(nonce.starts_with("obMatJos2"));
        let legacy = Signer::new(USER, PASSWORD, &nonce);
        let reply = world.ask(from, &Request::allocate().sign(&legacy));
        assert_eq!(reply.code(), 0);
        assert!(reply.is_signed_by(&legacy));
        assert!(reply.attr(AttrType(MESSAGE_INTEGRITY_SHA256)).is_none());
        let refreshed = world.ask(from, &Request::refresh(600).sign(&legacy));
        assert!(refreshed.code() == 0 && refreshed.is_signed_by(&legacy));
    }
}

/// Without PASSWORD-ALGORITHM a request counts as one of MD5 whatever it is signed with, and so is its answer.
#[test]
fn rfc8489_9_2_4_neither_attribute_means_md5() {
    let mut world = world(SecurityFeatures::Streams);
    let mut quiet = alice(&mut world, tcp(CLIENT));
    (quiet.algorithms, quiet.algorithm) = (None, None);
    let legacy = Signer::new(USER, PASSWORD, &quiet.nonce);
    let reply = world.ask(tcp(CLIENT), &quiet.sign(Request::allocate()));
    assert_eq!(reply.code(), 0);
    assert!(reply.is_signed_by(&legacy));
    // Of two the stronger counts (§9.2.4): MESSAGE-INTEGRITY may then be anything.
    let request = quiet.unsigned(Request::refresh(600));
    let both = sha256(
        request.attr(ATTR_MESSAGE_INTEGRITY.0, &[0; 20]),
        &quiet.key(),
        32,
    );
    let reply = world.ask(tcp(CLIENT), &both);
    assert!(reply.code() == 0 && reply.is_signed_by(&legacy));
    let right = quiet.unsigned(Request::refresh(600)).integrity(&legacy);
    let wrong = right.clone().attr(MESSAGE_INTEGRITY_SHA256, &[0; 32]);
    assert_eq!(world.code(tcp(CLIENT), &wrong), 401);
    // What stands between or behind them is not seen (§14.5, §14.6): this one is in the wrong place.
    let behind = right.lifetime(0).attr(MESSAGE_INTEGRITY_SHA256, &[0; 32]);
    assert_eq!(world.code(tcp(CLIENT), &behind), 0);
    let behind = quiet
        .sign(Request::refresh(600))
        .lifetime(0)
        .attr(0x7ABC, &[1]);
    assert_eq!(world.ask(tcp(CLIENT), &behind).lifetime(), 600);
    assert_eq!(world.server.len(), 1);
}

/// Clients that choose MD5 from the list are protected by MESSAGE-INTEGRITY-SHA256 all the same. Some use
/// MESSAGE-INTEGRITY, and are answered with what they look for.
#[test]
fn md5_from_the_list() {
    let mut world = world(SecurityFeatures::Streams);
    let mut chosen = alice(&mut world, tcp(CLIENT));
    chosen.algorithm = Some(MD5);
    let reply = world.ask(tcp(CLIENT), &chosen.sign(Request::allocate()));
    assert_eq!(reply.code(), 0);
    assert!(chosen.has_signed(&reply));
    let legacy = Signer::new(USER, PASSWORD, &chosen.nonce);
    let request = chosen.unsigned(Request::refresh(600)).integrity(&legacy);
    let reply = world.ask(tcp(CLIENT), &request);
    assert!(reply.code() == 0 && reply.is_signed_by(&legacy));
}

/// One allocation, and its owner by every way to sign and to be called.
#[test]
fn the_owner_is_known_however_it_signs() {
    let mut world = world(SecurityFeatures::Streams);
    let (from, others) = (tcp(CLIENT), tcp("192.0.2.9:1"));
    let modern = alice(&mut world, from);
    let named = Modern {
        anonymous: false,
        ..modern.clone()
    };
    let md5 = Modern {
        algorithm: Some(MD5),
        ..modern.clone()
    };
    let legacy = Signer::new(USER, PASSWORD, &modern.nonce);
    assert_eq!(world.code(from, &Request::allocate().sign(&legacy)), 0);
    for signer in [&modern, &named, &md5, &modern] {
        let reply = world.ask(from, &signer.sign(Request::refresh(600)));
        assert!(reply.code() == 0 && signer.has_signed(&reply));
    }
    assert_eq!(world.code(from, &Request::refresh(600).sign(&legacy)), 0);
    // Bob is somebody else.
    let bob = Modern {
        user: "bob".into(),
        password: "builder".into(),
        ..modern.clone()
    };
    assert_eq!(world.code(from, &bob.sign(Request::refresh(600))), 441);
    // What is opened later is answered as it was asked for, and so is a retransmission.
    world.open = None;
    let modern = alice(&mut world, others);
    let request = modern.sign(Request::allocate());
    assert!(world.ask_raw(others, &request.bytes()).is_empty());
    let id = *world.opened.last().unwrap();
    world.opened(id, Family::V4, Ok(()));
    world.drain();
    let (_, answer) = world.sent.pop().unwrap();
    assert!(modern.has_signed(&Reply::parse(&answer)));
    assert_eq!(world.ask_raw(others, &request.bytes()), [answer]);
}

/// Names of time-limited credentials are in no list, so where there are secrets nobody is asked for a hash; who sends one
/// all the same is nobody, unless it is a static user's.
#[test]
fn rfc8489_14_4_time_limited_names_are_not_found_by_hash() {
    let mut world = World::new();
    let reply = challenge(&mut world, tcp(CLIENT));
    assert_eq!(features(&reply.nonce()), Some([0x80, 0, 0]));
    let expires = world.now.unix.as_secs() + 600;
    let (name, password) = mint(&Secret::new(SECRET.into()), Some("carol"), expires);
    let carol = Modern::answering(&reply, &name, &password);
    assert!(!carol.anonymous);
    let hidden = Modern {
        anonymous: true,
        ..carol.clone()
    };
    assert_eq!(
        world.code(tcp(CLIENT), &hidden.sign(Request::allocate())),
        401
    );
    let reply = world.ask(tcp(CLIENT), &carol.sign(Request::allocate()));
    assert!(reply.code() == 0 && carol.has_signed(&reply));
    world.pass(secs(300));
    let reply = world.ask(tcp(CLIENT), &carol.sign(Request::refresh(600)));
    assert!(reply.code() == 0 && carol.has_signed(&reply));

    let other = tcp("192.0.2.8:1");
    let mut alice = alice(&mut world, other);
    alice.anonymous = true;
    assert_eq!(world.code(other, &alice.sign(Request::allocate())), 0);
}

/// Users whose passwords are not known but by their keys.
#[test]
fn stored_keys_decide_what_is_offered() {
    let digits = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    let text = format!("{USER}:{REALM}:{PASSWORD}");
    let md5 = format!("md5:{}", digits(&md5::Md5::digest(&text)));
    let sha256 = format!("sha256:{}", digits(&sha2::Sha256::digest(&text)));
    let with = |users: &[(&str, &str)]| {
        let mut access = access_settings();
        access.secrets.clear();
        let user = |(name, password): &(&str, &str)| {
            ((*name).to_owned(), Secret::new((*password).to_owned()))
        };
        access.users = users.iter().map(user).collect();
        World::with(Settings::default(), &access, seed())
    };
    type Users<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(Users<'_>, &[[u8; 4]], u16, u16)] = &[
        // (users, what is offered, alice as the list says, alice as clients without a list have it)
        (&[(USER, PASSWORD)], &[SHA256, MD5], 0, 0),
        (&[(USER, &md5), ("bob", "b")], &[MD5], 0, 0),
        (&[(USER, &sha256), ("bob", "b")], &[SHA256, MD5], 0, 401),
        // Somebody has to lose here.
        (&[(USER, &md5), ("bob", &sha256)], &[SHA256, MD5], 401, 0),
    ];
    for (users, offered, modern, legacy) in cases {
        let mut world = with(users);
        let alice = alice(&mut world, tcp(CLIENT));
        assert_eq!(alice.algorithms, Some(offered.concat()));
        let reply = world.ask(tcp(CLIENT), &alice.sign(Request::allocate()));
        assert_eq!(reply.code(), *modern, "{users:?}");
        assert!(*modern != 0 || alice.has_signed(&reply));
        let other = tcp("192.0.2.8:1");
        let old = world.alice(other);
        assert_eq!(world.code(other, &Request::allocate().sign(&old)), *legacy);
    }
}

/// Where nothing is offered the server is one of RFC 5389.
#[test]
fn what_is_not_offered_is_not_spoken() {
    let mut world = world(SecurityFeatures::Streams);
    let reply = challenge(&mut world, udp(CLIENT));
    assert_eq!(features(&reply.nonce()), None);
    assert_eq!(reply.attribute_types().len(), 3);
    let alice = Modern::answering(&reply, USER, PASSWORD);
    assert_eq!((&alice.algorithms, alice.anonymous), (&None, false));
    let legacy = Signer::new(USER, PASSWORD, &reply.nonce());
    assert_eq!(
        world.code(udp(CLIENT), &alice.sign(Request::allocate())),
        401
    );
    let hidden = Modern {
        anonymous: true,
        ..alice.clone()
    };
    let request = hidden.unsigned(Request::allocate()).integrity(&legacy);
    assert_eq!(world.code(udp(CLIENT), &request), 400);
    assert_eq!(
        world.code(udp(CLIENT), &Request::allocate().sign(&legacy)),
        0
    );
}

/// What a reload changes in the offer is told with the next challenge: a nonce of the time before is over.
#[test]
fn a_reload_that_changes_the_offer_makes_nonces_stale() {
    let mut world = world(SecurityFeatures::Streams);
    let before = alice(&mut world, tcp(CLIENT));
    assert_eq!(
        world.code(tcp(CLIENT), &before.sign(Request::allocate())),
        0
    );
    let access = Access::new(&access_settings(), own_addresses());
    world.server.set_access(world.now, access.into());
    let stale = world.ask(tcp(CLIENT), &before.sign(Request::refresh(600)));
    assert_eq!(stale.code(), 438);
    assert_eq!(features(&stale.nonce()), Some([0x80, 0, 0]));
    let after = Modern::answering(&stale, USER, PASSWORD);
    assert_eq!(
        world.code(tcp(CLIENT), &after.sign(Request::refresh(600))),
        0
    );
}

/// Over a take-over.
#[test]
fn a_snapshot_keeps_the_key_and_how_it_signs() {
    let mut world = world(SecurityFeatures::Streams);
    let modern = alice(&mut world, tcp(CLIENT));
    let legacy = Signer::new("bob", "builder", &world.nonce(tcp("192.0.2.8:1")));
    assert_eq!(
        world.code(tcp(CLIENT), &modern.sign(Request::allocate())),
        0
    );
    let request = Request::allocate().sign(&legacy);
    assert_eq!(world.code(tcp("192.0.2.8:1"), &request), 0);
    let bytes = world.server.snapshot(world.now, |_| true).encode();
    let snapshot = Snapshot::decode(&bytes).unwrap();
    let settings = Settings::default();
    let families = vec![Family::V4, Family::V6];
    let access = std::sync::Arc::clone(&world.access);
    world.server = Server::restore(world.now, settings, families, access, snapshot);
    assert_eq!(world.server.len(), 2);
    let reply = world.ask(tcp(CLIENT), &modern.sign(Request::refresh(600)));
    assert!(reply.code() == 0 && modern.has_signed(&reply));
    let reply = world.ask(tcp("192.0.2.8:1"), &Request::refresh(600).sign(&legacy));
    assert!(reply.code() == 0 && reply.is_signed_by(&legacy));
}

/// What a version wrote that knows MD5 keys only.
#[test]
fn a_snapshot_without_the_newer_fields_is_read() {
    let mut world = world(SecurityFeatures::Streams);
    let legacy = Signer::new(USER, PASSWORD, &world.nonce(tcp(CLIENT)));
    assert_eq!(
        world.code(tcp(CLIENT), &Request::allocate().sign(&legacy)),
        0
    );
    let bytes = world.server.snapshot(world.now, |_| true).encode();
    let (start, mut image) = (0..32)
        .find_map(|at| {
            let image: serde_json::Value = rmp_serde::from_slice(&bytes[at..]).ok()?;
            image.get("allocations").is_some().then_some((at, image))
        })
        .expect("the image behind its head");
    for allocation in image["allocations"].as_array_mut().unwrap() {
        let allocation = allocation.as_object_mut().unwrap();
        assert!(allocation.remove("key_sha256").is_some());
        assert!(allocation.remove("signs_sha256").is_some());
    }
    let image = rmp_serde::to_vec_named(&image).unwrap();
    let length = (image.len() as u64).to_be_bytes();
    let old = [&bytes[..start - length.len()], &length, &image].concat();
    let snapshot = Snapshot::decode(&old).unwrap();
    let families = vec![Family::V4, Family::V6];
    let access = std::sync::Arc::clone(&world.access);
    world.server = Server::restore(world.now, Settings::default(), families, access, snapshot);
    let reply = world.ask(tcp(CLIENT), &Request::refresh(600).sign(&legacy));
    assert!(reply.code() == 0 && reply.is_signed_by(&legacy));
}
