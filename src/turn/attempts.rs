//! What became of those who wanted an allocation, client by client, until somebody asks for it: of that
//! `cluster::detective` makes out whose fault an outage is.
//!
//! Memory is bounded, and strangers have a table of their own. A table that is full keeps a sample of its clients that is
//! drawn by a hash nobody can aim at: whoever comes in masses displaces its own kind, and nobody's share of the whole changes
//! by when or how often it asks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ahash::RandomState;

use crate::access::AuthFailure;
use crate::base::Transport;
use crate::base::addr::subscriber;
use crate::wire::ErrorCode;

use super::affected;
use super::reject::Reject;

/// Clients with credentials that are kept between two questions.
const MOST_USERS: usize = 512;

/// The same of clients without.
const MOST_STRANGERS: usize = 256;

/// What became of an Allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fate {
    /// There is an allocation.
    Allocated,
    /// The credentials are nobody's, or the password is wrong.
    Credentials,
    /// The credentials were right, and their time is over.
    Expired,
    /// 486: the user, the client's address or the realm has as many as it may.
    Quota,
    /// 508: no port is free, or the server has as many as it may.
    Capacity,
    /// 500: our own fault.
    ServerError,
    /// The request is none that this server takes.
    Request,
}

impl Fate {
    /// Every fate, in the order of their discriminants.
    pub const ALL: [Self; 7] = [
        Self::Allocated,
        Self::Credentials,
        Self::Expired,
        Self::Quota,
        Self::Capacity,
        Self::ServerError,
        Self::Request,
    ];

    /// Whether nothing proves that who asked is a user, so that anybody can bring it about.
    pub const fn is_of_strangers(self) -> bool {
        matches!(self, Self::Credentials | Self::Expired | Self::Request)
    }

    /// That of a refused Allocate. `None`: a step on the way, or what the operator asked for, such as a drain, a
    /// revocation, or no reservations, which are refused as if there were no room (RFC 8656 §7.2).
    pub(super) const fn of(reject: Reject) -> Option<Self> {
        if !reject.is_failure() {
            return None;
        }
        match reject {
            Reject::Unauthenticated(AuthFailure::Expired) => Some(Self::Expired),
            Reject::Unauthenticated(
                AuthFailure::UnknownUser
                | AuthFailure::BadPassword
                | AuthFailure::WrongRealm
                | AuthFailure::BadToken,
            ) => Some(Self::Credentials),
            Reject::BadRequest(_)
            | Reject::BidDown
            | Reject::UnknownAttributes
            | Reject::UnsupportedTransport => Some(Self::Request),
            Reject::Quota => Some(Self::Quota),
            Reject::ServerError => Some(Self::ServerError),
            _ => None,
        }
    }

    /// That of an Allocate whose relayed address could not be had. `None`: it `claims` a reservation that is not there,
    /// which says nothing of how much room there is, and any user can make one up.
    pub(super) const fn unopened(code: ErrorCode, claims: bool) -> Option<Self> {
        match code {
            ErrorCode::AllocationQuotaReached => Some(Self::Quota),
            ErrorCode::InsufficientCapacity if claims => None,
            ErrorCode::InsufficientCapacity => Some(Self::Capacity),
            _ => Some(Self::ServerError),
        }
    }
}

/// Counts by [`Fate::ALL`].
pub type Fates = [u32; Fate::ALL.len()];

/// Who asked: of users each at each of its addresses, of strangers what one subscriber can change at will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    /// An IPv4 address, or the first one of an IPv6 /64.
    pub address: IpAddr,
    /// A hash of the user's id; `None` of strangers.
    pub user: Option<u64>,
}

impl Client {
    /// `user` at `address`; `None`: no credentials say who it is.
    pub fn new(address: IpAddr, user: Option<&str>) -> Self {
        Self {
            address: subscriber(address),
            user: user.map(|user| affected::hasher().hash_one(user)),
        }
    }
}

/// Attempts of a stretch of time, over one shard or all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// All of them, by `Transport` and `Fate`.
    pub totals: [Fates; Transport::ALL.len()],
    /// Who asked, and what became of it: a fair sample if there were too many.
    pub clients: Vec<(Client, Fates)>,
}

impl Attempts {
    /// Adds one.
    pub fn add(&mut self, client: Client, transport: Transport, fate: Fate) {
        count(&mut self.totals[transport as usize], fate);
        match (self.clients.iter_mut()).find(|(known, _)| *known == client) {
            Some((_, fates)) => count(fates, fate),
            None => {
                let mut fates = Fates::default();
                count(&mut fates, fate);
                self.clients.push((client, fates));
            }
        }
    }

    /// Adds those of another shard.
    pub fn merge(&mut self, other: Self) {
        let mine = self.totals.as_flattened_mut().iter_mut();
        for (mine, theirs) in mine.zip(other.totals.as_flattened()) {
            *mine = mine.saturating_add(*theirs);
        }
        self.clients.extend(other.clients);
    }
}

fn count(fates: &mut Fates, fate: Fate) {
    let count = &mut fates[fate as usize];
    *count = count.saturating_add(1);
}

/// What a shard knows of attempts since it was asked last.
#[derive(Debug, Default)]
pub(super) struct Collector {
    totals: [Fates; Transport::ALL.len()],
    users: BTreeMap<(u64, Client), Fates>,
    strangers: BTreeMap<(u64, Client), Fates>,
}

impl Collector {
    /// Notes one; `hasher` is the shard's own.
    pub fn note(&mut self, hasher: &RandomState, client: Client, transport: Transport, fate: Fate) {
        count(&mut self.totals[transport as usize], fate);
        let (table, most) = match client.user {
            Some(_) => (&mut self.users, MOST_USERS),
            None => (&mut self.strangers, MOST_STRANGERS),
        };
        let fates = table.entry((hasher.hash_one(client), client)).or_default();
        count(fates, fate);
        if table.len() > most {
            table.pop_last();
        }
    }

    /// Everything since the last time.
    pub fn take(&mut self) -> Attempts {
        let Self {
            totals,
            users,
            strangers,
        } = std::mem::take(self);
        let clients = users.into_iter().chain(strangers);
        Attempts {
            totals,
            clients: clients
                .map(|((_, client), fates)| (client, fates))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(number: u32) -> Client {
        Client::new(std::net::Ipv4Addr::from_bits(number).into(), None)
    }

    #[test]
    fn strangers_in_masses_displace_no_user_and_no_stranger_by_their_haste() {
        let hasher = RandomState::with_seeds(5, 6, 7, 8);
        let mut collector = Collector::default();
        for number in 0..20_000 {
            let client = stranger(number);
            for _ in 0..3 {
                collector.note(&hasher, client, Transport::Udp, Fate::Credentials);
            }
            if number % 1000 == 0 {
                let user = format!("user{number}");
                let user = Client::new([198, 51, 100, 7].into(), Some(&user));
                collector.note(&hasher, user, Transport::Tls, Fate::Capacity);
            }
        }
        let attempts = collector.take();
        assert_eq!(attempts.totals[Transport::Udp as usize][1], 60_000);
        assert_eq!(attempts.totals[Transport::Tls as usize][4], 20);
        let users = (attempts.clients.iter()).filter(|(client, _)| client.user.is_some());
        assert_eq!(users.count(), 20);
        let strangers: Vec<_> = (attempts.clients.iter())
            .filter(|(client, _)| client.user.is_none())
            .collect();
        assert_eq!(strangers.len(), MOST_STRANGERS);
        // Early and late ones alike.
        let early = (strangers.iter()).filter(|(client, _)| {
            let IpAddr::V4(ip) = client.address else {
                return false;
            };
            ip.to_bits() < 10_000
        });
        let early = early.count();
        assert!((90..=166).contains(&early), "{early}");
        assert_eq!(collector.take(), Attempts::default());
    }

    #[test]
    fn a_client_is_a_user_at_an_address() {
        let at = |address: &str, user| Client::new(address.parse().unwrap(), user);
        assert_eq!(
            at("2001:db8::1", None),
            at("2001:db8::ffff", None),
            "one subscriber"
        );
        assert_ne!(at("192.0.2.1", Some("a")), at("192.0.2.1", Some("b")));
        assert_ne!(at("192.0.2.1", Some("a")), at("192.0.2.1", None));
        assert_eq!(
            at("::ffff:192.0.2.1", Some("a")),
            at("192.0.2.1", Some("a"))
        );
    }
}
