//! How calls go over all live allocations, and what metrics say of it.
//!
//! A histogram that held live allocations as they are would shrink as they end, and `rate()` takes what shrinks for a
//! restart. So every live allocation that relays is observed once in [`OBSERVED_EVERY`], and the counts only grow: their
//! rate over any time is how live allocations were spread then, each weighing as long as it lived.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::proto::{MetricFamily, MetricType};

use crate::base::Printable;
use crate::quality::{Ending, Leg, Quality};
use crate::turn::Direction;
use crate::turn::stats::Histogram;

use super::NamedAllocation;
use super::encode::{counter, gauge, histogram, push};

/// How often live allocations are observed.
pub const OBSERVED_EVERY: Duration = Duration::from_secs(10);

/// Bounds of `turn_rtt_seconds`.
pub const RTT_BOUNDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0,
];

/// Bounds of `turn_packet_loss_ratio`; the first holds what loses nothing.
pub const LOSS_BOUNDS: [f64; 9] = [0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/// Bounds of `turn_jitter_seconds`.
pub const JITTER_BOUNDS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2];

/// How the calls of live allocations go at one moment. One that has relayed nothing for [`OBSERVED_EVERY`] counts as a
/// session alone: what it once measured is not how its network is.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Allocations by the word for their session.
    pub sessions: BTreeMap<&'static str, u64>,
    /// Smoothed round-trip times in seconds, by [`Leg`].
    rtt: [Vec<f64>; Leg::ALL.len()],
    /// Shares lost over the last seconds, by [`Direction`].
    loss: [Vec<f64>; Direction::ALL.len()],
    /// Seconds, by [`Direction`].
    jitter: [Vec<f64>; Direction::ALL.len()],
}

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// What nine of ten do not exceed.
    pub p90: f64,
    /// What ninety-nine of a hundred do not exceed.
    pub p99: f64,
    /// The mean.
    pub mean: f64,
    /// How many there are.
    pub count: usize,
}

impl Spread {
    /// That of `values`; `None` if there are none.
    fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mut values = values.to_vec();
        // The nearest rank: the least value that so many do not exceed.
        let mut at = |hundredths: usize| {
            let rank = (count * hundredths).div_ceil(100).max(1) - 1;
            *values.select_nth_unstable_by(rank, f64::total_cmp).1
        };
        let (p50, p90, p99) = (at(50), at(90), at(99));
        Some(Self {
            p50,
            p90,
            p99,
            mean: values.iter().sum::<f64>() / count as f64,
            count,
        })
    }
}

impl Calls {
    /// Adds a live allocation.
    pub fn add(&mut self, quality: &Quality) {
        *self.sessions.entry(quality.session.label()).or_default() += 1;
        let mut idle = quality.idle.iter().flatten();
        if !idle.any(|idle| *idle < OBSERVED_EVERY) {
            return;
        }
        for (values, rtt) in self.rtt.iter_mut().zip(&quality.rtt) {
            values.extend(rtt.map(|rtt| rtt.smoothed.as_secs_f64()));
        }
        for direction in Direction::ALL {
            let flow = &quality.flows[direction as usize];
            self.loss[direction as usize].extend(flow.recent_loss);
            let jitter = flow.jitter.map(|jitter| jitter.as_secs_f64());
            self.jitter[direction as usize].extend(jitter);
        }
    }

    /// Round-trip times between here and that side, in seconds.
    pub fn rtt(&self, leg: Leg) -> Option<Spread> {
        Spread::of(&self.rtt[leg as usize])
    }

    /// Shares of packets that were lost on their way here.
    pub fn loss(&self, direction: Direction) -> Option<Spread> {
        Spread::of(&self.loss[direction as usize])
    }

    /// Jitter of what arrives here, in seconds.
    pub fn jitter(&self, direction: Direction) -> Option<Spread> {
        Spread::of(&self.jitter[direction as usize])
    }
}

impl<'a> Extend<&'a Quality> for Calls {
    fn extend<T: IntoIterator<Item = &'a Quality>>(&mut self, live: T) {
        live.into_iter().for_each(|quality| self.add(quality));
    }
}

/// What was observed of live allocations since the process began.
#[derive(Clone, Debug, Default)]
pub struct CallHistograms {
    rtt: [Histogram<{ RTT_BOUNDS.len() }>; Leg::ALL.len()],
    loss: [Histogram<{ LOSS_BOUNDS.len() }>; Direction::ALL.len()],
    jitter: [Histogram<{ JITTER_BOUNDS.len() }>; Direction::ALL.len()],
}

impl CallHistograms {
    /// Takes one look at all live allocations.
    pub fn observe(&mut self, calls: &Calls) {
        fn each<const N: usize>(
            histograms: &mut [Histogram<N>],
            bounds: &[f64; N],
            values: &[Vec<f64>],
        ) {
            for (histogram, values) in histograms.iter_mut().zip(values) {
                for value in values {
                    histogram.observe(bounds, *value);
                }
            }
        }
        each(&mut self.rtt, &RTT_BOUNDS, &calls.rtt);
        each(&mut self.loss, &LOSS_BOUNDS, &calls.loss);
        each(&mut self.jitter, &JITTER_BOUNDS, &calls.jitter);
    }
}

pub(super) fn families(
    families: &mut Vec<MetricFamily>,
    endings: &[u64; Ending::ALL.len()],
    observed: &CallHistograms,
) {
    push(
        families,
        "turn_sessions_total",
        "Ended allocations of UDP by what became of their calls; unused is ordinary where ICE finds a better way.",
        MetricType::COUNTER,
        (Ending::ALL.into_iter().zip(endings))
            .map(|(ending, count)| counter(&[("result", ending.label())], *count))
            .collect(),
    );
    push(
        families,
        "turn_rtt_seconds",
        "Round-trip times between the relay and either side, of each live allocation once in ten seconds.",
        MetricType::HISTOGRAM,
        (Leg::ALL.into_iter().zip(&observed.rtt))
            .map(|(leg, counts)| histogram(&[("leg", leg.label())], counts, &RTT_BOUNDS))
            .collect(),
    );
    push(
        families,
        "turn_packet_loss_ratio",
        "Share of media packets lost on the way to the relay in the last seconds, of each live allocation once in ten seconds.",
        MetricType::HISTOGRAM,
        (Direction::ALL.into_iter().zip(&observed.loss))
            .map(|(way, counts)| histogram(&[("direction", way.label())], counts, &LOSS_BOUNDS))
            .collect(),
    );
    push(
        families,
        "turn_jitter_seconds",
        "Jitter of media on its way to the relay (RFC 3550), of each live allocation once in ten seconds.",
        MetricType::HISTOGRAM,
        (Direction::ALL.into_iter().zip(&observed.jitter))
            .map(|(way, counts)| histogram(&[("direction", way.label())], counts, &JITTER_BOUNDS))
            .collect(),
    );
}

/// Series of live allocations, as far as anything is known of them.
pub(super) fn per_allocation(families: &mut Vec<MetricFamily>, live: &[NamedAllocation]) {
    let (mut rtt, mut loss, mut jitter) = (Vec::new(), Vec::new(), Vec::new());
    for NamedAllocation { name, view, .. } in live {
        let Some(quality) = &view.quality else {
            continue;
        };
        let user = Printable(&view.user).to_string();
        let labels = |key, value| {
            [
                ("allocation", name.as_str()),
                ("user", user.as_str()),
                (key, value),
            ]
        };
        for (leg, measured) in Leg::ALL.into_iter().zip(&quality.rtt) {
            let seconds = measured.map(|rtt| rtt.smoothed.as_secs_f64());
            rtt.extend(seconds.map(|seconds| gauge(&labels("leg", leg.label()), seconds)));
        }
        for (direction, flow) in Direction::ALL.into_iter().zip(&quality.flows) {
            let labels = labels("direction", direction.label());
            loss.extend(flow.recent_loss.map(|ratio| gauge(&labels, ratio)));
            let seconds = flow.jitter.map(|jitter| jitter.as_secs_f64());
            jitter.extend(seconds.map(|seconds| gauge(&labels, seconds)));
        }
    }
    push(
        families,
        "turn_allocation_rtt_seconds",
        "Smoothed round-trip time between the relay and either side of one live allocation.",
        MetricType::GAUGE,
        rtt,
    );
    push(
        families,
        "turn_allocation_loss_ratio",
        "Share of media packets lost on the way to the relay in the last seconds, of one live allocation.",
        MetricType::GAUGE,
        loss,
    );
    push(
        families,
        "turn_allocation_jitter_seconds",
        "Jitter of media on its way to the relay, of one live allocation.",
        MetricType::GAUGE,
        jitter,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_there_are() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let spread = Spread::of(&hundred).unwrap();
        assert_eq!((spread.p50, spread.p90, spread.p99), (50.0, 90.0, 99.0));
        assert_eq!((spread.mean, spread.count), (50.5, 100));
        let one = Spread::of(&[7.0]).unwrap();
        assert_eq!((one.p50, one.p99), (7.0, 7.0));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn what_is_silent_counts_as_a_session_alone() {
        let mut quality = Quality::default();
        quality.flows[0].recent_loss = Some(0.5);
        quality.idle = [Some(OBSERVED_EVERY), None];
        let mut calls = Calls::default();
        calls.add(&quality);
        assert_eq!(calls.loss(Direction::ToPeer), None);
        quality.idle = [Some(OBSERVED_EVERY), Some(Duration::from_secs(9))];
        calls.add(&quality);
        assert_eq!(calls.loss(Direction::ToPeer).unwrap().p50, 0.5);
        assert_eq!(calls.sessions[quality.session.label()], 2);
    }
}
