//! Emptying the server: no new allocations, and an end once the last one is over or patience is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::base::Now;

/// Whether the server is being emptied, and until when.
#[derive(Debug, Default)]
pub struct Drain {
    deadline: Option<Instant>,
    /// The same for those who only tell of it.
    on: Arc<AtomicBool>,
    /// Milliseconds since the Unix epoch; 0 is none.
    deadline_unix_ms: Arc<AtomicU64>,
}

impl Drain {
    /// Begins to drain, for `patience` at most. One that is on already never gets a later deadline, only an earlier one.
    pub fn begin(&mut self, now: Now, patience: Duration) {
        let deadline = now.mono + patience;
        if self.deadline.is_none_or(|known| deadline < known) {
            self.deadline = Some(deadline);
            let unix_ms = (now.unix + patience).as_millis() as u64;
            self.deadline_unix_ms.store(unix_ms, Ordering::Relaxed);
        }
        self.on.store(true, Ordering::Relaxed);
    }

    /// Whether it is on.
    pub const fn is_on(&self) -> bool {
        self.deadline.is_some()
    }

    /// The flag itself, set while the server is being emptied.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.on)
    }

    /// When the rest is ended, in milliseconds since the Unix epoch; 0 while nothing is drained.
    pub fn deadline_unix_ms(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.deadline_unix_ms)
    }

    /// Time left until the rest is ended; `None` while nothing is drained.
    pub fn remaining(&self, now: Now) -> Option<Duration> {
        (self.deadline).map(|deadline| deadline.saturating_duration_since(now.mono))
    }

    /// Whether it is over with `left` allocations: the server can stop.
    pub fn is_over(&self, now: Now, left: usize) -> bool {
        (self.deadline).is_some_and(|deadline| left == 0 || deadline <= now.mono)
    }
}
