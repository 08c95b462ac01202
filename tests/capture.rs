//! What of a packet may be seen, and how it is written.

#[path = "common/pcapng.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod pcapng;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use stun::agent::TransactionId;
use stun::attributes::{ATTR_PRIORITY, ATTR_SOFTWARE, ATTR_USERNAME};
use stun::fingerprint::FINGERPRINT;
use stun::integrity::MessageIntegrity;
use stun::message::{BINDING_REQUEST, BINDING_SUCCESS, Getter, Message, Setter};
use stun::textattrs::TextAttribute;
use stun::xoraddr::XorMappedAddress;

use pcapng::File;
use turnix::base::{PiiMode, Transport};
use turnix::capture::{About, Counted, Disguise, Packet, Tally, Writer, headers, scrub};
use turnix::quality::Leg;

const AT: Duration = Duration::new(1_700_000_000, 123_456_789);

fn shown(mode: PiiMode) -> Disguise {
    let own = vec!["192.0.2.1".parse().unwrap()];
    Disguise::new(mode, own, [1, 2, 3, 4])
}

fn about(payload: bool) -> About<'static> {
    About {
        allocation: "1-2-3",
        transport: Transport::Tls,
        payload,
        began: AT,
    }
}

fn packet(from: &str, to: &str, bytes: &[u8]) -> Packet {
    Packet {
        at: AT,
        leg: Leg::Peer,
        received: true,
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        length: bytes.len(),
        bytes: bytes.to_vec(),
        dropped: None,
    }
}

#[test]
fn a_packet_byte_for_byte() {
    let writer = Writer::new(&about(true), shown(PiiMode::Full), &mut Vec::new());
    let mut out = Vec::new();
    let dropped = Packet {
        dropped: Some("family"),
        ..packet("198.51.100.7:40000", "192.0.2.1:49152", b"hello")
    };
    writer.packet(dropped, &mut out);
    #[rustfmt::skip]
    let expected = [
        6, 0, 0, 0, 100, 0, 0, 0, // Enhanced Packet
        1, 0, 0, 0, // peers
        0xFE, 0x9C, 0x97, 0x17, 0x15, 0xCD, 0x85, 0x3D, // 1 700 000 000 123 456 789
        33, 0, 0, 0, 33, 0, 0, 0,
        0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0x8E, 0x90, 198, 51, 100, 7, 192, 0, 2, 1,
        0x9C, 0x40, 0xC0, 0x00, 0, 13, 0x73, 0x84, b'h', b'e', b'l', b'l', b'o', 0, 0, 0,
        1, 0, 15, 0, b'd', b'r', b'o', b'p', b'p', b'e', b'd', b':', b' ', b'f', b'a', b'm', b'i', b'l', b'y', 0,
        2, 0, 4, 0, 1, 0, 0, 0, // came in
        0, 0, 0, 0,
        100, 0, 0, 0,
    ];
    assert_eq!(out, expected, "{out:02X?}");
}

#[test]
fn a_file_from_its_first_block_to_its_last() {
    let mut out = Vec::new();
    let writer = Writer::new(&about(false), shown(PiiMode::Full), &mut out);
    writer.packet(
        packet("[2001:db8::7]:1", "[2001:db8::8]:2", &[0x80; 12]),
        &mut out,
    );
    // A listener on a wildcard of the other family, and bytes that are not there.
    let cut = Packet {
        leg: Leg::Client,
        received: false,
        length: 65_507,
        ..packet("[::]:3478", "198.51.100.7:5", &[0x40, 0, 0xFF, 0xDF])
    };
    writer.packet(cut, &mut out);
    let counted = [
        Counted {
            written: 1,
            lost: 3,
        },
        Counted {
            written: 1,
            lost: 0,
        },
    ];
    writer.finish(
        AT + Duration::from_secs(1),
        "its time is over",
        counted,
        &mut out,
    );

    let file = File::read(&out);
    assert_eq!(
        file.application,
        format!("turnix {}", env!("CARGO_PKG_VERSION"))
    );
    assert!(file.comment.starts_with("Allocation 1-2-3; headers only"));
    let names: Vec<_> = file
        .interfaces
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["client-tls", "peers"]);
    assert!(file.interfaces[0].1.contains("decrypted from TLS"));
    let [first, second] = &file.packets[..] else {
        panic!("{:?}", file.packets);
    };
    assert_eq!(u128::from(first.nanos), AT.as_nanos());
    assert_eq!((first.interface, first.inbound), (1, true));
    assert_eq!(first.from, "[2001:db8::7]:1".parse::<SocketAddr>().unwrap());
    assert_eq!((second.interface, second.inbound), (0, false));
    assert_eq!(second.from, "0.0.0.0:3478".parse::<SocketAddr>().unwrap());
    assert_eq!((second.length, second.data.len()), (65_507, 4));
    let counts: Vec<_> = (file.statistics.iter())
        .map(|one| {
            (
                one.interface,
                one.received,
                one.dropped,
                one.comment.as_str(),
            )
        })
        .collect();
    let why = "Ended: its time is over.";
    assert_eq!(counts, [(0, 4, 3, why), (1, 1, 0, why)]);

    // Counted as it comes, whatever it comes in.
    for size in [1, 7, 100, out.len()] {
        let mut tally = Tally::default();
        for part in out.chunks(size) {
            tally.feed(part).unwrap();
        }
        assert_eq!((tally.packets, tally.lost, tally.finished), (2, 3, 2));
        tally.feed(&out[..30]).unwrap();
        assert_eq!(tally.unfinished(), 30);
    }
    assert!(Tally::default().feed(b"<!doctype html>").is_err());
    assert!(Tally::default().feed(&[0; 64]).is_err());
}

#[test]
fn headers_and_no_more() {
    let media = [
        &[0x90, 0x6F][..],
        &[7; 10],
        &[0xBE, 0xDE, 0, 2],
        &[1; 8],
        &[9; 100],
    ]
    .concat();
    let csrc = [&[0x82, 0x6F][..], &[7; 10], &[1; 8], &[9; 100]].concat();
    let rtcp = [&[0x81, 200][..], &[7; 60]].concat();
    let hello = [&[22, 254, 253, 0, 0][..], &[7; 200]].concat();
    let finished = [&[22, 254, 253, 0, 1][..], &[7; 60]].concat();
    let other = [5; 100];
    for (data, kept) in [
        (&media[..], 24),
        (&csrc, 20),
        (&rtcp, 8),
        (&hello, 25),
        (&finished, 13),
        (&other, 0),
        (&[0x80; 3], 3),
        // Its extension is longer than it is.
        (
            &[0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF],
            16,
        ),
        (&[], 0),
    ] {
        assert_eq!(headers(Leg::Peer, data), kept, "{data:?}");
        let framed = [&[0x40, 1, 0, data.len() as u8][..], data].concat();
        assert_eq!(headers(Leg::Client, &framed), 4 + kept, "{data:?}");
        let length = data.len() as u16;
        let padding = data.len().next_multiple_of(4) - data.len();
        let mut send = vec![0, 0x16, 0, 0, 0x21, 0x12, 0xA4, 0x42];
        send.extend([1; 12]);
        send.extend([0, 0x12, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0x13]);
        send.extend(length.to_be_bytes());
        let front = send.len();
        send.extend(data);
        send.extend(vec![0; padding]);
        assert_eq!(headers(Leg::Client, &send), front + kept, "{data:?}");
    }
    // From no client is anything else.
    assert_eq!(headers(Leg::Client, &media), 0);
    assert_eq!(headers(Leg::Client, &[0; 30]), 20);
    assert_eq!(headers(Leg::Peer, &[0; 30]), 0);
}

/// A check of ICE with what names people, what could be misused, and what is of use.
fn check() -> Message {
    let mut message = Message::new();
    message.set_type(BINDING_REQUEST);
    message.transaction_id = TransactionId([9; 12]);
    message.write_header();
    message.add(ATTR_USERNAME, b"them:alice");
    message.add(ATTR_PRIORITY, &[1, 2, 3, 4]);
    message.add(stun::attributes::AttrType(0xC057), b"wifi");
    message.add(ATTR_SOFTWARE, b"some client");
    MessageIntegrity::new_short_term_integrity("secret".into())
        .add_to(&mut message)
        .unwrap();
    FINGERPRINT.add_to(&mut message).unwrap();
    message
}

fn read(raw: &[u8]) -> Message {
    let mut message = Message::new();
    message.write(raw).unwrap();
    message
}

#[test]
fn stun_shows_what_is_harmless() {
    let mut raw = check().raw;
    assert_eq!(headers(Leg::Peer, &raw), raw.len());
    let whole = raw.len();
    scrub(Leg::Peer, &mut raw, whole, &shown(PiiMode::Full));
    let message = read(&raw);
    let text = |kind| TextAttribute::get_from_as(&message, kind).unwrap().text;
    assert_eq!(text(ATTR_USERNAME), "xxxxxxxxxx");
    assert_eq!(text(ATTR_SOFTWARE), "some client");
    assert_eq!(message.get(ATTR_PRIORITY).unwrap(), [1, 2, 3, 4]);
    assert_eq!(
        message.get(stun::attributes::AttrType(0xC057)).unwrap(),
        [0; 4]
    );
    assert_eq!(
        message
            .get(stun::attributes::ATTR_MESSAGE_INTEGRITY)
            .unwrap(),
        [0; 20]
    );
    FINGERPRINT.check(&message).expect("right again");

    // One that was wrong stays wrong, and what is no attribute is not shown.
    let mut wrong = check().raw;
    *wrong.last_mut().unwrap() ^= 1;
    scrub(Leg::Client, &mut wrong, whole, &shown(PiiMode::Full));
    assert!(FINGERPRINT.check(&read(&wrong)).is_err());
    let mut garbage = vec![0, 1, 0, 8, 0x21, 0x12, 0xA4, 0x42];
    garbage.extend([9; 12]);
    garbage.extend(*b"\0\x06\0\xFFalice");
    let length = garbage.len();
    scrub(Leg::Client, &mut garbage, length, &shown(PiiMode::Full));
    assert!(garbage.ends_with(b"xxxxx"), "{garbage:?}");
    let mut stub = garbage[..22].to_vec();
    scrub(Leg::Client, &mut stub, 22, &shown(PiiMode::Full));
    assert_eq!(stub[20..], [0, 0]);
}

#[test]
fn addresses_are_shown_as_privacy_has_it_and_the_same_everywhere() {
    let client: SocketAddr = "198.51.100.77:4000".parse().unwrap();
    let six: SocketAddr = "[2001:db8:1:2::3]:4000".parse().unwrap();
    let own: SocketAddr = "192.0.2.1:3478".parse().unwrap();
    for mode in [
        PiiMode::Full,
        PiiMode::Truncate,
        PiiMode::Hash,
        PiiMode::Off,
    ] {
        let seen = |address: SocketAddr| {
            let mut answer = Message::new();
            answer.set_type(BINDING_SUCCESS);
            answer.transaction_id = TransactionId([9; 12]);
            answer.write_header();
            let mapped = XorMappedAddress {
                ip: address.ip(),
                port: address.port(),
            };
            mapped.add_to(&mut answer).unwrap();
            let (local, remote) = match address.is_ipv4() {
                true => ("192.0.2.1:3478".to_owned(), address.to_string()),
                false => ("[2001:db8::1]:3478".to_owned(), address.to_string()),
            };
            let mut out = Vec::new();
            let writer = Writer::new(&about(false), shown(mode), &mut out);
            // As ChannelData, as relayed, and as a message of its own.
            let framed = [&[0x40, 0, 0, answer.raw.len() as u8][..], &answer.raw].concat();
            for (leg, bytes) in [
                (Leg::Client, &framed),
                (Leg::Peer, &answer.raw),
                (Leg::Client, &answer.raw),
            ] {
                let shown = Packet {
                    leg,
                    ..packet(&local, &remote, bytes)
                };
                writer.packet(shown, &mut out);
            }
            let file = File::read(&out);
            let ips: Vec<IpAddr> = (file.packets.iter())
                .flat_map(|packet| {
                    let raw = packet
                        .data
                        .strip_prefix(&framed[..4])
                        .unwrap_or(&packet.data);
                    let mut inside = XorMappedAddress::default();
                    inside.get_from(&read(raw)).unwrap();
                    assert_eq!((inside.port, packet.to.port()), (4000, 4000));
                    [inside.ip, packet.to.ip()]
                })
                .collect();
            assert_eq!(ips.len(), 6);
            assert!(ips.iter().all(|ip| *ip == ips[0]), "{mode:?}: {ips:?}");
            if address.is_ipv4() {
                assert_eq!(file.packets[0].from, own, "the server's own");
            }
            ips[0]
        };
        match mode {
            PiiMode::Full => assert_eq!((seen(client), seen(six)), (client.ip(), six.ip())),
            PiiMode::Truncate => {
                assert_eq!(seen(client).to_string(), "198.51.100.0");
                assert_eq!(seen(six).to_string(), "2001:db8:1::");
            }
            PiiMode::Hash | PiiMode::Off => {
                let IpAddr::V4(four) = seen(client) else {
                    panic!("another family");
                };
                assert!(four.octets()[0] >= 240 && seen(client) == seen(client));
                assert_ne!(
                    seen("198.51.100.78:4000".parse().unwrap()),
                    IpAddr::V4(four)
                );
                assert!(
                    seen(six).to_string().starts_with("2001:db8::"),
                    "{}",
                    seen(six)
                );
            }
        }
    }
}
