//! The data path: verdicts on application data. Allocates nothing, queues nothing, copies no payload.

use std::ops::Range;

use crate::access::PeerPolicy;
use crate::base::{FiveTuple, Now, RelayTransport};
use crate::wire::{Header, channel_data, indication};

use super::allocation::AllocationId;
use super::limits::nanos;
use super::server::Server;
use super::stats::{Direction, DropReason};
use super::{Forward, FromPeer, Seed};

impl Server {
    /// ChannelData from a client (RFC 8656 §12.6).
    pub(super) fn relay_channel_data(
        &mut self,
        now: Now,
        from: FiveTuple,
        datagram: &[u8],
    ) -> Forward {
        let Some((channel, payload)) = channel_data::parse(datagram) else {
            return Forward::Drop(DropReason::Malformed);
        };
        let Some(&route) = self.routes.to_peer(from, channel, now.mono) else {
            return Forward::Drop(DropReason::NoChannel);
        };
        if route.settles {
            self.settle_on_next(now, route.allocation);
        }
        if let Err(reason) = self.admit_from_client(now, route.allocation, datagram, &payload) {
            return Forward::Drop(reason);
        }
        Forward::ToPeer {
            allocation: route.allocation,
            peer: route.peer,
            payload,
            dont_fragment: false,
        }
    }

    /// A Send indication from a client (RFC 8656 §11.2).
    pub(super) fn relay_send(&mut self, now: Now, from: FiveTuple, datagram: &[u8]) -> Forward {
        let Some(send) = indication::parse_send(datagram) else {
            return Forward::Drop(DropReason::Malformed);
        };
        // Where it is not offered it is an unknown attribute (RFC 8656 §11.2).
        if send.dont_fragment && !self.settings.protocol.dont_fragment {
            return Forward::Drop(DropReason::Malformed);
        }
        let id = self.by_five_tuple.get(&from).copied();
        let Some(allocation) = id.and_then(|id| self.allocations.get(id)) else {
            return Forward::Drop(DropReason::NoAllocation);
        };
        if allocation.is_over(now.mono) || allocation.relayed().is_none() {
            return Forward::Drop(DropReason::NoAllocation);
        }
        if !allocation.serves(send.peer.ip(), now.mono) {
            return Forward::Drop(DropReason::Family);
        }
        if allocation.relay_transport == RelayTransport::Tcp {
            return Forward::Drop(DropReason::Unexpected);
        }
        let id = allocation.id;
        let settles = allocation.five_tuple != from;
        let permission = allocation.permitted_until(send.peer.ip(), now.mono);
        let peer = match (self.access.peers).permit_within(allocation.scope, send.peer) {
            Ok(peer) => peer,
            Err(denied) => {
                self.count_denied(id, send.peer, denied);
                return Forward::Drop(DropReason::PeerDenied);
            }
        };
        if permission.is_none() {
            return Forward::Drop(DropReason::NoPermission);
        }
        if let Some(contacts) = &allocation.contacts
            && !contacts.knows(self.hasher.hash_one(send.peer))
        {
            if !self.admits_new_peers(now, id, 1) {
                return Forward::Drop(DropReason::NewPeers);
            }
            self.remember_peer(id, send.peer, false);
        }
        if settles {
            self.settle_on_next(now, id);
        }
        if let Err(reason) = self.admit_from_client(now, id, datagram, &send.data) {
            return Forward::Drop(reason);
        }
        Forward::ToPeer {
            allocation: id,
            peer,
            payload: send.data,
            // It is about IPv4 on both sides (RFC 8656 §13, §14).
            dont_fragment: send.dont_fragment && from.client().is_ipv4() && send.peer.is_ipv4(),
        }
    }

    /// A datagram from a peer (RFC 8656 §11.3, §12.7).
    pub(super) fn relay_to_client(
        &mut self,
        now: Now,
        to: AllocationId,
        from: FromPeer,
        datagram: &[u8],
    ) -> Forward {
        let length = datagram.len();
        let elapsed = now.mono.saturating_duration_since(self.started);
        let Some(allocation) = self.allocations.get_mut(to) else {
            return Forward::Drop(DropReason::NoAllocation);
        };
        if let Err(denied) = PeerPolicy::join(from.scope, allocation.scope) {
            self.stats.peer_denied[denied.rule as usize] += 1;
            return Forward::Drop(DropReason::PeerDenied);
        }
        let (five_tuple, header) = match self.routes.to_client(to, from.peer, now.mono) {
            Some(route) => {
                let stream = route.five_tuple.transport().is_stream();
                let header = Header::channel_data(route.channel, length, stream);
                (route.five_tuple, header)
            }
            None => {
                let permitted = allocation.serves(from.peer.ip(), now.mono)
                    && (allocation.permitted_until(from.peer.ip(), now.mono)).is_some();
                if !permitted {
                    return Forward::Drop(DropReason::NoPermission);
                }
                if allocation.is_adrift() {
                    return Forward::Drop(DropReason::NoAllocation);
                }
                // A channel was bound to a port that policy had judged; here a permission speaks for the IP alone.
                if let Err(denied) = (self.access.peers).admit_within(allocation.scope, from.peer) {
                    self.stats.peer_denied[denied.rule as usize] += 1;
                    return Forward::Drop(DropReason::PeerDenied);
                }
                if let Some(contacts) = &mut allocation.contacts {
                    contacts.answers(self.hasher.hash_one(from.peer));
                }
                let five_tuple = allocation.five_tuple;
                let transaction = indication_id(&mut self.indications, &self.seed, to);
                let header = Header::data_indication(from.peer, length, transaction);
                (five_tuple, header)
            }
        };
        let Some(header) = header else {
            return Forward::Drop(DropReason::TooLarge);
        };
        if let Some(police) = &mut allocation.police {
            let admitted = police.admit(
                self.rates.of(allocation.scope, allocation.throttled),
                &mut self.purses,
                nanos(elapsed),
                Direction::ToClient,
                length,
            );
            if let Err(limit) = admitted {
                let throttled = allocation.throttled;
                let reason = (self.stats).policed(limit, throttled, Direction::ToClient, length);
                return Forward::Drop(reason);
            }
        }
        allocation.count(Direction::ToClient, elapsed.as_secs() as u32, length);
        let mode = self.settings.quality.mode;
        let due = allocation.observe(mode, nanos(elapsed), Direction::ToClient, datagram);
        if !allocation.scope.is_canary() {
            self.stats.relayed[Direction::ToClient as usize][from.path as usize].add(length);
        }
        if due && self.judge(now, to) {
            return Forward::Drop(DropReason::Abuse);
        }
        Forward::ToClient { five_tuple, header }
    }

    /// Counts what goes to a peer, unless the bandwidth is used up.
    fn admit_from_client(
        &mut self,
        now: Now,
        id: AllocationId,
        datagram: &[u8],
        payload: &Range<u16>,
    ) -> Result<(), DropReason> {
        let bytes = payload.len();
        let elapsed = now.mono.saturating_duration_since(self.started);
        let Some(allocation) = self.allocations.get_mut(id) else {
            return Ok(());
        };
        if let Some(police) = &mut allocation.police {
            police
                .admit(
                    self.rates.of(allocation.scope, allocation.throttled),
                    &mut self.purses,
                    nanos(elapsed),
                    Direction::ToPeer,
                    bytes,
                )
                .map_err(|limit| {
                    let throttled = allocation.throttled;
                    (self.stats).policed(limit, throttled, Direction::ToPeer, bytes)
                })?;
        }
        allocation.count(Direction::ToPeer, elapsed.as_secs() as u32, bytes);
        if let Some(data) = datagram.get(usize::from(payload.start)..usize::from(payload.end)) {
            let mode = self.settings.quality.mode;
            let due = allocation.observe(mode, nanos(elapsed), Direction::ToPeer, data);
            if due && self.judge(now, id) {
                return Err(DropReason::Abuse);
            }
        }
        Ok(())
    }
}

/// The transaction id of the next Data indication: they need to differ, not to be secret.
pub(super) fn indication_id(indications: &mut u64, seed: &Seed, to: AllocationId) -> [u8; 12] {
    *indications = indications.wrapping_add(1);
    let mut transaction = [0; 12];
    let scrambled = *indications ^ seed.hash[0];
    transaction[..8].copy_from_slice(&scrambled.to_be_bytes());
    transaction[8..].copy_from_slice(&to.slot.to_be_bytes());
    transaction
}
