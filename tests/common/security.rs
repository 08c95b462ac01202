//! A client of RFC 8489's security features that shares no code with the server's.

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha2::Sha256;
use stun::attributes::{ATTR_NONCE, ATTR_REALM, ATTR_USERNAME, AttrType};
use turnix::wire::attribute::{
    FINGERPRINT, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS, USERHASH,
};

use super::wire::{Reply, Request};

pub const SHA256: [u8; 4] = [0, 2, 0, 0];
pub const MD5: [u8; 4] = [0, 1, 0, 0];

/// How a client answers a challenge.
#[derive(Clone, Debug)]
pub struct Modern {
    pub user: String,
    pub password: String,
    pub realm: String,
    pub nonce: String,
    /// PASSWORD-ALGORITHMS to echo.
    pub algorithms: Option<Vec<u8>>,
    /// PASSWORD-ALGORITHM.
    pub algorithm: Option<[u8; 4]>,
    pub anonymous: bool,
}

impl Modern {
    /// As RFC 8489 §9.2.5 says for a client that knows everything.
    pub fn answering(challenge: &Reply, user: &str, password: &str) -> Self {
        let nonce = challenge.nonce();
        let algorithms = challenge.attr(AttrType(PASSWORD_ALGORITHMS));
        Self {
            user: user.into(),
            password: password.into(),
            realm: challenge.text(ATTR_REALM).expect("REALM"),
            algorithm: (algorithms.as_ref()).map(|list| list[..4].try_into().unwrap()),
            algorithms,
            anonymous: features(&nonce).is_some_and(|bits| bits[0] & 0x40 != 0),
            nonce,
        }
    }

    pub fn key(&self) -> Vec<u8> {
        let text = format!("{}:{}:{}", self.user, self.realm, self.password);
        match self.algorithm {
            Some(SHA256) => Sha256::digest(text).to_vec(),
            _ => Md5::digest(text).to_vec(),
        }
    }

    /// All but the integrity.
    pub fn unsigned(&self, request: Request) -> Request {
        let mut request = match self.anonymous {
            true => request.attr(USERHASH, &user_hash(&self.user, &self.realm)),
            false => request.text(ATTR_USERNAME, &self.user),
        }
        .text(ATTR_REALM, &self.realm)
        .text(ATTR_NONCE, &self.nonce);
        if let Some(list) = &self.algorithms {
            request = request.attr(PASSWORD_ALGORITHMS, list);
        }
        if let Some(algorithm) = &self.algorithm {
            request = request.attr(PASSWORD_ALGORITHM, algorithm);
        }
        request
    }

    pub fn sign(&self, request: Request) -> Request {
        sha256(self.unsigned(request), &self.key(), 32)
    }

    /// Whether MESSAGE-INTEGRITY-SHA256 of `reply` is there, alone, and right.
    pub fn has_signed(&self, reply: &Reply) -> bool {
        let mut raw = &reply.0.raw[..];
        let mut types = reply.attribute_types();
        if types.last() == Some(&FINGERPRINT) {
            types.pop();
            raw = &raw[..raw.len() - 8];
        }
        let Some(at) = raw.len().checked_sub(36) else {
            return false;
        };
        types.last() == Some(&MESSAGE_INTEGRITY_SHA256)
            && !types.contains(&MESSAGE_INTEGRITY)
            && raw[at + 4..] == mac(&self.key(), raw[..at].to_vec(), 32)[..]
    }
}

/// The three bytes of STUN Security Features in a nonce that has them.
pub fn features(nonce: &str) -> Option<[u8; 3]> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = nonce.strip_prefix("obMatJos2")?.get(..4)?;
    let word = bits.chars().fold(0, |word: u32, c| {
        word << 6 | ALPHABET.find(c).unwrap() as u32
    });
    let [_, a, b, c] = word.to_be_bytes();
    Some([a, b, c])
}

pub fn user_hash(user: &str, realm: &str) -> [u8; 32] {
    Sha256::digest(format!("{user}:{realm}")).into()
}

/// Adds MESSAGE-INTEGRITY-SHA256 of `length` bytes.
pub fn sha256(request: Request, key: &[u8], length: usize) -> Request {
    let value = mac(key, request.bytes(), length);
    request.attr(MESSAGE_INTEGRITY_SHA256, &value)
}

/// HMAC-SHA256 over what stands before an attribute of `length` bytes.
fn mac(key: &[u8], mut before: Vec<u8>, length: usize) -> Vec<u8> {
    let total = (before.len() - 20 + 4 + length) as u16;
    before[2..4].copy_from_slice(&total.to_be_bytes());
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(&before);
    mac.finalize().into_bytes()[..length].to_vec()
}
