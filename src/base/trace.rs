//! Whose doings are logged in detail for a while, whatever the log level is.

use std::net::IpAddr;
use std::time::Instant;

/// The target of events about traced clients: the log always takes it at debug level.
pub const TARGET: &str = "turnix::trace";

/// Traces that may run at once.
pub const MOST: usize = 16;

/// Whom a trace is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A user id, as quotas and metrics count it.
    User(String),
    /// The address of a client, IPv4 not embedded in IPv6.
    Address(IpAddr),
}

/// One trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Whom it is about.
    pub subject: Subject,
    /// When it ends by itself.
    pub until: Instant,
}

/// Every trace there is; empty costs a comparison where it is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces(Vec<Trace>);

impl Traces {
    /// Begins `trace` at `now`, in place of one about the same subject; false if [`MOST`] run already.
    pub fn begin(&mut self, now: Instant, trace: Trace) -> bool {
        self.0
            .retain(|one| one.until > now && one.subject != trace.subject);
        let room = self.0.len() < MOST;
        if room {
            self.0.push(trace);
        }
        room
    }

    /// Ends the trace about `subject`; false if there was none.
    pub fn end(&mut self, now: Instant, subject: &Subject) -> bool {
        let live = |one: &Trace| one.until > now;
        let ended = (self.0.iter()).any(|one| live(one) && one.subject == *subject);
        self.0.retain(|one| live(one) && one.subject != *subject);
        ended
    }

    /// Whether there is none, not even one that is over.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are, those that are over included.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Those that are not over.
    pub fn live(&self, now: Instant) -> impl Iterator<Item = &Trace> {
        self.0.iter().filter(move |one| one.until > now)
    }

    /// The place of the first live trace about `user` or about the client address `client`.
    pub fn find(&self, now: Instant, user: Option<&str>, client: IpAddr) -> Option<usize> {
        let client = client.to_canonical();
        self.0.iter().position(|one| {
            one.until > now
                && match &one.subject {
                    Subject::User(name) => user == Some(name),
                    Subject::Address(ip) => *ip == client,
                }
        })
    }
}
