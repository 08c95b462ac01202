//! TURN REST time-limited credentials (draft-uberti-behave-turn-rest-00): one code for minting and for checking.
//!
//! The name carries its own expiry, the password is an HMAC of the name: nothing is stored anywhere.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use crate::base::Secret;

/// The user id of a name that carries none.
pub const ANONYMOUS: &str = "anonymous";

/// The last expiry a name may carry, in seconds since the Unix epoch.
///
/// It is exact as a JSON number and far below what a monotonic clock can be moved by without overflow.
pub const MAX_EXPIRY_UNIX: u64 = (1 << 53) - 1;

/// What stands between the user id in a name and the API key that minted it: `<expiry>:<user id>;key=<key id>`.
pub const KEY_MARK: &str = ";key=";

/// A password as it travels: base64, with padding, of 20 bytes.
pub type Password = [u8; 28];

/// What a time-limited name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimited<'a> {
    /// When the credential ends, in seconds since the Unix epoch; at most [`MAX_EXPIRY_UNIX`].
    pub expires_unix: u64,
    /// The user id, [`ANONYMOUS`] if the name carries none.
    pub user: &'a str,
    /// The id of the API key that minted it, if one did.
    pub key: Option<&'a str>,
}

/// Makes the credential of `user` that ends at `expires_unix`, in seconds since the Unix epoch: (username, password).
///
/// The name is `<expiry>:<user>`, the expiry alone if there is no user. The caller keeps the name within 508 bytes,
/// which is all that USERNAME holds (RFC 8489 §14.3); an expiry over [`MAX_EXPIRY_UNIX`] is lowered to it.
pub fn mint(secret: &Secret<String>, user: Option<&str>, expires_unix: u64) -> (String, String) {
    let expires_unix = expires_unix.min(MAX_EXPIRY_UNIX);
    let username = match user {
        Some(user) if !user.is_empty() => format!("{expires_unix}:{user}"),
        _ => expires_unix.to_string(),
    };
    let password = password(secret, username.as_bytes());
    let password = password.expose().iter().copied().map(char::from).collect();
    (username, password)
}

/// Reads `<expiry>:<user id>`, `<user id>:<expiry>` or the expiry alone; `None` if `username` is none of them.
///
/// The first form wins where both fit, so `123:456` is user `456`. Only the outermost separator counts:
/// `123:a:b` is user `a:b`. An expiry is decimal digits without a sign, up to [`MAX_EXPIRY_UNIX`].
///
/// What follows the last [`KEY_MARK`] is not part of the user id: the id of the API key that minted the name and, behind a
/// semicolon, what tells it from others of the same user. Whoever asks a key for a name cannot forge it, for the key's
/// own mark comes last.
pub fn parse(username: &str) -> Option<TimeLimited<'_>> {
    let (expires_unix, user) = match username.split_once(':') {
        None => (expiry(username)?, ""),
        Some((first, rest)) => match expiry(first) {
            Some(expires_unix) => (expires_unix, rest),
            None => {
                let (user, last) = username.rsplit_once(':')?;
                (expiry(last)?, user)
            }
        },
    };
    let (user, key) = match user.rsplit_once(KEY_MARK) {
        Some((user, mark)) => (user, mark.split(';').next()),
        None => (user, None),
    };
    let user = if user.is_empty() { ANONYMOUS } else { user };
    Some(TimeLimited {
        expires_unix,
        user,
        key,
    })
}

/// The password of `username`: base64(HMAC-SHA1(secret, username)).
pub fn password(secret: &Secret<String>, username: &[u8]) -> Secret<Password> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC accepts every key length"));
    mac.update(username);
    let mut password = [0; 28];
    STANDARD
        .encode_slice(mac.finalize().into_bytes(), &mut password)
        .unwrap_or_else(|_| unreachable!("20 bytes are 28 characters of base64"));
    Secret::new(password)
}

fn expiry(digits: &str) -> Option<u64> {
    // `u64::from_str` alone would take a leading plus.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits
        .parse()
        .ok()
        .filter(|&expires_unix| expires_unix <= MAX_EXPIRY_UNIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_what_openssl_computes() {
        // printf 1700086400:mbzrxpgjys | openssl dgst -sha1 -hmac north -binary | base64
        let (username, password) = mint(
            &Secret::new("north".into()),
            Some("mbzrxpgjys"),
            1_700_086_400,
        );
        assert_eq!(username, "1700086400:mbzrxpgjys");
        assert_eq!(password, "0DKXu8w2xHIjlZ8QAZeBLq3yuN0=");
    }
}
