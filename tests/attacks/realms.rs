//! Out of one realm into another, and tokens that nobody made.

use std::sync::Arc;

use turnix::access::oauth::{self, TokenAlgorithm, TokenKey};
use turnix::access::{self, RealmLimits, RealmSettings, rest};
use turnix::base::{FiveTuple, Secret};
use turnix::turn::Settings;

use super::common::wire::{Request, Signer};
use super::common::world::{
    EPOCH, PASSWORD, SECRET, USER, World, access_settings, addr, seed, tcp, udp,
};

const B: &str = "b.example";
const C: &str = "c.example";
const SECRET_OF_B: &str = "secret of b";

/// Both realms have an alice, with one password everywhere, and a secret each.
fn world() -> World {
    let realm = |name: &str, secret: &str| RealmSettings {
        name: name.into(),
        server_names: vec![format!("turn.{name}")],
        users: vec![(USER.into(), Secret::new(PASSWORD.into()))],
        secrets: vec![Secret::new(secret.into())],
        limits: RealmLimits::default(),
    };
    let settings = access::Settings {
        realms: vec![realm(B, SECRET_OF_B), realm(C, "secret of c")],
        ..access_settings()
    };
    World::with(Settings::default(), &settings, seed())
}

fn signer(world: &mut World, from: FiveTuple, user: &str, password: &str) -> Signer {
    let challenge = world.ask(from, &Request::allocate());
    Signer {
        realm: challenge.text(stun::attributes::ATTR_REALM).unwrap(),
        ..Signer::new(user, password, &challenge.nonce())
    }
}

fn users(world: &World) -> Vec<String> {
    let (views, _) = world.server.views(world.now, 0, usize::MAX);
    views.iter().map(|view| view.user.to_string()).collect()
}

/// The same name and password, and still somebody else: another's allocation is not to be had, from its own five-tuple either.
#[test]
fn the_same_name_and_password_in_another_realm_is_another_user() {
    let mut world = world();
    let client = udp("192.0.2.1:4000");
    for (owner, others) in [
        ("alice", ["alice@b.example", "alice@c.example"]),
        ("alice@b.example", ["alice", "alice@c.example"]),
    ] {
        let owner = signer(&mut world, client, owner, PASSWORD);
        assert_eq!(world.code(client, &Request::allocate().sign(&owner)), 0);
        for other in others {
            let other = signer(&mut world, client, other, PASSWORD);
            for request in [
                Request::refresh(0),
                Request::refresh(3600),
                Request::create_permission(&[addr("203.0.114.9:1000")]),
                Request::channel_bind(0x4000, addr("203.0.114.9:1000")),
            ] {
                assert_eq!(world.code(client, &request.sign(&other)), 441);
            }
        }
        assert_eq!(world.code(client, &Request::refresh(0).sign(&owner)), 0);
    }
}

/// Whoever has the secret of one realm makes credentials for that one only, however it writes the names.
#[test]
fn no_secret_makes_users_of_another_realm() {
    let later = EPOCH.as_secs() + 3600;
    let names = [
        "eve",
        "eve@b.example",
        "eve@c.example",
        "eve@b.example@c.example",
        "eve@c.example@b.example",
        "eve@B.example",
        "eve@b.example.",
        "eve@b.example ",
        "eve@b.exam\u{AD}ple",
        "eve@b.ехample",
        "@b.example",
        "eve@",
        "eve@b.example;key=web",
        "eve;key=web@b.example",
        "eve@c.example;key=@b.example",
        "1799999999:eve@b.example",
        "eve@b.example:1799999999",
        "turnix-test:eve@b.example",
    ];
    let everywhere = [
        (udp("192.0.2.1:4000"), None),
        (tcp("192.0.2.2:4000"), Some(B)),
        (tcp("192.0.2.3:4000"), Some(C)),
    ];
    for (secret, realm) in [
        (SECRET, None),
        (SECRET_OF_B, Some(B)),
        ("secret of c", Some(C)),
    ] {
        let secret = Secret::new(secret.to_owned());
        let mut came = 0;
        for name in names {
            let swapped = format!("{name}:{later}");
            let mut forms = vec![rest::mint(&secret, Some(name), later)];
            let password = rest::password(&secret, swapped.as_bytes());
            let password = String::from_utf8(password.expose().to_vec()).unwrap();
            forms.push((swapped, password));
            for (user, password) in forms {
                for (client, asked) in everywhere {
                    let mut world = world();
                    if let Some(asked) = asked {
                        world
                            .server
                            .handle_client_named(client, &format!("turn.{asked}"));
                    }
                    let signer = signer(&mut world, client, &user, &password);
                    let code = world.code(client, &Request::allocate().sign(&signer));
                    assert!(code == 0 || code == 401, "{user}: {code}");
                    let (views, _) = world.server.views(world.now, 0, 1);
                    let Some(view) = views.first() else { continue };
                    came += 1;
                    let what = format!("{user} at {asked:?} is {}", view.user);
                    assert_eq!(view.realm.map(access::RealmName::as_str), realm, "{what}");
                    let of = |name| view.user.ends_with(&format!("@{name}"));
                    assert_eq!(
                        (of(B), of(C)),
                        (realm == Some(B), realm == Some(C)),
                        "{what}"
                    );
                }
            }
        }
        assert!(came > 10, "{came}");
    }
}

/// A request that was signed for one connection is worth nothing on a connection of another realm.
#[test]
fn a_connection_of_another_realm_takes_no_signature_of_this_one() {
    let mut world = world();
    let (ours, theirs) = (tcp("192.0.2.2:4000"), tcp("192.0.2.3:4000"));
    world.server.handle_client_named(ours, "turn.b.example");
    world.server.handle_client_named(theirs, "turn.c.example");
    let signer = signer(&mut world, ours, USER, PASSWORD);
    let request = Request::allocate().sign(&signer);
    assert_eq!(world.code(theirs, &request), 401);
    assert_eq!(world.code(udp("192.0.2.4:4000"), &request), 401);
    assert_eq!(world.code(ours, &request), 0);
    assert_eq!(users(&world), ["alice@b.example"]);
}

/// Names are not kept of connections that are gone, nor of names that no realm has.
#[test]
fn a_flood_of_server_names_is_forgotten() {
    let mut world = world();
    for port in 1..=60_000_u16 {
        let client = tcp(&format!("192.0.2.9:{port}"));
        let name = if port % 2 == 0 {
            "turn.b.example".to_owned()
        } else {
            format!("{port}.example")
        };
        world.server.handle_client_named(client, &name);
        world.server.handle_client_closed(world.now, client);
    }
    let client = tcp("192.0.2.9:2");
    let challenge = world.ask(client, &Request::allocate());
    let realm = challenge.text(stun::attributes::ATTR_REALM).unwrap();
    assert_eq!(realm, super::common::wire::REALM);
}

#[test]
fn tokens_that_nobody_made_cost_no_memory() {
    let mut settings = access_settings();
    settings.oauth = oauth::Settings {
        server_name: None,
        keys: vec![TokenKey {
            kid: "north".into(),
            algorithm: TokenAlgorithm::A256Gcm,
            key: Secret::new(vec![1; 32]),
            not_before: None,
            not_after: None,
        }],
    };
    let mut world = World::with(Settings::default(), &settings, seed());
    let client = tcp("192.0.2.1:4000");
    let north = signer(&mut world, client, "north", "guessed");
    let mut token = vec![0xA5_u8; 60_000];
    for length in (0..200).chain([255, 256, 257, 1000, 4000, 32_767, 32_768, 60_000]) {
        for (high, low) in [(0, 12), (0, 0), (0xFF, 0xFF), (0x7F, 0xFF), (0x80, 0)] {
            (token[0], token[1]) = (high, low);
            let request = Request::allocate()
                .attr(0x001B, &token[..length])
                .sign(&north);
            let reply = world.ask(client, &request);
            assert_eq!(reply.code(), 401, "{length}");
        }
    }
    assert!(world.server.is_empty());
    assert_eq!(Arc::strong_count(world.access.tokens.as_ref().unwrap()), 1);
}
