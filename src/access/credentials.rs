//! Who may allocate: static long-term users and TURN REST secrets side by side.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::access::realms::RealmName;
use crate::access::rest;
use crate::access::scope::{Scope, VISIT_PREFIX, Visit};
use crate::base::Secret;
use crate::wire::key::{prepare, user_hash};

pub use crate::wire::key::{
    Key, MAX_USERNAME_BYTES, NotAKey, PasswordAlgorithm, long_term_key, stored_key,
};

/// Why authentication failed; the client sees 401 for all of them, the operator a label each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AuthFailure {
    /// No credentials in the request; the ordinary first step of every client.
    Missing,
    /// Neither a static user nor the shape of a time-limited name.
    UnknownUser,
    /// MESSAGE-INTEGRITY does not match.
    BadPassword,
    /// The time-limited credential or the token is over.
    Expired,
    /// REALM is not ours.
    WrongRealm,
    /// The nonce is not ours or is over (438).
    StaleNonce,
    /// Not the user who made the allocation (441).
    WrongUser,
    /// The credentials are right, and revoked.
    Revoked,
    /// PASSWORD-ALGORITHM or PASSWORD-ALGORITHMS is not what the challenge said (400).
    BidDown,
    /// The token is no authorization server's of ours, or not for this server.
    BadToken,
}

impl AuthFailure {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Missing,
        Self::UnknownUser,
        Self::BadPassword,
        Self::Expired,
        Self::WrongRealm,
        Self::StaleNonce,
        Self::WrongUser,
        Self::Revoked,
        Self::BidDown,
        Self::BadToken,
    ];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::UnknownUser => "unknown_user",
            Self::BadPassword => "bad_password",
            Self::Expired => "expired",
            Self::WrongRealm => "wrong_realm",
            Self::StaleNonce => "stale_nonce",
            Self::WrongUser => "wrong_user",
            Self::Revoked => "revoked",
            Self::BidDown => "bid_down",
            Self::BadToken => "bad_token",
        }
    }
}

/// Whom a request claims to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who<'a> {
    /// USERNAME.
    Name(&'a [u8]),
    /// USERHASH (RFC 8489 §14.4), which only static users are found by.
    Hash(&'a [u8; 32]),
}

/// Who a request speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user id that quotas, metrics and logs count: the static name, or the id inside a time-limited name.
    pub user: Arc<str>,
    /// USERNAME as it was sent, or the one that USERHASH stands for.
    pub username: Box<[u8]>,
    /// When a time-limited credential or a token ends, since the Unix epoch; `None` for static users.
    pub expires: Option<Duration>,
    /// How far it reaches.
    pub scope: Scope,
    /// Whether a token vouches for it.
    pub by_token: bool,
    /// The realm that knows it; `None`: the default one.
    pub realm: Option<RealmName>,
}

/// A username whose key matched.
#[derive(Clone)]
pub struct Verified {
    /// Who it is.
    pub identity: Identity,
    /// The key that answers are signed with.
    pub key: Key,
}

impl fmt::Debug for Verified {
    /// Masks the key: it is worth as much as the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// The first of `users` whose password is known, not its key alone.
pub fn first_with_password(
    users: &[(String, Secret<String>)],
) -> Option<&(String, Secret<String>)> {
    (users.iter()).find(|(_, password)| stored_key(password.expose()).is_none())
}

/// Every credential the server accepts.
pub struct Credentials {
    realm: Box<str>,
    users: HashMap<Box<str>, User>,
    /// Their names by USERHASH.
    hashes: HashMap<[u8; 32], Box<str>>,
    /// Whether clients can be asked to choose SHA-256: not while some static user has an MD5 key and nothing else, unless
    /// others have nothing but a SHA-256 key.
    take_sha256: bool,
    secrets: Box<[Secret<String>]>,
    /// Signs for visits, which reach no further than a loop.
    visits: Option<Secret<String>>,
    /// Whose they are, if not the default realm's.
    within: Option<RealmName>,
}

struct User {
    /// As configured, which is how the operator knows it.
    id: Arc<str>,
    /// What is known of them: one of a stored key, all of a password.
    md5: Option<Secret<[u8; 16]>>,
    sha256: Option<Secret<[u8; 32]>>,
    /// Tells whether the password is another, whatever the realm is.
    password: Secret<[u8; 32]>,
}

impl User {
    fn new(id: &str, prepared: &[u8], realm: &str, password: &str) -> Self {
        let stored = stored_key(password).and_then(Result::ok);
        let key = |algorithm: PasswordAlgorithm| match stored {
            Some(stored) => Some(stored).filter(|key| key.algorithm() == algorithm),
            None => Some(algorithm.key(prepared, realm, password.as_bytes())),
        };
        let md5 = key(PasswordAlgorithm::Md5).and_then(|key| key.as_bytes().try_into().ok());
        let sha256 = key(PasswordAlgorithm::Sha256).and_then(|key| key.as_bytes().try_into().ok());
        Self {
            id: id.into(),
            md5: md5.map(Secret::new),
            sha256: sha256.map(Secret::new),
            password: Secret::new(Sha256::digest(password).into()),
        }
    }

    fn key(&self, algorithm: PasswordAlgorithm) -> Option<Key> {
        match algorithm {
            PasswordAlgorithm::Md5 => self.md5.as_ref().map(|key| Key::md5(*key.expose())),
            PasswordAlgorithm::Sha256 => self.sha256.as_ref().map(|key| Key::sha256(*key.expose())),
        }
    }
}

impl Credentials {
    /// Derives keys of static users once; time-limited ones are derived when seen.
    ///
    /// Names and passwords of static users go through SASLprep (RFC 4013) and stay as they are where it refuses them.
    /// Of two names that are equal after it, the last one counts. A password may be a key of this realm ([`stored_key`]).
    pub fn new(
        realm: &str,
        users: &[(String, Secret<String>)],
        secrets: &[Secret<String>],
    ) -> Self {
        let users: HashMap<Box<str>, User> = users
            .iter()
            .map(|(name, password)| {
                let prepared = prepare(name);
                let password = Secret::new(prepare(password.expose()).into_owned());
                let user = User::new(name, prepared.as_bytes(), realm, password.expose());
                (prepared.into(), user)
            })
            .collect();
        let hashes = (users.keys())
            .map(|name| (user_hash(name.as_bytes(), realm), name.clone()))
            .collect();
        let take_sha256 = users.values().all(|user| user.sha256.is_some())
            || users.values().any(|user| user.md5.is_none());
        Self {
            realm: realm.into(),
            users,
            hashes,
            take_sha256,
            secrets: secrets.into(),
            visits: None,
            within: None,
        }
    }

    /// As those of `realm`: user ids end with its name.
    #[must_use]
    pub fn within(mut self, realm: RealmName) -> Self {
        for user in self.users.values_mut() {
            user.id = realm.qualified(&user.id).into();
        }
        self.within = Some(realm);
        self
    }

    /// Also accepts what `secret` signed, for a loop and nothing beyond.
    #[must_use]
    pub fn with_visits(self, secret: Option<Secret<String>>) -> Self {
        Self {
            visits: secret,
            ..self
        }
    }

    /// Whether nobody can authenticate.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.secrets.is_empty()
    }

    /// Whether somebody can be asked for USERHASH instead of USERNAME: all whom the operator knows are found by it. Names of
    /// time-limited credentials are in no list, so where there are secrets, nobody is asked.
    pub fn are_found_by_hash(&self) -> bool {
        !self.users.is_empty() && self.secrets.is_empty()
    }

    /// Whether clients can be asked to choose SHA-256, or only MD5.
    pub const fn take_sha256(&self) -> bool {
        self.take_sha256
    }

    /// The static user whose USERHASH is `hash`.
    pub fn name_of(&self, hash: &[u8; 32]) -> Option<&str> {
        self.hashes.get(hash).map(|name| &**name)
    }

    /// Whether the static user `username` of `earlier` is a user here, too, with the same password.
    pub fn confirm(&self, earlier: &Self, username: &[u8]) -> bool {
        let of = |credentials: &Self| {
            let name = std::str::from_utf8(username).ok()?;
            Some(*credentials.find(name)?.password.expose())
        };
        of(self).is_some_and(|password| of(earlier) == Some(password))
    }

    /// Whether `username` is a static user here, with that key where it is of this realm.
    pub fn holds(&self, username: &[u8], key: Option<&Key>) -> bool {
        let user = std::str::from_utf8(username)
            .ok()
            .and_then(|name| self.find(name));
        user.is_some_and(|user| {
            key.is_none_or(|key| user.key(key.algorithm()).is_some_and(|own| own.is(key)))
        })
    }

    /// Whether one of the secrets makes `key` for the time-limited `username` in this realm.
    pub fn derive(&self, username: &[u8], key: &Key) -> bool {
        (self.secrets.iter()).any(|secret| {
            let password = rest::password(secret, username);
            let derived = (key.algorithm()).key(username, &self.realm, password.expose());
            derived.is(key)
        })
    }

    /// Finds the key of `who` for which `matches` holds: the static user's, else one per REST secret.
    ///
    /// Does the same work for a name that does not exist as for a wrong password. A static name is never read as a
    /// time-limited one. A name over [`MAX_USERNAME_BYTES`] or not in UTF-8 is nobody's, and so is a hash of a name that is
    /// not static.
    ///
    /// # Errors
    /// `UnknownUser`, `BadPassword`, or `Expired` if the key is right and its time is over at `unix`.
    pub fn verify(
        &self,
        who: Who<'_>,
        algorithm: PasswordAlgorithm,
        unix: Duration,
        mut matches: impl FnMut(&Key) -> bool,
    ) -> Result<Verified, AuthFailure> {
        let username = match who {
            Who::Name(name) => name,
            // No name is empty, and none is found by that.
            Who::Hash(hash) => self.name_of(hash).unwrap_or_default().as_bytes(),
        };
        if username.len() > MAX_USERNAME_BYTES {
            return Err(AuthFailure::UnknownUser);
        }
        let name = std::str::from_utf8(username).ok();
        let user = name.and_then(|name| self.find(name));
        if let Some(user) = user {
            let key = user.key(algorithm);
            if black_box(matches(&key.unwrap_or(algorithm.nobodys())))
                && let Some(key) = key
            {
                return Ok(Verified {
                    identity: Identity {
                        user: Arc::clone(&user.id),
                        username: username.into(),
                        expires: None,
                        scope: Scope::Policy,
                        by_token: false,
                        realm: self.within,
                    },
                    key,
                });
            }
        }
        let limited = match user {
            Some(_) => None,
            None => name.and_then(rest::parse),
        };
        // From here on every failure costs one derivation and one `matches` per secret, and one `matches` for the
        // static table if there is one: what the time of an answer tells is the shape of the configuration only.
        for secret in &self.secrets {
            let password = rest::password(secret, username);
            let key = algorithm.key(username, &self.realm, password.expose());
            if black_box(matches(&key))
                && let Some(limited) = limited
            {
                return verified(limited, username, key, unix, Scope::Policy, self.within);
            }
        }
        // The name alone says whether this is tried.
        if let Some(limited) = limited.filter(|limited| limited.user.starts_with(VISIT_PREFIX))
            && let Some(secret) = &self.visits
        {
            let password = rest::password(secret, username);
            let key = algorithm.key(username, &self.realm, password.expose());
            if matches(&key) {
                let scope = Scope::Loop(Visit::of(limited.user));
                return verified(limited, username, key, unix, scope, None);
            }
        }
        if user.is_none() && (self.secrets.is_empty() || !self.users.is_empty()) {
            black_box(matches(black_box(&algorithm.nobodys())));
        }
        let known = user.is_some() || (limited.is_some() && !self.secrets.is_empty());
        Err(if known {
            AuthFailure::BadPassword
        } else {
            AuthFailure::UnknownUser
        })
    }

    /// The static user `name`, which clients may send with or without SASLprep.
    fn find(&self, name: &str) -> Option<&User> {
        if self.users.is_empty() {
            return None;
        }
        self.users.get(name).or_else(|| match prepare(name) {
            Cow::Borrowed(_) => None,
            Cow::Owned(prepared) => self.users.get(prepared.as_str()),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("realm", &self.realm)
            .field("users", &self.users.len())
            .field("secrets", &self.secrets.len())
            .finish()
    }
}

fn verified(
    limited: rest::TimeLimited<'_>,
    username: &[u8],
    key: Key,
    unix: Duration,
    scope: Scope,
    realm: Option<RealmName>,
) -> Result<Verified, AuthFailure> {
    let expires = Duration::from_secs(limited.expires_unix);
    if unix >= expires {
        return Err(AuthFailure::Expired);
    }
    Ok(Verified {
        identity: Identity {
            user: realm.map_or_else(
                || limited.user.into(),
                |realm| realm.qualified(limited.user).into(),
            ),
            username: username.into(),
            expires: Some(expires),
            scope,
            by_token: false,
            realm,
        },
        key,
    })
}
