//! The free relay ports of one IP, and which of them is given next.

use std::collections::{HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

/// How long a port rests once it is released, at least, as long as others are free: peers of its last owner send on for a
/// while, and the next one may permit the same peers.
pub const QUARANTINE: Duration = Duration::from_secs(120);

/// What the age of a resting port is counted in: 32 bits of it last 13 years.
const TICK: Duration = Duration::from_millis(100);

const QUARANTINE_TICKS: u32 = QUARANTINE.as_millis().div_ceil(TICK.as_millis()) as u32;

/// The ports of one range that nobody has.
///
/// Which one comes next cannot be told from those before: each is chosen uniformly among all that have rested. Every
/// operation takes constant time, on average over a port's way round; memory is bounded by the range, 14 bytes a port.
#[derive(Debug)]
pub struct FreePorts {
    /// Ports to choose from, in no order; the even ones, and the odd ones.
    rested: [Vec<u16>; 2],
    /// Ports that rest, the oldest first; the even ones, and the odd ones.
    resting: [VecDeque<Resting>; 2],
    /// Releases so far, modulo 2³².
    releases: u32,
    start: Instant,
    latest: Instant,
    random: StdRng,
}

#[derive(Clone, Copy, Debug)]
struct Resting {
    port: u16,
    /// When it was released, in ticks since the start, rounded up.
    released: u32,
    /// Which release it was: many fall into one tick.
    order: u32,
}

/// How many ports there are; more of the first field are more to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Available {
    /// Those that have rested.
    pub rested: usize,
    /// Those that rest still, and would serve if there were no others.
    pub resting: usize,
}

impl FreePorts {
    /// All ports of `range`, with randomness of their own.
    pub fn new(range: RangeInclusive<u16>, now: Instant) -> Self {
        let (even, odd) = range.partition(|port| port.is_multiple_of(2));
        Self {
            rested: [even, odd],
            resting: Default::default(),
            releases: 0,
            start: now,
            latest: now,
            random: rand::make_rng(),
        }
    }

    /// All ports of `range`, of which those rest that somebody `had` a moment ago.
    pub fn resting_where(
        range: RangeInclusive<u16>,
        now: Instant,
        had: impl Fn(u16) -> bool,
    ) -> Self {
        let mut ports = Self::new(range, now);
        let kinds = ports.rested.each_mut();
        let resting: Vec<u16> = (kinds.into_iter())
            .flat_map(|kind| kind.extract_if(.., |port| had(*port)))
            .collect();
        for port in resting {
            ports.release(now, port);
        }
        ports
    }

    /// Ports that rest.
    pub fn resting(&self) -> impl Iterator<Item = u16> {
        self.resting.iter().flatten().map(|resting| resting.port)
    }

    /// Has `port` rest if it is one of those to choose from: somebody had it who did not take it here. Takes as long as
    /// there are ports.
    pub fn rest(&mut self, now: Instant, port: u16) {
        let rested = &mut self.rested[usize::from(port % 2)];
        if let Some(index) = rested.iter().position(|rested| *rested == port) {
            rested.swap_remove(index);
            self.release(now, port);
        }
    }

    /// Takes those of `wanted` that can be chosen: somebody has them already.
    pub fn claim(&mut self, wanted: &HashSet<u16>) -> HashSet<u16> {
        (self.rested.iter_mut())
            .flat_map(|kind| kind.extract_if(.., |port| wanted.contains(port)))
            .collect()
    }

    /// Takes a port, an even one if `even`: any of those that have rested, with equal chances. Where there is none it is
    /// the one that has rested the longest.
    pub fn take(&mut self, now: Instant, even: bool) -> Option<u16> {
        self.wake(now);
        let evens = self.rested[0].len();
        let odds = if even { 0 } else { self.rested[1].len() };
        if evens + odds == 0 {
            return self.longest_resting(even);
        }
        let index = self.random.random_range(0..evens + odds);
        Some(match index.checked_sub(evens) {
            None => self.rested[0].swap_remove(index),
            Some(index) => self.rested[1].swap_remove(index),
        })
    }

    /// Takes an even port and the one above it: any of those that have both rested, with equal chances. Where there are
    /// none it is the one that has rested the longest. Takes as long as there are ports.
    pub fn take_pair(&mut self, now: Instant) -> Option<[u16; 2]> {
        self.wake(now);
        let [evens, odds] = &self.rested;
        let above: HashSet<u16> = odds.iter().copied().collect();
        let whole: Vec<u16> = (evens.iter().copied())
            .filter(|even| above.contains(&(even + 1)))
            .collect();
        let even = match whole.len() {
            0 => self.resting_pair(&above)?,
            count => *whole.get(self.random.random_range(0..count))?,
        };
        self.remove(even);
        self.remove(even + 1);
        Some([even, even + 1])
    }

    /// The even port of a pair of which a part rests still, `above` being odd ones that do not.
    fn resting_pair(&self, above: &HashSet<u16>) -> Option<u16> {
        let [evens, odds] = &self.resting;
        let resting: HashSet<u16> = odds.iter().map(|resting| resting.port).collect();
        let oldest_first = (evens.iter().map(|resting| resting.port)).chain(
            (odds.iter().map(|resting| resting.port - 1))
                .filter(|even| self.rested[0].contains(even)),
        );
        let mut pairs = oldest_first.filter(|even| {
            let odd = even + 1;
            resting.contains(&odd) || above.contains(&odd)
        });
        pairs.next()
    }

    /// Takes `port` out of those that nobody has.
    fn remove(&mut self, port: u16) {
        let kind = usize::from(port % 2);
        let rested = &mut self.rested[kind];
        match rested.iter().position(|rested| *rested == port) {
            Some(index) => {
                rested.swap_remove(index);
            }
            None => self.resting[kind].retain(|resting| resting.port != port),
        }
    }

    /// Gives back a port that somebody had, this server or another program: it rests first.
    pub fn release(&mut self, now: Instant, port: u16) {
        let released = self.ticks(now) + 1;
        self.releases = self.releases.wrapping_add(1);
        self.resting[usize::from(port % 2)].push_back(Resting {
            port,
            released,
            order: self.releases,
        });
    }

    /// Gives back a port that was taken in vain: nobody has had it, so it needs no rest.
    pub fn put_back(&mut self, port: u16) {
        self.rested[usize::from(port % 2)].push(port);
    }

    /// How many ports [`take`](Self::take) chooses from.
    pub fn available(&mut self, now: Instant, even: bool) -> Available {
        self.wake(now);
        let kinds = if even { 1 } else { 2 };
        Available {
            rested: self.rested[..kinds].iter().map(Vec::len).sum(),
            resting: self.resting[..kinds].iter().map(VecDeque::len).sum(),
        }
    }

    /// Ends the rest of those that have rested long enough.
    fn wake(&mut self, now: Instant) {
        let ticks = self.ticks(now);
        for (resting, rested) in self.resting.iter_mut().zip(&mut self.rested) {
            let is_over = |oldest: &Resting| oldest.released + QUARANTINE_TICKS <= ticks;
            while resting.front().is_some_and(is_over) {
                rested.extend(resting.pop_front().map(|oldest| oldest.port));
            }
        }
    }

    fn longest_resting(&mut self, even: bool) -> Option<u16> {
        let [evens, odds] = &mut self.resting;
        let age = |oldest: &Resting| self.releases.wrapping_sub(oldest.order);
        let older = odds.front().map(age) > evens.front().map(age);
        let oldest = if older && !even { odds } else { evens };
        oldest.pop_front().map(|oldest| oldest.port)
    }

    /// Shards read the clock one by one: time that goes back stands still.
    fn ticks(&mut self, now: Instant) -> u32 {
        self.latest = self.latest.max(now);
        let passed = self.latest.duration_since(self.start);
        (passed.as_millis() / TICK.as_millis()) as u32
    }
}
