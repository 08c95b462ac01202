//! Snapshots beside the law that they keep: what is refused, what is not taken over, what goes along.

use std::sync::Arc;
use std::time::Duration;

use turnix::access::{Access, Scope, Settings as AccessSettings, Visit, rest};
use turnix::base::{Secret, Transport};
use turnix::turn::{
    DropReason, Forward, FromPeer, Path, Server, Settings, Snapshot, SnapshotError,
};

use crate::common::wire::{Request, Signer, channel_data};
use crate::common::world::{self, World, addr, secs, tcp, udp};

const PEER: &str = "203.0.113.9:5000";
const OTHER: &str = "198.51.100.77:5000";

/// The world with its server handed over to one with `access`, `later`.
fn handed_over(world: &mut World, access: &AccessSettings, later: Duration) {
    let bytes = world.server.snapshot(world.now, |_| true).encode();
    let snapshot = Snapshot::decode(&bytes).expect("what was encoded");
    world.now = world.now + later;
    let access = Arc::new(Access::new(access, world::own_addresses()));
    let families = world::seed().families;
    world.server = Server::restore(world.now, Settings::default(), families, access, snapshot);
}

fn open_to_documentation() -> AccessSettings {
    let mut access = world::access_settings();
    access.peers.allow = vec!["documentation".parse().unwrap()];
    access
}

fn world_with_a_channel() -> World {
    let mut world = World::with(Settings::default(), &open_to_documentation(), world::seed());
    let client = udp("192.0.2.7:4000");
    let (alice, ..) = world.allocate(client);
    for (number, peer) in [(0x4000, PEER), (0x4001, OTHER)] {
        let request = Request::channel_bind(number, addr(peer)).sign(&alice);
        assert_eq!(world.code(client, &request), 0);
    }
    world
}

fn passes(world: &mut World, channel: u16) -> bool {
    let data = channel_data(channel, b"data");
    let forward = world.input(udp("192.0.2.7:4000"), &data);
    matches!(forward, Forward::ToPeer { .. })
}

#[test]
fn anything_else_is_refused() {
    let world = World::new();
    let bytes = world.server.snapshot(world.now, |_| true).encode();
    assert!(Snapshot::decode(&bytes).is_ok());
    for length in 0..bytes.len() {
        let cut = Snapshot::decode(&bytes[..length]);
        assert!(matches!(cut, Err(SnapshotError::Malformed(_))), "{length}");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(Snapshot::decode(&longer).is_err());
    let mut later = bytes.to_vec();
    later[7] += 1;
    let refused = Snapshot::decode(&later).expect_err("a later format");
    assert!(matches!(refused, SnapshotError::Format(2)), "{refused}");
    assert!(refused.to_string().contains("of format 2"), "{refused}");
    for at in 16..bytes.len() {
        // Whatever it becomes, nothing panics.
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 0xFF;
        if let Ok(snapshot) = Snapshot::decode(&damaged) {
            let families = world::seed().families;
            let access = Arc::clone(&world.access);
            Server::restore(world.now, Settings::default(), families, access, snapshot);
        }
    }
}

#[test]
fn nothing_secret_is_printed() {
    let mut world = World::new();
    world.allocate(udp("192.0.2.7:4000"));
    let snapshot = world.server.snapshot(world.now, |_| true);
    assert_eq!(format!("{snapshot:?}"), "Snapshot { allocations: 1, .. }");
}

#[test]
fn what_the_new_policy_refuses_is_not_taken_over() {
    let mut world = world_with_a_channel();
    let mut access = open_to_documentation();
    handed_over(&mut world, &access, Duration::ZERO);
    assert!(passes(&mut world, 0x4000) && passes(&mut world, 0x4001));
    access.peers.allow = vec!["198.51.100.0/24".parse().unwrap()];
    handed_over(&mut world, &access, Duration::ZERO);
    assert!(!passes(&mut world, 0x4000));
    assert!(passes(&mut world, 0x4001));
    let denied: u64 = world.server.stats().peer_denied.iter().sum();
    assert_eq!(denied, 2, "a channel and a permission");
}

/// A visitor of the test page stays one, in a process that signs for visits with another secret.
#[test]
fn a_visit_goes_no_further_in_another_process() {
    const VISITOR: &str = "turnix-test:0123456789abcdef";
    let mut world = World::with(Settings::default(), &open_to_documentation(), world::seed());
    let client = udp("192.0.2.7:4000");
    let secret = Secret::new(world::VISITS.to_owned());
    let expires = world::EPOCH.as_secs() + 300;
    let (username, password) = rest::mint(&secret, Some(VISITOR), expires);
    let visitor = Signer::new(&username, &password, &world.nonce(client));
    let reply = world.ask(client, &Request::allocate().sign(&visitor));
    assert_eq!((reply.code(), reply.lifetime()), (0, 300));
    let (id, relayed) = (*world.opened.last().unwrap(), reply.relayed());
    let bind = Request::channel_bind(0x4000, relayed).sign(&visitor);
    assert_eq!(world.code(client, &bind), 0);

    let mut access = open_to_documentation();
    access.visits = Some(Secret::new("another".to_owned()));
    handed_over(&mut world, &access, Duration::ZERO);
    assert_eq!(world.server.len(), 1);
    assert!(passes(&mut world, 0x4000), "its own loop");
    let mut comes = |path, scope| {
        let from = FromPeer {
            peer: relayed,
            path,
            scope,
        };
        let forward = world.server.handle_peer_input(world.now, id, from, b"in");
        matches!(forward, Forward::ToClient { .. })
    };
    let visit_at = |ip: &str| Scope::Loop(Visit::of(VISITOR).at(ip.parse().unwrap()));
    assert!(comes(Path::Hairpin, visit_at("192.0.2.7")));
    assert!(
        !comes(Path::Hairpin, visit_at("198.51.100.9")),
        "whom it told"
    );
    assert!(!comes(Path::Hairpin, Scope::Policy));
    assert!(!comes(Path::Kernel, Scope::Policy));
    for peer in [PEER, OTHER] {
        let permit = Request::create_permission(&[addr(peer)]).sign(&visitor);
        assert_eq!(world.code(client, &permit), 403, "allowed to others");
    }
    // What was signed there begins nothing here, and what began ends with its credentials.
    let elsewhere = udp("192.0.2.7:4001");
    let again = Signer::new(&username, &password, &world.nonce(elsewhere));
    assert_eq!(
        world.code(elsewhere, &Request::allocate().sign(&again)),
        401
    );
    let reply = world.ask(client, &Request::refresh(3600).sign(&visitor));
    assert_eq!((reply.code(), reply.lifetime()), (0, 300));
    world.pass(secs(300));
    assert_eq!(world.server.len(), 0);
}

#[test]
fn users_who_are_gone_are_not_taken_over() {
    let mut access = open_to_documentation();
    let mut world = world_with_a_channel();
    access.realm = "example.net".into();
    handed_over(&mut world, &access, Duration::ZERO);
    assert_eq!(world.server.len(), 1, "another realm ends nothing");
    let mut world = world_with_a_channel();
    access = open_to_documentation();
    for (user, password) in &mut access.users {
        if user == world::USER {
            *password = Secret::new("another".to_owned());
        }
    }
    handed_over(&mut world, &access, Duration::ZERO);
    assert_eq!(world.server.len(), 0);
    assert!(!passes(&mut world, 0x4001));
    let mut world = world_with_a_channel();
    access.users.retain(|(user, _)| user != world::USER);
    handed_over(&mut world, &access, Duration::ZERO);
    assert_eq!(world.server.len(), 0);
}

#[test]
fn the_time_in_between_counts() {
    let mut world = world_with_a_channel();
    handed_over(&mut world, &open_to_documentation(), secs(599));
    assert!(passes(&mut world, 0x4000));
    handed_over(&mut world, &open_to_documentation(), secs(1));
    assert!(!passes(&mut world, 0x4000));
    world.timeout();
    assert_eq!(world.ended.len(), 1);
    assert_eq!(world.ended[0].duration, secs(600));
}

#[test]
fn strangers_do_not_start_over() {
    let mut world = World::new();
    let stranger = udp("192.0.2.7:4000");
    let ask = Request::binding().bytes();
    while world.input(stranger, &ask) == Forward::Consumed {}
    handed_over(&mut world, &world::access_settings(), Duration::ZERO);
    assert_eq!(
        world.input(stranger, &ask),
        Forward::Drop(DropReason::RateLimited)
    );
    assert_eq!(
        world.input(udp("203.0.113.1:4000"), &ask),
        Forward::Consumed
    );
}

#[test]
fn ids_of_those_who_stay_are_given_to_nobody() {
    let mut world = World::new();
    let (_, stays, _) = world.allocate(tcp("192.0.2.9:4000"));
    let (_, moves, _) = world.allocate(udp("192.0.2.7:4000"));
    let now = world.now;
    let snapshot = world
        .server
        .snapshot(now, |transport| transport == Transport::Udp);
    let left = world.server.leave(|transport| transport == Transport::Udp);
    assert_eq!(left, [moves]);
    assert_eq!(world.server.len(), 1);
    assert_eq!(world.server.poll_output(), None);
    assert_eq!(
        world.server.stats().live.as_flattened().iter().sum::<u64>(),
        1
    );

    let families = world::seed().families;
    let access = Arc::clone(&world.access);
    world.server = Server::restore(now, Settings::default(), families, access, snapshot);
    assert_eq!(world.server.len(), 1);
    let (_, newcomer, _) = world.allocate(udp("192.0.2.8:4000"));
    assert_eq!(newcomer.slot, stays.slot);
    assert_ne!(newcomer, stays);
}
