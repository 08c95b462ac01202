//! Counters against a list of what lives.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use turnix::access::{Limits, Quota, QuotaExceeded, RealmLimits, RealmName, Wanted};
use turnix::base::Family;

const ANY: Wanted = Wanted {
    family: Family::V4,
    even_port: false,
    scope: turnix::access::Scope::Policy,
    realm: None,
};

#[derive(Clone, Debug)]
enum Operation {
    Reserve {
        user: usize,
        client: usize,
        wanted: Wanted,
    },
    Release {
        index: usize,
    },
    SetLimits(Limits),
}

const USERS: [&str; 3] = ["alice", "bob", "anonymous"];

/// Addresses, and which of them count as one.
const CLIENTS: [(&str, usize); 7] = [
    ("192.0.2.1", 0),
    ("::ffff:192.0.2.1", 0),
    ("192.0.2.2", 1),
    ("2001:db8:0:1::1", 2),
    ("2001:db8:0:1:ffff:ffff:ffff:ffff", 2),
    ("2001:db8:0:2::1", 3),
    ("2001:db8:1:1::1", 4),
];

fn limits() -> impl Strategy<Value = Limits> {
    let share = prop::sample::select(vec![0, 1, 30, 50, 75, 90, 99, 100]);
    (0_u32..12, 0_u32..6, 0_u32..6, share).prop_map(|(total, user, address, share)| Limits {
        allocations: total,
        allocations_per_user: user,
        allocations_per_address: address,
        share_per_user: share,
    })
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (any::<bool>(), any::<bool>()).prop_map(|(v4, even_port)| Wanted {
        family: if v4 { Family::V4 } else { Family::V6 },
        even_port,
        scope: turnix::access::Scope::Policy,
        realm: None,
    })
}

/// Whether another port would be more than `percent` of those of `ports` that are not others'.
fn over(percent: u8, ports: usize, live: usize, held: usize) -> bool {
    let limited = percent != 0 && percent != 100;
    let others = live - held;
    limited
        && held > 0
        && live < ports
        && (held + 1) * 100 > (ports - others) * usize::from(percent)
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..USERS.len(), 0..CLIENTS.len(), wanted())
            .prop_map(|(user, client, wanted)| Operation::Reserve { user, client, wanted }),
        4 => any::<usize>().prop_map(|index| Operation::Release { index }),
        1 => limits().prop_map(Operation::SetLimits),
    ]
}

proptest! {
    #[test]
    fn quota_counts_what_lives(
        mut limits in limits(),
        ports in [0_u32..14, 0_u32..14],
        operations in prop::collection::vec(operation(), 0..200),
    ) {
        let mut quota = Quota::new(limits, ports);
        let mut living: Vec<(usize, usize, Wanted)> = Vec::new();
        let users = USERS.map(Arc::<str>::from);
        let ip = |client: usize| CLIENTS[client].0.parse::<IpAddr>().unwrap();
        for operation in operations {
            match operation {
                Operation::Reserve { user, client, wanted } => {
                    let of_user = living.iter().filter(|(u, ..)| *u == user).count();
                    let from = living
                        .iter()
                        .filter(|(_, c, _)| CLIENTS[*c].1 == CLIENTS[client].1)
                        .count();
                    let family = |w: &Wanted| w.family == wanted.family;
                    let alike = |w: &Wanted| *w == wanted;
                    let count = |fits: &dyn Fn(&Wanted) -> bool| {
                        let all = living.iter().filter(|(.., w)| fits(w));
                        let his = living.iter().filter(|(u, _, w)| *u == user && fits(w));
                        (all.count(), his.count())
                    };
                    let ports = ports[wanted.family as usize] as usize;
                    let (live, held) = count(&family);
                    let (live_even, held_even) = count(&alike);
                    let share = limits.share_per_user;
                    let over_share = over(share, ports, live, held)
                        || (wanted.even_port && over(share, ports / 2, live_even, held_even));
                    let full = |limit: u32, live: usize| limit != 0 && live >= limit as usize;
                    let expected = if full(limits.allocations, living.len()) {
                        Err(QuotaExceeded::Total)
                    } else if full(limits.allocations_per_user, of_user) {
                        Err(QuotaExceeded::User)
                    } else if full(limits.allocations_per_address, from) {
                        Err(QuotaExceeded::Address)
                    } else if over_share {
                        Err(QuotaExceeded::Share)
                    } else {
                        living.push((user, client, wanted));
                        Ok(())
                    };
                    prop_assert_eq!(quota.reserve(&users[user], ip(client), wanted), expected);
                }
                Operation::Release { index } if !living.is_empty() => {
                    let (user, client, wanted) = living.swap_remove(index % living.len());
                    quota.release(&users[user], ip(client), wanted);
                }
                Operation::Release { .. } => quota.release(&users[0], ip(0), ANY),
                Operation::SetLimits(new) => {
                    limits = new;
                    quota.set_limits(new);
                }
            }
            prop_assert_eq!(quota.live() as usize, living.len());
            for (index, user) in users.iter().enumerate() {
                let live = living.iter().filter(|(u, ..)| *u == index).count();
                prop_assert_eq!(quota.live_of_user(user) as usize, live);
            }
            for (text, group) in CLIENTS {
                let live = living.iter().filter(|(_, c, _)| CLIENTS[*c].1 == group).count();
                prop_assert_eq!(quota.live_from(text.parse().unwrap()) as usize, live);
            }
        }
    }
}

/// Takes what `user` can have of `wanted`; how many that are.
fn greedy(quota: &mut Quota, user: &str, wanted: Wanted) -> u32 {
    let user = Arc::from(user);
    let mut taken = 0;
    loop {
        match quota.reserve(&user, IpAddr::from([192, 0, 2, 1]), wanted) {
            Ok(()) => taken += 1,
            Err(exceeded) => {
                assert_eq!(exceeded, QuotaExceeded::Share);
                return taken;
            }
        }
        assert!(taken < 100_000, "no limit");
    }
}

#[test]
fn no_user_takes_all_relay_ports_and_each_leaves_some_to_the_next() {
    let limits = Limits {
        share_per_user: 90,
        ..Limits::default()
    };
    let even = Wanted {
        even_port: true,
        scope: turnix::access::Scope::Policy,
        ..ANY
    };
    let mut quota = Quota::new(limits, [10_000, 10_000]);
    assert_eq!(greedy(&mut quota, "mallory", ANY), 9000);
    assert_eq!(greedy(&mut quota, "mallory", even), 0);
    assert_eq!(greedy(&mut quota, "trudy", ANY), 900);
    assert_eq!(greedy(&mut quota, "eve", ANY), 90);
    for newcomer in ["alice", "bob", "carol"] {
        let reserved = quota.reserve(&newcomer.into(), IpAddr::from([192, 0, 2, 2]), ANY);
        assert_eq!(reserved, Ok(()), "{newcomer}");
    }
    // The other family is another pool.
    let v6 = Wanted {
        family: Family::V6,
        ..ANY
    };
    assert_eq!(greedy(&mut quota, "mallory", v6), 9000);

    // Even ports first, then whatever there is: even ones are left, too.
    let mut quota = Quota::new(limits, [10_000, 0]);
    assert_eq!(greedy(&mut quota, "mallory", even), 4500);
    assert_eq!(greedy(&mut quota, "mallory", ANY), 4500);
    // Who shares a name can be let off, and a lone user has nobody to leave anything to.
    quota.set_limits(Limits::default());
    for _ in 0..1000 {
        let reserved = quota.reserve(&"mallory".into(), IpAddr::from([192, 0, 2, 1]), ANY);
        assert_eq!(reserved, Ok(()));
    }
}

#[test]
fn limits_of_a_realm_hold_beside_those_of_the_server() {
    let [b, c] = ["b.example", "c.example"].map(RealmName::new);
    let of = |realm| Wanted { realm, ..ANY };
    let client = IpAddr::from([192, 0, 2, 1]);
    let mut quota = Quota::new(Limits::default(), [10_000, 0]);
    let limits = RealmLimits {
        allocations: 3,
        allocations_per_user: 2,
    };
    quota.set_realms([(b, limits), (c, RealmLimits::default())]);
    let reserve =
        |quota: &mut Quota, user: &str, realm| quota.reserve(&user.into(), client, of(realm));
    assert_eq!(reserve(&mut quota, "alice@b.example", Some(b)), Ok(()));
    assert_eq!(reserve(&mut quota, "alice@b.example", Some(b)), Ok(()));
    assert_eq!(
        reserve(&mut quota, "alice@b.example", Some(b)),
        Err(QuotaExceeded::User)
    );
    assert_eq!(reserve(&mut quota, "bob@b.example", Some(b)), Ok(()));
    assert_eq!(
        reserve(&mut quota, "carol@b.example", Some(b)),
        Err(QuotaExceeded::Realm)
    );
    for _ in 0..9 {
        assert_eq!(reserve(&mut quota, "alice@c.example", Some(c)), Ok(()));
        assert_eq!(reserve(&mut quota, "alice", None), Ok(()));
    }
    let mut live: Vec<_> = quota.realms().collect();
    live.sort();
    assert_eq!(live, [(b, 3), (c, 9)]);
    quota.release(&"alice@b.example".into(), client, of(Some(b)));
    assert_eq!(reserve(&mut quota, "carol@b.example", Some(b)), Ok(()));
    // What the server allows in all holds for everybody.
    quota.set_limits(Limits {
        allocations: 21,
        ..Limits::default()
    });
    assert_eq!(
        reserve(&mut quota, "alice@c.example", Some(c)),
        Err(QuotaExceeded::Total)
    );
    // A realm that is gone has no limits and no count of its own; what lives of it goes on.
    quota.set_limits(Limits::default());
    quota.set_realms([(c, RealmLimits::default())]);
    quota.release(&"bob@b.example".into(), client, of(Some(b)));
    assert_eq!(quota.realms().collect::<Vec<_>>(), [(c, 9)]);
}
