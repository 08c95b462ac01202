//! HTTP: the admin listener, and what strangers may ask on ports that speak TURN too.
//!
//! Owns routes and pages. Asks shards through `ShardControl`, and never keeps state about a client between requests.

pub mod admin;
pub mod capture;
pub mod challenges;
mod dialects;
mod door;
pub mod events;
pub mod ice;
pub mod keys;
mod lookout;
mod operator;
mod outage;
mod pages;
pub mod public;
mod quality;
mod revocations;
mod serve;
mod sigv4;
pub mod status;
mod totals;
mod trace;
pub mod visits;
mod why;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::access::Revocations;
use crate::base::printable;
use crate::base::trace::Traces;
use crate::metrics::{Capacity, NamedAllocation, ShardSnapshot, Survey};
use crate::shard::{Captured, Shards};
use crate::turn::AllocationView;
use crate::why::{Evidence, Query};

pub use capture::Captures;
pub use door::{MIN_TOKEN_CHARS, Token};
pub use events::Events;
pub use lookout::Lookout;
pub use operator::{Asked, LastReload, Operator, Order, Outcome};
pub use serve::{Front, Limits};

/// What HTTP asks of the shards; a trait so that tests can stand in for them.
pub trait ShardControl: Clone + Send + Sync + 'static {
    /// See `Shards::snapshot`.
    fn snapshot(&self) -> impl Future<Output = ShardSnapshot> + Send;
    /// See `Shards::allocations`.
    fn allocations(&self, most: usize) -> impl Future<Output = Vec<NamedAllocation>> + Send;
    /// See `Shards::survey`.
    fn survey(
        &self,
        most: usize,
        wanted: impl Fn(&AllocationView) -> bool + Send + Sync,
    ) -> impl Future<Output = Survey> + Send;
    /// See `Shards::allocation`.
    fn allocation(&self, name: &str) -> impl Future<Output = Option<NamedAllocation>> + Send;
    /// See `Shards::end_allocation`.
    fn end_allocation(&self, name: &str) -> impl Future<Output = bool> + Send;
    /// See `Shards::end_user`.
    fn end_user(&self, user: &str) -> impl Future<Output = usize> + Send;
    /// See `Shards::alive`.
    fn alive(&self) -> impl Future<Output = bool> + Send;
    /// See `Shards::capacity`.
    fn capacity(&self) -> Capacity;
    /// See `Shards::set_traces`.
    fn set_traces(&self, _traces: &Arc<Traces>) {}
    /// See `Shards::why`.
    fn why(&self, _query: &Query) -> impl Future<Output = Evidence> + Send {
        std::future::ready(Evidence::default())
    }
    /// See `Shards::revoke`.
    fn revoke(&self, _revoked: Revocations) -> impl Future<Output = usize> + Send {
        std::future::ready(0)
    }
    /// See `Shards::capture`.
    fn capture(
        &self,
        _name: &str,
        _payload: bool,
    ) -> impl Future<Output = Option<Captured>> + Send {
        std::future::ready(None)
    }
}

impl ShardControl for Shards {
    async fn snapshot(&self) -> ShardSnapshot {
        Self::snapshot(self).await
    }

    async fn allocations(&self, most: usize) -> Vec<NamedAllocation> {
        Self::allocations(self, most).await
    }

    async fn survey(
        &self,
        most: usize,
        wanted: impl Fn(&AllocationView) -> bool + Send + Sync,
    ) -> Survey {
        Self::survey(self, most, wanted).await
    }

    async fn allocation(&self, name: &str) -> Option<NamedAllocation> {
        Self::allocation(self, name).await
    }

    async fn end_allocation(&self, name: &str) -> bool {
        Self::end_allocation(self, name).await
    }

    async fn end_user(&self, user: &str) -> usize {
        Self::end_user(self, user).await
    }

    async fn alive(&self) -> bool {
        Self::alive(self).await
    }

    fn capacity(&self) -> Capacity {
        Self::capacity(self)
    }

    fn set_traces(&self, traces: &Arc<Traces>) {
        Self::set_traces(self, traces);
    }

    async fn why(&self, query: &Query) -> Evidence {
        Self::why(self, query).await
    }

    async fn revoke(&self, revoked: Revocations) -> usize {
        Self::revoke(self, revoked).await
    }

    async fn capture(&self, name: &str, payload: bool) -> Option<Captured> {
        Self::capture(self, name, payload).await
    }
}

/// Whether the server should get new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Everything answers.
    Ok,
    /// Being emptied on purpose: no new clients, please.
    Draining,
    /// A shard does not answer.
    Degraded,
}

impl Status {
    /// The word in JSON answers.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Draining => "draining",
            Self::Degraded => "degraded",
        }
    }

    const fn code(self) -> StatusCode {
        match self {
            Self::Ok => StatusCode::OK,
            Self::Draining | Self::Degraded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// For how long an answer of the shards about their health stands: whoever asks more often costs them nothing.
const HEALTH_LIFETIME: Duration = Duration::from_secs(1);

/// The server's health, asked of the shards at most once a second however many ask here.
#[derive(Clone, Debug)]
pub struct Health<S> {
    shards: S,
    draining: Arc<AtomicBool>,
    last: Arc<Mutex<Option<(Instant, bool)>>>,
}

impl<S: ShardControl> Health<S> {
    /// Asks `shards`, unless `draining` is set.
    pub fn new(shards: S, draining: Arc<AtomicBool>) -> Self {
        Self {
            shards,
            draining,
            last: Arc::default(),
        }
    }

    /// Whether new clients are welcome.
    pub async fn status(&self) -> Status {
        if !self.alive().await {
            Status::Degraded
        } else if self.draining.load(Ordering::Relaxed) {
            Status::Draining
        } else {
            Status::Ok
        }
    }

    async fn alive(&self) -> bool {
        // Held while asking, so that a crowd waits for one answer instead of asking many times.
        let mut last = self.last.lock().await;
        if let Some((asked, alive)) = *last
            && asked.elapsed() < HEALTH_LIFETIME
        {
            return alive;
        }
        let alive = self.shards.alive().await;
        *last = Some((Instant::now(), alive));
        alive
    }
}

/// A refusal as JSON: `{"error": …}`.
fn refusal(code: StatusCode, message: &str) -> Response {
    json(code, &serde_json::json!({ "error": message }))
}

/// An answer in JSON. Names in it are somebody's text, and people read it on terminals.
fn json(code: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (code, kind, printable::json(&text).into_owned()).into_response()
        }
        Err(error) => {
            debug_assert!(false, "an answer does not encode: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
