//! Time-limited credentials, beside static users and through a rollover of secrets.

use turnix::access::rest;
use turnix::base::Secret;

use crate::common::wire::{Request, Signer};
use crate::common::world::{EPOCH, OLD_SECRET, PASSWORD, SECRET, USER, World, udp};

const CLIENT: &str = "192.0.2.7:4000";

#[test]
fn both_orders_bare_expiry_and_both_secrets() {
    let later = EPOCH.as_secs() + 3600;
    for secret in [SECRET, OLD_SECRET] {
        let secret = Secret::new(secret.to_owned());
        for (name, user) in [
            (format!("{later}:carol"), "carol"),
            (format!("carol:{later}"), "carol"),
            (format!("{later}"), rest::ANONYMOUS),
            (format!("{later}:a:b"), "a:b"),
        ] {
            let mut world = World::new();
            let password = rest::password(&secret, name.as_bytes());
            let password = std::str::from_utf8(&password.expose()[..])
                .unwrap()
                .to_owned();
            let signer = Signer::new(&name, &password, &world.nonce(udp(CLIENT)));
            let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&signer));
            assert_eq!(reply.code(), 0, "{name}");
            let (views, _) = world.server.views(world.now, 0, 1);
            assert_eq!(&*views[0].user, user);
        }
    }
}

#[test]
fn static_users_work_beside_secrets() {
    let mut world = World::new();
    let signer = Signer::new(USER, PASSWORD, &world.nonce(udp(CLIENT)));
    assert_eq!(
        world
            .ask(udp(CLIENT), &Request::allocate().sign(&signer))
            .code(),
        0
    );
}

#[test]
fn expired_and_foreign_credentials_are_401() {
    let mut world = World::new();
    let nonce = world.nonce(udp(CLIENT));
    let now = EPOCH.as_secs();
    for (secret, expires) in [(SECRET, now), (SECRET, now - 1), ("other", now + 3600)] {
        let secret = Secret::new(secret.to_owned());
        let (user, password) = rest::mint(&secret, Some("carol"), expires);
        let signer = Signer::new(&user, &password, &nonce);
        let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&signer));
        assert_eq!(reply.code(), 401);
    }
    assert_eq!(world.server.len(), 0);
}
