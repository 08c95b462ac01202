//! What of a packet is a header, and what of headers must not be seen.
//!
//! Of STUN, whole messages are headers; but only values that are known to be harmless are shown. USERNAME names people, and
//! who has MESSAGE-INTEGRITY with its message can guess passwords at home.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::quality::Leg;
use crate::wire::{self, MAGIC_COOKIE};

use super::Disguise;

/// Bytes of the header of STUN.
const STUN: usize = 20;

/// Bytes of the header of ChannelData.
const CHANNEL_DATA: usize = 4;

/// Type and length of an attribute.
const ATTRIBUTE: usize = 4;

const USERNAME: u16 = 0x0006;
const DATA: u16 = 0x0013;
const FINGERPRINT: u16 = 0x8028;

/// Attributes whose value is shown: of RFC 8489, RFC 8656, RFC 6062, RFC 5780, RFC 8445.
const SHOWN: [u16; 23] = [
    0x0003, // CHANGE-REQUEST
    0x0009, // ERROR-CODE
    0x000A, // UNKNOWN-ATTRIBUTES
    0x000C, // CHANNEL-NUMBER
    0x000D, // LIFETIME
    0x0014, // REALM
    0x0015, // NONCE
    0x0017, // REQUESTED-ADDRESS-FAMILY
    0x0018, // EVEN-PORT
    0x0019, // REQUESTED-TRANSPORT
    0x001A, // DONT-FRAGMENT
    0x001D, // PASSWORD-ALGORITHM
    0x0024, // PRIORITY
    0x0025, // USE-CANDIDATE
    0x002A, // CONNECTION-ID
    0x8000, // ADDITIONAL-ADDRESS-FAMILY
    0x8001, // ADDRESS-ERROR-CODE
    0x8002, // PASSWORD-ALGORITHMS
    0x8004, // ICMP
    0x8022, // SOFTWARE
    0x8027, // RESPONSE-PORT
    0x8029, // ICE-CONTROLLED
    0x802A, // ICE-CONTROLLING
];

/// Addresses as they are: MAPPED-ADDRESS, those of RFC 3489, ALTERNATE-SERVER, RESPONSE-ORIGIN, OTHER-ADDRESS.
const ADDRESSES: [u16; 8] = [
    0x0001, 0x0002, 0x0004, 0x0005, 0x000B, 0x8023, 0x802B, 0x802C,
];

/// XOR-PEER-ADDRESS, XOR-RELAYED-ADDRESS, XOR-MAPPED-ADDRESS, and the latter under its old number.
const XOR_ADDRESSES: [u16; 4] = [0x0012, 0x0016, 0x0020, 0x8020];

/// How many bytes of `packet` are headers: those of TURN and ChannelData, and within what is relayed those of RTP with its
/// extension, RTCP, DTLS records, and STUN messages.
pub fn headers(leg: Leg, packet: &[u8]) -> usize {
    let length = match (leg, packet.first()) {
        (Leg::Client, Some(0..=3)) => stun(packet, true).unwrap_or(STUN),
        (Leg::Client, Some(0x40..=0x7F)) => {
            CHANNEL_DATA + relayed(packet.get(CHANNEL_DATA..).unwrap_or_default(), true)
        }
        (Leg::Client, _) => 0,
        (Leg::Peer, _) => relayed(packet, true),
    };
    length.min(packet.len())
}

/// The same of what is relayed, told apart by its first byte (RFC 7983). `outer`: it is in no other message.
fn relayed(data: &[u8], outer: bool) -> usize {
    let length = match data {
        [0..=3, ..] if outer => stun(data, false).unwrap_or(0),
        [20..=63, ..] => dtls(data),
        // RTCP (RFC 5761 §4), and who sends it.
        [128..=191, 192..=223, ..] => 8,
        [128..=191, ..] => rtp(data),
        _ => 0,
    };
    length.min(data.len())
}

/// Header of the record, and of the handshake message in the clear.
fn dtls(record: &[u8]) -> usize {
    match record {
        [22, _, _, 0, 0, ..] => 13 + 12,
        _ => 13,
    }
}

/// Header, CSRCs and extension (RFC 3550 §5.1).
fn rtp(packet: &[u8]) -> usize {
    let first = packet.first().copied().unwrap_or(0);
    let fixed = 12 + 4 * usize::from(first & 0x0F);
    if first & 0x10 == 0 {
        return fixed;
    }
    let words = match packet.get(fixed + 2..fixed + 4) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    fixed + 4 + 4 * usize::from(words)
}

/// The whole message, or as far as the headers of what is in DATA; `None` if it is no message. What is relayed in
/// messages that are relayed is nobody's business.
fn stun(message: &[u8], outer: bool) -> Option<usize> {
    let cookie = message.get(4..8)?;
    if cookie != MAGIC_COOKIE.to_be_bytes() || message.len() < STUN {
        return None;
    }
    let mut at = STUN;
    while let Some((kind, length)) = attribute(message, at) {
        let value = at + ATTRIBUTE;
        if kind == DATA {
            let data = message.get(value..value + length).unwrap_or_default();
            return Some(value + if outer { relayed(data, true) } else { 0 });
        }
        at = value + length.next_multiple_of(4);
    }
    Some(message.len())
}

/// Type and length of the attribute at `at`.
fn attribute(message: &[u8], at: usize) -> Option<(u16, usize)> {
    match message.get(at..at + ATTRIBUTE)? {
        &[a, b, c, d] => Some((
            u16::from_be_bytes([a, b]),
            usize::from(u16::from_be_bytes([c, d])),
        )),
        _ => None,
    }
}

/// Masks in the headers of a packet of `whole` bytes what names people or could be misused, and shows addresses as
/// `disguise` says. Lengths stay.
pub fn scrub(leg: Leg, headers: &mut [u8], whole: usize, disguise: &Disguise) {
    match (leg, headers.first()) {
        (Leg::Client, Some(0x40..=0x7F)) => {
            let relayed = headers.get_mut(CHANNEL_DATA..).unwrap_or_default();
            scrub_relayed(relayed, whole.saturating_sub(CHANNEL_DATA), disguise);
        }
        (Leg::Client, _) => scrub_stun(headers, whole, disguise),
        (Leg::Peer, _) => scrub_relayed(headers, whole, disguise),
    }
}

fn scrub_relayed(headers: &mut [u8], whole: usize, disguise: &Disguise) {
    if let Some(0..=3) = headers.first() {
        scrub_stun(headers, whole, disguise);
    }
}

fn scrub_stun(message: &mut [u8], whole: usize, disguise: &Disguise) {
    let signed = fingerprint(message).filter(|_| message.len() == whole);
    let mut transaction = [0; 16];
    if let Some(id) = message.get(4..STUN) {
        transaction.copy_from_slice(id);
    }
    let mut at = STUN;
    while let Some((kind, length)) = attribute(message, at) {
        let value = at + ATTRIBUTE;
        let end = (value + length).min(message.len());
        let next = (value + length.next_multiple_of(4)).min(message.len());
        if let Some(padding) = message.get_mut(end..next) {
            padding.fill(0);
        }
        let Some(shown) = message.get_mut(value..end) else {
            break;
        };
        if kind == DATA {
            scrub_relayed(shown, length, disguise);
        } else if ADDRESSES.contains(&kind) {
            scrub_address(shown, &[0; 16], disguise);
        } else if XOR_ADDRESSES.contains(&kind) {
            scrub_address(shown, &transaction, disguise);
        } else if kind == USERNAME {
            shown.fill(b'x');
        } else if kind != FINGERPRINT && !SHOWN.contains(&kind) {
            shown.fill(0);
        }
        at = next;
    }
    if let Some(rest) = message.get_mut(at.max(STUN)..) {
        rest.fill(0);
    }
    // One that was right is right again, one that was not stays.
    if let Some(at) = signed
        && let Some(right) = message.get(..at).map(wire::fingerprint)
        && let Some(value) = message.get_mut(at + ATTRIBUTE..at + 8)
    {
        value.copy_from_slice(&right.to_be_bytes());
    }
}

/// Where the FINGERPRINT is that a message ends with, if it is right (RFC 8489 §14.7).
fn fingerprint(message: &[u8]) -> Option<usize> {
    let at = message.len().checked_sub(8).filter(|at| *at >= STUN)?;
    let right = wire::fingerprint(message.get(..at)?).to_be_bytes();
    let is = attribute(message, at) == Some((FINGERPRINT, 4));
    (is && message.get(at + ATTRIBUTE..) == Some(&right[..])).then_some(at)
}

/// Replaces the address in the value of an attribute, which is XORed with `mask` (RFC 8489 §14.2). What is no address is
/// zeroed.
fn scrub_address(value: &mut [u8], mask: &[u8; 16], disguise: &Disguise) {
    let family = value.get(1).copied();
    let address = value.get_mut(4..).unwrap_or_default();
    let xor = |octet: &mut u8, mask: &u8| *octet ^= mask;
    let mut plain = [0; 16];
    for ((plain, octet), mask) in plain.iter_mut().zip(address.iter()).zip(mask) {
        *plain = octet ^ mask;
    }
    let [a, b, c, d, ..] = plain;
    let ip = match (family, address.len()) {
        (Some(1), 4) => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        (Some(2), 16) => IpAddr::V6(Ipv6Addr::from(plain)),
        _ => return value.fill(0),
    };
    match disguise.ip(ip) {
        IpAddr::V4(ip) => address.copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => address.copy_from_slice(&ip.octets()),
    }
    for (octet, mask) in address.iter_mut().zip(mask) {
        xor(octet, mask);
    }
}
