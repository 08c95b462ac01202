//! `docs/from-coturn.md`: its commands are run, its table has every option.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use turnix::config::coturn;

use crate::process::{Ports, folder, is_ready};
use crate::tools::{Process, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/from-coturn.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_table_has_every_option_and_no_other() {
    let page = page();
    let table = page.split("## Every option").nth(1).unwrap();
    let mut told = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let first = row.split('|').nth(1).unwrap();
        let first = first.split(", as password").next().unwrap();
        for name in first.split('`').skip(1).step_by(2) {
            assert!(told.insert(name.to_owned()), "{name} stands there twice");
        }
    }
    let known: BTreeSet<String> = coturn::names().map(str::to_owned).collect();
    assert_eq!(told, known);
}

/// Every block of shell commands.
fn blocks(page: &str) -> Vec<String> {
    page.split("```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.strip_prefix("sh\n"))
        .map(|block| block.trim_end().to_owned())
        .collect()
}

fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn every_command_of_the_page_works() {
    let ports = Ports::free();
    let (folder, file) = folder(&format!(
        "listening-ip=127.0.0.1\nlistening-port={}\nrelay-ip=127.0.0.1\ntotal-quota=100\nmax-bps=125000\nlt-cred-mech\n\
         realm=turn.example.org\nuser=alice:wonder\ncli-password=secret\n",
        ports.plain(),
    ));
    let folder = folder.path();
    std::fs::create_dir(folder.join("turnix")).unwrap();
    let installed = folder.join("turnix/turnix.toml");
    std::fs::write(&installed, "# as the package brings it\n").unwrap();
    // Who would change this host stands aside: sudo runs as whoever runs the test, systemctl takes notes.
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    program(&bin, "sudo", "[ \"$1\" != -u ] || shift 2\nexec \"$@\"");
    let notes = folder.join("systemctl.log");
    program(
        &bin,
        "systemctl",
        &format!("echo \"$*\" >>'{}'", notes.display()),
    );
    program(
        &bin,
        "turnix",
        &format!("exec '{}' \"$@\"", env!("CARGO_BIN_EXE_turnix")),
    );
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());

    let (first, last) = ports.relays();
    let here = |block: &str| {
        block
            .replace("/etc/turnserver.conf", file.to_str().unwrap())
            .replace("/etc/turnix/turnix.toml", installed.to_str().unwrap())
            .replace("[::]:3479", &format!("127.0.0.1:{}", ports.tls()))
            .replace("3479", &ports.tls().to_string())
            .replace("9642", &ports.admin().to_string())
            .replace("40000-40999", &format!("{first}-{last}"))
    };
    let shell = |block: &str| {
        let mut command = Command::new("bash");
        command
            .args(["-euc", block])
            .env_clear()
            .env("PATH", &path)
            .env("STATE_DIRECTORY", folder)
            .stdin(Stdio::null());
        command
    };
    let blocks = blocks(&page());
    assert!(blocks.len() >= 5, "{blocks:?}");
    let mut beside: Option<Process> = None;
    for block in &blocks {
        let command = here(block);
        if command.starts_with("turnix serve") {
            let server = format!("exec {command}");
            let mut server = Process::start(&mut shell(&server), folder.join("server.log"));
            wait_for("the server beside coturn", PATIENCE, || {
                assert!(server.ended().is_none(), "{block}\n{}", server.output());
                is_ready(ports.admin())
            });
            beside = Some(server);
            continue;
        }
        if command.contains("systemctl") {
            // The page has it ended by then.
            beside = None;
        }
        // Packets may get lost where many tests share few cores.
        let attempts = if block.contains("turnix probe") { 3 } else { 1 };
        let mut said = String::new();
        let succeeded = (0..attempts).any(|_| {
            let (status, output) = run(&mut shell(&command), folder, PATIENCE);
            said = output;
            status.is_some_and(|status| status.success())
        });
        assert!(succeeded, "{block}\n{said}");
        if block.contains("turnix import") {
            for line in page().split("```text\n").nth(1).unwrap().lines().take(3) {
                let line = line.trim_end_matches('…');
                assert!(said.contains(line), "{line} in {said}");
            }
        }
        if block.contains("turnix probe") {
            assert!(beside.is_some() && said.contains("channel data"), "{said}");
        }
    }
    let notes = std::fs::read_to_string(notes).unwrap();
    assert_eq!(
        notes.lines().collect::<Vec<_>>(),
        [
            "disable --now coturn",
            "enable --now turnix",
            "disable --now turnix",
            "enable --now coturn",
        ]
    );
}
