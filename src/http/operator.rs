//! What the admin API asks of whoever runs the server, who is above this module.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::refusal;

/// Orders that may wait; they are carried out one after the other.
const WAITING: usize = 16;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration again and apply it, whole or not at all.
    Reload,
    /// Take no new allocations, and stop once the last one has ended.
    Drain {
        /// After which time the rest is ended; `None`: as configured.
        deadline: Option<Duration>,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Whether it was done.
    pub done: bool,
    /// What was done, or why nothing was.
    pub body: Value,
}

/// One order and where its outcome goes.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub order: Order,
    /// Who waits for the outcome.
    pub answer: oneshot::Sender<Outcome>,
}

/// How the latest reload went, whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastReload {
    /// When, in seconds since the Unix epoch.
    pub at: u64,
    /// Whether the configuration is in effect.
    pub applied: bool,
    /// What was wrong with it.
    pub problems: Vec<String>,
}

/// The way to whoever runs the server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Operator {
    orders: mpsc::Sender<Asked>,
    drain_deadline_unix_ms: Arc<AtomicU64>,
    reloaded: Arc<Mutex<Option<LastReload>>>,
}

impl Operator {
    /// An operator whose orders arrive at the second value. `drain_deadline_unix_ms` says when a drain ends, 0 while
    /// there is none.
    pub fn new(drain_deadline_unix_ms: Arc<AtomicU64>) -> (Self, mpsc::Receiver<Asked>) {
        let (orders, receiver) = mpsc::channel(WAITING);
        (
            Self {
                orders,
                drain_deadline_unix_ms,
                reloaded: Arc::default(),
            },
            receiver,
        )
    }

    /// When a drain ends what is left, in seconds since the Unix epoch.
    pub fn drain_deadline_unix(&self) -> Option<u64> {
        match self.drain_deadline_unix_ms.load(Ordering::Relaxed) {
            0 => None,
            unix_ms => Some(unix_ms / 1000),
        }
    }

    /// Tells whoever looks how a reload went, and the first ten problems.
    pub fn note_reload(&self, mut reloaded: LastReload) {
        reloaded.problems.truncate(10);
        *self.reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(reloaded);
    }

    /// How the latest reload went, if there was one.
    pub fn reloaded(&self) -> Option<LastReload> {
        let reloaded = self.reloaded.lock();
        reloaded.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has `order` carried out: 200 if it was done, 422 if it was refused.
    pub(super) async fn ask(&self, order: Order) -> Response {
        let (answer, outcome) = oneshot::channel();
        if self.orders.try_send(Asked { order, answer }).is_err() {
            return refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "the server is busy with other orders or stops; try again",
            );
        }
        match outcome.await {
            Ok(Outcome { done: true, body }) => Json(body).into_response(),
            Ok(Outcome { done: false, body }) => {
                (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
            }
            Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "the server stops"),
        }
    }
}
