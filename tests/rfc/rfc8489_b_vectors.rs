//! Appendix B.1 of RFC 8489, as verified erratum 6268 corrects it: long-term credentials with MESSAGE-INTEGRITY-SHA256 and
//! USERHASH. The message that the RFC prints verifies under no key.

use turnix::wire::key::user_hash;
use turnix::wire::{
    Class, Features, Integrity, Message, Method, PasswordAlgorithm, Request, TransactionId,
    attribute, features,
};

const REQUEST: &[u8] = b"\x00\x01\x00\x90\x21\x12\xa4\x42\x78\xad\x34\x33\xc6\xad\x72\xc0\x29\xda\x41\x2e\
\x00\x1e\x00\x20\x4a\x3c\xf3\x8f\xef\x69\x92\xbd\xa9\x52\xc6\x78\x04\x17\xda\x0f\x24\x81\x94\x15\x56\x9e\x60\xb2\x05\xc4\x6e\x41\x40\x7f\x17\x04\
\x00\x15\x00\x29obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA\x00\x00\x00\
\x00\x14\x00\x0bexample.org\x00\
\x00\x1d\x00\x04\x00\x02\x00\x00\
\x00\x1c\x00\x20\xb5\xc7\xbf\x00\x5b\x6c\x52\xa2\x1c\x51\xc5\xe8\x92\xf8\x19\x24\x13\x62\x96\xcb\x92\x7c\x43\x14\x93\x09\x27\x8c\xc6\x51\x8e\x65";

const USER: &str = "マトリックス";
const REALM: &str = "example.org";
const NONCE: &str = "obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA";

#[test]
fn rfc8489_b_1_is_read_and_verified() {
    let message = Message::parse(REQUEST).unwrap();
    assert_eq!(
        (message.class(), message.method()),
        (Class::Request, Method::Binding)
    );
    assert_eq!(
        message.user_hash(),
        Ok(Some(&user_hash(USER.as_bytes(), REALM)))
    );
    assert_eq!(message.realm().unwrap(), REALM.as_bytes());
    assert_eq!(message.nonce().unwrap(), NONCE.as_bytes());
    let algorithm = message.attribute(attribute::PASSWORD_ALGORITHM).unwrap();
    assert_eq!(
        features::algorithm(algorithm),
        Some(PasswordAlgorithm::Sha256)
    );
    // Its only bit is one that nobody has assigned.
    assert_eq!(Features::of(NONCE.as_bytes()), Some(Features::default()));

    let prepared = turnix::wire::key::prepare("The\u{AD}M\u{AA}tr\u{2168}");
    let key = PasswordAlgorithm::Sha256.key(USER.as_bytes(), REALM, prepared.as_bytes());
    assert!(message.verify(Integrity::Sha256, &key));
    assert!(!message.verify(Integrity::Sha1, &key));
    let other = PasswordAlgorithm::Md5.key(USER.as_bytes(), REALM, prepared.as_bytes());
    assert!(!message.verify(Integrity::Sha256, &other));
    for at in 0..REQUEST.len() {
        let mut bytes = REQUEST.to_vec();
        bytes[at] ^= 1;
        let verified = Message::parse(&bytes).is_ok_and(|m| m.verify(Integrity::Sha256, &key));
        assert!(!verified, "byte {at} is protected");
    }
}

#[test]
fn rfc8489_b_1_is_written_byte_for_byte() {
    let key = PasswordAlgorithm::Sha256.key(USER.as_bytes(), REALM, b"TheMatrIX");
    let transaction = *b"\x78\xad\x34\x33\xc6\xad\x72\xc0\x29\xda\x41\x2e";
    let written = Request::new(Method::Binding, TransactionId(transaction))
        .anonymous_credentials(user_hash(USER.as_bytes(), REALM), REALM, NONCE)
        .password_algorithm(PasswordAlgorithm::Sha256)
        .finish(Some(&key), false);
    assert_eq!(written, REQUEST);
}
