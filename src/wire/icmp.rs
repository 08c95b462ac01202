//! Data indications that carry an ICMP error (RFC 8656 §11.5).

use std::net::SocketAddr;

use stun_types::message::{MessageClass, MessageWrite};
use turn_types::attribute::{Icmp as CodecIcmp, XorPeerAddress};

use super::response::{codec_transaction, seal, start};
use super::{Method, TransactionId};

/// What an ICMP error says: the value of ICMP (RFC 8656 §18.13). Type and code have a byte each, as in ICMP and
/// in the codec; the RFC's figure draws them seven and nine bits wide, and there are readers that go by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Its type; ICMPv6's where the peer has an IPv6 address.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The MTU of the next link, in bytes, where a datagram was too big for it; else 0.
    pub data: u32,
}

/// A Data indication without DATA: a datagram to `peer` met with `icmp`.
pub fn icmp_indication(peer: SocketAddr, icmp: Icmp, transaction: TransactionId) -> Vec<u8> {
    let transaction = codec_transaction(transaction);
    let mut out = start(MessageClass::Indication, Method::Data, transaction);
    out.push_attribute_unchecked(&XorPeerAddress::new(peer, transaction));
    out.push_attribute_unchecked(&CodecIcmp::new(icmp.kind, icmp.code, icmp.data));
    seal(out, None, false)
}
