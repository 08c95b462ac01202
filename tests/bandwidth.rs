//! Limits of bandwidth, in virtual time: exact, smooth, shared by shards, and fit for an encoder that adapts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use turnix::base::{FiveTuple, Now};
use turnix::turn::police::{Budget, Grant, Limit, Rate};
use turnix::turn::{
    AllocationId, Bandwidth, Direction, DropReason, Forward, PurseId, Settings, Settlement,
};

use crate::common::wire::{Request, Signer, channel_data};
use crate::common::world::{World, access_settings, addr, secs, seed, udp};

#[path = "common/mod.rs"]
mod common;

const PEER: &str = "8.8.8.8:5000";
const CHANNEL: u16 = 0x4001;

const KBIT: u64 = 1000;
const MBIT: u64 = 1_000_000;

/// A time step of the tests.
const STEP: Duration = Duration::from_micros(500);

/// The budgets that shards share, as the shard layer keeps them.
struct Bank {
    bandwidth: Bandwidth,
    start: Now,
    shards: u32,
    total: Option<Budget>,
    users: HashMap<Arc<str>, (Budget, u32)>,
    open: HashSet<(usize, PurseId)>,
    settlements: u64,
}

impl Bank {
    fn settle(&mut self, shard: usize, world: &mut World) {
        let now = world.now;
        let at = now.mono.duration_since(self.start.mono).as_nanos() as u64;
        while let Some(due) = world.server.poll_purse() {
            self.settlements += 1;
            let Settlement {
                purse,
                user,
                spent,
                closed,
            } = due;
            let grants = match (user, Rate::of(self.bandwidth.per_user)) {
                (None, _) => match Rate::of(self.bandwidth.total) {
                    Some(rate) => {
                        let total = self.total.get_or_insert_with(|| Budget::full(rate, at));
                        total.settle(rate, at, self.shards, spent)
                    }
                    None => [Grant::UNLIMITED; 2],
                },
                (Some(user), Some(rate)) => {
                    let budget = || (Budget::full(rate, at), 0);
                    let (budget, holders) = self.users.entry(user).or_insert_with(budget);
                    *holders += u32::from(self.open.insert((shard, purse)));
                    let grants = budget.settle(rate, at, *holders, spent);
                    if closed {
                        *holders -= 1;
                        self.open.remove(&(shard, purse));
                    }
                    grants
                }
                (Some(_), None) => [Grant::UNLIMITED; 2],
            };
            if !closed {
                world.server.fund(now, purse, grants);
            }
        }
    }
}

struct Client {
    shard: usize,
    from: FiveTuple,
    id: AllocationId,
    signer: Signer,
    passed: u64,
    sent: u64,
}

/// Some shards and their clients.
struct Site {
    worlds: Vec<World>,
    bank: Bank,
    clients: Vec<Client>,
}

impl Site {
    /// With a client for each shard and user named in `clients`.
    fn new(bandwidth: Bandwidth, clients: &[(usize, &str)]) -> Self {
        let shards = clients.iter().map(|(shard, _)| shard + 1).max().unwrap();
        let settings = Settings {
            bandwidth,
            max_lifetime: secs(86_400),
            ..Settings::default()
        };
        let start = World::new().now;
        let worlds = (0..shards)
            .map(|_| {
                let mut world = World::with(settings.clone(), &access_settings(), seed());
                // One clock for all of them.
                world.now = start + secs(1);
                world
            })
            .collect();
        let mut site = Self {
            worlds,
            bank: Bank {
                bandwidth,
                start,
                shards: shards as u32,
                total: None,
                users: HashMap::new(),
                open: HashSet::new(),
                settlements: 0,
            },
            clients: Vec::new(),
        };
        for (index, (shard, user)) in clients.iter().enumerate() {
            let from = udp(&format!("192.0.2.7:{}", 4000 + index));
            let world = &mut site.worlds[*shard];
            let password = if *user == "bob" {
                "builder"
            } else {
                "wonderland"
            };
            let signer = Signer::new(user, password, &world.nonce(from));
            let allocate = Request::allocate().lifetime(86_400).sign(&signer);
            assert_eq!(world.ask(from, &allocate).code(), 0);
            let id = *world.opened.last().unwrap();
            site.clients.push(Client {
                shard: *shard,
                from,
                id,
                signer,
                passed: 0,
                sent: 0,
            });
            site.bank.settle(*shard, &mut site.worlds[*shard]);
        }
        site.refresh();
        site
    }

    /// Channels and permissions anew.
    fn refresh(&mut self) {
        for client in &self.clients {
            let world = &mut self.worlds[client.shard];
            let bind = Request::channel_bind(CHANNEL, addr(PEER)).sign(&client.signer);
            assert_eq!(world.ask(client.from, &bind).code(), 0);
        }
    }

    fn pass(&mut self, by: Duration) {
        for world in &mut self.worlds {
            world.pass(by);
        }
    }

    /// Whether a datagram of `bytes` passes from `client` to its peer.
    fn send(&mut self, client: usize, bytes: usize) -> bool {
        self.relay(client, Direction::ToPeer, bytes)
    }

    fn relay(&mut self, client: usize, direction: Direction, bytes: usize) -> bool {
        let client = &mut self.clients[client];
        let world = &mut self.worlds[client.shard];
        let forward = match direction {
            Direction::ToPeer => world.input(client.from, &channel_data(CHANNEL, &vec![7; bytes])),
            Direction::ToClient => world.peer_input(client.id, addr(PEER), &vec![7; bytes]),
        };
        self.bank.settle(client.shard, world);
        client.sent += bytes as u64;
        let passes = match forward {
            Forward::ToPeer { .. } | Forward::ToClient { .. } => true,
            Forward::Drop(
                DropReason::BandwidthAllocation
                | DropReason::BandwidthUser
                | DropReason::BandwidthTotal,
            ) => false,
            other => panic!("{other:?}"),
        };
        client.passed += if passes { bytes as u64 } else { 0 };
        passes
    }

    /// Lets each of `senders` send that many bits per second for `time`, in datagrams of `sizes` in turn. Holds that in
    /// no time more passes than `rate` and `slack` bytes.
    fn run(
        &mut self,
        time: Duration,
        senders: &[(usize, u64)],
        sizes: &[usize],
        rate: u64,
        slack: f64,
    ) -> u64 {
        let mut due = vec![0.0; senders.len()];
        let mut turn = 0;
        let mut passed = 0;
        // What passed beyond the rate, for the moment at which that is the most.
        let mut ahead: f64 = 0.0;
        for _ in 0..(time.as_nanos() / STEP.as_nanos()) {
            self.pass(STEP);
            ahead = (ahead - rate as f64 / 8.0 * STEP.as_secs_f64()).max(0.0);
            for (index, (client, bits)) in senders.iter().enumerate() {
                due[index] += *bits as f64 / 8.0 * STEP.as_secs_f64();
                while due[index] > 0.0 {
                    let size = sizes[turn % sizes.len()];
                    turn += 1;
                    due[index] -= size as f64;
                    if self.send(*client, size) {
                        passed += size as u64;
                        ahead += size as f64;
                        assert!(ahead <= slack, "{ahead} bytes ahead of the rate");
                    }
                }
            }
        }
        passed
    }
}

fn only(limit: Limit, bits: u64) -> Bandwidth {
    match limit {
        Limit::Allocation => Bandwidth {
            per_allocation: bits,
            ..Bandwidth::default()
        },
        Limit::User => Bandwidth {
            per_user: bits,
            ..Bandwidth::default()
        },
        Limit::Total => Bandwidth {
            total: bits,
            ..Bandwidth::default()
        },
    }
}

fn depth(bits: u64) -> f64 {
    Rate::of(bits).unwrap().depth()
}

#[track_caller]
fn close_to(passed: u64, bits: u64, time: Duration) {
    let wanted = bits as f64 / 8.0 * time.as_secs_f64();
    let ratio = passed as f64 / wanted;
    assert!((0.98..1.02).contains(&ratio), "{ratio} of the limit");
}

#[test]
fn limits_are_exact_over_ten_seconds_of_overload() {
    for limit in Limit::ALL {
        for bits in [512 * KBIT, 4 * MBIT] {
            for sizes in [&[200][..], &[1200], &[60, 1200, 1200, 300]] {
                for overload in [1.2, 3.0] {
                    let mut site = Site::new(only(limit, bits), &[(0, "alice")]);
                    let offered = (bits as f64 * overload) as u64;
                    let slack = depth(bits) * 1.25 + 1200.0;
                    let passed = site.run(secs(10), &[(0, offered)], sizes, bits, slack);
                    close_to(passed, bits, secs(10));
                    let stats = site.worlds[0].server.stats();
                    let policed = stats.policed[limit as usize];
                    let dropped = site.clients[0].sent - passed;
                    assert_eq!(policed[Direction::ToPeer as usize].bytes, dropped);
                    assert_eq!(policed[Direction::ToClient as usize].bytes, 0);
                }
            }
        }
    }
}

#[test]
fn what_is_below_the_limit_passes_whole() {
    let bandwidth = Bandwidth {
        per_allocation: 2 * MBIT,
        per_user: 3 * MBIT,
        total: 4 * MBIT,
    };
    let mut site = Site::new(bandwidth, &[(0, "alice"), (1, "alice"), (1, "bob")]);
    let senders = [(0, 1_400 * KBIT), (1, 1_400 * KBIT), (2, MBIT)];
    site.run(secs(20), &senders, &[1200, 90], 4 * MBIT, f64::MAX);
    for client in &site.clients {
        assert_eq!(client.passed, client.sent);
    }
}

#[test]
fn a_limit_holds_for_each_direction_on_its_own() {
    for limit in Limit::ALL {
        let mut site = Site::new(only(limit, MBIT), &[(0, "alice")]);
        let mut passed = [0; 2];
        // Two milliseconds: 4.8 Mbit/s.
        for _ in 0..5000 {
            site.pass(Duration::from_millis(2));
            for direction in Direction::ALL {
                let passes = site.relay(0, direction, 1200);
                passed[direction as usize] += if passes { 1200 } else { 0 };
            }
        }
        for passed in passed {
            close_to(passed, MBIT, secs(10));
        }
        let stats = site.worlds[0].server.stats();
        let counted = stats.policed[limit as usize].map(|traffic| traffic.packets);
        assert!(counted.iter().all(|packets| *packets > 1000), "{counted:?}");
    }
}

#[test]
fn allocations_of_one_user_share_within_a_shard_and_across() {
    for shards in [[0, 0], [0, 1]] {
        let clients = shards.map(|shard| (shard, "alice"));
        let mut site = Site::new(only(Limit::User, 2 * MBIT), &clients);
        let senders = [(0, 2 * MBIT), (1, 2 * MBIT)];
        let slack = depth(2 * MBIT) * 1.25 + 2400.0;
        let passed = site.run(secs(10), &senders, &[1200], 2 * MBIT, slack);
        close_to(passed, 2 * MBIT, secs(10));
        // Packets that come in turns are lost in turns: neither of them gets all of the losses.
        for client in &site.clients {
            let share = client.passed as f64 / passed as f64;
            assert!((0.4..0.6).contains(&share), "{shards:?}: {share}");
        }
    }
}

#[test]
fn the_total_is_shared_by_everybody() {
    let clients = [(0, "alice"), (0, "bob"), (1, "alice"), (2, "bob")];
    let mut site = Site::new(only(Limit::Total, 4 * MBIT), &clients);
    let senders = [(0, MBIT), (1, 2 * MBIT), (2, 2 * MBIT), (3, 3 * MBIT)];
    let slack = depth(4 * MBIT) * 1.25 + 3600.0;
    let passed = site.run(secs(10), &senders, &[1200, 400], 4 * MBIT, slack);
    close_to(passed, 4 * MBIT, secs(10));
    for client in &site.clients {
        let loss = 1.0 - client.passed as f64 / client.sent as f64;
        assert!((0.4..0.6).contains(&loss), "{loss}");
    }
}

#[test]
fn who_is_idle_hoards_nothing() {
    let clients = [(0, "alice"), (1, "alice"), (2, "alice"), (3, "alice")];
    let mut site = Site::new(only(Limit::User, 2 * MBIT), &clients);
    let slack = depth(2 * MBIT) * 1.25 + 4800.0;
    // One alone gets everything, whatever the others had before.
    let all = [(0, MBIT), (1, MBIT), (2, MBIT), (3, MBIT)];
    for senders in [
        &[(0, 3 * MBIT)][..],
        &all,
        &[(1, 3 * MBIT)],
        &[(2, 3 * MBIT)],
    ] {
        let passed = site.run(secs(10), senders, &[1200], 2 * MBIT, slack);
        close_to(passed, 2 * MBIT, secs(10));
    }
    // After a pause, all of them at once get what one would.
    site.pass(secs(60));
    let at_once = (0..40 * 4).filter(|round| site.send(round % 4, 1200));
    let bytes = at_once.count() as f64 * 1200.0;
    assert!(bytes <= slack, "{bytes}");
    assert!(bytes >= depth(2 * MBIT) * 0.5, "{bytes}");
}

#[test]
fn budgets_are_asked_once_for_many_packets() {
    let mut site = Site::new(only(Limit::Total, 100 * MBIT), &[(0, "alice"), (1, "bob")]);
    let before = site.bank.settlements;
    site.run(
        secs(2),
        &[(0, 20 * MBIT), (1, 20 * MBIT)],
        &[1200],
        100 * MBIT,
        f64::MAX,
    );
    let packets = site
        .clients
        .iter()
        .map(|client| client.sent / 1200)
        .sum::<u64>();
    let settlements = site.bank.settlements - before;
    assert!(
        packets > 8000 && settlements < packets / 20,
        "{settlements} for {packets}"
    );
}

#[test]
fn limits_change_while_allocations_live() {
    let mut site = Site::new(
        Bandwidth::default(),
        &[(0, "alice"), (1, "alice"), (1, "bob")],
    );
    let senders = [(0, 2 * MBIT), (1, 2 * MBIT), (2, 2 * MBIT)];
    let set = |site: &mut Site, bandwidth| {
        site.bank.bandwidth = bandwidth;
        for (shard, world) in site.worlds.iter_mut().enumerate() {
            world.server.set_bandwidth(world.now, bandwidth);
            site.bank.settle(shard, world);
        }
        for client in &mut site.clients {
            (client.passed, client.sent) = (0, 0);
        }
        site.run(secs(10), &senders, &[1200], 6 * MBIT, f64::MAX);
        site.clients
            .iter()
            .map(|client| client.passed)
            .collect::<Vec<_>>()
    };
    let whole = 2 * MBIT / 8 * 10;
    let unlimited = set(&mut site, Bandwidth::default());
    assert!(unlimited.iter().all(|passed| passed.abs_diff(whole) < 2400));
    for passed in set(&mut site, only(Limit::Allocation, MBIT)) {
        close_to(passed, MBIT, secs(10));
    }
    let passed = set(&mut site, only(Limit::User, MBIT));
    close_to(passed[0] + passed[1], MBIT, secs(10));
    close_to(passed[2], MBIT, secs(10));
    let passed = set(&mut site, only(Limit::User, 3 * MBIT));
    close_to(passed[0] + passed[1], 3 * MBIT, secs(10));
    close_to(passed[2], 2 * MBIT, secs(10));
    close_to(
        set(&mut site, only(Limit::Total, 3 * MBIT)).iter().sum(),
        3 * MBIT,
        secs(10),
    );
    assert_eq!(set(&mut site, Bandwidth::default()), unlimited);
}

#[test]
fn an_allocation_that_ends_leaves_its_user_the_rest() {
    let mut site = Site::new(
        only(Limit::User, MBIT),
        &[(0, "alice"), (0, "alice"), (0, "bob")],
    );
    site.run(secs(2), &[(0, MBIT), (1, MBIT)], &[1200], MBIT, f64::MAX);
    for gone in [0, 2] {
        let client = &site.clients[gone];
        let world = &mut site.worlds[0];
        let release = Request::refresh(0).sign(&client.signer);
        assert_eq!(world.ask(client.from, &release).code(), 0);
        site.bank.settle(0, world);
    }
    assert_eq!(site.bank.open.len(), 1, "bob holds nothing");
    let passed = site.run(secs(10), &[(1, 2 * MBIT)], &[1200], MBIT, f64::MAX);
    close_to(passed, MBIT, secs(10));
}

/// A bucket of the same depth that drops what does not fit.
struct TailDrop {
    level: f64,
    bits: u64,
}

impl TailDrop {
    fn pass(&mut self, by: Duration) {
        let more = self.bits as f64 / 8.0 * by.as_secs_f64();
        self.level = (self.level + more).min(depth(self.bits));
    }

    fn send(&mut self, bytes: usize) -> bool {
        let fits = self.level >= bytes as f64;
        self.level -= if fits { bytes as f64 } else { 0.0 };
        fits
    }
}

/// What a sender of video made of its way.
#[derive(Debug)]
struct Call {
    /// Bytes that arrived in time, of what the limit would have carried.
    goodput: f64,
    /// The lowest second, likewise.
    worst_second: f64,
    /// The lowest target of the encoder, of the limit.
    lowest_target: f64,
    longest_run: u32,
    loss: f64,
    /// The most that were lost of twenty packets in a row: what error correction would have to make good.
    worst_of_twenty: u32,
}

/// Two minutes of video: 30 frames per second, a key frame of five times the size every four seconds, paced at two and a
/// half times the target; a controller that reads loss over the last second once each, as GCC's does: 8 % up below 2 %,
/// down by half the loss above 10 %. What is lost is asked for again, three times at most, and takes its part of the target.
fn video(bits: u64, mut pass: impl FnMut(Duration), mut send: impl FnMut(usize) -> bool) -> Call {
    const TICK: Duration = Duration::from_millis(5);
    const RTT_TICKS: u64 = 20;
    const SETTLED: u64 = 30 * 200;
    const END: u64 = 120 * 200;
    struct Packet {
        bytes: usize,
        tries: u32,
    }
    let limit = bits as f64 / 8.0;
    let mut target = limit * 0.4;
    let mut queue: VecDeque<Packet> = VecDeque::new();
    let mut again: VecDeque<(u64, Packet)> = VecDeque::new();
    // Losses, packets and bytes sent again, per tick. The first two are seen half a round trip later.
    let mut history: VecDeque<(u32, u32, f64)> = VecDeque::new();
    let mut frames = 0_usize;
    let mut latest: u32 = 0;
    let (mut budget, mut lost, mut packets, mut run) = (0.0, 0, 0, 0);
    let (mut arrived, mut second, mut changed) = (0.0, 0.0, 0);
    let mut call = Call {
        goodput: 0.0,
        worst_second: f64::MAX,
        lowest_target: f64::MAX,
        longest_run: 0,
        loss: 0.0,
        worst_of_twenty: 0,
    };
    for tick in 0..END {
        pass(TICK);
        let settled = tick >= SETTLED;
        // A frame every 33 1/3 ms.
        if tick * 3 % 20 < 3 {
            let number = frames;
            frames += 1;
            // Key frames count within the target: 1 of 120 frames is 5 times as large.
            let scale = if number.is_multiple_of(120) { 5.0 } else { 1.0 } * 120.0 / 124.0;
            let repeated: f64 = history.iter().rev().take(200).map(|tick| tick.2).sum();
            let encoder = (target - repeated).max(target / 2.0);
            let mut left = (encoder / 30.0 * scale) as usize;
            while left > 0 {
                let bytes = left.min(1100);
                left -= bytes;
                queue.push_back(Packet { bytes, tries: 0 });
            }
        }
        while again.front().is_some_and(|(at, _)| *at <= tick) {
            queue.extend(again.pop_front().map(|(_, packet)| packet));
        }
        budget = (budget + target * 2.5 * TICK.as_secs_f64()).min(target * 0.02);
        let (mut tick_lost, mut tick_packets, mut tick_again) = (0, 0, 0.0);
        while budget > 0.0
            && let Some(mut packet) = queue.pop_front()
        {
            budget -= packet.bytes as f64;
            tick_packets += 1;
            tick_again += if packet.tries > 0 {
                packet.bytes as f64
            } else {
                0.0
            };
            let passes = send(packet.bytes);
            latest = latest << 1 | u32::from(!passes);
            if settled {
                let lost = (latest & 0xF_FFFF).count_ones();
                call.worst_of_twenty = call.worst_of_twenty.max(lost);
            }
            if passes {
                run = 0;
                arrived += packet.bytes as f64;
                second += packet.bytes as f64;
                continue;
            }
            tick_lost += 1;
            run += 1;
            if settled {
                call.longest_run = call.longest_run.max(run);
            }
            packet.tries += 1;
            if packet.tries < 3 {
                again.push_back((tick + RTT_TICKS, packet));
            }
        }
        history.push_back((tick_lost, tick_packets, tick_again));
        if settled {
            lost += tick_lost;
            packets += tick_packets;
        }
        if history.len() as u64 > 200 + RTT_TICKS / 2 {
            history.pop_front();
        }
        if tick >= changed + 200 && history.len() >= 200 {
            changed = tick;
            let seen = history.iter().take(200);
            let (lost, all) = seen.fold((0, 0), |sum, tick| (sum.0 + tick.0, sum.1 + tick.1));
            let loss = f64::from(lost) / f64::from(all.max(1));
            if loss < 0.02 {
                target = (target * 1.08).min(limit * 3.0);
            } else if loss > 0.10 {
                target *= 1.0 - loss / 2.0;
            }
        }
        if !settled {
            (arrived, second) = (0.0, 0.0);
            continue;
        }
        call.lowest_target = call.lowest_target.min(target / limit);
        if tick % 200 == 199 {
            call.worst_second = call.worst_second.min(second / limit);
            second = 0.0;
        }
    }
    call.goodput = arrived / (limit * (END - SETTLED) as f64 * TICK.as_secs_f64());
    call.loss = f64::from(lost) / f64::from(packets.max(1));
    call
}

#[test]
fn a_video_encoder_adapts_and_does_not_collapse() {
    for bits in [600 * KBIT, 2 * MBIT, 8 * MBIT] {
        let mut tail = TailDrop {
            level: depth(bits),
            bits,
        };
        let tail = std::cell::RefCell::new(&mut tail);
        let dropped = video(
            bits,
            |by| tail.borrow_mut().pass(by),
            |bytes| tail.borrow_mut().send(bytes),
        );
        println!("{bits} bit/s, tail drop:  {dropped:?}");
        for limit in Limit::ALL {
            let site = std::cell::RefCell::new(Site::new(only(limit, bits), &[(0, "alice")]));
            let mut passed = Duration::ZERO;
            let call = video(
                bits,
                |by| {
                    let mut site = site.borrow_mut();
                    site.pass(by);
                    passed += by;
                    if passed.as_millis().is_multiple_of(60_000) {
                        site.refresh();
                    }
                },
                |bytes| site.borrow_mut().send(0, bytes),
            );
            println!("{bits} bit/s, {:<10} {call:?}", limit.label());
            assert!(call.goodput >= 0.85, "{call:?}");
            assert!(
                call.worst_second >= 0.5 && call.lowest_target >= 0.5,
                "{call:?}"
            );
            assert!(call.longest_run <= 5 && call.loss < 0.15, "{call:?}");
            assert!(call.longest_run <= dropped.longest_run, "{dropped:?}");
        }
    }
}
