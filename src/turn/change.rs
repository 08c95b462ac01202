//! What an operator changes while the server runs, and what that ends.
//!
//! Everything that was permitted before is judged again, so that no route survives a policy that forbids it.

use std::net::SocketAddr;
use std::sync::Arc;

use ahash::RandomState;

use crate::access::{Access, AddressRate, Denied};
use crate::base::{Family, FiveTuple, ListenerId, Now, Transport};
use crate::quality::Mode;

use super::allocation::AllocationId;
use super::auth::Nonces;
use super::reject::Reject;
use super::server::Server;
use super::{EndReason, Settings};

/// What clients with right credentials get who ask for an allocation and have none. The default is: an allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Newcomers {
    /// Servers they are sent to (300, RFC 8489 §10), in turn, each to one of its own family.
    pub alternates: Vec<SocketAddr>,
    /// Whether those who cannot be sent anywhere are refused (486) rather than served.
    pub refuse: bool,
}

impl Server {
    /// Replaces what decides access, and ends at once what it forbids: allocations of static users who are gone or whose
    /// password is another, of realms that are gone, and of whoever is revoked; permissions and channels of peers that are refused. How many
    /// allocations that were.
    ///
    /// A time-limited credential outlives its secret: its allocation can be refreshed until the credential is over.
    /// Drain `poll_output` afterwards.
    pub fn set_access(&mut self, now: Now, access: Arc<Access>) -> usize {
        let now = self.advance(now);
        let before = std::mem::replace(&mut self.access, access);
        let same_policy = before.peers == self.access.peers;
        let same_users = self.access.has_users_of(&before);
        let mut ended = 0;
        for id in self.ids(|_| true) {
            let Some(allocation) = self.allocations.get(id) else {
                continue;
            };
            let is_limited = allocation.credential_expires.is_some();
            let (username, user) = (&allocation.username, &allocation.user);
            let realm = allocation.realm;
            let gone = !same_users
                && (!self.access.knows(realm)
                    || !is_limited && !self.access.confirm(&before, realm, username));
            let revoked = || {
                let revoked = &self.access.revoked;
                revoked.find(realm, username, user, is_limited, now.unix)
            };
            if gone || revoked().is_some() {
                ended += usize::from(self.end(now, id, EndReason::Revoked));
            } else if !same_policy {
                self.judge_peers(now, id);
            }
        }
        ended
    }

    /// Replaces the settings. What was granted before stays granted until it is refreshed.
    pub fn set_settings(&mut self, settings: Settings) {
        let [a, b, c, d] = self.seed.hash;
        let hasher = || RandomState::with_seeds(a, b, c, d);
        let before = std::mem::replace(&mut self.settings, settings);
        let settings = &self.settings;
        self.flight.set_most(settings.quality.events);
        if settings.nonce_lifetime != before.nonce_lifetime {
            // The key stays: nonces that clients have are good for as long as they were made for.
            self.nonces = Nonces::new(&self.seed.nonce_key, settings.nonce_lifetime);
        }
        // Buckets that nobody asked to change keep what they have seen.
        if settings.unauthenticated_per_address != before.unauthenticated_per_address {
            self.unauthenticated = AddressRate::new(settings.unauthenticated_per_address, hasher());
        }
        if settings.auth_failures_per_address != before.auth_failures_per_address {
            self.auth_failures = AddressRate::new(settings.auth_failures_per_address, hasher());
        }
        self.watch_as_set();
    }

    /// Ends what watches calls where nothing is to be looked at. Where it is, the next permission or channel, be it refreshed,
    /// begins it.
    pub(super) fn watch_as_set(&mut self) {
        if self.settings.quality.mode == Mode::Off {
            for allocation in self.allocations.iter_mut() {
                allocation.watch = None;
            }
        }
    }

    /// Replaces the families that new relayed addresses exist in.
    pub fn set_families(&mut self, families: Vec<Family>) {
        self.seed.families = families;
    }

    /// Decides what newcomers get from now on; whoever has an allocation notices nothing.
    pub fn set_newcomers(&mut self, newcomers: Newcomers) {
        self.newcomers = newcomers;
    }

    /// Ends every allocation whose client uses `listener`.
    pub fn end_listener(&mut self, now: Now, listener: ListenerId, reason: EndReason) {
        self.end_clients(now, |five_tuple| five_tuple.listener() == listener, reason);
    }

    /// Ends every allocation whose client uses `listener` by `transport`.
    pub fn end_transport(
        &mut self,
        now: Now,
        listener: ListenerId,
        transport: Transport,
        reason: EndReason,
    ) {
        let of_it = |five_tuple: FiveTuple| {
            five_tuple.listener() == listener && five_tuple.transport() == transport
        };
        self.end_clients(now, of_it, reason);
    }

    fn end_clients(&mut self, now: Now, which: impl Fn(FiveTuple) -> bool, reason: EndReason) {
        let now = self.advance(now);
        // Or what moves from one five-tuple of these to another would be saved by that.
        self.leave_next(now, &which);
        for id in self.ids(&which) {
            let five_tuple = (self.allocations.get(id)).map(|allocation| allocation.five_tuple);
            if !five_tuple.is_some_and(|five_tuple| self.outlives(now, five_tuple)) {
                self.end(now, id, reason);
            }
        }
    }

    /// Whether a newcomer may allocate.
    ///
    /// # Errors
    /// 300 with another server of its family, or 486 where there is none and this one takes nobody.
    pub(super) fn admit_newcomer(&mut self, from: FiveTuple) -> Result<(), Reject> {
        let family = Family::of(from.client().ip());
        let of_family = || {
            (self.newcomers.alternates.iter())
                .filter(|alternate| Family::of(alternate.ip()) == family)
        };
        let count = of_family().count();
        if count > 0 {
            let turn = self.redirected % count;
            if let Some(alternate) = of_family().nth(turn).copied() {
                self.redirected = self.redirected.wrapping_add(1);
                return Err(Reject::TryAlternate(alternate));
            }
        }
        if self.newcomers.refuse {
            return Err(Reject::Draining);
        }
        Ok(())
    }

    /// Ends what the policy in force forbids `id`, and gives the rest the roads that are open now.
    fn judge_peers(&mut self, now: Now, id: AllocationId) {
        let access = Arc::clone(&self.access);
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        let (before, scope) = (allocation.next_expiry(), allocation.scope);
        let mut refused: Vec<(SocketAddr, Denied)> = Vec::new();
        (allocation.permissions).retain_mut(|permission| {
            match access.peers.permit_ip_within(scope, permission.ip.ip()) {
                Ok(ip) => {
                    permission.ip = ip;
                    true
                }
                Err(denied) => {
                    refused.push((SocketAddr::new(permission.ip.ip(), 0), denied));
                    false
                }
            }
        });
        let ended: Vec<_> = allocation
            .channels
            .extract_if(.., |binding| {
                match access.peers.permit_within(scope, binding.peer.address()) {
                    Ok(peer) => {
                        binding.peer = peer;
                        false
                    }
                    Err(denied) => {
                        refused.push((binding.peer.address(), denied));
                        true
                    }
                }
            })
            .collect();
        for binding in &ended {
            self.routes.remove(allocation, binding);
        }
        self.routes.sync(allocation, now.mono);
        let after = allocation.next_expiry();
        self.timers.reschedule(id, before, Some(after));
        for (peer, denied) in refused {
            self.count_denied(id, peer, denied);
        }
        self.judge_connections(now, id);
    }

    /// The allocations whose five-tuple is `wanted`, in the order of their slots.
    fn ids(&self, wanted: impl Fn(FiveTuple) -> bool) -> Vec<AllocationId> {
        (self.allocations.range(0, usize::MAX))
            .filter(|allocation| wanted(allocation.five_tuple))
            .map(|allocation| allocation.id)
            .collect()
    }
}
