//! The image and the compose files: linted, and true to what the server needs. No engine runs here.

use std::path::PathBuf;
use std::process::Command;

use crate::tools::{find_tool, skip};
use crate::{read, repository};

const COMPOSE: [&str; 2] = ["docker/compose.yml", "docker/compose.bridge.yml"];

/// A program of the tests' Python environment, `INTEROP_PYTHON`, or of the path.
fn python_tool(test: &str, name: &str) -> Option<PathBuf> {
    let beside = std::env::var_os("INTEROP_PYTHON")
        .map(|python| PathBuf::from(python).with_file_name(name))
        .filter(|file| file.is_file());
    beside.or_else(|| find_tool(test, name))
}

#[test]
fn the_image_is_linted() {
    let Some(hadolint) = python_tool("images::the_image_is_linted", "hadolint") else {
        return;
    };
    let output = Command::new(hadolint)
        .args(["--no-color", "--failure-threshold", "info"])
        .arg(repository("Dockerfile"))
        .output()
        .expect("hadolint");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn compose_files_are_valid() {
    const VALIDATE: &str = "import sys, compose_spec\n\
        for name in sys.argv[1:]:\n\
        \x20   project = compose_spec.PyCompose.from_yaml(open(name).read())\n\
        \x20   project.validate()\n\
        \x20   project.to_spec()\n";
    let test = "images::compose_files_are_valid";
    let Some(python) = python_tool(test, "python3") else {
        return;
    };
    let has = |module: &str| {
        let import = Command::new(&python)
            .args(["-c", &format!("import {module}")])
            .output();
        import.is_ok_and(|output| output.status.success())
    };
    if !has("compose_spec") {
        skip(test, "the Python module compose_spec");
        return;
    }
    let output = Command::new(&python)
        .args(["-c", VALIDATE])
        .args(COMPOSE.map(repository))
        .output()
        .expect("python3");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_bridge_publishes_the_ports_that_the_server_relays_from() {
    let text = read(COMPOSE[1]);
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key}"))
            .trim_matches('"')
            .to_owned()
    };
    let ports = value("TURNIX_RELAY__PORTS: ");
    assert!(text.contains(&format!("- \"{ports}:{ports}/udp\"")));
    for port in [3478, 443] {
        for protocol in ["udp", "tcp"] {
            assert!(text.contains(&format!("- \"{port}:{port}/{protocol}\"")));
        }
    }
}

/// The command of the health check is one that the program has.
#[test]
fn the_image_runs_commands_that_exist() {
    let image = read("Dockerfile");
    let words = |start: &str, key: &str| -> Vec<String> {
        let line = image.lines().find(|line| line.starts_with(start));
        let (_, command) =
            (line.and_then(|line| line.split_once(key))).unwrap_or_else(|| panic!("no {start}"));
        serde_json::from_str(command).expect("words in brackets")
    };
    let check = words("HEALTHCHECK ", " CMD ");
    assert_eq!(check[..1], words("ENTRYPOINT ", "ENTRYPOINT "));
    for command in [&words("CMD ", "CMD ")[0], &check[1]] {
        let help = Command::new(env!("CARGO_BIN_EXE_turnix"))
            .args([command, "--help"])
            .output()
            .expect("turnix");
        assert!(help.status.success(), "turnix {command}");
    }
    assert!(image.contains("\nUSER 65532:65532\n") && image.contains("\nSTOPSIGNAL SIGTERM\n"));
}
