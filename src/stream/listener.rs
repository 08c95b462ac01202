//! One listening TCP port: accepts, bounds what strangers may hold open, hands over what has identified itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;

use crate::base::Pii;
use crate::base::addr::canonical;

use super::admission::{Admission, Admitted, Refusal};
use super::certificates::{Certificates, server_config};
use super::challenges::ALPN_ACME;
use super::io::{ClientIo, ClientStream, Ends, Handshake, HttpStream, Rehomable};
use super::passage::{self, Upstream};
use super::proxy::{self, Route, Step};
use super::sniff::{DECISIVE_BYTES, Verdict, sniff};
use super::{ALPN_HTTP1, ALPN_HTTP2, Protocols, Sharing, is_stun};

/// How a stream listener behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the port speaks.
    pub protocols: Protocols,
    /// How long a connection may stay silent before it is closed.
    pub hello_timeout: Duration,
    /// How long a TLS handshake and the first message inside may take together.
    pub handshake_timeout: Duration,
    /// Connections that have not identified themselves yet; beyond it a new one is closed at once.
    pub max_pending: usize,
    /// With whom the port is shared.
    pub sharing: Sharing,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protocols: Protocols::default(),
            hello_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            max_pending: 4096,
            sharing: Sharing::default(),
        }
    }
}

/// Between two attempts to accept while the system is out of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At most one line about the same trouble in this time.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// The first plaintext bytes of a TLS client are read in pieces of this size.
const FIRST_READ_BYTES: usize = 2048;

/// What a client may send until its TLS handshake is seen to be over, in bytes: several times the longest ClientHello of
/// a browser, and the first record behind the handshake, which may be read with it. Rustls alone would keep 64 KiB of a
/// ClientHello that never ends.
const HANDSHAKE_BYTES: usize = 28 * 1024;

/// What handshakes need.
struct Tls {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

impl Tls {
    fn new(certificates: Arc<Certificates>, alpn: Vec<Vec<u8>>) -> io::Result<Self> {
        let config = server_config(Arc::clone(&certificates), alpn).map_err(io::Error::other)?;
        Ok(Self {
            config,
            certificates,
        })
    }

    /// Whether the client wants this server, rather than another one behind the same port: it speaks STUN, names this
    /// server and nothing that it does not speak, or names nobody.
    fn is_for_us(&self, hello: &ClientHello<'_>) -> bool {
        let offers =
            |wanted: &dyn Fn(&[u8]) -> bool| (hello.alpn()).map(|mut offered| offered.any(wanted));
        if offers(&is_stun) == Some(true) {
            return true;
        }
        let spoken = |name: &[u8]| self.config.alpn_protocols.iter().any(|ours| ours == name);
        match hello.server_name() {
            None => true,
            Some(name) => offers(&spoken) != Some(false) && self.certificates.knows(name),
        }
    }
}

/// One listening TCP port.
pub struct Listener {
    socket: std::net::TcpListener,
    settings: Settings,
    /// What may follow a TLS handshake.
    inside: Protocols,
    tls: Option<Tls>,
    admission: Arc<Admission>,
    accepts: Option<watch::Receiver<bool>>,
}

impl Listener {
    /// Prepares `socket`, which is bound and listening. `certificates` serve its TLS connections and may be replaced
    /// at any time.
    ///
    /// # Errors
    /// `protocols` name TLS and there is no certificate, or the socket does not become non-blocking.
    pub fn new(
        socket: std::net::TcpListener,
        settings: Settings,
        certificates: Option<Arc<Certificates>>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let tls = match (settings.protocols.tls, certificates) {
            (false, _) => None,
            (true, Some(certificates)) => {
                // Last: who offers anything else, too, is no authority that looks for a challenge.
                let mut alpn = settings.protocols.alpn();
                alpn.push(ALPN_ACME.to_vec());
                Some(Tls::new(certificates, alpn)?)
            }
            (true, None) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the listener is to speak TLS, but there is no certificate: \
                     set tls.certificate and tls.key, or take \"tls\" from its protocols",
                ));
            }
        };
        Ok(Self {
            socket,
            inside: settings.protocols.inside_tls(),
            settings,
            tls,
            admission: Admission::new(0),
            accepts: None,
        })
    }

    /// Prepares `socket` for HTTPS and nothing else.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn https(
        socket: std::net::TcpListener,
        certificates: Arc<Certificates>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let alpn = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        Ok(Self {
            socket,
            settings: Settings {
                protocols: Protocols {
                    tls: true,
                    ..Protocols::default()
                },
                ..Settings::default()
            },
            inside: Protocols {
                http: true,
                ..Protocols::default()
            },
            tls: Some(Tls::new(certificates, alpn)?),
            admission: Admission::new(0),
            accepts: None,
        })
    }

    /// Counts its connections in `admission`, which several listeners may share.
    #[must_use]
    pub fn within(self, admission: Arc<Admission>) -> Self {
        Self { admission, ..self }
    }

    /// Accepts only while `accepts` is true; what comes meanwhile waits in the kernel.
    #[must_use]
    pub fn while_set(self, accepts: watch::Receiver<bool>) -> Self {
        Self {
            accepts: Some(accepts),
            ..self
        }
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// The system's refusal to say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections on the current runtime and hands over those that have identified themselves, on tasks of
    /// that runtime: `on_turn` and `on_http` must not block.
    ///
    /// Runs until its future is dropped, which closes the port and every connection not yet handed over. Returns only
    /// if the runtime refuses to watch the socket.
    pub async fn run<T, H>(self, on_turn: T, on_http: H) -> io::Error
    where
        T: Fn(ClientStream) + Send + Sync + 'static,
        H: Fn(HttpStream) + Send + Sync + 'static,
    {
        let socket = match TcpListener::from_std(self.socket) {
            Ok(socket) => socket,
            Err(error) => return error,
        };
        let reception = Arc::new(Reception {
            settings: self.settings,
            inside: self.inside,
            tls: self.tls,
            admission: self.admission,
            on_turn,
            on_http,
        });
        let mut pending = JoinSet::new();
        let mut full = Throttle::default();
        let mut greedy = Throttle::default();
        let mut failing = Throttle::default();
        let mut accepts = self.accepts;
        loop {
            let open = accepts.as_ref().is_none_or(|accepts| *accepts.borrow());
            // Those that have ended first, so that they do not count as pending when the next one comes.
            let accepted = tokio::select! {
                biased;
                Some(ended) = pending.join_next() => {
                    if ended.is_err_and(|error: JoinError| error.is_panic()) {
                        tracing::error!("a connection's task panicked: please report this as a bug of turnix");
                    }
                    continue;
                }
                () = changed(&mut accepts) => continue,
                accepted = socket.accept(), if open => accepted,
            };
            match accepted {
                Ok((connection, client)) => {
                    let client = canonical(client);
                    let mut place = None;
                    // Whom else it is from is known later.
                    if !reception.settings.sharing.trusts(client.ip()) {
                        place = reception.admission.admit(client.ip());
                        if place.is_none() {
                            reset(connection);
                            if greedy.permits() {
                                tracing::warn!(
                                    client = %Pii(client),
                                    "an address has limits.connections_per_address open: new ones are closed"
                                );
                            }
                            continue;
                        }
                    }
                    if pending.len() >= reception.settings.max_pending {
                        reception.admission.refuse(Refusal::Pending);
                        reset(connection);
                        if full.permits() {
                            tracing::warn!(
                                pending = pending.len(),
                                "too many connections that have not said anything yet: new ones are closed"
                            );
                        }
                        continue;
                    }
                    pending.spawn(receive(Arc::clone(&reception), connection, client, place));
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    // The connection stays in the queue: without a pause the next attempt fails at once, forever.
                    if failing.permits() {
                        tracing::error!(
                            %error,
                            "cannot accept connections; if it says \"too many open files\", raise LimitNOFILE"
                        );
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Waits until somebody opens or closes the port.
async fn changed(accepts: &mut Option<watch::Receiver<bool>>) {
    let gone = match accepts {
        Some(accepts) => accepts.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending().await
    }
}

/// Closes a connection that is not wanted, so that nothing of it stays behind in the kernel.
fn reset(connection: TcpStream) {
    // If it fails the connection is closed in the ordinary way.
    let _ = SockRef::from(&connection).set_linger(Some(Duration::ZERO));
}

/// Whether `accept` failed because the one connection it would have returned is gone already.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Bounds the rate of a log line.
#[derive(Default)]
struct Throttle(Option<Instant>);

impl Throttle {
    fn permits(&mut self) -> bool {
        let now = Instant::now();
        let due = self.0.is_none_or(|last| now - last >= LOG_PAUSE);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

/// What every connection of one listener needs to find its way.
struct Reception<T, H> {
    settings: Settings,
    inside: Protocols,
    tls: Option<Tls>,
    admission: Arc<Admission>,
    on_turn: T,
    on_http: H,
}

/// A connection that has identified itself, or why there is none to hand over; `None`: the client left by itself, or that
/// is counted already.
type Identified = Result<Arrival, Option<Refusal>>;

const GONE: Option<Refusal> = None;
const UNKNOWN_PROTOCOL: Option<Refusal> = Some(Refusal::Protocol);

enum Arrival {
    Turn(ClientIo, Vec<u8>),
    Http(ClientIo, Vec<u8>),
    /// For another server.
    Foreign(TcpStream, Vec<u8>, Upstream),
}

/// Sees one connection from its first byte to the hand-over. `place` is there unless a proxy has to tell whose it is.
async fn receive<T, H>(
    reception: Arc<Reception<T, H>>,
    connection: TcpStream,
    client: SocketAddr,
    mut place: Option<Admitted>,
) where
    T: Fn(ClientStream),
    H: Fn(HttpStream),
{
    let Ok(local) = prepare(&connection) else {
        return;
    };
    let mut ends = Ends {
        client,
        local,
        told: None,
    };
    let identified = (reception.identify(connection, &mut ends, &mut place)).await;
    let client = ends.client;
    match identified {
        Ok(Arrival::Turn(mut io, received)) => {
            io.hold(place);
            match ClientStream::park(io, ends, received) {
                Ok(stream) => (reception.on_turn)(stream),
                Err(error) => tracing::warn!(%error, "a connection could not leave its runtime"),
            }
        }
        Ok(Arrival::Http(mut io, received)) => {
            io.hold(place);
            (reception.on_http)(HttpStream::new(io, ends, received));
        }
        Ok(Arrival::Foreign(connection, received, upstream)) => {
            let passages = Arc::clone(reception.admission.passages());
            let route = Route {
                client,
                server: ends.told.unwrap_or(ends.local),
            };
            // A task of its own: it outlives the listener.
            tokio::spawn(async move {
                passage::pass(passages, upstream, connection, received, route).await;
                drop(place);
            });
        }
        Err(None) => tracing::debug!(client = %Pii(client), "gone before its first message"),
        Err(Some(reason)) => {
            reception.admission.refuse(reason);
            tracing::debug!(client = %Pii(client), reason = reason.label(), "connection refused");
        }
    }
}

/// Small messages must not wait for acknowledgements of earlier ones. Returns the local address.
fn prepare(connection: &TcpStream) -> io::Result<SocketAddr> {
    connection.set_nodelay(true)?;
    connection.local_addr().map(canonical)
}

impl<T, H> Reception<T, H> {
    async fn identify(
        &self,
        mut connection: TcpStream,
        ends: &mut Ends,
        place: &mut Option<Admitted>,
    ) -> Identified {
        let hello = timeout(self.settings.hello_timeout, async {
            if place.is_none() {
                *place = Some(self.introduced(&mut connection, ends).await?);
            }
            self.hello(&mut connection, ends).await
        });
        let (verdict, received) = (hello.await).unwrap_or(Err(Some(Refusal::Silent)))?;
        let speaks = self.settings.protocols;
        match (verdict, self.settings.sharing.upstream) {
            (Verdict::Http, Some(upstream)) if !speaks.http => {
                Ok(Arrival::Foreign(connection, received, upstream))
            }
            (Verdict::Tls, Some(upstream)) if !speaks.tls => {
                Ok(Arrival::Foreign(connection, received, upstream))
            }
            (Verdict::Turn, _) => Ok(Arrival::Turn(ClientIo::plain(connection), received)),
            (Verdict::Http, _) => Ok(Arrival::Http(ClientIo::plain(connection), received)),
            (Verdict::Tls, _) => {
                // Boxed, so that connections which have said nothing yet do not hold room for a handshake.
                let inside = Box::pin(self.inside_tls(connection, ends.client));
                let done = timeout(self.settings.handshake_timeout, inside).await;
                done.unwrap_or_else(|_| {
                    let handshakes = self.admission.handshakes();
                    handshakes.note(ends.client, "it was not over in time");
                    Err(Some(Refusal::Handshake))
                })
            }
            (Verdict::Close | Verdict::More, _) => Err(UNKNOWN_PROTOCOL),
        }
    }

    /// Reads whom a proxy speaks for, and counts the connection as theirs.
    async fn introduced(
        &self,
        connection: &mut TcpStream,
        ends: &mut Ends,
    ) -> Result<Admitted, Option<Refusal>> {
        let mut received = Vec::new();
        let told = loop {
            match proxy::step(&received) {
                Step::Whole(told) => break told,
                Step::Read(bytes) => {
                    let begin = received.len();
                    received.resize(begin + bytes, 0);
                    let read = connection.read(received.get_mut(begin..).unwrap_or_default());
                    let length = read.await.map_err(|_| GONE)?;
                    received.truncate(begin + length);
                    // A look whether anybody accepts is no reason to complain.
                    match (length, begin) {
                        (0, 0) => return Err(GONE),
                        (0, _) => return Err(Some(Refusal::Proxy)),
                        _ => {}
                    }
                }
                Step::Refuse(why) => {
                    tracing::warn!(
                        proxy = %Pii(ends.client),
                        why,
                        "a connection of a trusted proxy has no usable PROXY protocol header: have the proxy send one \
                         (HAProxy: send-proxy-v2), or take it from listen.trusted_proxies"
                    );
                    return Err(Some(Refusal::Proxy));
                }
            }
        };
        if let Some(route) = told {
            ends.client = route.client;
            ends.told = Some(route.server);
        }
        self.admission.admit(ends.client.ip()).ok_or(GONE)
    }

    /// Looks at the first bytes without consuming them, unless they may become HTTP and have to be waited for:
    /// peeking again would return the same bytes at once, and TURN and TLS are known by their first byte.
    async fn hello(
        &self,
        connection: &mut TcpStream,
        ends: &Ends,
    ) -> Result<(Verdict, Vec<u8>), Option<Refusal>> {
        let mut first = [0; DECISIVE_BYTES];
        let seen = connection.peek(&mut first).await.map_err(|_| GONE)?;
        let first = first.get(..seen).unwrap_or_default();
        if first.is_empty() {
            return Err(GONE);
        }
        if proxy::begins(first) {
            tracing::info!(
                client = %Pii(ends.client),
                "a PROXY protocol header from an address that listen.trusted_proxies does not name: not believed"
            );
            return Err(Some(Refusal::Proxy));
        }
        let mut speaks = self.settings.protocols;
        if self.settings.sharing.upstream.is_some() {
            // What is not spoken here is spoken there.
            (speaks.tls, speaks.http) = (true, true);
        }
        match sniff(first, speaks) {
            Verdict::More => (read_until_decided(connection, speaks).await).map_err(|_| GONE),
            verdict => Ok((verdict, Vec::new())),
        }
    }

    async fn inside_tls(&self, connection: TcpStream, client: SocketAddr) -> Identified {
        let Some(tls) = &self.tls else {
            return Err(UNKNOWN_PROTOCOL);
        };
        let failed = |error: io::Error| {
            tracing::debug!(%error, "TLS handshake failed");
            let handshakes = self.admission.handshakes();
            handshakes.note(client, &error.to_string());
            Some(Refusal::Handshake)
        };
        let upstream = self.settings.sharing.upstream;
        let handshake = Handshake::new(HANDSHAKE_BYTES, upstream.is_some());
        let shaking = Rehomable::Shaking(connection, handshake);
        let hello = LazyConfigAcceptor::new(Acceptor::default(), shaking);
        let mut started = hello.await.map_err(failed)?;
        if let Some(upstream) = upstream
            && !tls.is_for_us(&started.client_hello())
        {
            let (connection, received) = started.io.into_parts().ok_or(GONE)?;
            return Ok(Arrival::Foreign(connection, received, upstream));
        }
        started.io.forget();
        let accepted = started.into_stream(Arc::clone(&tls.config)).await;
        let mut stream = accepted.map_err(failed)?;
        stream.get_mut().0.settle();
        match stream.get_ref().1.alpn_protocol() {
            Some(name) if is_stun(name) => Ok(Arrival::Turn(ClientIo::tls(stream), Vec::new())),
            Some(name) if name == ALPN_ACME => {
                // What it came for was the certificate. If it does not wait for the end, it has it all the same.
                let _ = stream.shutdown().await;
                Err(GONE)
            }
            Some(_) => Ok(Arrival::Http(ClientIo::tls(stream), Vec::new())),
            None => match read_until_decided(&mut stream, self.inside).await {
                Ok((Verdict::Turn, received)) => Ok(Arrival::Turn(ClientIo::tls(stream), received)),
                Ok((Verdict::Http, received)) => Ok(Arrival::Http(ClientIo::tls(stream), received)),
                Ok(_) => Err(UNKNOWN_PROTOCOL),
                Err(_) => Err(GONE),
            },
        }
    }
}

/// Reads until the verdict is final; the bytes read come with it.
async fn read_until_decided(
    stream: &mut (impl AsyncRead + Unpin),
    speaks: Protocols,
) -> io::Result<(Verdict, Vec<u8>)> {
    let mut received = Vec::with_capacity(FIRST_READ_BYTES);
    loop {
        if stream.read_buf(&mut received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match sniff(&received, speaks) {
            Verdict::More => {}
            verdict => return Ok((verdict, received)),
        }
    }
}
