//! What a probe finds out about one URI. Values only; [`super::verdict`] draws the conclusions.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::base::Transport;
use crate::cli::tls::Certificate;

/// Everything that is known about one URI; what the probe did not get to is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// As given.
    pub uri: String,
    /// The host in it.
    pub host: String,
    /// The port in it, or the scheme's.
    pub port: u16,
    /// How to get there.
    #[serde(serialize_with = "label")]
    pub transport: Transport,
    /// Whether it is asked to relay (`turn:`, `turns:`).
    pub relays: bool,
    /// What it is asked with.
    pub credentials: Credentials,
    /// This host's clock when the server was first asked, in seconds since the Unix epoch.
    pub now_unix: u64,
    /// The server's clock at that time, where it speaks HTTP and was asked.
    pub server_unix: Option<u64>,
    /// What the host resolves to.
    pub addresses: Vec<SocketAddr>,
    /// Addresses that do not answer while another one does.
    pub dead: Vec<Dead>,
    /// The address that the rest is about.
    pub server: Option<SocketAddr>,
    /// Where this host asks from.
    pub local: Option<SocketAddr>,
    /// Over TLS.
    pub certificate: Option<Certificate>,
    /// Whether that certificate was verified.
    pub verified: bool,
    /// How the server sees this host.
    pub mapped: Option<SocketAddr>,
    /// Time from a Binding request to its answer.
    #[serde(rename = "binding_ms", serialize_with = "some_ms")]
    pub binding: Option<Duration>,
    /// Why Binding came to nothing, where that did not end the probe.
    pub binding_trouble: Option<Trouble>,
    /// The realm that the server named.
    pub realm: Option<String>,
    /// Where a 300 sent the probe.
    pub redirected: Option<SocketAddr>,
    /// Where peers reach this host.
    pub relayed: Option<SocketAddr>,
    /// How long the server keeps the allocation.
    pub lifetime_secs: Option<u32>,
    /// Time that the allocation took, challenge included.
    #[serde(rename = "allocate_ms", serialize_with = "some_ms")]
    pub allocate: Option<Duration>,
    /// The server relays IPv6 only.
    pub ipv6_only: bool,
    /// Why there is no second allocation for the first to talk to; it talks to itself then.
    pub single: Option<Trouble>,
    /// Data in Send and Data indications.
    pub indications: Option<Traffic>,
    /// Data in channels.
    pub channel_data: Option<Traffic>,
    /// Small packets at a slow pace: latency, jitter, loss.
    pub latency: Option<Traffic>,
    /// Packets of 1200 bytes.
    pub large: Option<Traffic>,
    /// As much as was asked for.
    pub burst: Option<Traffic>,
    /// Whether the server said that the allocations are gone.
    pub released: Option<bool>,
    /// Where the probe could not go on.
    pub end: Option<End>,
    /// What a look around found out after that.
    pub around: Around,
}

impl Facts {
    /// Nothing is known yet.
    pub fn new(uri: String, host: String, port: u16, transport: Transport, relays: bool) -> Self {
        Self {
            uri,
            host,
            port,
            transport,
            relays,
            credentials: Credentials::None,
            now_unix: 0,
            server_unix: None,
            addresses: Vec::new(),
            dead: Vec::new(),
            server: None,
            local: None,
            certificate: None,
            verified: false,
            mapped: None,
            binding: None,
            binding_trouble: None,
            realm: None,
            redirected: None,
            relayed: None,
            lifetime_secs: None,
            allocate: None,
            ipv6_only: false,
            single: None,
            indications: None,
            channel_data: None,
            latency: None,
            large: None,
            burst: None,
            released: None,
            end: None,
            around: Around::default(),
        }
    }
}

/// What a server is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Credentials {
    /// Nothing.
    None,
    /// A name and a password.
    Password {
        /// When the name says that it ends, where it does, in seconds since the Unix epoch.
        expires_unix: Option<u64>,
    },
    /// A name and a password that this command made from a shared secret.
    Secret {
        /// When they end, in seconds since the Unix epoch.
        expires_unix: u64,
    },
}

/// An address of the server that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dead {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub trouble: Trouble,
}

/// Where a probe could not go on, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// What it was about to do.
    pub stage: Stage,
    /// What happened.
    pub trouble: Trouble,
}

/// The steps of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The name has addresses.
    Resolve,
    /// UDP socket or TCP connection.
    Connect,
    /// TLS handshake.
    Tls,
    /// A STUN Binding.
    Binding,
    /// Allocate, with its challenge.
    Allocate,
    /// CreatePermission for the other end.
    Permission,
    /// Send and Data indications.
    Indications,
    /// ChannelBind.
    Channel,
    /// ChannelData.
    ChannelData,
    /// Many small packets.
    Latency,
    /// Packets of full size.
    Large,
    /// As much as was asked for.
    Throughput,
    /// Refresh with lifetime 0.
    Release,
}

impl Stage {
    /// As people read it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Binding => "binding",
            Self::Allocate => "allocate",
            Self::Permission => "permission",
            Self::Indications => "indications",
            Self::Channel => "channel",
            Self::ChannelData => "channel data",
            Self::Latency => "latency",
            Self::Large => "1200 bytes",
            Self::Throughput => "throughput",
            Self::Release => "release",
        }
    }
}

/// What can go wrong between here and the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Trouble {
    /// The name has no address.
    NoName {
        /// What the resolver said.
        why: String,
    },
    /// This host knows no way there.
    NoRoute {
        /// What the system said.
        why: String,
    },
    /// A router or firewall says that packets do not get there, or nobody has that address.
    Rejected {
        /// What the system said.
        why: String,
    },
    /// Nobody listens: ICMP over UDP, a reset over TCP.
    Closed,
    /// No answer.
    Silence,
    /// The server ended the connection.
    HungUp,
    /// What came is neither TURN nor what was asked for.
    NotTurn,
    /// The certificate is not to be trusted.
    Certificate(Distrust),
    /// The handshake failed otherwise.
    Handshake {
        /// What the TLS library said.
        why: String,
    },
    /// The server refused.
    Refused {
        /// ERROR-CODE, 0 if there was none.
        code: u16,
    },
    /// The answer's MESSAGE-INTEGRITY is not made with this password.
    Integrity,
    /// The answer lacks what it has to hold.
    Malformed,
    /// The challenge lacks what its nonce promises (RFC 8489 §9.2.5).
    BidDown,
    /// Something on this host.
    Host {
        /// What the system said.
        why: String,
    },
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoName { why }
            | Self::NoRoute { why }
            | Self::Rejected { why }
            | Self::Host { why } => f.write_str(why),
            Self::Closed => f.write_str("the port is closed"),
            Self::Silence => f.write_str("no answer"),
            Self::HungUp => f.write_str("the server ended the connection"),
            Self::NotTurn => f.write_str("what answers is no TURN"),
            Self::Certificate(distrust) => f.write_str(match distrust {
                Distrust::Name => "the certificate is for other names",
                Distrust::Expired => "the certificate has expired",
                Distrust::NotYet => "the certificate is not valid yet",
                Distrust::Issuer => "nobody trusted has signed the certificate",
                Distrust::Other { .. } => "the certificate is not to be trusted",
            }),
            Self::Handshake { why } => f.write_str(why),
            Self::Refused { code } => match reason(*code) {
                "" => write!(f, "refused with {code}"),
                reason => write!(f, "refused with {code} ({reason})"),
            },
            Self::Integrity => f.write_str("the answer is signed with another password"),
            Self::Malformed => f.write_str("the answer lacks what it has to hold"),
            Self::BidDown => f.write_str("the challenge lacks what its nonce promises"),
        }
    }
}

/// The RFCs' names of error codes (RFC 8489 §14.8, RFC 8656 §19).
const fn reason(code: u16) -> &'static str {
    match code {
        300 => "Try Alternate",
        400 => "Bad Request",
        401 => "Unauthenticated",
        403 => "Forbidden",
        405 | 420 => "Unknown Attribute",
        437 => "Allocation Mismatch",
        438 => "Stale Nonce",
        440 => "Address Family not Supported",
        441 => "Wrong Credentials",
        442 => "Unsupported Transport Protocol",
        443 => "Peer Address Family Mismatch",
        446 => "Connection Already Exists",
        447 => "Connection Timeout or Failure",
        486 => "Allocation Quota Reached",
        500 => "Server Error",
        508 => "Insufficient Capacity",
        _ => "",
    }
}

/// Why a certificate is not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "distrust")]
pub enum Distrust {
    /// It is for other names.
    Name,
    /// It is over.
    Expired,
    /// It begins later.
    NotYet,
    /// Whoever vouches for it is unknown here.
    Issuer,
    /// Anything else.
    Other {
        /// What the TLS library said.
        why: String,
    },
}

/// Packets that went through the server, one way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// Bytes of application data in each.
    pub bytes: usize,
    /// How many were sent.
    pub sent: u32,
    /// How many arrived, each counted once.
    pub received: u32,
    /// Time from the first to the last that was sent.
    #[serde(rename = "sending_ms", serialize_with = "ms")]
    pub sending: Duration,
    /// Time from the first to the last arrival.
    #[serde(rename = "receiving_ms", serialize_with = "ms")]
    pub receiving: Duration,
    /// From here through the relay and back here; `None` if nothing arrived.
    pub rtt: Option<Rtt>,
}

impl Traffic {
    /// The share that was lost, 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 {
            return 0.0;
        }
        f64::from(self.sent - self.received.min(self.sent)) / f64::from(self.sent)
    }

    /// Bits of application data per second that arrived.
    pub fn bits_per_second(&self) -> f64 {
        // The last packet's own time on the wire does not show.
        let seconds = self.receiving.max(self.sending).as_secs_f64();
        if seconds == 0.0 {
            return 0.0;
        }
        f64::from(self.received) * self.bytes as f64 * 8.0 / seconds
    }
}

/// How long packets were on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rtt {
    /// Half were faster.
    #[serde(rename = "p50_ms", serialize_with = "ms")]
    pub p50: Duration,
    /// 95 % were faster.
    #[serde(rename = "p95_ms", serialize_with = "ms")]
    pub p95: Duration,
    /// 99 % were faster.
    #[serde(rename = "p99_ms", serialize_with = "ms")]
    pub p99: Duration,
    /// The slowest.
    #[serde(rename = "max_ms", serialize_with = "ms")]
    pub max: Duration,
    /// The mean difference between a packet and the one sent before it.
    #[serde(rename = "jitter_ms", serialize_with = "ms")]
    pub jitter: Duration,
}

impl Rtt {
    /// Of times in the order in which packets were sent; `None` without any.
    pub fn of(times: &[Duration]) -> Option<Self> {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(index).copied()
        };
        let differences: Duration = (times.windows(2))
            .map(|pair| match pair {
                [one, next] => one.abs_diff(*next),
                _ => Duration::ZERO,
            })
            .sum();
        let pairs = u32::try_from(times.len().saturating_sub(1)).unwrap_or(u32::MAX);
        Some(Self {
            p50: at(50)?,
            p95: at(95)?,
            p99: at(99)?,
            max: *sorted.last()?,
            jitter: differences.checked_div(pairs).unwrap_or_default(),
        })
    }
}

/// What a look around found after something failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Around {
    /// How TURN over TCP does on the same port, after UDP failed.
    pub tcp: Option<Knock>,
    /// How STUN over UDP does on the same port, after TCP failed.
    pub udp: Option<Knock>,
    /// What the port speaks instead, after TURN over TCP or TLS failed.
    pub speaks: Option<Speech>,
}

/// How a port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Knock {
    /// It answers STUN.
    Answers,
    /// It takes connections, and answers no STUN.
    Opens,
    /// Nobody listens.
    Closed,
    /// Nothing comes back.
    Silent,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Speech {
    /// TURN without TLS.
    Turn,
    /// TLS.
    Tls,
    /// HTTP without TLS.
    Http,
}

fn label<S: Serializer>(transport: &Transport, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(transport.label())
}

fn ms<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(in_ms(*time))
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn some_ms<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => ms(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// Milliseconds, to the microsecond.
fn in_ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn percentiles() {
        assert_eq!(Rtt::of(&[]), None);
        let one = Rtt::of(&[millis(7)]).unwrap();
        assert_eq!(
            (one.p50, one.p99, one.jitter),
            (millis(7), millis(7), millis(0))
        );
        let times: Vec<_> = (1..=100).map(millis).collect();
        let all = Rtt::of(&times).unwrap();
        assert_eq!(
            (all.p50, all.p95, all.p99, all.max, all.jitter),
            (millis(50), millis(95), millis(99), millis(100), millis(1))
        );
        let swinging = Rtt::of(&[millis(10), millis(30), millis(10)]).unwrap();
        assert_eq!(swinging.jitter, millis(20));
    }

    #[test]
    fn rates() {
        let traffic = Traffic {
            bytes: 1000,
            sent: 200,
            received: 150,
            sending: millis(1000),
            receiving: millis(990),
            rtt: None,
        };
        assert!((traffic.loss() - 0.25).abs() < 1e-9);
        assert!((traffic.bits_per_second() - 1.2e6).abs() < 1e-3);
        assert!(Traffic::default().loss().abs() < 1e-9);
    }
}
