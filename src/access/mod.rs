//! "May this client do this, and with which key?": credentials, peer policy, quotas, rates. Pure; replaced whole on reload.

pub mod credentials;
pub mod peers;
pub mod quota;
mod ranges;
pub mod rate;
pub mod rest;
pub mod scope;

pub use credentials::{AuthFailure, Credentials, Identity, Key, Verified};
pub use peers::{Denied, DeniedRule, OwnAddresses, PeerPolicy, PermittedIp, PermittedPeer};
pub use quota::{LOOPS_PER_VISIT, Limits, Quota, QuotaExceeded, Wanted};
pub use rate::{AddressRate, Debts};
pub use scope::{Scope, Visit};

use crate::base::Secret;

/// What the operator configured about access.
#[derive(Clone, Debug)]
pub struct Settings {
    /// REALM, 1 to 127 characters.
    pub realm: String,
    /// Static long-term users and their passwords.
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
}

/// One immutable snapshot of everything that decides access.
#[derive(Debug)]
pub struct Access {
    /// REALM of every challenge.
    pub realm: Box<str>,
    /// Who may allocate.
    pub credentials: Credentials,
    /// Who may be reached.
    pub peers: PeerPolicy,
    /// Whether an expired time-limited credential is refused at Refresh too.
    pub strict_expiry: bool,
}

impl Access {
    /// Builds the snapshot from what the operator configured and what the host owns.
    pub fn new(settings: &Settings, own: OwnAddresses) -> Self {
        Self {
            realm: settings.realm.as_str().into(),
            credentials: Credentials::new(&settings.realm, &settings.users, &settings.secrets)
                .with_visits(settings.visits.clone()),
            peers: PeerPolicy::new(&settings.peers, own),
            strict_expiry: settings.strict_expiry,
        }
    }
}
