//! A call of which everything is known, for whatever shows it.

use std::time::Duration;

use turnix::base::Direction;
use turnix::quality::{Checks, Flow, Media, Quality, Rtt, Session, Stream};

/// A call with a lossy way to the client, a far peer, and audio one way.
#[allow(
    clippy::needless_update,
    reason = "what else there may be does not matter here"
)]
pub fn lossy() -> Quality {
    let ms = Duration::from_millis;
    Quality {
        rtt: [
            Some(Rtt {
                latest: Duration::from_micros(24_100),
                smoothed: Duration::from_micros(23_456),
                least: ms(21),
                samples: 9,
            }),
            Some(Rtt {
                latest: ms(180),
                smoothed: ms(170),
                least: ms(160),
                samples: 8,
            }),
        ],
        checks: [
            Checks {
                sent: 12,
                repeated: 2,
                answered: 8,
                unanswered: 3,
            },
            Checks {
                sent: 10,
                repeated: 0,
                answered: 9,
                unanswered: 1,
            },
        ],
        flows: [
            Flow {
                received: 1000,
                lost: 0,
                recent_loss: Some(0.0),
                reordered: 0,
                jitter: Some(Duration::from_micros(1250)),
            },
            Flow {
                received: 950,
                lost: 50,
                recent_loss: Some(0.125),
                reordered: 3,
                jitter: None,
            },
        ],
        streams: vec![Stream {
            ssrc: 0xdead_beef,
            direction: Direction::ToPeer,
            media: Media::Audio,
            payload_type: 111,
            received: 1000,
            lost: 0,
            reordered: 0,
            jitter: Some(Duration::from_micros(1250)),
            clock_rate: Some(48_000),
        }],
        first: [Some(ms(5)), Some(ms(350))],
        idle: [Some(ms(20)), Some(Duration::from_micros(1500))],
        dtls: [true, true],
        media: [true, true],
        session: Session::Established,
        media_idle: [Some(ms(30)), Some(ms(40))],
        ..Quality::default()
    }
}
