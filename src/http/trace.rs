//! Detailed logs of one user or address for some minutes, switched on while the server runs.

use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::base::trace::{MOST, Subject, Trace, Traces};
use crate::base::{Clock, Pii};

use super::admin::AdminState;
use super::{ShardControl, refusal};

/// The longest trace.
const MOST_MINUTES: u32 = 24 * 60;

/// `{"user": "alice", "minutes": 5}` or `{"address": "198.51.100.7", "minutes": 5}`; zero minutes end it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    user: Option<String>,
    address: Option<IpAddr>,
    minutes: u32,
}

/// One trace as the API shows it.
#[derive(Serialize)]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    seconds_left: u64,
}

impl Shown {
    fn new(subject: &Subject, left: Duration) -> Self {
        let (user, address) = match subject {
            Subject::User(user) => (Some(user.clone()), None),
            Subject::Address(ip) => (None, Some(Pii(*ip).to_string())),
        };
        Self {
            user,
            address,
            seconds_left: left.as_secs(),
        }
    }
}

pub(super) async fn list<S: ShardControl>(State(state): State<AdminState<S>>) -> Response {
    let now = Clock.now().mono;
    let shown: Vec<_> = (lock(&state).live(now))
        .map(|trace| Shown::new(&trace.subject, trace.until.saturating_duration_since(now)))
        .collect();
    super::json(StatusCode::OK, &shown)
}

/// Takes JSON by its content type only, which no page of another origin may send unasked.
pub(super) async fn change<S: ShardControl>(
    State(state): State<AdminState<S>>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Response {
    let asked = match asked {
        Ok(Json(asked)) => asked,
        Err(error) => return refusal(error.status(), &error.body_text()),
    };
    let subject = match (asked.user, asked.address) {
        (Some(user), None) if !user.is_empty() => Subject::User(user),
        (None, Some(ip)) => Subject::Address(ip.to_canonical()),
        _ => {
            return refusal(
                StatusCode::BAD_REQUEST,
                "name a user or an address, and one of them only",
            );
        }
    };
    if asked.minutes > MOST_MINUTES {
        return refusal(
            StatusCode::BAD_REQUEST,
            "a trace lasts 1440 minutes at most",
        );
    }
    let now = Clock.now().mono;
    let left = Duration::from_secs(u64::from(asked.minutes) * 60);
    let shown = Shown::new(&subject, left);
    let mut traces = lock(&state);
    let done = if left.is_zero() {
        traces.end(now, &subject)
    } else {
        let until = now + left;
        traces.begin(now, Trace { subject, until })
    };
    if done {
        // Under the lock, so that shards get changes in their order.
        state.shards.set_traces(&Arc::new(traces.clone()));
    }
    drop(traces);
    match (done, left.is_zero()) {
        (true, true) => StatusCode::NO_CONTENT.into_response(),
        (true, false) => {
            tracing::info!(
                user = shown.user.as_deref(),
                address = shown.address,
                minutes = asked.minutes,
                "a trace begins: see target turnix::trace"
            );
            super::json(StatusCode::CREATED, &shown)
        }
        (false, true) => refusal(StatusCode::NOT_FOUND, "nobody traces that"),
        (false, false) => {
            let why = format!("{MOST} traces run already: end one with \"minutes\": 0");
            refusal(StatusCode::CONFLICT, &why)
        }
    }
}

fn lock<S>(state: &AdminState<S>) -> MutexGuard<'_, Traces> {
    state.traces.lock().unwrap_or_else(PoisonError::into_inner)
}
