//! ICMP errors about what an allocation sent, on their way to its client (RFC 8656 §11.5).

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::{Family, Now};
use crate::wire::TransactionId;
use crate::wire::icmp::{Icmp, icmp_indication};

use super::allocation::AllocationId;
use super::flight::What;
use super::limits::nanos;
use super::relay::indication_id;
use super::server::Server;

/// Time between two errors that a client is told of, where more come than that.
const INTERVAL: Duration = Duration::from_millis(100);

/// Errors that a client is told of at once after silence.
const AT_ONCE: u32 = 20;

/// What became of an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IcmpFate {
    /// The client was told.
    Told,
    /// It has no permission for the peer, or policy refuses it.
    NoPermission,
    /// It was told of others a moment ago.
    RateLimited,
    /// Of a type that clients are not told of, or for an allocation that is over.
    Ignored,
}

impl IcmpFate {
    /// Every fate, in the order of their discriminants.
    pub const ALL: [Self; 4] = [
        Self::Told,
        Self::NoPermission,
        Self::RateLimited,
        Self::Ignored,
    ];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::NoPermission => "no_permission",
            Self::RateLimited => "rate_limited",
            Self::Ignored => "ignored",
        }
    }
}

/// How many errors a client is told of: a token bucket in eight bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// When its tokens are all there again, in nanoseconds since the server was made.
    full_at: u64,
}

impl Told {
    /// Takes a token at `at`, if there is one.
    fn admit(&mut self, at: u64) -> bool {
        let interval = INTERVAL.as_nanos() as u64;
        let full_at = self.full_at.max(at);
        if full_at - at > interval * u64::from(AT_ONCE - 1) {
            return false;
        }
        self.full_at = full_at + interval;
        true
    }
}

impl Server {
    /// An ICMP error about a datagram that the relay socket of `to` sent to `peer`; drain `poll_output` afterwards.
    ///
    /// The caller vouches that the socket sent something from that relayed address. Whoever knows the address can forge
    /// the rest, which costs the client a few small messages a second.
    pub fn handle_icmp(&mut self, now: Now, to: AllocationId, peer: SocketAddr, icmp: Icmp) {
        let now = self.advance(now);
        let fate = self.tell_of_icmp(now, to, peer, icmp);
        if matches!(fate, Some(IcmpFate::Told | IcmpFate::RateLimited)) {
            let (kind, code) = (icmp.kind, icmp.code);
            self.note(to, What::Icmp { kind, code }, Some(peer));
        }
        if let Some(fate) = fate {
            self.stats.icmp[fate as usize] += 1;
        }
    }

    /// `None` for what nobody counts.
    fn tell_of_icmp(
        &mut self,
        now: Now,
        to: AllocationId,
        peer: SocketAddr,
        icmp: Icmp,
    ) -> Option<IcmpFate> {
        let at = nanos(now.mono.saturating_duration_since(self.started));
        let Some(allocation) = self.allocations.get_mut(to) else {
            return Some(IcmpFate::Ignored);
        };
        // What is in a loop does not leave through a socket, but for the canary's.
        if allocation.scope.is_loop() {
            return None;
        }
        let over = allocation
            .ends(Family::of(peer.ip()))
            .is_none_or(|ends| ends <= now.mono)
            || allocation.relayed().is_none()
            || allocation.is_adrift();
        if over || !self.settings.protocol.icmp || !is_told(peer, icmp.kind) {
            return Some(IcmpFate::Ignored);
        }
        // A permission is for the IP, policy may be for the port.
        let permitted = allocation.permitted_until(peer.ip(), now.mono).is_some()
            && (self.access.peers)
                .admit_within(allocation.scope, peer)
                .is_ok();
        if !permitted {
            return Some(IcmpFate::NoPermission);
        }
        if !allocation.told.admit(at) {
            return Some(IcmpFate::RateLimited);
        }
        let five_tuple = allocation.five_tuple;
        let data = if is_too_big(peer, icmp) { icmp.data } else { 0 };
        let transaction = TransactionId(indication_id(&mut self.indications, &self.seed, to));
        let message = icmp_indication(peer, Icmp { data, ..icmp }, transaction);
        self.answer(five_tuple, message);
        Some(IcmpFate::Told)
    }
}

/// Whether clients are told of errors of this type (RFC 8656 §11.5).
fn is_told(peer: SocketAddr, kind: u8) -> bool {
    match Family::of(peer.ip()) {
        // Destination unreachable, time exceeded.
        Family::V4 => matches!(kind, 3 | 11),
        // Destination unreachable, packet too big, time exceeded.
        Family::V6 => matches!(kind, 1..=3),
    }
}

/// Whether the error tells the MTU of a link (RFC 1191 §4, RFC 4443 §3.2).
fn is_too_big(peer: SocketAddr, icmp: Icmp) -> bool {
    match Family::of(peer.ip()) {
        Family::V4 => (icmp.kind, icmp.code) == (3, 4),
        Family::V6 => icmp.kind == 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_for_each_interval() {
        let mut told = Told::default();
        let second = 1_000_000_000;
        let admitted = |told: &mut Told, at: u64| (0..1000).filter(|_| told.admit(at)).count();
        assert_eq!(admitted(&mut told, second), 20);
        assert_eq!(admitted(&mut told, second), 0);
        assert_eq!(admitted(&mut told, 2 * second), 10);
        assert_eq!(admitted(&mut told, 60 * second), 20);
    }
}
