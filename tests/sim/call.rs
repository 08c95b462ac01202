//! A call as its two sides see it, reduced to what the relay can tell apart: checks, a handshake, media.

use std::net::SocketAddr;
use std::time::Duration;

use turnix::base::{Direction, FiveTuple};
use turnix::turn::{AllocationId, Forward, Subject};
use turnix::why::{Evidence, Verdict};

use crate::common::wire::{Request, Signer};
use crate::common::world::{USER, World, addr, secs};

pub const CLIENT: &str = "192.0.2.7:4000";
pub const PEER: &str = "203.0.114.9:1000";

pub const BOTH: [Direction; 2] = [Direction::ToPeer, Direction::ToClient];

/// What is known of `subject`, and what is made of it.
pub fn evidence(world: &World, subject: &Subject) -> Evidence {
    let (views, more) = world.server.views(world.now, 0, 1024);
    assert!(!more);
    let live: Vec<_> = (views.into_iter())
        .filter(|view| subject.is_view(view))
        .collect();
    let ids: Vec<_> = live.iter().map(|view| view.id).collect();
    let remembered = world.server.remembered(subject, &ids);
    let mut evidence = Evidence::default();
    evidence.add(live, remembered, |id| {
        format!("0-{}-{}", id.slot, id.generation)
    });
    evidence.sort();
    evidence
}

pub fn verdict(world: &World, subject: &Subject) -> Verdict {
    evidence(world, subject).verdict(world.now.unix)
}

pub fn alice() -> Subject {
    Subject::User(USER.into())
}

/// Alice's call to [`PEER`].
pub struct Call {
    pub world: World,
    pub client: FiveTuple,
    pub signer: Signer,
    pub id: AllocationId,
    peer: SocketAddr,
    transaction: u64,
    sequence: [u16; 2],
}

impl Call {
    /// An allocation, and no permission yet.
    pub fn allocated(mut world: World, client: FiveTuple) -> Self {
        let (signer, id, _) = world.allocate(client);
        Self {
            world,
            client,
            signer,
            id,
            peer: addr(PEER),
            transaction: 0,
            sequence: [0; 2],
        }
    }

    /// With a permission for the peer.
    pub fn permitted(world: World, client: FiveTuple) -> Self {
        let mut call = Self::allocated(world, client);
        let request = Request::create_permission(&[call.peer]).sign(&call.signer);
        assert_eq!(call.world.code(client, &request), 0);
        call
    }

    /// Has `data` relayed; whether it passed.
    pub fn relay(&mut self, direction: Direction, data: &[u8]) -> bool {
        let forward = match direction {
            Direction::ToPeer => {
                let send = Request::send(self.peer, data).bytes();
                self.world.input(self.client, &send)
            }
            Direction::ToClient => self.world.peer_input(self.id, self.peer, data),
        };
        !matches!(forward, Forward::Drop(_))
    }

    fn stun(&mut self, kind: u16, direction: Direction, transaction: u64) {
        let mut message = kind.to_be_bytes().to_vec();
        message.extend([0, 0, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0]);
        message.extend(transaction.to_be_bytes());
        self.relay(direction, &message);
    }

    /// A check in `direction` that nobody answers.
    pub fn check(&mut self, direction: Direction) -> u64 {
        self.transaction += 1;
        self.stun(0x0001, direction, self.transaction);
        self.transaction
    }

    /// A check in `direction` whose answer comes back after `rtt`.
    pub fn answered(&mut self, direction: Direction, rtt: Duration) {
        let transaction = self.check(direction);
        self.world.pass(rtt);
        self.stun(0x0101, other(direction), transaction);
    }

    /// ICE is through.
    pub fn connect(&mut self) {
        for direction in BOTH {
            self.answered(direction, Duration::from_millis(20));
        }
    }

    /// A pair that both sides checked for some seconds, as ICE does before it chooses.
    pub fn checked(world: World, client: FiveTuple) -> Self {
        let mut call = Self::permitted(world, client);
        for _ in 0..4 {
            call.connect();
            call.world.pass(Duration::from_millis(500));
        }
        call
    }

    /// A tunnel's transfer to the peer at 4 Mbit/s for `seconds`, with something back now and then.
    pub fn tunnel(&mut self, seconds: u32) {
        for count in 0..seconds * 400 {
            let mut state = u64::from(count + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut packet = vec![0xA5; 1200];
            for eight in packet[..32].chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                eight.copy_from_slice(&state.to_be_bytes());
            }
            packet[..4].copy_from_slice(&[4, 0, 0, 0]);
            self.relay(Direction::ToPeer, &packet);
            if count % 40 == 0 {
                self.relay(Direction::ToClient, &packet[..100]);
            }
            self.world.pass(Duration::from_micros(2500));
        }
    }

    /// The DTLS handshake in `direction`.
    pub fn handshake(&mut self, direction: Direction) {
        let mut flight = vec![22, 254, 253];
        flight.resize(200, 0);
        for _ in 0..3 {
            self.relay(direction, &flight);
        }
    }

    pub fn handshakes(&mut self) {
        for direction in BOTH {
            self.handshake(direction);
        }
    }

    /// One packet of audio in each of `directions` every 20 ms for `seconds`, and a check every five, which is
    /// answered if both are there; where `lost`
    /// says so, the packet is lost before it comes to the relay.
    pub fn talk(
        &mut self,
        directions: &[Direction],
        seconds: u64,
        lost: impl Fn(Direction, u16) -> bool,
    ) {
        for second in 0..seconds {
            for _ in 0..50 {
                for direction in directions {
                    let sequence = &mut self.sequence[*direction as usize];
                    *sequence = sequence.wrapping_add(1);
                    let sequence = *sequence;
                    if !lost(*direction, sequence) {
                        self.audio(*direction, sequence);
                    }
                }
                self.world.pass(Duration::from_millis(20));
            }
            if second % 5 == 4 {
                for direction in BOTH {
                    if directions.len() == 2 {
                        self.answered(direction, Duration::ZERO);
                    } else if directions.contains(&direction) {
                        self.check(direction);
                    }
                }
            }
        }
    }

    fn audio(&mut self, direction: Direction, sequence: u16) {
        let mut packet = vec![0x80, 111];
        packet.extend(sequence.to_be_bytes());
        packet.extend((u32::from(sequence) * 960).to_be_bytes());
        packet.extend((0x1000 + direction as u32).to_be_bytes());
        packet.resize(100, 0x5A);
        self.relay(direction, &packet);
    }

    /// Both sides are there, and answer each other's checks, for `seconds`.
    pub fn consent(&mut self, seconds: u64) {
        for _ in 0..seconds / 5 {
            self.connect();
            self.world.pass(secs(5));
        }
    }

    /// A call that works: ICE, DTLS, half a minute of audio.
    pub fn established(world: World, client: FiveTuple) -> Self {
        let mut call = Self::permitted(world, client);
        call.connect();
        call.handshakes();
        call.talk(&BOTH, 30, |_, _| false);
        call
    }

    pub fn release(&mut self) {
        let request = Request::refresh(0).sign(&self.signer);
        assert_eq!(self.world.code(self.client, &request), 0);
    }
}

const fn other(direction: Direction) -> Direction {
    match direction {
        Direction::ToPeer => Direction::ToClient,
        Direction::ToClient => Direction::ToPeer,
    }
}
