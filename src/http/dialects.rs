//! The credential services of others, so that an application which uses one of them changes its base URL only: same paths,
//! same authentication, same status codes, same JSON.
//!
//! | service | request | key |
//! |---|---|---|
//! | Twilio | `POST /2010-04-01/Accounts/{id}/Tokens.json` | Basic, id and secret |
//! | Cloudflare | `POST /v1/turn/keys/{id}/credentials/generate-ice-servers` | Bearer |
//! | Metered | `GET /api/v1/turn/credentials?apiKey=`, `POST /api/v1/turn/credential?secretKey=` | in the query |
//! | TURN REST (draft-uberti-behave-turn-rest-00) | `GET /?service=turn&username=&key=` | in the query |
//! | Xirsys | `PUT /_turn/{channel}` | Basic, id and secret |
//! | AWS Kinesis Video | `POST /v1/get-ice-server-config` | Bearer: requests signed for AWS cannot be verified with a hash |

use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post, put};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::access::rest;
use crate::base::Clock;

use super::ice::{ApiKey, Minted, Offer, Order, Service, authorization, find_key};
use super::serve::Peer;
use super::{ShardControl, refusal};

/// The routes of every dialect.
pub(super) fn routes<S: ShardControl>(service: Service<S>) -> Router {
    Router::new()
        .route("/2010-04-01/Accounts/{id}/Tokens.json", post(twilio))
        .route(
            "/v1/turn/keys/{id}/credentials/generate-ice-servers",
            post(cloudflare),
        )
        .route(
            "/v1/turn/keys/{id}/credentials/generate",
            post(cloudflare_one),
        )
        .route("/api/v1/turn/credentials", get(metered))
        .route("/api/v1/turn/credential", post(metered_create))
        .route("/", get(turn_rest).post(turn_rest))
        .route("/_turn/{channel}", put(xirsys))
        .route("/v1/get-ice-server-config", post(kinesis))
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

    fn find<'a>(&self, keys: &'a [ApiKey]) -> Option<&'a ApiKey> {
        find_key(keys, self.id.as_deref(), self.secret.as_deref()?)
    }
}

/// Credentials for whoever shows a key, or why there are none. Servers ask here, not pages: there is no CORS.
fn minted<S: ShardControl>(
    service: &Service<S>,
    Peer(client): Peer,
    shown: &Shown,
    user: &str,
    ttl_secs: Option<u64>,
    region: Option<&str>,
) -> Result<Minted, (StatusCode, &'static str)> {
    let offer = service.offer();
    let Some(key) = shown.find(&offer.keys) else {
        return Err(wrong_key(service, client.ip()));
    };
    let order = Order {
        user,
        ttl: ttl_secs.map(Duration::from_secs),
        region,
        client: client.ip(),
    };
    offer.mint(key, order)
}

fn wrong_key<S: ShardControl>(
    service: &Service<S>,
    client: std::net::IpAddr,
) -> (StatusCode, &'static str) {
    if service.may_fail(client) {
        (
            StatusCode::UNAUTHORIZED,
            "no API key has this id and secret",
        )
    } else {
        (
            StatusCode::TOO_MANY_REQUESTS,
            "too many wrong keys; wait a while",
        )
    }
}

fn answer(code: StatusCode, body: Value) -> Response {
    let mut response = super::json(code, &body);
    (response.headers_mut()).insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What `body` makes of the credentials, with `code`; a refusal in our own words where a dialect has none.
fn respond(
    minted: Result<Minted, (StatusCode, &'static str)>,
    code: StatusCode,
    body: impl FnOnce(Minted) -> Value,
) -> Response {
    match minted {
        Ok(minted) => answer(code, body(minted)),
        Err((code, why)) => refusal(code, why),
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
    match minted(&service, peer, &shown, "", ttl, None) {
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
        Err((code, why)) => {
            let number = if code == StatusCode::UNAUTHORIZED {
                20_003
            } else {
                20_001
            };
            let body = json!({ "code": number, "message": why, "status": code.as_u16() });
            answer(code, body)
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

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct CloudflareOrder {
    ttl: Option<u64>,
    custom_identifier: Option<String>,
}

async fn cloudflare<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let minted = cloudflare_minted(&service, peer, &id, &headers, &body);
    respond(minted, StatusCode::CREATED, |minted| {
        let stun = minted.stun.iter().map(|url| json!({ "urls": [url] }));
        let servers: Vec<Value> = stun.chain([minted.turn_server()]).collect();
        json!({ "iceServers": servers })
    })
}

/// The older form: one object in place of a list.
async fn cloudflare_one<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let minted = cloudflare_minted(&service, peer, &id, &headers, &body);
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

fn cloudflare_minted<S: ShardControl>(
    service: &Service<S>,
    peer: Peer,
    id: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Minted, (StatusCode, &'static str)> {
    let order: CloudflareOrder = read_json(body)?;
    let user = order.custom_identifier.unwrap_or_default();
    let shown = Shown::bearer(headers).named(id);
    minted(service, peer, &shown, &user, order.ttl, None)
}

fn read_json<T: Default + for<'a> Deserialize<'a>>(
    body: &[u8],
) -> Result<T, (StatusCode, &'static str)> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|_| {
        (
            StatusCode::BAD_REQUEST,
            "the body is not the JSON that is asked for here",
        )
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MeteredAsked {
    api_key: Option<String>,
    secret_key: Option<String>,
    region: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct MeteredOrder {
    expiry_in_seconds: Option<u64>,
    label: Option<String>,
}

/// ICE servers for the secret of a key, or for a credential that was made before.
async fn metered<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<MeteredAsked>,
) -> Response {
    let offer = service.offer();
    let region = asked.region.as_deref();
    let shown = Shown {
        id: None,
        secret: asked.api_key,
    };
    let made = shown
        .secret
        .as_deref()
        .and_then(|token| redeem(&offer, token));
    let minted = match made {
        Some((key, user, expires_unix)) => {
            let left = expires_unix.saturating_sub(Clock.now().unix_secs());
            let order = Order {
                user: user.strip_prefix(key.user_prefix.as_str()).unwrap_or(&user),
                ttl: Some(Duration::from_secs(left)),
                region,
                client: peer.0.ip(),
            };
            offer.mint(key, order)
        }
        None => minted(&service, peer, &shown, "", None, region),
    };
    respond(minted, StatusCode::OK, |minted| {
        Value::Array(one_by_one(&minted, |url, turn| match turn {
            None => json!({ "urls": url }),
            Some(turn) => json!({
                "urls": url,
                "username": turn.username,
                "credential": turn.credential,
            }),
        }))
    })
}

/// A credential with a token of its own, which asks for ICE servers and nothing else.
async fn metered_create<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<MeteredAsked>,
    body: Bytes,
) -> Response {
    let order: MeteredOrder = match read_json(&body) {
        Ok(order) => order,
        Err((code, why)) => return refusal(code, why),
    };
    let label = order.label.unwrap_or_default();
    let offer = service.offer();
    let shown = Shown {
        id: None,
        secret: asked.secret_key,
    };
    let minted = minted(
        &service,
        peer,
        &shown,
        &label,
        order.expiry_in_seconds,
        None,
    );
    let token = |minted: &Minted| token(&offer, shown.find(&offer.keys)?, &minted.username);
    respond(minted, StatusCode::OK, |minted| {
        json!({
            "username": minted.username,
            "password": minted.credential,
            "expiryInSeconds": minted.ttl.as_secs(),
            "label": label,
            "apiKey": token(&minted),
        })
    })
}

/// Bytes of a token's MAC.
const TOKEN_MAC: usize = 16;

/// A token that speaks for `username`: signed, so that nothing has to be kept.
fn token(offer: &Offer, key: &ApiKey, username: &str) -> Option<String> {
    let mac = token_mac(offer, key, username)?;
    let raw = [&mac[..], username.as_bytes()].concat();
    Some(URL_SAFE_NO_PAD.encode(raw))
}

fn token_mac(offer: &Offer, key: &ApiKey, username: &str) -> Option<[u8; TOKEN_MAC]> {
    let secret = offer.secret.as_ref()?.expose().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    // With the key in it, a token ends with its key.
    for part in [b"token".as_slice(), &key.secret_hash, username.as_bytes()] {
        mac.update(part);
    }
    mac.finalize().into_bytes().first_chunk().copied()
}

/// The key, the user id and the end of the credential that `token` speaks for.
fn redeem<'a>(offer: &'a Offer, token: &str) -> Option<(&'a ApiKey, String, u64)> {
    let raw = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (mac, username) = raw.split_first_chunk::<TOKEN_MAC>()?;
    let username = std::str::from_utf8(username).ok()?;
    let genuine = |key: &&ApiKey| {
        token_mac(offer, key, username).is_some_and(|ours| bool::from(ours.ct_eq(mac)))
    };
    let key = offer.keys.iter().find(genuine)?;
    let limited = rest::parse(username)?;
    let user = if limited.user == rest::ANONYMOUS {
        ""
    } else {
        limited.user
    };
    Some((key, user.to_owned(), limited.expires_unix))
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
    let shown = Shown {
        id: None,
        secret: asked.key,
    };
    let user = asked.username.unwrap_or_default();
    let minted = minted(&service, peer, &shown, &user, asked.ttl, None);
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
    match minted(
        &service,
        peer,
        &Shown::basic(&headers),
        &channel,
        None,
        None,
    ) {
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
        Err((code, why)) => answer(code, json!({ "v": why, "s": "error" })),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct KinesisOrder {
    client_id: Option<String>,
    username: Option<String>,
}

async fn kinesis<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let order: KinesisOrder = match read_json(&body) {
        Ok(order) => order,
        Err((code, why)) => return refusal(code, why),
    };
    let user = order.username.or(order.client_id).unwrap_or_default();
    match minted(&service, peer, &Shown::bearer(&headers), &user, None, None) {
        Ok(minted) => {
            let server = json!({
                "Uris": minted.urls,
                "Username": minted.username,
                "Password": minted.credential,
                "Ttl": minted.ttl.as_secs(),
            });
            answer(StatusCode::OK, json!({ "IceServerList": [server] }))
        }
        Err((code, why)) => answer(code, json!({ "Message": why })),
    }
}
