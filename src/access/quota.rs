//! Quotas on allocations.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use crate::base::addr::subscriber;

/// How many allocations may live at once; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In total.
    pub allocations: u32,
    /// Per user id.
    pub allocations_per_user: u32,
    /// Per client IPv4 address or IPv6 /64.
    pub allocations_per_address: u32,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum QuotaExceeded {
    /// `allocations`
    Total,
    /// `allocations_per_user`
    User,
    /// `allocations_per_address`
    Address,
}

impl QuotaExceeded {
    /// Every limit, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Total, Self::User, Self::Address];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::User => "user",
            Self::Address => "address",
        }
    }
}

/// Counts live allocations against the limits.
///
/// Holds one entry per user and per address with a live allocation, none for anyone else.
#[derive(Debug, Default)]
pub struct Quota {
    limits: Limits,
    live: u32,
    // Strangers choose these keys: std's hasher is seeded from the kernel.
    by_user: HashMap<Arc<str>, u32>,
    by_address: HashMap<IpAddr, u32>,
}

impl Quota {
    /// Starts with nothing counted.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Replaces the limits. What lives already stays counted, even above a lower limit.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The limits in force.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Live allocations in total.
    pub const fn live(&self) -> u32 {
        self.live
    }

    /// Live allocations of `user`.
    pub fn live_of_user(&self, user: &str) -> u32 {
        self.by_user.get(user).copied().unwrap_or(0)
    }

    /// Live allocations from the IPv4 address or IPv6 /64 of `client`.
    pub fn live_from(&self, client: IpAddr) -> u32 {
        let address = subscriber(client);
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    /// Counts one allocation of `user` from `client`.
    ///
    /// # Errors
    /// The limit that is reached, the widest first; nothing is counted then.
    pub fn reserve(&mut self, user: &Arc<str>, client: IpAddr) -> Result<(), QuotaExceeded> {
        let limits = self.limits;
        if reached(limits.allocations, self.live) {
            return Err(QuotaExceeded::Total);
        }
        if reached(limits.allocations_per_user, self.live_of_user(user)) {
            return Err(QuotaExceeded::User);
        }
        if reached(limits.allocations_per_address, self.live_from(client)) {
            return Err(QuotaExceeded::Address);
        }
        self.adopt(user, client);
        Ok(())
    }

    /// Counts one that lives already, whatever the limits.
    pub fn adopt(&mut self, user: &Arc<str>, client: IpAddr) {
        self.live = self.live.saturating_add(1);
        *self.by_user.entry(Arc::clone(user)).or_default() += 1;
        *self.by_address.entry(subscriber(client)).or_default() += 1;
    }

    /// Gives back what `reserve` counted; does nothing if `user` and `client` have nothing to give back.
    pub fn release(&mut self, user: &Arc<str>, client: IpAddr) {
        let address = subscriber(client);
        if self.by_user.contains_key(user) && self.by_address.contains_key(&address) {
            self.live -= 1;
            decrement(&mut self.by_user, user);
            decrement(&mut self.by_address, &address);
        }
    }
}

/// Whether `live` leaves no room under `limit`. Without a limit the counters still have their own end.
const fn reached(limit: u32, live: u32) -> bool {
    live == u32::MAX || (limit != 0 && live >= limit)
}

fn decrement<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_go_when_they_reach_zero() {
        let mut quota = Quota::new(Limits::default());
        let user = Arc::from("alice");
        let client = IpAddr::from([192, 0, 2, 1]);
        quota.reserve(&user, client).unwrap();
        quota.reserve(&user, client).unwrap();
        quota.release(&user, client);
        assert_eq!((quota.by_user.len(), quota.by_address.len()), (1, 1));
        quota.release(&user, client);
        quota.release(&user, client);
        assert_eq!((quota.by_user.len(), quota.by_address.len()), (0, 0));
        assert_eq!(quota.live(), 0);
    }
}
