//! Where captures look at what passes: both legs of what is relayed, control messages, and what goes no further.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::access::PermittedPeer;
use crate::base::{Clock, Family, FiveTuple, Now};
use crate::quality::Leg;
use crate::shard::capturing::{Seen, Wanted};
use crate::shard::relays::Owner;
use crate::turn::{AllocationId, DropReason, Forward, FromPeer};

use super::payload::Payload;
use super::{Endpoint, Shard};

impl Shard {
    /// Begins a capture, if there is the allocation that is wanted.
    pub(in crate::shard) fn begin_capture(&mut self, now: Now, wanted: Wanted) {
        let id = wanted.id();
        let (views, _) = self.server.views(now, id.slot as usize, 1);
        let view = views.into_iter().find(|view| view.id == id);
        let (Some(view), Some(client)) = (view, self.server.five_tuple_of(id)) else {
            return wanted.refuse();
        };
        let own = [
            Some(self.local_of(client)),
            Some(view.relayed),
            view.additional,
        ];
        let own = own.into_iter().flatten().map(|own| own.ip()).collect();
        self.taps.begin(wanted, client, view, own);
    }

    /// Shows captures what a client sent, and what becomes of it.
    #[inline]
    pub(super) fn tap_client(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: Payload,
        forward: &Forward,
    ) {
        if !self.taps.is_empty() {
            self.show_client(now, from, message, forward);
        }
    }

    /// Shows captures what a peer sent to the relayed address of `id`, and what becomes of it.
    #[inline]
    pub(super) fn tap_peer(
        &mut self,
        now: Now,
        id: AllocationId,
        from: FromPeer,
        payload: Payload,
        forward: &Forward,
    ) {
        if !self.taps.is_empty() && self.taps.has(id) {
            self.show_peer(now, id, from, payload, forward);
        }
    }

    /// Shows captures what a client is answered, or told.
    #[inline]
    pub(super) fn tap_answer(&mut self, to: FiveTuple, message: &[u8]) {
        if self.taps.is_empty() {
            return;
        }
        let id = self.server.allocation_on(to);
        let Some(id) = self.taps.of_client(to, id) else {
            return;
        };
        let seen = Seen {
            now: Clock.now(),
            leg: Leg::Client,
            received: false,
            from: self.local_of(to),
            to: to.client(),
            parts: [message, &[]],
            padding: 0,
            dropped: None,
        };
        self.taps.take(id, &seen);
    }

    #[cold]
    fn show_client(&mut self, now: Now, from: FiveTuple, message: Payload, forward: &Forward) {
        let id = match forward {
            Forward::ToPeer { allocation, .. } => Some(*allocation),
            _ => self.server.allocation_on(from),
        };
        let Some(id) = self.taps.of_client(from, id) else {
            return;
        };
        let came = Seen {
            now,
            leg: Leg::Client,
            received: true,
            from: from.client(),
            to: self.local_of(from),
            parts: [message.bytes(&self.batches[self.current]), &[]],
            padding: 0,
            dropped: dropped(forward),
        };
        self.taps.take(id, &came);
        if let Forward::ToPeer { peer, payload, .. } = forward {
            let to = peer.address();
            let leaves = Seen {
                now,
                leg: Leg::Peer,
                received: false,
                from: self.relayed_of(id, to.ip()),
                to,
                parts: [
                    message
                        .part(payload.clone())
                        .bytes(&self.batches[self.current]),
                    &[],
                ],
                padding: 0,
                dropped: (!self.leads_anywhere(peer)).then(|| DropReason::NoRelay.label()),
            };
            self.taps.take(id, &leaves);
        }
    }

    #[cold]
    fn show_peer(
        &mut self,
        now: Now,
        id: AllocationId,
        from: FromPeer,
        payload: Payload,
        forward: &Forward,
    ) {
        let bytes = payload.bytes(&self.batches[self.current]);
        let came = Seen {
            now,
            leg: Leg::Peer,
            received: true,
            from: from.peer,
            to: self.relayed_of(id, from.peer.ip()),
            parts: [bytes, &[]],
            padding: 0,
            dropped: dropped(forward),
        };
        self.taps.take(id, &came);
        if let Forward::ToClient { five_tuple, header } = forward {
            let leaves = Seen {
                leg: Leg::Client,
                received: false,
                from: self.local_of(*five_tuple),
                to: five_tuple.client(),
                parts: [header.bytes(), bytes],
                padding: header.padding(),
                ..came
            };
            self.taps.take(id, &leaves);
        }
    }

    /// Whether there is a road to `peer` for a datagram that may take it.
    fn leads_anywhere(&self, peer: &PermittedPeer) -> bool {
        let owner = (peer.may_be_own_relay())
            .then(|| self.relays.find(peer.address()))
            .flatten();
        match owner {
            Some(Owner::Abroad(_)) => !peer.scope().is_loop(),
            Some(Owner::Here(_) | Owner::Shard(_)) => true,
            None => peer.may_use_kernel(),
        }
    }

    /// The relayed address that `id` exchanges data with `peer` by.
    fn relayed_of(&self, id: AllocationId, peer: IpAddr) -> SocketAddr {
        (self.relays.relayed(id, Family::of(peer))).unwrap_or(NOWHERE)
    }

    /// The server's end of `five_tuple`.
    fn local_of(&self, five_tuple: FiveTuple) -> SocketAddr {
        match self.endpoints.get(usize::from(five_tuple.listener().0)) {
            Some(&Endpoint::Udp { socket, local }) => {
                let bound = (self.listener(socket)).map_or(NOWHERE, |one| one.socket.local_addr());
                SocketAddr::new(local.unwrap_or(bound.ip()), bound.port())
            }
            Some(&Endpoint::Stream(local)) => local,
            Some(Endpoint::Free) | None => NOWHERE,
        }
    }
}

/// What stands for an address that is gone.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Why it went no further, if it did not.
const fn dropped(forward: &Forward) -> Option<&'static str> {
    match forward {
        Forward::Drop(reason) => Some(reason.label()),
        _ => None,
    }
}
