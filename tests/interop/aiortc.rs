//! aiortc: two of its peer connections talk over a data channel, through the relay alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::server::{OTHER_PASSWORD, OTHER_REALM, Options, PASSWORD, Server, USER};
use crate::tools::{find_tool, one_at_a_time, run, skip};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/aiortc_call.py");

#[test]
fn call_over_udp() {
    check_call("aiortc::call_over_udp", "udp");
}

#[test]
fn call_over_tcp() {
    check_call("aiortc::call_over_tcp", "tcp");
}

/// The name that TLS asks for tells the realm, and the server names it; its users have no suffix then.
#[test]
fn call_in_a_realm_by_server_name() {
    let Some(python) = python("aiortc::call_in_a_realm_by_server_name", "aiortc") else {
        return;
    };
    let _turn = one_at_a_time();
    let server = Server::start(Options {
        realm: true,
        ..Options::default()
    });
    let uri = format!("turns:localhost:{}?transport=tcp", server.port);
    check_call_with(&server, &python, &uri, USER, OTHER_PASSWORD);
    server.wait_for_metrics("the realm is counted", |metrics| {
        metrics.count("turn_realm_allocations", &[("realm", OTHER_REALM)]) == 1
    });
}

fn check_call(test: &str, transport: &str) {
    let Some(python) = python(test, "aiortc") else {
        return;
    };
    let _turn = one_at_a_time();
    let server = Server::start(Options::default());
    let uri = format!("turn:127.0.0.1:{}?transport={transport}", server.port);
    check_call_with(&server, &python, &uri, USER, PASSWORD);
}

/// Two peer connections call each other through `uri` with this credential.
pub fn check_call_with(server: &Server, python: &Path, uri: &str, username: &str, password: &str) {
    let mut command = Command::new(python);
    command.args([SCRIPT, uri, username, password]);
    // Whose certificate it is to trust.
    command.env("SSL_CERT_FILE", server.dir().join("cert.pem"));
    let (status, output) = run(&mut command, server.dir(), Duration::from_secs(60));
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{output}"
    );
    let result: Value =
        serde_json::from_str(output.lines().last().unwrap_or("")).expect("JSON from the script");
    assert_eq!(result["echoed"], 64, "{result:#}");
    let types = result["candidates"].as_array().expect("candidates");
    assert!(
        !types.is_empty() && types.iter().all(|kind| kind == "relay"),
        "{result:#}"
    );
    assert_eq!(
        result["pairs"],
        serde_json::json!(["relay/relay", "relay/relay"]),
        "{result:#}"
    );

    let bytes = result["bytes"].as_f64().expect("bytes");
    server.wait_for_metrics("the bytes of the data channel are counted", |metrics| {
        metrics.sum("turn_relayed_bytes_total", &[("path", "hairpin")]) >= bytes
    });
    server.wait_until_idle();
}

/// `INTEROP_PYTHON`, or a python3 that has `module`.
pub fn python(test: &str, module: &str) -> Option<PathBuf> {
    let python = match std::env::var_os("INTEROP_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => find_tool(test, "python3")?,
    };
    let found = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    skip(test, module);
    None
}
