//! ChannelData (RFC 8656 §12.4): the hot path's whole parsing is here.

use std::ops::Range;

/// Length of a ChannelData header, in bytes.
pub const HEADER: usize = 4;

/// A channel number, 0x4000 to 0x7FFF by construction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// Accepts what can start a ChannelData message; which numbers may be bound is configuration.
    pub const fn new(number: u16) -> Option<Self> {
        if number >= 0x4000 && number <= 0x7FFF {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl std::fmt::Debug for ChannelNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:04x}", self.0)
    }
}

/// Reads a ChannelData message: its channel and where its application data lies in `bytes`.
///
/// Bytes after the declared length are padding and ignored. `None` if the header is short, the channel impossible or
/// the declared length longer than `bytes`.
pub fn parse(bytes: &[u8]) -> Option<(ChannelNumber, Range<u16>)> {
    let header = bytes.first_chunk::<HEADER>()?;
    let channel = ChannelNumber::new(u16::from_be_bytes([header[0], header[1]]))?;
    let length = u16::from_be_bytes([header[2], header[3]]);
    let end = (HEADER as u16).checked_add(length)?;
    (usize::from(end) <= bytes.len()).then_some((channel, HEADER as u16..end))
}

/// The header of `length` bytes of application data on `channel`.
pub fn header(channel: ChannelNumber, length: u16) -> [u8; HEADER] {
    let [a, b] = channel.0.to_be_bytes();
    let [c, d] = length.to_be_bytes();
    [a, b, c, d]
}
