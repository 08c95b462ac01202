//! What the shards share: relay ports and quotas. Locked when an allocation begins or ends, never for a packet.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::access::{Limits, Quota, QuotaExceeded, RealmName, Realms, Wanted};
use crate::base::Family;

use super::RelayIp;
use super::free_ports::FreePorts;
use super::reservations::Reservations;

/// Every relayed address the server can have.
pub(super) struct RelayPool {
    addresses: Vec<AddressPool>,
    /// Ports in use and ports there are, of each of [`Family::ALL`].
    in_use: [AtomicUsize; Family::ALL.len()],
    total: [u32; Family::ALL.len()],
    counts: Arc<Counts>,
    generation: u32,
}

/// Allocations, whichever pool their relayed addresses are from.
struct Counts {
    quota: Mutex<Quota>,
    live: AtomicUsize,
    listening: Mutex<Listening>,
    reservations: Mutex<Reservations>,
}

/// Relayed addresses that are TCP's. Asked when a connection with a peer begins.
#[derive(Default)]
struct Listening {
    by_local: HashMap<SocketAddr, SocketAddr>,
    by_external: HashMap<SocketAddr, SocketAddr>,
}

/// The ports of one relay IP.
struct AddressPool {
    ip: RelayIp,
    ports: RangeInclusive<u16>,
    free: Mutex<FreePorts>,
    /// Which shard has each port open, plus one; 0 is none. Read for datagrams between shards, written at open and close.
    owners: Box<[AtomicU8]>,
}

/// Stands for a shard of another process.
pub(super) const ABROAD: u8 = u8::MAX - 1;

/// The same for a TCP relayed address there, which no datagram is for.
pub(super) const ABROAD_TCP: u8 = ABROAD - 1;

const _: () = assert!(super::MAX_SHARDS < ABROAD_TCP as u32);

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
        let counts = Counts {
            quota: Mutex::new(Quota::new(limits, [0; Family::ALL.len()])),
            live: AtomicUsize::new(0),
            listening: Mutex::default(),
            reservations: Mutex::default(),
        };
        let pool = Self::with_counts(ips, ports, Arc::new(counts), 0, |ports, _| {
            FreePorts::new(ports, now)
        });
        lock(&pool.counts.quota).set_ports(pool.total);
        pool
    }

    /// A pool before this one in a process that is gone, in which one of these addresses looked like `external`: nothing
    /// new comes from it. It is the `index`-th of its kind.
    pub fn before(
        &self,
        local: IpAddr,
        external: IpAddr,
        index: u32,
        now: Instant,
    ) -> Option<Self> {
        let ports = (self.addresses.iter()).find(|pool| pool.ip.local == local)?;
        let ports = ports.ports.clone();
        let counts = Arc::clone(&self.counts);
        let ip = RelayIp { local, external };
        Some(Self::with_counts(
            &[ip],
            ports,
            counts,
            u32::MAX - index,
            |ports, _| FreePorts::new(ports, now),
        ))
    }

    /// The pool that new relayed addresses come from after `earlier` ones, the last of which was in use; theirs live on.
    ///
    /// A port that both have is found out when it is bound. What somebody has there, or had a moment ago, rests here.
    pub fn succeed(
        earlier: &[Arc<Self>],
        ips: &[RelayIp],
        ports: RangeInclusive<u16>,
        now: Instant,
    ) -> Option<Self> {
        let last = earlier.last()?;
        let mut had = HashSet::new();
        for pool in earlier.iter().flat_map(|pool| &pool.addresses) {
            let local = pool.ip.local;
            had.extend(lock(&pool.free).resting().map(|port| (local, port)));
            let owned = (pool.ports.clone().zip(&pool.owners))
                .filter(|(_, owner)| owner.load(Ordering::Acquire) != 0);
            had.extend(owned.map(|(port, _)| (local, port)));
        }
        let generation = last.generation.wrapping_add(1);
        let counts = Arc::clone(&last.counts);
        let pool = Self::with_counts(ips, ports, counts, generation, |ports, local| {
            FreePorts::resting_where(ports, now, |port| had.contains(&(local, port)))
        });
        lock(&pool.counts.quota).set_ports(pool.total);
        Some(pool)
    }

    fn with_counts(
        ips: &[RelayIp],
        ports: RangeInclusive<u16>,
        counts: Arc<Counts>,
        generation: u32,
        free: impl Fn(RangeInclusive<u16>, IpAddr) -> FreePorts,
    ) -> Self {
        let count = ports.clone().count();
        let addresses: Vec<_> = ips
            .iter()
            .map(|ip| AddressPool {
                ip: *ip,
                ports: ports.clone(),
                free: Mutex::new(free(ports.clone(), ip.local)),
                owners: (0..count).map(|_| AtomicU8::new(0)).collect(),
            })
            .collect();
        let total = Family::ALL.map(|family| {
            let ips = ips.iter().filter(|ip| Family::of(ip.local) == family);
            (ips.count() * count) as u32
        });
        Self {
            addresses,
            in_use: Default::default(),
            total,
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

    /// Replaces the realms beside the default one and their limits.
    pub fn set_realms(&self, realms: &Realms) {
        let realms = realms.iter().map(|realm| (realm.name, realm.limits));
        lock(&self.counts.quota).set_realms(realms);
    }

    /// Live allocations of each of these realms, by their names.
    pub fn realms(&self) -> Vec<(RealmName, u32)> {
        let mut realms: Vec<_> = lock(&self.counts.quota).realms().collect();
        realms.sort_unstable();
        realms
    }

    /// How many allocations there may be at once; 0 is no limit.
    pub fn limit(&self) -> u32 {
        lock(&self.counts.quota).limits().allocations
    }

    /// How many of its ports are taken, of each of [`Family::ALL`].
    pub fn in_use(&self) -> [usize; Family::ALL.len()] {
        std::array::from_fn(|family| self.in_use[family].load(Ordering::Relaxed))
    }

    /// Whether no port of it is taken.
    pub fn is_idle(&self) -> bool {
        self.in_use() == [0; Family::ALL.len()]
    }

    /// How many ports it has, of each of [`Family::ALL`].
    pub const fn total(&self) -> [u32; Family::ALL.len()] {
        self.total
    }

    /// Every range of relayed addresses, as clients and peers see them.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, RangeInclusive<u16>)> {
        (self.addresses.iter()).map(|pool| (pool.ip.external, pool.ports.clone()))
    }

    /// Lets the port of `local` rest, which an earlier pool has given back, before it is chosen here.
    pub fn rest(&self, now: Instant, local: SocketAddr) {
        for pool in self
            .addresses
            .iter()
            .filter(|pool| pool.ip.local == local.ip())
        {
            lock(&pool.free).rest(now, local.port());
        }
    }

    /// Counts one more allocation of `user` from `client`. The server's own canary is nobody's, and in nobody's way.
    pub fn reserve(
        &self,
        user: &Arc<str>,
        client: IpAddr,
        wanted: Wanted,
    ) -> Result<(), QuotaExceeded> {
        if wanted.scope.is_canary() {
            return Ok(());
        }
        lock(&self.counts.quota).reserve(user, client, wanted)?;
        self.counts.live.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what `reserve` counted.
    pub fn release(&self, user: &Arc<str>, client: IpAddr, wanted: Wanted) {
        if wanted.scope.is_canary() {
            return;
        }
        lock(&self.counts.quota).release(user, client, wanted);
        self.counts.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts one more port of an allocation that has one in the other family.
    pub fn reserve_port(&self, user: &Arc<str>, wanted: Wanted) -> Result<(), QuotaExceeded> {
        if wanted.scope.is_canary() {
            return Ok(());
        }
        lock(&self.counts.quota).reserve_port(user, wanted)
    }

    /// Gives back what `reserve_port` counted, or all but the last port of an allocation.
    pub fn release_port(&self, user: &Arc<str>, wanted: Wanted) {
        if !wanted.scope.is_canary() {
            lock(&self.counts.quota).release_port(user, wanted);
        }
    }

    /// Counts such a port that is open already, whatever the limits.
    pub fn adopt_port(&self, user: &Arc<str>, wanted: Wanted) {
        if !wanted.scope.is_canary() {
            lock(&self.counts.quota).adopt_port(user, wanted);
        }
    }

    /// Counts a port that is kept for an allocation to come: as that allocation, which does not live yet.
    pub fn hold(
        &self,
        user: &Arc<str>,
        client: IpAddr,
        wanted: Wanted,
    ) -> Result<(), QuotaExceeded> {
        lock(&self.counts.quota).reserve(user, client, wanted)
    }

    /// Gives back what `hold` counted.
    pub fn release_held(&self, user: &Arc<str>, client: IpAddr, wanted: Wanted) {
        lock(&self.counts.quota).release(user, client, wanted);
    }

    /// The allocation from `client` is there for which a port was held from `before`.
    ///
    /// # Errors
    /// A limit of `client`, if that is another address. Nothing is counted any more then.
    pub fn reserve_held(
        &self,
        user: &Arc<str>,
        before: IpAddr,
        client: IpAddr,
        wanted: Wanted,
    ) -> Result<(), QuotaExceeded> {
        let mut quota = lock(&self.counts.quota);
        quota.release(user, before, wanted);
        quota.reserve(user, client, wanted)?;
        self.counts.live.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Ports that are kept, whichever pool they are from.
    pub fn reservations(&self) -> MutexGuard<'_, Reservations> {
        lock(&self.counts.reservations)
    }

    /// Gives back ports that were kept long enough.
    pub fn end_reservations(&self, now: Instant) {
        let expired = self.reservations().expired(now);
        for reserved in expired {
            reserved.give_back(now);
        }
    }

    /// Counts an allocation for the address `to` that was counted for `from`.
    ///
    /// # Errors
    /// The quota of `to` is used up.
    pub fn move_client(
        &self,
        from: IpAddr,
        to: IpAddr,
        wanted: Wanted,
    ) -> Result<(), QuotaExceeded> {
        if wanted.scope.is_canary() {
            return Ok(());
        }
        lock(&self.counts.quota).move_address(from, to)
    }

    /// How many allocations are counted.
    pub fn live(&self) -> usize {
        self.counts.live.load(Ordering::Relaxed)
    }

    /// Counts an allocation that lives already, whatever the limits.
    pub fn adopt(&self, user: &Arc<str>, client: IpAddr, wanted: Wanted) {
        if wanted.scope.is_canary() {
            return;
        }
        lock(&self.counts.quota).adopt(user, client, wanted);
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
            let family = Family::of(pool.ip.local);
            self.in_use[family as usize].fetch_add(claimed.len(), Ordering::Relaxed);
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

    /// An even port and the one above it on one address, which nobody has, chosen as [`take`](Self::take) does.
    pub fn take_pair(&self, now: Instant, family: Family) -> Option<[Place; 2]> {
        let mut of_family: Vec<_> = (self.addresses.iter().enumerate())
            .filter(|(_, pool)| Family::of(pool.ip.local) == family)
            .map(|(address, pool)| (lock(&pool.free).available(now, true), address, pool))
            .collect();
        of_family.sort_by_key(|(available, ..)| std::cmp::Reverse(*available));
        let places = of_family.into_iter().find_map(|(_, address, pool)| {
            let ports = lock(&pool.free).take_pair(now)?;
            Some(ports.map(|port| Place {
                address: address as u16,
                port,
            }))
        })?;
        self.in_use[family as usize].fetch_add(places.len(), Ordering::Relaxed);
        Some(places)
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

    /// How clients and peers see what is relayed from `local`; `None` if nothing is.
    pub fn external(&self, local: IpAddr) -> Option<IpAddr> {
        let pool = self.addresses.iter().find(|pool| pool.ip.local == local)?;
        Some(pool.ip.external)
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

    /// `place` belongs to another process, until [`come_home`](Self::come_home).
    pub fn set_abroad(&self, place: Place) {
        self.set_owner(place, Some(ABROAD));
    }

    /// `place` belongs to another process as well, for connections.
    pub fn set_abroad_tcp(&self, place: Place) {
        self.set_owner(place, Some(ABROAD_TCP));
    }

    /// Makes free what belonged to another process, which has ended.
    pub fn come_home(&self, now: Instant) {
        for (address, pool) in self.addresses.iter().enumerate() {
            for (port, owner) in pool.ports.clone().zip(pool.owners.iter()) {
                if [ABROAD + 1, ABROAD_TCP + 1].contains(&owner.load(Ordering::Acquire)) {
                    let place = Place {
                        address: address as u16,
                        port,
                    };
                    self.give_back(now, place);
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

    /// Says whether a socket of this server listens at `place`, for connections.
    pub fn set_listening(&self, place: Place, listens: bool) {
        let RelayAddresses { local, external } = self.addresses(place);
        let mut listening = lock(&self.counts.listening);
        if listens {
            listening.by_local.insert(local, external);
            listening.by_external.insert(external, local);
        } else {
            listening.by_local.remove(&local);
            listening.by_external.remove(&external);
        }
    }

    /// Where the TCP relayed address is bound that clients and peers see as `external`, if any shard has it.
    pub fn listener_of(&self, external: SocketAddr) -> Option<SocketAddr> {
        lock(&self.counts.listening)
            .by_external
            .get(&external)
            .copied()
    }

    /// How clients and peers see the TCP relayed address that is bound to `local`, if any shard has it.
    pub fn listener_at(&self, local: SocketAddr) -> Option<SocketAddr> {
        lock(&self.counts.listening).by_local.get(&local).copied()
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
