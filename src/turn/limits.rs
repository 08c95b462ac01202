//! Where traffic meets its limits: bandwidth ([`police`](super::police), purses) and new peers (contacts).

use std::net::SocketAddr;

use crate::base::{Now, Pii};
use crate::quality::{Mode, Watch};

use super::allocation::AllocationId;
use super::contacts::Contacts;
use super::police::{Bandwidth, Grant, Police, Rates, ScopedRates};
use super::purses::{PurseId, Purses, Settlement};
use super::server::Server;
use super::stats::Direction;

impl Server {
    /// Replaces the limits of bandwidth, for allocations that live as well.
    pub fn set_bandwidth(&mut self, now: Now, bandwidth: Bandwidth) {
        if bandwidth == self.settings.bandwidth {
            return;
        }
        let at = self.nanos(now);
        self.settings.bandwidth = bandwidth;
        self.rates = ScopedRates::new(bandwidth);
        for allocation in self.allocations.iter_mut() {
            if allocation.relayed().is_some() {
                let old = allocation.police.take();
                let rates = self.rates.of(allocation.scope);
                allocation.police = engage(rates, &mut self.purses, at, &allocation.user);
                // Closed after the new one was opened: a purse that stays keeps what it holds.
                if let Some(purse) = old.and_then(|police| police.user) {
                    self.purses.close(purse);
                }
            }
        }
        if self.rates.total() {
            self.purses.call(PurseId::TOTAL);
        }
    }

    /// Replaces `Settings::new_peers_per_second`.
    pub const fn set_new_peers_per_second(&mut self, per_second: u32) {
        self.settings.new_peers_per_second = per_second;
    }

    /// Whether `poll_purse` has something.
    pub fn purses_are_due(&self) -> bool {
        self.purses.are_due()
    }

    /// The next purse that is to settle; answer with `fund` unless it is closed. Ask after every input: where a user or
    /// the whole server has a limit, nothing passes that was not funded.
    pub fn poll_purse(&mut self) -> Option<Settlement> {
        self.purses.poll()
    }

    /// What `purse` may spend from `now` on, by `Direction`; what it spent since it settled counts against it.
    pub fn fund(&mut self, now: Now, purse: PurseId, grants: [Grant; Direction::ALL.len()]) {
        let at = self.nanos(now);
        self.purses.fund(purse, at, grants);
    }

    /// Places an allocation that goes live under the limits of bandwidth.
    pub(super) fn place_under_limits(&mut self, now: Now, id: AllocationId) {
        let at = self.nanos(now);
        if let Some(allocation) = self.allocations.get_mut(id) {
            let rates = self.rates.of(allocation.scope);
            allocation.police = engage(rates, &mut self.purses, at, &allocation.user);
        }
    }

    /// Makes room for the peers that so many permissions may be used for, and for what is to be known of them: the data path
    /// has to find it.
    pub(super) fn expect_peers(&mut self, now: Now, id: AllocationId, permissions: usize) {
        let per_second = self.settings.new_peers_per_second;
        let at = self.nanos(now);
        self.begin_watch(now, id);
        if per_second > 0
            && let Some(allocation) = self.allocations.get_mut(id)
        {
            (allocation.contacts)
                .get_or_insert_with(|| Contacts::new(per_second, at))
                .grow(permissions);
        }
    }

    /// Watches the allocation, unless that is done or nothing is to be looked at.
    pub(super) fn begin_watch(&mut self, now: Now, id: AllocationId) {
        let at = self.nanos(now);
        if self.settings.quality.mode != Mode::Off
            && let Some(allocation) = self.allocations.get_mut(id)
        {
            (allocation.watch).get_or_insert_with(|| Box::new(Watch::new(at)));
        }
    }

    /// Whether the allocation may address `new` peers that it did not address lately. Counted and logged if not.
    pub(super) fn admits_new_peers(&mut self, now: Now, id: AllocationId, new: usize) -> bool {
        let per_second = self.settings.new_peers_per_second;
        let at = self.nanos(now);
        let Some(allocation) = self.allocations.get_mut(id) else {
            return false;
        };
        let Some(contacts) = &mut allocation.contacts else {
            return true;
        };
        if per_second == 0 || new == 0 {
            return true;
        }
        if contacts.admit(per_second, at, new) {
            return true;
        }
        self.stats.new_peers_refused += new as u64;
        if !std::mem::replace(&mut contacts.refusal_logged, true) {
            tracing::info!(
                user = %allocation.user.escape_debug(),
                client = %Pii(allocation.five_tuple.client()),
                peers = contacts.addressed,
                silent = contacts.silent,
                "an allocation addresses new peers faster than limits.new_peers_per_second allows; some are refused"
            );
        }
        false
    }

    /// Remembers a peer that was not known; whether it `answered` or is taken to.
    pub(super) fn remember_peer(&mut self, id: AllocationId, peer: SocketAddr, answered: bool) {
        let hash = self.hasher.hash_one(peer);
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        let Some(contacts) = &mut allocation.contacts else {
            return;
        };
        if contacts.add(hash, answered) {
            self.stats.scan_suspects += 1;
            tracing::info!(
                user = %allocation.user.escape_debug(),
                client = %Pii(allocation.five_tuple.client()),
                peers = contacts.addressed,
                silent = contacts.silent,
                "many peers of an allocation never answered: a scan, or addresses that are out of date"
            );
        }
    }

    /// Nanoseconds since the server was made.
    pub(super) fn nanos(&self, now: Now) -> u64 {
        nanos(now.mono.saturating_duration_since(self.started))
    }
}

/// A time as buckets count it; it ends after 584 years.
pub(super) const fn nanos(elapsed: std::time::Duration) -> u64 {
    elapsed.as_nanos() as u64
}

/// What policing keeps of an allocation of `user`; nothing where nothing is limited.
fn engage(
    rates: &Rates,
    purses: &mut Purses,
    at: u64,
    user: &std::sync::Arc<str>,
) -> Option<Box<Police>> {
    let purse = rates.user.then(|| purses.open(user));
    rates.any().then(|| Police::new(rates, at, purse))
}
