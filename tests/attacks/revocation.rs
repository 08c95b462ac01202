//! A reload that takes something away takes it away at once, from those who have it.

use std::net::SocketAddr;
use std::sync::Arc;

use turnix::access::rest;
use turnix::access::{self, Access, AuthFailure, DeniedRule, Revocations, RevokedKind};
use turnix::base::Secret;
use turnix::turn::{AllocationId, DropReason, EndReason, Forward, Server, Settings};

use super::common::wire::{Request, Signer, channel_data};
use super::common::world::{
    EPOCH, OLD_SECRET, PASSWORD, SECRET, USER, World, access_settings, addr, own_addresses, secs,
    seed, tcp, udp,
};

const CLIENT: &str = "192.0.2.7:4000";
const ALLOWED: &str = "203.0.114.9:1000";
const PORT: &str = "203.0.114.11:1000";
const FORBIDDEN: &str = "203.0.114.10:1000";
const CHANNEL: u16 = 0x4000;

fn reload(world: &mut World, settings: &access::Settings) {
    let access = Arc::new(Access::new(settings, own_addresses()));
    world.server.set_access(world.now, access);
    world.drain();
}

fn deny(rules: &[&str]) -> access::Settings {
    let mut settings = access_settings();
    settings.peers.deny = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    settings
}

fn permissions_and_channels(world: &World) -> Vec<(usize, usize)> {
    let (views, _) = world.server.views(world.now, 0, usize::MAX);
    (views.iter())
        .map(|view| (view.permissions, view.channels))
        .collect()
}

/// By channel and by Send, and back: what of it moves.
fn moves(world: &mut World, id: AllocationId, channel: u16, peer: &str) -> [bool; 3] {
    let client = udp(CLIENT);
    let to_peer = |forward| matches!(forward, Forward::ToPeer { .. });
    let by_channel = to_peer(world.input(client, &channel_data(channel, b"media")));
    let by_send = to_peer(world.input(client, &Request::send(addr(peer), b"media").bytes()));
    let back = world.peer_input(id, addr(peer), b"media");
    [
        by_channel,
        by_send,
        matches!(back, Forward::ToClient { .. }),
    ]
}

#[test]
fn a_stricter_policy_ends_permissions_channels_and_data_both_ways() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    for (channel, peer) in [
        (CHANNEL, ALLOWED),
        (CHANNEL + 1, FORBIDDEN),
        (CHANNEL + 2, PORT),
    ] {
        let bind = Request::channel_bind(channel, addr(peer)).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &bind), 0);
        assert_eq!(moves(&mut world, id, channel, peer), [true; 3], "{peer}");
    }
    assert_eq!(permissions_and_channels(&world), [(3, 3)]);

    reload(&mut world, &deny(&["203.0.114.10", "203.0.114.11:1-1023"]));
    assert_eq!(moves(&mut world, id, CHANNEL, ALLOWED), [true; 3]);
    for (channel, peer) in [(CHANNEL + 1, FORBIDDEN), (CHANNEL + 2, PORT)] {
        assert_eq!(moves(&mut world, id, channel, peer), [false; 3], "{peer}");
    }
    // Another port of the second IP is still permitted, so its permission lives.
    assert_eq!(permissions_and_channels(&world), [(2, 1)]);
    let denied = world.server.stats().peer_denied[DeniedRule::Configured as usize];
    assert!(denied >= 3, "{denied}");

    // A policy that is milder again gives nothing back by itself.
    reload(&mut world, &access_settings());
    assert_eq!(moves(&mut world, id, CHANNEL + 1, FORBIDDEN), [false; 3]);
    let bind = Request::channel_bind(CHANNEL + 1, addr(FORBIDDEN)).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &bind), 0);
    assert_eq!(moves(&mut world, id, CHANNEL + 1, FORBIDDEN), [true; 3]);
    // What lived through it all ends when it would have.
    world.pass(secs(299));
    assert_eq!(moves(&mut world, id, CHANNEL, ALLOWED), [true; 3]);
    world.pass(secs(1));
    assert!(!moves(&mut world, id, CHANNEL, ALLOWED)[2]);
    world.pass(secs(600));
    assert_eq!(world.ended.len(), 1);
}

#[test]
fn a_road_that_the_new_policy_closes_is_not_taken_by_old_channels() {
    let relay = addr(&format!("{}:50000", super::common::world::RELAY_V4));
    let mut settings = access_settings();
    settings.peers.allow = vec!["198.51.100.1".parse().unwrap()];
    let mut world = World::with(Settings::default(), &settings, seed());
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let bind = Request::channel_bind(CHANNEL, relay).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &bind), 0);
    let by_kernel = |world: &mut World| match world.input(udp(CLIENT), &channel_data(CHANNEL, b"x"))
    {
        Forward::ToPeer { peer, .. } => Some(peer.may_use_kernel()),
        _ => None,
    };
    assert_eq!(by_kernel(&mut world), Some(true));
    // Our own relayed address stays a peer, in memory only.
    reload(&mut world, &access_settings());
    assert_eq!(by_kernel(&mut world), Some(false));
}

#[test]
fn users_who_are_gone_and_passwords_that_changed_end_what_they_made() {
    let mut world = World::new();
    let clients = [CLIENT, "192.0.2.8:4000", "192.0.2.9:4000"].map(udp);
    let by_name = [(USER, PASSWORD), ("bob", "builder")];
    for (client, (user, password)) in clients.into_iter().zip(by_name) {
        let nonce = world.nonce(client);
        let signer = Signer::new(user, password, &nonce);
        assert_eq!(world.code(client, &Request::allocate().sign(&signer)), 0);
    }
    let (user, password) = rest::mint(
        &Secret::new(SECRET.into()),
        Some(USER),
        EPOCH.as_secs() + 3600,
    );
    let nonce = world.nonce(clients[2]);
    let limited = Signer::new(&user, &password, &nonce);
    assert_eq!(
        world.code(clients[2], &Request::allocate().sign(&limited)),
        0
    );
    assert_eq!(world.server.len(), 3);

    // The same again: nobody loses anything.
    reload(&mut world, &access_settings());
    assert_eq!((world.server.len(), world.ended.len()), (3, 0));

    let mut settings = access_settings();
    settings.users = vec![("bob".into(), Secret::new("rebuilt".into()))];
    reload(&mut world, &settings);
    assert_eq!(world.server.len(), 1);
    assert_eq!(world.closed.len(), 2);
    for ended in &world.ended {
        assert_eq!(ended.reason, EndReason::Revoked, "{}", ended.view.user);
    }
    // The time-limited credential of a user who has the same name was made by a secret, which is still there.
    assert_eq!(
        world.code(clients[2], &Request::refresh(600).sign(&limited)),
        0
    );
    let nothing = world.input(clients[0], &channel_data(CHANNEL, b"x"));
    assert_eq!(nothing, Forward::Drop(DropReason::NoChannel));
}

#[test]
fn a_secret_that_is_gone_vouches_no_longer_than_it_signed_for() {
    for strict in [false, true] {
        let mut settings = access_settings();
        settings.strict_expiry = strict;
        let mut world = World::with(Settings::default(), &settings, seed());
        let expires = EPOCH.as_secs() + 900;
        let mint = |secret: &str| rest::mint(&Secret::new(secret.into()), Some("carol"), expires);
        let clients = [(udp(CLIENT), OLD_SECRET), (tcp("192.0.2.8:4000"), SECRET)];
        let signers = clients.map(|(client, secret)| {
            let (user, password) = mint(secret);
            let signer = Signer::new(&user, &password, &world.nonce(client));
            assert_eq!(world.code(client, &Request::allocate().sign(&signer)), 0);
            signer
        });
        let secrets = settings.secrets.len();
        settings.secrets.retain(|secret| secret.expose() == SECRET);
        assert_eq!(settings.secrets.len() + 1, secrets);
        reload(&mut world, &settings);
        // Nobody allocates by it any more; who has, refreshes by the key that the allocation keeps.
        let stranger = udp("192.0.2.10:4000");
        let (user, password) = mint(OLD_SECRET);
        let late = Signer::new(&user, &password, &world.nonce(stranger));
        assert_eq!(world.code(stranger, &Request::allocate().sign(&late)), 401);
        for ((client, secret), signer) in clients.iter().zip(&signers) {
            let refresh = Request::refresh(600).sign(signer);
            assert_eq!(world.code(*client, &refresh), 0, "{secret}");
        }
        world.pass(secs(500));
        let refresh = |world: &mut World, at: usize| {
            world.code(clients[at].0, &Request::refresh(600).sign(&signers[at]))
        };
        // Before it is over it is good for another lifetime; afterwards only what the other secret signed is.
        assert_eq!([refresh(&mut world, 0), refresh(&mut world, 1)], [0, 0]);
        world.pass(secs(500));
        let later = if strict { 401 } else { 0 };
        assert_eq!(
            [refresh(&mut world, 0), refresh(&mut world, 1)],
            [401, later]
        );
    }
}

#[test]
fn a_realm_that_changes_ends_no_call() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let mut settings = access_settings();
    settings.realm = "other.example".into();
    reload(&mut world, &settings);
    assert_eq!(world.server.len(), 1);
    // The key that the allocation keeps was derived from the old realm.
    let refresh = Request::refresh(600).sign(&alice);
    let reply = world.ask(udp(CLIENT), &refresh);
    assert_eq!(reply.code(), 0);
    assert!(reply.is_signed_by(&alice));
    // Newcomers need the new one.
    let stranger = udp("192.0.2.10:4000");
    let nonce = world.nonce(stranger);
    let old = Signer::new(USER, PASSWORD, &nonce);
    assert_eq!(world.code(stranger, &Request::allocate().sign(&old)), 401);
}

#[test]
fn lower_limits_end_nothing_and_hold_for_what_comes() {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    let peers: Vec<SocketAddr> = (1..=4).map(|n| addr(&format!("203.0.114.{n}:9"))).collect();
    for (at, peer) in peers.iter().enumerate().take(3) {
        let bind = Request::channel_bind(CHANNEL + at as u16, *peer).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &bind), 0);
    }
    let settings = Settings {
        channels_per_allocation: 2,
        permissions_per_allocation: 2,
        max_lifetime: secs(700),
        ..Settings::default()
    };
    world.server.set_settings(settings);
    for (at, peer) in peers.iter().enumerate().take(3) {
        let moved = moves(&mut world, id, CHANNEL + at as u16, &peer.to_string());
        assert_eq!(moved, [true; 3]);
    }
    let fourth = Request::channel_bind(CHANNEL + 3, peers[3]).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &fourth), 508);
    let again = Request::channel_bind(CHANNEL, peers[0]).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &again), 0);
    let refreshed = world.ask(udp(CLIENT), &Request::refresh(3600).sign(&alice));
    assert_eq!((refreshed.code(), refreshed.lifetime()), (0, 700));
}

#[test]
fn relayed_addresses_of_an_earlier_configuration_are_reached_in_memory_only() {
    let earlier = "192.0.2.200".parse().unwrap();
    let mut access = Access::new(&access_settings(), own_addresses());
    access.peers = access
        .peers
        .with_earlier_relays(vec![(earlier, 20_000..=20_009)]);
    let permit = |peer: &str| access.peers.permit(addr(peer));
    let inside = permit("192.0.2.200:20005").unwrap();
    assert!(inside.may_be_own_relay() && !inside.may_use_kernel());
    for outside in ["192.0.2.200:19999", "192.0.2.200:20010", "192.0.2.200:9641"] {
        assert_eq!(
            permit(outside).unwrap_err().rule,
            DeniedRule::OwnAddress,
            "{outside}"
        );
    }
    // The ports of the earlier address are not those of the current one.
    let current = super::common::world::RELAY_V4;
    assert!(permit(&format!("{current}:20005")).is_err());
    assert!(permit(&format!("{current}:50000")).is_ok());
}

/// Replaces what is revoked and nothing else, as a server that runs does it.
fn revoke(world: &mut World, entries: &[(RevokedKind, &str, Option<u64>)]) -> usize {
    let mut revoked = Revocations::default();
    for (kind, name, until) in entries {
        revoked.revoke(*kind, name, *until, world.now.unix.as_secs());
    }
    let access = Arc::new((*world.access).clone().with_revoked(revoked));
    world.access = Arc::clone(&access);
    let ended = world.server.set_access(world.now, access);
    world.drain();
    ended
}

fn limited(name: &str, ttl: u64) -> (String, String) {
    let expires = EPOCH.as_secs() + ttl;
    rest::mint(&Secret::new(SECRET.into()), Some(name), expires)
}

/// Answer to an Allocate of `client` with these credentials.
fn allocates(world: &mut World, client: &str, (user, password): (&str, &str)) -> u16 {
    let signer = Signer::new(user, password, &world.nonce(udp(client)));
    world.code(udp(client), &Request::allocate().sign(&signer))
}

#[test]
fn what_is_revoked_ends_at_once_and_comes_back_no_more() {
    let credentials = [
        ("192.0.2.1:4000", limited("carol;key=web", 3600)),
        ("192.0.2.2:4000", limited("carol;key=web;id=2", 3600)),
        ("192.0.2.3:4000", limited("carol;key=other", 3600)),
        ("192.0.2.4:4000", limited("dave;key=web", 3600)),
        ("192.0.2.5:4000", limited("carol", 3600)),
        ("192.0.2.6:4000", (USER.into(), PASSWORD.into())),
        // Asked of the key `other` by somebody who would like to be mistaken for another.
        ("192.0.2.7:4000", limited("eve;key=web;key=other", 3600)),
    ];
    let first = credentials[0].1.0.clone();
    let cases: [(RevokedKind, &str, &[usize]); 6] = [
        (RevokedKind::Credential, &first, &[0]),
        (RevokedKind::User, "carol", &[0, 1, 2, 4]),
        (RevokedKind::Key, "web", &[0, 1, 3]),
        (RevokedKind::Key, "other", &[2, 6]),
        (RevokedKind::User, USER, &[5]),
        (RevokedKind::Credential, USER, &[5]),
    ];
    for (kind, name, affected) in cases {
        let mut world = World::new();
        for (client, (user, password)) in &credentials {
            assert_eq!(allocates(&mut world, client, (user, password)), 0, "{user}");
        }
        let ended = revoke(&mut world, &[(kind, name, None)]);
        assert_eq!(ended, affected.len(), "{kind:?} {name}");
        assert_eq!(world.server.len(), credentials.len() - affected.len());
        assert!(
            (world.ended.iter()).all(|ended| ended.reason == EndReason::Revoked),
            "{kind:?} {name}"
        );
        for (index, (client, (user, password))) in credentials.iter().enumerate() {
            let expected = if affected.contains(&index) { 401 } else { 437 };
            let code = allocates(&mut world, client, (user, password));
            assert_eq!(code, expected, "{kind:?} {name}: {user}");
        }
        let refused = world.server.stats().auth_failures[AuthFailure::Revoked as usize];
        assert_eq!(refused, affected.len() as u64, "{kind:?} {name}");
    }
}

#[test]
fn only_the_right_password_learns_that_it_is_revoked() {
    let mut world = World::new();
    revoke(&mut world, &[(RevokedKind::User, USER, None)]);
    assert_eq!(allocates(&mut world, CLIENT, (USER, "a guess")), 401);
    let failures = world.server.stats().auth_failures;
    assert_eq!(failures[AuthFailure::Revoked as usize], 0);
    assert_eq!(failures[AuthFailure::BadPassword as usize], 1);
    assert_eq!(allocates(&mut world, CLIENT, (USER, PASSWORD)), 401);
    let failures = world.server.stats().auth_failures;
    assert_eq!(failures[AuthFailure::Revoked as usize], 1);
}

#[test]
fn a_revocation_is_over_to_the_second_or_when_it_is_lifted() {
    let mut world = World::new();
    let until = EPOCH.as_secs() + 60;
    revoke(&mut world, &[(RevokedKind::User, USER, Some(until))]);
    world.pass(secs(59));
    assert_eq!(allocates(&mut world, CLIENT, (USER, PASSWORD)), 401);
    world.pass(secs(1));
    assert_eq!(allocates(&mut world, CLIENT, (USER, PASSWORD)), 0);
    assert_eq!(revoke(&mut world, &[(RevokedKind::User, USER, None)]), 1);
    assert_eq!(revoke(&mut world, &[]), 0);
    assert_eq!(allocates(&mut world, CLIENT, (USER, PASSWORD)), 0);
}

#[test]
fn a_refresh_cannot_change_to_a_revoked_credential() {
    let mut world = World::new();
    let (old, new) = (limited("carol", 600), limited("carol", 3600));
    let signer = Signer::new(&old.0, &old.1, &world.nonce(udp(CLIENT)));
    let allocate = Request::allocate().sign(&signer);
    assert_eq!(world.code(udp(CLIENT), &allocate), 0);
    revoke(&mut world, &[(RevokedKind::Credential, &new.0, None)]);
    let renewed = Signer::new(&new.0, &new.1, &world.nonce(udp(CLIENT)));
    assert_eq!(
        world.code(udp(CLIENT), &Request::refresh(600).sign(&renewed)),
        401
    );
    assert_eq!(
        world.code(udp(CLIENT), &Request::refresh(600).sign(&signer)),
        0
    );
}

#[test]
fn another_process_does_not_take_over_what_is_revoked() {
    let mut world = World::new();
    let (user, password) = limited("carol;key=web", 3600);
    assert_eq!(allocates(&mut world, CLIENT, (&user, &password)), 0);
    world.allocate(udp("192.0.2.8:4000"));
    let snapshot = world.server.snapshot(world.now, |_| true);
    let mut revoked = Revocations::default();
    revoked.revoke(RevokedKind::Key, "web", None, world.now.unix.as_secs());
    let access = Arc::new((*world.access).clone().with_revoked(revoked));
    let families = seed().families;
    let server = Server::restore(world.now, Settings::default(), families, access, snapshot);
    assert_eq!(server.len(), 1);
}
