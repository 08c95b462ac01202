//! `turnix why`, against a server of this process and clients that fail.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use super::server::{Server, ended, probe, text, turnix, until};

fn why(server: &Server, arguments: &[&str]) -> (i32, String) {
    let admin = server.admin();
    let output = turnix(&[&["why", "--admin", &admin], arguments].concat())
        .output()
        .unwrap();
    ended(&output)
}

#[test]
fn a_wrong_password_is_told_and_a_call_that_worked() {
    let server = Server::start("[peers]\nallow = [\"loopback\"]\n");
    let (code, all) = why(&server, &["alice"]);
    assert!(
        code == 1 && all.contains("Verdict (nothing_known)"),
        "{all}"
    );

    let uri = server.uri("udp");
    let (code, _) = probe(&[&uri, "--user", "alice", "--password", "looking-glass"]);
    assert_eq!(code, 3);
    let (code, all) = why(&server, &["alice"]);
    assert_eq!(code, 0, "{all}");
    assert!(all.starts_with("user alice, since 20"), "{all}");
    assert!(all.contains("+0.000 s  127.0.0.1:"), "{all}");
    assert!(
        all.contains("allocate by \"alice\" over udp was refused with 401, bad_password"),
        "{all}"
    );
    assert!(
        all.contains("\nVerdict (bad_password): \"alice\" came with a wrong password"),
        "{all}"
    );

    // By the very address, as it stands in the timeline.
    let client = all
        .split_whitespace()
        .find(|word| word.starts_with("127.0.0.1:"));
    let (code, by_address) = why(&server, &[client.unwrap()]);
    assert!(
        code == 0 && by_address.contains("Verdict (bad_password)"),
        "{by_address}"
    );

    let (code, all) = probe(&[&uri, "--user", "bob", "--password", "builder"]);
    assert_eq!(code, 0, "{all}");
    // Both allocations of the probe are over.
    let json = until("both are remembered", || {
        let admin = server.admin();
        let output = turnix(&["why", "bob", "--json", "--admin", &admin])
            .output()
            .unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let calls = json["allocations"].as_array().unwrap();
        let over = calls.len() == 2 && calls.iter().all(|call| call["ended"] == "released");
        over.then_some(json)
    });
    assert_eq!(json["verdict"]["code"], "fine", "{json}");
    assert_eq!(json["subjects"][0]["name"], "bob");
    let id = json["allocations"][0]["id"].as_str().unwrap();
    let (code, all) = why(&server, &[id]);
    assert_eq!(code, 0, "{all}");
    assert!(all.contains(&format!("[{id}] 127.0.0.1:")), "{all}");
    assert!(all.contains(", ended after "), "{all}");
    assert!(all.contains("Verdict (fine)"), "{all}");
    // Whoever is called like an allocation is found by --user only.
    assert_eq!(why(&server, &["--user", id]).0, 1);
}

#[test]
fn a_failed_handshake_is_told_by_address() {
    let server = Server::start("");
    let mut connection = TcpStream::connect(server.address).unwrap();
    let client = connection.local_addr().unwrap();
    // The first bytes of a ClientHello, and nonsense behind them.
    connection
        .write_all(&[22, 3, 1, 0, 40, 1, 0, 0, 36, 3, 3])
        .unwrap();
    connection.write_all(&[0xFF; 64]).unwrap();
    let _ = connection.read_to_end(&mut Vec::new());
    let all = until("the handshake is remembered", || {
        let (code, all) = why(&server, &["127.0.0.1"]);
        (code == 0).then_some(all)
    });
    assert!(all.contains("Verdict (tls_failed)"), "{all}");
    assert!(all.contains("the TLS handshake failed: "), "{all}");
    assert_eq!(why(&server, &[&client.to_string()]).0, 0);
}

#[test]
fn one_of_them_only() {
    let server = Server::start("");
    let admin = server.admin();
    for arguments in [&["why"][..], &["why", "alice", "--address", "192.0.2.1"]] {
        let output = turnix(&[arguments, &["--admin", &admin]].concat())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
}
