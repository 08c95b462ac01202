//! Cloudflare: credentials of a TURN key, and their revocation.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::rest;
use crate::base::Clock;
use crate::http::ice::{Minted, Refusal, Service};
use crate::http::serve::Peer;
use crate::http::{ShardControl, refusal};

use super::{Shown, Wanted, minted, read_json, respond};

/// No key mints for longer: what is said to end later than that was not minted.
const LONGEST: Duration = Duration::from_secs(48 * 3600);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Order {
    ttl: Option<u64>,
    custom_identifier: Option<String>,
}

pub(super) async fn generate<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let minted = mint(&service, peer, &id, &headers, &body);
    respond(minted, StatusCode::CREATED, |minted| {
        let stun = minted.stun.iter().map(|url| json!({ "urls": [url] }));
        let servers: Vec<Value> = stun.chain([minted.turn_server()]).collect();
        json!({ "iceServers": servers })
    })
}

/// The older form: one object in place of a list.
pub(super) async fn generate_one<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let minted = mint(&service, peer, &id, &headers, &body);
    respond(minted, StatusCode::CREATED, |minted| {
        let urls: Vec<&String> = minted.stun.iter().chain(&minted.urls).collect();
        let server = json!({
            "urls": urls,
            "username": minted.username,
            "credential": minted.credential,
        });
        json!({ "iceServers": server })
    })
}

fn mint<S: ShardControl>(
    service: &Service<S>,
    peer: Peer,
    id: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Minted, Refusal> {
    let order: Order = read_json(body)?;
    let user = order.custom_identifier.unwrap_or_default();
    let shown = Shown::bearer(headers).named(id);
    let wanted = Wanted {
        user: &user,
        ttl_secs: order.ttl,
        ..Wanted::default()
    };
    minted(service, peer, &shown, wanted)
}

/// Ends a credential that the key has minted; 204 as well where it has ended by itself.
pub(super) async fn revoke<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(Peer(client)): Extension<Peer>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let Ok(Path((id, username))) = path else {
        return refusal(
            StatusCode::BAD_REQUEST,
            "the path is not percent-encoded UTF-8",
        );
    };
    let offer = service.offer();
    let shown = Shown::bearer(&headers).named(&id);
    let key = match service.key(&offer.keys, client.ip(), Some(&id), shown.secret()) {
        Ok(key) => key,
        Err(refused) => return refused.response(),
    };
    let now_unix = Clock.now().unix_secs();
    let latest = now_unix.saturating_add(LONGEST.as_secs());
    let minted = rest::parse(&username)
        .filter(|limited| limited.key == Some(&key.id) && limited.expires_unix <= latest);
    match minted {
        None => refusal(
            StatusCode::NOT_FOUND,
            "this key has minted no credential of this name",
        ),
        Some(limited) if limited.expires_unix <= now_unix => StatusCode::NO_CONTENT.into_response(),
        Some(_) => match service.revoke(key, &username).await {
            Ok(_) => StatusCode::NO_CONTENT.into_response(),
            Err(refused) => refused.response(),
        },
    }
}
