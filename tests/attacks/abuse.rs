//! What a user with credentials would relay that is no call: scans, tunnels, transfers. And what calls look like, of
//! every kind, since none of them may suffer. Virtual time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use turnix::access::Scope;
use turnix::quality::score::{Abuse, Signal, THRESHOLD};
use turnix::quality::{self, Action, Mode};
use turnix::turn::{
    AllocationId, Bandwidth, ChannelRange, Direction, DropReason, EndReason, Forward, FromPeer,
    Path, Protocol, Server as TurnServer, Settings, Snapshot,
};

use super::client::Client;
use super::common::wire::{Request, Signer, channel_data};
use super::common::world::{World, access_settings, addr, secs, seed, udp};
use super::server::{Server, until};

const CLIENT: &str = "192.0.2.7:4000";
const PEER: &str = "8.8.8.8:50001";
const CHANNEL: u16 = 0x4001;

const UP: Direction = Direction::ToPeer;
const DOWN: Direction = Direction::ToClient;

const MILLI: Duration = Duration::from_millis(1);

fn settings(abuse: Action) -> Settings {
    Settings {
        protocol: Protocol {
            channels: ChannelRange::Rfc5766,
            ..Protocol::default()
        },
        permissions_per_allocation: 65_535,
        quality: quality::Settings {
            abuse,
            ..quality::Settings::default()
        },
        ..Settings::default()
    }
}

/// Alice with an allocation, and a channel to one peer.
struct Line {
    world: World,
    alice: Signer,
    id: AllocationId,
    settings: Settings,
    /// Datagrams so far, to make them differ.
    count: u32,
    /// Payload bytes that came through, by `Direction`.
    passed: [u64; 2],
    passes: bool,
}

impl Line {
    fn under(settings: Settings) -> Self {
        let mut world = World::with(settings.clone(), &access_settings(), seed());
        world.now = world.now + secs(1);
        let (alice, id, _) = world.allocate(udp(CLIENT));
        let mut line = Self {
            world,
            alice,
            id,
            settings,
            count: 0,
            passed: [0; 2],
            passes: false,
        };
        line.bind();
        line
    }

    fn new(abuse: Action) -> Self {
        Self::under(settings(abuse))
    }

    fn bind(&mut self) {
        let bind = Request::channel_bind(CHANNEL, addr(PEER)).sign(&self.alice);
        assert_eq!(self.world.code(udp(CLIENT), &bind), 0);
    }

    /// Whether it comes through.
    fn relay(&mut self, direction: Direction, data: &[u8]) -> bool {
        let forward = match direction {
            UP => self.world.input(udp(CLIENT), &channel_data(CHANNEL, data)),
            DOWN => self.world.peer_input(self.id, addr(PEER), data),
        };
        let passes = !matches!(forward, Forward::Drop(_));
        self.passes = passes;
        if passes {
            self.passed[direction as usize] += data.len() as u64;
        }
        passes
    }

    /// What `make` makes of the number of each step, every so often, for so long.
    fn play(
        &mut self,
        lasts: Duration,
        every: Duration,
        mut make: impl FnMut(u32) -> Vec<(Direction, Vec<u8>)>,
    ) {
        let steps = (lasts.as_micros() / every.as_micros()) as u32;
        for _ in 0..steps {
            self.world.pass(every);
            self.count += 1;
            for (direction, data) in make(self.count) {
                self.relay(direction, &data);
            }
        }
    }

    /// A tunnel's bytes in `direction`: so many bits per second, for so long.
    fn transfer(&mut self, direction: Direction, bits_per_second: u64, lasts: Duration) {
        let every = Duration::from_micros(1200 * 8 * 1_000_000 / bits_per_second);
        self.play(lasts, every, |count| vec![(direction, tunnel(count, 1200))]);
    }

    fn permit(&mut self, peers: &[SocketAddr]) {
        let request = Request::create_permission(peers).sign(&self.alice);
        assert_eq!(self.world.code(udp(CLIENT), &request), 0);
    }

    /// A probe of each peer, so long apart. How many left.
    fn probe(&mut self, peers: impl Iterator<Item = SocketAddr>, every: Duration) -> usize {
        let mut left = 0;
        for peer in peers {
            self.world.pass(every);
            let forward = self
                .world
                .input(udp(CLIENT), &Request::send(peer, b"?").bytes());
            left += usize::from(matches!(forward, Forward::ToPeer { .. }));
        }
        left
    }

    fn counted(&self, signal: Signal, action: Action) -> u64 {
        self.world.server.stats().abuse[signal as usize][action as usize]
    }

    fn counted_at_all(&self) -> u64 {
        let abuse = &self.world.server.stats().abuse;
        abuse.as_flattened().iter().sum()
    }

    /// What operators see.
    fn abuse(&self) -> Abuse {
        let (views, _) = self.world.server.views(self.world.now, 0, 8);
        let view = views.iter().find(|view| view.id == self.id).unwrap();
        view.quality.as_ref().unwrap().abuse
    }

    fn throttled(&self) -> u64 {
        self.world.server.stats().throttled
    }

    fn change(&mut self, change: impl Fn(&mut quality::Settings)) {
        change(&mut self.settings.quality);
        self.world.server.set_settings(self.settings.clone());
        self.world.drain();
    }

    #[track_caller]
    fn is_clean(&self) {
        let abuse = self.abuse();
        assert_eq!(abuse, Abuse::default());
        assert_eq!(self.counted_at_all(), 0);
    }
}

/// Bytes that a cipher has made, of which no first one is rarer than another; further ones matter to nobody.
fn random(count: u32, length: usize) -> Vec<u8> {
    let mut state = u64::from(count + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = vec![0xA5; length];
    for eight in bytes[..length.min(32)].chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        eight.copy_from_slice(&state.to_be_bytes()[..eight.len()]);
    }
    bytes
}

/// WireGuard's transport data.
fn tunnel(count: u32, length: usize) -> Vec<u8> {
    let mut bytes = random(count, length);
    bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
    bytes
}

fn rtp(payload_type: u8, ssrc: u32, sequence: u32, length: usize) -> Vec<u8> {
    let mut bytes = random(sequence, length);
    bytes[0] = 0x90;
    bytes[1] = payload_type;
    bytes[2..4].copy_from_slice(&(sequence as u16).to_be_bytes());
    bytes[8..12].copy_from_slice(&ssrc.to_be_bytes());
    bytes
}

fn rtcp(ssrc: u32, count: u32) -> Vec<u8> {
    let mut bytes = random(count, 60);
    bytes[..4].copy_from_slice(&[0x80, 200, 0, 6]);
    bytes[4..8].copy_from_slice(&ssrc.to_be_bytes());
    bytes
}

fn dtls(kind: u8, length: u16) -> Vec<u8> {
    let mut bytes = random(u32::from(length), usize::from(length) + 13);
    bytes[0] = kind;
    bytes[1..3].copy_from_slice(&[0xFE, 0xFD]);
    bytes[11..13].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn check(count: u32) -> Vec<u8> {
    let mut bytes = random(count, 100);
    bytes[..8].copy_from_slice(&[0, 1, 0, 80, 0x21, 0x12, 0xA4, 0x42]);
    bytes
}

#[test]
fn a_scan_of_ports_is_noted_once_and_goes_on() {
    let mut line = Line::new(Action::Note);
    line.permit(&[addr("8.8.4.4:1")]);
    let ports = (2000..4000).map(|port| SocketAddr::new([8, 8, 4, 4].into(), port));
    let left = line.probe(ports, 50 * MILLI);
    assert_eq!(left, 2000, "it is noted, and no more");
    let seen = [Signal::SilentPeers, Signal::ManyPorts, Signal::ManyPeers];
    for signal in seen {
        assert_eq!(line.counted(signal, Action::Note), 1, "{signal:?}");
        assert!(line.abuse().signals.has(signal));
    }
    assert_eq!(line.abuse().score, 80);
    assert_eq!(line.counted_at_all(), 3);
    // It does not last for ever; that it was so is known.
    line.world.pass(secs(60));
    let abuse = line.abuse();
    assert_eq!((abuse.score, abuse.signals.is_empty()), (0, true));
    assert!(seen.iter().all(|signal| abuse.noted.has(*signal)));
}

#[test]
fn a_scan_that_takes_its_time() {
    let mut line = Line::new(Action::Note);
    line.permit(&[addr("8.8.4.4:1")]);
    let ports = (1000..1060).map(|port| SocketAddr::new([8, 8, 4, 4].into(), port));
    line.probe(ports, secs(1));
    assert!(line.abuse().score < THRESHOLD, "{:?}", line.abuse());
    let ports = (1060..1200).map(|port| SocketAddr::new([8, 8, 4, 4].into(), port));
    line.probe(ports, secs(1));
    assert_eq!(line.counted(Signal::ManyPorts, Action::Note), 1);
    assert_eq!(line.counted(Signal::ManyPeers, Action::Note), 0);
}

#[test]
fn a_sweep_of_hosts_and_one_for_a_service() {
    for (port, rate, scores) in [(50_000, 20, true), (50_000, 2, false), (53, 2, true)] {
        let mut line = Line::new(Action::Note);
        for host in 0..200_u8 {
            let peer = SocketAddr::new([9, 9, 9, host].into(), port);
            line.permit(&[peer]);
            line.probe(std::iter::once(peer), secs(1) / rate);
        }
        let abuse = line.abuse();
        assert!(abuse.signals.has(Signal::SilentPeers), "{abuse:?}");
        assert_eq!(
            abuse.score >= THRESHOLD,
            scores,
            "{port}, {rate}/s: {abuse:?}"
        );
        assert_eq!(line.counted_at_all() > 0, scores);
    }
}

/// Without a limit of new peers as well.
#[test]
fn a_scan_where_new_peers_have_no_limit() {
    let settings = Settings {
        new_peers_per_second: 0,
        ..settings(Action::Note)
    };
    let mut line = Line::under(settings);
    line.permit(&[addr("8.8.4.4:1")]);
    let ports = (1..=2000).map(|port| SocketAddr::new([8, 8, 4, 4].into(), port));
    assert_eq!(line.probe(ports, MILLI), 2000);
    assert_eq!(line.counted(Signal::ManyPorts, Action::Note), 1);
}

#[test]
fn a_transfer_is_noted_after_some_seconds_in_either_direction() {
    for direction in Direction::ALL {
        let mut line = Line::new(Action::Note);
        line.transfer(direction, 2_000_000, secs(5));
        assert_eq!(line.counted_at_all(), 0, "{direction:?}");
        line.transfer(direction, 2_000_000, secs(3));
        assert_eq!(line.counted(Signal::Bulk, Action::Note), 1);
        assert_eq!(line.counted_at_all(), 1);
        line.transfer(direction, 2_000_000, secs(15));
        for signal in [Signal::Bulk, Signal::NoPattern, Signal::OneSided] {
            assert_eq!(line.counted(signal, Action::Note), 1, "{signal:?}");
        }
        assert_eq!(line.counted_at_all(), 3, "each once");
        assert_eq!((line.abuse().score, line.abuse().throttled), (90, false));
    }
}

/// What first bytes say by chance is not enough.
#[test]
fn a_transfer_in_disguise_of_chance() {
    type Make = fn(u32) -> Vec<u8>;
    let disguises: [(&str, Make); 5] = [
        ("random", |count| random(count, 1200)),
        ("one byte all over", |count| vec![count as u8; 1200]),
        ("OpenVPN", |count| {
            let mut bytes = random(count, 1200);
            bytes[0] = 6 << 3;
            bytes
        }),
        ("QUIC", |count| {
            let mut bytes = random(count, 1200);
            bytes[0] = 0x40 | bytes[0] & 0x3F;
            bytes
        }),
        ("zeros", |_| vec![0; 1200]),
    ];
    for (name, make) in disguises {
        let mut line = Line::new(Action::Note);
        line.play(secs(9), 4 * MILLI, |count| vec![(UP, make(count))]);
        assert_eq!(line.counted(Signal::Bulk, Action::Note), 1, "{name}");
    }
}

#[test]
fn who_is_throttled_gets_so_much_until_it_has_been_calm() {
    let mut line = Line::new(Action::Throttle);
    line.transfer(UP, 4_000_000, secs(8));
    assert_eq!(line.counted(Signal::Bulk, Action::Throttle), 1);
    assert_eq!(line.throttled(), 1);
    assert!(line.abuse().throttled);
    // It tries on, and for minutes gets what is left to it.
    for _ in 0..3 {
        line.passed = [0; 2];
        line.transfer(UP, 2_000_000, secs(40));
        let rate = line.passed[UP as usize] * 8 / 40;
        assert!((240_000..275_000).contains(&rate), "{rate}");
        assert_eq!(line.throttled(), 1);
    }
    // In the other direction just as much.
    line.passed = [0; 2];
    line.transfer(DOWN, 2_000_000, secs(30));
    let rate = line.passed[DOWN as usize] * 8 / 30;
    assert!((240_000..285_000).contains(&rate), "{rate}");
    let stats = line.world.server.stats();
    assert!(stats.dropped[DropReason::Abuse as usize] > 5_000);
    assert_eq!(stats.dropped[DropReason::BandwidthAllocation as usize], 0);
    assert_eq!(line.counted(Signal::Bulk, Action::Throttle), 1, "told once");
    // A game, for a while; then the limit is gone.
    line.bind();
    line.play(secs(50), 50 * MILLI, |count| vec![(UP, tunnel(count, 80))]);
    assert_eq!(line.throttled(), 1);
    line.play(secs(40), 50 * MILLI, |count| vec![(UP, tunnel(count, 80))]);
    assert_eq!(line.throttled(), 0);
    assert!(!line.abuse().throttled);
    line.passed = [0; 2];
    line.transfer(UP, 2_000_000, secs(4));
    assert!(line.passed[UP as usize] * 8 / 4 > 1_990_000);
    // And again.
    line.transfer(UP, 2_000_000, secs(4));
    assert_eq!(line.throttled(), 1);
    assert_eq!(line.counted(Signal::Bulk, Action::Throttle), 2);
    line.world
        .server
        .end_allocation(line.world.now, line.id, EndReason::Administrative);
    assert_eq!(line.throttled(), 0);
}

/// A limit of the server that is lower holds, and is gone back to.
#[test]
fn a_lower_limit_than_that_of_abuse_holds() {
    let bandwidth = Bandwidth {
        per_allocation: 100_000,
        ..Bandwidth::default()
    };
    let mut settings = settings(Action::Throttle);
    settings.bandwidth = bandwidth;
    settings.quality.abuse_bits_per_second = 2_000_000;
    let mut line = Line::under(settings);
    line.change(|quality| quality.abuse_bits_per_second = 200_000);
    line.transfer(UP, 2_000_000, secs(20));
    assert_eq!(line.counted_at_all(), 0, "a tenth of a transfer passes");
    line.world
        .server
        .set_bandwidth(line.world.now, Bandwidth::default());
    line.transfer(UP, 2_000_000, secs(20));
    assert_eq!(line.throttled(), 1);
    for (per_allocation, least, most) in [(100_000, 90_000, 110_000), (0, 190_000, 215_000)] {
        let bandwidth = Bandwidth {
            per_allocation,
            ..Bandwidth::default()
        };
        line.world.server.set_bandwidth(line.world.now, bandwidth);
        line.passed = [0; 2];
        line.transfer(UP, 2_000_000, secs(20));
        let rate = line.passed[UP as usize] * 8 / 20;
        assert!((least..most).contains(&rate), "{per_allocation}: {rate}");
        assert_eq!(line.throttled(), 1);
    }
}

#[test]
fn what_ends_is_over_at_once() {
    let mut line = Line::new(Action::End);
    line.transfer(UP, 4_000_000, secs(6));
    assert!(line.world.ended.is_empty());
    // Timers come late: what comes before them goes nowhere all the same.
    let mut passes = true;
    for count in 0..2000 {
        line.world.pass_unnoticed(3 * MILLI);
        let before = passes;
        passes = line.relay(UP, &tunnel(count, 1200));
        assert!(before || !passes, "once it is over it is over");
    }
    assert!(!passes && line.world.ended.is_empty());
    assert!(!line.relay(DOWN, b"!"));
    assert!(line.world.server.stats().dropped[DropReason::Abuse as usize] == 1);
    line.world.timeout();
    let ended: Vec<_> = line.world.ended.iter().map(|ended| ended.reason).collect();
    assert_eq!(ended, [EndReason::Abuse]);
    assert_eq!(ended[0].label(), "abuse");
    assert_eq!(line.counted(Signal::Bulk, Action::End), 1);
    let abuse = line.world.ended[0].view.quality.as_ref().unwrap().abuse;
    assert!(abuse.score >= THRESHOLD, "records tell why: {abuse:?}");
    // Whoever comes again begins anew.
    let (alice, id, _) = line.world.allocate(udp(CLIENT));
    (line.alice, line.id) = (alice, id);
    line.bind();
    assert!(line.relay(UP, b"!"));
    line.is_clean_but_for(1);
}

impl Line {
    #[track_caller]
    fn is_clean_but_for(&self, counted: u64) {
        assert_eq!(self.abuse(), Abuse::default());
        assert_eq!(self.counted_at_all(), counted);
    }
}

#[test]
fn a_reload_takes_effect_on_what_lives() {
    let mut line = Line::new(Action::Off);
    line.transfer(UP, 2_000_000, secs(20));
    line.is_clean();
    line.change(|quality| quality.abuse = Action::Note);
    line.transfer(UP, 2_000_000, secs(2));
    assert_eq!(line.counted(Signal::Bulk, Action::Note), 1);
    line.change(|quality| quality.abuse = Action::Throttle);
    line.transfer(UP, 2_000_000, secs(2));
    assert_eq!(line.throttled(), 1);
    assert_eq!(line.counted(Signal::Bulk, Action::Throttle), 1);
    line.change(|quality| quality.abuse_bits_per_second = 500_000);
    line.passed = [0; 2];
    line.transfer(UP, 2_000_000, secs(20));
    let rate = line.passed[UP as usize] * 8 / 20;
    assert!((480_000..530_000).contains(&rate), "{rate}");
    // Whoever does not look does not throttle either.
    for mode in [Mode::Off, Mode::Sampled] {
        line.change(|quality| quality.mode = mode);
        assert_eq!(line.throttled(), 0);
        line.bind();
        line.transfer(UP, 2_000_000, secs(10));
        assert_eq!(line.throttled(), u64::from(mode != Mode::Off));
    }
    line.change(|quality| quality.abuse = Action::Note);
    assert_eq!(line.throttled(), 0);
    line.change(|quality| quality.abuse = Action::End);
    line.transfer(UP, 2_000_000, secs(2));
    assert_eq!(line.world.ended[0].reason, EndReason::Abuse);
}

#[test]
fn another_process_goes_on_with_what_is_known() {
    let mut line = Line::new(Action::Throttle);
    line.transfer(UP, 2_000_000, secs(20));
    let (before, counted) = (line.abuse(), line.counted_at_all());
    assert!(before.throttled && counted > 0);
    line.hand_over();
    assert_eq!((line.abuse(), line.throttled()), (before, 1));
    line.bind();
    line.passed = [0; 2];
    line.transfer(UP, 2_000_000, secs(20));
    let rate = line.passed[UP as usize] * 8 / 20;
    assert!((240_000..285_000).contains(&rate), "{rate}");
    assert_eq!(line.counted_at_all(), counted, "told once");
    // One that throttles nobody lifts it.
    line.settings.quality.abuse = Action::Note;
    line.hand_over();
    assert_eq!(line.throttled(), 0);
    line.passed = [0; 2];
    line.transfer(UP, 2_000_000, secs(4));
    assert!(line.passed[UP as usize] * 8 / 4 > 1_990_000);
}

impl Line {
    fn hand_over(&mut self) {
        let now = self.world.now;
        let snapshot = self.world.server.snapshot(now, |_| true);
        let snapshot = Snapshot::decode(&snapshot.encode()).unwrap();
        let access = Arc::clone(&self.world.access);
        let settings = self.settings.clone();
        self.world.server = TurnServer::restore(now, settings, seed().families, access, snapshot);
    }
}

/// Two allocations of this server that a tunnel leads through: both are ends of it.
#[test]
fn a_tunnel_in_memory_has_two_ends() {
    let mut line = Line::new(Action::Note);
    let bob = udp("192.0.2.8:4000");
    let (signer, other, relayed) = line.world.allocate(bob);
    let own = line.world.server.views(line.world.now, 0, 8).0[0].relayed;
    let permit = Request::create_permission(&[own]).sign(&signer);
    assert_eq!(line.world.code(bob, &permit), 0);
    line.permit(&[relayed]);
    for count in 0..2000 {
        line.world.pass(4 * MILLI);
        let send = Request::send(relayed, &tunnel(count, 1200)).bytes();
        let Forward::ToPeer { payload, .. } = line.world.input(udp(CLIENT), &send) else {
            panic!("it is relayed");
        };
        let from = FromPeer {
            peer: own,
            path: Path::Hairpin,
            scope: Scope::Policy,
        };
        let data = &send[usize::from(payload.start)..usize::from(payload.end)];
        let now = line.world.now;
        let forward = (line.world.server).handle_peer_input(now, other, from, data);
        assert!(matches!(forward, Forward::ToClient { .. }));
    }
    assert_eq!(line.counted(Signal::Bulk, Action::Note), 2);
}

fn both(data: Vec<u8>) -> Vec<(Direction, Vec<u8>)> {
    vec![(UP, data.clone()), (DOWN, data)]
}

#[test]
fn calls_of_every_kind_are_calls() {
    type Make = Box<dyn FnMut(u32) -> Vec<(Direction, Vec<u8>)>>;
    let calls: Vec<(&str, Duration, Make)> = vec![
        (
            "Opus over SRTP without ICE, one side talking, then both silent (DTX)",
            20 * MILLI,
            Box::new(|count| match count {
                0..1000 => vec![(UP, rtp(111, 7, count, 120))],
                _ if count % 20 == 0 => vec![(UP, rtp(111, 7, count / 20, 40))],
                _ => Vec::new(),
            }),
        ),
        (
            "video of three layers with retransmissions and sound, 4 Mbit/s",
            2 * MILLI,
            Box::new(|count| {
                let (ssrc, kind) = match count % 10 {
                    0 => (1, 111),
                    1 => (2, 97),
                    2 | 3 => (3, 96),
                    4..=6 => (4, 96),
                    _ => (5, 96),
                };
                vec![(UP, rtp(kind, ssrc, count / 10 * 4 + count % 10, 1000))]
            }),
        ),
        (
            "a screen at 5 Mbit/s, one way, with reports",
            2 * MILLI,
            Box::new(|count| match count % 500 {
                0 => vec![(DOWN, rtcp(9, count))],
                _ => vec![(UP, rtp(98, 9, count, 1250))],
            }),
        ),
        (
            "a file over a data channel, DTLS 1.2, 10 Mbit/s",
            MILLI,
            Box::new(|count| match count % 10 {
                0 => vec![(DOWN, dtls(23, 60))],
                _ => vec![(UP, dtls(23, 1200))],
            }),
        ),
        (
            "the same with DTLS 1.3, whose records tell no length",
            MILLI,
            Box::new(|count| {
                let mut record = random(count, 1200);
                record[0] = 0x2B;
                match count {
                    1..5 => both(dtls(22, 200)),
                    _ if count % 5000 == 0 => vec![(UP, check(count))],
                    _ => vec![(UP, record)],
                }
            }),
        ),
        (
            "media of its own kind behind ICE, 2 Mbit/s",
            4 * MILLI,
            Box::new(|count| match count % 1000 {
                1 => both(check(count)),
                _ => vec![(UP, tunnel(count, 1000))],
            }),
        ),
        (
            "music on hold, no answer",
            20 * MILLI,
            Box::new(|count| vec![(DOWN, rtp(0, 5, count, 172))]),
        ),
    ];
    for (name, every, mut make) in calls {
        let mut line = Line::new(Action::End);
        line.play(
            secs(if every < 3 * MILLI { 15 } else { 60 }),
            every,
            &mut make,
        );
        assert!(line.passes, "{name}");
        assert_eq!(line.abuse(), Abuse::default(), "{name}");
        assert_eq!(line.counted_at_all(), 0, "{name}");
    }
}

/// They look like no call, and weigh too little.
#[test]
fn games_and_other_protocols_are_left_alone() {
    type Make = fn(u32) -> Vec<(Direction, Vec<u8>)>;
    let others: [(&str, u64, Make, u8); 4] = [
        (
            "a game",
            16,
            |count| vec![(UP, tunnel(count, 80)), (DOWN, tunnel(count, 300))],
            20,
        ),
        ("fax (T.38)", 20, |count| vec![(UP, tunnel(count, 60))], 20),
        (
            "keepalives",
            15_000,
            |count| vec![(UP, tunnel(count, 32)), (DOWN, tunnel(count, 32))],
            0,
        ),
        (
            "a stream of 900 kbit/s that nobody knows",
            10,
            |count| vec![(DOWN, tunnel(count, 1100))],
            40,
        ),
    ];
    for (name, millis, make, score) in others {
        let mut line = Line::new(Action::End);
        line.play(secs(60), Duration::from_millis(millis), make);
        assert!(line.passes, "{name}");
        assert_eq!(line.abuse().score, score, "{name}: {:?}", line.abuse());
        assert_eq!(line.counted_at_all(), 0, "{name}");
    }
}

/// What `turnutils_uclient` does unless it is told otherwise: five messages, or some more, 20 ms apart.
#[test]
fn a_short_test_of_the_server_is_none() {
    let mut line = Line::new(Action::End);
    line.play(secs(8), 20 * MILLI, |count| {
        vec![(UP, tunnel(count, 120)), (DOWN, tunnel(count, 120))]
    });
    line.is_clean();
}

/// Candidates of a big conference, most of which never answer, and ICE that starts again each minute.
#[test]
fn candidates_are_no_scan() {
    let mut line = Line::new(Action::End);
    for minute in 0..4_u16 {
        line.bind();
        let hosts: Vec<SocketAddr> = (0..8).map(|at| ([8, 8, 1, at], 9).into()).collect();
        line.permit(&hosts);
        let candidates: Vec<SocketAddr> = (0..40)
            .map(|at| ([8, 8, 1, at as u8 % 8], 10_000 + minute * 100 + at).into())
            .collect();
        for round in 0..60 {
            for peer in &candidates {
                let send = Request::send(*peer, &check(round)).bytes();
                let forward = line.world.input(udp(CLIENT), &send);
                assert!(matches!(forward, Forward::ToPeer { .. }));
            }
            line.world.pass(secs(1));
            let answer = line.world.peer_input(line.id, candidates[3], &check(round));
            assert!(matches!(answer, Forward::ToClient { .. }));
        }
    }
    assert!(line.abuse().score < THRESHOLD, "{:?}", line.abuse());
    assert_eq!(line.counted_at_all(), 0);
}

/// A gateway that talks to one peer after the other behind one NAT, in a protocol of its own.
#[test]
fn peers_who_answer_make_no_scan() {
    let mut line = Line::new(Action::End);
    line.permit(&[addr("8.8.4.4:1")]);
    for port in 1000..3000 {
        line.world.pass(25 * MILLI);
        let peer = SocketAddr::new([8, 8, 4, 4].into(), port);
        let forward = line
            .world
            .input(udp(CLIENT), &Request::send(peer, &tunnel(1, 80)).bytes());
        assert!(matches!(forward, Forward::ToPeer { .. }));
        let answer = line.world.peer_input(line.id, peer, &tunnel(2, 80));
        assert!(matches!(answer, Forward::ToClient { .. }));
    }
    assert_eq!(line.counted_at_all(), 0);
    assert!(line.abuse().score < THRESHOLD, "{:?}", line.abuse());
}

/// The real server: a scan ends its allocation, its client hears of it with the next request, and metrics, API and log
/// have it.
#[test]
fn a_server_ends_a_scan() {
    let server = Server::with(&["127.0.0.1:0"], &["quality.abuse=end"]);
    let mut client = Client::udp(&server);
    client.allocate();
    let quiet: Vec<_> = (0..120)
        .map(|_| super::server::peer(std::net::Ipv4Addr::LOCALHOST))
        .collect();
    let addresses: Vec<_> = quiet
        .iter()
        .map(|peer| peer.local_addr().unwrap())
        .collect();
    client.permit(addresses[0]);
    for address in &addresses {
        client.send_indication(*address, b"?");
    }
    until("the allocation is over", || {
        client.send_indication(addresses[0], b"?");
        server.live() == 0
    });
    let stats = server.snapshot().stats;
    assert_eq!(
        stats.abuse[Signal::SilentPeers as usize][Action::End as usize],
        1
    );
    assert_eq!(client.code_of(Request::refresh(600)), 437);
}
