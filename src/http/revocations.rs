//! `/api/v1/revocations`: what is revoked, and the orders to revoke something or to do so no longer.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::access::{Revocation, RevokedKind};
use crate::base::Clock;
use crate::base::time::duration;
use crate::cluster::ledger::{By, LedgerError, Listed};

use super::admin::{AdminState, is_from_elsewhere};
use super::ice::put_into_effect;
use super::{ShardControl, refusal};

/// `{"user": "alice", "for": "24h"}`, or `credential` or `key` in place of `user`; without `for`, for good.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    credential: Option<String>,
    user: Option<String>,
    key: Option<String>,
    #[serde(rename = "for")]
    lasts: Option<String>,
}

/// One revocation as the API shows it.
#[derive(Serialize)]
struct Shown<'a> {
    kind: &'static str,
    name: &'a str,
    /// Seconds since the Unix epoch; none where a file says so.
    since: Option<u64>,
    /// Seconds since the Unix epoch; none: for good.
    until: Option<u64>,
    by: String,
}

impl<'a> Shown<'a> {
    fn new(revocation: &'a Revocation, since: Option<u64>, by: &By) -> Self {
        Self {
            kind: revocation.kind.label(),
            name: &revocation.name,
            since,
            until: revocation.until_unix,
            by: by.to_string(),
        }
    }
}

/// What came of an order.
#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    shown: Shown<'a>,
    /// Allocations that were ended.
    ended: usize,
    /// Whether it outlives the process.
    kept: bool,
}

pub(super) async fn list<S: ShardControl>(State(state): State<AdminState<S>>) -> Response {
    let listed = state.ledger.list(Clock.now().unix_secs());
    let shown: Vec<_> = (listed.iter())
        .map(
            |Listed {
                 revocation,
                 since_unix,
                 by,
             }| Shown::new(revocation, *since_unix, by),
        )
        .collect();
    super::json(StatusCode::OK, &shown)
}

/// Takes JSON by its content type only, which no page of another origin may send unasked.
pub(super) async fn revoke<S: ShardControl>(
    State(state): State<AdminState<S>>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Response {
    let asked = match asked {
        Ok(Json(asked)) => asked,
        Err(error) => return refusal(error.status(), &error.body_text()),
    };
    let (kind, name) = match (asked.credential, asked.user, asked.key) {
        (Some(name), None, None) => (RevokedKind::Credential, name),
        (None, Some(name), None) => (RevokedKind::User, name),
        (None, None, Some(name)) => (RevokedKind::Key, name),
        _ => {
            return refusal(
                StatusCode::BAD_REQUEST,
                "name a credential, a user or a key, and one of them only",
            );
        }
    };
    let lasts = match asked.lasts.as_deref().map(duration).transpose() {
        Ok(lasts) => lasts,
        Err(wanted) => {
            return refusal(StatusCode::BAD_REQUEST, &format!("for: write {wanted}"));
        }
    };
    if lasts.is_some_and(|lasts| lasts < Duration::from_secs(1)) {
        return refusal(
            StatusCode::BAD_REQUEST,
            "for: write a second or more; DELETE undoes a revocation",
        );
    }
    let now_unix = Clock.now().unix_secs();
    let until_unix = lasts.map(|lasts| now_unix.saturating_add(lasts.as_secs()));
    let revoked = (state.ledger).revoke(kind, &name, until_unix, By::Operator, now_unix);
    let changed = match revoked {
        Ok(changed) => changed,
        Err(error) => return refused(error),
    };
    let (until_unix, kept) = (changed.until_unix, changed.written.is_some());
    let ended = put_into_effect(&state.shards, changed).await;
    tracing::info!(kind = kind.label(), name, until_unix, ended, kept, by = %By::Operator, "revoked");
    let revocation = Revocation {
        kind,
        name,
        until_unix,
    };
    let done = Done {
        shown: Shown::new(&revocation, Some(now_unix), &By::Operator),
        ended,
        kept,
    };
    super::json(StatusCode::CREATED, &done)
}

pub(super) async fn lift<S: ShardControl>(
    State(state): State<AdminState<S>>,
    headers: HeaderMap,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Response {
    if is_from_elsewhere(&headers) {
        return refusal(
            StatusCode::FORBIDDEN,
            "pages of other origins give no orders here",
        );
    }
    let Ok(Path((kind, name))) = path else {
        return super::admin::unreadable();
    };
    let Some(kind) = RevokedKind::of(&kind) else {
        return refusal(
            StatusCode::NOT_FOUND,
            "a revocation is of a credential, a user or a key",
        );
    };
    let now_unix = Clock.now().unix_secs();
    if state.ledger.revoked_by(kind, &name, now_unix) == Some(By::File) {
        return refusal(
            StatusCode::CONFLICT,
            "auth.revoked_file says so: remove the line there",
        );
    }
    match state.ledger.lift(kind, &name, None, now_unix) {
        Ok(Some(changed)) => {
            put_into_effect(&state.shards, changed).await;
            tracing::info!(kind = kind.label(), name, "revoked no longer");
            StatusCode::NO_CONTENT.into_response()
        }
        Ok(None) => refusal(
            StatusCode::NOT_FOUND,
            "nothing of this name is revoked; GET /api/v1/revocations lists what is",
        ),
        Err(error) => refused(error),
    }
}

fn refused(error: LedgerError) -> Response {
    let code = match error {
        LedgerError::Name => StatusCode::BAD_REQUEST,
        LedgerError::Full => StatusCode::INSUFFICIENT_STORAGE,
        LedgerError::Leaving => StatusCode::SERVICE_UNAVAILABLE,
    };
    refusal(code, &error.to_string())
}
