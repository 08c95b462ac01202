//! Quotas on allocations.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::realms::{RealmLimits, RealmName};
use super::scope::Scope;
use crate::base::Family;
use crate::base::addr::subscriber;

/// Allocations of one visit of the test page at once.
pub const LOOPS_PER_VISIT: u32 = 16;

/// Those of all visits from one IPv4 address or IPv6 /64.
pub const LOOPS_PER_ADDRESS: u32 = 2 * LOOPS_PER_VISIT;

/// Those of all visits.
pub const LOOPS: u32 = 128;

/// Visits get no more than one of so many allocations and ports that there may be, though a few in any case.
const LOOPS_SHARE: u32 = 4;

/// How many allocations may live at once; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In total.
    pub allocations: u32,
    /// Per user id.
    pub allocations_per_user: u32,
    /// Per client IPv4 address or IPv6 /64.
    pub allocations_per_address: u32,
    /// Per user id, of the relay ports of a family that others leave: percent. 100 is no limit, too.
    pub share_per_user: u8,
}

/// What a relayed address has to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// IPv4 or IPv6.
    pub family: Family,
    /// EVEN-PORT asks for an even one (RFC 8656 §18.7).
    pub even_port: bool,
    /// How far the allocation reaches that it is for.
    pub scope: Scope,
    /// The realm that knows its user; `None`: the default one.
    pub realm: Option<RealmName>,
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
    /// `share_per_user`
    Share,
    /// What visits of the test page may have.
    Visits,
    /// `realms.allocations`
    Realm,
}

impl QuotaExceeded {
    /// Every limit, in the order of their discriminants.
    pub const ALL: [Self; 6] = [
        Self::Total,
        Self::User,
        Self::Address,
        Self::Share,
        Self::Visits,
        Self::Realm,
    ];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::User => "user",
            Self::Address => "address",
            Self::Share => "share",
            Self::Visits => "visits",
            Self::Realm => "realm",
        }
    }
}

/// Relay ports of live allocations by family, and by whether an even one was asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Live {
    ports: [[u32; 2]; Family::ALL.len()],
    /// Those that are an allocation's second.
    additional: u32,
}

impl Live {
    /// Allocations.
    fn total(self) -> u32 {
        let ports: u32 = self.ports.as_flattened().iter().sum();
        ports - self.additional
    }

    fn of_family(self, family: Family) -> u32 {
        self.ports[family as usize].iter().sum()
    }

    fn of(&mut self, wanted: Wanted) -> &mut u32 {
        &mut self.ports[wanted.family as usize][usize::from(wanted.even_port)]
    }
}

/// Counts live allocations against the limits.
///
/// Holds one entry per user and per address with a live allocation, none for anyone else.
#[derive(Debug, Default)]
pub struct Quota {
    limits: Limits,
    /// Relay ports, by family.
    ports: [u32; Family::ALL.len()],
    live: Live,
    // Strangers choose these keys: std's hasher is seeded from the kernel.
    by_user: HashMap<Arc<str>, Live>,
    by_address: HashMap<IpAddr, u32>,
    /// Those of visits, by address and in total.
    loops_by_address: HashMap<IpAddr, u32>,
    loops: u32,
    /// Those of each realm but the default one.
    by_realm: HashMap<RealmName, u32>,
    realms: HashMap<RealmName, RealmLimits>,
}

impl Quota {
    /// Starts with nothing counted. `ports` is how many relay ports there are of each of [`Family::ALL`].
    pub fn new(limits: Limits, ports: [u32; Family::ALL.len()]) -> Self {
        Self {
            limits,
            ports,
            ..Self::default()
        }
    }

    /// Replaces the limits. What lives already stays counted, even above a lower limit.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Replaces the realms beside the default one and their limits, as [`set_limits`](Self::set_limits) does.
    pub fn set_realms(&mut self, realms: impl IntoIterator<Item = (RealmName, RealmLimits)>) {
        self.realms = realms.into_iter().collect();
    }

    /// Live allocations of each realm but the default one, in no order.
    pub fn realms(&self) -> impl Iterator<Item = (RealmName, u32)> {
        (self.realms.keys()).map(|realm| (*realm, self.live_of_realm(*realm)))
    }

    fn live_of_realm(&self, realm: RealmName) -> u32 {
        self.by_realm.get(&realm).copied().unwrap_or(0)
    }

    /// The limits in force.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Replaces how many relay ports there are of each of [`Family::ALL`].
    pub const fn set_ports(&mut self, ports: [u32; Family::ALL.len()]) {
        self.ports = ports;
    }

    /// Live allocations in total.
    pub fn live(&self) -> u32 {
        self.live.total()
    }

    /// Live allocations of `user`.
    pub fn live_of_user(&self, user: &str) -> u32 {
        self.held(user).total()
    }

    /// Live allocations from the IPv4 address or IPv6 /64 of `client`.
    pub fn live_from(&self, client: IpAddr) -> u32 {
        let address = subscriber(client);
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    /// Counts one allocation of `user` from `client`, which takes a relay port that is `wanted`.
    ///
    /// # Errors
    /// The limit that is reached, the widest first; nothing is counted then.
    pub fn reserve(
        &mut self,
        user: &Arc<str>,
        client: IpAddr,
        wanted: Wanted,
    ) -> Result<(), QuotaExceeded> {
        let limits = self.limits;
        if reached(limits.allocations, self.live()) {
            return Err(QuotaExceeded::Total);
        }
        if let Some(realm) = wanted.realm {
            let limits = self.realms.get(&realm).copied().unwrap_or_default();
            if reached(limits.allocations, self.live_of_realm(realm)) {
                return Err(QuotaExceeded::Realm);
            }
            if reached(limits.allocations_per_user, self.live_of_user(user)) {
                return Err(QuotaExceeded::User);
            }
        }
        if reached(limits.allocations_per_user, self.live_of_user(user)) {
            return Err(QuotaExceeded::User);
        }
        if reached(limits.allocations_per_address, self.live_from(client)) {
            return Err(QuotaExceeded::Address);
        }
        if self.is_over_share(user, wanted) {
            return Err(QuotaExceeded::Share);
        }
        if wanted.scope.is_loop() && self.is_over_visits(user, client) {
            return Err(QuotaExceeded::Visits);
        }
        self.adopt(user, client, wanted);
        Ok(())
    }

    /// Counts one that lives already, whatever the limits.
    pub fn adopt(&mut self, user: &Arc<str>, client: IpAddr, wanted: Wanted) {
        *self.live.of(wanted) += 1;
        let address = subscriber(client);
        *self.by_user.entry(Arc::clone(user)).or_default().of(wanted) += 1;
        *self.by_address.entry(address).or_default() += 1;
        if let Some(realm) = wanted.realm {
            *self.by_realm.entry(realm).or_default() += 1;
        }
        if wanted.scope.is_loop() {
            self.loops += 1;
            *self.loops_by_address.entry(address).or_default() += 1;
        }
    }

    /// Gives back what `reserve` counted; does nothing if `user` and `client` have nothing like it to give back.
    pub fn release(&mut self, user: &Arc<str>, client: IpAddr, wanted: Wanted) {
        let address = subscriber(client);
        let Some(held) = self.by_user.get_mut(user) else {
            return;
        };
        if *held.of(wanted) == 0 || !self.by_address.contains_key(&address) {
            return;
        }
        *held.of(wanted) -= 1;
        if held.total() == 0 {
            self.by_user.remove(user);
        }
        *self.live.of(wanted) -= 1;
        decrement(&mut self.by_address, &address);
        if let Some(realm) = wanted.realm {
            decrement(&mut self.by_realm, &realm);
        }
        if wanted.scope.is_loop() {
            self.loops = self.loops.saturating_sub(1);
            decrement(&mut self.loops_by_address, &address);
        }
    }

    /// Counts the second port of an allocation of `user` that has one in the other family: its share of the ports is all
    /// that limits it.
    ///
    /// # Errors
    /// The share is used up; nothing is counted then.
    pub fn reserve_port(&mut self, user: &Arc<str>, wanted: Wanted) -> Result<(), QuotaExceeded> {
        if self.is_over_share(user, wanted) {
            return Err(QuotaExceeded::Share);
        }
        self.adopt_port(user, wanted);
        Ok(())
    }

    /// Counts one that is open already, whatever the share.
    pub fn adopt_port(&mut self, user: &Arc<str>, wanted: Wanted) {
        *self.live.of(wanted) += 1;
        self.live.additional += 1;
        let held = self.by_user.entry(Arc::clone(user)).or_default();
        *held.of(wanted) += 1;
        held.additional += 1;
    }

    /// Gives back a port of an allocation that keeps another; does nothing if `user` has none like it to give back.
    pub fn release_port(&mut self, user: &Arc<str>, wanted: Wanted) {
        let Some(held) = self.by_user.get_mut(user) else {
            return;
        };
        if *held.of(wanted) == 0 || held.additional == 0 {
            return;
        }
        *held.of(wanted) -= 1;
        held.additional -= 1;
        *self.live.of(wanted) -= 1;
        self.live.additional -= 1;
    }

    /// Counts an allocation for the address `to` that was counted for `from`. Only what is of no visit moves.
    ///
    /// # Errors
    /// `Address`; nothing changes then.
    pub fn move_address(&mut self, from: IpAddr, to: IpAddr) -> Result<(), QuotaExceeded> {
        let (from, to) = (subscriber(from), subscriber(to));
        if from == to || !self.by_address.contains_key(&from) {
            return Ok(());
        }
        if reached(self.limits.allocations_per_address, self.live_from(to)) {
            return Err(QuotaExceeded::Address);
        }
        decrement(&mut self.by_address, &from);
        *self.by_address.entry(to).or_default() += 1;
        Ok(())
    }

    /// Whether one more of the visit `user` from `client` would be more than visits may have.
    fn is_over_visits(&self, user: &str, client: IpAddr) -> bool {
        let here = self.loops_by_address.get(&subscriber(client));
        let ports: u32 = self.ports.iter().sum();
        let all = match self.limits.allocations {
            0 => ports,
            limit => limit.min(ports),
        };
        let most = (all / LOOPS_SHARE).clamp(LOOPS_SHARE, LOOPS);
        self.live_of_user(user) >= LOOPS_PER_VISIT
            || here.is_some_and(|count| *count >= LOOPS_PER_ADDRESS)
            || self.loops >= most
    }

    fn held(&self, user: &str) -> Live {
        self.by_user.get(user).copied().unwrap_or_default()
    }

    /// Whether one more would be more than the share that `user` may have of the ports that others leave. Whoever has
    /// none may have one.
    ///
    /// However many users take all they may, each leaves some of what the others left, so no user uses up the ports.
    /// EVEN-PORT has a share of its own, of the half that is even. Counted is what is reserved, so shards cannot overrun
    /// it together.
    fn is_over_share(&self, user: &str, wanted: Wanted) -> bool {
        let percent = u64::from(self.limits.share_per_user);
        if !(1..100).contains(&percent) {
            return false;
        }
        let over = |ports: u32, live: u32, held: u32| {
            // Where nothing is free it is not the share that is in the way.
            let free = ports.saturating_sub(live);
            let (held, free) = (u64::from(held), u64::from(free));
            free > 0 && held > 0 && (held + 1) * 100 > (held + free) * percent
        };
        let (mut live, mut held) = (self.live, self.held(user));
        let ports = self.ports[wanted.family as usize];
        let of_family = over(
            ports,
            live.of_family(wanted.family),
            held.of_family(wanted.family),
        );
        let mut of_even = || over(ports / 2, *live.of(wanted), *held.of(wanted));
        of_family || (wanted.even_port && of_even())
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
        let mut quota = Quota::new(Limits::default(), [10, 10]);
        let user = Arc::from("alice");
        let client = IpAddr::from([192, 0, 2, 1]);
        let [any, even] = [false, true].map(|even_port| Wanted {
            family: Family::V4,
            even_port,
            scope: Scope::Policy,
            realm: None,
        });
        quota.reserve(&user, client, any).unwrap();
        quota.reserve(&user, client, even).unwrap();
        quota.release(&user, client, any);
        quota.release(&user, client, any);
        assert_eq!((quota.by_user.len(), quota.by_address.len()), (1, 1));
        quota.release(&user, client, even);
        quota.release(&user, client, even);
        assert_eq!((quota.by_user.len(), quota.by_address.len()), (0, 0));
        assert_eq!(quota.live(), 0);
    }

    #[test]
    fn a_second_port_is_no_second_allocation_and_counts_for_the_share() {
        let limits = Limits {
            allocations_per_user: 1,
            share_per_user: 50,
            ..Limits::default()
        };
        let mut quota = Quota::new(limits, [4, 4]);
        let alice = Arc::from("alice");
        let client = IpAddr::from([192, 0, 2, 1]);
        let [v4, v6] = Family::ALL.map(|family| Wanted {
            family,
            even_port: false,
            scope: Scope::Policy,
            realm: None,
        });
        quota.reserve(&alice, client, v4).unwrap();
        quota.reserve_port(&alice, v6).unwrap();
        assert_eq!((quota.live(), quota.live_of_user("alice")), (1, 1));
        // Two of four ports are half of them, three would be more.
        quota.reserve_port(&alice, v6).unwrap();
        let more = quota.reserve_port(&alice, v6);
        assert_eq!(more, Err(QuotaExceeded::Share));
        quota.release_port(&alice, v6);
        let second = quota.reserve(&alice, client, v4);
        assert_eq!(second, Err(QuotaExceeded::User));
        // Whichever goes first, the last one takes the allocation along.
        quota.release_port(&alice, v4);
        assert_eq!(quota.live(), 1);
        quota.release_port(&alice, v6);
        assert_eq!(quota.live(), 1, "not as a second one");
        quota.release(&alice, client, v6);
        assert_eq!((quota.live(), quota.by_user.len()), (0, 0));
        assert!(quota.by_address.is_empty());
    }

    #[test]
    fn visits_are_small_each_at_an_address_and_all_together() {
        let of = |visit: &str| Wanted {
            family: Family::V4,
            even_port: false,
            scope: Scope::Loop(super::super::scope::Visit::of(visit)),
            realm: None,
        };
        let mut quota = Quota::new(Limits::default(), [10_000, 0]);
        let mut take = |visit: u32, address: u8| {
            let user = format!("turnix-test:{visit}");
            let client = IpAddr::from([192, 0, 2, address]);
            quota.reserve(&Arc::from(&*user), client, of(&user)).err()
        };
        let over = Some(QuotaExceeded::Visits);
        for _ in 0..LOOPS_PER_VISIT {
            assert_eq!(take(0, 0), None);
        }
        assert_eq!(take(0, 9), over, "wherever it is");
        for _ in LOOPS_PER_VISIT..LOOPS_PER_ADDRESS {
            assert_eq!(take(1, 0), None);
        }
        assert_eq!(take(2, 0), over, "whoever it is");
        for visit in LOOPS_PER_ADDRESS..LOOPS {
            assert_eq!(take(visit, visit as u8), None);
        }
        assert_eq!(take(LOOPS, 200), over);
        let (alice, client) = (Arc::from("alice"), IpAddr::from([192, 0, 2, 0]));
        let any = Wanted {
            scope: Scope::Policy,
            ..of("")
        };
        assert_eq!(quota.reserve(&alice, client, any), Ok(()));
        quota.release(&Arc::from("turnix-test:1"), client, of("turnix-test:1"));
        let user = Arc::from("turnix-test:2");
        assert_eq!(quota.reserve(&user, client, of("turnix-test:2")), Ok(()));
        // A small server leaves most of what it has to those who have credentials of their own.
        let mut quota = Quota::new(
            Limits {
                allocations: 40,
                ..Limits::default()
            },
            [10_000, 0],
        );
        let taken = (0..40).filter(|visit| {
            let user = format!("turnix-test:{visit}");
            let client = IpAddr::from([192, 0, 2, *visit as u8]);
            (quota.reserve(&Arc::from(&*user), client, of(&user))).is_ok()
        });
        assert_eq!(taken.count(), 10);
    }
}
