//! Whether a call came about.

use std::time::Duration;

use turnix::base::Direction::{self, ToClient, ToPeer};
use turnix::quality::{Mode, Session, Watch};

use crate::link::{MILLISECOND, Rtp, SECOND};
use crate::{TO_CLIENT, TO_PEER};

const BEGAN: u64 = 1000 * SECOND;

fn at(watch: &Watch, seconds: u64) -> Session {
    watch.quality(BEGAN + seconds * SECOND).session
}

fn show(watch: &mut Watch, seconds: u64, direction: Direction) {
    watch.observe(Mode::Sampled, BEGAN + seconds * SECOND, direction, b"hello");
}

#[test]
fn nobody_comes() {
    let watch = Watch::new(BEGAN);
    assert_eq!(at(&watch, 9), Session::Waiting);
    assert_eq!(at(&watch, 10), Session::Unused);
    assert_eq!(watch.quality(BEGAN).idle, [None; 2]);
}

#[test]
fn both_come_and_fall_silent() {
    let mut watch = Watch::new(BEGAN);
    show(&mut watch, 20, ToClient);
    assert_eq!(at(&watch, 21), Session::Waiting);
    show(&mut watch, 25, ToPeer);
    assert_eq!(at(&watch, 25), Session::Established);
    assert_eq!(at(&watch, 34), Session::Established);
    assert_eq!(at(&watch, 36), Session::Silent);
    show(&mut watch, 60, ToPeer);
    assert_eq!(at(&watch, 61), Session::Established);
    let quality = watch.quality(BEGAN + 61 * SECOND);
    assert_eq!(
        quality.first,
        [Some(Duration::from_secs(25)), Some(Duration::from_secs(20))]
    );
    assert_eq!(
        quality.idle,
        [Some(Duration::from_secs(1)), Some(Duration::from_secs(41))]
    );
}

#[test]
fn one_side_speaks_alone() {
    for (direction, other) in [(ToPeer, ToClient), (ToClient, ToPeer)] {
        let mut watch = Watch::new(BEGAN);
        for second in 0..30 {
            show(&mut watch, second, direction);
        }
        assert_eq!(at(&watch, 9), Session::Waiting);
        assert_eq!(at(&watch, 30), Session::OneWay(direction));
        // The other comes after all, as someone who is called does.
        show(&mut watch, 31, other);
        assert_eq!(at(&watch, 32), Session::Established);
        // Or as it has gone.
        let mut watch = Watch::new(BEGAN);
        show(&mut watch, 0, direction);
        show(&mut watch, 40, other);
        assert_eq!(at(&watch, 41), Session::OneWay(other));
    }
}

#[test]
fn handshakes_and_media_are_seen() {
    let mut watch = Watch::new(BEGAN);
    let hello = [22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0];
    // TLS, application data, and the like.
    for other in [&[22, 3, 3, 0, 4][..], &[23, 254, 253, 0], &[22], &[]] {
        watch.observe(Mode::Sampled, BEGAN, ToPeer, other);
    }
    assert_eq!(watch.quality(BEGAN).dtls, [false; 2]);
    watch.observe(Mode::Sampled, BEGAN, ToClient, &hello);
    assert_eq!(watch.quality(BEGAN).dtls, [false, true]);
    // A receiver report, alone and too short.
    let report = [0x80, 201, 0, 1, 0, 0, 0, 7];
    watch.observe(Mode::Sampled, BEGAN, ToPeer, &report[..7]);
    assert_eq!(watch.quality(BEGAN).media, [false; 2]);
    watch.observe(Mode::Sampled, BEGAN, ToPeer, &report);
    assert_eq!(watch.quality(BEGAN).media, [true, false]);
    // One packet is none, two in a row are.
    let mut rtp = Rtp {
        payload_type: 0,
        ssrc: 1,
        sequence: 0,
        timestamp: 0,
    };
    watch.observe(Mode::Sampled, BEGAN, ToClient, &rtp.packet(0, false, false));
    assert_eq!(watch.quality(BEGAN).media, [true, false]);
    watch.observe(
        Mode::Sampled,
        BEGAN,
        ToClient,
        &rtp.packet(160, false, false),
    );
    assert_eq!(watch.quality(BEGAN).media, [true, true]);
}

/// Checks go on between those who hear each other no more.
#[test]
fn media_falls_silent_on_one_side() {
    let mut watch = Watch::new(BEGAN);
    let mut senders = [1, 2].map(|ssrc| Rtp {
        payload_type: 0,
        ssrc,
        sequence: 0,
        timestamp: 0,
    });
    let report = [0x80, 201, 0, 1, 0, 0, 0, 7];
    for nth in 0..3000 {
        let now = BEGAN + nth * 20 * MILLISECOND;
        for (direction, rtp) in [ToPeer, ToClient].into_iter().zip(&mut senders) {
            watch.observe(Mode::Sampled, now, direction, &report);
            if direction == ToPeer || nth < 1000 {
                let packet = rtp.packet(nth as u32 * 160, false, false);
                watch.observe(Mode::Sampled, now, direction, &packet);
            }
        }
    }
    let quality = watch.quality(BEGAN + 60 * SECOND);
    assert_eq!(quality.session, Session::Established);
    let idle = quality.media_idle.map(|idle| idle.unwrap().as_secs());
    assert_eq!((idle[TO_PEER], idle[TO_CLIENT]), (0, 40));
    assert!(quality.idle[TO_CLIENT].unwrap() < Duration::from_secs(1));
}
