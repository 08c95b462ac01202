//! Send and Data indications (RFC 8656 §11): the data path of clients that bind no channel.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::base::addr::canonical;

use super::channel_data::{self, ChannelNumber};
use super::{HEADROOM, MAGIC_COOKIE, STUN_HEADER, attribute};

const SEND_INDICATION: [u8; 2] = [0x00, 0x16];
const DATA_INDICATION: [u8; 2] = [0x00, 0x17];

/// A Send or Data indication as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// XOR-PEER-ADDRESS, IPv4-mapped addresses in their IPv4 form.
    pub peer: SocketAddr,
    /// Where DATA's value lies in the message.
    pub data: Range<u16>,
    /// DONT-FRAGMENT: nobody may cut the datagram up.
    pub dont_fragment: bool,
}

/// Whether `bytes` start like a Send indication.
pub fn is_send(bytes: &[u8]) -> bool {
    bytes.get(..2) == Some(&SEND_INDICATION)
}

/// Reads a Send indication that fills `bytes` exactly.
///
/// `None` if it is malformed, lacks XOR-PEER-ADDRESS or DATA, or has a comprehension-required attribute that we do not
/// know (RFC 8656 §11.2). The first of duplicates counts. Integrity and FINGERPRINT are not looked at: indications
/// cannot be authenticated (RFC 8656 §5), and checksumming media twice buys nothing.
pub fn parse_send(bytes: &[u8]) -> Option<Send> {
    is_send(bytes).then(|| parse(bytes)).flatten()
}

/// Whether `bytes` start like a Data indication.
pub fn is_data(bytes: &[u8]) -> bool {
    bytes.get(..2) == Some(&DATA_INDICATION)
}

/// Reads a Data indication that fills `bytes` exactly: `peer` is who sent the data. As strict as [`parse_send`].
pub fn parse_data(bytes: &[u8]) -> Option<Send> {
    is_data(bytes).then(|| parse(bytes)).flatten()
}

fn parse(bytes: &[u8]) -> Option<Send> {
    let header = bytes.first_chunk::<STUN_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let cookie = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    if cookie != MAGIC_COOKIE || length % 4 != 0 || length + STUN_HEADER != bytes.len() {
        return None;
    }
    let mut peer = None;
    let mut data = None;
    let mut dont_fragment = false;
    let mut at = STUN_HEADER;
    while at < bytes.len() {
        let &[a, b, c, d] = bytes.get(at..)?.first_chunk::<4>()?;
        let (kind, length) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let start = at + 4;
        let end = start + usize::from(length);
        let value = bytes.get(start..end)?;
        match kind {
            attribute::XOR_PEER_ADDRESS if peer.is_none() => {
                peer = Some(xor_address(value, header)?);
            }
            attribute::DATA if data.is_none() => {
                data = Some(u16::try_from(start).ok()?..u16::try_from(end).ok()?);
            }
            attribute::XOR_PEER_ADDRESS | attribute::DATA => {}
            attribute::DONT_FRAGMENT if value.is_empty() => dont_fragment = true,
            attribute::USERNAME
            | attribute::MESSAGE_INTEGRITY
            | attribute::REALM
            | attribute::NONCE => {}
            unknown if unknown < 0x8000 => return None,
            _ => {}
        }
        at = end.next_multiple_of(4);
    }
    Some(Send {
        peer: peer?,
        data: data?,
        dont_fragment,
    })
}

fn xor_address(value: &[u8], header: &[u8; STUN_HEADER]) -> Option<SocketAddr> {
    let &[_, family, high, low] = value.first_chunk::<4>()?;
    let port = u16::from_be_bytes([high, low]) ^ (MAGIC_COOKIE >> 16) as u16;
    let mask: [u8; 16] = *header.last_chunk::<16>()?;
    let rest = value.get(4..)?;
    let ip = match family {
        0x01 => {
            let ip: [u8; 4] = rest.try_into().ok()?;
            IpAddr::from((u32::from_be_bytes(ip) ^ MAGIC_COOKIE).to_be_bytes())
        }
        0x02 => {
            let ip: [u8; 16] = rest.try_into().ok()?;
            IpAddr::from((u128::from_be_bytes(ip) ^ u128::from_be_bytes(mask)).to_be_bytes())
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, port)))
}

/// What goes in front of relayed data on its way to the client, and how much padding goes behind it.
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; HEADROOM],
    length: u8,
    padding: u8,
}

impl Header {
    /// A ChannelData header for `length` bytes; padded to four where the client is on a stream (RFC 8656 §12.5).
    ///
    /// `None` if ChannelData cannot carry that much.
    pub fn channel_data(channel: ChannelNumber, length: usize, stream: bool) -> Option<Self> {
        let mut bytes = [0; HEADROOM];
        let header = channel_data::header(channel, u16::try_from(length).ok()?);
        bytes[..channel_data::HEADER].copy_from_slice(&header);
        Some(Self {
            bytes,
            length: channel_data::HEADER as u8,
            padding: if stream { padding(length) } else { 0 },
        })
    }

    /// A Data indication's header up to and including DATA's type and length, for `length` bytes from `peer`.
    ///
    /// `None` if the message would not fit its length field.
    pub fn data_indication(peer: SocketAddr, length: usize, transaction: [u8; 12]) -> Option<Self> {
        Self::indication(DATA_INDICATION, peer, length, transaction)
    }

    /// A Send indication's header up to and including DATA's type and length, for `length` bytes to `peer`.
    ///
    /// `None` if the message would not fit its length field.
    pub fn send_indication(peer: SocketAddr, length: usize, transaction: [u8; 12]) -> Option<Self> {
        Self::indication(SEND_INDICATION, peer, length, transaction)
    }

    fn indication(
        kind: [u8; 2],
        peer: SocketAddr,
        length: usize,
        transaction: [u8; 12],
    ) -> Option<Self> {
        let mut bytes = [0; HEADROOM];
        let (family, ip_length) = match peer {
            SocketAddr::V4(_) => (0x01, 4),
            SocketAddr::V6(_) => (0x02, 16),
        };
        let address_end = STUN_HEADER + 8 + ip_length;
        let end = address_end + 4;
        let padding = padding(length);
        let body = end - STUN_HEADER + length + usize::from(padding);

        bytes[..2].copy_from_slice(&kind);
        bytes[2..4].copy_from_slice(&u16::try_from(body).ok()?.to_be_bytes());
        bytes[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        bytes[8..STUN_HEADER].copy_from_slice(&transaction);

        let mut mask = [0; 16];
        mask.copy_from_slice(&bytes[4..STUN_HEADER]);
        let address = &mut bytes[STUN_HEADER..address_end];
        address[..2].copy_from_slice(&attribute::XOR_PEER_ADDRESS.to_be_bytes());
        address[2..4].copy_from_slice(&(4 + ip_length as u16).to_be_bytes());
        address[5] = family;
        let port = peer.port() ^ (MAGIC_COOKIE >> 16) as u16;
        address[6..8].copy_from_slice(&port.to_be_bytes());
        match peer.ip() {
            IpAddr::V4(ip) => {
                let xored = ip.to_bits() ^ MAGIC_COOKIE;
                address[8..].copy_from_slice(&xored.to_be_bytes());
            }
            IpAddr::V6(ip) => {
                let xored = ip.to_bits() ^ u128::from_be_bytes(mask);
                address[8..].copy_from_slice(&xored.to_be_bytes());
            }
        }

        let data = &mut bytes[address_end..end];
        data[..2].copy_from_slice(&attribute::DATA.to_be_bytes());
        data[2..].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
        Some(Self {
            bytes,
            length: end as u8,
            padding,
        })
    }

    /// The bytes to write right in front of the data.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }

    /// How many zero bytes follow the data, 0 to 3.
    pub const fn padding(&self) -> usize {
        self.padding as usize
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Header({:02x?}+{})", self.bytes(), self.padding)
    }
}

impl PartialEq for Header {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes() && self.padding == other.padding
    }
}

impl Eq for Header {}

const fn padding(length: usize) -> u8 {
    (length.wrapping_neg() & 3) as u8
}
