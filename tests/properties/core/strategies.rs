//! Random operations, most of them sensible: nonsense alone never gets past authentication.

use proptest::collection::SizeRange;
use proptest::prelude::*;

use super::model::{Kind, PEERS};
use super::operations::{
    CLIENTS, CREDENTIALS, NonceChoice, Opening, Operation, Signature, Step, World,
};

pub fn world(
    operations: impl Strategy<Value = Step>,
    length: impl Into<SizeRange>,
) -> impl Strategy<Value = World> {
    (any::<bool>(), prop::collection::vec(operations, length)).prop_map(|(strict_expiry, steps)| {
        World {
            strict_expiry,
            steps,
        }
    })
}

fn client() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..2_usize, 4 => 0..CLIENTS]
}

fn peer() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..3_usize, 4 => 0..PEERS.len()]
}

fn channel() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => prop::sample::select(vec![0x4000, 0x4001]),
        2 => prop::sample::select(vec![0x4002, 0x4FFF, 0x5000, 0x7FFF]),
    ]
}

fn bytes() -> impl Strategy<Value = usize> {
    prop_oneof![0..8_usize, Just(1200)]
}

fn signature() -> impl Strategy<Value = Option<Signature>> {
    let credential = prop_oneof![9 => Just(None), 1 => (0..CREDENTIALS).prop_map(Some)];
    let nonce = prop_oneof![
        30 => Just(NonceChoice::Own),
        1 => client().prop_map(NonceChoice::Of),
        1 => Just(NonceChoice::Junk),
    ];
    prop::option::weighted(
        0.95,
        (credential, nonce).prop_map(|(credential, nonce)| Signature { credential, nonce }),
    )
}

fn lifetime() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![
        4 => Just(None),
        3 => prop::sample::select(vec![1, 600, 700, 1200, 3600, 7200, u32::MAX]).prop_map(Some),
        1 => Just(Some(0)),
    ]
}

fn family() -> impl Strategy<Value = Option<u8>> {
    prop_oneof![12 => Just(None), 2 => Just(Some(1)), 2 => Just(Some(2)), 1 => Just(Some(3))]
}

fn kind() -> impl Strategy<Value = Kind> {
    let transport = prop_oneof![20 => Just(Some(17)), 1 => Just(Some(6)), 1 => Just(None)];
    let even = prop_oneof![12 => Just(None), 1 => any::<bool>().prop_map(Some)];
    let beside = prop_oneof![
        9 => Just((false, None)),
        6 => Just((true, None)),
        1 => any::<u64>().prop_map(|token| (false, Some(token))),
    ];
    prop_oneof![
        1 => Just(Kind::Binding),
        6 => (transport, family(), lifetime(), even, beside).prop_map(
            |(transport, family, lifetime, even, (dual, token))| {
                Kind::Allocate { transport, family, lifetime, even, dual, token }
            }
        ),
        3 => (lifetime(), family()).prop_map(|(lifetime, family)| Kind::Refresh { lifetime, family }),
        4 => prop::collection::vec(peer(), 0..4).prop_map(Kind::CreatePermission),
        6 => (prop::option::weighted(0.95, channel()), prop::option::weighted(0.95, peer()))
            .prop_map(|(channel, peer)| Kind::ChannelBind { channel, peer }),
    ]
}

fn opening() -> impl Strategy<Value = Opening> {
    prop_oneof![
        16 => Just(Opening::Opens),
        1 => Just(Opening::Quota),
        1 => Just(Opening::Capacity),
        2 => Just(Opening::Later),
    ]
}

fn pass() -> impl Strategy<Value = Operation> {
    let ms = prop_oneof![
        4 => 0..2_000_u64,
        4 => 0..200_000_u64,
        2 => 0..900_000_u64,
        // To the very ends of permissions, channels, allocations and nonces.
        2 => prop::sample::select(vec![0, 299_999, 300_000, 300_001, 599_999, 600_000, 900_000]),
    ];
    (ms, prop::bool::weighted(0.4)).prop_map(|(ms, unnoticed)| Operation::Pass { ms, unnoticed })
}

pub fn operations() -> impl Strategy<Value = Step> {
    let which = || any::<usize>();
    let request = (
        client(),
        kind(),
        signature(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.03),
        prop::bool::weighted(0.2),
        opening(),
    )
        .prop_map(
            |(client, kind, signature, fingerprint, unknown_attribute, retransmitted, opening)| {
                Operation::Request {
                    client,
                    kind,
                    signature,
                    fingerprint,
                    unknown_attribute,
                    retransmitted,
                    opening,
                }
            },
        );
    let operation = prop_oneof![
        40 => request,
        10 => pass(),
        4 => (0..3_u64, any::<bool>())
            .prop_map(|(after, unnoticed)| Operation::PassToEnd { after, unnoticed }),
        2 => Just(Operation::Timeout),
        2 => (which(), opening())
            .prop_map(|(which, outcome)| Operation::OpenLater { which, outcome }),
        12 => (client(), prop_oneof![7 => peer(), 1 => Just(5)], bytes())
            .prop_map(|(client, peer, bytes)| Operation::Send { client, peer, bytes }),
        12 => (client(), channel(), bytes())
            .prop_map(|(client, channel, bytes)| Operation::ChannelData { client, channel, bytes }),
        16 => (which(), peer(), bytes())
            .prop_map(|(which, peer, bytes)| Operation::FromPeer { which, peer, bytes }),
        1 => client().prop_map(|client| Operation::ClientClosed { client }),
        1 => which().prop_map(|which| Operation::Administrative { which }),
        1 => which().prop_map(|which| Operation::RelayFailed { which }),
        3 => Just(Operation::HandOver),
        1 => any::<bool>().prop_map(|stricter| Operation::SetAccess { stricter }),
    ];
    let back_ms = prop_oneof![9 => Just(0), 1 => 0..1_000_000_u64];
    (back_ms, operation).prop_map(|(back_ms, operation)| Step { back_ms, operation })
}
