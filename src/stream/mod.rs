//! Byte-stream clients before a shard owns them: accepting, telling TURN, TLS and HTTP apart, TLS handshakes.
//!
//! ```text
//! accept ── first bytes ─┬─ STUN ──────────────────────────────▶ ClientStream (Tcp)
//!                        ├─ HTTP ──────────────────────────────▶ HttpStream
//!                        ├─ TLS ── handshake ── ALPN, or the ─┬▶ ClientStream (Tls)
//!                        │   │                  bytes inside  └▶ HttpStream (tls)
//!                        │   │                  acme-tls/1 ──── closed: the handshake is the answer
//!                        │   └─ for a name that is not ours ──▶ passed through to another server
//!                        └─ silence, other ─ closed
//! ```
//!
//! Where a proxy is in front that is trusted, its header comes before all that, and tells who the client is.
//!
//! All of it runs on the control runtime: a handshake takes longer than relaying a thousand packets. Refuses to know
//! TURN beyond its first byte, or HTTP beyond its method.

mod admission;
pub mod certificates;
mod challenges;
pub mod dtls;
mod handshakes;
mod io;
mod listener;
mod passage;
pub mod proxy;
pub mod sniff;
mod unverified;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use admission::{Admission, Admitted, Refusal, Refused};
pub use certificates::{Certificate, CertificateError, Certificates};
pub use challenges::{Answer, Challenges};
pub use handshakes::{FailedHandshakes, Handshakes};
pub use io::{ClientIo, ClientStream, HttpStream};
pub use listener::{Listener, Settings};
pub use passage::{Outcome, Passages, Passed, Upstream, Way};
pub use unverified::unverified;

/// With whom a port is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Where proxies are: what comes from there has to begin with a header of the PROXY protocol, and is from whom that
    /// tells. A header from elsewhere is not believed.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Who gets what the port does not speak, and TLS for names that are not this server's.
    pub upstream: Option<Upstream>,
}

impl Sharing {
    /// Whether `ip` is a proxy's, which says for whom it speaks.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|network| network.contains(&ip))
    }
}

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
            names.extend([ALPN_TURN.to_vec(), ALPN_DISCOVERY.to_vec()]);
            if self.http {
                names.extend([ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()]);
            }
        }
        names
    }
}

const ALPN_TURN: &[u8] = b"stun.turn";
const ALPN_DISCOVERY: &[u8] = b"stun.nat-discovery";

/// Whether an ALPN name is one of STUN's (RFC 7443 §2), over which TURN and Binding alike are spoken.
fn is_stun(name: &[u8]) -> bool {
    name == ALPN_TURN || name == ALPN_DISCOVERY
}
const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
