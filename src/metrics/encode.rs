//! Writes what shards counted in Prometheus' text format, version 0.0.4.

use std::net::IpAddr;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramProto, LabelPair, Metric, MetricFamily,
    MetricType,
};
use prometheus::{Registry, TextEncoder};

use crate::access::{AuthFailure, DeniedRule, RealmName, RevokedKind};
use crate::acme::Tally;
use crate::base::{Printable, Transport};
use crate::quality::Action;
use crate::quality::score::Signal;
use crate::stream::{Passed, Refusal, Refused};
use crate::turn::police::Limit;
use crate::turn::stats::{
    BANDWIDTH_BOUNDS, DURATION_BOUNDS_SECS, Histogram, OUTCOMES, Outcome, outcome_index,
};
use crate::turn::{Direction, DropReason, IcmpFate, Path, Reject, RelayKind, Stats};
use crate::wire::{ErrorCode, Method};

use super::{CallHistograms, CanaryLook, NamedAllocation, ShardSnapshot};
use super::{calls, passages};

/// What metrics say that no shard counts.
#[derive(Clone, Debug)]
pub struct Context {
    /// Share of the most limiting resource in use, 0.0 to 1.0.
    pub capacity_ratio: f64,
    /// When the served certificate expires, in seconds since the Unix epoch; none without TLS.
    pub certificate_expiry_unix: Option<u64>,
    /// The first name of each certificate for other names, and when it expires, in seconds since the Unix epoch. The
    /// configuration bounds them.
    pub other_certificates: Vec<(String, u64)>,
    /// Connections closed before anybody got them.
    pub streams_refused: Refused,
    /// Connections that are passed through to other servers.
    pub passed: Passed,
    /// The time, in seconds since the Unix epoch.
    pub unix_secs: u64,
    /// Access records: sink, result, count; none where nobody wants them.
    pub records: Vec<(&'static str, &'static str, u64)>,
    /// Orders of certificates; none where none are ordered.
    pub acme: Option<Tally>,
    /// Requests that the admin listener turned away for want of its token, by reason.
    pub admin_refused: [(&'static str, u64); 3],
    /// What is revoked, by kind.
    pub revocations: [u64; RevokedKind::ALL.len()],
    /// What API keys were answered: id, outcome, count. The configuration bounds them.
    pub api_keys: Vec<(String, &'static str, u64)>,
    /// How relay addresses look from outside: local, external, who says so.
    pub external: Vec<(IpAddr, IpAddr, &'static str)>,
    /// How often that has changed.
    pub external_changes: u64,
    /// What the server found when it looked at itself last; none where it does not.
    pub canary: Vec<CanaryLook>,
    /// Every cause of an outage, and whether it is there; none where nobody looks.
    pub outages: Vec<(&'static str, bool)>,
    /// Live allocations of each realm but the default one. The configuration bounds them.
    pub realms: Vec<(RealmName, u32)>,
    /// Captures of packets that were begun: of headers, of whole packets.
    pub captures: [u64; 2],
    /// The version of turnix.
    pub version: &'static str,
    /// What was observed of the calls of live allocations.
    pub calls: CallHistograms,
}

/// One reading of the whole server, for `prometheus` to collect.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Sums over all shards.
    pub totals: ShardSnapshot,
    /// Live allocations that get series of their own; the caller bounds them.
    pub live: Vec<NamedAllocation>,
    /// What no shard counts.
    pub context: Context,
}

impl Collector for Reading {
    /// None: what has series depends on the reading.
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        allocations(&mut families, &self.totals.stats, self.context.unix_secs);
        requests(&mut families, &self.totals.stats);
        relayed(&mut families, &self.totals.stats);
        refusals(&mut families, &self.totals.stats);
        histograms(&mut families, &self.totals.stats);
        server(&mut families, &self.totals, &self.context);
        per_allocation(&mut families, &self.live);
        let endings = &self.totals.stats.sessions;
        calls::families(&mut families, endings, &self.context.calls);
        calls::per_allocation(&mut families, &self.live);
        families
    }
}

/// Writes `reading`: families in the order of their names.
pub fn encode(reading: Reading) -> String {
    let registry = Registry::new();
    let text = registry
        .register(Box::new(reading))
        .and_then(|()| TextEncoder::new().encode_to_string(&registry.gather()));
    match text {
        Ok(text) => text,
        Err(error) => {
            debug_assert!(false, "metrics do not encode: {error}");
            tracing::error!(%error, "metrics could not be written; please report this as a bug of turnix");
            String::new()
        }
    }
}

/// Every outcome of a request, success first.
fn outcomes() -> impl Iterator<Item = Outcome> {
    std::iter::once(Ok(())).chain(ErrorCode::ALL.into_iter().map(Err))
}

fn outcome_label(outcome: Outcome) -> &'static str {
    match outcome {
        Ok(()) => "ok",
        Err(code) => code.label(),
    }
}

fn allocations(families: &mut Vec<MetricFamily>, stats: &Stats, unix_secs: u64) {
    let mut live = Vec::new();
    let mut answered = Vec::new();
    for transport in Transport::ALL {
        for kind in RelayKind::ALL {
            live.push(gauge(
                &[("transport", transport.label()), ("family", kind.label())],
                stats.live[transport as usize][kind as usize] as f64,
            ));
        }
        let row = &stats.requests[Method::Allocate as usize][transport as usize];
        for (outcome, count) in happened(row, &EVERY_ALLOCATE) {
            answered.push(counter(
                &[
                    ("transport", transport.label()),
                    ("result", outcome_label(outcome)),
                ],
                count,
            ));
        }
    }
    push(
        families,
        "turn_allocations",
        "Live allocations by the client's transport and the relayed address's family, dual if it has one in each.",
        MetricType::GAUGE,
        live,
    );
    push(
        families,
        "turn_allocations_total",
        "Answered Allocate requests: ok, or the error code. 401 is the ordinary first step of every client.",
        MetricType::COUNTER,
        answered,
    );
    let moves = happened(&stats.mobility, &[Ok(())]);
    push(
        families,
        "turn_mobility_total",
        "Refresh requests with a mobility ticket that were authentic: ok, an allocation has moved, or the error code.",
        MetricType::COUNTER,
        moves
            .map(|(outcome, count)| counter(&[("result", outcome_label(outcome))], count))
            .collect(),
    );
    push(
        families,
        "turn_affected_users",
        "Users who failed to get an allocation in the last ten minutes, and addresses where nobody knows the user; an estimate above some dozens.",
        MetricType::GAUGE,
        vec![gauge(&[], stats.affected.count(unix_secs) as f64)],
    );
}

/// What an Allocate has series for before it happens: a rate does not see the first step of a series that was not there,
/// and these are what an outage begins with.
const EVERY_ALLOCATE: [Outcome; 4] = [
    Ok(()),
    Err(ErrorCode::AllocationQuotaReached),
    Err(ErrorCode::ServerError),
    Err(ErrorCode::InsufficientCapacity),
];

/// The outcomes worth a series: those that happened, and `always`.
fn happened<'a>(
    row: &'a [u64; OUTCOMES],
    always: &'a [Outcome],
) -> impl Iterator<Item = (Outcome, u64)> + 'a {
    outcomes().filter_map(move |outcome| {
        let count = row[outcome_index(outcome)];
        (count > 0 || always.contains(&outcome)).then_some((outcome, count))
    })
}

fn requests(families: &mut Vec<MetricFamily>, stats: &Stats) {
    let mut metrics = Vec::new();
    for method in Method::ALL {
        // These are never requests, or never succeed.
        let always: &[Outcome] = match method {
            Method::Send | Method::Data | Method::Unknown => &[],
            _ => &[Ok(())],
        };
        for transport in Transport::ALL {
            let row = &stats.requests[method as usize][transport as usize];
            for (outcome, count) in happened(row, always) {
                metrics.push(counter(
                    &[
                        ("method", method.label()),
                        ("transport", transport.label()),
                        ("result", outcome_label(outcome)),
                    ],
                    count,
                ));
            }
        }
    }
    push(
        families,
        "turn_requests_total",
        "Answered requests: ok, or the error code.",
        MetricType::COUNTER,
        metrics,
    );
}

fn relayed(families: &mut Vec<MetricFamily>, stats: &Stats) {
    let mut bytes = Vec::new();
    let mut packets = Vec::new();
    for direction in Direction::ALL {
        for path in Path::ALL {
            let labels = [("direction", direction.label()), ("path", path.label())];
            let traffic = stats.relayed[direction as usize][path as usize];
            bytes.push(counter(&labels, traffic.bytes));
            packets.push(counter(&labels, traffic.packets));
        }
    }
    push(
        families,
        "turn_relayed_bytes_total",
        "Application data relayed, without headers of TURN, UDP and IP.",
        MetricType::COUNTER,
        bytes,
    );
    push(
        families,
        "turn_relayed_packets_total",
        "Datagrams of application data relayed.",
        MetricType::COUNTER,
        packets,
    );
}

fn refusals(families: &mut Vec<MetricFamily>, stats: &Stats) {
    push(
        families,
        "turn_dropped_packets_total",
        "Datagrams that went no further, by reason.",
        MetricType::COUNTER,
        (DropReason::ALL.into_iter().zip(stats.dropped))
            .map(|(reason, count)| counter(&[("reason", reason.label())], count))
            .collect(),
    );
    policed(families, stats);
    abuse(families, stats);
    push(
        families,
        "turn_auth_failures_total",
        "Requests that failed authentication, by reason. \"missing\" is the ordinary first step of every client.",
        MetricType::COUNTER,
        (AuthFailure::ALL.into_iter().zip(stats.auth_failures))
            .map(|(reason, count)| counter(&[("reason", reason.label())], count))
            .collect(),
    );
    push(
        families,
        "turn_peer_denied_total",
        "Peers that policy refused, by rule.",
        MetricType::COUNTER,
        (DeniedRule::ALL.into_iter().zip(stats.peer_denied))
            .map(|(rule, count)| counter(&[("rule", rule.label())], count))
            .collect(),
    );
}

fn abuse(families: &mut Vec<MetricFamily>, stats: &Stats) {
    let counts = Signal::ALL.into_iter().flat_map(|signal| {
        [Action::Note, Action::Throttle, Action::End].map(|action| {
            let labels = [("signal", signal.label()), ("action", action.label())];
            counter(&labels, stats.abuse[signal as usize][action as usize])
        })
    });
    push(
        families,
        "turn_abuse_total",
        "Signals of allocations that looked like abuse, by what followed (quality.abuse): each once for an allocation.",
        MetricType::COUNTER,
        counts.collect(),
    );
    push(
        families,
        "turn_abuse_throttled_allocations",
        "Live allocations that get no more than quality.abuse_bandwidth, because they look like abuse.",
        MetricType::GAUGE,
        vec![gauge(&[], stats.throttled as f64)],
    );
}

fn policed(families: &mut Vec<MetricFamily>, stats: &Stats) {
    let mut bytes = Vec::new();
    let mut packets = Vec::new();
    for limit in Limit::ALL {
        for direction in Direction::ALL {
            let labels = [("limit", limit.label()), ("direction", direction.label())];
            let traffic = stats.policed[limit as usize][direction as usize];
            bytes.push(counter(&labels, traffic.bytes));
            packets.push(counter(&labels, traffic.packets));
        }
    }
    push(
        families,
        "turn_policed_bytes_total",
        "Application data dropped for want of bandwidth, by the limit of limits.bandwidth… that it was over.",
        MetricType::COUNTER,
        bytes,
    );
    push(
        families,
        "turn_policed_packets_total",
        "Datagrams dropped for want of bandwidth; they are among turn_dropped_packets_total as well.",
        MetricType::COUNTER,
        packets,
    );
    push(
        families,
        "turn_new_peers_refused_total",
        "Peers that allocations were not let address so soon (limits.new_peers_per_second).",
        MetricType::COUNTER,
        vec![counter(&[], stats.new_peers_refused)],
    );
    push(
        families,
        "turn_scan_suspects_total",
        "Allocations that addressed hundreds of peers who never answered.",
        MetricType::COUNTER,
        vec![counter(&[], stats.scan_suspects)],
    );
    push(
        families,
        "turn_icmp_errors_total",
        "ICMP errors about datagrams to peers, by whether the client was told, or why not.",
        MetricType::COUNTER,
        (IcmpFate::ALL.into_iter().zip(stats.icmp))
            .map(|(fate, count)| counter(&[("result", fate.label())], count))
            .collect(),
    );
    push(
        families,
        "turn_requests_refused_total",
        "Requests that were answered with an error, by method and reason (docs/insight.md); a challenge is \"missing\".",
        MetricType::COUNTER,
        (Method::ALL.into_iter().zip(stats.refused))
            .flat_map(|(method, row)| {
                (Reject::LABELS.into_iter().zip(row))
                    .filter(|(_, count)| *count > 0)
                    .map(move |(reason, count)| {
                        counter(&[("method", method.label()), ("reason", reason)], count)
                    })
            })
            .collect(),
    );
}

fn histograms(families: &mut Vec<MetricFamily>, stats: &Stats) {
    push(
        families,
        "turn_allocation_duration_seconds",
        "How long ended allocations lived.",
        MetricType::HISTOGRAM,
        vec![histogram(&[], &stats.duration, &DURATION_BOUNDS_SECS)],
    );
    push(
        families,
        "turn_allocation_bandwidth_bits_per_second",
        "Mean bandwidth of ended allocations over their life.",
        MetricType::HISTOGRAM,
        (Direction::ALL.into_iter().zip(&stats.bandwidth))
            .map(|(direction, bandwidth)| {
                histogram(
                    &[("direction", direction.label())],
                    bandwidth,
                    &BANDWIDTH_BOUNDS,
                )
            })
            .collect(),
    );
}

fn server(families: &mut Vec<MetricFamily>, totals: &ShardSnapshot, context: &Context) {
    push(
        families,
        "turn_stream_connections",
        "Open TURN connections over byte streams, and DTLS sessions.",
        MetricType::GAUGE,
        (Transport::ALL.into_iter().zip(totals.stream_connections))
            .filter(|(transport, _)| transport.proves_address())
            .map(|(transport, open)| gauge(&[("transport", transport.label())], open as f64))
            .collect(),
    );
    push(
        families,
        "turn_peer_connections",
        "Connections of TCP allocations with peers, those that wait to be made or bound included.",
        MetricType::GAUGE,
        vec![gauge(&[], totals.stats.connections as f64)],
    );
    push(
        families,
        "turn_stream_refused_total",
        "TCP connections closed before they became TURN or HTTP clients, by reason; DTLS sessions of an address that has enough.",
        MetricType::COUNTER,
        (Refusal::ALL.into_iter().zip(context.streams_refused))
            .map(|(reason, count)| counter(&[("reason", reason.label())], count))
            .collect(),
    );
    passages::families(families, &context.passed);
    push(
        families,
        "turn_admin_auth_failures_total",
        "Requests to the admin listener without its token, by reason.",
        MetricType::COUNTER,
        (context.admin_refused.into_iter())
            .map(|(reason, count)| counter(&[("reason", reason)], count))
            .collect(),
    );
    push(
        families,
        "turn_captures_total",
        "Captures of packets that were begun, by whether they had payload.",
        MetricType::COUNTER,
        (["false", "true"].into_iter().zip(context.captures))
            .map(|(payload, count)| counter(&[("payload", payload)], count))
            .collect(),
    );
    push(
        families,
        "turn_revocations",
        "Credentials, users and API keys that are revoked.",
        MetricType::GAUGE,
        (RevokedKind::ALL.into_iter().zip(context.revocations))
            .map(|(kind, count)| gauge(&[("kind", kind.label())], count as f64))
            .collect(),
    );
    push(
        families,
        "turn_api_credentials_total",
        "Requests for credentials by API key and outcome.",
        MetricType::COUNTER,
        (context.api_keys.iter())
            .map(|(key, result, count)| {
                let key = Printable(key).to_string();
                counter(&[("key", &key), ("result", result)], *count)
            })
            .collect(),
    );
    push(
        families,
        "turn_certificate_expiry_timestamp_seconds",
        "When the served certificate expires, in seconds since the Unix epoch; by name for those of other names.",
        MetricType::GAUGE,
        (context.certificate_expiry_unix.into_iter())
            .map(|expiry| gauge(&[], expiry as f64))
            .chain(passages::certificates(&context.other_certificates))
            .collect(),
    );
    push(
        families,
        "turn_acme_orders_total",
        "Orders of certificates by ACME and what became of them.",
        MetricType::COUNTER,
        (context.acme.into_iter())
            .flat_map(|tally| [("issued", tally.issued), ("failed", tally.failed)])
            .map(|(outcome, count)| counter(&[("outcome", outcome)], count))
            .collect(),
    );
    push(
        families,
        "turn_acme_failures",
        "Orders that failed since the last certificate was issued, across restarts.",
        MetricType::GAUGE,
        (context.acme.into_iter())
            .map(|tally| gauge(&[], tally.failures as f64))
            .collect(),
    );
    push(
        families,
        "turn_acme_next_order_timestamp_seconds",
        "When the next certificate is to be ordered, in seconds since the Unix epoch.",
        MetricType::GAUGE,
        (context.acme.into_iter())
            .map(|tally| gauge(&[], tally.next_unix as f64))
            .collect(),
    );
    push(
        families,
        "turn_external_address_info",
        "Always 1; the labels name a local relay address, the address that clients and peers use instead, and who says so.",
        MetricType::GAUGE,
        (context.external.iter())
            .map(|(local, external, source)| {
                let (local, external) = (local.to_string(), external.to_string());
                let labels = [
                    ("local", local.as_str()),
                    ("external", external.as_str()),
                    ("source", source),
                ];
                gauge(&labels, 1.0)
            })
            .collect(),
    );
    push(
        families,
        "turn_external_address_changes_total",
        "Relay addresses that came, went, or look another from outside, while the server runs.",
        MetricType::COUNTER,
        vec![counter(&[], context.external_changes)],
    );
    push(
        families,
        "turn_records_total",
        "Access records by sink and what became of them there.",
        MetricType::COUNTER,
        (context.records.iter())
            .map(|(sink, result, count)| counter(&[("sink", sink), ("result", result)], *count))
            .collect(),
    );
    push(
        families,
        "turn_segmentation_fallbacks_total",
        "Sockets for which the kernel or the device refused UDP_SEGMENT.",
        MetricType::COUNTER,
        vec![counter(&[], totals.segmentation_fallbacks)],
    );
    push(
        families,
        "turn_canary_success",
        "Whether the server's last look at itself by every port of a transport came through a relay and back: 1 or 0.",
        MetricType::GAUGE,
        (context.canary.iter())
            .map(|look| {
                let success = if look.success { 1.0 } else { 0.0 };
                gauge(&[("transport", look.transport.label())], success)
            })
            .collect(),
    );
    push(
        families,
        "turn_canary_duration_seconds",
        "What the slowest of the last looks of a transport that came through took, from its first packet on.",
        MetricType::GAUGE,
        (context.canary.iter())
            .filter_map(|look| {
                let seconds = look.duration?.as_secs_f64();
                Some(gauge(&[("transport", look.transport.label())], seconds))
            })
            .collect(),
    );
    push(
        families,
        "turn_outage",
        "Whether there is an outage, by whose fault it is: 1 or 0.",
        MetricType::GAUGE,
        (context.outages.iter())
            .map(|(cause, there)| gauge(&[("cause", cause)], if *there { 1.0 } else { 0.0 }))
            .collect(),
    );
    push(
        families,
        "turn_capacity_ratio",
        "Share of the most limiting resource in use, 0 to 1.",
        MetricType::GAUGE,
        vec![gauge(&[], context.capacity_ratio)],
    );
    push(
        families,
        "turn_realm_allocations",
        "Live allocations of each realm but the default one.",
        MetricType::GAUGE,
        (context.realms.iter())
            .map(|(realm, live)| gauge(&[("realm", realm.as_str())], f64::from(*live)))
            .collect(),
    );
    push(
        families,
        "turn_build_info",
        "Always 1; the label names the version.",
        MetricType::GAUGE,
        vec![gauge(&[("version", context.version)], 1.0)],
    );
}

fn per_allocation(families: &mut Vec<MetricFamily>, live: &[NamedAllocation]) {
    let mut bytes = Vec::new();
    let mut packets = Vec::new();
    let mut bandwidth = Vec::new();
    for NamedAllocation { name, view, .. } in live {
        let user = Printable(&view.user).to_string();
        for direction in Direction::ALL {
            let labels = [
                ("allocation", name.as_str()),
                ("user", user.as_str()),
                ("transport", view.transport.label()),
                ("direction", direction.label()),
            ];
            let traffic = view.traffic[direction as usize];
            bytes.push(counter(&labels, traffic.bytes));
            packets.push(counter(&labels, traffic.packets));
            let rate = view.bits_per_second[direction as usize];
            bandwidth.push(gauge(&labels, rate as f64));
        }
    }
    push(
        families,
        "turn_allocation_bytes_total",
        "Application data of one live allocation; only the busiest have series of their own.",
        MetricType::COUNTER,
        bytes,
    );
    push(
        families,
        "turn_allocation_packets_total",
        "Datagrams of one live allocation; only the busiest have series of their own.",
        MetricType::COUNTER,
        packets,
    );
    push(
        families,
        "turn_allocation_bandwidth",
        "Bits per second of one live allocation over the last 10 seconds.",
        MetricType::GAUGE,
        bandwidth,
    );
}

pub(super) fn push(
    families: &mut Vec<MetricFamily>,
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: Vec<Metric>,
) {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    families.push(family);
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}

pub(super) fn counter(labels: &[(&str, &str)], count: u64) -> Metric {
    let mut value = Counter::default();
    value.set_value(count as f64);
    let mut metric = labelled(labels);
    metric.set_counter(value);
    metric
}

pub(super) fn gauge(labels: &[(&str, &str)], level: f64) -> Metric {
    let mut value = Gauge::default();
    value.set_value(level);
    let mut metric = labelled(labels);
    metric.set_gauge(value);
    metric
}

pub(super) fn histogram<const N: usize>(
    labels: &[(&str, &str)],
    counts: &Histogram<N>,
    bounds: &[f64; N],
) -> Metric {
    let mut cumulative = 0;
    let buckets = (counts.buckets.into_iter().zip(bounds)).map(|(count, bound)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut value = HistogramProto::default();
    value.set_bucket(buckets.collect());
    value.set_sample_count(cumulative + counts.overflow);
    value.set_sample_sum(counts.sum);
    let mut metric = labelled(labels);
    metric.set_histogram(value);
    metric
}
