//! `turnix top`: piped, and on the terminal that tmux makes.

use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::Value;

use super::server::{Server, text, turnix, until};

/// Two users with traffic until this goes; bob has more of it.
struct Calls(Vec<Child>);

impl Calls {
    fn start(server: &Server) -> Self {
        let uri = server.uri("udp");
        let call = |user: &str, password: &str, rate: &str| {
            turnix(&[
                "bench",
                &uri,
                "--user",
                user,
                "--password",
                password,
                "--direction",
                "hairpin",
                "--allocations",
                "2",
                "--rate",
                rate,
                "--seconds",
                "300",
                "--warmup",
                "0",
            ])
            .spawn()
            .unwrap()
        };
        let calls = Self(vec![
            call("alice", "wonderland", "20"),
            call("bob", "builder", "200"),
        ]);
        until("four allocations that relay", || {
            let all = server.allocations();
            let relays = |one: &Value| one["bits_per_second"]["to_peer"].as_u64() > Some(0);
            (all.len() == 4 && all.iter().all(relays)).then_some(())
        });
        calls
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        for call in &mut self.0 {
            let _ = call.kill();
            let _ = call.wait();
        }
    }
}

fn top(server: &Server, arguments: &[&str]) -> String {
    let admin = server.admin();
    let output = turnix(&[&["top", "--admin", &admin], arguments].concat())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The users in the order of the lines.
fn users(listing: &str) -> Vec<&str> {
    let words = listing
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    words
        .filter(|word| ["alice", "bob"].contains(word))
        .collect()
}

#[test]
fn a_listing_where_there_is_no_terminal() {
    let server = Server::start("");
    assert!(top(&server, &[]).contains(": ok   0 allocations of 0 users"));
    let _calls = Calls::start(&server);
    let listing = top(&server, &["--once"]);
    assert!(
        listing.contains(": ok   4 allocations of 2 users\nto peers "),
        "{listing}"
    );
    assert_eq!(
        users(&listing),
        ["bob", "bob", "alice", "alice"],
        "{listing}"
    );
    assert_eq!(listing.matches("established").count(), 4, "{listing}");
    assert!(
        listing.contains("  rtt ms   loss %  jitter ms"),
        "{listing}"
    );
    let admin = server.admin();
    let all = turnix(&["allocations", "--admin", &admin])
        .output()
        .unwrap();
    let all = text(&all.stdout);
    assert!(
        all.contains("rtt ms") && all.contains("established"),
        "{all}"
    );
    assert_eq!(
        users(&top(&server, &["--sort", "user"])),
        ["alice", "alice", "bob", "bob"]
    );
    assert_eq!(
        users(&top(&server, &["--filter", "LIC"])),
        ["alice", "alice"]
    );
    let json: Value = serde_json::from_str(&top(&server, &["--json", "--filter", "bob"])).unwrap();
    assert_eq!(json["server"]["status"], "ok");
    assert_eq!(json["users"], 2);
    assert!(
        json["bits_per_second"]["to_peer"].as_u64() > Some(0),
        "{json}"
    );
    assert_eq!(json["allocations"].as_array().unwrap().len(), 2);
    assert_eq!(json["allocations"][0]["user"], "bob");
}

#[test]
fn a_server_that_cannot_be_asked() {
    let output = turnix(&["top", "--admin", "http://127.0.0.1:9"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is the server running"));
}

#[test]
fn a_token_over_tls() {
    let token = "a-token-of-more-than-thirty-two-characters";
    let server = Server::start(&format!("token = \"{token}\"\ntls = true"));
    let admin = server
        .admin()
        .replace("http://127.0.0.1", "https://localhost");
    let ca = server.certificate_file();
    let with = ["--admin", &admin, "--ca", ca.to_str().unwrap()];
    for command in [&["top"][..], &["trace"], &["trace", "alice"]] {
        let output = turnix(&[command, &with].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let error = text(&output.stderr);
        assert!(error.contains("give --token"), "{error}");
        let output = turnix(&[command, &with, &["--token", token]].concat())
            .output()
            .unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{command:?}: {error}");
    }
}

/// A terminal of 120 columns that a program runs on.
struct Terminal {
    tmux: PathBuf,
    dir: tempfile::TempDir,
}

impl Terminal {
    /// `None` where there is no tmux, after having said so.
    fn open(test: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let tmux = std::env::split_paths(&path)
            .map(|dir| dir.join("tmux"))
            .find(|file| file.is_file());
        let Some(tmux) = tmux else {
            let line = format!("SKIPPED: {test}: tmux not found");
            let required =
                std::env::var_os("INTEROP_REQUIRE_TOOLS").is_some_and(|value| value == "1");
            assert!(!required, "{line}");
            println!("{line}");
            return None;
        };
        let terminal = Self {
            tmux,
            dir: tempfile::tempdir().unwrap(),
        };
        terminal.tmux(&[
            "new-session",
            "-d",
            "-x",
            "120",
            "-y",
            "24",
            "-s",
            "test",
            "sh",
        ]);
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.tmux)
            .args(["-f", "/dev/null", "-S"])
            .arg(self.dir.path().join("socket"))
            .args(arguments)
            .env_remove("TMUX")
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm-256color")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn types(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "test"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "test"])
    }

    /// Waits until the screen shows what is wanted.
    fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        until(what, || {
            let screen = self.screen();
            wanted(&screen).then_some(screen).or_else(|| {
                // What it shows last is what a failure is about.
                std::fs::write(self.dir.path().join("screen"), self.screen()).ok();
                None
            })
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = std::fs::read_to_string(self.dir.path().join("screen"));
            eprintln!("the screen:\n{}", last.unwrap_or_default());
        }
        let _ = Command::new(&self.tmux)
            .arg("-S")
            .arg(self.dir.path().join("socket"))
            .arg("kill-server")
            .output();
    }
}

#[test]
fn on_a_terminal() {
    let Some(terminal) = Terminal::open("top::on_a_terminal") else {
        return;
    };
    let server = Server::start("");
    let calls = Calls::start(&server);
    let binary = env!("CARGO_BIN_EXE_turnix");
    let line = format!(
        "{binary} top --interval 500ms --admin {}; echo code $?",
        server.admin()
    );
    terminal.types(&[&line, "Enter"]);
    let screen = terminal.shows("the busiest first, with a rate of packets", |screen| {
        users(screen) == ["bob", "bob", "alice", "alice"] && screen.contains("packets/s")
    });
    assert!(screen.contains("4 allocations of 2 users"), "{screen}");
    assert!(
        screen.contains("by rate") && screen.contains("q quit"),
        "{screen}"
    );
    assert!(
        !screen.contains("code"),
        "the screen is all its own: {screen}"
    );

    terminal.types(&["r"]);
    terminal.shows("the other way around", |screen| {
        users(screen) == ["alice", "alice", "bob", "bob"] && screen.contains("by rate, reversed")
    });
    terminal.types(&["s"]);
    terminal.shows("another order", |screen| {
        screen.contains("by rate to peers")
    });
    terminal.types(&["/", "bo"]);
    terminal.shows("what is typed", |screen| {
        screen.contains("filter by user: bo_")
    });
    terminal.types(&["Enter"]);
    terminal.shows("bob alone", |screen| users(screen) == ["bob", "bob"]);
    terminal.types(&["Escape"]);
    terminal.shows("everybody", |screen| users(screen).len() == 4);

    // Narrow: names and rates stay.
    terminal.tmux(&["resize-window", "-t", "test", "-x", "48", "-y", "10"]);
    terminal.shows("what matters", |screen| {
        screen.contains("to client") && !screen.contains("relayed") && users(screen).len() == 4
    });
    terminal.tmux(&["resize-window", "-t", "test", "-x", "120", "-y", "24"]);
    drop(calls);
    drop(server);
    terminal.shows("that the server is gone", |screen| {
        screen.contains("cannot reach the admin listener")
    });
    terminal.types(&["q"]);
    let screen = terminal.shows("the shell as it was", |screen| screen.contains("code 0"));
    assert!(!screen.contains("by rate"), "{screen}");
    // Echo is back: what is typed shows.
    terminal.types(&["echo is back"]);
    terminal.shows("what is typed", |screen| screen.contains("echo is back"));
}

#[test]
fn a_probe_on_a_terminal() {
    let Some(terminal) = Terminal::open("top::a_probe_on_a_terminal") else {
        return;
    };
    let server = Server::start("");
    let binary = env!("CARGO_BIN_EXE_turnix");
    let line = format!(
        "clear; {binary} probe {} --user alice --password wonderland --seconds 3; echo code $?",
        server.uri("udp")
    );
    terminal.types(&[&line, "Enter"]);
    terminal.shows("how far it is", |screen| {
        screen
            .lines()
            .any(|line| line.contains("…     throughput") && line.contains(" of 900"))
    });
    let screen = terminal.shows("the end", |screen| screen.contains("code 0"));
    assert!(screen.contains("no fault: the server answers"), "{screen}");
    assert!(
        !screen.contains('…'),
        "lines that are over have replaced what stood for them: {screen}"
    );
    // Colours, where they are welcome.
    let coloured = terminal.tmux(&["capture-pane", "-e", "-p", "-t", "test"]);
    assert!(coloured.contains("\u{1b}[32mok"), "{coloured}");
}
