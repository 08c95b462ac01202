//! A million names leave no series and no memory behind.

use std::collections::BTreeSet;

use turnix::access::rest;
use turnix::base::Secret;
use turnix::metrics::{Context, Reading, ShardSnapshot, encode};

use super::super::common::wire::{Request, Signer};
use super::super::common::world::{SECRET, World, tcp};
use super::super::process::{self, Process};

/// What stands before the values, without the series that belong to one live allocation.
fn series(text: &str) -> BTreeSet<String> {
    (text.lines())
        .filter(|line| !line.starts_with('#') && !line.contains("{allocation="))
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

fn page(world: &World) -> BTreeSet<String> {
    let mut totals = ShardSnapshot::default();
    totals.stats.merge(world.server.stats());
    series(&encode(Reading {
        totals,
        live: Vec::new(),
        context: Context {
            capacity_ratio: 0.0,
            realms: Vec::new(),
            certificate_expiry_unix: None,
            other_certificates: Vec::new(),
            streams_refused: Default::default(),
            passed: Default::default(),
            records: Vec::new(),
            acme: None,
            canary: Vec::new(),
            outages: Vec::new(),
            admin_refused: [("missing", 0), ("wrong", 0), ("limited", 0)],
            revocations: [0, 2, 0],
            captures: [2, 1],
            api_keys: vec![("web".into(), "minted", 4)],
            unix_secs: 1_800_000_000,
            external: Vec::new(),
            external_changes: 0,
            version: "0",
            calls: Default::default(),
        },
    }))
}

/// A wrong password of an unknown user, of a time-limited one, and a right one, with an allocation that it gives back.
fn visit(world: &mut World, client: turnix::base::FiveTuple, nonce: &str, name: &str) {
    let (limited, password) = rest::mint(&Secret::new(SECRET.into()), Some(name), 4_000_000_000);
    let right = Signer::new(&limited, &password, nonce);
    assert_eq!(world.code(client, &Request::allocate().sign(&right)), 0);
    assert_eq!(world.code(client, &Request::refresh(0).sign(&right)), 0);
}

#[test]
fn a_million_names_make_no_series() {
    // Optimized, as it is run before a release; a tenth without.
    const FAILURES: u32 = if cfg!(debug_assertions) {
        100_000
    } else {
        1_000_000
    };
    let mut world = World::new();
    let client = tcp("198.51.100.7:4000");
    let nonce = world.nonce(client);
    visit(&mut world, client, &nonce, "first");
    // One message whose name is written over: its integrity is wrong for every name.
    let template = "4000000000:00000000";
    let wrong = Signer::new(template, "wrong", &nonce);
    let mut bytes = Request::allocate().sign(&wrong).bytes();
    let at = (bytes.windows(template.len()))
        .position(|window| window == template.as_bytes())
        .unwrap();
    let mut fail = |world: &mut World, number: u32| {
        let mut name = format!("4000000000:{number:08x}");
        if number.is_multiple_of(2) {
            // No time-limited name: nobody's.
            name.replace_range(..10, "nobodynobo");
        }
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        let answers = world.ask_raw(client, &bytes);
        assert_eq!(answers.len(), 1);
        assert_eq!(
            &answers[0][..2],
            &[0x01, 0x13],
            "an error response to Allocate"
        );
    };
    // What each of them fails for, once: expired, a wrong password, and nobody's name.
    fail(&mut world, 0);
    fail(&mut world, 1);
    fail(&mut world, 10);
    let before = page(&world);
    assert!(before.len() > 50, "{before:?}");
    for number in 0..FAILURES {
        fail(&mut world, number);
    }
    for number in 0..FAILURES / 100 {
        visit(&mut world, client, &nonce, &format!("user-{number}"));
        world.ended.clear();
        world.opened.clear();
        world.closed.clear();
        world.even_ports.clear();
    }
    assert_eq!(page(&world), before);
    assert!(world.server.is_empty());
    let failures = world.server.stats().auth_failures;
    assert!(failures.iter().sum::<u64>() >= u64::from(FAILURES));
}

#[test]
fn ten_thousand_names_leave_a_server_as_it_was() {
    const NAMES: u32 = 10_000;
    let more = format!(
        "[auth]\nsecrets = [\"{}\"]\n[log]\nlevel = \"error\"\nformat = \"json\"\n[metrics]\nper_allocation = 10\n",
        process::SECRET
    );
    // The lines that a test waits for are not errors.
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(directory, &more, &["--set", "log.level=info"], &[]);
    let secret = Secret::new(process::SECRET.to_owned());
    let mut client = process.client();
    let nonce = client.ask(&Request::allocate()).nonce();
    let mut pass = |from: u32, to: u32| {
        for number in from..to {
            let (name, password) = rest::mint(&secret, Some(&format!("u{number}")), 4_000_000_000);
            let wrong = Signer::new(&name, "wrong", &nonce);
            assert_eq!(client.ask(&Request::allocate().sign(&wrong)).code(), 401);
            if number.is_multiple_of(8) {
                let right = Signer::new(&name, &password, &nonce);
                assert_eq!(client.ask(&Request::allocate().sign(&right)).code(), 0);
                assert_eq!(client.ask(&Request::refresh(0).sign(&right)).code(), 0);
            }
        }
    };
    let metrics = || series(&process.ask("GET", "/metrics", "").1);
    pass(0, 1000);
    let (before, resident) = (metrics(), process.resident());
    pass(1000, 1000 + NAMES);
    assert_eq!(metrics(), before);
    let grown = process.resident().saturating_sub(resident);
    // A kilobyte for each name would be ten megabytes.
    assert!(grown < 4 << 20, "{grown} bytes for {NAMES} names");

    // Live ones have series of their own, and no more than the busiest ten.
    let clients: Vec<_> = (0..25)
        .map(|number| {
            let mut client = process.client_of(&format!("live-{number}"));
            client.allocate();
            client
        })
        .collect();
    let text = process.ask("GET", "/metrics", "").1;
    let own = text.lines().filter(|line| line.contains("{allocation="));
    assert_eq!(own.count(), 10 * 3 * 2);
    drop(clients);
}
