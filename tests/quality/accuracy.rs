//! How exact it is: the first table of that section in `docs/insight.md`, which `--nocapture` prints.

use turnix::base::Direction;
use turnix::quality::{Media, Mode};

use crate::checks::checked;
use crate::link::{Call, Link, Loss};
use crate::{TO_CLIENT, TO_PEER, watched};

const SECONDS: u64 = 120;

const LOSSES: [(&str, Loss); 6] = [
    ("1 %", Loss::Random(0.01)),
    (
        "1 % in bursts",
        Loss::Bursts {
            share: 0.01,
            length: 4.0,
        },
    ),
    ("5 %", Loss::Random(0.05)),
    (
        "5 % in bursts",
        Loss::Bursts {
            share: 0.05,
            length: 4.0,
        },
    ),
    ("20 %", Loss::Random(0.2)),
    (
        "20 % in bursts",
        Loss::Bursts {
            share: 0.2,
            length: 4.0,
        },
    ),
];

#[test]
fn loss_and_jitter_are_those_of_the_link() {
    println!("| loss | media | sent | lost | full | sampled | jitter | full | sampled |");
    println!("| --- | --- | --: | --: | --: | --: | --: | --: | --: |");
    for (nth, (name, loss)) in LOSSES.into_iter().enumerate() {
        for (at, jitter) in [0.5, 3.0, 8.0].into_iter().enumerate() {
            let seed = (nth * 10 + at) as u64;
            let mut call = Call::new(seed, SECONDS);
            let mut up = Link::new(seed + 1000, 40.0, jitter, loss).late(0.01, 45.0);
            let mut down = Link::new(seed + 2000, 40.0, jitter, loss).late(0.01, 3.0);
            let audio = call.audio(Direction::ToPeer, &mut up, 48_000, 20, false);
            let video = call.video(Direction::ToClient, &mut down, 80);
            let arrivals = call.arrivals();
            let full = watched(Mode::Full, 0, &arrivals);
            // Where the windows lie is up to the moment at which a watch began.
            let sampled = watched(Mode::Sampled, seed, &arrivals);
            let cases = [
                ("audio", audio, TO_PEER, Media::Audio),
                ("video", video, TO_CLIENT, Media::Video),
            ];
            for (media, truth, of, kind) in cases {
                let [all, some] = [&full, &sampled].map(|quality| &quality.flows[of]);
                let percent = |flow: &turnix::quality::Flow| flow.loss_ratio().unwrap() * 100.0;
                let millis =
                    |flow: &turnix::quality::Flow| flow.jitter.unwrap().as_secs_f64() * 1000.0;
                println!(
                    "| {name} | {media} | {} | {:.2} % | {:.2} % | {:.2} % | {:.2} ms | {:.2} ms | {:.2} ms |",
                    truth.sent,
                    truth.loss() * 100.0,
                    percent(all),
                    percent(some),
                    truth.jitter,
                    millis(all),
                    millis(some),
                );
                let what = format!("{name} {media} {jitter}");
                let off = |flow| (percent(flow) - truth.loss() * 100.0).abs();
                assert!(off(all) <= 0.5, "{what}: {}", off(all));
                // Three deviations of a sample of this size; losses in bursts of four say as much as a quarter of them.
                let length = if name.contains("bursts") { 7.0 } else { 1.0 };
                let share = truth.loss();
                let looked_at = (some.received + some.lost) as f64;
                let deviation = (share * (1.0 - share) / looked_at * length).sqrt() * 100.0;
                assert!(
                    off(some) <= 3.0 * deviation,
                    "{what}: {}, {deviation}",
                    off(some)
                );
                // A quarter, and four seconds at the beginning.
                let looked_at = looked_at / truth.sent as f64;
                assert!((0.2..0.35).contains(&looked_at), "{what}: {looked_at}");
                let off = |flow| (millis(flow) / truth.jitter - 1.0).abs();
                assert!(
                    off(all) <= 0.1,
                    "{what}: {} of {}",
                    millis(all),
                    truth.jitter
                );
                assert!(
                    off(some) <= 0.2,
                    "{what}: {} of {}",
                    millis(some),
                    truth.jitter
                );
                for quality in [&full, &sampled] {
                    let kinds: Vec<Media> = (quality.streams.iter())
                        .filter(|stream| stream.direction as usize == of)
                        .map(|stream| stream.media)
                        .collect();
                    let auxiliary = kinds.iter().filter(|it| **it == Media::Auxiliary).count();
                    assert!(kinds.contains(&kind), "{what}: {kinds:?}");
                    assert_eq!(auxiliary, kinds.len() - 1, "{what}: {:?}", quality.streams);
                }
            }
        }
    }
}

#[test]
fn round_trip_times_are_those_of_the_links() {
    println!("| client | peer | jitter | measured client | measured peer |");
    println!("| --: | --: | --: | --: | --: |");
    for (nth, (client, peer, jitter, loss)) in [
        (10.0, 30.0, 0.0, 0.0),
        (1.0, 150.0, 0.5, 0.05),
        (80.0, 5.0, 2.0, 0.05),
        (40.0, 40.0, 3.0, 0.2),
    ]
    .into_iter()
    .enumerate()
    {
        for repeats in [false, true] {
            let quality = checked(nth as u64, [client, peer], jitter, loss, repeats);
            let rtt = quality.rtt.map(|rtt| rtt.expect("answered checks"));
            let millis = rtt.map(|rtt| rtt.smoothed.as_secs_f64() * 1000.0);
            println!(
                "| {client} ms | {peer} ms | {jitter} ms | {:.2} ms | {:.2} ms |",
                millis[0], millis[1]
            );
            for (measured, truth) in millis.into_iter().zip([client, peer]) {
                assert!((measured - truth).abs() <= 2.0, "{measured} for {truth}");
            }
        }
    }
}
