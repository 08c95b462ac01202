//! Strangers who want the flight recorder to forget, or to grow.

use std::net::{Ipv4Addr, SocketAddr};

use turnix::base::{FiveTuple, ListenerId, Transport};
use turnix::turn::{Settings, Subject, What};

use super::common::wire::{Request, Signer};
use super::common::world::{USER, World, access_settings, addr, secs, seed, udp};

/// Somewhere else with each number.
fn stranger(number: u32) -> FiveTuple {
    let ip = Ipv4Addr::from_bits(0x0B00_0000 + number * 7);
    FiveTuple::new(
        Transport::Udp,
        SocketAddr::new(ip.into(), 1024 + (number % 60_000) as u16),
        ListenerId(0),
    )
}

fn words(world: &World, subject: &Subject) -> Vec<&'static str> {
    let remembered = world.server.remembered(subject, &[]);
    (remembered.events.iter().map(|event| event.what.label())).collect()
}

/// Requests of 10^5 addresses, forged or not, without credentials, with made-up ones and for made-up peers: what is known of
/// a user stays, and memory is bounded.
#[test]
fn strangers_push_nobody_out_and_make_nothing_grow() {
    let settings = Settings {
        unauthenticated_per_address: 0,
        auth_failures_per_address: 0,
        ..Settings::default()
    };
    let events = settings.quality.events;
    let mut world = World::with(settings, &access_settings(), seed());
    let client = udp("192.0.2.7:4000");
    let (alice, id, _) = world.allocate(client);
    let peer = addr("203.0.114.9:1000");
    let permit = Request::create_permission(&[peer]).sign(&alice);
    assert_eq!(world.code(client, &permit), 0);
    world.pass(secs(1));
    world.open = Some(Err(turnix::turn::OpenError::Quota));
    let second = udp("192.0.2.7:4001");
    let again = world.alice(second);
    assert_eq!(world.code(second, &Request::allocate().sign(&again)), 486);
    let subject = Subject::User(USER.into());
    let mine = |world: &World| -> Vec<_> {
        let words = words(world, &subject);
        words
            .into_iter()
            .filter(|word| *word != "challenged")
            .collect()
    };
    let before = mine(&world);
    assert_eq!(before, ["allocated", "permission_created", "refused"]);

    let plain = Request::allocate().bytes();
    let forged = Request::allocate()
        .sign(&Signer::new("nobody", "x", "a nonce that is nobody's"))
        .bytes();
    for number in 0..100_000 {
        world.input(stranger(number), &plain);
        if number % 10 == 0 {
            world.input(stranger(number), &forged);
            // Data of peers whom nobody permitted, each from elsewhere.
            world.peer_input(id, stranger(number).client(), b"knock");
        }
        world.sent.clear();
    }
    // An address that is proven, with another name each time; and the client's own, forged.
    let guesser = udp("198.18.0.1:9");
    let nonce = world.nonce(guesser);
    for number in 0..500 {
        let signer = Signer::new(&format!("user{number}"), "x", &nonce);
        world.input(guesser, &Request::allocate().sign(&signer).bytes());
        world.input(client, &plain);
        world.sent.clear();
    }
    assert!(world.server.events() <= events, "{}", world.server.events());
    let guesses = words(&world, &Subject::Address("198.18.0.1".into()));
    assert!((1..=9).contains(&guesses.len()), "{guesses:?}");

    let after = mine(&world);
    assert_eq!(
        after,
        ["allocated", "permission_created", "refused", "dropped"]
    );
    let remembered = world.server.remembered(&Subject::Allocation(id), &[]);
    let knocks = (remembered.events.iter()).find(|event| matches!(event.what, What::Dropped(..)));
    // Theirs have made way for others of theirs.
    assert!((1..=10_000).contains(&knocks.unwrap().count));
}

/// Strangers who knock at every relayed address there is, without permission or from where policy allows no peers.
#[test]
fn who_knocks_at_relayed_addresses_pushes_no_client_out() {
    let mut settings = Settings::default();
    settings.quality.events = 256;
    let mut world = World::with(settings, &access_settings(), seed());
    let ids: Vec<_> = (0..100)
        .map(|port| world.allocate(udp(&format!("192.0.2.7:{}", 4000 + port))).1)
        .collect();
    for number in 0..20 {
        for id in &ids {
            world.peer_input(*id, stranger(number).client(), b"knock");
            world.peer_input(*id, addr("203.0.115.1:1000"), b"knock");
        }
        world.pass(secs(1));
    }
    for id in &ids {
        let words = words(&world, &Subject::Allocation(*id));
        assert_eq!(words.first(), Some(&"allocated"), "{id:?}: {words:?}");
        assert!(words.len() <= 2, "{words:?}");
    }
    assert!(world.server.events() <= 256);
    // The latest are known, and of which allocation.
    let last = words(&world, &Subject::Allocation(ids[99]));
    assert_eq!(last, ["allocated", "dropped"]);
}

/// Allocations that are older than a change of `quality.events` leave their events in nobody else's entries.
#[test]
fn a_reload_mixes_up_nobodys_events() {
    let mut settings = Settings::default();
    let mut world = World::with(settings.clone(), &access_settings(), seed());
    let old = udp("192.0.2.7:4000");
    let (alice, first, _) = world.allocate(old);
    let permit = |host: u32| Request::create_permission(&[addr(&format!("203.0.114.{host}:9"))]);
    assert_eq!(world.code(old, &permit(1).sign(&alice)), 0);
    for events in [64, 0, 128, 4096] {
        settings.quality.events = events;
        world.server.set_settings(settings.clone());
        let client = udp(&format!("192.0.2.8:{}", 5000 + events));
        let (other, id, _) = world.allocate(client);
        assert_eq!(world.code(client, &permit(1).sign(&other)), 0);
        assert_eq!(
            world.code(old, &permit(events as u32 % 97 + 2).sign(&alice)),
            0
        );
        let told = |id| {
            let remembered = world.server.remembered(&Subject::Allocation(id), &[]);
            let events = remembered.events.into_iter();
            events
                .filter(|event| event.what.label() != "challenged")
                .map(|event| (event.what.label(), event.count, event.client.client()))
                .collect::<Vec<_>>()
        };
        if events == 0 {
            assert!(told(first).is_empty() && told(id).is_empty());
            continue;
        }
        assert_eq!(
            told(first),
            [("permission_created", 1, old.client())],
            "{events}"
        );
        let wanted = ["allocated", "permission_created"].map(|word| (word, 1, client.client()));
        assert_eq!(told(id), wanted, "{events}");
    }
}

/// Whoever may have an allocation cannot have the others forgotten by what its peers, or ICMP, make of it.
#[test]
fn one_allocation_leaves_few_events() {
    let mut world = World::with(Settings::default(), &access_settings(), seed());
    let client = udp("192.0.2.7:4000");
    let (alice, id, _) = world.allocate(client);
    let peer = addr("203.0.114.9:1000");
    let permit = Request::create_permission(&[peer]).sign(&alice);
    assert_eq!(world.code(client, &permit), 0);
    for number in 0..2000_u32 {
        let code = (number % 256) as u8;
        let icmp = turnix::wire::Icmp {
            kind: if number % 2 == 0 { 3 } else { 11 },
            code,
            data: 0,
        };
        world.server.handle_icmp(world.now, id, peer, icmp);
        world.drain();
        let private = SocketAddr::new(Ipv4Addr::from_bits(0x0A00_0000 + number).into(), 9);
        world.input(client, &Request::send(private, b"x").bytes());
        let bind = Request::channel_bind(0x7000 + (number % 100) as u16, peer).sign(&alice);
        world.input(client, &bind.bytes());
        world.sent.clear();
        if number % 100 == 0 {
            world.pass(secs(1));
        }
    }
    let events = world
        .server
        .remembered(&Subject::Allocation(id), &[])
        .events;
    assert!(events.len() <= 10, "{events:?}");
}
