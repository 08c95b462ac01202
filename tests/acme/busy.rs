//! An authority that has had enough for now, which Pebble never has.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};
use turnix::base::Clock;
use turnix::stream::certificates;

use super::certificates::{CONFIG, metric, serve, until};
use super::server::quiet_address;

/// An authority with a directory and nonces, that answers every order with 429 and an hour to wait.
struct Busy {
    address: SocketAddr,
    /// In PEM.
    root: String,
    asked: Arc<AtomicUsize>,
}

impl Busy {
    fn start(ip: Ipv4Addr) -> Self {
        let own = certificates::self_signed(&[ip.to_string()], Clock.now().unix_secs()).unwrap();
        let chain = CertificateDer::from_pem_slice(own.certificate_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(own.key_pem.expose().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        let config = Arc::new(config);
        let socket = TcpListener::bind((ip, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        // Ends with the process of the tests.
        std::thread::spawn(move || {
            for connection in socket.incoming().flatten() {
                let (config, count) = (Arc::clone(&config), Arc::clone(&count));
                std::thread::spawn(move || answer(connection, config, address, &count));
            }
        });
        Self {
            address,
            root: own.certificate_pem,
            asked,
        }
    }
}

fn answer(
    connection: TcpStream,
    config: Arc<ServerConfig>,
    address: SocketAddr,
    asked: &AtomicUsize,
) {
    let tls = ServerConnection::new(config).unwrap();
    let mut stream = StreamOwned::new(tls, connection);
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    while !request.windows(4).any(|part| part == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(length @ 1..) => request.extend(&piece[..length]),
            _ => return,
        }
    }
    let url = |path: &str| format!("https://{address}/{path}");
    let (status, header, body) = if request.starts_with(b"GET /dir ") {
        let directory = serde_json::json!({
            "newNonce": url("nonce"),
            "newAccount": url("account"),
            "newOrder": url("order"),
        });
        ("200 OK", String::new(), directory.to_string())
    } else if request.starts_with(b"HEAD ") {
        (
            "200 OK",
            "Replay-Nonce: bm9uY2U\r\n".to_owned(),
            String::new(),
        )
    } else {
        asked.fetch_add(1, Ordering::Relaxed);
        let problem = serde_json::json!({
            "type": "urn:ietf:params:acme:error:rateLimited",
            "detail": "too many new registrations\u{1b}[31m from this address",
        });
        (
            "429 Too Many Requests",
            "Retry-After: 3600\r\nReplay-Nonce: bm9uY2U\r\n".to_owned(),
            problem.to_string(),
        )
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\n{header}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

#[test]
fn an_authority_that_says_when_is_not_asked_before() {
    let ip = quiet_address();
    let busy = Busy::start(ip);
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("root.pem"), &busy.root).unwrap();
    let config = format!(
        "{CONFIG}[tls.acme]\nnames = [\"turn.example-1.org\"]\ndirectory = \"https://{}/dir\"\nca_file = \"{}\"\n",
        busy.address,
        state.path().join("root.pem").display()
    );
    let process = serve(&config, ip, state.path());
    until(&process, "it is told", || {
        metric(&process, "turn_acme_failures") > 0
    });
    let wait = || {
        let next = metric(&process, "turn_acme_next_order_timestamp_seconds");
        next.saturating_sub(Clock.now().unix_secs())
    };
    until(&process, "it waits", || wait() > 3000);
    assert!(wait() <= 3600, "{}", wait());
    let log = process.log();
    assert!(
        log.contains("rateLimited: too many new registrations"),
        "{log}"
    );
    assert!(log.contains("tried again by itself"), "{log}");
    assert!(!log.contains('\u{1b}') && !log.contains("\\u001b"), "{log}");
    // Not even when an operator would like to.
    process.signal("USR2");
    until(&process, "it says so", || {
        process.log().contains("nothing to order before its time")
    });
    assert!(wait() > 3000);
    assert_eq!(busy.asked.load(Ordering::Relaxed), 1);
}

#[test]
fn pauses_hold_where_the_state_directory_takes_nothing() {
    let ip = quiet_address();
    let busy = Busy::start(ip);
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("root.pem"), &busy.root).unwrap();
    // The file of its pause can be read, whoever runs this; what is written before it is renamed has a longer name, which
    // no file system takes.
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}.example-1.org", "a".repeat(24));
    let directory = format!("https://{}/dir", busy.address);
    let kept = state.path().join("acme");
    let lock = kept.join("lock");
    let hash = Sha256::digest(format!("{name}\0{directory}\0"));
    let hash: String = (hash.iter().take(4))
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let earlier = serde_json::json!({
        "failures": 1,
        "retry_unix": Clock.now().unix_secs() + 3600,
        "told_unix": 0,
        "cause": "an earlier one",
    });
    let earlier = earlier.to_string();
    let failed = kept.join(format!("{name}-{hash}.failed.json"));
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(&failed, &earlier).unwrap();
    let config = format!(
        "{CONFIG}[tls.acme]\nnames = [\"{name}\"]\ndirectory = \"{directory}\"\nca_file = \"{}\"\n",
        state.path().join("root.pem").display()
    );
    let process = serve(&config, ip, state.path());
    let wait = || {
        let next = metric(&process, "turn_acme_next_order_timestamp_seconds");
        next.saturating_sub(Clock.now().unix_secs())
    };
    until(&process, "it waits", || wait() > 3000);

    // Not even the lock can be had: an operator's word is worth one attempt.
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    process.signal("USR2");
    until(&process, "it is told", || {
        process.log().contains("nothing can be kept in")
    });
    until(&process, "it waits for less", || {
        (200..1000).contains(&wait())
    });
    assert_eq!(metric(&process, "turn_acme_failures"), 2);
    assert_eq!(process.log().matches("nothing can be kept in").count(), 1);

    // The authority says when; the file, which says otherwise, is what it was.
    std::fs::remove_dir(&lock).unwrap();
    process.signal("USR2");
    until(&process, "the authority is asked", || {
        process.log().contains("rateLimited")
    });
    until(&process, "it waits for the authority", || wait() > 3000);
    process.signal("USR2");
    until(&process, "it says so", || {
        process.log().contains("nothing to order before its time")
    });
    assert!(wait() > 3000);
    assert_eq!(metric(&process, "turn_acme_failures"), 3);
    assert_eq!(busy.asked.load(Ordering::Relaxed), 1);
    assert!(
        std::fs::read_to_string(&failed)
            .unwrap()
            .contains("an earlier one")
    );
}
