//! Requests, as a client writes them.

use std::net::SocketAddr;

use stun_types::attribute::{AttributeType, Nonce, RawAttribute, Realm, Userhash, Username};
use stun_types::message::{
    MessageClass, MessageWrite, MessageWriteVec, TransactionId as CodecTransactionId,
};
use turn_types::AddressFamily;
use turn_types::attribute::{
    ChannelNumber as CodecChannelNumber, Lifetime, RequestedAddressFamily, RequestedTransport,
    XorPeerAddress,
};

use super::key::PasswordAlgorithm;
use super::response::{codec_transaction, seal, start};
use super::{ChannelNumber, Key, Method, TransactionId, attribute};
use crate::base::Family;

/// A request under construction.
pub struct Request {
    out: MessageWriteVec,
    transaction: CodecTransactionId,
}

impl Request {
    /// A request without attributes.
    pub fn new(method: Method, transaction: TransactionId) -> Self {
        let transaction = codec_transaction(transaction);
        Self {
            out: start(MessageClass::Request, method, transaction),
            transaction,
        }
    }

    /// REQUESTED-TRANSPORT with UDP, which every Allocate carries (RFC 8656 §7.1).
    pub fn transport_udp(mut self) -> Self {
        self.out
            .push_attribute_unchecked(&RequestedTransport::new(RequestedTransport::UDP));
        self
    }

    /// REQUESTED-ADDRESS-FAMILY.
    pub fn family(mut self, family: Family) -> Self {
        let family = match family {
            Family::V4 => AddressFamily::IPV4,
            Family::V6 => AddressFamily::IPV6,
        };
        self.out
            .push_attribute_unchecked(&RequestedAddressFamily::new(family));
        self
    }

    /// LIFETIME in seconds.
    pub fn lifetime(mut self, secs: u32) -> Self {
        self.out.push_attribute_unchecked(&Lifetime::new(secs));
        self
    }

    /// XOR-PEER-ADDRESS.
    pub fn peer(mut self, peer: SocketAddr) -> Self {
        let attribute = XorPeerAddress::new(peer, self.transaction);
        self.out.push_attribute_unchecked(&attribute);
        self
    }

    /// CHANNEL-NUMBER.
    pub fn channel(mut self, channel: ChannelNumber) -> Self {
        self.out
            .push_attribute_unchecked(&CodecChannelNumber::new(channel.number()));
        self
    }

    /// USERNAME, REALM and NONCE, which go with MESSAGE-INTEGRITY. What exceeds the RFC's length limits is left out, so
    /// that the server refuses the request.
    pub fn credentials(mut self, username: &str, realm: &str, nonce: &str) -> Self {
        if let Ok(attribute) = Username::new(username) {
            self.out.push_attribute_unchecked(&attribute);
        }
        self.challenge(realm, nonce)
    }

    /// USERHASH, REALM and NONCE: as [`Self::credentials`], and the user's name is nobody else's to read.
    pub fn anonymous_credentials(mut self, user: [u8; 32], realm: &str, nonce: &str) -> Self {
        self.out.push_attribute_unchecked(&Userhash::new(user));
        self.challenge(realm, nonce)
    }

    /// PASSWORD-ALGORITHMS with the value of the challenge, and the one that is chosen (RFC 8489 §9.2.5).
    pub fn password_algorithms(mut self, list: &[u8], chosen: PasswordAlgorithm) -> Self {
        let kind = AttributeType::new(attribute::PASSWORD_ALGORITHMS);
        self.out
            .push_attribute_unchecked(&RawAttribute::new(kind, list));
        self.password_algorithm(chosen)
    }

    /// PASSWORD-ALGORITHM (RFC 8489 §14.12).
    pub fn password_algorithm(mut self, chosen: PasswordAlgorithm) -> Self {
        let [high, low] = chosen.number().to_be_bytes();
        let kind = AttributeType::new(attribute::PASSWORD_ALGORITHM);
        self.out
            .push_attribute_unchecked(&RawAttribute::new(kind, &[high, low, 0, 0]));
        self
    }

    fn challenge(mut self, realm: &str, nonce: &str) -> Self {
        if let Ok(attribute) = Nonce::new(nonce) {
            self.out.push_attribute_unchecked(&attribute);
        }
        if let Ok(attribute) = Realm::new(realm) {
            self.out.push_attribute_unchecked(&attribute);
        }
        self
    }

    /// Signs with `key` if there is one, adds FINGERPRINT if asked, and returns the bytes to send.
    pub fn finish(self, key: Option<&Key>, fingerprint: bool) -> Vec<u8> {
        seal(self.out, key, fingerprint)
    }
}
