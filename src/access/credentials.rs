//! Who may allocate: static long-term users and TURN REST secrets side by side.

use std::sync::Arc;
use std::time::Duration;

use crate::base::Secret;

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
    /// The time-limited credential is over.
    Expired,
    /// REALM is not ours.
    WrongRealm,
    /// The nonce is not ours or is over (438).
    StaleNonce,
    /// Not the user who made the allocation (441).
    WrongUser,
}

impl AuthFailure {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 7] = [
        Self::Missing,
        Self::UnknownUser,
        Self::BadPassword,
        Self::Expired,
        Self::WrongRealm,
        Self::StaleNonce,
        Self::WrongUser,
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
        }
    }
}

/// A long-term key: MD5(username ":" realm ":" password) (RFC 8489 §9.2.2).
pub type Key = [u8; 16];

/// Who a request speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user id that quotas, metrics and logs count: the static name, or the id inside a time-limited name.
    pub user: Arc<str>,
    /// When a time-limited credential ends, since the Unix epoch; `None` for static users.
    pub expires: Option<Duration>,
}

/// A username whose key matched.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Who it is.
    pub identity: Identity,
    /// The key that answers are signed with.
    pub key: Key,
}

/// Every credential the server accepts.
#[derive(Debug)]
pub struct Credentials {}

impl Credentials {
    /// Derives keys of static users once; time-limited ones are derived when seen.
    pub fn new(
        _realm: &str,
        _users: &[(String, Secret<String>)],
        _secrets: &[Secret<String>],
    ) -> Self {
        todo!()
    }

    /// Finds the key of `username` for which `matches` holds: the static user's, else one per REST secret.
    ///
    /// Does the same work for a name that does not exist as for a wrong password.
    ///
    /// # Errors
    /// `UnknownUser`, `BadPassword`, or `Expired` if the key is right and its time is over at `unix`.
    pub fn verify(
        &self,
        _username: &[u8],
        _unix: Duration,
        _matches: impl FnMut(&Key) -> bool,
    ) -> Result<Verified, AuthFailure> {
        todo!()
    }
}
