//! What a user with credentials would try with one allocation: scans, floods of permissions and channels. Virtual time.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use turnix::turn::{AllocationId, ChannelRange, DropReason, Forward, Protocol, Settings};

use super::common::wire::{Request, Signer};
use super::common::world::{World, access_settings, addr, seed, udp};

const CLIENT: &str = "192.0.2.7:4000";

/// The default rate, and what may come at once.
const PER_SECOND: usize = 50;
const AT_ONCE: usize = 8 * PER_SECOND;

/// Alice with an allocation that may hold as much as the protocol has.
fn roomy() -> (World, Signer, AllocationId) {
    let settings = Settings {
        protocol: Protocol {
            channels: ChannelRange::Rfc5766,
            ..Protocol::default()
        },
        permissions_per_allocation: 65_535,
        channels_per_allocation: 16_383,
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let (alice, id, _) = world.allocate(udp(CLIENT));
    (world, alice, id)
}

/// A public host.
fn host(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0808_0000 + number as u32)
}

fn permit(world: &mut World, alice: &Signer, peers: &[SocketAddr]) -> u16 {
    let request = Request::create_permission(peers).sign(alice);
    world.code(udp(CLIENT), &request)
}

fn send(world: &mut World, peer: SocketAddr) -> bool {
    match world.input(udp(CLIENT), &Request::send(peer, b"?").bytes()) {
        Forward::ToPeer { .. } => true,
        Forward::Drop(DropReason::NewPeers) => false,
        other => panic!("{other:?}"),
    }
}

fn about(reached: usize, most: usize) {
    assert!(reached >= most * 9 / 10, "{reached} of {most}");
    assert!(reached <= most + 1, "{reached} of {most}");
}

#[test]
fn a_scan_of_ports_through_one_permission_is_slowed_down_and_seen() {
    let (mut world, alice, _) = roomy();
    assert_eq!(permit(&mut world, &alice, &[addr("8.8.8.8:1")]), 0);
    // Every port of a host within seven seconds.
    let ports = 2..=u16::MAX;
    let reached = ports.filter(|port| {
        world.pass(Duration::from_micros(100));
        send(&mut world, SocketAddr::new([8, 8, 8, 8].into(), *port))
    });
    let reached = reached.count();
    about(reached, AT_ONCE + PER_SECOND * 6553 / 1000);
    let stats = world.server.stats();
    let refused = usize::from(u16::MAX) - 1 - reached;
    assert_eq!(stats.dropped[DropReason::NewPeers as usize], refused as u64);
    assert_eq!(stats.new_peers_refused, refused as u64);
    assert_eq!(stats.scan_suspects, 1, "counted once");
}

#[test]
fn ten_thousand_peers_a_second_on_many_hosts() {
    let (mut world, alice, _) = roomy();
    let hosts: Vec<_> = (0..100).map(|at| (host(at), 1).into()).collect();
    assert_eq!(permit(&mut world, &alice, &hosts), 0);
    let reached = (0..50_000).filter(|number| {
        world.pass(Duration::from_micros(100));
        let port = 1000 + number / 100;
        send(&mut world, (host(number % 100), port as u16).into())
    });
    about(reached.count(), AT_ONCE - 100 + 5 * PER_SECOND);
}

#[test]
fn a_sweep_of_hosts_by_permissions() {
    let (mut world, alice, _) = roomy();
    let (mut codes, mut last) = ([0; 2], host(0));
    for number in 0..4000 {
        world.pass(Duration::from_millis(2));
        match permit(&mut world, &alice, &[(host(number), 80).into()]) {
            0 => (codes[0], last) = (codes[0] + 1, host(number)),
            508 => codes[1] += 1,
            other => panic!("{other}"),
        }
    }
    about(codes[0], AT_ONCE + 8 * PER_SECOND);
    assert_eq!(world.server.stats().new_peers_refused, codes[1] as u64);
    // The first datagram to where a permission was asked for is no other peer.
    assert!(send(&mut world, (last, 80).into()));
    assert!(!send(&mut world, (last, 81).into()));
}

#[test]
fn a_hundred_thousand_permissions_in_requests_of_many() {
    let mut world = World::new();
    let (alice, _, _) = world.allocate(udp(CLIENT));
    let mut permitted = 0;
    for batch in 0..2500 {
        let peers: Vec<_> = (0..40)
            .map(|at| (host(batch * 40 + at), 80).into())
            .collect();
        match permit(&mut world, &alice, &peers) {
            0 => permitted += 40,
            508 => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(permitted, 120, "the table holds 128");
    let (views, _) = world.server.views(world.now, 0, 1);
    assert_eq!(views[0].permissions, 120);
}

#[test]
fn refreshing_the_same_permissions_takes_nothing() {
    let (mut world, alice, _) = roomy();
    let peers: Vec<_> = (0..100).map(|at| (host(at), 80).into()).collect();
    for _ in 0..1000 {
        assert_eq!(permit(&mut world, &alice, &peers), 0);
    }
    // Naming other ports in them makes nobody known.
    for port in 1000..2000 {
        assert_eq!(permit(&mut world, &alice, &[(host(0), port).into()]), 0);
    }
    let ports = (1000..2000).filter(|port| send(&mut world, (host(0), *port).into()));
    about(ports.count(), AT_ONCE - 100);
}

#[test]
fn every_channel_there_is() {
    let (mut world, alice, _) = roomy();
    let mut bound = 0;
    for number in 0..0x3FFF {
        world.pass(Duration::from_millis(1));
        let peer = (host(usize::from(number) / 64), 1000 + number % 64).into();
        let bind = Request::channel_bind(0x4000 + number, peer).sign(&alice);
        match world.code(udp(CLIENT), &bind) {
            0 => bound += 1,
            508 => {}
            other => panic!("{other}"),
        }
    }
    about(bound, AT_ONCE + PER_SECOND * 16_383 / 1000);
    assert_eq!(
        world.server.stats().scan_suspects,
        0,
        "bound peers are not silent ones"
    );
}

#[test]
fn no_limit_is_none() {
    let settings = Settings {
        new_peers_per_second: 0,
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let (alice, _, _) = world.allocate(udp(CLIENT));
    assert_eq!(permit(&mut world, &alice, &[addr("8.8.8.8:1")]), 0);
    assert!((1..=u16::MAX).all(|port| send(&mut world, ([8, 8, 8, 8], port).into())));
}

/// Forty candidates on eight hosts, each pinged every 50 ms for minutes, most of them without an answer; every minute ICE
/// starts again with other ports.
#[test]
fn a_call_with_many_candidates_loses_nothing() {
    let (mut world, alice, id) = roomy();
    let hosts: Vec<_> = (0..8).map(|at| (host(at), 9).into()).collect();
    for minute in 0..5 {
        assert_eq!(permit(&mut world, &alice, &hosts), 0);
        let candidates: Vec<SocketAddr> = (0..40)
            .map(|at| (host(at % 8), 10_000 + minute * 100 + at as u16).into())
            .collect();
        let pings: Vec<_> = (candidates.iter())
            .map(|peer| Request::send(*peer, &[7; 100]).bytes())
            .collect();
        for round in 0..1200 {
            world.pass(Duration::from_millis(50));
            for ping in &pings {
                let forward = world.input(udp(CLIENT), ping);
                assert!(
                    matches!(forward, Forward::ToPeer { .. }),
                    "{minute}, {round}"
                );
            }
            let answer = world.peer_input(id, candidates[3], &[7; 100]);
            assert!(matches!(answer, Forward::ToClient { .. }));
        }
    }
    assert_eq!(world.server.stats().new_peers_refused, 0);
    assert_eq!(world.server.stats().scan_suspects, 0);
}

/// A gateway that talks to one peer after the other is no scanner.
#[test]
fn peers_who_answer_are_not_suspect() {
    let (mut world, alice, id) = roomy();
    assert_eq!(permit(&mut world, &alice, &[addr("8.8.8.8:1")]), 0);
    for port in 1000..3000 {
        world.pass(Duration::from_millis(25));
        let peer = SocketAddr::new([8, 8, 8, 8].into(), port);
        assert!(send(&mut world, peer));
        let answer = world.peer_input(id, peer, b"!");
        assert!(matches!(answer, Forward::ToClient { .. }));
    }
    assert_eq!(world.server.stats().scan_suspects, 0);
}
