//! Refresh (RFC 8656 §8).

use turnix::turn::{EndReason, Settings};

use crate::common::wire::{Request, Signer};
use crate::common::world::{EPOCH, SECRET, World, access_settings, secs, seed, udp};

const CLIENT: &str = "192.0.2.7:4000";

#[test]
fn rfc8656_8_2_refresh_sets_the_lifetime_anew() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    world.pass(secs(500));
    for (asked, granted) in [(1200, 1200), (10, 600), (1_000_000, 3600), (600, 600)] {
        let reply = world.ask(udp(CLIENT), &Request::refresh(asked).sign(&alice));
        assert_eq!(reply.lifetime(), granted);
    }
    world.pass(secs(599));
    assert_eq!(world.server.len(), 1);
    world.pass(secs(1));
    assert_eq!(world.server.len(), 0);
}

#[test]
fn rfc8656_8_2_zero_ends_the_allocation() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &Request::refresh(0).sign(&alice));
    assert_eq!(reply.lifetime(), 0);
    assert_eq!(world.closed, [id]);
    assert_eq!(world.ended[0].reason, EndReason::Released);
    // Its retransmission finds nothing, which clients take for success (RFC 8656 §8.3).
    let again = world.ask(udp(CLIENT), &Request::refresh(0).sign(&alice));
    assert_eq!(again.code(), 437);
}

#[test]
fn rfc8656_8_2_without_an_allocation_is_437() {
    let mut world = World::new();
    let alice = world.alice(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &Request::refresh(600).sign(&alice));
    assert_eq!(reply.code(), 437);
}

#[test]
fn rfc8656_8_2_the_other_family_is_443() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let reply = world.ask(udp(CLIENT), &Request::refresh(600).family(2).sign(&alice));
    assert_eq!(reply.code(), 443);
    let reply = world.ask(udp(CLIENT), &Request::refresh(600).family(1).sign(&alice));
    assert_eq!(reply.code(), 0);
}

#[test]
fn rfc8656_5_another_users_credentials_are_441() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let bob = Signer::new("bob", "builder", &alice.nonce);
    let peer = crate::common::world::addr("203.0.114.9:1000");
    for request in [
        Request::refresh(0),
        Request::create_permission(&[peer]),
        Request::channel_bind(0x4000, peer),
    ] {
        let reply = world.ask(udp(CLIENT), &request.sign(&bob));
        assert_eq!(reply.code(), 441);
        assert!(reply.is_signed_by(&bob));
    }
    assert_eq!(world.server.len(), 1);
}

/// A time-limited credential.
fn minted(user: &str, expires_unix: u64, nonce: &str) -> Signer {
    let secret = turnix::base::Secret::new(SECRET.to_owned());
    let (user, password) = turnix::access::rest::mint(&secret, Some(user), expires_unix);
    Signer::new(&user, &password, nonce)
}

#[test]
fn a_newer_credential_of_the_same_user_may_refresh() {
    let mut access = access_settings();
    access.strict_expiry = true;
    let mut world = World::with(Settings::default(), &access, seed());
    let expires = EPOCH.as_secs() + 300;
    let carol = minted("carol", expires, &world.nonce(udp(CLIENT)));
    assert_eq!(
        world.code(udp(CLIENT), &Request::allocate().sign(&carol)),
        0
    );
    world.pass(secs(200));
    assert_eq!(
        world.code(udp(CLIENT), &Request::refresh(600).sign(&carol)),
        0
    );
    world.pass(secs(101));
    let reply = world.ask(udp(CLIENT), &Request::refresh(600).sign(&carol));
    assert_eq!(reply.code(), 401, "strict_expiry");
    assert!(!reply.is_signed_by(&carol), "RFC 8489 §9.2.4");
    let renewed = minted("carol", expires + 9000, &carol.nonce);
    assert_eq!(
        world.code(udp(CLIENT), &Request::refresh(600).sign(&renewed)),
        0
    );
    let dave = minted("dave", expires + 9000, &carol.nonce);
    assert_eq!(
        world.code(udp(CLIENT), &Request::refresh(600).sign(&dave)),
        441
    );
}

#[test]
fn without_strict_expiry_an_allocation_outlives_its_credential() {
    let mut world = World::new();
    let expires = EPOCH.as_secs() + 300;
    let carol = minted("carol", expires, &world.nonce(udp(CLIENT)));
    assert_eq!(
        world.code(udp(CLIENT), &Request::allocate().sign(&carol)),
        0
    );
    world.pass(secs(400));
    assert_eq!(
        world.code(udp(CLIENT), &Request::refresh(600).sign(&carol)),
        0
    );
    let other = udp("192.0.2.8:4000");
    let late = minted("carol", expires, &world.nonce(other));
    assert_eq!(world.code(other, &Request::allocate().sign(&late)), 401);
}
