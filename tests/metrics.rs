//! The metrics page: names, labels, escaping, and what promtool thinks of it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use turnix::acme::Tally;
use turnix::base::{Clock, Family, Transport};
use turnix::metrics::{
    CallHistograms, Calls, Context, NamedAllocation, Reading, ShardSnapshot, encode,
};
use turnix::quality::score::Signal;
use turnix::quality::{Action, Ending};
use turnix::stream::Passed;
use turnix::turn::police::Limit;
use turnix::turn::stats::{BANDWIDTH_BOUNDS, DURATION_BOUNDS_SECS};
use turnix::turn::{AllocationId, AllocationView, Direction, DropReason, IcmpFate, Path, Traffic};
use turnix::wire::{ErrorCode, Method};

#[path = "common/quality.rs"]
mod quality;

fn context() -> Context {
    Context {
        capacity_ratio: 0.25,
        realms: Vec::new(),
        certificate_expiry_unix: Some(1_900_000_000),
        other_certificates: vec![
            ("www.example.org".into(), 1_900_000_001),
            ("api.example.org".into(), 1_910_000_000),
            ("www.example.org".into(), 1_890_000_000),
        ],
        streams_refused: [7, 0, 0, 0, 1, 2],
        passed: Passed {
            open: 3,
            connections: [9, 1, 2],
            bytes: [1000, 70_000],
        },
        unix_secs: 1_800_000_000,
        records: vec![("file", "ok", 5), ("file", "dropped", 2)],
        acme: Some(Tally {
            issued: 4,
            failed: 3,
            failures: 1,
            next_unix: 1_850_000_000,
        }),
        canary: Vec::new(),
        outages: vec![("node", false), ("credentials", true)],
        admin_refused: [("missing", 3), ("wrong", 2), ("limited", 0)],
        revocations: [0, 2, 0],
        captures: [2, 1],
        api_keys: vec![("web".into(), "minted", 4)],
        external: vec![([10, 0, 0, 5].into(), [203, 0, 113, 7].into(), "aws")],
        external_changes: 2,
        version: "9.9.9",
        calls: CallHistograms::default(),
    }
}

fn busy() -> ShardSnapshot {
    let mut totals = ShardSnapshot::default();
    let stats = &mut totals.stats;
    stats.answered(Method::Allocate, Transport::Udp, Ok(()));
    stats.answered(Method::Allocate, Transport::Udp, Ok(()));
    stats.answered(
        Method::Allocate,
        Transport::Tls,
        Err(ErrorCode::Unauthenticated),
    );
    stats.answered(Method::Unknown, Transport::Tcp, Err(ErrorCode::BadRequest));
    stats.affected.user(1_799_999_940, "alice");
    stats.live[Transport::Udp as usize][Family::V4 as usize] = 2;
    stats.relayed[Direction::ToPeer as usize][Path::Hairpin as usize] = Traffic {
        bytes: 1200,
        packets: 1,
    };
    stats.drop(DropReason::NoPermission);
    stats.policed[Limit::User as usize][Direction::ToClient as usize] = Traffic {
        bytes: 1200,
        packets: 1,
    };
    (stats.new_peers_refused, stats.scan_suspects) = (4, 2);
    stats.icmp[IcmpFate::Told as usize] = 6;
    stats.abuse[Signal::Bulk as usize][Action::Throttle as usize] = 3;
    stats.throttled = 2;
    (
        stats.mobility[0],
        stats.mobility[1 + ErrorCode::BadRequest as usize],
    ) = (3, 1);
    for seconds in [0.5, 5.0, 20.0, 1e6] {
        stats.duration.observe(&DURATION_BOUNDS_SECS, seconds);
    }
    stats.bandwidth[Direction::ToClient as usize].observe(&BANDWIDTH_BOUNDS, 2e6);
    totals.stream_connections[Transport::Tls as usize] = 3;
    totals
}

fn allocation(user: &str) -> NamedAllocation {
    let now = Clock.now();
    NamedAllocation {
        name: "0-1-7".to_owned(),
        shard: 0,
        view: AllocationView {
            id: AllocationId {
                slot: 1,
                generation: 7,
            },
            user: Arc::from(user),
            realm: None,
            scope: turnix::access::Scope::Policy,
            transport: Transport::Tcp,
            client: "198.51.100.7:4000".parse().unwrap(),
            relayed: "203.0.113.7:50000".parse().unwrap(),
            additional: None,
            created_unix: now.unix,
            created: now.mono,
            expires_unix: now.unix + Duration::from_secs(600),
            traffic: [
                Traffic {
                    bytes: 10,
                    packets: 1,
                },
                Traffic {
                    bytes: 20,
                    packets: 2,
                },
            ],
            bits_per_second: [100, 200],
            peak_bits_per_second: [8000, 16000],
            permissions: 1,
            channels: 1,
            permissions_made: 3,
            channels_made: 2,
            relay_transport: turnix::base::RelayTransport::Udp,
            connections: 0,
            quality: None,
        },
    }
}

fn page(totals: ShardSnapshot, live: &[NamedAllocation], context: Context) -> String {
    encode(Reading {
        totals,
        live: live.to_vec(),
        context,
    })
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(
        text.lines().any(|found| found == line),
        "no line {line:?} in:\n{text}"
    );
}

#[test]
fn totals_carry_the_contract_names_and_labels() {
    let text = page(busy(), &[], context());
    for line in [
        "# TYPE turn_allocations gauge",
        r#"turn_allocations{transport="udp",family="ipv4"} 2"#,
        r#"turn_allocations{transport="tls",family="ipv6"} 0"#,
        "# TYPE turn_allocations_total counter",
        r#"turn_allocations_total{transport="udp",result="ok"} 2"#,
        r#"turn_allocations_total{transport="tcp",result="ok"} 0"#,
        r#"turn_allocations_total{transport="tcp",result="508"} 0"#,
        r#"turn_allocations_total{transport="tls",result="401"} 1"#,
        "turn_affected_users 1",
        r#"turn_requests_total{method="unknown",transport="tcp",result="400"} 1"#,
        r#"turn_requests_total{method="binding",transport="udp",result="ok"} 0"#,
        r#"turn_relayed_bytes_total{direction="to_peer",path="hairpin"} 1200"#,
        r#"turn_relayed_packets_total{direction="to_client",path="kernel"} 0"#,
        r#"turn_dropped_packets_total{reason="no_permission"} 1"#,
        r#"turn_policed_bytes_total{limit="user",direction="to_client"} 1200"#,
        r#"turn_policed_packets_total{limit="user",direction="to_client"} 1"#,
        r#"turn_policed_packets_total{limit="total",direction="to_peer"} 0"#,
        "turn_new_peers_refused_total 4",
        r#"turn_mobility_total{result="ok"} 3"#,
        r#"turn_mobility_total{result="400"} 1"#,
        "turn_scan_suspects_total 2",
        r#"turn_abuse_total{signal="bulk",action="throttle"} 3"#,
        r#"turn_abuse_total{signal="many_ports",action="note"} 0"#,
        "turn_abuse_throttled_allocations 2",
        r#"turn_icmp_errors_total{result="told"} 6"#,
        r#"turn_icmp_errors_total{result="rate_limited"} 0"#,
        r#"turn_auth_failures_total{reason="expired"} 0"#,
        r#"turn_stream_connections{transport="tls"} 3"#,
        "turn_peer_connections 0",
        r#"turn_stream_refused_total{reason="address"} 7"#,
        r#"turn_stream_refused_total{reason="protocol"} 1"#,
        r#"turn_stream_refused_total{reason="proxy"} 2"#,
        "turn_certificate_expiry_timestamp_seconds 1900000000",
        r#"turn_certificate_expiry_timestamp_seconds{name="api.example.org"} 1910000000"#,
        r#"turn_certificate_expiry_timestamp_seconds{name="www.example.org"} 1890000000"#,
        "turn_upstream_connections 3",
        r#"turn_upstream_connections_total{result="ok"} 9"#,
        r#"turn_upstream_connections_total{result="unreachable"} 1"#,
        r#"turn_upstream_connections_total{result="limit"} 2"#,
        r#"turn_upstream_bytes_total{direction="to_upstream"} 1000"#,
        r#"turn_upstream_bytes_total{direction="to_client"} 70000"#,
        "turn_segmentation_fallbacks_total 0",
        r#"turn_records_total{sink="file",result="ok"} 5"#,
        r#"turn_acme_orders_total{outcome="issued"} 4"#,
        r#"turn_acme_orders_total{outcome="failed"} 3"#,
        "turn_acme_failures 1",
        "turn_acme_next_order_timestamp_seconds 1850000000",
        r#"turn_records_total{sink="file",result="dropped"} 2"#,
        "turn_capacity_ratio 0.25",
        r#"turn_build_info{version="9.9.9"} 1"#,
    ] {
        has(&text, line);
    }
    for reason in DropReason::ALL {
        assert!(text.contains(&format!("{{reason=\"{}\"}}", reason.label())));
    }
    assert!(text.contains("turn_peer_denied_total{rule="));
    assert!(!text.contains(r#"method="unknown",transport="udp""#));
    assert!(!text.contains(r#"turn_stream_connections{transport="udp"}"#));
    assert!(!text.contains("turn_allocation_bytes_total"));
}

#[test]
fn without_tls_there_is_no_certificate_series() {
    let context = Context {
        certificate_expiry_unix: None,
        other_certificates: Vec::new(),
        acme: None,
        ..context()
    };
    let text = page(ShardSnapshot::default(), &[], context);
    assert!(!text.contains("turn_certificate_expiry"));
    assert!(!text.contains("turn_acme"));
}

#[test]
fn external_addresses_are_shown_with_who_says_so() {
    let text = page(ShardSnapshot::default(), &[], context());
    for line in [
        r#"turn_external_address_info{local="10.0.0.5",external="203.0.113.7",source="aws"} 1"#,
        "turn_external_address_changes_total 2",
    ] {
        assert!(text.lines().any(|have| have == line), "{line}: {text}");
    }
}

#[test]
fn histogram_buckets_are_cumulative() {
    let text = page(busy(), &[], context());
    for line in [
        r#"turn_allocation_duration_seconds_bucket{le="1"} 1"#,
        r#"turn_allocation_duration_seconds_bucket{le="10"} 2"#,
        r#"turn_allocation_duration_seconds_bucket{le="30"} 3"#,
        r#"turn_allocation_duration_seconds_bucket{le="86400"} 3"#,
        r#"turn_allocation_duration_seconds_bucket{le="+Inf"} 4"#,
        "turn_allocation_duration_seconds_count 4",
        "turn_allocation_duration_seconds_sum 1000025.5",
        r#"turn_allocation_bandwidth_bits_per_second_bucket{direction="to_client",le="1000000"} 0"#,
        r#"turn_allocation_bandwidth_bits_per_second_bucket{direction="to_client",le="3000000"} 1"#,
        r#"turn_allocation_bandwidth_bits_per_second_count{direction="to_peer"} 0"#,
    ] {
        has(&text, line);
    }
}

#[test]
fn allocations_have_series_of_their_own_whatever_the_user_is_called() {
    let text = page(
        busy(),
        &[allocation("a\"b\\c\nd{}=,é\r\x1b[2J\u{2028}")],
        context(),
    );
    // Line breaks and escape sequences are spelled out, each with a backslash that the format doubles.
    let labels = r#"{allocation="0-1-7",user="a\"b\\c\\nd{}=,é\\r\\u{1b}[2J\\u{2028}",transport="tcp",direction="to_client"}"#;
    has(&text, &format!("turn_allocation_bytes_total{labels} 20"));
    has(&text, &format!("turn_allocation_packets_total{labels} 2"));
    has(&text, &format!("turn_allocation_bandwidth{labels} 200"));
    assert!(
        text.lines().count()
            == text
                .split(|c: char| c.is_control() || c == '\u{2028}')
                .count()
                - 1
    );
}

/// Alice's call, of which everything is known.
fn watched() -> NamedAllocation {
    let mut named = allocation("alice");
    named.view.quality = Some(Box::new(quality::lossy()));
    named
}

fn observed(looks: usize) -> Context {
    let mut calls = Calls::default();
    calls.add(&quality::lossy());
    let mut context = context();
    (0..looks).for_each(|_| context.calls.observe(&calls));
    context
}

#[test]
fn each_look_at_a_call_counts_in_histograms() {
    let mut totals = busy();
    totals.stats.sessions[Ending::ToPeerOnly as usize] = 4;
    let text = page(totals, &[], observed(3));
    for line in [
        "# TYPE turn_rtt_seconds histogram",
        r#"turn_rtt_seconds_bucket{leg="client",le="0.01"} 0"#,
        r#"turn_rtt_seconds_bucket{leg="client",le="0.025"} 3"#,
        r#"turn_rtt_seconds_bucket{leg="peer",le="0.15"} 0"#,
        r#"turn_rtt_seconds_bucket{leg="peer",le="0.2"} 3"#,
        r#"turn_rtt_seconds_count{leg="peer"} 3"#,
        r#"turn_packet_loss_ratio_bucket{direction="to_peer",le="0"} 3"#,
        r#"turn_packet_loss_ratio_bucket{direction="to_client",le="0.1"} 0"#,
        r#"turn_packet_loss_ratio_bucket{direction="to_client",le="0.2"} 3"#,
        r#"turn_packet_loss_ratio_sum{direction="to_client"} 0.375"#,
        r#"turn_jitter_seconds_bucket{direction="to_peer",le="0.0025"} 3"#,
        r#"turn_jitter_seconds_count{direction="to_client"} 0"#,
        r#"turn_sessions_total{result="to_peer_only"} 4"#,
        r#"turn_sessions_total{result="established"} 0"#,
    ] {
        has(&text, line);
    }
    assert!(!text.contains("turn_allocation_rtt_seconds"));
}

#[test]
fn a_call_has_series_of_what_is_known_of_it() {
    let text = page(busy(), &[watched(), allocation("bob")], context());
    let of = r#"{allocation="0-1-7",user="alice""#;
    for line in [
        format!(r#"turn_allocation_rtt_seconds{of},leg="client"}} 0.023456"#),
        format!(r#"turn_allocation_rtt_seconds{of},leg="peer"}} 0.17"#),
        format!(r#"turn_allocation_loss_ratio{of},direction="to_peer"}} 0"#),
        format!(r#"turn_allocation_loss_ratio{of},direction="to_client"}} 0.125"#),
        format!(r#"turn_allocation_jitter_seconds{of},direction="to_peer"}} 0.00125"#),
    ] {
        has(&text, &line);
    }
    // Of Bob nothing is known, nor of jitter to Alice.
    for metric in ["rtt_seconds", "loss_ratio", "jitter_seconds"] {
        let name = format!("turn_allocation_{metric}{{");
        let series = text.lines().filter(|line| line.starts_with(&name)).count();
        let known = if metric == "jitter_seconds" { 1 } else { 2 };
        assert_eq!(series, known, "{metric}");
    }
}

#[test]
fn promtool_accepts_the_page() {
    let live = [watched(), allocation("a\"b\\c\nd")];
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        println!("skipped: promtool is not installed");
        return;
    };
    let text = page(busy(), &live, observed(2));
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // The name is fixed, and network bandwidth is counted in bits; everything else promtool might say is a fault.
    const TOLERATED: &str =
        r#"turn_allocation_bandwidth_bits_per_second use base unit "bytes" instead of "bits""#;
    let faults: Vec<_> = (said.lines())
        .filter(|line| !line.is_empty() && *line != TOLERATED)
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
}
