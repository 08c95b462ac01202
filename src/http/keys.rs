//! What each API key is asked for: how fast it may mint, and how often it did.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::ice::ApiKey;

/// How long it takes until all that may be asked for at once may be asked for again.
const DEPTH: Duration = Duration::from_secs(60);

/// What came of a request for credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answered {
    /// They were minted.
    Minted,
    /// The key had asked too often.
    RateLimited,
    /// The key, or the user that it asked for, is revoked.
    Revoked,
}

impl Answered {
    /// Every outcome, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Minted, Self::RateLimited, Self::Revoked];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Minted => "minted",
            Self::RateLimited => "rate_limited",
            Self::Revoked => "revoked",
        }
    }
}

/// One series of a metric: the id of a key, an outcome, how often.
pub type KeyCount = (String, &'static str, u64);

#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    /// When it may ask for everything at once again (the generic cell rate algorithm).
    full_at: Duration,
    answered: [u64; Answered::ALL.len()],
}

impl Meter {
    /// Takes one credential of `per_minute` at `at`; else how long it is until there is one.
    fn take(&mut self, at: Duration, per_minute: u32) -> Result<(), Duration> {
        if per_minute == 0 {
            return Ok(());
        }
        let next = self.full_at.max(at) + DEPTH / per_minute;
        match (next - at).checked_sub(DEPTH) {
            None | Some(Duration::ZERO) => {
                self.full_at = next;
                Ok(())
            }
            Some(early) => Err(early),
        }
    }
}

/// The meters of all keys that the configuration has.
#[derive(Debug)]
pub struct Meters {
    started: Instant,
    of: Mutex<BTreeMap<String, Meter>>,
}

impl Meters {
    /// One for each of `keys`.
    pub(super) fn new(keys: &[ApiKey]) -> Self {
        let meters = Self {
            started: Instant::now(),
            of: Mutex::default(),
        };
        meters.set(keys);
        meters
    }

    /// Keeps those of `keys`, and begins those that are new.
    pub(super) fn set(&self, keys: &[ApiKey]) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *of);
        *of = (keys.iter())
            .map(|key| {
                let meter = before.get(&key.id).copied().unwrap_or_default();
                (key.id.clone(), meter)
            })
            .collect();
    }

    /// Takes a credential of `key`.
    ///
    /// # Errors
    /// How long it has to wait for one.
    pub(super) fn take(&self, key: &ApiKey) -> Result<(), Duration> {
        let at = self.started.elapsed();
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        // A key that a reload has just removed has no limit that would matter any more.
        of.get_mut(&key.id)
            .map_or(Ok(()), |meter| meter.take(at, key.rate))
    }

    /// Counts what `key` was answered.
    pub(super) fn count(&self, key: &ApiKey, answered: Answered) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = of.get_mut(&key.id) {
            meter.answered[answered as usize] += 1;
        }
    }

    /// What every key was answered.
    pub fn read(&self) -> Vec<KeyCount> {
        let of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        (of.iter())
            .flat_map(|(id, meter)| {
                (Answered::ALL.iter()).map(|answered| {
                    (
                        id.clone(),
                        answered.label(),
                        meter.answered[*answered as usize],
                    )
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_at_once_and_then_one_at_a_time() {
        let mut meter = Meter::default();
        let at = |secs| Duration::from_secs(1000) + Duration::from_secs(secs);
        for _ in 0..6 {
            assert_eq!(meter.take(at(0), 6), Ok(()));
        }
        assert_eq!(meter.take(at(0), 6), Err(Duration::from_secs(10)));
        assert_eq!(meter.take(at(9), 6), Err(Duration::from_secs(1)));
        assert_eq!(meter.take(at(10), 6), Ok(()));
        assert_eq!(meter.take(at(10), 6), Err(Duration::from_secs(10)));
        // No more is saved up than fits.
        for _ in 0..6 {
            assert_eq!(meter.take(at(1000), 6), Ok(()));
        }
        assert!(meter.take(at(1000), 6).is_err());
        assert_eq!(meter.take(at(1000), 0), Ok(()));
    }
}
