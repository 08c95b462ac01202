//! The credential services of others, so that an application which uses one of them changes its base URL only: same paths,
//! same authentication, same status codes, same JSON.
//!
//! | service | request | key |
//! |---|---|---|
//! | Twilio | `POST /2010-04-01/Accounts/{id}/Tokens.json` | Basic, id and secret |
//! | Cloudflare | `POST /v1/turn/keys/{id}/credentials/generate-ice-servers`, `…/{username}/revoke` | Bearer |
//! | Metered | `GET /api/v1/turn/credentials?apiKey=`, `/api/v1/turn/credential?secretKey=` and what manages them | in the query |
//! | TURN REST (draft-uberti-behave-turn-rest-00) | `GET /?service=turn&username=&key=` | in the query |
//! | Xirsys | `PUT /_turn/{channel}` | Basic, id and secret |
//! | AWS Kinesis Video | `POST /v1/get-ice-server-config` | signed (Signature Version 4), or Bearer |

mod cloudflare;
mod kinesis;
mod metered;

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::base::Clock;

use super::ice::{Minted, Order, Refusal, Service, authorization};
use super::serve::Peer;
use super::{ShardControl, refusal};

/// The routes of every dialect.
pub(super) fn routes<S: ShardControl>(service: Service<S>) -> Router {
    Router::new()
        .route("/2010-04-01/Accounts/{id}/Tokens.json", post(twilio))
        .route(
            "/v1/turn/keys/{id}/credentials/generate-ice-servers",
            post(cloudflare::generate),
        )
        .route(
            "/v1/turn/keys/{id}/credentials/generate",
            post(cloudflare::generate_one),
        )
        .route(
            "/v1/turn/keys/{id}/credentials/{username}/revoke",
            post(cloudflare::revoke),
        )
        .route("/api/v1/turn/credentials", get(metered::ice_servers))
        .route("/api/v2/turn/credentials", get(metered::list))
        .route(
            "/api/v1/turn/credential",
            post(metered::create).delete(metered::delete),
        )
        .route("/api/v1/turn/credential/disable", post(metered::disable))
        .route("/api/v1/turn/credential/enable", post(metered::enable))
        .route(
            "/api/v2/turn/credential/by_label",
            delete(metered::delete_by_label),
        )
        .route("/", get(turn_rest).post(turn_rest))
        .route("/_turn/{channel}", put(xirsys))
        .route(
            "/v1/get-ice-server-config",
            post(kinesis::ice_server_config),
        )
        .with_state(service)
}

/// What a request shows of a key.
#[derive(Default)]
struct Shown {
    /// Where the dialect names the key, its id has to be right as well.
    id: Option<String>,
    secret: Option<String>,
}

impl Shown {
    fn bearer(headers: &HeaderMap) -> Self {
        Self {
            id: None,
            secret: authorization(headers, "bearer").map(str::to_owned),
        }
    }

    fn basic(headers: &HeaderMap) -> Self {
        let pair = authorization(headers, "basic")
            .and_then(|encoded| String::from_utf8(STANDARD.decode(encoded).ok()?).ok());
        match pair.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((id, secret)) => Self {
                id: Some(id.to_owned()),
                secret: Some(secret.to_owned()),
            },
            None => Self::default(),
        }
    }

    fn named(self, id: &str) -> Self {
        Self {
            // Both places have to name the same key.
            secret: self
                .secret
                .filter(|_| self.id.as_deref().is_none_or(|known| known == id)),
            id: Some(id.to_owned()),
        }
    }

    /// Where a dialect names no key.
    const fn secret_alone(secret: Option<String>) -> Self {
        Self { id: None, secret }
    }

    fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }
}

/// What a request wants of a key.
#[derive(Clone, Copy, Default)]
struct Wanted<'a> {
    user: &'a str,
    ttl_secs: Option<u64>,
    region: Option<&'a str>,
    /// The name has to be `<expiry>:<user>` and the mark of the key, as the dialect specifies it.
    is_plain: bool,
}

impl<'a> Wanted<'a> {
    fn order(self, client: IpAddr) -> Order<'a> {
        Order {
            user: self.user,
            ttl: self.ttl_secs.map(Duration::from_secs),
            region: self.region,
            client,
            is_unique: !self.is_plain,
        }
    }
}

/// Credentials for whoever shows a key, or why there are none. Servers ask here, not pages: there is no CORS.
fn minted<S: ShardControl>(
    service: &Service<S>,
    Peer(client): Peer,
    shown: &Shown,
    wanted: Wanted<'_>,
) -> Result<Minted, Refusal> {
    let offer = service.offer();
    let client = client.ip();
    let key = service.key(&offer.keys, client, shown.id.as_deref(), shown.secret())?;
    service.mint(&offer, key, wanted.order(client))
}

fn answer(code: StatusCode, body: Value) -> Response {
    let mut response = super::json(code, &body);
    (response.headers_mut()).insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What `body` makes of the credentials, with `code`; a refusal in our own words where a dialect has none.
fn respond(
    minted: Result<Minted, Refusal>,
    code: StatusCode,
    body: impl FnOnce(Minted) -> Value,
) -> Response {
    match minted {
        Ok(minted) => answer(code, body(minted)),
        Err(refused) => refused.response(),
    }
}

/// The STUN entry and one entry for each TURN URI, as some services write them.
fn one_by_one(minted: &Minted, entry: impl Fn(&str, Option<&Minted>) -> Value) -> Vec<Value> {
    let stun = minted.stun.iter().map(|url| entry(url, None));
    let turn = minted.urls.iter().map(|url| entry(url, Some(minted)));
    stun.chain(turn).collect()
}

async fn twilio<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let shown = Shown::basic(&headers).named(&id);
    let ttl = form(&body, "Ttl").and_then(|ttl| ttl.parse().ok());
    let wanted = Wanted {
        ttl_secs: ttl,
        ..Wanted::default()
    };
    match minted(&service, peer, &shown, wanted) {
        Ok(minted) => {
            let servers = one_by_one(&minted, |url, turn| match turn {
                None => json!({ "url": url, "urls": url }),
                Some(turn) => json!({
                    "url": url,
                    "urls": url,
                    "username": turn.username,
                    "credential": turn.credential,
                }),
            });
            let date = date();
            let body = json!({
                "account_sid": id,
                "username": minted.username,
                "password": minted.credential,
                "ttl": minted.ttl.as_secs().to_string(),
                "date_created": date,
                "date_updated": date,
                "ice_servers": servers,
            });
            answer(StatusCode::CREATED, body)
        }
        Err(refused) => {
            let code = refused.code;
            let number = match code {
                StatusCode::UNAUTHORIZED => 20_003,
                StatusCode::TOO_MANY_REQUESTS => 20_429,
                _ => 20_001,
            };
            let body = json!({ "code": number, "message": refused.why, "status": code.as_u16() });
            refused.mark(answer(code, body))
        }
    }
}

/// The value of `name` in a form; what a percent sign begins is not decoded, for numbers need none.
fn form<'a>(body: &'a [u8], name: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(body).ok()?;
    (text.split('&')).find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

/// As RFC 2822 writes it: `Fri, 20 Nov 2026 23:00:00 +0000`.
fn date() -> String {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Clock.now().unix);
    date.replace("GMT", "+0000")
}

fn read_json<T: Default + for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|_| {
        (
            StatusCode::BAD_REQUEST,
            "the body is not the JSON that is asked for here",
        )
            .into()
    })
}

#[derive(Deserialize)]
struct RestAsked {
    service: Option<String>,
    username: Option<String>,
    key: Option<String>,
    ttl: Option<u64>,
}

async fn turn_rest<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<RestAsked>,
) -> Response {
    if asked.service.as_deref() != Some("turn") {
        return refusal(StatusCode::NOT_FOUND, "not found");
    }
    let shown = Shown::secret_alone(asked.key);
    let user = asked.username.unwrap_or_default();
    let wanted = Wanted {
        user: &user,
        ttl_secs: asked.ttl,
        is_plain: true,
        ..Wanted::default()
    };
    let minted = minted(&service, peer, &shown, wanted);
    respond(minted, StatusCode::OK, |minted| {
        json!({
            "username": minted.username,
            "password": minted.credential,
            "ttl": minted.ttl.as_secs(),
            "uris": minted.urls,
        })
    })
}

async fn xirsys<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Path(channel): Path<String>,
    headers: HeaderMap,
) -> Response {
    let wanted = Wanted {
        user: &channel,
        ..Wanted::default()
    };
    match minted(&service, peer, &Shown::basic(&headers), wanted) {
        Ok(minted) => {
            let urls: Vec<&String> = minted.stun.iter().chain(&minted.urls).collect();
            let servers = json!({
                "username": minted.username,
                "urls": urls,
                "credential": minted.credential,
            });
            answer(
                StatusCode::OK,
                json!({ "v": { "iceServers": servers }, "s": "ok" }),
            )
        }
        Err(refused) => {
            let body = json!({ "v": refused.why, "s": "error" });
            refused.mark(answer(refused.code, body))
        }
    }
}
