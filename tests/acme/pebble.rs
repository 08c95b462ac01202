//! Pebble and its name server, for one test.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use tempfile::TempDir;
use turnix::base::Clock;
use turnix::stream::certificates;

use super::server::{PATIENCE, now};

/// How a Pebble behaves.
pub struct Manners {
    /// Where it connects to when it looks for a name: TLS-ALPN-01, HTTP-01.
    pub tls_port: u16,
    pub http_port: u16,
    /// How long certificates are good for, in seconds.
    pub validity_secs: u64,
    /// How many good nonces it refuses, in percent.
    pub refuses_nonces: u32,
    /// Whether names lead anywhere from the beginning.
    pub has_names: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            tls_port: 443,
            http_port: 80,
            validity_secs: 90 * 86_400,
            refuses_nonces: 0,
            has_names: true,
        }
    }
}

pub struct Pebble {
    directory: TempDir,
    server: Child,
    names: Child,
    address: SocketAddr,
    management: SocketAddr,
    names_management: SocketAddr,
    /// Of its own listeners.
    tls: Arc<ClientConfig>,
}

impl Pebble {
    /// Every name leads to `ip`; `None` after having said that the test is skipped.
    pub fn start(ip: Ipv4Addr, manners: &Manners) -> Option<Self> {
        let (pebble, challtestsrv) = (find("pebble")?, find("pebble-challtestsrv")?);
        let directory = tempfile::tempdir().unwrap();
        // Ports of the kernel's choice, free a moment ago.
        let held: [TcpListener; 4] = std::array::from_fn(|_| TcpListener::bind((ip, 0)).unwrap());
        let [address, management, dns, names_management] =
            held.each_ref().map(|socket| socket.local_addr().unwrap());
        drop(held);
        let own = certificates::self_signed(&[ip.to_string()], Clock.now().unix_secs()).unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("pebble.pem"), &own.certificate_pem).unwrap();
        fs::write(at("pebble.key"), own.key_pem.expose()).unwrap();
        let config = json!({ "pebble": {
            "listenAddress": address,
            "managementListenAddress": management,
            "certificate": at("pebble.pem"),
            "privateKey": at("pebble.key"),
            "httpPort": manners.http_port,
            "tlsPort": manners.tls_port,
            "certificateValidityPeriod": manners.validity_secs,
        }});
        fs::write(at("pebble.json"), config.to_string()).unwrap();
        let log = |name: &str| File::create(at(name)).unwrap();
        let default = if manners.has_names {
            ip.to_string()
        } else {
            String::new()
        };
        let names = Command::new(challtestsrv)
            .args([
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
                "-defaultIPv6",
                "",
            ])
            .args(["-defaultIPv4", &default])
            .args(["-dns01", &dns.to_string()])
            .args(["-management", &names_management.to_string()])
            .stdin(Stdio::null())
            .stdout(log("names.log"))
            .stderr(log("names.err"))
            .spawn()
            .unwrap();
        let server = Command::new(pebble)
            .arg("-config")
            .arg(at("pebble.json"))
            .args(["-dnsserver", &dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", manners.refuses_nonces.to_string())
            .stdin(Stdio::null())
            .stdout(log("pebble.log"))
            .stderr(log("pebble.err"))
            .spawn()
            .unwrap();
        let mut roots = RootCertStore::empty();
        let leaf = CertificateDer::from_pem_slice(own.certificate_pem.as_bytes()).unwrap();
        roots.add(leaf).unwrap();
        let mut pebble = Self {
            directory,
            server,
            names,
            address,
            management,
            names_management,
            tls: trusting(roots),
        };
        pebble.await_ready();
        Some(pebble)
    }

    fn await_ready(&mut self) {
        let deadline = now() + PATIENCE * 2;
        for address in [self.address, self.management, self.names_management] {
            while TcpStream::connect(address).is_err() {
                let children = [&mut self.server, &mut self.names];
                let ended = children.map(|child| child.try_wait().unwrap());
                assert_eq!(ended, [None, None], "{}", self.log());
                assert!(now() < deadline, "{address} does not answer");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }

    /// The keys of `[tls.acme]` that lead here.
    pub fn keys(&self) -> String {
        format!(
            "directory = \"https://{}/dir\"\nca_file = \"{}\"\n",
            self.address,
            self.directory.path().join("pebble.pem").display()
        )
    }

    /// What a client trusts that trusts this authority.
    pub fn trust(&self) -> Arc<ClientConfig> {
        let pem = self.https("/roots/0");
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
            .unwrap();
        trusting(roots)
    }

    /// Every name leads to `ip` from now on.
    pub fn name(&self, ip: Ipv4Addr) {
        let body = json!({ "ip": ip.to_string() }).to_string();
        let mut connection = TcpStream::connect(self.names_management).unwrap();
        write!(
            connection,
            "POST /set-default-ipv4 HTTP/1.1\r\nHost: names\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// How many certificates it has issued.
    pub fn issued(&self) -> usize {
        self.log().matches("Issued certificate serial").count()
    }

    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        read("pebble.log") + &read("pebble.err")
    }

    /// The body of one answer of the management interface.
    fn https(&self, path: &str) -> String {
        let name = ServerName::from(self.management.ip());
        let client = ClientConnection::new(Arc::clone(&self.tls), name).unwrap();
        let connection = TcpStream::connect(self.management).unwrap();
        let mut stream = StreamOwned::new(client, connection);
        write!(stream, "GET {path} HTTP/1.0\r\nHost: pebble\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        // It may close without a word.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        answer
            .split_once("\r\n\r\n")
            .expect("head and body")
            .1
            .to_owned()
    }
}

impl Pebble {
    /// Answers nobody any more. Its files stay.
    pub fn stop(&mut self) {
        for child in [&mut self.server, &mut self.names] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- pebble\n{}---", self.log());
        }
    }
}

fn trusting(roots: RootCertStore) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A session that is resumed shows the certificate that it began with.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The program; `None` after having said that it is missing, a failure where every tool is required.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file: &PathBuf| Path::is_file(file));
    if found.is_none() {
        assert!(
            std::env::var_os("INTEROP_REQUIRE_TOOLS").is_none_or(|required| required != "1"),
            "{name} not found"
        );
        println!("SKIPPED: {name} not found");
    }
    found
}
