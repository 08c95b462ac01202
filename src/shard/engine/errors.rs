//! What sockets tell beside datagrams: DSCP and ECN, and ICMP errors about what relay sockets sent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::base::{Clock, Family, Now};
use crate::net::IcmpError;
use crate::shard::relays::Reports;
use crate::turn::{AllocationId, Dscp, Protocol};
use crate::wire::Icmp;

use super::Shard;

/// Errors that one look at a relay socket takes.
const ERRORS: usize = 64;

/// How long a socket that had as many tells of none: somebody makes them up, and taking them is work as well.
const SILENCE: Duration = Duration::from_secs(1);

impl Reports {
    /// What `protocol` wants told.
    pub(super) fn of(protocol: &Protocol) -> Self {
        Self {
            tos: protocol.dscp == Dscp::Preserve,
            errors: protocol.icmp,
        }
    }
}

impl Shard {
    /// Takes the errors that the relay socket of an allocation has met with, for its client. `unsent` is the peer of a datagram
    /// that did not even leave.
    pub(super) fn receive_errors(
        &mut self,
        now: Now,
        (id, family): (AllocationId, Family),
        unsent: Option<SocketAddr>,
    ) {
        let Self { relays, server, .. } = self;
        let Some(relay) = relays.get(id, family) else {
            return;
        };
        let mut unsent = unsent;
        let count = relay.socket.take_errors(ERRORS, |error| {
            let IcmpError {
                mut to,
                kind,
                code,
                data,
            } = error;
            if to.port() == 0 {
                // Once, however often it was tried.
                match unsent.take_if(|peer| peer.ip() == to.ip()) {
                    Some(peer) => to = peer,
                    None => return,
                }
            }
            server.handle_icmp(now, id, relays.as_seen(to), Icmp { kind, code, data });
        });
        if count == ERRORS && relays.silence(id, family) {
            self.silent.push((now.mono + SILENCE, id, family));
        }
        self.drain_outputs(now);
    }

    /// Lets clients know whose datagrams this host did not send, since no link takes them whole.
    #[cold]
    pub(super) fn tell_unsent(&mut self) {
        let now = Clock.now();
        for (id, peer) in std::mem::take(&mut self.unsent) {
            let family = Family::of(peer.ip());
            self.receive_errors(now, (id, family), Some(peer));
        }
    }

    /// Lets relay sockets tell of errors again that have been silent for long enough.
    pub(super) fn end_silence(&mut self, now: Instant) {
        let relays = &mut self.relays;
        self.silent.retain(|(until, id, family)| {
            let over = *until <= now;
            if over {
                relays.end_silence(*id, *family);
            }
            !over
        });
    }
}
