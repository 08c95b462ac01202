//! Telling protocols apart by the first bytes of a connection (RFC 7983 adapted to streams). Pure.
//!
//! The ranges of ChannelData (0x40–0x7F) and of ASCII letters overlap. They never meet: the first message of a TURN
//! client on a stream is a STUN message, since a channel needs an allocation first.

use super::Protocols;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A STUN message: a TURN client.
    Turn,
    /// A TLS handshake record.
    Tls,
    /// The beginning of an HTTP/1 request, or HTTP/2's preface.
    Http,
    /// Could still become HTTP; ask again with more bytes.
    More,
    /// Nothing that is spoken here.
    Close,
}

/// How every HTTP connection worth answering begins.
const HTTP_STARTS: [&[u8]; 8] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"PRI * HTTP/2.0",
];

/// The longest beginning after which the verdict is never `More`, in bytes.
pub const DECISIVE_BYTES: usize = 14;

/// Decides what a connection speaks, given what its listener speaks.
///
/// Inside TLS, `speaks` is what may follow the handshake: see `Protocols::inside_tls`.
pub fn sniff(first: &[u8], speaks: Protocols) -> Verdict {
    let allowed = |spoken: bool, verdict: Verdict| if spoken { verdict } else { Verdict::Close };
    match first.first() {
        None => Verdict::More,
        Some(0x16) => allowed(speaks.tls, Verdict::Tls),
        Some(0x00..=0x3F) => allowed(speaks.tcp, Verdict::Turn),
        Some(_) => allowed(speaks.http, http(first)),
    }
}

fn http(first: &[u8]) -> Verdict {
    if HTTP_STARTS.iter().any(|start| first.starts_with(start)) {
        Verdict::Http
    } else if HTTP_STARTS.iter().any(|start| start.starts_with(first)) {
        Verdict::More
    } else {
        Verdict::Close
    }
}
