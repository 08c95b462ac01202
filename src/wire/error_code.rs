//! The error codes this server answers with (RFC 8489 §14.8, RFC 8656 §19, RFC 6062 §6.3).

/// An ERROR-CODE value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ErrorCode {
    /// 300: ask another server.
    TryAlternate,
    /// 400: the request is malformed.
    BadRequest,
    /// 401: credentials are missing or wrong.
    Unauthenticated,
    /// 403: administratively refused.
    Forbidden,
    /// 405: no mobility for this request (RFC 8016 §5).
    MobilityForbidden,
    /// 420: an unknown comprehension-required attribute.
    UnknownAttribute,
    /// 437: the five-tuple has, or lacks, an allocation.
    AllocationMismatch,
    /// 438: the nonce is not ours or has expired.
    StaleNonce,
    /// 440: we have no relayed address of that family.
    AddressFamilyNotSupported,
    /// 441: not the credentials that created the allocation.
    WrongCredentials,
    /// 442: the requested transport to the peer is not offered.
    UnsupportedTransport,
    /// 443: the peer's family differs from the relayed address's.
    PeerAddressFamilyMismatch,
    /// 446: the peer connection exists already.
    ConnectionAlreadyExists,
    /// 447: the peer connection failed or timed out.
    ConnectionTimeoutOrFailure,
    /// 486: a quota is used up.
    AllocationQuotaReached,
    /// 500: our own fault; trying again may help.
    ServerError,
    /// 508: no relayed address is free.
    InsufficientCapacity,
}

impl ErrorCode {
    /// Every code, in the order of their discriminants.
    pub const ALL: [Self; 17] = [
        Self::TryAlternate,
        Self::BadRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::MobilityForbidden,
        Self::UnknownAttribute,
        Self::AllocationMismatch,
        Self::StaleNonce,
        Self::AddressFamilyNotSupported,
        Self::WrongCredentials,
        Self::UnsupportedTransport,
        Self::PeerAddressFamilyMismatch,
        Self::ConnectionAlreadyExists,
        Self::ConnectionTimeoutOrFailure,
        Self::AllocationQuotaReached,
        Self::ServerError,
        Self::InsufficientCapacity,
    ];

    /// The number on the wire, 300 to 699.
    pub const fn code(self) -> u16 {
        match self {
            Self::TryAlternate => 300,
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::MobilityForbidden => 405,
            Self::UnknownAttribute => 420,
            Self::AllocationMismatch => 437,
            Self::StaleNonce => 438,
            Self::AddressFamilyNotSupported => 440,
            Self::WrongCredentials => 441,
            Self::UnsupportedTransport => 442,
            Self::PeerAddressFamilyMismatch => 443,
            Self::ConnectionAlreadyExists => 446,
            Self::ConnectionTimeoutOrFailure => 447,
            Self::AllocationQuotaReached => 486,
            Self::ServerError => 500,
            Self::InsufficientCapacity => 508,
        }
    }

    /// The number as a label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TryAlternate => "300",
            Self::BadRequest => "400",
            Self::Unauthenticated => "401",
            Self::Forbidden => "403",
            Self::MobilityForbidden => "405",
            Self::UnknownAttribute => "420",
            Self::AllocationMismatch => "437",
            Self::StaleNonce => "438",
            Self::AddressFamilyNotSupported => "440",
            Self::WrongCredentials => "441",
            Self::UnsupportedTransport => "442",
            Self::PeerAddressFamilyMismatch => "443",
            Self::ConnectionAlreadyExists => "446",
            Self::ConnectionTimeoutOrFailure => "447",
            Self::AllocationQuotaReached => "486",
            Self::ServerError => "500",
            Self::InsufficientCapacity => "508",
        }
    }
}
