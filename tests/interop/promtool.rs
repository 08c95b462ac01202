//! Prometheus' own linter reads the metrics of a server that has relayed.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::server::{Options, PASSWORD, Server, USER};
use crate::tools::{find_tool, run};

/// Bandwidth is in bits per second everywhere, as in the configuration.
const ACCEPTED: [&str; 1] =
    [r#"turn_allocation_bandwidth_bits_per_second use base unit "bytes" instead of "bits""#];

#[test]
fn metrics_pass_promtool() {
    let test = "promtool::metrics_pass_promtool";
    let Some(promtool) = find_tool(test, "promtool") else {
        return;
    };
    let Some(uclient) = find_tool(test, "turnutils_uclient") else {
        return;
    };
    let server = Server::start(Options::default());
    let port = server.port.to_string();
    let arguments = [
        "-t",
        "-y",
        "-c",
        "-n",
        "5",
        "-m",
        "2",
        "-u",
        USER,
        "-w",
        PASSWORD,
        "-p",
        &port,
        "127.0.0.1",
    ];
    let (status, output) = run(
        Command::new(uclient).args(arguments),
        server.dir(),
        Duration::from_secs(20),
    );
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{output}"
    );

    let Some(text) = server.metrics_text() else {
        return;
    };
    std::fs::write(server.dir().join("metrics"), &text).expect("metrics file");
    let file = std::fs::File::open(server.dir().join("metrics")).expect("metrics file");
    let lint = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::from(file))
        .output()
        .expect("promtool");
    let said = String::from_utf8_lossy(&lint.stderr);
    // 3: only opinions; anything else means that it could not read the text.
    assert!(
        matches!(lint.status.code(), Some(0 | 3)),
        "promtool check metrics: {said}\n{text}"
    );
    let new: Vec<&str> = said
        .lines()
        .filter(|line| !line.is_empty() && !ACCEPTED.contains(line))
        .collect();
    assert!(new.is_empty(), "promtool check metrics: {new:#?}");
    for name in [
        "turn_build_info",
        "turn_relayed_bytes_total",
        "turn_allocations_total",
        "turn_requests_total",
    ] {
        assert!(text.contains(&format!("\n{name}{{")), "no {name}\n{text}");
    }
}
