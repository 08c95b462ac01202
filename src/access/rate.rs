//! How often an address is answered that has proven nothing: token buckets per prefix, in constant memory.
//!
//! The source of a datagram can be forged, so an answer to it may hit a victim. Each answer takes a token from two
//! buckets, that of one subscriber (IPv4 address, IPv6 /64) and that of the network around (IPv4 /24, IPv6 /56).
//!
//! The buckets lie in tables of fixed size under a keyed hash. Sources whose hashes meet share a bucket, and nobody can
//! tell whose: emptying somebody's bucket takes datagrams with a source in his own network, or enough to empty all of
//! them.

use std::net::IpAddr;
use std::time::Duration;

use ahash::RandomState;

use crate::base::addr::bits;

/// Buckets of one table.
const BUCKETS: usize = 8192;

/// A full bucket holds what comes in over this time, in nanoseconds.
const DEPTH_NANOS: u64 = 10_000_000_000;

/// How much more than one subscriber the network around gets.
const WIDE: u64 = 4;

/// Buckets that are not full and when they will be, in nanoseconds: those of the narrow table and of the wide one.
pub type Debts = [Vec<(u16, u64)>; 2];

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// A rate that every address has to itself.
#[derive(Debug)]
pub struct AddressRate {
    hasher: RandomState,
    narrow: Table,
    wide: Table,
}

/// Buckets of one width, each kept as the moment when it is full again (the generic cell rate algorithm).
#[derive(Debug)]
struct Table {
    /// Nanoseconds; empty if there is no limit.
    full_at: Box<[u64]>,
    nanos_per_token: u64,
}

impl AddressRate {
    /// `per_second` tokens for each address, and ten times as many at once; 0 is no limit. `hasher` has to be secret.
    pub fn new(per_second: u32, hasher: RandomState) -> Self {
        let per_second = per_second.into();
        Self {
            hasher,
            narrow: Table::new(per_second),
            wide: Table::new(per_second * WIDE),
        }
    }

    /// Takes a token of `source` at `at`, the time since any fixed moment; false if there is none, and none is taken.
    pub fn admit(&mut self, at: Duration, source: IpAddr) -> bool {
        self.tokens(at, source, true)
    }

    /// Whether there is a token of `source` at `at`; takes none.
    pub fn would_admit(&mut self, at: Duration, source: IpAddr) -> bool {
        self.tokens(at, source, false)
    }

    fn tokens(&mut self, at: Duration, source: IpAddr, take: bool) -> bool {
        let now = at.as_nanos() as u64;
        let source = source.to_canonical();
        let address = bits(source);
        let (narrow, wide) = match source {
            IpAddr::V4(_) => (address, address & (!0 << 8)),
            IpAddr::V6(_) => (address & (!0 << 64), address & (!0 << 72)),
        };
        let narrow = self.narrow.bucket(self.hasher.hash_one(narrow));
        let wide = self.wide.bucket(self.hasher.hash_one(wide));
        let (Some((narrow, narrow_cost)), Some((wide, wide_cost))) = (narrow, wide) else {
            return true;
        };
        let Some((narrow_next, wide_next)) =
            taken(*narrow, now, narrow_cost).zip(taken(*wide, now, wide_cost))
        else {
            return false;
        };
        if take {
            (*narrow, *wide) = (narrow_next, wide_next);
        }
        true
    }

    /// What is missing in which bucket at `at`, for a rate elsewhere that has the same `hasher` and counts from the same
    /// moment.
    pub fn debts(&self, at: Duration) -> Debts {
        let now = at.as_nanos() as u64;
        [&self.narrow, &self.wide].map(|table| {
            (table.full_at.iter().enumerate())
                .filter(|(_, full_at)| **full_at > now)
                .map(|(bucket, full_at)| (bucket as u16, *full_at))
                .collect()
        })
    }

    /// Takes over what [`debts`](Self::debts) told. Buckets that are not limited here owe nothing.
    pub fn owe(&mut self, debts: &Debts) {
        for (table, debts) in [&mut self.narrow, &mut self.wide].into_iter().zip(debts) {
            for (bucket, owed) in debts {
                if let Some(full_at) = table.full_at.get_mut(usize::from(*bucket)) {
                    *full_at = *owed;
                }
            }
        }
    }

    /// Bytes of memory it holds, whoever comes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.narrow.full_at) + size_of_val(&*self.wide.full_at)
    }
}

impl Table {
    fn new(per_second: u64) -> Self {
        let buckets = if per_second == 0 { 0 } else { BUCKETS };
        Self {
            full_at: vec![0; buckets].into(),
            nanos_per_token: NANOS_PER_SEC / per_second.max(1),
        }
    }

    /// The bucket of `hash` and what a token costs; `None` if there is no limit.
    fn bucket(&mut self, hash: u64) -> Option<(&mut u64, u64)> {
        let bucket = self.full_at.get_mut(hash as usize % BUCKETS)?;
        Some((bucket, self.nanos_per_token))
    }
}

/// When a bucket that is full at `full_at` will be so again with a token less; `None` if it has none at `now`.
fn taken(full_at: u64, now: u64, nanos_per_token: u64) -> Option<u64> {
    let next = full_at.max(now).saturating_add(nanos_per_token);
    (next - now <= DEPTH_NANOS).then_some(next)
}
