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
        Ok(key) if is_key => Ok(key.to_be_bytes()),
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
            u128::from_be_bytes(key),
            0x8493_fbc5_3ba5_82fb_4c04_4c45_6bdc_40eb
        );
    }
}
