//! Two hosts and a cable between them: this process on one, the server on the other, and a firewall in front of us.

use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::tools::{Process, wait_for};

/// The server's address, one that documents may use (RFC 5737).
pub const SERVER: &str = "198.51.100.1";
/// The server's name, as every other is.
pub const NAME: &str = "turn.example.org";
const CLIENT: &str = "198.51.100.2";
/// Where the network has the client come from when it translates addresses.
const TRANSLATED: &str = "198.51.100.3";

/// Set where a test runs in a network of its own.
const ALONE: &str = "TURNIX_TEST_NETWORK";

/// Runs this very test again where it is alone in a network with a name server of its own; there it is `Some`.
pub fn alone(test: &str) -> Option<()> {
    if std::env::var_os(ALONE).is_some() {
        return Some(());
    }
    let mut resolver = tempfile::NamedTempFile::new().expect("temporary file");
    resolver
        .write_all(b"nameserver 127.0.0.1\n")
        .expect("temporary file");
    let output = Command::new("unshare")
        .args(["-rnm", "sh", "-c"])
        .arg("mount --bind \"$0\" /etc/resolv.conf && ip link set lo up && exec \"$@\"")
        .arg(resolver.path())
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "yes")
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    None
}

/// Whether such networks can be had here.
pub fn possible() -> bool {
    let tried = Command::new("unshare")
        .args(["-rnm", "nft", "list", "ruleset"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}

/// The network of a test that is [`alone`].
pub struct Network {
    /// Holds the server's host.
    host: Process,
}

impl Network {
    /// Sets up both hosts.
    pub fn new(dir: &Path) -> Network {
        let mut holder = Command::new("unshare");
        holder.args(["-n", "sleep", "600"]);
        let host = Process::start(&mut holder, dir.join("host.log"));
        let network = Network { host };
        thread::spawn(answer_names);
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let server = network.host.id().to_string();
        wait_for("the server's host", Duration::from_secs(10), || {
            (namespace(&server)? != namespace("self")?).then_some(())
        });
        run(Command::new("ip")
            .args(["link", "add", "cable", "type", "veth"])
            .args(["peer", "name", "cable", "netns", &server]));
        for (address, other, server) in [(CLIENT, SERVER, false), (SERVER, CLIENT, true)] {
            let ip = |words: &[&str]| {
                let mut command = if server {
                    network.on_server("ip")
                } else {
                    Command::new("ip")
                };
                run(command.args(words));
            };
            ip(&["link", "set", "lo", "up"]);
            ip(&["link", "set", "cable", "up"]);
            ip(&["address", "add", &format!("{address}/24"), "dev", "cable"]);
            // Browsers look for the way out, not for addresses.
            ip(&["route", "add", "default", "via", other]);
        }
        run(Command::new("ip").args(["address", "add", TRANSLATED, "dev", "cable"]));
        network
    }

    /// A program on the server's host.
    pub fn on_server(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.host.id()));
        command.arg("--").arg(program);
        command
    }

    /// What the network does with what we send from now on.
    pub fn set(&self, firewall: Firewall) {
        let mut translate = String::new();
        let mut filter = String::new();
        // Where it arrives: what our own host drops, it would report to the sender.
        let arrives = |rules: &str| {
            format!(
                "table inet test {{\nchain arrives {{\ntype filter hook input priority 0\n\
                 iifname lo accept\n{rules}\n}}\n}}"
            )
        };
        match firewall {
            Firewall::Open => {}
            Firewall::Symmetric => {
                translate = format!(
                    "table ip test {{\nchain leaves {{\ntype nat hook postrouting priority 100\n\
                     oifname cable meta l4proto udp snat to {TRANSLATED}:1024-65535 random\n}}\n}}"
                );
            }
            Firewall::NoUdp => filter = arrives("meta l4proto udp drop"),
            Firewall::OnlyTcp(ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                let rules = format!("tcp dport {{ {} }} accept\ndrop", ports.join(", "));
                filter = arrives(&rules);
            }
        }
        apply(Command::new("nft"), &translate);
        apply(self.on_server("nft"), &filter);
    }
}

/// Replaces the rules of a host.
fn apply(mut nft: Command, rules: &str) {
    let mut nft = nft
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft");
    let mut input = nft.stdin.take().expect("a pipe");
    write!(input, "flush ruleset\n{rules}\n").expect("nft");
    drop(input);
    assert!(nft.wait().expect("nft").success(), "{rules}");
}

/// What stands between us and the server.
#[derive(Clone, Copy)]
pub enum Firewall {
    /// Nothing.
    Open,
    /// A translator that takes another port for every destination.
    Symmetric,
    /// What drops UDP.
    NoUdp,
    /// What drops all but TCP to these ports.
    OnlyTcp(&'static [u16]),
}

/// Answers each question for an IPv4 address (A) with the server's, any other with nothing (RFC 1035, section 4).
fn answer_names() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).expect("the port of name servers");
    let address: Ipv4Addr = SERVER.parse().expect("an address");
    let mut message = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut message) {
        let question = message.get(12..length).unwrap_or_default();
        let Some(name) = question.iter().position(|byte| *byte == 0) else {
            continue;
        };
        let Some(kind) = question.get(name + 1..name + 3) else {
            continue;
        };
        let answers = u8::from(kind == [0, 1]);
        let mut answer = message[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0]);
        answer.extend(&question[..(name + 5).min(question.len())]);
        if answers > 0 {
            // The name of the question, A, IN, for a minute.
            answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address.octets());
        }
        // Whoever gave up asks again.
        let _ = socket.send_to(&answer, client);
    }
}

/// Makes a store of certificates (NSS) in `dir` that has `trust` in the one in `file`, as `certutil -t` wants it.
pub fn trust(dir: &Path, file: &Path, trust: &str) {
    std::fs::create_dir_all(dir).expect("a directory");
    let store = format!("sql:{}", dir.display());
    run(Command::new("certutil").args(["-N", "--empty-password", "-d", &store]));
    run(Command::new("certutil")
        .args(["-A", "-d", &store, "-n", "turnix", "-t", trust, "-i"])
        .arg(file));
}

fn run(command: &mut Command) {
    let output = command.output().expect("a program");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
}
