//! How datagrams leave a shard: gathered over a turn, sent with as few system calls as possible.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use crate::base::{FiveTuple, Transport};
use crate::net::{IpFields, Outgoing, SendFault, SendReport};
use crate::shard::hairpin::Posted;
use crate::turn::{DropReason, Path, Server};
use crate::wire;

use super::{Endpoint, Payload, Shard};

impl Shard {
    /// `payload` behind `header`, addressed to nobody yet.
    pub(super) fn framed(&mut self, payload: Payload, header: &wire::Header) -> Outgoing {
        let (front, padding) = (header.bytes(), header.padding());
        let mut outgoing = Outgoing {
            slot: payload.slot,
            start: payload.start as u32,
            len: payload.length as u32,
            to: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
            from: None,
            front: None,
            fields: IpFields {
                tos: payload.fields.tos,
                dont_fragment: false,
            },
        };
        if front.len() <= payload.room && padding == 0 {
            let begin = payload.start - front.len();
            let buffer = self.batches[self.current].buffer_mut(usize::from(payload.slot));
            buffer[begin..payload.start].copy_from_slice(front);
            outgoing.start = begin as u32;
            outgoing.len += front.len() as u32;
            return outgoing;
        }
        // Others' bytes lie around it: the header stays outside the slot, and the kernel puts the two together.
        outgoing.front = self.batches[self.current].front(front, padding);
        if outgoing.front.is_none() {
            self.flush();
            outgoing.front = self.batches[self.current].front(front, padding);
        }
        outgoing
    }

    /// Sends what has gathered, with as few system calls as possible.
    pub(in crate::shard) fn flush(&mut self) {
        self.flush_to_peers();
        for listener in self.listeners.iter_mut().flatten() {
            if !listener.outgoing.is_empty() {
                let report = self.batches[self.current].send(&listener.socket, &listener.outgoing);
                listener.outgoing.clear();
                self.segmentation_fallbacks += u64::from(report.gave_up_segments);
                account(&mut self.server, report);
            }
        }
        self.flush_to_streams();
        self.batches[self.current].forget_fronts();
        let server = &mut self.server;
        self.parcels.post(|posted| count_posted(server, &posted));
        if !self.unsent.is_empty() {
            self.tell_unsent();
        }
    }

    fn flush_to_streams(&mut self) {
        if std::mem::take(&mut self.scattered) {
            (self.to_streams)
                .sort_unstable_by_key(|item| (Rc::as_ptr(&item.client), item.sequence));
        }
        let batch = &self.batches[self.current];
        let mut dropped = 0;
        for items in (self.to_streams).chunk_by(|a, b| Rc::ptr_eq(&a.client, &b.client)) {
            if let Some(first) = items.first() {
                let lost = first.client.send(batch, items);
                if lost > 0 {
                    let five_tuple = first.client.five_tuple;
                    (self.server).note_unsent(five_tuple, DropReason::StreamQueue, lost);
                }
                dropped += lost;
            }
        }
        self.to_streams.clear();
        if dropped > 0 {
            self.server.count_drop(DropReason::StreamQueue, dropped);
        }
    }

    pub(super) fn flush_to_peers(&mut self) {
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
            self.segmentation_fallbacks += u64::from(report.gave_up_segments);
            account(&mut self.server, report);
            if let Some(peer) = report.unfragmented {
                self.unsent.push((relay.id(), peer));
            }
        }
        self.to_peers.clear();
    }

    /// An answer to a client.
    pub(super) fn send_message(&mut self, five_tuple: FiveTuple, message: Vec<u8>) {
        self.tap_answer(five_tuple, &message);
        match self.endpoints.get(usize::from(five_tuple.listener().0)) {
            Some(Endpoint::Udp { .. }) if five_tuple.transport() == Transport::Dtls => {
                self.seal_answer(five_tuple, &message);
            }
            Some(&Endpoint::Udp { socket, local }) => {
                let Some(Some(listener)) = self.listeners.get(socket) else {
                    return;
                };
                // No client can have the port of a relay socket: whoever wrote it there wants us to talk to ourselves.
                if self.relays.is_bound(five_tuple.client()) {
                    self.server.count_drop(DropReason::Unanswerable, 1);
                    return;
                }
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
                if let Some(client) = self.streams.get(&five_tuple) {
                    client.answer(&message);
                }
            }
            Some(Endpoint::Free) | None => {}
        }
    }
}

/// Counts what left for another shard, or did not.
pub(super) fn count_posted(server: &mut Server, posted: &Posted<'_>) {
    if posted.accepted {
        for length in posted.lengths {
            server.count_to_peer(Path::Hairpin, *length);
        }
    } else {
        let lost = posted.lengths.len() + posted.passed;
        server.count_drop(DropReason::Mailbox, lost as u64);
    }
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
