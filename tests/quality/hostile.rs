//! Whatever is sent: no panic, and no more memory.

use proptest::collection::vec;
use proptest::prelude::*;
use turnix::base::Direction;
use turnix::quality::{Mode, Watch};

use crate::checks::{REQUEST, SUCCESS, stun};

fn datagram() -> impl Strategy<Value = Vec<u8>> {
    // Few values of each field, so that they meet again.
    let rtp = (
        128..192_u8,
        any::<u8>(),
        prop_oneof![0..40_u16, any::<u16>()],
        prop_oneof![0..100_000_u32, any::<u32>()],
        prop_oneof![0..12_u32, any::<u32>()],
        vec(any::<u8>(), 0..70),
    )
        .prop_map(|(flags, kind, sequence, timestamp, ssrc, rest)| {
            let mut packet = vec![flags, kind];
            packet.extend(sequence.to_be_bytes());
            packet.extend(timestamp.to_be_bytes());
            packet.extend(ssrc.to_be_bytes());
            packet.extend(rest);
            packet
        });
    let check = (
        prop_oneof![Just(REQUEST), Just(SUCCESS), any::<u16>()],
        0..40_u64,
    )
        .prop_map(|(kind, transaction)| stun(kind, transaction));
    let cut =
        (prop_oneof![rtp.clone(), check.clone()], 0..40_usize).prop_map(|(mut some, length)| {
            some.truncate(length);
            some
        });
    prop_oneof![4 => rtp, 2 => check, 1 => cut, 1 => vec(any::<u8>(), 0..60)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn anything_may_come_at_any_time(
        began in any::<u64>(),
        steps in vec(
            (
                prop_oneof![Just(Mode::Off), Just(Mode::Sampled), Just(Mode::Full)],
                // Time stands, goes on, leaps, and goes back.
                prop_oneof![4 => 0..50_000_000_u64, 1 => any::<u64>()],
                any::<bool>(),
                datagram(),
            ),
            1..300,
        ),
    ) {
        let mut watch = Watch::new(began);
        let mut at = began;
        let mut shown = 0;
        for (mode, by, to_client, datagram) in steps {
            at = at.wrapping_add(by);
            let direction = Direction::ALL[usize::from(to_client)];
            watch.observe(mode, at, direction, &datagram);
            shown += 1;
            let quality = watch.quality(at);
            prop_assert!(quality.streams.len() <= 8);
            for flow in quality.flows {
                prop_assert!(flow.received <= shown + 1);
                let recent = flow.recent_loss.unwrap_or(0.0);
                prop_assert!((0.0..=1.0).contains(&recent), "{recent}");
            }
            let answered: u32 = quality.checks.iter().map(|checks| checks.answered).sum();
            prop_assert!(u64::from(answered) <= shown);
        }
    }
}

/// Nothing in it is on a heap, so this is all that it ever takes.
#[test]
fn a_watch_is_small() {
    println!("{} bytes", size_of::<Watch>());
    assert!(size_of::<Watch>() <= 1536);
}
