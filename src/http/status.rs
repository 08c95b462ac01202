//! `/status`: whether this server serves, why not, and how it was in the last hours; for people and for programs.
//!
//! What it says comes from looks at the server by its own listeners ([`cluster::own`](crate::cluster::own)), from the
//! shards and from the certificate. It names ports, which everybody may see, and no address and no user.

mod page;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};

use crate::base::{Clock, Family, Now, Pii, Transport};
use crate::cluster::detective::{Cause, Detective, Others, Own, Verdict};
use crate::cluster::own::{Fault, Seen};
use crate::metrics::CanaryLook;
use crate::turn::Attempts;

use super::refusal;

pub use crate::cluster::detective::State;

/// Looks in a row that have to fail before a way counts as closed: a busy moment is no outage.
const PATIENT_FAILURES: u32 = 2;

/// What the history keeps one word about.
const SLOT: Duration = Duration::from_secs(300);

/// How many slots there are: twelve hours.
const SLOTS: usize = 144;

/// Below this share of room left, newcomers should know.
const NEARLY_FULL: f64 = 0.95;

/// How long before a certificate ends people are told.
const ENDS_SOON: Duration = Duration::from_secs(3 * 86_400);

/// One way into the server, as the public knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What is spoken.
    pub transport: Transport,
    /// On which port.
    pub port: u16,
    /// By which family of addresses, as far as it takes one only.
    pub family: Family,
}

impl Way {
    fn name(self) -> String {
        let transport = match self.transport {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Dtls => "DTLS",
        };
        let family = match self.family {
            Family::V4 => "",
            Family::V6 => ", IPv6",
        };
        format!("TURN over {transport}, port {}{family}", self.port)
    }
}

/// What there is to know besides what looks find.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Every shard answers.
    pub alive: bool,
    /// The server is being emptied.
    pub draining: bool,
    /// Share of the scarcest resource in use.
    pub capacity_ratio: f64,
    /// When the served certificate ends, in seconds since the Unix epoch; `None` without TLS.
    pub certificate_expiry_unix: Option<u64>,
    /// No relayed address can be reached from other networks, and nobody said that this is meant.
    pub private: bool,
}

/// Why a server is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub text: String,
    /// How bad it is; [`State::Online`] is only worth telling.
    pub state: State,
    /// Since when, in seconds since the Unix epoch.
    pub since_unix: u64,
}

/// One way and what the last look by it found.
#[derive(Clone, Debug)]
struct Path {
    way: Way,
    last: Option<Result<Seen, Fault>>,
    failures: u32,
}

impl Path {
    /// Why it counts as closed, if it does.
    fn fault(&self) -> Option<Fault> {
        match self.last {
            Some(Err(fault)) if self.failures >= PATIENT_FAILURES => Some(fault),
            _ => None,
        }
    }
}

/// What is known at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it does.
    pub state: State,
    /// Why, the worst first.
    pub reasons: Vec<Reason>,
    /// Since when, in seconds since the Unix epoch.
    pub since_unix: u64,
    /// When somebody looked last, in seconds since the Unix epoch.
    pub checked_unix: u64,
    paths: Vec<Path>,
    history: Vec<Option<State>>,
    /// There is a test page to point at.
    test_page: bool,
}

/// What looks find and what follows from it; clones are the same one.
#[derive(Clone)]
pub struct Board(Arc<Mutex<Inner>>);

struct Inner {
    enabled: bool,
    test_page: bool,
    /// Ways are looked at, rather than only the circumstances.
    looks: bool,
    paths: Vec<Path>,
    verdict: Option<(State, Vec<Reason>)>,
    since_unix: u64,
    checked_unix: u64,
    history: History,
    detective: Detective,
    /// What the detective found last.
    outage: Verdict,
}

/// The worst of each slot of time, the latest last; bounded.
#[derive(Default)]
struct History {
    /// Which slot since the Unix epoch the last entry is about.
    last: u64,
    slots: VecDeque<Option<State>>,
}

impl History {
    fn mark(&mut self, unix_secs: u64, state: State) {
        self.reach(unix_secs);
        if let Some(slot) = self.slots.back_mut() {
            *slot = (*slot).max(Some(state));
        }
    }

    /// Makes room up to the slot of `unix_secs`; a clock that went back stays in the last one.
    fn reach(&mut self, unix_secs: u64) {
        let slot = unix_secs / SLOT.as_secs();
        let missing = match self.slots.is_empty() {
            true => 1,
            false => slot.saturating_sub(self.last).min(SLOTS as u64),
        };
        if missing > 0 {
            self.last = slot;
        }
        for _ in 0..missing {
            self.slots.push_back(None);
        }
        while self.slots.len() > SLOTS {
            self.slots.pop_front();
        }
    }
}

impl Board {
    /// Nothing is known yet. `enabled`: there is a page; `looks`: ways will be looked at.
    pub fn new(now: Now, enabled: bool, looks: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            enabled,
            test_page: false,
            looks,
            paths: Vec::new(),
            verdict: None,
            since_unix: now.unix_secs(),
            checked_unix: now.unix_secs(),
            history: History::default(),
            detective: Detective::new(now),
            outage: Verdict::default(),
        })))
    }

    fn with<T>(&self, read: impl FnOnce(&mut Inner) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the configuration says of this page and of the test page, and whether ways are looked at. What is known stays.
    pub fn set(&self, enabled: bool, test_page: bool, looks: bool) {
        self.with(|inner| {
            inner.enabled = enabled;
            inner.test_page = test_page;
            inner.looks = looks;
        });
    }

    /// Takes what a round of looks found, of every way that there is, and what else there is to know.
    pub fn record(
        &self,
        now: Now,
        found: Vec<(Way, Result<Seen, Fault>)>,
        circumstances: Circumstances,
    ) {
        self.with(|inner| {
            let mut known = std::mem::take(&mut inner.paths);
            inner.paths = (found.into_iter())
                .map(|(way, last)| {
                    // Several addresses may have the same ways, always in the same order.
                    let before = known.iter().position(|path| path.way == way);
                    let failures = before.map_or(0, |at| known.remove(at).failures);
                    Path {
                        way,
                        failures: match last {
                            Ok(_) => 0,
                            Err(_) => failures.saturating_add(1),
                        },
                        last: Some(last),
                    }
                })
                .collect();
            let unix = now.unix_secs();
            let mut reasons = judge(&inner.paths, circumstances, unix);
            let before = inner.verdict.take();
            for reason in &mut reasons {
                let known = before.iter().flat_map(|(_, reasons)| reasons);
                let mut known = known.filter(|known| known.code == reason.code);
                reason.since_unix = known.next().map_or(unix, |known| known.since_unix);
            }
            let own = worst(&reasons);
            let begun = inner.detect(now, circumstances, &mut reasons);
            let state = worst(&reasons);
            let before = before.map(|(state, _)| state);
            if before != Some(state) {
                // What clients meet is found out later than it begins.
                let found_out = own < state && before.is_some_and(|before| before < state);
                let begun = begun.filter(|_| found_out).unwrap_or(unix);
                inner.since_unix = begun.clamp(inner.since_unix.min(unix), unix);
                tell(state, &reasons);
            }
            inner.verdict = Some((state, reasons));
            inner.checked_unix = unix;
            inner.history.mark(unix, state);
        });
    }

    /// What is known at `now`; `None` if there is to be no page.
    pub fn report(&self, now: Now) -> Option<Report> {
        self.with(|inner| {
            let (state, reasons) = match &inner.verdict {
                Some(verdict) => verdict.clone(),
                None => (
                    State::Degraded,
                    vec![Reason {
                        code: "starting",
                        text: "The server has just started and is still looking at itself.".into(),
                        state: State::Degraded,
                        since_unix: inner.since_unix,
                    }],
                ),
            };
            inner.history.reach(now.unix_secs());
            inner.enabled.then(|| Report {
                state,
                reasons,
                test_page: inner.test_page,
                since_unix: inner.since_unix,
                checked_unix: inner.checked_unix,
                paths: if inner.looks {
                    inner.paths.clone()
                } else {
                    Vec::new()
                },
                history: inner.history.slots.iter().copied().collect(),
            })
        })
    }

    /// Takes what became of those who wanted an allocation since it was told last.
    pub fn heard(&self, now: Now, attempts: &Attempts) {
        self.with(|inner| inner.detective.heard(now, attempts));
    }

    /// Takes what the looks at other servers of the service found.
    pub fn met(&self, now: Now, others: Others) {
        self.with(|inner| inner.detective.met(now, others));
    }

    /// Whose fault is an outage that there is, for metrics: every cause, and whether it is there.
    pub fn outages(&self) -> Vec<(&'static str, bool)> {
        self.with(|inner| {
            (Cause::ALL.into_iter())
                .map(|cause| (cause.label(), inner.outage.finding(cause).is_some()))
                .collect()
        })
    }

    /// What the detective knows, and what it made of that last.
    pub(super) fn investigated<T>(&self, read: impl FnOnce(&Detective, &Verdict) -> T) -> T {
        self.with(|inner| read(&inner.detective, &inner.outage))
    }

    /// What the last looks found, for metrics: by transport, the worst port of each.
    pub fn looks(&self) -> Vec<CanaryLook> {
        self.with(|inner| {
            (Transport::ALL.into_iter())
                .filter_map(|transport| {
                    let of = || (inner.paths.iter()).filter(|path| path.way.transport == transport);
                    of().next()?;
                    let seen = of().filter_map(|path| path.last?.ok());
                    Some(CanaryLook {
                        transport,
                        success: of().all(|path| matches!(path.last, Some(Ok(_)))),
                        duration: seen.map(|seen| seen.whole).max(),
                    })
                })
                .collect()
        })
    }
}

impl Inner {
    /// Adds what the detective finds to `reasons`; since when the worst of it has been there.
    fn detect(
        &mut self,
        now: Now,
        circumstances: Circumstances,
        reasons: &mut Vec<Reason>,
    ) -> Option<u64> {
        let faults = self.paths.iter().filter_map(Path::fault);
        self.detective.looked(Own {
            ways: self.paths.len(),
            closed: faults.filter(|fault| *fault != Fault::Full).count(),
            stuck: !circumstances.alive,
        });
        self.outage = self.detective.judge(now);
        tell_outage(&self.outage);
        let news = || (self.outage.findings.iter()).filter(|finding| finding.is_news);
        reasons.extend(news().map(|finding| Reason {
            code: finding.cause.label(),
            text: finding.text.clone(),
            state: finding.state,
            since_unix: finding.since_unix,
        }));
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.state));
        let worst = news().max_by_key(|finding| finding.state);
        worst.map(|finding| finding.since_unix)
    }
}

fn worst(reasons: &[Reason]) -> State {
    (reasons.iter().map(|reason| reason.state).max()).unwrap_or(State::Online)
}

/// Says in the log whose fault an outage is, once, and that it is over.
fn tell_outage(verdict: &Verdict) {
    for finding in (verdict.begun.iter()).filter_map(|cause| verdict.finding(*cause)) {
        let networks = finding.networks.iter().map(|(network, failed, _)| {
            let (address, bits) = network.prefix();
            format!("{}/{bits}: {failed}", Pii(address))
        });
        tracing::warn!(
            cause = finding.cause.label(),
            since_unix = finding.since_unix,
            clients = finding.clients,
            users = finding.users,
            networks = networks.collect::<Vec<_>>().join(", "),
            "outage: {}",
            finding.text
        );
    }
    for (cause, seconds) in &verdict.over {
        tracing::info!(cause = cause.label(), seconds, "outage is over");
    }
}

/// Says in the log what the page says, once.
fn tell(state: State, reasons: &[Reason]) {
    let why: Vec<_> = reasons.iter().map(|reason| reason.code).collect();
    let why = why.join(",");
    match state {
        State::Online => tracing::info!(reasons = why, "status: online"),
        State::Degraded => tracing::warn!(reasons = why, "status: degraded"),
        State::Offline => tracing::error!(reasons = why, "status: offline"),
    }
}

/// What is wrong, the worst first.
fn judge(paths: &[Path], circumstances: Circumstances, unix: u64) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |state, code, text: String| {
        reasons.push(Reason {
            code,
            text,
            state,
            since_unix: unix,
        });
    };
    let closed: Vec<_> = (paths.iter())
        .filter_map(|path| path.fault().map(|fault| (path.way, fault)))
        .collect();
    let all = !paths.is_empty() && closed.len() == paths.len();
    let full = |fault: &Fault| *fault == Fault::Full;
    let is_full = circumstances.capacity_ratio >= 1.0 || closed.iter().any(|(_, f)| full(f));
    if !circumstances.alive {
        let text = "Part of the server does not answer: it hangs, or is far too busy.".into();
        add(State::Degraded, "stuck", text);
    }
    if is_full {
        let text = "There is no room for more calls at the moment; those that are under way go on.";
        add(State::Degraded, "full", text.into());
    } else if circumstances.capacity_ratio >= NEARLY_FULL {
        let text = "There is little room left for more calls.";
        add(State::Online, "nearly_full", text.into());
    }
    if all && closed.iter().all(|(_, fault)| *fault == Fault::Relay) {
        let text = "Clients get in, but no data comes through the relay: something blocks the ports of relayed addresses.";
        add(State::Offline, "relay", text.into());
    } else {
        let down = closed.iter().filter(|(_, fault)| !full(fault));
        let nothing = all && down.clone().count() == paths.len();
        let state = if nothing {
            State::Offline
        } else {
            State::Degraded
        };
        for (way, fault) in down {
            let (code, what) = match fault {
                Fault::Closed => ("closed", "nobody accepts connections".to_owned()),
                Fault::Handshake => ("handshake", "TLS handshakes fail".to_owned()),
                Fault::Silent => ("silent", "there is no answer".to_owned()),
                Fault::Relay => ("relay", "no data comes through the relay".to_owned()),
                Fault::Refused(code) => ("refused", format!("requests are refused with {code}")),
                Fault::Full | Fault::Broken => ("broken", "the answers make no sense".to_owned()),
            };
            add(state, code, format!("{}: {what}.", way.name()));
        }
    }
    if circumstances.draining {
        let text = "The server is being emptied for maintenance: calls that are under way go on, new ones are better off elsewhere.";
        add(State::Degraded, "draining", text.into());
    }
    match circumstances.certificate_expiry_unix {
        Some(expiry) if expiry <= unix => {
            let text = "The certificate has expired: browsers refuse TURN over TLS and HTTPS.";
            add(State::Degraded, "certificate_expired", text.into());
        }
        Some(expiry) if expiry - unix <= ENDS_SOON.as_secs() => {
            let hours = (expiry - unix) / 3600;
            let text =
                format!("The certificate expires in {hours} hours and has not been renewed.");
            add(State::Online, "certificate_expires", text);
        }
        _ => {}
    }
    if circumstances.private {
        let text = "Relayed addresses are private: only clients in the same network can use them.";
        add(State::Online, "private_address", text.into());
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.state));
    reasons
}

impl Report {
    fn json(&self) -> Value {
        let reasons: Vec<_> = (self.reasons.iter())
            .map(|reason| {
                json!({
                    "code": reason.code,
                    "text": reason.text,
                    "severity": match reason.state {
                        State::Online => "notice",
                        state => state.label(),
                    },
                    "since": reason.since_unix,
                })
            })
            .collect();
        let paths: Vec<_> = (self.paths.iter())
            .map(|path| {
                let echo = path.last.and_then(Result::ok).map(|seen| seen.echo);
                json!({
                    "name": path.way.name(),
                    "transport": path.way.transport.label(),
                    "port": path.way.port,
                    "family": path.way.family.label(),
                    "ok": path.fault().is_none(),
                    "rtt_ms": echo.map(|echo| (echo.as_secs_f64() * 1e5).round() / 100.0),
                })
            })
            .collect();
        let slots: Vec<_> = (self.history.iter())
            .map(|slot| slot.map(State::label))
            .collect();
        json!({
            "status": self.state.label(),
            "reasons": reasons,
            "since": self.since_unix,
            "checked": self.checked_unix,
            "paths": paths,
            "history": { "slot_seconds": SLOT.as_secs(), "slots": slots },
        })
    }
}

/// The routes of the status page.
pub(super) fn routes(board: Board) -> Router {
    Router::new()
        .route("/status", get(negotiated))
        .route("/status.json", get(for_programs))
        .with_state(board)
}

/// HTML for those who name it, JSON for everybody else.
async fn negotiated(Shared(board): Shared<Board>, headers: HeaderMap) -> Response {
    let now = Clock.now();
    let Some(report) = board.report(now) else {
        return refusal(StatusCode::NOT_FOUND, "not found");
    };
    let mut response = if wants_html(&headers) {
        page::html(&report, now)
    } else {
        as_json(&report)
    };
    (response.headers_mut()).insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

async fn for_programs(Shared(board): Shared<Board>) -> Response {
    match board.report(Clock.now()) {
        Some(report) => as_json(&report),
        None => refusal(StatusCode::NOT_FOUND, "not found"),
    }
}

fn as_json(report: &Report) -> Response {
    let mut response = super::json(StatusCode::OK, &report.json());
    (response.headers_mut()).insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let mut kinds = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    kinds.any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"))
            && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
    })
}
