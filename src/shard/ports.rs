//! What the shards share: relay ports and quotas. Locked when an allocation begins or ends, never for a packet.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::access::{Limits, Quota, QuotaExceeded};
use crate::base::Family;

use super::RelayIp;

/// Every relayed address the server can have.
pub(super) struct RelayPool {
    addresses: Vec<AddressPool>,
    in_use: AtomicUsize,
    total: usize,
    counts: Arc<Counts>,
    generation: u32,
}

/// Allocations, whichever pool their relayed addresses are from.
struct Counts {
    quota: Mutex<Quota>,
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

/// Stands for a shard of another process.
pub(super) const ABROAD: u8 = u8::MAX - 1;

const _: () = assert!(super::MAX_SHARDS < ABROAD as u32);

/// A relayed address from both sides of a 1:1 NAT.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelayAddresses {
    pub local: SocketAddr,
    pub external: SocketAddr,
}

/// What a relayed address has to be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub family: Family,
    pub even_port: bool,
}

/// One relayed address, small: which relay IP, and which of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    address: u16,
    port: u16,
}

impl RelayPool {
    pub fn new(ips: &[RelayIp], ports: RangeInclusive<u16>, limits: Limits) -> Self {
        let counts = Counts {
            quota: Mutex::new(Quota::new(limits)),
            live: AtomicUsize::new(0),
        };
        Self::with_counts(ips, ports, Arc::new(counts), 0)
    }

    /// The pool that new relayed addresses come from after this one; those of this one live on. A port that both have is
    /// found out when it is bound.
    pub fn succeed(&self, ips: &[RelayIp], ports: RangeInclusive<u16>) -> Self {
        Self::with_counts(
            ips,
            ports,
            Arc::clone(&self.counts),
            self.generation.wrapping_add(1),
        )
    }

    fn with_counts(
        ips: &[RelayIp],
        ports: RangeInclusive<u16>,
        counts: Arc<Counts>,
        generation: u32,
    ) -> Self {
        let count = ports.clone().count();
        let addresses: Vec<_> = ips
            .iter()
            .map(|ip| AddressPool {
                ip: *ip,
                ports: ports.clone(),
                free: Mutex::new(FreePorts::new(ports.clone())),
                owners: (0..count).map(|_| AtomicU8::new(0)).collect(),
            })
            .collect();
        Self {
            total: addresses.len() * count,
            addresses,
            in_use: AtomicUsize::new(0),
            counts,
            generation,
        }
    }

    /// How many pools there were before this one: tells their places apart.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Replaces the limits. What lives already stays, even above them.
    pub fn set_limits(&self, limits: Limits) {
        lock(&self.counts.quota).set_limits(limits);
    }

    /// How many allocations there may be at once; 0 is no limit.
    pub fn limit(&self) -> u32 {
        lock(&self.counts.quota).limits().allocations
    }

    /// How many of its ports are taken.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// How many ports it has.
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Counts one more allocation of `user` from `client`.
    pub fn reserve(&self, user: &Arc<str>, client: IpAddr) -> Result<(), QuotaExceeded> {
        lock(&self.counts.quota).reserve(user, client)?;
        self.counts.live.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what `reserve` counted.
    pub fn release(&self, user: &Arc<str>, client: IpAddr) {
        lock(&self.counts.quota).release(user, client);
        self.counts.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many allocations are counted.
    pub fn live(&self) -> usize {
        self.counts.live.load(Ordering::Relaxed)
    }

    /// Counts an allocation that lives already, whatever the limits.
    pub fn adopt(&self, user: &Arc<str>, client: IpAddr) {
        lock(&self.counts.quota).adopt(user, client);
        self.counts.live.fetch_add(1, Ordering::Relaxed);
    }

    /// The places of sockets that are open already, in their order, from now on nobody else's; `None` for one that is not
    /// of this pool.
    pub fn claim(&self, locals: &[SocketAddr]) -> Vec<Option<Place>> {
        let mut places = vec![None; locals.len()];
        for (address, pool) in self.addresses.iter().enumerate() {
            let ours = |local: &SocketAddr| local.ip() == pool.ip.local;
            let wanted = locals
                .iter()
                .filter(|local| ours(local))
                .map(SocketAddr::port)
                .collect();
            let claimed = lock(&pool.free).claim(&wanted);
            self.in_use.fetch_add(claimed.len(), Ordering::Relaxed);
            for (local, place) in locals.iter().zip(&mut places) {
                if ours(local) && claimed.contains(&local.port()) {
                    *place = Some(Place {
                        address: address as u16,
                        port: local.port(),
                    });
                }
            }
        }
        places
    }

    /// A port that nobody has, chosen at random from all free ones that will do; `None` if there is none.
    pub fn take(&self, wanted: Wanted) -> Option<Place> {
        let (address, pool) = (self.addresses.iter().enumerate())
            .filter(|(_, pool)| Family::of(pool.ip.local) == wanted.family)
            .max_by_key(|(_, pool)| lock(&pool.free).ports.len())?;
        let port = lock(&pool.free).take(wanted.even_port)?;
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Some(Place {
            address: address as u16,
            port,
        })
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

    /// Makes `place` free for the next one.
    pub fn give_back(&self, place: Place) {
        let Some(pool) = self.addresses.get(usize::from(place.address)) else {
            return;
        };
        self.set_owner(place, None);
        lock(&pool.free).ports.push(place.port);
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }

    /// `place` belongs to another process, until [`come_home`](Self::come_home).
    pub fn set_abroad(&self, place: Place) {
        self.set_owner(place, Some(ABROAD));
    }

    /// Makes free what belonged to another process, which has ended.
    pub fn come_home(&self) {
        for (address, pool) in self.addresses.iter().enumerate() {
            for (port, owner) in pool.ports.clone().zip(pool.owners.iter()) {
                if owner.load(Ordering::Acquire) == ABROAD + 1 {
                    self.give_back(Place {
                        address: address as u16,
                        port,
                    });
                }
            }
        }
    }

    /// How clients and peers see the relayed address that another process has bound to `local`, if it has.
    pub fn seen_abroad(&self, local: SocketAddr) -> Option<SocketAddr> {
        let pool = (self.addresses.iter()).find(|pool| pool.ip.local == local.ip())?;
        let owner = pool.owner(local.port())?.load(Ordering::Acquire);
        (owner == ABROAD + 1).then(|| SocketAddr::new(pool.ip.external, local.port()))
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
}

impl FreePorts {
    fn new(range: RangeInclusive<u16>) -> Self {
        let mut random: StdRng = rand::make_rng();
        let mut ports: Vec<u16> = range.collect();
        ports.shuffle(&mut random);
        Self { ports, random }
    }

    /// Takes those of `wanted` that are free.
    fn claim(&mut self, wanted: &HashSet<u16>) -> HashSet<u16> {
        self.ports
            .extract_if(.., |port| wanted.contains(port))
            .collect()
    }

    fn take(&mut self, even: bool) -> Option<u16> {
        if self.ports.is_empty() {
            return None;
        }
        let start = self.random.random_range(0..self.ports.len());
        // The list is in no order, so the first that will do from a random place on is a random one; half of them do.
        let (before, after) = self.ports.split_at(start);
        let fits = |port: &u16| !even || port.is_multiple_of(2);
        let index = match after.iter().position(fits) {
            Some(index) => start + index,
            None => before.iter().position(fits)?,
        };
        Some(self.ports.swap_remove(index))
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
