//! Datagrams of DTLS on their way through a shard: records become messages of their session's five-tuple, and what is for
//! such a client becomes records.

use crate::base::{Clock, FiveTuple, Now, Pii, Transport};
use crate::net::{HEADROOM, IpFields, SendFault};
use crate::shard::dtls::{Greeting, Sessions, Speaks};
use crate::stream::dtls::{ClientHello, DATA_BYTES, Event, Over, is_dtls};
use crate::turn::DropReason;
use crate::wire;

use super::{Endpoint, Payload, Shard};

/// First byte of a record that carries handshake messages.
const HANDSHAKE: u8 = 22;

impl Shard {
    /// Takes a datagram that is no plain TURN, on a listener that speaks other than that alone; false if it is some.
    pub(super) fn takes(
        &mut self,
        now: Now,
        speaks: Speaks,
        from: FiveTuple,
        came: Payload,
    ) -> bool {
        let first = came.bytes(&self.batches[self.current]).first().copied();
        if speaks.dtls && first.is_some_and(is_dtls) {
            let from = FiveTuple::new(Transport::Dtls, from.client(), from.listener());
            self.records_input(now, from, came);
        } else if speaks.plain {
            return false;
        } else {
            self.server.count_drop(DropReason::NotStun, 1);
        }
        true
    }

    fn records_input(&mut self, now: Now, from: FiveTuple, came: Payload) {
        let bytes = came.bytes(&self.batches[self.current]);
        let handshake = bytes.first() == Some(&HANDSHAKE);
        let hello = handshake.then(|| ClientHello::read(bytes)).flatten();
        if let Some(hello) = hello {
            if from.client().port() == 0 || self.relays.is_bound(from.client()) {
                return self.server.count_drop(DropReason::Unanswerable, 1);
            }
            if !self.server.may_greet(now, from) {
                return self.server.count_drop(DropReason::RateLimited, 1);
            }
            match self.dtls.greet(now, from, &hello) {
                Greeting::Verify(request) => return self.send_record(from, &request),
                Greeting::Refuse(alert) => return self.send_record(from, &alert),
                Greeting::Begun => return self.run_session(now, from, came),
                Greeting::Known => {}
                Greeting::Replaces => {
                    // Whoever had this address and port before has lost its state, and proved that it has the address
                    // (RFC 6347 §4.2.8).
                    self.forget_session(now, from);
                    let bytes = came.bytes(&self.batches[self.current]);
                    let again = ClientHello::read(bytes);
                    let greeting = again.map(|hello| self.dtls.greet(now, from, &hello));
                    if matches!(greeting, Some(Greeting::Begun)) {
                        self.run_session(now, from, came);
                    }
                    return;
                }
                Greeting::Nothing => return self.server.count_drop(DropReason::Dtls, 1),
            }
        }
        let Some(guest) = self.dtls.get_mut(from) else {
            self.server.count_drop(DropReason::Dtls, 1);
            return;
        };
        guest.heard = now.mono;
        let timed = if handshake || !guest.connected {
            guest.session.tick(now.mono)
        } else {
            Ok(())
        };
        let bytes = came.bytes(&self.batches[self.current]);
        if timed.and_then(|()| guest.session.receive(bytes)).is_err() {
            self.forget_session(now, from);
            return;
        }
        self.run_session(now, from, came);
    }

    /// Carries out what a session wants, until it wants nothing. Application data takes the place of the records that it
    /// `came` in.
    fn run_session(&mut self, now: Now, from: FiveTuple, came: Payload) {
        let mut place = came;
        loop {
            match self.poll_session(from) {
                Ok(Event::Packet(length)) => self.send_buffered(from, length),
                Ok(Event::Data(length)) => {
                    let Some(data) = self.put_in_place(&mut place, length) else {
                        self.server.count_drop(DropReason::TooLarge, 1);
                        continue;
                    };
                    self.be_busy(from, true);
                    self.client_input(now, from, data);
                    self.be_busy(from, false);
                }
                Ok(Event::Connected) => {
                    self.dtls.connect(from);
                    tracing::debug!(client = %Pii(from.client()), "DTLS client");
                }
                Ok(Event::Closed) => {
                    self.end_session(now, from);
                    return;
                }
                Ok(Event::Sleep(at)) => {
                    self.dtls.look_again(from, now.mono, at);
                    return;
                }
                Err(Over) => {
                    self.forget_session(now, from);
                    return;
                }
            }
        }
    }

    /// Copies what the session has decrypted over the records it was in, which are longer; so it has room in front.
    fn put_in_place(&mut self, place: &mut Payload, length: usize) -> Option<Payload> {
        // Several records in a datagram follow each other.
        let spare = (place.length.checked_sub(length)?).min(wire::HEADROOM);
        let data = Payload {
            start: place.start + spare,
            length,
            room: place.room + spare,
            ..*place
        };
        let buffer = self.batches[self.current].buffer_mut(usize::from(place.slot));
        let target = buffer.get_mut(data.start..data.start + length)?;
        target.copy_from_slice(self.dtls.buffer.get(..length)?);
        let used = spare + length;
        *place = Payload {
            start: place.start + used,
            length: place.length - used,
            room: 0,
            ..*place
        };
        Some(data)
    }

    fn be_busy(&mut self, five_tuple: FiveTuple, busy: bool) {
        if let Some(guest) = self.dtls.get_mut(five_tuple) {
            guest.busy = busy;
        }
    }

    fn poll_session(&mut self, five_tuple: FiveTuple) -> Result<Event, Over> {
        let (guest, buffer, _) = self.dtls.work(five_tuple).ok_or(Over)?;
        guest.session.poll(buffer)
    }

    /// Application data for a DTLS client, behind its header.
    pub(super) fn seal(&mut self, five_tuple: FiveTuple, payload: Payload, header: &wire::Header) {
        let bytes = payload.bytes(&self.batches[self.current]);
        let Some((guest, _, plain)) = self.dtls.work(five_tuple) else {
            return;
        };
        plain.clear();
        plain.extend_from_slice(header.bytes());
        plain.extend_from_slice(bytes);
        plain.resize(plain.len() + header.padding(), 0);
        if plain.len() > DATA_BYTES {
            return self.server.count_drop(DropReason::TooLarge, 1);
        }
        let sent = guest.session.send(plain);
        self.send_sealed(five_tuple, sent);
    }

    /// An answer for a DTLS client.
    pub(super) fn seal_answer(&mut self, five_tuple: FiveTuple, message: &[u8]) {
        let Some(guest) = self.dtls.get_mut(five_tuple) else {
            return;
        };
        let sent = guest.session.send(message);
        self.send_sealed(five_tuple, sent);
    }

    /// Sends what `sent` left in the session, unless somebody is at it who will, and for whom the data is that came with it.
    fn send_sealed(&mut self, five_tuple: FiveTuple, sent: Result<(), Over>) {
        if sent.is_ok() && (self.dtls.get_mut(five_tuple)).is_some_and(|guest| guest.busy) {
            return;
        }
        let mut event = sent.and_then(|()| self.poll_session(five_tuple));
        while let Ok(Event::Packet(length)) = event {
            self.send_buffered(five_tuple, length);
            event = self.poll_session(five_tuple);
        }
        // A session that is over is found and ended by the next look at it, which nobody is in the middle of.
        if event.is_err()
            && let Some(guest) = self.dtls.get_mut(five_tuple)
        {
            guest.failed = true;
            let now = Clock.now().mono;
            self.dtls.look_again(five_tuple, now, now);
        }
    }

    fn send_buffered(&mut self, five_tuple: FiveTuple, length: usize) {
        let buffer = std::mem::take(&mut self.dtls.buffer);
        self.send_record(five_tuple, buffer.get(..length).unwrap_or_default());
        self.dtls.buffer = buffer;
    }

    fn send_record(&mut self, five_tuple: FiveTuple, datagram: &[u8]) {
        let endpoint = self.endpoints.get(usize::from(five_tuple.listener().0));
        let Some(&Endpoint::Udp { socket, local }) = endpoint else {
            return;
        };
        let Some(Some(listener)) = self.listeners.get(socket) else {
            return;
        };
        let sent = (listener.socket).send_to(datagram, five_tuple.client(), local);
        if let Err(fault) = sent {
            let reason = match fault {
                SendFault::WouldBlock => DropReason::SendBuffer,
                SendFault::TooLarge => DropReason::TooLarge,
                SendFault::Unreachable | SendFault::Other => DropReason::SendError,
            };
            self.server.count_drop(reason, 1);
        }
    }

    /// Looks at the sessions whose time has come.
    pub(super) fn look_at_sessions(&mut self, now: Now) {
        while let Some((at, five_tuple)) = self.dtls.next()
            && at <= now.mono
        {
            let allocated = self.server.has_allocation(five_tuple);
            let Some(guest) = self.dtls.get_mut(five_tuple) else {
                self.dtls.forget_deadline((at, five_tuple));
                continue;
            };
            if Sessions::is_over(guest, now.mono, allocated) {
                self.end_session(now, five_tuple);
            } else if guest.failed || guest.session.tick(now.mono).is_err() {
                self.forget_session(now, five_tuple);
            } else {
                // No records came, so no data will.
                let nowhere = Payload {
                    slot: 0,
                    start: HEADROOM,
                    length: 0,
                    room: 0,
                    fields: IpFields::default(),
                };
                self.run_session(now, five_tuple, nowhere);
            }
        }
    }

    /// Ends a session and what its client has, and says so to the client.
    pub(super) fn end_session(&mut self, now: Now, five_tuple: FiveTuple) {
        if let Some(guest) = self.dtls.get_mut(five_tuple) {
            let closed = guest.session.close();
            let mut event = closed.and_then(|()| self.poll_session(five_tuple));
            while let Ok(Event::Packet(_) | Event::Data(_) | Event::Closed | Event::Connected) =
                event
            {
                if let Ok(Event::Packet(length)) = event {
                    self.send_buffered(five_tuple, length);
                }
                event = self.poll_session(five_tuple);
            }
        }
        self.forget_session(now, five_tuple);
    }

    /// Ends a session and what its client has. There is nothing to be said.
    fn forget_session(&mut self, now: Now, five_tuple: FiveTuple) {
        if self.dtls.remove(five_tuple) {
            self.server.handle_client_closed(now, five_tuple);
            self.drain_outputs(now);
        }
    }

    /// Ends the sessions for which `which` is true.
    pub(super) fn end_sessions(&mut self, which: impl Fn(FiveTuple) -> bool) {
        let now = Clock.now();
        for five_tuple in self.dtls.of(which) {
            self.end_session(now, five_tuple);
        }
    }

    /// Ends the sessions of listener `slot`.
    pub(super) fn end_sessions_on(&mut self, slot: usize) {
        let of_it: Vec<bool> = (self.endpoints.iter())
            .map(|endpoint| matches!(endpoint, Endpoint::Udp { socket, .. } if *socket == slot))
            .collect();
        self.end_sessions(|five_tuple| {
            of_it.get(usize::from(five_tuple.listener().0)) == Some(&true)
        });
    }
}
