//! A real Prometheus scrapes a server under load, and the recording rules that the dashboard asks for yield values.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::server::{Options, PASSWORD, Server, USER, is_stand_in};
use crate::tools::{Process, find_tool, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn recording_rules_yield_values_from_a_server_under_load() {
    let test = "prometheus::recording_rules_yield_values_from_a_server_under_load";
    let Some(program) = find_tool(test, "prometheus") else {
        return;
    };
    if is_stand_in() {
        return;
    }
    let server = Server::start(Options::default());
    let port = server.port + 10;
    let prometheus = Prometheus::start(&program, &server, port);

    // A rate begins with a scrape before the load.
    prometheus.wait_for("instance:turn_allocations:sum == 0");

    // Between its own clients, until enough was scraped.
    let mut load = Command::new(env!("CARGO_BIN_EXE_turnix"));
    load.args(["bench", &format!("turn:127.0.0.1:{}", server.port)])
        .args(["--user", USER, "--password", PASSWORD])
        .args(["--direction", "hairpin", "--allocations", "4"])
        .args(["--rate", "200", "--seconds", "60"]);
    let load = Process::start(&mut load, server.dir().join("load.log"));

    let region = r#"{region="eu",node="one"}"#;
    prometheus.wait_for(&format!("instance:turn_allocations:sum{region} == 4"));
    prometheus.wait_for("sum(instance:turn_relayed_bits:rate5m) > 0");
    prometheus.wait_for("sum(instance:turn_relayed_packets:rate5m) > 0");
    drop(load);
    prometheus.wait_for("count(turn_sessions_total) == 5");
    prometheus.wait_for("count(turn_rtt_seconds_bucket) > 10");

    // Someone with a wrong password: the first client of an outage.
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_turnix"));
    wrong
        .args(["bench", &format!("turn:127.0.0.1:{}", server.port)])
        .args(["--user", USER, "--password", "wrong", "--allocations", "1"])
        .args(["--seconds", "1"]);
    let (status, said) = run(&mut wrong, server.dir(), PATIENCE);
    assert!(status.is_some_and(|status| !status.success()), "{said}");
    prometheus.wait_for("instance:turn_allocations_failed:ratio10m > 0 < 1");
    prometheus.wait_for("turn_affected_users == 1");

    let rules = prometheus.rules();
    let groups = rules["groups"].as_array().expect("groups");
    let rules: Vec<&Value> = (groups.iter())
        .flat_map(|group| group["rules"].as_array().expect("rules"))
        .collect();
    assert!(rules.len() > 20, "{} rules", rules.len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

struct Prometheus {
    port: u16,
    _process: Process,
}

impl Prometheus {
    fn start(program: &Path, server: &Server, port: u16) -> Self {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/prometheus");
        let config = format!(
            r#"
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: ["{rules}/rules.yml", "{rules}/alerts.yml"]
scrape_configs:
  - job_name: turnix
    static_configs:
      - targets: ["127.0.0.1:{admin}"]
        labels: {{ node: one, region: eu }}
"#,
            rules = rules.display(),
            admin = server.admin,
        );
        let dir = server.dir();
        std::fs::write(dir.join("prometheus.yml"), config).expect("configuration");
        let mut command = Command::new(program);
        command
            .arg(format!(
                "--config.file={}",
                dir.join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .current_dir(dir);
        let process = Process::start(&mut command, dir.join("prometheus.log"));
        let prometheus = Self {
            port,
            _process: process,
        };
        wait_for("Prometheus is ready", PATIENCE, || ask(port, "/-/ready"));
        prometheus
    }

    /// Waits until `expression` has a sample.
    fn wait_for(&self, expression: &str) {
        let path = format!("/api/v1/query?query={}", encoded(expression));
        wait_for(expression, PATIENCE, || {
            let answer: Value = serde_json::from_str(&ask(self.port, &path)?).ok()?;
            assert_eq!(answer["status"], "success", "{expression}: {answer}");
            let samples = answer["data"]["result"].as_array()?;
            (!samples.is_empty()).then_some(())
        });
    }

    fn rules(&self) -> Value {
        let answer = ask(self.port, "/api/v1/rules").expect("rules");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["data"].clone()
    }
}

/// The body of a 200; `None` while there is none. HTTP/1.0: an answer that comes in no chunks.
fn ask(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    (head.split(' ').nth(1)? == "200").then(|| body.to_owned())
}

/// `text` for a query string.
fn encoded(text: &str) -> String {
    (text.bytes())
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
