//! A shard's sockets and state on their way to another process, and from one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::base::{Clock, Family, Now, Transport};
use crate::shard::handover::{
    ListenerImage, Listeners, Part, Record, RelayImage, RelaySockets, Rest, SOCKETS_PER_RECORD,
    Sink, Sockets, StreamImage, StreamSockets, encode,
};
use crate::turn::EndReason;

use super::{Endpoint, Shard};

impl Shard {
    /// Gives `part` of what another process needs; nothing changes here.
    pub(in crate::shard) fn export(&self, part: Part, sink: &mut dyn Sink) -> io::Result<()> {
        match part {
            Part::Listeners => self.export_listeners(sink),
            Part::State => self.export_state(Clock.now(), sink),
        }
    }

    fn export_listeners(&self, sink: &mut dyn Sink) -> io::Result<()> {
        let open = || {
            (self.listeners.iter().enumerate())
                .filter_map(|(slot, listener)| Some((slot, listener.as_ref()?)))
        };
        let record = Listeners {
            shard: self.index,
            sockets: open()
                .map(|(slot, listener)| ListenerImage {
                    slot,
                    address: listener.socket.local_addr(),
                    took_trains: listener.socket.took_trains(),
                })
                .collect(),
        };
        let sockets: Vec<_> = open()
            .map(|(_, listener)| listener.socket.as_fd())
            .collect();
        sink.put(Record::Listeners, &encode(&record)?, &sockets)
    }

    fn export_state(&self, now: Now, sink: &mut dyn Sink) -> io::Result<()> {
        let rest = Rest {
            shard: self.index,
            endpoints: self.endpoints.clone(),
            drops: self.drops_of_closed + self.relays.drops_of_closed(),
            segmentation_fallbacks: self.segmentation_fallbacks,
            steering: self.steering.export(),
            stays: (self.server.tenants())
                .filter(|tenant| stays(tenant.five_tuple.transport()))
                .flat_map(|tenant| tenant.relays())
                .filter_map(|(id, family)| Some(self.relays.get(id, family)?.socket.local_addr()))
                .collect(),
            stays_tcp: (self.server.tenants())
                .filter_map(|tenant| self.connections.listener_of(tenant.id))
                .collect(),
        };
        sink.put(Record::Shard, &encode(&rest)?, &[])?;
        let snapshot = self.server.snapshot(now, moves).encode_behind(self.index);
        sink.put(Record::Snapshot, &snapshot, &[])?;
        let mut relays = Vec::with_capacity(SOCKETS_PER_RECORD);
        let mut sockets: Vec<BorrowedFd<'_>> = Vec::with_capacity(SOCKETS_PER_RECORD);
        let mut additional = Vec::new();
        let mut tenants = (self.server.tenants())
            .filter(|tenant| tenant.moves && moves(tenant.five_tuple.transport()))
            .flat_map(|tenant| {
                let first = tenant.families.first().copied();
                (tenant.relays()).map(move |(id, family)| (id, family, Some(family) != first))
            })
            .filter_map(|(id, family, second)| {
                Some((id, family, second, self.relays.get(id, family)?))
            })
            .peekable();
        while let Some((id, family, second, relay)) = tenants.next() {
            let images = if second { &mut additional } else { &mut relays };
            images.push(RelayImage {
                slot: id.slot,
                generation: id.generation,
                local: relay.socket.local_addr(),
                took_trains: relay.socket.took_trains(),
                even_port: relay.is_even(),
                external: (self.relays.relayed(id, family)).map(|relayed| relayed.ip()),
            });
            sockets.push(relay.socket.as_fd());
            if sockets.len() == SOCKETS_PER_RECORD || tenants.peek().is_none() {
                let record = RelaySockets {
                    shard: self.index,
                    relays: std::mem::take(&mut relays),
                    additional: std::mem::take(&mut additional),
                };
                sink.put(Record::Relays, &encode(&record)?, &sockets)?;
                sockets.clear();
            }
        }
        self.export_streams(sink)
    }

    fn export_streams(&self, sink: &mut dyn Sink) -> io::Result<()> {
        let all: Vec<_> = (self.streams.iter())
            .filter(|(five_tuple, _)| {
                moves(five_tuple.transport()) && !self.server.has_tcp_allocation(**five_tuple)
            })
            .collect();
        for some in all.chunks(SOCKETS_PER_RECORD) {
            let mut streams = Vec::with_capacity(some.len());
            let mut sockets = Vec::with_capacity(some.len());
            for (five_tuple, client) in some {
                let endpoint = self.endpoints.get(usize::from(five_tuple.listener().0));
                let Some(Endpoint::Stream(local)) = endpoint else {
                    continue;
                };
                let (socket, partial, queue) = client.export()?;
                sockets.push(socket);
                streams.push(StreamImage {
                    client: five_tuple.client(),
                    local: *local,
                    proxy: client.peer().filter(|peer| *peer != five_tuple.client()),
                    partial,
                    queue,
                });
            }
            let record = StreamSockets {
                shard: self.index,
                streams,
            };
            let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            sink.put(Record::Streams, &encode(&record)?, &sockets)?;
        }
        Ok(())
    }

    /// Reads again.
    pub(in crate::shard) fn thaw(&mut self) {
        self.frozen = false;
        for client in self.streams.values() {
            client.thaw();
        }
    }

    /// Takes the sockets that belong to the allocations of the core. What has none any more, or a listener that this
    /// process does not have, ends.
    pub(super) fn move_in(&mut self, mut start: Sockets) {
        let now = Clock.now();
        self.endpoints = start.endpoints;
        self.segmentation_fallbacks = start.segmentation_fallbacks;
        self.relays.set_drops_of_closed(start.drops);
        self.relays.abroad = start.abroad;
        self.steering.resume(std::mem::take(&mut start.steering));
        let tenants: Vec<_> = self.server.tenants().collect();
        for tenant in tenants {
            let (id, five_tuple) = (tenant.id, tenant.five_tuple);
            let endpoint = self.endpoints.get(usize::from(five_tuple.listener().0));
            let served = match endpoint {
                Some(Endpoint::Udp { socket, .. }) => {
                    (self.listener(*socket)).is_some_and(|listener| listener.speaks.plain)
                }
                Some(Endpoint::Stream(local)) => {
                    start.streams.contains(&(*local, five_tuple.client()))
                }
                Some(Endpoint::Free) | None => false,
            };
            let mut arrived = false;
            for (id, family) in tenant.relays() {
                let relay = start.relays.remove(&(id, family));
                let adopted =
                    relay.map(|settled| self.relays.adopt(&tenant, settled, &self.poller));
                match adopted {
                    Some(Ok(())) => arrived = true,
                    Some(Err(_)) | None => self.server.handle_relay_failed(now, id, family),
                }
            }
            if arrived && !served {
                let reason = match five_tuple.transport() {
                    Transport::Udp => EndReason::ListenerClosed,
                    Transport::Tcp | Transport::Tls | Transport::Dtls => EndReason::ClientClosed,
                };
                self.server.end_allocation(now, id, reason);
            }
        }
        if !start.relays.is_empty() {
            let count = start.relays.len();
            tracing::info!(
                shard = self.index,
                count,
                "allocations end that the configuration does not allow"
            );
        }
        for settled in start.relays.into_values() {
            self.relays.refuse(now.mono, settled);
        }
        self.drain_outputs(now);
        // What users and the server may spend has to be there before the first packet.
        self.settle(now);
    }

    /// Lets go of what another process has now: listeners, clients and their relays. How many connections stay.
    pub(in crate::shard) fn leave(&mut self) -> u64 {
        let now = Clock.now();
        self.taps.leave();
        self.server.end_moves(now, |transport| !moves(transport));
        self.drain_outputs(now);
        self.end_sessions(|_| true);
        for id in self.server.leave(moves) {
            for family in Family::ALL {
                self.relays.hand_over(id, family, &self.poller);
            }
        }
        for listener in self.listeners.iter().flatten() {
            // Closing alone would not do: the other process has the same socket open.
            self.poller.remove(&listener.socket);
        }
        self.listeners.clear();
        let before = self.streams.len();
        self.streams.retain(|_, client| !client.leave());
        let left: u64 = self.stream_connections.iter().sum();
        left - (before - self.streams.len()) as u64
    }
}

/// Whether clients on `transport` can be served by another process from one moment to the next.
const fn moves(transport: Transport) -> bool {
    match transport {
        Transport::Udp | Transport::Tcp => true,
        // Its state is a library's.
        Transport::Tls | Transport::Dtls => false,
    }
}

/// Whether clients on `transport` stay with this process: those of DTLS cannot, since their datagrams come by a socket
/// that the other one reads.
const fn stays(transport: Transport) -> bool {
    matches!(transport, Transport::Tls)
}
