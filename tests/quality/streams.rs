//! Streams of RTP that are not as simple as a test would have them.

use std::collections::HashSet;

use turnix::base::Direction;
use turnix::quality::{Media, Mode, Stream, Watch};

use crate::link::{Arrival, Call, Link, Loss, MILLISECOND, Rtp, SECOND};
use crate::{TO_CLIENT, TO_PEER, watched};

const NONE: Loss = Loss::Random(0.0);

fn rtp(ssrc: u32, sequence: u16, timestamp: u32) -> Rtp {
    Rtp {
        payload_type: 111,
        ssrc,
        sequence,
        timestamp,
    }
}

/// Opus to the peer, packet `nth` at 20 ms each.
fn opus(rtp: &mut Rtp, nth: u64) -> Arrival {
    let timestamp = rtp.timestamp.wrapping_add(nth as u32 * 960);
    Arrival {
        at: nth * 20 * MILLISECOND,
        direction: Direction::ToPeer,
        datagram: rtp.packet(timestamp, false, false),
    }
}

fn only(streams: &[Stream]) -> Stream {
    assert_eq!(streams.len(), 1, "{streams:?}");
    streams[0]
}

#[test]
fn numbers_wrap_around() {
    let mut rtp = rtp(7, 65_000, u32::MAX - 100_000);
    // Twice around, with every 97th gone.
    let arrivals: Vec<Arrival> = (0..140_000)
        .map(|nth| opus(&mut rtp, nth))
        .enumerate()
        .filter(|(nth, _)| nth % 97 != 50)
        .map(|(_, arrival)| arrival)
        .collect();
    let quality = watched(Mode::Full, 0, &arrivals);
    let stream = only(&quality.streams);
    assert_eq!(stream.received, arrivals.len() as u64);
    assert_eq!(stream.lost, 140_000 - arrivals.len() as u64);
    assert_eq!((stream.reordered, stream.media), (0, Media::Audio));
    let jitter = stream.jitter.expect("a clock rate");
    assert!(jitter.as_micros() < 500, "{jitter:?}");
}

#[test]
fn late_packets_are_no_loss_and_duplicates_nothing() {
    let mut rtp = rtp(7, 100, 5000);
    let mut arrivals: Vec<Arrival> = (0..1000).map(|nth| opus(&mut rtp, nth)).collect();
    for nth in (20..1000).step_by(40) {
        arrivals.swap(nth, nth + 1);
        // Comes once more, at once and later.
        let again = arrivals[nth - 5].clone();
        arrivals[nth - 5 + 1].at = again.at;
    }
    let twice: Vec<Arrival> = (arrivals.iter())
        .enumerate()
        .flat_map(|(nth, arrival)| {
            let back = nth.saturating_sub(30);
            let copies = [Some(arrival), (nth % 7 == 0).then(|| &arrivals[back])];
            copies.into_iter().flatten().cloned()
        })
        .collect();
    let stream = only(&watched(Mode::Full, 0, &twice).streams);
    assert_eq!(
        (stream.received, stream.lost, stream.reordered),
        (1000, 0, 25)
    );
}

#[test]
fn a_sender_that_begins_anew_has_lost_nothing() {
    for (sequence, timestamp) in [(50_000, 99), (500, 4_000_000_000), (33_000, 0)] {
        let mut first = rtp(7, 10_000, 123_456);
        let mut second = rtp(7, sequence, timestamp);
        let mut arrivals: Vec<Arrival> = (0..500).map(|nth| opus(&mut first, nth)).collect();
        arrivals.extend((500..1000).map(|nth| opus(&mut second, nth)));
        let stream = only(&watched(Mode::Full, 0, &arrivals).streams);
        assert_eq!((stream.received, stream.lost), (1000, 0), "{sequence}");
        let jitter = stream.jitter.expect("a clock rate");
        assert!(jitter.as_micros() < 500, "{jitter:?}");
    }
}

/// What a receiver asks for again under the same SSRC comes in runs, far behind.
#[test]
fn old_packets_are_no_beginning() {
    let mut one = rtp(7, 1000, 0);
    let mut arrivals: Vec<Arrival> = (0..1000).map(|nth| opus(&mut one, nth)).collect();
    let old: Vec<Vec<u8>> = (600..610)
        .map(|nth| arrivals[nth].datagram.clone())
        .collect();
    for (nth, datagram) in old.into_iter().enumerate() {
        let at = arrivals[800 + nth].at;
        arrivals.insert(
            800 + nth,
            Arrival {
                at,
                datagram,
                direction: Direction::ToPeer,
            },
        );
    }
    let stream = only(&watched(Mode::Full, 0, &arrivals).streams);
    assert_eq!((stream.received, stream.lost), (1000, 0));
}

#[test]
fn clock_rates_are_inferred() {
    for rate in [8000, 16_000, 24_000, 32_000, 44_100, 48_000] {
        for jitter in [0.1, 10.0] {
            let mut call = Call::new(u64::from(rate), 30);
            let mut link = Link::new(9, 50.0, jitter, NONE);
            let truth = call.audio(Direction::ToClient, &mut link, rate, 20, false);
            let stream = only(&watched(Mode::Full, 0, &call.arrivals()).streams);
            assert_eq!(stream.clock_rate, Some(rate), "{jitter}");
            assert_eq!(stream.media, Media::Audio);
            let measured = stream.jitter.unwrap().as_secs_f64() * 1000.0;
            assert!(
                (measured / truth.jitter - 1.0).abs() < 0.2,
                "{rate}: {measured}"
            );
        }
    }
}

#[test]
fn silence_of_a_speaker_is_neither_loss_nor_jitter() {
    for mode in [Mode::Full, Mode::Sampled] {
        let mut call = Call::new(3, 60);
        let mut link = Link::new(4, 50.0, 2.0, Loss::Random(0.05));
        let truth = call.audio(Direction::ToPeer, &mut link, 48_000, 20, true);
        let quality = watched(mode, 0, &call.arrivals());
        let stream = only(&quality.streams);
        assert_eq!(
            (stream.media, stream.clock_rate),
            (Media::Audio, Some(48_000))
        );
        let loss = quality.flows[TO_PEER].loss_ratio().unwrap();
        let most = if mode == Mode::Full { 0.005 } else { 0.03 };
        assert!(
            (loss - truth.loss()).abs() < most,
            "{loss} for {}",
            truth.loss()
        );
        let jitter = stream.jitter.unwrap().as_secs_f64() * 1000.0;
        assert!(
            (jitter / truth.jitter - 1.0).abs() < 0.15,
            "{jitter} for {}",
            truth.jitter
        );
    }
}

#[test]
fn eight_streams_have_a_place_and_the_rest_takes_turns() {
    let mut senders: Vec<Rtp> = (0..12).map(|nth| rtp(1000 + nth, 7, nth << 28)).collect();
    let mut arrivals = Vec::new();
    for nth in 0..2000 {
        // Four fall silent, four begin.
        let (from, until) = if nth < 1000 { (0, 8) } else { (4, 12) };
        for sender in &mut senders[from..until] {
            arrivals.push(opus(sender, nth));
        }
    }
    let quality = watched(Mode::Full, 0, &arrivals);
    let ssrcs: HashSet<u32> = quality.streams.iter().map(|stream| stream.ssrc).collect();
    assert_eq!(ssrcs, (1004..1012).collect());
    // What had to make room counts on; for a second or two nothing had to.
    let flow = quality.flows[TO_PEER];
    let unseen = arrivals.len() as u64 - flow.received;
    assert!(flow.lost == 0 && unseen <= 4 * 100, "{flow:?}");
    // Twenty at once: most have no place.
    let mut senders: Vec<Rtp> = (0..20).map(|nth| rtp(nth, 7, nth << 27)).collect();
    let mut watch = Watch::new(0);
    for nth in 0..1000 {
        for sender in &mut senders {
            let arrival = opus(sender, nth);
            watch.observe(Mode::Full, arrival.at, arrival.direction, &arrival.datagram);
        }
    }
    let quality = watch.quality(20 * SECOND);
    let whole = (quality.streams.iter()).filter(|stream| stream.received >= 950);
    assert_eq!(whole.count(), 8, "{:?}", quality.streams);
    assert_eq!(quality.flows[TO_PEER].lost, 0);
}

/// Whoever draws SSRCs at random takes no place from those that are streams.
#[test]
fn noise_that_looks_like_rtp_counts_for_nothing() {
    let mut sender = rtp(7, 7, 7);
    let mut watch = Watch::new(0);
    for nth in 0..1000 {
        for more in 0..6 {
            let mut noise = rtp(((nth * 6 + more) as u32).wrapping_mul(2_654_435_761), 1, 1);
            let packet = noise.packet(nth as u32, false, false);
            watch.observe(
                Mode::Full,
                nth * 20 * MILLISECOND,
                Direction::ToPeer,
                &packet,
            );
        }
        let arrival = opus(&mut sender, nth);
        watch.observe(Mode::Full, arrival.at, arrival.direction, &arrival.datagram);
    }
    let quality = watch.quality(20 * SECOND);
    // From when on it was known for a stream.
    assert!(only(&quality.streams).received >= 950);
    assert_eq!(quality.flows[TO_PEER].lost, 0);
}

#[test]
fn both_directions_are_apart_even_with_one_ssrc() {
    let (mut one, mut other) = (rtp(7, 1, 1), rtp(7, 40_000, 1 << 31));
    let mut arrivals = Vec::new();
    for nth in 0..100 {
        arrivals.push(opus(&mut one, nth));
        let mut back = opus(&mut other, nth);
        back.direction = Direction::ToClient;
        arrivals.push(back);
    }
    let quality = watched(Mode::Full, 0, &arrivals);
    let received = [TO_PEER, TO_CLIENT].map(|of| quality.flows[of].received);
    assert_eq!((received, quality.streams.len()), ([100, 100], 2));
}

/// Datagrams of one train, and of one turn of a shard, have one time.
#[test]
fn trains_are_read_as_the_packets_that_they_are() {
    let mut call = Call::new(8, 60);
    let mut link = Link::new(4, 50.0, 1.0, Loss::Random(0.05));
    let truth = call.video(Direction::ToClient, &mut link, 100);
    let mut arrivals = call.arrivals();
    for arrival in &mut arrivals {
        arrival.at = arrival.at.next_multiple_of(2 * MILLISECOND);
    }
    let quality = watched(Mode::Full, 0, &arrivals);
    let flow = &quality.flows[TO_CLIENT];
    assert!((flow.loss_ratio().unwrap() - truth.loss()).abs() < 0.005);
    let video = quality
        .streams
        .iter()
        .find(|stream| stream.media == Media::Video)
        .unwrap();
    assert_eq!((video.clock_rate, video.reordered), (Some(90_000), 0));
}

/// Small pictures: one packet each, as even as audio.
#[test]
fn video_of_single_packets_is_video() {
    let mut sender = rtp(7, 7, 7);
    let arrivals: Vec<Arrival> = (0..300_u32)
        .map(|nth| Arrival {
            at: u64::from(nth) * SECOND / 30,
            direction: Direction::ToPeer,
            datagram: sender.packet(nth * 3000, true, false),
        })
        .collect();
    assert_eq!(
        only(&watched(Mode::Sampled, 0, &arrivals).streams).media,
        Media::Video
    );
}

/// Layers of one camera have clocks of their own; none is a retransmission of another.
#[test]
fn simulcast_is_media() {
    let mut call = Call::new(8, 20);
    for seed in [1, 2, 3] {
        let mut link = Link::new(seed, 50.0, 1.0, NONE);
        call.video(Direction::ToPeer, &mut link, 100);
    }
    let quality = watched(Mode::Full, 0, &call.arrivals());
    let video = quality
        .streams
        .iter()
        .filter(|stream| stream.media == Media::Video);
    assert_eq!(video.count(), 3, "{:?}", quality.streams);
}

#[test]
fn what_was_not_looked_at_is_no_loss() {
    let mut sender = rtp(7, 7, 7);
    let arrivals: Vec<Arrival> = (0..6000).map(|nth| opus(&mut sender, nth)).collect();
    let mut begun = HashSet::new();
    for began in 0..64 {
        let quality = watched(Mode::Sampled, began * 1_000_003, &arrivals);
        let flow = &quality.flows[TO_PEER];
        assert_eq!((flow.lost, flow.recent_loss), (0, Some(0.0)));
        assert!((1500..2000).contains(&flow.received), "{}", flow.received);
        begun.insert(flow.received);
    }
    // They do not all look at once.
    assert!(begun.len() > 8, "{begun:?}");
}

#[test]
fn recent_loss_is_of_the_latest_seconds() {
    for mode in [Mode::Full, Mode::Sampled] {
        let mut sender = rtp(7, 7, 7);
        let mut arrivals: Vec<Arrival> = (0..6000).map(|nth| opus(&mut sender, nth)).collect();
        // Half is lost in the second minute.
        let mut nth = 0;
        arrivals.retain(|_| {
            nth += 1;
            nth < 3000 || nth % 2 == 0
        });
        let mut watch = Watch::new(0);
        let mut seen = Vec::new();
        for arrival in &arrivals {
            watch.observe(mode, arrival.at, arrival.direction, &arrival.datagram);
            if arrival.at >= (55 + 55 * seen.len() as u64) * SECOND && seen.len() < 2 {
                seen.push(
                    watch.quality(arrival.at).flows[TO_PEER]
                        .recent_loss
                        .unwrap(),
                );
            }
        }
        assert!(
            seen[0] < 0.01 && (0.45..0.55).contains(&seen[1]),
            "{seen:?}"
        );
        let later = watch.quality(200 * SECOND).flows[TO_PEER];
        assert!(later.recent_loss.is_none() && later.loss_ratio().unwrap() > 0.2);
    }
}

#[test]
fn a_mode_that_changes_invents_no_loss() {
    let mut sender = rtp(7, 7, 7);
    let mut watch = Watch::new(0);
    let modes = [Mode::Sampled, Mode::Full, Mode::Off];
    for nth in 0..6000 {
        let arrival = opus(&mut sender, nth);
        let mode = modes[(nth / 333 % 3) as usize];
        watch.observe(mode, arrival.at, arrival.direction, &arrival.datagram);
    }
    let flow = watch.quality(120 * SECOND).flows[TO_PEER];
    assert!(flow.received > 1000, "{flow:?}");
    assert_eq!(flow.lost, 0);
}
