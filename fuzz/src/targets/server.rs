//! The whole `turn::Server` in virtual time, two ways: requests that make sense, against the model that says what
//! has to come of each; and anything at all, against a ledger that knows what must not.

use super::Reach;
use super::input::Input;
use super::ledger;
use crate::harness::Harness;
use crate::model::{Kind, PEERS};
use crate::operations::{CLIENTS, CREDENTIALS, NonceChoice, Opening, Operation, Signature, Step};

/// Steps of one input; what follows is not looked at.
pub const STEPS: usize = 96;

/// Moments at which permissions, channels, allocations and nonces end, in milliseconds.
pub const ENDS: [u64; 12] = [
    0, 1, 999, 60_000, 299_999, 300_000, 300_001, 599_999, 600_000, 600_001, 900_000, 3_600_000,
];

/// Peers that most is sent to.
pub const OFTEN: [usize; 12] = [0, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7];

pub fn server(data: &[u8]) -> Reach {
    let mut input = Input(data);
    let mode = input.byte();
    if mode & 1 == 1 {
        return ledger::run(&mut input, mode & 2 != 0);
    }
    let mut harness = Harness::new(mode & 2 != 0);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        harness.step(&step(&mut input));
    }
    harness.reach.0
}

fn step(input: &mut Input<'_>) -> Step {
    let choice = input.byte();
    let back_ms = match choice >> 5 {
        7 => 60 * u64::from(input.word()),
        _ => 0,
    };
    let operation = match choice & 0x1F {
        0..=11 => request(input),
        12..=14 => Operation::ChannelData {
            client: client(input),
            channel: input.one_of(&[0x4000, 0x4000, 0x4001, 0x4002, 0x4FFF, 0x5000, 0x7FFF]),
            bytes: length(input),
        },
        15..=17 => Operation::Send {
            client: client(input),
            peer: input.one_of(&OFTEN),
            bytes: length(input),
        },
        18..=20 => Operation::FromPeer {
            which: input.byte().into(),
            peer: input.one_of(&OFTEN),
            bytes: length(input),
        },
        21..=22 => Operation::Pass {
            ms: pass(input),
            unnoticed: input.once_in(2),
        },
        23..=24 => Operation::PassToEnd {
            after: input.below(3) as u64,
            unnoticed: input.once_in(2),
        },
        25 => Operation::Timeout,
        26 => Operation::OpenLater {
            which: input.byte().into(),
            outcome: opening(input),
        },
        27 => Operation::ClientClosed {
            client: client(input),
        },
        28 => Operation::Administrative {
            which: input.byte().into(),
        },
        29 => Operation::RelayFailed {
            which: input.byte().into(),
        },
        _ => Operation::SetAccess {
            stricter: input.once_in(2),
        },
    };
    Step { back_ms, operation }
}

pub fn pass(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        which @ 0..=127 => ENDS[usize::from(which) % ENDS.len()],
        _ => 10 * u64::from(input.word()),
    }
}

fn client(input: &mut Input<'_>) -> usize {
    input.one_of(&[0, 0, 1, 1, 0, 1, 2, 3, 4, 5]) % CLIENTS
}

fn length(input: &mut Input<'_>) -> usize {
    match input.byte() {
        255 => 1200,
        length => usize::from(length % 8),
    }
}

fn opening(input: &mut Input<'_>) -> Opening {
    match input.byte() % 16 {
        13 => Opening::Quota,
        14 => Opening::Capacity,
        15 => Opening::Later,
        _ => Opening::Opens,
    }
}

fn lifetime(input: &mut Input<'_>) -> Option<u32> {
    [
        None,
        None,
        Some(0),
        Some(1),
        Some(700),
        Some(1200),
        Some(3600),
        Some(u32::MAX),
    ][input.below(8)]
}

fn family(input: &mut Input<'_>) -> Option<u8> {
    [None, None, None, None, Some(1), Some(2), Some(2), Some(3)][input.below(8)]
}

fn request(input: &mut Input<'_>) -> Operation {
    let client = client(input);
    let kind = match input.byte() % 16 {
        0..=4 => {
            let transport = [Some(17), Some(17), Some(17), Some(17), Some(6), None][input.below(6)];
            let (family, lifetime) = (family(input), lifetime(input));
            // One draw for all three, so that inputs that were found mean what they meant.
            let beside = usize::from(input.byte());
            Kind::Allocate {
                transport,
                family,
                lifetime,
                even: [None, None, None, None, Some(false), Some(true)][beside % 6],
                dual: beside / 6 % 8 == 7,
                token: (beside / 6 % 8 == 6).then_some(7),
            }
        }
        5..=6 => Kind::Refresh {
            lifetime: lifetime(input),
            family: family(input),
        },
        7..=9 => {
            let peers = (0..input.below(4)).map(|_| input.one_of(&OFTEN)).collect();
            Kind::CreatePermission(peers)
        }
        10..=14 => Kind::ChannelBind {
            channel: [
                Some(0x4000),
                Some(0x4001),
                Some(0x4000),
                Some(0x4002),
                Some(0x4FFF),
                Some(0x5000),
                None,
            ][input.below(7)],
            peer: (!input.once_in(16)).then(|| input.one_of(&OFTEN) % PEERS.len()),
        },
        _ => Kind::Binding,
    };
    let signed = input.byte();
    let signature = (signed < 250).then(|| Signature {
        credential: (signed >= 200).then(|| usize::from(signed) % CREDENTIALS),
        nonce: match input.byte() {
            other @ 240..=247 => NonceChoice::Of(usize::from(other) % CLIENTS),
            248.. => NonceChoice::Junk,
            _ => NonceChoice::Own,
        },
    });
    let flags = input.byte();
    Operation::Request {
        client,
        kind,
        signature,
        fingerprint: flags & 0x10 != 0,
        unknown_attribute: flags & 0xE0 == 0xE0,
        retransmitted: flags & 0x60 == 0x60,
        opening: opening(&mut Input(&[flags & 0x0F])),
    }
}
