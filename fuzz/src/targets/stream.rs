//! Byte streams: frames do not depend on how the bytes arrive, and first bytes are judged once.

use turnix::stream::Protocols;
use turnix::stream::proxy::{self, MOST_BYTES, Step};
use turnix::stream::sniff::{DECISIVE_BYTES, Verdict, sniff};
use turnix::wire::framing::{Frame, next_frame};

use super::Reach;
use super::input::Input;

/// How a stream ended: in step and short of some bytes, or out of step.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Waiting(usize),
    Invalid,
}

pub fn stream(data: &[u8]) -> Reach {
    let mut input = Input(data);
    let spoken = input.byte();
    let splits: Vec<usize> = (0..input.below(8)).map(|_| input.byte().into()).collect();
    let bytes = input.0;
    let mut reach = Reach::new();

    let expected = frames_of(bytes);
    for (message, total) in &expected.0 {
        assert!(message <= total && total - message < 4);
        reach.insert("frame".into());
        if message < total {
            reach.insert("padded frame".into());
        }
    }
    reach.insert(match expected.1 {
        End::Waiting(0) => "whole".into(),
        End::Waiting(_) => "half a frame".into(),
        End::Invalid => "out of step".into(),
    });
    let arriving = |sizes: &mut dyn Iterator<Item = usize>| {
        let mut rest = bytes;
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
            let (chunk, behind) = rest.split_at(size);
            chunks.push(chunk);
            rest = behind;
        }
        framed(&chunks)
    };
    assert_eq!(
        arriving(&mut splits.iter().copied()),
        expected,
        "{splits:?}"
    );
    if !splits.is_empty() {
        assert_eq!(arriving(&mut splits.iter().copied().cycle()), expected);
    }
    // Byte by byte is the worst of all splits, and quadratic.
    assert_eq!(
        framed(&bytes[..bytes.len().min(512)].chunks(1).collect::<Vec<_>>()),
        frames_of(&bytes[..bytes.len().min(512)])
    );
    sniffed(spoken, bytes, &mut reach);
    introduced(bytes, &mut reach);
    reach
}

/// The header of a proxy, as a listener reads it: never a byte too many, and an end in sight.
fn introduced(bytes: &[u8], reach: &mut Reach) {
    let mut at = 0;
    let step = loop {
        match proxy::step(&bytes[..at]) {
            Step::Read(more) => {
                assert!(more > 0 && at + more <= MOST_BYTES);
                if at + more > bytes.len() {
                    break Step::Read(more);
                }
                at += more;
            }
            step => break step,
        }
    };
    match step {
        Step::Whole(route) => {
            assert!(proxy::begins(&bytes[..at]));
            reach.insert(match route {
                Some(_) => "proxy for a client".into(),
                None => "proxy for itself".into(),
            });
            // What is told is passed on as it is.
            if let Some(route) = route {
                assert_eq!(proxy::step(&proxy::header(route)), Step::Whole(Some(route)));
            }
        }
        Step::Read(_) => drop(reach.insert("half a proxy header".into())),
        Step::Refuse(_) => drop(reach.insert("no proxy header".into())),
    }
}

/// Frames as RFC 8489 §6.2.2 and RFC 8656 §12.5 have them, looked up in all the bytes at once.
fn frames_of(bytes: &[u8]) -> (Vec<(usize, usize)>, End) {
    let mut frames = Vec::new();
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        let length = |at| usize::from(u16::from_be_bytes([rest[at], rest[at + 1]]));
        let (message, total) = match rest {
            [] => return (frames, End::Waiting(0)),
            [0x80..=0xFF, ..] => return (frames, End::Invalid),
            [0x40..=0x7F, ..] if rest.len() < 4 => return (frames, End::Waiting(rest.len())),
            [0x40..=0x7F, ..] => (4 + length(2), (4 + length(2)).next_multiple_of(4)),
            _ if rest.len() < 8 => return (frames, End::Waiting(rest.len())),
            _ if rest[4..8] != [0x21, 0x12, 0xA4, 0x42] || !length(2).is_multiple_of(4) => {
                return (frames, End::Invalid);
            }
            _ => (20 + length(2), 20 + length(2)),
        };
        if rest.len() < total {
            return (frames, End::Waiting(rest.len()));
        }
        frames.push((message, total));
        at += total;
    }
}

/// The same from chunks, as a shard does: ask for a frame, wait for as many bytes as it needs.
fn framed(chunks: &[&[u8]]) -> (Vec<(usize, usize)>, End) {
    let mut frames = Vec::new();
    let mut kept: Vec<u8> = Vec::new();
    let mut needed = 0;
    for chunk in chunks {
        kept.extend_from_slice(chunk);
        // Not even asked again before the bytes are there that it said it needs.
        while !kept.is_empty() && kept.len() >= needed {
            match next_frame(&kept) {
                Frame::Complete { message, total } => {
                    assert!(total <= kept.len() && total > 0);
                    frames.push((message, total));
                    kept.drain(..total);
                    needed = 0;
                }
                Frame::Needs(bytes) => {
                    assert!(bytes > kept.len(), "it asks for what it has");
                    assert!(bytes <= 20 + 65_535, "it asks for what no message has");
                    needed = bytes;
                }
                Frame::Invalid => return (frames, End::Invalid),
            }
        }
    }
    // What is left may be out of step already, though fewer bytes came than it waited for.
    match next_frame(&kept) {
        Frame::Invalid => (frames, End::Invalid),
        _ => (frames, End::Waiting(kept.len())),
    }
}

fn sniffed(spoken: u8, bytes: &[u8], reach: &mut Reach) {
    let speaks = Protocols {
        tcp: spoken & 1 != 0,
        tls: spoken & 2 != 0,
        http: spoken & 4 != 0,
    };
    let mut decided = None;
    for length in 0..=bytes.len().min(DECISIVE_BYTES + 2) {
        let verdict = sniff(&bytes[..length], speaks);
        assert!(
            length < DECISIVE_BYTES || verdict != Verdict::More,
            "undecided after {length} bytes"
        );
        if let Some(before) = decided {
            assert_eq!(verdict, before, "more bytes change nothing");
        }
        if verdict != Verdict::More {
            decided = Some(verdict);
        }
        let spoken = match verdict {
            Verdict::Turn => speaks.tcp,
            Verdict::Tls => speaks.tls,
            Verdict::Http => speaks.http,
            Verdict::More => length == 0 || speaks.http,
            Verdict::Close => true,
        };
        assert!(spoken, "{verdict:?} is not spoken here");
    }
    reach.insert(format!("{decided:?}"));
}
