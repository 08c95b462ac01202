//! The server's inputs and outputs: dispatch, answers, timers. Handlers are in `requests.rs`, the data path in `relay.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use ahash::RandomState;

use crate::access::{Access, AddressRate, AuthFailure, RealmName, Scope};
use crate::base::trace::Traces;
use crate::base::{Family, FiveTuple, Now, RelayTransport};
use crate::quality::Ending;
use crate::wire::{
    self, Class, DecodeError, ErrorCode, Key, Kind, Message, Method, Response, attribute,
};

use super::allocation::{Allocation, AllocationId, AllocationView, Allocations};
use super::attempts::{Attempts, Client, Collector, Fate};
use super::auth::{Guard, Nonces, Offer};
use super::change::Newcomers;
use super::connections::Connections;
use super::discovery::Vantage;
use super::flight::Flight;
use super::police::ScopedRates;
use super::purses::{PurseId, Purses};
use super::reject::Reject;
use super::routes::Routes;
use super::stats::{BANDWIDTH_BOUNDS, DURATION_BOUNDS_SECS, Direction, DropReason, Path, Stats};
use super::ticket::Tickets;
use super::timers::Timers;
use super::trace::Tracer;
use super::{EndReason, Ended, Forward, FromPeer, Output, Seed, Settings};

/// A TURN server: one shard's share of the allocations.
pub struct Server {
    pub(super) settings: Settings,
    pub(super) access: Arc<Access>,
    pub(super) nonces: Nonces,
    pub(super) seed: Seed,
    pub(super) allocations: Allocations,
    pub(super) by_five_tuple: HashMap<FiveTuple, AllocationId, RandomState>,
    /// Clients whose connection asked for a realm other than the default one.
    pub(super) named: HashMap<FiveTuple, RealmName, RandomState>,
    pub(super) routes: Routes,
    pub(super) stats: Stats,
    pub(super) rates: ScopedRates,
    pub(super) purses: Purses,
    /// A hash that strangers cannot aim at.
    pub(super) hasher: RandomState,
    /// Counts Data indications: their transaction ids need to differ, not to be secret.
    pub(super) indications: u64,
    /// Answers to requests without credentials.
    pub(super) unauthenticated: AddressRate,
    /// Answers to requests with wrong ones.
    pub(super) auth_failures: AddressRate,
    pub(super) newcomers: Newcomers,
    /// Newcomers that were sent to other servers.
    pub(super) redirected: usize,
    pub(super) tracer: Tracer,
    pub(super) tickets: Tickets,
    pub(super) vantages: Vec<Vantage>,
    pub(super) timers: Timers,
    pub(super) outputs: VecDeque<Output>,
    pub(super) started: Instant,
    pub(super) latest: Now,
    pub(super) connections: Connections,
    pub(super) flight: Flight,
    pub(super) attempts: Collector,
}

impl Server {
    /// A server without allocations.
    pub fn new(now: Now, settings: Settings, seed: Seed, access: Arc<Access>) -> Self {
        let [a, b, c, d] = seed.hash;
        let hasher = RandomState::with_seeds(a, b, c, d);
        let mut purses = Purses::new(hasher.clone());
        let rates = settings.rates();
        if rates.total() {
            purses.call(PurseId::TOTAL);
        }
        Self {
            rates,
            purses,
            hasher: hasher.clone(),
            nonces: Nonces::new(&seed.nonce_key, settings.nonce_lifetime),
            unauthenticated: AddressRate::new(settings.unauthenticated_per_address, hasher.clone()),
            auth_failures: AddressRate::new(settings.auth_failures_per_address, hasher.clone()),
            tickets: Tickets::new(&seed.nonce_key),
            flight: Flight::new(settings.quality.events),
            settings,
            access,
            seed,
            allocations: Allocations::default(),
            by_five_tuple: HashMap::with_hasher(hasher.clone()),
            named: HashMap::with_hasher(hasher.clone()),
            routes: Routes::new(hasher.clone()),
            stats: Stats::default(),
            indications: 0,
            newcomers: Newcomers::default(),
            redirected: 0,
            tracer: Tracer::default(),
            vantages: Vec::new(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            started: now.mono,
            latest: now,
            connections: Connections::new(hasher),
            attempts: Collector::default(),
        }
    }

    /// A datagram, or one frame of a stream, from a client. For ChannelData in streams the frame includes its padding.
    pub fn handle_input(&mut self, now: Now, from: FiveTuple, datagram: &[u8]) -> Forward {
        let now = self.advance(now);
        let forward = match wire::classify(datagram) {
            Kind::ChannelData => self.relay_channel_data(now, from, datagram),
            Kind::Stun if wire::indication::is_send(datagram) => {
                self.relay_send(now, from, datagram)
            }
            Kind::Stun => self.handle_message(now, from, datagram),
            Kind::Other => Forward::Drop(DropReason::NotStun),
        };
        if let Forward::Drop(reason) = forward {
            self.note_drop(from, reason);
            if self.tracer.is_on() {
                self.trace_drop(now, from, reason);
            }
        }
        self.counted(forward)
    }

    /// A datagram that a peer sent to the relayed address of `to`.
    pub fn handle_peer_input(
        &mut self,
        now: Now,
        to: AllocationId,
        from: FromPeer,
        datagram: &[u8],
    ) -> Forward {
        let now = self.advance(now);
        let forward = self.relay_to_client(now, to, from, datagram);
        if let Forward::Drop(reason) = forward {
            self.note_peer_drop(to, from.peer, reason);
            if self.tracer.is_on() {
                self.trace_peer_drop(now, to, from.peer, reason);
            }
        }
        self.counted(forward)
    }

    /// The client's connection asked for `server_name`, in lower case: if that is a name of a realm, the client is
    /// challenged with it, until it closes.
    pub fn handle_client_named(&mut self, five_tuple: FiveTuple, server_name: &str) {
        if let Some(realm) = self.access.realms.of_server(server_name) {
            self.named.insert(five_tuple, realm);
        }
    }

    /// The client's connection is none of this server's any more: it carries a peer's data, or another shard has it.
    pub fn handle_client_left(&mut self, five_tuple: FiveTuple) {
        self.named.remove(&five_tuple);
    }

    /// The client's stream closed: its allocation ends (RFC 8656 §7.2), unless it moves (RFC 8016).
    pub fn handle_client_closed(&mut self, now: Now, five_tuple: FiveTuple) {
        let now = self.advance(now);
        self.named.remove(&five_tuple);
        if self.outlives(now, five_tuple) {
            return;
        }
        if let Some(id) = self.by_five_tuple.get(&five_tuple).copied() {
            self.end(now, id, EndReason::ClientClosed);
        }
    }

    /// An operator ends `id`; false if it is not there.
    pub fn end_allocation(&mut self, now: Now, id: AllocationId, reason: EndReason) -> bool {
        let now = self.advance(now);
        self.end(now, id, reason)
    }

    /// Lets everything end whose time has come.
    pub fn handle_timeout(&mut self, now: Now) {
        let now = self.advance(now);
        while let Some(id) = self.timers.pop_due(now.mono) {
            self.expire(now, id);
        }
    }

    /// The next effect, in order; drain it after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When `handle_timeout` has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Replaces whose doings are logged in detail.
    pub fn set_traces(&mut self, traces: Arc<Traces>) {
        self.tracer.set(traces);
    }

    /// What was counted so far.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What became of those who wanted an allocation since this was asked last.
    pub fn take_attempts(&mut self) -> Attempts {
        self.attempts.take()
    }

    /// Counts a datagram that the caller had to drop after the verdict.
    pub fn count_drop(&mut self, reason: DropReason, datagrams: u64) {
        self.stats.dropped[reason as usize] += datagrams;
    }

    /// Counts application data that took `path` to a peer: only the caller knows which road was open.
    pub fn count_to_peer(&mut self, path: Path, bytes: usize) {
        self.stats.relayed[Direction::ToPeer as usize][path as usize].add(bytes);
    }

    /// Live allocations in the slots `from..from + count` but for the canary's, and whether there are slots beyond.
    pub fn views(&self, now: Now, from: usize, count: usize) -> (Vec<AllocationView>, bool) {
        let at = self.nanos(now);
        let views = self
            .allocations
            .range(from, count)
            .filter(|allocation| !allocation.scope.is_canary())
            .filter_map(|allocation| allocation.view(now, at))
            .collect();
        (views, from.saturating_add(count) < self.allocations.slots())
    }

    /// How many allocations there are, opening ones included.
    pub fn len(&self) -> usize {
        self.allocations.len()
    }

    /// Whether there is no allocation.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the client on `five_tuple` has an allocation.
    pub fn has_allocation(&self, five_tuple: FiveTuple) -> bool {
        self.by_five_tuple.contains_key(&five_tuple)
    }

    /// The allocation of the client on `five_tuple`.
    pub fn allocation_on(&self, five_tuple: FiveTuple) -> Option<AllocationId> {
        self.by_five_tuple.get(&five_tuple).copied()
    }

    /// Where the client of `id` is.
    pub fn five_tuple_of(&self, id: AllocationId) -> Option<FiveTuple> {
        Some(self.allocations.get(id)?.five_tuple)
    }

    fn handle_message(&mut self, now: Now, from: FiveTuple, datagram: &[u8]) -> Forward {
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(DecodeError::NotStun) => return self.classic(from, datagram),
            Err(DecodeError::Fingerprint) => return Forward::Drop(DropReason::Fingerprint),
            Err(DecodeError::Length | DecodeError::Attribute) => {
                return Forward::Drop(DropReason::Malformed);
            }
        };
        if from.client().port() == 0 || self.is_own(from) {
            return Forward::Drop(DropReason::Unanswerable);
        }
        match (message.class(), message.method()) {
            (
                Class::Request,
                Method::Unknown | Method::Send | Method::Data | Method::ConnectionAttempt,
            )
            | (Class::Response, _)
            | (Class::Indication, Method::Data) => Forward::Drop(DropReason::Unexpected),
            // A Binding indication keeps a NAT open and wants no answer (RFC 8489 §6.3.2).
            (Class::Indication, Method::Binding) => Forward::Consumed,
            (Class::Indication, _) => Forward::Drop(DropReason::Unexpected),
            (Class::Request, Method::Connect | Method::ConnectionBind)
                if !self.relays_connections() =>
            {
                Forward::Drop(DropReason::Unexpected)
            }
            (Class::Request, method) => self.handle_request(now, from, &message, method),
        }
    }

    fn handle_request(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        method: Method,
    ) -> Forward {
        // Nobody looks at the integrity of a Binding.
        let unsigned =
            method == Method::Binding || self.guard(now, from).integrity(message).is_none();
        if unsigned && !self.may_answer(now, from, None) {
            return Forward::Drop(DropReason::RateLimited);
        }
        let mut signer = None;
        let result = self.dispatch(now, from, message, method, &mut signer);
        if let Err(Reject::Elsewhere(shard)) = result {
            return Forward::ToShard { shard };
        }
        if let Err(reject) = &result {
            if let Some(failure) = reject.auth_failure() {
                self.stats.auth_failures[failure as usize] += 1;
            }
            let unverified = !unsigned && signer.is_none();
            if unverified && !self.may_answer(now, from, Some(*reject)) {
                return Forward::Drop(DropReason::RateLimited);
            }
            let scope = signer.as_ref().map(|(_, scope)| *scope);
            let canary = scope.is_some_and(|scope| scope.is_canary());
            if method == Method::Allocate && reject.is_failure() && !canary {
                self.count_affected(now, from, message, *reject, scope);
            }
            self.note_refused(now, from, message, *reject, scope);
        }
        if self.tracer.is_on() {
            self.trace_request(now, from, message, result.as_ref().err().copied());
        }
        let outcome = match &result {
            Ok(None) => return Forward::Consumed,
            Ok(Some(_)) => Ok(()),
            Err(reject) => Err(reject.code()),
        };
        if !signer.is_some_and(|(_, scope)| scope.is_canary()) {
            self.stats.answered(method, from.transport(), outcome);
            if let Err(reject) = &result {
                self.stats.refuse(method, *reject);
            }
        }
        let response = match result {
            Ok(None) => return Forward::Consumed,
            Ok(Some(response)) => response,
            Err(reject) => {
                if matches!(reject, Reject::Unauthenticated(_) | Reject::StaleNonce) {
                    signer = None;
                }
                self.reject(now, from, message, method, reject)
            }
        };
        self.answer(
            from,
            response.finish(
                signer.map(|(key, _)| key).as_ref(),
                message.has_fingerprint(),
            ),
        );
        Forward::Consumed
    }

    /// Whether `from`, whose integrity nothing has proven, may have an answer now: that its request is refused for
    /// `reject`, if it is.
    ///
    /// Connections and sessions have proven their address. Loopback cannot be forged from outside: the kernel drops such packets.
    ///
    /// Wrong credentials have a bucket of their own, and what is over it was verified all the same. Not to verify it
    /// would spare the work, and lock out everybody whose address is that of a guesser, or is forged by one. A guess
    /// that is right is therefore answered at any rate, and only the password's length makes it rare.
    pub(super) fn may_answer(&mut self, now: Now, from: FiveTuple, reject: Option<Reject>) -> bool {
        let client = from.client().ip();
        if from.transport().proves_address() || client.is_loopback() {
            return true;
        }
        let at = now.mono.saturating_duration_since(self.started);
        match reject {
            Some(Reject::Unauthenticated(_)) => self.auth_failures.admit(at, client),
            // A nonce that is over proves no address, whoever signed the request.
            _ => self.unauthenticated.admit(at, client),
        }
    }

    /// Whether a stranger at `from` may be answered now outside of TURN, by a cookie or a handshake: it takes a token as
    /// a Binding does.
    pub fn may_greet(&mut self, now: Now, from: FiveTuple) -> bool {
        let client = from.client().ip();
        let at = now.mono.saturating_duration_since(self.started);
        client.is_loopback() || self.unauthenticated.admit(at, client)
    }

    /// Counts that someone at `from` failed to get an allocation, if the nonce proves the address: nobody forges
    /// more of them than it has addresses.
    fn count_affected(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        reject: Reject,
        scope: Option<Scope>,
    ) {
        let nonce = message.nonce();
        if nonce.is_some_and(|nonce| self.guard(now, from).is_fresh(nonce)) {
            let client = from.client().ip();
            self.stats.affected.address(now.unix_secs(), client);
            let scope = scope.unwrap_or(Scope::Policy);
            if let Some(fate) = Fate::of(reject) {
                self.note_attempt(from, None, scope, fate);
            }
        }
    }

    /// Notes what became of the Allocate of `user` at `from`. Whoever tries the server out is no application's client.
    pub(super) fn note_attempt(
        &mut self,
        from: FiveTuple,
        user: Option<&str>,
        scope: Scope,
        fate: Fate,
    ) {
        if !scope.is_loop() {
            let client = Client::new(from.client().ip(), user);
            (self.attempts).note(&self.hasher, client, from.transport(), fate);
        }
    }

    /// What requests from `from` are authenticated against.
    pub(super) fn guard(&self, now: Now, from: FiveTuple) -> Guard<'_> {
        let wanted = self.settings.protocol.security_features;
        let named = self.realm_of(from);
        Guard {
            now,
            from,
            access: &self.access,
            nonces: &self.nonces,
            offer: Offer::to(from.transport(), wanted, self.access.asks(named)),
            named,
            control: None,
        }
    }

    /// Whether a datagram claims to come from a port that we listen on.
    pub(super) fn is_own(&self, from: FiveTuple) -> bool {
        !from.transport().is_stream() && self.access.peers.is_own_service(from.client())
    }

    /// An error response, logged. Challenges are never signed: their reader may have no key yet.
    fn reject(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        method: Method,
        reject: Reject,
    ) -> Response {
        tracing::debug!(
            client = %crate::base::Pii(from.client()),
            transport = from.transport().label(),
            method = method.label(),
            code = reject.code().code(),
            reason = reject.label(),
            detail = reject.detail(),
            "request refused"
        );
        let response = Response::error(method, message.transaction_id(), reject.code());
        match reject {
            Reject::Unauthenticated(_) | Reject::StaleNonce => {
                let response = self.guard(now, from).challenge(response);
                match (reject, &self.access.tokens) {
                    (Reject::Unauthenticated(_), Some(tokens)) if self.realm_of(from).is_none() => {
                        response.third_party(tokens.server_name())
                    }
                    _ => response,
                }
            }
            Reject::TryAlternate(alternate) => response.alternate_server(alternate),
            Reject::UnknownAttributes => {
                let unknown = message.unknown_required(self.understood(from, method));
                let token = self.is_token_unknown(message, method);
                response.unknown_attributes(unknown.chain(token.then_some(attribute::ACCESS_TOKEN)))
            }
            _ => response,
        }
    }

    fn dispatch(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        method: Method,
        signer: &mut Option<(Key, Scope)>,
    ) -> Result<Option<Response>, Reject> {
        if method == Method::Binding {
            return self.binding(from, message);
        }
        if let Some(id) = self.by_five_tuple.get(&from).copied() {
            self.expire(now, id);
        }
        let id = self.by_five_tuple.get(&from).copied();
        let owned = match method {
            Method::ConnectionBind => self.connection_owner(message),
            _ => id.and_then(|id| self.allocations.get(id)),
        };
        let mut guard = self.guard(now, from);
        if method == Method::ConnectionBind {
            let control = owned.map(|allocation| allocation.five_tuple);
            guard.control = control.filter(|control| *control != from);
        }
        let authenticated = match guard.authenticate(message, owned) {
            Err(Reject::Unauthenticated(AuthFailure::Expired))
                if method == Method::Refresh && owned.is_none() =>
            {
                self.authenticate_by_ticket(now, from, message)?
            }
            other => other?,
        };
        *signer = Some((*authenticated.key(), authenticated.scope()));
        if self.is_token_unknown(message, method) {
            return Err(Reject::UnknownAttributes);
        }
        let result = match method {
            Method::Allocate => self.allocate(now, from, message, authenticated),
            Method::Refresh => self.refresh(now, from, id, message, &authenticated),
            Method::CreatePermission => self
                .create_permission(now, id, message, &authenticated)
                .map(Some),
            Method::ChannelBind => self
                .channel_bind(now, id, message, &authenticated)
                .map(Some),
            Method::Connect => self.connect(now, id, message, &authenticated),
            Method::ConnectionBind => self
                .connection_bind(now, from, message, &authenticated)
                .map(Some),
            Method::Binding
            | Method::Send
            | Method::Data
            | Method::ConnectionAttempt
            | Method::Unknown => Err(Reject::BadRequest("not a request")),
        };
        if result.is_ok() && message.mobility_ticket().is_none() {
            self.settle_at(now, from);
        }
        result
    }

    /// Whether there is an ACCESS-TOKEN that nobody here understands, where it would be understood otherwise (RFC 7635 §7).
    fn is_token_unknown(&self, message: &Message<'_>, method: Method) -> bool {
        method != Method::Binding
            && self.access.tokens.is_none()
            && message.access_token().is_some()
    }

    /// The realm that the connection of `from` asked for, if not the default one, and if it is there still.
    fn realm_of(&self, from: FiveTuple) -> Option<RealmName> {
        let named = self.named.get(&from).copied();
        named.filter(|realm| self.access.knows(Some(*realm)))
    }

    pub(super) fn answer(&mut self, five_tuple: FiveTuple, message: Vec<u8>) {
        self.outputs.push_back(Output::ToClient {
            five_tuple,
            message,
        });
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Changes an allocation's lifetimes and brings timers and routes into line with it.
    pub(super) fn touch(
        &mut self,
        now: Now,
        id: AllocationId,
        change: impl FnOnce(&mut Allocation),
    ) {
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        let before = allocation.next_expiry();
        change(allocation);
        self.timers
            .reschedule(id, before, Some(allocation.next_expiry()));
        self.routes.sync(allocation, now.mono);
    }

    /// Ends a live allocation: routes closed, relay closed, the last word said. False if it is not there.
    pub(super) fn end(&mut self, now: Now, id: AllocationId, reason: EndReason) -> bool {
        let at = self.nanos(now);
        let Some(allocation) = self.allocations.get(id) else {
            return false;
        };
        // Nobody is told of the server's own.
        let canary = allocation.scope.is_canary();
        let view = allocation.view(now, at).filter(|_| !canary);
        let (kind, families) = (allocation.kind(), allocation.families());
        let ended = view.map(|view| Ended {
            duration: now.mono.saturating_duration_since(view.created),
            view,
            reason,
        });
        if let Some(ended) = &ended {
            self.note_ended(id, ended);
        }
        self.forget(id);
        let closed = families.map(|family| Output::CloseRelay { id, family });
        self.outputs.extend(closed);
        let Some(ended) = ended else {
            return true;
        };
        let (view, duration) = (&ended.view, ended.duration);
        if self.tracer.is_on() {
            self.trace_ended(now, view, reason);
        }
        let transport = view.transport as usize;
        self.stats.live[transport][kind as usize] -= 1;
        self.stats
            .duration
            .observe(&DURATION_BOUNDS_SECS, duration.as_secs_f64());
        for direction in Direction::ALL {
            let bits = view.traffic[direction as usize].bytes as f64 * 8.0;
            self.stats.bandwidth[direction as usize]
                .observe(&BANDWIDTH_BOUNDS, bits / duration.as_secs_f64().max(1.0));
        }
        if view.relay_transport == RelayTransport::Udp {
            let packets = view.traffic.map(|traffic| traffic.packets);
            self.stats.sessions[Ending::of(packets, duration) as usize] += 1;
        }
        self.outputs.push_back(Output::Ended(Box::new(ended)));
        true
    }

    /// Takes an allocation out of every table.
    pub(super) fn forget(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.remove(id) else {
            return;
        };
        self.stats.throttled -= u64::from(allocation.throttled);
        if let Some(purse) = allocation.police.as_ref().and_then(|police| police.user) {
            self.purses.close(purse);
        }
        self.timers.reschedule(id, allocation.next_expiry(), None);
        for connection in &allocation.connections {
            self.forget_connection(connection.id);
        }
        for binding in &allocation.channels {
            self.routes.remove(&allocation, binding);
        }
        self.forget_places(&allocation);
        if self.allocations.len() == 0 {
            self.routes.shrink();
        }
    }

    /// Ends what is over at `now`: the allocation, or some of its permissions and channels.
    ///
    /// Timers call it, and so does every request, so that a late timer never shows.
    pub(super) fn expire(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        if allocation.is_over(now.mono) {
            let reason = if allocation.abused {
                EndReason::Abuse
            } else if allocation.is_adrift() {
                EndReason::ClientClosed
            } else {
                EndReason::Expired
            };
            self.end(now, id, reason);
            return;
        }
        let over = |family: &Family| {
            allocation
                .ends(*family)
                .is_some_and(|ends| ends <= now.mono)
        };
        if let Some(family) = Family::ALL.iter().copied().find(over) {
            self.end_relayed(now, id, family, EndReason::Expired);
        }
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        let before = allocation.next_expiry();
        if before <= now.mono {
            let late = allocation.take_late_connections(now.mono);
            let ended: Vec<_> = allocation
                .channels
                .extract_if(.., |binding| binding.expires <= now.mono)
                .collect();
            allocation
                .permissions
                .retain(|permission| permission.expires > now.mono);
            for binding in &ended {
                self.routes.remove(allocation, binding);
            }
            self.routes.sync(allocation, now.mono);
            let after = allocation.next_expiry();
            self.timers.reschedule(id, before, Some(after));
            for connection in late {
                self.fail_connection(id, &connection, ErrorCode::ConnectionTimeoutOrFailure);
            }
            return;
        }
        self.timers.reschedule(id, before, Some(before));
    }

    /// Time never goes back: a reading older than the latest counts as the latest.
    pub(super) fn advance(&mut self, now: Now) -> Now {
        if now.mono >= self.latest.mono {
            self.latest = now;
        }
        self.latest
    }

    /// Whole seconds since the server was made; it wraps after 136 years.
    pub(super) fn second(&self, now: Now) -> u32 {
        now.mono.saturating_duration_since(self.started).as_secs() as u32
    }

    fn counted(&mut self, forward: Forward) -> Forward {
        if let Forward::Drop(reason) = forward {
            self.stats.drop(reason);
        }
        forward
    }
}
