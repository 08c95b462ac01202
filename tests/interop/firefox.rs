//! Headless Firefox, driven through its Marionette protocol: numbered commands in JSON over TCP, each with its length in front.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::network::trust;
use crate::tools::{Process, wait_for};

const STARTUP: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(90);

/// No questions, nothing from outside.
const PREFERENCES: [(&str, &str); 11] = [
    ("marionette.port", "0"),
    ("app.update.enabled", "false"),
    ("browser.aboutwelcome.enabled", "false"),
    ("browser.safebrowsing.downloads.remote.enabled", "false"),
    ("browser.shell.checkDefaultBrowser", "false"),
    ("browser.startup.homepage_override.mstone", "\"ignore\""),
    ("datareporting.policy.dataSubmissionEnabled", "false"),
    ("extensions.systemAddon.update.enabled", "false"),
    ("network.captive-portal-service.enabled", "false"),
    ("network.connectivity-service.enabled", "false"),
    ("toolkit.telemetry.enabled", "false"),
];

/// A window without a screen.
pub struct Firefox {
    connection: BufReader<TcpStream>,
    last_id: u64,
    // Dropped last, so that the browser outlives its connection.
    _browser: Process,
}

impl Firefox {
    /// Starts `firefox` with a profile in `dir`, which trusts the authority in `authority`.
    pub fn start(firefox: &Path, dir: &Path, authority: &Path) -> Firefox {
        Self::start_with(firefox, dir, authority, &[])
    }

    /// The same with `more` preferences: names and values as they are written in JavaScript.
    pub fn start_with(
        firefox: &Path,
        dir: &Path,
        authority: &Path,
        more: &[(&str, &str)],
    ) -> Firefox {
        let profile = dir.join("firefox");
        trust(&profile, authority, "CT,,");
        let preferences: String = (PREFERENCES.iter().chain(more))
            .map(|(name, value)| format!("user_pref(\"{name}\", {value});\n"))
            .collect();
        std::fs::write(profile.join("user.js"), preferences).expect("profile");
        let mut command = Command::new(firefox);
        command.env("HOME", dir);
        command.args(["--headless", "--marionette", "--no-remote", "--profile"]);
        command.arg(&profile);
        let browser = Process::start(&mut command, dir.join("firefox.log"));
        let stream = wait_for("Firefox", STARTUP, || {
            let port = std::fs::read_to_string(profile.join("MarionetteActivePort")).ok()?;
            TcpStream::connect((Ipv4Addr::LOCALHOST, port.trim().parse().ok()?)).ok()
        });
        stream.set_read_timeout(Some(ANSWER)).expect("a time limit");
        let mut firefox = Firefox {
            connection: BufReader::new(stream),
            last_id: 0,
            _browser: browser,
        };
        let hello = firefox.read();
        assert_eq!(hello["marionetteProtocol"], 3, "{hello}");
        firefox.ask("WebDriver:NewSession", json!({}));
        let limit = u64::try_from(ANSWER.as_millis()).expect("a short time");
        firefox.ask("WebDriver:SetTimeouts", json!({ "script": limit }));
        firefox
    }

    /// Loads a page.
    pub fn go(&mut self, url: &str) {
        self.ask("WebDriver:Navigate", json!({ "url": url }));
    }

    /// Runs the body of a function in the page, where `window` is the page's own and `done(value)` ends it.
    pub fn run(&mut self, script: &str) -> Value {
        let script = format!(
            "((window, done) => {{ {script} }})(window.wrappedJSObject ?? window, arguments[0])"
        );
        self.ask(
            "WebDriver:ExecuteAsyncScript",
            json!({ "script": script, "args": [] }),
        )["value"]
            .take()
    }

    fn ask(&mut self, command: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let message = json!([0, self.last_id, command, parameters]).to_string();
        write!(self.connection.get_mut(), "{}:{message}", message.len()).expect("Firefox listens");
        let mut answer = self.read();
        assert_eq!(answer[1], self.last_id, "{answer}");
        assert!(answer[2].is_null(), "{command}: {answer:#}");
        answer[3].take()
    }

    fn read(&mut self) -> Value {
        let mut length = Vec::new();
        (self.connection.read_until(b':', &mut length)).expect("Firefox answers");
        length.pop();
        let length = String::from_utf8(length).expect("a length");
        let mut message = vec![0; length.parse().expect("a length")];
        self.connection.read_exact(&mut message).expect("an answer");
        serde_json::from_slice(&message).expect("JSON from Firefox")
    }
}
