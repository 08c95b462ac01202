//! Long-term authentication (RFC 8489 §9.2) with nonces that are computed, not stored.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use std::time::Duration;

use crate::access::{
    Access, Asks, AuthFailure, Identity, Key, PasswordAlgorithm, RealmName, Scope, Who,
};
use crate::base::addr::bits;
use crate::base::{FiveTuple, Now, Transport};
use crate::wire::features::{self, Features};
use crate::wire::key::user_hash;
use crate::wire::{Integrity, Message, Response, attribute};

use super::SecurityFeatures;
use super::allocation::Allocation;
use super::reject::Reject;

/// Length of a nonce without a cookie on the wire, in bytes: a multiple of four and no longer than it must be, because
/// strangers get it.
pub const NONCE_LENGTH: usize = 24;

const EXPIRY: usize = 4;
const MAC: usize = 14;

/// What a challenge offers beyond MD5 and MESSAGE-INTEGRITY (RFC 8489 §9.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// What the nonce says of it.
    features: Features,
    /// PASSWORD-ALGORITHMS.
    algorithms: &'static [u8],
}

impl Offer {
    /// What clients on `transport` are offered; `None` is what RFC 5389 knows, and the smallest of challenges.
    pub fn to(transport: Transport, wanted: SecurityFeatures, asks: Asks) -> Option<Self> {
        match wanted {
            SecurityFeatures::Off => return None,
            // Whoever can answer there has not proven its address.
            SecurityFeatures::Streams if transport == Transport::Udp => return None,
            SecurityFeatures::Streams | SecurityFeatures::Always => {}
        }
        Some(Self {
            features: Features {
                password_algorithms: true,
                username_anonymity: asks.by_hash,
            },
            algorithms: if asks.sha256 {
                features::SHA256_OR_MD5
            } else {
                features::MD5_ONLY
            },
        })
    }
}

/// Issues and checks nonces: an expiry and a MAC over it, the client's transport address and what was offered with it.
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
    pub fn issue(&self, now: Now, client: FiveTuple, offer: Option<Offer>) -> String {
        let expires = (now.unix + self.lifetime).as_secs() as u32;
        let mut raw = [0; EXPIRY + MAC];
        raw[..EXPIRY].copy_from_slice(&expires.to_be_bytes());
        raw[EXPIRY..].copy_from_slice(&self.mac(expires, client, offer));
        let mut nonce = String::with_capacity(features::COOKIE_LENGTH + NONCE_LENGTH);
        if let Some(offer) = offer {
            nonce.extend(offer.features.cookie().map(char::from));
        }
        BASE64.encode_string(raw, &mut nonce);
        nonce
    }

    /// Whether `nonce` is ours, made for `client` with this `offer`, and not over.
    ///
    /// A nonce that came with another offer counts as over, so that none that was had before a reload, or elsewhere, takes
    /// anything away from what is offered now.
    pub fn check(&self, now: Now, client: FiveTuple, offer: Option<Offer>, nonce: &[u8]) -> bool {
        let rest = match offer {
            None => Some(nonce),
            Some(offer) => nonce.strip_prefix(&offer.features.cookie()),
        };
        let mut raw = [0; EXPIRY + MAC];
        if !rest.is_some_and(|rest| {
            rest.len() == NONCE_LENGTH && BASE64.decode_slice(rest, &mut raw) == Ok(raw.len())
        }) {
            return false;
        }
        let (Some(expires), Some(mac)) = (raw.first_chunk::<EXPIRY>(), raw.last_chunk::<MAC>())
        else {
            return false;
        };
        let expires = u32::from_be_bytes(*expires);
        let ours: bool = self.mac(expires, client, offer).ct_eq(mac).into();
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

    fn mac(&self, expires: u32, client: FiveTuple, offer: Option<Offer>) -> [u8; MAC] {
        let address = client.client();
        let mut mac = self.keyed.clone();
        mac.update(&expires.to_be_bytes());
        mac.update(&bits(address.ip()).to_be_bytes());
        mac.update(&address.port().to_be_bytes());
        mac.update(&[client.transport() as u8]);
        if let Some(offer) = offer {
            mac.update(&offer.features.cookie());
            mac.update(offer.algorithms);
        }
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
    from: FiveTuple,
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
                if identity.by_token == allocation.by_token
                    && identity.realm == allocation.realm
                    // A token tells no client from another, so it vouches for a five-tuple: there a client may come with
                    // one of a newer key. Elsewhere it has to show the session key that the allocation keeps.
                    && if identity.by_token {
                        self.from == allocation.five_tuple
                    } else {
                        identity.user == allocation.user
                    }
                    && identity.scope == allocation.scope
                    && identity.expires.is_some() == allocation.credential_expires.is_some() =>
            {
                Ok(())
            }
            Some(_) => Err(Reject::WrongCredentials),
        }
    }
}

/// What a request is authenticated against.
pub(super) struct Guard<'s> {
    pub now: Now,
    /// Whom the request came from.
    pub from: FiveTuple,
    pub access: &'s Access,
    pub nonces: &'s Nonces,
    /// What the client is offered.
    pub offer: Option<Offer>,
    /// The realm that the client's connection asked for, if not the default one.
    pub named: Option<RealmName>,
    /// The connection that the client has allocated on, where this is one for data (RFC 6062 §5.4): nonces of that are good.
    pub control: Option<FiveTuple>,
}

/// How a request is signed.
#[derive(Clone, Copy)]
struct Signature {
    /// The attribute that counts.
    integrity: Integrity,
    /// What made the key.
    algorithm: PasswordAlgorithm,
    /// The attribute that answers are signed with.
    answers: Integrity,
}

impl Signature {
    /// The attribute that answers are signed with; where a token vouches for the client, nothing had to be agreed on before.
    const fn answers(self, by_token: bool) -> Integrity {
        if by_token {
            self.integrity
        } else {
            self.answers
        }
    }
}

impl Guard<'_> {
    /// The attribute of `message` that its integrity is checked by; `None`: it is not signed.
    ///
    /// Where nothing is offered MESSAGE-INTEGRITY-SHA256 is nothing that we know.
    pub fn integrity(&self, message: &Message<'_>) -> Option<Integrity> {
        match message.integrity_sha256() {
            Some(_) if self.offer.is_some() => Some(Integrity::Sha256),
            _ => message.has_integrity().then_some(Integrity::Sha1),
        }
    }

    /// Adds to `response` what a client needs to sign its next request.
    pub fn challenge(&self, response: Response) -> Response {
        let nonce = self.nonces.issue(self.now, self.from, self.offer);
        let response = response.challenge(self.access.challenge(self.named), &nonce);
        match self.offer {
            Some(offer) => response.password_algorithms(offer.algorithms),
            None => response,
        }
    }

    /// Whether `nonce` proves that the client has been challenged, here or on its control connection.
    pub fn is_fresh(&self, nonce: &[u8]) -> bool {
        let known = |client| self.nonces.check(self.now, client, self.offer, nonce);
        known(self.from) || self.control.is_some_and(known)
    }

    /// Checks a request in the order of RFC 8489 §9.2.4.
    ///
    /// `owned` is the allocation that the request is about: its owner is checked with the key it keeps, one HMAC.
    ///
    /// # Errors
    /// 401 without or with wrong credentials, 400 with half of them or with other algorithms than were offered, 438 with a
    /// nonce that is over or another client's.
    pub fn authenticate(
        &self,
        message: &Message<'_>,
        owned: Option<&Allocation>,
    ) -> Result<Authenticated, Reject> {
        let Some(integrity) = self.integrity(message) else {
            return Err(Reject::Unauthenticated(AuthFailure::Missing));
        };
        if integrity == Integrity::Sha256 && message.integrity_sha256() != Some(32) {
            return Err(Reject::BadRequest(
                "MESSAGE-INTEGRITY-SHA256 is not 32 bytes long",
            ));
        }
        let (Some(who), Some(realm), Some(nonce)) =
            (self.who(message)?, message.realm(), message.nonce())
        else {
            return Err(Reject::BadRequest("USERNAME, REALM or NONCE is missing"));
        };
        let signature = self.signature(message, integrity, nonce)?;
        let authenticated = self.verify(message, signature, who, realm, owned)?;
        // The canary's requests never leave this host, and were they repeated here, nobody would gain by it. So it needs
        // no challenge, and leaves no trace of one.
        if authenticated.scope.is_canary() || self.is_fresh(nonce) {
            Ok(authenticated)
        } else {
            Err(Reject::StaleNonce)
        }
    }

    /// Who claims to send `message`.
    fn who<'m>(&self, message: &Message<'m>) -> Result<Option<Who<'m>>, Reject> {
        let hash = match self.offer {
            Some(_) => message.user_hash()?,
            None => None,
        };
        match (message.username(), hash) {
            (Some(_), Some(_)) => Err(Reject::BadRequest("USERNAME and USERHASH are both there")),
            (Some(name), None) => Ok(Some(Who::Name(name))),
            (None, hash) => Ok(hash.map(Who::Hash)),
        }
    }

    /// What the request and the challenge agree on, if they do: the second and third check of RFC 8489 §9.2.4.
    ///
    /// Clients that know nothing of it send neither attribute, which means MD5; those that do echo the whole list, so that
    /// whoever changed it on the way to them is found out here.
    fn signature(
        &self,
        message: &Message<'_>,
        integrity: Integrity,
        nonce: &[u8],
    ) -> Result<Signature, Reject> {
        let chosen = message.attribute(attribute::PASSWORD_ALGORITHM);
        let echoed = message.attribute(attribute::PASSWORD_ALGORITHMS);
        let offer = match self.offer {
            Some(offer) if chosen.is_some() || echoed.is_some() => offer,
            _ => {
                return Ok(Signature {
                    integrity,
                    algorithm: PasswordAlgorithm::Md5,
                    answers: Integrity::Sha1,
                });
            }
        };
        let offered = |chosen: &&[u8]| offer.algorithms.chunks(4).any(|entry| entry == *chosen);
        match chosen.filter(offered).and_then(features::algorithm) {
            Some(algorithm) if echoed == Some(offer.algorithms) => Ok(Signature {
                integrity,
                algorithm,
                // Clients that echo the list have to use MESSAGE-INTEGRITY-SHA256, and to be answered with it (RFC 8489
                // §9.2.4, §9.2.5). Some use MESSAGE-INTEGRITY with MD5 all the same, and look for that.
                answers: integrity,
            }),
            // With a nonce that is over nobody can tell what came with it.
            _ if !self.is_fresh(nonce) => Err(Reject::StaleNonce),
            _ => Err(Reject::BidDown),
        }
    }

    /// ACCESS-TOKEN, where tokens are taken.
    fn token<'m>(&self, message: &Message<'m>) -> Option<&'m [u8]> {
        let taken = self.access.tokens.is_some() && self.named.is_none();
        message.access_token().filter(|_| taken)
    }

    /// Finds the credentials that the request is signed with.
    fn verify(
        &self,
        message: &Message<'_>,
        signature: Signature,
        who: Who<'_>,
        realm: &[u8],
        owned: Option<&Allocation>,
    ) -> Result<Authenticated, Reject> {
        let matches = |key: &Key| message.verify(signature.integrity, key);
        let owned = owned.filter(|allocation| {
            // No password made the key of a token.
            (allocation.by_token || allocation.key.algorithm() == signature.algorithm)
                && is_called(&allocation.username, who, realm)
        });
        match owned {
            // Its key names the realm that it was derived from, which may have been ours when it was.
            Some(allocation) if matches(&allocation.key) => Ok(Authenticated {
                from: self.from,
                identity: None,
                key: allocation
                    .key
                    .signing(signature.answers(allocation.by_token)),
                scope: allocation.scope,
            }),
            // The key is derived from our realm; a client that signed for another one fails here rather than as a wrong
            // password.
            _ if realm != self.access.challenge(self.named).as_bytes() => {
                Err(Reject::Unauthenticated(AuthFailure::WrongRealm))
            }
            _ => {
                let unix = self.now.unix;
                let verified = match (self.token(message), who) {
                    (Some(token), Who::Name(kid)) => {
                        (self.access).verify_token(kid, token, unix, matches)
                    }
                    _ => (self.access).verify(self.named, who, signature.algorithm, unix, matches),
                };
                let mut verified = verified.map_err(Reject::Unauthenticated)?;
                verified.identity.scope = verified.identity.scope.at(self.from.client().ip());
                Ok(Authenticated {
                    from: self.from,
                    scope: verified.identity.scope,
                    key: (verified.key).signing(signature.answers(verified.identity.by_token)),
                    identity: Some(verified.identity),
                })
            }
        }
    }
}

/// Whether `who`, in the realm that the request names, is the user called `username`.
fn is_called(username: &[u8], who: Who<'_>, realm: &[u8]) -> bool {
    match who {
        Who::Name(name) => *username == *name,
        Who::Hash(hash) => {
            std::str::from_utf8(realm).is_ok_and(|realm| user_hash(username, realm) == *hash)
        }
    }
}
