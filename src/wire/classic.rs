//! Binding as STUN was before it had a magic cookie (RFC 3489): transaction ids of 128 bits, addresses in the clear.

use std::net::{IpAddr, SocketAddr};

use super::{MAGIC_COOKIE, STUN_HEADER, attribute};

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_RESPONSE: u16 = 0x0101;
const BINDING_ERROR_RESPONSE: u16 = 0x0111;

/// RESPONSE-ADDRESS (RFC 3489 §11.2.2): an answer to somebody else, which is refused.
const SOURCE_ADDRESS: u16 = 0x0004;
const CHANGED_ADDRESS: u16 = 0x0005;
const PASSWORD: u16 = 0x0007;

/// Flags of CHANGE-REQUEST (RFC 3489 §11.2.4, RFC 5780 §7.2).
const CHANGE_IP: u8 = 0x04;
const CHANGE_PORT: u8 = 0x02;

/// The flags of a CHANGE-REQUEST's value: whether another address is wanted, and whether another port.
pub(super) fn change(value: &[u8]) -> Option<(bool, bool)> {
    match value {
        &[_, _, _, flags] => Some((flags & CHANGE_IP != 0, flags & CHANGE_PORT != 0)),
        _ => None,
    }
}

/// The value of an attribute that holds `address` as it is (RFC 3489 §11.2.1, RFC 8489 §14.1): 8 or 20 bytes.
pub(super) fn address(address: SocketAddr) -> Vec<u8> {
    let [high, low] = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => [&[0, 1, high, low][..], &ip.octets()].concat(),
        IpAddr::V6(ip) => [&[0, 2, high, low][..], &ip.octets()].concat(),
    }
}

/// A Binding request without a magic cookie.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    transaction: &'a [u8; 16],
    attributes: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads one that fills `datagram` exactly; `None` if it is none.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (header, attributes) = datagram.split_first_chunk::<STUN_HEADER>()?;
        let (kind, rest) = header.split_first_chunk::<2>()?;
        let (length, transaction) = rest.split_first_chunk::<2>()?;
        let transaction: &[u8; 16] = transaction.try_into().ok()?;
        let whole = u16::from_be_bytes(*kind) == BINDING_REQUEST
            && usize::from(u16::from_be_bytes(*length)) == attributes.len()
            && !transaction.starts_with(&MAGIC_COOKIE.to_be_bytes());
        let request = Self {
            transaction,
            attributes,
        };
        (whole && request.attributes().all(|one| one.is_some())).then_some(request)
    }

    /// Every attribute; `None` where one runs past the end or is no multiple of four, as all of RFC 3489 are.
    fn attributes(&self) -> impl Iterator<Item = Option<(u16, &'a [u8])>> + use<'a> {
        let mut rest = self.attributes;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let read = |bytes: &'a [u8]| {
                let (&[a, b, c, d], behind) = bytes.split_first_chunk::<4>()?;
                let length = usize::from(u16::from_be_bytes([c, d]));
                let (value, next) = behind.split_at_checked(length)?;
                (length % 4 == 0).then_some((u16::from_be_bytes([a, b]), value, next))
            };
            let one = read(rest);
            rest = one.map_or(&[], |(_, _, next)| next);
            Some(one.map(|(kind, value, _)| (kind, value)))
        })
    }

    /// Whether it wants its answer from another address, and from another port.
    pub fn change(&self) -> (bool, bool) {
        let mut all = self.attributes().flatten();
        let wanted = all.find(|(kind, _)| *kind == attribute::CHANGE_REQUEST);
        wanted
            .and_then(|(_, value)| change(value))
            .unwrap_or_default()
    }

    /// The first attribute that has to be understood and is not, or asks for what is not to be had (RFC 3489 §8.1): a
    /// change where nothing else `is_there`, and an answer to a third party anywhere.
    pub fn refused(&self, is_there: bool) -> Option<u16> {
        let change = self.change();
        (self.attributes().flatten())
            .map(|(kind, _)| kind)
            .find(|kind| match *kind {
                attribute::CHANGE_REQUEST => !is_there && change != (false, false),
                attribute::USERNAME | PASSWORD | attribute::MESSAGE_INTEGRITY => false,
                kind => kind < 0x8000,
            })
    }

    /// The answer: MAPPED-ADDRESS, and of `places`, where there are several, SOURCE-ADDRESS, from where it is sent, and
    /// CHANGED-ADDRESS, from where it would be with both changed (RFC 3489 §8.1).
    pub fn answer(&self, client: SocketAddr, places: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
        let mut attributes = vec![(attribute::MAPPED_ADDRESS, address(client))];
        if let Some((source, changed)) = places {
            attributes.push((SOURCE_ADDRESS, address(source)));
            attributes.push((CHANGED_ADDRESS, address(changed)));
        }
        self.message(BINDING_RESPONSE, &attributes)
    }

    /// 420 with `kind` (RFC 3489 §11.2.9), which an even number of times fills whole words (§11.2.10).
    pub fn unknown_attribute(&self, kind: u16) -> Vec<u8> {
        let [high, low] = kind.to_be_bytes();
        let attributes = [
            (attribute::ERROR_CODE, vec![0, 0, 4, 20]),
            (attribute::UNKNOWN_ATTRIBUTES, vec![high, low, high, low]),
        ];
        self.message(BINDING_ERROR_RESPONSE, &attributes)
    }

    fn message(&self, kind: u16, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let length: usize = attributes.iter().map(|(_, value)| 4 + value.len()).sum();
        let mut out = Vec::with_capacity(STUN_HEADER + length);
        out.extend(kind.to_be_bytes());
        out.extend((length as u16).to_be_bytes());
        out.extend(self.transaction);
        for (kind, value) in attributes {
            out.extend(kind.to_be_bytes());
            out.extend((value.len() as u16).to_be_bytes());
            out.extend(value);
        }
        out
    }
}
