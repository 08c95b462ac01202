//! What a shard tells of itself: counters, records, a line for each allocation that ends.

use crate::base::{Now, Pii, Transport};
use crate::metrics::ShardSnapshot;
use crate::quality::Leg;
use crate::quality::shown::{millis, share};
use crate::records::Due;
use crate::turn::{Direction, DropReason, Ended};

use super::Shard;

impl Shard {
    /// Lets live allocations in some slots leave a record if they are due; whether there are slots beyond.
    pub(in crate::shard) fn record_live(
        &self,
        now: Now,
        due: Due,
        from: usize,
        count: usize,
    ) -> bool {
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

    pub(in crate::shard) fn snapshot(&self) -> ShardSnapshot {
        let mut stats = self.server.stats().clone();
        let listeners = self.listeners.iter().flatten();
        let drops: u64 = listeners.map(|l| u64::from(l.socket.drops())).sum();
        stats.dropped[DropReason::ReceiveBuffer as usize] +=
            drops + self.drops_of_closed + self.relays.drops();
        let mut connections = self.stream_connections;
        connections[Transport::Dtls as usize] = self.dtls.connected();
        ShardSnapshot {
            stats,
            stream_connections: connections,
            segmentation_fallbacks: self.segmentation_fallbacks,
        }
    }
}

/// The one line that an allocation leaves in the log.
pub(super) fn log_ended(shard: u8, ended: &Ended) {
    let view = &ended.view;
    let [to_peer, to_client] = view.traffic;
    let quality = view.quality.as_deref();
    let rtt = |leg: Leg| Some(millis(quality?.rtt[leg as usize]?.smoothed));
    let loss = |way: Direction| Some(share(quality?.flows[way as usize].loss_ratio()?));
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
        session = quality.map(|quality| quality.session.label()),
        rtt_client_ms = rtt(Leg::Client),
        rtt_peer_ms = rtt(Leg::Peer),
        loss_to_peer = loss(Direction::ToPeer),
        loss_to_client = loss(Direction::ToClient),
        reason = ended.reason.label(),
        "allocation ended"
    );
}
