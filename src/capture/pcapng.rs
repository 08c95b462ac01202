//! The file: a section, two interfaces, packets, and what was counted (draft-ietf-opsawg-pcapng).

use std::time::Duration;

use crate::base::Transport;
use crate::quality::Leg;

use super::packet::synthesize;
use super::{Disguise, Packet, scrub};

// Types of blocks.
const SECTION: u32 = 0x0A0D_0D0A;
const INTERFACE: u32 = 1;
pub(super) const STATISTICS: u32 = 5;
pub(super) const PACKET: u32 = 6;

/// Says which way round numbers are written: as here, the low byte first.
pub(super) const BYTE_ORDER: u32 = 0x1A2B_3C4D;

/// LINKTYPE_RAW: a packet begins with the header of IP.
const RAW: u16 = 101;

// Codes of options; those from 2 on mean another thing in each block.
const END: u16 = 0;
const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const STATISTICS_FROM: u16 = 2;
const STATISTICS_UNTIL: u16 = 3;
const STATISTICS_RECEIVED: u16 = 4;
pub(super) const STATISTICS_DROPPED: u16 = 5;

/// Times are nanoseconds: ten to the minus nine.
const NANOSECONDS: u8 = 9;

/// What a capture is of.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The allocation, as operators name it.
    pub allocation: &'a str,
    /// How its client reaches the server.
    pub transport: Transport,
    /// Whether packets are whole.
    pub payload: bool,
    /// When it began, since the Unix epoch.
    pub began: Duration,
}

/// What was counted on one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets that were written.
    pub written: u64,
    /// Packets that were not, because whoever reads was too slow.
    pub lost: u64,
}

/// Writes one capture.
#[derive(Debug)]
pub struct Writer {
    began: Duration,
    payload: bool,
    disguise: Disguise,
}

impl Writer {
    /// Appends what a file begins with. Addresses are shown as `disguise` says.
    pub fn new(about: &About<'_>, disguise: Disguise, out: &mut Vec<u8>) -> Self {
        let what = match about.payload {
            true => "whole packets",
            false => {
                "headers only: payload is cut off; user names, integrity, tokens and unknown attributes of STUN are masked"
            }
        };
        let shown = disguise.words();
        let comment = format!("Allocation {}; {what}{shown}.", about.allocation);
        block(out, SECTION, |out| {
            out.extend(BYTE_ORDER.to_le_bytes());
            // Version 1.0, of a length that is not known yet.
            out.extend(1_u16.to_le_bytes());
            out.extend(0_u16.to_le_bytes());
            out.extend((-1_i64).to_le_bytes());
            option(out, COMMENT, comment.as_bytes());
            let application = concat!("turnix ", env!("CARGO_PKG_VERSION"));
            option(out, SECTION_APPLICATION, application.as_bytes());
            option(out, END, &[]);
        });
        for leg in Leg::ALL {
            let (name, description) = describe(leg, about.transport);
            block(out, INTERFACE, |out| {
                out.extend(RAW.to_le_bytes());
                out.extend(0_u16.to_le_bytes());
                // No bound on the length of a packet.
                out.extend(0_u32.to_le_bytes());
                option(out, INTERFACE_NAME, name.as_bytes());
                option(out, INTERFACE_DESCRIPTION, description.as_bytes());
                option(out, INTERFACE_RESOLUTION, &[NANOSECONDS]);
                option(out, END, &[]);
            });
        }
        Self {
            began: about.began,
            payload: about.payload,
            disguise,
        }
    }

    /// Appends a packet; what must not be seen of it is masked first.
    pub fn packet(&self, mut packet: Packet, out: &mut Vec<u8>) {
        if !self.payload {
            scrub(packet.leg, &mut packet.bytes, packet.length, &self.disguise);
        }
        block(out, PACKET, |out| {
            out.extend((packet.leg as u32).to_le_bytes());
            timestamp(out, packet.at);
            let lengths = out.len();
            out.extend([0; 8]);
            let from = self.disguise.socket(packet.from);
            let to = self.disguise.socket(packet.to);
            let whole = synthesize(out, from, to, &packet);
            let kept = out.len() - lengths - 8;
            for (at, length) in [(lengths, kept), (lengths + 4, whole)] {
                if let Some(place) = out.get_mut(at..at + 4) {
                    place.copy_from_slice(&(length as u32).to_le_bytes());
                }
            }
            pad(out, kept);
            if let Some(reason) = packet.dropped {
                option(out, COMMENT, format!("dropped: {reason}").as_bytes());
            }
            let direction = if packet.received { 1_u32 } else { 2 };
            option(out, PACKET_FLAGS, &direction.to_le_bytes());
            option(out, END, &[]);
        });
    }

    /// Appends what was counted, by [`Leg`], and why the capture ended: the last of a file.
    pub fn finish(
        &self,
        at: Duration,
        why: &str,
        counted: [Counted; Leg::ALL.len()],
        out: &mut Vec<u8>,
    ) {
        for (leg, counted) in Leg::ALL.into_iter().zip(counted) {
            block(out, STATISTICS, |out| {
                out.extend((leg as u32).to_le_bytes());
                timestamp(out, at);
                option(out, COMMENT, format!("Ended: {why}.").as_bytes());
                for (code, time) in [(STATISTICS_FROM, self.began), (STATISTICS_UNTIL, at)] {
                    let mut stamp = Vec::with_capacity(8);
                    timestamp(&mut stamp, time);
                    option(out, code, &stamp);
                }
                let seen = counted.written + counted.lost;
                option(out, STATISTICS_RECEIVED, &seen.to_le_bytes());
                option(out, STATISTICS_DROPPED, &counted.lost.to_le_bytes());
                option(out, END, &[]);
            });
        }
    }
}

fn describe(leg: Leg, transport: Transport) -> (String, String) {
    match leg {
        Leg::Client => {
            let words = match transport {
                Transport::Udp => String::new(),
                Transport::Tcp => {
                    ": frames of a TCP connection, shown as if each had come by UDP".into()
                }
                Transport::Tls | Transport::Dtls => format!(
                    ": decrypted from {}, shown as if each message had come by plain UDP",
                    transport.label().to_uppercase()
                ),
            };
            (
                format!("client-{}", transport.label()),
                format!("between the client and the server{words}"),
            )
        }
        Leg::Peer => (
            "peers".into(),
            "between the relayed address and peers".into(),
        ),
    }
}

/// Appends a block whose body `write` appends.
fn block(out: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    write(out);
    let total = ((out.len() - start + 4) as u32).to_le_bytes();
    out.extend(total);
    if let Some(length) = out.get_mut(start + 4..start + 8) {
        length.copy_from_slice(&total);
    }
}

/// The longest value of an option; nothing here comes near.
const LONGEST: usize = u16::MAX as usize;

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..LONGEST).unwrap_or(value);
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Fills up to four bytes what `length` bytes have begun.
fn pad(out: &mut Vec<u8>, length: usize) {
    out.resize(out.len() + length.next_multiple_of(4) - length, 0);
}

/// High half first, each in the order of the file.
fn timestamp(out: &mut Vec<u8>, at: Duration) {
    let nanos = at.as_nanos() as u64;
    out.extend(((nanos >> 32) as u32).to_le_bytes());
    out.extend((nanos as u32).to_le_bytes());
}
