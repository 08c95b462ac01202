//! Clients that have moved: their datagrams and connections on the way to the shard that has their allocation.

use std::net::SocketAddr;

use crate::base::{Clock, FiveTuple, Now, Transport};
use crate::net::HEADROOM;
use crate::shard::hairpin::Passed;
use crate::shard::mailbox::Message;
use crate::shard::queue::Queue;
use crate::shard::steering::Way;
use crate::stream::ClientStream;
use crate::turn::{AllocationId, DropReason};

use super::departures::count_posted;
use super::payload::{Payload, received_at};
use super::{DATAGRAMS, Endpoint, Shard};

/// What a Refresh request begins with: class and method (RFC 8489 §5).
const REFRESH: [u8; 2] = [0x00, 0x04];

/// Whose datagram is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// A client's of this shard.
    None,
    /// One that another shard passed on.
    Here,
    /// The same, and its ticket names an allocation somewhere else.
    Elsewhere,
}

impl Shard {
    /// The message of `from` names an allocation of another shard: that gets it, and what follows.
    pub(super) fn redirect(&mut self, from: FiveTuple, message: Payload, shard: u8) {
        let other = shard != self.index && self.parcels.has(shard);
        let endpoint = self.endpoints.get(usize::from(from.listener().0));
        match endpoint {
            Some(Endpoint::Udp { .. }) if other => {
                if self.guest != Guest::None {
                    self.guest = Guest::Elsewhere;
                } else if let Some(way) = self.steering.send_away(from, shard) {
                    self.pass_on(from, way, message);
                } else {
                    self.server.count_drop(DropReason::Mailbox, 1);
                }
            }
            Some(Endpoint::Stream(_)) if other => self.departure = Some(shard),
            _ => self.server.count_drop(DropReason::Unexpected, 1),
        }
    }

    /// Gives a datagram to the shard that has its client's allocation.
    pub(super) fn pass_on(&mut self, from: FiveTuple, way: Way, message: Payload) {
        let Some(&endpoint) = self.endpoints.get(usize::from(from.listener().0)) else {
            return;
        };
        let payload = message.bytes(&self.batches[self.current]);
        let way = if payload.starts_with(&REFRESH) {
            self.steering.count_refresh(from).unwrap_or(way)
        } else {
            way
        };
        let passed = Passed {
            client: from.client(),
            endpoint,
            count: way.count,
            back: false,
            tos: message.fields.tos,
            payload,
        };
        let server = &mut self.server;
        (self.parcels).pass(way.shard, &passed, |posted| count_posted(server, &posted));
    }

    /// A datagram that the shard `home` passes on, or back.
    pub(super) fn guest_input(&mut self, now: Now, home: u8, passed: &Passed<'_>, slot: usize) {
        let Endpoint::Udp { socket, .. } = passed.endpoint else {
            return;
        };
        if !(self.listener(socket)).is_some_and(|listener| listener.speaks.plain) {
            return;
        }
        let length = passed.payload.len();
        let buffer = self.batches[DATAGRAMS].buffer_mut(slot);
        let Some(target) = buffer.get_mut(HEADROOM..HEADROOM + length) else {
            return;
        };
        target.copy_from_slice(passed.payload);
        let listener = self.intern(passed.endpoint);
        let from = FiveTuple::new(Transport::Udp, passed.client, listener);
        let payload = received_at(slot, &(0..length), passed.tos);
        if passed.back {
            self.steering.call_back(from, passed.count);
            self.client_input(now, from, payload);
            return;
        }
        if self.steering.greet(from, passed.count) {
            self.client_input(now, from, payload);
            return;
        }
        let mut guest = Guest::Elsewhere;
        if passed.payload.starts_with(&REFRESH) {
            self.guest = Guest::Here;
            self.client_input(now, from, payload);
            guest = std::mem::replace(&mut self.guest, Guest::None);
        }
        let porter = Way {
            shard: home,
            count: passed.count,
        };
        if self.server.has_allocation(from) {
            self.steering.host(from, porter);
        } else if guest == Guest::Here {
            self.send_back(from, porter);
        } else {
            let back = Passed {
                back: true,
                ..*passed
            };
            let server = &mut self.server;
            (self.parcels).pass(home, &back, |posted| count_posted(server, &posted));
        }
    }

    /// An allocation of this shard is no longer on `five_tuple`.
    pub(super) fn left(&mut self, five_tuple: FiveTuple) {
        if self.server.has_allocation(five_tuple) {
            return;
        }
        if let Some(porter) = self.steering.take_leave(five_tuple) {
            self.send_back(five_tuple, porter);
        }
    }

    fn send_back(&self, five_tuple: FiveTuple, porter: Way) {
        let Some(&endpoint) = self.endpoints.get(usize::from(five_tuple.listener().0)) else {
            return;
        };
        let back = Message::CallBack {
            endpoint,
            client: five_tuple.client(),
            count: porter.count,
        };
        self.parcels.tell(porter.shard, back);
    }

    /// The shard that was passed datagrams of `client` has no allocation for it.
    pub(in crate::shard) fn call_back(
        &mut self,
        endpoint: Endpoint,
        client: SocketAddr,
        count: u32,
    ) {
        let listener = self.intern(endpoint);
        let five_tuple = FiveTuple::new(Transport::Udp, client, listener);
        self.steering.call_back(five_tuple, count);
    }

    /// Gives a connection to the shard that has its client's allocation.
    pub(in crate::shard) fn hand_on(&self, shard: u8, stream: ClientStream, queue: Queue) {
        let moved = Message::Move(Box::new((stream, queue)));
        self.parcels.tell(shard, moved);
    }

    /// Counts the allocation `id` for `client`.
    pub(super) fn move_client(&mut self, id: AllocationId, client: std::net::IpAddr) {
        let counted = self.relays.move_client(id, client);
        self.server.handle_client_moved(Clock.now(), id, counted);
    }
}
