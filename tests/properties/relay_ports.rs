//! Which relay port comes next: when one may come again, and that nobody can tell it from what came before.
//!
//! The statistics take the randomness of the server. Each of them fails by chance once in fifty million runs.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use turnix::base::Clock;
use turnix::shard::{Available, FreePorts, QUARANTINE};

/// The whole default range.
const ALL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// Ages are counted in steps of this size.
const TICK: Duration = Duration::from_millis(100);

/// A base for virtual time.
fn start() -> Instant {
    Clock.now().mono
}

#[test]
fn a_port_rests_two_minutes_while_others_are_free() {
    let mut now = start();
    let mut free = FreePorts::new(1000..=1007, now);
    let mut order = Vec::new();
    for _ in 0..8 {
        let port = free.take(now, false).unwrap();
        assert!(!order.contains(&port), "{port} has not rested: {order:?}");
        free.release(now, port);
        order.push(port);
        now += Duration::from_secs(1);
    }
    // None has rested, so the one that has rested the longest serves, and the longest even one.
    assert_eq!(
        free.available(now, false),
        Available {
            rested: 0,
            resting: 8
        }
    );
    assert_eq!(free.take(now, false), Some(order[0]));
    let even = *order[1..]
        .iter()
        .find(|port| port.is_multiple_of(2))
        .unwrap();
    assert_eq!(free.take(now, true), Some(even));
    free.release(now, even);
    free.release(now, order[0]);

    // To the second: the first one to have rested is the only one to choose from.
    let first = order[1..].iter().position(|port| *port != even).unwrap() + 1;
    let due = Duration::from_secs(first as u64) + QUARANTINE;
    let begin = now - Duration::from_secs(8);
    assert_eq!(free.available(begin + due - TICK, false).rested, 0);
    assert_eq!(free.available(begin + due + TICK, false).rested, 1);
    // Shards do not read the clock together.
    assert_eq!(free.available(begin, false).rested, 1);
    assert_eq!(free.take(begin, false), Some(order[first]));
    assert_eq!(free.available(begin + 2 * due, false).rested, 7);
}

#[test]
fn even_ports_run_out_on_their_own() {
    let now = start();
    let mut free = FreePorts::new(1001..=1004, now);
    let mut even: Vec<_> = std::iter::from_fn(|| free.take(now, true)).collect();
    even.sort_unstable();
    assert_eq!(even, [1002, 1004]);
    let mut odd: Vec<_> = std::iter::from_fn(|| free.take(now, false)).collect();
    odd.sort_unstable();
    assert_eq!(odd, [1001, 1003]);
    free.put_back(1001);
    assert_eq!(
        (free.take(now, true), free.take(now, false)),
        (None, Some(1001))
    );
}

#[derive(Clone, Debug)]
enum Operation {
    Take { even: bool },
    Release(usize),
    PutBack(usize),
    Pass(u32),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => any::<bool>().prop_map(|even| Operation::Take { even }),
        4 => any::<usize>().prop_map(Operation::Release),
        1 => any::<usize>().prop_map(Operation::PutBack),
        2 => (0_u32..800).prop_map(Operation::Pass),
    ]
}

proptest! {
    #[test]
    fn ports_are_given_once_and_rest(
        first in 1000_u16..1002,
        count in 1_u16..12,
        operations in prop::collection::vec(operation(), 0..200),
    ) {
        let mut now = start();
        let mut free = FreePorts::new(first..=first + count - 1, now);
        // Those that nobody has: unused, or in the order of their release with its time.
        let mut unused: Vec<u16> = (first..first + count).collect();
        let mut resting: Vec<(u16, Instant)> = Vec::new();
        let mut held: Vec<u16> = Vec::new();
        for operation in operations {
            match operation {
                Operation::Take { even } => {
                    let fits = |port: &u16| !even || port.is_multiple_of(2);
                    // Ages are counted in ticks.
                    let rested = |since: Instant| now >= since + QUARANTINE;
                    let surely = |since: Instant| now >= since + QUARANTINE + 2 * TICK;
                    let fitting: Vec<_> = resting.iter().filter(|(port, _)| fits(port)).collect();
                    let choice = unused.iter().any(fits)
                        || fitting.iter().any(|(_, since)| surely(*since));
                    match free.take(now, even) {
                        None => prop_assert!(!choice && fitting.is_empty()),
                        Some(port) => {
                            prop_assert!(fits(&port));
                            let since = fitting.iter().find(|(resting, _)| *resting == port);
                            match since {
                                None => prop_assert!(unused.contains(&port), "{port} is not free"),
                                Some((_, since)) => prop_assert!(
                                    rested(*since) || (!choice && fitting[0].0 == port),
                                    "{port} out of {fitting:?}"
                                ),
                            }
                            unused.retain(|unused| *unused != port);
                            resting.retain(|(resting, _)| *resting != port);
                            held.push(port);
                        }
                    }
                }
                Operation::Release(index) if !held.is_empty() => {
                    let port = held.swap_remove(index % held.len());
                    free.release(now, port);
                    resting.push((port, now));
                }
                Operation::PutBack(index) if !held.is_empty() => {
                    let port = held.swap_remove(index % held.len());
                    free.put_back(port);
                    unused.push(port);
                }
                Operation::Pass(ticks) => now += TICK * ticks,
                _ => {}
            }
            for even in [false, true] {
                let available = free.available(now, even);
                let idle = resting.iter().map(|(port, _)| port).chain(&unused);
                let idle = idle.filter(|port| !even || port.is_multiple_of(2)).count();
                prop_assert_eq!(available.rested + available.resting, idle);
            }
        }
    }
}

/// What a chi-square statistic exceeds by chance once in fifty million times (Wilson and Hilferty's approximation).
fn improbable(degrees: usize) -> f64 {
    let a = 2.0 / (9.0 * degrees as f64);
    degrees as f64 * (1.0 - a + 5.5 * a.sqrt()).powi(3)
}

/// Whether `counts` are what `chances` let expect, which are relative.
fn as_expected(counts: &[u32], chances: &[f64]) -> bool {
    assert_eq!(counts.len(), chances.len());
    let total: f64 = counts.iter().map(|count| f64::from(*count)).sum();
    let all: f64 = chances.iter().sum();
    let mut cells = 0;
    let mut statistic = 0.0;
    for (count, chance) in counts.iter().zip(chances) {
        let expected = total * chance / all;
        if expected == 0.0 {
            assert_eq!(*count, 0, "what cannot be");
            continue;
        }
        assert!(expected >= 20.0, "too few to tell: {expected}");
        cells += 1;
        statistic += (f64::from(*count) - expected).powi(2) / expected;
    }
    statistic < improbable(cells - 1)
}

fn uniform(counts: &[u32]) -> bool {
    as_expected(counts, &vec![1.0; counts.len()])
}

/// How many of `ports` there are of each of a range.
fn counted(ports: impl Iterator<Item = u16>, first: u16, range: usize) -> Vec<u32> {
    let mut counts = vec![0; range];
    ports.for_each(|port| counts[usize::from(port - first)] += 1);
    counts
}

const BUCKETS: usize = 16;

/// Whether the second port of a pair is independent of the first, by where they lie in the range of `count` ports and
/// by their last bits. `distinct` pairs cannot be of one port twice.
fn independent(pairs: &[(u16, u16)], first: u16, count: usize, distinct: bool) -> bool {
    let width = count / BUCKETS;
    let chances: Vec<f64> = (0..BUCKETS * BUCKETS)
        .map(|cell| {
            let same = cell / BUCKETS == cell % BUCKETS && distinct;
            (width * (width - usize::from(same))) as f64
        })
        .collect();
    let high = |port: u16| usize::from(port - first) / width;
    let low = |port: u16| usize::from(port - first) % BUCKETS;
    let cells = |bucket: &dyn Fn(u16) -> usize| {
        let mut counts = vec![0; BUCKETS * BUCKETS];
        (pairs.iter()).for_each(|(a, b)| counts[bucket(*a) * BUCKETS + bucket(*b)] += 1);
        as_expected(&counts, &chances)
    };
    cells(&high) && cells(&low)
}

/// Whether the second port of a pair lies anywhere from the first but on it.
fn any_distance(pairs: &[(u16, u16)], count: usize) -> bool {
    let mut counts = vec![0; count];
    for (a, b) in pairs {
        counts[(usize::from(*b) + count - usize::from(*a)) % count] += 1;
    }
    assert_eq!(counts[0], 0, "a port comes twice at once");
    uniform(&counts[1..])
}

#[test]
fn every_free_port_is_as_likely_as_any_other() {
    let now = start();
    let mut free = FreePorts::new(ALL, now);
    let range = ALL.count();
    let mut take = |even: bool| {
        let port = free.take(now, even).unwrap();
        free.put_back(port);
        port
    };
    let ports = (0..range * 30).map(|_| take(false));
    assert!(uniform(&counted(ports, *ALL.start(), range)));
    let halves = (0..range * 15).map(|_| (take(true) - *ALL.start()) / 2);
    assert!(uniform(&counted(halves, 0, range / 2)));

    // A range that is not full, of more odd than even ports.
    let mut free = FreePorts::new(1001..=1129, now);
    let gone: Vec<u16> = (0..65).map(|_| free.take(now, false).unwrap()).collect();
    let ports = (0..64 * 200).map(|_| {
        let port = free.take(now, false).unwrap();
        free.put_back(port);
        port
    });
    let counts: Vec<u32> = (1001..)
        .zip(counted(ports, 1001, 129))
        .filter_map(|(port, count)| (!gone.contains(&port)).then_some(count))
        .collect();
    assert!(counts.len() == 64 && uniform(&counts));
}

#[test]
fn the_next_port_does_not_depend_on_the_last() {
    const RANGE: u16 = 1024;
    const PAIRS: usize = 60_000;
    let mut now = start();
    let mut free = FreePorts::new(1024..=1024 + RANGE - 1, now);
    let count = usize::from(RANGE);
    // Taken in vain.
    let mut take = || {
        let port = free.take(now, false).unwrap();
        free.put_back(port);
        port
    };
    let again: Vec<_> = (0..PAIRS).map(|_| (take(), take())).collect();
    assert!(independent(&again, 1024, count, false));
    // While the first is held, and once it has been released.
    for held in [true, false] {
        let pairs: Vec<_> = (0..PAIRS)
            .map(|_| {
                let first = free.take(now, false).unwrap();
                if !held {
                    free.release(now, first);
                }
                let second = free.take(now, false).unwrap();
                if held {
                    free.release(now, first);
                }
                free.release(now, second);
                now += QUARANTINE + TICK;
                assert_eq!(free.available(now, false).rested, count);
                (first, second)
            })
            .collect();
        assert!(independent(&pairs, 1024, count, true), "held: {held}");
        assert!(any_distance(&pairs, count), "held: {held}");
    }
}

#[test]
fn no_two_servers_give_the_same_ports() {
    let now = start();
    let draw = |free: &mut FreePorts| {
        let port = free.take(now, false).unwrap();
        free.put_back(port);
        port
    };
    let [mut one, mut other] = [(); 2].map(|()| FreePorts::new(ALL, now));
    let alike = (0..2000).filter(|_| draw(&mut one) == draw(&mut other));
    // One in eight is expected, and ten once in 10^15.
    assert!(alike.count() < 10);
    // Where a server begins says nothing.
    let begins = (0..64 * 60).map(|_| draw(&mut FreePorts::new(1024..=1087, now)));
    assert!(uniform(&counted(begins, 1024, 64)));
}

/// The statistics above would find what they look for.
#[test]
fn ports_that_can_be_told_in_advance_are_found_out() {
    let mut free = FreePorts::new(1024..=2047, start());
    let mut random = || {
        let port = free.take(start(), false).unwrap();
        free.put_back(port);
        port - 1024
    };
    let lower = (0..60_000).map(|_| random().min(random()) + 1024);
    assert!(
        !uniform(&counted(lower, 1024, 1024)),
        "small ones preferred"
    );
    let mut pairs = |next: &dyn Fn(u16, u16) -> u16| -> Vec<(u16, u16)> {
        (0..60_000)
            .map(|_| {
                let first = random();
                (first + 1024, next(first, random()) % 1024 + 1024)
            })
            .collect()
    };
    assert!(independent(&pairs(&|_, random| random), 1024, 1024, false));
    let following = pairs(&|first, random| if random < 100 { first + 1 } else { random });
    assert!(
        !independent(&following, 1024, 1024, false),
        "the one behind it"
    );
    let alike = pairs(&|first, random| {
        if random < 100 {
            random & !15 | first & 15
        } else {
            random
        }
    });
    assert!(
        !independent(&alike, 1024, 1024, false),
        "the same last bits"
    );
    let near = pairs(&|first, random| first + 1 + random % 1000);
    assert!(!any_distance(&near, 1024), "never in front of it");
}

#[test]
fn what_an_earlier_pool_had_rests_in_the_next() {
    let now = start();
    let had = [1001, 1002, 1005];
    let mut free = FreePorts::resting_where(1000..=1007, now, |port| had.contains(&port));
    let mut resting: Vec<u16> = free.resting().collect();
    resting.sort_unstable();
    assert_eq!(resting, had);
    // Given back over there in the meantime; a port that is taken here, or rests, or is none of these, is left alone.
    free.rest(now, 1003);
    free.rest(now, 1002);
    free.rest(now, 4711);
    let mut taken: Vec<u16> = (0..4).map(|_| free.take(now, false).unwrap()).collect();
    taken.sort_unstable();
    assert_eq!(taken, [1000, 1004, 1006, 1007]);
    free.rest(now, 1000);
    assert_eq!(
        free.available(now, false),
        Available {
            rested: 0,
            resting: 4
        }
    );
    let later = now + QUARANTINE + TICK;
    assert_eq!(free.available(later, false).rested, 4);
}
