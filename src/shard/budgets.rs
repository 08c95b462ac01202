//! Bandwidth that shards share: a budget for each user with an allocation, one for the whole server.
//!
//! The core counts what its purses spend and says when one is to settle (`turn::Settlement`); here it settles, with one
//! lock of a budget that is nobody else's for long. A packet touches none of it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::base::Now;
use crate::turn::police::{Budget, Grant, Rate};
use crate::turn::{Bandwidth, Direction, PurseId, Server, Settlement};

use super::ports::lock;

/// Every budget. Shared by the shards.
pub(super) struct Budgets {
    started: Instant,
    /// Bits per second; 0 is no limit.
    per_user: AtomicU64,
    total: AtomicU64,
    server: Arc<Account>,
    users: Mutex<Users>,
}

#[derive(Default)]
struct Users {
    accounts: HashMap<Arc<str>, Arc<Account>>,
    /// Those that nobody holds, since their last holder let go. They stay until they are full, or a user could begin anew
    /// to get out of debt.
    left: VecDeque<Arc<str>>,
}

#[derive(Default)]
struct Account(Mutex<Shared>);

#[derive(Default)]
struct Shared {
    holders: u32,
    /// It is among those that nobody holds, or held again since.
    left: bool,
    /// Made with the first settlement under a limit.
    budget: Option<Budget>,
}

/// Accounts that are looked at when a holder lets go: more than one, so that they end faster than they come.
const SWEEP: usize = 4;

impl Budgets {
    pub fn new(now: Now, bandwidth: Bandwidth, shards: usize) -> Self {
        let server = Account::default();
        lock(&server.0).holders = shards as u32;
        Self {
            started: now.mono,
            per_user: AtomicU64::new(bandwidth.per_user),
            total: AtomicU64::new(bandwidth.total),
            server: Arc::new(server),
            users: Mutex::default(),
        }
    }

    /// Replaces the limits. Purses follow when they settle next.
    pub fn set(&self, bandwidth: Bandwidth) {
        self.per_user.store(bandwidth.per_user, Ordering::Relaxed);
        self.total.store(bandwidth.total, Ordering::Relaxed);
    }

    /// The account of `user`, with one more holder.
    fn hold(&self, user: &Arc<str>) -> Arc<Account> {
        let mut users = lock(&self.users);
        let account = Arc::clone(users.accounts.entry(Arc::clone(user)).or_default());
        lock(&account.0).holders += 1;
        account
    }

    /// One holder fewer of the account of `user`.
    fn let_go(&self, user: Arc<str>, at: u64) {
        let mut users = lock(&self.users);
        if let Some(account) = users.accounts.get(&user) {
            let mut shared = lock(&account.0);
            shared.holders -= 1;
            let leaves = shared.holders == 0 && !std::mem::replace(&mut shared.left, true);
            drop(shared);
            if leaves {
                users.left.push_back(user);
            }
        }
        let rate = Rate::of(self.per_user.load(Ordering::Relaxed));
        for _ in 0..SWEEP.min(users.left.len()) {
            let Some(user) = users.left.pop_front() else {
                break;
            };
            let Some(account) = users.accounts.get(&user) else {
                continue;
            };
            let mut shared = lock(&account.0);
            let held = shared.holders > 0;
            let over = shared.is_new(rate, at);
            shared.left = !held && !over;
            let stays = shared.left;
            drop(shared);
            if stays {
                users.left.push_back(user);
            } else if !held {
                users.accounts.remove(&user);
            }
        }
    }

    fn nanos(&self, now: Now) -> u64 {
        now.mono.saturating_duration_since(self.started).as_nanos() as u64
    }
}

impl Shared {
    fn settle(
        &mut self,
        rate: Option<Rate>,
        at: u64,
        spent: [u64; Direction::ALL.len()],
    ) -> [Grant; Direction::ALL.len()] {
        let Some(rate) = rate else {
            self.budget = None;
            return [Grant::UNLIMITED; Direction::ALL.len()];
        };
        let budget = (self.budget).get_or_insert_with(|| Budget::full(rate, at));
        budget.settle(rate, at, self.holders, spent)
    }

    /// Whether an account that is made anew would be the same.
    fn is_new(&mut self, rate: Option<Rate>, at: u64) -> bool {
        match (rate, &mut self.budget) {
            (Some(rate), Some(budget)) => budget.is_full(rate, at),
            _ => true,
        }
    }
}

/// One shard's hold on the budgets: an account for each purse of its server.
pub(super) struct Purses {
    budgets: Arc<Budgets>,
    accounts: Vec<Option<Arc<Account>>>,
}

impl Purses {
    pub const fn new(budgets: Arc<Budgets>) -> Self {
        Self {
            budgets,
            accounts: Vec::new(),
        }
    }

    /// Settles every purse of `server` that is due.
    pub fn settle(&mut self, now: Now, server: &mut Server) {
        let at = self.budgets.nanos(now);
        while let Some(settlement) = server.poll_purse() {
            let Settlement {
                purse,
                user,
                spent,
                closed,
            } = settlement;
            let bits = match purse {
                PurseId::TOTAL => &self.budgets.total,
                _ => &self.budgets.per_user,
            };
            let rate = Rate::of(bits.load(Ordering::Relaxed));
            let account = self.account(purse, user.as_ref());
            let grants = lock(&account.0).settle(rate, at, spent);
            if !closed {
                server.fund(now, purse, grants);
                continue;
            }
            if let Some(slot) = self.accounts.get_mut(purse.0 as usize) {
                *slot = None;
            }
            if let Some(user) = user {
                self.budgets.let_go(user, at);
            }
        }
    }

    fn account(&mut self, purse: PurseId, user: Option<&Arc<str>>) -> &Account {
        let Some(user) = user else {
            return &self.budgets.server;
        };
        let index = purse.0 as usize;
        if self.accounts.len() <= index {
            self.accounts.resize_with(index + 1, || None);
        }
        let budgets = &self.budgets;
        self.accounts[index].get_or_insert_with(|| budgets.hold(user))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::Clock;

    /// Users come and go, in debt or not: accounts are kept for a moment, once each, and end.
    #[test]
    fn accounts_end_when_they_are_full() {
        let now = Clock.now();
        let bandwidth = Bandwidth {
            per_user: 1_000_000,
            ..Bandwidth::default()
        };
        let budgets = Budgets::new(now, bandwidth, 2);
        let rate = Rate::of(bandwidth.per_user);
        let visit = |user: &str, at: u64, spent: u64| {
            let user = Arc::from(user);
            let account = budgets.hold(&user);
            lock(&account.0).settle(rate, at, [spent, 0]);
            budgets.let_go(user, at);
        };
        let sizes = || {
            let users = lock(&budgets.users);
            (users.accounts.len(), users.left.len())
        };
        for _ in 0..1000 {
            visit("alice", 0, 1200);
        }
        assert_eq!(sizes(), (1, 1));
        for user in 0..1000 {
            visit(&user.to_string(), 0, 1200);
        }
        assert_eq!(sizes(), (1001, 1001));
        // Ten milliseconds make good for 1200 bytes; 1.2 MB take as many seconds as they are over the limit.
        let later = Duration::from_secs(1).as_nanos() as u64;
        for _ in 0..1000 {
            visit("bob", later, 1200);
        }
        let (accounts, left) = sizes();
        assert!(accounts <= 3 && left <= 3, "{accounts}, {left}");
        assert!(lock(&budgets.users).accounts.contains_key("alice"));
    }
}
