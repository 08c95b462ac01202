//! Reads a capture, strictly, with no code of the one that wrote it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[derive(Debug, Default)]
pub struct File {
    pub comment: String,
    pub application: String,
    /// Name and description.
    pub interfaces: Vec<(String, String)>,
    pub packets: Vec<Packet>,
    pub statistics: Vec<Statistics>,
}

#[derive(Debug)]
pub struct Packet {
    pub interface: usize,
    pub nanos: u64,
    pub inbound: bool,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// Bytes that UDP carried.
    pub length: usize,
    /// Those that are there.
    pub data: Vec<u8>,
    pub comment: Option<String>,
}

#[derive(Debug)]
pub struct Statistics {
    pub interface: usize,
    pub received: u64,
    pub dropped: u64,
    pub comment: String,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn stamp(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// Options of a block, up to the end of them, which has to be its end.
fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    loop {
        let (code, length) = (u16_at(bytes, 0), usize::from(u16_at(bytes, 2)));
        let padded = length.next_multiple_of(4);
        assert!(bytes[4 + length..4 + padded].iter().all(|byte| *byte == 0));
        if code == 0 {
            assert_eq!((length, bytes.len()), (0, 4), "options end their block");
            return options;
        }
        options.push((code, bytes[4..4 + length].to_vec()));
        bytes = &bytes[4 + padded..];
    }
}

fn option(options: &[(u16, Vec<u8>)], code: u16) -> Option<&Vec<u8>> {
    let mut found = options.iter().filter(|(known, _)| *known == code);
    let (_, value) = found.next()?;
    assert!(found.next().is_none(), "option {code} stands once");
    Some(value)
}

fn text(options: &[(u16, Vec<u8>)], code: u16) -> Option<String> {
    option(options, code).map(|text| String::from_utf8(text.clone()).unwrap())
}

impl File {
    /// Reads a file that ends with a whole block.
    #[track_caller]
    pub fn read(mut bytes: &[u8]) -> Self {
        let mut file = Self::default();
        let mut first = true;
        while !bytes.is_empty() {
            let (kind, length) = (u32_at(bytes, 0), u32_at(bytes, 4) as usize);
            assert!(
                length.is_multiple_of(4) && length >= 12,
                "length of a block: {length}"
            );
            assert_eq!(u32_at(bytes, length - 4) as usize, length, "at both ends");
            let body = &bytes[8..length - 4];
            assert_eq!(kind == 0x0A0D_0D0A, first, "one section, and first");
            first = false;
            match kind {
                0x0A0D_0D0A => {
                    assert_eq!(u32_at(body, 0), 0x1A2B_3C4D);
                    assert_eq!((u16_at(body, 4), u16_at(body, 6)), (1, 0));
                    assert_eq!(body[8..16], [0xFF; 8], "of unknown length");
                    let options = options(&body[16..]);
                    file.comment = text(&options, 1).unwrap();
                    file.application = text(&options, 4).unwrap();
                }
                1 => {
                    assert_eq!(u16_at(body, 0), 101, "LINKTYPE_RAW");
                    assert_eq!(u32_at(body, 4), 0, "no snap length");
                    let options = options(&body[8..]);
                    assert_eq!(option(&options, 9), Some(&vec![9]), "nanoseconds");
                    let names = (text(&options, 2).unwrap(), text(&options, 3).unwrap());
                    file.interfaces.push(names);
                }
                5 => {
                    let interface = u32_at(body, 0) as usize;
                    assert!(interface < file.interfaces.len());
                    let options = options(&body[12..]);
                    let count = |code| {
                        let value = option(&options, code).unwrap()[..].try_into().unwrap();
                        u64::from_le_bytes(value)
                    };
                    let (from, until) = (option(&options, 2), option(&options, 3));
                    assert!(stamp(from.unwrap(), 0) <= stamp(until.unwrap(), 0));
                    file.statistics.push(Statistics {
                        interface,
                        received: count(4),
                        dropped: count(5),
                        comment: text(&options, 1).unwrap(),
                    });
                }
                6 => file.packets.push(packet(body, file.interfaces.len())),
                kind => panic!("a block of type {kind}"),
            }
            bytes = &bytes[length..];
        }
        file
    }
}

fn packet(body: &[u8], interfaces: usize) -> Packet {
    let interface = u32_at(body, 0) as usize;
    assert!(interface < interfaces);
    let (kept, whole) = (u32_at(body, 12) as usize, u32_at(body, 16) as usize);
    assert!(kept <= whole);
    let options = options(&body[20 + kept.next_multiple_of(4)..]);
    let flags = u32_at(option(&options, 2).expect("flags"), 0);
    assert!(matches!(flags, 1 | 2), "a direction: {flags}");
    let ip = &body[20..20 + kept];
    let big = |at: usize| u16::from_be_bytes(ip[at..at + 2].try_into().unwrap());
    let (from, to, udp) = match ip[0] >> 4 {
        4 => {
            assert_eq!((ip[0], ip[9]), (0x45, 17));
            assert_eq!(usize::from(big(2)), whole);
            assert_eq!(sum(&[&ip[..20]]), 0xFFFF, "checksum of IPv4");
            let ip4 = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap();
            (IpAddr::from(ip4(12)), IpAddr::from(ip4(16)), 20)
        }
        6 => {
            assert_eq!(ip[6], 17);
            assert_eq!(usize::from(big(4)) + 40, whole);
            let ip6 = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap();
            (IpAddr::from(ip6(8)), IpAddr::from(ip6(24)), 40)
        }
        version => panic!("IP of version {version}"),
    };
    let length = usize::from(big(udp + 4));
    assert_eq!(udp + length, whole, "UDP fills the packet");
    let (source, target) = (octets(from), octets(to));
    let pseudo = [&source[..], &target[..], &[0, 17], &ip[udp + 4..udp + 6]].concat();
    assert_eq!(sum(&[&pseudo, &ip[udp..]]), 0xFFFF, "checksum of UDP");
    Packet {
        interface,
        nanos: stamp(body, 4),
        inbound: flags == 1,
        from: SocketAddr::new(from, big(udp)),
        to: SocketAddr::new(to, big(udp + 2)),
        length: length - 8,
        data: ip[udp + 8..].to_vec(),
        comment: text(&options, 1),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::octets(&ip).to_vec(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
    }
}

/// Sum of RFC 1071 over `pieces`, all but the last of even length.
fn sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for word in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}
