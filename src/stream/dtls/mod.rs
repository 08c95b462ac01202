//! DTLS 1.2 (RFC 6347) with clients of RFC 7350: the cookie exchange, and sessions, both functions of their inputs.
//!
//! Handshakes and records are a library's. What it leaves to others is here: a cookie that is bound to the client's address
//! and costs no memory (`hello.rs`), because its own are bound to the ClientHello alone and begin with state; and an end
//! for a session in which it fails, whichever way.

mod hello;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dimpl::crypto::{HmacProvider, aws_lc_rs};
use dimpl::{CryptoError, Dtls, DtlsCertificate, HashAlgorithm, Output};

use crate::base::Secret;

pub use hello::{ALERT_BYTES, COOKIE_BYTES, ClientHello, Cookies, VERIFY_BYTES, is_dtls};

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest datagram of a handshake, in bytes: it passes every path of IPv6, tunnels included.
const HANDSHAKE_DATAGRAM: usize = 1200;

/// The longest record, protection included (RFC 6347 §4.1); what [`Session::poll`] needs room for.
pub const RECORD_BYTES: usize = 13 + (1 << 14) + 2048;

/// The most application data that one record carries, in bytes.
pub const DATA_BYTES: usize = 1 << 14;

/// The private half of a certificate, as DTLS takes it.
#[derive(Clone)]
pub struct Identity {
    certificate: Vec<u8>,
    key: Secret<Vec<u8>>,
}

impl Identity {
    /// Takes the leaf and its private key, both in DER. `None` unless the key is an ECDSA one of P-256 or P-384, which is
    /// what DTLS is spoken with here.
    pub fn new(leaf: &[u8], key: &[u8]) -> Option<Self> {
        let provider = aws_lc_rs::default_provider();
        provider.key_provider.load_private_key(key).ok()?;
        Some(Self {
            certificate: leaf.to_vec(),
            key: Secret::new(key.to_vec()),
        })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

/// How sessions are held; one for all of them.
#[derive(Clone)]
pub struct Terms(Arc<dimpl::Config>);

impl Terms {
    /// # Errors
    /// The cryptographic provider fails its own tests.
    pub fn new() -> Result<Self, dimpl::Error> {
        let mut provider = aws_lc_rs::default_provider();
        provider.hmac_provider = &Believed;
        let config = dimpl::Config::builder()
            .mtu(HANDSHAKE_DATAGRAM)
            .require_client_certificate(false)
            .handshake_timeout(HANDSHAKE_TIMEOUT)
            .with_crypto_provider(provider)
            .build()?;
        Ok(Self(Arc::new(config)))
    }
}

thread_local! {
    /// The cookie of the ClientHello that a session begins with, while it does.
    static BELIEVED: Cell<Option<[u8; COOKIE_BYTES]>> = const { Cell::new(None) };
}

/// What the library asks for an HMAC. Where it computes a cookie to compare with the client's, it gets the one that
/// [`Cookies`] have verified; all else is the provider's.
#[derive(Debug)]
struct Believed;

impl HmacProvider for Believed {
    fn hmac_sha256(&self, key: &[u8], data: &[u8]) -> Result<[u8; 32], CryptoError> {
        match BELIEVED.get() {
            Some(cookie) => Ok(cookie),
            None => aws_lc_rs::default_provider()
                .hmac_provider
                .hmac_sha256(key, data),
        }
    }

    fn hmac(
        &self,
        hash: HashAlgorithm,
        key: &[u8],
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, CryptoError> {
        aws_lc_rs::default_provider()
            .hmac_provider
            .hmac(hash, key, data, out)
    }
}

/// What a session wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// So many bytes of the buffer are a datagram for the client.
    Packet(usize),
    /// So many bytes of the buffer are application data of the client.
    Data(usize),
    /// The handshake is complete.
    Connected,
    /// The client has ended the session.
    Closed,
    /// Nothing before this time, unless something comes.
    Sleep(Instant),
}

/// A session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over;

/// A session with one client, from the ClientHello that has proven its address.
pub struct Session {
    dtls: Dtls,
    /// What the numbers of its records before encryption are behind those that the client has seen.
    shift: u64,
    /// Of the ClientHello.
    random: [u8; 32],
}

impl Session {
    /// Begins with `hello`, whose `cookie` [`Cookies::verify`] has found good.
    ///
    /// # Errors
    /// What the client offers cannot be agreed to.
    pub fn begin(
        terms: &Terms,
        identity: &Identity,
        now: Instant,
        hello: &ClientHello<'_>,
        cookie: [u8; COOKIE_BYTES],
    ) -> Result<Self, Over> {
        let certificate = DtlsCertificate {
            certificate: identity.certificate.clone(),
            private_key: identity.key.expose().clone(),
        };
        let config = Arc::clone(&terms.0);
        let dtls = guard(|| Ok(Dtls::new_12(config, certificate, now)))?;
        let mut session = Self {
            dtls,
            shift: hello.sequence.saturating_sub(1),
            random: hello.random,
        };
        session.tick(now)?;
        BELIEVED.set(Some(cookie));
        let begun = session.relive(hello);
        BELIEVED.set(None);
        begun.map(|()| session)
    }

    /// Has the library live through the cookie exchange that it did not see: it counts messages from its beginning.
    fn relive(&mut self, hello: &ClientHello<'_>) -> Result<(), Over> {
        self.receive(&hello.without_cookie())?;
        let mut ignored = [0; 256];
        while let Event::Packet(_) = self.poll(&mut ignored)? {}
        self.receive(hello.record())
    }

    /// Whether `hello` is the one it began with, sent again.
    pub fn began_with(&self, hello: &ClientHello<'_>) -> bool {
        self.random == hello.random
    }

    /// Takes a datagram of the client.
    ///
    /// # Errors
    /// The session is over.
    pub fn receive(&mut self, datagram: &[u8]) -> Result<(), Over> {
        guard(|| self.dtls.handle_packet(datagram))
    }

    /// Takes application data for the client, one record of it: [`DATA_BYTES`] at most.
    ///
    /// # Errors
    /// The session is over.
    pub fn send(&mut self, data: &[u8]) -> Result<(), Over> {
        guard(|| self.dtls.send_application_data(data).map(|_| ()))
    }

    /// Tells the time: before handshake messages, and when [`Event::Sleep`] is over.
    ///
    /// # Errors
    /// The session is over: the client has not answered for too long.
    pub fn tick(&mut self, now: Instant) -> Result<(), Over> {
        guard(|| self.dtls.handle_timeout(now))
    }

    /// Says goodbye (close_notify), where there is anybody to say it to; [`poll`](Self::poll) tells what to send.
    ///
    /// # Errors
    /// The session was over.
    pub fn close(&mut self) -> Result<(), Over> {
        guard(|| self.dtls.close())
    }

    /// What to do next; to be asked after everything else until it says to sleep. `buffer` has [`RECORD_BYTES`] and more.
    ///
    /// # Errors
    /// The session is over.
    pub fn poll(&mut self, buffer: &mut [u8]) -> Result<Event, Over> {
        loop {
            let event = guard(|| {
                Ok(match self.dtls.poll_output(buffer) {
                    Output::Packet(packet) => Some(Event::Packet(packet.len())),
                    Output::ApplicationData(data) => Some(Event::Data(data.len())),
                    Output::Connected => Some(Event::Connected),
                    Output::CloseNotify => Some(Event::Closed),
                    Output::Timeout(at) => Some(Event::Sleep(at)),
                    Output::BufferTooSmall { .. } => return Err(dimpl::Error::ConnectionClosed),
                    _ => None,
                })
            })?;
            match event {
                Some(Event::Packet(length)) => {
                    let packet = buffer.get_mut(..length).unwrap_or_default();
                    hello::renumber(packet, self.shift);
                    return Ok(Event::Packet(length));
                }
                Some(event) => return Ok(event),
                None => {}
            }
        }
    }
}

/// What the library makes of its input; a panic of its is the end of one session and not of the shard.
fn guard<T>(work: impl FnOnce() -> Result<T, dimpl::Error>) -> Result<T, Over> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a DTLS session ends");
            Err(Over)
        }
        Err(_) => {
            tracing::error!(
                "a DTLS session ends in a fault of the library; the other clients go on"
            );
            Err(Over)
        }
    }
}
