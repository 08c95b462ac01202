//! Connections that are somebody else's: passed through to another server, byte by byte, TLS included.
//!
//! A passage holds no buffer while nothing comes: what is read goes through one on the stack, and only what the other
//! side does not take at once is kept until it does.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::coop::consume_budget;
use tokio::time::{sleep, timeout};

use super::proxy::{self, Route};

/// How long the other server may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that are moved at once.
const PIECE_BYTES: usize = 16 * 1024;

/// Once the server ends, silence of this length ends a passage.
const LAST_SILENCE: Duration = Duration::from_millis(500);

/// The server behind a listener, for what the listener does not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is told whom the connection comes from, by a PROXY protocol header of version 2.
    pub proxy_protocol: bool,
    /// How long a passage may be silent in both directions.
    pub idle: Duration,
}

/// What became of a connection for the other server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It was passed through.
    Passed,
    /// The other server did not accept it.
    Unreachable,
    /// There were as many as there may be.
    Limit,
}

impl Outcome {
    /// Every outcome, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Passed, Self::Unreachable, Self::Limit];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Unreachable => "unreachable",
            Self::Limit => "limit",
        }
    }
}

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// From the client to the other server.
    ToUpstream,
    /// From there to the client.
    ToClient,
}

impl Way {
    /// Both, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::ToUpstream, Self::ToClient];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ToUpstream => "to_upstream",
            Self::ToClient => "to_client",
        }
    }
}

/// What was passed through so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Passages that are open.
    pub open: u32,
    /// Connections by [`Outcome`].
    pub connections: [u64; Outcome::ALL.len()],
    /// Bytes by [`Way`], without the header.
    pub bytes: [u64; Way::ALL.len()],
}

/// All passages of the server: how many there may be, and what became of them.
#[derive(Debug, Default)]
pub struct Passages {
    limit: AtomicU32,
    open: AtomicU32,
    connections: [AtomicU64; Outcome::ALL.len()],
    bytes: [AtomicU64; Way::ALL.len()],
    ending: watch::Sender<bool>,
}

impl Passages {
    /// At most `limit` at once from now on. Those that are open stay, even above it.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// What was passed through so far.
    pub fn read(&self) -> Passed {
        let of = |counts: &[AtomicU64], at: usize| {
            (counts.get(at)).map_or(0, |count| count.load(Ordering::Relaxed))
        };
        Passed {
            open: self.open.load(Ordering::Relaxed),
            connections: std::array::from_fn(|at| of(&self.connections, at)),
            bytes: std::array::from_fn(|at| of(&self.bytes, at)),
        }
    }

    /// Ends all of them: each once it falls silent, all within `grace`.
    pub async fn end(&self, grace: Duration) {
        self.ending.send_replace(true);
        let emptied = async {
            while self.open.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = timeout(grace, emptied).await;
    }

    fn note(&self, outcome: Outcome) {
        if let Some(count) = self.connections.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn moved(&self, way: Way, bytes: usize) {
        if let Some(count) = self.bytes.get(way as usize) {
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    fn enter(self: &Arc<Self>) -> Option<Place> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |open| (open < limit).then(|| open + 1);
        let entered = (self.open).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.is_ok().then(|| Place(Arc::clone(self)))
    }
}

/// One open passage; dropping it gives its place back.
struct Place(Arc<Passages>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes `client` through to `upstream` until either has had enough. `received` was read of it before; `route` is what
/// the other server is told.
pub(super) async fn pass(
    passages: Arc<Passages>,
    upstream: Upstream,
    client: TcpStream,
    received: Vec<u8>,
    route: Route,
) {
    let Some(_place) = passages.enter() else {
        passages.note(Outcome::Limit);
        tracing::warn!("limits.upstream_connections are open: new ones are closed");
        return;
    };
    let connecting = timeout(CONNECT_PATIENCE, TcpStream::connect(upstream.address));
    let connected = (connecting.await).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let server = match connected {
        Ok(server) => server,
        Err(error) => {
            passages.note(Outcome::Unreachable);
            tracing::warn!(
                upstream = %upstream.address,
                %error,
                "listen.upstream does not accept connections: clients that ask for it are turned away"
            );
            return;
        }
    };
    passages.note(Outcome::Passed);
    // Small messages must not wait for acknowledgements of earlier ones; without it they only may.
    let _ = server.set_nodelay(true);
    let active = AtomicBool::new(true);
    let through = async {
        if upstream.proxy_protocol {
            write_all(&server, &proxy::header(route)).await?;
        }
        write_all(&server, &received).await?;
        passages.moved(Way::ToUpstream, received.len());
        drop(received);
        let there = pump(&client, &server, |bytes| {
            passages.moved(Way::ToUpstream, bytes);
            active.store(true, Ordering::Relaxed);
        });
        let back = pump(&server, &client, |bytes| {
            passages.moved(Way::ToClient, bytes);
            active.store(true, Ordering::Relaxed);
        });
        tokio::try_join!(there, back)
    };
    tokio::select! {
        _ = through => {}
        () = silence(upstream.idle, &active, passages.ending.subscribe()) => {}
    }
}

/// Waits until nothing has come for `idle`, or for less once the server ends.
async fn silence(idle: Duration, active: &AtomicBool, mut ending: watch::Receiver<bool>) {
    loop {
        let ends = *ending.borrow_and_update();
        let pause = if ends { LAST_SILENCE } else { idle };
        tokio::select! {
            () = sleep(pause) => {
                if !active.swap(false, Ordering::Relaxed) {
                    return;
                }
            }
            Ok(()) = ending.changed() => {
                active.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// Moves what comes until there is no more, then ends this half of the other connection.
async fn pump(from: &TcpStream, to: &TcpStream, moved: impl Fn(usize)) -> io::Result<()> {
    loop {
        from.readable().await?;
        // A connection that always has more must let others have their turn.
        consume_budget().await;
        match forward(from, to) {
            Ok((0, _)) => {
                // Fails where the other side is gone altogether, which its own direction finds out.
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Ok(());
            }
            Ok((bytes, rest)) => {
                moved(bytes);
                if !rest.is_empty() {
                    write_all(to, &rest).await?;
                    // It took its time, and was not silent.
                    moved(0);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// One piece: how many bytes were read, and those of them that the other side did not take.
fn forward(from: &TcpStream, to: &TcpStream) -> io::Result<(usize, Vec<u8>)> {
    let mut piece = [0; PIECE_BYTES];
    let length = from.try_read(&mut piece)?;
    let mut rest = piece.get(..length).unwrap_or_default();
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok((length, rest.to_vec()))
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
