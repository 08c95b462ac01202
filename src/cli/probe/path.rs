//! The way to a server, and a client of it at this end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::facts::{Distrust, Stage, Trouble};
use crate::base::addr::unspecified;
use crate::base::{Clock, Family, Transport};
use crate::cli::tls::Certificate;
use crate::client::{Client, Event, Failure, Settings, Step};
use crate::wire::ChannelNumber;
use crate::wire::framing::{Frame, next_frame};

/// The longest datagram that is looked at, in bytes.
const DATAGRAM: usize = 4096;

/// Asked for every socket, in bytes; the kernel clips it to its own limit.
const BUFFER: usize = 1 << 20;

/// What TLS connections are made with.
#[derive(Clone)]
pub struct Tls {
    /// What is verified.
    pub config: Arc<ClientConfig>,
    /// Whom the certificate has to name.
    pub name: ServerName<'static>,
}

/// A socket or a connection to the server.
pub enum Path {
    /// Datagrams.
    Udp(UdpSocket),
    /// A byte stream, with the bytes of a frame whose end has not come.
    Stream(Box<dyn Stream>, Vec<u8>),
}

/// A connection, with TLS or without.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A path that works, and what is known about it from the start.
pub struct Opened {
    /// The path.
    pub path: Path,
    /// This end of it.
    pub local: SocketAddr,
    /// Over TLS.
    pub certificate: Option<Certificate>,
}

impl Path {
    /// Opens a path to `server`, over TLS if `tls` says how, within `patience`.
    ///
    /// # Errors
    /// Where it came to nothing, and why.
    pub async fn open(
        transport: Transport,
        server: SocketAddr,
        tls: Option<&Tls>,
        patience: Duration,
    ) -> Result<Opened, (Stage, Trouble)> {
        let failed = |error: io::Error| (Stage::Connect, trouble(&error));
        if !transport.is_stream() {
            let any = SocketAddr::new(unspecified(Family::of(server.ip())), 0);
            let socket = UdpSocket::bind(any).await.map_err(failed)?;
            socket.connect(server).await.map_err(failed)?;
            // What the kernel gives is enough for most; a burst should not be lost at this end.
            let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(BUFFER);
            return Ok(Opened {
                local: socket.local_addr().map_err(failed)?,
                path: Self::Udp(socket),
                certificate: None,
            });
        }
        let deadline = Instant::now() + patience;
        let tcp = (timeout_at(deadline, TcpStream::connect(server)).await)
            .map_err(|_| (Stage::Connect, Trouble::Silence))?
            .map_err(failed)?;
        let _ = tcp.set_nodelay(true);
        let local = tcp.local_addr().map_err(failed)?;
        let Some(Tls { config, name }) = tls else {
            return Ok(Opened {
                path: Self::Stream(Box::new(tcp), Vec::new()),
                local,
                certificate: None,
            });
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let tls = (timeout_at(deadline, connector.connect(name.clone(), tcp)).await)
            .map_err(|_| (Stage::Tls, Trouble::Silence))?
            .map_err(|error| (Stage::Tls, handshake_trouble(&error)))?;
        let (_, session) = tls.get_ref();
        let certificate = (session.peer_certificates())
            .and_then(|chain| chain.first())
            .and_then(|certificate| Certificate::read(certificate));
        Ok(Opened {
            path: Self::Stream(Box::new(tls), Vec::new()),
            local,
            certificate,
        })
    }

    /// Sends one message; a datagram that this host cannot send counts as lost on its way.
    ///
    /// # Errors
    /// The port is closed, or the connection gone.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), Trouble> {
        match self {
            Self::Udp(socket) => match socket.send(message).await {
                // A firewall of this host's own.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    Err(trouble(&error))
                }
                Err(error) => match trouble(&error) {
                    Trouble::Host { .. } => Ok(()),
                    other => Err(other),
                },
                Ok(_) => Ok(()),
            },
            Self::Stream(stream, _) => {
                stream
                    .write_all(message)
                    .await
                    .map_err(|error| trouble(&error))?;
                stream.flush().await.map_err(|error| trouble(&error))
            }
        }
    }

    /// The next datagram or whole frame, without padding. Nothing is lost where it is not waited for to the end.
    ///
    /// # Errors
    /// The port is closed, the connection gone, or what comes is no TURN.
    pub async fn receive(&mut self) -> Result<Vec<u8>, Trouble> {
        match self {
            Self::Udp(socket) => {
                let mut datagram = vec![0; DATAGRAM];
                let length = (socket.recv(&mut datagram).await).map_err(|error| trouble(&error))?;
                datagram.truncate(length);
                Ok(datagram)
            }
            Self::Stream(stream, held) => loop {
                match next_frame(held) {
                    Frame::Complete { message, total } => {
                        let frame = held.get(..message).unwrap_or_default().to_vec();
                        held.drain(..total.min(held.len()));
                        return Ok(frame);
                    }
                    Frame::Invalid => return Err(Trouble::NotTurn),
                    Frame::Needs(_) => {
                        let mut more = [0; DATAGRAM];
                        match stream.read(&mut more).await {
                            Ok(0) => return Err(Trouble::HungUp),
                            Ok(length) => {
                                held.extend_from_slice(more.get(..length).unwrap_or_default());
                            }
                            Err(error) => return Err(trouble(&error)),
                        }
                    }
                }
            },
        }
    }
}

/// One client of the server, and its way there.
pub struct Leg {
    /// The client.
    pub client: Client,
    /// Its path.
    pub path: Path,
    /// Where its data goes.
    pub peer: Option<SocketAddr>,
    /// An allocation was asked for, so that there may be one.
    pub allocates: bool,
}

impl Leg {
    /// A client that has asked for nothing yet.
    pub fn new(settings: Settings, path: Path) -> Self {
        Self {
            client: Client::new(settings, Clock.now(), rand::random()),
            path,
            peer: None,
            allocates: false,
        }
    }

    /// Makes a request and waits for what becomes of it. Data that comes meanwhile is not looked at.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn ask(&mut self, step: Step, patience: Duration) -> Result<Event, Trouble> {
        self.allocates |= step == Step::Allocate;
        match step {
            Step::Refresh(0) => self.client.release(Clock.now()),
            step => self.client.begin(Clock.now(), step),
        }
        // The outcome of an earlier request that was given up may come first.
        let ours = |event: &Event| match (step, event) {
            (_, Event::Failed(failed, _)) => *failed == step,
            (Step::Binding, Event::Mapped { .. })
            | (Step::Allocate, Event::Allocated { .. })
            | (Step::CreatePermission(_), Event::Permitted(_))
            | (Step::ChannelBind(..), Event::ChannelBound(..))
            | (Step::Refresh(0), Event::Released) => true,
            (Step::Refresh(secs), Event::Refreshed(_)) => secs > 0,
            _ => false,
        };
        let outcome = timeout(patience, async {
            loop {
                while let Some(message) = self.client.poll_transmit() {
                    self.path.send(&message).await?;
                }
                while let Some(event) = self.client.poll_event() {
                    if ours(&event) {
                        return Ok(event);
                    }
                }
                let due = self.client.poll_timeout();
                let due = due.map_or_else(|| Instant::now() + patience, Instant::from_std);
                let received = tokio::select! {
                    received = self.path.receive() => Some(received?),
                    () = sleep_until(due) => None,
                };
                match received {
                    Some(message) => drop(self.client.handle_input(Clock.now(), &message)),
                    None => self.client.handle_timeout(Clock.now()),
                }
            }
        });
        match outcome.await {
            Ok(Ok(Event::Failed(_, why))) => Err(match why {
                Failure::Refused(code) => Trouble::Refused { code },
                Failure::Timeout => Trouble::Silence,
                Failure::Integrity => Trouble::Integrity,
                Failure::Malformed => Trouble::Malformed,
                Failure::BidDown => Trouble::BidDown,
            }),
            Ok(outcome) => outcome,
            Err(_) => Err(Trouble::Silence),
        }
    }

    /// Sends `data` to the peer: in a channel where one is bound, else in a Send indication.
    ///
    /// # Errors
    /// The path is gone.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), Trouble> {
        let Some(peer) = self.peer else {
            return Ok(());
        };
        let Some(header) = self.client.header_to(peer, data.len()) else {
            return Ok(());
        };
        let mut message = [header.bytes(), data].concat();
        message.resize(message.len() + header.padding(), 0);
        self.path.send(&message).await
    }
}

/// The channel of every client: RFC 8656 and RFC 5766 both know it.
pub fn channel() -> ChannelNumber {
    ChannelNumber::new(0x4000).unwrap_or_else(|| unreachable!("the first of all channels"))
}

fn trouble(error: &io::Error) -> Trouble {
    let text = error.to_string();
    let why = text
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Trouble::Closed,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Trouble::HungUp,
        io::ErrorKind::TimedOut => Trouble::Silence,
        io::ErrorKind::HostUnreachable => Trouble::Rejected { why },
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => {
            Trouble::NoRoute { why }
        }
        _ => Trouble::Host { why },
    }
}

fn handshake_trouble(error: &io::Error) -> Trouble {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let distrust = match inner {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Distrust::Name
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Distrust::Expired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Distrust::NotYet
            }
            CertificateError::UnknownIssuer => Distrust::Issuer,
            other => Distrust::Other {
                why: other.to_string(),
            },
        },
        Some(rustls::Error::InvalidMessage(_)) => return Trouble::NotTurn,
        Some(other) => {
            return Trouble::Handshake {
                why: other.to_string(),
            };
        }
        None => return trouble(error),
    };
    Trouble::Certificate(distrust)
}
