//! The one door to the codec: STUN and TURN messages, ChannelData, and their framing in byte streams.
//!
//! `stun-types` and `turn-types` read and write control messages and are named nowhere else. What travels on the data
//! path (ChannelData, Send and Data indications) is read and written here without them. This module also imposes what
//! is our own behaviour: no trailing bytes, aligned lengths, the first of duplicate attributes wins, attributes behind
//! MESSAGE-INTEGRITY are not seen.

pub mod channel_data;
pub mod classic;
pub mod error_code;
pub mod features;
pub mod framing;
pub mod icmp;
pub mod indication;
pub mod key;
pub mod message;
pub mod request;
pub mod response;

pub use channel_data::ChannelNumber;
pub use error_code::ErrorCode;
pub use features::Features;
pub use icmp::Icmp;
pub use indication::Header;
pub use key::{Integrity, Key, PasswordAlgorithm};
pub use message::{Class, DecodeError, Message, TransactionId};
pub use request::Request;
pub use response::Response;

/// Bytes that a header written in front of relayed data may need: a Data indication to an IPv6 peer.
pub const HEADROOM: usize = 48;

/// Bytes of padding that may follow relayed data.
pub const TAILROOM: usize = 3;

/// Length of the STUN header (RFC 8489 §5), in bytes.
pub const STUN_HEADER: usize = 20;

/// The fixed value in every STUN header (RFC 8489 §5).
pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// The value of the FINGERPRINT that follows `message`, whose header counts it already (RFC 8489 §14.7).
pub fn fingerprint(message: &[u8]) -> u32 {
    crc32fast::hash(message) ^ 0x5354_554E
}

/// What the first byte of a datagram or frame announces (RFC 7983, RFC 8656 §12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A STUN message: the two top bits are zero.
    Stun,
    /// ChannelData: the two top bits are 01.
    ChannelData,
    /// Neither.
    Other,
}

/// Tells STUN from ChannelData by the first byte.
pub fn classify(datagram: &[u8]) -> Kind {
    match datagram.first().map(|byte| byte >> 6) {
        Some(0b00) => Kind::Stun,
        Some(0b01) => Kind::ChannelData,
        _ => Kind::Other,
    }
}

/// A method of STUN or TURN (RFC 8489 §18.2, RFC 8656 §17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Method {
    /// 0x001
    Binding,
    /// 0x003
    Allocate,
    /// 0x004
    Refresh,
    /// 0x006, indication only
    Send,
    /// 0x007, indication only
    Data,
    /// 0x008
    CreatePermission,
    /// 0x009
    ChannelBind,
    /// 0x00A (RFC 6062 §6.1)
    Connect,
    /// 0x00B (RFC 6062 §6.1)
    ConnectionBind,
    /// 0x00C, indication only (RFC 6062 §6.1)
    ConnectionAttempt,
    /// Any other method.
    Unknown,
}

impl Method {
    /// Every method, in the order of their discriminants.
    pub const ALL: [Self; 11] = [
        Self::Binding,
        Self::Allocate,
        Self::Refresh,
        Self::Send,
        Self::Data,
        Self::CreatePermission,
        Self::ChannelBind,
        Self::Connect,
        Self::ConnectionBind,
        Self::ConnectionAttempt,
        Self::Unknown,
    ];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Binding => "binding",
            Self::Allocate => "allocate",
            Self::Refresh => "refresh",
            Self::Send => "send",
            Self::Data => "data",
            Self::CreatePermission => "create_permission",
            Self::ChannelBind => "channel_bind",
            Self::Connect => "connect",
            Self::ConnectionBind => "connection_bind",
            Self::ConnectionAttempt => "connection_attempt",
            Self::Unknown => "unknown",
        }
    }

    /// The number on the wire; `None` for `Unknown`.
    pub const fn number(self) -> Option<u16> {
        match self {
            Self::Binding => Some(0x001),
            Self::Allocate => Some(0x003),
            Self::Refresh => Some(0x004),
            Self::Send => Some(0x006),
            Self::Data => Some(0x007),
            Self::CreatePermission => Some(0x008),
            Self::ChannelBind => Some(0x009),
            Self::Connect => Some(0x00A),
            Self::ConnectionBind => Some(0x00B),
            Self::ConnectionAttempt => Some(0x00C),
            Self::Unknown => None,
        }
    }

    const fn from_number(number: u16) -> Self {
        match number {
            0x001 => Self::Binding,
            0x003 => Self::Allocate,
            0x004 => Self::Refresh,
            0x006 => Self::Send,
            0x007 => Self::Data,
            0x008 => Self::CreatePermission,
            0x009 => Self::ChannelBind,
            0x00A => Self::Connect,
            0x00B => Self::ConnectionBind,
            0x00C => Self::ConnectionAttempt,
            _ => Self::Unknown,
        }
    }
}

/// Attribute types (RFC 8489 §18.3, RFC 8656 §18, and the RFCs named there).
pub mod attribute {
    /// MAPPED-ADDRESS
    pub const MAPPED_ADDRESS: u16 = 0x0001;
    /// CHANGE-REQUEST (RFC 5780 §7.2)
    pub const CHANGE_REQUEST: u16 = 0x0003;
    /// USERNAME
    pub const USERNAME: u16 = 0x0006;
    /// MESSAGE-INTEGRITY
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    /// ERROR-CODE
    pub const ERROR_CODE: u16 = 0x0009;
    /// UNKNOWN-ATTRIBUTES
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
    /// CHANNEL-NUMBER
    pub const CHANNEL_NUMBER: u16 = 0x000C;
    /// LIFETIME
    pub const LIFETIME: u16 = 0x000D;
    /// XOR-PEER-ADDRESS
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    /// DATA
    pub const DATA: u16 = 0x0013;
    /// REALM
    pub const REALM: u16 = 0x0014;
    /// NONCE
    pub const NONCE: u16 = 0x0015;
    /// XOR-RELAYED-ADDRESS
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    /// REQUESTED-ADDRESS-FAMILY
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    /// EVEN-PORT
    pub const EVEN_PORT: u16 = 0x0018;
    /// REQUESTED-TRANSPORT
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    /// DONT-FRAGMENT
    pub const DONT_FRAGMENT: u16 = 0x001A;
    /// ACCESS-TOKEN (RFC 7635 §6.2)
    pub const ACCESS_TOKEN: u16 = 0x001B;
    /// MESSAGE-INTEGRITY-SHA256
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
    /// PASSWORD-ALGORITHM
    pub const PASSWORD_ALGORITHM: u16 = 0x001D;
    /// USERHASH
    pub const USERHASH: u16 = 0x001E;
    /// XOR-MAPPED-ADDRESS
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// RESERVATION-TOKEN
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    /// PADDING (RFC 5780 §7.6)
    pub const PADDING: u16 = 0x0026;
    /// RESPONSE-PORT (RFC 5780 §7.5)
    pub const RESPONSE_PORT: u16 = 0x0027;
    /// CONNECTION-ID (RFC 6062 §6.2.1)
    pub const CONNECTION_ID: u16 = 0x002A;
    /// ADDITIONAL-ADDRESS-FAMILY
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    /// ADDRESS-ERROR-CODE
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    /// PASSWORD-ALGORITHMS
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    /// ALTERNATE-DOMAIN
    pub const ALTERNATE_DOMAIN: u16 = 0x8003;
    /// ICMP
    pub const ICMP: u16 = 0x8004;
    /// ALTERNATE-SERVER
    pub const ALTERNATE_SERVER: u16 = 0x8023;
    /// FINGERPRINT
    pub const FINGERPRINT: u16 = 0x8028;
    /// RESPONSE-ORIGIN (RFC 5780 §7.3)
    pub const RESPONSE_ORIGIN: u16 = 0x802B;
    /// OTHER-ADDRESS (RFC 5780 §7.4)
    pub const OTHER_ADDRESS: u16 = 0x802C;
    /// THIRD-PARTY-AUTHORIZATION (RFC 7635 §6.1)
    pub const THIRD_PARTY_AUTHORIZATION: u16 = 0x802E;
    /// MOBILITY-TICKET (RFC 8016 §3.2)
    pub const MOBILITY_TICKET: u16 = 0x8030;
    /// ADDITIONAL-ADDRESS-FAMILY as coturn's clients number it, which nobody else has a use for.
    pub const COTURN_ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8032;
}
