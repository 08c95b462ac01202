//! Rules and dashboard: Prometheus reads them, each alert fires when it should, and they name what turnix serves.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::tools::find_tool;
use crate::{read, repository};

const RULES: &str = "conf/prometheus/rules.yml";
const ALERTS: &str = "conf/prometheus/alerts.yml";
const DASHBOARD: &str = "conf/grafana/turnix.json";

fn promtool(test: &str, arguments: &[&str]) {
    let Some(promtool) = find_tool(test, "promtool") else {
        return;
    };
    let output = Command::new(promtool)
        .args(arguments)
        .current_dir(repository("conf/prometheus"))
        .output()
        .expect("promtool");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

#[test]
fn promtool_reads_rules_and_configuration() {
    let test = "monitoring::promtool_reads_rules_and_configuration";
    promtool(
        test,
        &["check", "rules", "--lint-fatal", "rules.yml", "alerts.yml"],
    );
    promtool(test, &["check", "config", "--lint-fatal", "scrape.yml"]);
}

#[test]
fn every_alert_fires_and_does_not() {
    let test = "monitoring::every_alert_fires_and_does_not";
    let timelines = ["tests/alerts.yml", "tests/days.yml"];
    promtool(test, &["test", "rules", timelines[0], timelines[1]]);
    let timelines: String = (timelines.iter())
        .map(|file| read(&format!("conf/prometheus/{file}")))
        .collect();
    let document = read("docs/operations.md");
    for alert in defined(&read(ALERTS), "- alert: ") {
        assert!(document.contains(&alert), "docs/operations.md: no {alert}");
        let silent = format!("{{ alertname: {alert}, ");
        assert!(timelines.contains(&silent), "{alert} is never silent");
        let fires = format!("- alertname: {alert}\n");
        assert!(timelines.contains(&fires), "{alert} never fires");
    }
}

/// What follows `key` in each line that has it.
fn defined(text: &str, key: &str) -> Vec<String> {
    let names: Vec<_> = (text.lines())
        .filter_map(|line| line.trim().strip_prefix(key))
        .map(str::to_owned)
        .collect();
    assert!(!names.is_empty(), "no {key}");
    names
}

/// Every name that begins like a metric of turnix or a recording rule.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c == '_' || c == ':' || c.is_ascii_alphanumeric();
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("turn_") || word.starts_with("instance:"))
        .map(str::to_owned)
        .collect()
}

/// The series of every metric that `metrics/encode.rs` and `metrics/calls.rs` name.
fn served() -> BTreeSet<String> {
    let source = read("src/metrics/encode.rs") + &read("src/metrics/calls.rs");
    let names = (source.split('"')).filter(|text| text.starts_with("turn_") && !text.contains(' '));
    names
        .flat_map(|name| match name {
            "turn_allocation_duration_seconds"
            | "turn_allocation_bandwidth_bits_per_second"
            | "turn_rtt_seconds"
            | "turn_packet_loss_ratio"
            | "turn_jitter_seconds" => ["_bucket", "_sum", "_count"]
                .map(|part| format!("{name}{part}"))
                .to_vec(),
            _ => vec![name.to_owned()],
        })
        .collect()
}

#[test]
fn rules_and_dashboard_name_what_exists() {
    let mut exists = served();
    assert!(exists.contains("turn_allocations_total"));
    exists.extend(defined(&read(RULES), "- record: "));
    for file in [RULES, ALERTS, DASHBOARD] {
        // Panels, comments and tests may name a metric as text; then it has to exist as well.
        let named = metrics_in(&read(file));
        assert!(named.len() > 5, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&exists).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
    }
}

#[test]
fn labels_in_rules_and_dashboard_have_values_that_exist() {
    use turnix::access::AuthFailure;
    use turnix::quality::Ending;
    use turnix::turn::DropReason;
    use turnix::wire::ErrorCode;
    let mut exists: BTreeSet<&str> = ["ok"].into();
    exists.extend(ErrorCode::ALL.map(ErrorCode::label));
    exists.extend(AuthFailure::ALL.map(AuthFailure::label));
    exists.extend(DropReason::ALL.map(DropReason::label));
    exists.extend(Ending::ALL.map(Ending::label));
    let mut seen = 0;
    for file in [RULES, ALERTS, DASHBOARD] {
        let text = read(file).replace("\\\"", "\"");
        for label in ["reason", "result"] {
            for operator in ["=\"", "=~\"", "!~\"", "!=\""] {
                let key = format!("{label}{operator}");
                for part in text.split(&key).skip(1) {
                    let values = part.split('"').next().expect("a value");
                    for value in values.split('|') {
                        assert!(exists.contains(value), "{file}: {key}{values}: {value}");
                        seen += 1;
                    }
                }
            }
        }
    }
    assert!(seen > 20, "{seen} values were found");
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    assert_eq!(dashboard["uid"], "turnix");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut expressions = 0;
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "{} twice", panel["id"]);
        assert!(
            panel["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        let place = &panel["gridPos"];
        let end = place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap();
        assert!(end <= 24, "{} is wider than the page", panel["title"]);
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            assert!(expression.contains("region=~\"$region\""), "{expression}");
            expressions += 1;
        }
    }
    assert!(expressions > 20, "{expressions} expressions");
}
