//! Realms beside the default one: who is of which, and with what REALM clients of each sign.

use std::sync::Arc;

use turnix::access::rest::{self, KEY_MARK};
use turnix::access::{
    self, Access, RealmLimits, RealmName, RealmSettings, Revocations, RevokedKind,
};
use turnix::base::{Family, FiveTuple, Secret};
use turnix::turn::{EndReason, Server, Settings, Snapshot};

use crate::common::security::{Modern, SHA256};
use crate::common::wire::{REALM, Request, Signer};
use crate::common::world::{
    EPOCH, PASSWORD, SECRET, USER, VISITS, World, access_settings, own_addresses, secs, seed, tcp,
    udp,
};

const CLIENT: &str = "192.0.2.7:4000";
const B: &str = "b.example";
const TURN_B: &str = "turn.b.example";

fn realm(name: &str) -> RealmSettings {
    RealmSettings {
        name: name.into(),
        server_names: vec![format!("turn.{name}")],
        users: vec![
            (USER.into(), Secret::new(format!("{USER} of {name}"))),
            ("carol".into(), Secret::new("christmas".into())),
        ],
        secrets: vec![Secret::new(format!("secret of {name}"))],
        limits: RealmLimits::default(),
    }
}

fn two_more() -> access::Settings {
    access::Settings {
        realms: vec![realm(B), realm("c.example")],
        ..access_settings()
    }
}

fn world() -> World {
    World::with(Settings::default(), &two_more(), seed())
}

/// A TLS client that asked for `server_name`.
fn named(world: &mut World, client: &str, server_name: &str) -> FiveTuple {
    let client = tcp(client);
    world.server.handle_client_named(client, server_name);
    client
}

/// What `user` gets with `password`, who signs for whatever realm it is challenged with: a code, and who it is.
fn log_in(world: &mut World, from: FiveTuple, user: &str, password: &str) -> (u16, String) {
    let challenge = world.ask(from, &Request::allocate());
    assert_eq!(challenge.code(), 401);
    let signer = Signer {
        realm: challenge.text(stun::attributes::ATTR_REALM).unwrap(),
        ..Signer::new(user, password, &challenge.nonce())
    };
    let reply = world.ask(from, &Request::allocate().sign(&signer));
    if reply.code() != 0 {
        return (reply.code(), String::new());
    }
    assert!(reply.is_signed_by(&signer));
    let (views, _) = world.server.views(world.now, 0, usize::MAX);
    let view = views
        .iter()
        .find(|view| view.client == from.client())
        .unwrap();
    let known = view.realm.map(RealmName::as_str);
    assert_eq!(known, view.user.rsplit_once('@').map(|(_, realm)| realm));
    let user = view.user.to_string();
    assert_eq!(world.code(from, &Request::refresh(0).sign(&signer)), 0);
    (0, user)
}

fn minted(secret: &str, user: &str) -> (String, String) {
    let secret = Secret::new(secret.to_owned());
    rest::mint(&secret, Some(user), EPOCH.as_secs() + 3600)
}

fn known_as(user: &str) -> (u16, String) {
    (0, user.to_owned())
}

const NOBODY: (u16, String) = (401, String::new());

#[test]
fn a_name_says_where_it_belongs() {
    let mut world = world();
    let client = udp(CLIENT);
    let mut log_in = |user: &str, password: &str| log_in(&mut world, client, user, password);
    assert_eq!(log_in(USER, PASSWORD), known_as(USER));
    assert_eq!(
        log_in("alice@b.example", "alice of b.example"),
        known_as("alice@b.example")
    );
    assert_eq!(
        log_in("alice@c.example", "alice of c.example"),
        known_as("alice@c.example")
    );
    // Users of one realm are nobody in another.
    assert_eq!(log_in("alice@b.example", PASSWORD), NOBODY);
    assert_eq!(log_in("alice@b.example", "alice of c.example"), NOBODY);
    assert_eq!(log_in("alice", "alice of b.example"), NOBODY);
    assert_eq!(log_in("bob@b.example", "builder"), NOBODY);
    assert_eq!(log_in("carol", "christmas"), NOBODY);
    assert_eq!(log_in("alice@example.org", PASSWORD), NOBODY);
    assert_eq!(log_in("alice@d.example", PASSWORD), NOBODY);
    assert_eq!(log_in("@b.example", "alice of b.example"), NOBODY);

    let (user, password) = minted("secret of b.example", "dave@b.example");
    assert_eq!(log_in(&user, &password), known_as("dave@b.example"));
    let swapped = format!("dave@b.example:{}", EPOCH.as_secs() + 3600);
    let secret = Secret::new("secret of b.example".to_owned());
    let password = rest::password(&secret, swapped.as_bytes());
    let password = std::str::from_utf8(&password.expose()[..]).unwrap();
    assert_eq!(log_in(&swapped, password), known_as("dave@b.example"));
    let (user, password) = minted(
        "secret of b.example",
        &format!("dave@b.example{KEY_MARK}web"),
    );
    assert_eq!(log_in(&user, &password), known_as("dave@b.example"));
    // So are their secrets.
    for (secret, user) in [
        ("secret of b.example", "dave"),
        ("secret of b.example", "dave@c.example"),
        (SECRET, "dave@b.example"),
    ] {
        let (user, password) = minted(secret, user);
        assert_eq!(log_in(&user, &password), NOBODY, "{user}");
    }
}

#[test]
fn the_name_that_a_connection_asked_for_says_so_as_well() {
    let mut world = world();
    let client = named(&mut world, CLIENT, TURN_B);
    let challenge = world.ask(client, &Request::allocate());
    assert_eq!(
        challenge.text(stun::attributes::ATTR_REALM).as_deref(),
        Some(B)
    );
    let mut log_in = |user: &str, password: &str| log_in(&mut world, client, user, password);
    for user in ["alice", "alice@b.example"] {
        assert_eq!(
            log_in(user, "alice of b.example"),
            known_as("alice@b.example")
        );
    }
    for user in ["dave", "dave@b.example"] {
        let (user, password) = minted("secret of b.example", user);
        assert_eq!(log_in(&user, &password), known_as("dave@b.example"));
    }
    assert_eq!(log_in("alice", PASSWORD), NOBODY);
    assert_eq!(log_in("bob", "builder"), NOBODY);
    assert_eq!(log_in("alice@c.example", "alice of c.example"), NOBODY);
    let (user, password) = minted(SECRET, "dave");
    assert_eq!(log_in(&user, &password), NOBODY);

    // Whoever signs for the default realm there has the wrong one.
    let nonce = world.ask(client, &Request::allocate()).nonce();
    let other = Signer::new(USER, PASSWORD, &nonce);
    assert_eq!(other.realm, REALM);
    assert_eq!(world.code(client, &Request::allocate().sign(&other)), 401);

    // Other names, and the next connection from there, are of the default realm.
    world.server.handle_client_closed(world.now, client);
    let client = named(&mut world, CLIENT, "turn.example.org");
    assert_eq!(
        super::realms::log_in(&mut world, client, USER, PASSWORD),
        known_as(USER)
    );
}

#[test]
fn visits_of_the_test_page_are_of_no_realm() {
    let mut world = world();
    let client = named(&mut world, CLIENT, TURN_B);
    let (user, password) = minted(VISITS, "turnix-test:7");
    let challenge = world.ask(client, &Request::allocate());
    let signer = Signer {
        realm: B.into(),
        ..Signer::new(&user, &password, &challenge.nonce())
    };
    assert_eq!(world.code(client, &Request::allocate().sign(&signer)), 0);
    let (views, _) = world.server.views(world.now, 0, 1);
    assert_eq!((&*views[0].user, views[0].realm), ("turnix-test:7", None));
    assert!(views[0].scope.is_loop());
}

/// A key is that of one name in one realm.
#[test]
fn stored_keys_serve_clients_that_are_told_the_realm() {
    let mut settings = two_more();
    // printf %s erin:b.example:easter | md5sum
    let key = "md5:b27ac149676b7cca69cbd711cb417d49";
    settings.realms[0]
        .users
        .push(("erin".into(), Secret::new(key.into())));
    let mut world = World::with(Settings::default(), &settings, seed());
    let client = named(&mut world, CLIENT, TURN_B);
    assert_eq!(
        log_in(&mut world, client, "erin", "easter"),
        known_as("erin@b.example")
    );
    assert_eq!(
        log_in(&mut world, client, "erin@b.example", "easter"),
        NOBODY
    );
    assert_eq!(
        log_in(&mut world, udp(CLIENT), "erin@b.example", "easter"),
        NOBODY
    );
}

/// Allocations of alice in either realm, of a time-limited user of b, and of one of b whose connection asked for it.
fn four(world: &mut World) -> [(FiveTuple, Signer); 4] {
    let (dave, password) = minted("secret of b.example", "dave@b.example");
    let clients = [
        (udp("192.0.2.1:4000"), USER, PASSWORD, REALM),
        (
            udp("192.0.2.2:4000"),
            "alice@b.example",
            "alice of b.example",
            REALM,
        ),
        (udp("192.0.2.3:4000"), &*dave, &*password, REALM),
        (
            named(world, "192.0.2.4:4000", TURN_B),
            "carol",
            "christmas",
            B,
        ),
    ];
    clients.map(|(client, user, password, realm)| {
        let nonce = world.ask(client, &Request::allocate()).nonce();
        let signer = Signer {
            realm: realm.into(),
            ..Signer::new(user, password, &nonce)
        };
        assert_eq!(world.code(client, &Request::allocate().sign(&signer)), 0);
        (client, signer)
    })
}

fn live(world: &World) -> Vec<String> {
    let (views, _) = world.server.views(world.now, 0, usize::MAX);
    let mut live: Vec<_> = views.iter().map(|view| view.user.to_string()).collect();
    live.sort();
    live
}

fn reload(world: &mut World, settings: &access::Settings) -> usize {
    let access = Arc::new(Access::new(settings, own_addresses()));
    let ended = world.server.set_access(world.now, access);
    world.drain();
    ended
}

#[test]
fn realms_come_and_go_as_users_do() {
    let mut world = world();
    let clients = four(&mut world);
    assert_eq!(reload(&mut world, &two_more()), 0);
    for (client, signer) in &clients {
        assert_eq!(world.code(*client, &Request::refresh(600).sign(signer)), 0);
    }
    // Another password of one realm's alice is no news to the other.
    let mut other = two_more();
    other.realms[0].users[0].1 = Secret::new("another".into());
    assert_eq!(reload(&mut world, &other), 1);
    assert_eq!(live(&world), ["alice", "carol@b.example", "dave@b.example"]);
    // Without the realm all of it ends, whatever it came with.
    other.realms.remove(0);
    assert_eq!(reload(&mut world, &other), 2);
    assert_eq!(live(&world), ["alice"]);
    assert!(
        world
            .ended
            .iter()
            .all(|ended| ended.reason == EndReason::Revoked)
    );
    let (client, _) = clients[3];
    let challenge = world.ask(client, &Request::allocate());
    assert_eq!(
        challenge.text(stun::attributes::ATTR_REALM).as_deref(),
        Some(REALM)
    );
    // And comes again.
    reload(&mut world, &two_more());
    let client = udp("192.0.2.9:4000");
    let back = log_in(&mut world, client, "alice@b.example", "alice of b.example");
    assert_eq!(back, known_as("alice@b.example"));
}

#[test]
fn secrets_that_are_gone_vouch_for_what_they_signed() {
    let mut world = world();
    let clients = four(&mut world);
    let mut settings = two_more();
    settings.realms[0].secrets = Vec::new();
    assert_eq!(reload(&mut world, &settings), 0);
    let (client, dave) = &clients[2];
    world.pass(secs(500));
    assert_eq!(world.code(*client, &Request::refresh(3600).sign(dave)), 0);
    world.pass(secs(3101));
    let nonce = world.ask(*client, &Request::refresh(600)).nonce();
    assert_eq!(
        world.code(*client, &Request::refresh(600).sign(&dave.nonce(&nonce))),
        401
    );
    // One that is there vouches on.
    let mut world = super::realms::world();
    let clients = four(&mut world);
    let (client, dave) = &clients[2];
    world.pass(secs(500));
    assert_eq!(world.code(*client, &Request::refresh(3600).sign(dave)), 0);
    world.pass(secs(3101));
    let nonce = world.ask(*client, &Request::refresh(600)).nonce();
    assert_eq!(
        world.code(*client, &Request::refresh(600).sign(&dave.nonce(&nonce))),
        0
    );
}

#[test]
fn who_is_revoked_in_one_realm_is_not_in_another() {
    for (kind, name, left) in [
        (
            RevokedKind::User,
            "alice",
            vec!["alice@b.example", "carol@b.example", "dave@b.example"],
        ),
        (
            RevokedKind::User,
            "alice@b.example",
            vec!["alice", "carol@b.example", "dave@b.example"],
        ),
        (
            RevokedKind::Credential,
            "alice",
            vec!["alice@b.example", "carol@b.example", "dave@b.example"],
        ),
        (
            RevokedKind::Credential,
            "carol",
            vec![
                "alice",
                "alice@b.example",
                "carol@b.example",
                "dave@b.example",
            ],
        ),
        (
            RevokedKind::Credential,
            "carol@b.example",
            vec!["alice", "alice@b.example", "dave@b.example"],
        ),
    ] {
        let mut world = world();
        let clients = four(&mut world);
        let mut revoked = Revocations::default();
        revoked.revoke(kind, name, None, 0);
        let access = Access::new(&two_more(), own_addresses()).with_revoked(revoked);
        world.server.set_access(world.now, Arc::new(access));
        world.drain();
        assert_eq!(live(&world), left, "{} {name}", kind.label());
        // Nor do they come again.
        for (client, signer) in &clients {
            let code = world.code(*client, &Request::refresh(600).sign(signer));
            assert!(code == 0 || code == 401, "{code}");
        }
    }
    // The exact name of a time-limited credential.
    let mut world = world();
    let clients = four(&mut world);
    let mut revoked = Revocations::default();
    revoked.revoke(RevokedKind::Credential, &clients[2].1.user, None, 0);
    let access = Access::new(&two_more(), own_addresses()).with_revoked(revoked);
    assert_eq!(world.server.set_access(world.now, Arc::new(access)), 1);
}

#[test]
fn another_process_goes_on_with_the_realms_that_it_knows() {
    let restore = |world: &mut World, settings: &access::Settings| {
        let snapshot = world.server.snapshot(world.now, |_| true).encode();
        let snapshot = Snapshot::decode(&snapshot).unwrap();
        let access = Arc::new(Access::new(settings, own_addresses()));
        let families = vec![Family::V4, Family::V6];
        world.server = Server::restore(world.now, Settings::default(), families, access, snapshot);
        live(world)
    };
    let mut world = world();
    let clients = four(&mut world);
    let all = [
        "alice",
        "alice@b.example",
        "carol@b.example",
        "dave@b.example",
    ];
    assert_eq!(restore(&mut world, &two_more()), all);
    for (client, signer) in &clients {
        assert_eq!(world.code(*client, &Request::refresh(600).sign(signer)), 0);
    }
    let mut other = two_more();
    other.realms[0].users[0].1 = Secret::new("another".into());
    assert_eq!(
        restore(&mut world, &other),
        ["alice", "carol@b.example", "dave@b.example"]
    );
    other.realms.remove(0);
    assert_eq!(restore(&mut world, &other), ["alice"]);
}

#[test]
fn keys_by_sha256_and_names_by_hash_are_of_a_realm_as_well() {
    let mut settings = two_more();
    settings.secrets.clear();
    settings
        .realms
        .iter_mut()
        .for_each(|realm| realm.secrets.clear());
    let mut world = World::with(Settings::default(), &settings, seed());
    let clients = [
        (tcp("192.0.2.1:4000"), USER, PASSWORD, USER),
        (
            tcp("192.0.2.2:4000"),
            "alice@b.example",
            "alice of b.example",
            "alice@b.example",
        ),
        (
            named(&mut world, "192.0.2.3:4000", TURN_B),
            "alice",
            "alice of b.example",
            "alice@b.example",
        ),
    ];
    for (client, user, password, known) in clients {
        let challenge = world.ask(client, &Request::allocate());
        let modern = Modern::answering(&challenge, user, password);
        assert!(modern.anonymous && modern.algorithm == Some(SHA256));
        let reply = world.ask(client, &modern.sign(Request::allocate()));
        assert_eq!(reply.code(), 0, "{user}");
        assert!(modern.has_signed(&reply));
        let (views, _) = world.server.views(world.now, 0, usize::MAX);
        let view = views
            .iter()
            .find(|view| view.client == client.client())
            .unwrap();
        assert_eq!(&*view.user, known);
        assert_eq!(world.code(client, &modern.sign(Request::refresh(0))), 0);
    }
    // Nobody is asked for a hash where names may come that are in no list: time-limited ones, keys of tokens.
    let anonymous = |settings: &access::Settings, server_name: &str| {
        let mut world = World::with(Settings::default(), settings, seed());
        let client = named(&mut world, CLIENT, server_name);
        let challenge = world.ask(client, &Request::allocate());
        Modern::answering(&challenge, USER, PASSWORD).anonymous
    };
    settings.realms[0]
        .secrets
        .push(Secret::new("secret".into()));
    let asked = ["turn.example.org", TURN_B, "turn.c.example"];
    assert_eq!(
        asked.map(|name| anonymous(&settings, name)),
        [false, false, true]
    );
}
