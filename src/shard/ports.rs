//! What the shards share: relay ports and quotas. Locked when an allocation begins or ends, never for a packet.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::access::{Limits, Quota, QuotaExceeded};
use crate::base::Family;

use super::RelayIp;

/// Every relayed address the server can have.
pub(super) struct RelayPool {
    addresses: Vec<AddressPool>,
    quota: Mutex<Quota>,
    in_use: AtomicUsize,
    total: usize,
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

struct FreePorts {
    ports: Vec<u16>,
    random: StdRng,
}

/// A port taken out of the pool, to be given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    address: usize,
    port: u16,
    pub local: SocketAddr,
    pub external: SocketAddr,
}

impl RelayPool {
    pub fn new(ips: &[RelayIp], ports: RangeInclusive<u16>, limits: Limits) -> Self {
        let count = ports.clone().count();
        let addresses: Vec<_> = ips
            .iter()
            .map(|ip| AddressPool {
                ip: *ip,
                ports: ports.clone(),
                free: Mutex::new(FreePorts {
                    ports: ports.clone().collect(),
                    random: rand::make_rng(),
                }),
                owners: (0..count).map(|_| AtomicU8::new(0)).collect(),
            })
            .collect();
        Self {
            total: addresses.len() * count,
            addresses,
            quota: Mutex::new(Quota::new(limits)),
            in_use: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
        }
    }

    /// Counts one more allocation of `user` from `client`.
    pub fn reserve(&self, user: &Arc<str>, client: IpAddr) -> Result<(), QuotaExceeded> {
        lock(&self.quota).reserve(user, client)?;
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what `reserve` counted.
    pub fn release(&self, user: &Arc<str>, client: IpAddr) {
        lock(&self.quota).release(user, client);
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// A port of `family` that nobody has, chosen at random from all free ones; `None` if there is none.
    pub fn take(&self, family: Family) -> Option<Lease> {
        let (address, pool) = (self.addresses.iter().enumerate())
            .filter(|(_, pool)| Family::of(pool.ip.local) == family)
            .max_by_key(|(_, pool)| lock(&pool.free).ports.len())?;
        let mut free = lock(&pool.free);
        let FreePorts { ports, random } = &mut *free;
        if ports.is_empty() {
            return None;
        }
        let port = ports.swap_remove(random.random_range(0..ports.len()));
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Some(Lease {
            address,
            port,
            local: SocketAddr::new(pool.ip.local, port),
            external: SocketAddr::new(pool.ip.external, port),
        })
    }

    /// Makes `lease` free for the next one.
    pub fn give_back(&self, lease: Lease) {
        let Some(pool) = self.addresses.get(lease.address) else {
            return;
        };
        self.set_owner(lease, None);
        lock(&pool.free).ports.push(lease.port);
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }

    /// Says which shard has `lease` open.
    pub fn set_owner(&self, lease: Lease, shard: Option<u8>) {
        if let Some(owner) =
            (self.addresses.get(lease.address)).and_then(|pool| pool.owner(lease.port))
        {
            owner.store(shard.map_or(0, |shard| shard + 1), Ordering::Release);
        }
    }

    /// Which shard has the relayed address `external` open.
    pub fn owner(&self, external: SocketAddr) -> Option<u8> {
        self.addresses
            .iter()
            .find(|pool| pool.ip.external == external.ip())?
            .owner(external.port())?
            .load(Ordering::Acquire)
            .checked_sub(1)
    }

    /// Share of the scarcest resource in use: ports, or allocations where they are limited.
    pub fn capacity_ratio(&self, limit: u32) -> f64 {
        let ports = self.in_use.load(Ordering::Relaxed) as f64 / self.total.max(1) as f64;
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
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
