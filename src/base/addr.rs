//! Addresses as the RFCs name them, small enough to be keys of hot tables.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How a client reaches the server (RFC 8656 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A plain TCP connection.
    Tcp,
    /// A TLS connection over TCP.
    Tls,
    /// A DTLS session over UDP (RFC 7350).
    Dtls,
}

impl Transport {
    /// All transports, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Tcp, Self::Tls, Self::Dtls];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Dtls => "dtls",
        }
    }

    /// Whether messages arrive in a byte stream and have to be framed (RFC 8656 §12.5).
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }

    /// Whether whoever uses it has answered from its address, which a lone datagram does not tell.
    pub const fn proves_address(self) -> bool {
        !matches!(self, Self::Udp)
    }
}

/// An address family as REQUESTED-ADDRESS-FAMILY knows it (RFC 8656 §18.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4, family 0x01.
    V4,
    /// IPv6, family 0x02.
    V6,
}

impl Family {
    /// Both families, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The one that this is not.
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The family of `ip`. A mapped IPv4 address counts as IPv6: canonicalize first.
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Which way relayed application data flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the client to a peer.
    ToPeer,
    /// From a peer to the client.
    ToClient,
}

impl Direction {
    /// Both, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::ToPeer, Self::ToClient];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ToPeer => "to_peer",
            Self::ToClient => "to_client",
        }
    }
}

/// What an allocation relays, as REQUESTED-TRANSPORT asks for it (RFC 8656 §18.7, RFC 6062 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RelayTransport {
    /// Datagrams.
    #[default]
    Udp,
    /// Connections.
    Tcp,
}

impl RelayTransport {
    /// The label of views and records.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// One server transport address: a listener, and, where it is bound to a wildcard, the local address the client used.
///
/// Ids are meaningful within one shard only.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u16);

/// Transport, client address and server address (RFC 8656 §3): 24 bytes, the hottest key of the server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FiveTuple {
    ip_high: u64,
    ip_low: u64,
    port: u16,
    listener: ListenerId,
    transport: Transport,
}

impl FiveTuple {
    /// Builds the key; a mapped IPv4 client address (`::ffff:a.b.c.d`) equals the IPv4 address itself.
    pub fn new(transport: Transport, client: SocketAddr, listener: ListenerId) -> Self {
        let bits = bits(client.ip());
        Self {
            ip_high: (bits >> 64) as u64,
            ip_low: bits as u64,
            port: client.port(),
            listener,
            transport,
        }
    }

    /// The client's transport address, IPv4 in its own form.
    pub fn client(&self) -> SocketAddr {
        let bits = (u128::from(self.ip_high) << 64) | u128::from(self.ip_low);
        SocketAddr::new(Ipv6Addr::from_bits(bits).to_canonical(), self.port)
    }

    /// The server transport address the client talks to.
    pub const fn listener(&self) -> ListenerId {
        self.listener
    }

    /// How the client reaches us.
    pub const fn transport(&self) -> Transport {
        self.transport
    }
}

impl fmt::Debug for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}@{}",
            self.transport.label(),
            self.client(),
            self.listener.0
        )
    }
}

/// A relayed transport address as clients and peers see it (RFC 8656 §3): behind 1:1 NAT, the external one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayedAddress(pub SocketAddr);

impl RelayedAddress {
    /// The family the allocation relays in.
    pub const fn family(self) -> Family {
        Family::of(self.0.ip())
    }
}

/// What one subscriber can change at will counts once: an IPv6 address stands for its /64.
pub fn subscriber(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (!0 << 64)).into(),
    }
}

/// `ip` with a mapped IPv4 address in its IPv4 form, port untouched.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether `ip` is good on its own link only (RFC 3927, RFC 4291 §2.5.6).
pub const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether only the network around this host can reach `ip`: private, of the carriers' NAT, unique local, link-local.
pub const fn is_private(ip: IpAddr) -> bool {
    let private = match ip {
        IpAddr::V4(ip) => {
            // 100.64.0.0/10 is the carriers' NAT (RFC 6598).
            let [a, b, _, _] = ip.octets();
            ip.is_private() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    private || is_link_local(ip)
}

/// `ip` as 128 bits; an IPv4 address as its mapped form.
pub const fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The wildcard address of `family`.
pub const fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

const _: () = assert!(size_of::<FiveTuple>() == 24);
