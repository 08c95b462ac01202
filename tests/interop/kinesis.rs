//! AWS's own library asks for ICE servers by a signed request, and aiortc calls through the relay with what it got.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::aiortc::{check_call_with, python};
use crate::server::{API_ID, API_SECRET, Options, Server, is_stand_in};
use crate::tools::{one_at_a_time, run};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/kinesis_ice.py");

#[test]
fn ice_servers_of_the_unmodified_library_carry_a_call() {
    const TEST: &str = "kinesis::ice_servers_of_the_unmodified_library_carry_a_call";
    let (Some(python), Some(_)) = (python(TEST, "boto3"), python(TEST, "aiortc")) else {
        return;
    };
    let _turn = one_at_a_time();
    let server = Server::start(Options::default());
    if is_stand_in() {
        return;
    }
    let base = format!("http://127.0.0.1:{}", server.port);
    let ask = |secret: &str| {
        let mut command = Command::new(&python);
        command.args([SCRIPT, &base, API_ID, secret]);
        run(&mut command, server.dir(), Duration::from_secs(60))
    };
    let (status, output) = ask(API_SECRET);
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{output}"
    );
    let servers: Value = serde_json::from_str(output.lines().last().unwrap_or("")).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let one = &servers[0];
    let udp = format!("turn:127.0.0.1:{}?transport=udp", server.port);
    let uris = one["Uris"].as_array().expect("URIs");
    assert!(uris.iter().any(|uri| *uri == udp.as_str()), "{servers:#}");
    check_call_with(
        &server,
        &python,
        &udp,
        &text(&one["Username"]),
        &text(&one["Password"]),
    );

    let (status, output) = ask("somebody-elses-secret");
    assert!(status.is_some_and(|status| !status.success()), "{output}");
    assert!(output.contains("NotAuthorizedException"), "{output}");
}
