//! Long-term authentication (RFC 8489 §9.2) with nonces that are computed, not stored.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use std::time::Duration;

use crate::access::{Access, AuthFailure, Identity, Key, Scope};
use crate::base::addr::bits;
use crate::base::{FiveTuple, Now};
use crate::wire::Message;

use super::allocation::Allocation;
use super::reject::Reject;

/// Length of a nonce on the wire, in bytes: a multiple of four and no longer than it must be, because strangers get it.
pub const NONCE_LENGTH: usize = 24;

const EXPIRY: usize = 4;
const MAC: usize = 14;

/// Issues and checks nonces: an expiry and a MAC over it and the client's transport address.
#[derive(Clone)]
pub(super) struct Nonces {
    keyed: Hmac<Sha256>,
    lifetime: Duration,
}

impl Nonces {
    pub fn new(key: &[u8; 32], lifetime: Duration) -> Self {
        Self {
            keyed: Hmac::new_from_slice(key)
                .unwrap_or_else(|_| unreachable!("HMAC accepts every key length")),
            lifetime,
        }
    }

    /// A nonce for `client`, good for the configured lifetime from `now`.
    pub fn issue(&self, now: Now, client: FiveTuple) -> String {
        let expires = (now.unix + self.lifetime).as_secs() as u32;
        let mut raw = [0; EXPIRY + MAC];
        raw[..EXPIRY].copy_from_slice(&expires.to_be_bytes());
        raw[EXPIRY..].copy_from_slice(&self.mac(expires, client));
        BASE64.encode(raw)
    }

    /// Whether `nonce` is ours, made for `client`, and not over.
    pub fn check(&self, now: Now, client: FiveTuple, nonce: &[u8]) -> bool {
        let mut raw = [0; EXPIRY + MAC];
        if nonce.len() != NONCE_LENGTH || BASE64.decode_slice(nonce, &mut raw) != Ok(raw.len()) {
            return false;
        }
        let (Some(expires), Some(mac)) = (raw.first_chunk::<EXPIRY>(), raw.last_chunk::<MAC>())
        else {
            return false;
        };
        let expires = u32::from_be_bytes(*expires);
        let ours: bool = self.mac(expires, client).ct_eq(mac).into();
        ours && u64::from(expires) >= now.unix_secs()
    }

    /// A number for each `count` of the server that `salt` tells from the others, which nobody else can tell.
    pub fn number(&self, salt: u64, count: u64) -> u32 {
        let mut mac = self.keyed.clone();
        // Longer than what nonces are made of.
        mac.update(b"the number of a connection with a peer");
        mac.update(&salt.to_be_bytes());
        mac.update(&count.to_be_bytes());
        let mac = mac.finalize().into_bytes();
        u32::from_be_bytes([mac[0], mac[1], mac[2], mac[3]])
    }

    fn mac(&self, expires: u32, client: FiveTuple) -> [u8; MAC] {
        let address = client.client();
        let mut mac = self.keyed.clone();
        mac.update(&expires.to_be_bytes());
        mac.update(&bits(address.ip()).to_be_bytes());
        mac.update(&address.port().to_be_bytes());
        mac.update(&[client.transport() as u8]);
        let mut out = [0; MAC];
        out.copy_from_slice(&mac.finalize().into_bytes()[..MAC]);
        out
    }
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nonces({:?})", self.lifetime)
    }
}

/// Proof that MESSAGE-INTEGRITY was checked; only `authenticate` makes one.
pub(super) struct Authenticated {
    identity: Option<Identity>,
    key: Key,
    scope: Scope,
}

impl Authenticated {
    /// The key that the answer is signed with.
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// How far the credentials reach.
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// Who sent the request; `None` if it is the owner of the allocation on this five-tuple, recognized by its key.
    pub fn into_identity(self) -> Option<Identity> {
        self.identity
    }

    /// A credential other than the one that the allocation keeps, to be kept from now on.
    pub const fn renewed(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Whether the request may act on `allocation` (RFC 8656 §5): the owner, or the owner's newer credential.
    ///
    /// # Errors
    /// 441.
    pub fn owns(&self, allocation: &Allocation) -> Result<(), Reject> {
        match &self.identity {
            None => Ok(()),
            Some(identity)
                if identity.user == allocation.user
                    && identity.scope == allocation.scope
                    && identity.expires.is_some() == allocation.credential_expires.is_some() =>
            {
                Ok(())
            }
            Some(_) => Err(Reject::WrongCredentials),
        }
    }
}

/// Checks a request in the order of RFC 8489 §9.2.4.
///
/// `owned` is the allocation that the request is about: its owner is checked with the key it keeps, one HMAC.
///
/// # Errors
/// 401 without or with wrong credentials, 400 with half of them, 438 with a nonce that is over or another client's.
pub(super) fn authenticate(
    message: &Message<'_>,
    now: Now,
    from: FiveTuple,
    access: &Access,
    nonces: &Nonces,
    owned: Option<&Allocation>,
) -> Result<Authenticated, Reject> {
    if !message.has_integrity() {
        return Err(Reject::Unauthenticated(AuthFailure::Missing));
    }
    let (Some(username), Some(realm), Some(nonce)) =
        (message.username(), message.realm(), message.nonce())
    else {
        return Err(Reject::BadRequest("USERNAME, REALM or NONCE is missing"));
    };
    let authenticated = match owned.filter(|allocation| *allocation.username == *username) {
        // Its key names the realm that it was derived from, which may have been ours when it was.
        Some(allocation) if message.verify_integrity(&allocation.key) => Authenticated {
            identity: None,
            key: allocation.key,
            scope: allocation.scope,
        },
        // The key is derived from our realm; a client that signed for another one fails here rather than as a wrong
        // password.
        _ if realm != access.realm.as_bytes() => {
            return Err(Reject::Unauthenticated(AuthFailure::WrongRealm));
        }
        _ => {
            let mut verified = access
                .verify(username, now.unix, |key| message.verify_integrity(key))
                .map_err(Reject::Unauthenticated)?;
            verified.identity.scope = verified.identity.scope.at(from.client().ip());
            Authenticated {
                scope: verified.identity.scope,
                identity: Some(verified.identity),
                key: verified.key,
            }
        }
    };
    // The owner on a new connection (RFC 6062 §5.4) has the nonce of the connection that it allocated on.
    let control = owned.map(|allocation| allocation.five_tuple);
    let known = |client: FiveTuple| nonces.check(now, client, nonce);
    // The canary's requests never leave this host, and were they repeated here, nobody would gain by it. So it needs no
    // challenge, and leaves no trace of one.
    if authenticated.scope.is_canary()
        || known(from)
        || control.is_some_and(|control| control != from && known(control))
    {
        Ok(authenticated)
    } else {
        Err(Reject::StaleNonce)
    }
}
