//! A server in a process of its own, with a service manager that listens to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use super::client::Client;
use super::server::{PATIENCE, now, quiet_address, until};

/// `{ip}` is an address that this server has to itself.
pub const CONFIG: &str = r#"
realm = "example.org"
[[listen]]
address = "{ip}:3478"
protocols = ["udp", "tcp", "http"]
[relay]
addresses = ["{ip}"]
[auth]
users = { alice = "wonderland", bob = "builder" }
secrets = ["north"]
[peers]
allow = ["loopback"]
[http]
admin = "{ip}:9641"
[server]
shards = 2
"#;

/// Ends with the test.
pub struct Process {
    pub child: Child,
    pub ip: Ipv4Addr,
    pub directory: TempDir,
    told: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Serves `config` and is ready.
    pub fn start(config: &str) -> Self {
        let mut process = Self::spawn(config, quiet_address(), |_| {});
        process.await_ready();
        process
    }

    /// Runs `turnix serve` on `ip`, with what `also` adds to the command.
    pub fn spawn(config: &str, ip: Ipv4Addr, also: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
        command.args(["serve", "-c", "turnix.toml"]);
        Self::run(command, config, ip, also)
    }

    /// Runs `command` in a directory of its own where `config` lies.
    pub fn run(
        mut command: Command,
        config: &str,
        ip: Ipv4Addr,
        also: impl FnOnce(&mut Command),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        fs::write(
            directory.path().join("turnix.toml"),
            config.replace("{ip}", &ip.to_string()),
        )
        .unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        command
            .current_dir(directory.path())
            .env_clear()
            .env("NOTIFY_SOCKET", directory.path().join("notify"))
            .env("STATE_DIRECTORY", directory.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        also(&mut command);
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&told);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                // Dropped with the process: nobody counts any more.
                if Arc::strong_count(&heard) == 1 {
                    return;
                }
                heard.lock().unwrap().push(text);
            }
        });
        Self {
            child: command.spawn().unwrap(),
            ip,
            directory,
            told,
        }
    }

    pub fn await_ready(&mut self) {
        let deadline = now() + PATIENCE * 4;
        while !self.heard("READY=1") {
            assert!(now() < deadline, "never ready: {}", self.log());
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Every message to the service manager so far.
    pub fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    pub fn heard(&self, what: &str) -> bool {
        self.told().iter().any(|message| message.contains(what))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces the configuration; nobody reads it by itself.
    pub fn write(&self, config: &str) {
        let text = config.replace("{ip}", &self.ip.to_string());
        fs::write(self.file("turnix.toml"), text).unwrap();
    }

    pub fn admin(&self) -> SocketAddr {
        (self.ip, 9641).into()
    }

    /// Status and body of one request to the admin listener.
    pub fn http(&self, method: &str, path: &str) -> (u16, Value) {
        http(self.admin(), method, path)
    }

    /// Reloads by the API: 200 and what it did.
    #[track_caller]
    pub fn reload(&self, config: &str) -> Value {
        self.write(config);
        let (status, body) = self.http("POST", "/api/v1/reload");
        assert_eq!(status, 200, "{body:#} {}", self.log());
        body
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// How it ended, within patience.
    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        let deadline = now() + PATIENCE * 2;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(now() < deadline, "it does not end: {}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn until_live(&self, count: u64) {
        until(&format!("{count} allocations"), || {
            self.http("GET", "/live").1["allocations"] == count
        });
    }

    /// A UDP client of the listener on `port`.
    pub fn client_on(&self, port: u16) -> Client {
        let socket = UdpSocket::bind((self.ip, 0)).unwrap();
        socket.connect((self.ip, port)).unwrap();
        Client::on(socket)
    }

    pub fn client(&self) -> Client {
        self.client_on(3478)
    }

    pub fn tcp_client_on(&self, port: u16) -> Client {
        let stream = TcpStream::connect((self.ip, port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client::on_stream(stream)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its listener ends by one more datagram.
        if let Ok(socket) = UnixDatagram::unbound() {
            self.told = Arc::default();
            let _ = socket.send_to(b"over", self.directory.path().join("notify"));
        }
    }
}

pub fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", name, &pid])
        .status()
        .unwrap();
    assert!(sent.success());
}

pub fn http(to: SocketAddr, method: &str, path: &str) -> (u16, Value) {
    http_with(to, method, path, "")
}

pub fn http_with(to: SocketAddr, method: &str, path: &str, header: &str) -> (u16, Value) {
    let mut connection = TcpStream::connect(to).unwrap();
    connection.set_read_timeout(Some(PATIENCE * 2)).unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\n{header}Connection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
