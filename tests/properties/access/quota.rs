//! Counters against a list of what lives.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use turnix::access::{Limits, Quota, QuotaExceeded};

#[derive(Clone, Debug)]
enum Operation {
    Reserve { user: usize, client: usize },
    Release { index: usize },
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
    (0_u32..12, 0_u32..6, 0_u32..6).prop_map(|(total, user, address)| Limits {
        allocations: total,
        allocations_per_user: user,
        allocations_per_address: address,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..USERS.len(), 0..CLIENTS.len())
            .prop_map(|(user, client)| Operation::Reserve { user, client }),
        4 => any::<usize>().prop_map(|index| Operation::Release { index }),
        1 => limits().prop_map(Operation::SetLimits),
    ]
}

proptest! {
    #[test]
    fn quota_counts_what_lives(
        mut limits in limits(),
        operations in prop::collection::vec(operation(), 0..200),
    ) {
        let mut quota = Quota::new(limits);
        let mut living: Vec<(usize, usize)> = Vec::new();
        let users = USERS.map(Arc::<str>::from);
        let ip = |client: usize| CLIENTS[client].0.parse::<IpAddr>().unwrap();
        for operation in operations {
            match operation {
                Operation::Reserve { user, client } => {
                    let of_user = living.iter().filter(|(u, _)| *u == user).count();
                    let from = living
                        .iter()
                        .filter(|(_, c)| CLIENTS[*c].1 == CLIENTS[client].1)
                        .count();
                    let full = |limit: u32, live: usize| limit != 0 && live >= limit as usize;
                    let expected = if full(limits.allocations, living.len()) {
                        Err(QuotaExceeded::Total)
                    } else if full(limits.allocations_per_user, of_user) {
                        Err(QuotaExceeded::User)
                    } else if full(limits.allocations_per_address, from) {
                        Err(QuotaExceeded::Address)
                    } else {
                        living.push((user, client));
                        Ok(())
                    };
                    prop_assert_eq!(quota.reserve(&users[user], ip(client)), expected);
                }
                Operation::Release { index } if !living.is_empty() => {
                    let (user, client) = living.swap_remove(index % living.len());
                    quota.release(&users[user], ip(client));
                }
                Operation::Release { .. } => quota.release(&users[0], ip(0)),
                Operation::SetLimits(new) => {
                    limits = new;
                    quota.set_limits(new);
                }
            }
            prop_assert_eq!(quota.live() as usize, living.len());
            for (index, user) in users.iter().enumerate() {
                let live = living.iter().filter(|(u, _)| *u == index).count();
                prop_assert_eq!(quota.live_of_user(user) as usize, live);
            }
            for (text, group) in CLIENTS {
                let live = living.iter().filter(|(_, c)| CLIENTS[*c].1 == group).count();
                prop_assert_eq!(quota.live_from(text.parse().unwrap()) as usize, live);
            }
        }
    }
}
