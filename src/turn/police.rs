//! Policing of bandwidth: token buckets in bytes, with the time as an input.
//!
//! A bucket that drops what no longer fits loses packets in runs, which no retransmission or error correction of a call
//! survives. Here a packet is lost with a probability that grows as a bucket empties ([`Bucket::pressure`]), and losses
//! are spread evenly ([`Spread`]): an encoder sees isolated losses early and adapts. What gets through is the rate all
//! the same, since the bucket settles where it loses as much as is too much.
//!
//! What several shards share is a [`Budget`]. Whoever spends of it holds a [`Grant`], spends up to its allowance and says
//! afterwards what it was: nothing is set aside for those who are idle, and the budget is asked once for many packets.
//!
//! A datagram counts with its payload, as [`Traffic`](super::Traffic) does. One that meets a bucket with anything in it
//! passes whole, and the bucket owes the rest.

use super::LOOP_BITS_PER_SECOND;
use super::purses::{PurseId, Purses};
use super::stats::{Direction, DropReason};
use crate::access::Scope;

/// Bits per second that may be relayed, in each direction on its own; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// By one allocation.
    pub per_allocation: u64,
    /// By all allocations of one user id, in all shards.
    pub per_user: u64,
    /// By the whole server.
    pub total: u64,
}

/// Which limit of the bandwidth a datagram was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Limit {
    /// `per_allocation`
    Allocation,
    /// `per_user`
    User,
    /// `total`
    Total,
}

impl Limit {
    /// Every limit, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Allocation, Self::User, Self::Total];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Allocation => "allocation",
            Self::User => "user",
            Self::Total => "total",
        }
    }

    /// What its drops are counted as.
    pub(super) const fn reason(self) -> DropReason {
        match self {
            Self::Allocation => DropReason::BandwidthAllocation,
            Self::User => DropReason::BandwidthUser,
            Self::Total => DropReason::BandwidthTotal,
        }
    }
}

/// What a full bucket holds, in seconds of its rate: a key frame of a paced encoder passes, and ten seconds of overload
/// bring less than 2 % too much.
const DEPTH_SECS: f64 = 0.150;

/// What a full bucket holds at least, in bytes: a few full-size datagrams.
const LEAST_DEPTH: f64 = 6000.0;

/// The share of the depth below which packets begin to be lost.
const KNEE: f64 = 0.3;

/// Bounds of what a stream waits before it is looked at again, in nanoseconds: an operator may have raised the limit.
const LEAST_PAUSE_NANOS: u64 = 1_000_000;
const MOST_PAUSE_NANOS: u64 = 1_000_000_000;

/// What it waits for a limit that it shares with others.
const SHARED_PAUSE_NANOS: u64 = 5_000_000;

/// How fast a bucket fills, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    bytes_per_nano: f64,
    depth: f64,
}

impl Rate {
    /// Of `bits` per second; `None` is no limit.
    pub fn of(bits: u64) -> Option<Self> {
        let bytes_per_sec = bits as f64 / 8.0;
        (bits > 0).then(|| Self {
            bytes_per_nano: bytes_per_sec / 1e9,
            depth: (bytes_per_sec * DEPTH_SECS).max(LEAST_DEPTH),
        })
    }

    /// Bytes that a full bucket holds.
    pub const fn depth(self) -> f64 {
        self.depth
    }
}

/// A token bucket. The rate is an input, so that it can change.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Bytes; negative while it owes.
    level: f64,
    /// Until when it was filled, in nanoseconds since any fixed moment.
    at: u64,
}

impl Bucket {
    /// Full at `at`.
    pub const fn full(rate: Rate, at: u64) -> Self {
        Self {
            level: rate.depth,
            at,
        }
    }

    /// Fills it until `at`.
    pub fn refill(&mut self, rate: Rate, at: u64) {
        let nanos = at.saturating_sub(self.at);
        self.at += nanos;
        self.level = (self.level + nanos as f64 * rate.bytes_per_nano).min(rate.depth);
    }

    /// Takes `bytes`, whether they are there or not.
    pub fn take(&mut self, bytes: u64) {
        self.level -= bytes as f64;
    }

    /// The probability with which a packet is to be lost: 0 above the knee, 1 when it is empty. The square is lenient to a
    /// burst, which passes with a loss or two, and still reaches what a lasting overload asks for.
    pub fn pressure(&self, rate: Rate) -> f32 {
        let missing = 1.0 - self.level / (rate.depth * KNEE);
        let missing = missing.clamp(0.0, 1.0);
        (missing * missing) as f32
    }
}

/// What a holder may spend of a budget until it settles again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grant {
    /// Bytes; the datagram that exceeds it passes, the next does not.
    pub allowance: u64,
    /// Bytes that the allowance is when there is plenty. Settle after half of it.
    pub share: u64,
    /// The probability with which a packet is to be lost.
    pub pressure: f32,
}

impl Grant {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        allowance: u64::MAX,
        share: u64::MAX,
        pressure: 0.0,
    };
}

/// Allowances of all holders together come to a quarter of the depth at most, and to a sixteenth for each.
const LEAST_HOLDERS: u32 = 4;

/// What several holders spend together: a bucket for each direction.
///
/// Holders may have spent their allowances before the budget knows, so what passes in any time is bounded by the rate,
/// the depth and a quarter of it, and a datagram of each holder; what was too much is owed.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    buckets: [Bucket; Direction::ALL.len()],
}

impl Budget {
    /// Full at `at`, in nanoseconds since any fixed moment.
    pub const fn full(rate: Rate, at: u64) -> Self {
        Self {
            buckets: [Bucket::full(rate, at); Direction::ALL.len()],
        }
    }

    /// One of `holders` has `spent` that much since it settled last, by `Direction`; what it may spend from `at` on.
    pub fn settle(
        &mut self,
        rate: Rate,
        at: u64,
        holders: u32,
        spent: [u64; Direction::ALL.len()],
    ) -> [Grant; Direction::ALL.len()] {
        let holders = holders.max(1);
        let share = rate.depth / f64::from(holders.max(LEAST_HOLDERS)) / 4.0;
        Direction::ALL.map(|direction| {
            let bucket = &mut self.buckets[direction as usize];
            bucket.refill(rate, at);
            bucket.take(spent[direction as usize]);
            let fair = bucket.level.max(0.0) / f64::from(holders);
            Grant {
                allowance: share.min(fair).ceil() as u64,
                share: share as u64,
                pressure: bucket.pressure(rate),
            }
        })
    }

    /// Whether it is full at `at`: one that begins anew would be the same.
    pub fn is_full(&mut self, rate: Rate, at: u64) -> bool {
        self.buckets.iter_mut().all(|bucket| {
            bucket.refill(rate, at);
            bucket.level >= rate.depth
        })
    }
}

/// Turns probabilities into losses that lie apart: they add up, and a packet is lost each time they reach one.
///
/// The distance between losses varies a little. Fixed ones could fall into step with traffic that repeats itself, and take
/// every packet of one stream in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    sum: f32,
    /// Where in the sequence of distances.
    step: u32,
}

impl Spread {
    /// Whether this packet is lost.
    pub fn falls(&mut self, pressure: f32) -> bool {
        if pressure <= 0.0 {
            return false;
        }
        if pressure >= 1.0 {
            return true;
        }
        self.sum += pressure;
        if self.sum < 1.0 {
            return false;
        }
        // Multiples of the golden ratio lie evenly in 0..1 and never repeat.
        self.step = self.step.wrapping_add(0x9E37_79B9);
        let between = (self.step >> 8) as f32 / 16_777_216.0 - 0.5;
        self.sum += between * (1.0 - pressure) - 1.0;
        true
    }
}

/// The rates that a server holds to, by how far an allocation reaches.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScopedRates {
    policy: Rates,
    loops: Rates,
    /// The same for allocations that look like abuse.
    throttled: [Rates; 2],
}

impl ScopedRates {
    /// `abuse_bits_per_second`: what an allocation gets that looks like abuse.
    pub fn new(bandwidth: Bandwidth, abuse_bits_per_second: u64) -> Self {
        // Where several limits hold, the lowest does; 0 is none.
        let within = |most: u64| {
            let per_allocation = match bandwidth.per_allocation {
                0 => most,
                limit => limit.min(most),
            };
            Rates::new(Bandwidth {
                per_allocation,
                ..bandwidth
            })
        };
        let abuse = abuse_bits_per_second.max(1);
        Self {
            policy: Rates::new(bandwidth),
            loops: within(LOOP_BITS_PER_SECOND),
            throttled: [within(abuse), within(abuse.min(LOOP_BITS_PER_SECOND))],
        }
    }

    /// Those of an allocation of `scope`, and whether it is throttled.
    pub const fn of(&self, scope: Scope, throttled: bool) -> &Rates {
        match (scope, throttled) {
            (Scope::Policy, false) => &self.policy,
            (Scope::Loop(_), false) => &self.loops,
            (Scope::Policy, true) => &self.throttled[0],
            (Scope::Loop(_), true) => &self.throttled[1],
        }
    }

    /// Whether the whole server has a limit.
    pub const fn total(&self) -> bool {
        self.policy.total
    }
}

/// The rates that an allocation is held to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    pub allocation: Option<Rate>,
    pub user: bool,
    pub total: bool,
}

impl Rates {
    pub fn new(bandwidth: Bandwidth) -> Self {
        Self {
            allocation: Rate::of(bandwidth.per_allocation),
            user: bandwidth.per_user > 0,
            total: bandwidth.total > 0,
        }
    }

    pub const fn any(&self) -> bool {
        self.allocation.is_some() || self.user || self.total
    }
}

/// What policing keeps of one allocation, where there are limits.
#[derive(Debug)]
pub(super) struct Police {
    lanes: [Lane; Direction::ALL.len()],
    /// What all allocations of the user spend from, if that is limited.
    pub user: Option<PurseId>,
}

/// One direction. The losses of every limit are spread over an allocation's own packets: spread over those of several,
/// they could meet one of them only.
#[derive(Debug)]
struct Lane {
    bucket: Bucket,
    spread: Spread,
}

impl Police {
    pub fn new(rates: &Rates, at: u64, user: Option<PurseId>) -> Box<Self> {
        let lane = || Lane {
            bucket: match rates.allocation {
                Some(rate) => Bucket::full(rate, at),
                None => Bucket { level: 0.0, at },
            },
            spread: Spread::default(),
        };
        Box::new(Self {
            lanes: [lane(), lane()],
            user,
        })
    }

    /// Takes `bytes` from all that the datagram falls under, or from none of them.
    ///
    /// # Errors
    /// The limit that is scarcest.
    pub fn admit(
        &mut self,
        rates: &Rates,
        purses: &mut Purses,
        at: u64,
        direction: Direction,
        bytes: usize,
    ) -> Result<(), Limit> {
        let (pressure, limit) = self.scarcest(rates, purses, at, direction);
        let falls = self.lanes[direction as usize].spread.falls(pressure);
        let spent = if falls { 0 } else { bytes as u64 };
        self.spend(rates, purses, at, direction, spent);
        if falls { Err(limit) } else { Ok(()) }
    }

    /// How long a byte stream has to wait until more of it may be read, in nanoseconds; what it brings is for
    /// [`spend`](Self::spend). Nothing of a stream can be dropped, so it takes what datagrams leave: it waits wherever one
    /// of them might be lost, and a limit that only streams meet lets its whole rate through all the same.
    ///
    /// `None` is now. After a wait it is to be asked again.
    pub fn pause(
        &mut self,
        rates: &Rates,
        purses: &mut Purses,
        at: u64,
        direction: Direction,
    ) -> Option<u64> {
        let (pressure, limit) = self.scarcest(rates, purses, at, direction);
        if pressure <= 0.0 {
            return None;
        }
        // Purses settle when somebody spends.
        self.spend(rates, purses, at, direction, 0);
        let own = (rates.allocation).filter(|_| limit == Limit::Allocation);
        let bucket = &self.lanes[direction as usize].bucket;
        let nanos = own.map_or(SHARED_PAUSE_NANOS, |rate| {
            ((rate.depth * KNEE - bucket.level) / rate.bytes_per_nano) as u64
        });
        Some(nanos.clamp(LEAST_PAUSE_NANOS, MOST_PAUSE_NANOS))
    }

    /// Takes `bytes` from all that they fall under, whether they are there or not.
    pub fn spend(
        &mut self,
        rates: &Rates,
        purses: &mut Purses,
        at: u64,
        direction: Direction,
        bytes: u64,
    ) {
        if rates.allocation.is_some() {
            self.lanes[direction as usize].bucket.take(bytes);
        }
        for purse in self.purses(rates).into_iter().flatten() {
            purses.spend(purse, direction, at, bytes);
        }
    }

    /// The highest pressure of all that `direction` falls under, and whose it is.
    fn scarcest(
        &mut self,
        rates: &Rates,
        purses: &Purses,
        at: u64,
        direction: Direction,
    ) -> (f32, Limit) {
        let mut scarcest = (0.0, Limit::Allocation);
        if let Some(rate) = rates.allocation {
            let bucket = &mut self.lanes[direction as usize].bucket;
            bucket.refill(rate, at);
            scarcest.0 = bucket.pressure(rate);
        }
        let shared = self
            .purses(rates)
            .into_iter()
            .zip([Limit::User, Limit::Total]);
        for (purse, limit) in shared {
            let pressure = purse.map_or(0.0, |purse| purses.pressure(purse, direction, at));
            if pressure > scarcest.0 {
                scarcest = (pressure, limit);
            }
        }
        scarcest
    }

    /// The user's purse and that of the whole server, where they are limited.
    fn purses(&self, rates: &Rates) -> [Option<PurseId>; 2] {
        [self.user, rates.total.then_some(PurseId::TOTAL)]
    }
}
