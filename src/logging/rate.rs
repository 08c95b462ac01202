//! Bounds the rate of log records, so that a flood of whatever is logged is no flood of lines.
//!
//! Each place in the source that logs has a token bucket, so memory is bounded by the program and one kind of record
//! cannot silence another. What was suppressed is counted and told.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::base::Clock;

/// How many seconds' worth of records may be written at once.
const BURST_SECS: u32 = 10;

/// How long after the first suppressed record the count is told.
const PAUSE: Duration = Duration::from_secs(10);

/// Modules that log at start, at the end and for operators who asked: never suppressed.
const EXEMPT: [&str; 5] = [
    "turnix::app",
    "turnix::cli",
    "turnix::config",
    "turnix::lifecycle",
    "turnix::logging",
];

/// Bytes of a message that name the kind of record.
const WHAT_BYTES: usize = 120;

struct Bucket {
    tokens: f64,
    at: Instant,
    suppressed: u64,
    /// The message of the first one that was suppressed.
    what: String,
}

/// The buckets of every place that logs.
pub struct Rate {
    /// Records a second; 0 is no limit.
    per_second: AtomicU32,
    buckets: Mutex<HashMap<Identifier, Bucket>>,
    /// Something was suppressed.
    pending: Condvar,
}

impl Rate {
    /// `per_second` records of each kind, [`BURST_SECS`] seconds' worth at once; 0 is no limit.
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second: AtomicU32::new(per_second),
            buckets: Mutex::default(),
            pending: Condvar::new(),
        }
    }

    /// Another rate from now on.
    pub fn set(&self, per_second: u32) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// Tells how many records of each kind were suppressed since it was told last.
    pub fn report(&self) {
        // Told outside the lock: telling comes through here again.
        let suppressed: Vec<(String, u64)> = (self.lock().values_mut())
            .filter(|bucket| bucket.suppressed > 0)
            .map(|bucket| {
                let count = std::mem::take(&mut bucket.suppressed);
                (std::mem::take(&mut bucket.what), count)
            })
            .collect();
        for (what, count) in suppressed {
            tracing::warn!(
                suppressed = count,
                record = what,
                "more records of one kind than log.events_per_second"
            );
        }
    }

    /// Tells now and then, if there is something to tell; never returns.
    pub(super) fn report_forever(&self) {
        loop {
            let buckets = self.lock();
            let quiet = |buckets: &mut HashMap<Identifier, Bucket>| {
                buckets.values().all(|bucket| bucket.suppressed == 0)
            };
            drop((self.pending.wait_while(buckets, quiet)).unwrap_or_else(PoisonError::into_inner));
            std::thread::sleep(PAUSE);
            self.report();
        }
    }

    fn permits(&self, event: &Event<'_>) -> bool {
        let per_second = self.per_second.load(Ordering::Relaxed);
        let metadata = event.metadata();
        if per_second == 0 || is_exempt(metadata.target()) {
            return true;
        }
        let now = Clock.now().mono;
        let most = f64::from(per_second.saturating_mul(BURST_SECS));
        let mut buckets = self.lock();
        let bucket = (buckets.entry(metadata.callsite())).or_insert_with(|| Bucket {
            tokens: most,
            at: now,
            suppressed: 0,
            what: String::new(),
        });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * f64::from(per_second)).min(most);
        bucket.at = bucket.at.max(now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return true;
        }
        if bucket.suppressed == 0 {
            event.record(&mut Message(&mut bucket.what));
            self.pending.notify_one();
        }
        bucket.suppressed += 1;
        false
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_exempt(target: &str) -> bool {
    EXEMPT.iter().any(|module| {
        (target.strip_prefix(module)).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

/// Takes the message of an event, as much of it as names its kind.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = super::cut(&format!("{value:?}"), WHAT_BYTES).to_owned();
        }
    }
}

/// Hands to a layer what the rate permits. A filter by event would do the same, but one that says no leaves the registry's
/// own state behind for the next event of the thread.
pub(super) struct Limited<L> {
    pub rate: Arc<Rate>,
    pub inner: L,
}

impl<S: Subscriber, L: Layer<S>> Layer<S> for Limited<L> {
    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        if self.rate.permits(event) {
            self.inner.on_event(event, cx);
        }
    }

    // Spans of libraries, whose fields the layer wants to have seen.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        self.inner.on_new_span(attributes, id, cx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        self.inner.on_record(id, values, cx);
    }

    fn on_enter(&self, id: &Id, cx: Context<'_, S>) {
        self.inner.on_enter(id, cx);
    }

    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        self.inner.on_exit(id, cx);
    }

    fn on_close(&self, id: Id, cx: Context<'_, S>) {
        self.inner.on_close(id, cx);
    }
}
