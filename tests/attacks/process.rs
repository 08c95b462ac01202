//! The built binary as a process of its own: what it writes, what the host can see of it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;
use turnix::access::rest;
use turnix::base::Secret;

use super::client::Client;
use super::server::{PATIENCE, until};

/// Users and secret of every process that a test starts.
pub const PASSWORD: &str = "pw-5c1f0e7b2a";
pub const SECRET: &str = "rest-secret-93d7c4e1f8";

/// A configuration for tests, with `more` below it.
pub fn configuration(directory: &Path, more: &str) -> PathBuf {
    let path = directory.join("turnix.toml");
    let text = format!(
        "realm = \"example.org\"\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\nprotocols = [\"udp\", \"tcp\", \"http\"]\n\
         [relay]\naddresses = [\"127.0.0.1\"]\n\
         [server]\nshards = 1\n{more}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// `turnix` with nothing of the test's own environment.
pub fn turnix(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
    command
        .args(arguments)
        .env_clear()
        .env("XDG_STATE_HOME", directory)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Standard output and standard error of a command that ends.
pub fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr]
        .map(String::from_utf8_lossy)
        .concat()
}

/// A running server; dropping it ends it.
pub struct Process {
    child: Child,
    pub directory: TempDir,
    pub turn: SocketAddr,
    pub admin: SocketAddr,
}

impl Process {
    /// Starts `turnix serve` with `more` in its configuration and waits until it serves. The admin listener is on
    /// loopback, on a port that the kernel chose.
    pub fn start(
        directory: TempDir,
        more: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let file = configuration(directory.path(), more);
        let log = directory.path().join("log");
        let file = file.to_str().unwrap();
        let all = [
            &["serve", "-c", file, "--set", "http.admin=127.0.0.1:0"],
            arguments,
        ]
        .concat();
        let mut child = turnix(directory.path(), &all, environment)
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        until("the server serves", || {
            let text = std::fs::read_to_string(&log).unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {text}");
            }
            text.contains("turnix serves")
        });
        let text = std::fs::read_to_string(&log).unwrap();
        let address = |message: &str| {
            let line = text.lines().find(|line| line.contains(message)).unwrap();
            let after = line.split("127.0.0.1:").nth(1).unwrap();
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            SocketAddr::from(([127, 0, 0, 1], after[..digits].parse().unwrap()))
        };
        Self {
            turn: address("listening"),
            admin: address("admin API"),
            child,
            directory,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it logged so far.
    pub fn log(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("log")).unwrap()
    }

    /// Waits until the log contains `text`.
    #[track_caller]
    pub fn logs(&self, text: &str) {
        until(text, || String::from_utf8_lossy(&self.log()).contains(text));
    }

    /// A client over UDP from a port of its own.
    pub fn client(&self) -> Client {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.turn).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::on(socket)
    }

    /// A client with a time-limited credential of the user id `user`.
    pub fn client_of(&self, user: &str) -> Client {
        let (name, password) = rest::mint(&Secret::new(SECRET.into()), Some(user), 4_000_000_000);
        let mut client = self.client();
        client.login(&name, &password);
        client
    }

    /// The body of an answer of the admin listener to a request with further `headers`, each with its end.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let mut connection = TcpStream::connect(self.admin).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            connection,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = (status.lines())
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let kib: u64 = line
            .split_ascii_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        kib << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
