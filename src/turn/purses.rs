//! What a server's allocations may spend of bandwidth that they share: one purse for each user, one for the whole server.
//!
//! A purse is a holder of a [`Budget`](super::police::Budget). It is due to settle once it has spent half its share, or
//! every millisecond while the budget is scarce; whoever owns the server then asks for it with `Server::poll_purse` and
//! answers with `Server::fund`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;

use super::police::Grant;
use super::stats::Direction;

/// Names a purse within its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PurseId(pub u32);

impl PurseId {
    /// That of all allocations together.
    pub const TOTAL: Self = Self(0);
}

/// A purse that is to settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Which.
    pub purse: PurseId,
    /// Whose; `None` is the whole server's.
    pub user: Option<Arc<str>>,
    /// Payload bytes since it settled last, by `Direction`.
    pub spent: [u64; Direction::ALL.len()],
    /// The user has no allocation here any more: there is nothing to fund.
    pub closed: bool,
}

/// How old a grant may be that says something about the budget. Then it has had the time to fill.
const STALE_NANOS: u64 = 150_000_000;

/// How often a purse settles while the budget is scarce.
const PATIENCE_NANOS: u64 = 1_000_000;

/// Every purse of a server.
#[derive(Debug)]
pub(super) struct Purses {
    slots: Vec<Purse>,
    free: Vec<PurseId>,
    by_user: HashMap<Arc<str>, PurseId, RandomState>,
    /// Those to settle, in order, each once. Room for all of them is made when a purse is.
    due: VecDeque<PurseId>,
}

#[derive(Debug)]
struct Purse {
    user: Option<Arc<str>>,
    allocations: u32,
    due: bool,
    accounts: [Account; Direction::ALL.len()],
}

/// One direction of a purse.
#[derive(Clone, Copy, Debug)]
struct Account {
    grant: Grant,
    /// When the grant was made.
    at: u64,
    /// Since then.
    spent: u64,
}

impl Account {
    const EMPTY: Self = Self {
        grant: Grant {
            allowance: 0,
            share: 0,
            pressure: 0.0,
        },
        at: 0,
        spent: 0,
    };

    /// The probability with which a packet is to be lost.
    const fn pressure(&self, at: u64) -> f32 {
        let (allowance, pressure) = if at.saturating_sub(self.at) > STALE_NANOS {
            (self.grant.share, 0.0)
        } else {
            (self.grant.allowance, self.grant.pressure)
        };
        if self.spent < allowance {
            pressure
        } else {
            1.0
        }
    }
}

impl Purses {
    /// With the purse of the whole server, which is empty.
    pub fn new(hasher: RandomState) -> Self {
        Self {
            slots: vec![Purse::new(None)],
            free: Vec::new(),
            by_user: HashMap::with_hasher(hasher),
            due: VecDeque::with_capacity(1),
        }
    }

    /// The purse of `user`, for one more allocation.
    pub fn open(&mut self, user: &Arc<str>) -> PurseId {
        if let Some(&id) = self.by_user.get(user) {
            self.slots[id.0 as usize].allocations += 1;
            return id;
        }
        let purse = Purse::new(Some(Arc::clone(user)));
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = purse;
                id
            }
            None => {
                self.slots.push(purse);
                PurseId((self.slots.len() - 1) as u32)
            }
        };
        self.by_user.insert(Arc::clone(user), id);
        let room = self.slots.len() - self.due.len();
        self.due.reserve(room);
        self.call(id);
        id
    }

    /// One allocation fewer spends from `id`.
    pub fn close(&mut self, id: PurseId) {
        let purse = &mut self.slots[id.0 as usize];
        purse.allocations -= 1;
        if purse.allocations == 0 {
            self.call(id);
        }
    }

    /// The probability with which a packet is to be lost.
    pub fn pressure(&self, id: PurseId, direction: Direction, at: u64) -> f32 {
        self.slots[id.0 as usize].accounts[direction as usize].pressure(at)
    }

    /// Counts `bytes`, which are 0 for a packet that is lost.
    pub fn spend(&mut self, id: PurseId, direction: Direction, at: u64, bytes: u64) {
        let account = &mut self.slots[id.0 as usize].accounts[direction as usize];
        account.spent += bytes;
        let scarce = account.grant.pressure > 0.0 || account.spent >= account.grant.allowance;
        let waited = at.saturating_sub(account.at) >= PATIENCE_NANOS;
        if account.spent >= account.grant.share / 2 || (scarce && waited) {
            self.call(id);
        }
    }

    /// Makes `id` due.
    pub fn call(&mut self, id: PurseId) {
        let purse = &mut self.slots[id.0 as usize];
        if !std::mem::replace(&mut purse.due, true) {
            self.due.push_back(id);
        }
    }

    /// Whether any is due.
    pub fn are_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next that is due; a purse that nobody spends from is no more.
    pub fn poll(&mut self) -> Option<Settlement> {
        let id = self.due.pop_front()?;
        let purse = &mut self.slots[id.0 as usize];
        purse.due = false;
        let spent =
            [0, 1].map(|direction: usize| std::mem::take(&mut purse.accounts[direction].spent));
        let closed = id != PurseId::TOTAL && purse.allocations == 0;
        let user = if closed {
            purse.user.take()
        } else {
            purse.user.clone()
        };
        if let Some(user) = user.as_ref().filter(|_| closed) {
            self.by_user.remove(user);
            self.free.push(id);
        }
        Some(Settlement {
            purse: id,
            user,
            spent,
            closed,
        })
    }

    /// What `id` may spend from `at` on.
    pub fn fund(&mut self, id: PurseId, at: u64, grants: [Grant; Direction::ALL.len()]) {
        if let Some(purse) = self.slots.get_mut(id.0 as usize) {
            for (account, grant) in purse.accounts.iter_mut().zip(grants) {
                account.grant = grant;
                account.at = at;
            }
        }
    }
}

impl Purse {
    fn new(user: Option<Arc<str>>) -> Self {
        Self {
            allocations: user.is_some().into(),
            user,
            due: false,
            accounts: [Account::EMPTY; Direction::ALL.len()],
        }
    }
}
