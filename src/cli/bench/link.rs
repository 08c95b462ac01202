//! How a client reaches the server: a UDP socket, or a TCP connection with or without TLS.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::wire::framing::{Frame, next_frame};

/// Bytes that may wait in user space for one connection before no more media is added.
pub const BACKLOG_BYTES: usize = 256 * 1024;

/// Room for one read and a half frame kept from the one before.
pub const SCRATCH_BYTES: usize = 2 * 65_536;

const CONNECT: Duration = Duration::from_secs(5);

/// One client's way to the server.
pub enum Link {
    /// Datagrams.
    Udp {
        /// Index of the socket, which clients may share.
        socket: usize,
        /// The client's own address, where the socket has several.
        from: Option<IpAddr>,
    },
    /// A byte stream.
    Stream(Box<Stream>),
}

impl Link {
    /// A connection to `server`, with TLS if there is a configuration for it.
    ///
    /// # Errors
    /// Nobody listens there, or the handshake fails.
    pub fn stream(
        local: IpAddr,
        server: SocketAddr,
        tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> anyhow::Result<Self> {
        let what = || {
            format!(
                "cannot connect to {server}: is a TURN server listening there for TCP, and does no firewall stand between?"
            )
        };
        let domain = socket2::Domain::for_address(server);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
        socket
            .connect_timeout(&server.into(), CONNECT)
            .with_context(what)?;
        let mut socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        let tls = match tls {
            None => None,
            Some((config, name)) => {
                socket.set_read_timeout(Some(CONNECT))?;
                let mut tls = ClientConnection::new(Arc::clone(config), name.clone())?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut socket).with_context(|| {
                        format!("TLS handshake with {server}; --insecure skips verification, --ca FILE trusts a root")
                    })?;
                }
                Some(tls)
            }
        };
        socket.set_nonblocking(true)?;
        Ok(Self::Stream(Box::new(Stream {
            socket,
            tls,
            out: Vec::new(),
            written: 0,
            partial: Vec::new(),
        })))
    }
}

/// A connection and what waits on either side of it.
pub struct Stream {
    socket: TcpStream,
    tls: Option<ClientConnection>,
    /// Plaintext that nobody took yet, from `written` on.
    out: Vec<u8>,
    written: usize,
    /// The start of a frame whose end has not come yet.
    partial: Vec<u8>,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream {
    /// Adds a piece of a frame; [`Self::flush`] sends.
    pub fn push(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Whether no more media should be added.
    pub fn is_full(&self) -> bool {
        self.out.len() - self.written > BACKLOG_BYTES
    }

    /// Writes what the socket takes; false if something is left.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        loop {
            let left = self.out.get(self.written..).unwrap_or_default();
            if let Some(tls) = &mut self.tls {
                // rustls bounds what it buffers, so this may take only a part.
                self.written += tls.writer().write(left)?;
                let empty = self.written == self.out.len();
                while tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return Ok(false);
                        }
                        Err(error) => return Err(error),
                    }
                }
                if !empty {
                    continue;
                }
            } else if !left.is_empty() {
                match self.socket.write(left) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        self.written += count;
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            }
            self.out.clear();
            self.written = 0;
            return Ok(true);
        }
    }

    /// Reads once and hands every whole frame, without its padding, to `frame`.
    ///
    /// # Errors
    /// The connection is gone, or what comes is not TURN.
    pub fn read(&mut self, scratch: &mut [u8], mut frame: impl FnMut(&[u8])) -> io::Result<()> {
        let kept = self.partial.len();
        let (front, room) = scratch.split_at_mut(kept);
        front.copy_from_slice(&self.partial);
        let result = match &mut self.tls {
            None => self.socket.read(room),
            Some(tls) => read_tls(tls, &mut self.socket, room),
        };
        let read = match result {
            Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut rest = scratch.get(..kept + read).unwrap_or_default();
        loop {
            match next_frame(rest) {
                Frame::Complete { message, total } => {
                    frame(rest.get(..message).unwrap_or_default());
                    rest = rest.get(total..).unwrap_or_default();
                }
                Frame::Needs(_) => break,
                Frame::Invalid => {
                    return Err(io::Error::other(
                        "the server sent something that is not TURN",
                    ));
                }
            }
        }
        self.partial.clear();
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Whether plaintext is waiting that no readiness of the socket will announce.
    pub fn has_more(&mut self) -> bool {
        self.tls.as_mut().is_some_and(|tls| {
            tls.process_new_packets()
                .is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
        })
    }
}

fn read_tls(
    tls: &mut ClientConnection,
    socket: &mut TcpStream,
    room: &mut [u8],
) -> io::Result<usize> {
    match tls.reader().read(room) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done,
    }
    if tls.read_tls(socket)? == 0 {
        return Ok(0);
    }
    tls.process_new_packets().map_err(io::Error::other)?;
    tls.reader().read(room)
}
