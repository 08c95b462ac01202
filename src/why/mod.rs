//! Why a call failed: from what the flight recorder remembers and what is known of allocations to a timeline that people
//! read, and a verdict in plain words with what to do.
//!
//! ```text
//!   events ──────────┬─► timeline  what happened, in words
//!   live allocations ┤
//!   ended ones ──────┴─► judge ──► verdict  a code, a sentence, and the way out
//! ```
//!
//! Pure: no clock, no socket. Addresses are written as `log.ip_privacy` says.

mod judge;
mod timeline;
mod verdict;
mod way;

use std::time::Duration;

use crate::stream::FailedHandshakes;
use crate::turn::{AllocationId, AllocationView, EndReason, Event, Remembered};

pub use timeline::{Line, timeline};
pub use verdict::{Code, Verdict};

/// Whom somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A user, by the id that quotas and metrics count.
    User(String),
    /// A client's or a relayed address, with or without its port, as `log.ip_privacy` shows it.
    Address(String),
    /// An allocation, by the name that operators know.
    Allocation(String),
}

/// One allocation, live or over.
#[derive(Clone, Debug)]
pub struct Call {
    /// The name that operators know.
    pub name: String,
    /// What is known of it, or was when it ended.
    pub view: AllocationView,
    /// How long it lived and why it ended; `None` while it lives.
    pub ended: Option<(Duration, EndReason)>,
}

/// An event, and the name of its allocation.
#[derive(Clone, Debug)]
pub struct Told {
    /// The name that operators know, if it is an allocation's.
    pub allocation: Option<String>,
    /// What happened.
    pub event: Event,
}

/// Everything that is known of whom somebody asks about.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// In the order of time.
    pub events: Vec<Told>,
    /// In the order in which they were made.
    pub calls: Vec<Call>,
    /// TLS handshakes that failed.
    pub handshakes: Vec<FailedHandshakes>,
}

impl Evidence {
    /// Whether nothing is known.
    pub const fn is_empty(&self) -> bool {
        self.events.is_empty() && self.calls.is_empty() && self.handshakes.is_empty()
    }

    /// Adds what one server knows, whose allocations are called as `name` says: those that live, and what it remembers.
    pub fn add(
        &mut self,
        live: Vec<AllocationView>,
        remembered: Remembered,
        name: impl Fn(AllocationId) -> String,
    ) {
        let live = live.into_iter().map(|view| (view, None));
        let ended = (remembered.ended.into_iter())
            .map(|ended| (ended.view, Some((ended.duration, ended.reason))));
        self.calls
            .extend(live.chain(ended).map(|(view, ended)| Call {
                name: name(view.id),
                view,
                ended,
            }));
        let told = remembered.events.into_iter().map(|event| Told {
            allocation: event.allocation.map(&name),
            event,
        });
        self.events.extend(told);
    }

    /// Brings all of it into the order of time.
    pub fn sort(&mut self) {
        let events = &mut self.events;
        events.sort_by_key(|told| (told.event.at, told.allocation.is_some()));
        self.calls.sort_by_key(|call| call.view.created_unix);
        self.handshakes.sort_by_key(|failed| failed.at);
    }

    /// What became of it all, at `now` since the Unix epoch: of the latest attempt, where there were several.
    pub fn verdict(&self, now: Duration) -> Verdict {
        judge::all(self, now)
    }

    /// What became of `call`.
    pub fn verdict_of(&self, call: &Call, now: Duration) -> Verdict {
        judge::call(call, &self.events, now)
    }
}
