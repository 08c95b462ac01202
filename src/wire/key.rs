//! Long-term keys (RFC 8489 §9.2.2).

use std::borrow::Cow;
use std::fmt;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// The shortest key, in bytes: what MD5 makes.
pub const MIN_KEY_BYTES: usize = 16;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 32;

/// A key of MESSAGE-INTEGRITY: MD5 of username, realm and password (RFC 8489 §9.2.2), or the session key in a token
/// (RFC 7635 §6.2).
#[derive(Clone, Copy)]
pub struct Key {
    /// Zero behind `length`.
    bytes: [u8; MAX_KEY_BYTES],
    length: u8,
}

impl Key {
    /// The key of these bytes, [`MIN_KEY_BYTES`] to [`MAX_KEY_BYTES`] of them; `None` if they are fewer or more.
    pub fn new(key: &[u8]) -> Option<Self> {
        if !(MIN_KEY_BYTES..=MAX_KEY_BYTES).contains(&key.len()) {
            return None;
        }
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self {
            bytes,
            length: key.len() as u8,
        })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }
}

impl From<[u8; MIN_KEY_BYTES]> for Key {
    fn from(key: [u8; MIN_KEY_BYTES]) -> Self {
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes[..MIN_KEY_BYTES].copy_from_slice(&key);
        Self {
            bytes,
            length: MIN_KEY_BYTES as u8,
        }
    }
}

impl PartialEq for Key {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        (self.bytes.ct_eq(&other.bytes) & self.length.ct_eq(&other.length)).into()
    }
}

impl Eq for Key {}

impl Zeroize for Key {
    fn zeroize(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Key {
    /// Masked: it is worth as much as the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(***)")
    }
}

/// The longest USERNAME in bytes (RFC 8489 §14.3).
pub const MAX_USERNAME_BYTES: usize = 508;

/// The long-term key of RFC 8489 §9.2.2, from strings that are prepared already.
pub fn long_term_key(username: &[u8], realm: &str, password: &[u8]) -> Key {
    let mut hash = Md5::new();
    hash.update(username);
    hash.update(b":");
    hash.update(realm.as_bytes());
    hash.update(b":");
    hash.update(password);
    Key::from(<[u8; MIN_KEY_BYTES]>::from(hash.finalize()))
}

/// What a password begins with that is a long-term key already, followed by 32 hexadecimal digits.
const STORED: &str = "md5:";

/// The key that stands in place of `password`, written `md5:` and 32 hexadecimal digits, as other servers store users;
/// `None` if it is a password.
///
/// # Errors
/// What follows `md5:` is no key.
pub fn stored_key(password: &str) -> Option<Result<Key, NotAKey>> {
    let digits = password.strip_prefix(STORED)?;
    let is_key = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some(match u128::from_str_radix(digits, 16) {
        Ok(key) if is_key => Ok(key.to_be_bytes().into()),
        _ => Err(NotAKey),
    })
}

/// A stored key that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAKey;

impl NotAKey {
    /// What would do.
    pub const REMEDY: &str = "behind md5: write the 32 hexadecimal digits of MD5(name:realm:password), or choose a password that \
                              begins otherwise";
}

/// SASLprep where it succeeds, the text itself otherwise, and where it is longer than anything a client may send:
/// normalization takes time that grows with the input.
pub fn prepare(text: &str) -> Cow<'_, str> {
    if text.len() > MAX_USERNAME_BYTES {
        return Cow::Borrowed(text);
    }
    stringprep::saslprep(text).unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys() {
        let key = long_term_key(b"user", "realm", b"pass");
        for text in [
            "md5:8493fbc53ba582fb4c044c456bdc40eb",
            "md5:8493FBC53BA582FB4C044C456BDC40EB",
        ] {
            assert_eq!(stored_key(text), Some(Ok(key)));
        }
        for text in ["", "pass", "MD5:8493fbc53ba582fb4c044c456bdc40eb", "md5"] {
            assert_eq!(stored_key(text), None, "{text}");
        }
        for text in [
            "md5:",
            "md5:pass",
            "md5:8493fbc53ba582fb4c044c456bdc40e",
            "md5:8493fbc53ba582fb4c044c456bdc40eb0",
            "md5:+493fbc53ba582fb4c044c456bdc40eb",
        ] {
            assert_eq!(stored_key(text), Some(Err(NotAKey)), "{text}");
        }
    }

    #[test]
    fn long_term_key_of_rfc8489_9_2_2() {
        let key = long_term_key(b"user", "realm", b"pass");
        assert_eq!(
            key,
            0x8493_fbc5_3ba5_82fb_4c04_4c45_6bdc_40eb_u128
                .to_be_bytes()
                .into()
        );
    }
}
