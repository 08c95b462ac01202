//! How many different users failed to get an allocation of late, in memory that no stranger makes grow.

use std::net::IpAddr;

use ahash::RandomState;

use crate::base::addr::subscriber;

/// How long a failure counts, in minutes.
pub const WINDOW_MINUTES: u64 = 10;

const WORDS: usize = 16;
const BITS: usize = WORDS * u64::BITS as usize;

/// Who failed in each of the last ten minutes: one bit per user, chosen by a hash (linear counting).
///
/// The hash has no key, so that the sets of all shards are of one kind and merge; whoever looks for collisions hides
/// nobody but itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Affected {
    minutes: [Minute; WINDOW_MINUTES as usize],
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Minute {
    /// Which minute since the Unix epoch `bits` is about.
    number: u64,
    bits: [u64; WORDS],
}

impl Affected {
    /// `user` failed at `unix_secs`.
    pub fn user(&mut self, unix_secs: u64, user: &str) {
        self.mark(unix_secs, hasher().hash_one(user));
    }

    /// Someone at `client` failed of whom no credentials say who it is. All of an IPv6 /64 count once.
    pub fn address(&mut self, unix_secs: u64, client: IpAddr) {
        self.mark(unix_secs, hasher().hash_one(subscriber(client)));
    }

    /// Everything it holds, named by its place.
    pub(super) fn each_word(&mut self, mut visit: impl FnMut(String, &mut u64)) {
        for (place, minute) in self.minutes.iter_mut().enumerate() {
            visit(format!("{place}/number"), &mut minute.number);
            for (index, word) in minute.bits.iter_mut().enumerate() {
                visit(format!("{place}/{index}"), word);
            }
        }
    }

    fn mark(&mut self, unix_secs: u64, hash: u64) {
        let number = unix_secs / 60;
        let minute = &mut self.minutes[(number % WINDOW_MINUTES) as usize];
        if minute.number != number {
            *minute = Minute {
                number,
                ..Minute::default()
            };
        }
        let bit = hash as usize % BITS;
        minute.bits[bit / 64] |= 1 << (bit % 64);
    }

    /// Adds who failed in the minutes that `other` knows, unless this knows later ones in their place.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.minutes.iter_mut().zip(&other.minutes) {
            if mine.number < theirs.number {
                *mine = *theirs;
            } else if mine.number == theirs.number {
                (mine.bits.iter_mut().zip(theirs.bits)).for_each(|(a, b)| *a |= b);
            }
        }
    }

    /// How many different ones failed in the ten minutes up to `unix_secs`: an estimate, within one up to some dozens,
    /// within a tenth up to 1000, never above 7098.
    pub fn count(&self, unix_secs: u64) -> u64 {
        let last = unix_secs / 60;
        let first = last.saturating_sub(WINDOW_MINUTES - 1);
        let mut all = [0; WORDS];
        for minute in (self.minutes.iter()).filter(|m| (first..=last).contains(&m.number)) {
            (all.iter_mut().zip(minute.bits)).for_each(|(a, b)| *a |= b);
        }
        let clear: u32 = all.iter().map(|word| word.count_zeros()).sum();
        let bits = BITS as f64;
        (-bits * (f64::from(clear.max(1)) / bits).ln()).round() as u64
    }
}

pub(super) fn hasher() -> RandomState {
    RandomState::with_seeds(1, 2, 3, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_counts_once_in_whatever_shard_and_minute() {
        let (mut one, mut other) = (Affected::default(), Affected::default());
        for minute in 0..5 {
            for user in 0..12 {
                one.user(6000 + 60 * minute, &format!("user{user}"));
                other.user(6030 + 60 * minute, &format!("user{user}"));
            }
        }
        one.merge(&other);
        assert!((11..=13).contains(&one.count(6300)), "{}", one.count(6300));
    }

    #[test]
    fn failures_are_forgotten_after_ten_minutes() {
        let mut affected = Affected::default();
        affected.user(6000, "alice");
        assert_eq!(affected.count(6000), 1);
        assert_eq!(affected.count(6599), 1);
        assert_eq!(affected.count(6600), 0);
        affected.user(6600, "bob");
        assert_eq!(affected.count(6600), 1);
        // A shard that nobody troubled since remembers a minute whose place another's later one takes.
        let mut late = Affected::default();
        late.user(6000, "carol");
        late.merge(&affected);
        assert_eq!(late.count(6600), 1);
    }

    #[test]
    fn a_network_of_one_subscriber_counts_once() {
        let mut affected = Affected::default();
        for host in 1..=50 {
            affected.address(0, format!("2001:db8::{host:x}").parse().unwrap());
        }
        assert_eq!(affected.count(0), 1);
    }

    #[test]
    fn the_estimate_is_near_and_bounded() {
        let mut affected = Affected::default();
        for (users, low, high) in [(100, 90, 110), (1000, 900, 1100), (1_000_000, 7000, 7098)] {
            for user in 0..users {
                affected.user(0, &format!("user{user}"));
            }
            let count = affected.count(0);
            assert!((low..=high).contains(&count), "{users}: {count}");
        }
    }
}
