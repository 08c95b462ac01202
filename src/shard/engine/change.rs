//! What changes in a shard between two turns.

use crate::base::{Clock, ListenerId, Transport};
use crate::net::UdpSocket;
use crate::shard::change::{ListenerSlot, ShardChange};
use crate::shard::relays::Reports;
use crate::turn::EndReason;

use super::{Endpoint, GATHER, LISTENER, Listener, Shard, Speaks, Trains};

impl Shard {
    /// Takes all of `change`; what it forbids has ended when this returns.
    pub(in crate::shard) fn change(&mut self, change: ShardChange) {
        let now = Clock.now();
        for slot in change.close {
            self.close_listener(slot);
        }
        for (slot, socket, speaks) in change.open {
            self.open_listener(slot, socket, speaks);
        }
        if let Some(spoken) = change.spoken {
            self.dtls.set_certificates(spoken.certificates);
            for (slot, speaks) in spoken.speaks {
                self.speak(slot, speaks);
            }
        }
        let bytes = change.listener_buffer_bytes;
        if std::mem::replace(&mut self.listener_buffer_bytes, bytes) != bytes {
            for listener in self.listeners.iter().flatten() {
                if let Err(error) = listener.socket.size_buffers(bytes, bytes) {
                    tracing::warn!(%error, "the buffer of a listener stays as it is");
                }
            }
        }
        let families = (self.relays).change(change.relay_buffer_bytes, change.relays);
        if let Some(families) = families {
            self.server.set_families(families);
        }
        let reports = Reports::of(&change.turn.protocol);
        self.relays.set_reports(reports);
        for listener in self.listeners.iter().flatten() {
            listener.socket.report_tos(reports.tos);
        }
        self.server.set_bandwidth(now, change.turn.bandwidth);
        self.settle_vantages(&change.turn.protocol.nat_discovery);
        self.server.set_settings(change.turn);
        self.server.set_access(now, change.access);
        self.drain_outputs(now);
    }

    /// Ends everything, because the server stops.
    pub(in crate::shard) fn end_all(&mut self) {
        let now = Clock.now();
        let (views, _) = self.server.views(now, 0, usize::MAX);
        for view in views {
            (self.server).end_allocation(now, view.id, EndReason::Shutdown);
        }
        self.drain_outputs(now);
        self.end_sessions(|_| true);
    }

    fn open_listener(&mut self, slot: ListenerSlot, socket: UdpSocket, speaks: Speaks) {
        if let Err(error) = self.poller.add(&socket, LISTENER | slot.0 as u64) {
            tracing::error!(address = %socket.local_addr(), %error, "a new listener cannot be watched");
            return;
        }
        if self.listeners.len() <= slot.0 {
            self.listeners.resize_with(slot.0 + 1, || None);
        }
        self.listeners[slot.0] = Some(Listener::new(socket, speaks));
    }

    /// What is spoken on a listener from now on; clients that it does not speak with any more have ended.
    fn speak(&mut self, slot: ListenerSlot, speaks: Speaks) {
        let Some(Some(listener)) = self.listeners.get_mut(slot.0) else {
            return;
        };
        let before = std::mem::replace(&mut listener.speaks, speaks);
        if before.dtls && !speaks.dtls {
            self.end_sessions_on(slot.0);
        }
        if before.plain && !speaks.plain {
            let now = Clock.now();
            for listener in self.endpoints_of(slot) {
                let reason = EndReason::ListenerClosed;
                (self.server).end_transport(now, listener, Transport::Udp, reason);
                self.steering.close(listener);
            }
            self.drain_outputs(now);
        }
    }

    /// The numbers of its endpoints.
    fn endpoints_of(&self, slot: ListenerSlot) -> Vec<ListenerId> {
        let of_it = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Udp { socket, .. } if *socket == slot.0);
        (self.endpoints.iter().enumerate())
            .filter(|(_, endpoint)| of_it(endpoint))
            .map(|(index, _)| ListenerId(index as u16))
            .collect()
    }

    /// Ends the allocations of its clients, who could be neither heard nor answered any more, and closes it.
    fn close_listener(&mut self, slot: ListenerSlot) {
        let now = Clock.now();
        self.end_sessions_on(slot.0);
        for listener in self.endpoints_of(slot) {
            (self.server).end_listener(now, listener, EndReason::ListenerClosed);
            self.steering.close(listener);
            // Nobody uses the number any more, so the next endpoint may have it.
            self.endpoints[usize::from(listener.0)] = Endpoint::Free;
        }
        self.drain_outputs(now);
        if let Some(listener) = self.listeners.get_mut(slot.0).and_then(Option::take) {
            self.drops_of_closed += u64::from(listener.socket.drops());
            self.poller.remove(&listener.socket);
        }
    }
}

impl Listener {
    pub(super) fn new(socket: UdpSocket, speaks: Speaks) -> Self {
        socket.let_fragment();
        Self {
            socket,
            outgoing: Vec::with_capacity(GATHER),
            trains: Trains::default(),
            speaks,
            full: false,
        }
    }
}
