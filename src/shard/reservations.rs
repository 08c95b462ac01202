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
mod tests;
