//! Flat forwarding tables of channel traffic, derived from allocations and written here only.
//!
//! Each entry carries the moment its direction ends, and the lookup compares it, so a late timer never forwards. The
//! hash is keyed: strangers choose the keys.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use ahash::RandomState;

use crate::access::PermittedPeer;
use crate::base::addr::bits;
use crate::base::{Family, FiveTuple};
use crate::wire::ChannelNumber;

use super::allocation::{Allocation, AllocationId, ChannelBinding};

/// Where ChannelData of a client goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToPeer {
    pub allocation: AllocationId,
    pub peer: PermittedPeer,
    until: Instant,
    /// What comes this way says that the client has moved.
    pub settles: bool,
}

/// Where data of a bound peer goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToClient {
    pub five_tuple: FiveTuple,
    pub channel: ChannelNumber,
    until: Instant,
}

/// An allocation's slot and a peer, 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PeerKey {
    ip_high: u64,
    ip_low: u64,
    slot: u32,
    port: u16,
}

impl PeerKey {
    fn new(id: AllocationId, peer: SocketAddr) -> Self {
        let bits = bits(peer.ip());
        Self {
            ip_high: (bits >> 64) as u64,
            ip_low: bits as u64,
            slot: id.slot,
            port: peer.port(),
        }
    }
}

/// Both tables.
#[derive(Debug)]
pub(super) struct Routes {
    to_peer: HashMap<(FiveTuple, ChannelNumber), ToPeer, RandomState>,
    to_client: HashMap<PeerKey, ToClient, RandomState>,
}

impl Routes {
    pub fn new(hasher: RandomState) -> Self {
        Self {
            to_peer: HashMap::with_hasher(hasher.clone()),
            to_client: HashMap::with_hasher(hasher),
        }
    }

    /// The road of ChannelData on `channel`, if it is open at `now`.
    pub fn to_peer(
        &self,
        from: FiveTuple,
        channel: ChannelNumber,
        now: Instant,
    ) -> Option<&ToPeer> {
        self.to_peer
            .get(&(from, channel))
            .filter(|route| route.until > now)
    }

    /// The road of data from `peer`, if it has a channel and is open at `now`.
    pub fn to_client(&self, id: AllocationId, peer: SocketAddr, now: Instant) -> Option<&ToClient> {
        self.to_client
            .get(&PeerKey::new(id, peer))
            .filter(|route| route.until > now)
    }

    /// Writes the routes of every channel of `allocation` anew, after any of its lifetimes changed.
    pub fn sync(&mut self, allocation: &Allocation, now: Instant) {
        for binding in &allocation.channels {
            let family = Family::of(binding.peer.address().ip());
            let ends = allocation.ends(family).unwrap_or(allocation.expires);
            let until = binding.expires.min(ends);
            let here = (!allocation.is_adrift()).then_some((allocation.five_tuple, false));
            let next = allocation.next().map(|next| (next, true));
            for (five_tuple, settles) in here.into_iter().chain(next) {
                self.to_peer.insert(
                    (five_tuple, binding.number),
                    ToPeer {
                        allocation: allocation.id,
                        peer: binding.peer,
                        until,
                        settles,
                    },
                );
            }
            if allocation.is_adrift() {
                continue;
            }
            // Towards the client a permission is needed as well (RFC 8656 §11.3); without one the route stays closed.
            let peer = binding.peer.address();
            let permitted = allocation.permitted_until(peer.ip(), now).unwrap_or(now);
            self.to_client.insert(
                PeerKey::new(allocation.id, peer),
                ToClient {
                    five_tuple: allocation.five_tuple,
                    channel: binding.number,
                    until: until.min(permitted),
                },
            );
        }
    }

    /// Removes the route of one binding from `five_tuple`.
    pub fn leave(&mut self, five_tuple: FiveTuple, binding: &ChannelBinding) {
        self.to_peer.remove(&(five_tuple, binding.number));
    }

    /// Removes the routes of one binding.
    pub fn remove(&mut self, allocation: &Allocation, binding: &ChannelBinding) {
        if !allocation.is_adrift() {
            self.leave(allocation.five_tuple, binding);
        }
        if let Some(next) = allocation.next() {
            self.leave(next, binding);
        }
        self.to_client
            .remove(&PeerKey::new(allocation.id, binding.peer.address()));
    }

    /// Gives memory back once many allocations are gone.
    pub fn shrink(&mut self) {
        if self.to_peer.capacity() > 4096 && self.to_peer.len() < self.to_peer.capacity() / 8 {
            self.to_peer.shrink_to(self.to_peer.len() * 2);
            self.to_client.shrink_to(self.to_client.len() * 2);
        }
    }
}
