//! Control messages as received.

use std::net::SocketAddr;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use stun_types::attribute::{AlternateServer, AttributeFromRaw, RawAttribute, XorMappedAddress};
use stun_types::message::{Message as Codec, MessageClass, StunParseError};
use turn_types::attribute::{
    ChannelNumber, ConnectionId, DontFragment, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken, XorPeerAddress, XorRelayedAddress,
};

use crate::base::Family;
use crate::base::addr::canonical;

use super::{Integrity, Key, Method, STUN_HEADER, attribute, classic};

/// Length of MESSAGE-INTEGRITY's value (RFC 8489 §14.5), in bytes.
const INTEGRITY: usize = 20;

/// Length of MESSAGE-INTEGRITY-SHA256's value, in bytes: RFC 8489 §14.6 lets usages allow less, and TURN does not.
const INTEGRITY_SHA256: usize = 32;

/// The class of a message (RFC 8489 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Expects an answer.
    Request,
    /// Expects none.
    Indication,
    /// A success or error response.
    Response,
}

/// A transaction id (RFC 8489 §5): 96 bits chosen by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// Why bytes are not a message we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not STUN: wrong first bits or no magic cookie.
    NotStun,
    /// The header's length disagrees with the datagram, or an attribute runs past the end.
    Length,
    /// FINGERPRINT is wrong.
    Fingerprint,
    /// An attribute's value does not parse.
    Attribute,
}

/// One control message, borrowed from the datagram or frame it came in.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    codec: Codec<'a>,
    class: Class,
    method: Method,
    fingerprint: bool,
    /// Where MESSAGE-INTEGRITY starts.
    integrity: Option<usize>,
    /// Where MESSAGE-INTEGRITY-SHA256 starts, and how long its value is.
    integrity_sha256: Option<(usize, usize)>,
}

impl<'a> Message<'a> {
    /// Reads one message that fills `bytes` exactly, and checks FINGERPRINT where it is present.
    ///
    /// # Errors
    /// Everything that makes the bytes something else than one well-formed message (RFC 8489 §6.3).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let declared = match bytes.get(2..4) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err(DecodeError::NotStun),
        };
        if bytes.len() < STUN_HEADER {
            return Err(DecodeError::NotStun);
        }
        if declared % 4 != 0 || declared + STUN_HEADER != bytes.len() {
            return Err(DecodeError::Length);
        }
        if !attributes_fit(bytes) {
            return Err(DecodeError::Length);
        }
        let codec = Codec::from_bytes(bytes).map_err(|error| match error {
            StunParseError::NotStun => DecodeError::NotStun,
            StunParseError::FingerprintMismatch => DecodeError::Fingerprint,
            StunParseError::Truncated { .. } | StunParseError::TooLarge { .. } => {
                DecodeError::Length
            }
            _ => DecodeError::Attribute,
        })?;
        let class = match codec.class() {
            MessageClass::Request => Class::Request,
            MessageClass::Indication => Class::Indication,
            MessageClass::Success | MessageClass::Error => Class::Response,
        };
        let mut message = Self {
            bytes,
            class,
            method: Method::from_number(codec.method().value()),
            codec,
            fingerprint: false,
            integrity: None,
            integrity_sha256: None,
        };
        for (offset, raw) in codec.iter_attributes() {
            match raw.header.get_type().value() {
                attribute::MESSAGE_INTEGRITY if raw.value.len() == INTEGRITY => {
                    message.integrity = Some(offset);
                }
                attribute::MESSAGE_INTEGRITY => return Err(DecodeError::Attribute),
                attribute::MESSAGE_INTEGRITY_SHA256 => {
                    message.integrity_sha256 = Some((offset, raw.value.len()));
                }
                attribute::FINGERPRINT => message.fingerprint = true,
                _ => {}
            }
        }
        Ok(message)
    }

    /// Request, indication or response.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// What is asked.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// The transaction id.
    pub fn transaction_id(&self) -> TransactionId {
        let mut id = [0; 12];
        if let Some(bytes) = self.bytes.get(8..STUN_HEADER) {
            id.copy_from_slice(bytes);
        }
        TransactionId(id)
    }

    /// Whether the sender used FINGERPRINT, so that the answer does too (RFC 8489 §7).
    pub const fn has_fingerprint(&self) -> bool {
        self.fingerprint
    }

    /// Whether MESSAGE-INTEGRITY is present.
    pub const fn has_integrity(&self) -> bool {
        self.integrity.is_some()
    }

    /// The length of MESSAGE-INTEGRITY-SHA256's value in bytes, if it is present.
    pub fn integrity_sha256(&self) -> Option<usize> {
        self.integrity_sha256.map(|(_, length)| length)
    }

    /// Whether MESSAGE-INTEGRITY matches under `key`, in constant time (RFC 8489 §14.5). False without the attribute.
    pub fn verify_integrity(&self, key: &Key) -> bool {
        self.verify(Integrity::Sha1, key)
    }

    /// Whether the attribute `integrity` matches under `key`, whatever attribute that one makes; in constant time (RFC 8489
    /// §14.5, §14.6). False without the attribute, and where it is truncated.
    pub fn verify(&self, integrity: Integrity, key: &Key) -> bool {
        let (offset, length) = match integrity {
            Integrity::Sha1 => (self.integrity, INTEGRITY),
            Integrity::Sha256 => (
                (self.integrity_sha256)
                    .filter(|(_, length)| *length == INTEGRITY_SHA256)
                    .map(|(offset, _)| offset),
                INTEGRITY_SHA256,
            ),
        };
        let Some(offset) = offset else {
            return false;
        };
        let (Some(signed), Some(expected)) = (
            self.bytes.get(4..offset),
            self.bytes.get(offset + 4..offset + 4 + length),
        ) else {
            return false;
        };
        let Some(&[high, low]) = self.bytes.get(..2) else {
            return false;
        };
        let Ok(length) = u16::try_from(offset + 4 + length - STUN_HEADER) else {
            return false;
        };
        let [length_high, length_low] = length.to_be_bytes();
        let start = [high, low, length_high, length_low];
        match integrity {
            Integrity::Sha1 => hmac::<Hmac<Sha1>>(key, &start, signed).verify_slice(expected),
            Integrity::Sha256 => hmac::<Hmac<Sha256>>(key, &start, signed).verify_slice(expected),
        }
        .is_ok()
    }

    /// The value of the first attribute of `kind` that stands before MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256.
    pub fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        let (offset, raw) = self.first(kind)?;
        let start = offset + 4;
        self.bytes.get(start..start + raw.value.len())
    }

    /// Whether this is a success response.
    pub fn is_success(&self) -> bool {
        self.codec.class() == MessageClass::Success
    }

    /// ERROR-CODE of an error response, 300 to 699; `None` in other messages, 0 if the attribute lacks or is malformed.
    pub fn error_code(&self) -> Option<u16> {
        if self.codec.class() != MessageClass::Error {
            return None;
        }
        let value = self.attribute(attribute::ERROR_CODE).unwrap_or_default();
        match value {
            &[_, _, class @ 3..=6, number @ 0..=99, ..] => {
                Some(u16::from(class) * 100 + u16::from(number))
            }
            _ => Some(0),
        }
    }

    /// XOR-MAPPED-ADDRESS: how the server sees the client.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn mapped_address(&self) -> Result<Option<SocketAddr>, DecodeError> {
        let transaction = self.codec.transaction_id();
        self.typed::<XorMappedAddress, _>(attribute::XOR_MAPPED_ADDRESS, |mapped| {
            mapped.addr(transaction)
        })
    }

    /// XOR-RELAYED-ADDRESS: where peers reach the client.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn relayed_address(&self) -> Result<Option<SocketAddr>, DecodeError> {
        let transaction = self.codec.transaction_id();
        self.typed::<XorRelayedAddress, _>(attribute::XOR_RELAYED_ADDRESS, |relayed| {
            relayed.addr(transaction)
        })
    }

    /// ALTERNATE-SERVER (RFC 8489 §14.15): where to ask instead.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn alternate_server(&self) -> Result<Option<SocketAddr>, DecodeError> {
        self.typed::<AlternateServer, _>(attribute::ALTERNATE_SERVER, |other| other.server())
    }

    /// USERNAME, as sent.
    pub fn username(&self) -> Option<&'a [u8]> {
        self.attribute(attribute::USERNAME)
    }

    /// USERHASH, if it is as long as it has to be (RFC 8489 §14.4).
    ///
    /// # Errors
    /// The attribute is there and not 32 bytes long.
    pub fn user_hash(&self) -> Result<Option<&'a [u8; 32]>, DecodeError> {
        (self.attribute(attribute::USERHASH))
            .map(|hash| hash.try_into().map_err(|_| DecodeError::Attribute))
            .transpose()
    }

    /// REALM, as sent.
    pub fn realm(&self) -> Option<&'a [u8]> {
        self.attribute(attribute::REALM)
    }

    /// NONCE, as sent.
    pub fn nonce(&self) -> Option<&'a [u8]> {
        self.attribute(attribute::NONCE)
    }

    /// ACCESS-TOKEN (RFC 7635 §6.2), as sent.
    pub fn access_token(&self) -> Option<&'a [u8]> {
        self.attribute(attribute::ACCESS_TOKEN)
    }

    /// MOBILITY-TICKET, as sent (RFC 8016 §3.3).
    pub fn mobility_ticket(&self) -> Option<&'a [u8]> {
        self.attribute(attribute::MOBILITY_TICKET)
    }

    /// LIFETIME in seconds.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn lifetime(&self) -> Result<Option<u32>, DecodeError> {
        self.typed::<Lifetime, _>(attribute::LIFETIME, |lifetime| lifetime.seconds())
    }

    /// The protocol number of REQUESTED-TRANSPORT; 17 is UDP.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn requested_transport(&self) -> Result<Option<u8>, DecodeError> {
        self.typed::<RequestedTransport, _>(attribute::REQUESTED_TRANSPORT, |transport| {
            transport.protocol()
        })
    }

    /// REQUESTED-ADDRESS-FAMILY: `Some(None)` is a family that does not exist.
    ///
    /// # Errors
    /// The attribute is there and not four bytes long.
    pub fn requested_family(&self) -> Result<Option<Option<Family>>, DecodeError> {
        use turn_types::AddressFamily;
        let Some((_, raw)) = self.first(attribute::REQUESTED_ADDRESS_FAMILY) else {
            return Ok(None);
        };
        if raw.value.len() != 4 {
            return Err(DecodeError::Attribute);
        }
        Ok(Some(RequestedAddressFamily::from_raw_ref(&raw).ok().map(
            |requested| match requested.family() {
                AddressFamily::IPV4 => Family::V4,
                AddressFamily::IPV6 => Family::V6,
            },
        )))
    }

    /// Whether ADDITIONAL-ADDRESS-FAMILY asks for an IPv6 address beside the IPv4 one (RFC 8656 §18.11).
    ///
    /// # Errors
    /// The attribute is there, and its value is not IPv6, the only one there is.
    pub fn additional_family(&self) -> Result<bool, DecodeError> {
        let kinds = [
            attribute::ADDITIONAL_ADDRESS_FAMILY,
            attribute::COTURN_ADDITIONAL_ADDRESS_FAMILY,
        ];
        match kinds.iter().find_map(|kind| self.attribute(*kind)) {
            None => Ok(false),
            Some([2, _, _, _]) => Ok(true),
            Some(_) => Err(DecodeError::Attribute),
        }
    }

    /// RESERVATION-TOKEN (RFC 8656 §18.10).
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn reservation_token(&self) -> Result<Option<u64>, DecodeError> {
        self.typed::<ReservationToken, _>(attribute::RESERVATION_TOKEN, |token| token.token())
    }

    /// EVEN-PORT: whether the next higher port is to be reserved as well (RFC 8656 §18.7).
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn even_port(&self) -> Result<Option<bool>, DecodeError> {
        self.typed::<EvenPort, _>(attribute::EVEN_PORT, |even| even.requested())
    }

    /// Whether DONT-FRAGMENT is present (RFC 8656 §18.9).
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn dont_fragment(&self) -> Result<bool, DecodeError> {
        self.typed::<DontFragment, _>(attribute::DONT_FRAGMENT, |_| true)
            .map(Option::unwrap_or_default)
    }

    /// CHANNEL-NUMBER as sent; whether it may be bound is not decided here.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn channel_number(&self) -> Result<Option<u16>, DecodeError> {
        self.typed::<ChannelNumber, _>(attribute::CHANNEL_NUMBER, |number| number.channel())
    }

    /// CONNECTION-ID (RFC 6062 §6.2.1).
    ///
    /// # Errors
    /// The attribute is there and not four bytes long.
    pub fn connection_id(&self) -> Result<Option<u32>, DecodeError> {
        self.typed::<ConnectionId, _>(attribute::CONNECTION_ID, |connection| connection.id())
    }

    /// Every XOR-PEER-ADDRESS before MESSAGE-INTEGRITY, in order, IPv4-mapped addresses in their IPv4 form.
    ///
    /// Each item is an error if that attribute is malformed.
    pub fn peer_addresses(&self) -> impl Iterator<Item = Result<SocketAddr, DecodeError>> + '_ {
        let transaction = self.codec.transaction_id();
        self.signed_attributes()
            .filter(|(_, raw)| raw.header.get_type().value() == attribute::XOR_PEER_ADDRESS)
            .map(move |(_, raw)| {
                XorPeerAddress::from_raw_ref(&raw)
                    .map(|peer| canonical(peer.addr(transaction)))
                    .map_err(|_| DecodeError::Attribute)
            })
    }

    /// CHANGE-REQUEST (RFC 5780 §7.2): whether the answer is to come from another address, and from another port.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn change_request(&self) -> Result<Option<(bool, bool)>, DecodeError> {
        self.attribute(attribute::CHANGE_REQUEST)
            .map(|value| classic::change(value).ok_or(DecodeError::Attribute))
            .transpose()
    }

    /// RESPONSE-PORT (RFC 5780 §7.5): the client's port that the answer is to go to.
    ///
    /// # Errors
    /// The attribute is there and malformed.
    pub fn response_port(&self) -> Result<Option<u16>, DecodeError> {
        match self.attribute(attribute::RESPONSE_PORT) {
            None => Ok(None),
            // Some count the two bytes that fill the word.
            Some(&[high, low] | &[high, low, _, _]) => Ok(Some(u16::from_be_bytes([high, low]))),
            Some(_) => Err(DecodeError::Attribute),
        }
    }

    /// How long PADDING is (RFC 5780 §7.6), in bytes, if it is there.
    pub fn padding(&self) -> Option<usize> {
        self.attribute(attribute::PADDING).map(<[u8]>::len)
    }

    /// Comprehension-required attributes (types below 0x8000) that are not in `known`, in order.
    pub fn unknown_required<'k>(&'k self, known: &'k [u16]) -> impl Iterator<Item = u16> + 'k {
        self.signed_attributes()
            .map(|(_, raw)| raw.header.get_type().value())
            .filter(|kind| *kind < 0x8000 && !known.contains(kind))
    }

    fn first(&self, kind: u16) -> Option<(usize, RawAttribute<'_>)> {
        self.signed_attributes()
            .find(|(_, raw)| raw.header.get_type().value() == kind)
    }

    /// Attributes up to MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256; what follows is not protected and therefore not seen.
    fn signed_attributes(&self) -> impl Iterator<Item = (usize, RawAttribute<'_>)> {
        let sha256 = self.integrity_sha256.map(|(offset, _)| offset);
        let end = self.integrity.or(sha256).unwrap_or(usize::MAX);
        self.codec
            .iter_attributes()
            .take_while(move |(offset, _)| *offset <= end)
    }

    fn typed<'m, A: AttributeFromRaw<'m>, T>(
        &'m self,
        kind: u16,
        value: impl FnOnce(A) -> T,
    ) -> Result<Option<T>, DecodeError> {
        match self.first(kind) {
            None => Ok(None),
            Some((_, raw)) => A::from_raw(raw)
                .map(|typed| Some(value(typed)))
                .map_err(|_| DecodeError::Attribute),
        }
    }
}

/// Whether the attributes fill the message exactly. The codec stops looking behind MESSAGE-INTEGRITY.
fn attributes_fit(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(STUN_HEADER..).unwrap_or_default();
    while let Some((&[_, _, high, low], behind)) = rest.split_first_chunk::<4>() {
        let padded = usize::from(u16::from_be_bytes([high, low])).next_multiple_of(4);
        match behind.get(padded..) {
            Some(next) => rest = next,
            None => return false,
        }
    }
    rest.is_empty()
}

/// HMAC under a long-term key over a message in two pieces.
pub(super) fn hmac<M: Mac + KeyInit>(key: &Key, start: &[u8], rest: &[u8]) -> M {
    // HMAC takes keys of any length (RFC 2104 §3), so this cannot fail.
    let mut mac = <M as KeyInit>::new_from_slice(key.as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC accepts every key length"));
    mac.update(start);
    mac.update(rest);
    mac
}
