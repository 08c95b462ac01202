//! Third-party authorization (RFC 7635): tokens that an authorization server makes for clients, read without state.
//!
//! A token says everything itself: the session key of MESSAGE-INTEGRITY and until when it is good, encrypted under a key that
//! its maker and this server share. USERNAME names that key (`kid`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{self, AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, UnboundKey};
use zeroize::Zeroizing;

use super::credentials::{AuthFailure, Identity, Key, Verified};
use super::scope::Scope;
use crate::base::Secret;
use crate::wire::key::{MAX_KEY, MIN_KEY};

/// How far the clocks of an authorization server and of this one may differ (RFC 7635 §7).
pub const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// What encrypts tokens, by the names of RFC 7518 §5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAlgorithm {
    /// AEAD_AES_128_GCM
    A128Gcm,
    /// AEAD_AES_256_GCM
    A256Gcm,
}

impl TokenAlgorithm {
    /// How long its keys are, in bytes.
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::A128Gcm => 16,
            Self::A256Gcm => 32,
        }
    }

    /// Its name.
    pub const fn label(self) -> &'static str {
        match self {
            Self::A128Gcm => "A128GCM",
            Self::A256Gcm => "A256GCM",
        }
    }
}

/// A key that an authorization server encrypts tokens with.
#[derive(Clone, Debug)]
pub struct TokenKey {
    /// Its name, which clients send as USERNAME.
    pub kid: String,
    /// What it is for.
    pub algorithm: TokenAlgorithm,
    /// The key, [`TokenAlgorithm::key_bytes`] long.
    pub key: Secret<Vec<u8>>,
    /// From when on it is used, since the Unix epoch.
    pub not_before: Option<Duration>,
    /// From when on it is used no longer, since the Unix epoch.
    pub not_after: Option<Duration>,
}

/// What the operator configured about tokens.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The name by which authorization servers know this one; `None`: the realm.
    pub server_name: Option<String>,
    /// The keys of tokens. None: there are no tokens.
    pub keys: Vec<TokenKey>,
}

/// Every key of tokens.
pub struct Tokens {
    server_name: Box<str>,
    keys: HashMap<Box<[u8]>, Opener>,
}

/// One key, ready to use.
struct Opener {
    /// The user id: all clients of a key are one user.
    kid: Arc<str>,
    key: LessSafeKey,
    not_before: Duration,
    not_after: Duration,
}

/// What a token says (RFC 7635 §6.2).
struct Token {
    key: Key,
    /// When it was made, since the Unix epoch.
    made: Duration,
    lifetime: Duration,
}

/// The length of what precedes a nonce, and of what precedes a session key.
const LENGTH: usize = 2;
/// Seconds since the Unix epoch in 48 bits, and 1/65536 seconds in 16.
const TIMESTAMP: usize = 8;
const LIFETIME: usize = 4;
const TAG: usize = 16;

/// The longest token there is, in bytes; what is longer is not looked at.
pub const MAX_TOKEN_BYTES: usize =
    LENGTH + NONCE_LEN + LENGTH + MAX_KEY + TIMESTAMP + LIFETIME + TAG;

impl Tokens {
    /// Keys that encrypt tokens for the server of that name. Of two of one name the last one counts, and one of the wrong
    /// length is left out; configuration refuses both.
    pub fn new(server_name: &str, keys: &[TokenKey]) -> Self {
        let opener = |key: &TokenKey| {
            let algorithm = match key.algorithm {
                TokenAlgorithm::A128Gcm => &AES_128_GCM,
                TokenAlgorithm::A256Gcm => &AES_256_GCM,
            };
            let unbound = UnboundKey::new(algorithm, key.key.expose()).ok()?;
            let opener = Opener {
                kid: key.kid.as_str().into(),
                key: LessSafeKey::new(unbound),
                not_before: key.not_before.unwrap_or_default(),
                not_after: key.not_after.unwrap_or(Duration::MAX),
            };
            Some((key.kid.as_bytes().into(), opener))
        };
        Self {
            server_name: server_name.into(),
            keys: keys.iter().filter_map(opener).collect(),
        }
    }

    /// What THIRD-PARTY-AUTHORIZATION says.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Whose the token is and until when, if `matches` holds for the session key in it (RFC 7635 §7). `username` is its kid.
    ///
    /// # Errors
    /// `UnknownUser` for a kid that does not exist, `BadToken` for a token that its key does not open, `Expired` outside the
    /// time of the token or of its key, `BadPassword` where `matches` fails.
    pub fn verify(
        &self,
        username: &[u8],
        token: &[u8],
        unix: Duration,
        mut matches: impl FnMut(&Key) -> bool,
    ) -> Result<Verified, AuthFailure> {
        let opener = self.keys.get(username).ok_or(AuthFailure::UnknownUser)?;
        let token = (opener.open(token, &self.server_name)).ok_or(AuthFailure::BadToken)?;
        // All of the key is what the RFC means; coturn and its clients use the first 16 bytes, as long as a key of MD5.
        let beginning = || {
            let key = token.key.as_bytes().get(..MIN_KEY)?;
            Key::session(key).filter(|key| *key != token.key)
        };
        let key = if matches(&token.key) {
            token.key
        } else {
            let key = beginning().filter(|key| matches(key));
            key.ok_or(AuthFailure::BadPassword)?
        };
        // Only who has signed learns that it is over, and is followed up.
        if !(opener.not_before..opener.not_after).contains(&unix) {
            return Err(AuthFailure::Expired);
        }
        let expires = token.expires(unix).ok_or(AuthFailure::Expired)?;
        Ok(Verified {
            identity: Identity {
                user: Arc::clone(&opener.kid),
                username: username.into(),
                expires: Some(expires),
                scope: Scope::Policy,
                by_token: true,
                realm: None,
            },
            key,
        })
    }
}

impl Opener {
    /// What the token says that the key encrypted for `server_name`; `None` if it is something else. Allocates nothing.
    fn open(&self, token: &[u8], server_name: &str) -> Option<Token> {
        let (nonce, sealed) = prefixed(token)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut room = Zeroizing::new([0; MAX_TOKEN_BYTES]);
        let sealed = {
            let room = room.get_mut(..sealed.len())?;
            room.copy_from_slice(sealed);
            room
        };
        let aad = Aad::from(server_name);
        let plain = self.key.open_in_place(nonce, aad, sealed).ok()?;
        let (key, rest) = prefixed(plain)?;
        let (timestamp, rest) = rest.split_first_chunk::<TIMESTAMP>()?;
        let lifetime: [u8; LIFETIME] = rest.try_into().ok()?;
        let timestamp = u64::from_be_bytes(*timestamp);
        let fraction = (timestamp & 0xFFFF) * 1_000_000_000 / 0x1_0000;
        Some(Token {
            key: Key::session(key)?,
            made: Duration::new(timestamp >> 16, fraction as u32),
            lifetime: Duration::from_secs(u32::from_be_bytes(lifetime).into()),
        })
    }
}

impl Token {
    /// When it ends by the clock of `unix`, if it is good now: when as much of its lifetime has passed, and the skew of clocks,
    /// as lies between it and now on either side (RFC 7635 §7 and §9). It never lasts longer than its lifetime.
    fn expires(&self, unix: Duration) -> Option<Duration> {
        let left = (self.lifetime + CLOCK_SKEW).checked_sub(unix.abs_diff(self.made))?;
        let left = left.min(self.lifetime);
        (!left.is_zero()).then(|| unix + left)
    }
}

/// The bytes behind their length in two bytes, and the rest.
fn prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("server_name", &self.server_name)
            .field("keys", &self.keys.len())
            .finish()
    }
}
