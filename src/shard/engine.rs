//! One shard's state and the way of every datagram through it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::RandomState;
use tokio::sync::Notify;

use crate::access::{Access, PermittedPeer};
use crate::base::{Clock, FiveTuple, ListenerId, Now, Pii, Transport};
use crate::metrics::ShardSnapshot;
use crate::net::{
    Batch, HEADROOM, Outgoing, Poller, RecvFault, SendFault, SendReport, TAILROOM, UdpSocket,
};
use crate::turn::{
    AllocationId, Direction, DropReason, EndReason, Ended, Forward, FromPeer, Output, Path, Seed,
    Server, Settings,
};
use crate::wire::{self, channel_data};

use super::mailbox::{Hairpin, Mailbox};
use super::ports::{RelayPool, Wanted};
use super::queue::Queue;
use super::relays::{Owner, Relays};

/// What a shard is made of.
pub(super) struct Parts {
    pub index: u8,
    pub sockets: Vec<UdpSocket>,
    pub relay_buffer_bytes: usize,
    pub pool: Arc<RelayPool>,
    pub neighbours: Vec<Mailbox>,
    pub turn: Settings,
    pub seed: Seed,
    pub access: Arc<Access>,
}

/// Datagrams one batch holds.
pub(super) const SLOTS: usize = 64;

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

// What the core writes around relayed data has to fit into what the slots keep free for it.
const _: () = assert!(HEADROOM >= wire::HEADROOM && TAILROOM >= wire::TAILROOM);

/// A server transport address that clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    /// A UDP listener, and the local address asked where it is bound to a wildcard.
    Udp {
        socket: usize,
        local: Option<IpAddr>,
    },
    /// The local end of connections.
    Stream(SocketAddr),
}

struct Listener {
    socket: UdpSocket,
    outgoing: Vec<Outgoing>,
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
    index: u8,
    pub(super) server: Server,
    pub(super) batches: [Batch; 2],
    /// Which batch `to_peers` and the listeners' `outgoing` refer to.
    current: usize,
    listeners: Vec<Listener>,
    endpoints: Vec<Endpoint>,
    pub(super) poller: Poller,
    relays: Relays,
    to_peers: Vec<ToPeer>,
    run: Vec<Outgoing>,
    neighbours: Vec<Mailbox>,
    pub(super) streams: HashMap<FiveTuple, Rc<Queue>, RandomState>,
    pub(super) stream_connections: [u64; Transport::ALL.len()],
    /// The deadline that the loop sleeps until; an earlier one has to wake it.
    armed: Option<Instant>,
    wake: Rc<Notify>,
}

impl Shard {
    pub(super) fn new(parts: Parts, wake: Rc<Notify>) -> std::io::Result<Self> {
        let poller = Poller::new(EVENTS)?;
        for (index, socket) in parts.sockets.iter().enumerate() {
            poller.add(socket, LISTENER | index as u64)?;
        }
        let now = Clock.now();
        Ok(Self {
            index: parts.index,
            server: Server::new(now, parts.turn, parts.seed, parts.access),
            batches: [Batch::new(SLOTS), Batch::new(1)],
            current: DATAGRAMS,
            listeners: (parts.sockets.into_iter())
                .map(|socket| Listener {
                    socket,
                    outgoing: Vec::with_capacity(SLOTS),
                })
                .collect(),
            endpoints: Vec::new(),
            poller,
            relays: Relays::new(parts.index, parts.relay_buffer_bytes, parts.pool, keyed()),
            to_peers: Vec::with_capacity(SLOTS),
            run: Vec::with_capacity(SLOTS),
            neighbours: parts.neighbours,
            streams: HashMap::with_hasher(keyed()),
            stream_connections: [0; Transport::ALL.len()],
            armed: None,
            wake,
        })
    }

    /// One bounded look at the sockets; false if none had anything.
    pub(super) fn turn(&mut self) -> bool {
        if self.poller.ready().is_empty() {
            return false;
        }
        let now = Clock.now();
        self.current = DATAGRAMS;
        let mut filled = 0;
        for index in 0..self.poller.tokens().len() {
            let Some(&token) = self.poller.tokens().get(index) else {
                break;
            };
            if token & LISTENER == 0 {
                let id = AllocationId::from_bits(token);
                filled = self.receive_from_peers(now, id, filled);
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
        if (self.server.poll_timeout()).is_some_and(|deadline| deadline <= now.mono) {
            self.server.handle_timeout(now);
            self.drain_outputs(now);
        }
        true
    }

    fn receive_from_clients(&mut self, now: Now, index: usize) {
        let Some(listener) = self.listeners.get(index) else {
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
        for slot in 0..count {
            let received = self.batches[DATAGRAMS].received(slot);
            let listener = self.intern(Endpoint::Udp {
                socket: index,
                local: received.local,
            });
            let from = FiveTuple::new(Transport::Udp, received.from, listener);
            self.client_input(now, from, slot as u16, HEADROOM, received.len);
        }
    }

    /// Drains one relay socket into the slots from `first` on; how many slots are filled then.
    fn receive_from_peers(&mut self, now: Now, id: AllocationId, first: usize) -> usize {
        let Some(relay) = self.relays.get(id) else {
            return first;
        };
        let count = match self.batches[DATAGRAMS].receive(&relay.socket, first) {
            Ok(count) => count,
            Err(RecvFault::Dead { .. }) => {
                self.server.handle_relay_failed(now, id);
                self.drain_outputs(now);
                return first;
            }
        };
        for slot in first..first + count {
            let received = self.batches[DATAGRAMS].received(slot);
            let from = FromPeer {
                peer: received.from,
                path: Path::Kernel,
            };
            self.peer_input(now, id, from, slot as u16, HEADROOM, received.len);
        }
        first + count
    }

    /// Application data that another shard relayed to one of our relayed addresses.
    pub(super) fn receive_hairpins(&mut self, hairpins: &mut Vec<Hairpin>) {
        let now = Clock.now();
        self.current = DATAGRAMS;
        for (slot, hairpin) in hairpins.drain(..).enumerate() {
            let Some(Owner::Here(id)) = self.relays.find(hairpin.to) else {
                self.server.count_drop(DropReason::NoRelay, 1);
                continue;
            };
            let length = hairpin.payload.len();
            let buffer = self.batches[DATAGRAMS].buffer_mut(slot);
            let Some(target) = buffer.get_mut(HEADROOM..HEADROOM + length) else {
                continue;
            };
            target.copy_from_slice(&hairpin.payload);
            let from = FromPeer {
                peer: hairpin.from,
                path: Path::Hairpin,
            };
            self.peer_input(now, id, from, slot as u16, HEADROOM, length);
        }
        self.flush();
    }

    /// A frame that a stream client sent, in the slot of the stream batch at `start`.
    pub(super) fn stream_input(&mut self, now: Now, from: FiveTuple, start: usize, length: usize) {
        self.current = STREAM;
        self.client_input(now, from, 0, start, length);
    }

    /// What a client sent: `length` bytes at `start` of `slot`.
    fn client_input(&mut self, now: Now, from: FiveTuple, slot: u16, start: usize, length: usize) {
        let bytes = self.batches[self.current].bytes(usize::from(slot), start..start + length);
        match self.server.handle_input(now, from, bytes) {
            Forward::ToPeer {
                allocation,
                peer,
                payload,
            } => {
                let length = usize::from(payload.end - payload.start);
                let start = start + usize::from(payload.start);
                self.to_peer(now, allocation, peer, slot, start, length);
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
        slot: u16,
        start: usize,
        length: usize,
    ) {
        let to = peer.address();
        if peer.may_be_own_relay()
            && let Some(owner) = self.relays.find(to)
        {
            let Some(relayed) = self.relays.relayed(allocation) else {
                self.server.count_drop(DropReason::NoAllocation, 1);
                return;
            };
            let shard = match owner {
                Owner::Here(id) => {
                    self.server.count_to_peer(Path::Hairpin, length);
                    let from = FromPeer {
                        peer: relayed,
                        path: Path::Hairpin,
                    };
                    self.peer_input(now, id, from, slot, start, length);
                    return;
                }
                Owner::Shard(shard) => shard,
            };
            let range = start..start + length;
            let payload = self.batches[self.current].bytes(usize::from(slot), range);
            let hairpin = Hairpin {
                to,
                from: relayed,
                payload: payload.into(),
            };
            let mailbox = self.neighbours.get(usize::from(shard));
            if mailbox.is_some_and(|mailbox| mailbox.hairpin(hairpin)) {
                self.server.count_to_peer(Path::Hairpin, length);
            } else {
                self.server.count_drop(DropReason::Mailbox, 1);
            }
            return;
        }
        if !peer.may_use_kernel() {
            self.server.count_drop(DropReason::NoRelay, 1);
            return;
        }
        self.server.count_to_peer(Path::Kernel, length);
        self.to_peers.push(ToPeer {
            relay_slot: allocation.slot,
            sequence: self.to_peers.len() as u32,
            outgoing: Outgoing {
                slot,
                start: start as u32,
                len: length as u32,
                to,
                from: None,
            },
        });
    }

    /// What a peer sent to the relayed address of `id`: `length` bytes at `start` of `slot`, with headroom in front.
    fn peer_input(
        &mut self,
        now: Now,
        id: AllocationId,
        from: FromPeer,
        slot: u16,
        start: usize,
        length: usize,
    ) {
        let bytes = self.batches[self.current].bytes(usize::from(slot), start..start + length);
        let (five_tuple, header) = match self.server.handle_peer_input(now, id, from, bytes) {
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
        let front = header.bytes();
        if self.current == STREAM && front.len() > channel_data::HEADER {
            // Frames of a stream lie side by side: a header longer than the shortest frame's is written over the
            // frames in front, so what is still to leave from there leaves now.
            self.flush();
        }
        let batch = &mut self.batches[self.current];
        let buffer = batch.buffer_mut(usize::from(slot));
        let (begin, end) = (start - front.len(), start + length);
        buffer[begin..start].copy_from_slice(front);
        buffer[end..end + header.padding()].fill(0);
        let whole = begin..end + header.padding();

        match self.endpoints.get(usize::from(five_tuple.listener().0)) {
            Some(&Endpoint::Udp { socket, local }) => {
                if let Some(listener) = self.listeners.get_mut(socket) {
                    listener.outgoing.push(Outgoing {
                        slot,
                        start: whole.start as u32,
                        len: whole.len() as u32,
                        to: five_tuple.client(),
                        from: local,
                    });
                }
            }
            Some(Endpoint::Stream(_)) => {
                if let Some(queue) = self.streams.get(&five_tuple) {
                    let dropped = queue.push_media(batch.bytes(usize::from(slot), whole));
                    self.server.count_drop(DropReason::StreamQueue, dropped);
                }
            }
            None => {}
        }
    }

    /// Sends what has gathered, with as few system calls as possible.
    pub(super) fn flush(&mut self) {
        self.flush_to_peers();
        for listener in &mut self.listeners {
            if !listener.outgoing.is_empty() {
                let report = self.batches[self.current].send(&listener.socket, &listener.outgoing);
                listener.outgoing.clear();
                account(&mut self.server, report);
            }
        }
    }

    fn flush_to_peers(&mut self) {
        if self.to_peers.is_empty() {
            return;
        }
        self.to_peers
            .sort_unstable_by_key(|item| (item.relay_slot, item.sequence));
        for items in self.to_peers.chunk_by(|a, b| a.relay_slot == b.relay_slot) {
            let relay = items
                .first()
                .and_then(|item| self.relays.in_slot(item.relay_slot));
            let Some(relay) = relay else {
                continue;
            };
            self.run.clear();
            self.run.extend(items.iter().map(|item| item.outgoing));
            let report = self.batches[self.current].send(&relay.socket, &self.run);
            account(&mut self.server, report);
        }
        self.to_peers.clear();
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
                    client,
                } => {
                    let wanted = Wanted { family, even_port };
                    let opened = self.relays.open(id, wanted, user, client, &self.poller);
                    self.server.handle_relay_opened(now, id, opened);
                }
                Output::CloseRelay { id } => {
                    // Data that was accepted before goes out before, and not through the slot's next owner.
                    self.flush_to_peers();
                    self.relays.close(id, &self.poller);
                }
                Output::Ended(ended) => log_ended(self.index, &ended),
            }
        }
        let earlier = match (self.server.poll_timeout(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (next, _) => next.is_some(),
        };
        if earlier {
            self.wake.notify_one();
        }
    }

    fn send_message(&mut self, five_tuple: FiveTuple, message: Vec<u8>) {
        match self.endpoints.get(usize::from(five_tuple.listener().0)) {
            Some(&Endpoint::Udp { socket, local }) => {
                let Some(listener) = self.listeners.get(socket) else {
                    return;
                };
                let sent = listener
                    .socket
                    .send_to(&message, five_tuple.client(), local);
                if let Err(fault) = sent {
                    let reason = match fault {
                        SendFault::WouldBlock => DropReason::SendBuffer,
                        SendFault::TooLarge => DropReason::TooLarge,
                        SendFault::Unreachable | SendFault::Other => DropReason::SendError,
                    };
                    self.server.count_drop(reason, 1);
                }
            }
            Some(Endpoint::Stream(_)) => {
                if let Some(queue) = self.streams.get(&five_tuple) {
                    queue.push_answer(message);
                }
            }
            None => {}
        }
    }

    /// The id of a stream's local end.
    pub(super) fn intern_stream(&mut self, local: SocketAddr) -> Option<ListenerId> {
        let endpoint = Endpoint::Stream(local);
        let id = self.intern(endpoint);
        (self.endpoints.get(usize::from(id.0)) == Some(&endpoint)).then_some(id)
    }

    fn intern(&mut self, endpoint: Endpoint) -> ListenerId {
        let known = self.endpoints.iter().position(|known| *known == endpoint);
        let index = match (known, endpoint) {
            (Some(index), _) => index,
            (None, Endpoint::Udp { socket, local }) if self.endpoints.len() >= ENDPOINTS => {
                // The table is full: an address that the host answers for but did not show before.
                tracing::debug!(?local, "too many local addresses to tell apart");
                (self.endpoints.iter())
                    .position(|e| matches!(e, Endpoint::Udp { socket: s, .. } if *s == socket))
                    .unwrap_or_default()
            }
            (None, Endpoint::Stream(_)) if self.endpoints.len() >= ENDPOINTS => 0,
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

    pub(super) fn snapshot(&self) -> ShardSnapshot {
        let mut stats = self.server.stats().clone();
        let listeners = self.listeners.iter();
        let drops: u64 = listeners.map(|l| u64::from(l.socket.drops())).sum();
        stats.dropped[DropReason::ReceiveBuffer as usize] += drops + self.relays.drops();
        ShardSnapshot {
            stats,
            stream_connections: self.stream_connections,
        }
    }
}

/// A hash that strangers cannot aim at: they choose the keys.
fn keyed() -> RandomState {
    let [a, b, c, d] = rand::random();
    RandomState::with_seeds(a, b, c, d)
}

fn account(server: &mut Server, report: SendReport) {
    for (reason, datagrams) in [
        (DropReason::SendBuffer, report.would_block),
        (DropReason::TooLarge, report.too_large),
        (DropReason::SendError, report.failed),
    ] {
        if datagrams > 0 {
            server.count_drop(reason, u64::from(datagrams));
        }
    }
}

/// The one line that an allocation leaves in the log.
fn log_ended(shard: u8, ended: &Ended) {
    let view = &ended.view;
    let [to_peer, to_client] = view.traffic;
    debug_assert_eq!(Direction::ALL, [Direction::ToPeer, Direction::ToClient]);
    tracing::info!(
        allocation = format_args!("{shard}-{}-{}", view.id.slot, view.id.generation),
        user = %view.user.escape_debug(),
        client = %Pii(view.client),
        transport = view.transport.label(),
        relayed = %view.relayed,
        duration_secs = ended.duration.as_secs_f64(),
        to_peer_bytes = to_peer.bytes,
        to_peer_packets = to_peer.packets,
        to_client_bytes = to_client.bytes,
        to_client_packets = to_client.packets,
        reason = ended.reason.label(),
        "allocation ended"
    );
}
