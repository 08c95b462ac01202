//! What is revoked: credentials, users, and all that API keys have minted.
//!
//! Asked once a client has proven who it is, and of every live allocation when it changes; never per packet. Names are
//! found by hash, so that a hundred thousand of them cost a request no more than one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::realms::RealmName;
use super::rest;

/// What a revocation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RevokedKind {
    /// One credential, by its exact USERNAME.
    Credential,
    /// A user, by the user id that quotas and logs count: whatever credentials it has.
    User,
    /// An API key, by its id: whatever it has minted.
    Key,
}

impl RevokedKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Credential, Self::User, Self::Key];

    /// Its word in files, commands, the API and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::User => "user",
            Self::Key => "key",
        }
    }

    /// The kind of that word.
    pub fn of(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.label() == label)
    }
}

/// One thing that is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// What is revoked.
    pub kind: RevokedKind,
    /// Its name.
    pub name: String,
    /// When that is over, in seconds since the Unix epoch; `None`: never.
    pub until_unix: Option<u64>,
}

/// Names of one kind, and until when they are revoked, in seconds since the Unix epoch.
type Table = HashMap<Box<[u8]>, u64>;

/// For good.
const EVER: u64 = u64::MAX;

/// Changes that are kept apart from the rest, so that each costs a copy of these alone.
const RECENT: usize = 256;

/// Everything that is revoked, as one value. Clones share what they hold.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    /// What changed last, with zero for what is revoked no longer.
    recent: Arc<[Table; RevokedKind::ALL.len()]>,
    settled: Arc<[Table; RevokedKind::ALL.len()]>,
    number: u64,
}

impl Revocations {
    /// Revokes `name` until that moment, in seconds since the Unix epoch, or for good. `now_unix` tells which others are
    /// over.
    pub fn revoke(
        &mut self,
        kind: RevokedKind,
        name: &str,
        until_unix: Option<u64>,
        now_unix: u64,
    ) {
        self.set(kind, name, until_unix.unwrap_or(EVER), now_unix);
    }

    /// Revokes `name` no longer.
    pub fn lift(&mut self, kind: RevokedKind, name: &str, now_unix: u64) {
        self.set(kind, name, 0, now_unix);
    }

    fn set(&mut self, kind: RevokedKind, name: &str, until_unix: u64, now_unix: u64) {
        self.number += 1;
        let recent = Arc::make_mut(&mut self.recent);
        recent[kind as usize].insert(name.as_bytes().into(), until_unix);
        if recent.iter().map(HashMap::len).sum::<usize>() <= RECENT {
            return;
        }
        let settled = Arc::make_mut(&mut self.settled);
        for (table, changes) in settled.iter_mut().zip(recent) {
            table.extend(changes.drain());
            table.retain(|_, until_unix| *until_unix > now_unix);
        }
    }

    /// Takes the place of `earlier`, so that it counts as newer.
    #[must_use]
    pub fn after(mut self, earlier: &Self) -> Self {
        self.number = self.number.max(earlier.number + 1);
        self
    }

    /// Whether it is newer than `other`, which it grew from or which grew from it.
    pub const fn is_newer(&self, other: &Self) -> bool {
        self.number > other.number
    }

    /// Whether `name` is revoked at `unix`, the time since the Unix epoch.
    pub fn has(&self, kind: RevokedKind, name: &[u8], unix: Duration) -> bool {
        let recent = self.recent[kind as usize].get(name);
        let until_unix = recent.or_else(|| self.settled[kind as usize].get(name));
        until_unix.is_some_and(|until_unix| unix.as_secs() < *until_unix)
    }

    /// What of a client of `realm` is revoked at `unix`, if anything is: of the user id `user`, who came as `username`, which
    /// is time-limited or a static user's. Where a realm is not the default one, its credentials end with `@` and its name,
    /// whether the client says so or not.
    pub fn find(
        &self,
        realm: Option<RealmName>,
        username: &[u8],
        user: &str,
        is_limited: bool,
        unix: Duration,
    ) -> Option<RevokedKind> {
        let tables = self.recent.iter().chain(&*self.settled);
        if tables.into_iter().all(HashMap::is_empty) {
            return None;
        }
        let has = |kind, name: &[u8]| self.has(kind, name, unix);
        let name = std::str::from_utf8(username).ok();
        let elsewhere = (realm.zip(name))
            .filter(|(realm, name)| !realm.is_named_by(name))
            .map(|(realm, name)| realm.qualified(name));
        let credential = elsewhere.as_ref().map_or(username, String::as_bytes);
        // A static user's name may come in other characters than the operator wrote (SASLprep).
        if has(RevokedKind::Credential, credential)
            || !is_limited && has(RevokedKind::Credential, user.as_bytes())
        {
            return Some(RevokedKind::Credential);
        }
        if has(RevokedKind::User, user.as_bytes()) {
            return Some(RevokedKind::User);
        }
        let name = name.filter(|_| is_limited);
        let key = name.and_then(rest::parse).and_then(|limited| limited.key);
        key.filter(|key| has(RevokedKind::Key, key.as_bytes()))
            .map(|_| RevokedKind::Key)
    }
}
