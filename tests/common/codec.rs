//! What turnix reads in a message against what the `stun` crate reads.

use std::net::SocketAddr;

use stun::attributes::*;
use stun::fingerprint::FINGERPRINT;
use stun::integrity::MessageIntegrity;
use stun::message as m;
use stun::xoraddr::XorMappedAddress;
use turnix::base::Family;
use turnix::wire::{
    Class, DecodeError, Key, Message, Method, STUN_HEADER, TransactionId, attribute,
};

use super::wire::Signer;

pub fn signer() -> Signer {
    Signer::new("alice", "wonderland", "nonce")
}

fn oracle_key(password: &str) -> MessageIntegrity {
    let Signer { user, realm, .. } = signer();
    MessageIntegrity::new_long_term_integrity(user, realm, password.into())
}

pub fn key(password: &str) -> Key {
    Key::md5(oracle_key(password).0.try_into().unwrap())
}

/// The attributes that count: nothing behind FINGERPRINT; behind MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256 only the
/// latter and FINGERPRINT, and only if they follow at once (RFC 8489 §14.5 to §14.7).
fn seen(oracle: &m::Message) -> Vec<&RawAttribute> {
    const SHA256: AttrType = AttrType(0x001C);
    let mut seen: Vec<&RawAttribute> = Vec::new();
    let mut ending = false;
    for attribute in &oracle.attributes.0 {
        let last = seen.last().map(|attribute| attribute.typ);
        let follows = attribute.typ == ATTR_FINGERPRINT
            || attribute.typ == SHA256 && last == Some(ATTR_MESSAGE_INTEGRITY);
        if last == Some(ATTR_FINGERPRINT) || ending && !follows {
            break;
        }
        ending |= [ATTR_MESSAGE_INTEGRITY, SHA256, ATTR_FINGERPRINT].contains(&attribute.typ);
        seen.push(attribute);
    }
    seen
}

/// Whatever turnix accepts, `stun` reads the same.
pub fn assert_same(bytes: &[u8], message: &Message<'_>) {
    let mut oracle = m::Message::new();
    oracle
        .unmarshal_binary(bytes)
        .expect("stun reads what turnix accepts");
    assert_eq!(oracle.raw.len(), bytes.len());
    // `stun` takes 0x8020, which drafts of RFC 5389 had, for XOR-MAPPED-ADDRESS.
    let mut at = STUN_HEADER;
    for attribute in &mut oracle.attributes.0 {
        attribute.typ = AttrType(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        at += 4 + attribute.value.len().next_multiple_of(4);
    }
    assert_eq!(
        message.transaction_id(),
        TransactionId(oracle.transaction_id.0)
    );
    let class = match oracle.typ.class {
        m::CLASS_REQUEST => Class::Request,
        m::CLASS_INDICATION => Class::Indication,
        _ => Class::Response,
    };
    assert_eq!(message.class(), class);
    let value = m::MessageType::new(oracle.typ.method, m::CLASS_REQUEST).value();
    let number = (value & 0xF) | ((value & 0xE0) >> 1) | ((value & 0x3E00) >> 2);
    let known = Method::ALL
        .into_iter()
        .find(|method| method.number() == Some(number));
    assert_eq!(message.method(), known.unwrap_or(Method::Unknown));

    let seen = seen(&oracle);
    let has = |kind: AttrType| seen.iter().any(|attribute| attribute.typ == kind);
    assert_eq!(message.has_integrity(), has(ATTR_MESSAGE_INTEGRITY));
    assert_eq!(message.has_fingerprint(), has(ATTR_FINGERPRINT));
    if let Some(at) = (oracle.attributes.0.iter()).position(|a| a.typ == ATTR_FINGERPRINT)
        && has(ATTR_FINGERPRINT)
        && at + 1 == oracle.attributes.0.len()
    {
        FINGERPRINT
            .check(&oracle)
            .expect("turnix accepted FINGERPRINT");
    }
    for password in ["wonderland", "looking-glass"] {
        let theirs = oracle_key(password).check(&mut oracle.clone()).is_ok();
        let ours = message.verify_integrity(&key(password));
        assert_eq!(ours, theirs && has(ATTR_MESSAGE_INTEGRITY), "{password}");
    }

    // What stands behind MESSAGE-INTEGRITY, or where there is none behind MESSAGE-INTEGRITY-SHA256, is not protected, so its
    // values are not to be had.
    let integrity = [
        ATTR_MESSAGE_INTEGRITY,
        AttrType(attribute::MESSAGE_INTEGRITY_SHA256),
    ];
    let end = seen
        .iter()
        .position(|attribute| integrity.contains(&attribute.typ));
    let sha256 = seen.iter().find(|a| a.typ == integrity[1]);
    assert_eq!(message.integrity_sha256(), sha256.map(|a| a.value.len()));
    let seen = &seen[..end.map_or(seen.len(), |end| end + 1)];
    let first = |kind: u16| {
        seen.iter()
            .find(|attribute| attribute.typ.0 == kind)
            .map(|a| &a.value[..])
    };
    for kind in seen.iter().map(|attribute| attribute.typ.0).chain([
        attribute::USERNAME,
        attribute::LIFETIME,
        attribute::NONCE,
        attribute::DATA,
    ]) {
        assert_eq!(message.attribute(kind), first(kind), "0x{kind:04x}");
    }
    assert_eq!(message.username(), first(attribute::USERNAME));
    assert_eq!(message.realm(), first(attribute::REALM));
    assert_eq!(message.nonce(), first(attribute::NONCE));
    assert_eq!(
        message.lifetime(),
        word(first(attribute::LIFETIME)).map(|w| w.map(u32::from_be_bytes))
    );
    assert_eq!(
        message.requested_transport(),
        word(first(attribute::REQUESTED_TRANSPORT)).map(|w| w.map(|[number, ..]| number))
    );
    let family = |[number, ..]: [u8; 4]| match number {
        1 => Some(Family::V4),
        2 => Some(Family::V6),
        _ => None,
    };
    assert_eq!(
        message.requested_family(),
        word(first(attribute::REQUESTED_ADDRESS_FAMILY)).map(|w| w.map(family))
    );
    assert_eq!(
        message.channel_number(),
        word(first(attribute::CHANNEL_NUMBER))
            .map(|w| w.map(|[high, low, ..]| u16::from_be_bytes([high, low])))
    );
    let even = match first(attribute::EVEN_PORT) {
        None => Ok(None),
        Some([bits]) => Ok(Some(bits & 0x80 != 0)),
        Some(_) => Err(DecodeError::Attribute),
    };
    assert_eq!(message.even_port(), even);

    let peers = seen
        .iter()
        .filter(|attribute| attribute.typ == ATTR_XOR_PEER_ADDRESS);
    let theirs: Vec<Option<SocketAddr>> = peers
        .map(|attribute| their_address(&oracle, attribute))
        .collect();
    let ours: Vec<_> = message.peer_addresses().map(Result::ok).collect();
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        // `stun` overlooks bytes behind an address; turnix may refuse what `stun` reads, not the other way round.
        if ours.is_some() {
            assert_eq!(*ours, theirs);
        }
    }
    let known = [attribute::LIFETIME, attribute::MESSAGE_INTEGRITY];
    let unknown: Vec<u16> = (seen.iter().map(|attribute| attribute.typ.0))
        .filter(|kind| *kind < 0x8000 && !known.contains(kind))
        .collect();
    let ours: Vec<u16> = message.unknown_required(&known).collect();
    assert_eq!(ours, unknown);
}

pub fn their_address(oracle: &m::Message, attribute: &RawAttribute) -> Option<SocketAddr> {
    let mut alone = m::Message::new();
    alone.transaction_id = oracle.transaction_id;
    alone.write_header();
    // The first byte is reserved and to be ignored (RFC 8489 §14.1); `stun` does not.
    let mut value = attribute.value.clone();
    if let Some(reserved) = value.first_mut() {
        *reserved = 0;
    }
    alone.add(ATTR_XOR_PEER_ADDRESS, &value);
    let mut read = XorMappedAddress::default();
    let there = read.get_from_as(&alone, ATTR_XOR_PEER_ADDRESS).is_ok();
    there.then(|| SocketAddr::new(read.ip.to_canonical(), read.port))
}

/// A four-byte value.
fn word(value: Option<&[u8]>) -> Result<Option<[u8; 4]>, DecodeError> {
    match value {
        None => Ok(None),
        Some(value) => value
            .try_into()
            .map(Some)
            .map_err(|_| DecodeError::Attribute),
    }
}
