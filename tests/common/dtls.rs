//! A DTLS client of RFC 7350 on a socket that is connected to a server: the crate's own client side.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dimpl::{Config, Dtls, DtlsCertificate, Output};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use turnix::base::Clock;
use turnix::stream::certificates;

fn now() -> Instant {
    Clock.now().mono
}

/// A certificate for clients to have and nobody to ask for.
pub fn certificate() -> DtlsCertificate {
    static MADE: OnceLock<DtlsCertificate> = OnceLock::new();
    MADE.get_or_init(|| {
        let made =
            certificates::self_signed(&["client".to_owned()], Clock.now().unix_secs()).unwrap();
        let leaf = CertificateDer::from_pem_slice(made.certificate_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.key_pem.expose().as_bytes()).unwrap();
        DtlsCertificate {
            certificate: leaf.to_vec(),
            private_key: key.secret_der().to_vec(),
        }
    })
    .clone()
}

/// What a client says first.
pub fn client_hello() -> Vec<u8> {
    let mut client = client(now());
    client.handle_timeout(now()).unwrap();
    let mut buffer = vec![0; 4096];
    match client.poll_output(&mut buffer) {
        Output::Packet(packet) => packet.to_vec(),
        other => panic!("no ClientHello but {other:?}"),
    }
}

/// A client of DTLS 1.2 that has not said anything yet.
pub fn client(now: Instant) -> Dtls {
    let config = Arc::new(Config::builder().build().unwrap());
    let mut dtls = Dtls::new_12(config, certificate(), now);
    dtls.set_active(true);
    dtls
}

pub struct DtlsLink {
    pub socket: UdpSocket,
    dtls: Dtls,
    connected: bool,
    /// The server said goodbye.
    pub closed: bool,
    arrived: VecDeque<Vec<u8>>,
    wake: Instant,
    /// The certificate that the server has shown.
    pub server: Vec<u8>,
    /// Bytes sent and received so far, as datagrams.
    pub traffic: [usize; 2],
}

impl DtlsLink {
    /// One that has not said anything yet.
    pub fn new(socket: UdpSocket) -> Self {
        Self {
            socket,
            dtls: client(now()),
            connected: false,
            closed: false,
            arrived: VecDeque::new(),
            wake: now(),
            server: Vec::new(),
            traffic: [0; 2],
        }
    }

    /// Shakes hands.
    pub fn connect(socket: UdpSocket, patience: Duration) -> io::Result<Self> {
        let mut link = Self::new(socket);
        let deadline = now() + patience;
        while !link.connected {
            if now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            link.step(Duration::from_millis(50))?;
        }
        Ok(link)
    }

    /// Sends what there is to send, and takes one datagram if one comes within `patience`.
    pub fn step(&mut self, patience: Duration) -> io::Result<()> {
        if self.wake <= now() || !self.connected {
            self.dtls.handle_timeout(now()).map_err(io::Error::other)?;
        }
        self.drain()?;
        self.socket
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 65_536];
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                self.traffic[1] += length;
                (self.dtls.handle_packet(&buffer[..length])).map_err(io::Error::other)?;
                self.drain()
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match self.dtls.poll_output(&mut buffer) {
                Output::Packet(packet) => {
                    self.traffic[0] += packet.len();
                    self.socket.send(packet)?;
                }
                Output::ApplicationData(data) => self.arrived.push_back(data.to_vec()),
                Output::Connected => self.connected = true,
                Output::PeerCert(leaf) => self.server = leaf.to_vec(),
                Output::CloseNotify => self.closed = true,
                Output::Timeout(at) => {
                    self.wake = at;
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    /// Sends `bytes` as one record.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.dtls
            .send_application_data(bytes)
            .map_err(io::Error::other)?;
        self.drain()
    }

    /// The next record of the server; nothing once it has said goodbye, `TimedOut` if none comes within `patience`.
    pub fn receive(&mut self, patience: Duration) -> io::Result<Vec<u8>> {
        let deadline = now() + patience;
        loop {
            if let Some(data) = self.arrived.pop_front() {
                return Ok(data);
            }
            if self.closed {
                return Ok(Vec::new());
            }
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.step(left)?;
        }
    }

    /// Says goodbye.
    pub fn close(&mut self) {
        self.dtls.close().unwrap();
        self.drain().unwrap();
    }
}

/// The ClientHello with the cookie that the server at the other end of `socket` gives to it, not sent yet.
pub fn hello_with_cookie(socket: &UdpSocket) -> Vec<u8> {
    let mut client = client(now());
    client.handle_timeout(now()).unwrap();
    let mut buffer = vec![0; 4096];
    let mut next = |client: &mut Dtls| loop {
        match client.poll_output(&mut buffer) {
            Output::Packet(packet) => return packet.to_vec(),
            Output::Timeout(_) => panic!("nothing to send"),
            _ => {}
        }
    };
    socket.send(&next(&mut client)).unwrap();
    let mut answer = [0; 2048];
    let length = socket
        .recv(&mut answer)
        .expect("an answer to a ClientHello");
    client.handle_packet(&answer[..length]).unwrap();
    next(&mut client)
}
