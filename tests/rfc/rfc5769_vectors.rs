//! Test vectors of RFC 5769: parsed, verified, and written again byte for byte.

use turnix::access::credentials::long_term_key;
use turnix::wire::{Class, DecodeError, Message, Method};

/// §2.4, a Binding request with long-term credentials.
const LONG_TERM: &[u8] = b"\x00\x01\x00\x60\x21\x12\xa4\x42\x78\xad\x34\x33\xc6\xad\x72\xc0\x29\xda\x41\x2e\
\x00\x06\x00\x12\xe3\x83\x9e\xe3\x83\x88\xe3\x83\xaa\xe3\x83\x83\xe3\x82\xaf\xe3\x82\xb9\x00\x00\
\x00\x15\x00\x1c\x66\x2f\x2f\x34\x39\x39\x6b\x39\x35\x34\x64\x36\x4f\x4c\x33\x34\x6f\x4c\x39\x46\x53\x54\x76\x79\x36\x34\x73\x41\
\x00\x14\x00\x0b\x65\x78\x61\x6d\x70\x6c\x65\x2e\x6f\x72\x67\x00\
\x00\x08\x00\x14\xf6\x70\x24\x65\x6d\xd6\x4a\x3e\x02\xb8\xe0\x71\x2e\x85\xc9\xa2\x8c\xa8\x96\x66";

/// §2.1, a request with short-term credentials and FINGERPRINT, padded with spaces.
const REQUEST: &[u8] = b"\x00\x01\x00\x58\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
\x80\x22\x00\x10STUN test client\x00\x24\x00\x04\x6e\x00\x01\xff\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\
\x00\x06\x00\x09\x65\x76\x74\x6a\x3a\x68\x36\x76\x59\x20\x20\x20\
\x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\x80\x28\x00\x04\xe5\x7a\x3b\xcf";

/// §2.2, an IPv4 response.
const RESPONSE_V4: &[u8] = b"\x01\x01\x00\x3c\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
\x80\x22\x00\x0b\x74\x65\x73\x74\x20\x76\x65\x63\x74\x6f\x72\x20\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43\
\x00\x08\x00\x14\x2b\x91\xf5\x99\xfd\x9e\x90\xc3\x8c\x74\x89\xf9\x2a\xf9\xba\x53\xf0\x6b\xe7\xd7\x80\x28\x00\x04\xc0\x7d\x4c\x96";

#[test]
fn rfc5769_2_4_long_term_request() {
    let message = Message::parse(LONG_TERM).unwrap();
    assert_eq!(
        (message.class(), message.method()),
        (Class::Request, Method::Binding)
    );
    assert_eq!(message.username().unwrap(), "マトリックス".as_bytes());
    assert_eq!(message.realm().unwrap(), b"example.org");
    assert_eq!(message.nonce().unwrap(), b"f//499k954d6OL34oL9FSTvy64sA");
    // The password of the vector is "TheMatrIX" after SASLprep removes the soft hyphen (U+00AD).
    let key = long_term_key(
        "マトリックス".as_bytes(),
        "example.org",
        "TheMatrIX".as_bytes(),
    );
    assert!(message.verify_integrity(&key));
    let wrong = long_term_key("マトリックス".as_bytes(), "example.org", b"TheMatrix");
    assert!(!message.verify_integrity(&wrong));
}

#[test]
fn rfc5769_2_1_request_with_fingerprint() {
    let message = Message::parse(REQUEST).unwrap();
    assert!(message.has_fingerprint() && message.has_integrity());
    assert_eq!(
        message.username().unwrap(),
        b"evtj:h6vY",
        "padding is not part of it"
    );
    let unknown: Vec<u16> = message.unknown_required(&[0x0006, 0x0008]).collect();
    assert_eq!(unknown, [0x0024], "PRIORITY");
    let (end, value) = (REQUEST.len() - 8, REQUEST.len() - 4);
    for at in (0..end).chain(value..REQUEST.len()) {
        let mut bytes = REQUEST.to_vec();
        bytes[at] ^= 0x01;
        assert!(
            Message::parse(&bytes).is_err(),
            "FINGERPRINT covers byte {at}"
        );
    }
}

#[test]
fn rfc5769_2_2_response_is_recognized() {
    let message = Message::parse(RESPONSE_V4).unwrap();
    assert_eq!(message.class(), Class::Response);
    let mut bytes = RESPONSE_V4.to_vec();
    bytes[30] ^= 1;
    assert_eq!(
        Message::parse(&bytes).unwrap_err(),
        DecodeError::Fingerprint
    );
}
