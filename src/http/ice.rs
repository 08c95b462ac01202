//! The ICE configuration service: what an application asks for when a call begins, with credentials that end by
//! themselves, and the totals that it may watch.
//!
//! Whoever asks shows the secret of an API key, or signs with it. Secrets are compared by their hashes, in constant time, and
//! wrong ones are answered at a bounded rate per address. Web pages may ask where the key lists their origin. Names that a
//! key mints carry its id, so that all of them can be revoked.

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

use crate::access::{AddressRate, RealmName, RevokedKind, rest};
use crate::base::time::duration;
use crate::base::{Clock, Secret};
use crate::cluster::ledger::{By, Changed, Ledger, LedgerError};
use crate::cluster::{Fleet, Wish};
use crate::wire::key::MAX_USERNAME_BYTES;

use super::keys::{Answered, Meters};
use super::serve::Peer;
use super::{Lookout, ShardControl, refusal};

/// Wrong keys per second that one address is answered.
const FAILURES_PER_SECOND: u32 = 1;

/// When whoever showed too many wrong keys should try again, in seconds.
const FAILURES_RETRY_SECS: u64 = 10;

/// Nodes that a client is told of: the best, and one to fall back to.
const NODES: usize = 2;

/// The longest user id, without its prefix.
const MAX_USER_BYTES: usize = 400;

/// Who may ask.
#[derive(Clone)]
pub struct ApiKey {
    /// Its name, for logs.
    pub id: String,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// The secret itself, unless the configuration has its hash: what signed requests are verified with.
    pub secret: Option<Secret<String>>,
    /// The longest credential that it may mint.
    pub ttl: Duration,
    /// Origins of web pages that may ask with it, as browsers write them.
    pub origins: Vec<String>,
    /// What the user ids that it asks for begin with.
    pub user_prefix: String,
    /// Credentials it may mint in a minute, and at once; 0 is no limit.
    pub rate: u32,
    /// The realm that it mints for, and its first secret; `None`: the default one.
    pub realm: Option<(RealmName, Secret<String>)>,
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
    ledger: Ledger,
    meters: Arc<Meters>,
    lookout: Lookout,
}

/// Why a request gets no credentials.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub code: StatusCode,
    pub why: &'static str,
    /// After how many seconds it is worth asking again.
    pub retry_after_secs: Option<u64>,
}

impl From<(StatusCode, &'static str)> for Refusal {
    fn from((code, why): (StatusCode, &'static str)) -> Self {
        Self {
            code,
            why,
            retry_after_secs: None,
        }
    }
}

impl From<LedgerError> for Refusal {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Full => Self::later("the server cannot take it down now", 60),
            LedgerError::Name => (StatusCode::BAD_REQUEST, error.why()).into(),
            LedgerError::Leaving => Self {
                code: StatusCode::SERVICE_UNAVAILABLE,
                why: error.why(),
                retry_after_secs: Some(1),
            },
        }
    }
}

impl Refusal {
    fn later(why: &'static str, secs: u64) -> Self {
        Self {
            code: StatusCode::TOO_MANY_REQUESTS,
            why,
            retry_after_secs: Some(secs),
        }
    }

    /// Adds to a response that refuses for this reason when to ask again.
    pub fn mark(&self, mut response: Response) -> Response {
        if let Some(secs) = self.retry_after_secs {
            (response.headers_mut()).insert(header::RETRY_AFTER, secs.into());
        }
        response
    }

    /// The refusal in our own words.
    pub fn response(&self) -> Response {
        self.mark(refusal(self.code, self.why))
    }
}

impl<S: ShardControl> Service<S> {
    /// Answers from `offer` and about `shards`, and keeps what it has to in `ledger`.
    pub fn new(shards: S, offer: Offer, ledger: Ledger) -> Self {
        let [a, b, c, d] = rand::random();
        let hasher = RandomState::with_seeds(a, b, c, d);
        Self {
            shards,
            meters: Arc::new(Meters::new(&offer.keys)),
            ledger,
            offer: Arc::new(RwLock::new(Arc::new(offer))),
            failures: Arc::new(Mutex::new(AddressRate::new(FAILURES_PER_SECOND, hasher))),
            started: Instant::now(),
            lookout: Lookout::default(),
        }
    }

    /// Tells how calls go as `lookout` sees it.
    #[must_use]
    pub fn with_lookout(self, lookout: Lookout) -> Self {
        Self { lookout, ..self }
    }

    /// Answers from `offer` from now on.
    pub fn replace(&self, offer: Offer) {
        self.meters.set(&offer.keys);
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

    /// What the keys were answered.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.meters)
    }

    pub(super) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The key of `keys` with `secret`, and with `id` where a request names one, for a client that may be guessing.
    ///
    /// # Errors
    /// There is none, or it is revoked.
    pub(super) fn key<'a>(
        &self,
        keys: &'a [ApiKey],
        client: IpAddr,
        id: Option<&str>,
        secret: Option<&str>,
    ) -> Result<&'a ApiKey, Refusal> {
        self.known(client, secret.and_then(|secret| find_key(keys, id, secret)))
    }

    /// `found` by whatever `client`, who may be guessing, has shown.
    ///
    /// # Errors
    /// It is none, or it is revoked.
    pub(super) fn known<'a>(
        &self,
        client: IpAddr,
        found: Option<&'a ApiKey>,
    ) -> Result<&'a ApiKey, Refusal> {
        let Some(key) = found else {
            return Err(match self.may_fail(client) {
                true => (
                    StatusCode::UNAUTHORIZED,
                    "no API key has this id and secret",
                )
                    .into(),
                false => Refusal::later("too many wrong keys; wait a while", FAILURES_RETRY_SECS),
            });
        };
        let unix = Clock.now().unix;
        if (self.ledger.revoked()).has(RevokedKind::Key, key.id.as_bytes(), unix) {
            self.meters.count(key, Answered::Revoked);
            return Err((StatusCode::UNAUTHORIZED, "this API key is revoked").into());
        }
        Ok(key)
    }

    /// Credentials of `key`, made for this answer, and where they are good.
    ///
    /// # Errors
    /// What the request cannot mean, what the configuration lacks, or that the key or the user may have none now.
    pub(super) fn mint(
        &self,
        offer: &Offer,
        key: &ApiKey,
        order: Order<'_>,
    ) -> Result<Minted, Refusal> {
        let (username, ttl) = offer.name(key, order)?;
        let user = rest::parse(&username).map_or("", |limited| limited.user);
        let unix = Clock.now().unix;
        if (self.ledger.revoked()).has(RevokedKind::User, user.as_bytes(), unix) {
            self.meters.count(key, Answered::Revoked);
            return Err((StatusCode::FORBIDDEN, "this user is revoked").into());
        }
        if let Err(wait) = self.meters.take(key) {
            self.meters.count(key, Answered::RateLimited);
            return Err(Refusal::later(
                "this API key has asked for as many credentials as it may in a minute",
                wait.as_secs() + 1,
            ));
        }
        self.meters.count(key, Answered::Minted);
        offer.minted(username, ttl, order.region, order.client)
    }

    /// Gives what the ledger has changed to the shards, and waits until it outlives the host, if it can; how many
    /// allocations it ended.
    pub(super) async fn put_into_effect(&self, changed: Changed) -> usize {
        put_into_effect(&self.shards, changed).await
    }

    /// Revokes a credential of `key` until it ends by itself.
    ///
    /// # Errors
    /// The ledger does not take it.
    pub(super) async fn revoke(&self, key: &ApiKey, username: &str) -> Result<usize, Refusal> {
        let by = By::Key(key.id.clone());
        let (kind, now_unix) = (RevokedKind::Credential, Clock.now().unix_secs());
        let changed = (self.ledger).revoke(kind, username, None, by, now_unix)?;
        let ended = self.put_into_effect(changed).await;
        tracing::info!(
            kind = kind.label(),
            name = username,
            by = %By::Key(key.id.clone()),
            ended,
            "revoked"
        );
        Ok(ended)
    }
}

/// Gives what the ledger has changed to `shards`, and waits until it outlives the host, if it can; how many allocations
/// it ended.
pub(super) async fn put_into_effect<S: ShardControl>(shards: &S, changed: Changed) -> usize {
    let ended = shards.revoke(changed.revoked).await;
    if let Some(file) = changed.written {
        synchronise(file).await;
    }
    ended
}

/// Waits until `file` is where it outlives the host.
pub(super) async fn synchronise(file: Arc<std::fs::File>) {
    let synchronised = tokio::task::spawn_blocking(move || file.sync_data()).await;
    if let Ok(Err(error)) = synchronised {
        tracing::error!(%error, "the ledger cannot be written to the disk: its last change may not outlive the host");
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
        async |offer, key| match configuration(&service, offer, key, &asked, client.ip()) {
            Ok(body) => super::json(StatusCode::OK, &body),
            Err(refused) => refused.response(),
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
    answered(&service, client.ip(), &asked, &headers, async |_, _| {
        let stats = service.shards.snapshot().await.stats;
        let seen = service.lookout.latest(&service.shards).await;
        super::json(StatusCode::OK, &super::totals::totals(&stats, &seen))
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
    let secret = authorization(headers, "bearer").or(asked.key.as_deref());
    let key = match service.key(&offer.keys, client, None, secret) {
        Ok(key) => key,
        Err(refused) if refused.code == StatusCode::UNAUTHORIZED => {
            let why = match secret {
                Some(_) => refused.why,
                None => "show an API key: Authorization: Bearer SECRET, or ?key=SECRET",
            };
            let mut response = refusal(refused.code, why);
            (response.headers_mut())
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        Err(refused) => return refused.response(),
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

/// What follows the scheme `wanted` in Authorization.
pub(super) fn authorization<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then_some(rest.trim())
}

/// The key with `secret`, and with `id` where a request names one. Every key is compared, so that time tells nothing
/// about which is close.
fn find_key<'a>(keys: &'a [ApiKey], id: Option<&str>, secret: &str) -> Option<&'a ApiKey> {
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
    /// USERNAME, `<expiry>:<user id>;key=<key id>`.
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
    /// Whether no two credentials may have the same name, so that each can be revoked on its own.
    pub is_unique: bool,
}

impl Offer {
    /// The name that `key` gives to a credential, and how long it is good for.
    ///
    /// # Errors
    /// What the request cannot mean.
    fn name(&self, key: &ApiKey, order: Order<'_>) -> Result<(String, Duration), Refusal> {
        if order.user.len() > MAX_USER_BYTES || order.user.chars().any(char::is_control) {
            return Err((
                StatusCode::BAD_REQUEST,
                "a user is at most 400 bytes without control characters",
            )
                .into());
        }
        let ttl = order.ttl.unwrap_or(key.ttl).min(key.ttl);
        if ttl < Duration::from_secs(1) {
            return Err((
                StatusCode::BAD_REQUEST,
                "a credential is good for a second or longer",
            )
                .into());
        }
        let expires_unix = Clock.now().unix_secs().saturating_add(ttl.as_secs());
        let (prefix, user, mark, id) = (&key.user_prefix, order.user, rest::KEY_MARK, &key.id);
        let mut username = match &key.realm {
            None => format!("{expires_unix}:{prefix}{user}{mark}{id}"),
            Some((realm, _)) => format!("{expires_unix}:{prefix}{user}@{realm}{mark}{id}"),
        };
        if order.is_unique {
            username += &format!(";id={:016x}", rand::random::<u64>());
        }
        if username.len() > MAX_USERNAME_BYTES {
            return Err((
                StatusCode::BAD_REQUEST,
                "the user is too long: with its prefix, the expiry and the key's id a username has 508 bytes at most",
            )
                .into());
        }
        Ok((username, ttl))
    }

    /// What the password of `username` is made with, which one of the keys has named.
    pub(super) fn secret_of(&self, username: &str) -> Option<&Secret<String>> {
        let id = rest::parse(username).and_then(|limited| limited.key);
        let key = self.keys.iter().find(|key| Some(&*key.id) == id);
        match key.and_then(|key| key.realm.as_ref()) {
            Some((_, secret)) => Some(secret),
            None => self.secret.as_ref(),
        }
    }

    /// The credential of that name, good for `ttl`, and where it is good.
    ///
    /// # Errors
    /// There is nothing to make credentials with.
    pub(super) fn minted(
        &self,
        username: String,
        ttl: Duration,
        region: Option<&str>,
        client: IpAddr,
    ) -> Result<Minted, Refusal> {
        let Some(secret) = self.secret_of(&username) else {
            return Err((
                StatusCode::SERVICE_UNAVAILABLE,
                "no auth.secrets to make credentials with",
            )
                .into());
        };
        let password = rest::password(secret, username.as_bytes());
        let urls = urls(self, region, client);
        let stun = urls.iter().find_map(|url| stun_of(url));
        Ok(Minted {
            credential: (password.expose().iter().copied())
                .map(char::from)
                .collect(),
            username,
            ttl,
            urls,
            stun,
        })
    }
}

fn configuration<S: ShardControl>(
    service: &Service<S>,
    offer: &Offer,
    key: &ApiKey,
    asked: &Asked,
    client: IpAddr,
) -> Result<Value, Refusal> {
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
                )
                    .into());
            }
        },
    };
    let order = Order {
        user: asked.user.as_deref().unwrap_or_default(),
        ttl,
        region: asked.region.as_deref(),
        client,
        is_unique: false,
    };
    let minted = service.mint(offer, key, order)?;
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
