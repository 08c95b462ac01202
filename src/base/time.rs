//! Time as a value. The core never reads a clock: it is told what time it is.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks, taken once per batch of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time: every lifetime and timer counts on this one.
    pub mono: Instant,
    /// Time since the Unix epoch: only for what clients and operators see, such as the expiry of credentials.
    pub unix: Duration,
}

impl Now {
    /// Seconds since the Unix epoch.
    pub fn unix_secs(self) -> u64 {
        self.unix.as_secs()
    }
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self {
            mono: self.mono + by,
            unix: self.unix + by,
        }
    }
}

/// The only reader of the machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Reads both clocks. A wall clock before 1970 reads as the epoch.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads clocks")]
    pub fn now(self) -> Now {
        Now {
            mono: Instant::now(),
            unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}
