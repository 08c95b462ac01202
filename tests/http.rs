//! The admin listener and the public paths, asked over real sockets.

#[path = "http/events.rs"]
mod events;
#[path = "common/quality.rs"]
mod quality;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use turnix::access::AuthFailure;
use turnix::base::{Clock, Family, Now, Secret, Transport};
use turnix::cluster::own::{Fault, Seen};
use turnix::cluster::{Fleet, Ledger};
use turnix::http::admin::{self, AdminState};
use turnix::http::ice::{ApiKey, Offer, Service};
use turnix::http::status::{Board, Circumstances, State, Way};
use turnix::http::visits::{self, Form, Visits};
use turnix::http::{Events, Front, Limits, Lookout, ShardControl, public};
use turnix::metrics::{Calls, Capacity, NamedAllocation, ShardSnapshot, Survey};
use turnix::stream::{
    Admission, Certificate, Certificates, Listener, Protocols, Settings, certificates,
};
use turnix::turn::{AllocationId, AllocationView, Traffic};
use turnix::wire::{ErrorCode, Method};

/// Shards that answer what a test wants.
#[derive(Clone, Default)]
struct Fake(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    dead: AtomicBool,
    asked_alive: AtomicUsize,
    /// How often anything else was asked.
    asked: AtomicUsize,
    /// How often all allocations were.
    surveyed: AtomicUsize,
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
                    realm: None,
                    scope: turnix::access::Scope::Policy,
                    transport: Transport::Udp,
                    client: "198.51.100.7:4000".parse().unwrap(),
                    relayed: "[2001:db8::7]:50000".parse().unwrap(),
                    additional: None,
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
                    relay_transport: turnix::base::RelayTransport::Udp,
                    connections: 0,
                    quality: None,
                },
            });
        }
        fake
    }

    /// As many users with a call of which everything is known.
    fn with_calls(users: &[(&str, &str)]) -> Self {
        let fake = Self::with(users);
        for one in fake.0.live.lock().unwrap().iter_mut() {
            one.view.quality = Some(Box::new(quality::lossy()));
        }
        fake
    }
}

impl ShardControl for Fake {
    async fn snapshot(&self) -> ShardSnapshot {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        let mut snapshot = ShardSnapshot::default();
        for (outcome, times) in [
            (Ok(()), 9),
            (Err(ErrorCode::Unauthenticated), 20),
            (Err(ErrorCode::AllocationQuotaReached), 3),
        ] {
            for _ in 0..times {
                (snapshot.stats).answered(Method::Allocate, Transport::Udp, outcome);
            }
        }
        snapshot.stats.sessions = [6, 1, 1, 4, 0];
        snapshot.stats.auth_failures[AuthFailure::Missing as usize] = 19;
        snapshot.stats.auth_failures[AuthFailure::BadPassword as usize] = 1;
        snapshot.stats.live[Transport::Udp as usize][Family::V6 as usize] =
            self.0.live.lock().unwrap().len() as u64;
        snapshot
    }

    async fn allocations(&self, most: usize) -> Vec<NamedAllocation> {
        let live = self.0.live.lock().unwrap();
        live.iter().take(most).cloned().collect()
    }

    async fn survey(
        &self,
        most: usize,
        wanted: impl Fn(&AllocationView) -> bool + Send + Sync,
    ) -> Survey {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        self.0.surveyed.fetch_add(1, Ordering::Relaxed);
        let mut found = self.0.live.lock().unwrap().clone();
        let mut calls = Calls::default();
        calls.extend(found.iter().filter_map(|one| one.view.quality.as_deref()));
        found.retain(|allocation| wanted(&allocation.view));
        let count = found.len();
        found.truncate(most);
        Survey {
            busiest: found,
            found: count,
            bits_per_second: [[800, 1600]; Transport::ALL.len()],
            calls,
        }
    }

    async fn allocation(&self, name: &str) -> Option<NamedAllocation> {
        let live = self.0.live.lock().unwrap();
        live.iter().find(|one| one.name == name).cloned()
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

    fn capacity(&self) -> Capacity {
        Capacity {
            ports_in_use: [0, 50],
            ports: [0, 100],
            ..Capacity::default()
        }
    }
}

struct Admin {
    address: SocketAddr,
    shards: Fake,
    draining: Arc<AtomicBool>,
    front: Front,
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
    admin_with(shards, limits, |state| state)
}

fn admin_with(
    shards: Fake,
    limits: Limits,
    with: impl FnOnce(AdminState<Fake>) -> AdminState<Fake>,
) -> Admin {
    let draining = Arc::new(AtomicBool::new(false));
    let settings = admin::Settings {
        node: "node-1".to_owned(),
        region: "eu".to_owned(),
        version: "9.9.9",
        per_allocation: 1,
        quotas: turnix::access::Limits {
            allocations_per_user: 7,
            ..Default::default()
        },
        bandwidth: Default::default(),
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
    let state = with(state);
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let front = Front::new(admin::router(state), limits);
    Admin {
        address,
        shards,
        draining,
        front: front.clone(),
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
            "permissions": 2, "channels": 1, "relay_transport": "udp", "connections": 0,
            "bytes": {"to_peer": 1000, "to_client": 2000},
            "packets": {"to_peer": 10, "to_client": 20},
            "bits_per_second": {"to_peer": 800, "to_client": 1600},
            "peak_bits_per_second": {"to_peer": 8000, "to_client": 16000},
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
async fn an_allocation_tells_how_its_call_goes() {
    let admin = admin(Fake::with_calls(&[("0-0-0", "alice")]));
    let expected = json!({
        "session": "established",
        "rtt_ms": {
            "client": {"latest": 24.1, "smoothed": 23.456, "least": 21.0, "samples": 9},
            "peer": {"latest": 180.0, "smoothed": 170.0, "least": 160.0, "samples": 8},
        },
        "loss": {"to_peer": 0.0, "to_client": 0.05},
        "recent_loss": {"to_peer": 0.0, "to_client": 0.125},
        "jitter_ms": {"to_peer": 1.25, "to_client": null},
        "received": {"to_peer": 1000, "to_client": 950},
        "lost": {"to_peer": 0, "to_client": 50},
        "reordered": {"to_peer": 0, "to_client": 3},
        "checks": {
            "to_peer": {"sent": 12, "repeated": 2, "answered": 8, "unanswered": 3},
            "to_client": {"sent": 10, "repeated": 0, "answered": 9, "unanswered": 1},
        },
        "streams": [{
            "ssrc": 0xdead_beef_u32, "direction": "to_peer", "media": "audio", "payload_type": 111,
            "received": 1000, "lost": 0, "reordered": 0, "jitter_ms": 1.25, "clock_rate": 48000,
        }],
        "first_data_ms": {"to_peer": 5.0, "to_client": 350.0},
        "idle_ms": {"to_peer": 20.0, "to_client": 1.5},
        "dtls": {"to_peer": true, "to_client": true},
        "media": {"to_peer": true, "to_client": true},
        "media_idle_ms": {"to_peer": 30.0, "to_client": 40.0},
    });
    let listed = ask(admin.address, "GET", "/api/v1/allocations").await;
    assert_eq!(listed.json()[0]["quality"], expected);
    let one = ask(admin.address, "GET", "/api/v1/allocations/0-0-0").await;
    assert_eq!(one.json()["quality"], expected);
}

#[tokio::test]
async fn everything_else_is_refused_in_json() {
    let admin = admin(Fake::default());
    for (method, path, code) in [
        ("POST", "/", 405),
        ("GET", "/etc/passwd", 404),
        ("GET", "/api/v1/reload", 405),
        // Nobody is there to carry it out.
        ("POST", "/api/v1/reload", 503),
        ("POST", "/metrics", 405),
        ("GET", "/api/v1/allocations/0-0-0", 404),
        ("PUT", "/api/v1/allocations/0-0-0", 405),
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
    board: Board,
    draining: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<std::io::Error>,
}

impl Drop for Public {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn visits() -> Visits {
    let form = |transport, port| Form {
        transport,
        host: "192.0.2.7".into(),
        port,
        bound: "0.0.0.0".parse().unwrap(),
    };
    let settings = visits::Settings {
        enabled: true,
        forms: vec![
            form(Transport::Udp, 3478),
            form(Transport::Tcp, 443),
            form(Transport::Tls, 443),
        ],
        bits_per_second: 0,
        node: "node".into(),
        region: "region".into(),
    };
    Visits::new(Clock.now(), settings)
}

fn public_port() -> Public {
    public_port_with(Vec::new(), Ledger::default())
}

fn public_port_with(keys: Vec<ApiKey>, ledger: Ledger) -> Public {
    public_port_of(Fake::default(), keys, ledger)
}

fn public_port_of(shards: Fake, keys: Vec<ApiKey>, ledger: Ledger) -> Public {
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
        secret: (!keys.is_empty()).then(|| Secret::new("a shared secret".to_owned())),
        keys,
        own_urls: Vec::new(),
        fleet: Arc::new(Fleet::new("", Vec::new(), None)),
    };
    let service = Service::new(shards, offer, ledger);
    let board = Board::new(Clock.now(), true, true);
    let router = public::router(
        Fake::default(),
        Arc::clone(&draining),
        service,
        visits(),
        board.clone(),
    );
    let front = Front::new(router, Limits::PUBLIC);
    let running = tokio::spawn(listener.run(drop, move |stream| {
        let front = front.clone();
        tokio::spawn(async move { front.serve(stream).await });
    }));
    Public {
        address,
        root: pair.certificate_pem,
        board,
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

/// The key "web", whose secret is "secret".
fn web_key() -> ApiKey {
    ApiKey {
        id: "web".into(),
        secret_hash: Sha256::digest("secret").into(),
        secret: None,
        ttl: Duration::from_secs(3600),
        origins: Vec::new(),
        user_prefix: String::new(),
        rate: 0,
        realm: None,
    }
}

#[tokio::test]
async fn applications_are_told_how_calls_go_and_shards_are_asked_once_a_second() {
    let shards = Fake::with_calls(&[("0-0-0", "alice"), ("0-1-0", "bob")]);
    let port = public_port_of(shards.clone(), vec![web_key()], Ledger::default());
    let told = ask(port.address, "GET", "/api/webrtc/stats?key=secret").await;
    assert_eq!(told.code, 200, "{}", told.body);
    let told = told.json();
    assert_eq!(
        told["sessions"],
        json!({
            "established": 6, "toPeerOnly": 1, "toClientOnly": 1, "unused": 4, "early": 0,
            "successRatio": 0.75,
        })
    );
    let of = |value: f64| {
        json!({
            "p50": value, "p90": value, "p99": value, "mean": value, "allocations": 2,
        })
    };
    assert_eq!(
        told["rttMs"],
        json!({"client": of(23.456), "peer": of(170.0)})
    );
    assert_eq!(
        told["loss"],
        json!({"toPeer": of(0.0), "toClient": of(0.125)})
    );
    assert_eq!(
        told["jitterMs"],
        json!({"toPeer": of(1.25), "toClient": null})
    );
    assert_eq!(told["toPeer"]["bitsPerSecond"], 800 * Transport::ALL.len());
    let before = shards.0.surveyed.load(Ordering::Relaxed);
    for _ in 0..5 {
        ask(port.address, "GET", "/api/webrtc/stats?key=secret").await;
    }
    let more = shards.0.surveyed.load(Ordering::Relaxed) - before;
    assert!(more <= 3, "asked {more} times for five answers");
}

#[tokio::test]
async fn metrics_hold_what_the_lookout_sees() {
    let shards = Fake::with_calls(&[("0-0-0", "alice")]);
    let lookout = Lookout::default();
    let known = lookout.clone();
    let admin = admin_with(shards.clone(), Limits::ADMIN, |state| {
        state.with_lookout(known)
    });
    let observed = async || {
        let text = ask(admin.address, "GET", "/metrics").await.body;
        let name = "turn_rtt_seconds_count{leg=\"client\"} ";
        let count = text.lines().find_map(|line| line.strip_prefix(name));
        count.unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(observed().await, 0);
    let looking = lookout.observe_every(Duration::from_millis(10), shards);
    let looking = tokio::spawn(looking);
    let mut looks = 0;
    for _ in 0..500 {
        looks = observed().await;
        if looks >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    looking.abort();
    assert!(looks >= 3, "{looks} looks");
}

#[tokio::test]
async fn during_a_take_over_applications_are_told_to_ask_again() {
    let key = web_key();
    let directory = tempfile::tempdir().unwrap();
    let unix = Clock.now().unix_secs();
    let (ledger, _) = Ledger::open(directory.path(), unix).unwrap();
    let port = public_port_with(vec![key], ledger.clone());
    let create = "/api/v1/turn/credential?secretKey=secret";
    assert_eq!(ask(port.address, "POST", create).await.code, 200);
    ledger.leave();
    let created = ask(port.address, "POST", create).await;
    let name = format!("{}%3Ax%3Bkey%3Dweb", unix + 60);
    let request = format!(
        "POST /v1/turn/keys/web/credentials/{name}/revoke HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer secret\r\nconnection: close\r\n\r\n"
    );
    let socket = TcpStream::connect(port.address).await.unwrap();
    let revoked = exchange(socket, request.as_bytes()).await;
    for answer in [created, revoked] {
        assert_eq!(answer.code, 503, "{}", answer.body);
        assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    }
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

/// What looks found, one after the other, at a time that only this test moves.
struct Watcher {
    board: Board,
    now: Now,
}

const UDP: Way = Way {
    transport: Transport::Udp,
    port: 3478,
    family: Family::V4,
};
const TLS: Way = Way {
    transport: Transport::Tls,
    port: 443,
    family: Family::V4,
};

impl Watcher {
    fn new() -> Self {
        let now = Now {
            unix: Duration::from_secs(1_000_000 * 300),
            ..Clock.now()
        };
        Self {
            board: Board::new(now, true, true),
            now,
        }
    }

    fn well() -> Circumstances {
        Circumstances {
            alive: true,
            draining: false,
            capacity_ratio: 0.5,
            certificate_expiry_unix: Some(u64::MAX),
            private: false,
        }
    }

    fn sees(
        &mut self,
        udp: Option<Fault>,
        tls: Option<Fault>,
        around: Circumstances,
    ) -> (State, Vec<&'static str>) {
        self.now = self.now + Duration::from_secs(5);
        let result = |fault: Option<Fault>| match fault {
            Some(fault) => Err(fault),
            None => Ok(Seen {
                echo: Duration::from_millis(1),
                whole: Duration::from_millis(5),
            }),
        };
        let found = vec![(UDP, result(udp)), (TLS, result(tls))];
        self.board.record(self.now, found, around);
        let report = self.board.report(self.now).unwrap();
        (
            report.state,
            report.reasons.iter().map(|reason| reason.code).collect(),
        )
    }
}

#[test]
fn one_look_that_fails_is_no_outage_and_two_are() {
    let mut watcher = Watcher::new();
    let well = Watcher::well();
    let report = watcher.board.report(watcher.now).unwrap();
    assert_eq!(
        (report.state, report.reasons[0].code),
        (State::Degraded, "starting")
    );
    let online = (State::Online, vec![]);
    assert_eq!(watcher.sees(None, None, well), online);
    assert_eq!(watcher.sees(Some(Fault::Silent), None, well), online);
    assert_eq!(watcher.sees(None, None, well), online);
    for (fault, code) in [
        (Fault::Silent, "silent"),
        (Fault::Closed, "closed"),
        (Fault::Handshake, "handshake"),
        (Fault::Relay, "relay"),
        (Fault::Refused(401), "refused"),
        (Fault::Broken, "broken"),
    ] {
        // What comes and goes three times in ten minutes would count as unsteady.
        watcher.now = watcher.now + Duration::from_secs(900);
        assert_eq!(watcher.sees(None, Some(fault), well), online);
        let degraded = (State::Degraded, vec![code]);
        assert_eq!(watcher.sees(None, Some(fault), well), degraded);
        // All of them.
        assert_eq!(watcher.sees(Some(fault), Some(fault), well), degraded);
        let (state, codes) = watcher.sees(Some(fault), Some(fault), well);
        assert_eq!(state, State::Offline);
        assert_eq!(
            codes.len(),
            if code == "relay" { 1 } else { 2 },
            "{codes:?}"
        );
        // One success is enough.
        assert_eq!(watcher.sees(None, None, well), online);
    }
}

/// Two addresses with the same port: each has its own failures, and one alone is out.
#[test]
fn ways_that_look_alike_are_told_apart() {
    let watcher = Watcher::new();
    let seen = Ok(Seen {
        echo: Duration::from_millis(1),
        whole: Duration::from_millis(5),
    });
    for _ in 0..2 {
        let found = vec![(UDP, seen), (UDP, Err(Fault::Silent))];
        (watcher.board).record(watcher.now, found, Watcher::well());
    }
    let report = watcher.board.report(watcher.now).unwrap();
    assert_eq!((report.state, report.reasons.len()), (State::Degraded, 1));
    assert_eq!(report.reasons[0].code, "silent");
}

#[test]
fn circumstances_have_words_of_their_own() {
    let mut watcher = Watcher::new();
    let well = Watcher::well();
    let unix = watcher.now.unix_secs();
    let cases = [
        (
            Circumstances {
                alive: false,
                ..well
            },
            State::Degraded,
            "stuck",
        ),
        (
            Circumstances {
                draining: true,
                ..well
            },
            State::Degraded,
            "draining",
        ),
        (
            Circumstances {
                capacity_ratio: 1.0,
                ..well
            },
            State::Degraded,
            "full",
        ),
        (
            Circumstances {
                capacity_ratio: 0.96,
                ..well
            },
            State::Online,
            "nearly_full",
        ),
        (
            Circumstances {
                private: true,
                ..well
            },
            State::Online,
            "private_address",
        ),
        (
            Circumstances {
                certificate_expiry_unix: Some(unix),
                ..well
            },
            State::Degraded,
            "certificate_expired",
        ),
        (
            Circumstances {
                certificate_expiry_unix: Some(unix + 86_400),
                ..well
            },
            State::Online,
            "certificate_expires",
        ),
    ];
    for (around, state, code) in cases {
        assert_eq!(watcher.sees(None, None, around), (state, vec![code]));
    }
    // The worst comes first; a full server is up.
    watcher.sees(Some(Fault::Full), Some(Fault::Full), well);
    assert_eq!(
        watcher.sees(
            Some(Fault::Full),
            Some(Fault::Full),
            Circumstances {
                private: true,
                ..well
            }
        ),
        (State::Degraded, vec!["full", "private_address"])
    );
    let without_tls = Circumstances {
        certificate_expiry_unix: None,
        ..well
    };
    assert_eq!(
        watcher.sees(None, None, without_tls),
        (State::Online, vec![])
    );
}

#[tokio::test]
async fn the_history_is_bounded_and_remembers_the_worst() {
    let port = public_port();
    let mut watcher = Watcher::new();
    watcher.board = port.board.clone();
    watcher.now = Clock.now();
    let well = Watcher::well();
    for _ in 0..2 {
        watcher.sees(Some(Fault::Silent), Some(Fault::Silent), well);
    }
    watcher.sees(None, None, well);
    let history = async || {
        let answer = ask(port.address, "GET", "/status").await.json();
        let slots = answer["history"]["slots"].as_array().unwrap().clone();
        (answer["status"].clone(), slots)
    };
    let (status, slots) = history().await;
    assert_eq!(
        (status, slots.last()),
        (json!("online"), Some(&json!("offline")))
    );
    // An hour of which nothing is known, then days.
    watcher.now.unix += Duration::from_secs(3600);
    watcher.sees(None, None, well);
    let (_, slots) = history().await;
    assert_eq!(slots.last(), Some(&json!("online")));
    assert_eq!(slots[slots.len() - 2], Value::Null);
    assert!((12..=14).contains(&slots.len()), "{}", slots.len());
    for _ in 0..10_000 {
        watcher.now.unix += Duration::from_secs(295);
        watcher.sees(None, None, well);
    }
    let (_, slots) = history().await;
    assert_eq!(slots.len(), 144);
    assert!(slots.iter().all(|slot| slot == "online"));
}

/// What the test page gets that was opened as `host`.
async fn visit(port: &Public, host: &str) -> Answer {
    let socket = TcpStream::connect(port.address).await.unwrap();
    let request = format!(
        "POST /test/session HTTP/1.1\r\nhost: {host}\r\norigin: http://{host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    exchange(socket, request.as_bytes()).await
}

#[tokio::test]
async fn visitors_are_led_by_the_name_they_came_by() {
    let port = public_port();
    for (host, name) in [
        ("turn.example.org", "turn.example.org"),
        ("TURN.example.org:8080", "turn.example.org"),
        ("127.0.0.1", "127.0.0.1"),
        ("[2001:db8::1]:80", "[2001:db8::1]"),
        // Which address a browser takes for it is not certain.
        ("localhost:1234", "127.0.0.1"),
    ] {
        let answer = visit(&port, host).await;
        assert_eq!(answer.code, 200, "{host}");
        assert!(
            answer.head.contains("cache-control: no-store"),
            "{}",
            answer.head
        );
        let body = answer.json();
        let expected = [
            (
                format!("turn:{name}:3478?transport=udp"),
                "TURN over UDP, port 3478",
                "udp",
                3478,
            ),
            (
                format!("turn:{name}:443?transport=tcp"),
                "TURN over TCP, port 443",
                "tcp",
                443,
            ),
            (
                format!("turns:{name}:443?transport=tcp"),
                "TURN over TLS, port 443",
                "tls",
                443,
            ),
        ];
        let servers = body["iceServers"].as_array().unwrap();
        assert_eq!(servers.len(), expected.len());
        for (server, (url, name, transport, number)) in servers.iter().zip(expected) {
            assert_eq!(server["urls"], json!([url]));
            assert_eq!(server["name"], name);
            assert_eq!(
                (&server["transport"], &server["port"]),
                (&json!(transport), &json!(number))
            );
            assert_eq!(server["username"], body["username"]);
            assert_eq!(server["credential"], body["credential"]);
        }
        assert!(body["username"].as_str().unwrap().contains(":turnix-test:"));
        assert_eq!(body["server"]["node"], "node");
    }
    // What is no name of a host leads to what the operator named.
    for host in ["turn_server!", "a..b"] {
        let answer = visit(&port, host).await;
        if answer.code == 200 {
            let url = &answer.json()["iceServers"][0]["urls"][0];
            assert_eq!(url, "turn:192.0.2.7:3478?transport=udp", "{host}");
        } else {
            assert_eq!(answer.code, 403, "{host}");
        }
    }
}
