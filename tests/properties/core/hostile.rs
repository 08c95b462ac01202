//! Bytes that nobody meant well: they never panic, never make or end an allocation, never pass without a permission.

use std::net::SocketAddr;

use proptest::prelude::*;
use stun::attributes::ATTR_DATA;
use stun::message as m;
use turnix::base::FiveTuple;
use turnix::turn::{DropReason, Forward};

use super::cases;
use super::harness::with_id;
use crate::common::wire::{REALM, Request, Signer, channel_data};
use crate::common::world::{World, addr, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";
const STRANGER: &str = "192.0.2.66:6666";
const PERMITTED: &str = "8.8.8.8:5000";

struct Hostile {
    world: World,
    alice: Signer,
    id: turnix::turn::AllocationId,
    seen: [usize; 3],
}

impl Hostile {
    fn new() -> Self {
        let mut world = World::new();
        let (alice, id, _) = world.allocate(udp(CLIENT));
        let bind = Request::channel_bind(0x4001, addr(PERMITTED)).sign(&alice);
        assert_eq!(world.ask(udp(CLIENT), &bind).code(), 0);
        world.sent.clear();
        let seen = [world.opened.len(), world.closed.len(), world.ended.len()];
        Self {
            world,
            alice,
            id,
            seen,
        }
    }

    fn client(&mut self, from: FiveTuple, bytes: &[u8]) {
        let before: u64 = self.world.server.stats().dropped.iter().sum();
        let forward = self.world.input(from, bytes);
        let after: u64 = self.world.server.stats().dropped.iter().sum();
        match &forward {
            Forward::ToPeer { peer, payload, .. } => {
                assert_eq!(from, udp(CLIENT), "a stranger reaches nobody");
                assert_eq!(peer.address().ip(), addr(PERMITTED).ip());
                assert!(payload.start <= payload.end && usize::from(payload.end) <= bytes.len());
            }
            Forward::ToClient { .. } => panic!("a client's datagram goes to no client"),
            Forward::ToShard { .. } => panic!("no client has a ticket"),
            Forward::Consumed | Forward::Drop(_) => {}
        }
        let dropped = u64::from(matches!(forward, Forward::Drop(_)));
        assert_eq!(after - before, dropped, "dropped and counted");
        let answers: Vec<_> = self.world.sent.drain(..).collect();
        assert!(answers.len() <= usize::from(forward == Forward::Consumed));
        assert!(
            answers.iter().all(|(to, _)| *to == from),
            "answers go to who asked"
        );
        self.unchanged();
    }

    fn peer(&mut self, from: SocketAddr, bytes: &[u8]) {
        let forward = self.world.peer_input(self.id, from, bytes);
        let permitted = from.ip() == addr(PERMITTED).ip();
        match &forward {
            Forward::ToClient { five_tuple, header } => {
                assert!(permitted);
                assert_eq!(*five_tuple, udp(CLIENT));
                // Whatever the peer sent, the client reads it as data and nothing else.
                let declared = match header.bytes() {
                    [_, _, high, low] => u16::from_be_bytes([*high, *low]),
                    indication => u16::from_be_bytes(*indication.last_chunk().unwrap()),
                };
                assert_eq!(usize::from(declared), bytes.len());
            }
            Forward::Drop(DropReason::TooLarge) => assert!(permitted && bytes.len() > 65_000),
            Forward::Drop(DropReason::NoPermission) => assert!(!permitted),
            other => panic!("{other:?}"),
        }
        assert!(self.world.sent.is_empty(), "peers get no answers");
        self.unchanged();
    }

    fn unchanged(&self) {
        let World {
            server,
            opened,
            closed,
            ended,
            ..
        } = &self.world;
        assert_eq!(server.len(), 1);
        assert!(server.has_allocation(udp(CLIENT)));
        assert_eq!([opened.len(), closed.len(), ended.len()], self.seen);
    }
}

/// Bytes that get past the first checks: a likely first byte, often the length and the cookie that belong there.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..80),
        1 => prop::collection::vec(any::<u8>(), 1400..1500),
    ];
    let first = prop::sample::select(vec![
        [0x00, 0x01],
        [0x00, 0x03],
        [0x00, 0x04],
        [0x00, 0x16],
        [0x00, 0x17],
        [0x00, 0x08],
        [0x00, 0x09],
        [0x01, 0x03],
        [0x01, 0x13],
        [0x00, 0x11],
        [0x40, 0x00],
        [0x40, 0x01],
        [0x7F, 0xFF],
        [0x16, 0x03],
        [0x80, 0x00],
        [0xFF, 0xFF],
    ]);
    (body, first, 0..4_u8).prop_map(|(mut body, first, shape)| {
        if shape >= 1 && body.len() >= 2 {
            body[..2].copy_from_slice(&first);
        }
        if shape >= 2 && body.len() >= 20 {
            body.truncate(body.len() / 4 * 4);
            let length = (body.len() - 20) as u16;
            body[2..4].copy_from_slice(&length.to_be_bytes());
            body[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
        }
        if shape == 3 && body.len() >= 28 {
            // One attribute that fills the rest.
            let length = (body.len() - 24) as u16;
            body[20] = 0;
            body[22..24].copy_from_slice(&length.to_be_bytes());
        }
        body
    })
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip {
        at: usize,
        bits: u8,
    },
    Cut {
        to: usize,
    },
    Append(Vec<u8>),
    Copy {
        from: usize,
        to: usize,
        length: usize,
    },
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let mutation = prop_oneof![
        6 => (any::<usize>(), 1..=255_u8).prop_map(|(at, bits)| Mutation::Flip { at, bits }),
        1 => any::<usize>().prop_map(|to| Mutation::Cut { to }),
        1 => prop::collection::vec(any::<u8>(), 1..12).prop_map(Mutation::Append),
        1 => (any::<usize>(), any::<usize>(), 1..16_usize)
            .prop_map(|(from, to, length)| Mutation::Copy { from, to, length }),
    ];
    prop::collection::vec(mutation, 1..4)
}

fn mutate(message: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = message.to_vec();
    for mutation in mutations {
        let length = bytes.len().max(1);
        match mutation {
            Mutation::Append(more) => bytes.extend_from_slice(more),
            _ if bytes.is_empty() => {}
            Mutation::Flip { at, bits } => bytes[at % length] ^= bits,
            Mutation::Cut { to } => bytes.truncate(to % length),
            Mutation::Copy {
                from,
                to,
                length: count,
            } => {
                let (from, to) = (from % length, to % length);
                let count = (*count).min(length - from.max(to));
                bytes.copy_within(from..from + count, to);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(cases(160))]

    #[test]
    fn arbitrary_bytes_change_nothing(
        inputs in prop::collection::vec((bytes(), 0..3_usize), 1..40),
    ) {
        let mut hostile = Hostile::new();
        let from = [udp(CLIENT), tcp(CLIENT), udp(STRANGER)];
        for (bytes, client) in inputs {
            hostile.client(from[client], &bytes);
            for peer in [PERMITTED, "8.8.8.8:9", "9.9.9.9:5000", "[2a01::5]:1"] {
                hostile.peer(addr(peer), &bytes);
            }
        }
    }

    #[test]
    fn a_signed_request_that_was_tampered_with_changes_nothing(
        which in 0..5_usize,
        mutations in mutations(),
    ) {
        let mut hostile = Hostile::new();
        let stranger = udp(STRANGER);
        let nonce = hostile.world.nonce(stranger);
        hostile.world.sent.clear();
        let alice = hostile.alice.clone();
        let (from, request) = match which {
            0 => (stranger, Request::allocate().sign(&alice.nonce(&nonce))),
            1 => (udp(CLIENT), Request::refresh(0).sign(&alice)),
            2 => (udp(CLIENT), Request::create_permission(&[addr("9.9.9.9:1")]).sign(&alice)),
            3 => (udp(CLIENT), Request::channel_bind(0x4002, addr("9.9.9.9:1")).sign(&alice)),
            _ => (udp(CLIENT), Request::channel_bind(0x4001, addr(PERMITTED)).sign(&alice)),
        };
        let bytes = mutate(&request.bytes(), &mutations);
        prop_assume!(bytes != request.bytes());
        hostile.client(from, &bytes);
        // Nor did it permit anybody else.
        hostile.peer(addr("9.9.9.9:1"), b"hello");
    }

    #[test]
    fn application_data_that_was_tampered_with_reaches_permitted_peers_only(
        send in any::<bool>(),
        data in prop::collection::vec(any::<u8>(), 0..60),
        mutations in mutations(),
    ) {
        let mut hostile = Hostile::new();
        let message = if send {
            let send = with_id(m::METHOD_SEND, m::CLASS_INDICATION, 1);
            send.peer(addr(PERMITTED)).attr(ATTR_DATA.0, &data).bytes()
        } else {
            channel_data(0x4001, &data)
        };
        let bytes = mutate(&message, &mutations);
        hostile.client(udp(CLIENT), &bytes);
        hostile.client(udp(STRANGER), &bytes);
    }

    #[test]
    fn nobody_authenticates_without_the_password(
        user in "[a-z0-9:]{1,20}",
        password in "[a-z]{0,10}",
        nonce in "[A-Za-z0-9+/]{0,30}",
        own in any::<bool>(),
    ) {
        let mut hostile = Hostile::new();
        let from = udp(STRANGER);
        let nonce = if own { hostile.world.nonce(from) } else { nonce };
        let signer = Signer { user, password, realm: REALM.into(), nonce };
        for request in [Request::allocate(), Request::refresh(0)] {
            assert_eq!(hostile.world.ask(from, &request.sign(&signer)).code(), 401);
            hostile.unchanged();
        }
    }
}

#[test]
fn datagrams_too_large_for_their_header_are_dropped() {
    let mut hostile = Hostile::new();
    for length in [65_503, 65_504, 65_507, 65_527, 65_535, 65_536, 100_000] {
        hostile.peer(addr(PERMITTED), &vec![0; length]);
        hostile.peer(addr("8.8.8.8:9"), &vec![0; length]);
        hostile.client(udp(CLIENT), &vec![0x40; length]);
        hostile.client(udp(CLIENT), &vec![0; length]);
    }
}
