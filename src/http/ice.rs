//! The ICE configuration service: what an application asks for when a call begins, with credentials that end by
//! themselves, and the totals that it may watch.
//!
//! Whoever asks shows the secret of an API key. Only hashes of them are kept; they are compared in constant time, and
//! wrong ones are answered at a bounded rate per address. Web pages may ask where the key lists their origin.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ahash::RandomState;
use axum::Router;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::access::{AddressRate, rest};
use crate::base::time::duration;
use crate::base::{Clock, Secret};
use crate::cluster::{Fleet, Wish};
use crate::turn::{Direction, DropReason};
use crate::wire::ErrorCode;

use super::serve::Peer;
use super::{ShardControl, refusal};

/// Wrong keys per second that one address is answered.
const FAILURES_PER_SECOND: u32 = 1;

/// Nodes that a client is told of: the best, and one to fall back to.
const NODES: usize = 2;

/// The longest user id; with its prefix and the expiry it fits into USERNAME (RFC 8489 §14.3).
const MAX_USER_BYTES: usize = 400;

/// Who may ask.
#[derive(Clone)]
pub struct ApiKey {
    /// Its name, for logs.
    pub id: String,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// The longest credential that it may mint.
    pub ttl: Duration,
    /// Origins of web pages that may ask with it, as browsers write them.
    pub origins: Vec<String>,
    /// What the user ids that it asks for begin with.
    pub user_prefix: String,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What the service answers from; replaced whole on reload.
#[derive(Debug)]
pub struct Offer {
    /// Who may ask.
    pub keys: Vec<ApiKey>,
    /// What credentials are minted with.
    pub secret: Option<Secret<String>>,
    /// URIs of this server, for a service of one.
    pub own_urls: Vec<String>,
    /// The servers of the service.
    pub fleet: Arc<Fleet>,
}

/// The service; clones are the same one.
#[derive(Clone)]
pub struct Service<S> {
    shards: S,
    offer: Arc<RwLock<Arc<Offer>>>,
    failures: Arc<Mutex<AddressRate>>,
    started: Instant,
}

impl<S: ShardControl> Service<S> {
    /// Answers from `offer` and about `shards`.
    pub fn new(shards: S, offer: Offer) -> Self {
        let [a, b, c, d] = rand::random();
        let hasher = RandomState::with_seeds(a, b, c, d);
        Self {
            shards,
            offer: Arc::new(RwLock::new(Arc::new(offer))),
            failures: Arc::new(Mutex::new(AddressRate::new(FAILURES_PER_SECOND, hasher))),
            started: Instant::now(),
        }
    }

    /// Answers from `offer` from now on.
    pub fn replace(&self, offer: Offer) {
        *self.offer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(offer);
    }

    pub(super) fn offer(&self) -> Arc<Offer> {
        Arc::clone(&self.offer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether `client`, who showed a wrong key, gets an answer.
    pub(super) fn may_fail(&self, client: IpAddr) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.admit(self.started.elapsed(), client)
    }
}

/// The routes of the service.
pub(super) fn routes<S: ShardControl>(service: Service<S>) -> Router {
    Router::new()
        .route("/api/webrtc/config", get(config).options(preflight))
        .route("/api/webrtc/stats", get(totals).options(preflight))
        .with_state(service)
}

#[derive(Deserialize)]
struct Asked {
    key: Option<String>,
    user: Option<String>,
    ttl: Option<String>,
    region: Option<String>,
}

/// What a browser asks before it lets a page ask: it brings no key yet, so any key's origin will do.
async fn preflight<S: ShardControl>(
    State(service): State<Service<S>>,
    headers: HeaderMap,
) -> Response {
    let offer = service.offer();
    let Some(origin) = headers
        .get(header::ORIGIN)
        .filter(|origin| (offer.keys.iter()).any(|key| lists(key, origin)))
    else {
        return refusal(StatusCode::FORBIDDEN, "no API key lists this origin");
    };
    let mut response = StatusCode::NO_CONTENT.into_response();
    let fields = response.headers_mut();
    fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    fields.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET"),
    );
    fields.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization"),
    );
    fields.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
    fields.insert(header::VARY, HeaderValue::from_static("origin"));
    response
}

/// RTCConfiguration with credentials made for this answer.
async fn config<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(Peer(client)): Extension<Peer>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    answered(
        &service,
        client.ip(),
        &asked,
        &headers,
        async |offer, key| match configuration(offer, key, &asked, client.ip()) {
            Ok(body) => super::json(StatusCode::OK, &body),
            Err((code, why)) => refusal(code, why),
        },
    )
    .await
}

/// Totals since the start.
async fn totals<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(Peer(client)): Extension<Peer>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let shards = service.shards.clone();
    answered(&service, client.ip(), &asked, &headers, async |_, _| {
        super::json(StatusCode::OK, &statistics(&shards).await)
    })
    .await
}

/// Lets `answer` speak to whoever shows a key, and the pages of its origins read it.
async fn answered<S: ShardControl>(
    service: &Service<S>,
    client: IpAddr,
    asked: &Asked,
    headers: &HeaderMap,
    answer: impl AsyncFnOnce(&Offer, &ApiKey) -> Response,
) -> Response {
    let offer = service.offer();
    let Some(key) = shown(&offer.keys, asked, headers) else {
        if !service.may_fail(client) {
            return refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong keys; wait a while",
            );
        }
        let mut response = refusal(
            StatusCode::UNAUTHORIZED,
            "show an API key: Authorization: Bearer SECRET, or ?key=SECRET",
        );
        (response.headers_mut())
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    };
    let origin = headers.get(header::ORIGIN);
    if origin.is_some_and(|origin| !lists(key, origin)) {
        return refusal(
            StatusCode::FORBIDDEN,
            "the API key does not list this origin",
        );
    }
    let mut response = answer(&offer, key).await;
    let fields = response.headers_mut();
    if let Some(origin) = origin {
        fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        fields.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn lists(key: &ApiKey, origin: &HeaderValue) -> bool {
    (key.origins.iter()).any(|listed| listed.as_bytes() == origin.as_bytes())
}

/// The key whose secret the request shows.
fn shown<'a>(keys: &'a [ApiKey], asked: &Asked, headers: &HeaderMap) -> Option<&'a ApiKey> {
    find_key(
        keys,
        None,
        authorization(headers, "bearer").or(asked.key.as_deref())?,
    )
}

/// What follows the scheme `wanted` in Authorization.
pub(super) fn authorization<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then_some(rest.trim())
}

/// The key with `secret`, and with `id` where a request names one. Every key is compared, so that time tells nothing
/// about which is close.
pub(super) fn find_key<'a>(
    keys: &'a [ApiKey],
    id: Option<&str>,
    secret: &str,
) -> Option<&'a ApiKey> {
    let hash = Sha256::digest(secret);
    let mut found = None;
    for key in keys {
        let named = id.is_none_or(|id| id == key.id);
        if bool::from(key.secret_hash.ct_eq(&hash)) && named {
            found = Some(key);
        }
    }
    found
}

/// What an answer of any dialect is made of.
pub(super) struct Minted {
    /// USERNAME, `<expiry>:<user id>`.
    pub username: String,
    /// Its password.
    pub credential: String,
    /// How long it is good for.
    pub ttl: Duration,
    /// TURN URIs in the order to try them.
    pub urls: Vec<String>,
    /// A STUN URI, where there is one over UDP.
    pub stun: Option<String>,
}

/// What a request asks for, in any dialect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub user: &'a str,
    /// As long as the key allows, if the request does not say.
    pub ttl: Option<Duration>,
    pub region: Option<&'a str>,
    pub client: IpAddr,
}

impl Offer {
    /// Credentials of `key`, made for this answer, and where they are good.
    ///
    /// # Errors
    /// What the request cannot mean, or what the configuration lacks.
    pub(super) fn mint(
        &self,
        key: &ApiKey,
        order: Order<'_>,
    ) -> Result<Minted, (StatusCode, &'static str)> {
        let Some(secret) = &self.secret else {
            return Err((
                StatusCode::SERVICE_UNAVAILABLE,
                "no auth.secrets to make credentials with",
            ));
        };
        if order.user.len() > MAX_USER_BYTES || order.user.chars().any(char::is_control) {
            return Err((
                StatusCode::BAD_REQUEST,
                "a user is at most 400 bytes without control characters",
            ));
        }
        let ttl = order.ttl.unwrap_or(key.ttl).min(key.ttl);
        if ttl < Duration::from_secs(1) {
            return Err((
                StatusCode::BAD_REQUEST,
                "a credential is good for a second or longer",
            ));
        }
        let user = format!("{}{}", key.user_prefix, order.user);
        let expires_unix = Clock.now().unix_secs().saturating_add(ttl.as_secs());
        let (username, credential) = rest::mint(secret, Some(&user), expires_unix);
        let urls = urls(self, order.region, order.client);
        let stun = urls.iter().find_map(|url| stun_of(url));
        Ok(Minted {
            username,
            credential,
            ttl,
            urls,
            stun,
        })
    }
}

fn configuration(
    offer: &Offer,
    key: &ApiKey,
    asked: &Asked,
    client: IpAddr,
) -> Result<Value, (StatusCode, &'static str)> {
    let ttl = match asked.ttl.as_deref() {
        None => None,
        Some(text) => match text
            .parse()
            .map(Duration::from_secs)
            .or_else(|_| duration(text))
        {
            Ok(ttl) => Some(ttl),
            Err(_) => {
                return Err((
                    StatusCode::BAD_REQUEST,
                    "ttl is a duration such as 90s, 10m, 24h, or a number of seconds",
                ));
            }
        },
    };
    let order = Order {
        user: asked.user.as_deref().unwrap_or_default(),
        ttl,
        region: asked.region.as_deref(),
        client,
    };
    let minted = offer.mint(key, order)?;
    let mut servers = vec![minted.turn_server()];
    servers.extend(minted.stun.as_ref().map(|url| json!({ "urls": [url] })));
    Ok(json!({
        "iceServers": servers,
        "iceTransportPolicy": "all",
        "ttl": minted.ttl.as_secs(),
    }))
}

impl Minted {
    /// The entry of `iceServers` that holds the credential.
    pub(super) fn turn_server(&self) -> Value {
        json!({ "urls": self.urls, "username": self.username, "credential": self.credential })
    }
}

/// URIs in the order to try them: those of the best node, then of the next; this server's own where none is listed.
fn urls(offer: &Offer, region: Option<&str>, client: IpAddr) -> Vec<String> {
    let wish = Wish {
        region,
        client: Some(client),
    };
    if offer.fleet.is_empty() {
        return offer.own_urls.clone();
    }
    (offer.fleet.choose(wish, NODES).iter())
        .flat_map(|node| node.urls.iter().cloned())
        .collect()
}

/// `stun:host:port` of a TURN URI over UDP: every TURN server answers Binding.
fn stun_of(url: &str) -> Option<String> {
    let rest = url.strip_prefix("turn:")?;
    let (authority, transport) = rest.split_once('?').unwrap_or((rest, "transport=udp"));
    (transport == "transport=udp").then(|| format!("stun:{authority}"))
}

async fn statistics<S: ShardControl>(shards: &S) -> Value {
    let totals = shards.snapshot().await.stats;
    let live: u64 = totals.live.as_flattened().iter().sum();
    let relayed = |direction: Direction| {
        let paths = &totals.relayed[direction as usize];
        json!({
            "bytes": paths.iter().map(|path| path.bytes).sum::<u64>(),
            "packets": paths.iter().map(|path| path.packets).sum::<u64>(),
        })
    };
    let allocated = totals.allocated();
    let failures: BTreeMap<_, _> = (ErrorCode::ALL.into_iter().zip(allocated.refused))
        .map(|(code, count)| (code.label(), count))
        .filter(|(_, count)| *count > 0)
        .collect();
    let wrong_credentials: u64 = allocated.wrong_credentials.iter().sum();
    let succeeded = allocated.succeeded;
    let attempts = succeeded + allocated.failed();
    let dropped: BTreeMap<_, _> = (DropReason::ALL.into_iter())
        .map(|reason| (reason.label(), totals.dropped[reason as usize]))
        .filter(|(_, count)| *count > 0)
        .collect();
    json!({
        "allocations": live,
        "toPeer": relayed(Direction::ToPeer),
        "toClient": relayed(Direction::ToClient),
        "allocationsTotal": succeeded,
        "wrongCredentials": wrong_credentials,
        "failures": failures,
        "successRatio": (attempts > 0).then(|| succeeded as f64 / attempts as f64),
        "dropped": dropped,
    })
}
