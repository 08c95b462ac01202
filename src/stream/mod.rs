//! Byte-stream clients before a shard owns them: accepting, telling TURN, TLS and HTTP apart, TLS handshakes.
//!
//! ```text
//! accept ── first bytes ─┬─ STUN ──────────────────────────────▶ ClientStream (Tcp)
//!                        ├─ HTTP ──────────────────────────────▶ HttpStream
//!                        ├─ TLS ── handshake ── ALPN, or the ─┬▶ ClientStream (Tls)
//!                        │                      bytes inside  └▶ HttpStream (tls)
//!                        │                      acme-tls/1 ──── closed: the handshake is the answer
//!                        └─ silence, other ─ closed
//! ```
//!
//! All of it runs on the control runtime: a handshake takes longer than relaying a thousand packets. Refuses to know
//! TURN beyond its first byte, or HTTP beyond its method.

mod admission;
pub mod certificates;
mod challenges;
pub mod dtls;
mod io;
mod listener;
pub mod sniff;
mod unverified;

pub use admission::{Admission, Admitted, Refusal, Refused};
pub use certificates::{Certificate, CertificateError, Certificates};
pub use challenges::{Answer, Challenges};
pub use io::{ClientIo, ClientStream, HttpStream};
pub use listener::{Listener, Settings};
pub use unverified::unverified;

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

impl Protocols {
    /// What may follow a TLS handshake: TURN, HTTP where the listener speaks it, never TLS again.
    #[must_use]
    pub const fn inside_tls(self) -> Self {
        Self {
            tcp: self.tls,
            tls: false,
            http: self.tls && self.http,
        }
    }

    /// The ALPN names offered, most wanted first (RFC 7443, RFC 9113).
    pub fn alpn(self) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        if self.tls {
            names.push(ALPN_TURN.to_vec());
            if self.http {
                names.extend([ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()]);
            }
        }
        names
    }
}

const ALPN_TURN: &[u8] = b"stun.turn";
const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
