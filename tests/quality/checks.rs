//! Checks that pass, their answers, and what stays without one.

use std::time::Duration;

use turnix::base::Direction;
use turnix::quality::{Leg, Mode, Quality, Watch};

use crate::link::{Arrival, Link, Loss, MILLISECOND, Random, SECOND};
use crate::{TO_CLIENT, TO_PEER, watched};

pub const REQUEST: u16 = 0x0001;
pub const SUCCESS: u16 = 0x0101;
pub const ERROR: u16 = 0x0111;
const INDICATION: u16 = 0x0011;

pub fn stun(kind: u16, transaction: u64) -> Vec<u8> {
    let mut message = kind.to_be_bytes().to_vec();
    message.extend(8_u16.to_be_bytes());
    message.extend(0x2112_A442_u32.to_be_bytes());
    message.extend([9; 4]);
    message.extend(transaction.to_be_bytes());
    // FINGERPRINT, which nobody here verifies.
    message.extend([0x80, 0x28, 0, 4, 1, 2, 3, 4]);
    message
}

/// A minute of checks both ways between a client and a peer that are so many milliseconds there and back away from the relay,
/// sent again until they are answered, if `repeats`.
pub fn checked(seed: u64, rtt: [f64; 2], jitter: f64, loss: f64, repeats: bool) -> Quality {
    let mut random = Random(seed);
    // From and to each side, by leg.
    let mut legs = rtt.map(|rtt| {
        let jitter = jitter / 2.0;
        [0; 2].map(|_| Link::new(random.bits(), rtt / 2.0, jitter, Loss::Random(loss)).unordered())
    });
    let mut arrivals = Vec::new();
    for nth in 0..120_u64 {
        for (direction, asked, asks) in [(Direction::ToPeer, 1, 0), (Direction::ToClient, 0, 1)] {
            let back = Direction::ALL[1 - direction as usize];
            let start = nth * SECOND / 2 + asked as u64 * 100 * MILLISECOND;
            let transaction = nth * 2 + asked as u64;
            let mut answered = u64::MAX;
            // As RFC 8489 §6.2.1 has it, from 100 ms on.
            for copy in 0..if repeats { 4 } else { 1 } {
                let sent = start + ((1 << copy) - 1) * 100 * MILLISECOND;
                if sent > answered {
                    break;
                }
                let mut arrive = |at, direction, kind| {
                    let datagram = stun(kind, transaction);
                    arrivals.push(Arrival {
                        at,
                        direction,
                        datagram,
                    });
                };
                let Some(here) = legs[asks][0].pass(sent) else {
                    continue;
                };
                arrive(here, direction, REQUEST);
                let Some(there) = legs[asked][1].pass(here) else {
                    continue;
                };
                let Some(here) = legs[asked][0].pass(there) else {
                    continue;
                };
                arrive(here, back, SUCCESS);
                if let Some(there) = legs[asks][1].pass(here) {
                    answered = answered.min(there);
                }
            }
        }
    }
    arrivals.sort_by_key(|arrival| arrival.at);
    watched(Mode::Sampled, 0, &arrivals)
}

fn shown(messages: &[(u64, Direction, Vec<u8>)]) -> Watch {
    let mut watch = Watch::new(0);
    for (millis, direction, message) in messages {
        watch.observe(Mode::Sampled, millis * MILLISECOND, *direction, message);
    }
    watch
}

use Direction::{ToClient, ToPeer};

#[test]
fn an_answer_gives_the_time_of_the_leg_that_it_comes_from() {
    let watch = shown(&[
        (100, ToPeer, stun(REQUEST, 1)),
        (130, ToClient, stun(REQUEST, 2)),
        (142, ToPeer, stun(SUCCESS, 2)),
        (190, ToClient, stun(ERROR, 1)),
        // Nobody asked this, and nobody answers his own.
        (200, ToClient, stun(SUCCESS, 3)),
        (210, ToPeer, stun(REQUEST, 4)),
        (220, ToPeer, stun(SUCCESS, 4)),
        (230, ToPeer, stun(INDICATION, 5)),
    ]);
    let quality = watch.quality(SECOND);
    let latest = Leg::ALL.map(|leg| quality.rtt[leg as usize].unwrap().latest);
    assert_eq!(latest, [12, 90].map(Duration::from_millis));
    let [to_peer, to_client] = quality.checks;
    assert_eq!(
        (to_peer.sent, to_peer.answered, to_peer.unanswered),
        (2, 1, 0)
    );
    assert_eq!((to_client.sent, to_client.answered), (1, 1));
    assert_eq!(watch.quality(20 * SECOND).checks[TO_PEER].unanswered, 1);
}

#[test]
fn an_answer_of_one_copy_out_of_two_gives_no_time() {
    let watch = shown(&[
        (0, ToPeer, stun(REQUEST, 1)),
        (100, ToPeer, stun(REQUEST, 1)),
        (150, ToClient, stun(SUCCESS, 1)),
    ]);
    let quality = watch.quality(SECOND);
    assert_eq!(quality.rtt, [None; 2]);
    let checks = quality.checks[TO_PEER];
    assert_eq!((checks.sent, checks.repeated, checks.answered), (1, 1, 1));
}

/// Firefox sends again after 100 ms, so that on a longer way nothing is answered once only.
#[test]
fn answers_of_all_copies_give_the_time_of_the_first() {
    let watch = shown(&[
        (0, ToPeer, stun(REQUEST, 1)),
        (100, ToPeer, stun(REQUEST, 1)),
        (150, ToClient, stun(SUCCESS, 1)),
        (252, ToClient, stun(SUCCESS, 1)),
        // And a third time, of nobody.
        (300, ToClient, stun(SUCCESS, 1)),
    ]);
    let rtt = watch.quality(SECOND).rtt[Leg::Peer as usize].unwrap();
    assert_eq!((rtt.latest, rtt.samples), (Duration::from_millis(150), 1));
    assert_eq!(watch.quality(SECOND).checks[TO_PEER].answered, 1);
}

#[test]
fn chromiums_own_checks_count() {
    let watch = shown(&[(0, ToClient, stun(0x0200, 1)), (7, ToPeer, stun(0x0300, 1))]);
    let rtt = watch.quality(SECOND).rtt[Leg::Client as usize].unwrap();
    assert_eq!(rtt.least, Duration::from_millis(7));
}

#[test]
fn what_is_no_check_counts_as_none() {
    let good = stun(REQUEST, 1);
    let mut cookie = good.clone();
    cookie[5] ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    let allocate = stun(0x0003, 2);
    let watch = shown(&[
        (0, ToPeer, cookie),
        (0, ToPeer, longer),
        (0, ToPeer, good[..19].to_vec()),
        (0, ToPeer, allocate),
    ]);
    assert_eq!(watch.quality(SECOND).checks[TO_PEER].sent, 0);
    assert_eq!(
        shown(&[(0, ToPeer, good)]).quality(0).checks[TO_PEER].sent,
        1
    );
}

/// More checks than are remembered: those that wait make room after those that were answered.
#[test]
fn a_flood_of_checks_is_counted_and_no_more() {
    let mut watch = shown(&[(0, ToClient, stun(REQUEST, 1 << 40))]);
    for nth in 0..10_000 {
        let at = nth * MILLISECOND / 10;
        watch.observe(Mode::Sampled, at, ToPeer, &stun(REQUEST, nth));
        watch.observe(
            Mode::Sampled,
            at + MILLISECOND / 20,
            ToClient,
            &stun(SUCCESS, nth),
        );
    }
    let checks = watch.quality(SECOND).checks;
    assert_eq!(
        (checks[TO_PEER].sent, checks[TO_PEER].answered),
        (10_000, 10_000)
    );
    assert_eq!(checks[TO_CLIENT].unanswered, 0);
    watch.observe(
        Mode::Sampled,
        SECOND + MILLISECOND,
        ToPeer,
        &stun(SUCCESS, 1 << 40),
    );
    let rtt = watch.quality(SECOND).rtt[Leg::Client as usize].unwrap();
    assert_eq!(rtt.latest, Duration::from_millis(1001));
    for nth in 20_000..30_000 {
        watch.observe(Mode::Sampled, 2 * SECOND, ToPeer, &stun(REQUEST, nth));
    }
    let checks = watch.quality(2 * SECOND).checks[TO_PEER];
    assert_eq!((checks.sent, checks.unanswered), (20_000, 10_000 - 16));
    assert_eq!(
        watch.quality(13 * SECOND).checks[TO_PEER].unanswered,
        10_000
    );
}

#[test]
fn lost_checks_show_before_media_does() {
    let quality = checked(5, [20.0, 20.0], 0.0, 0.1, false);
    for checks in quality.checks {
        // A check and its answer pass two links to the other side and back.
        let share = f64::from(checks.sent - checks.answered) / f64::from(checks.sent);
        assert!((0.1..0.3).contains(&share), "{checks:?}");
        assert_eq!(checks.repeated, 0);
    }
    let quality = checked(5, [20.0, 20.0], 0.0, 0.1, true);
    for checks in quality.checks {
        assert!(checks.repeated > 10 && checks.answered > 110, "{checks:?}");
    }
}
