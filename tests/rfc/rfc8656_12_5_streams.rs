//! Framing in byte streams (RFC 8489 §6.2.2, RFC 8656 §12.5).

use turnix::wire::framing::{Frame, next_frame};

use crate::common::wire::{Request, padded_channel_data};

fn frames(mut bytes: &[u8]) -> (Vec<(usize, usize)>, Frame) {
    let mut found = Vec::new();
    loop {
        match next_frame(bytes) {
            Frame::Complete { message, total } => {
                found.push((message, total));
                bytes = &bytes[total..];
            }
            end => return (found, end),
        }
    }
}

#[test]
fn pipelined_frames_come_one_by_one() {
    let binding = Request::binding().bytes();
    let mut bytes = binding.clone();
    bytes.extend(padded_channel_data(0x4000, b"hello"));
    bytes.extend(padded_channel_data(0x4000, b""));
    bytes.extend(&binding);
    let (found, end) = frames(&bytes);
    assert_eq!(found, [(20, 20), (9, 12), (4, 4), (20, 20)]);
    assert_eq!(end, Frame::Needs(4));
}

#[test]
fn every_split_of_a_stream_gives_the_same_frames() {
    let mut bytes = Request::allocate().bytes();
    bytes.extend(padded_channel_data(0x4FFF, &[9; 7]));
    let whole = frames(&bytes).0;
    for cut in 0..bytes.len() {
        let (mut found, end) = frames(&bytes[..cut]);
        let taken: usize = found.iter().map(|(_, total)| total).sum();
        let Frame::Needs(needed) = end else {
            panic!("cut at {cut}: {end:?}");
        };
        assert!(needed > cut - taken, "asks for more than it has");
        found.extend(frames(&bytes[taken..]).0);
        assert_eq!(found, whole, "cut at {cut}");
    }
}

#[test]
fn streams_that_are_not_stun_are_refused_early() {
    for bytes in [
        &[0x80][..],
        &[0xFF; 4],
        b"\x00\x01\x00\x00\x21\x12\xA4\x43",
        b"\x00\x01\x00\x01\x21\x12\xA4\x42",
    ] {
        assert_eq!(next_frame(bytes), Frame::Invalid, "{bytes:?}");
    }
}
