//! Headless Chromium, driven.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::tools::{Process, now};

/// Chromium without a window or a profile of its own, with a fake camera and microphone, that trusts any certificate,
/// gathers candidates on loopback and asks for nothing from outside.
pub fn command(chromium: &Path, dir: &Path) -> Command {
    let mut command = strict(chromium, dir);
    command.args([
        "--disable-features=WebRtcHideLocalIpsWithMdns",
        "--allow-loopback-in-peer-connection",
        "--ignore-certificate-errors",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--autoplay-policy=no-user-gesture-required",
    ]);
    command
}

/// The same as people have it: it looks at certificates, hides local addresses and asks before it uses a camera. It trusts
/// what `.pki/nssdb` in `dir` does.
pub fn strict(chromium: &Path, dir: &Path) -> Command {
    let mut command = Command::new(chromium);
    command.env("HOME", dir);
    command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]);
    command
}

/// A browser tab driven through the DevTools protocol, over two named pipes in place of the WebSocket.
pub struct Tab {
    requests: File,
    answers: BufReader<File>,
    session: Value,
    last_id: u64,
    // Dropped last, so that the browser outlives its pipes.
    _browser: Process,
}

impl Tab {
    /// Starts `browser`, made by [`command`] or [`strict`] with the same `dir`.
    pub fn open(browser: &Command, dir: &Path, url: &str) -> Tab {
        let (requests, answers) = (dir.join("requests"), dir.join("answers"));
        let made = Command::new("mkfifo")
            .args([&requests, &answers])
            .status()
            .expect("mkfifo");
        assert!(made.success(), "mkfifo");
        // Opened for reading and writing, a pipe neither blocks at open nor ends with one of its writers.
        let mut open = OpenOptions::new();
        open.read(true).write(true);
        let (to_browser, from_browser) = (
            open.open(&requests).expect("pipe"),
            open.open(&answers).expect("pipe"),
        );
        let mut shell = Command::new("sh");
        shell
            .env("HOME", dir)
            .args(["-c", "exec \"$@\" 3<requests 4>answers", "sh"])
            .current_dir(dir);
        shell
            .arg(browser.get_program())
            .args(browser.get_args())
            .arg("--remote-debugging-pipe");
        let browser = Process::start(&mut shell, dir.join("chromium.log"));
        let mut tab = Tab {
            requests: to_browser,
            answers: BufReader::new(from_browser),
            session: Value::Null,
            last_id: 0,
            _browser: browser,
        };
        let target = tab
            .ask("Target.createTarget", json!({ "url": url }))
            .expect("a tab");
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = tab.ask("Target.attachToTarget", attach).expect("a session");
        tab.session = attached["sessionId"].clone();
        tab
    }

    /// The value of an expression in the page; null while the page is on its way, when there is nowhere to look.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let arguments =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask("Runtime.evaluate", arguments);
        answer.map_or(Value::Null, |mut answer| answer["result"]["value"].take())
    }

    /// Leaves the page for another.
    pub fn go(&mut self, url: &str) {
        (self.ask("Page.navigate", json!({ "url": url }))).expect("navigation");
    }

    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": parameters });
        if !self.session.is_null() {
            request["sessionId"] = self.session.clone();
        }
        write!(self.requests, "{request}\0").expect("pipe to the browser");
        let end = now() + Duration::from_secs(30);
        loop {
            assert!(now() < end, "{method}: no answer");
            let mut message = Vec::new();
            self.answers
                .read_until(0, &mut message)
                .expect("pipe from the browser");
            message.pop();
            let mut message: Value =
                serde_json::from_slice(&message).expect("JSON from the browser");
            if message["id"] == self.last_id {
                let error = message["error"].take();
                if !error.is_null() {
                    return Err(error);
                }
                return Ok(message["result"].take());
            }
        }
    }
}
