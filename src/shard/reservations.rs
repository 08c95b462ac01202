//! Ports that are kept for clients who want two in a row, RTP's and RTCP's (RFC 8656 §7.2): bound already, so that nobody
//! else gets them, and found by their token from every shard.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::Wanted;
use crate::net::UdpSocket;

use super::ports::{Place, RelayPool};

/// How long a port is kept, at least.
pub(super) const RESERVATION: Duration = Duration::from_secs(30);

/// A port that is kept. It counts as an allocation of its user, which it is there for.
pub(super) struct Reserved {
    pub pool: Arc<RelayPool>,
    pub place: Place,
    pub socket: UdpSocket,
    pub wanted: Wanted,
    pub user: Arc<str>,
    pub client: IpAddr,
}

impl Reserved {
    /// Closes it, and gives back what it took.
    pub fn give_back(self, now: Instant) {
        // Closed before the port is free again, or the next owner could not bind it.
        drop(self.socket);
        // Its client may have told peers of it.
        self.pool.give_back(now, self.place);
        (self.pool).release_held(&self.user, self.client, self.wanted);
    }
}

/// Those of all shards, the earliest first to end. One that is claimed leaves its entry in the order until then.
#[derive(Default)]
pub(super) struct Reservations {
    // Nobody chooses the keys.
    by_token: HashMap<u64, Reserved>,
    order: VecDeque<(Instant, u64)>,
}

impl Reservations {
    /// Keeps a port under a token that nobody can guess.
    pub fn keep(&mut self, now: Instant, reserved: Reserved) -> u64 {
        let mut token = rand::random();
        while self.by_token.contains_key(&token) {
            token = rand::random();
        }
        self.by_token.insert(token, reserved);
        self.order.push_back((now + RESERVATION, token));
        token
    }

    /// What `user` has kept under `token`, in the realm and the scope that `wanted` is of; once.
    pub fn claim(&mut self, token: u64, user: &str, wanted: Wanted) -> Option<Reserved> {
        let Reserved {
            user: owner,
            wanted: kept,
            ..
        } = self.by_token.get(&token)?;
        if **owner != *user || kept.scope != wanted.scope || kept.realm != wanted.realm {
            return None;
        }
        self.by_token.remove(&token)
    }

    /// Those whose time is over.
    pub fn expired(&mut self, now: Instant) -> Vec<Reserved> {
        let mut expired = Vec::new();
        while let Some((_, token)) = self.order.front().filter(|(expires, _)| *expires <= now) {
            expired.extend(self.by_token.remove(token));
            self.order.pop_front();
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use ahash::RandomState;
    use proptest::prelude::*;

    use super::RESERVATION;
    use crate::access::{Limits, RealmName, Scope, Wanted};
    use crate::base::{Clock, Family};
    use crate::net::Poller;
    use crate::shard::RelayIp;
    use crate::shard::ports::RelayPool;
    use crate::shard::relays::{Asked, Relays, Reports};
    use crate::turn::{AllocationId, OpenError, Opened};

    const FIRST: u16 = 30_001;
    const PORTS: u16 = 12;

    /// Two shards with a pool of twelve ports, on an address that nobody else uses.
    struct Host {
        pool: Arc<RelayPool>,
        shards: [Relays; 2],
        poller: Poller,
        now: Instant,
        slots: u32,
        /// Of whoever asks.
        realm: Option<RealmName>,
        /// Shard, id, family, user and port of what is open.
        live: Vec<(usize, AllocationId, Family, &'static str, u16)>,
        /// Token, user, port and end of what is kept.
        kept: Vec<(u64, &'static str, u16, Instant)>,
    }

    fn client() -> IpAddr {
        Ipv4Addr::new(192, 0, 2, 1).into()
    }

    const fn wanted(even_port: bool) -> Wanted {
        Wanted {
            family: Family::V4,
            even_port,
            scope: Scope::Policy,
            realm: None,
        }
    }

    impl Host {
        fn new(limits: Limits) -> Self {
            let [a, b]: [u8; 2] = rand::random();
            let local = IpAddr::V4(Ipv4Addr::new(127, 32 | (a & 31), b, 77));
            let ip = RelayIp {
                local,
                external: local,
            };
            let now = Clock.now().mono;
            let ports = FIRST..=FIRST + PORTS - 1;
            let v6 = RelayIp {
                local: Ipv6Addr::LOCALHOST.into(),
                external: Ipv6Addr::LOCALHOST.into(),
            };
            let pool = Arc::new(RelayPool::new(&[ip, v6], ports, limits, now));
            let quiet = Reports {
                tos: false,
                errors: false,
            };
            let shards = [0, 1].map(|shard| {
                let hasher = RandomState::with_seeds(1, 2, 3, 4);
                Relays::new(shard, 65_536, quiet, vec![Arc::clone(&pool)], hasher)
            });
            Self {
                pool,
                shards,
                poller: Poller::new(8).unwrap(),
                now,
                slots: 0,
                realm: None,
                live: Vec::new(),
                kept: Vec::new(),
            }
        }

        fn open(
            &mut self,
            shard: usize,
            user: &'static str,
            even_port: bool,
            reserve: bool,
            token: Option<u64>,
        ) -> Result<Opened, OpenError> {
            self.open_in(Family::V4, shard, user, even_port, reserve, token)
        }

        fn open_in(
            &mut self,
            family: Family,
            shard: usize,
            user: &'static str,
            even_port: bool,
            reserve: bool,
            token: Option<u64>,
        ) -> Result<Opened, OpenError> {
            let id = AllocationId {
                slot: self.slots,
                generation: 0,
            };
            let asked = Asked {
                id,
                wanted: Wanted {
                    family,
                    realm: self.realm,
                    ..wanted(even_port)
                },
                user: user.into(),
                client: client(),
                reserve,
                token,
            };
            let opened = self.shards[shard].open(self.now, asked, &self.poller)?;
            let port = opened.relayed.0.port();
            self.slots += 1;
            self.live.push((shard, id, family, user, port));
            if let Some(token) = opened.token {
                self.kept
                    .push((token, user, port + 1, self.now + RESERVATION));
            }
            Ok(opened)
        }

        fn close(&mut self, which: usize) {
            let (shard, id, family, ..) = self.live.swap_remove(which);
            self.shards[shard].close(self.now, id, family, &self.poller);
        }

        /// What is open and kept is what the pool misses, and what users are counted.
        fn check(&mut self) {
            self.pool.end_reservations(self.now);
            self.kept.retain(|(.., end)| *end > self.now);
            let (live, kept) = (self.live.len(), self.kept.len());
            assert_eq!(self.pool.in_use(), [live + kept, 0]);
            assert_eq!(self.pool.live(), live, "what is kept lives not yet");
            let ports: BTreeSet<u16> = (self.live.iter().map(|live| live.4))
                .chain(self.kept.iter().map(|kept| kept.2))
                .collect();
            assert_eq!(ports.len(), live + kept, "no port is anybody's twice");
        }
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Allocate {
            shard: usize,
            bob: bool,
            even: bool,
        },
        Reserve {
            shard: usize,
            bob: bool,
        },
        Claim {
            shard: usize,
            which: usize,
            bob: bool,
        },
        Close(usize),
        Pass(u64),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            2 => (0..2_usize, any::<bool>(), any::<bool>())
                .prop_map(|(shard, bob, even)| Operation::Allocate { shard, bob, even }),
            4 => (0..2_usize, any::<bool>()).prop_map(|(shard, bob)| Operation::Reserve { shard, bob }),
            4 => (0..2_usize, any::<usize>(), any::<bool>())
                .prop_map(|(shard, which, bob)| Operation::Claim { shard, which, bob }),
            4 => any::<usize>().prop_map(Operation::Close),
            2 => (1..20_u64).prop_map(Operation::Pass),
        ]
    }

    const fn user(bob: bool) -> &'static str {
        if bob { "bob" } else { "alice" }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_port_is_lost(operations in prop::collection::vec(operation(), 0..60)) {
            let limits = Limits { allocations_per_user: 8, ..Limits::default() };
            let mut host = Host::new(limits);
            for operation in operations {
                let of = |host: &Host, user: &str| {
                    host.live.iter().filter(|live| live.3 == user).count()
                        + host.kept.iter().filter(|kept| kept.1 == user).count()
                };
                match operation {
                    Operation::Allocate { shard, bob, even } => {
                        let opened = host.open(shard, user(bob), even, false, None);
                        prop_assert!(opened != Err(OpenError::Quota) || of(&host, user(bob)) >= 8);
                    }
                    Operation::Reserve { shard, bob } => {
                        match host.open(shard, user(bob), true, true, None) {
                            Ok(opened) => {
                                prop_assert!(opened.relayed.0.port() % 2 == 0);
                                prop_assert!(opened.token.is_some());
                            }
                            Err(OpenError::Quota) => prop_assert!(of(&host, user(bob)) >= 7),
                            Err(OpenError::Capacity) => {}
                        }
                    }
                    Operation::Claim { shard, which, bob } => {
                        let Some(&(token, owner, port, end)) =
                            host.kept.get(which % host.kept.len().max(1))
                        else {
                            prop_assert!(host.open(shard, user(bob), false, false, Some(7)).is_err());
                            continue;
                        };
                        let claimed = host.open(shard, user(bob), false, false, Some(token));
                        if owner == user(bob) && end > host.now {
                            prop_assert_eq!(claimed.unwrap().relayed.0.port(), port);
                            host.kept.retain(|kept| kept.0 != token);
                            let again = host.open(shard, owner, false, false, Some(token));
                            prop_assert_eq!(again, Err(OpenError::Capacity), "a token is good once");
                        } else {
                            prop_assert_eq!(claimed, Err(OpenError::Capacity));
                        }
                    }
                    Operation::Close(which) if !host.live.is_empty() => {
                        host.close(which % host.live.len());
                    }
                    Operation::Close(_) => {}
                    Operation::Pass(secs) => host.now += Duration::from_secs(secs),
                }
                host.check();
            }
            while !host.live.is_empty() {
                host.close(0);
            }
            host.now += RESERVATION;
            host.check();
            prop_assert_eq!(host.pool.in_use(), [0, 0]);
            // All of it can be had again, in pairs: whatever rests serves where nothing else does.
            let pairs: Vec<_> = std::iter::from_fn(|| host.pool.take_pair(host.now, Family::V4)).collect();
            let whole = (FIRST..FIRST + PORTS - 1).filter(|port| port % 2 == 0).count();
            prop_assert_eq!(pairs.len(), whole);
            let rest: Vec<_> = std::iter::from_fn(|| host.pool.take(host.now, wanted(false))).collect();
            prop_assert_eq!(2 * pairs.len() + rest.len(), usize::from(PORTS));
        }
    }

    /// A port is bound while it is kept, so that no other program gets it, and free afterwards.
    #[test]
    fn what_is_kept_is_bound() {
        let mut host = Host::new(Limits::default());
        let opened = host.open(0, "alice", true, true, None).unwrap();
        let local = opened.relayed.0;
        let above = SocketAddr::new(local.ip(), local.port() + 1);
        let bind = || std::net::UdpSocket::bind(above).is_ok();
        assert!(!bind());
        host.now += RESERVATION;
        host.pool.end_reservations(host.now);
        assert!(bind(), "half a minute later it is anybody's");
        let late = host.open(0, "alice", false, false, opened.token);
        assert_eq!(late, Err(OpenError::Capacity));
        let opened = host.open(0, "alice", true, true, None).unwrap();
        host.now += RESERVATION - Duration::from_millis(1);
        let claimed = host.open(1, "alice", false, false, opened.token).unwrap();
        assert_eq!(claimed.relayed.0.port(), opened.relayed.0.port() + 1);
    }

    /// Each family has a port of its own, and the two are one allocation until the last of them is closed.
    #[test]
    fn two_relays_are_one_allocation() {
        for last in Family::ALL {
            let mut host = Host::new(Limits {
                allocations_per_user: 1,
                ..Limits::default()
            });
            for family in Family::ALL {
                host.open_in(family, 0, "alice", false, false, None)
                    .unwrap();
                host.slots = 0;
            }
            assert_eq!((host.pool.live(), host.pool.in_use()), (1, [1, 1]));
            host.slots = 1;
            let more = host.open(0, "alice", false, false, None);
            assert_eq!(more, Err(OpenError::Quota));
            let id = host.live[0].1;
            let relays = &mut host.shards[0];
            relays.close(host.now, id, last.other(), &host.poller);
            assert!(relays.get(id, last).is_some() && relays.get(id, last.other()).is_none());
            assert_eq!(host.pool.live(), 1);
            relays.close(host.now, id, last, &host.poller);
            assert_eq!((host.pool.live(), host.pool.in_use()), (0, [0, 0]));
            assert!(host.open(0, "alice", false, false, None).is_ok());
        }
    }

    /// A user of the same name in another realm is somebody else.
    #[test]
    fn a_token_is_good_in_the_realm_it_is_of() {
        let mut host = Host::new(Limits::default());
        let token = host.open(0, "alice", true, true, None).unwrap().token;
        host.realm = Some(RealmName::new("example.net"));
        let claimed = host.open(1, "alice", false, false, token);
        assert_eq!(claimed, Err(OpenError::Capacity));
        host.realm = None;
        assert!(host.open(1, "alice", false, false, token).is_ok());
    }

    /// What is kept counts for the limits, and the second allocation takes nothing beyond it.
    #[test]
    fn a_pair_counts_as_two_allocations() {
        let mut host = Host::new(Limits {
            allocations_per_user: 2,
            ..Limits::default()
        });
        let opened = host.open(0, "alice", true, true, None).unwrap();
        let more = host.open(0, "alice", false, false, None);
        assert_eq!(more, Err(OpenError::Quota));
        assert!(host.open(1, "alice", false, false, opened.token).is_ok());
        let mut host = Host::new(Limits {
            allocations_per_user: 1,
            ..Limits::default()
        });
        let pair = host.open(0, "alice", true, true, None);
        assert_eq!(pair, Err(OpenError::Quota));
        assert_eq!(host.pool.in_use(), [0, 0], "nothing is left behind");
        assert!(host.open(0, "alice", true, false, None).is_ok());
    }
}
