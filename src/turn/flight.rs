//! The flight recorder: what happened to whom of late, always on, in memory that is bounded and small.
//!
//! Whoever asks why a call failed asks afterwards. So the control path, and what the data path drops, leave events here, of
//! one size each, which repeat as a count rather than as more of them. What strangers provoke has tables of its own, by
//! their address: it pushes out nothing that is known of a client which has shown credentials, and one address pushes out
//! its own. A relayed datagram leaves nothing. All memory is bought when the server begins or the number of events changes.
//!
//! It is no part of a snapshot: who takes over begins anew.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use ahash::RandomState;

use crate::access::{AuthFailure, DeniedRule, Scope, rest};
use crate::base::addr::subscriber;
use crate::base::{FiveTuple, Now, Pii, printable};
use crate::wire::{Message, Method};

use super::allocation::{AllocationId, AllocationView};
use super::reject::Reject;
use super::server::Server;
use super::stats::{Direction, DropReason};
use super::{EndReason, Ended};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A request was answered with an error; a challenge is [`AuthFailure::Missing`].
    Refused {
        /// What was asked for.
        method: Method,
        /// Why it was refused.
        reject: Reject,
    },
    /// An allocation was answered with success.
    Allocated,
    /// A permission was created, refreshes aside.
    Permitted,
    /// A channel was bound, refreshes aside.
    Bound,
    /// The client wants a peer that policy refuses.
    Denied(DeniedRule),
    /// Datagrams on their way in this direction went no further.
    Dropped(DropReason, Direction),
    /// A router or a host says that what was sent to the peer did not get there.
    Icmp {
        /// ICMP's type: of ICMPv4 or ICMPv6, as the peer's address has it.
        kind: u8,
        /// ICMP's code, of the latest.
        code: u8,
    },
    /// The client is at another address, which stands in place of a peer (RFC 8016).
    Moved,
    /// No connection to the peer could be made (RFC 6062).
    ConnectFailed,
    /// The allocation is over.
    Ended(EndReason),
}

impl What {
    /// The word of the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Refused {
                reject: Reject::Unauthenticated(AuthFailure::Missing),
                ..
            } => "challenged",
            Self::Refused { .. } => "refused",
            Self::Allocated => "allocated",
            Self::Permitted => "permission_created",
            Self::Bound => "channel_bound",
            Self::Denied(_) => "peer_refused",
            Self::Dropped(..) => "dropped",
            Self::Icmp { .. } => "icmp_error",
            Self::Moved => "moved",
            Self::ConnectFailed => "connect_failed",
            Self::Ended(_) => "ended",
        }
    }

    /// Whether `other` is the same once more. What peers choose freely makes no difference, nor what is wrong with a
    /// request: there are few kinds.
    fn repeats(self, other: Self) -> bool {
        let malformed = |what| match what {
            Self::Refused {
                method,
                reject: Reject::BadRequest(_),
            } => Some(method),
            _ => None,
        };
        match (self, other) {
            _ if malformed(self).is_some() => malformed(self) == malformed(other),
            (Self::Icmp { kind, .. }, Self::Icmp { kind: other, .. }) => kind == other,
            _ => self == other,
        }
    }
}

/// Longest name that is kept whole, in bytes.
const NAME_BYTES: usize = 64;

/// Who somebody is or claims to be: what fits, and a hash that tells longer ones apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_BYTES],
    kept: u8,
    /// Of the whole name, where it is longer than what is kept; else 0.
    hash: [u8; 4],
}

/// Names are compared within one process: any seeds do.
const NAME_HASH: RandomState = RandomState::with_seeds(1, 2, 3, 4);

impl Name {
    /// Nobody.
    pub const NOBODY: Self = Self {
        bytes: [0; NAME_BYTES],
        kept: 0,
        hash: [0; 4],
    };

    /// That of `user`.
    pub fn new(user: &str) -> Self {
        let kept = printable::beginning(user, NAME_BYTES).len();
        let mut bytes = [0; NAME_BYTES];
        (bytes.iter_mut().zip(user.as_bytes()).take(kept)).for_each(|(to, from)| *to = *from);
        let hash = if user.len() > kept {
            NAME_HASH.hash_one(user) as u32 | 1
        } else {
            0
        };
        Self {
            bytes,
            kept: kept as u8,
            hash: hash.to_ne_bytes(),
        }
    }

    /// What was kept of it.
    pub fn as_str(&self) -> &str {
        let kept = self.bytes.get(..usize::from(self.kept));
        kept.and_then(|kept| std::str::from_utf8(kept).ok())
            .unwrap_or_default()
    }

    /// Whether nobody is named.
    pub const fn is_empty(&self) -> bool {
        self.kept == 0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Something that happened once, or several times.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it happened first, in milliseconds since the Unix epoch.
    pub at: u64,
    /// When it happened last, likewise.
    pub last: u64,
    /// How often.
    pub count: u32,
    /// What.
    pub what: What,
    /// To which allocation, if to one.
    pub allocation: Option<AllocationId>,
    /// To whom; who somebody claims to be where nothing was verified.
    pub user: Name,
    /// Where the client was, at last.
    pub client: FiveTuple,
    /// About whom, at last.
    pub peer: Option<SocketAddr>,
    /// When the credential that was shown ends, in seconds since the Unix epoch, if it is a time-limited one.
    pub credential_ends: Option<u64>,
}

impl Event {
    fn new(now: Now, what: What, client: FiveTuple, user: &str) -> Self {
        let at = millis(now);
        Self {
            at,
            last: at,
            count: 1,
            what,
            allocation: None,
            user: Name::new(user),
            client,
            peer: None,
            credential_ends: None,
        }
    }

    /// It happened again, as `later` tells.
    fn again(&mut self, later: &Self) {
        self.last = self.last.max(later.last);
        self.count = self.count.saturating_add(later.count);
        self.what = later.what;
        self.client = later.client;
        self.peer = later.peer.or(self.peer);
        self.credential_ends = later.credential_ends.or(self.credential_ends);
    }
}

fn millis(now: Now) -> u64 {
    u64::try_from(now.unix.as_millis()).unwrap_or(u64::MAX)
}

/// Events of allocations, each of which finds its own: an event names the one before it of the same allocation.
struct Ring {
    most: usize,
    /// The number of the oldest event that is kept.
    first: u64,
    events: VecDeque<(u64, Event)>,
    ended_most: usize,
    ended: VecDeque<Ended>,
}

/// Steps to look back for the same event of the control path: more than an allocation has different ones.
const STEPS: usize = 64;

/// The same for datagrams that are dropped, which have to be cheap: more than there are reasons that one call meets.
const DROP_STEPS: usize = 16;

impl Ring {
    /// Its first event has the number `first`.
    fn new(most: usize, ended_most: usize, first: u64) -> Self {
        Self {
            most,
            first,
            events: VecDeque::with_capacity(most),
            ended_most,
            ended: VecDeque::new(),
        }
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut (u64, Event)> {
        let place = number.checked_sub(self.first)?;
        self.events.get_mut(usize::try_from(place).ok()?)
    }

    /// The number of the next event.
    fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// The event `what` of the allocation `id`, whose latest event is `latest`.
    fn find(&mut self, id: AllocationId, latest: u64, what: What) -> Option<&mut Event> {
        let steps = match what {
            What::Dropped(..) => DROP_STEPS,
            _ => STEPS,
        };
        let mut number = latest;
        for _ in 0..steps {
            let (before, event) = self.get_mut(number)?;
            if event.allocation != Some(id) {
                return None;
            }
            if event.what.repeats(what) {
                return self.get_mut(number).map(|(_, event)| event);
            }
            number = *before;
        }
        None
    }

    /// Keeps `event` behind `latest`; its number.
    fn push(&mut self, latest: u64, event: Event) -> u64 {
        if self.most == 0 {
            return latest;
        }
        if self.events.len() >= self.most && self.events.pop_front().is_some() {
            self.first += 1;
        }
        self.events.push_back((latest, event));
        self.next() - 1
    }

    fn bury(&mut self, ended: Ended) {
        if self.ended.len() >= self.ended_most {
            self.ended.pop_front();
        }
        if self.ended_most > 0 {
            self.ended.push_back(ended);
        }
    }
}

/// Events that share a place: as many as one address, or one user, can leave.
const WAYS: usize = 8;

/// Events in sets by who left them.
struct Table {
    sets: usize,
    events: Vec<Option<Event>>,
}

impl Table {
    fn new(most: usize) -> Self {
        let sets = most / WAYS;
        Self {
            sets,
            events: vec![None; sets * WAYS],
        }
    }

    /// Keeps `event` of whoever hashes to `whose`, in place of the one there that happened longest ago.
    fn note(&mut self, whose: u64, event: Event) {
        if self.sets == 0 {
            return;
        }
        let set = (whose % self.sets as u64) as usize * WAYS;
        let Some(places) = self.events.get_mut(set..set + WAYS) else {
            return;
        };
        let client = |event: &Event| (event.client.transport(), event.client.client().ip());
        let same = |kept: &&mut Event| {
            kept.what.repeats(event.what)
                && kept.allocation == event.allocation
                && kept.user == event.user
                && client(kept) == client(&event)
        };
        if let Some(kept) = places.iter_mut().flatten().find(same) {
            kept.again(&event);
            return;
        }
        let oldest = places
            .iter_mut()
            .min_by_key(|place| place.as_ref().map_or(0, |event| event.last));
        if let Some(place) = oldest {
            *place = Some(event);
        }
    }
}

/// The latest events of one server.
pub(super) struct Flight {
    events: usize,
    calls: Ring,
    /// Of credentials that reach no further than a loop, which the test page gives to anybody.
    visits: Ring,
    /// Refusals of users that have shown their credentials.
    refused: Table,
    /// Wrong credentials from addresses that are proven.
    claims: Table,
    /// What anybody may have sent, to this server or to a relayed address.
    strangers: Table,
}

/// Ended allocations that are kept, at most.
const ENDED: usize = 256;

impl Flight {
    /// Remembers `events` at most, all together.
    pub fn new(events: usize) -> Self {
        Self::numbered(events, [1; 2])
    }

    /// With the numbers of the first events of `calls` and `visits`.
    fn numbered(events: usize, [calls, visits]: [u64; 2]) -> Self {
        let ended = ENDED.min(events / 16);
        Self {
            events,
            calls: Ring::new(events / 2, ended, calls),
            visits: Ring::new(events / 16, ended / 16, visits),
            refused: Table::new(events / 8),
            claims: Table::new(events / 8),
            strangers: Table::new(events / 8),
        }
    }

    /// Remembers `events` at most from now on; begins anew if that is another number, except that events are numbered on:
    /// allocations keep the numbers of theirs, which must be nobody else's.
    pub fn set_most(&mut self, events: usize) {
        if events != self.events {
            *self = Self::numbered(events, [self.calls.next(), self.visits.next()]);
        }
    }

    const fn is_on(&self) -> bool {
        self.events > 0
    }

    const fn ring(&mut self, scope: Scope) -> &mut Ring {
        if scope.is_loop() {
            &mut self.visits
        } else {
            &mut self.calls
        }
    }

    fn all(&self) -> impl Iterator<Item = &Event> {
        let rings = [&self.calls, &self.visits].into_iter();
        let tables = [&self.refused, &self.claims, &self.strangers].into_iter();
        (rings.flat_map(|ring| ring.events.iter().map(|(_, event)| event)))
            .chain(tables.flat_map(|table| table.events.iter().flatten()))
    }
}

/// Whose events are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A user's, by the user id that quotas and metrics count.
    User(String),
    /// Those of an address, with its port or without, of a client or relayed, as `log.ip_privacy` shows it.
    Address(String),
    /// An allocation's.
    Allocation(AllocationId),
}

impl Subject {
    /// Whether a client or a relayed address at `address` is meant. Addresses are compared as they are shown: what
    /// `log.ip_privacy` hides cannot be guessed here either.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        let Self::Address(wanted) = self else {
            return false;
        };
        let plain = wanted.trim_start_matches('[').trim_end_matches(']');
        reads(Pii(address.ip()), plain) || reads(Pii(address), wanted)
    }

    /// The user that is meant, as events name users; nobody, if it is no user.
    fn user(&self) -> Name {
        match self {
            Self::User(user) => Name::new(user),
            _ => Name::NOBODY,
        }
    }

    /// Whether `event` is the subject's, whose [`user`](Self::user) is `user`.
    fn is(&self, user: Name, event: &Event) -> bool {
        match self {
            Self::User(_) => !user.is_empty() && event.user == user,
            Self::Address(_) => self.is_at(event.client.client()),
            Self::Allocation(id) => event.allocation == Some(*id),
        }
    }

    /// Whether an allocation is meant.
    pub fn is_view(&self, view: &AllocationView) -> bool {
        match self {
            Self::User(user) => *view.user == **user,
            Self::Address(_) => {
                let relayed = [Some(view.relayed), view.additional];
                let relayed = relayed.into_iter().flatten();
                self.is_at(view.client) || relayed.into_iter().any(|at| self.is_at(at))
            }
            Self::Allocation(id) => view.id == *id,
        }
    }
}

/// Whether `value` is written as `text`; nothing is allocated to find out.
fn reads(value: impl fmt::Display, text: &str) -> bool {
    struct Same<'t>(&'t str);

    impl fmt::Write for Same<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    let mut same = Same(text);
    write!(same, "{value}").is_ok() && same.0.is_empty()
}

/// What one server remembers of a subject.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Remembered {
    /// In the order of time.
    pub events: Vec<Event>,
    /// Allocations that are over, in the order in which they ended.
    pub ended: Vec<Ended>,
}

/// Events that are told of one subject, at most: the latest.
const MOST_TOLD: usize = 512;

/// `events` in the order of `last`, which they are in; what several strangers did to one allocation is one.
fn joined(events: Vec<&Event>) -> Vec<Event> {
    let mut knocks: HashMap<(AllocationId, u8), usize> = HashMap::new();
    let mut joined: Vec<Event> = Vec::with_capacity(events.len());
    for event in events {
        if let What::Dropped(reason, Direction::ToClient) = event.what
            && is_knock(reason)
            && let Some(id) = event.allocation
        {
            let place = *knocks.entry((id, reason as u8)).or_insert(joined.len());
            if let Some(first) = joined.get_mut(place) {
                first.at = first.at.min(event.at);
                first.again(event);
                continue;
            }
        }
        joined.push(event.clone());
    }
    joined.sort_by_key(|event| event.last);
    joined
}

impl Server {
    /// What is remembered of `subject`, and of the allocations in `live` that are its own; challenges of the same
    /// addresses among it.
    pub fn remembered(&self, subject: &Subject, live: &[AllocationId]) -> Remembered {
        let flight = &self.flight;
        let ended: Vec<Ended> = (flight.visits.ended.iter().chain(&flight.calls.ended))
            .filter(|ended| subject.is_view(&ended.view))
            .cloned()
            .collect();
        let mut ids: Vec<u64> = (live.iter().copied())
            .chain(ended.iter().map(|ended| ended.view.id))
            .map(AllocationId::to_bits)
            .collect();
        ids.sort_unstable();
        let own = |id: AllocationId| ids.binary_search(&id.to_bits()).is_ok();
        let user = subject.user();
        let is = |event: &Event| subject.is(user, event) || event.allocation.is_some_and(own);
        let mut events: Vec<&Event> = flight.all().filter(|event| is(event)).collect();
        let client = |event: &Event| event.client.client().ip();
        let mut clients: Vec<_> = events.iter().map(|event| client(event)).collect();
        clients.sort_unstable();
        clients.dedup();
        let theirs = |event: &&Event| {
            event.user.is_empty() && clients.binary_search(&client(event)).is_ok() && !is(event)
        };
        events.extend((flight.strangers.events.iter().flatten()).filter(theirs));
        events.sort_by_key(|event| event.last);
        let events = joined(events);
        let told = events.len().saturating_sub(MOST_TOLD);
        let mut events: Vec<Event> = events.into_iter().skip(told).collect();
        // A challenge comes before what it leads to.
        events.sort_by_key(|event| (event.at, event.allocation.is_some()));
        Remembered { events, ended }
    }

    /// How many events are remembered.
    pub fn events(&self) -> usize {
        self.flight.all().count()
    }

    /// Something that happened to `id`.
    pub(super) fn note(&mut self, id: AllocationId, what: What, peer: Option<SocketAddr>) {
        self.note_many(id, what, peer, 1);
    }

    fn note_many(&mut self, id: AllocationId, what: What, peer: Option<SocketAddr>, times: u64) {
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        if !self.flight.is_on() || allocation.scope.is_canary() {
            return;
        }
        let now = self.latest;
        let ring = self.flight.ring(allocation.scope);
        if let Some(event) = ring.find(id, allocation.flight, what) {
            event.last = millis(now);
            event.count = event.count.saturating_add(times);
            event.what = what;
            event.client = allocation.five_tuple;
            event.peer = peer.or(event.peer);
            return;
        }
        let event = Event {
            allocation: Some(id),
            count: times,
            peer,
            credential_ends: allocation.credential_expires.map(|ends| ends.as_secs()),
            ..Event::new(now, what, allocation.five_tuple, &allocation.user)
        };
        allocation.flight = ring.push(allocation.flight, event);
    }

    /// An allocation that came to nothing, for want of a relayed address.
    pub(super) fn note_unopened(&mut self, now: Now, id: AllocationId, reject: Reject) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        if !self.flight.is_on() || allocation.scope.is_loop() {
            return;
        }
        let method = Method::Allocate;
        let what = What::Refused { method, reject };
        let event = Event::new(now, what, allocation.five_tuple, &allocation.user);
        let whose = self.hasher.hash_one(event.user.as_str());
        self.flight.refused.note(whose, event);
    }

    /// The last of an allocation.
    pub(super) fn note_ended(&mut self, id: AllocationId, ended: &Ended) {
        if !self.flight.is_on() {
            return;
        }
        self.note(id, What::Ended(ended.reason), None);
        self.flight.ring(ended.view.scope).bury(ended.clone());
    }

    /// A datagram from a client that goes no further.
    #[cold]
    pub(super) fn note_drop(&mut self, from: FiveTuple, reason: DropReason) {
        if is_telling(reason)
            && reason != DropReason::PeerDenied
            && let Some(id) = self.by_five_tuple.get(&from).copied()
        {
            self.note(id, What::Dropped(reason, Direction::ToPeer), None);
        }
    }

    /// A datagram from `peer` that goes no further.
    #[cold]
    pub(super) fn note_peer_drop(
        &mut self,
        to: AllocationId,
        peer: SocketAddr,
        reason: DropReason,
    ) {
        let what = What::Dropped(reason, Direction::ToClient);
        if is_knock(reason) {
            self.note_knock(to, peer, what);
        } else if is_telling(reason) {
            self.note(to, what, Some(peer));
        }
    }

    /// Anybody can send to a relayed address: what does not pass is the sender's, and takes no place of clients.
    fn note_knock(&mut self, to: AllocationId, peer: SocketAddr, what: What) {
        let Some(allocation) = self.allocations.get(to) else {
            return;
        };
        if !self.flight.is_on() || allocation.scope.is_canary() {
            return;
        }
        let event = Event {
            allocation: Some(to),
            peer: Some(peer),
            ..Event::new(self.latest, what, allocation.five_tuple, &allocation.user)
        };
        let whose = self.hasher.hash_one(subscriber(peer.ip()));
        self.flight.strangers.note(whose, event);
    }

    /// Datagrams that the caller had to drop on their way to the client at `five_tuple`; counts nothing.
    pub fn note_unsent(&mut self, five_tuple: FiveTuple, reason: DropReason, datagrams: u64) {
        if let Some(id) = self.by_five_tuple.get(&five_tuple).copied() {
            let what = What::Dropped(reason, Direction::ToClient);
            self.note_many(id, what, None, datagrams);
        }
    }

    /// A request that is refused, and answered; `verified` is how far the credentials reach that it has shown.
    pub(super) fn note_refused(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        reject: Reject,
        verified: Option<Scope>,
    ) {
        let method = message.method();
        // That of a peer is noted where it is counted.
        if !self.flight.is_on()
            || method == Method::Binding
            || verified.is_some_and(Scope::is_canary)
            || matches!(reject, Reject::PeerDenied(_))
        {
            return;
        }
        let what = What::Refused { method, reject };
        let is_stale = reject == Reject::StaleNonce;
        if (verified.is_some() || is_stale)
            && let Some(id) = self.by_five_tuple.get(&from).copied()
        {
            self.note(id, what, message.peer_addresses().flatten().next());
            return;
        }
        let hash = message.user_hash().ok().flatten();
        let by_hash = hash.and_then(|hash| self.access.credentials.name_of(hash));
        let username = match message.username() {
            Some(username) => String::from_utf8_lossy(username),
            None => by_hash.unwrap_or_default().into(),
        };
        let parsed = rest::parse(&username);
        let user = parsed.map_or(&*username, |name| name.user);
        let event = Event {
            credential_ends: parsed.map(|name| name.expires_unix),
            ..Event::new(now, what, from, user)
        };
        if verified.is_some_and(|scope| !scope.is_loop()) {
            let whose = self.hasher.hash_one(event.user.as_str());
            self.flight.refused.note(whose, event);
            return;
        }
        let whose = self.hasher.hash_one(subscriber(from.client().ip()));
        let proven = from.transport().proves_address()
            || message
                .nonce()
                .is_some_and(|nonce| self.guard(now, from).is_fresh(nonce));
        let shown = !matches!(reject, Reject::Unauthenticated(AuthFailure::Missing));
        if proven && shown {
            self.flight.claims.note(whose, event);
        } else {
            self.flight.strangers.note(whose, event);
        }
    }
}

/// Whether whoever sent it to a relayed address is nobody whom the client let in.
const fn is_knock(reason: DropReason) -> bool {
    matches!(reason, DropReason::NoPermission | DropReason::PeerDenied)
}

/// Whether it tells something about a call that its packets are dropped for this.
const fn is_telling(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NoChannel
            | DropReason::NoPermission
            | DropReason::PeerDenied
            | DropReason::Family
            | DropReason::NoRelay
            | DropReason::TooLarge
            | DropReason::StreamQueue
            | DropReason::BandwidthAllocation
            | DropReason::BandwidthUser
            | DropReason::BandwidthTotal
            | DropReason::NewPeers
            | DropReason::Abuse
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_where_a_character_ends() {
        let long = "ä".repeat(40);
        let name = Name::new(&long);
        assert_eq!(name.as_str(), "ä".repeat(32));
        assert!(name != Name::new(&"ä".repeat(41)));
        assert!(name != Name::new(&"ä".repeat(32)));
        assert!(Name::new("") == Name::NOBODY && Name::NOBODY.is_empty());
    }

    #[test]
    fn long_names_that_begin_alike_differ() {
        let tenant = "a".repeat(NAME_BYTES);
        let [one, other] = ["-one", "-two"].map(|user| Name::new(&(tenant.clone() + user)));
        assert!(one != other);
        assert!(one == Name::new(&(tenant + "-one")) && !one.is_empty());
    }

    #[test]
    fn an_event_is_small() {
        assert!(size_of::<(u64, Event)>() <= 256, "conf/turnix.toml tells");
    }

    #[test]
    fn what_is_wrong_with_a_request_makes_no_other_kind() {
        let refused = |method, reject| What::Refused { method, reject };
        let one = refused(Method::Refresh, Reject::BadRequest("one"));
        assert!(one.repeats(refused(Method::Refresh, Reject::BadRequest("other"))));
        assert!(!one.repeats(refused(Method::Allocate, Reject::BadRequest("one"))));
        assert!(!one.repeats(refused(Method::Refresh, Reject::PeerFamily)));
        assert!(!What::Allocated.repeats(What::Bound));
    }

    /// What is dropped, the first time or later, finds its place bought: after the start, and after a reload.
    #[test]
    fn memory_is_bought_before_anything_happens() {
        let mut flight = Flight::new(4096);
        for events in [4096, 256, 65_536] {
            flight.set_most(events);
            let rings = [&flight.calls, &flight.visits].map(|ring| ring.events.capacity());
            assert_eq!(rings, [events / 2, events / 16]);
            for table in [&flight.refused, &flight.claims, &flight.strangers] {
                assert_eq!(table.events.len(), events / 8);
            }
        }
    }
}
