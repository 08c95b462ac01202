//! What the test page tests with: credentials made for one visit, which end within minutes and reach no further than
//! relayed addresses that the same visit allocated.
//!
//! Whoever opens the page may have them, so all of it is bounded: visits of a network per minute, visits in all, and
//! what a visit allocates ([`Quota`](crate::access::Quota)) and relays ([`LOOP_BITS_PER_SECOND`]). Pages from elsewhere get none.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ahash::RandomState;
use axum::Router;
use axum::extract::{Extension, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::access::scope::VISIT_PREFIX;
use crate::access::{AddressRate, LOOPS_PER_VISIT, rest};
use crate::base::{Clock, Now, Secret, Transport};
use crate::turn::LOOP_BITS_PER_SECOND;

use super::serve::{Local, Peer};
use super::{pages, refusal};

/// How long the credentials of a visit are good for.
const TTL: Duration = Duration::from_secs(300);

/// Visits whose credentials are good at once.
const MOST: usize = 1024;

/// What one IPv4 address or IPv6 /64 may open again after this time; it has ten in hand.
const PAUSE: Duration = Duration::from_secs(10);

/// One way to this server, as clients name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// How to get there.
    pub transport: Transport,
    /// A name, or an address in brackets where a URI wants them.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What the listener is bound to.
    pub bound: IpAddr,
}

impl Form {
    /// The URI (RFC 7065).
    pub fn url(&self) -> String {
        self.url_at(&self.host)
    }

    /// The same for a client that knows the server as `host`.
    fn url_at(&self, host: &str) -> String {
        let (scheme, transport) = match self.transport {
            Transport::Udp => ("turn", "udp"),
            Transport::Tcp => ("turn", "tcp"),
            Transport::Tls => ("turns", "tcp"),
            Transport::Dtls => ("turns", "udp"),
        };
        format!("{scheme}:{host}:{}?transport={transport}", self.port)
    }

    /// For people.
    fn name(&self) -> String {
        let transport = match self.transport {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Dtls => "DTLS",
        };
        format!("TURN over {transport}, port {}", self.port)
    }
}

/// What visits are told; replaced whole on reload.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether there is a test page.
    pub enabled: bool,
    /// Ways to this server in the order to try them.
    pub forms: Vec<Form>,
    /// What an allocation may relay as the operator has it; 0 is no limit.
    pub bits_per_second: u64,
    /// Which server of the service this is.
    pub node: String,
    /// Where it is.
    pub region: String,
}

/// Who visits; clones are the same one.
#[derive(Clone)]
pub struct Visits(Arc<Inner>);

struct Inner {
    /// Signs credentials; nobody else has it, and it ends with the process.
    secret: Secret<String>,
    settings: RwLock<Arc<Settings>>,
    began: Now,
    book: Mutex<Book>,
}

/// Who came lately.
struct Book {
    rate: AddressRate,
    /// When the credentials of each visit end, since the start: in order, as all are good for as long.
    ends: VecDeque<Duration>,
}

impl Visits {
    /// Of a process that begins at `now`.
    pub fn new(now: Now, settings: Settings) -> Self {
        let [a, b, c, d] = rand::random();
        let hasher = RandomState::with_seeds(a, b, c, d);
        let secret: [u8; 32] = rand::random();
        let secret = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(Arc::new(Inner {
            secret: Secret::new(secret),
            settings: RwLock::new(Arc::new(settings)),
            began: now,
            book: Mutex::new(Book {
                rate: AddressRate::new(1, hasher),
                ends: VecDeque::new(),
            }),
        }))
    }

    /// What signs for visits, for [`access::Settings::visits`](crate::access::Settings::visits).
    pub fn secret(&self) -> Secret<String> {
        self.0.secret.clone()
    }

    /// Tells visits `settings` from now on.
    pub fn replace(&self, settings: Settings) {
        let mut held = (self.0.settings.write()).unwrap_or_else(PoisonError::into_inner);
        *held = Arc::new(settings);
    }

    fn settings(&self) -> Arc<Settings> {
        let held = (self.0.settings.read()).unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&held)
    }

    /// Lets one more visit of `client` in.
    ///
    /// # Errors
    /// There are too many; how long to wait, and what to say.
    fn admit(&self, now: Now, client: IpAddr) -> Result<(), (StatusCode, Duration, &'static str)> {
        let at = now.mono.saturating_duration_since(self.0.began.mono);
        let mut book = (self.0.book.lock()).unwrap_or_else(PoisonError::into_inner);
        while book.ends.front().is_some_and(|ends| *ends <= at) {
            book.ends.pop_front();
        }
        if let Some(first) = book.ends.front().filter(|_| book.ends.len() >= MOST) {
            let wait = first.saturating_sub(at);
            let why =
                "too many visitors test this server at the moment; try again in a few minutes";
            return Err((StatusCode::SERVICE_UNAVAILABLE, wait, why));
        }
        // The table counts tokens by the second: a second of its time is a pause of ours.
        if !book.rate.admit(at / PAUSE.as_secs() as u32, client) {
            let why = "too many tests from your network; wait a little";
            return Err((StatusCode::TOO_MANY_REQUESTS, PAUSE, why));
        }
        book.ends.push_back(at + TTL);
        Ok(())
    }
}

/// The test page and where it gets its credentials.
pub(super) fn routes(visits: Visits) -> Router {
    Router::new()
        .route("/test", get(page))
        .route("/test/session", post(session))
        .with_state(visits)
}

async fn page(State(visits): State<Visits>) -> Response {
    if visits.settings().enabled {
        pages::test()
    } else {
        refusal(StatusCode::NOT_FOUND, "not found")
    }
}

/// Credentials for one visit, and every URL to try them on.
async fn session(
    State(visits): State<Visits>,
    Extension(Peer(client)): Extension<Peer>,
    Extension(Local(local)): Extension<Local>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let settings = visits.settings();
    if !settings.enabled {
        return refusal(StatusCode::NOT_FOUND, "not found");
    }
    let host = authority(&uri, &headers);
    if !is_same_origin(host.as_ref(), &headers) {
        return refusal(
            StatusCode::FORBIDDEN,
            "only the test page of this server gets these credentials; applications use /api/webrtc/config",
        );
    }
    let now = Clock.now();
    if let Err((code, wait, why)) = visits.admit(now, client.ip()) {
        let mut response = refusal(code, why);
        let seconds = wait.as_secs().max(1);
        (response.headers_mut()).insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        return response;
    }
    let body = minted(&visits.0.secret, &settings, host.as_ref(), local, now);
    let mut response = super::json(StatusCode::OK, &body);
    (response.headers_mut()).insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn minted(
    secret: &Secret<String>,
    settings: &Settings,
    host: Option<&Authority>,
    local: SocketAddr,
    now: Now,
) -> Value {
    let user = format!("{VISIT_PREFIX}{:016x}", rand::random::<u64>());
    let expires = now.unix_secs().saturating_add(TTL.as_secs());
    let (username, credential) = rest::mint(secret, Some(&user), expires);
    let bits_per_second = match settings.bits_per_second {
        0 => LOOP_BITS_PER_SECOND,
        limit => limit.min(LOOP_BITS_PER_SECOND),
    };
    let known_as = host.and_then(|host| known_as(host.host(), local.ip()));
    let mut urls: Vec<String> = Vec::new();
    let mut servers = Vec::new();
    for form in &settings.forms {
        let url = match &known_as {
            // Other listeners have names of their own.
            Some(name) if leads_to(form.bound, local.ip()) => form.url_at(name),
            _ => form.url(),
        };
        // Listeners of both families have one name.
        if urls.contains(&url) {
            continue;
        }
        servers.push(json!({
            "urls": [url],
            "username": username,
            "credential": credential,
            "name": form.name(),
            "transport": form.transport.label(),
            "port": form.port,
        }));
        urls.push(url);
    }
    json!({
        "iceServers": servers,
        "username": username,
        "credential": credential,
        "expires": expires,
        "ttl": TTL.as_secs(),
        "limits": { "allocations": LOOPS_PER_VISIT, "bits_per_second": bits_per_second },
        "server": {
            "version": env!("CARGO_PKG_VERSION"),
            "node": settings.node,
            "region": settings.region,
        },
    })
}

/// What the request was sent to: `:authority` over HTTP/2, Host before.
fn authority(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    if let Some(authority) = uri.authority() {
        return Some(authority.clone());
    }
    headers.get(header::HOST)?.to_str().ok()?.parse().ok()
}

/// Whether a page of this very origin asks, or no page at all.
///
/// Browsers name the origin with every POST, and those that know Sec-Fetch-Site say that it is the same. A page elsewhere
/// can change neither; whoever is no browser can write what it wants, and gains nothing by it.
fn is_same_origin(host: Option<&Authority>, headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if site.is_some_and(|site| site != b"same-origin") {
        return false;
    }
    match headers.get(header::ORIGIN).map(HeaderValue::to_str) {
        None => true,
        // Opaque: a policy of the browser or the page hides it, or a sandboxed frame asks.
        Some(Ok("null")) => site.is_some(),
        Some(Ok(origin)) => {
            let named = (origin.strip_prefix("http://")).or(origin.strip_prefix("https://"));
            named.zip(host).is_some_and(|(named, host)| {
                let default = if origin.starts_with("https") { 443 } else { 80 };
                let Ok(named) = named.parse::<Authority>() else {
                    return false;
                };
                let port = |one: &Authority| one.port_u16().unwrap_or(default);
                named.host().eq_ignore_ascii_case(host.host()) && port(&named) == port(host)
            })
        }
        Some(Err(_)) => false,
    }
}

/// How a client that asks for `host` names this server in a URI, if it can be believed: `localhost` means another
/// address elsewhere in the same browser.
fn known_as(host: &str, local: IpAddr) -> Option<String> {
    let bracketed = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let bare = (host.strip_prefix('['))
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Some(bracketed(ip));
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Some(bracketed(local.to_canonical()));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && (label.bytes()).all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    (name.len() <= 253 && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
}

/// Whether whoever reaches `local` reaches a listener that is bound to `bound` by the same name.
fn leads_to(bound: IpAddr, local: IpAddr) -> bool {
    bound.to_canonical() == local.to_canonical()
        || match bound {
            IpAddr::V4(bound) => bound.is_unspecified() && local.to_canonical().is_ipv4(),
            IpAddr::V6(bound) => bound.is_unspecified(),
        }
}
