//! What a server that relays really asks of the kernel, against what its unit lets it.
//!
//! It runs as the unit runs it as far as that goes without a system manager: another user, the unit's capability alone, no
//! new privileges. `strace` writes down its system calls; `systemd-analyze` says which the unit's filter has.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::read;
use crate::tools::{Process, find_tool, run, wait_for};
use crate::units::is_root;

const PATIENCE: Duration = Duration::from_secs(60);
/// The one that Debian has for this.
const NOBODY: &str = "65534";

#[test]
fn the_server_makes_no_system_call_that_the_unit_forbids() {
    let test = "sandbox::the_server_makes_no_system_call_that_the_unit_forbids";
    let (Some(strace), Some(setpriv), Some(analyze)) = (
        find_tool(test, "strace"),
        find_tool(test, "setpriv"),
        find_tool(test, "systemd-analyze"),
    ) else {
        return;
    };
    if !is_root() {
        println!("SKIPPED: {test}: needs root to become another user");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (low, admin) = (free_port(600..1000), free_port(11_000..12_000));
    let trace = dir.path().join("trace");
    let config = write_config(dir.path(), low, admin);
    give_to_nobody(dir.path());

    let mut command = Command::new(setpriv);
    command
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .args(["--inh-caps", "-all,+net_bind_service"])
        .args(["--ambient-caps", "-all,+net_bind_service"])
        .args(["--bounding-set", "-all,+net_bind_service", "--no-new-privs"])
        .arg(strace)
        .args(["-f", "-qq", "-e", "trace=all", "-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(copy_of_the_program(dir.path()))
        .args(["serve", "-c"])
        .arg(config)
        .env("STATE_DIRECTORY", dir.path())
        .current_dir("/");
    let mut server = Process::start(&mut command, dir.path().join("server.log"));
    let _traced = Traced(&trace);
    wait_for("the server serves", PATIENCE, || {
        assert_eq!(server.ended(), None, "{}", server.output());
        // Its ports are open before all of them are served.
        is_ready(admin).then_some(())
    });
    let status = process_status(&trace);
    assert!(status.contains(&format!("\nUid:\t{NOBODY}\t")), "{status}");
    // CAP_NET_BIND_SERVICE is the eleventh bit.
    assert!(status.contains("\nCapEff:\t0000000000000400\n"), "{status}");

    // Datagrams come in bursts of one piece: on a quiet machine no two others arrive together, and the server batches nothing.
    let bursts = ["--rate", "800", "--burst", "8", "--gso"];
    let one_by_one = ["--rate", "200"];
    for (uri, load) in [
        (format!("turn:127.0.0.1:{low}"), &bursts[..]),
        (format!("turn:127.0.0.1:{low}?transport=tcp"), &one_by_one),
        (format!("turns:127.0.0.1:{low}?transport=tcp"), &one_by_one),
    ] {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_turnix"));
        bench
            .args(["bench", &uri, "--user", "alice", "--password", "wonderland"])
            .args(["--allocations", "4", "--seconds", "1"])
            .args(load)
            .args(["--insecure", "--direction", "echo"]);
        let (status, output) = run(&mut bench, dir.path(), PATIENCE);
        assert!(status.is_some_and(|s| s.success()), "{uri}: {output}");
    }
    terminate(&trace);
    wait_for("the server ends", PATIENCE, || server.ended());

    let allowed = allowed(&analyze);
    let made = made(&trace);
    for must in ["recvmmsg", "sendmmsg", "epoll_wait", "sched_setaffinity"] {
        assert!(made.contains(must), "{must} was not seen: {made:?}");
    }
    let forbidden: Vec<_> = made.difference(&allowed).collect();
    assert!(
        forbidden.is_empty(),
        "not in SystemCallFilter= of the unit: {forbidden:?}"
    );
}

/// Ends the server if the test fails: the end of strace does not.
struct Traced<'a>(&'a Path);

impl Drop for Traced<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.0.exists() {
            // It may have ended already.
            let _ = Command::new("kill")
                .args(["-9", &server_id(self.0)])
                .status();
        }
    }
}

fn is_ready(admin: u16) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, admin))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /ready HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(" 200 "))
}

/// A configuration that asks for all that takes a system call of its own.
fn write_config(dir: &Path, low: u16, admin: u16) -> PathBuf {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    fs::write(dir.join("cert.pem"), made.cert.pem()).expect("certificate");
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("key");
    let path = dir.display();
    let text = format!(
        r#"
[[listen]]
address = "127.0.0.1:{low}"
protocols = ["udp", "tcp", "tls", "http"]
[relay]
addresses = ["127.0.0.1"]
[auth]
users = {{ alice = "wonderland" }}
[peers]
allow = ["loopback"]
[tls]
certificate = "{path}/cert.pem"
key = "{path}/key.pem"
[http]
admin = "127.0.0.1:{admin}"
[server]
pin_shards = true
busy_poll = "50us"
"#
    );
    let config = dir.join("turnix.toml");
    fs::write(&config, text).expect("configuration");
    config
}

/// In a directory that the other user may enter.
fn copy_of_the_program(dir: &Path) -> PathBuf {
    let copy = dir.join("turnix");
    fs::copy(env!("CARGO_BIN_EXE_turnix"), &copy).expect("a copy of the program");
    copy
}

fn give_to_nobody(dir: &Path) {
    let id = NOBODY.parse().ok();
    for path in fs::read_dir(dir).expect("directory").flatten() {
        std::os::unix::fs::chown(path.path(), id, id).expect("chown");
    }
    std::os::unix::fs::chown(dir, id, id).expect("chown");
}

fn free_port(ports: std::ops::Range<u16>) -> u16 {
    let start = std::process::id() as usize;
    (0..ports.len())
        .map(|step| ports.start + ((start + step) % ports.len()) as u16)
        .find(|port| {
            let address = (Ipv4Addr::LOCALHOST, *port);
            TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
        })
        .expect("a free port")
}

/// The server's process id is what its first line of the trace begins with.
fn server_id(trace: &Path) -> String {
    let text = fs::read_to_string(trace).expect("trace");
    text.split(' ').next().expect("a process id").to_owned()
}

fn process_status(trace: &Path) -> String {
    let path = format!("/proc/{}/status", server_id(trace));
    fs::read_to_string(path).expect("status of the server")
}

fn terminate(trace: &Path) {
    let done = Command::new("kill").arg(server_id(trace)).status();
    assert!(done.is_ok_and(|status| status.success()), "kill");
}

/// The names of the calls that strace saw.
fn made(trace: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(trace).expect("trace");
    let name = |line: &str| {
        let call = line.split_once(' ')?.1.trim_start();
        let (name, _) = call.split_once('(')?;
        let is_name =
            !name.is_empty() && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
        is_name.then(|| name.to_owned())
    };
    text.lines().filter_map(name).collect()
}

/// What is left after every `SystemCallFilter=` of the unit, in their order.
fn allowed(analyze: &Path) -> BTreeSet<String> {
    let mut allowed = expand(analyze, "@default");
    let unit = read("systemd/turnix.service");
    for filter in (unit.lines()).filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (takes_away, words) = match filter.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, filter),
        };
        for call in words
            .split_whitespace()
            .flat_map(|word| expand(analyze, word))
        {
            if takes_away {
                allowed.remove(&call);
            } else {
                allowed.insert(call);
            }
        }
    }
    assert!(allowed.len() > 100 && !allowed.contains("mount"));
    allowed
}

/// A call, or the calls of a group and of its groups.
fn expand(analyze: &Path, word: &str) -> BTreeSet<String> {
    if !word.starts_with('@') {
        return [word.to_owned()].into();
    }
    let output = Command::new(analyze)
        .args(["syscall-filter", "--no-pager", word])
        .output()
        .expect("systemd-analyze");
    let text = String::from_utf8_lossy(&output.stdout);
    let members: Vec<_> = (text.lines().skip(1).map(str::trim))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert!(!members.is_empty(), "{word} is no group: {text}");
    (members.into_iter())
        .flat_map(|member| expand(analyze, member))
        .collect()
}
