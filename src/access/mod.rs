//! "May this client do this, and with which key?": credentials, peer policy, quotas, rates. Pure; replaced whole on reload.

pub mod credentials;
pub mod oauth;
pub mod peers;
pub mod quota;
mod ranges;
pub mod rate;
pub mod realms;
pub mod rest;
pub mod revocations;
pub mod scope;

pub use credentials::{
    AuthFailure, Credentials, Identity, Key, NotAKey, PasswordAlgorithm, Verified, Who, stored_key,
};
pub use oauth::Tokens;
pub use peers::{Denied, DeniedRule, OwnAddresses, PeerPolicy, PermittedIp, PermittedPeer};
pub use quota::{LOOPS_PER_VISIT, Limits, Quota, QuotaExceeded, Wanted};
pub use rate::{AddressRate, Debts};
pub use realms::{RealmLimits, RealmName, RealmSettings, Realms};
pub use revocations::{Revocation, Revocations, RevokedKind};
pub use scope::{Scope, Visit};

use std::sync::Arc;
use std::time::Duration;

use crate::base::Secret;

/// What the operator configured about access.
#[derive(Clone, Debug)]
pub struct Settings {
    /// REALM, 1 to 127 characters.
    pub realm: String,
    /// Static long-term users and their passwords, or keys in place of passwords ([`stored_key`]).
    pub users: Vec<(String, Secret<String>)>,
    /// TURN REST shared secrets; the first one mints, all verify.
    pub secrets: Vec<Secret<String>>,
    /// The secret of credentials that reach no further than a loop: the test page's and the canary's. `None`: there are
    /// none.
    pub visits: Option<Secret<String>>,
    /// Whether a time-limited credential also ends at Refresh.
    pub strict_expiry: bool,
    /// Peer policy.
    pub peers: peers::Settings,
    /// Quotas.
    pub limits: Limits,
    /// Tokens of authorization servers.
    pub oauth: oauth::Settings,
    /// Realms beside that one.
    pub realms: Vec<RealmSettings>,
}

/// One immutable snapshot of everything that decides access.
#[derive(Clone, Debug)]
pub struct Access {
    /// REALM of challenges, but to clients that asked for a server name of another realm.
    pub realm: Box<str>,
    /// Who may allocate.
    pub credentials: Arc<Credentials>,
    /// Who may allocate in other realms.
    pub realms: Arc<Realms>,
    /// Who may do so with a token; `None`: nobody.
    pub tokens: Option<Arc<Tokens>>,
    /// Who may do so no longer.
    pub revoked: Revocations,
    /// Who may be reached.
    pub peers: PeerPolicy,
    /// Whether an expired time-limited credential is refused at Refresh too.
    pub strict_expiry: bool,
    asks: Asks,
}

/// What clients can be asked for beyond USERNAME and MD5 (RFC 8489 §9.2.1), whoever they turn out to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// USERHASH: all whom the operator knows are found by it.
    pub by_hash: bool,
    /// Keys by SHA-256.
    pub sha256: bool,
}

impl Asks {
    /// Of clients that may be in any of these tables.
    fn of<'c>(tables: impl Iterator<Item = &'c Credentials> + Clone) -> Self {
        let mut known = tables.clone().filter(|table| !table.is_empty()).peekable();
        Self {
            by_hash: known.peek().is_some() && known.all(Credentials::are_found_by_hash),
            sha256: tables.into_iter().all(Credentials::take_sha256),
        }
    }
}

impl Access {
    /// Builds the snapshot from what the operator configured and what the host owns.
    pub fn new(settings: &Settings, own: OwnAddresses) -> Self {
        let visits = settings.visits.as_ref();
        let credentials = Credentials::new(&settings.realm, &settings.users, &settings.secrets)
            .with_visits(settings.visits.clone());
        let realms = Realms::new(&settings.realm, &settings.realms, visits);
        let tokens = (!settings.oauth.keys.is_empty()).then(|| {
            let name = settings.oauth.server_name.as_ref();
            Tokens::new(name.unwrap_or(&settings.realm), &settings.oauth.keys)
        });
        let asks = Asks::of(std::iter::once(&credentials).chain(realms.suffixed()));
        Self {
            realm: settings.realm.as_str().into(),
            credentials: Arc::new(credentials),
            realms: Arc::new(realms),
            asks: Asks {
                // The names of keys of tokens are in no list.
                by_hash: asks.by_hash && tokens.is_none(),
                ..asks
            },
            tokens: tokens.map(Arc::new),
            revoked: Revocations::default(),
            peers: PeerPolicy::new(&settings.peers, own),
            strict_expiry: settings.strict_expiry,
        }
    }

    /// The same without what `revoked` holds.
    #[must_use]
    pub fn with_revoked(self, revoked: Revocations) -> Self {
        Self { revoked, ..self }
    }

    /// REALM of challenges to clients of `realm`.
    pub fn challenge(&self, realm: Option<RealmName>) -> &str {
        match realm {
            None => &self.realm,
            Some(realm) => realm.as_str(),
        }
    }

    /// What clients can be asked for that are challenged with `challenged`.
    pub fn asks(&self, challenged: Option<RealmName>) -> Asks {
        match challenged.and_then(|name| self.realms.get(name)) {
            Some(realm) => realm.asks,
            None => self.asks,
        }
    }

    /// Finds the key of `who` for which `matches` holds, as [`Credentials::verify`] does, unless it is revoked. That it is
    /// learns only who has the right password. `challenged` is the realm that the client was challenged with, where that is
    /// not the default one.
    ///
    /// # Errors
    /// Those of [`Credentials::verify`], and `Revoked`.
    pub fn verify(
        &self,
        challenged: Option<RealmName>,
        who: Who<'_>,
        algorithm: PasswordAlgorithm,
        unix: Duration,
        matches: impl FnMut(&Key) -> bool,
    ) -> Result<Verified, AuthFailure> {
        let verified = match challenged.and_then(|name| self.realms.get(name)) {
            Some(realm) => realm.verify(true, who, algorithm, unix, matches),
            None => match self.realms.of_user(who) {
                Some(realm) => realm.verify(false, who, algorithm, unix, matches),
                None => self.credentials.verify(who, algorithm, unix, matches),
            },
        };
        self.unless_revoked(unix, verified?)
    }

    /// The same for whoever comes with a token, as [`Tokens::verify`] has it.
    ///
    /// # Errors
    /// Those of [`Tokens::verify`], `BadToken` where there are none, and `Revoked`.
    pub fn verify_token(
        &self,
        username: &[u8],
        token: &[u8],
        unix: Duration,
        matches: impl FnMut(&Key) -> bool,
    ) -> Result<Verified, AuthFailure> {
        let tokens = self.tokens.as_ref().ok_or(AuthFailure::BadToken)?;
        self.unless_revoked(unix, tokens.verify(username, token, unix, matches)?)
    }

    fn unless_revoked(&self, unix: Duration, verified: Verified) -> Result<Verified, AuthFailure> {
        let Identity {
            user,
            username,
            expires,
            realm,
            ..
        } = &verified.identity;
        match (self.revoked).find(*realm, username, user, expires.is_some(), unix) {
            None => Ok(verified),
            Some(_) => Err(AuthFailure::Revoked),
        }
    }

    /// Whether there is that realm.
    pub fn knows(&self, realm: Option<RealmName>) -> bool {
        realm.is_none_or(|name| self.realms.get(name).is_some())
    }

    /// Whether both know the same users.
    pub fn has_users_of(&self, earlier: &Self) -> bool {
        Arc::ptr_eq(&self.credentials, &earlier.credentials)
            && Arc::ptr_eq(&self.realms, &earlier.realms)
    }

    /// Whether the static user `username` of `realm` in `earlier` is a user here, too, with the same password.
    pub fn confirm(&self, earlier: &Self, realm: Option<RealmName>, username: &[u8]) -> bool {
        let Some(name) = realm else {
            return self.credentials.confirm(&earlier.credentials, username);
        };
        let (here, there) = (self.realms.get(name), earlier.realms.get(name));
        here.zip(there)
            .is_some_and(|(here, there)| here.confirm(there, username))
    }

    /// Whether `username` is a static user of `realm`, with that key where it is of a realm that clients are challenged
    /// with.
    pub fn holds(&self, realm: Option<RealmName>, username: &[u8], key: Option<&Key>) -> bool {
        match realm {
            None => self.credentials.holds(username, key),
            Some(name) => (self.realms.get(name)).is_some_and(|realm| realm.holds(username, key)),
        }
    }

    /// Whether one of the secrets of `realm` makes `key` for the time-limited `username`.
    pub fn derive(&self, realm: Option<RealmName>, username: &[u8], key: &Key) -> bool {
        match realm {
            None => self.credentials.derive(username, key),
            Some(name) => (self.realms.get(name)).is_some_and(|realm| realm.derive(username, key)),
        }
    }
}
