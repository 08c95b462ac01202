//! Mobility with TURN (RFC 8016): a live allocation moves to another five-tuple of its client.
//!
//! ```text
//!         Refresh with a ticket             data or a request of B, or the connection of A closes
//!  at A ───────────────────────► at A, and B ────────────────────────────────────────────────────► at B
//!                                    │ the connection of B closes
//!  at A ◄────────────────────────────┘
//! ```
//!
//! Both five-tuples are good for what the client sends until the new one is settled on; what peers send goes to the old
//! one until then. RFC 8016 §3.2.2 waits for data; here any other request does as well, since a client that only receives
//! sends nothing else, and none asks for anything before it knows that it has moved. A client whose only connection
//! closes has [`ADRIFT`] to come back.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::access::AuthFailure;
use crate::base::{FiveTuple, ListenerId, Now, RelayTransport, Transport};
use crate::wire::{Key, Message, Method, Response, TransactionId};

use super::allocation::{Allocation, AllocationId};
use super::auth::Authenticated;
use super::flight::What;
use super::reject::Reject;
use super::server::Server;
use super::stats::{Outcome, outcome_index};
use super::ticket::{TICKET_LENGTH, Ticket};
use super::{EndReason, OpenError, Output};

/// How long an allocation waits for its client after its connection closed, within its lifetime.
pub const ADRIFT: Duration = Duration::from_secs(30);

/// How long a ticket that was used is known as used by the same Refresh (RFC 8016 §3.2.2).
pub(super) const REMEMBERED: Duration = Duration::from_secs(30);

/// What an allocation that may move has beside the others.
#[derive(Debug, Default)]
pub(super) struct Mobility {
    /// How often it has moved: a ticket is good for one of them.
    pub moves: u16,
    /// Where it moves to, until the client sends from there.
    pub next: Option<FiveTuple>,
    /// The last move: its retransmissions get the same answer.
    pub last: Option<Move>,
    /// A move that the caller is asked to count.
    asked: Option<Box<Asked>>,
    /// The connection of its five-tuple has closed.
    pub adrift: bool,
}

/// A move that was granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub to: FiveTuple,
    pub transaction: TransactionId,
    pub granted_secs: u32,
    /// Until when it is remembered.
    pub until: Instant,
}

/// A Refresh with a good ticket that waits for its answer.
#[derive(Debug)]
struct Asked {
    to: FiveTuple,
    transaction: TransactionId,
    granted_secs: u32,
    fingerprint: bool,
    key: Key,
    /// A credential other than the one that the allocation keeps, to be kept from now on.
    renewed: Option<Renewed>,
}

/// What an allocation keeps of a newer credential of its owner.
#[derive(Debug)]
pub(super) struct Renewed {
    username: Box<[u8]>,
    key: Key,
    expires: Option<Duration>,
}

impl Renewed {
    /// The credential that a request came with, if it is another one.
    pub fn of(authenticated: &Authenticated) -> Option<Self> {
        let identity = authenticated.renewed()?;
        Some(Self {
            username: identity.username.clone(),
            key: *authenticated.key(),
            expires: identity.expires,
        })
    }

    pub fn keep(self, allocation: &mut Allocation) {
        allocation.username = self.username;
        allocation.key = self.key;
        allocation.credential_expires = self.expires;
    }
}

/// [`Mobility`] as a value, for another process.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct MobilityImage {
    moves: u16,
    next: Option<Place>,
    last: Option<(Place, [u8; 12], u32, i64)>,
}

/// A five-tuple: transport, client, listener.
type Place = (u8, SocketAddr, u16);

fn place(five_tuple: FiveTuple) -> Place {
    let transport = five_tuple.transport() as u8;
    (transport, five_tuple.client(), five_tuple.listener().0)
}

fn at((transport, client, listener): Place) -> Option<FiveTuple> {
    let transport = *Transport::ALL.get(usize::from(transport))?;
    Some(FiveTuple::new(transport, client, ListenerId(listener)))
}

/// The allocation that `ticket` names is another shard's. A session of DTLS is this one's alone: its client gets an
/// allocation of its own.
const fn elsewhere(from: FiveTuple, ticket: Ticket) -> Reject {
    match from.transport() {
        Transport::Dtls => Reject::MobilityForbidden,
        Transport::Udp | Transport::Tcp | Transport::Tls => Reject::Elsewhere(ticket.shard),
    }
}

impl MobilityImage {
    /// A five-tuple of TLS or DTLS is not for another process, so no move to one is.
    pub fn of(mobility: &Mobility, nanos: impl Fn(Instant) -> i64) -> Self {
        let Mobility {
            moves,
            next,
            last,
            asked: _,
            adrift: _,
        } = mobility;
        Self {
            moves: *moves,
            next: (next.filter(|next| matches!(next.transport(), Transport::Udp | Transport::Tcp)))
                .map(place),
            last: last.map(|last| {
                let until = nanos(last.until);
                (place(last.to), last.transaction.0, last.granted_secs, until)
            }),
        }
    }

    pub fn restored(&self, moment: impl Fn(i64) -> Instant) -> Mobility {
        Mobility {
            moves: self.moves,
            next: self.next.and_then(at),
            last: self
                .last
                .and_then(|(to, transaction, granted_secs, until)| {
                    Some(Move {
                        to: at(to)?,
                        transaction: TransactionId(transaction),
                        granted_secs,
                        until: moment(until),
                    })
                }),
            asked: None,
            adrift: false,
        }
    }
}

impl Allocation {
    /// Whether the connection of its five-tuple has closed: nobody is there.
    pub fn is_adrift(&self) -> bool {
        (self.mobility.as_deref()).is_some_and(|mobility| mobility.adrift)
    }

    /// Where it moves to, if it does.
    pub fn next(&self) -> Option<FiveTuple> {
        self.mobility.as_deref()?.next
    }
}

impl Server {
    /// Whether an Allocate asks for an allocation that may move (RFC 8016 §3.1.2). A visit of the test page is bound to an
    /// address, and a token (RFC 7635) vouches for a five-tuple.
    ///
    /// # Errors
    /// 400 for a ticket that says something, 405 where nothing moves.
    pub(super) fn asks_to_move(
        &self,
        message: &Message<'_>,
        authenticated: &Authenticated,
        relays: RelayTransport,
    ) -> Result<bool, Reject> {
        match message.mobility_ticket() {
            None => Ok(false),
            // Data connections of a TCP allocation stay where they are (RFC 6062).
            Some([])
                if !self.settings.protocol.mobility
                    || authenticated.scope().is_loop()
                    || authenticated
                        .renewed()
                        .is_some_and(|identity| identity.by_token)
                    || relays == RelayTransport::Tcp =>
            {
                Err(Reject::MobilityForbidden)
            }
            Some([]) => Ok(true),
            Some(_) => Err(Reject::BadRequest("MOBILITY-TICKET is not empty")),
        }
    }

    /// The ticket that the client of `allocation` gets, if it may move.
    pub(super) fn ticket(&self, allocation: &Allocation) -> Option<[u8; TICKET_LENGTH]> {
        let mobility = allocation.mobility.as_deref()?;
        self.tickets.seal(allocation.id, mobility.moves)
    }

    /// Authenticates a Refresh whose credential is over, as the allocation that its ticket names would have it: by the key
    /// that it keeps.
    ///
    /// # Errors
    /// 401 if there is no such allocation, and what [`authenticate`] says.
    #[cold]
    pub(super) fn authenticate_by_ticket(
        &self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
    ) -> Result<Authenticated, Reject> {
        let expired = Reject::Unauthenticated(AuthFailure::Expired);
        let ticket = message.mobility_ticket();
        let ticket = ticket.and_then(|ticket| self.tickets.open(ticket));
        let ticket = ticket.ok_or(expired)?;
        let Some(nonce) = message.nonce() else {
            return Err(expired);
        };
        if ticket.shard != self.tickets.shard {
            // Its integrity was right, or it would not count as over.
            return if self.guard(now, from).is_fresh(nonce) {
                Err(elsewhere(from, ticket))
            } else {
                Err(Reject::StaleNonce)
            };
        }
        let named = self.named(ticket).ok_or(expired)?;
        let named = self.allocations.get(named);
        self.guard(now, from).authenticate(message, named)
    }

    /// Refresh with a ticket (RFC 8016 §3.2.2). `None`: the answer follows once the move is counted.
    pub(super) fn refresh_by_ticket(
        &mut self,
        now: Now,
        from: FiveTuple,
        id: Option<AllocationId>,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<Option<Response>, Reject> {
        let result = self.take_ticket(now, from, id, message, authenticated);
        match &result {
            Ok(None) | Err(Reject::Elsewhere(_)) => {}
            Ok(Some(_)) => self.count_move(Ok(())),
            Err(reject) => self.count_move(Err(reject.code())),
        }
        result
    }

    fn take_ticket(
        &mut self,
        now: Now,
        from: FiveTuple,
        id: Option<AllocationId>,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<Option<Response>, Reject> {
        if !self.settings.protocol.mobility {
            return Err(Reject::MobilityForbidden);
        }
        let ticket = message.mobility_ticket().unwrap_or_default();
        let ticket = (self.tickets.open(ticket)).ok_or(Reject::BadRequest(
            "MOBILITY-TICKET is none of this server's",
        ))?;
        let here = ticket.shard == self.tickets.shard;
        if let Some(allocation) = id.and_then(|id| self.allocations.get(id)) {
            if !here || !ticket.names(allocation.id) {
                return Err(Reject::AllocationExists);
            }
            authenticated.owns(allocation)?;
            return (self.repeated(now, from, allocation, message.transaction_id()))
                .map(Some)
                .ok_or(Reject::BadRequest("the client has not moved"));
        }
        if !here {
            return Err(elsewhere(from, ticket));
        }
        if let Some(id) = self.named(ticket) {
            self.expire(now, id);
        }
        let id = self.named(ticket).ok_or(Reject::NoAllocation)?;
        let allocation = self.allocations.get(id).ok_or(Reject::NoAllocation)?;
        allocation.relayed().ok_or(Reject::NoAllocation)?;
        authenticated.owns(allocation)?;
        let Some(mobility) = allocation.mobility.as_deref() else {
            return Err(Reject::BadRequest("the allocation does not move"));
        };
        if ticket.moves != mobility.moves {
            return Err(Reject::BadRequest("MOBILITY-TICKET was used before"));
        }
        let moves_on = mobility.moves.checked_add(1).is_some();
        let (family, granted_secs) = self.renewal(now, allocation, message, authenticated)?;
        if family.is_some() {
            return Err(Reject::BadRequest("an allocation moves as a whole"));
        }
        if granted_secs == 0 {
            self.end(now, id, EndReason::Released);
            let response = Response::success(Method::Refresh, message.transaction_id());
            return Ok(Some(response.lifetime(0)));
        }
        if !moves_on {
            return Err(Reject::Capacity);
        }
        let asked = Asked {
            to: from,
            transaction: message.transaction_id(),
            granted_secs,
            fingerprint: message.has_fingerprint(),
            key: *authenticated.key(),
            renewed: Renewed::of(authenticated),
        };
        if let Some(mobility) = self.mobility_mut(id) {
            mobility.asked = Some(Box::new(asked));
        }
        self.count_client(id, from.client().ip());
        Ok(None)
    }

    /// The answer to the last move once more, if this is that move.
    fn repeated(
        &self,
        now: Now,
        from: FiveTuple,
        allocation: &Allocation,
        transaction: TransactionId,
    ) -> Option<Response> {
        let last = allocation.mobility.as_deref()?.last?;
        let same = last.to == from && last.transaction == transaction && last.until > now.mono;
        same.then(|| self.moved(allocation, last))
    }

    /// The answer to a move.
    fn moved(&self, allocation: &Allocation, last: Move) -> Response {
        let response = Response::success(Method::Refresh, last.transaction);
        let response = response.lifetime(last.granted_secs);
        match self.ticket(allocation) {
            Some(ticket) => response.mobility_ticket(&ticket),
            None => response,
        }
    }

    /// The outcome of `Output::MoveClient`: answers the Refresh that asked for it.
    pub fn handle_client_moved(
        &mut self,
        now: Now,
        id: AllocationId,
        counted: Result<(), OpenError>,
    ) {
        let now = self.advance(now);
        let Some(asked) = self.mobility_mut(id).and_then(|m| m.asked.take()) else {
            return;
        };
        let Asked {
            to,
            transaction,
            granted_secs,
            fingerprint,
            key,
            renewed,
        } = *asked;
        let outcome: Outcome = counted.map_err(|error| error.reject().code());
        self.count_move(outcome);
        self.stats
            .answered(Method::Refresh, to.transport(), outcome);
        if let Err(code) = outcome {
            if let Err(error) = counted {
                let (method, reject) = (Method::Refresh, error.reject());
                self.stats.refuse(method, reject);
                self.note(id, What::Refused { method, reject }, None);
            }
            let response = Response::error(Method::Refresh, transaction, code);
            self.answer(to, response.finish(Some(&key), fingerprint));
            return;
        }
        self.drop_next(id);
        let last = Move {
            to,
            transaction,
            granted_secs,
            until: now.mono + REMEMBERED,
        };
        self.by_five_tuple.insert(to, id);
        self.touch(now, id, |allocation| {
            allocation.refresh(None, now.mono + Duration::from_secs(granted_secs.into()));
            if let Some(renewed) = renewed {
                renewed.keep(allocation);
            }
            if let Some(mobility) = allocation.mobility.as_deref_mut() {
                mobility.moves = mobility.moves.saturating_add(1);
                mobility.next = Some(to);
                mobility.last = Some(last);
            }
        });
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        tracing::info!(
            user = &*allocation.user,
            from = %crate::base::Pii(allocation.five_tuple.client()),
            to = %crate::base::Pii(to.client()),
            transport = to.transport().label(),
            "an allocation moves"
        );
        let response = self.moved(allocation, last);
        self.note(id, What::Moved, Some(to.client()));
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let adrift = allocation.is_adrift();
        self.answer(to, response.finish(Some(&key), fingerprint));
        if adrift {
            self.settle_on_next(now, id);
        }
    }

    /// The client asks for something at `five_tuple`, and may have moved there.
    pub(super) fn settle_at(&mut self, now: Now, five_tuple: FiveTuple) {
        let id = self.by_five_tuple.get(&five_tuple).copied();
        let allocation = id.and_then(|id| self.allocations.get(id));
        if let Some(allocation) = allocation
            && allocation.next() == Some(five_tuple)
        {
            self.settle_on_next(now, allocation.id);
        }
    }

    /// The client sends from where its allocation moves to: the way it came before is forgotten.
    #[cold]
    pub(super) fn settle_on_next(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        let Some(mobility) = allocation.mobility.as_deref_mut() else {
            return;
        };
        let Some(next) = mobility.next.take() else {
            return;
        };
        let was_adrift = std::mem::take(&mut mobility.adrift);
        let before = std::mem::replace(&mut allocation.five_tuple, next);
        // Who has let go of it may have left it to another allocation.
        if !was_adrift {
            for binding in &allocation.channels {
                self.routes.leave(before, binding);
            }
        }
        if allocation.relayed().is_some() {
            let kind = allocation.kind() as usize;
            self.stats.live[before.transport() as usize][kind] -= 1;
            self.stats.live[next.transport() as usize][kind] += 1;
        }
        self.routes.sync(allocation, now.mono);
        if !was_adrift {
            self.by_five_tuple.remove(&before);
            self.output(Output::Left { five_tuple: before });
        }
    }

    /// The allocation stays where it is, or moves somewhere else.
    fn drop_next(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        let next = (allocation.mobility.as_deref_mut()).and_then(|mobility| mobility.next.take());
        let Some(next) = next else {
            return;
        };
        for binding in &allocation.channels {
            self.routes.leave(next, binding);
        }
        self.by_five_tuple.remove(&next);
        self.output(Output::Left { five_tuple: next });
    }

    /// Takes the five-tuples of an allocation that is over out of the table.
    pub(super) fn forget_places(&mut self, allocation: &Allocation) {
        if !allocation.is_adrift() {
            self.by_five_tuple.remove(&allocation.five_tuple);
        }
        let Some(mobility) = allocation.mobility.as_deref() else {
            return;
        };
        if let Some(next) = mobility.next {
            self.by_five_tuple.remove(&next);
            self.output(Output::Left { five_tuple: next });
        }
        if mobility.moves > 0 && !mobility.adrift {
            let five_tuple = allocation.five_tuple;
            self.output(Output::Left { five_tuple });
        }
    }

    /// Nobody is on `five_tuple` any more. Whether its allocation goes on without: at its other five-tuple, or adrift.
    pub(super) fn outlives(&mut self, now: Now, five_tuple: FiveTuple) -> bool {
        let id = self.by_five_tuple.get(&five_tuple).copied();
        let Some((id, allocation)) = id.and_then(|id| Some((id, self.allocations.get(id)?))) else {
            return false;
        };
        if allocation.mobility.is_none() || allocation.relayed().is_none() {
            return false;
        }
        let at = allocation.five_tuple;
        if allocation.next() == Some(five_tuple) {
            self.drop_next(id);
            self.count_client(id, at.client().ip());
            return true;
        }
        if allocation.next().is_some() {
            self.settle_on_next(now, id);
            return true;
        }
        if !five_tuple.transport().is_stream() || !self.settings.protocol.mobility {
            return false;
        }
        self.by_five_tuple.remove(&five_tuple);
        if let Some(allocation) = self.allocations.get(id) {
            for binding in &allocation.channels {
                self.routes.remove(allocation, binding);
            }
        }
        self.touch(now, id, |allocation| {
            allocation.end_by(now.mono + ADRIFT);
            if let Some(mobility) = allocation.mobility.as_deref_mut() {
                mobility.adrift = true;
            }
        });
        true
    }

    /// Allocations that move to a five-tuple that is `gone` stay where they are.
    pub(super) fn leave_next(&mut self, now: Now, gone: impl Fn(FiveTuple) -> bool) {
        let nexts: Vec<_> = (self.allocations.range(0, usize::MAX))
            .filter_map(Allocation::next)
            .filter(|next| gone(*next))
            .collect();
        for next in nexts {
            self.outlives(now, next);
        }
    }

    /// Clients on those transports that `which` names stay where they are, if they were about to move.
    pub fn end_moves(&mut self, now: Now, which: impl Fn(Transport) -> bool) {
        let now = self.advance(now);
        let nexts: Vec<_> = (self.allocations.range(0, usize::MAX))
            .filter(|allocation| which(allocation.five_tuple.transport()))
            .filter_map(Allocation::next)
            .collect();
        for next in nexts {
            self.outlives(now, next);
        }
    }

    /// Whether outputs wait to be carried out.
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Brings what another process left of moves into line: the second five-tuple of `id` is good here as well.
    pub(super) fn resume_move(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        match allocation.next() {
            Some(next) if self.by_five_tuple.contains_key(&next) => {
                if let Some(mobility) = self.mobility_mut(id) {
                    mobility.next = None;
                }
            }
            Some(next) => {
                self.by_five_tuple.insert(next, id);
                self.routes.sync(allocation, now.mono);
            }
            None => {}
        }
    }

    fn named(&self, ticket: Ticket) -> Option<AllocationId> {
        let id = self.allocations.id_in(ticket.slot)?;
        ticket.names(id).then_some(id)
    }

    fn mobility_mut(&mut self, id: AllocationId) -> Option<&mut Mobility> {
        self.allocations.get_mut(id)?.mobility.as_deref_mut()
    }

    fn count_client(&mut self, id: AllocationId, client: IpAddr) {
        self.output(Output::MoveClient { id, client });
    }

    fn count_move(&mut self, outcome: Outcome) {
        self.stats.mobility[outcome_index(outcome)] += 1;
    }
}
