//! One shard's state and the way of every datagram through it.

mod change;
mod departures;
mod handover;
mod vantages;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::access::{Access, PermittedPeer, Scope, Wanted};
use crate::base::{Clock, Family, FiveTuple, ListenerId, Now, Pii, RelayTransport, Transport};
use crate::metrics::ShardSnapshot;
use crate::net::{Batch, HEADROOM, Outgoing, Poller, RecvFault, TAILROOM, UdpSocket};
use crate::records::{Due, Emitter};
use crate::turn::{
    AllocationId, Direction, DropReason, EndReason, Ended, Forward, FromPeer, Output, Path, Seed,
    Server, Settings,
};
use crate::wire;

use super::budgets::{Budgets, Purses};
use super::connections::Connections;
use super::hairpin::{self, Hairpin, Parcel, Parcels};
use super::handover::Start;
use super::ports::RelayPool;
use super::relays::{Asked, Owner, Relays, of_token, slot_of};
use super::streams::{Client, STREAM_CREDIT, ToStream};
use super::trains::Trains;
use departures::count_posted;

/// What a shard is made of.
pub(super) struct Parts {
    pub index: u8,
    pub sockets: Vec<UdpSocket>,
    pub listener_buffer_bytes: usize,
    pub relay_buffer_bytes: usize,
    /// The pools of relayed addresses in use: the last one is where new ones come from.
    pub pools: Vec<Arc<RelayPool>>,
    pub budgets: Arc<Budgets>,
    pub parcels: Parcels,
    pub stream_idle: Duration,
    pub records: Option<Emitter>,
    pub turn: Settings,
    pub seed: Seed,
    pub access: Arc<Access>,
    /// What another process left of this shard.
    pub start: Option<Start>,
}

/// Datagrams one batch holds.
pub(super) const SLOTS: usize = 64;

/// Datagrams that gather before they leave; a slot may hold many.
const GATHER: usize = 256;

/// Sockets one look at the poller reports.
const EVENTS: usize = 64;

/// Marks the poller's tokens of listeners; the others are allocation ids.
const LISTENER: u64 = 1 << 63;

/// Local addresses a shard tells apart. A client beyond it is answered from the address that routing chooses.
const ENDPOINTS: usize = 4096;

/// Index of the batch for datagrams.
const DATAGRAMS: usize = 0;

/// Index of the batch whose one slot holds what a stream is reading.
pub(super) const STREAM: usize = 1;

// Every datagram of a parcel gets a slot.
const _: () = assert!(hairpin::DATAGRAMS <= SLOTS);

// What the core writes around relayed data has to fit into what the slots keep free for it.
const _: () = assert!(HEADROOM >= wire::HEADROOM && TAILROOM >= wire::TAILROOM);

/// A server transport address that clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Endpoint {
    /// A UDP listener, and the local address asked where it is bound to a wildcard.
    Udp {
        socket: usize,
        local: Option<IpAddr>,
    },
    /// The local end of connections.
    Stream(SocketAddr),
    /// Of a listener that is closed.
    Free,
}

struct Listener {
    socket: UdpSocket,
    outgoing: Vec<Outgoing>,
    trains: Trains,
    /// The last call filled every slot: there is probably more.
    full: bool,
}

/// Where application data lies in the current batch.
#[derive(Clone, Copy)]
struct Payload {
    slot: u16,
    start: usize,
    length: usize,
    /// Bytes in front that nobody else needs: a header that fits is written there.
    room: usize,
}

/// A datagram on its way to a peer, waiting for the batch to be complete.
#[derive(Clone, Copy)]
struct ToPeer {
    relay_slot: u32,
    /// Keeps datagrams of one relay in order.
    sequence: u32,
    outgoing: Outgoing,
}

/// One shard's state. Stream tasks of the same thread share it; nobody holds it across an await.
pub(super) struct Shard {
    pub(super) index: u8,
    pub(super) server: Server,
    pub(super) batches: [Batch; 2],
    /// Which batch `to_peers` and the listeners' `outgoing` refer to.
    current: usize,
    /// In the slots that their numbers name; those that are closed stay empty.
    listeners: Vec<Option<Listener>>,
    listener_buffer_bytes: usize,
    /// Datagrams the kernel dropped on listeners that are closed by now.
    drops_of_closed: u64,
    endpoints: Vec<Endpoint>,
    pub(super) poller: Poller,
    pub(super) relays: Relays,
    purses: Purses,
    to_peers: Vec<ToPeer>,
    run: Vec<Outgoing>,
    /// Frames for stream clients, waiting for the batch to be complete.
    to_streams: Vec<ToStream>,
    /// Frames of one client may lie apart in `to_streams`.
    scattered: bool,
    /// Looks at the sockets so far.
    turns: u32,
    segmentation_fallbacks: u64,
    pub(super) parcels: Parcels,
    pub(super) streams: HashMap<FiveTuple, Rc<Client>, RandomState>,
    pub(super) stream_connections: [u64; Transport::ALL.len()],
    pub(super) stream_idle: Duration,
    /// Nothing is read, because another process may be about to go on.
    pub(super) frozen: bool,
    records: Option<Emitter>,
    /// Frames that stream clients may still have handled before it is the sockets' turn.
    pub(super) stream_credit: usize,
    /// The deadline that the loop sleeps until; an earlier one has to wake it.
    armed: Option<Instant>,
    pub(super) wake: Rc<Notify>,
    /// TCP allocations' sockets.
    pub(super) connections: Connections,
    /// Itself, for tasks that it starts.
    pub(super) itself: Weak<RefCell<Self>>,
}

impl Shard {
    pub(super) fn new(parts: Parts, wake: Rc<Notify>) -> std::io::Result<Self> {
        let poller = Poller::new(EVENTS)?;
        for (index, socket) in parts.sockets.iter().enumerate() {
            poller.add(socket, LISTENER | index as u64)?;
        }
        let now = Clock.now();
        let discovery = parts.turn.protocol.nat_discovery.clone();
        let (snapshot, estate) = parts.start.map(Start::split).unzip();
        let server = match snapshot {
            None => Server::new(now, parts.turn, parts.seed, parts.access),
            Some(snapshot) => {
                let families = parts.seed.families;
                Server::restore(now, parts.turn, families, parts.access, snapshot)
            }
        };
        let mut server = server;
        server.set_shard(parts.index);
        let mut shard = Self {
            index: parts.index,
            server,
            // A stream fills one slot, with as many datagrams as one call sends.
            batches: [Batch::new(SLOTS), Batch::new(SLOTS)],
            current: DATAGRAMS,
            listeners: (parts.sockets.into_iter())
                .map(|socket| Some(Listener::new(socket)))
                .collect(),
            listener_buffer_bytes: parts.listener_buffer_bytes,
            drops_of_closed: 0,
            endpoints: Vec::new(),
            poller,
            relays: Relays::new(parts.index, parts.relay_buffer_bytes, parts.pools, keyed()),
            purses: Purses::new(parts.budgets),
            to_peers: Vec::with_capacity(GATHER),
            run: Vec::with_capacity(GATHER),
            to_streams: Vec::with_capacity(GATHER),
            scattered: false,
            turns: 0,
            segmentation_fallbacks: 0,
            parcels: parts.parcels,
            streams: HashMap::with_hasher(keyed()),
            stream_connections: [0; Transport::ALL.len()],
            stream_idle: parts.stream_idle,
            frozen: false,
            records: parts.records,
            stream_credit: STREAM_CREDIT,
            armed: None,
            wake,
            connections: Connections::new(keyed()),
            itself: Weak::new(),
        };
        if let Some(estate) = estate {
            shard.move_in(estate);
        }
        shard.settle_vantages(&discovery);
        Ok(shard)
    }

    /// One bounded look at the sockets; false if none had anything.
    pub(super) fn turn(&mut self) -> bool {
        if self.poller.ready().is_empty() {
            return false;
        }
        let now = Clock.now();
        self.turns = self.turns.wrapping_add(1);
        self.current = DATAGRAMS;
        let mut filled = 0;
        let mut from_relays = 0;
        for index in 0..self.poller.tokens().len() {
            let Some(&token) = self.poller.tokens().get(index) else {
                break;
            };
            if token & LISTENER == 0 {
                let (id, family) = of_token(token);
                let before = filled;
                filled = self.receive_from_peers(now, id, family, filled);
                from_relays += filled - before;
                if filled < SLOTS {
                    continue;
                }
            } else {
                // A listener's datagrams take the slots from the first on, so what is in them has to leave.
                self.flush();
                self.receive_from_clients(now, (token & !LISTENER) as usize);
            }
            self.flush();
            filled = 0;
        }
        self.flush();
        self.even_out(now, from_relays);
        if (self.server.poll_timeout()).is_some_and(|deadline| deadline <= now.mono) {
            self.server.handle_timeout(now);
            self.drain_outputs(now);
        }
        true
    }

    /// Reads listeners that had more to give until clients have had their say as often as peers. One socket speaks for
    /// all clients, and many sockets for the peers: a turn that reads each of them once would starve the clients.
    fn even_out(&mut self, now: Now, from_relays: usize) {
        for index in 0..self.listeners.len() {
            let mut taken = SLOTS;
            while taken <= from_relays && self.listener(index).is_some_and(|listener| listener.full)
            {
                self.receive_from_clients(now, index);
                self.flush();
                taken += SLOTS;
            }
            if let Some(Some(listener)) = self.listeners.get_mut(index) {
                listener.full = false;
            }
        }
    }

    fn receive_from_clients(&mut self, now: Now, index: usize) {
        let Some(Some(listener)) = self.listeners.get_mut(index) else {
            return;
        };
        let count = match self.batches[DATAGRAMS].receive(&listener.socket, 0) {
            Ok(count) => count,
            Err(RecvFault::Dead { errno }) => {
                tracing::error!(address = %listener.socket.local_addr(), errno, "a listener died");
                self.poller.remove(&listener.socket);
                return;
            }
        };
        listener.full = count == SLOTS;
        let switch = (listener.trains).observe(self.batches[DATAGRAMS].all_received(0..count));
        if let Some(on) = switch
            && listener.socket.take_trains(on).is_err()
        {
            listener.trains.give_up();
        }
        for slot in 0..count {
            let received = self.batches[DATAGRAMS].received(slot);
            let listener = self.intern(Endpoint::Udp {
                socket: index,
                local: received.local,
            });
            let from = FiveTuple::new(Transport::Udp, received.from, listener);
            for range in received.datagrams() {
                self.make_room();
                let payload = received_at(slot, &range);
                self.client_input(now, from, payload);
            }
        }
    }

    /// Drains one relay socket into the slots from `first` on; how many slots are filled then.
    fn receive_from_peers(
        &mut self,
        now: Now,
        id: AllocationId,
        family: Family,
        first: usize,
    ) -> usize {
        let Some(relay) = self.relays.get_mut(id, family) else {
            self.accept_peers(now, id);
            return first;
        };
        let batch = &mut self.batches[DATAGRAMS];
        let received = if relay.expects_more(self.turns) {
            batch.receive(&relay.socket, first)
        } else {
            batch.receive_one(&relay.socket, first).map(usize::from)
        };
        let count = match received {
            Ok(count) => count,
            Err(RecvFault::Dead { .. }) => {
                self.server.handle_relay_failed(now, id, family);
                self.drain_outputs(now);
                return first;
            }
        };
        relay.observe(batch, first..first + count, self.turns);
        for slot in first..first + count {
            let received = self.batches[DATAGRAMS].received(slot);
            let from = FromPeer {
                peer: self.relays.as_seen(received.from),
                path: Path::Kernel,
                scope: Scope::Policy,
            };
            for range in received.datagrams() {
                self.make_room();
                self.peer_input(now, id, from, received_at(slot, &range));
            }
        }
        first + count
    }

    /// Sends what has gathered if there is a lot.
    fn make_room(&mut self) {
        let gathered = (self.listeners.iter().flatten()).map(|listener| listener.outgoing.len());
        let single = self.to_peers.len().max(self.to_streams.len());
        if single >= GATHER || gathered.max().is_some_and(|most| most >= GATHER) {
            self.flush();
        }
    }

    /// Application data that another shard relayed to our relayed addresses.
    pub(super) fn receive_parcel(&mut self, parcel: Box<Parcel>) {
        let now = Clock.now();
        self.current = DATAGRAMS;
        for (slot, hairpin) in parcel.datagrams().enumerate() {
            let Some(Owner::Here(id)) = self.relays.find(hairpin.to) else {
                self.server.count_drop(DropReason::NoRelay, 1);
                continue;
            };
            let length = hairpin.payload.len();
            let buffer = self.batches[DATAGRAMS].buffer_mut(slot);
            let Some(target) = buffer.get_mut(HEADROOM..HEADROOM + length) else {
                continue;
            };
            target.copy_from_slice(hairpin.payload);
            let from = FromPeer {
                peer: hairpin.from,
                path: Path::Hairpin,
                scope: hairpin.scope,
            };
            let payload = received_at(slot, &(0..length));
            self.peer_input(now, id, from, payload);
        }
        self.flush();
        self.parcels.give_back(parcel);
    }

    /// A frame that a stream client sent, in the slot of the stream batch at `start`.
    pub(super) fn stream_input(&mut self, now: Now, from: FiveTuple, start: usize, length: usize) {
        self.current = STREAM;
        self.make_room();
        let frame = Payload {
            slot: 0,
            start,
            length,
            // What is in front of it is another frame.
            room: 0,
        };
        self.client_input(now, from, frame);
    }

    /// What a client sent.
    fn client_input(&mut self, now: Now, from: FiveTuple, message: Payload) {
        let bytes = message.bytes(&self.batches[self.current]);
        let forward = self.server.handle_input(now, from, bytes);
        self.settle(now);
        match forward {
            Forward::ToPeer {
                allocation,
                peer,
                payload,
            } => {
                let payload = message.part(payload);
                self.to_peer(now, allocation, peer, payload);
            }
            Forward::ToClient { .. } => debug_assert!(false, "clients do not talk to clients"),
            Forward::Consumed => self.drain_outputs(now),
            Forward::Drop(reason) => {
                tracing::trace!(client = %Pii(from.client()), reason = reason.label(), "dropped");
            }
        }
    }

    /// Application data for a peer: in memory where the peer is a relayed address of ours, else with the next batch.
    fn to_peer(
        &mut self,
        now: Now,
        allocation: AllocationId,
        peer: PermittedPeer,
        payload: Payload,
    ) {
        let to = peer.address();
        if peer.may_be_own_relay()
            && let Some(owner) = self.relays.find(to)
        {
            let family = Family::of(to.ip());
            let Some(relayed) = self.relays.relayed(allocation, family) else {
                self.server.count_drop(DropReason::NoAllocation, 1);
                return;
            };
            let shard = match owner {
                Owner::Here(id) => {
                    if !peer.scope().is_canary() {
                        self.server.count_to_peer(Path::Hairpin, payload.length);
                    }
                    let from = FromPeer {
                        peer: relayed,
                        path: Path::Hairpin,
                        scope: peer.scope(),
                    };
                    self.peer_input(now, id, from, payload);
                    return;
                }
                Owner::Shard(shard) => shard,
                // The other process could not tell how far it reaches.
                Owner::Abroad(_) if peer.scope().is_loop() => {
                    (self.server).count_undelivered(now, allocation, to, DropReason::NoRelay);
                    return;
                }
                Owner::Abroad(local) => {
                    self.server.count_to_peer(Path::Kernel, payload.length);
                    self.gather(allocation, payload, local);
                    return;
                }
            };
            let hairpin = Hairpin {
                to,
                from: relayed,
                scope: peer.scope(),
                payload: payload.bytes(&self.batches[self.current]),
            };
            let server = &mut self.server;
            (self.parcels).pack(shard, &hairpin, |posted| count_posted(server, &posted));
            return;
        }
        if !peer.may_use_kernel() {
            (self.server).count_undelivered(now, allocation, to, DropReason::NoRelay);
            return;
        }
        if !peer.scope().is_canary() {
            self.server.count_to_peer(Path::Kernel, payload.length);
        }
        self.gather(allocation, payload, to);
    }

    /// Application data that leaves with the next batch.
    fn gather(&mut self, allocation: AllocationId, payload: Payload, to: SocketAddr) {
        self.to_peers.push(ToPeer {
            relay_slot: slot_of(allocation, Family::of(to.ip())),
            sequence: self.to_peers.len() as u32,
            outgoing: Outgoing {
                slot: payload.slot,
                start: payload.start as u32,
                len: payload.length as u32,
                to,
                from: None,
                front: None,
            },
        });
    }

    /// What a peer sent to the relayed address of `id`.
    fn peer_input(&mut self, now: Now, id: AllocationId, from: FromPeer, payload: Payload) {
        let bytes = payload.bytes(&self.batches[self.current]);
        let forward = self.server.handle_peer_input(now, id, from, bytes);
        self.settle(now);
        let (five_tuple, header) = match forward {
            Forward::ToClient { five_tuple, header } => (five_tuple, header),
            Forward::ToPeer { .. } => {
                debug_assert!(false, "peers do not talk to peers");
                return;
            }
            Forward::Consumed => return,
            Forward::Drop(reason) => {
                tracing::trace!(peer = %Pii(from.peer), reason = reason.label(), "dropped");
                return;
            }
        };
        match self.endpoints.get(usize::from(five_tuple.listener().0)) {
            Some(&Endpoint::Udp { socket, local }) => {
                let outgoing = self.framed(payload, &header);
                if let Some(Some(listener)) = self.listeners.get_mut(socket) {
                    listener.outgoing.push(Outgoing {
                        to: five_tuple.client(),
                        from: local,
                        ..outgoing
                    });
                }
            }
            Some(Endpoint::Stream(_)) => {
                let Some(client) = self.streams.get(&five_tuple).map(Rc::clone) else {
                    return;
                };
                let outgoing = self.framed(payload, &header);
                // Each relay socket is drained at once; a hairpin comes at any time.
                self.scattered |= from.path == Path::Hairpin;
                if let Some(relay) = self.relays.get_mut(id, Family::of(from.peer.ip())) {
                    relay.gathers = true;
                }
                self.to_streams.push(ToStream {
                    client,
                    sequence: self.to_streams.len() as u32,
                    outgoing,
                });
            }
            Some(Endpoint::Free) | None => {}
        }
    }

    /// Carries out what the core wants done, in order.
    pub(super) fn drain_outputs(&mut self, now: Now) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::ToClient {
                    five_tuple,
                    message,
                } => self.send_message(five_tuple, message),
                Output::OpenRelay {
                    id,
                    family,
                    even_port,
                    user,
                    realm,
                    scope,
                    client,
                    transport,
                    reserve,
                    token,
                } => {
                    let wanted = Wanted {
                        family,
                        even_port,
                        scope,
                        realm,
                    };
                    let asked = Asked {
                        id,
                        wanted,
                        user,
                        client,
                        reserve,
                        token,
                    };
                    let opened = match transport {
                        RelayTransport::Udp => self.relays.open(now.mono, asked, &self.poller),
                        RelayTransport::Tcp => (self.connections)
                            .listen(now.mono, asked, &mut self.relays, &self.poller)
                            .map(Into::into),
                    };
                    self.server.handle_relay_opened(now, id, opened);
                }
                Output::CloseRelay { id, family } => {
                    // Data that was accepted before goes out before, and not through the slot's next owner.
                    self.flush_to_peers();
                    self.relays.close(now.mono, id, family, &self.poller);
                    (self.connections).stop_listening(now.mono, id, &mut self.relays, &self.poller);
                }
                Output::Ended(ended) => {
                    log_ended(self.index, &ended);
                    if let Some(records) = &self.records {
                        records.ended(self.index, *ended);
                    }
                }
                Output::ConnectPeer {
                    connection,
                    allocation,
                    peer,
                } => self.connect_peer(now, connection, allocation, peer),
                Output::BindPeer {
                    connection,
                    five_tuple,
                } => self.connections.bind(connection, five_tuple),
                Output::ClosePeer { connection } => self.connections.close(connection),
            }
        }
        self.settle(now);
        let earlier = match (self.server.poll_timeout(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (next, _) => next.is_some(),
        };
        if earlier {
            self.wake.notify_one();
        }
    }

    /// Funds the purses that are due, which are none after most packets.
    pub(super) fn settle(&mut self, now: Now) {
        if self.server.purses_are_due() {
            self.purses.settle(now, &mut self.server);
        }
    }

    /// The id of a stream's local end.
    pub(super) fn intern_stream(&mut self, local: SocketAddr) -> Option<ListenerId> {
        let endpoint = Endpoint::Stream(local);
        let id = self.intern(endpoint);
        (self.endpoints.get(usize::from(id.0)) == Some(&endpoint)).then_some(id)
    }

    fn listener(&self, index: usize) -> Option<&Listener> {
        self.listeners.get(index)?.as_ref()
    }

    fn intern(&mut self, endpoint: Endpoint) -> ListenerId {
        let find = |wanted| self.endpoints.iter().position(|known| *known == wanted);
        let known = find(endpoint);
        if known.is_none()
            && let Some(free) = find(Endpoint::Free)
        {
            self.endpoints[free] = endpoint;
            return ListenerId(free as u16);
        }
        let index = match (known, endpoint) {
            (Some(index), _) => index,
            (None, Endpoint::Udp { socket, local }) if self.endpoints.len() >= ENDPOINTS => {
                // The table is full: an address that the host answers for but did not show before.
                tracing::debug!(?local, "too many local addresses to tell apart");
                (self.endpoints.iter())
                    .position(|e| matches!(e, Endpoint::Udp { socket: s, .. } if *s == socket))
                    .unwrap_or_default()
            }
            (None, Endpoint::Stream(_) | Endpoint::Free) if self.endpoints.len() >= ENDPOINTS => 0,
            (None, _) => {
                self.endpoints.push(endpoint);
                self.endpoints.len() - 1
            }
        };
        ListenerId(index as u16)
    }

    /// The deadline to sleep until, remembered so that an earlier one wakes the loop.
    pub(super) fn arm(&mut self) -> Option<Instant> {
        self.armed = self.server.poll_timeout();
        self.armed
    }

    pub(super) fn handle_timeout(&mut self) {
        let now = Clock.now();
        self.server.handle_timeout(now);
        self.drain_outputs(now);
    }

    pub(super) fn end_all(&mut self) {
        let now = Clock.now();
        let (views, _) = self.server.views(now, 0, usize::MAX);
        for view in views {
            (self.server).end_allocation(now, view.id, EndReason::Shutdown);
        }
        self.drain_outputs(now);
    }

    /// Lets live allocations in some slots leave a record if they are due; whether there are slots beyond.
    pub(super) fn record_live(&self, now: Now, due: Due, from: usize, count: usize) -> bool {
        let Some(records) = &self.records else {
            return false;
        };
        let (views, more) = self.server.views(now, from, count);
        for view in views {
            if let Some(sequence) = due.sequence(view.created) {
                let age = now.mono.saturating_duration_since(view.created);
                records.lives(self.index, view, age, sequence);
            }
        }
        more
    }

    pub(super) fn snapshot(&self) -> ShardSnapshot {
        let mut stats = self.server.stats().clone();
        let listeners = self.listeners.iter().flatten();
        let drops: u64 = listeners.map(|l| u64::from(l.socket.drops())).sum();
        stats.dropped[DropReason::ReceiveBuffer as usize] +=
            drops + self.drops_of_closed + self.relays.drops();
        ShardSnapshot {
            stats,
            stream_connections: self.stream_connections,
            segmentation_fallbacks: self.segmentation_fallbacks,
        }
    }
}

impl Payload {
    fn bytes(self, batch: &Batch) -> &[u8] {
        batch.bytes(usize::from(self.slot), self.start..self.start + self.length)
    }

    /// Bytes `range` of it.
    fn part(self, range: Range<u16>) -> Self {
        Self {
            start: self.start + usize::from(range.start),
            length: usize::from(range.end - range.start),
            room: self.room + usize::from(range.start),
            ..self
        }
    }
}

/// The datagram at `range` of what was received into `slot`.
fn received_at(slot: usize, range: &Range<usize>) -> Payload {
    Payload {
        slot: slot as u16,
        start: HEADROOM + range.start,
        length: range.len(),
        // In front of all but the first of a train lies the one before it.
        room: if range.start == 0 { HEADROOM } else { 0 },
    }
}

/// A hash that strangers cannot aim at: they choose the keys.
fn keyed() -> RandomState {
    let [a, b, c, d] = rand::random();
    RandomState::with_seeds(a, b, c, d)
}

/// The one line that an allocation leaves in the log.
fn log_ended(shard: u8, ended: &Ended) {
    let view = &ended.view;
    let [to_peer, to_client] = view.traffic;
    debug_assert_eq!(Direction::ALL, [Direction::ToPeer, Direction::ToClient]);
    tracing::info!(
        allocation = format_args!("{shard}-{}-{}", view.id.slot, view.id.generation),
        user = &*view.user,
        client = %Pii(view.client),
        transport = view.transport.label(),
        relayed = %view.relayed,
        additional = view.additional.map(tracing::field::display),
        duration_secs = ended.duration.as_secs_f64(),
        to_peer_bytes = to_peer.bytes,
        to_peer_packets = to_peer.packets,
        to_client_bytes = to_client.bytes,
        to_client_packets = to_client.packets,
        reason = ended.reason.label(),
        "allocation ended"
    );
}
