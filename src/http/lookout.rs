//! Looks at the calls of all live allocations: every ten seconds for the metrics, and for whoever asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::metrics::{CallHistograms, Calls, OBSERVED_EVERY, Spread, Survey};
use crate::quality::Leg;
use crate::quality::shown::{Legs, Ways, millis_of, share};
use crate::turn::Direction;

use super::ShardControl;

/// For how long a look stands: whoever asks more often costs the shards nothing.
const LOOK_LIFETIME: Duration = Duration::from_secs(1);

/// What was seen of calls; cheap to clone, outlives what the listeners answer from.
#[derive(Clone, Debug, Default)]
pub struct Lookout(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    histograms: Mutex<CallHistograms>,
    /// Without allocations, and when that was.
    last: tokio::sync::Mutex<Option<(Instant, Arc<Survey>)>>,
}

impl Lookout {
    /// Looks every ten seconds; never returns.
    pub async fn observe_forever<S: ShardControl>(self, shards: S) {
        self.observe_every(OBSERVED_EVERY, shards).await;
    }

    /// Looks at another pace: for tests.
    #[doc(hidden)]
    pub async fn observe_every<S: ShardControl>(self, every: Duration, shards: S) {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let seen = self.look(&shards, Duration::ZERO).await;
            self.lock().observe(&seen.calls);
        }
    }

    /// How calls go, and how much is relayed, a second ago at most.
    pub(super) async fn latest<S: ShardControl>(&self, shards: &S) -> Arc<Survey> {
        self.look(shards, LOOK_LIFETIME).await
    }

    /// How calls went when somebody looked last, unless that is long ago.
    pub(super) async fn last(&self) -> Option<Arc<Survey>> {
        let last = self.0.last.lock().await;
        let (_, seen) = (last.as_ref()).filter(|(at, _)| at.elapsed() < 2 * OBSERVED_EVERY)?;
        Some(Arc::clone(seen))
    }

    /// What was seen since the process began.
    pub(super) fn histograms(&self) -> CallHistograms {
        self.lock().clone()
    }

    async fn look<S: ShardControl>(&self, shards: &S, lifetime: Duration) -> Arc<Survey> {
        // Held while asking, so that a crowd waits for one answer instead of asking many times.
        let mut last = self.0.last.lock().await;
        if let Some((asked, seen)) = &*last
            && asked.elapsed() < lifetime
        {
            return Arc::clone(seen);
        }
        let seen = Arc::new(shards.survey(0, |_| false).await);
        *last = Some((Instant::now(), Arc::clone(&seen)));
        seen
    }

    fn lock(&self) -> MutexGuard<'_, CallHistograms> {
        (self.0.histograms.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

/// How calls go over all allocations, as JSON.
#[derive(Serialize)]
pub(super) struct CallsJson {
    pub rtt_ms: Legs<Option<SpreadJson>>,
    /// Shares, 0.0 to 1.0.
    pub loss: Ways<Option<SpreadJson>>,
    pub jitter_ms: Ways<Option<SpreadJson>>,
}

/// How values are spread over allocations.
#[derive(Clone, Copy, Serialize)]
pub(super) struct SpreadJson {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub mean: f64,
    /// How many allocations there are values of.
    pub allocations: usize,
}

impl SpreadJson {
    fn of(spread: Spread, unit: fn(f64) -> f64) -> Self {
        Self {
            p50: unit(spread.p50),
            p90: unit(spread.p90),
            p99: unit(spread.p99),
            mean: unit(spread.mean),
            allocations: spread.count,
        }
    }
}

/// How calls go in a word for each side and way, as readings keep it.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Brief {
    /// Medians.
    rtt_ms: Legs<Option<f64>>,
    /// Means: the median of what is mostly none says nothing.
    loss: Ways<Option<f64>>,
}

impl From<&Calls> for Brief {
    fn from(calls: &Calls) -> Self {
        Self {
            rtt_ms: Legs::of(|leg| calls.rtt(leg).map(|rtt| millis_of(rtt.p50))),
            loss: Ways::of(|direction| calls.loss(direction).map(|loss| share(loss.mean))),
        }
    }
}

impl From<&Calls> for CallsJson {
    fn from(calls: &Calls) -> Self {
        let ms = |spread: Spread| SpreadJson::of(spread, millis_of);
        let share = |spread: Spread| SpreadJson::of(spread, share);
        Self {
            rtt_ms: Legs::of(|leg: Leg| calls.rtt(leg).map(ms)),
            loss: Ways::of(|direction: Direction| calls.loss(direction).map(share)),
            jitter_ms: Ways::of(|direction: Direction| calls.jitter(direction).map(ms)),
        }
    }
}
