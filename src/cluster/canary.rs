//! Looks at other nodes the way a client would: address, allocation, and data through it and back.
//!
//! A node answers as long as it does all of that. It is given up after two failures in a row, and taken back after one
//! success: at the longest eight seconds after its last answer no client is sent there any more.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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
        Transport::Udp => Wire::udp(server).await?,
        Transport::Tcp => Wire::stream(TcpStream::connect(server).await?),
        // Nor does it choose a way by DTLS.
        Transport::Dtls => return Err(io::ErrorKind::Unsupported.into()),
        Transport::Tls => {
            TcpStream::connect(server).await?;
            return Ok(begun.elapsed());
        }
    };
    let goal = match credential {
        Some(_) => Goal::Loop,
        None => Goal::Answer,
    };
    let (username, password) =
        credential.unwrap_or_else(|| (String::new(), Secret::new(String::new())));
    let settings = Settings {
        username,
        password,
        transport: uri.transport,
        family: Some(Family::of(server.ip())),
        lifetime_secs: None,
    };
    (Look::new(settings, path, goal).run().await).map_err(io::Error::other)
}

/// How a look came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection is gone, or what comes is not TURN.
    Broken(io::Error),
    /// A request failed.
    Failed(Step, Failure),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, why) = match self {
            Self::Broken(error) => return error.fmt(f),
            Self::Failed(step, why) => (step, why),
        };
        match why {
            Failure::Refused(code) => write!(f, "{step} was refused with {code}"),
            Failure::Timeout => write!(f, "no answer to {step}"),
            Failure::Integrity => {
                write!(f, "the answer to {step} is not signed with our secret")
            }
            Failure::Malformed => write!(f, "the answer to {step} makes no sense"),
            Failure::BidDown => write!(f, "the challenge to {step} was tampered with"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A byte stream, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The way to a server.
pub(super) enum Wire {
    Udp(UdpSocket),
    /// With the bytes of a frame whose end has not come.
    Stream(Box<dyn Stream>, Vec<u8>),
}

impl Wire {
    pub async fn udp(server: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        Ok(Self::Udp(socket))
    }

    pub fn stream(stream: impl Stream + 'static) -> Self {
        Self::Stream(Box::new(stream), Vec::new())
    }

    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).await.map(drop),
            Self::Stream(stream, _) => {
                stream.write_all(message).await?;
                stream.flush().await
            }
        }
    }

    /// The next datagram or whole frame, without padding. Nothing is lost if the future is dropped.
    async fn receive(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Udp(socket) => {
                let mut datagram = vec![0; 2048];
                let length = socket.recv(&mut datagram).await?;
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

/// What has to work.
pub(super) enum Goal {
    /// A Binding is answered: there are no credentials to do more with.
    Answer,
    /// Data comes back from the own relayed address, a peer that every node permits.
    Loop,
    /// Data comes back from this socket, which the relay reaches through the kernel.
    Echo(UdpSocket),
}

/// One look under way.
pub(super) struct Look {
    client: Client,
    path: Wire,
    goal: Goal,
    proof: Vec<u8>,
    proof_sent: Option<Instant>,
}

impl Look {
    pub fn new(settings: Settings, path: Wire, goal: Goal) -> Self {
        Self::by(
            Client::new(settings, Clock.now(), rand::random()),
            path,
            goal,
        )
    }

    pub fn by(client: Client, path: Wire, goal: Goal) -> Self {
        Self {
            client,
            path,
            goal,
            proof: [PROOF, &rand::random::<[u8; 8]>()].concat(),
            proof_sent: None,
        }
    }

    /// Whether everything went well up to the data that was to come back.
    pub const fn has_sent_proof(&self) -> bool {
        self.proof_sent.is_some()
    }

    /// How long data took to the peer and back; of a Binding, how long its answer took.
    pub async fn run(&mut self) -> Result<Duration, Fault> {
        let outcome = self.seek().await;
        // The node gets its port back at once, whatever the outcome.
        self.release().await;
        outcome
    }

    /// Ends the allocation, if there is one.
    pub async fn release(&mut self) {
        if self.client.relayed().is_some() {
            self.client.release(Clock.now());
            while let Some(message) = self.client.poll_transmit() {
                if self.path.send(&message).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn seek(&mut self) -> Result<Duration, Fault> {
        let begun = Instant::now();
        let first = match self.goal {
            // Whoever looks at itself knows its own address.
            Goal::Echo(_) => Step::Allocate,
            Goal::Answer | Goal::Loop => Step::Binding,
        };
        self.client.begin(Clock.now(), first);
        let mut heard = [0; 256];
        loop {
            if let Some(took) = self.advance(begun).await? {
                return Ok(took);
            }
            let deadline = self.client.poll_timeout();
            let received = tokio::select! {
                received = self.path.receive() => Some(received?),
                heard = hear(&self.goal, &mut heard) => {
                    if let Goal::Echo(socket) = &self.goal {
                        let (data, from) = heard?;
                        if data == self.proof {
                            socket.send_to(data, from).await?;
                        }
                    }
                    continue;
                }
                () = sleep_until(deadline) => None,
            };
            let now = Clock.now();
            match received {
                Some(message) => {
                    if self.took(now, &message) {
                        return Ok((self.proof_sent).map_or(Duration::ZERO, |sent| sent.elapsed()));
                    }
                }
                None => self.client.handle_timeout(now),
            }
        }
    }

    /// Where data is sent to.
    fn peer(&self) -> Option<SocketAddr> {
        match &self.goal {
            Goal::Answer => None,
            Goal::Loop => self.client.relayed(),
            Goal::Echo(socket) => socket.local_addr().ok(),
        }
    }

    /// Whether `message` is the proof, come back.
    fn took(&mut self, now: Now, message: &[u8]) -> bool {
        let peer = self.peer();
        matches!(self.client.handle_input(now, message), Input::Data(from, data)
            if Some(from) == peer && data == self.proof)
    }

    /// Takes what happened one step further and sends what there is to send; how long it took, if it is done.
    async fn advance(&mut self, begun: Instant) -> Result<Option<Duration>, Fault> {
        let now = Clock.now();
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Mapped { .. } => match self.goal {
                    Goal::Answer => return Ok(Some(begun.elapsed())),
                    Goal::Loop | Goal::Echo(_) => self.client.begin(now, Step::Allocate),
                },
                Event::Allocated { .. } => {
                    if let Some(peer) = self.peer() {
                        self.client.begin(now, Step::CreatePermission(peer));
                    }
                }
                Event::Permitted(_) => {
                    let length = self.proof.len();
                    let header = (self.peer())
                        .and_then(|peer| self.client.header_to(peer, length))
                        .ok_or_else(|| io::Error::other("there is nobody to send to"))?;
                    let mut message = [header.bytes(), &self.proof].concat();
                    message.resize(message.len() + header.padding(), 0);
                    self.proof_sent = Some(Instant::now());
                    self.path.send(&message).await?;
                }
                Event::Failed(step, why) => return Err(Fault::Failed(step, why)),
                Event::ChannelBound(..) | Event::Refreshed(_) | Event::Released => {}
            }
        }
        while let Some(message) = self.client.poll_transmit() {
            self.path.send(&message).await?;
        }
        Ok(None)
    }
}

/// What comes to the socket that sends back, and from whom.
async fn hear<'a>(goal: &Goal, into: &'a mut [u8]) -> io::Result<(&'a [u8], SocketAddr)> {
    match goal {
        Goal::Echo(socket) => {
            let (length, from) = socket.recv_from(into).await?;
            Ok((into.get(..length).unwrap_or_default(), from))
        }
        Goal::Answer | Goal::Loop => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
