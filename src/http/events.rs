//! `GET /api/v1/events`: what the server does, told once a second to whoever looks, as server-sent events (HTML §9.2).
//!
//! One task observes for all watchers and ends with the last of them. What the server did before somebody came to look is
//! remembered as a reading every few seconds, in bounded memory; that is all that happens while nobody does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::access::{AuthFailure, DeniedRule};
use crate::base::{Clock, Family, Now, Transport, printable};
use crate::metrics::{Calls, ShardSnapshot, Survey};
use crate::quality::Ending;
use crate::stream::{Admission, Refusal, Refused};
use crate::turn::{Direction, DropReason, RelayKind, Stats, Traffic};
use crate::wire::ErrorCode;

use super::admin::{AdminState, AllocationJson, BothWays};
use super::lookout::{Brief, CallsJson, Lookout};
use super::serve::Cut;
use super::{Operator, ShardControl, Status, refusal};

/// How often watchers are told.
const EVERY: Duration = Duration::from_secs(1);

/// How often a reading is remembered.
const REMEMBER_EVERY: Duration = Duration::from_secs(5);

/// The longest that readings are remembered.
pub const LONGEST_HISTORY: Duration = Duration::from_secs(3600);

/// Streams that may be open at once.
const MOST_WATCHERS: usize = 32;

/// Events that may wait for one watcher. Whoever has more of them waiting does not read, and is cut off.
const WAITING: usize = 8;

/// How many of the busiest allocations are told.
const BUSIEST: usize = 20;

/// How far "of late" goes back.
const RECENT: Duration = Duration::from_secs(600);

/// How long all shards together may take to answer before watchers are told that one does not.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who looks at the server, and what it did before; cheap to clone, outlives what the admin listener answers from.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    every: Duration,
    remember_every: Duration,
    places: Arc<Semaphore>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The oldest first.
    past: VecDeque<Reading>,
    /// How many readings are remembered.
    most: usize,
    /// Counts the states of the admin listener: what an earlier one let in is over.
    epoch: u64,
    watchers: Vec<Watcher>,
    /// Whether somebody observes for the watchers of this epoch.
    observed: bool,
    /// What the watchers were told last.
    latest: Option<Bytes>,
}

struct Watcher {
    events: Sender<Bytes>,
    cut: Cut,
    _place: OwnedSemaphorePermit,
}

impl Default for Events {
    fn default() -> Self {
        Self::paced(EVERY, REMEMBER_EVERY)
    }
}

impl Events {
    /// Tells watchers, and takes readings, at another pace: for tests.
    #[doc(hidden)]
    pub fn paced(every: Duration, remember_every: Duration) -> Self {
        Self(Arc::new(Shared {
            every,
            remember_every,
            places: Arc::new(Semaphore::new(MOST_WATCHERS)),
            inner: Mutex::default(),
        }))
    }

    /// How far readings go back from now on; none at zero.
    pub fn set_history(&self, history: Duration) {
        let readings = history.min(LONGEST_HISTORY).as_millis() / self.0.remember_every.as_millis();
        let mut inner = self.lock();
        // The oldest is where the first rate begins.
        inner.most = match readings {
            0 => 0,
            readings => readings as usize + 1,
        };
        let surplus = inner.past.len().saturating_sub(inner.most);
        inner.past.drain(..surplus);
    }

    /// Ends the streams of everybody who was let in so far: who may look is decided anew.
    pub fn dismiss(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.observed = false;
        inner.latest = None;
        inner.watchers.clear();
    }

    /// Takes a reading every few seconds, if any are to be remembered; never returns.
    pub async fn remember_forever<S: ShardControl>(
        self,
        shards: S,
        admission: Arc<Admission>,
        lookout: Lookout,
    ) {
        let mut tick = interval(self.0.remember_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.lock().most == 0 {
                continue;
            }
            let asked = async { (shards.snapshot().await, lookout.last().await) };
            if let Ok((totals, seen)) = timeout(PATIENCE, asked).await {
                let calls = seen.as_ref().map(|seen| &seen.calls);
                let refused = admission.refused();
                self.remember(Reading::new(Clock.now(), &totals, refused, calls));
            }
        }
    }

    fn remember(&self, reading: Reading) {
        let mut inner = self.lock();
        if inner.past.len() >= inner.most {
            inner.past.pop_front();
        }
        if inner.past.len() < inner.most {
            inner.past.push_back(reading);
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Opens a stream for whoever `state` let in.
    async fn open<S: ShardControl>(
        &self,
        state: &AdminState<S>,
        cut: Cut,
    ) -> Result<Body, &'static str> {
        let place = Arc::clone(&self.0.places)
            .try_acquire_owned()
            .map_err(|_| "32 watch already: close a dashboard and try again")?;
        let (mut events, body) = Channel::new(WAITING);
        let (past, latest) = {
            let inner = self.lock();
            (past(&inner.past), inner.latest.clone())
        };
        for event in [Some(event("past", &past)), latest].into_iter().flatten() {
            // There is room for both.
            let _ = events.send_data(event).await;
        }
        let mut inner = self.lock();
        if inner.epoch != state.epoch {
            return Err("the configuration has changed: ask again");
        }
        inner.watchers.push(Watcher {
            events,
            cut,
            _place: place,
        });
        if !std::mem::replace(&mut inner.observed, true) {
            tokio::spawn(observe_forever(self.clone(), state.clone()));
        }
        Ok(Body::new(body))
    }

    /// Whether anybody of `epoch` looks; if not, whoever asks has to end.
    fn is_watched(&self, epoch: u64) -> bool {
        let mut inner = self.lock();
        if inner.epoch != epoch {
            return false;
        }
        inner.observed = !inner.watchers.is_empty();
        if !inner.observed {
            inner.latest = None;
        }
        inner.observed
    }

    /// Hands `event` to everybody who looks, and lets go of those who are gone or do not read.
    async fn tell(&self, epoch: u64, event: Bytes) {
        let watchers = {
            let mut inner = self.lock();
            if inner.epoch != epoch {
                return;
            }
            inner.latest = Some(event.clone());
            std::mem::take(&mut inner.watchers)
        };
        let mut stay = Vec::with_capacity(watchers.len());
        for mut watcher in watchers {
            if watcher.events.capacity() == 0 {
                watcher.cut.cut();
            } else if watcher.events.send_data(event.clone()).await.is_ok() {
                stay.push(watcher);
            }
        }
        let mut inner = self.lock();
        if inner.epoch == epoch {
            inner.watchers.append(&mut stay);
        }
    }

    /// The latest reading that is old enough to tell a rate, and the one that "of late" counts from.
    fn marks(&self, now: Now) -> (Option<Reading>, Option<Reading>) {
        let inner = self.lock();
        let age = |reading: &&Reading| now.mono.saturating_duration_since(reading.at.mono);
        let last = inner.past.iter().rev().find(|one| age(one) >= self.0.every);
        let recent = inner.past.iter().find(|one| age(one) <= RECENT);
        (last.cloned(), recent.cloned())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        (self.0.inner.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream of events, until the client or the server has had enough.
pub(super) async fn stream<S: ShardControl>(
    State(state): State<AdminState<S>>,
    cut: Option<Extension<Cut>>,
) -> Response {
    let cut = cut.map(|Extension(cut)| cut).unwrap_or_default();
    match state.events.open(&state, cut).await {
        Ok(body) => {
            let kind = HeaderValue::from_static("text/event-stream");
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(reason) => {
            let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, reason);
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
    }
}

/// Observes as long as somebody looks.
async fn observe_forever<S: ShardControl>(events: Events, state: AdminState<S>) {
    let mut tick = interval(events.0.every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    loop {
        tick.tick().await;
        if !events.is_watched(state.epoch) {
            return;
        }
        let (last, recent) = events.marks(Clock.now());
        let (told, reading) = observe(&state, before.take().or(last).as_ref(), recent).await;
        before = reading;
        events.tell(state.epoch, event("now", &told)).await;
    }
}

/// What watchers are told, and the reading behind it; less where a shard does not answer.
async fn observe<S: ShardControl>(
    state: &AdminState<S>,
    before: Option<&Reading>,
    recent: Option<Reading>,
) -> (Value, Option<Reading>) {
    let status = state.health.status().await;
    let mut told = standing(state, status);
    if status == Status::Degraded {
        return (told, None);
    }
    let asked = async {
        let totals = state.shards.snapshot().await;
        let at = Clock.now();
        (totals, at, state.shards.survey(BUSIEST, |_| true).await)
    };
    let Ok((totals, at, survey)) = timeout(PATIENCE, asked).await else {
        told["status"] = Status::Degraded.label().into();
        return (told, None);
    };
    let refused = state.admission.refused();
    let reading = Reading::new(at, &totals, refused, Some(&survey.calls));
    let busiest: Vec<_> = survey.busiest.iter().map(AllocationJson::from).collect();
    told["at_ms"] = unix_ms(at).into();
    told["traffic"] = json!({
        "bits_per_second": before.map(|before| reading.bits_per_second(before)),
        "packets_per_second": before.map(|before| reading.packets_per_second(before)),
        "bytes": BothWays::of(|direction| reading.relayed[direction as usize].bytes),
        "packets": BothWays::of(|direction| reading.relayed[direction as usize].packets),
    });
    told["allocations"] = reading.live.into();
    told["allocated"] = json!({
        "succeeded": reading.succeeded,
        "failed": reading.failed,
        "recent": recent.as_ref().map(|since| json!({
            "succeeded": reading.succeeded.saturating_sub(since.succeeded),
            "failed": reading.failed.saturating_sub(since.failed),
        })),
    });
    told["recent_secs"] = (recent.as_ref())
        .map(|since| reading.since(since).as_secs())
        .into();
    told["failures"] = failures(&totals.stats, refused, recent.as_ref());
    told["transports"] = transports(&totals, &survey);
    told["calls"] = calls(&survey.calls, &reading, recent.as_ref());
    told["busiest"] = json!(busiest);
    (told, Some(reading))
}

/// How calls go, and what became of those that have ended.
fn calls(calls: &Calls, reading: &Reading, recent: Option<&Reading>) -> Value {
    let mut told = json!(CallsJson::from(calls));
    told["sessions"] = json!(calls.sessions);
    let ended = |before: Option<&Reading>| {
        let before = before.map_or([0; Ending::ALL.len()], |before| before.endings);
        let since = std::array::from_fn(|at| reading.endings[at].saturating_sub(before[at]));
        let mut told: Map<_, _> = (Ending::ALL.into_iter().zip(since))
            .map(|(ending, count)| (ending.label().to_owned(), count.into()))
            .collect();
        told.insert("success_ratio".into(), json!(Ending::success_ratio(since)));
        Value::Object(told)
    };
    told["ended"] = ended(None);
    told["ended_recently"] = recent.map(|recent| ended(Some(recent))).into();
    told
}

/// What is told of the server without asking a shard.
fn standing<S: ShardControl>(state: &AdminState<S>, status: Status) -> Value {
    let settings = &state.settings;
    let capacity = state.shards.capacity();
    let ports: serde_json::Map<_, _> = (Family::ALL.into_iter())
        .map(|family| {
            let ports = json!({
                "in_use": capacity.ports_in_use[family as usize],
                "total": capacity.ports[family as usize],
            });
            (family.label().to_owned(), ports)
        })
        .collect();
    let expiry = state.certificates.as_ref().map(|all| all.not_after_unix());
    let certificates: Vec<_> = (expiry.into_iter())
        .map(|expires| json!({ "expires": expires }))
        .collect();
    let operator = state.operator.as_ref();
    json!({
        "at_ms": unix_ms(Clock.now()),
        "status": status.label(),
        "node": settings.node,
        "region": settings.region,
        "version": settings.version,
        "deadline": operator.and_then(Operator::drain_deadline_unix),
        "reload": operator.and_then(Operator::reloaded),
        "certificates": certificates,
        "capacity": {
            "ratio": capacity.ratio(),
            "ports": ports,
            "allocations": { "live": capacity.allocations, "limit": capacity.limit },
            "allocations_per_user": settings.quotas.allocations_per_user,
            "allocations_per_address": settings.quotas.allocations_per_address,
            "share_per_user": settings.quotas.share_per_user,
            "bandwidth": settings.bandwidth.total,
            "bandwidth_per_user": settings.bandwidth.per_user,
            "bandwidth_per_allocation": settings.bandwidth.per_allocation,
        },
    })
}

fn transports(totals: &ShardSnapshot, survey: &Survey) -> Value {
    let all = Transport::ALL.map(|transport| {
        let live = totals.stats.live[transport as usize];
        let rates = survey.bits_per_second[transport as usize];
        let live: serde_json::Map<_, _> = (RelayKind::ALL.into_iter())
            .map(|kind| (kind.label().to_owned(), live[kind as usize].into()))
            .collect();
        json!({
            "transport": transport.label(),
            "allocations": live,
            "connections": totals.stream_connections[transport as usize],
            "bits_per_second": BothWays::of(|direction| rates[direction as usize]),
        })
    });
    json!(all)
}

/// Everything that went wrong since the start, and how much of it of late; what never happened is left out.
fn failures(stats: &Stats, refused: Refused, recent: Option<&Reading>) -> Value {
    let all: Vec<_> = (reasons(stats, refused).enumerate())
        .filter(|(_, (_, _, total))| *total > 0)
        .map(|(index, (kind, reason, total))| {
            let before = recent.map(|since| since.reasons.get(index).copied().unwrap_or_default());
            json!({
                "kind": kind,
                "reason": reason,
                "total": total,
                "recent": before.map(|before| total.saturating_sub(before)),
            })
        })
        .collect();
    json!(all)
}

/// Every kind of failure and its reasons, always in the same order.
fn reasons(
    stats: &Stats,
    refused: Refused,
) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    let allocated = stats.allocated();
    let codes = ErrorCode::ALL.into_iter().zip(allocated.refused);
    let credentials = AuthFailure::ALL
        .into_iter()
        .zip(allocated.wrong_credentials);
    let peers = DeniedRule::ALL.into_iter().zip(stats.peer_denied);
    let dropped = DropReason::ALL.into_iter().zip(stats.dropped);
    let streams = Refusal::ALL.into_iter().zip(refused);
    (codes.map(|(code, count)| ("allocate", code.label(), count)))
        .chain(credentials.map(|(reason, count)| ("credentials", reason.label(), count)))
        .chain(peers.map(|(rule, count)| ("peer", rule.label(), count)))
        .chain(dropped.map(|(reason, count)| ("dropped", reason.label(), count)))
        .chain(streams.map(|(reason, count)| ("connection", reason.label(), count)))
}

/// What the server had counted at one moment.
#[derive(Clone)]
struct Reading {
    at: Now,
    relayed: [Traffic; Direction::ALL.len()],
    live: u64,
    succeeded: u64,
    failed: u64,
    /// The counts of [`reasons`].
    reasons: Box<[u64]>,
    /// What became of calls.
    endings: [u64; Ending::ALL.len()],
    /// How those went that there were.
    calls: Option<Brief>,
}

impl Reading {
    fn new(at: Now, totals: &ShardSnapshot, refused: Refused, calls: Option<&Calls>) -> Self {
        let stats = &totals.stats;
        let allocated = stats.allocated();
        Self {
            at,
            relayed: stats.relayed.map(|paths| Traffic {
                bytes: paths.iter().map(|path| path.bytes).sum(),
                packets: paths.iter().map(|path| path.packets).sum(),
            }),
            live: stats.live.as_flattened().iter().sum(),
            succeeded: allocated.succeeded,
            failed: allocated.failed(),
            reasons: reasons(stats, refused).map(|(_, _, count)| count).collect(),
            endings: stats.sessions,
            calls: calls.map(Brief::from),
        }
    }

    fn since(&self, before: &Self) -> Duration {
        self.at.mono.saturating_duration_since(before.at.mono)
    }

    fn bits_per_second(&self, before: &Self) -> BothWays {
        let bits = |traffic: Traffic| traffic.bytes.saturating_mul(8);
        BothWays::of(|direction| self.rate(before, direction, bits))
    }

    fn packets_per_second(&self, before: &Self) -> BothWays {
        BothWays::of(|direction| self.rate(before, direction, |traffic| traffic.packets))
    }

    fn rate(&self, before: &Self, direction: Direction, of: impl Fn(Traffic) -> u64) -> u64 {
        let count = |reading: &Self| of(reading.relayed[direction as usize]);
        let secs = self.since(before).as_secs_f64().max(0.001);
        (count(self).saturating_sub(count(before)) as f64 / secs).round() as u64
    }
}

/// Readings as a page draws them, each with the rates since the one before.
fn past(readings: &VecDeque<Reading>) -> Value {
    let pairs = readings.iter().zip(readings.iter().skip(1));
    let shown: Vec<_> = pairs
        .map(|(before, reading)| {
            json!({
                "at_ms": unix_ms(reading.at),
                "bits_per_second": reading.bits_per_second(before),
                "packets_per_second": reading.packets_per_second(before),
                "allocations": reading.live,
                "succeeded": reading.succeeded,
                "failed": reading.failed,
                "calls": reading.calls,
            })
        })
        .collect();
    json!(shown)
}

fn unix_ms(at: Now) -> u64 {
    at.unix.as_millis() as u64
}

/// One event. JSON of one line: what would end it is escaped in there.
fn event(name: &str, data: &Value) -> Bytes {
    let data = data.to_string();
    format!("event: {name}\ndata: {}\n\n", printable::json(&data)).into()
}
