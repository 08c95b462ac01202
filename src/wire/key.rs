//! Long-term keys (RFC 8489 §9.2.2).

use std::borrow::Cow;

use md5::{Digest, Md5};

/// A long-term key: MD5 of username, realm and password (RFC 8489 §9.2.2).
pub type Key = [u8; 16];

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
    hash.finalize().into()
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
    fn long_term_key_of_rfc8489_9_2_2() {
        let key = long_term_key(b"user", "realm", b"pass");
        assert_eq!(
            u128::from_be_bytes(key),
            0x8493_fbc5_3ba5_82fb_4c04_4c45_6bdc_40eb
        );
    }
}
