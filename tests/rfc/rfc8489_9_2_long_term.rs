//! Long-term credentials (RFC 8489 §9.2): challenges, their order, nonces.

use stun::attributes::*;

use turnix::access::AuthFailure;

use crate::common::wire::{REALM, Request, Signer};
use crate::common::world::{PASSWORD, USER, World, addr, secs, udp};

const CLIENT: &str = "192.0.2.7:4000";

#[test]
fn rfc8489_9_2_4_without_integrity_401_with_realm_and_nonce() {
    let mut world = World::new();
    for request in [
        Request::allocate(),
        Request::refresh(600),
        Request::create_permission(&[addr("203.0.114.9:1000")]),
        Request::channel_bind(0x4000, addr("203.0.114.9:1000")),
        Request::allocate().text(ATTR_USERNAME, USER),
    ] {
        let reply = world.ask(udp(CLIENT), &request);
        assert_eq!(reply.code(), 401);
        assert_eq!(reply.text(ATTR_REALM).as_deref(), Some(REALM));
        assert_eq!(reply.nonce().len(), turnix::turn::NONCE_LENGTH);
        assert_eq!(
            reply.attribute_types(),
            [ATTR_ERROR_CODE.0, ATTR_REALM.0, ATTR_NONCE.0],
            "nothing more than it must carry"
        );
    }
}

#[test]
fn rfc8489_9_2_4_half_the_credentials_are_400() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    for missing in [ATTR_USERNAME, ATTR_REALM, ATTR_NONCE] {
        let mut request = Request::allocate();
        for (kind, value) in [
            (ATTR_USERNAME, &alice.user),
            (ATTR_REALM, &alice.realm),
            (ATTR_NONCE, &alice.nonce),
        ] {
            if kind != missing {
                request = request.text(kind, value);
            }
        }
        let reply = world.ask(udp(CLIENT), &request.integrity(&alice));
        assert_eq!(reply.code(), 400, "{missing:?}");
        assert_eq!(reply.attribute_types(), [ATTR_ERROR_CODE.0]);
    }
}

#[test]
fn unknown_user_and_bad_password_look_the_same() {
    let mut world = World::new();
    let nonce = world.nonce(udp(CLIENT));
    let unknown = Request::allocate().sign(&Signer::new("mallory", PASSWORD, &nonce));
    let bad = Request::allocate().sign(&Signer::new(USER, "guess", &nonce));
    let unknown = world.ask_raw(udp(CLIENT), &unknown.bytes()).remove(0);
    let bad = world.ask_raw(udp(CLIENT), &bad.bytes()).remove(0);
    assert_eq!(unknown.len(), bad.len());
    assert_eq!(unknown[..8], bad[..8]);
    assert_eq!(unknown[20..], bad[20..], "all but the transaction id");
    let failures = world.server.stats().auth_failures;
    assert_eq!(failures[AuthFailure::UnknownUser as usize], 1);
    assert_eq!(failures[AuthFailure::BadPassword as usize], 1);
}

#[test]
fn rfc8489_9_2_4_wrong_realm_is_401() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let elsewhere = Signer {
        realm: "example.com".into(),
        ..alice
    };
    let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&elsewhere));
    assert_eq!(reply.code(), 401);
}

#[test]
fn nonces_are_not_stored_and_serve_many_requests() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let first = Request::allocate().sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &first).code(), 0);
    for _ in 0..3 {
        let refresh = Request::refresh(600).sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &refresh).code(), 0);
    }
}

#[test]
fn rfc8489_9_2_4_stale_nonce_is_438_with_a_new_one() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    world.pass(secs(3600));
    let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&alice));
    assert_eq!(reply.code(), 0, "good to the last second");
    let client = udp("192.0.2.8:4000");
    let alice = world.alice(client);
    world.pass(secs(3601));
    let reply = world.ask(client, &Request::allocate().sign(&alice));
    assert_eq!(reply.code(), 438);
    assert_eq!(reply.text(ATTR_REALM).as_deref(), Some(REALM));
    assert!(reply.attr(ATTR_MESSAGE_INTEGRITY).is_none());
    let retried = world.ask(
        client,
        &Request::allocate().sign(&alice.nonce(&reply.nonce())),
    );
    assert_eq!(retried.code(), 0);
}

#[test]
fn nonces_are_bound_to_the_client_and_cannot_be_forged() {
    let mut world = World::new();
    let theirs = world.nonce(udp("192.0.2.99:4000"));
    let other_port = world.nonce(udp("192.0.2.7:4001"));
    let mut forged = world.nonce(udp(CLIENT)).into_bytes();
    forged[0] = if forged[0] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    for nonce in [
        &theirs,
        &other_port,
        &forged,
        "",
        "x",
        &"A".repeat(24),
        &"é".repeat(12),
    ] {
        let signer = Signer::new(USER, PASSWORD, nonce);
        let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&signer));
        assert_eq!(reply.code(), 438, "{nonce:?}");
    }
}

#[test]
fn a_bad_password_with_a_stale_nonce_is_401() {
    let mut world = World::new();
    let nonce = world.nonce(udp("192.0.2.99:1"));
    let signer = Signer::new(USER, "guess", &nonce);
    let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&signer));
    assert_eq!(reply.code(), 401);
}

#[test]
fn answers_after_authentication_are_signed() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let ok = world.ask(udp(CLIENT), &Request::refresh(600).sign(&alice));
    assert!(ok.is_signed_by(&alice));
    let refused = world.ask(udp(CLIENT), &Request::allocate().sign(&alice));
    assert_eq!(refused.code(), 437);
    assert!(refused.is_signed_by(&alice));
}

#[test]
fn rfc8489_14_5_attributes_behind_integrity_are_ignored() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    // LIFETIME 3600 and an unknown required attribute, both unprotected.
    let request = Request::allocate()
        .sign(&alice)
        .lifetime(3600)
        .attr(0x7ABC, &[1])
        .fingerprint();
    let reply = world.ask(udp(CLIENT), &request);
    assert_eq!(reply.code(), 0);
    assert_eq!(reply.lifetime(), 600);
}

#[test]
fn integrity_covers_every_byte() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let good = Request::allocate().lifetime(1200).sign(&alice).bytes();
    // Everything of the body up to MESSAGE-INTEGRITY's own value, header fields aside.
    for at in 24..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        for answer in world.ask_raw(udp(CLIENT), &bytes) {
            let code = crate::common::wire::Reply::parse(&answer).code();
            assert!([400, 401, 438].contains(&code), "byte {at}: {code}");
        }
    }
    assert_eq!(world.server.len(), 0);
    assert_eq!(world.ask_raw(udp(CLIENT), &good).len(), 1);
    assert_eq!(world.server.len(), 1);
}

#[test]
fn duplicate_attributes_first_wins() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let request = Request::allocate()
        .lifetime(900)
        .lifetime(1800)
        .sign(&alice);
    assert_eq!(world.ask(udp(CLIENT), &request).lifetime(), 900);
}
