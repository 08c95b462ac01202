//! A receiver of webhooks: HTTP/1.1 over TCP or TLS, with answers that the test chooses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use turnix::stream::certificates::SelfSigned;

/// One request.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub signature: String,
    pub body: Vec<u8>,
    /// What it was answered with.
    pub status: u16,
}

impl Received {
    pub fn records(&self) -> Vec<Value> {
        let body: Value = serde_json::from_slice(&self.body).expect("JSON");
        body["records"].as_array().expect("records").clone()
    }
}

pub struct Receiver {
    pub address: SocketAddr,
    pub received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// Answers with `statuses` in turn, then with 200; with 0 not at all.
    pub fn start(statuses: &[u16], tls: Option<&SelfSigned>) -> Self {
        let tls = tls.map(|signed| {
            let chain = CertificateDer::from_pem_slice(signed.certificate_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(signed.key_pem.expose().as_bytes()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![chain], key)
                .unwrap();
            Arc::new(config)
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let script: Vec<u16> = statuses.to_vec();
        let mut script = script.into_iter();
        let kept = Arc::clone(&received);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let timeout = Some(Duration::from_secs(30));
                connection.set_read_timeout(timeout).unwrap();
                match &tls {
                    None => serve(connection, &mut script, &kept),
                    Some(config) => {
                        let session = ServerConnection::new(Arc::clone(config)).unwrap();
                        serve(StreamOwned::new(session, connection), &mut script, &kept);
                    }
                }
            }
        });
        Self { address, received }
    }

    pub fn all(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Records of the requests that were answered with 200.
    pub fn taken(&self) -> Vec<Value> {
        (self.all().iter())
            .filter(|received| received.status == 200)
            .flat_map(Received::records)
            .collect()
    }
}

/// One request; the next one comes on a connection of its own.
fn serve<S: Read + Write>(
    mut io: S,
    script: &mut impl Iterator<Item = u16>,
    received: &Mutex<Vec<Received>>,
) {
    let Some((path, signature, body)) = request(&mut io) else {
        return;
    };
    let status = script.next().unwrap_or(200);
    let entry = Received {
        path,
        signature,
        body,
        status,
    };
    received.lock().unwrap().push(entry);
    if status == 0 {
        // Keeps the sender waiting until it gives up.
        let _ = io.read(&mut [0]);
        return;
    }
    let location = if status == 302 {
        "Location: /elsewhere\r\n"
    } else {
        ""
    };
    let answer =
        format!("HTTP/1.1 {status} x\r\n{location}Content-Length: 0\r\nConnection: close\r\n\r\n");
    let _ = io.write_all(answer.as_bytes());
    let _ = io.flush();
}

fn request(io: &mut impl Read) -> Option<(String, String, Vec<u8>)> {
    let mut reader = BufReader::new(io);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut signature) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "turnix-signature" => signature = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, signature, body))
}
