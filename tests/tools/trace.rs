//! `turnix trace`.

use serde_json::Value;

use super::server::{Server, ended, text, turnix};

#[test]
fn begins_is_listed_and_ends() {
    let server = Server::start("");
    let admin = server.admin();
    let trace = |arguments: &[&str]| {
        let output = turnix(&[&["trace", "--admin", &admin], arguments].concat())
            .output()
            .unwrap();
        ended(&output)
    };
    assert_eq!(trace(&[]), (0, "nothing is traced\n".into()));
    let (code, all) = trace(&["alice"]);
    assert!(
        code == 0 && all.starts_with("tracing user alice for 10 min"),
        "{all}"
    );
    let (code, all) = trace(&["198.51.100.7", "--for", "90s"]);
    assert!(
        code == 0 && all.starts_with("tracing address 198.51.100.7 for 2 min"),
        "{all}"
    );
    let (code, all) = trace(&["--user", "198.51.100.7", "--for", "1h"]);
    assert!(
        code == 0 && all.starts_with("tracing user 198.51.100.7 for 1 h"),
        "{all}"
    );

    let (_, all) = trace(&[]);
    let mut lines = all.lines();
    assert!(lines.next().unwrap().starts_with("traced "), "{all}");
    assert_eq!(lines.clone().count(), 3, "{all}");
    assert!(lines.next().unwrap().contains("alice  "), "{all}");
    let json = turnix(&["trace", "--admin", &admin, "--json"])
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json[1]["address"], "198.51.100.7");

    assert_eq!(
        trace(&["alice", "--stop"]),
        (0, "no trace of user alice any more\n".into())
    );
    let (code, all) = trace(&["alice", "--stop"]);
    assert!(
        code == 1 && all.contains("nobody traces user alice"),
        "{all}"
    );
    assert_eq!(trace(&[]).1.lines().count(), 3);
}

#[test]
fn where_nobody_listens() {
    let output = turnix(&["trace", "alice", "--admin", "http://127.0.0.1:9"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is the server running"));
    let output = turnix(&["trace", "--stop"]).output().unwrap();
    assert!(text(&output.stderr).contains("name the user"));
    let output = turnix(&["trace", "alice", "--for", "2d"]).output().unwrap();
    assert!(text(&output.stderr).contains("1m to 24h"));
}
