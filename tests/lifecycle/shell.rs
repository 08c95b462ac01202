//! The admin API from a shell.

use std::process::{Command, Output};

use serde_json::Value;
use turnix::base::Clock;
use turnix::stream::certificates;

use super::process::{CONFIG, Process};
use super::server::until;

fn turnix(process: &Process, arguments: &[&str]) -> Output {
    let admin = format!("http://{}", process.admin());
    Command::new(env!("CARGO_BIN_EXE_turnix"))
        .args(arguments)
        .args(["--admin", &admin])
        .env_clear()
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    of(&output.stdout) + &of(&output.stderr)
}

#[test]
fn reload_prints_what_changed_and_ends_with_2_where_it_cannot() {
    let process = Process::start(CONFIG);
    let same = turnix(&process, &["reload"]);
    assert_eq!(text(&same), "reloaded: nothing differs\n");
    process.write(&CONFIG.replace("shards = 2", "shards = 5\nbusy_poll = \"30us\""));
    let output = turnix(&process, &["reload"]);
    assert_eq!(
        text(&output),
        "server.busy_poll: \"0\" -> \"30us\"\ntakes a restart: server.shards: 2 -> 5\n"
    );
    assert_eq!(output.status.code(), Some(0));
    process.write("realm = 7");
    let output = turnix(&process, &["reload"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output);
    assert!(
        told.contains("nothing has changed") && told.contains("realm"),
        "{told}"
    );
    let output = turnix(&process, &["reload", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["applied"], false);
}

#[test]
fn allocations_are_listed_and_disconnected() {
    let process = Process::start(CONFIG);
    let mut clients: Vec<_> = (0..3).map(|_| process.client()).collect();
    for client in &mut clients {
        client.allocate();
    }
    let json = turnix(&process, &["allocations", "--json"]);
    let listed: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let id = listed[0]["id"].as_str().unwrap();
    let table = text(&turnix(&process, &["allocations"]));
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains(id) && table.contains("alice"), "{table}");

    let ended = turnix(&process, &["disconnect", id]);
    assert_eq!(text(&ended), "ended 1 allocation\n");
    process.until_live(2);
    let unknown = turnix(&process, &["disconnect", id]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown).contains("no live allocation"),
        "{}",
        text(&unknown)
    );
    let of_user = turnix(&process, &["disconnect", "--user", "alice"]);
    assert_eq!(text(&of_user), "ended 2 allocations\n");
    process.until_live(0);
    for wrong in [
        &["disconnect"][..],
        &["disconnect", "1-2-3", "--user", "alice"],
    ] {
        assert_eq!(turnix(&process, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn drain_says_what_is_left_and_a_server_that_is_not_there_is_told() {
    let mut process = Process::start(CONFIG);
    let mut client = process.client();
    client.allocate();
    let bad = turnix(&process, &["drain", "--deadline", "soon"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad).contains("deadline"), "{}", text(&bad));
    let output = turnix(&process, &["drain", "--deadline", "10m"]);
    let told = text(&output);
    assert!(
        told.starts_with("draining: no new allocations, 1 left, "),
        "{told}"
    );
    client.release();
    assert_eq!(process.exit_code(), Some(0));
    until("nobody answers", || {
        let output = turnix(&process, &["drain"]);
        output.status.code() == Some(1) && text(&output).contains("is the server running")
    });
}

#[test]
fn a_token_and_tls_follow_a_reload() {
    let process = Process::start(CONFIG);
    let files = process.directory.path();
    let names = [process.ip.to_string()];
    let pair = certificates::self_signed(&names, Clock.now().unix_secs()).unwrap();
    std::fs::write(files.join("chain.pem"), &pair.certificate_pem).unwrap();
    std::fs::write(files.join("key.pem"), pair.key_pem.expose()).unwrap();
    let with = |token: &str| {
        CONFIG.replace(
            "[http]",
            &format!("[http]\ntls = true\ntoken = \"{token}\""),
        ) + "[tls]\ncertificate = \"chain.pem\"\nkey = \"key.pem\"\n"
    };
    let (first, second) = ("the-first-token-of-all", "the-second-token-of-all");
    process.write(&with(first));
    let output = turnix(&process, &["reload"]);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("http.tls: false -> true"), "{told}");
    assert!(told.contains("http.token: changed"), "{told}");
    assert!(!(told + &process.log()).contains(first));

    let chain = files.join("chain.pem");
    let https = |token: &str, arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_turnix"))
            .args(arguments)
            .args(["--admin", &format!("https://{}", process.admin())])
            .args(["--ca", chain.to_str().unwrap()])
            .env_clear()
            .env("TURNIX_HTTP__TOKEN", token)
            .output()
            .unwrap()
    };
    let refused = https(second, &["allocations"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("--token"), "{}", text(&refused));
    process.write(&with(second));
    let output = https(first, &["reload"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(https(first, &["allocations"]).status.code(), Some(1));
    assert_eq!(https(second, &["allocations"]).status.code(), Some(0));
    // Plain HTTP gets no answer there any more.
    assert_eq!(turnix(&process, &["allocations"]).status.code(), Some(1));
}
