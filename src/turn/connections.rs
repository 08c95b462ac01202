//! TCP allocations (RFC 6062): connections with peers, and which connection of a client carries the data of which.
//!
//! ```text
//!  client ── Connect ─────────► ConnectPeer ── handle_peer_connected ─► CONNECTION-ID, or 447
//!  peer   ── handle_peer_accepted ────────────────────────────────────► ConnectionAttempt
//!  client ── ConnectionBind, on a connection of its own ─► BindPeer: its bytes are the peer's from now on
//! ```
//!
//! A connection waits for thirty seconds to be made, and as long to be bound. Its id is good once, for the owner of the
//! allocation, and says which shard has it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ahash::RandomState;

use crate::access::{Denied, DeniedRule, PermittedPeer};
use crate::base::{FiveTuple, Now, RelayTransport};
use crate::wire::{ErrorCode, Message, Method, Response, TransactionId};

use super::Output;
use super::allocation::{Allocation, AllocationId};
use super::auth::Authenticated;
use super::flight::What;
use super::limits::nanos;
use super::reject::Reject;
use super::server::Server;
use super::stats::{Direction, DropReason, Path};

/// How long a connection with a peer may take to be made, and then to be bound (RFC 6062 §5.2, §5.3).
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Names a connection with a peer among those of all shards: CONNECTION-ID (RFC 6062 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u32);

/// Bits of an id that chance decides; the others are the shard.
const RANDOM_BITS: u32 = 25;

impl ConnectionId {
    /// The shard whose server made it.
    pub const fn shard(self) -> u8 {
        (self.0 >> RANDOM_BITS) as u8
    }
}

/// A connection with a peer, made or to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerConnection {
    pub id: ConnectionId,
    peer: PermittedPeer,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The answer to a Connect waits for it.
    Connecting {
        until: Instant,
        transaction: TransactionId,
        fingerprint: bool,
    },
    /// It waits for ConnectionBind.
    Waiting { until: Instant },
    /// A connection of the client carries its data.
    Bound,
}

impl PeerConnection {
    /// When it ends by itself.
    pub const fn until(&self) -> Option<Instant> {
        match self.state {
            State::Connecting { until, .. } | State::Waiting { until } => Some(until),
            State::Bound => None,
        }
    }
}

/// Whose connections there are.
#[derive(Debug)]
pub(super) struct Connections {
    owners: HashMap<ConnectionId, AllocationId, RandomState>,
    /// How many ids were made.
    made: u64,
    shard: u8,
    /// There are no new ones any more: whoever would bind them finds another process.
    closed: bool,
}

impl Connections {
    pub fn new(hasher: RandomState) -> Self {
        Self {
            owners: HashMap::with_hasher(hasher),
            made: 0,
            shard: 0,
            closed: false,
        }
    }

    /// Takes no new ones from now on.
    pub const fn close(&mut self) {
        self.closed = true;
    }
}

impl Allocation {
    /// Whether another process can go on with it: connections are sockets of this one, and who is nowhere comes back to it or
    /// not at all.
    pub fn moves(&self) -> bool {
        self.relay_transport == RelayTransport::Udp && !self.is_adrift()
    }

    /// Takes out the connections whose time is over.
    pub fn take_late_connections(&mut self, now: Instant) -> Vec<PeerConnection> {
        let late = |connection: &mut PeerConnection| connection.until().is_some_and(|at| at <= now);
        self.connections.extract_if(.., late).collect()
    }
}

impl Server {
    /// Says which of the shards this is, for ids that lead back to it; less than 128.
    pub fn set_shard(&mut self, shard: u8) {
        self.connections.shard = shard;
        self.tickets.shard = shard;
    }

    /// Whether the client on `five_tuple` has an allocation that relays connections.
    pub fn has_tcp_allocation(&self, five_tuple: FiveTuple) -> bool {
        let id = self.by_five_tuple.get(&five_tuple);
        id.and_then(|id| self.allocations.get(*id))
            .is_some_and(|allocation| allocation.relay_transport == RelayTransport::Tcp)
    }

    /// What became of `Output::ConnectPeer`. Nothing happens if nobody waits for it any more.
    pub fn handle_peer_connected(&mut self, now: Now, connection: ConnectionId, connected: bool) {
        let now = self.advance(now);
        let Some((id, made)) = self.connection(connection) else {
            return;
        };
        let State::Connecting {
            transaction,
            fingerprint,
            ..
        } = made.state
        else {
            return;
        };
        if !connected {
            self.take_connection(now, id, connection);
            self.note(id, What::ConnectFailed, Some(made.peer.address()));
            self.fail_connection(id, &made, ErrorCode::ConnectionTimeoutOrFailure);
            return;
        }
        let until = now.mono + CONNECTION_TIMEOUT;
        let hash = self.hasher.hash_one(made.peer.address());
        self.touch(now, id, |allocation| {
            if let Some(made) = find_mut(allocation, connection) {
                made.state = State::Waiting { until };
            }
            if let Some(contacts) = &mut allocation.contacts {
                contacts.answers(hash);
            }
        });
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let (five_tuple, key) = (allocation.five_tuple, allocation.key);
        let answer = Response::success(Method::Connect, transaction).connection_id(connection.0);
        (self.stats).answered(Method::Connect, five_tuple.transport(), Ok(()));
        self.answer(five_tuple, answer.finish(Some(&key), fingerprint));
    }

    /// `peer` has connected to the relayed address of `to` (RFC 6062 §5.3). `own` is whether it is a relayed address of
    /// this server. `None`: close it, the client hears nothing.
    pub fn handle_peer_accepted(
        &mut self,
        now: Now,
        to: AllocationId,
        peer: SocketAddr,
        own: bool,
    ) -> Option<ConnectionId> {
        let now = self.advance(now);
        let admitted = self.admit_connection(now, to, peer, own);
        let peer = match admitted {
            Ok(peer) => peer,
            Err(reason) => {
                self.stats.drop(reason);
                return None;
            }
        };
        let until = now.mono + CONNECTION_TIMEOUT;
        let connection = self.add_connection(now, to, peer, State::Waiting { until });
        let allocation = self.allocations.get(to)?;
        let (five_tuple, fingerprint) = (allocation.five_tuple, allocation.fingerprint);
        let mut transaction = [0; 12];
        transaction[..4].copy_from_slice(&connection.0.to_be_bytes());
        let number = self.connections.made ^ self.seed.hash[0];
        transaction[4..].copy_from_slice(&number.to_be_bytes());
        let transaction = TransactionId(transaction);
        let attempt = Response::connection_attempt(transaction, peer.address(), connection.0);
        self.answer(five_tuple, attempt.finish(None, fingerprint));
        Some(connection)
    }

    /// Either end of `connection` is gone, and the other with it.
    pub fn handle_connection_closed(&mut self, now: Now, connection: ConnectionId) {
        let now = self.advance(now);
        if let Some(&id) = self.connections.owners.get(&connection) {
            self.take_connection(now, id, connection);
            self.forget_owner(connection);
        }
    }

    /// How long to wait until more data of `connection` may be read that goes in `direction`; `None` is now.
    pub fn stream_pause(
        &mut self,
        now: Now,
        connection: ConnectionId,
        direction: Direction,
    ) -> Option<Duration> {
        let now = self.advance(now);
        let at = nanos(now.mono.saturating_duration_since(self.started));
        let id = self.connections.owners.get(&connection)?;
        let allocation = self.allocations.get_mut(*id)?;
        let rates = self.rates.of(allocation.scope, allocation.throttled);
        let police = allocation.police.as_mut()?;
        (police.pause(rates, &mut self.purses, at, direction)).map(Duration::from_nanos)
    }

    /// Counts data of `connection` that was read at once.
    pub fn count_stream(
        &mut self,
        now: Now,
        connection: ConnectionId,
        direction: Direction,
        bytes: usize,
    ) {
        let now = self.advance(now);
        let elapsed = now.mono.saturating_duration_since(self.started);
        let id = self.connections.owners.get(&connection);
        let Some(allocation) = id.and_then(|id| self.allocations.get_mut(*id)) else {
            return;
        };
        let rates = self.rates.of(allocation.scope, allocation.throttled);
        if let Some(police) = &mut allocation.police {
            let at = nanos(elapsed);
            police.spend(rates, &mut self.purses, at, direction, bytes as u64);
        }
        allocation.count(direction, elapsed.as_secs() as u32, bytes);
        self.stats.relayed[direction as usize][Path::Kernel as usize].add(bytes);
    }

    /// Whether connections are relayed at all.
    pub(super) const fn relays_connections(&self) -> bool {
        self.settings.protocol.tcp_allocations
    }

    /// Connect (RFC 6062 §5.2). `None`: the answer follows once the peer has accepted, or has not.
    pub(super) fn connect(
        &mut self,
        now: Now,
        id: Option<AllocationId>,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<Option<Response>, Reject> {
        let (id, allocation) = self.owned(id, authenticated)?;
        self.refuse_unknown(message, Method::Connect)?;
        if allocation.relay_transport != RelayTransport::Tcp {
            return Err(Reject::RelayTransport);
        }
        let Some(peer) = message.peer_addresses().next().transpose()? else {
            return Err(Reject::BadRequest("XOR-PEER-ADDRESS is missing"));
        };
        if (allocation.connections.iter()).any(|made| made.peer.address() == peer) {
            return Err(Reject::ConnectionExists);
        }
        if !allocation.same_family(peer) {
            return Err(Reject::PeerFamily);
        }
        let itself = allocation.relayed().is_some_and(|own| own.0 == peer);
        let permitted = match (self.access.peers).permit_within(allocation.scope, peer) {
            Ok(permitted) if !itself => permitted,
            Ok(_) => {
                let rule = DeniedRule::OwnAddress;
                return Err(self.denied(id, peer, Denied { rule }));
            }
            Err(denied) => return Err(self.denied(id, peer, denied)),
        };
        let Some(allocation) = self.allocations.get(id) else {
            return Err(Reject::NoAllocation);
        };
        let full = allocation.connections.len() >= self.settings.connections_per_allocation;
        if full || self.connections.closed {
            return Err(Reject::Capacity);
        }
        let permissions = allocation.permissions.len() + 1;
        self.expect_peers(now, id, permissions);
        let hash = self.hasher.hash_one(peer);
        let contacts = (self.allocations.get(id)).and_then(|a| a.contacts.as_deref());
        if !contacts.is_some_and(|contacts| contacts.knows(hash)) {
            if !self.admits_new_peers(now, id, 1) {
                return Err(Reject::NewPeers);
            }
            self.remember_peer(id, peer, false);
        }
        let state = State::Connecting {
            until: now.mono + CONNECTION_TIMEOUT,
            transaction: message.transaction_id(),
            fingerprint: message.has_fingerprint(),
        };
        let connection = self.add_connection(now, id, permitted, state);
        self.output(Output::ConnectPeer {
            connection,
            allocation: id,
            peer: permitted,
        });
        Ok(None)
    }

    /// ConnectionBind (RFC 6062 §5.4), once for each id.
    pub(super) fn connection_bind(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<Response, Reject> {
        if !from.transport().is_stream() {
            return Err(Reject::BadRequest("data takes a TCP or TLS connection"));
        }
        self.refuse_unknown(message, Method::ConnectionBind)?;
        let Some(connection) = message.connection_id()?.map(ConnectionId) else {
            return Err(Reject::BadRequest("CONNECTION-ID is missing"));
        };
        if self.by_five_tuple.contains_key(&from) {
            return Err(Reject::BadRequest("this connection has an allocation"));
        }
        const NONE: Reject = Reject::BadRequest("no such connection waits");
        let (id, made) = self.connection(connection).ok_or(NONE)?;
        let allocation = self.allocations.get(id).ok_or(NONE)?;
        authenticated.owns(allocation)?;
        match made.state {
            State::Waiting { until } if until > now.mono && allocation.expires > now.mono => {}
            State::Waiting { .. } | State::Connecting { .. } | State::Bound => return Err(NONE),
        }
        self.touch(now, id, |allocation| {
            if let Some(made) = find_mut(allocation, connection) {
                made.state = State::Bound;
            }
        });
        self.output(Output::BindPeer {
            connection,
            five_tuple: from,
        });
        let transaction = message.transaction_id();
        Ok(Response::success(Method::ConnectionBind, transaction))
    }

    /// The allocation of the connection that a ConnectionBind names: its owner is recognized by its key.
    pub(super) fn connection_owner(&self, message: &Message<'_>) -> Option<&Allocation> {
        let connection = ConnectionId(message.connection_id().ok()??);
        let (id, _) = self.connection(connection)?;
        self.allocations.get(id)
    }

    /// Judges the connections of `id` by the policy in force; those that it forbids are closed.
    pub(super) fn judge_connections(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let scope = allocation.scope;
        let judged: Vec<_> = (allocation.connections.iter())
            .map(|made| {
                let judged = (self.access.peers).permit_within(scope, made.peer.address());
                (*made, judged)
            })
            .collect();
        for (made, judged) in judged {
            match judged {
                Ok(peer) => {
                    if let Some(made) = (self.allocations.get_mut(id))
                        .and_then(|allocation| find_mut(allocation, made.id))
                    {
                        made.peer = peer;
                    }
                }
                Err(denied) => {
                    self.count_denied(id, made.peer.address(), denied);
                    self.take_connection(now, id, made.id);
                    self.fail_connection(id, &made, ErrorCode::Forbidden);
                }
            }
        }
    }

    /// The last of a connection that its allocation does not have any more: it is closed, and a Connect that waits for it
    /// is answered with `code`.
    pub(super) fn fail_connection(
        &mut self,
        id: AllocationId,
        made: &PeerConnection,
        code: ErrorCode,
    ) {
        self.forget_connection(made.id);
        let State::Connecting {
            transaction,
            fingerprint,
            ..
        } = made.state
        else {
            return;
        };
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let (five_tuple, key) = (allocation.five_tuple, allocation.key);
        let answer = Response::error(Method::Connect, transaction, code);
        (self.stats).answered(Method::Connect, five_tuple.transport(), Err(code));
        self.answer(five_tuple, answer.finish(Some(&key), fingerprint));
    }

    /// Closes a connection that its allocation does not have any more.
    pub(super) fn forget_connection(&mut self, connection: ConnectionId) {
        self.forget_owner(connection);
        self.output(Output::ClosePeer { connection });
    }

    fn forget_owner(&mut self, connection: ConnectionId) {
        if self.connections.owners.remove(&connection).is_some() {
            self.stats.connections -= 1;
        }
    }

    /// Whether a connection from `peer` may wait for the client of `to`.
    fn admit_connection(
        &mut self,
        now: Now,
        to: AllocationId,
        peer: SocketAddr,
        own: bool,
    ) -> Result<PermittedPeer, DropReason> {
        let Some(allocation) = self.allocations.get_mut(to) else {
            return Err(DropReason::NoAllocation);
        };
        if allocation.expires <= now.mono || allocation.relay_transport != RelayTransport::Tcp {
            return Err(DropReason::NoAllocation);
        }
        if (allocation.permitted_until(peer.ip(), now.mono)).is_none() {
            return Err(DropReason::NoPermission);
        }
        let permitted = match (self.access.peers).permit_within(allocation.scope, peer) {
            Ok(permitted) => permitted,
            Err(denied) => {
                self.stats.peer_denied[denied.rule as usize] += 1;
                return Err(DropReason::PeerDenied);
            }
        };
        // From a port of our relayed addresses comes nobody but an allocation.
        if !permitted.may_use_kernel() && !own {
            return Err(DropReason::NoRelay);
        }
        let full = allocation.connections.len() >= self.settings.connections_per_allocation;
        if full || self.connections.closed {
            return Err(DropReason::Connections);
        }
        if let Some(contacts) = &mut allocation.contacts {
            contacts.answers(self.hasher.hash_one(peer));
        }
        Ok(permitted)
    }

    /// Adds a connection under an id of its own.
    fn add_connection(
        &mut self,
        now: Now,
        id: AllocationId,
        peer: PermittedPeer,
        state: State,
    ) -> ConnectionId {
        let shard = u32::from(self.connections.shard) << RANDOM_BITS;
        let connection = loop {
            self.connections.made = self.connections.made.wrapping_add(1);
            let [salt, ..] = self.seed.hash;
            let number = self.nonces.number(salt, self.connections.made);
            let connection = ConnectionId(shard | number >> (u32::BITS - RANDOM_BITS));
            if !self.connections.owners.contains_key(&connection) {
                break connection;
            }
        };
        self.connections.owners.insert(connection, id);
        self.stats.connections += 1;
        self.touch(now, id, |allocation| {
            allocation.connections.push(PeerConnection {
                id: connection,
                peer,
                state,
            });
        });
        connection
    }

    fn connection(&self, connection: ConnectionId) -> Option<(AllocationId, PeerConnection)> {
        let id = *self.connections.owners.get(&connection)?;
        let allocation = self.allocations.get(id)?;
        let made = (allocation.connections.iter()).find(|made| made.id == connection)?;
        Some((id, *made))
    }

    /// Takes a connection out of its allocation.
    fn take_connection(&mut self, now: Now, id: AllocationId, connection: ConnectionId) {
        self.touch(now, id, |allocation| {
            (allocation.connections).retain(|made| made.id != connection);
        });
    }
}

fn find_mut(allocation: &mut Allocation, connection: ConnectionId) -> Option<&mut PeerConnection> {
    (allocation.connections.iter_mut()).find(|made| made.id == connection)
}
