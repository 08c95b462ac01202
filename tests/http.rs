//! The admin listener and the public paths, asked over real sockets.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use turnix::base::{Clock, Family, Transport};
use turnix::cluster::{Fleet, Ledger};
use turnix::http::admin::{self, AdminState};
use turnix::http::ice::{Offer, Service};
use turnix::http::{Front, Limits, ShardControl, public};
use turnix::metrics::{NamedAllocation, ShardSnapshot};
use turnix::stream::{
    Admission, Certificate, Certificates, Listener, Protocols, Settings, certificates,
};
use turnix::turn::{AllocationId, AllocationView, Traffic};

/// Shards that answer what a test wants.
#[derive(Clone, Default)]
struct Fake(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    dead: AtomicBool,
    asked_alive: AtomicUsize,
    live: Mutex<Vec<NamedAllocation>>,
}

impl Fake {
    fn with(allocations: &[(&str, &str)]) -> Self {
        let fake = Self::default();
        let now = Clock.now();
        for (name, user) in allocations {
            fake.0.live.lock().unwrap().push(NamedAllocation {
                name: (*name).to_owned(),
                shard: 0,
                view: AllocationView {
                    id: AllocationId {
                        slot: 0,
                        generation: 0,
                    },
                    user: Arc::from(*user),
                    transport: Transport::Udp,
                    client: "198.51.100.7:4000".parse().unwrap(),
                    relayed: "[2001:db8::7]:50000".parse().unwrap(),
                    created_unix: Duration::from_millis(1_800_000_000_900),
                    created: now.mono,
                    expires_unix: Duration::from_secs(1_800_000_600),
                    traffic: [
                        Traffic {
                            bytes: 1000,
                            packets: 10,
                        },
                        Traffic {
                            bytes: 2000,
                            packets: 20,
                        },
                    ],
                    bits_per_second: [800, 1600],
                    peak_bits_per_second: [8000, 16000],
                    permissions: 2,
                    channels: 1,
                    permissions_made: 3,
                    channels_made: 2,
                },
            });
        }
        fake
    }
}

impl ShardControl for Fake {
    async fn snapshot(&self) -> ShardSnapshot {
        let mut snapshot = ShardSnapshot::default();
        snapshot.stats.live[Transport::Udp as usize][Family::V6 as usize] =
            self.0.live.lock().unwrap().len() as u64;
        snapshot
    }

    async fn allocations(&self, most: usize) -> Vec<NamedAllocation> {
        let live = self.0.live.lock().unwrap();
        live.iter().take(most).cloned().collect()
    }

    async fn end_allocation(&self, name: &str) -> bool {
        let mut live = self.0.live.lock().unwrap();
        let before = live.len();
        live.retain(|allocation| allocation.name != name);
        live.len() < before
    }

    async fn end_user(&self, user: &str) -> usize {
        let mut live = self.0.live.lock().unwrap();
        let before = live.len();
        live.retain(|allocation| &*allocation.view.user != user);
        before - live.len()
    }

    async fn alive(&self) -> bool {
        self.0.asked_alive.fetch_add(1, Ordering::Relaxed);
        !self.0.dead.load(Ordering::Relaxed)
    }

    fn capacity_ratio(&self) -> f64 {
        0.5
    }
}

struct Admin {
    address: SocketAddr,
    shards: Fake,
    draining: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<std::io::Error>,
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn admin(shards: Fake) -> Admin {
    admin_within(shards, Limits::ADMIN)
}

fn admin_within(shards: Fake, limits: Limits) -> Admin {
    let draining = Arc::new(AtomicBool::new(false));
    let settings = admin::Settings {
        node: "node-1".to_owned(),
        region: "eu".to_owned(),
        version: "9.9.9",
        per_allocation: 1,
        hosts: vec!["admin.example".to_owned()],
        token: None,
    };
    let state = AdminState::new(
        shards.clone(),
        Arc::clone(&draining),
        None,
        Admission::new(0),
        settings,
    );
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let front = Front::new(admin::router(state), limits);
    Admin {
        address,
        shards,
        draining,
        running: tokio::spawn(front.listen(listener)),
    }
}

/// An answer: code, header block in lower case, body.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// Sends `request` as it is and reads until the server closes.
async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Answer {
    io.write_all(request).await.unwrap();
    io.flush().await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(5), io.read_to_end(&mut answer))
        .await
        .expect("an answer within five seconds")
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole header");
    Answer {
        code: head[9..12].parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

async fn ask_as(host: &str, address: SocketAddr, method: &str, path: &str) -> Answer {
    let socket = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    exchange(socket, request.as_bytes()).await
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> Answer {
    ask_as(&address.to_string(), address, method, path).await
}

#[tokio::test]
async fn metrics_are_prometheus_text_and_bounded() {
    let admin = admin(Fake::with(&[("0-0-0", "alice"), ("0-1-0", "bob")]));
    let answer = ask(admin.address, "GET", "/metrics").await;
    assert_eq!(answer.code, 200);
    assert!(
        answer
            .head
            .contains("content-type: text/plain; version=0.0.4")
    );
    assert!(answer.body.contains("turn_capacity_ratio 0.5\n"));
    assert!(
        answer
            .body
            .contains("turn_build_info{version=\"9.9.9\"} 1\n")
    );
    assert!(answer.body.contains("user=\"alice\""));
    assert!(
        !answer.body.contains("user=\"bob\""),
        "one allocation at most"
    );
}

#[tokio::test]
async fn health_follows_draining_and_dead_shards() {
    let healthy = admin(Fake::with(&[("0-0-0", "alice")]));
    for path in ["/live", "/ready", "/health"] {
        let answer = ask(healthy.address, "GET", path).await;
        assert_eq!(answer.code, 200, "{path}");
        assert_eq!(
            answer.json(),
            json!({"status": "ok", "node": "node-1", "region": "eu", "version": "9.9.9", "allocations": 1})
        );
    }
    healthy.draining.store(true, Ordering::Relaxed);
    for (path, code) in [("/live", 200), ("/ready", 503), ("/health", 503)] {
        let answer = ask(healthy.address, "GET", path).await;
        assert_eq!(answer.code, code, "{path}");
        assert_eq!(answer.json()["status"], "draining");
    }
    let asked = healthy.shards.0.asked_alive.load(Ordering::Relaxed);
    assert!(asked <= 3, "asked the shards {asked} times");

    let dead = admin(Fake::default());
    dead.shards.0.dead.store(true, Ordering::Relaxed);
    for path in ["/live", "/ready", "/health"] {
        let answer = ask(dead.address, "GET", path).await;
        assert_eq!(answer.code, 503, "{path}");
        assert_eq!(answer.json()["status"], "degraded");
        assert_eq!(answer.json()["allocations"], Value::Null);
    }
}

#[tokio::test]
async fn allocations_are_listed_and_ended() {
    let admin = admin(Fake::with(&[
        ("0-0-0", "alice"),
        ("0-1-0", "bob/ä b"),
        ("1-0-3", "bob/ä b"),
    ]));
    let listed = ask(admin.address, "GET", "/api/v1/allocations").await;
    assert_eq!(listed.json().as_array().unwrap().len(), 3);
    assert_eq!(
        listed.json()[0],
        json!({
            "id": "0-0-0", "user": "alice", "transport": "udp",
            "client": "198.51.100.7:4000", "relayed": "[2001:db8::7]:50000",
            "created": 1_800_000_000, "expires": 1_800_000_600,
            "permissions": 2, "channels": 1,
            "bytes": {"to_peer": 1000, "to_client": 2000},
            "packets": {"to_peer": 10, "to_client": 20},
            "bits_per_second": {"to_peer": 800, "to_client": 1600},
            "quality": null,
        })
    );
    let path = "/api/v1/users/bob%2F%C3%A4%20b/allocations";
    let ended = ask(admin.address, "DELETE", path).await;
    assert_eq!((ended.code, ended.json()), (200, json!({"ended": 2})));
    let ended = ask(admin.address, "DELETE", path).await;
    assert_eq!((ended.code, ended.json()), (200, json!({"ended": 0})));
    let ended = ask(admin.address, "DELETE", "/api/v1/allocations/0-0-0").await;
    assert_eq!((ended.code, ended.body.as_str()), (204, ""));
    let ended = ask(admin.address, "DELETE", "/api/v1/allocations/0-0-0").await;
    assert_eq!(ended.code, 404);
    assert!(ended.json()["error"].is_string());
}

#[tokio::test]
async fn everything_else_is_refused_in_json() {
    let admin = admin(Fake::default());
    for (method, path, code) in [
        ("GET", "/", 404),
        ("GET", "/etc/passwd", 404),
        ("GET", "/api/v1/reload", 405),
        // Nobody is there to carry it out.
        ("POST", "/api/v1/reload", 503),
        ("POST", "/metrics", 405),
        ("GET", "/api/v1/allocations/0-0-0", 405),
        ("DELETE", "/api/v1/allocations/%FF", 400),
    ] {
        let answer = ask(admin.address, method, path).await;
        assert_eq!(answer.code, code, "{method} {path}");
        assert!(answer.json()["error"].is_string());
        assert!(answer.head.contains("cache-control: no-store"), "{path}");
    }
}

#[tokio::test]
async fn a_page_that_rebinds_its_name_to_loopback_gets_nothing() {
    let admin = admin(Fake::default());
    for (host, code) in [
        ("localhost:9641", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:9641", 200),
        ("127.3.2.1:9641", 200),
        ("192.0.2.1:9641", 403),
        ("[2001:db8::1]", 403),
        ("admin.example:9641", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:9641", 403),
        ("localhost.evil.example", 403),
        ("x@127.0.0.1", 403),
        ("", 403),
    ] {
        let answer = ask_as(host, admin.address, "GET", "/health").await;
        assert_eq!(answer.code, code, "{host}");
    }
    // An absolute request target cannot hide the host either.
    for (request, code) in [
        (
            "GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
            403,
        ),
        (
            "GET http://localhost/health HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
            403,
        ),
        (
            "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
            400,
        ),
    ] {
        let socket = TcpStream::connect(admin.address).await.unwrap();
        assert_eq!(exchange(socket, request.as_bytes()).await.code, code);
    }
}

#[tokio::test]
async fn slow_huge_and_numerous_clients_are_cut_off() {
    let admin = admin_within(
        Fake::default(),
        Limits {
            connections: 2,
            per_address: 0,
            header_timeout: Duration::from_millis(200),
            lifetime: Duration::from_secs(2),
        },
    );
    // Slow: half a header, then nothing. Idle: an answered request, then nothing.
    let mut slow = TcpStream::connect(admin.address).await.unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nhost: local")
        .await
        .unwrap();
    let mut silent = TcpStream::connect(admin.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Numerous: both places are taken.
    let mut third = TcpStream::connect(admin.address).await.unwrap();
    let mut nothing = Vec::new();
    let ended = timeout(Duration::from_secs(5), third.read_to_end(&mut nothing)).await;
    assert!(ended.is_ok() && nothing.is_empty());
    let ended = timeout(Duration::from_secs(5), slow.read_to_end(&mut nothing)).await;
    assert!(ended.is_ok());
    let ended = timeout(Duration::from_secs(15), silent.read_to_end(&mut nothing)).await;
    assert!(ended.is_ok());
    // Huge.
    let huge = format!(
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "x".repeat(64 * 1024)
    );
    let mut socket = TcpStream::connect(admin.address).await.unwrap();
    let mut answer = Vec::new();
    let _ = socket.write_all(huge.as_bytes()).await;
    let _ = timeout(Duration::from_secs(5), socket.read_to_end(&mut answer))
        .await
        .expect("closed");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

/// A port that speaks everything, its HTTP half served as the public paths are.
struct Public {
    address: SocketAddr,
    root: String,
    draining: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<std::io::Error>,
}

impl Drop for Public {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn public_port() -> Public {
    let names = ["localhost".to_owned()];
    let pair = certificates::self_signed(&names, Clock.now().unix_secs()).unwrap();
    let certificate = Certificate::from_pem(
        pair.certificate_pem.as_bytes(),
        pair.key_pem.expose().as_bytes(),
    )
    .unwrap();
    let settings = Settings {
        protocols: Protocols {
            tcp: true,
            tls: true,
            http: true,
        },
        ..Settings::default()
    };
    let socket = StdListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener::new(socket, settings, Some(Certificates::new(certificate))).unwrap();
    let address = listener.local_addr().unwrap();
    let draining = Arc::new(AtomicBool::new(false));
    let offer = Offer {
        keys: Vec::new(),
        secret: None,
        own_urls: Vec::new(),
        fleet: Arc::new(Fleet::new("", Vec::new(), None)),
    };
    let service = Service::new(Fake::default(), offer, Ledger::default());
    let router = public::router(Fake::default(), Arc::clone(&draining), service);
    let front = Front::new(router, Limits::PUBLIC);
    let running = tokio::spawn(listener.run(drop, move |stream| {
        let front = front.clone();
        tokio::spawn(async move { front.serve(stream).await });
    }));
    Public {
        address,
        root: pair.certificate_pem,
        draining,
        running,
    }
}

#[tokio::test]
async fn public_paths_over_http_say_little() {
    let port = public_port();
    let answer = ask_as("turn.example.org", port.address, "GET", "/health").await;
    assert_eq!((answer.code, answer.json()), (200, json!({"status": "ok"})));
    port.draining.store(true, Ordering::Relaxed);
    let answer = ask_as("turn.example.org", port.address, "GET", "/health").await;
    assert_eq!(
        (answer.code, answer.json()),
        (503, json!({"status": "draining"}))
    );
    for path in ["/", "/metrics", "/api/v1/allocations", "/live"] {
        assert_eq!(ask(port.address, "GET", path).await.code, 404, "{path}");
    }
    assert_eq!(ask(port.address, "POST", "/health").await.code, 405);
}

#[tokio::test]
async fn the_test_page_may_run_its_own_script_and_nothing_else() {
    let port = public_port();
    let answer = ask(port.address, "GET", "/test").await;
    assert_eq!(answer.code, 200);
    assert!(
        answer
            .head
            .contains("content-type: text/html; charset=utf-8")
    );
    let policy = (answer.head.lines())
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"));
    assert!(!policy.contains("unsafe"));
    assert!(answer.head.contains("referrer-policy: no-referrer"));
    assert!(answer.body.contains("window.turnixResult"));
}

#[tokio::test]
async fn https_on_the_same_port() {
    let port = public_port();
    for alpn in [&["http/1.1"][..], &["h2", "http/1.1"], &[]] {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(port.root.as_bytes()).unwrap())
            .unwrap();
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let socket = TcpStream::connect(port.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await
            .unwrap();
        let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let answer = exchange(stream, request).await;
        assert_eq!((answer.code, answer.json()), (200, json!({"status": "ok"})));
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_answered() {
    let port = public_port();
    let mut socket = TcpStream::connect(port.address).await.unwrap();
    // Preface and an empty SETTINGS frame; the server answers with its own SETTINGS.
    socket
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut header = [0; 9];
    timeout(Duration::from_secs(5), socket.read_exact(&mut header))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(header[3], 0x04);
}
