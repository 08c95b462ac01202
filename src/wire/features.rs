//! What a server says that it can do: the nonce cookie and PASSWORD-ALGORITHMS (RFC 8489 §9.2, §14.11, §18.1).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::PasswordAlgorithm;

/// What the nonce of a server of RFC 8489 begins with.
const COOKIE: &[u8] = b"obMatJos2";

/// Length of the nonce cookie, features included, in bytes.
pub const COOKIE_LENGTH: usize = COOKIE.len() + 4;

/// PASSWORD-ALGORITHMS with SHA-256, which is preferred, and MD5.
pub const SHA256_OR_MD5: &[u8] = &[0, 2, 0, 0, 0, 1, 0, 0];

/// PASSWORD-ALGORITHMS with MD5 only.
pub const MD5_ONLY: &[u8] = &[0, 1, 0, 0];

/// STUN Security Features (RFC 8489 §18.1). A nonce carries them, so that nobody on the way can take them out unnoticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// PASSWORD-ALGORITHMS comes along.
    pub password_algorithms: bool,
    /// USERHASH is understood.
    pub username_anonymity: bool,
}

impl Features {
    /// What a nonce begins with.
    pub fn cookie(self) -> [u8; COOKIE_LENGTH] {
        let mut cookie = [0; COOKIE_LENGTH];
        let (name, bits) = cookie.split_at_mut(COOKIE.len());
        name.copy_from_slice(COOKIE);
        let first =
            u8::from(self.password_algorithms) << 7 | u8::from(self.username_anonymity) << 6;
        // Three bytes make four characters, always.
        let _ = BASE64.encode_slice([first, 0, 0], bits);
        cookie
    }

    /// What `nonce` says, if it is a nonce of RFC 8489. Features that we do not know are passed over.
    pub fn of(nonce: &[u8]) -> Option<Self> {
        let bits = nonce.strip_prefix(COOKIE)?.get(..4)?;
        let mut bytes = [0; 3];
        let written = BASE64.decode_slice_unchecked(bits, &mut bytes).ok()?;
        (written == bytes.len()).then_some(Self {
            password_algorithms: bytes[0] & 0x80 != 0,
            username_anonymity: bytes[0] & 0x40 != 0,
        })
    }
}

/// The algorithm that `entry` of PASSWORD-ALGORITHMS or a PASSWORD-ALGORITHM names, if we know it: none has parameters.
pub fn algorithm(entry: &[u8]) -> Option<PasswordAlgorithm> {
    let &[high, low, 0, 0] = entry else {
        return None;
    };
    let number = u16::from_be_bytes([high, low]);
    (PasswordAlgorithm::ALL.into_iter()).find(|algorithm| algorithm.number() == number)
}

/// The first algorithm of the PASSWORD-ALGORITHMS `list` that we know; what is malformed ends the list.
pub fn first_known(list: &[u8]) -> Option<PasswordAlgorithm> {
    let mut rest = list;
    while let Some(&[_, _, high, low]) = rest.first_chunk::<4>() {
        let length = 4 + usize::from(u16::from_be_bytes([high, low]));
        if let Some(known) = rest.get(..length).and_then(algorithm) {
            return Some(known);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_say_what_they_were_made_of() {
        for (password_algorithms, username_anonymity, cookie) in [
            (false, false, b"obMatJos2AAAA"),
            (true, false, b"obMatJos2gAAA"),
            (false, true, b"obMatJos2QAAA"),
            (true, true, b"obMatJos2wAAA"),
        ] {
            let features = Features {
                password_algorithms,
                username_anonymity,
            };
            assert_eq!(features.cookie(), *cookie);
            assert_eq!(
                Features::of(&[cookie, &b"anything"[..]].concat()),
                Some(features)
            );
        }
        // Bits that nobody has assigned.
        assert_eq!(Features::of(b"obMatJos2P///"), Some(Features::default()));
        for other in [
            &b""[..],
            b"obMatJos2",
            b"obMatJos2gAA",
            b"obMatJos2g-AA",
            b"obMatJos2gA==",
            b"ObMatJos2gAAA",
        ] {
            assert_eq!(Features::of(other), None);
        }
    }

    #[test]
    fn the_first_known_algorithm_is_chosen() {
        use PasswordAlgorithm::{Md5, Sha256};
        let cases: &[(&[u8], Option<PasswordAlgorithm>)] = &[
            (SHA256_OR_MD5, Some(Sha256)),
            (MD5_ONLY, Some(Md5)),
            (&[0, 1, 0, 0, 0, 2, 0, 0], Some(Md5)),
            (&[0x7F, 0xFF, 0, 3, 1, 2, 3, 0, 0, 2, 0, 0], Some(Sha256)),
            // SHA-256 with parameters is not the one that we know.
            (&[0, 2, 0, 4, 1, 2, 3, 4, 0, 1, 0, 0], Some(Md5)),
            (&[0x7F, 0xFF, 0, 0], None),
            (&[0x7F, 0xFF, 0xFF, 0xFF, 0, 2, 0, 0], None),
            (&[0, 2], None),
            (&[], None),
        ];
        for (list, expected) in cases {
            assert_eq!(first_known(list), *expected, "{list:?}");
        }
    }
}
