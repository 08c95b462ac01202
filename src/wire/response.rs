//! Answers to requests, as small as the RFCs allow: no SOFTWARE, no reason phrase, FINGERPRINT only where asked for.

use std::net::SocketAddr;

use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::Sha256;
use stun_types::attribute::{
    AlternateServer, AttributeType, ErrorCode as CodecErrorCode, Fingerprint, MessageIntegrity,
    MessageIntegritySha256, Nonce, RawAttribute, Realm, UnknownAttributes, XorMappedAddress,
};
use stun_types::message::{
    Message as Codec, MessageClass, MessageType, MessageWrite, MessageWriteVec,
    Method as CodecMethod, TransactionId as CodecTransactionId,
};
use turn_types::AddressFamily;
use turn_types::attribute::{
    AddressErrorCode, ConnectionId, Lifetime, ReservationToken, XorPeerAddress, XorRelayedAddress,
};

use crate::base::Family;

use super::message::hmac;
use super::{ErrorCode, Integrity, Key, Method, STUN_HEADER, TransactionId, attribute, classic};

/// An answer under construction.
pub struct Response {
    out: MessageWriteVec,
    transaction: CodecTransactionId,
}

impl Response {
    /// A success response to `transaction`.
    pub fn success(method: Method, transaction: TransactionId) -> Self {
        Self::new(MessageClass::Success, method, transaction)
    }

    /// An error response to `transaction`, with an empty reason phrase.
    pub fn error(method: Method, transaction: TransactionId, code: ErrorCode) -> Self {
        let mut response = Self::new(MessageClass::Error, method, transaction);
        if let Ok(attribute) = CodecErrorCode::new(code.code(), "") {
            response.out.push_attribute_unchecked(&attribute);
        }
        response
    }

    /// XOR-MAPPED-ADDRESS: how we see the client.
    pub fn mapped_address(mut self, client: SocketAddr) -> Self {
        let attribute = XorMappedAddress::new(client, self.transaction);
        self.out.push_attribute_unchecked(&attribute);
        self
    }

    /// XOR-RELAYED-ADDRESS: where peers reach the client.
    pub fn relayed_address(mut self, relayed: SocketAddr) -> Self {
        let attribute = XorRelayedAddress::new(relayed, self.transaction);
        self.out.push_attribute_unchecked(&attribute);
        self
    }

    /// LIFETIME in seconds.
    pub fn lifetime(mut self, secs: u32) -> Self {
        self.out.push_attribute_unchecked(&Lifetime::new(secs));
        self
    }

    /// ConnectionAttempt (RFC 6062 §5.3), an indication and nobody's answer: `peer` has connected.
    pub fn connection_attempt(transaction: TransactionId, peer: SocketAddr, id: u32) -> Self {
        let class = MessageClass::Indication;
        let mut indication = Self::new(class, Method::ConnectionAttempt, transaction);
        let attribute = XorPeerAddress::new(peer, indication.transaction);
        indication.out.push_attribute_unchecked(&attribute);
        indication.connection_id(id)
    }

    /// CONNECTION-ID (RFC 6062 §6.2.1).
    pub fn connection_id(mut self, id: u32) -> Self {
        self.out.push_attribute_unchecked(&ConnectionId::new(id));
        self
    }

    /// RESERVATION-TOKEN: names the port that is kept for the client (RFC 8656 §18.10).
    pub fn reservation_token(mut self, token: u64) -> Self {
        let attribute = ReservationToken::new(token);
        self.out.push_attribute_unchecked(&attribute);
        self
    }

    /// ADDRESS-ERROR-CODE: why there is no relayed address in `family` (RFC 8656 §18.12), with an empty reason phrase.
    pub fn address_error(mut self, family: Family, code: ErrorCode) -> Self {
        let family = match family {
            Family::V4 => AddressFamily::IPV4,
            Family::V6 => AddressFamily::IPV6,
        };
        if let Ok(code) = CodecErrorCode::new(code.code(), "") {
            let attribute = AddressErrorCode::new(family, code);
            self.out.push_attribute_unchecked(&attribute);
        }
        self
    }

    /// REALM and NONCE of a challenge. A realm that the RFC's length limit forbids is left out; configuration refuses it.
    pub fn challenge(mut self, realm: &str, nonce: &str) -> Self {
        if let Ok(attribute) = Realm::new(realm) {
            self.out.push_attribute_unchecked(&attribute);
        }
        if let Ok(attribute) = Nonce::new(nonce) {
            self.out.push_attribute_unchecked(&attribute);
        }
        self
    }

    /// PASSWORD-ALGORITHMS with this value (RFC 8489 §14.11).
    pub fn password_algorithms(self, list: &[u8]) -> Self {
        self.raw(attribute::PASSWORD_ALGORITHMS, list)
    }

    /// THIRD-PARTY-AUTHORIZATION (RFC 7635 §6.1): the name by which an authorization server knows this one.
    pub fn third_party(self, server_name: &str) -> Self {
        self.raw(attribute::THIRD_PARTY_AUTHORIZATION, server_name.as_bytes())
    }

    fn raw(mut self, kind: u16, value: &[u8]) -> Self {
        let attribute = RawAttribute::new(AttributeType::new(kind), value);
        self.out.push_attribute_unchecked(&attribute);
        self
    }

    /// ALTERNATE-SERVER (RFC 8489 §14.15): where to ask instead.
    pub fn alternate_server(mut self, server: SocketAddr) -> Self {
        self.out
            .push_attribute_unchecked(&AlternateServer::new(server));
        self
    }

    /// MOBILITY-TICKET (RFC 8016 §3.3).
    pub fn mobility_ticket(self, ticket: &[u8]) -> Self {
        self.raw(attribute::MOBILITY_TICKET, ticket)
    }

    /// MAPPED-ADDRESS (RFC 8489 §14.1): how we see the client, in the clear.
    pub fn plain_mapped_address(self, client: SocketAddr) -> Self {
        self.raw(attribute::MAPPED_ADDRESS, &classic::address(client))
    }

    /// RESPONSE-ORIGIN (RFC 5780 §7.3): from where this is sent.
    pub fn response_origin(self, origin: SocketAddr) -> Self {
        self.raw(attribute::RESPONSE_ORIGIN, &classic::address(origin))
    }

    /// OTHER-ADDRESS (RFC 5780 §7.4): from where it would be sent with another address and another port.
    pub fn other_address(self, other: SocketAddr) -> Self {
        self.raw(attribute::OTHER_ADDRESS, &classic::address(other))
    }

    /// PADDING (RFC 5780 §7.6) of `length` bytes, rounded down to whole words.
    pub fn padding(self, length: usize) -> Self {
        self.raw(attribute::PADDING, &vec![0; length & !3])
    }

    /// UNKNOWN-ATTRIBUTES (RFC 8489 §14.13).
    pub fn unknown_attributes(mut self, kinds: impl Iterator<Item = u16>) -> Self {
        let kinds: Vec<AttributeType> = kinds.map(AttributeType::new).collect();
        self.out
            .push_attribute_unchecked(&UnknownAttributes::new(&kinds));
        self
    }

    /// Signs with `key` if there is one, adds FINGERPRINT if asked, and returns the bytes to send.
    pub fn finish(self, key: Option<&Key>, fingerprint: bool) -> Vec<u8> {
        seal(self.out, key, fingerprint)
    }

    fn new(class: MessageClass, method: Method, transaction: TransactionId) -> Self {
        let transaction = codec_transaction(transaction);
        Self {
            out: start(class, method, transaction),
            transaction,
        }
    }
}

/// A message that has a header only.
pub(super) fn start(
    class: MessageClass,
    method: Method,
    transaction: CodecTransactionId,
) -> MessageWriteVec {
    let number = method.number().unwrap_or_default();
    let kind = MessageType::from_class_method(class, CodecMethod::new(number));
    Codec::builder(kind, transaction, MessageWriteVec::with_capacity(128))
}

/// The codec's form of a transaction id.
pub(super) fn codec_transaction(transaction: TransactionId) -> CodecTransactionId {
    let mut id = [0; 16];
    id[4..].copy_from_slice(&transaction.0);
    CodecTransactionId::from(u128::from_be_bytes(id))
}

/// Signs with `key` if there is one, adds FINGERPRINT if asked, and returns the bytes to send.
pub(super) fn seal(mut out: MessageWriteVec, key: Option<&Key>, fingerprint: bool) -> Vec<u8> {
    if let Some(key) = key {
        match key.integrity() {
            Integrity::Sha1 => {
                let rest = out.data().get(4..).unwrap_or_default();
                let mac: Hmac<Sha1> = hmac(key, &prefix(&out, 24), rest);
                let attribute = MessageIntegrity::new(mac.finalize().into_bytes().into());
                out.push_attribute_unchecked(&attribute);
            }
            Integrity::Sha256 => {
                let rest = out.data().get(4..).unwrap_or_default();
                let mac: Hmac<Sha256> = hmac(key, &prefix(&out, 36), rest);
                if let Ok(attribute) = MessageIntegritySha256::new(&mac.finalize().into_bytes()) {
                    out.push_attribute_unchecked(&attribute);
                }
            }
        }
    }
    if fingerprint {
        let prefix = prefix(&out, 8);
        let body = out.data().get(4..).unwrap_or_default();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&prefix);
        crc.update(body);
        // The codec applies the XOR of RFC 8489 §14.7 when it writes the attribute.
        let attribute = Fingerprint::new(crc.finalize().to_be_bytes());
        out.push_attribute_unchecked(&attribute);
    }
    out.finish()
}

/// The first four bytes of the header as they read once `more` bytes of attribute follow.
fn prefix(out: &MessageWriteVec, more: usize) -> [u8; 4] {
    let data = out.data();
    let length = (data.len() + more).saturating_sub(STUN_HEADER) as u16;
    let [high, low] = length.to_be_bytes();
    let kind = |index| data.get(index).copied().unwrap_or_default();
    [kind(0), kind(1), high, low]
}
