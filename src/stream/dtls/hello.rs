//! The cookie exchange before anything is kept (RFC 6347 §4.2.1): a ClientHello is read, and answered or believed, with
//! nothing but a key.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Bytes of a cookie: all of an HMAC-SHA-256.
pub const COOKIE_BYTES: usize = 32;

/// Bytes of a HelloVerifyRequest, record and all. A shorter ClientHello is not answered, so that nobody is sent more
/// than came in his name.
pub const VERIFY_BYTES: usize = RECORD_HEADER + HANDSHAKE_HEADER + 3 + COOKIE_BYTES;

/// Bytes of an alert in clear.
pub const ALERT_BYTES: usize = RECORD_HEADER + 2;

/// How long a cookie is good for, at least; at most twice as long.
const COOKIE_PERIOD: Duration = Duration::from_secs(30);

const RECORD_HEADER: usize = 13;
const HANDSHAKE_HEADER: usize = 12;
const RANDOM_BYTES: usize = 32;

const ALERT: u8 = 21;
const FATAL: u8 = 2;
const PROTOCOL_VERSION: u8 = 70;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HELLO_VERIFY_REQUEST: u8 = 3;

/// DTLS 1.2 on the wire; also what a ClientHello of 1.3 says here.
const DTLS_1_2: [u8; 2] = [0xfe, 0xfd];

/// What a HelloVerifyRequest says whichever version will be agreed on (RFC 6347 §4.2.1).
const DTLS_1_0: [u8; 2] = [0xfe, 0xff];

/// Whether a datagram is of DTLS, by its first byte (RFC 7983 §7).
pub const fn is_dtls(first: u8) -> bool {
    matches!(first, 20..=63)
}

/// A ClientHello that came whole, at the start of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct ClientHello<'a> {
    /// The record it came in.
    record: &'a [u8],
    /// It knows nothing later than DTLS 1.0.
    pub too_old: bool,
    /// The number of the record.
    pub sequence: u64,
    /// The number of the message: 0 for the first, 1 for the one with the cookie.
    pub message: u16,
    /// What makes this handshake another than the one before.
    pub random: [u8; RANDOM_BYTES],
    /// Where the cookie begins in the record: its length.
    cookie_at: usize,
    /// The cookie; empty in the first.
    pub cookie: &'a [u8],
    /// What both have to say alike: version, random and session.
    before: &'a [u8],
    /// The rest of it: cipher suites and compression. Extensions may differ: padding does.
    after: &'a [u8],
}

impl<'a> ClientHello<'a> {
    /// Reads the first record of `datagram`. `None` for all else, also for a ClientHello in fragments: a server that
    /// keeps nothing has nowhere to put them together (RFC 6347 §4.2.1 lets it).
    pub fn read(datagram: &'a [u8]) -> Option<Self> {
        let (&[kind, major, _, e0, e1, s0, s1, s2, s3, s4, s5, l0, l1], rest) =
            datagram.split_first_chunk::<RECORD_HEADER>()?;
        if kind != HANDSHAKE || major != DTLS_1_2[0] || [e0, e1] != [0; 2] {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let (message, _) = rest.split_at_checked(length)?;
        let record = datagram.get(..RECORD_HEADER + length)?;
        let (&[kind, t0, t1, t2, m0, m1, o0, o1, o2, f0, f1, f2], body) =
            message.split_first_chunk::<HANDSHAKE_HEADER>()?;
        let whole = [t0, t1, t2] == [f0, f1, f2] && [o0, o1, o2] == [0; 3];
        let total = u32::from_be_bytes([0, t0, t1, t2]) as usize;
        if kind != CLIENT_HELLO || !whole || total != body.len() {
            return None;
        }
        let mut reader = Reader { body, at: 0 };
        let version = reader.take(2)?;
        let random = reader.take(RANDOM_BYTES)?.try_into().ok()?;
        reader.take_vector8()?;
        let cookie_at = reader.at;
        let cookie = reader.take_vector8()?;
        let after_at = reader.at;
        let suites = usize::from(u16::from_be_bytes(reader.take(2)?.try_into().ok()?));
        reader.take(suites)?;
        reader.take_vector8()?;
        let &[family, minor] = version else {
            return None;
        };
        // Versions count down; 1.3 says 1.2 here.
        (family == DTLS_1_2[0]).then_some(Self {
            record,
            too_old: minor > DTLS_1_2[1],
            sequence: u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]),
            message: u16::from_be_bytes([m0, m1]),
            random,
            cookie_at: RECORD_HEADER + HANDSHAKE_HEADER + cookie_at,
            cookie,
            before: body.get(..cookie_at)?,
            after: body.get(after_at..reader.at)?,
        })
    }

    /// The alert that tells the client of an old version so (RFC 5246 §7.2.2, protocol_version).
    pub fn refusal(&self) -> [u8; ALERT_BYTES] {
        let [_, _, s @ ..] = self.sequence.to_be_bytes();
        let [s0, s1, s2, s3, s4, s5] = s;
        let [family, minor] = DTLS_1_0;
        [
            ALERT,
            family,
            minor,
            0,
            0,
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            0,
            2,
            FATAL,
            PROTOCOL_VERSION,
        ]
    }

    /// Its record.
    pub const fn record(&self) -> &'a [u8] {
        self.record
    }

    /// The ClientHello as it came first: without a cookie, in the record and the message before.
    pub fn without_cookie(&self) -> Vec<u8> {
        let rest_at = self.cookie_at + 1 + self.cookie.len();
        let mut first = Vec::with_capacity(self.record.len());
        first.extend_from_slice(self.record.get(..self.cookie_at).unwrap_or_default());
        first.push(0);
        first.extend_from_slice(self.record.get(rest_at..).unwrap_or_default());
        let body = first.len().saturating_sub(RECORD_HEADER + HANDSHAKE_HEADER);
        write_headers(
            &mut first,
            CLIENT_HELLO,
            self.sequence.saturating_sub(1),
            body,
        );
        first
    }
}

/// Writes the variable parts of both headers in front of a body of `length` bytes: message 0, whole.
fn write_headers(datagram: &mut [u8], kind: u8, sequence: u64, length: usize) {
    let Some(header) = datagram.first_chunk_mut::<{ RECORD_HEADER + HANDSHAKE_HEADER }>() else {
        return;
    };
    let [_, _, number @ ..] = sequence.to_be_bytes();
    header[5..11].copy_from_slice(&number);
    header[11..13].copy_from_slice(&((HANDSHAKE_HEADER + length) as u16).to_be_bytes());
    let [_, l @ ..] = (length as u32).to_be_bytes();
    header[13] = kind;
    header[14..17].copy_from_slice(&l);
    header[17..19].copy_from_slice(&[0; 2]);
    header[19..22].copy_from_slice(&[0; 3]);
    header[22..25].copy_from_slice(&l);
}

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.body.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn take_vector8(&mut self) -> Option<&'a [u8]> {
        let length = *self.take(1)?.first()?;
        self.take(usize::from(length))
    }
}

/// Makes and knows cookies: a MAC over the client's address and what both its ClientHellos say, and the time.
pub struct Cookies {
    mac: Hmac<Sha256>,
}

impl Cookies {
    /// With a key of its own.
    pub fn new(key: [u8; 64]) -> Self {
        let mac = Hmac::new(&key.into());
        Self { mac }
    }

    /// The cookie that `hello` brings, if it is one that was made for `client` a moment ago. `since`: the time since the
    /// key was made.
    pub fn verify(
        &self,
        since: Duration,
        client: SocketAddr,
        hello: &ClientHello<'_>,
    ) -> Option<[u8; COOKIE_BYTES]> {
        let cookie: [u8; COOKIE_BYTES] = hello.cookie.try_into().ok()?;
        let period = period(since);
        [Some(period), period.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|period| bool::from(self.cookie(period, client, hello).ct_eq(&cookie)))
            .then_some(cookie)
    }

    /// The HelloVerifyRequest that answers `hello`, in a record of the same number (RFC 6347 §4.2.1).
    pub fn verify_request(
        &self,
        since: Duration,
        client: SocketAddr,
        hello: &ClientHello<'_>,
    ) -> [u8; VERIFY_BYTES] {
        let mut datagram = [0; VERIFY_BYTES];
        datagram[0] = HANDSHAKE;
        datagram[1..3].copy_from_slice(&DTLS_1_0);
        let at = RECORD_HEADER + HANDSHAKE_HEADER;
        datagram[at..at + 2].copy_from_slice(&DTLS_1_0);
        datagram[at + 2] = COOKIE_BYTES as u8;
        let cookie = self.cookie(period(since), client, hello);
        datagram[at + 3..].copy_from_slice(&cookie);
        let body = VERIFY_BYTES - at;
        write_headers(&mut datagram, HELLO_VERIFY_REQUEST, hello.sequence, body);
        datagram
    }

    fn cookie(
        &self,
        period: u64,
        client: SocketAddr,
        hello: &ClientHello<'_>,
    ) -> [u8; COOKIE_BYTES] {
        let mut mac = self.mac.clone();
        mac.update(&period.to_be_bytes());
        let ip = match client.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        mac.update(&ip.octets());
        mac.update(&client.port().to_be_bytes());
        mac.update(&(hello.before.len() as u32).to_be_bytes());
        mac.update(hello.before);
        mac.update(hello.after);
        mac.finalize().into_bytes().into()
    }
}

const fn period(since: Duration) -> u64 {
    since.as_secs() / COOKIE_PERIOD.as_secs()
}

/// Adds `shift` to the number of every record that is not encrypted. Its MAC does not cover those, and a client that
/// asked twice has seen the lower numbers already.
pub fn renumber(datagram: &mut [u8], shift: u64) {
    if shift == 0 {
        return;
    }
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk_mut::<RECORD_HEADER>() {
        let [_, _, _, e0, e1, s0, s1, s2, s3, s4, s5, l0, l1] = *header;
        if [e0, e1] == [0; 2] {
            let sequence = u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]).wrapping_add(shift);
            let [_, _, number @ ..] = sequence.to_be_bytes();
            header[5..11].copy_from_slice(&number);
        }
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let Some((_, next)) = after.split_at_mut_checked(length) else {
            return;
        };
        rest = next;
    }
}
