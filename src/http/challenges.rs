//! What an ACME authority asks for on port 80 (HTTP-01, RFC 8555 §8.3).

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::refusal;
use crate::stream::Challenges;

/// The path of tokens: those of `challenges` are answered, every other one is not found.
pub fn routes(challenges: Arc<Challenges>) -> Router {
    Router::new()
        .route("/.well-known/acme-challenge/{token}", get(token))
        .with_state(challenges)
}

async fn token(State(challenges): State<Arc<Challenges>>, Path(token): Path<String>) -> Response {
    match challenges.key_authorization(&token) {
        Some(answer) => {
            let kind = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CACHE_CONTROL, "no-store"),
            ];
            (kind, answer).into_response()
        }
        None => refusal(StatusCode::NOT_FOUND, "not found"),
    }
}
