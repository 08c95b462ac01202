//! How a call goes, as JSON: `quality` of an allocation. `docs/insight.md` says what each figure means.

use std::time::Duration;

use serde::Serialize;

use crate::quality::shown::{Legs, Ways, millis, share};
use crate::quality::{Checks, Quality, Rtt, Stream};
use crate::turn::Direction;

/// What is known of one allocation. What is not known is `null`.
#[derive(Serialize)]
pub(super) struct QualityJson {
    session: &'static str,
    rtt_ms: Legs<Option<RttJson>>,
    /// Shares, 0.0 to 1.0.
    loss: Ways<Option<f64>>,
    /// Shares over the last seconds, 0.0 to 1.0.
    recent_loss: Ways<Option<f64>>,
    jitter_ms: Ways<Option<f64>>,
    received: Ways<u64>,
    lost: Ways<u64>,
    reordered: Ways<u64>,
    /// By the direction that they were sent in.
    checks: Ways<ChecksJson>,
    streams: Vec<StreamJson>,
    first_data_ms: Ways<Option<f64>>,
    idle_ms: Ways<Option<f64>>,
    dtls: Ways<bool>,
    media: Ways<bool>,
    media_idle_ms: Ways<Option<f64>>,
}

#[derive(Serialize)]
struct RttJson {
    latest: f64,
    smoothed: f64,
    least: f64,
    samples: u32,
}

impl From<&Rtt> for RttJson {
    fn from(rtt: &Rtt) -> Self {
        Self {
            latest: millis(rtt.latest),
            smoothed: millis(rtt.smoothed),
            least: millis(rtt.least),
            samples: rtt.samples,
        }
    }
}

#[derive(Serialize)]
struct ChecksJson {
    sent: u32,
    repeated: u32,
    answered: u32,
    unanswered: u32,
}

impl From<Checks> for ChecksJson {
    fn from(checks: Checks) -> Self {
        Self {
            sent: checks.sent,
            repeated: checks.repeated,
            answered: checks.answered,
            unanswered: checks.unanswered,
        }
    }
}

#[derive(Serialize)]
struct StreamJson {
    ssrc: u32,
    direction: &'static str,
    media: &'static str,
    payload_type: u8,
    received: u64,
    lost: u64,
    reordered: u64,
    jitter_ms: Option<f64>,
    clock_rate: Option<u32>,
}

impl From<&Stream> for StreamJson {
    fn from(stream: &Stream) -> Self {
        Self {
            ssrc: stream.ssrc,
            direction: stream.direction.label(),
            media: stream.media.label(),
            payload_type: stream.payload_type,
            received: stream.received,
            lost: stream.lost,
            reordered: stream.reordered,
            jitter_ms: stream.jitter.map(millis),
            clock_rate: stream.clock_rate,
        }
    }
}

impl From<&Quality> for QualityJson {
    fn from(quality: &Quality) -> Self {
        let flow = |direction: Direction| &quality.flows[direction as usize];
        let time = |times: &[Option<Duration>; Direction::ALL.len()], direction: Direction| {
            times[direction as usize].map(millis)
        };
        Self {
            session: quality.session.label(),
            rtt_ms: Legs::of(|leg| quality.rtt[leg as usize].as_ref().map(RttJson::from)),
            loss: Ways::of(|direction| flow(direction).loss_ratio().map(share)),
            recent_loss: Ways::of(|direction| flow(direction).recent_loss.map(share)),
            jitter_ms: Ways::of(|direction| flow(direction).jitter.map(millis)),
            received: Ways::of(|direction| flow(direction).received),
            lost: Ways::of(|direction| flow(direction).lost),
            reordered: Ways::of(|direction| flow(direction).reordered),
            checks: Ways::of(|direction| quality.checks[direction as usize].into()),
            streams: quality.streams.iter().map(StreamJson::from).collect(),
            first_data_ms: Ways::of(|direction| time(&quality.first, direction)),
            idle_ms: Ways::of(|direction| time(&quality.idle, direction)),
            dtls: Ways::of(|direction| quality.dtls[direction as usize]),
            media: Ways::of(|direction| quality.media[direction as usize]),
            media_idle_ms: Ways::of(|direction| time(&quality.media_idle, direction)),
        }
    }
}
