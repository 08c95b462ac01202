//! One packet, and the IP and UDP headers that it is shown with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::quality::Leg;

/// One datagram, or one frame of a stream, of an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When, since the Unix epoch.
    pub at: Duration,
    /// Which side it was seen on.
    pub leg: Leg,
    /// Whether it came to the relay; it left it else.
    pub received: bool,
    /// Who sent it.
    pub from: SocketAddr,
    /// Whom it was sent to.
    pub to: SocketAddr,
    /// How many bytes it had.
    pub length: usize,
    /// The first of them, as many as are kept.
    pub bytes: Vec<u8>,
    /// Why it went no further, if it did not.
    pub dropped: Option<&'static str>,
}

/// Bytes of a UDP header.
const UDP: usize = 8;

/// The protocol number of UDP.
const UDP_PROTOCOL: u8 = 17;

/// Appends the headers of IP and UDP that `packet` is shown with, then what is kept of it; how many bytes it had with
/// them.
///
/// The checksum of UDP is that of a packet whose missing bytes are zero: right for whole packets, and never "none",
/// which IPv6 does not know.
pub(super) fn synthesize(
    out: &mut Vec<u8>,
    from: SocketAddr,
    to: SocketAddr,
    packet: &Packet,
) -> usize {
    let (from_ip, to_ip) = one_family(from.ip(), to.ip());
    let udp = (packet.length + UDP).min(usize::from(u16::MAX));
    let mut sum = Sum::default();
    let header = match (from_ip, to_ip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (udp + 20).min(usize::from(u16::MAX)) as u16;
            let start = out.len();
            out.extend([0x45, 0]);
            out.extend(total.to_be_bytes());
            out.extend([0, 0, 0, 0, 64, UDP_PROTOCOL, 0, 0]);
            out.extend(from.octets());
            out.extend(to.octets());
            let mut own = Sum::default();
            own.add(out.get(start..).unwrap_or_default());
            if let Some(checksum) = out.get_mut(start + 10..start + 12) {
                checksum.copy_from_slice(&own.finish().to_be_bytes());
            }
            sum.add(&from.octets());
            sum.add(&to.octets());
            20
        }
        (from, to) => {
            let (from, to) = (as_v6(from), as_v6(to));
            out.extend([0x60, 0, 0, 0]);
            out.extend((udp as u16).to_be_bytes());
            out.extend([UDP_PROTOCOL, 64]);
            out.extend(from.octets());
            out.extend(to.octets());
            sum.add(&from.octets());
            sum.add(&to.octets());
            40
        }
    };
    let mut head = [0; UDP];
    head[..2].copy_from_slice(&from.port().to_be_bytes());
    head[2..4].copy_from_slice(&to.port().to_be_bytes());
    head[4..6].copy_from_slice(&(udp as u16).to_be_bytes());
    sum.add(&[0, UDP_PROTOCOL]);
    sum.add(&(udp as u16).to_be_bytes());
    sum.add(&head);
    sum.add(&packet.bytes);
    // Zero would say that there is none (RFC 768).
    let checksum = match sum.finish() {
        0 => 0xFFFF,
        sum => sum,
    };
    head[6..].copy_from_slice(&checksum.to_be_bytes());
    out.extend(head);
    out.extend_from_slice(&packet.bytes);
    header + UDP + packet.length.max(packet.bytes.len())
}

/// Both in the family of IPv4 if one of them is, where the other is no address at all: a listener on a wildcard.
fn one_family(from: IpAddr, to: IpAddr) -> (IpAddr, IpAddr) {
    let (from, to) = (from.to_canonical(), to.to_canonical());
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V6(to)) if to.is_unspecified() => (from, nobody),
        (IpAddr::V6(from), IpAddr::V4(_)) if from.is_unspecified() => (nobody, to),
        same => same,
    }
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// The checksum of the Internet (RFC 1071), over pieces of which only the last may have an odd length.
#[derive(Default)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks(2) {
            let (high, low) = (pair.first(), pair.get(1));
            let word = [high.copied().unwrap_or(0), low.copied().unwrap_or(0)];
            self.0 += u64::from(u16::from_be_bytes(word));
        }
    }

    fn finish(&self) -> u16 {
        let mut sum = self.0;
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }
}
