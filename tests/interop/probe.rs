//! `turnix probe` against coturn's `turnserver`: a server without fault, and faults that its configuration makes.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::server::{PASSWORD, REALM, SECRET, USER, free_ports, write_certificate};
use crate::tools::{Process, find_tool, run, wait_for};

/// A running `turnserver`.
struct Coturn {
    port: u16,
    _process: Process,
    dir: TempDir,
}

impl Coturn {
    /// `None` where there is none, after having said so.
    fn start(test: &str, more: &str) -> Option<Self> {
        let turnserver = find_tool(test, "turnserver")?;
        let dir = tempfile::tempdir().expect("temporary directory");
        write_certificate(&dir);
        let (port, relays) = free_ports();
        let (first, last) = (relays.start(), relays.end());
        let path = dir.path().display();
        let config = format!(
            "listening-port={port}\ntls-listening-port={}\nlistening-ip=127.0.0.1\nrelay-ip=127.0.0.1\nmin-port={first}\n\
             max-port={last}\nrealm={REALM}\ncli-password=unused\nno-cli\nlog-file=stdout\ncert={path}/cert.pem\n\
             pkey={path}/key.pem\npidfile={path}/pid\nuserdb={path}/users\n{more}\n",
            port + 10
        );
        std::fs::write(dir.path().join("turnserver.conf"), config).expect("configuration");
        let mut command = Command::new(turnserver);
        command.arg("-c").arg(dir.path().join("turnserver.conf"));
        let process = Process::start(&mut command, dir.path().join("server.log"));
        wait_for("coturn is ready", Duration::from_secs(30), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Some(Self {
            port,
            _process: process,
            dir,
        })
    }

    /// Exit code and output of a probe.
    fn probe(&self, uri: &str, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
        command
            .args(["probe", uri, "--seconds", "0.3"])
            .args(arguments)
            .env_clear();
        let (status, output) = run(&mut command, self.dir.path(), Duration::from_secs(60));
        let code = status.and_then(|status| status.code());
        (code.unwrap_or_else(|| panic!("{uri}: {output}")), output)
    }
}

const LONG_TERM: &str = "lt-cred-mech\nuser=alice:wonderland";
const ALICE: [&str; 4] = ["--user", USER, "--password", PASSWORD];

#[test]
fn coturn_without_fault() {
    let more = format!("{LONG_TERM}\nallow-loopback-peers");
    let Some(coturn) = Coturn::start("probe::coturn_without_fault", &more) else {
        return;
    };
    let ca = coturn.dir.path().join("cert.pem");
    let with_ca = [&ALICE[..], &["--ca", ca.to_str().expect("a path")]].concat();
    let (port, tls) = (coturn.port, coturn.port + 10);
    for uri in [
        format!("stun:127.0.0.1:{port}"),
        format!("turn:127.0.0.1:{port}"),
        format!("turn:127.0.0.1:{port}?transport=tcp"),
        format!("turns:localhost:{tls}"),
    ] {
        let (code, output) = coturn.probe(&uri, &with_ca);
        assert_eq!(code, 0, "{uri}: {output}");
        assert!(
            output.contains("no fault: the server answers"),
            "{uri}: {output}"
        );
        if uri.starts_with("turn") {
            assert!(output.contains(", 0 % lost"), "{uri}: {output}");
        }
    }
    let (code, output) = coturn.probe(&format!("turns:127.0.0.1:{port}"), &ALICE);
    assert_eq!(code, 3, "{output}");
}

#[test]
fn credentials_that_coturn_refuses() {
    let Some(coturn) = Coturn::start("probe::credentials_that_coturn_refuses", LONG_TERM) else {
        return;
    };
    let uri = format!("turn:127.0.0.1:{}", coturn.port);
    let (code, output) = coturn.probe(&uri, &["--user", USER, "--password", "wrong"]);
    assert_eq!(code, 3, "{output}");
    let wrong =
        format!("the server of realm \"{REALM}\" does not take this user and password (401)");
    assert!(output.contains(&wrong), "{output}");
}

#[test]
fn a_secret_of_coturn() {
    let more = format!("use-auth-secret\nstatic-auth-secret={SECRET}\nallow-loopback-peers");
    let Some(coturn) = Coturn::start("probe::a_secret_of_coturn", &more) else {
        return;
    };
    let uri = format!("turn:127.0.0.1:{}", coturn.port);
    let (code, output) = coturn.probe(&uri, &["--secret", SECRET]);
    assert_eq!(code, 0, "{output}");
    let (code, output) = coturn.probe(&uri, &["--secret", "another"]);
    assert_eq!(code, 3, "{output}");
    assert!(output.contains("static-auth-secret"), "{output}");
}

#[test]
fn peers_that_coturn_forbids() {
    let Some(coturn) = Coturn::start("probe::peers_that_coturn_forbids", LONG_TERM) else {
        return;
    };
    let uri = format!("turn:127.0.0.1:{}", coturn.port);
    let (code, output) = coturn.probe(&uri, &ALICE);
    assert_eq!(code, 3, "{output}");
    assert!(
        output.contains("forbids its own relayed address 127.0.0.1 as a peer (403)"),
        "{output}"
    );
    assert!(output.contains("allow-loopback-peers"), "{output}");
}

#[test]
fn coturn_without_udp() {
    let more = format!("{LONG_TERM}\nno-udp");
    let Some(coturn) = Coturn::start("probe::coturn_without_udp", &more) else {
        return;
    };
    let uri = format!("turn:127.0.0.1:{}", coturn.port);
    let (code, output) = coturn.probe(&uri, &ALICE);
    assert_eq!(code, 3, "{output}");
    assert!(output.contains("nobody listens for UDP"), "{output}");
    assert!(output.contains("?transport=tcp"), "{output}");
}
