//! Byte-stream clients before a shard owns them: accepting, telling TURN, TLS and HTTP apart, TLS handshakes.

pub mod certificates;

use std::io;
use std::net::SocketAddr;

use crate::base::Transport;

/// What one stream listener speaks on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocols {
    /// TURN over plain TCP.
    pub tcp: bool,
    /// TURN over TLS.
    pub tls: bool,
    /// HTTP, and HTTPS where `tls` is on.
    pub http: bool,
}

/// A TURN client on a byte stream, handshake done, ready for a shard.
///
/// Carries its socket unregistered, so that the shard can watch it on its own runtime.
pub struct ClientStream {
    /// `Tcp` or `Tls`.
    pub transport: Transport,
    /// The client's transport address.
    pub client: SocketAddr,
    /// The server transport address it connected to.
    pub local: SocketAddr,
    /// Bytes that were read while telling protocols apart; they come first.
    pub received: Vec<u8>,
    // socket: parked socket
}

/// A byte stream registered with the current runtime.
pub struct ClientIo {}

impl ClientStream {
    /// Registers the socket with the runtime this is called in.
    ///
    /// # Errors
    /// The runtime's refusal to watch the socket.
    pub fn into_io(self) -> io::Result<ClientIo> {
        todo!()
    }
}
