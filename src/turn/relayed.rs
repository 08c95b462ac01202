//! The relayed addresses of an allocation: how they come, one after the other, and how one of two goes (RFC 8656 §7.2,
//! §8.2).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::{Family, Now, RelayedAddress};
use crate::wire::{ErrorCode, Method, Response};

use super::allocation::{Additional, Allocation, AllocationId, State};
use super::attempts::Fate;
use super::flight::What;
use super::reject::Reject;
use super::server::Server;
use super::snapshot::{Nanos, moment, nanos};
use super::{EndReason, OpenError, Output};

/// A relay socket that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Where.
    pub relayed: RelayedAddress,
    /// Names the port above it, which is kept for the client.
    pub token: Option<u64>,
}

impl From<RelayedAddress> for Opened {
    fn from(relayed: RelayedAddress) -> Self {
        Self {
            relayed,
            token: None,
        }
    }
}

impl OpenError {
    pub(super) const fn reject(self) -> Reject {
        match self {
            Self::Quota => Reject::Quota,
            Self::Capacity => Reject::Capacity,
        }
    }
}

impl Server {
    /// The outcome of `Output::OpenRelay`. A late answer for an allocation that is gone does nothing but close it again.
    pub fn handle_relay_opened(
        &mut self,
        now: Now,
        id: AllocationId,
        opened: Result<Opened, OpenError>,
    ) {
        let now = self.advance(now);
        let Some(allocation) = self.allocations.get_mut(id) else {
            if let Ok(opened) = opened {
                let family = opened.relayed.family();
                self.output(Output::CloseRelay { id, family });
            }
            return;
        };
        match (allocation.state, allocation.additional, opened) {
            (State::Opening, Additional::Wanted { even_port }, opened) => {
                match opened {
                    Ok(opened) => allocation.state = State::Half(opened.relayed),
                    // One family serves where the other cannot.
                    Err(error) => {
                        allocation.additional = Additional::Refused(error.reject().code());
                        allocation.family = allocation.family.other();
                    }
                }
                let family = match allocation.state {
                    State::Half(first) => first.family().other(),
                    State::Opening | State::Live(_) => allocation.family,
                };
                self.open_relay(
                    id,
                    family,
                    Ask {
                        even_port,
                        ..Ask::default()
                    },
                );
            }
            (State::Half(first), _, opened) => {
                allocation.state = State::Live(first);
                allocation.additional = match opened {
                    Ok(opened) => Additional::Live {
                        relayed: opened.relayed,
                        expires: allocation.expires,
                    },
                    Err(error) => Additional::Refused(error.reject().code()),
                };
                self.allocated(now, id);
            }
            (State::Opening, _, Ok(opened)) => {
                // A reservation is of the family that it was made in.
                allocation.family = opened.relayed.family();
                allocation.state = State::Live(opened.relayed);
                allocation.token = opened.token;
                self.allocated(now, id);
            }
            (State::Opening, _, Err(error)) => self.not_allocated(now, id, error),
            (State::Live(_), ..) => debug_assert!(false, "nobody asked for a relay"),
        }
    }

    /// Asks for a relay socket in `family` for `id`.
    pub(super) fn open_relay(&mut self, id: AllocationId, family: Family, ask: Ask) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let output = Output::OpenRelay {
            id,
            family,
            even_port: ask.even_port,
            user: Arc::clone(&allocation.user),
            scope: allocation.scope,
            realm: allocation.realm,
            client: allocation.five_tuple.client().ip(),
            transport: allocation.relay_transport,
            reserve: ask.reserve,
            token: ask.token,
        };
        self.output(output);
    }

    /// The success response to an Allocate, the same for its retransmissions.
    pub(super) fn allocate_success(
        &self,
        allocation: &Allocation,
        relayed: RelayedAddress,
    ) -> Response {
        let response = allocate_success(allocation, relayed);
        match self.ticket(allocation) {
            Some(ticket) => response.mobility_ticket(&ticket),
            None => response,
        }
    }

    /// Everything that can be had is open: the client hears of it.
    fn allocated(&mut self, now: Now, id: AllocationId) {
        // The answer grants the whole lifetime, however long the relay took to open.
        self.touch(now, id, |allocation| {
            let granted = Duration::from_secs(allocation.granted_secs.into());
            allocation.refresh(None, now.mono + granted);
        });
        self.place_under_limits(now, id);
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let State::Live(relayed) = allocation.state else {
            return;
        };
        let (five_tuple, key) = (allocation.five_tuple, allocation.key);
        let answer = self.allocate_success(allocation, relayed);
        let message = answer.finish(Some(&key), allocation.fingerprint);
        if !allocation.scope.is_canary() {
            let transport = five_tuple.transport();
            self.stats.live[transport as usize][allocation.kind() as usize] += 1;
            self.stats.answered(Method::Allocate, transport, Ok(()));
            let (user, scope) = (Arc::clone(&allocation.user), allocation.scope);
            self.note_attempt(five_tuple, Some(&user), scope, Fate::Allocated);
        }
        self.answer(five_tuple, message);
        self.note(id, What::Allocated, None);
        self.trace_opened(now, id);
    }

    /// No relayed address could be had in any family.
    fn not_allocated(&mut self, now: Now, id: AllocationId, error: OpenError) {
        self.note_unopened(now, id, error.reject());
        self.trace_unopened(now, id, error);
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let code = match allocation.additional {
            // What is wrong with the family that clients come for.
            Additional::Refused(code) if code != ErrorCode::AddressFamilyNotSupported => code,
            _ => error.reject().code(),
        };
        let (five_tuple, key) = (allocation.five_tuple, allocation.key);
        let answer = Response::error(Method::Allocate, allocation.transaction, code);
        let message = answer.finish(Some(&key), allocation.fingerprint);
        if !allocation.scope.is_canary() {
            let user = Arc::clone(&allocation.user);
            self.stats
                .answered(Method::Allocate, five_tuple.transport(), Err(code));
            self.stats.affected.user(now.unix_secs(), &user);
            self.stats.refuse(Method::Allocate, error.reject());
            let (scope, claims) = (allocation.scope, allocation.token.is_some());
            if let Some(fate) = Fate::unopened(code, claims) {
                self.note_attempt(five_tuple, Some(&user), scope, fate);
            }
        }
        self.forget(id);
        self.answer(five_tuple, message);
    }

    /// The relay socket of `id` in `family` is beyond use.
    pub fn handle_relay_failed(&mut self, now: Now, id: AllocationId, family: Family) {
        let now = self.advance(now);
        self.end_relayed(now, id, family, EndReason::RelayFailed);
    }

    /// Ends the relayed address in `family` and what hangs off it; the allocation, if it has no other.
    pub(super) fn end_relayed(
        &mut self,
        now: Now,
        id: AllocationId,
        family: Family,
        reason: EndReason,
    ) {
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        let Additional::Live { relayed, expires } = allocation.additional else {
            if allocation.family == family {
                self.end(now, id, reason);
            }
            return;
        };
        let before = (allocation.next_expiry(), allocation.kind());
        allocation.additional = Additional::None;
        if allocation.family == family {
            allocation.family = relayed.family();
            allocation.state = State::Live(relayed);
            allocation.expires = expires;
        }
        let ended: Vec<_> = (allocation.channels)
            .extract_if(.., |binding| {
                Family::of(binding.peer.address().ip()) == family
            })
            .collect();
        (allocation.permissions).retain(|permission| Family::of(permission.ip.ip()) != family);
        for binding in &ended {
            self.routes.remove(allocation, binding);
        }
        self.routes.sync(allocation, now.mono);
        let (expiry, kind) = before;
        (self.timers).reschedule(id, expiry, Some(allocation.next_expiry()));
        if !allocation.scope.is_canary() {
            let live = &mut self.stats.live[allocation.five_tuple.transport() as usize];
            live[kind as usize] -= 1;
            live[allocation.kind() as usize] += 1;
        }
        self.output(Output::CloseRelay { id, family });
    }
}

/// What a relay socket has to be like, beside its family.
#[derive(Clone, Copy, Default)]
pub(super) struct Ask {
    pub even_port: bool,
    pub reserve: bool,
    pub token: Option<u64>,
}

/// The success response to an Allocate, but for its ticket.
fn allocate_success(allocation: &Allocation, relayed: RelayedAddress) -> Response {
    let mut response =
        Response::success(Method::Allocate, allocation.transaction).relayed_address(relayed.0);
    if let Some(additional) = allocation.additional() {
        response = response.relayed_address(additional.0);
    }
    response = response
        .mapped_address(allocation.five_tuple.client())
        .lifetime(allocation.granted_secs);
    if let Some(token) = allocation.token {
        response = response.reservation_token(token);
    }
    match allocation.additional {
        Additional::Refused(code) => response.address_error(allocation.family.other(), code),
        _ => response,
    }
}

/// What there is of a second relayed address. A version that does not know it goes on with the first.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(super) enum AdditionalImage {
    #[default]
    None,
    /// Asked for, an even port or any; and the first one if it is there.
    Wanted(bool, Option<SocketAddr>),
    Live(SocketAddr, Nanos),
    Refused(u16),
}

impl AdditionalImage {
    pub fn of(state: &State, additional: &Additional, now: Now) -> Self {
        match *additional {
            Additional::None => Self::None,
            Additional::Wanted { even_port } => {
                let first = match state {
                    State::Half(first) => Some(first.0),
                    State::Opening | State::Live(_) => None,
                };
                Self::Wanted(even_port, first)
            }
            Additional::Live { relayed, expires } => Self::Live(relayed.0, nanos(expires, now)),
            Additional::Refused(code) => Self::Refused(code.code()),
        }
    }

    /// The second one, of a snapshot that was `taken` then.
    pub fn restored(self, taken: Instant) -> Additional {
        match self {
            Self::None => Additional::None,
            Self::Wanted(even_port, _) => Additional::Wanted { even_port },
            Self::Live(relayed, expires) => Additional::Live {
                relayed: RelayedAddress(relayed),
                expires: moment(expires, taken),
            },
            Self::Refused(code) => (ErrorCode::ALL.into_iter())
                .find(|known| known.code() == code)
                .map_or(Additional::None, Additional::Refused),
        }
    }

    /// What there is of the first one, which was answered as `relayed` if it was.
    pub fn state(self, relayed: Option<SocketAddr>) -> State {
        match (relayed, self) {
            (Some(relayed), _) => State::Live(RelayedAddress(relayed)),
            (None, Self::Wanted(_, Some(first))) => State::Half(RelayedAddress(first)),
            (None, _) => State::Opening,
        }
    }
}
