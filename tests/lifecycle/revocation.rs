//! Revocation of a process that is restarted and reloaded, from a shell and by files.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::client::Client;
use super::common::wire::Request;
use super::process::{CONFIG, Process, http_with};
use super::server::{now, until};

const KEY: &str = "a key that is long enough";

/// A second, and patience with a machine that has other things to do.
const PROMPT: Duration = Duration::from_secs(6);

fn with_key() -> String {
    let key = format!("\n[[api.keys]]\nid = \"web\"\nsecret = \"{KEY}\"\n");
    CONFIG.to_owned() + &key
}

fn turnix(process: &Process, arguments: &[&str]) -> Output {
    let admin = format!("http://{}", process.admin());
    Command::new(env!("CARGO_BIN_EXE_turnix"))
        .arg("revoke")
        .args(arguments)
        .args(["--admin", &admin])
        .env_clear()
        .output()
        .unwrap()
}

/// What the command says, which has to succeed.
#[track_caller]
fn says(process: &Process, arguments: &[&str]) -> String {
    let output = turnix(process, arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Ends the process and runs another in its place.
fn restart(process: &mut Process) {
    process.signal("TERM");
    process.exit_code();
    let log = fs::File::options()
        .append(true)
        .open(process.file("log"))
        .unwrap();
    process.child = Command::new(env!("CARGO_BIN_EXE_turnix"))
        .args(["serve", "-c", "turnix.toml"])
        .current_dir(process.directory.path())
        .env_clear()
        .env("STATE_DIRECTORY", process.file("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let admin = process.admin();
    until("the other process serves", || {
        std::net::TcpStream::connect(admin).is_ok()
    });
    // Its admin listener is open before anybody accepts there.
    assert_eq!(process.http("GET", "/live").0, 200);
}

fn minted(process: &Process) -> (String, String) {
    let header = format!("Authorization: Bearer {KEY}\r\n");
    let to = (process.ip, 3478).into();
    let (status, body) = http_with(to, "GET", "/api/webrtc/config?user=carol", &header);
    assert_eq!(status, 200, "{body}");
    let server = &body["iceServers"][0];
    let text = |key: &str| server[key].as_str().unwrap().to_owned();
    (text("username"), text("credential"))
}

fn code(process: &Process, (user, password): (&str, &str)) -> u16 {
    let mut client = process.client();
    client.login(user, password);
    client.code_of(Request::allocate())
}

fn allocated(process: &Process, (user, password): (&str, &str)) -> Client {
    let mut client = process.client();
    client.login(user, password);
    client.allocate();
    client
}

#[test]
fn from_a_shell_and_over_a_restart() {
    let mut process = Process::start(&with_key());
    let (name, password) = minted(&process);
    let _alice = allocated(&process, ("alice", "wonderland"));
    let _bob = allocated(&process, ("bob", "builder"));
    let _carol = allocated(&process, (&name, &password));
    let begin = now();
    let said = says(&process, &["user", "alice", "--for", "24h"]);
    assert!(said.starts_with("user alice is revoked until 2"), "{said}");
    assert!(said.ends_with(": ended 1 allocation\n"), "{said}");
    let said = says(&process, &["credential", &name]);
    assert!(said.ends_with(": ended 1 allocation\n"), "{said}");
    assert!(now() - begin < PROMPT);
    process.until_live(1);
    let ended = process.log();
    assert_eq!(
        ended.matches("\"reason\":\"revoked\"").count(),
        2,
        "{ended}"
    );

    restart(&mut process);
    assert_eq!(code(&process, ("alice", "wonderland")), 401);
    assert_eq!(code(&process, (&name, &password)), 401);
    assert_eq!(code(&process, ("bob", "builder")), 0);
    let said = says(&process, &["--list"]);
    assert!(said.contains("alice") && said.contains(&name), "{said}");
    let listed: Value = serde_json::from_str(&says(&process, &["--list", "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let said = says(&process, &["user", "alice", "--undo"]);
    assert_eq!(said, "user alice is revoked no longer\n");
    assert_eq!(code(&process, ("alice", "wonderland")), 0);

    for wrong in [
        &["user", "alice", "--undo"][..],
        &["user", ""],
        &["user", "alice", "--for", "soon"],
        &["people", "alice"],
        &["user"],
        &[],
    ] {
        assert!(!turnix(&process, wrong).status.success(), "{wrong:?}");
    }
}

#[test]
fn by_a_file_that_changes() {
    let config = CONFIG.replace("[auth]", "[auth]\nrevoked_file = \"revoked\"");
    let mut process = Process::spawn(&config, super::server::quiet_address(), |command| {
        let directory = command.get_current_dir().unwrap();
        fs::write(directory.join("revoked"), "user bob\n").unwrap();
    });
    process.await_ready();
    assert_eq!(code(&process, ("bob", "builder")), 401);
    let _alice = allocated(&process, ("alice", "wonderland"));
    // As editors write files; and what cannot be read changes nothing.
    let write = |text: &str| {
        fs::write(process.file("next"), text).unwrap();
        fs::rename(process.file("next"), process.file("revoked")).unwrap();
    };
    write("users alice\n");
    until("it says what is wrong", || {
        process.log().contains("revoked:1: no revocation")
    });
    assert_eq!(code(&process, ("bob", "builder")), 401);
    // Not even a mistake elsewhere in the configuration keeps it from having effect.
    process.write("realm = 7");
    let begin = now();
    write("# who has left\nuser alice\n");
    process.until_live(0);
    assert!(now() - begin < PROMPT);
    assert_eq!(code(&process, ("alice", "wonderland")), 401);
    assert_eq!(code(&process, ("bob", "builder")), 0);
    let output = turnix(&process, &["user", "alice", "--undo"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("auth.revoked_file"), "{said}");
    // A reload agrees.
    process.reload(&config);
    assert_eq!(code(&process, ("alice", "wonderland")), 401);
    process.write(&config.replace("\"revoked\"", "\"nowhere\""));
    let (status, body) = process.http("POST", "/api/v1/reload");
    assert_eq!(status, 422, "{body}");
}

#[test]
fn a_key_that_is_gone_after_a_reload_or_a_restart() {
    let mut process = Process::start(&with_key());
    let (name, password) = minted(&process);
    let _carol = allocated(&process, (&name, &password));
    let _alice = allocated(&process, ("alice", "wonderland"));
    let done = process.reload(CONFIG);
    assert!(done["notes"].to_string().contains("web"), "{done}");
    process.until_live(1);
    assert_eq!(code(&process, (&name, &password)), 401);
    assert!(says(&process, &["--list"]).contains("configuration"));
    // Back again, as it was.
    process.reload(&with_key());
    assert_eq!(code(&process, (&name, &password)), 0);
    process.write(CONFIG);
    restart(&mut process);
    assert_eq!(code(&process, (&name, &password)), 401);
}
