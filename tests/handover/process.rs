//! Servers as processes of their own, and what tests ask of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tempfile::TempDir;
use turnix::base::Clock;
use turnix::stream::certificates;

use crate::common::wire::REALM;
use crate::common::world::{PASSWORD, USER};

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(40);

pub fn now() -> Instant {
    Clock.now().mono
}

/// Waits until `reached` holds.
#[track_caller]
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !reached() {
        assert!(now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where the processes of one test find each other.
pub struct Site {
    directory: TempDir,
    address: Ipv4Addr,
    /// Of the certificate.
    pub tls: Arc<ClientConfig>,
    started: std::cell::Cell<usize>,
}

impl Site {
    pub fn new() -> Self {
        // No other test relays from there.
        let [a, b, c]: [u8; 3] = rand::random();
        let address = Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(1, 254));
        let directory = tempfile::tempdir().unwrap();
        let names = [address.to_string()];
        let signed = certificates::self_signed(&names, Clock.now().unix_secs()).unwrap();
        let pem = signed.certificate_pem.clone() + signed.key_pem.expose();
        fs::write(directory.path().join("tls.pem"), pem).unwrap();
        let mut roots = RootCertStore::empty();
        let leaf = CertificateDer::from_pem_slice(signed.certificate_pem.as_bytes()).unwrap();
        roots.add(leaf).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            directory,
            address,
            tls: Arc::new(tls),
            started: std::cell::Cell::new(0),
        }
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("handover.sock")
    }

    /// A configuration with `more` lines behind `[server]`.
    fn configuration(&self, more: &str) -> PathBuf {
        let path = (self.directory.path()).join(format!("{}.toml", self.started.get()));
        let text = format!(
            "realm = \"{REALM}\"\n\
             [[listen]]\naddress = \"{address}:0\"\nprotocols = [\"udp\", \"tcp\", \"tls\", \"dtls\"]\n\
             [tls]\ncertificate = \"{pem}\"\nkey = \"{pem}\"\n\
             [auth]\nusers = {{ {USER} = \"{PASSWORD}\" }}\n\
             [peers]\nallow = [\"loopback\"]\n\
             [http]\nadmin = \"127.0.0.1:0\"\n\
             [log]\nformat = \"json\"\n\
             [server]\nhandover = \"{socket}\"\n{more}\n",
            address = self.address,
            pem = self.directory.path().join("tls.pem").display(),
            socket = self.socket().display(),
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a server, without waiting for it.
    pub fn spawn(&self, more: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Server {
        let file = self.configuration(more);
        let file = file.to_str().unwrap();
        self.run(&[&["serve", "-c", file], arguments].concat(), environment)
    }

    /// Runs one without a configuration file, which keeps its choices.
    pub fn quick_start(&self, arguments: &[&str]) -> Server {
        let listen = format!(
            "listen=[{{ address = \"{}:0\", protocols = [\"udp\", \"tcp\"] }}]",
            self.address
        );
        let socket = format!("server.handover=\"{}\"", self.socket().display());
        let set = [
            &*listen,
            &*socket,
            "http.admin=\"127.0.0.1:0\"",
            "log.format=\"json\"",
        ];
        let set: Vec<&str> = set.into_iter().flat_map(|one| ["--set", one]).collect();
        self.run(&[&["serve"], &*set, arguments].concat(), &[])
    }

    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Server {
        self.started.set(self.started.get() + 1);
        let log = (self.directory.path()).join(format!("{}.log", self.started.get()));
        let child = Command::new(env!("CARGO_BIN_EXE_turnix"))
            .args(arguments)
            .env_clear()
            .env("XDG_STATE_HOME", self.directory.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Server { child, log }
    }

    /// Starts one, and waits until it serves and may be taken over from.
    pub fn start(&self, environment: &[(&str, &str)]) -> Server {
        let server = self.spawn("shards = 2", &[], environment);
        server.serves();
        until("it can be taken over from", || self.socket().exists());
        server
    }

    /// Starts one that takes over.
    pub fn successor(&self, environment: &[(&str, &str)]) -> Server {
        self.spawn("", &["--takeover"], environment)
    }
}

pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it says `what`.
    #[track_caller]
    pub fn says(&self, what: &str) {
        let deadline = now() + PATIENCE;
        while !self.log().contains(what) {
            assert!(now() < deadline, "never says {what:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn serves(&self) {
        self.says("turnix serves");
    }

    /// A field of the first line with `message`.
    #[track_caller]
    fn field(&self, message: &str, field: &str) -> Value {
        let log = self.log();
        (log.lines())
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["fields"]["message"] == message)
            .unwrap_or_else(|| panic!("no {message:?} in {log}"))["fields"][field]
            .clone()
    }

    #[track_caller]
    fn address(&self, message: &str) -> SocketAddr {
        let address = self.field(message, "address");
        address.as_str().unwrap().parse().unwrap()
    }

    /// Where clients find it.
    #[track_caller]
    pub fn listener(&self) -> SocketAddr {
        self.address("listening")
    }

    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        self.address("admin API and metrics")
    }

    /// How long nothing was read while another process took over, in milliseconds.
    #[track_caller]
    pub fn gap_ms(&self) -> f64 {
        self.says("\"taken over\"");
        self.field("taken over", "gap_ms").as_f64().unwrap()
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its exit code once it has ended; none if a signal ended it.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        let deadline = now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(now() < deadline, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(
            Path::new("/proc")
                .join(self.pid().to_string())
                .join("status"),
        );
        let status = status.unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    }

    /// The body of an answer of the admin listener.
    #[track_caller]
    pub fn get(&self, path: &str) -> String {
        let mut connection = TcpStream::connect(self.admin()).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            connection,
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body.to_owned()
    }

    /// Has the admin listener take `body`, as JSON; the answer.
    #[track_caller]
    pub fn post(&self, path: &str, body: &str) -> Value {
        let mut connection = TcpStream::connect(self.admin()).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        write!(
            connection,
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 20"), "{answer}");
        serde_json::from_str(body).unwrap()
    }

    /// The sum of a metric over its labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        (self.get("/metrics").lines())
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            })
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.pid(), self.log());
        }
    }
}
