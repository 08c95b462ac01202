//! Long-term keys (RFC 8489 §9.2.2, §18.5.1).

use std::borrow::Cow;
use std::fmt;

use md5::Md5;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The longest USERNAME in bytes (RFC 8489 §14.3).
pub const MAX_USERNAME_BYTES: usize = 508;

/// Length of the shortest [`Key`], in bytes.
pub const MIN_KEY: usize = 16;

/// Length of the longest [`Key`], in bytes.
pub const MAX_KEY: usize = 32;

/// How a password becomes a key (RFC 8489 §18.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordAlgorithm {
    /// The only one that RFC 5389 knows.
    Md5,
    /// SHA-256.
    Sha256,
}

impl PasswordAlgorithm {
    /// Every algorithm, the one to prefer first.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Md5];

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::Md5 => 1,
            Self::Sha256 => 2,
        }
    }

    /// The key of RFC 8489 §9.2.2, from strings that are prepared already. It signs what this algorithm goes with.
    pub fn key(self, username: &[u8], realm: &str, password: &[u8]) -> Key {
        match self {
            Self::Md5 => Key::md5(hash::<Md5>(username, realm, password).into()),
            Self::Sha256 => Key::sha256(hash::<Sha256>(username, realm, password).into()),
        }
    }

    /// A key that nobody has.
    pub const fn nobodys(self) -> Key {
        match self {
            Self::Md5 => Key::md5([0; 16]),
            Self::Sha256 => Key::sha256([0; 32]),
        }
    }
}

fn hash<D: Digest>(username: &[u8], realm: &str, password: &[u8]) -> md5::digest::Output<D> {
    let mut hash = D::new();
    for part in [username, b":", realm.as_bytes(), b":", password] {
        hash.update(part);
    }
    hash.finalize()
}

/// The attribute that protects a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// MESSAGE-INTEGRITY: HMAC-SHA1 (RFC 8489 §14.5).
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256: HMAC-SHA256 (RFC 8489 §14.6).
    Sha256,
}

/// What signs messages: a long-term key, and the attribute that it makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; MAX_KEY],
    length: u8,
    integrity: Integrity,
}

impl Key {
    /// The 16 bytes that MD5 makes, for MESSAGE-INTEGRITY.
    pub const fn md5(key: [u8; 16]) -> Self {
        let mut bytes = [0; MAX_KEY];
        let mut at = 0;
        while at < key.len() {
            bytes[at] = key[at];
            at += 1;
        }
        Self {
            bytes,
            length: key.len() as u8,
            integrity: Integrity::Sha1,
        }
    }

    /// The 32 bytes that SHA-256 makes, for MESSAGE-INTEGRITY-SHA256.
    pub const fn sha256(bytes: [u8; 32]) -> Self {
        Self {
            bytes,
            length: bytes.len() as u8,
            integrity: Integrity::Sha256,
        }
    }

    /// The session key of a token (RFC 7635 §6.2), for MESSAGE-INTEGRITY: 16 to 32 bytes, else `None`. No password made it.
    pub fn session(key: &[u8]) -> Option<Self> {
        if !(MIN_KEY..=MAX_KEY).contains(&key.len()) {
            return None;
        }
        let mut bytes = [0; MAX_KEY];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self {
            bytes,
            length: key.len() as u8,
            integrity: Integrity::Sha1,
        })
    }

    /// The same key, making another attribute.
    #[must_use]
    pub const fn signing(self, integrity: Integrity) -> Self {
        Self { integrity, ..self }
    }

    /// The attribute that it makes.
    pub const fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// What made it.
    pub const fn algorithm(&self) -> PasswordAlgorithm {
        match self.length {
            16 => PasswordAlgorithm::Md5,
            _ => PasswordAlgorithm::Sha256,
        }
    }

    /// The key of HMAC.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }

    /// Whether both are the same key, whatever they sign; in constant time.
    pub fn is(&self, other: &Self) -> bool {
        self.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl fmt::Debug for Key {
    /// Masks the bytes: they are worth as much as the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {:?})", self.algorithm(), self.integrity)
    }
}

/// The long-term key of clients that know MD5 only, from strings that are prepared already.
pub fn long_term_key(username: &[u8], realm: &str, password: &[u8]) -> Key {
    PasswordAlgorithm::Md5.key(username, realm, password)
}

/// USERHASH of a user (RFC 8489 §14.4), from strings that are prepared already.
pub fn user_hash(username: &[u8], realm: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(username);
    hash.update(b":");
    hash.update(realm.as_bytes());
    hash.finalize().into()
}

/// The key that stands in place of `password`, written `md5:` and 32 hexadecimal digits, as other servers store users, or
/// `sha256:` and 64; `None` if it is a password.
///
/// # Errors
/// What follows `md5:` or `sha256:` is no key.
pub fn stored_key(password: &str) -> Option<Result<Key, NotAKey>> {
    if let Some(digits) = password.strip_prefix("md5:") {
        return Some(digits_of(digits).map(Key::md5).ok_or(NotAKey));
    }
    let digits = password.strip_prefix("sha256:")?;
    Some(digits_of(digits).map(Key::sha256).ok_or(NotAKey))
}

fn digits_of<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// A stored key that is not the hexadecimal digits of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAKey;

impl NotAKey {
    /// What would do.
    pub const REMEDY: &str = "behind md5: write the 32 hexadecimal digits of MD5(name:realm:password), behind sha256: the 64 of \
                              SHA-256(name:realm:password), or choose a password that begins otherwise";
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
        let digits = "2f4b".repeat(16);
        let stored = stored_key(&format!("sha256:{digits}"));
        assert_eq!(
            stored,
            Some(Ok(Key::sha256([0x2F, 0x4B].repeat(16).try_into().unwrap())))
        );
        for text in [
            "",
            "pass",
            "MD5:8493fbc53ba582fb4c044c456bdc40eb",
            "md5",
            "sha256",
            "sha512:00",
        ] {
            assert_eq!(stored_key(text), None, "{text}");
        }
        for text in [
            "md5:",
            "md5:pass",
            "md5:8493fbc53ba582fb4c044c456bdc40e",
            "md5:8493fbc53ba582fb4c044c456bdc40eb0",
            "md5:+493fbc53ba582fb4c044c456bdc40eb",
            "sha256:8493fbc53ba582fb4c044c456bdc40eb",
            "sha256:",
        ] {
            assert_eq!(stored_key(text), Some(Err(NotAKey)), "{text}");
        }
    }

    #[test]
    fn long_term_key_of_rfc8489_9_2_2() {
        let key = long_term_key(b"user", "realm", b"pass");
        assert_eq!(
            key.as_bytes(),
            0x8493_fbc5_3ba5_82fb_4c04_4c45_6bdc_40eb_u128.to_be_bytes()
        );
        let key = PasswordAlgorithm::Sha256.key(b"user", "realm", b"pass");
        let expected: [u8; 32] = Sha256::digest(b"user:realm:pass").into();
        assert_eq!(key, Key::sha256(expected));
        assert!(
            key.is(&key.signing(Integrity::Sha1)) && !key.is(&PasswordAlgorithm::Sha256.nobodys())
        );
    }
}
