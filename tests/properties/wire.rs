//! The codec against the `stun` and `turn` crates, which share no code with it.

use std::net::SocketAddr;

use proptest::prelude::*;
use stun::attributes::*;
use stun::fingerprint::FINGERPRINT;
use stun::message as m;
use turn::proto::chandata::ChannelData;
use turnix::wire::framing::{Frame, next_frame};
use turnix::wire::{
    ChannelNumber, ErrorCode, Header, Kind, Message, Method, Response, TransactionId, attribute,
    channel_data, classify, indication,
};

use crate::common::codec::{assert_same, key, signer, their_address};
use crate::common::wire::{Reply, Request};
use crate::core::cases;

/// The attributes that requests carry, with values that make sense or do not.
#[derive(Clone, Debug)]
enum Attr {
    Raw(u16, Vec<u8>),
    Peer(SocketAddr),
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        (any::<[u8; 16]>(), any::<u16>())
            .prop_map(SocketAddr::from)
            // Mapped addresses count as IPv4, and `stun` writes them as such or not.
            .prop_filter("not mapped", |address| address.ip()
                == address.ip().to_canonical()),
    ]
}

fn attr() -> impl Strategy<Value = Attr> {
    let kinds = prop::sample::select(vec![
        attribute::LIFETIME,
        attribute::REQUESTED_TRANSPORT,
        attribute::REQUESTED_ADDRESS_FAMILY,
        attribute::CHANNEL_NUMBER,
        attribute::EVEN_PORT,
        attribute::DATA,
        attribute::USERNAME,
        attribute::REALM,
        attribute::NONCE,
        attribute::DONT_FRAGMENT,
        attribute::RESERVATION_TOKEN,
        attribute::XOR_PEER_ADDRESS,
        0x7F00,
        0x8022,
        0xC057,
    ]);
    prop_oneof![
        4 => (kinds, prop::collection::vec(any::<u8>(), 0..24)).prop_map(|(kind, value)| Attr::Raw(kind, value)),
        2 => any::<[u8; 4]>().prop_map(|value| Attr::Raw(attribute::LIFETIME, value.to_vec())),
        2 => any::<u8>().prop_map(|number| Attr::Raw(attribute::REQUESTED_TRANSPORT, vec![number, 0, 0, 0])),
        2 => (0..4_u8).prop_map(|family| Attr::Raw(attribute::REQUESTED_ADDRESS_FAMILY, vec![family, 0, 0, 0])),
        2 => any::<u16>().prop_map(|number| {
            let [high, low] = number.to_be_bytes();
            Attr::Raw(attribute::CHANNEL_NUMBER, vec![high, low, 0, 0])
        }),
        3 => address().prop_map(Attr::Peer),
    ]
}

#[derive(Clone, Debug)]
struct Built {
    method: u16,
    class: m::MessageClass,
    attributes: Vec<Attr>,
    signed: bool,
    behind: bool,
    fingerprint: bool,
}

fn built() -> impl Strategy<Value = Built> {
    let method = prop::sample::select(vec![1_u16, 3, 4, 6, 7, 8, 9, 0xA, 0x123, 0xFFF]);
    let class = prop::sample::select(vec![
        m::CLASS_REQUEST,
        m::CLASS_INDICATION,
        m::CLASS_SUCCESS_RESPONSE,
        m::CLASS_ERROR_RESPONSE,
    ]);
    let attributes = prop::collection::vec(attr(), 0..6);
    let flag = any::<bool>;
    (
        method,
        class,
        attributes,
        flag(),
        prop::bool::weighted(0.2),
        flag(),
    )
        .prop_map(
            |(method, class, attributes, signed, behind, fingerprint)| Built {
                method,
                class,
                attributes,
                signed,
                behind,
                fingerprint,
            },
        )
}

fn build(built: &Built) -> Request {
    let method: m::Method = {
        let mut kind = m::MessageType::default();
        let n = built.method;
        kind.read_value((n & 0xF) | ((n & 0x70) << 1) | ((n & 0xF80) << 2));
        kind.method
    };
    let mut request = Request::of_class(method, built.class);
    for attribute in &built.attributes {
        request = match attribute {
            Attr::Raw(kind, value) => request.attr(*kind, value),
            Attr::Peer(peer) => request.peer(*peer),
        };
    }
    if built.signed {
        request = request.integrity(&signer());
        if built.behind {
            request = request.attr(attribute::LIFETIME, &[0, 0, 0, 9]);
        }
    }
    if built.fingerprint {
        request = request.fingerprint();
    }
    request
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn messages_built_by_stun_are_read_the_same(built in built()) {
        let bytes = build(&built).bytes();
        let message = Message::parse(&bytes).expect("well-formed");
        assert_same(&bytes, &message);
        assert_eq!(message.verify_integrity(&key("wonderland")), built.signed);
        assert!(!message.verify_integrity(&key("looking-glass")));
        // Behind an attribute that does not belong there, not even FINGERPRINT counts.
        let hidden = built.signed && built.behind;
        assert_eq!(message.has_fingerprint(), built.fingerprint && !hidden);
    }

    #[test]
    fn what_turnix_accepts_of_mutated_messages_stun_reads_the_same(
        built in built(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let mut bytes = build(&built).bytes();
        for (at, bits) in &flips {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        if let Ok(message) = Message::parse(&bytes) {
            assert_same(&bytes, &message);
        }
        // What `stun` does not read, turnix does not either.
        if m::Message::new().unmarshal_binary(&bytes).is_err() {
            assert!(Message::parse(&bytes).is_err());
        }
    }

    #[test]
    fn a_changed_bit_breaks_fingerprint_and_integrity(
        built in built(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let built = Built { signed: true, behind: false, fingerprint: true, ..built };
        let mut bytes = build(&built).bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Only FINGERPRINT itself may turn into something optional that nobody knows.
        if let Ok(message) = Message::parse(&bytes) {
            assert!(!message.has_fingerprint());
            assert!(at >= bytes.len() - 8 || !message.verify_integrity(&key("wonderland")));
        }
    }

    #[test]
    fn nothing_before_or_behind_a_message(built in built(), more in prop::collection::vec(any::<u8>(), 1..9)) {
        let bytes = build(&built).bytes();
        let longer = [&bytes[..], &more].concat();
        assert!(Message::parse(&longer).is_err());
        assert!(Message::parse(&bytes[..bytes.len() - more.len()]).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), stun in any::<bool>()) {
        let mut bytes = bytes;
        if stun && bytes.len() >= 20 {
            bytes.truncate(bytes.len() / 4 * 4);
            let length = (bytes.len() - 20) as u16;
            bytes[0] &= 0x3F;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
        }
        if let Ok(message) = Message::parse(&bytes) {
            assert_same(&bytes, &message);
        }
        if let Some(send) = indication::parse_send(&bytes) {
            assert!(usize::from(send.data.end) <= bytes.len());
        }
        if let Some((_, data)) = channel_data::parse(&bytes) {
            assert!(usize::from(data.end) <= bytes.len());
        }
        let _ = next_frame(&bytes);
    }

    #[test]
    fn answers_are_read_by_stun(
        transaction in any::<[u8; 12]>(),
        method in prop::sample::select(vec![Method::Binding, Method::Allocate, Method::Refresh, Method::ChannelBind]),
        code in prop::option::of(prop::sample::select(ErrorCode::ALL.to_vec())),
        mapped in prop::option::of(address()),
        relayed in prop::option::of(address()),
        lifetime in prop::option::of(any::<u32>()),
        challenge in prop::option::of(("[a-z.]{1,30}", "[A-Za-z0-9+/]{1,40}")),
        unknown in prop::option::of(prop::collection::vec(any::<u16>(), 0..7)),
        signed in any::<bool>(),
        fingerprint in any::<bool>(),
    ) {
        let transaction = TransactionId(transaction);
        let mut response = match code {
            None => Response::success(method, transaction),
            Some(code) => Response::error(method, transaction, code),
        };
        if let Some(mapped) = mapped {
            response = response.mapped_address(mapped);
        }
        if let Some(relayed) = relayed {
            response = response.relayed_address(relayed);
        }
        if let Some(secs) = lifetime {
            response = response.lifetime(secs);
        }
        if let Some((realm, nonce)) = &challenge {
            response = response.challenge(realm, nonce);
        }
        if let Some(kinds) = &unknown {
            response = response.unknown_attributes(kinds.iter().copied());
        }
        let signer = signer();
        let key = key(&signer.password);
        let bytes = response.finish(signed.then_some(&key), fingerprint);

        let reply = Reply::parse(&bytes);
        assert_eq!(TransactionId(reply.0.transaction_id.0), transaction);
        assert_eq!(method.number(), Some(m::MessageType::new(reply.0.typ.method, m::CLASS_REQUEST).value()));
        assert_eq!(reply.code(), code.map_or(0, ErrorCode::code));
        assert_eq!(mapped, reply.attr(ATTR_XORMAPPED_ADDRESS).map(|_| reply.mapped()));
        assert_eq!(relayed, reply.attr(ATTR_XOR_RELAYED_ADDRESS).map(|_| reply.relayed()));
        assert_eq!(lifetime, reply.attr(ATTR_LIFETIME).map(|_| reply.lifetime()));
        assert_eq!(challenge, reply.text(ATTR_REALM).zip(reply.text(ATTR_NONCE)));
        let listed = unknown.map(|kinds| kinds.into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>());
        assert_eq!(listed, reply.attr(ATTR_UNKNOWN_ATTRIBUTES));
        assert_eq!(reply.is_signed_by(&signer), signed);
        assert_eq!(reply.0.contains(ATTR_FINGERPRINT), fingerprint);
        assert!(!fingerprint || FINGERPRINT.check(&reply.0).is_ok());
        let last = reply.attribute_types().last().copied();
        assert_eq!(fingerprint, last == Some(attribute::FINGERPRINT), "FINGERPRINT is last");
        // And by ourselves, as the sans-IO client will.
        assert_eq!(Message::parse(&bytes).map(|message| message.verify_integrity(&key)), Ok(signed));
    }

    #[test]
    fn channel_data_is_read_the_same_by_turn(
        number in prop_oneof![4 => 0x4000..=0x4FFF_u16, 1 => any::<u16>()],
        data in prop::collection::vec(any::<u8>(), 0..40),
        declared in prop::option::weighted(0.3, 0..60_u16),
        more in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let declared = declared.unwrap_or(data.len() as u16);
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.extend_from_slice(&declared.to_be_bytes());
        bytes.extend_from_slice(&data);
        bytes.extend_from_slice(&more);
        let mut theirs = ChannelData { raw: bytes.clone(), ..Default::default() };
        let decoded = theirs.decode();
        match channel_data::parse(&bytes) {
            Some((channel, range)) => {
                // `turn` knows the range of RFC 8656 or of RFC 5766; within the former both read the same.
                assert_eq!(channel.number(), number);
                assert_eq!(range.len(), usize::from(declared));
                if decoded.is_ok() {
                    assert_eq!(theirs.number.0, number);
                    assert_eq!(theirs.data, &bytes[usize::from(range.start)..usize::from(range.end)]);
                } else {
                    assert!(number > 0x4FFF);
                }
            }
            None => assert!(decoded.is_err()),
        }
    }

    #[test]
    fn channel_data_headers_are_what_turn_writes(
        number in 0x4000..=0x4FFF_u16,
        data in prop::collection::vec(any::<u8>(), 0..40),
        stream in any::<bool>(),
    ) {
        let header = Header::channel_data(ChannelNumber::new(number).unwrap(), data.len(), stream).unwrap();
        let mut theirs = ChannelData {
            number: turn::proto::channum::ChannelNumber(number),
            data: data.clone(),
            raw: Vec::new(),
        };
        theirs.encode();
        let mut ours = [header.bytes(), &data].concat();
        assert_eq!(header.padding(), if stream { theirs.raw.len() - ours.len() } else { 0 });
        ours.resize(theirs.raw.len(), 0);
        assert_eq!(ours, theirs.raw);
    }

    #[test]
    fn data_indications_are_read_by_stun(
        peer in address(),
        data in prop::collection::vec(any::<u8>(), 0..70),
        transaction in any::<[u8; 12]>(),
    ) {
        let header = Header::data_indication(peer, data.len(), transaction).unwrap();
        assert!(header.bytes().len() <= turnix::wire::HEADROOM && header.padding() <= turnix::wire::TAILROOM);
        let message = [header.bytes(), &data, &vec![0; header.padding()]].concat();
        let reply = Reply::parse(&message);
        assert_eq!(reply.0.typ, m::MessageType::new(m::METHOD_DATA, m::CLASS_INDICATION));
        assert_eq!(reply.0.transaction_id.0, transaction);
        assert_eq!((reply.peer(), reply.data()), (peer, data));
        assert_eq!(reply.attribute_types(), [attribute::XOR_PEER_ADDRESS, attribute::DATA]);
        assert_same(&message, &Message::parse(&message).unwrap());
    }

    #[test]
    fn send_indications_of_stun_are_read(
        peer in prop::option::weighted(0.9, address()),
        data in prop::option::weighted(0.9, prop::collection::vec(any::<u8>(), 0..70)),
        optional in prop::option::of((0x8000..=0xFFFF_u16, prop::collection::vec(any::<u8>(), 0..9))),
        required in prop::option::weighted(0.1, 0x7000..0x7FFF_u16),
        data_first in any::<bool>(),
        fingerprint in any::<bool>(),
        flip in prop::option::of((any::<prop::sample::Index>(), 1..=255_u8)),
    ) {
        let mut request = Request::of_class(m::METHOD_SEND, m::CLASS_INDICATION);
        if let Some((kind, value)) = &optional {
            request = request.attr(*kind, value);
        }
        for turn in [data_first, !data_first] {
            request = match (turn, peer, &data) {
                (true, _, Some(data)) => request.attr(attribute::DATA, data),
                (false, Some(peer), _) => request.peer(peer),
                _ => request,
            };
        }
        if let Some(kind) = required {
            request = request.attr(kind, &[]);
        }
        if fingerprint {
            request = request.fingerprint();
        }
        let mut bytes = request.bytes();
        let send = indication::parse_send(&bytes);
        assert_eq!(send.is_some(), peer.is_some() && data.is_some() && required.is_none());
        if let Some(send) = send {
            assert_eq!(Some(send.peer), peer);
            assert_eq!(Some(&bytes[usize::from(send.data.start)..usize::from(send.data.end)]), data.as_deref());
        }
        // Broken on the way: what is still accepted, `stun` reads the same.
        if let Some((at, bits)) = flip {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            if let Some(send) = indication::parse_send(&bytes) {
                let mut oracle = m::Message::new();
                oracle.unmarshal_binary(&bytes).expect("stun reads what turnix accepts");
                let data = oracle.get(ATTR_DATA).unwrap();
                assert_eq!(&bytes[usize::from(send.data.start)..usize::from(send.data.end)], &data[..]);
                let (peer, _) = oracle.attributes.get(ATTR_XOR_PEER_ADDRESS);
                assert_eq!(their_address(&oracle, &peer), Some(send.peer));
            }
        }
    }

    #[test]
    fn frames_are_the_same_however_a_stream_is_cut(
        messages in prop::collection::vec(
            prop_oneof![
                (0x4000..=0x7FFF_u16, prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(number, data)| {
                    let mut bytes = number.to_be_bytes().to_vec();
                    bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
                    bytes.extend_from_slice(&data);
                    bytes
                }),
                built().prop_map(|built| build(&built).bytes()),
            ],
            0..8,
        ),
        cuts in prop::collection::vec(1..60_usize, 1..20),
    ) {
        let mut stream = Vec::new();
        for message in &messages {
            stream.extend_from_slice(message);
            stream.resize(stream.len().next_multiple_of(4), 0);
        }
        let mut cuts = cuts.iter().cycle();
        let (mut buffer, mut rest, mut read) = (Vec::new(), &stream[..], Vec::new());
        loop {
            match next_frame(&buffer) {
                Frame::Complete { message, total } => {
                    assert!(message <= total && total <= buffer.len());
                    read.push(buffer[..message].to_vec());
                    buffer.drain(..total);
                }
                Frame::Needs(total) => {
                    assert!(total > buffer.len(), "asks for more than there is");
                    if rest.is_empty() {
                        break;
                    }
                    let cut = (*cuts.next().unwrap()).min(rest.len());
                    buffer.extend_from_slice(&rest[..cut]);
                    rest = &rest[cut..];
                }
                Frame::Invalid => panic!("out of step at {buffer:02x?}"),
            }
        }
        assert!(buffer.is_empty());
        assert_eq!(read, messages);
    }

    #[test]
    fn kinds_are_told_by_two_bits(first in any::<u8>()) {
        let stun = m::is_message(&[&[first & 0x3F, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[0; 12]].concat());
        assert!(stun);
        let expected = match first {
            0..=0x3F => Kind::Stun,
            0x40..=0x7F => Kind::ChannelData,
            _ => Kind::Other,
        };
        assert_eq!(classify(&[first]), expected);
    }
}
