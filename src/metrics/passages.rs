//! What a port that is shared with others has to tell: connections passed through, certificates for other names.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::encode::{counter, gauge, push};
use crate::stream::{Outcome, Passed, Way};

/// Connections that are passed through to other servers.
pub(super) fn families(families: &mut Vec<MetricFamily>, passed: &Passed) {
    push(
        families,
        "turn_upstream_connections",
        "Open connections that are passed through to another server.",
        MetricType::GAUGE,
        vec![gauge(&[], f64::from(passed.open))],
    );
    push(
        families,
        "turn_upstream_connections_total",
        "Connections for another server behind the same port, by what became of them.",
        MetricType::COUNTER,
        (Outcome::ALL.into_iter().zip(passed.connections))
            .map(|(outcome, count)| counter(&[("result", outcome.label())], count))
            .collect(),
    );
    push(
        families,
        "turn_upstream_bytes_total",
        "Bytes passed through to and from another server.",
        MetricType::COUNTER,
        (Way::ALL.into_iter().zip(passed.bytes))
            .map(|(way, count)| counter(&[("direction", way.label())], count))
            .collect(),
    );
}

/// When certificates for other names expire, by their first name; the first to do so where several share it.
pub(super) fn certificates(others: &[(String, u64)]) -> impl Iterator<Item = Metric> {
    let mut earliest = BTreeMap::new();
    for (name, expiry) in others {
        let known = earliest.entry(name.as_str()).or_insert(*expiry);
        *known = (*known).min(*expiry);
    }
    (earliest.into_iter()).map(|(name, expiry)| gauge(&[("name", name)], expiry as f64))
}
