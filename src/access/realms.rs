//! Realms beside the default one: users, secrets and limits of their own.
//!
//! A client is of a realm because its TLS connection asked for a server name of that realm, or because its name ends with
//! `@` and the realm's name. Browsers and others sign with whatever realm they are challenged with, and a client over UDP has
//! said nothing when it is challenged; so the same users have two tables of keys, one for either REALM.
//!
//! User ids of a realm end with `@` and its name, and no others do: whatever counts users, or finds them, tells realms apart.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::credentials::{
    AuthFailure, Credentials, Key, PasswordAlgorithm, Verified, Who, stored_key,
};
use super::{Asks, rest};
use crate::base::Secret;

/// The name of a realm other than the default one. Names live as long as the process: there are few, and only an operator
/// makes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RealmName(&'static str);

impl RealmName {
    /// The realm called `name`.
    pub fn new(name: &str) -> Self {
        static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.iter().find(|known| **known == name) {
            return Self(known);
        }
        let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
        names.push(name);
        Self(name)
    }

    /// As text.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// `name` as everybody else knows it: with `@` and the realm, once.
    pub fn qualified(self, name: &str) -> String {
        if self.ends(name) {
            name.to_owned()
        } else {
            format!("{name}@{}", self.0)
        }
    }

    /// Whether the user id in `username` ends with `@` and the realm.
    pub fn is_named_by(self, username: &str) -> bool {
        self.ends(user_id(username))
    }

    fn ends(self, name: &str) -> bool {
        (name.strip_suffix(self.0)).is_some_and(|rest| rest.ends_with('@'))
    }
}

impl fmt::Display for RealmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// How many allocations of a realm may live at once; 0 is no limit. The limits of the server hold as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RealmLimits {
    /// In total.
    pub allocations: u32,
    /// Per user id.
    pub allocations_per_user: u32,
}

/// What the operator configured about a realm.
#[derive(Clone, Debug)]
pub struct RealmSettings {
    /// REALM of challenges to clients that asked for one of `server_names`, 1 to 127 characters.
    pub name: String,
    /// The names that TLS clients ask for, in lower case.
    pub server_names: Vec<String>,
    /// Static long-term users and their passwords, or keys of this realm ([`stored_key`]).
    pub users: Vec<(String, Secret<String>)>,
    /// TURN REST shared secrets; the first one mints, all verify.
    pub secrets: Vec<Secret<String>>,
    /// Quotas.
    pub limits: RealmLimits,
}

/// One realm.
#[derive(Debug)]
pub struct Realm {
    /// What it is called.
    pub name: RealmName,
    /// Quotas.
    pub limits: RealmLimits,
    server_names: Box<[Box<str>]>,
    /// What clients can be asked for that are challenged with its own name.
    pub(super) asks: Asks,
    /// Of clients that asked for one of its server names, and are challenged with its own name.
    own: Credentials,
    /// Of clients whose names say where they belong, and who are challenged with the default realm.
    suffixed: Credentials,
}

/// Every realm but the default one.
#[derive(Debug, Default)]
pub struct Realms(HashMap<&'static str, Realm>);

impl Realm {
    fn new(default: &str, settings: &RealmSettings, visits: Option<&Secret<String>>) -> Self {
        let name = RealmName::new(&settings.name);
        let qualified: Vec<_> = (settings.users.iter())
            // A stored key is that of one name in one realm.
            .filter(|(_, password)| stored_key(password.expose()).is_none())
            .map(|(user, password)| (name.qualified(user), password.clone()))
            .collect();
        let either: Vec<_> = settings.users.iter().chain(&qualified).cloned().collect();
        let table =
            |realm, users: &[_]| Credentials::new(realm, users, &settings.secrets).within(name);
        let own = table(&settings.name, &either).with_visits(visits.cloned());
        Self {
            name,
            asks: Asks::of(std::iter::once(&own)),
            limits: settings.limits,
            server_names: (settings.server_names.iter())
                .map(|name| name.to_ascii_lowercase().into())
                .collect(),
            own,
            suffixed: table(default, &qualified),
        }
    }

    /// The table of clients that are challenged with the realm itself, or of those that are not.
    const fn table(&self, challenged: bool) -> &Credentials {
        if challenged {
            &self.own
        } else {
            &self.suffixed
        }
    }

    /// Whether the static user `username` of `earlier` is a user here, too, with the same password.
    pub fn confirm(&self, earlier: &Self, username: &[u8]) -> bool {
        self.own.confirm(&earlier.own, username)
    }

    /// Whether `username` is a static user here, with that key where it is of a realm that clients are challenged with now.
    pub fn holds(&self, username: &[u8], key: Option<&Key>) -> bool {
        self.own.holds(username, key) || self.suffixed.holds(username, key)
    }

    /// Whether one of the secrets makes `key` for the time-limited `username`.
    pub fn derive(&self, username: &[u8], key: &Key) -> bool {
        self.own.derive(username, key) || self.suffixed.derive(username, key)
    }

    /// As [`Credentials::verify`], for clients that are `challenged` with this realm, or with the default one.
    ///
    /// # Errors
    /// Those of [`Credentials::verify`].
    pub fn verify(
        &self,
        challenged: bool,
        who: Who<'_>,
        algorithm: PasswordAlgorithm,
        unix: Duration,
        matches: impl FnMut(&Key) -> bool,
    ) -> Result<Verified, AuthFailure> {
        self.table(challenged).verify(who, algorithm, unix, matches)
    }
}

impl Realms {
    /// Realms beside the one called `default`; `visits` signs for visits of the test page by any of their server names.
    pub fn new(default: &str, realms: &[RealmSettings], visits: Option<&Secret<String>>) -> Self {
        let realm = |settings| {
            let realm = Realm::new(default, settings, visits);
            (realm.name.as_str(), realm)
        };
        Self(realms.iter().map(realm).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each realm, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Realm> {
        self.0.values()
    }

    /// The realm of that name.
    pub fn get(&self, name: RealmName) -> Option<&Realm> {
        self.0.get(name.as_str())
    }

    /// The realm of that name, where it is known as text only.
    pub fn find(&self, name: &str) -> Option<&Realm> {
        self.0.get(name)
    }

    /// The realm of a TLS client that asked for `server_name`, in lower case.
    pub fn of_server(&self, server_name: &str) -> Option<RealmName> {
        (self.0.values())
            .find(|realm| realm.server_names.iter().any(|name| **name == *server_name))
            .map(|realm| realm.name)
    }

    /// The tables of names that say where they belong.
    pub(super) fn suffixed(&self) -> impl Iterator<Item = &Credentials> + Clone {
        self.0.values().map(|realm| &realm.suffixed)
    }

    /// The realm whose name `who` ends with: the user id in it, if it is a time-limited one.
    pub fn of_user(&self, who: Who<'_>) -> Option<&Realm> {
        if self.is_empty() {
            return None;
        }
        let name = match who {
            Who::Name(name) => std::str::from_utf8(name).ok()?,
            Who::Hash(hash) => {
                let knows = |realm: &&Realm| realm.suffixed.name_of(hash).is_some();
                return self.0.values().find(knows);
            }
        };
        let (_, realm) = user_id(name).rsplit_once('@')?;
        self.find(realm)
    }
}

/// The user id in a time-limited name, or the whole name.
fn user_id(username: &str) -> &str {
    rest::parse(username).map_or(username, |limited| limited.user)
}
