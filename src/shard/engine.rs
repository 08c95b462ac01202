//! One shard's state and the way of every datagram through it.

mod capturing;
mod change;
mod departures;
mod dtls;
mod errors;
mod handover;
mod moves;
mod payload;
mod telling;
mod vantages;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::access::{Access, PermittedPeer, Scope, Wanted};
use crate::base::{Clock, Family, FiveTuple, ListenerId, Now, Pii, RelayTransport, Transport};
use crate::net::{Batch, HEADROOM, IpFields, Outgoing, Poller, RecvFault, TAILROOM, UdpSocket};
use crate::records::Emitter;
use crate::turn::{
    AllocationId, DropReason, Forward, FromPeer, Output, Path, Seed, Server, Settings,
};
use crate::wire;

use super::budgets::{Budgets, Purses};
use super::capturing::Taps;
use super::connections::Connections;
use super::dtls::{Dtls, Sessions, Speaks};
use super::hairpin::{self, Datagram, Hairpin, Parcel, Parcels};
use super::handover::Start;
use super::ports::RelayPool;
use super::relays::{Asked, Owner, Relays, Reports, of_token, slot_of};
use super::steering::Steering;
use super::streams::{Client, STREAM_CREDIT, ToStream};
use super::trains::Trains;
use departures::count_posted;
use moves::Guest;
use payload::{Payload, received_at};
use telling::log_ended;

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
    pub dtls: Dtls,
    /// What is spoken on each of `sockets`.
    pub speaks: Vec<Speaks>,
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
    speaks: Speaks,
    /// The last call filled every slot: there is probably more.
    full: bool,
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
    /// Relay sockets that tell of no errors, and until when.
    silent: Vec<(Instant, AllocationId, Family)>,
    /// Peers of datagrams that are too large for the first link and not to be cut up.
    unsent: Vec<(AllocationId, SocketAddr)>,
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
    /// Clients whose datagrams come to one shard and whose allocation another one has.
    steering: Steering,
    /// Whether what is handled was passed on by another shard, and for this one.
    guest: Guest,
    /// Where the connection goes that is being read.
    pub(super) departure: Option<u8>,
    pub(super) streams: HashMap<FiveTuple, Rc<Client>, RandomState>,
    pub(super) stream_connections: [u64; Transport::ALL.len()],
    pub(super) stream_idle: Duration,
    /// Nothing is read, because another process may be about to go on.
    pub(super) frozen: bool,
    records: Option<Emitter>,
    pub(super) dtls: Sessions,
    /// Frames that stream clients may still have handled before it is the sockets' turn.
    pub(super) stream_credit: usize,
    /// The deadline that the loop sleeps until; an earlier one has to wake it.
    armed: Option<Instant>,
    pub(super) wake: Rc<Notify>,
    /// TCP allocations' sockets.
    pub(super) connections: Connections,
    pub(super) taps: Taps,
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
        let reports = Reports::of(&parts.turn.protocol);
        for socket in &parts.sockets {
            socket.report_tos(reports.tos);
        }
        let discovery = parts.turn.protocol.nat_discovery.clone();
        let (snapshot, estate) = parts.start.map(Start::split).unzip();
        let server = match snapshot {
            None => Server::new(now, parts.turn, parts.seed, parts.access),
            Some(snapshot) => {
                let families = parts.seed.families;
                Server::restore(now, parts.turn, families, parts.access, snapshot)
            }
        };
        let mut shard = Self {
            index: parts.index,
            server,
            // A stream fills one slot, with as many datagrams as one call sends.
            batches: [Batch::new(SLOTS), Batch::new(SLOTS)],
            current: DATAGRAMS,
            listeners: (parts.sockets.into_iter())
                .zip(
                    parts
                        .speaks
                        .into_iter()
                        .chain(std::iter::repeat(Speaks::default())),
                )
                .map(|(socket, speaks)| Some(Listener::new(socket, speaks)))
                .collect(),
            listener_buffer_bytes: parts.listener_buffer_bytes,
            drops_of_closed: 0,
            endpoints: Vec::new(),
            poller,
            relays: Relays::new(
                parts.index,
                parts.relay_buffer_bytes,
                reports,
                parts.pools,
                keyed(),
            ),
            silent: Vec::new(),
            unsent: Vec::new(),
            purses: Purses::new(parts.budgets),
            to_peers: Vec::with_capacity(GATHER),
            run: Vec::with_capacity(GATHER),
            to_streams: Vec::with_capacity(GATHER),
            scattered: false,
            turns: 0,
            segmentation_fallbacks: 0,
            parcels: parts.parcels,
            steering: Steering::new(keyed()),
            guest: Guest::None,
            departure: None,
            streams: HashMap::with_hasher(keyed()),
            stream_connections: [0; Transport::ALL.len()],
            stream_idle: parts.stream_idle,
            frozen: false,
            records: parts.records,
            dtls: Sessions::new(parts.dtls, now.mono, keyed()),
            stream_credit: STREAM_CREDIT,
            armed: None,
            wake,
            connections: Connections::new(keyed()),
            taps: Taps::default(),
            itself: Weak::new(),
        };
        shard.server.set_shard(shard.index);
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
        if !self.silent.is_empty() {
            self.end_silence(now.mono);
        }
        let mut filled = 0;
        let mut from_relays = 0;
        for index in 0..self.poller.tokens().len() {
            let Some(&token) = self.poller.tokens().get(index) else {
                break;
            };
            if token & LISTENER == 0 {
                let (id, family) = of_token(token);
                let before = filled;
                if self.poller.has_error(index) {
                    self.receive_errors(now, (id, family), None);
                }
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
        self.look_at_sessions(now);
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
        let speaks = listener.speaks;
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
                let payload = received_at(slot, &range, received.tos);
                if !speaks.is_plain() && self.takes(now, speaks, from, payload) {
                    continue;
                }
                match self.steering.away(from) {
                    None => self.client_input(now, from, payload),
                    Some(way) => self.pass_on(from, way, payload),
                }
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
                self.peer_input(now, id, from, received_at(slot, &range, received.tos));
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
        for (slot, datagram) in parcel.datagrams().enumerate() {
            let hairpin = match datagram {
                Datagram::Hairpin(hairpin) => hairpin,
                Datagram::Passed(passed) => {
                    self.guest_input(now, parcel.home() as u8, &passed, slot);
                    continue;
                }
            };
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
            let payload = received_at(slot, &(0..length), hairpin.tos);
            self.peer_input(now, id, from, payload);
        }
        self.flush();
        self.parcels.give_back(parcel);
    }

    /// A frame that a stream client sent, in the slot of the stream batch at `start`.
    pub(super) fn stream_input(&mut self, now: Now, from: FiveTuple, start: usize, length: usize) {
        self.current = STREAM;
        if !self.silent.is_empty() {
            self.end_silence(now.mono);
        }
        self.make_room();
        let frame = Payload {
            slot: 0,
            start,
            length,
            // What is in front of it is another frame.
            room: 0,
            // Those of the connection are not those of its frames (RFC 8656 §15).
            fields: IpFields::default(),
        };
        self.client_input(now, from, frame);
    }

    /// What a client sent.
    fn client_input(&mut self, now: Now, from: FiveTuple, message: Payload) {
        let bytes = message.bytes(&self.batches[self.current]);
        let forward = self.server.handle_input(now, from, bytes);
        self.tap_client(now, from, message, &forward);
        self.settle(now);
        match forward {
            Forward::ToPeer {
                allocation,
                peer,
                payload,
                dont_fragment,
            } => {
                let mut payload = message.part(payload);
                payload.fields.dont_fragment = dont_fragment;
                self.to_peer(now, allocation, peer, payload);
                // The first that a client sends from where it moved to.
                if self.server.has_outputs() {
                    self.drain_outputs(now);
                }
            }
            Forward::ToShard { shard } => self.redirect(from, message, shard),
            Forward::ToClient { .. } => debug_assert!(false, "clients do not talk to clients"),
            Forward::Consumed => self.drain_outputs(now),
            Forward::Drop(reason) => {
                tracing::trace!(client = %Pii(from.client()), reason = reason.label(), "dropped");
                // A datagram that limits took may have said all the same that its client has moved, and what is abuse brings a
                // deadline forward.
                if self.server.has_outputs() || reason == DropReason::Abuse {
                    self.drain_outputs(now);
                }
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
                tos: payload.fields.tos,
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
                fields: payload.fields,
            },
        });
    }

    /// What a peer sent to the relayed address of `id`.
    fn peer_input(&mut self, now: Now, id: AllocationId, from: FromPeer, payload: Payload) {
        let bytes = payload.bytes(&self.batches[self.current]);
        let forward = self.server.handle_peer_input(now, id, from, bytes);
        self.tap_peer(now, id, from, payload, &forward);
        self.settle(now);
        let (five_tuple, header) = match forward {
            Forward::ToClient { five_tuple, header } => (five_tuple, header),
            Forward::ToPeer { .. } | Forward::ToShard { .. } => {
                debug_assert!(false, "peers do not talk to peers");
                return;
            }
            Forward::Consumed => return,
            Forward::Drop(reason) => {
                tracing::trace!(peer = %Pii(from.peer), reason = reason.label(), "dropped");
                if reason == DropReason::Abuse {
                    self.drain_outputs(now);
                }
                return;
            }
        };
        match self.endpoints.get(usize::from(five_tuple.listener().0)) {
            Some(Endpoint::Udp { .. }) if five_tuple.transport() == Transport::Dtls => {
                self.seal(five_tuple, payload, &header);
            }
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
                    let (relays, poller) = (&mut self.relays, &self.poller);
                    let opened = match transport {
                        RelayTransport::Udp => relays.open(now.mono, asked, poller),
                        RelayTransport::Tcp => {
                            (self.connections).listen(now.mono, asked, relays, poller)
                        }
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
                    self.taps.end(ended.view.id);
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
                Output::MoveClient { id, client } => self.move_client(id, client),
                Output::Left { five_tuple } => self.left(five_tuple),
            }
        }
        self.taps.forget_ended();
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
        let sessions = self.dtls.next().map(|(at, _)| at);
        self.armed = (self.server.poll_timeout().into_iter().chain(sessions)).min();
        self.armed
    }

    pub(super) fn handle_timeout(&mut self) {
        let now = Clock.now();
        self.server.handle_timeout(now);
        self.drain_outputs(now);
        self.look_at_sessions(now);
    }
}

/// A hash that strangers cannot aim at: they choose the keys.
fn keyed() -> RandomState {
    let [a, b, c, d] = rand::random();
    RandomState::with_seeds(a, b, c, d)
}
