//! Reading of messages, ChannelData, Send and Data indications against the `stun` and `turn` crates.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use stun::attributes::{ATTR_DATA, ATTR_XOR_PEER_ADDRESS};
use stun::message as m;
use stun::xoraddr::XorMappedAddress;
use turn::proto::chandata::ChannelData;
use turnix::access::AuthFailure;
use turnix::access::oauth::{TokenAlgorithm, TokenKey, Tokens};
use turnix::base::Secret;
use turnix::wire::framing::{Frame, next_frame};
use turnix::wire::{Kind, MAGIC_COOKIE, Message, channel_data, classify, indication};

use super::Reach;
use crate::common::codec::{assert_same, signer};
use crate::common::wire::Request;

/// The first byte says what is put right before the rest is read: a fuzzer guesses no checksum.
const LENGTH: u8 = 1;
const SIGNED: u8 = 2;
const FINGERPRINT: u8 = 4;

pub fn message(data: &[u8]) -> Reach {
    let mut reach = Reach::new();
    let Some((&how, bytes)) = data.split_first() else {
        return reach;
    };
    token(bytes, &mut reach);
    let mut bytes = bytes.to_vec();
    if how & (LENGTH | SIGNED | FINGERPRINT) != 0 && bytes.len() >= 20 {
        bytes.truncate(20 + (bytes.len() - 20).min(2000) / 4 * 4);
        let length = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        bytes = finished(bytes, how);
    }
    read(&bytes, &mut reach);
    reach
}

/// Signs and checksums what `stun` takes for a message.
fn finished(bytes: Vec<u8>, how: u8) -> Vec<u8> {
    let mut built = m::Message::new();
    if how & (SIGNED | FINGERPRINT) == 0 || built.unmarshal_binary(&bytes).is_err() {
        return bytes;
    }
    let mut request = Request(built);
    if how & SIGNED != 0 {
        // `stun` signs nothing behind a FINGERPRINT.
        if request.0.contains(stun::attributes::ATTR_FINGERPRINT) {
            return bytes;
        }
        request = request.integrity(&signer());
    }
    if how & FINGERPRINT != 0 {
        request = request.fingerprint();
    }
    request.bytes()
}

fn read(bytes: &[u8], reach: &mut Reach) {
    let mut note = |what: &str| {
        reach.insert(what.to_owned());
    };
    if let Some((channel, range)) = channel_data::parse(bytes) {
        assert_eq!(classify(bytes), Kind::ChannelData);
        let range = usize::from(range.start)..usize::from(range.end);
        let mut theirs = ChannelData {
            raw: bytes.to_vec(),
            ..Default::default()
        };
        theirs.decode().expect("turn reads what turnix accepts");
        assert_eq!(theirs.number.0, channel.number());
        assert_eq!(theirs.data, bytes[range]);
        note("ChannelData");
    }
    let mut oracle = m::Message::new();
    let theirs = oracle.unmarshal_binary(bytes).is_ok();
    for (indication, name) in [
        (indication::parse_send(bytes), "Send"),
        (indication::parse_data(bytes), "Data"),
    ] {
        let Some(read) = indication else { continue };
        assert!(theirs, "stun reads what turnix accepts");
        let mut peer = XorMappedAddress::default();
        // The first byte is reserved and to be ignored (RFC 8489 §14.1); `stun` does not.
        if peer.get_from_as(&oracle, ATTR_XOR_PEER_ADDRESS).is_ok() {
            assert_eq!(
                (read.peer.ip(), read.peer.port()),
                (peer.ip.to_canonical(), peer.port)
            );
            note("peer read by both");
        }
        let range = usize::from(read.data.start)..usize::from(read.data.end);
        assert_eq!(oracle.get(ATTR_DATA).unwrap(), bytes[range]);
        note(name);
    }
    match Message::parse(bytes) {
        Ok(message) => {
            assert_same(bytes, &message);
            note("message");
            if message.has_integrity() {
                note("integrity");
            }
            if message.has_fingerprint() {
                note("fingerprint");
            }
            if message.peer_addresses().any(|peer| peer.is_ok()) {
                note("peer");
            }
            // What only clients read.
            let _ = (message.error_code(), message.is_success());
            let _ = (message.mapped_address(), message.relayed_address());
            let whole = Frame::Complete {
                message: bytes.len(),
                total: bytes.len(),
            };
            assert_eq!(next_frame(bytes), whole, "a message is a frame");
        }
        Err(error) => note(&format!("{error:?}")),
    }
}

/// The bytes as a token, which nobody can have made, and as what an authorization server encrypted.
fn token(bytes: &[u8], reach: &mut Reach) {
    const KEY: [u8; 32] = [7; 32];
    let tokens = Tokens::new(
        "example.org",
        &[TokenKey {
            kid: "kid".into(),
            algorithm: TokenAlgorithm::A256Gcm,
            key: Secret::new(KEY.to_vec()),
            not_before: None,
            not_after: None,
        }],
    );
    let unix = Duration::from_secs(1_800_000_000);
    let open = |token: &[u8]| tokens.verify(b"kid", token, unix, |_| true);
    assert_eq!(open(bytes).map(|_| ()), Err(AuthFailure::BadToken));
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap());
    let mut sealed = bytes.to_vec();
    let nonce = Nonce::assume_unique_for_key([3; 12]);
    key.seal_in_place_append_tag(nonce, Aad::from("example.org"), &mut sealed)
        .unwrap();
    let mut token = vec![0, 12];
    token.extend_from_slice(&[3; 12]);
    token.extend_from_slice(&sealed);
    match open(&token) {
        Err(failure) => {
            assert!([AuthFailure::BadToken, AuthFailure::Expired].contains(&failure));
            if failure == AuthFailure::Expired {
                reach.insert("token".to_owned());
            }
        }
        Ok(verified) => {
            reach.insert("token".to_owned());
            let length = verified.key.as_bytes().len();
            assert_eq!(bytes.len(), 2 + length + 12);
            assert_eq!(verified.key.as_bytes(), &bytes[2..2 + length]);
            let lifetime = u32::from_be_bytes(bytes[bytes.len() - 4..].try_into().unwrap());
            let expires = verified.identity.expires.unwrap();
            assert!(expires > unix && expires - unix <= Duration::from_secs(lifetime.into()));
        }
    }
}
