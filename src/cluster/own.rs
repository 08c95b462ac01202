//! Looks at this very server the way its clients do: through its own listeners, by a relayed address, to a socket of this
//! host and back.
//!
//! What lies between the server and the Internet is not seen from here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::canary::{self, Credential, Goal, Look, Wire};
use crate::base::{Clock, Family, Transport};
use crate::client::{Client, Failure, Settings};
use crate::stream::{proxy, unverified};
use crate::wire::ErrorCode;

/// LIFETIME of what a look allocates, in seconds: it is given back at once, or else soon.
const LIFETIME_SECS: u32 = 30;

/// A nonce has to be there; nobody looks at the canary's.
const NONCE: &str = "canary";

/// One way into this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What is spoken.
    pub transport: Transport,
    /// Where, from this host.
    pub server: SocketAddr,
    /// Whether this host counts as a proxy there, and has to say for whom it comes.
    pub introduced: bool,
}

/// Why a way does not lead through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody accepts connections there.
    Closed,
    /// The TLS handshake fails.
    Handshake,
    /// Requests are not answered.
    Silent,
    /// No allocation is to be had: 486 or 508.
    Full,
    /// A request was refused otherwise, with this ERROR-CODE.
    Refused(u16),
    /// There is an allocation, and no data comes through it.
    Relay,
    /// The answers make no sense, or this host has no room for a client.
    Broken,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// From the client by the relay to the peer and back.
    pub echo: Duration,
    /// All of it, from the first packet.
    pub whole: Duration,
}

/// One look by `way` that takes no longer than `patience`, with data that goes to a socket on `local`, a local address that is relayed from, and comes back; `realm` is
/// the server's.
///
/// # Errors
/// How far it came.
pub async fn look(
    way: Way,
    local: IpAddr,
    credential: Credential,
    realm: &str,
    patience: Duration,
) -> Result<Seen, Fault> {
    let begun = Instant::now();
    let deadline = begun + patience;
    let peer = (UdpSocket::bind((local, 0)).await).map_err(|_| Fault::Broken)?;
    let path = match way.transport {
        Transport::Udp => (Wire::udp(way.server).await).map_err(|_| Fault::Broken)?,
        Transport::Tcp => Wire::stream(connect(way, deadline).await?),
        // Nobody asks: DTLS is not among the ways that are looked at.
        Transport::Dtls => return Err(Fault::Broken),
        Transport::Tls => {
            let stream = connect(way, deadline).await?;
            let connector = TlsConnector::from(unverified().map_err(|_| Fault::Broken)?);
            let name = ServerName::from(way.server.ip());
            let handshake = timeout_at(deadline, connector.connect(name, stream)).await;
            Wire::stream(
                handshake
                    .map_err(|_| Fault::Silent)?
                    .map_err(|_| Fault::Handshake)?,
            )
        }
    };
    let (username, password) = credential;
    let settings = Settings {
        username,
        password,
        transport: way.transport,
        family: Some(Family::of(local)),
        lifetime_secs: Some(LIFETIME_SECS),
    };
    let client = Client::new(settings, Clock.now(), rand::random()).challenged(realm, NONCE);
    let mut look = Look::by(client, path, Goal::Echo(peer));
    match timeout_at(deadline, look.run()).await {
        Ok(Ok(echo)) => Ok(Seen {
            echo,
            whole: begun.elapsed(),
        }),
        Ok(Err(canary::Fault::Failed(_, Failure::Refused(code)))) => Err(refused(code)),
        Ok(Err(canary::Fault::Failed(_, Failure::Timeout))) => Err(Fault::Silent),
        Ok(Err(_)) => Err(Fault::Broken),
        Err(_) => {
            look.release().await;
            if look.has_sent_proof() {
                Err(Fault::Relay)
            } else {
                Err(Fault::Silent)
            }
        }
    }
}

fn refused(code: u16) -> Fault {
    let full = [
        ErrorCode::AllocationQuotaReached,
        ErrorCode::InsufficientCapacity,
    ];
    if full.iter().any(|full| full.code() == code) {
        Fault::Full
    } else {
        Fault::Refused(code)
    }
}

async fn connect(way: Way, deadline: Instant) -> Result<TcpStream, Fault> {
    let connecting = async {
        let mut stream = TcpStream::connect(way.server).await?;
        if way.introduced {
            stream.write_all(&proxy::LOCAL).await?;
        }
        Ok(stream)
    };
    match timeout_at(deadline, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err::<_, io::Error>(_)) => Err(Fault::Closed),
        Err(_) => Err(Fault::Silent),
    }
}
