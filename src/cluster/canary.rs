//! Looks at other nodes the way a client would: address, allocation, and data through it and back.
//!
//! A node answers as long as it does all of that. It is given up after two failures in a row, and taken back after one
//! success: at the longest eight seconds after its last answer no client is sent there any more.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::base::{Clock, Family, Now, Secret, Transport};
use crate::client::{Client, Event, Failure, Input, Settings, Step};
use crate::wire::framing::{Frame, next_frame};

use super::{Fleet, Node, TurnUri};

/// Between two looks at a node.
const EVERY: Duration = Duration::from_secs(3);

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Failures in a row after which a node counts as dead.
const PATIENT_FAILURES: u32 = 2;

/// What travels to the relayed address and back.
const PROOF: &[u8] = b"turnix canary";

/// A name and its password, made for one look.
pub type Credential = (String, Secret<String>);

/// Makes credentials that every node of the service takes; `None` if there is nothing to make them with.
pub type Mint = Arc<dyn Fn() -> Option<Credential> + Send + Sync>;

/// Looks at every node of `fleet` but its own, until dropped.
pub async fn watch(fleet: Arc<Fleet>, mint: Mint) {
    let mut looks = tokio::task::JoinSet::new();
    for (node, _) in fleet.nodes().filter(|(node, _)| !fleet.is_own(node)) {
        looks.spawn(watch_node(
            Arc::clone(&fleet),
            node.clone(),
            Arc::clone(&mint),
        ));
    }
    while looks.join_next().await.is_some() {}
}

async fn watch_node(fleet: Arc<Fleet>, node: Node, mint: Mint) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = 0;
    loop {
        ticks.tick().await;
        match look(&node, mint()).await {
            Ok(rtt) => {
                failures = 0;
                if fleet.set_alive(&node.name, true) {
                    let ms = rtt.as_secs_f64() * 1e3;
                    tracing::info!(node = node.name, rtt_ms = ms, "node answers again");
                }
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(node = node.name, %error, failures, "canary came to nothing");
                if failures >= PATIENT_FAILURES && fleet.set_alive(&node.name, false) {
                    tracing::warn!(node = node.name, %error, "node does not answer: clients are sent elsewhere");
                }
            }
        }
    }
}

/// One look at `node`, by the first of its URIs that takes no TLS: how long data took to its relayed address and back,
/// or a Binding's answer where there are no credentials. A node that only speaks TLS has to accept a connection.
///
/// # Errors
/// What went wrong, for the log.
pub async fn look(node: &Node, credential: Option<Credential>) -> io::Result<Duration> {
    let uris = || {
        node.urls
            .iter()
            .filter_map(|url| url.parse::<TurnUri>().ok())
    };
    let uri = [Transport::Udp, Transport::Tcp, Transport::Tls]
        .into_iter()
        .find_map(|transport| uris().find(|uri| uri.transport == transport));
    let Some(uri) = uri else {
        return Err(io::Error::other("it has no URI"));
    };
    timeout(PATIENCE, look_at(&uri, credential))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
}

async fn look_at(uri: &TurnUri, credential: Option<Credential>) -> io::Result<Duration> {
    let server = (lookup_host((uri.host.as_str(), uri.port)).await?)
        .next()
        .ok_or_else(|| io::Error::other("its name has no address"))?;
    let begun = Instant::now();
    let path = match uri.transport {
        Transport::Udp => {
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(server).await?;
            Wire::Udp(socket)
        }
        Transport::Tcp => Wire::Tcp(TcpStream::connect(server).await?, Vec::new()),
        Transport::Tls => {
            TcpStream::connect(server).await?;
            return Ok(begun.elapsed());
        }
    };
    let allocates = credential.is_some();
    let (username, password) =
        credential.unwrap_or_else(|| (String::new(), Secret::new(String::new())));
    let settings = Settings {
        username,
        password,
        transport: uri.transport,
        family: Some(Family::of(server.ip())),
        lifetime_secs: None,
    };
    Look {
        client: Client::new(settings, Clock.now(), rand::random()),
        path,
        allocates,
        proof_sent: None,
    }
    .run()
    .await
}

enum Wire {
    Udp(UdpSocket),
    /// With the bytes of a frame whose end has not come.
    Tcp(TcpStream, Vec<u8>),
}

impl Wire {
    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).await.map(drop),
            Self::Tcp(stream, _) => stream.write_all(message).await,
        }
    }

    /// The next datagram or whole frame, without padding.
    async fn receive(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Udp(socket) => {
                let mut datagram = vec![0; 2048];
                let length = socket.recv(&mut datagram).await?;
                datagram.truncate(length);
                Ok(datagram)
            }
            Self::Tcp(stream, held) => loop {
                match next_frame(held) {
                    Frame::Complete { message, total } => {
                        let frame = held.get(..message).unwrap_or_default().to_vec();
                        held.drain(..total.min(held.len()));
                        return Ok(frame);
                    }
                    Frame::Invalid => return Err(io::Error::other("it does not speak TURN")),
                    Frame::Needs(_) => {
                        let mut more = [0; 2048];
                        match stream.read(&mut more).await? {
                            0 => return Err(io::ErrorKind::ConnectionAborted.into()),
                            length => {
                                held.extend_from_slice(more.get(..length).unwrap_or_default())
                            }
                        }
                    }
                }
            },
        }
    }
}

/// One look under way.
struct Look {
    client: Client,
    path: Wire,
    /// There are credentials to do more with than a Binding.
    allocates: bool,
    proof_sent: Option<Instant>,
}

impl Look {
    async fn run(mut self) -> io::Result<Duration> {
        let begun = Instant::now();
        self.client.begin(Clock.now(), Step::Binding);
        let outcome = loop {
            if let Some(outcome) = self.advance(begun).await {
                break outcome;
            }
            let deadline = self.client.poll_timeout();
            let received = tokio::select! {
                received = self.path.receive() => Some(received?),
                () = sleep_until(deadline) => None,
            };
            let now = Clock.now();
            match received {
                Some(message) => {
                    if self.took(now, &message) {
                        break Ok(self
                            .proof_sent
                            .map_or(Duration::ZERO, |sent| sent.elapsed()));
                    }
                }
                None => self.client.handle_timeout(now),
            }
        };
        // The node gets its port back at once, whatever the outcome.
        if self.client.relayed().is_some() {
            self.client.release(Clock.now());
            while let Some(message) = self.client.poll_transmit() {
                self.path.send(&message).await?;
            }
        }
        outcome
    }

    /// Whether `message` is the proof, come back.
    fn took(&mut self, now: Now, message: &[u8]) -> bool {
        let relayed = self.client.relayed();
        matches!(self.client.handle_input(now, message), Input::Data(peer, data)
            if Some(peer) == relayed && data == PROOF)
    }

    /// Takes what happened one step further and sends what there is to send; how the look ended, if it did.
    async fn advance(&mut self, begun: Instant) -> Option<io::Result<Duration>> {
        let now = Clock.now();
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Mapped { .. } if !self.allocates => {
                    return Some(Ok(begun.elapsed()));
                }
                Event::Mapped { .. } => self.client.begin(now, Step::Allocate),
                Event::Allocated { relayed, .. } => {
                    self.client.begin(now, Step::CreatePermission(relayed));
                }
                Event::Permitted(_) => {
                    // Its own relayed address is a peer that every node permits.
                    let to = self.client.relayed()?;
                    let header = self.client.header_to(to, PROOF.len())?;
                    let mut message = [header.bytes(), PROOF].concat();
                    message.resize(message.len() + header.padding(), 0);
                    self.proof_sent = Some(Instant::now());
                    if let Err(error) = self.path.send(&message).await {
                        return Some(Err(error));
                    }
                }
                Event::Failed(step, why) => {
                    let why = match why {
                        Failure::Refused(code) => format!("{step} was refused with {code}"),
                        Failure::Timeout => format!("no answer to {step}"),
                        Failure::Integrity => {
                            format!("the answer to {step} is not signed with our secret")
                        }
                        Failure::Malformed => format!("the answer to {step} makes no sense"),
                    };
                    return Some(Err(io::Error::other(why)));
                }
                Event::ChannelBound(..) | Event::Refreshed(_) | Event::Released => {}
            }
        }
        while let Some(message) = self.client.poll_transmit() {
            if let Err(error) = self.path.send(&message).await {
                return Some(Err(error));
            }
        }
        None
    }
}

async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
