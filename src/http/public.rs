//! What anyone may ask on a listener that speaks `http`: a health check without detail, the test page, and with an API key
//! the ICE configuration service.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;

use super::ice::{self, Service};
use super::status::{self, Board};
use super::visits::{self, Visits};
use super::{Health, ShardControl, dialects, json, refusal};

/// The routes of public listeners; `draining` is set while the server is being emptied.
pub fn router<S: ShardControl>(
    shards: S,
    draining: Arc<AtomicBool>,
    service: Service<S>,
    visits: Visits,
    board: Board,
) -> Router {
    Router::new()
        .route("/health", get(health))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "not found"))
        .method_not_allowed_fallback(async || {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .with_state(Health::new(shards, draining))
        .merge(dialects::routes(service.clone()))
        .merge(ice::routes(service))
        .merge(visits::routes(visits))
        .merge(status::routes(board))
}

async fn health<S: ShardControl>(State(health): State<Health<S>>) -> Response {
    let status = health.status().await;
    json(
        status.code(),
        &serde_json::json!({ "status": status.label() }),
    )
}
