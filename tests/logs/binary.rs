//! The server as its operator runs it, with its standard error in a file.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::client::Client;
use super::common::wire::REALM;
use super::server::{PATIENCE, now, until};

/// Status and body of one request on a connection of its own; a body is sent as JSON.
pub fn http(to: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    http_as(to, method, path, "application/json", body)
}

pub fn http_as(to: SocketAddr, method: &str, path: &str, kind: &str, body: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(to).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

pub struct Binary {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub directory: tempfile::TempDir,
}

impl Binary {
    /// Serves alice ("wonderland") and bob ("builder") on loopback, with `key=value` settings on top.
    pub fn start(set: &[String]) -> Self {
        (0..20)
            .find_map(|_| Self::try_start(set))
            .expect("ports that are free")
    }

    fn try_start(set: &[String]) -> Option<Self> {
        let free = || {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap()
        };
        let (address, admin) = (free(), free());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("turnix.toml");
        let text = format!(
            "realm = \"{REALM}\"\n\
             [auth]\nusers = {{ alice = \"wonderland\", bob = \"builder\" }}\n\
             [peers]\nallow = [\"loopback\"]\n\
             [http]\nadmin = \"{admin}\"\n\
             [server]\nshards = 2\n\
             [[listen]]\naddress = \"{address}\"\nprotocols = [\"udp\", \"tcp\"]\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
        command.arg("serve").arg("-c").arg(&file).env_clear();
        for assignment in set {
            command.arg("--set").arg(assignment);
        }
        let log = File::create(directory.path().join("log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut binary = Self {
            child,
            address,
            admin,
            directory,
        };
        let deadline = now() + PATIENCE;
        loop {
            if TcpStream::connect(admin).is_ok() && http(admin, "GET", "/ready", "").0 == 200 {
                return Some(binary);
            }
            if binary.child.try_wait().unwrap().is_some() {
                let log = binary.log();
                assert!(log.contains("in use"), "{log}");
                return None;
            }
            assert!(now() < deadline, "no start: {}", binary.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap()
    }

    /// A UDP client whose address is `from`.
    pub fn client(&self, from: impl Into<IpAddr>) -> Client {
        let socket = UdpSocket::bind((from.into(), 0)).unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::on(socket)
    }

    /// SIGTERM, and the end.
    pub fn stop(&mut self) {
        let kill = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -TERM {}", self.child.id()))
            .status();
        assert!(kill.unwrap().success());
        let mut ended = false;
        until("the end", || {
            ended = self.child.try_wait().unwrap().is_some();
            ended
        });
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of 127.0.0.0/8 that nothing else here uses, of four long parts so that a search finds nothing by chance.
pub fn address(second: u8) -> Ipv4Addr {
    let [a, b]: [u8; 2] = rand::random();
    Ipv4Addr::new(127, second, 100 + a % 100, 100 + b % 100)
}
