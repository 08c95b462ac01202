//! What the shards share: relay ports and quotas. Locked when an allocation begins or ends, never for a packet.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::access::{Limits, Quota, QuotaExceeded, Wanted};
use crate::base::Family;

use super::RelayIp;
use super::free_ports::FreePorts;

/// Every relayed address the server can have.
pub(super) struct RelayPool {
    addresses: Vec<AddressPool>,
    quota: Mutex<Quota>,
    /// Ports in use and ports there are, of each of [`Family::ALL`].
    in_use: [AtomicUsize; Family::ALL.len()],
    total: [u32; Family::ALL.len()],
    live: AtomicUsize,
}

/// The ports of one relay IP.
struct AddressPool {
    ip: RelayIp,
    ports: RangeInclusive<u16>,
    free: Mutex<FreePorts>,
    /// Which shard has each port open, plus one; 0 is none. Read for datagrams between shards, written at open and close.
    owners: Box<[AtomicU8]>,
}

/// A relayed address from both sides of a 1:1 NAT.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelayAddresses {
    pub local: SocketAddr,
    pub external: SocketAddr,
}

/// One relayed address, small: which relay IP, and which of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    address: u16,
    port: u16,
}

impl RelayPool {
    pub fn new(ips: &[RelayIp], ports: RangeInclusive<u16>, limits: Limits, now: Instant) -> Self {
        let count = ports.clone().count();
        let addresses: Vec<_> = ips
            .iter()
            .map(|ip| AddressPool {
                ip: *ip,
                ports: ports.clone(),
                free: Mutex::new(FreePorts::new(ports.clone(), now)),
                owners: (0..count).map(|_| AtomicU8::new(0)).collect(),
            })
            .collect();
        let total = Family::ALL.map(|family| {
            let ips = ips.iter().filter(|ip| Family::of(ip.local) == family);
            (ips.count() * count) as u32
        });
        Self {
            addresses,
            quota: Mutex::new(Quota::new(limits, total)),
            in_use: Default::default(),
            total,
            live: AtomicUsize::new(0),
        }
    }

    /// Counts one more allocation of `user` from `client`.
    pub fn reserve(
        &self,
        user: &Arc<str>,
        client: IpAddr,
        wanted: Wanted,
    ) -> Result<(), QuotaExceeded> {
        lock(&self.quota).reserve(user, client, wanted)?;
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what `reserve` counted.
    pub fn release(&self, user: &Arc<str>, client: IpAddr, wanted: Wanted) {
        lock(&self.quota).release(user, client, wanted);
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// A port that nobody has, chosen at random from all that will do; `None` if there is none.
    pub fn take(&self, now: Instant, wanted: Wanted) -> Option<Place> {
        let of_family = || {
            (self.addresses.iter().enumerate())
                .filter(|(_, pool)| Family::of(pool.ip.local) == wanted.family)
        };
        let take = |(address, pool): (usize, &AddressPool)| {
            let port = lock(&pool.free).take(now, wanted.even_port)?;
            Some(Place {
                address: address as u16,
                port,
            })
        };
        let most = of_family()
            .max_by_key(|(_, pool)| lock(&pool.free).available(now, wanted.even_port))?;
        // Another shard may have been faster.
        let place = take(most).or_else(|| of_family().find_map(take))?;
        self.in_use[wanted.family as usize].fetch_add(1, Ordering::Relaxed);
        Some(place)
    }

    /// Where the socket of `place` is bound, and how clients and peers see it.
    pub fn addresses(&self, place: Place) -> RelayAddresses {
        let ip = (self.addresses.get(usize::from(place.address))).map(|pool| pool.ip);
        // Places come from this pool, whose addresses never change.
        let ip = ip.unwrap_or_else(|| unreachable!("a place of another pool"));
        RelayAddresses {
            local: SocketAddr::new(ip.local, place.port),
            external: SocketAddr::new(ip.external, place.port),
        }
    }

    /// The place of a relayed address as clients and peers see it, whether anybody has it or not.
    pub fn find(&self, external: SocketAddr) -> Option<Place> {
        let address = (self.addresses.iter()).position(|pool| pool.ip.external == external.ip())?;
        Some(Place {
            address: address as u16,
            port: external.port(),
        })
    }

    /// Whether a relay socket of any shard is bound to `local`.
    pub fn is_bound(&self, local: SocketAddr) -> bool {
        (self.addresses.iter())
            .filter(|pool| pool.ip.local == local.ip())
            .filter_map(|pool| pool.owner(local.port()))
            .any(|owner| owner.load(Ordering::Acquire) != 0)
    }

    /// Makes `place` free for the next one, which gets it once it has rested.
    pub fn give_back(&self, now: Instant, place: Place) {
        self.free(place, |free| free.release(now, place.port));
    }

    /// Makes `place` free that nobody came to have: it needs no rest.
    pub fn put_back(&self, place: Place) {
        self.free(place, |free| free.put_back(place.port));
    }

    fn free(&self, place: Place, give: impl FnOnce(&mut FreePorts)) {
        let Some(pool) = self.addresses.get(usize::from(place.address)) else {
            return;
        };
        self.set_owner(place, None);
        give(&mut lock(&pool.free));
        let family = Family::of(pool.ip.local);
        self.in_use[family as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// Says which shard has `place` open.
    pub fn set_owner(&self, place: Place, shard: Option<u8>) {
        if let Some(owner) = self.owner_of(place) {
            owner.store(shard.map_or(0, |shard| shard + 1), Ordering::Release);
        }
    }

    /// Which shard has `place` open.
    pub fn owner(&self, place: Place) -> Option<u8> {
        self.owner_of(place)?.load(Ordering::Acquire).checked_sub(1)
    }

    fn owner_of(&self, place: Place) -> Option<&AtomicU8> {
        self.addresses
            .get(usize::from(place.address))?
            .owner(place.port)
    }

    /// Share of the scarcest resource in use: ports of a family, or allocations where they are limited. Ports that rest
    /// are free.
    pub fn capacity_ratio(&self, limit: u32) -> f64 {
        let ports = (self.in_use.iter().zip(self.total))
            .map(|(in_use, total)| in_use.load(Ordering::Relaxed) as f64 / f64::from(total.max(1)))
            .fold(0.0, f64::max);
        let allocations = match limit {
            0 => 0.0,
            limit => self.live.load(Ordering::Relaxed) as f64 / f64::from(limit),
        };
        ports.max(allocations).min(1.0)
    }
}

impl AddressPool {
    fn owner(&self, port: u16) -> Option<&AtomicU8> {
        let index = port.checked_sub(*self.ports.start())?;
        self.owners.get(usize::from(index))
    }
}

/// A shard that panicked while it held the lock left the lists whole: every change is one push or pop.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
