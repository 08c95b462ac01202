//! Sockets that move from one tokio runtime to another, and the byte streams made of them.
//!
//! A tokio socket belongs to the runtime it was registered with. Handshakes run on the control runtime, relaying on
//! a shard's own, so a connection is *parked* (taken out of the first), sent across, and *woken* in the second. TLS
//! state holds its socket inside, hence the socket itself changes state underneath it.

use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::base::Transport;
use crate::base::addr::canonical;

use super::admission::Admitted;

/// A TCP socket that can leave its runtime and join another.
#[derive(Debug)]
pub(super) enum Rehomable {
    /// Watched by a runtime, in a TLS handshake.
    Shaking(TcpStream, Handshake),
    /// Watched by a runtime.
    Live(TcpStream),
    /// Watched by none.
    Parked(std::net::TcpStream),
    /// A runtime refused it.
    Gone,
}

/// What a TLS client has sent while it is not known yet to be one.
#[derive(Debug)]
pub(super) struct Handshake {
    /// How many more bytes it may send.
    left: usize,
    /// What it has sent, where somebody else may have to be told.
    seen: Option<Vec<u8>>,
}

impl Handshake {
    /// Of at most `most` bytes, which are kept if `keeps`.
    pub(super) fn new(most: usize, keeps: bool) -> Self {
        Self {
            left: most,
            seen: keeps.then(Vec::new),
        }
    }
}

impl Rehomable {
    /// Forgets what was kept of the handshake.
    pub(super) fn forget(&mut self) {
        if let Self::Shaking(_, handshake) = self {
            handshake.seen = None;
        }
    }

    /// The socket, and what was kept of the handshake.
    pub(super) fn into_parts(self) -> Option<(TcpStream, Vec<u8>)> {
        match self {
            Self::Live(socket) => Some((socket, Vec::new())),
            Self::Shaking(socket, handshake) => Some((socket, handshake.seen.unwrap_or_default())),
            Self::Parked(_) | Self::Gone => None,
        }
    }

    /// Takes the socket out of its runtime.
    fn park(&mut self) -> io::Result<()> {
        match std::mem::replace(self, Self::Gone) {
            Self::Live(socket) | Self::Shaking(socket, _) => {
                *self = Self::Parked(socket.into_std()?);
            }
            Self::Parked(_) | Self::Gone => {}
        }
        Ok(())
    }

    /// The handshake is over: reads without bound from now on.
    pub(super) fn settle(&mut self) {
        match std::mem::replace(self, Self::Gone) {
            Self::Shaking(socket, _) => *self = Self::Live(socket),
            other => *self = other,
        }
    }

    /// Registers the socket with the current runtime.
    fn wake(&mut self) -> io::Result<()> {
        match std::mem::replace(self, Self::Gone) {
            Self::Parked(socket) => *self = Self::Live(TcpStream::from_std(socket)?),
            other => *self = other,
        }
        Ok(())
    }

    fn live(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match self {
            Self::Live(socket) | Self::Shaking(socket, _) => Ok(Pin::new(socket)),
            Self::Parked(_) | Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Writes what the socket takes, else [`io::ErrorKind::WouldBlock`]; no task is woken later.
impl Write for Rehomable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.live()?.try_write(bytes)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let socket = self.live()?;
        match bufs {
            // For one piece, send is the cheaper call.
            [piece] => socket.try_write(piece),
            _ => socket.try_write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Rehomable {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = this.live()?.poll_read(cx, buf);
        if let Self::Shaking(_, handshake) = this {
            let new = buf.filled().get(before..).unwrap_or_default();
            if new.len() > handshake.left {
                return Poll::Ready(Err(io::Error::other("the TLS handshake is too long")));
            }
            handshake.left -= new.len();
            if let Some(seen) = &mut handshake.seen {
                seen.extend_from_slice(new);
            }
        }
        read
    }
}

impl AsyncWrite for Rehomable {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().live()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().live()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().live()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().live()?.poll_shutdown(cx)
    }
}

/// A byte stream registered with the runtime it was made in: plain TCP, or TLS over it.
///
/// Dropping it closes the connection. Vectored writes reach the kernel, or one TLS record, as they are.
#[derive(Debug)]
pub struct ClientIo {
    inner: Inner,
    /// Given back once the connection is closed.
    place: Option<Admitted>,
}

#[derive(Debug)]
enum Inner {
    Plain(Rehomable),
    /// Boxed: the state of a TLS connection is more than a kilobyte.
    Tls(Box<TlsStream<Rehomable>>),
}

impl From<Inner> for ClientIo {
    fn from(inner: Inner) -> Self {
        Self { inner, place: None }
    }
}

impl ClientIo {
    pub(super) fn plain(socket: TcpStream) -> Self {
        Inner::Plain(Rehomable::Live(socket)).into()
    }

    pub(super) fn tls(stream: TlsStream<Rehomable>) -> Self {
        Inner::Tls(Box::new(stream)).into()
    }

    /// Keeps `place` for as long as the connection is open.
    pub(super) fn hold(&mut self, place: Option<Admitted>) {
        self.place = place;
    }

    /// Takes the connection between `client` and `local` out of the current runtime, for a shard that goes on with it.
    /// `received` comes first there.
    ///
    /// # Errors
    /// The runtime does not let go of the socket.
    pub fn park(
        self,
        client: SocketAddr,
        local: SocketAddr,
        received: Vec<u8>,
    ) -> io::Result<ClientStream> {
        ClientStream::park(
            self,
            Ends {
                client,
                local,
                told: None,
            },
            received,
        )
    }

    /// `Tcp` or `Tls`.
    pub fn transport(&self) -> Transport {
        match self.inner {
            Inner::Plain(_) => Transport::Tcp,
            Inner::Tls(_) => Transport::Tls,
        }
    }

    /// The name that a TLS client asked for.
    fn server_name(&self) -> Option<Arc<str>> {
        match &self.inner {
            Inner::Plain(_) => None,
            Inner::Tls(stream) => {
                let name = stream.get_ref().1.server_name()?;
                Some(name.to_ascii_lowercase().into())
            }
        }
    }

    /// The socket of a plain TCP connection under another descriptor: TLS is more than a socket.
    ///
    /// # Errors
    /// Descriptors ran out, or there is no such socket.
    pub fn share(&self) -> io::Result<OwnedFd> {
        match &self.inner {
            Inner::Plain(Rehomable::Live(socket)) => socket.as_fd().try_clone_to_owned(),
            Inner::Plain(_) | Inner::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whom a plain TCP connection is open to: the client, or a proxy in front of it.
    pub fn peer(&self) -> Option<SocketAddr> {
        match &self.inner {
            Inner::Plain(Rehomable::Live(socket)) => socket.peer_addr().ok().map(canonical),
            Inner::Plain(_) | Inner::Tls(_) => None,
        }
    }

    fn socket(&mut self) -> &mut Rehomable {
        match &mut self.inner {
            Inner::Plain(socket) => socket,
            Inner::Tls(stream) => stream.get_mut().0,
        }
    }

    /// Writes as much of `bufs` as can leave now and returns how many bytes that are. `frames` says how many pieces each
    /// frame has: over TLS every frame is a record of its own, because there are clients that take a record for a
    /// message, and all records leave together. Waits for nothing and registers no waker; see
    /// [`is_unflushed`](Self::is_unflushed) for what TLS kept.
    ///
    /// # Errors
    /// `WouldBlock` if the socket is full, else the end of the connection.
    pub fn try_write_frames(&mut self, bufs: &[IoSlice<'_>], frames: &[u8]) -> io::Result<usize> {
        let stream = match &mut self.inner {
            Inner::Plain(socket) => return socket.write_vectored(bufs),
            Inner::Tls(stream) => stream,
        };
        let (socket, session) = stream.get_mut();
        let mut written = 0;
        let mut rest = bufs;
        for pieces in frames {
            let (frame, others) = rest.split_at(rest.len().min(usize::from(*pieces)));
            rest = others;
            let taken = session.writer().write_vectored(frame)?;
            written += taken;
            if taken < frame.iter().map(|piece| piece.len()).sum() {
                break;
            }
        }
        while session.wants_write() {
            match session.write_tls(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                // Encrypted is as good as sent.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Whether TLS holds bytes that the socket did not take yet.
    pub fn is_unflushed(&self) -> bool {
        match &self.inner {
            Inner::Plain(_) => false,
            Inner::Tls(stream) => stream.get_ref().1.wants_write(),
        }
    }
}

/// Forwards a poll method to whichever stream `self` holds.
macro_rules! forward {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match &mut $self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).$method($($argument),*),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(self.poll_read(cx, buf))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.poll_shutdown(cx))
    }
}

/// A TURN client on a byte stream, handshake done, ready for a shard.
///
/// Carries its socket unregistered, so that the shard can watch it on its own runtime.
#[derive(Debug)]
pub struct ClientStream {
    /// `Tcp` or `Tls`.
    pub transport: Transport,
    /// The client's transport address, IPv4 in its own form; as a proxy tells, where one does.
    pub client: SocketAddr,
    /// The server transport address that the connection came to, IPv4 in its own form.
    pub local: SocketAddr,
    /// The name that a TLS client asked for (SNI), in lower case.
    pub server_name: Option<Arc<str>>,
    /// Bytes that were read while telling protocols apart; they come first.
    pub received: Vec<u8>,
    /// Parked.
    io: ClientIo,
}

impl ClientStream {
    /// Takes a connected socket as a plain TCP client, in any blocking mode; call it from anywhere.
    ///
    /// # Errors
    /// The socket is no longer connected.
    pub fn from_tcp(socket: std::net::TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self {
            transport: Transport::Tcp,
            client: canonical(socket.peer_addr()?),
            local: canonical(socket.local_addr()?),
            server_name: None,
            received: Vec::new(),
            io: Inner::Plain(Rehomable::Parked(socket)).into(),
        })
    }

    /// The same, counted by `place` as long as it is open.
    #[must_use]
    pub fn counted(mut self, place: Admitted) -> Self {
        self.io.hold(Some(place));
        self
    }

    /// Takes `io` out of the current runtime.
    pub(super) fn park(mut io: ClientIo, ends: Ends, received: Vec<u8>) -> io::Result<Self> {
        io.socket().park()?;
        Ok(Self {
            transport: io.transport(),
            client: ends.client,
            local: ends.local,
            server_name: io.server_name(),
            received,
            io,
        })
    }

    /// The same for `client`, for whom a proxy keeps the connection.
    #[must_use]
    pub const fn for_client(mut self, client: SocketAddr) -> Self {
        self.client = client;
        self
    }

    /// Registers the socket with the runtime this is called in. Take `received` first: it is not in the stream.
    ///
    /// # Errors
    /// The runtime's refusal to watch the socket.
    pub fn into_io(self) -> io::Result<ClientIo> {
        let mut io = self.io;
        io.socket().wake()?;
        Ok(io)
    }
}

/// Both ends of a connection, IPv4 in its own form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// As a proxy tells, where one does.
    pub(super) client: SocketAddr,
    /// This server's own.
    pub(super) local: SocketAddr,
    /// Where the client connected to, as a proxy tells.
    pub(super) told: Option<SocketAddr>,
}

/// An HTTP client, on plain TCP or on TLS; stays on the runtime that accepted it.
#[derive(Debug)]
pub struct HttpStream {
    /// The client's transport address, IPv4 in its own form; as a proxy tells, where one does.
    pub client: SocketAddr,
    /// The server transport address that the connection came to, IPv4 in its own form.
    pub local: SocketAddr,
    /// Whether TLS protects the connection.
    pub tls: bool,
    /// Read while telling protocols apart, and not yet handed to the reader.
    received: Vec<u8>,
    io: ClientIo,
}

impl HttpStream {
    pub(super) fn new(io: ClientIo, ends: Ends, received: Vec<u8>) -> Self {
        Self {
            client: ends.client,
            local: ends.local,
            tls: io.transport() == Transport::Tls,
            received,
            io,
        }
    }

    /// Takes an accepted connection that is known to speak plain HTTP, such as one of the admin listener.
    ///
    /// # Errors
    /// The socket is no longer connected.
    pub fn from_tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let ends = Ends {
            client: canonical(socket.peer_addr()?),
            local: canonical(socket.local_addr()?),
            told: None,
        };
        Ok(Self::new(ClientIo::plain(socket), ends, Vec::new()))
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.received.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let length = this.received.len().min(buf.remaining());
        let rest = this.received.split_off(length);
        buf.put_slice(&this.received);
        this.received = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
