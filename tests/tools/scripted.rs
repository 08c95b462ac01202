//! Servers that do what a sound one does not: refuse, forget, damage, lie.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use turnix::wire::key::long_term_key;
use turnix::wire::{ErrorCode, Kind, Message, Method, Response, classify};

use super::server::now;

const REALM: &str = "scripted.example.org";

/// How long a thread waits before it looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// How a server answers one method, once it has asked for credentials.
#[derive(Clone, Copy)]
pub enum Answer {
    Success,
    Refuse(ErrorCode),
    /// 300, to there.
    Elsewhere(SocketAddr),
    Silence,
}

/// What a scripted server does.
#[derive(Clone, Copy)]
pub struct Script {
    pub binding: Answer,
    pub allocate: Answer,
    pub permission: Answer,
    pub relayed: &'static str,
    pub nonce: &'static str,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            binding: Answer::Success,
            allocate: Answer::Success,
            permission: Answer::Success,
            relayed: "127.0.0.1:9",
            nonce: "a nonce of ours",
        }
    }
}

/// A thread that ends with the test.
pub struct Helper {
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    fn start(address: SocketAddr, mut step: impl FnMut() + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                step();
            }
        });
        Self {
            address,
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A TURN server over UDP that relays nothing.
pub fn serve(script: Script) -> Helper {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    let address = socket.local_addr().unwrap();
    let mut buffer = [0; 2048];
    Helper::start(address, move || {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            return;
        };
        if let Some(answer) = answer(&script, from, &buffer[..length]) {
            let _ = socket.send_to(&answer, from);
        }
    })
}

fn answer(script: &Script, from: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
    if classify(datagram) != Kind::Stun {
        return None;
    }
    let message = Message::parse(datagram).ok()?;
    let (method, id) = (message.method(), message.transaction_id());
    let planned = match method {
        Method::Binding => script.binding,
        Method::Allocate => script.allocate,
        Method::CreatePermission => script.permission,
        Method::ChannelBind | Method::Refresh => Answer::Success,
        _ => return None,
    };
    if method != Method::Binding && !message.has_integrity() {
        let challenge = Response::error(method, id, ErrorCode::Unauthenticated);
        return Some(challenge.challenge(REALM, script.nonce).finish(None, false));
    }
    let key = long_term_key(b"alice", REALM, b"wonderland");
    let response = match planned {
        Answer::Silence => return None,
        Answer::Elsewhere(other) => {
            Response::error(method, id, ErrorCode::TryAlternate).alternate_server(other)
        }
        Answer::Refuse(code) => {
            let response = Response::error(method, id, code);
            match code {
                ErrorCode::Unauthenticated | ErrorCode::StaleNonce => {
                    response.challenge(REALM, "another nonce of ours")
                }
                _ => response,
            }
        }
        Answer::Success => {
            let response = Response::success(method, id);
            match method {
                Method::Binding => response.mapped_address(from),
                Method::Allocate => response
                    .relayed_address(script.relayed.parse().unwrap())
                    .mapped_address(from)
                    .lifetime(600),
                Method::Refresh => response.lifetime(message.lifetime().ok()??),
                _ => response,
            }
        }
    };
    let key = (method != Method::Binding).then_some(&key);
    Some(response.finish(key, false))
}

/// A path to `server` that loses the datagrams for which `loses` says so; it hears how many came before.
pub fn lossy(server: SocketAddr, loses: fn(u32, &[u8]) -> bool) -> Helper {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    let mut clients: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let (mut buffer, mut count) = ([0; 4096], 0);
    Helper::start(address, move || {
        let mut idle = true;
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            idle = false;
            count += 1;
            let out = clients.entry(from).or_insert_with(|| {
                let out = UdpSocket::bind("127.0.0.1:0").unwrap();
                out.set_nonblocking(true).unwrap();
                out.connect(server).unwrap();
                out
            });
            if !loses(count, &buffer[..length]) {
                let _ = out.send(&buffer[..length]);
            }
        }
        for (client, out) in &clients {
            while let Ok(length) = out.recv(&mut buffer) {
                idle = false;
                let _ = socket.send_to(&buffer[..length], client);
            }
        }
        if idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

/// A web server whose answers say that it is `date`.
pub fn web(port: u16, date: std::time::SystemTime) -> Helper {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let date = httpdate::fmt_http_date(date);
    Helper::start(address, move || {
        let Ok((mut connection, _)) = listener.accept() else {
            return std::thread::sleep(Duration::from_millis(10));
        };
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(LOOK * 20)).unwrap();
        let (mut request, mut more) = (Vec::new(), [0; 1024]);
        let end = now() + LOOK * 20;
        while !request.windows(4).any(|window| window == b"\r\n\r\n") && now() < end {
            match connection.read(&mut more) {
                Ok(0) | Err(_) => break,
                Ok(length) => request.extend_from_slice(&more[..length]),
            }
            // What is no HTTP is answered all the same.
            if request
                .first()
                .is_some_and(|byte| !byte.is_ascii_uppercase())
            {
                break;
            }
        }
        let _ = write!(
            connection,
            "HTTP/1.1 400 Bad Request\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    })
}

/// A server that shows a certificate and nothing else.
pub fn tls((certificate, key): &(String, String)) -> Helper {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    Helper::start(address, move || {
        let Ok((mut connection, _)) = listener.accept() else {
            return std::thread::sleep(Duration::from_millis(10));
        };
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(LOOK * 20)).unwrap();
        let mut session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        while session.is_handshaking() {
            if session.complete_io(&mut connection).is_err() {
                return;
            }
        }
    })
}
