//! Who wanted an allocation in the last half hour, and what became of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::turn::attempts::Fates;
use crate::turn::{Client, Fate};

use super::{CONCENTRATED, FEWEST, Figures, USERS};

/// Clients that are remembered, of users and of strangers each. Of more it is a sample, which nobody gets into or outlasts
/// by when or how often it asks.
const MOST_CLIENTS: usize = 4096;

/// Networks that are remembered to have had calls.
const MOST_NETWORKS: usize = 16_384;

/// For how many minutes: a week.
const MEMORY_MINUTES: u64 = 7 * 1440;

/// For how many minutes clients are remembered, as many as a word has bits and no more.
const WINDOW_MINUTES: u64 = 30;

/// Minutes of one client that count, at most.
const MOST_MARKS: u32 = 4;

/// Networks far from each other that strangers have to come from where nothing else tells them from one attacker.
const FAR_NETWORKS: usize = 3;

/// A network of clients: an IPv4 /24 or an IPv6 /56.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(pub(super) IpAddr);

impl Network {
    /// The one that `client` is in.
    pub fn of(client: IpAddr) -> Self {
        Self(masked(client, 24, 56))
    }

    /// What one owner may well have all of: an IPv4 /16 or an IPv6 /32.
    fn owner(self) -> IpAddr {
        masked(self.0, 16, 32)
    }
}

fn masked(ip: IpAddr, v4: u32, v6: u32) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (!0 << (32 - v4))).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (!0 << (128 - v6))).into(),
    }
}

/// One client: a bit for each minute in which something became of its attempts, the latest the lowest.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// Which minute the lowest bit is about.
    minute: u64,
    /// By [`Fate::ALL`].
    fates: [u32; Fate::ALL.len()],
}

impl Marks {
    /// As it is in `minute` and the `minutes - 1` before.
    fn at(&self, minute: u64, minutes: u32) -> [u32; Fate::ALL.len()] {
        let age = u32::try_from(minute.saturating_sub(self.minute)).unwrap_or(u32::MAX);
        let window = 1_u32.checked_shl(minutes).map_or(!0, |bit| bit - 1);
        (self.fates).map(|marks| marks.checked_shl(age).unwrap_or(0) & window)
    }
}

#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// Nobody can aim at what it makes of a client.
    hasher: RandomState,
    /// By the hash: those with the highest give way.
    users: BTreeMap<(u64, Client), Marks>,
    strangers: BTreeMap<(u64, Client), Marks>,
    /// Networks from where users had calls, and in which minute last.
    known: HashMap<Network, u64>,
    /// Attempts of strangers that count for nothing.
    pub ignored: u64,
}

impl Crowd {
    /// `client` had `fates` in `minute`.
    pub fn mark(&mut self, minute: u64, client: Client, fates: &Fates) {
        let network = Network::of(client.address);
        let table = match client.user {
            Some(_) => &mut self.users,
            None if self.known.is_empty() || self.known.contains_key(&network) => {
                &mut self.strangers
            }
            None => {
                let all = fates.iter().map(|count| u64::from(*count)).sum();
                self.ignored = self.ignored.saturating_add(all);
                return;
            }
        };
        let place = (self.hasher.hash_one(client), client);
        let marks = table.entry(place).or_default();
        marks.fates = marks.at(minute, u32::BITS);
        marks.minute = minute;
        for (marks, _) in (marks.fates.iter_mut().zip(fates)).filter(|(_, count)| **count > 0) {
            *marks |= 1;
        }
        if table.len() > MOST_CLIENTS {
            table.pop_last();
        }
        if fates[Fate::Allocated as usize] > 0 {
            // Who was a stranger there has the right credentials.
            let stranger = Client {
                user: None,
                ..client
            };
            (self.strangers).remove(&(self.hasher.hash_one(stranger), stranger));
        }
        if fates[Fate::Allocated as usize] > 0
            && (self.known.len() < MOST_NETWORKS || self.known.contains_key(&network))
        {
            self.known.insert(network, minute);
        }
    }

    /// Forgets what is too old to count at `minute`, and makes room for networks if there is none.
    pub fn forget(&mut self, minute: u64) {
        let fresh = |_: &(u64, Client), marks: &mut Marks| marks.minute + WINDOW_MINUTES > minute;
        self.users.retain(fresh);
        self.strangers.retain(fresh);
        let oldest = match self.known.len() {
            MOST_NETWORKS.. => {
                let mut minutes: Vec<_> = self.known.values().copied().collect();
                *minutes.select_nth_unstable(MOST_NETWORKS / 4).1
            }
            _ => 0,
        };
        let oldest = oldest.max(minute.saturating_sub(MEMORY_MINUTES));
        self.known.retain(|_, last| *last >= oldest);
    }

    /// Everybody who counts.
    fn clients(&self) -> impl Iterator<Item = (&Client, &Marks)> {
        let counts = |client: &Client| {
            self.known.is_empty() || self.known.contains_key(&Network::of(client.address))
        };
        let strangers = (self.strangers.iter()).filter(move |((_, client), _)| counts(client));
        let all = self.users.iter().chain(strangers);
        all.map(|((_, client), marks)| (client, marks))
    }

    /// Who asked in `minute` and the `minutes - 1` before, but for those of one network. A user who is over its quota
    /// counts once, at however many addresses: it may have as many of those as it likes.
    pub fn window(&self, minute: u64, minutes: u32, but: Option<Network>) -> Window {
        let mut window = Window::default();
        let mut over_quota = HashSet::new();
        for (client, marks) in self.clients() {
            let network = Network::of(client.address);
            let fates = marks.at(minute, minutes);
            let last = |marks: u32| marks.trailing_zeros();
            let failed = fates[1..].iter().fold(0, |all, marks| all | marks);
            let ok = fates[Fate::Allocated as usize];
            if ok | failed == 0 || Some(network) == but {
                continue;
            }
            let is_well = last(ok) <= last(failed);
            let latest = (Fate::ALL[1..].iter())
                .min_by_key(|fate| last(fates[**fate as usize]))
                .filter(|_| !is_well);
            if latest == Some(&Fate::Quota)
                && client.user.is_some_and(|user| !over_quota.insert(user))
            {
                continue;
            }
            window.attempts_ok += ok.count_ones().min(MOST_MARKS);
            window.attempts_failed += (failed & !ok).count_ones().min(MOST_MARKS);
            let of = window.networks.entry(network).or_default();
            if is_well {
                window.ok += 1;
                of[Fate::Allocated as usize] += 1;
            }
            if let Some(fate) = latest {
                window.failed += 1;
                window.failed_by[*fate as usize] += 1;
                of[*fate as usize] += 1;
                window.users.insert(match client.user {
                    Some(user) => Err(user),
                    None => Ok(client.address),
                });
            }
        }
        window
    }

    /// Whether strangers who failed for `fate` are more than one attacker can well be.
    pub fn is_wide(&self, window: &Window, fate: Fate) -> bool {
        let owners: HashSet<_> = (window.networks.iter())
            .filter(|(_, fates)| fates[fate as usize] > 0)
            .map(|(network, _)| network.owner())
            .collect();
        let many = window.failed_by[fate as usize] as usize > USERS;
        owners.len() >= FAR_NETWORKS || !self.known.is_empty() && many
    }

    /// Since which minute those who fail for `fate` have failed for it, as far back as is known and without a minute in
    /// which most did not.
    pub fn begun(&self, minute: u64, fate: Fate, but: Option<Network>) -> u64 {
        let minutes = WINDOW_MINUTES as usize;
        let (mut ok, mut failed) = ([0_u32; 32], [0_u32; 32]);
        for (_, marks) in
            (self.clients()).filter(|(client, _)| Some(Network::of(client.address)) != but)
        {
            let fates = marks.at(minute, WINDOW_MINUTES as u32);
            for age in 0..minutes {
                ok[age] += (fates[Fate::Allocated as usize] >> age) & 1;
                failed[age] += (fates[fate as usize] >> age) & 1;
            }
        }
        let mut begun = 0;
        for age in 0..minutes {
            if failed[age] > 0 && failed[age] >= ok[age] {
                begun = age;
            } else if ok[age] > 0 && age > 0 {
                break;
            }
        }
        minute - (begun as u64).min(minute)
    }
}

/// Clients of some minutes, by what became of their last attempt.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub ok: u32,
    pub failed: u32,
    pub failed_by: [u32; Fate::ALL.len()],
    attempts_ok: u32,
    attempts_failed: u32,
    /// Those that failed: users, or addresses where nobody knows the user.
    pub users: HashSet<Result<IpAddr, u64>>,
    /// Clients by [`Fate::ALL`].
    networks: HashMap<Network, [u32; Fate::ALL.len()]>,
}

impl Window {
    /// The share of clients that failed.
    pub fn share(&self) -> f64 {
        share(self.failed, self.ok + self.failed)
    }

    /// The share of clients that failed for `fate`.
    pub fn share_of(&self, fate: Fate) -> f64 {
        share(self.failed_by[fate as usize], self.ok + self.failed)
    }

    /// The share of those who failed that did for `fate`.
    pub fn behind(&self, fate: Fate) -> f64 {
        share(self.failed_by[fate as usize], self.failed)
    }

    pub const fn attempts(&self) -> u32 {
        self.attempts_ok + self.attempts_failed
    }

    pub fn attempts_share(&self) -> f64 {
        share(self.attempts_failed, self.attempts())
    }

    pub fn figures(&self) -> Figures {
        Figures {
            clients_ok: self.ok,
            clients_failed: self.failed,
            attempts_ok: self.attempts_ok,
            attempts_failed: self.attempts_failed,
            users: self.users.len(),
        }
    }

    /// The one network that failures are in, if others are well.
    pub fn concentrated(&self) -> Option<Network> {
        let (network, failed, ok) = self.networks(None, 1).first().copied()?;
        let (failed_elsewhere, ok_elsewhere) = (self.failed - failed, self.ok - ok);
        let alone = failed >= FEWEST
            && share(failed, self.failed) >= CONCENTRATED
            && share(failed, failed + ok) > super::FAILING
            && ok_elsewhere >= FEWEST
            && share(failed_elsewhere, failed_elsewhere + ok_elsewhere) <= super::FINE;
        alone.then_some(network)
    }

    /// At most `most` networks in which clients failed, for `fate` if it is given: how many did, and how many did not; those
    /// with most of them first.
    pub fn networks(&self, fate: Option<Fate>, most: usize) -> Vec<(Network, u32, u32)> {
        let failed = |fates: &[u32; Fate::ALL.len()]| match fate {
            Some(fate) => fates[fate as usize],
            None => fates[1..].iter().sum(),
        };
        let mut networks: Vec<_> = (self.networks.iter())
            .map(|(network, fates)| (*network, failed(fates), fates[Fate::Allocated as usize]))
            .filter(|(_, failed, _)| *failed > 0)
            .collect();
        networks.sort_by_key(|(network, failed, _)| (std::cmp::Reverse(*failed), *network));
        networks.truncate(most);
        networks
    }
}

fn share(part: u32, of: u32) -> f64 {
    match of {
        0 => 0.0,
        _ => f64::from(part) / f64::from(of),
    }
}
