//! The shape of messages (RFC 8489 §5): what is not well-formed is dropped without an answer.

use turnix::turn::{DropReason, Forward};
use turnix::wire::{self, Kind};

use crate::common::wire::{Request, Signer};
use crate::common::world::{World, udp};

#[test]
fn rfc7983_first_bytes() {
    for (byte, kind) in [
        (0x00, Kind::Stun),
        (0x3F, Kind::Stun),
        (0x40, Kind::ChannelData),
        (0x7F, Kind::ChannelData),
        (0x80, Kind::Other),
        (0x16, Kind::Stun),
        (0xFF, Kind::Other),
    ] {
        assert_eq!(wire::classify(&[byte]), kind, "{byte:#x}");
    }
    assert_eq!(wire::classify(&[]), Kind::Other);
}

#[test]
fn malformed_messages_are_dropped() {
    let good = Request::allocate().bytes();
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("empty", vec![], DropReason::NotStun),
        ("one byte", vec![0], DropReason::NotStun),
        ("half a header", good[..12].to_vec(), DropReason::NotStun),
        ("no cookie", edited(&|b| b[4] ^= 1), DropReason::NotStun),
        (
            "trailing bytes",
            edited(&|b| b.extend([0; 4])),
            DropReason::Malformed,
        ),
        (
            "cut short",
            good[..good.len() - 4].to_vec(),
            DropReason::Malformed,
        ),
        (
            "length not a multiple of four",
            edited(&|b| b[3] -= 1),
            DropReason::Malformed,
        ),
        (
            "length 0xFFFC",
            edited(&|b| b[2..4].copy_from_slice(&[0xFF, 0xFC])),
            DropReason::Malformed,
        ),
        (
            "attribute beyond the end",
            edited(&|b| b[22..24].copy_from_slice(&[0xFF, 0xFF])),
            DropReason::Malformed,
        ),
        (
            "attribute over by one",
            edited(&|b| b[23] = 5),
            DropReason::Malformed,
        ),
        ("RTP", vec![0x80; 40], DropReason::NotStun),
    ];
    for (name, bytes, reason) in cases {
        let mut world = World::new();
        let forward = world.input(udp("192.0.2.7:4000"), &bytes);
        assert_eq!(forward, Forward::Drop(reason), "{name}");
        assert!(world.sent.is_empty(), "{name}");
    }
}

#[test]
fn drops_are_counted_by_reason() {
    let mut world = World::new();
    world.input(udp("192.0.2.7:4000"), &[0x80; 12]);
    world.input(udp("192.0.2.7:4000"), &[0x80; 12]);
    world.input(udp("192.0.2.7:4000"), &[0x40, 0, 0, 0]);
    let dropped = world.server.stats().dropped;
    assert_eq!(dropped[DropReason::NotStun as usize], 2);
    assert_eq!(dropped[DropReason::NoChannel as usize], 1);
    assert_eq!(dropped.iter().sum::<u64>(), 3);
}

#[test]
fn rfc8489_14_5_message_integrity_is_20_bytes() {
    let alice = Signer::new("alice", "wonderland", "nonce");
    let mut bytes = Request::binding().sign(&alice).fingerprint().bytes();
    assert!(turnix::wire::Message::parse(&bytes).is_ok());
    // Stretched over FINGERPRINT; the length of MESSAGE-INTEGRITY itself is not signed.
    let length = bytes.len() - 8 - 20 - 2;
    bytes[length..length + 2].copy_from_slice(&28_u16.to_be_bytes());
    assert!(turnix::wire::Message::parse(&bytes).is_err());
}

#[test]
fn attributes_behind_message_integrity_have_to_fit_as_well() {
    let alice = Signer::new("alice", "wonderland", "nonce");
    let request = Request::binding().sign(&alice).attr(0x8022, b"test");
    let mut bytes = request.bytes();
    assert!(turnix::wire::Message::parse(&bytes).is_ok());
    let length = bytes.len() - 6;
    bytes[length..length + 2].copy_from_slice(&8_u16.to_be_bytes());
    assert!(turnix::wire::Message::parse(&bytes).is_err());
}
