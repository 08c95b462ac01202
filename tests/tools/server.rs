//! A server in this process, and the built binary.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use turnix::app::{self, Running};
use turnix::base::Clock;
use turnix::config::{Config, Sources};

pub const SECRET: &str = "looking-glass";
pub const ALICE: [&str; 4] = ["--user", "alice", "--password", "wonderland"];
/// The machine is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn now() -> Instant {
    Clock.now().mono
}

/// Asks `question` until it is answered.
pub fn until<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    let end = now() + PATIENCE;
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub struct Server {
    running: Option<Running>,
    pub address: SocketAddr,
    dir: tempfile::TempDir,
}

/// A certificate with the lifetime that `change` gives it.
pub fn certificate(
    name: &str,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> (String, String) {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut params);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

impl Server {
    /// One that speaks everything on one port.
    pub fn start(more: &str) -> Self {
        Self::with("127.0.0.1", r#""udp", "tcp", "tls", "http""#, more)
    }

    /// One that speaks `protocols` at `ip`.
    pub fn with(ip: &str, protocols: &str, more: &str) -> Self {
        Self::certified(ip, protocols, more, &certificate("localhost", |_| {}))
    }

    pub fn certified(
        ip: &str,
        protocols: &str,
        more: &str,
        (certificate, key): &(String, String),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(dir.path().join("key.pem"), key).unwrap();
        let path = dir.path().display();
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        let tls = match protocols.contains("tls") {
            true => format!("[tls]\ncertificate = \"{path}/cert.pem\"\nkey = \"{path}/key.pem\""),
            false => String::new(),
        };
        let config = format!(
            r#"
realm = "turn.example.org"
[[listen]]
address = "{host}:0"
protocols = [{protocols}]
[relay]
addresses = ["127.0.0.1", "::1"]
[auth]
users = {{ alice = "wonderland", bob = "builder" }}
secrets = ["{SECRET}"]
{tls}
[http]
admin = "127.0.0.1:0"
{more}
"#
        );
        let file = dir.path().join("turnix.toml");
        std::fs::write(&file, config).unwrap();
        let config = Config::load(&Sources {
            file: Some(file),
            base: None,
            environment: Vec::new(),
            set: Vec::new(),
        })
        .unwrap();
        let running = app::start(config).unwrap();
        let address = running.started.listeners[0].address;
        Self {
            running: Some(running),
            address,
            dir,
        }
    }

    pub fn uri(&self, transport: &str) -> String {
        let port = self.address.port();
        let host = match self.address {
            SocketAddr::V4(_) => "127.0.0.1",
            SocketAddr::V6(_) => "[::1]",
        };
        match transport {
            "tls" => format!("turns:localhost:{port}?transport=tcp"),
            transport => format!("turn:{host}:{port}?transport={transport}"),
        }
    }

    pub fn certificate_file(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// Where the admin listener is, as `--admin` takes it.
    pub fn admin(&self) -> String {
        let admin = self.running.as_ref().unwrap().started.admin.unwrap();
        format!("http://{admin}")
    }

    /// The live allocations.
    pub fn allocations(&self) -> Vec<Value> {
        let output = turnix(&["allocations", "--json", "--admin", &self.admin()])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

/// The built binary, with nothing of this test's environment.
pub fn turnix(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
    command
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `turnix probe` prints, with the exit code that goes with it.
pub fn probe(arguments: &[&str]) -> (i32, String) {
    let output = turnix(&[&["probe", "--seconds", "0"], arguments].concat())
        .output()
        .unwrap();
    ended(&output)
}

pub fn ended(output: &Output) -> (i32, String) {
    let all = text(&output.stdout) + &text(&output.stderr);
    (output.status.code().unwrap(), all)
}
