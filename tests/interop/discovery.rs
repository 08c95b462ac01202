//! NAT behaviour discovery: coturn's `turnutils_natdiscovery` (RFC 5780), and pystun3 from PyPI, a client of RFC 3489.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::aiortc::python;
use crate::server::{free_ports, get};
use crate::tools::{Process, find_tool, run, wait_for};

const TIMEOUT: Duration = Duration::from_secs(60);

/// How the sockets lie that four addresses make.
#[derive(Clone, Copy)]
enum Sockets {
    /// One for each address and port.
    Four,
    /// One for each port, on every address.
    Wildcard,
}

/// Its process, its port, and where its files are.
fn server(sockets: Sockets) -> (Process, u16, TempDir) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (port, relays) = free_ports();
    let (other, admin) = (port + 10, port + 5);
    let addresses = match sockets {
        Sockets::Wildcard => vec![format!("0.0.0.0:{port}"), format!("[::]:{other}")],
        Sockets::Four => [1, 2]
            .into_iter()
            .flat_map(|ip| [port, other].map(|port| format!("127.0.0.{ip}:{port}")))
            .collect(),
    };
    let listeners: String = (addresses.iter())
        .map(|address| format!("[[listen]]\naddress = \"{address}\"\nprotocols = [\"udp\"]\n"))
        .collect();
    let config = format!(
        "realm = \"turn.example.org\"\n{listeners}\n\
         [auth]\nusers = {{ alice = \"wonderland\" }}\n\
         [relay]\naddresses = [\"127.0.0.1\"]\nports = \"{}-{}\"\n\
         [protocol]\nnat_discovery = [\"127.0.0.1\", \"127.0.0.2\"]\nrfc3489 = true\n\
         [http]\nadmin = \"127.0.0.1:{admin}\"\n",
        relays.start(),
        relays.end(),
    );
    let file = dir.path().join("turnix.toml");
    std::fs::write(&file, config).expect("configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
    command.args(["serve", "-c"]).arg(&file);
    command.env("STATE_DIRECTORY", dir.path());
    let process = Process::start(&mut command, dir.path().join("server.log"));
    wait_for("the server is ready", Duration::from_secs(15), || {
        (get(admin, "/ready")?.status == 200).then_some(())
    });
    (process, port, dir)
}

/// What the tool prints about the server.
fn natdiscovery(tool: &Path, dir: &Path, port: u16, arguments: &[&str]) -> String {
    let mut command = Command::new(tool);
    command
        .args(arguments)
        .args(["-p", &port.to_string(), "127.0.0.1"]);
    let (status, output) = run(&mut command, dir, TIMEOUT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{arguments:?}: {status:?}\n{output}"
    );
    output
}

fn discovers(test: &str, sockets: Sockets) {
    let Some(tool) = find_tool(test, "turnutils_natdiscovery") else {
        return;
    };
    let (_process, port, dir) = server(sockets);
    let ask = |arguments: &[&str]| natdiscovery(&tool, dir.path(), port, arguments);
    for arguments in [&["-m"][..], &["-m", "-P"]] {
        let mapping = ask(arguments);
        assert!(
            mapping.contains("NAT with Endpoint Independent Mapping!"),
            "{arguments:?}: {mapping}"
        );
    }
    for arguments in [&["-f"][..], &["-f", "-P"]] {
        let filtering = ask(arguments);
        assert!(
            filtering.contains("NAT with Endpoint Independent Filtering!"),
            "{arguments:?}: {filtering}"
        );
    }
    // The second answer comes by RESPONSE-PORT, or not at all.
    let lifetime = ask(&["-t", "-T", "1"]);
    assert!(lifetime.contains("RFC 5780 response 2"), "{lifetime}");
    assert!(!lifetime.contains("timeout"), "{lifetime}");
    let all = ask(&["-m", "-f", "-H"]);
    assert!(
        !all.contains("no response") && !all.contains("rror"),
        "{all}"
    );
}

#[test]
fn natdiscovery_by_four_sockets() {
    discovers("natdiscovery_by_four_sockets", Sockets::Four);
}

#[test]
fn natdiscovery_by_wildcards() {
    discovers("natdiscovery_by_wildcards", Sockets::Wildcard);
}

#[test]
fn a_classic_client_finds_open_internet() {
    let Some(python) = python("a_classic_client_finds_open_internet", "stun") else {
        return;
    };
    let (_process, port, dir) = server(Sockets::Wildcard);
    let mut command = Command::new(python);
    command.args([
        "-c",
        "import stun, sys; print(stun.get_ip_info('127.0.0.1', 0, '127.0.0.1', int(sys.argv[1])))",
        &port.to_string(),
    ]);
    let (status, output) = run(&mut command, dir.path(), TIMEOUT);
    assert!(status.is_some_and(|status| status.success()), "{output}");
    assert!(
        output.contains("('Open Internet', '127.0.0.1', "),
        "{output}"
    );
}
