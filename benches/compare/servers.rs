//! The servers: how each is configured, started and found ready.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use turnix::base::Clock;

use crate::cells::Leg;
use crate::process::{Launcher, Process, nap, output_of};

/// The program under test, built for this run.
pub const TURNIX: &str = env!("CARGO_BIN_EXE_turnix");
/// User, password and realm of every server.
pub const USER: &str = "load";
pub const PASSWORD: &str = "of-the-day";
const REALM: &str = "turn.example.org";
/// Below the range that the kernel hands out to sockets without a port, shared by all servers.
const RELAY_PORTS: RangeInclusive<u16> = 10_000..=32_767;
/// Listeners, plain and TLS in turn.
const LISTEN_PORTS: RangeInclusive<u16> = 9_100..=9_999;
const START_LIMIT: Duration = Duration::from_secs(15);

/// Which program it is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// This package.
    Turnix,
    /// `turnserver`, with further lines of its configuration.
    Coturn(&'static str),
    /// A command with places to fill in.
    Other(String),
}

/// What there is to compare.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// In the tables.
    pub name: String,
    /// As the program tells.
    pub version: String,
    /// How to start it.
    pub kind: Kind,
}

/// turnix, coturn where it is installed, and the commands from the command line; also what to say about the others.
pub fn candidates(commands: &[(String, String)]) -> (Vec<Candidate>, Vec<String>) {
    let mut notes = Vec::new();
    let version = output_of(TURNIX, &["--version"]).unwrap_or_default();
    let mut found = vec![Candidate {
        name: "turnix".into(),
        version: version.trim().trim_start_matches("turnix ").into(),
        kind: Kind::Turnix,
    }];
    if let Some(help) = output_of("turnserver", &["--help"]) {
        let version = output_of("turnserver", &["--version"]).unwrap_or_default();
        let version = version.lines().find(|line| !line.trim().is_empty());
        let version = version.unwrap_or("?").trim().to_owned();
        let mut add = |name: &str, lines| {
            found.push(Candidate {
                name: name.into(),
                version: version.clone(),
                kind: Kind::Coturn(lines),
            });
        };
        add("coturn", "");
        if !help.contains("--multiplex-peer") {
            notes.push(format!(
                "coturn with --multiplex-peer was skipped: version {version} does not have it"
            ));
        } else if !help.contains("--udp-gso") {
            add("coturn-multiplex", "multiplex-peer\n");
        } else {
            add("coturn-multiplex", "multiplex-peer\nudp-gso\n");
        }
    } else {
        notes.push(
            "coturn was skipped: there is no turnserver; `apt-get install coturn` brings it".into(),
        );
    }
    for (name, command) in commands {
        found.push(Candidate {
            name: name.clone(),
            version: "?".into(),
            kind: Kind::Other(command.clone()),
        });
    }
    (found, notes)
}

/// A certificate that nobody trusts, in PEM.
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// Makes one and writes it to `directory`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn make(directory: &Path) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec![REALM.to_owned()])?;
        let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
        fs::write(&chain, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        Ok(Self { chain, key })
    }
}

/// A server on ports of its own.
pub struct Server {
    /// What it is.
    pub candidate: Candidate,
    port: u16,
    tls_port: u16,
    relay: RangeInclusive<u16>,
    directory: PathBuf,
    process: Option<Process>,
}

/// One server for each candidate, not started yet.
///
/// # Errors
/// No ports are free, or `directory` cannot be written.
pub fn prepare(candidates: Vec<Candidate>, directory: &Path) -> anyhow::Result<Vec<Server>> {
    let share = RELAY_PORTS.len() as u16 / candidates.len().max(1) as u16;
    let mut free = LISTEN_PORTS.filter(|port| is_free(*port));
    let mut servers = Vec::new();
    for (index, candidate) in candidates.into_iter().enumerate() {
        let directory = directory.join(index.to_string());
        fs::create_dir(&directory)?;
        let first = RELAY_PORTS.start() + index as u16 * share;
        servers.push(Server {
            candidate,
            port: free.next().context("no port is free to listen on")?,
            tls_port: free.next().context("no port is free to listen on")?,
            relay: first..=first + share - 1,
            directory,
            process: None,
        });
    }
    Ok(servers)
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

impl Server {
    /// Ends what runs, starts anew and waits until it answers.
    ///
    /// # Errors
    /// It ends by itself or does not answer; a signal asked for the end.
    pub fn restart(
        &mut self,
        launcher: &Launcher,
        cpu: usize,
        certificate: &Certificate,
    ) -> anyhow::Result<()> {
        self.process = None;
        let command = self.command(certificate)?;
        let directory = &self.directory;
        let mut process = launcher.start(Some(cpu), &command, directory, "server")?;
        let deadline = Clock.now().mono + START_LIMIT;
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        probe.connect((Ipv4Addr::LOCALHOST, self.port))?;
        probe.set_read_timeout(Some(Duration::from_millis(50)))?;
        loop {
            if !process.is_alive() {
                bail!("{} ended: {}", self.candidate.name, process.last_words());
            }
            if answers(&probe) && self.tls_is_open() {
                break;
            }
            if Clock.now().mono >= deadline {
                bail!("{} does not answer a Binding", self.candidate.name);
            }
            nap()?;
        }
        self.process = Some(process);
        Ok(())
    }

    fn tls_is_open(&self) -> bool {
        !self.speaks(Leg::Tls) || TcpStream::connect((Ipv4Addr::LOCALHOST, self.tls_port)).is_ok()
    }

    /// Its process, once started.
    pub fn pid(&mut self) -> Option<u32> {
        let process = self.process.as_mut()?;
        process.is_alive().then(|| process.id())
    }

    /// Whether clients can reach it this way.
    pub fn speaks(&self, leg: Leg) -> bool {
        match &self.candidate.kind {
            Kind::Other(command) => leg != Leg::Tls || command.contains("{tls_port}"),
            _ => true,
        }
    }

    /// The URI for clients.
    pub fn uri(&self, leg: Leg) -> String {
        match leg {
            Leg::Udp => format!("turn:127.0.0.1:{}", self.port),
            Leg::Tcp => format!("turn:127.0.0.1:{}?transport=tcp", self.port),
            Leg::Tls => format!("turns:127.0.0.1:{}", self.tls_port),
        }
    }

    fn command(&self, certificate: &Certificate) -> anyhow::Result<Vec<String>> {
        let file = self.directory.join("server.conf");
        let name = file.to_string_lossy().into_owned();
        Ok(match &self.candidate.kind {
            Kind::Turnix => {
                fs::write(&file, self.turnix(certificate))?;
                vec![TURNIX.into(), "serve".into(), "-c".into(), name]
            }
            Kind::Coturn(lines) => {
                fs::write(&file, self.coturn(certificate) + lines)?;
                vec!["turnserver".into(), "-c".into(), name]
            }
            Kind::Other(command) => (command.split_ascii_whitespace())
                .map(|word| self.fill(word, certificate))
                .collect(),
        })
    }

    fn turnix(&self, certificate: &Certificate) -> String {
        let Self {
            port,
            tls_port,
            relay,
            ..
        } = self;
        format!(
            r#"realm = "{REALM}"
[[listen]]
address = "127.0.0.1:{port}"
protocols = ["udp", "tcp"]
[[listen]]
address = "127.0.0.1:{tls_port}"
protocols = ["tls"]
[relay]
addresses = ["127.0.0.1"]
external_address = "127.0.0.1"
ports = "{}-{}"
[auth]
users = {{ {USER} = "{PASSWORD}" }}
[peers]
allow = ["loopback"]
[tls]
certificate = {:?}
key = {:?}
[http]
admin = ""
[server]
shards = 1
"#,
            relay.start(),
            relay.end(),
            certificate.chain,
            certificate.key,
        )
    }

    fn coturn(&self, certificate: &Certificate) -> String {
        let Self {
            port,
            tls_port,
            relay,
            directory,
            ..
        } = self;
        format!(
            "listening-ip=127.0.0.1\nlistening-port={port}\ntls-listening-port={tls_port}\nrelay-ip=127.0.0.1\n\
             min-port={}\nmax-port={}\nlt-cred-mech\nuser={USER}:{PASSWORD}\nrealm={REALM}\n\
             cert={}\npkey={}\nno-dtls\nallow-loopback-peers\nno-multicast-peers\nno-cli\nrelay-threads=1\n\
             log-file=/dev/null\nsimple-log\npidfile={}\nuserdb={}\n",
            relay.start(),
            relay.end(),
            certificate.chain.display(),
            certificate.key.display(),
            directory.join("pid").display(),
            directory.join("users").display(),
        )
    }

    fn fill(&self, word: &str, certificate: &Certificate) -> String {
        word.replace("{port}", &self.port.to_string())
            .replace("{tls_port}", &self.tls_port.to_string())
            .replace("{user}", USER)
            .replace("{password}", PASSWORD)
            .replace("{realm}", REALM)
            .replace("{min}", &self.relay.start().to_string())
            .replace("{max}", &self.relay.end().to_string())
            .replace("{certificate}", &certificate.chain.to_string_lossy())
            .replace("{key}", &certificate.key.to_string_lossy())
    }
}

/// Whether a Binding request is answered within the socket's timeout.
fn answers(probe: &UdpSocket) -> bool {
    let mut request = [0; 20];
    request[1] = 1;
    request[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    request[8..].copy_from_slice(b"are you here");
    let mut answer = [0; 1500];
    probe.send(&request).is_ok()
        && (probe.recv(&mut answer)).is_ok_and(|len| len >= 20 && answer[4..20] == request[4..])
}
