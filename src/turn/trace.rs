//! What the log says about users and addresses that an operator wants to watch, whatever the log level is.
//!
//! Requests and their outcome one by one; dropped datagrams as counts, once a second and reason at most. Without a trace
//! a dropped datagram costs a comparison, and one that is forwarded nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::access::rest;
use crate::base::trace::{TARGET, Traces};
use crate::base::{FiveTuple, Now, Pii};
use crate::wire::{Message, Method};

use super::allocation::{AllocationId, AllocationView};
use super::flight::What;
use super::reject::Reject;
use super::server::Server;
use super::stats::{Direction, DropReason};
use super::{EndReason, OpenError};

/// Who is watched, and what was dropped of each.
#[derive(Default)]
pub(super) struct Tracer {
    traces: Arc<Traces>,
    /// In the order of `traces`.
    drops: Vec<Drops>,
}

/// Datagrams that went no further, by reason.
#[derive(Clone, Default)]
struct Drops {
    /// Since the log told of them last.
    untold: [u64; DropReason::ALL.len()],
    /// The second, counted from 1, in which it told.
    told: [u32; DropReason::ALL.len()],
}

impl Tracer {
    pub fn set(&mut self, traces: Arc<Traces>) {
        self.drops = vec![Drops::default(); traces.len()];
        self.traces = traces;
    }

    /// Whether anybody is watched.
    pub fn is_on(&self) -> bool {
        !self.traces.is_empty()
    }

    fn find(&mut self, now: Now, user: Option<&str>, client: SocketAddr) -> Option<usize> {
        let found = self.traces.find(now.mono, user, client.ip());
        if found.is_none() && self.traces.live(now.mono).next().is_none() {
            // From here on it is off.
            self.set(Arc::default());
        }
        found
    }

    /// How many datagrams to tell of now, this one included, if it is time.
    fn count(&mut self, trace: usize, second: u32, reason: DropReason) -> Option<u64> {
        let drops = self.drops.get_mut(trace)?;
        drops.untold[reason as usize] += 1;
        let told = &mut drops.told[reason as usize];
        let due = *told <= second;
        due.then(|| {
            *told = second.saturating_add(1);
            std::mem::take(&mut drops.untold[reason as usize])
        })
    }
}

impl Server {
    /// Counts a datagram of `id` for `peer` that the caller had to drop after the verdict, and tells of it.
    pub fn count_undelivered(
        &mut self,
        now: Now,
        id: AllocationId,
        peer: SocketAddr,
        reason: DropReason,
    ) {
        self.count_drop(reason, 1);
        self.note(id, What::Dropped(reason, Direction::ToPeer), Some(peer));
        if self.tracer.is_on() {
            self.trace_peer_drop(now, id, peer, reason);
        }
    }

    /// A request, once it is known what becomes of it. `reject`: why it is refused.
    #[cold]
    pub(super) fn trace_request(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        reject: Option<Reject>,
    ) {
        let hash = message.user_hash().ok().flatten();
        let by_hash = hash.and_then(|hash| self.access.credentials.name_of(hash));
        let username = match (message.username(), by_hash) {
            (Some(username), _) => String::from_utf8_lossy(username),
            (None, name) => name.unwrap_or_default().into(),
        };
        // A request that fails has no identity: the name that it claims is what an operator looks for.
        let user = rest::parse(&username).map_or(&*username, |name| name.user);
        let user = Some(user).filter(|user| !user.is_empty());
        // A static user may be called what looks like a time-limited name.
        if self.tracer.find(now, user, from.client()).is_none()
            && (self.tracer.find(now, Some(&username), from.client())).is_none()
        {
            return;
        }
        let method = message.method();
        let peers: Vec<_> = match method {
            Method::CreatePermission | Method::ChannelBind => {
                message.peer_addresses().flatten().map(Pii).collect()
            }
            _ => Vec::new(),
        };
        let channel = match method {
            Method::ChannelBind => message.channel_number().ok().flatten(),
            _ => None,
        };
        tracing::debug!(
            target: TARGET,
            user,
            client = %Pii(from.client()),
            transport = from.transport().label(),
            method = method.label(),
            code = reject.map_or(0, |reject| reject.code().code()),
            reason = reject.map(Reject::label),
            detail = reject.and_then(Reject::detail),
            lifetime = message.lifetime().ok().flatten(),
            channel = channel,
            peers = (!peers.is_empty()).then_some(tracing::field::debug(peers)),
            "traced: request"
        );
    }

    /// An allocation that is answered with success.
    pub(super) fn trace_opened(&mut self, now: Now, id: AllocationId) {
        if !self.tracer.is_on() {
            return;
        }
        let at = self.nanos(now);
        let view = (self.allocations.get(id)).and_then(|allocation| allocation.view(now, at));
        if let Some(view) = view
            && (self.tracer.find(now, Some(&view.user), view.client)).is_some()
        {
            tracing::debug!(
                target: TARGET,
                user = &*view.user,
                client = %Pii(view.client),
                transport = view.transport.label(),
                relayed = %view.relayed,
                "traced: allocation begins"
            );
        }
    }

    /// An allocation that came to nothing.
    pub(super) fn trace_unopened(&mut self, now: Now, id: AllocationId, error: OpenError) {
        if !self.tracer.is_on() {
            return;
        }
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let client = allocation.five_tuple.client();
        if (self.tracer.find(now, Some(&allocation.user), client)).is_some() {
            tracing::debug!(
                target: TARGET,
                user = &*allocation.user,
                client = %Pii(client),
                reason = ?error,
                "traced: allocation refused"
            );
        }
    }

    /// An allocation that is over.
    #[cold]
    pub(super) fn trace_ended(&mut self, now: Now, view: &AllocationView, reason: EndReason) {
        if (self.tracer.find(now, Some(&view.user), view.client)).is_some() {
            tracing::debug!(
                target: TARGET,
                user = &*view.user,
                client = %Pii(view.client),
                relayed = %view.relayed,
                reason = reason.label(),
                "traced: allocation ended"
            );
        }
    }

    /// A datagram of a client that goes no further.
    #[cold]
    pub(super) fn trace_drop(&mut self, now: Now, from: FiveTuple, reason: DropReason) {
        let id = self.by_five_tuple.get(&from).copied();
        let user = (id.and_then(|id| self.allocations.get(id)))
            .map(|allocation| Arc::clone(&allocation.user));
        self.tell_drops(now, user, from.client(), None, reason);
    }

    /// A datagram of a peer, or for one, that goes no further.
    #[cold]
    pub(super) fn trace_peer_drop(
        &mut self,
        now: Now,
        to: AllocationId,
        peer: SocketAddr,
        reason: DropReason,
    ) {
        let Some(allocation) = self.allocations.get(to) else {
            return;
        };
        let (user, client) = (Arc::clone(&allocation.user), allocation.five_tuple.client());
        self.tell_drops(now, Some(user), client, Some(peer), reason);
    }

    fn tell_drops(
        &mut self,
        now: Now,
        user: Option<Arc<str>>,
        client: SocketAddr,
        peer: Option<SocketAddr>,
        reason: DropReason,
    ) {
        let second = self.second(now);
        let Some(trace) = self.tracer.find(now, user.as_deref(), client) else {
            return;
        };
        if let Some(datagrams) = self.tracer.count(trace, second, reason) {
            tracing::debug!(
                target: TARGET,
                user = user.as_deref(),
                client = %Pii(client),
                peer = peer.map(|peer| tracing::field::display(Pii(peer))),
                reason = reason.label(),
                datagrams,
                "traced: dropped"
            );
        }
    }
}
