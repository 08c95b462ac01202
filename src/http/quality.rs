//! How a call goes, as JSON: `quality` of an allocation. `docs/insight.md` says what each figure means.

use std::time::Duration;

use serde::Serialize;

use crate::quality::{Checks, Leg, Quality, Rtt, Stream};
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
}

/// A value for each side of an allocation.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Legs<T> {
    client: T,
    peer: T,
}

impl<T> Legs<T> {
    pub fn of(value: impl Fn(Leg) -> T) -> Self {
        Self {
            client: value(Leg::Client),
            peer: value(Leg::Peer),
        }
    }
}

/// A value for each direction.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Ways<T> {
    to_peer: T,
    to_client: T,
}

impl<T> Ways<T> {
    pub fn of(value: impl Fn(Direction) -> T) -> Self {
        Self {
            to_peer: value(Direction::ToPeer),
            to_client: value(Direction::ToClient),
        }
    }
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
            latest: ms(rtt.latest),
            smoothed: ms(rtt.smoothed),
            least: ms(rtt.least),
            samples: rtt.samples,
        }
    }
}

#[derive(Serialize)]
struct ChecksJson {
    sent: u32,
    repeated: u32,
    answered: u32,
}

impl From<Checks> for ChecksJson {
    fn from(checks: Checks) -> Self {
        Self {
            sent: checks.sent,
            repeated: checks.repeated,
            answered: checks.answered,
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
            jitter_ms: stream.jitter.map(ms),
            clock_rate: stream.clock_rate,
        }
    }
}

impl From<&Quality> for QualityJson {
    fn from(quality: &Quality) -> Self {
        let flow = |direction: Direction| &quality.flows[direction as usize];
        let time = |times: &[Option<Duration>; Direction::ALL.len()], direction: Direction| {
            times[direction as usize].map(ms)
        };
        Self {
            session: quality.session.label(),
            rtt_ms: Legs::of(|leg| quality.rtt[leg as usize].as_ref().map(RttJson::from)),
            loss: Ways::of(|direction| flow(direction).loss_ratio().map(share)),
            recent_loss: Ways::of(|direction| flow(direction).recent_loss.map(share)),
            jitter_ms: Ways::of(|direction| flow(direction).jitter.map(ms)),
            received: Ways::of(|direction| flow(direction).received),
            lost: Ways::of(|direction| flow(direction).lost),
            reordered: Ways::of(|direction| flow(direction).reordered),
            checks: Ways::of(|direction| quality.checks[direction as usize].into()),
            streams: quality.streams.iter().map(StreamJson::from).collect(),
            first_data_ms: Ways::of(|direction| time(&quality.first, direction)),
            idle_ms: Ways::of(|direction| time(&quality.idle, direction)),
            dtls: Ways::of(|direction| quality.dtls[direction as usize]),
            media: Ways::of(|direction| quality.media[direction as usize]),
        }
    }
}

/// Milliseconds, to the microsecond.
pub(super) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A share, to the millionth.
pub(super) fn share(ratio: f64) -> f64 {
    (ratio * 1e6).round() / 1e6
}
