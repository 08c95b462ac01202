//! Whose fault an outage is: what this server's looks at itself and at the other nodes find, and what becomes of its
//! clients' allocations, weighed against each other.
//!
//! Pure: it is told what time it is and what happened, and says what follows. Its memory is bounded, whoever asks.
//!
//! What strangers can bring about, such as wrong passwords, never makes it say that the server is down, and counts only
//! from networks that have had calls of late, if any has; nor does anybody count for more than one client by trying often.

mod crowd;
mod history;
mod latch;

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Instant;

use crate::base::Now;
use crate::turn::{Attempts, Fate};

use crowd::{Crowd, Window};
use history::History;
use latch::{Latch, Turn};

pub use crowd::Network;
pub use history::{DAYS, SLOT_SECS, SLOTS_A_DAY, Slot};

/// Above this share of clients that fail there is an outage.
const FAILING: f64 = 0.2;

/// Below this share it is over.
const FINE: f64 = 0.1;

/// Above this share of attempts that fail nothing works.
const MOST: f64 = 0.8;

/// Below this share of clients that fail, something works again.
const HALF: f64 = 0.5;

/// Users at once, of whom more are an outage.
const USERS: usize = 10;

/// The share of clients that users who fail at once have to be: a large server always has some.
const USERS_SHARE: f64 = 0.02;

/// Clients that have to fail, at least: fewer are no outage.
const FEWEST: u32 = 3;

/// Attempts of half an hour that say anything have to be more.
const FEW_ATTEMPTS: u32 = 10;

/// The share of those who fail that a cause has to be behind.
const BEHIND: f64 = 0.3;

/// The share of those who fail that are in one network, for it to be the network's fault.
const CONCENTRATED: f64 = 0.8;

/// How long things have to be fine before a cause is gone, in seconds, if it has not come and gone before.
const CALM: u64 = 300;

/// How long the other nodes have to be out of reach, in seconds.
const UNREACHABLE: u64 = 60;

/// Attempts that should have come by now and did not, for the clients to have vanished.
const MISSED: f64 = 8.0;

/// How long clients have to be silent, in seconds.
const SILENT: u64 = 120;

/// Times that the server's own ways may close within [`latch::MEMORY`] before it counts as unsteady.
const UNSTEADY: usize = 3;

/// On how many days failures have to begin at the same time of day.
const PATTERN_DAYS: usize = 3;

/// Networks that a finding names, at most.
const NAMED: usize = 5;

/// How a server does; a later one is worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Calls begin and go on.
    #[default]
    Online,
    /// Some do not.
    Degraded,
    /// None do.
    Offline,
}

impl State {
    /// The word in JSON and on the page.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Degraded => "degraded",
            Self::Offline => "offline",
        }
    }
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cause {
    /// This server: its own looks at itself fail.
    Node,
    /// The network around it: it serves itself, and nobody else is to be reached.
    Network,
    /// One network of clients: they fail, others do not.
    ClientNetwork,
    /// Applications: credentials that are nobody's.
    Credentials,
    /// Applications, or a clock: credentials that are over.
    Expired,
    /// Limits of users, addresses or realms.
    Quota,
    /// No room for more.
    Capacity,
    /// This server: it fails at requests that are right.
    ServerError,
    /// Clients: requests that this server does not take.
    Requests,
    /// Something that happens every day at the same time.
    TimeOfDay,
}

impl Cause {
    /// Every cause, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Node,
        Self::Network,
        Self::ClientNetwork,
        Self::Credentials,
        Self::Expired,
        Self::Quota,
        Self::Capacity,
        Self::ServerError,
        Self::Requests,
        Self::TimeOfDay,
    ];

    /// The label of metrics, and the code of a reason.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Network => "network",
            Self::ClientNetwork => "client_network",
            Self::Credentials => "credentials",
            Self::Expired => "expired",
            Self::Quota => "quota",
            Self::Capacity => "capacity",
            Self::ServerError => "server_error",
            Self::Requests => "requests",
            Self::TimeOfDay => "time_of_day",
        }
    }

    /// Whose attempts that fail for `fate` are; an allocation is nobody's fault.
    const fn of(fate: Fate) -> Option<Self> {
        match fate {
            Fate::Allocated => None,
            Fate::Credentials => Some(Self::Credentials),
            Fate::Expired => Some(Self::Expired),
            Fate::Quota => Some(Self::Quota),
            Fate::Capacity => Some(Self::Capacity),
            Fate::ServerError => Some(Self::ServerError),
            Fate::Request => Some(Self::Requests),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose.
    pub cause: Cause,
    /// How bad it is; [`State::Online`] is only worth telling.
    pub state: State,
    /// Since when, in seconds since the Unix epoch.
    pub since_unix: u64,
    /// A sentence for everybody: it names nobody.
    pub text: String,
    /// Something that is on no other record, so that everybody should be told.
    pub is_news: bool,
    /// Clients that failed for it in the last ten minutes.
    pub clients: u32,
    /// Users among them, and addresses where nobody knows the user.
    pub users: usize,
    /// The networks that most of them are in: how many fail there, and how many do not. For operators.
    pub networks: Vec<(Network, u32, u32)>,
}

/// What follows from everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What is wrong, in the order of [`Cause::ALL`].
    pub findings: Vec<Finding>,
    /// Causes that are there since this verdict.
    pub begun: Vec<Cause>,
    /// Causes that have gone with this verdict, and how many seconds they were there.
    pub over: Vec<(Cause, u64)>,
}

impl Verdict {
    /// How the server does by it.
    pub fn state(&self) -> State {
        (self.findings.iter().map(|finding| finding.state).max()).unwrap_or_default()
    }

    /// What is known of `cause`, if it is there.
    pub fn finding(&self, cause: Cause) -> Option<&Finding> {
        (self.findings.iter()).find(|finding| finding.cause == cause)
    }
}

/// What the looks at this server itself found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Ways that are looked at.
    pub ways: usize,
    /// Those that have been closed for longer than a moment, but for want of room.
    pub closed: usize,
    /// Part of the server does not answer.
    pub stuck: bool,
}

/// Other nodes of the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// How many there are.
    pub nodes: usize,
    /// Those that answer.
    pub answering: usize,
}

/// Clients of some minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Those whose last attempt came to something.
    pub clients_ok: u32,
    /// The others.
    pub clients_failed: u32,
    /// Attempts that came to something: one for each client and minute, at most four for each client.
    pub attempts_ok: u32,
    /// The others, counted alike.
    pub attempts_failed: u32,
    /// Users that failed, and addresses where nobody knows the user.
    pub users: usize,
}

/// Everything it has been told, as far as it matters.
#[derive(Debug)]
pub struct Detective {
    begun: (Instant, u64),
    own: Own,
    others: Others,
    /// When another node answered last.
    answered: Option<u64>,
    /// Since when no other node answers.
    alone_since: Option<u64>,
    crowd: Crowd,
    pace: Pace,
    latches: [Latch; Cause::ALL.len()],
    history: History,
}

impl Detective {
    /// Nothing has happened yet.
    pub fn new(now: Now) -> Self {
        Self {
            begun: (now.mono, now.unix_secs()),
            own: Own::default(),
            others: Others::default(),
            answered: None,
            alone_since: None,
            crowd: Crowd::default(),
            pace: Pace::default(),
            latches: Default::default(),
            history: History::default(),
        }
    }

    /// Seconds since the Unix epoch by a clock that nobody sets.
    fn steady(&self, now: Now) -> u64 {
        let (mono, unix) = self.begun;
        unix + now.mono.saturating_duration_since(mono).as_secs()
    }

    /// Takes what a round of looks at this server found.
    pub const fn looked(&mut self, own: Own) {
        self.own = own;
    }

    /// Takes what the looks at the other nodes found.
    pub fn met(&mut self, now: Now, others: Others) {
        let at = self.steady(now);
        self.others = others;
        if others.answering > 0 {
            self.answered = Some(at);
        }
        let alone = others.nodes > 0 && others.answering == 0;
        self.alone_since = alone.then(|| self.alone_since.unwrap_or(at));
    }

    /// Takes what became of those who wanted an allocation since it was told last.
    pub fn heard(&mut self, now: Now, attempts: &Attempts) {
        let at = self.steady(now);
        let total: u32 = (attempts.totals.as_flattened().iter()).sum();
        self.pace.heard(at, total);
        for (client, fates) in &attempts.clients {
            self.crowd.mark(at / 60, *client, fates);
        }
    }

    /// Clients of the last `minutes`, 30 at most.
    pub fn figures(&self, now: Now, minutes: u32) -> Figures {
        self.crowd
            .window(self.steady(now) / 60, minutes, None)
            .figures()
    }

    /// Attempts of strangers from networks without calls, which count for nothing.
    pub const fn ignored(&self) -> u64 {
        self.crowd.ignored
    }

    /// What the looks found last.
    pub const fn looks(&self) -> (Own, Others) {
        (self.own, self.others)
    }

    /// Every half hour of the last days, the latest last.
    pub fn history(&self) -> impl Iterator<Item = Slot> {
        self.history.slots()
    }

    /// What follows from everything up to `now`.
    pub fn judge(&mut self, now: Now) -> Verdict {
        let at = self.steady(now);
        let mut verdict = Verdict::default();
        self.crowd.forget(at / 60);
        self.judge_node(at, &mut verdict);
        self.judge_network(at, &mut verdict);
        let tried = self.judge_clients(at, &mut verdict);
        let bad = (Cause::ALL.iter()).any(|cause| {
            !matches!(cause, Cause::ClientNetwork | Cause::TimeOfDay)
                && self.latches[*cause as usize].is_lasting(at)
        });
        self.history.mark(now.unix_secs(), tried || bad, bad);
        self.judge_pattern(at, &mut verdict);
        // By the wall clock as it is.
        for finding in &mut verdict.findings {
            let age = at.saturating_sub(finding.since_unix);
            finding.since_unix = now.unix_secs().saturating_sub(age);
        }
        verdict
    }

    /// Has `cause` begin, go on or end; the finding that it is there, if it is.
    fn settle(
        &mut self,
        at: u64,
        cause: Cause,
        wanted: Option<(State, u64)>,
        calm: impl FnOnce(usize) -> u64,
        verdict: &mut Verdict,
    ) -> Option<(State, u64)> {
        let latch = &mut self.latches[cause as usize];
        match latch.update(at, wanted, calm) {
            Turn::Begun => verdict.begun.push(cause),
            Turn::Over(since) => verdict.over.push((cause, at.saturating_sub(since))),
            Turn::Same => {}
        }
        latch.there()
    }

    fn judge_node(&mut self, at: u64, verdict: &mut Verdict) {
        let Own {
            ways,
            closed,
            stuck,
        } = self.own;
        let wanted = match closed {
            0 if !stuck => None,
            _ if ways > 0 && closed == ways => Some((State::Offline, at)),
            _ => Some((State::Degraded, at)),
        };
        let calm = |times| if times < UNSTEADY { 0 } else { CALM };
        let Some((state, since)) = self.settle(at, Cause::Node, wanted, calm, verdict) else {
            return;
        };
        let text = match (wanted, self.others) {
            (None, _) => {
                "The server's own looks at itself have failed again and again: it counts as it did then until they have not for five minutes."
            }
            (_, Others { nodes: 0, .. }) => "The server's own looks at itself fail.",
            (_, Others { answering: 0, .. }) => {
                "The server's own looks at itself fail, and it reaches no other server of the service: it or its host is at fault."
            }
            _ => "Other servers of the service answer: the fault is this server's.",
        };
        verdict.findings.push(Finding {
            cause: Cause::Node,
            state,
            since_unix: since,
            text: text.to_owned(),
            is_news: wanted.is_none() || self.others.nodes > 0,
            clients: 0,
            users: 0,
            networks: Vec::new(),
        });
    }

    fn judge_network(&mut self, at: u64, verdict: &mut Verdict) {
        let well = self.own.closed == 0 && !self.own.stuck;
        let alone = (self.alone_since).filter(|since| well && at - since >= UNREACHABLE);
        let silent = self.pace.silent(at);
        let gone = |at| self.pace.missed(at) >= MISSED && self.pace.silent(at) >= SILENT;
        // Who had gone before the other nodes did, or still came when they had, went for a reason of its own.
        let vanished = |since: u64| {
            gone(at)
                && !gone(self.answered.unwrap_or(since))
                && self.pace.last <= since + UNREACHABLE
        };
        let wanted = match alone {
            Some(since) if vanished(since) => Some((State::Offline, since)),
            // Who is looked at is as likely to be gone as who looks, if there is but one of them.
            Some(since) if self.others.nodes > 1 && silent >= SILENT => {
                Some((State::Degraded, since))
            }
            _ => None,
        };
        let calm = |times| UNREACHABLE * times as u64;
        let Some((state, since)) = self.settle(at, Cause::Network, wanted, calm, verdict) else {
            return;
        };
        let text = match state {
            State::Offline => {
                "The server serves itself, but it reaches no other server of the service and its clients have vanished: the network around it is down."
            }
            _ => {
                "The server serves itself, but it reaches no other server of the service: the network around it may be down."
            }
        };
        verdict.findings.push(Finding {
            cause: Cause::Network,
            state,
            since_unix: since,
            text: text.to_owned(),
            is_news: true,
            clients: 0,
            users: 0,
            networks: Vec::new(),
        });
    }

    /// Judges by what became of attempts; whether there were any.
    fn judge_clients(&mut self, at: u64, verdict: &mut Verdict) -> bool {
        let minute = at / 60;
        let all = self.crowd.window(minute, 10, None);
        let narrow = all.concentrated();
        self.judge_client_network(at, narrow, &all, verdict);
        let ten = self.crowd.window(minute, 10, narrow);
        let five = self.crowd.window(minute, 5, narrow);
        let thirty = self.crowd.window(minute, 30, narrow);
        let fifth = ten.share() > FAILING && ten.failed >= FEWEST && ten.attempts() >= 5;
        let users = ten.users.len() > USERS && ten.share() >= USERS_SHARE;
        let most = thirty.attempts_share() > MOST
            && thirty.attempts() > FEW_ATTEMPTS
            && ten.share() >= HALF
            && ten.failed > 0;
        for fate in Fate::ALL {
            let Some(cause) = Cause::of(fate) else {
                continue;
            };
            let there = self.latches[cause as usize].there();
            let wide = !fate.is_of_strangers() || self.crowd.is_wide(&ten, fate);
            let begins = (fifth || users || most) && wide && ten.behind(fate) >= BEHIND;
            let lasts = five.share_of(fate) >= FINE || users && five.failed_by[fate as usize] > 0;
            let worst = !fate.is_of_strangers()
                && (most || there.is_some_and(|(state, _)| state == State::Offline))
                && ten.share() >= HALF;
            let state = if worst {
                State::Offline
            } else {
                State::Degraded
            };
            let wanted = match there {
                Some((_, since)) => lasts.then_some((state, since)),
                None => begins.then(|| {
                    let begun = 60 * self.crowd.begun(minute, fate, narrow);
                    (state, begun.max(self.begun.1))
                }),
            };
            let calm = |times: usize| CALM * times.clamp(1, 3) as u64;
            let Some((state, since)) = self.settle(at, cause, wanted, calm, verdict) else {
                continue;
            };
            let failed = ten.failed_by[fate as usize];
            verdict.findings.push(Finding {
                cause,
                state,
                since_unix: since,
                text: sentence(fate, &ten, wanted.is_some()),
                is_news: true,
                clients: failed,
                users: ten.users.len(),
                networks: ten.networks(Some(fate), NAMED),
            });
        }
        all.ok + all.failed > 0
    }

    /// One network of clients: this server is well, whatever becomes of them.
    fn judge_client_network(
        &mut self,
        at: u64,
        narrow: Option<Network>,
        ten: &Window,
        verdict: &mut Verdict,
    ) {
        let wanted = narrow.map(|_| (State::Online, at));
        let calm = |times: usize| CALM * times.clamp(1, 3) as u64;
        let there = self.settle(at, Cause::ClientNetwork, wanted, calm, verdict);
        let Some((state, since)) = there else {
            return;
        };
        verdict.findings.push(Finding {
            cause: Cause::ClientNetwork,
            state,
            since_unix: since,
            text:
                "Clients of one network get no calls, and others do: the fault is in that network."
                    .to_owned(),
            is_news: true,
            clients: ten.failed,
            users: ten.users.len(),
            networks: ten.networks(None, 1),
        });
    }

    fn judge_pattern(&mut self, at: u64, verdict: &mut Verdict) {
        let pattern = (self.history.pattern()).filter(|(_, days)| *days >= PATTERN_DAYS);
        let wanted = pattern.map(|_| (State::Online, at));
        let Some((state, since)) = self.settle(at, Cause::TimeOfDay, wanted, |_| 0, verdict) else {
            return;
        };
        let (slot, days) = pattern.unwrap_or_default();
        let minutes = slot as u64 * SLOT_SECS / 60;
        let text = format!(
            "Calls have begun to fail at about {:02}:{:02} UTC on {days} of the last {DAYS} days: look for what happens then, such as credentials that end with the day, a job that replaces a secret, a backup.",
            minutes / 60,
            minutes % 60
        );
        verdict.findings.push(Finding {
            cause: Cause::TimeOfDay,
            state,
            since_unix: since,
            text,
            is_news: true,
            clients: 0,
            users: 0,
            networks: Vec::new(),
        });
    }
}

/// What everybody may read of clients that fail for `fate`; `lasts`: they still do.
fn sentence(fate: Fate, ten: &Window, lasts: bool) -> String {
    let mut text = String::new();
    if lasts {
        let all = ten.ok + ten.failed;
        let failed = ten.failed_by[fate as usize];
        let _ = write!(
            text,
            "{failed} of {all} clients of the last ten minutes got no call: "
        );
    } else {
        text.push_str("Calls go through again, for too short a time to be sure. What was wrong: ");
    }
    text.push_str(match fate {
        Fate::Allocated => "",
        Fate::Credentials => {
            "their credentials are wrong. An application and this server do not have the same secret or the same users."
        }
        Fate::Expired => {
            "their credentials had expired. An application hands out old ones, or a clock is wrong."
        }
        Fate::Quota => "a limit of users, addresses or realms is reached.",
        Fate::Capacity => "there was no room for more.",
        Fate::ServerError => "the server failed at requests that were right.",
        Fate::Request => {
            "their requests are not what this server takes. They have another version than before, or something on the way changes them."
        }
    });
    text
}

/// How often clients ask, so that it shows when they do not.
#[derive(Debug)]
struct Pace {
    /// Attempts of the last hour, by minute.
    minutes: [u32; 60],
    /// Attempts a minute in the hour up to the last one.
    per_minute: f64,
    /// When there was one last; 0: never.
    last: u64,
    first: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            minutes: [0; 60],
            per_minute: 0.0,
            last: 0,
            first: 0,
        }
    }
}

impl Pace {
    fn heard(&mut self, at: u64, attempts: u32) {
        if attempts == 0 {
            return;
        }
        let (minute, before) = (at / 60, self.last / 60);
        if self.last == 0 {
            self.first = at;
        }
        for gone in (before + 1..=minute).rev().take(60) {
            self.minutes[gone as usize % 60] = 0;
        }
        let place = &mut self.minutes[minute as usize % 60];
        *place = place.saturating_add(attempts);
        self.last = self.last.max(at);
        let known = ((at - self.first.min(at)) / 60 + 1).clamp(10, 60);
        let sum: f64 = self.minutes.iter().map(|count| f64::from(*count)).sum();
        self.per_minute = sum / known as f64;
    }

    /// Seconds without one.
    const fn silent(&self, at: u64) -> u64 {
        at.saturating_sub(self.last)
    }

    /// Attempts that should have come since the last one.
    fn missed(&self, at: u64) -> f64 {
        match self.last {
            0 => 0.0,
            _ => self.per_minute * self.silent(at) as f64 / 60.0,
        }
    }
}

impl Network {
    /// Its first address and how many of its bits count.
    pub const fn prefix(self) -> (IpAddr, u8) {
        match self.0 {
            IpAddr::V4(_) => (self.0, 24),
            IpAddr::V6(_) => (self.0, 56),
        }
    }
}
