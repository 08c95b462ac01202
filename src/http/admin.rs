//! The admin listener: metrics, health, and the API that shows and ends allocations.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};

use crate::access::{Limits, RealmName};
use crate::acme;
use crate::base::time::duration;
use crate::base::trace::Traces;
use crate::base::{Clock, Pii};
use crate::cluster::Ledger;
use crate::external;
use crate::metrics::{Context, NamedAllocation, Reading, encode};
use crate::quality::score::Abuse;
use crate::records::Counts;
use crate::stream::{Admission, Certificates};
use crate::turn::{AllocationView, Bandwidth, Direction};

use super::door::{Door, Refusal};
use super::keys::Meters;
use super::quality::QualityJson;
use super::serve::{Local, Peer};
use super::status::Board;
use super::{
    Captures, Events, Health, Lookout, Operator, Order, ShardControl, Status, Token, capture,
    events, json, outage, pages, refusal, revocations, trace, why,
};

/// What the admin listener answers from.
#[derive(Clone)]
pub struct AdminState<S> {
    pub(super) shards: S,
    pub(super) health: Health<S>,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) admission: Arc<Admission>,
    pub(super) operator: Option<Operator>,
    pub(super) settings: Arc<Settings>,
    pub(super) events: Events,
    /// That of `events` when this state was made.
    pub(super) epoch: u64,
    door: Arc<Door>,
    records: Option<Arc<Counts>>,
    acme: Option<Arc<acme::Counts>>,
    external: Option<Arc<external::Board>>,
    pub(super) board: Option<Board>,
    pub(super) traces: Arc<Mutex<Traces>>,
    pub(super) ledger: Ledger,
    meters: Option<Arc<Meters>>,
    pub(super) lookout: Lookout,
    pub(super) captures: Captures,
    /// That of `captures` when this state was made.
    pub(super) capture_epoch: u64,
    pub(super) may_capture: bool,
}

/// What the admin listener says about this server, and to whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names this server among others.
    pub node: String,
    /// Where it is; may be empty.
    pub region: String,
    /// The version of turnix.
    pub version: &'static str,
    /// How many of the busiest allocations get series of their own in `/metrics`.
    pub per_allocation: usize,
    /// The quotas in effect, for the dashboard.
    pub quotas: Limits,
    /// The limits of bandwidth in effect, for the dashboard.
    pub bandwidth: Bandwidth,
    /// Hosts under which the listener may be asked besides loopback's and its own address: names, or IP addresses without
    /// brackets.
    pub hosts: Vec<String>,
    /// What has to be shown for everything but a bare health check; `None`: nothing.
    pub token: Option<Token>,
}

impl<S: ShardControl> AdminState<S> {
    /// Answers about `shards`; `draining` is set while the server is being emptied.
    pub fn new(
        shards: S,
        draining: Arc<AtomicBool>,
        certificates: Option<Arc<Certificates>>,
        admission: Arc<Admission>,
        settings: Settings,
    ) -> Self {
        Self {
            health: Health::new(shards.clone(), draining),
            shards,
            certificates,
            admission,
            operator: None,
            door: Arc::new(Door::new(settings.token.clone())),
            settings: Arc::new(settings),
            events: Events::default(),
            epoch: 0,
            records: None,
            acme: None,
            external: None,
            board: None,
            traces: Arc::default(),
            ledger: Ledger::default(),
            meters: None,
            lookout: Lookout::default(),
            captures: Captures::default(),
            capture_epoch: 0,
            may_capture: true,
        }
    }

    /// Passes orders on to `operator`; without one they are refused.
    #[must_use]
    pub fn operated_by(self, operator: Operator) -> Self {
        Self {
            operator: Some(operator),
            ..self
        }
    }

    /// Knows of these traces, and begins and ends them, as another state before it did.
    #[must_use]
    pub fn with_traces(mut self, traces: Arc<Mutex<Traces>>) -> Self {
        self.traces = traces;
        self
    }

    /// Tells those who look by `events`, whom a state before it may have told.
    #[must_use]
    pub fn with_events(mut self, events: Events) -> Self {
        self.epoch = events.epoch();
        self.events = events;
        self
    }

    /// Keeps revocations in `ledger`, and tells what API keys were answered, as `meters` count it.
    #[must_use]
    pub fn with_ledger(self, ledger: Ledger, meters: Arc<Meters>) -> Self {
        Self {
            ledger,
            meters: Some(meters),
            ..self
        }
    }

    /// Tells in the metrics what `lookout` sees of calls.
    #[must_use]
    pub fn with_lookout(self, lookout: Lookout) -> Self {
        Self { lookout, ..self }
    }

    /// Hands out packets if that is `allowed`, and counts `captures` with a state before it.
    #[must_use]
    pub fn with_captures(mut self, captures: Captures, allowed: bool) -> Self {
        self.capture_epoch = captures.epoch();
        self.captures = captures;
        self.may_capture = allowed;
        self
    }

    /// Shows in the metrics how relay addresses look from outside.
    #[must_use]
    pub fn with_external(mut self, board: Arc<external::Board>) -> Self {
        self.external = Some(board);
        self
    }

    /// Says in the metrics what the server finds when it looks at itself.
    #[must_use]
    pub fn with_board(mut self, board: Board) -> Self {
        self.board = Some(board);
        self
    }

    /// Counts access records in the metrics.
    pub fn with_records(mut self, counts: Arc<Counts>) -> Self {
        self.records = Some(counts);
        self
    }

    /// Counts orders of certificates in the metrics, where certificates are ordered.
    #[must_use]
    pub fn with_acme(mut self, counts: Option<Arc<acme::Counts>>) -> Self {
        self.acme = counts;
        self
    }
}

/// The routes of the admin listener.
pub fn router<S: ShardControl>(state: AdminState<S>) -> Router {
    let guarding = (Arc::clone(&state.settings), Arc::clone(&state.door));
    Router::new()
        .route("/", get(async || pages::dashboard::page()))
        .route("/metrics", get(metrics))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/health", get(ready))
        .route("/api/v1/allocations", get(allocations))
        .route(
            "/api/v1/allocations/{id}",
            get(allocation).delete(end_allocation),
        )
        .route("/api/v1/allocations/{id}/capture", get(capture::stream))
        .route("/api/v1/users/{user}/allocations", delete(end_user))
        .route("/api/v1/events", get(events::stream))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/drain", post(drain))
        .route(
            "/api/v1/revocations",
            get(revocations::list).post(revocations::revoke),
        )
        .route(
            "/api/v1/revocations/{kind}/{name}",
            delete(revocations::lift),
        )
        .route("/api/v1/why", get(why::why))
        .route("/api/v1/trace", get(trace::list).post(trace::change))
        .route("/api/v1/outage", get(outage::report))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take this method",
            )
        })
        .layer(middleware::from_fn_with_state(guarding, guard))
        .with_state(state)
}

/// What a caller gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Everything.
    Known,
    /// Whether the server is well, as balancers and kubelets ask, which carry no token.
    Anyone,
}

/// What is answered without the token: what balancers ask, and the dashboard, a page that asks for it and is the same for
/// everybody.
const OPEN_PATHS: [&str; 4] = ["/live", "/ready", "/health", "/"];

/// Refuses requests that a web page from elsewhere may have provoked, and those that lack the token.
///
/// A page that points its own name at this address (DNS rebinding) asks under that name. Loopback's names, the address
/// that was connected to and those that the operator knows cannot be such a page's.
async fn guard(
    State((settings, door)): State<(Arc<Settings>, Arc<Door>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let (local, peer) = (
        request.extensions().get::<Local>(),
        request.extensions().get::<Peer>(),
    );
    let known = Known {
        local: local.map(|Local(local)| local.ip()),
        hosts: &settings.hosts,
    };
    if !known.asked(request.uri(), request.headers()) {
        return refusal(
            StatusCode::FORBIDDEN,
            "this host is not the admin listener's own: ask as localhost or by its address, or add the host to http.hosts",
        );
    }
    if !known.asks(request.headers()) {
        return refusal(
            StatusCode::FORBIDDEN,
            "no page from elsewhere may ask the admin listener",
        );
    }
    // Only tests ask without a connection.
    let client = peer.map_or(IpAddr::from([0, 0, 0, 0]), |Peer(client)| client.ip());
    let caller = match door.admit(client, request.headers()) {
        Ok(()) => Caller::Known,
        Err(Refusal::Missing) if OPEN_PATHS.contains(&request.uri().path()) => Caller::Anyone,
        Err(reason) => {
            door.refuse(reason);
            return turned_away(reason, request.version());
        }
    };
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Asks for the token, or for patience; the connection ends, so that strangers hold none open by it.
fn turned_away(reason: Refusal, version: Version) -> Response {
    let mut response = match reason {
        Refusal::Missing | Refusal::Wrong => refusal(
            StatusCode::UNAUTHORIZED,
            "show http.token of the configuration: \"Authorization: Bearer TOKEN\"",
        ),
        Refusal::Limited => refusal(
            StatusCode::TOO_MANY_REQUESTS,
            "too many wrong tokens from this address: try again in ten seconds",
        ),
    };
    let headers = response.headers_mut();
    match reason {
        Refusal::Missing => {
            let challenge = HeaderValue::from_static("Bearer realm=\"turnix\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        Refusal::Wrong => {
            let challenge =
                HeaderValue::from_static("Bearer realm=\"turnix\", error=\"invalid_token\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        Refusal::Limited => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
        }
    }
    if version < Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The hosts under which the admin listener may be asked.
struct Known<'a> {
    /// The address that was connected to.
    local: Option<IpAddr>,
    hosts: &'a [String],
}

impl Known<'_> {
    /// Whether everything that says whom `request` was meant for names a known host. Browsers always say it; all places
    /// count, so that one cannot hide the other.
    fn asked(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        uri.authority().is_none_or(|named| self.has(named.as_str()))
            && (headers.get_all(header::HOST).iter())
                .all(|named| named.to_str().is_ok_and(|named| self.has(named)))
    }

    /// Whether no page from elsewhere asks: it may do so under our own host as long as it does not read the answer, and
    /// its browser tells where it is from (RFC 6454 §7; Fetch Metadata). A link that somebody follows is no request of
    /// its page.
    fn asks(&self, headers: &HeaderMap) -> bool {
        let says = |name: &str, value: &str| headers.get(name).is_some_and(|said| said == value);
        let own = ["same-origin", "none"];
        let from_elsewhere = headers.contains_key("sec-fetch-site")
            && !own.iter().any(|site| says("sec-fetch-site", site));
        if from_elsewhere && !says("sec-fetch-dest", "document") {
            return false;
        }
        (headers.get_all(header::ORIGIN).iter()).all(|origin| {
            let origin = origin.to_str().ok();
            let authority = origin.and_then(|origin| origin.split_once("://"));
            authority.is_some_and(|(_, authority)| self.has(authority))
        })
    }

    fn has(&self, authority: &str) -> bool {
        let host = without_port(authority);
        let literal = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        match literal.parse::<IpAddr>() {
            Ok(ip) => {
                let ip = ip.to_canonical();
                let same = |other: IpAddr| other.to_canonical() == ip;
                let mut hosts = self.hosts.iter().filter_map(|host| host.parse().ok());
                ip.is_loopback() || self.local.is_some_and(same) || hosts.any(same)
            }
            Err(_) => {
                let mut hosts = self.hosts.iter();
                host.eq_ignore_ascii_case("localhost")
                    || hosts.any(|name| host.eq_ignore_ascii_case(name))
            }
        }
    }
}

/// Whether a web page of another origin sends this: a browser sends a plain POST without asking the server first.
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    headers.get(header::ORIGIN).is_some_and(|origin| {
        let own = (origin.to_str().ok())
            .and_then(|origin| origin.split_once("://"))
            .map(|(_, authority)| authority);
        own.is_none() || own != host
    })
}

/// `host` of `host:port`, `[v6]` of `[v6]:port`.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

async fn metrics<S: ShardControl>(State(state): State<AdminState<S>>) -> Response {
    let live = match state.settings.per_allocation {
        0 => Vec::new(),
        most => state.shards.allocations(most).await,
    };
    let (external, external_changes) =
        (state.external.as_ref()).map_or_else(Default::default, |board| board.read());
    let capacity = state.shards.capacity();
    let context = Context {
        capacity_ratio: capacity.ratio(),
        realms: capacity.realms,
        certificate_expiry_unix: state.certificates.as_ref().map(|all| all.not_after_unix()),
        other_certificates: (state.certificates.as_ref())
            .map_or_else(Vec::new, |all| all.others_not_after_unix()),
        streams_refused: state.admission.refused(),
        passed: state.admission.passages().read(),
        unix_secs: Clock.now().unix_secs(),
        records: (state.records.as_ref()).map_or_else(Vec::new, |counts| counts.read()),
        acme: state.acme.as_ref().map(|counts| counts.read()),
        admin_refused: state.door.refused(),
        revocations: state.ledger.counts(Clock.now().unix_secs()),
        api_keys: (state.meters.as_ref()).map_or_else(Vec::new, |meters| meters.read()),
        external: (external.iter())
            .map(|seen| (seen.local, seen.external, seen.source.label()))
            .collect(),
        external_changes,
        captures: state.captures.begun(),
        canary: (state.board.as_ref()).map_or_else(Vec::new, Board::looks),
        outages: (state.board.as_ref()).map_or_else(Vec::new, Board::outages),
        version: state.settings.version,
        calls: state.lookout.histograms(),
    };
    let text = encode(Reading {
        totals: state.shards.snapshot().await,
        live,
        context,
    });
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Whether a restart would help: draining is no reason for one.
async fn live<S: ShardControl>(
    State(state): State<AdminState<S>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    let status = state.health.status().await;
    let code = match status {
        Status::Ok | Status::Draining => StatusCode::OK,
        Status::Degraded => StatusCode::SERVICE_UNAVAILABLE,
    };
    health_answer(&state, caller, status, code).await
}

/// Whether new clients are welcome.
async fn ready<S: ShardControl>(
    State(state): State<AdminState<S>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    let status = state.health.status().await;
    health_answer(&state, caller, status, status.code()).await
}

async fn health_answer<S: ShardControl>(
    state: &AdminState<S>,
    caller: Caller,
    status: Status,
    code: StatusCode,
) -> Response {
    if caller == Caller::Anyone {
        return json(code, &serde_json::json!({ "status": status.label() }));
    }
    let allocations = match status {
        // A shard that does not answer would keep this answer waiting.
        Status::Degraded => None,
        Status::Ok | Status::Draining => {
            let live = state.shards.snapshot().await.stats.live;
            Some(live.as_flattened().iter().sum::<u64>())
        }
    };
    let mut body = serde_json::json!({
        "status": status.label(),
        "node": state.settings.node,
        "region": state.settings.region,
        "version": state.settings.version,
        "allocations": allocations,
    });
    if let Some(unix) = (state.operator.as_ref()).and_then(Operator::drain_deadline_unix) {
        body["deadline"] = unix.into();
    }
    json(code, &body)
}

/// One live allocation as the API shows it.
#[derive(Serialize)]
pub(super) struct AllocationJson<'a> {
    id: &'a str,
    user: &'a str,
    /// If not the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    realm: Option<&'static str>,
    transport: &'static str,
    client: String,
    relayed: String,
    /// The other one, of an allocation in both families.
    #[serde(skip_serializing_if = "Option::is_none")]
    relayed_additional: Option<String>,
    /// Seconds since the Unix epoch.
    created: u64,
    /// Seconds since the Unix epoch.
    expires: u64,
    permissions: usize,
    channels: usize,
    relay_transport: &'static str,
    /// With peers, of a TCP allocation.
    connections: usize,
    bytes: BothWays,
    packets: BothWays,
    bits_per_second: BothWays,
    peak_bits_per_second: BothWays,
    /// How its call goes, where that is watched.
    quality: Option<QualityJson>,
    /// Whether it looks like a call at all, where that is watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    abuse: Option<Abuse>,
}

#[derive(Serialize)]
pub(super) struct BothWays {
    to_peer: u64,
    to_client: u64,
}

impl BothWays {
    pub fn of(count: impl Fn(Direction) -> u64) -> Self {
        Self {
            to_peer: count(Direction::ToPeer),
            to_client: count(Direction::ToClient),
        }
    }
}

impl<'a> From<&'a NamedAllocation> for AllocationJson<'a> {
    fn from(NamedAllocation { name, view, .. }: &'a NamedAllocation) -> Self {
        Self {
            id: name,
            user: &view.user,
            realm: view.realm.map(RealmName::as_str),
            transport: view.transport.label(),
            client: Pii(view.client).to_string(),
            relayed: view.relayed.to_string(),
            relayed_additional: view.additional.map(|relayed| relayed.to_string()),
            created: view.created_unix.as_secs(),
            expires: view.expires_unix.as_secs(),
            permissions: view.permissions,
            channels: view.channels,
            relay_transport: view.relay_transport.label(),
            connections: view.connections,
            bytes: BothWays::of(|direction| view.traffic[direction as usize].bytes),
            packets: BothWays::of(|direction| view.traffic[direction as usize].packets),
            bits_per_second: BothWays::of(|direction| view.bits_per_second[direction as usize]),
            peak_bits_per_second: BothWays::of(|direction| {
                view.peak_bits_per_second[direction as usize]
            }),
            quality: view.quality.as_deref().map(QualityJson::from),
            abuse: view.quality.as_ref().map(|quality| quality.abuse),
        }
    }
}

/// Which allocations to list; all of them, if nothing is said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Those of this user.
    user: Option<String>,
    /// Those of this client or relayed address, with or without its port.
    address: Option<String>,
    /// Those whose user, client or relayed address has this in it, in letters of either case.
    search: Option<String>,
    /// The busiest of them, this many at most.
    limit: Option<usize>,
}

impl Wanted {
    /// Addresses are compared as they are shown: what `log.ip_privacy` hides cannot be guessed here either.
    fn is(&self, view: &AllocationView) -> bool {
        if (self.user.as_ref()).is_some_and(|user| **user != *view.user) {
            return false;
        }
        if self.address.is_none() && self.search.is_none() {
            return true;
        }
        let (client, relayed) = (view.client, [Some(view.relayed), view.additional]);
        let relayed = || relayed.into_iter().flatten();
        let mut ips = vec![Pii(client.ip()).to_string()];
        ips.extend(relayed().map(|relayed| relayed.ip().to_string()));
        let mut addresses = vec![Pii(client).to_string()];
        addresses.extend(relayed().map(|relayed| relayed.to_string()));
        let of_address = |wanted: &String| {
            let plain = wanted.trim_start_matches('[').trim_end_matches(']');
            addresses.contains(wanted) || ips.iter().any(|ip| ip == plain)
        };
        let has = |wanted: &String| {
            let wanted = wanted.to_lowercase();
            let mut addresses = addresses.iter();
            view.user.to_lowercase().contains(&wanted)
                || addresses.any(|text| text.contains(&wanted))
        };
        self.address.as_ref().is_none_or(of_address) && self.search.as_ref().is_none_or(has)
    }
}

async fn allocations<S: ShardControl>(
    State(state): State<AdminState<S>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let wanted = match wanted {
        Ok(Query(wanted)) => wanted,
        Err(error) => return refusal(error.status(), &error.body_text()),
    };
    let most = wanted.limit.unwrap_or(usize::MAX);
    let survey = state.shards.survey(most, |view| wanted.is(view)).await;
    let shown: Vec<_> = survey.busiest.iter().map(AllocationJson::from).collect();
    let mut response = json(StatusCode::OK, &shown);
    let found = HeaderValue::from(survey.found);
    response.headers_mut().insert("x-total-count", found);
    response
}

async fn allocation<S: ShardControl>(
    State(state): State<AdminState<S>>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(id)) = id else {
        return unreadable();
    };
    match state.shards.allocation(&id).await {
        Some(found) => json(StatusCode::OK, &AllocationJson::from(&found)),
        None => unknown(),
    }
}

async fn end_allocation<S: ShardControl>(
    State(state): State<AdminState<S>>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(id)) = id else {
        return unreadable();
    };
    if state.shards.end_allocation(&id).await {
        StatusCode::NO_CONTENT.into_response()
    } else {
        unknown()
    }
}

async fn end_user<S: ShardControl>(
    State(state): State<AdminState<S>>,
    user: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(user)) = user else {
        return unreadable();
    };
    let ended = state.shards.end_user(&user).await;
    json(StatusCode::OK, &serde_json::json!({ "ended": ended }))
}

async fn reload<S: ShardControl>(
    State(state): State<AdminState<S>>,
    headers: HeaderMap,
) -> Response {
    order(&state, &headers, Order::Reload).await
}

#[derive(Deserialize)]
struct DrainQuery {
    deadline: Option<String>,
}

async fn drain<S: ShardControl>(
    State(state): State<AdminState<S>>,
    headers: HeaderMap,
    Query(DrainQuery { deadline }): Query<DrainQuery>,
) -> Response {
    match deadline.as_deref().map(duration).transpose() {
        Ok(deadline) => order(&state, &headers, Order::Drain { deadline }).await,
        Err(wanted) => refusal(
            StatusCode::UNPROCESSABLE_ENTITY,
            &format!("deadline: write {wanted}"),
        ),
    }
}

async fn order<S>(state: &AdminState<S>, headers: &HeaderMap, order: Order) -> Response {
    if is_from_elsewhere(headers) {
        return refusal(
            StatusCode::FORBIDDEN,
            "pages of other origins give no orders here",
        );
    }
    match &state.operator {
        Some(operator) => operator.ask(order).await,
        None => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "this server takes no orders",
        ),
    }
}

pub(super) fn unknown() -> Response {
    refusal(
        StatusCode::NOT_FOUND,
        "no live allocation has this id; GET /api/v1/allocations lists them",
    )
}

pub(super) fn unreadable() -> Response {
    refusal(
        StatusCode::BAD_REQUEST,
        "the path is not percent-encoded UTF-8",
    )
}
