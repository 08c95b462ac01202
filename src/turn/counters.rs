//! Counters by name, for a process that goes on with them.

use std::collections::BTreeMap;

use crate::access::{AuthFailure, DeniedRule};
use crate::base::Transport;
use crate::quality::score::Signal;
use crate::quality::{Action, Ending};
use crate::wire::{ErrorCode, Method};

use super::icmp::IcmpFate;
use super::police::Limit;
use super::reject::Reject;
use super::stats::{Direction, DropReason, Histogram, Path, Stats};

/// What is not zero.
pub(super) fn counters(stats: &Stats) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    each_counter(&mut stats.clone(), |name, value| {
        if *value != 0 {
            found.insert(name, *value);
        }
    });
    found
}

/// Counters that this version does not have are gone with the version that had them.
pub(super) fn stats(counters: &BTreeMap<String, u64>) -> Stats {
    let mut stats = Stats::default();
    each_counter(&mut stats, |name, value| {
        *value = counters.get(&name).copied().unwrap_or(0);
    });
    stats
}

/// Every counter under a name that outlives its place in a table. Live allocations and connections are counted, not told.
fn each_counter(stats: &mut Stats, mut visit: impl FnMut(String, &mut u64)) {
    let Stats {
        requests,
        live: _,
        relayed,
        dropped,
        auth_failures,
        peer_denied,
        policed,
        new_peers_refused,
        scan_suspects,
        mobility,
        duration,
        bandwidth,
        affected,
        connections: _,
        icmp,
        sessions,
        refused,
        abuse,
        throttled: _,
    } = stats;
    for (signal, row) in Signal::ALL.iter().zip(abuse) {
        for (action, value) in Action::ALL.iter().zip(row) {
            let (signal, action) = (signal.label(), action.label());
            visit(format!("abuse/{signal}/{action}"), value);
        }
    }
    affected.each_word(|name, value| visit(format!("affected/{name}"), value));
    for (limit, row) in Limit::ALL.iter().zip(policed) {
        for (direction, traffic) in Direction::ALL.iter().zip(row) {
            let (limit, direction) = (limit.label(), direction.label());
            visit(
                format!("policed/bytes/{limit}/{direction}"),
                &mut traffic.bytes,
            );
            visit(
                format!("policed/packets/{limit}/{direction}"),
                &mut traffic.packets,
            );
        }
    }
    visit("new_peers_refused".to_owned(), new_peers_refused);
    visit("scan_suspects".to_owned(), scan_suspects);
    let codes = || ErrorCode::ALL.iter().map(|code| code.code());
    for (code, value) in std::iter::once(0).chain(codes()).zip(mobility) {
        visit(format!("mobility/{code}"), value);
    }
    for (method, rows) in Method::ALL.iter().zip(requests) {
        for (transport, row) in Transport::ALL.iter().zip(rows) {
            for (code, value) in std::iter::once(0).chain(codes()).zip(row) {
                let (method, transport) = (method.label(), transport.label());
                visit(format!("request/{method}/{transport}/{code}"), value);
            }
        }
    }
    for (direction, row) in Direction::ALL.iter().zip(relayed) {
        for (path, traffic) in Path::ALL.iter().zip(row) {
            let (direction, path) = (direction.label(), path.label());
            visit(format!("bytes/{direction}/{path}"), &mut traffic.bytes);
            visit(format!("packets/{direction}/{path}"), &mut traffic.packets);
        }
    }
    for (reason, value) in DropReason::ALL.iter().zip(dropped) {
        visit(format!("dropped/{}", reason.label()), value);
    }
    for (reason, value) in AuthFailure::ALL.iter().zip(auth_failures) {
        visit(format!("auth/{}", reason.label()), value);
    }
    for (rule, value) in DeniedRule::ALL.iter().zip(peer_denied) {
        visit(format!("denied/{}", rule.label()), value);
    }
    for (fate, value) in IcmpFate::ALL.iter().zip(icmp) {
        visit(format!("icmp/{}", fate.label()), value);
    }
    for (ending, value) in Ending::ALL.iter().zip(sessions) {
        visit(format!("session/{}", ending.label()), value);
    }
    for (method, row) in Method::ALL.iter().zip(refused) {
        for (reason, value) in Reject::LABELS.iter().zip(row) {
            visit(format!("refused/{}/{reason}", method.label()), value);
        }
    }
    each_bucket("duration", duration, &mut visit);
    for (direction, histogram) in Direction::ALL.iter().zip(bandwidth) {
        each_bucket(direction.label(), histogram, &mut visit);
    }
}

fn each_bucket<const N: usize>(
    name: &str,
    histogram: &mut Histogram<N>,
    visit: &mut impl FnMut(String, &mut u64),
) {
    let Histogram {
        buckets,
        overflow,
        sum,
    } = histogram;
    for (bucket, value) in buckets.iter_mut().enumerate() {
        visit(format!("histogram/{name}/{N}/{bucket}"), value);
    }
    visit(format!("histogram/{name}/{N}/overflow"), overflow);
    let mut bits = sum.to_bits();
    visit(format!("histogram/{name}/{N}/sum"), &mut bits);
    *sum = f64::from_bits(bits);
}
