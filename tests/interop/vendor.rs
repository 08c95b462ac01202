//! Libraries of credential services, as they are: each asks for credentials, and aiortc calls through the relay with what
//! it got.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::aiortc::{check_call_with, python};
use crate::server::{API_ID, API_SECRET, Options, Server, is_stand_in};
use crate::tools::{one_at_a_time, run};

/// A library, and how its answer is read.
pub struct Library {
    /// The test's name.
    pub test: &'static str,
    /// The Python package.
    pub package: &'static str,
    /// A script that is given base URL, id and secret, and prints a line of JSON.
    pub script: &'static str,
    /// USERNAME and password in the answer, once it has been looked at; the URI has to be in it.
    pub read: fn(&Value, udp: &str) -> [String; 2],
    /// What a wrong secret makes the library say.
    pub refusal: &'static str,
}

/// What it gets carries a call, and without the secret it gets nothing.
pub fn check(library: &Library) {
    let (Some(python), Some(_)) = (
        python(library.test, library.package),
        python(library.test, "aiortc"),
    ) else {
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
        command.args([library.script, &base, API_ID, secret]);
        run(&mut command, server.dir(), Duration::from_secs(60))
    };
    let (status, output) = ask(API_SECRET);
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{output}"
    );
    let answer: Value = serde_json::from_str(output.lines().last().unwrap_or("")).expect("JSON");
    let udp = format!("turn:127.0.0.1:{}?transport=udp", server.port);
    let [username, password] = (library.read)(&answer, &udp);
    check_call_with(&server, &python, &udp, &username, &password);

    let (status, output) = ask("somebody-elses-secret");
    assert!(status.is_some_and(|status| !status.success()), "{output}");
    assert!(output.contains(library.refusal), "{output}");
}

/// A text of the answer.
pub fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
