//! Why a well-formed request is refused.

use std::net::SocketAddr;

use crate::access::{AuthFailure, DeniedRule};
use crate::wire::ErrorCode;

/// A refusal: what the client is told follows from it, and what the operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// 300: another server takes newcomers.
    TryAlternate(SocketAddr),
    /// 400, with what is wrong for the log.
    BadRequest(&'static str),
    /// 400: PASSWORD-ALGORITHM or PASSWORD-ALGORITHMS is not what the challenge said.
    BidDown,
    /// 401: credentials are missing or wrong.
    Unauthenticated(AuthFailure),
    /// 403: peer policy.
    PeerDenied(DeniedRule),
    /// 420: comprehension-required attributes we do not know.
    UnknownAttributes,
    /// 437: this five-tuple has no allocation.
    NoAllocation,
    /// 437: this five-tuple has an allocation already.
    AllocationExists,
    /// 438: the nonce is over, or not this client's.
    StaleNonce,
    /// 440: no relayed address of that family.
    AddressFamily,
    /// 441: another user's allocation.
    WrongCredentials,
    /// 442: that is not relayed.
    UnsupportedTransport,
    /// 443: peer and relayed address differ in family.
    PeerFamily,
    /// 486: a quota.
    Quota,
    /// 486: no newcomers, because the server is being emptied.
    Draining,
    /// 508: no port is free, or the allocation holds as much as it may.
    Capacity,
    /// 508: the allocation addresses new peers too fast.
    NewPeers,
    /// 500: our own fault.
    ServerError,
    /// 403: channels on a TCP allocation, or Connect on one that relays datagrams.
    RelayTransport,
    /// 446: there is a connection with that peer.
    ConnectionExists,
    /// 405: allocations do not move, or this one does not.
    MobilityForbidden,
    /// No refusal yet: the ticket names an allocation of that shard.
    Elsewhere(u8),
}

impl Reject {
    /// Every reason that [`label`](Self::label) gives, authentication first, in the order of [`AuthFailure::ALL`].
    pub const LABELS: [&'static str; 28] = [
        "missing",
        "unknown_user",
        "bad_password",
        "expired",
        "wrong_realm",
        "stale_nonce",
        "wrong_user",
        "revoked",
        "bid_down",
        "bad_token",
        "try_alternate",
        "bad_request",
        "peer_denied",
        "unknown_attributes",
        "no_allocation",
        "allocation_exists",
        "address_family",
        "unsupported_transport",
        "peer_family",
        "quota",
        "draining",
        "capacity",
        "new_peers",
        "server_error",
        "relay_transport",
        "connection_exists",
        "mobility_forbidden",
        "elsewhere",
    ];

    /// Its place in [`LABELS`](Self::LABELS).
    pub const fn index(self) -> usize {
        match self {
            Self::Unauthenticated(failure) => failure as usize,
            Self::StaleNonce => AuthFailure::StaleNonce as usize,
            Self::WrongCredentials => AuthFailure::WrongUser as usize,
            Self::BidDown => AuthFailure::BidDown as usize,
            Self::TryAlternate(_) => 10,
            Self::BadRequest(_) => 11,
            Self::PeerDenied(_) => 12,
            Self::UnknownAttributes => 13,
            Self::NoAllocation => 14,
            Self::AllocationExists => 15,
            Self::AddressFamily => 16,
            Self::UnsupportedTransport => 17,
            Self::PeerFamily => 18,
            Self::Quota => 19,
            Self::Draining => 20,
            Self::Capacity => 21,
            Self::NewPeers => 22,
            Self::ServerError => 23,
            Self::RelayTransport => 24,
            Self::ConnectionExists => 25,
            Self::MobilityForbidden => 26,
            Self::Elsewhere(_) => 27,
        }
    }

    /// The word in logs, metrics and the API, which stays what it is.
    pub const fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }

    /// What of it is beside the word: what is wrong with the request, or the rule.
    pub const fn detail(self) -> Option<&'static str> {
        match self {
            Self::BadRequest(what) => Some(what),
            Self::PeerDenied(rule) => Some(rule.label()),
            _ => None,
        }
    }

    /// What the client is told.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::TryAlternate(_) => ErrorCode::TryAlternate,
            Self::BadRequest(_) | Self::BidDown => ErrorCode::BadRequest,
            Self::Unauthenticated(_) => ErrorCode::Unauthenticated,
            Self::PeerDenied(_) => ErrorCode::Forbidden,
            Self::UnknownAttributes => ErrorCode::UnknownAttribute,
            Self::NoAllocation | Self::AllocationExists => ErrorCode::AllocationMismatch,
            Self::StaleNonce => ErrorCode::StaleNonce,
            Self::AddressFamily => ErrorCode::AddressFamilyNotSupported,
            Self::WrongCredentials => ErrorCode::WrongCredentials,
            Self::UnsupportedTransport => ErrorCode::UnsupportedTransport,
            Self::PeerFamily => ErrorCode::PeerAddressFamilyMismatch,
            Self::Quota | Self::Draining => ErrorCode::AllocationQuotaReached,
            Self::Capacity | Self::NewPeers => ErrorCode::InsufficientCapacity,
            Self::ServerError | Self::Elsewhere(_) => ErrorCode::ServerError,
            Self::MobilityForbidden => ErrorCode::MobilityForbidden,
            Self::RelayTransport => ErrorCode::Forbidden,
            Self::ConnectionExists => ErrorCode::ConnectionAlreadyExists,
        }
    }

    /// Whether whoever is refused an allocation for this has not got what it came for.
    ///
    /// Challenges are an ordinary first step; so is asking for IPv6 as well as IPv4, asking again from a port that has an
    /// allocation, and being sent to another server.
    pub const fn is_failure(self) -> bool {
        !matches!(
            self.code(),
            ErrorCode::TryAlternate
                | ErrorCode::AllocationMismatch
                | ErrorCode::StaleNonce
                | ErrorCode::AddressFamilyNotSupported
        ) && !matches!(self, Self::Unauthenticated(AuthFailure::Missing))
    }

    /// What it is counted as among failed authentications, if it is one.
    pub const fn auth_failure(self) -> Option<AuthFailure> {
        match self {
            Self::Unauthenticated(failure) => Some(failure),
            Self::StaleNonce => Some(AuthFailure::StaleNonce),
            Self::WrongCredentials => Some(AuthFailure::WrongUser),
            Self::BidDown => Some(AuthFailure::BidDown),
            _ => None,
        }
    }
}
