//! Two clients of the server whose relayed addresses talk to each other, without the kernel in between.

use std::net::SocketAddr;

use turnix::base::{Family, Transport};
use turnix::turn::{Direction, DropReason, Path};

use super::client::Client;
use super::common::wire::{Request, padded_channel_data};
use super::server::{Server, loopback, peer, receive, until};

const SIZES: [usize; 5] = [0, 1, 3, 1200, 8000];

/// Pairs until both ways were taken; the chance that this does not do is one in a billion.
const MOST_PAIRS: usize = 32;

/// Bytes and packets that left for relayed addresses, and that reached clients.
#[derive(Default, PartialEq, Debug)]
struct Counted {
    to_peer: (u64, u64),
    to_client: (u64, u64),
}

impl Counted {
    fn sent(&mut self, bytes: usize) {
        self.to_peer.0 += bytes as u64;
        self.to_peer.1 += 1;
    }

    fn arrived(&mut self, bytes: usize) {
        self.sent(bytes);
        self.to_client.0 += bytes as u64;
        self.to_client.1 += 1;
    }

    fn of(server: &Server, path: Path) -> Self {
        let of = |direction| {
            let traffic = server.relayed(direction, path);
            (traffic.bytes, traffic.packets)
        };
        Self {
            to_peer: of(Direction::ToPeer),
            to_client: of(Direction::ToClient),
        }
    }
}

/// One pair's life; whether both live in one shard.
fn talk(
    server: &Server,
    [a, b]: [Transport; 2],
    family: Family,
    shift: bool,
    counted: &mut Counted,
) -> bool {
    let mut alice = Client::new(server, a, family);
    let to_alice = alice.allocate();
    // Streams take the shards in turn: one more client in between changes whose turn it is.
    let _between = shift.then(|| {
        let mut client = Client::tcp(server);
        client.ask(&Request::binding());
        client
    });
    let mut bob = Client::new(server, b, family);
    let to_bob = bob.allocate();
    let [alices, bobs] = [to_alice, to_bob].map(|relayed| server.allocation(relayed));

    // Bob has not permitted anybody yet.
    alice.permit(to_bob);
    let before = server.dropped(DropReason::NoPermission);
    alice.send_indication(to_bob, b"too early");
    until("the datagram is dropped", || {
        server.dropped(DropReason::NoPermission) == before + 1
    });
    counted.sent(b"too early".len());
    let mut sent_by_alice = b"too early".len();
    let mut sent_by_bob = 0;

    bob.permit(to_alice);
    for size in SIZES {
        let data = vec![size as u8 ^ 0x55; size];
        alice.send_indication(to_bob, &data);
        assert_eq!(bob.expect_data(), (to_alice, data.clone()));
        bob.send_indication(to_alice, &data);
        assert_eq!(alice.expect_data(), (to_bob, data));
        counted.arrived(size);
        counted.arrived(size);
    }
    alice.bind(0x4000, to_bob);
    for size in SIZES {
        let data = vec![size as u8 ^ 0x33; size];
        alice.send_channel(0x4000, &data);
        assert_eq!(bob.expect_data(), (to_alice, data.clone()));
        bob.send_indication(to_alice, &data);
        assert_eq!(alice.expect_channel(0x4000), data);
        counted.arrived(size);
        counted.arrived(size);
    }
    bob.bind(0x4FFF, to_alice);
    for size in SIZES {
        let data = vec![size as u8 ^ 0x77; size];
        alice.send_channel(0x4000, &data);
        assert_eq!(bob.expect_channel(0x4FFF), data);
        bob.send_channel(0x4FFF, &data);
        assert_eq!(alice.expect_channel(0x4000), data);
        counted.arrived(size);
        counted.arrived(size);
    }
    let bytes: usize = 3 * SIZES.iter().sum::<usize>();
    sent_by_alice += bytes;
    sent_by_bob += bytes;
    for (relayed, sent, received) in [
        (to_alice, sent_by_alice, sent_by_bob),
        (to_bob, sent_by_bob, bytes),
    ] {
        let traffic = server.allocation(relayed).view.traffic;
        assert_eq!(
            traffic.map(|traffic| traffic.bytes),
            [sent as u64, received as u64]
        );
    }
    alice.release();
    bob.release();
    alices.shard == bobs.shard
}

fn pairs(a: Transport, b: Transport) {
    // No peer but relayed addresses of the server itself: nothing can go round by the kernel.
    let server = Server::with(super::server::BOTH, &["peers.allow=[]"]);
    let mut counted = Counted::default();
    for family in Family::ALL {
        let mut ways = [0; 2];
        let mut pairs = 0;
        while ways.contains(&0) || pairs < 6 {
            assert!(pairs < MOST_PAIRS, "{ways:?}");
            let same = talk(&server, [a, b], family, pairs % 2 == 1, &mut counted);
            ways[usize::from(same)] += 1;
            pairs += 1;
        }
    }
    assert_eq!(Counted::of(&server, Path::Hairpin), counted);
    assert_eq!(Counted::of(&server, Path::Kernel), Counted::default());
    until("all allocations are gone", || server.live() == 0);
}

#[test]
fn udp_to_udp() {
    pairs(Transport::Udp, Transport::Udp);
}

#[test]
fn udp_to_tcp() {
    pairs(Transport::Udp, Transport::Tcp);
}

#[test]
fn udp_to_tls() {
    pairs(Transport::Udp, Transport::Tls);
}

#[test]
fn tcp_to_tcp() {
    pairs(Transport::Tcp, Transport::Tcp);
}

#[test]
fn tcp_to_tls() {
    pairs(Transport::Tcp, Transport::Tls);
}

#[test]
fn tls_to_tls() {
    pairs(Transport::Tls, Transport::Tls);
}

/// A client in the shard that owns `relayed`, if `same`, else in the other; and its relayed address.
fn client_by_shard(
    server: &Server,
    transport: Transport,
    relayed: SocketAddr,
    same: bool,
) -> (Client, SocketAddr) {
    let shard = server.allocation(relayed).shard;
    (0..MOST_PAIRS)
        .find_map(|_| {
            let mut client = Client::new(server, transport, Family::V4);
            let found = client.allocate();
            ((server.allocation(found).shard == shard) == same).then_some((client, found))
        })
        .expect("a client in the wanted shard")
}

/// Frames that came in one read lie side by side; the headers of one must not spoil its neighbour.
#[test]
fn neighbours_in_one_read_do_not_touch_each_other() {
    let server = Server::new();
    for from in [Transport::Tcp, Transport::Tls] {
        for to in Transport::ALL {
            for same in [true, false] {
                let mut alice = Client::new(&server, from, Family::V4);
                let to_alice = alice.allocate();
                let (mut bob, to_bob) = client_by_shard(&server, to, to_alice, same);
                let (mut carol, to_carol) =
                    client_by_shard(&server, Transport::Udp, to_alice, true);
                let plain = peer(loopback(Family::V4));
                let at = plain.local_addr().unwrap();
                alice.bind(0x4000, at);
                alice.bind(0x4001, to_bob);
                alice.bind(0x4002, to_carol);
                // Data indications: the longest header, nine times that of ChannelData.
                bob.permit(to_alice);
                carol.permit(to_alice);

                let mut bytes = Vec::new();
                let rounds = 0..20u8;
                for round in rounds.clone() {
                    bytes.extend(padded_channel_data(0x4000, &[round; 101]));
                    bytes.extend(padded_channel_data(0x4001, &[round | 0x40; 7]));
                    bytes.extend(padded_channel_data(0x4002, &[round | 0x80; 13]));
                    bytes.extend(padded_channel_data(0x4001, b""));
                }
                alice.send(&bytes);
                for round in rounds {
                    assert_eq!(receive(&plain), (vec![round; 101], to_alice));
                    assert_eq!(bob.expect_data(), (to_alice, vec![round | 0x40; 7]));
                    assert_eq!(carol.expect_data(), (to_alice, vec![round | 0x80; 13]));
                    assert_eq!(bob.expect_data(), (to_alice, Vec::new()));
                }
            }
        }
    }
}

#[test]
fn a_client_may_talk_to_its_own_relayed_address() {
    let server = Server::with(super::server::BOTH, &["peers.allow=[]"]);
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let relayed = client.allocate();
        client.permit(relayed);
        client.send_indication(relayed, b"echo");
        assert_eq!(client.expect_data(), (relayed, b"echo".to_vec()));
        client.bind(0x4000, relayed);
        client.send_channel(0x4000, b"echo");
        assert_eq!(client.expect_channel(0x4000), b"echo");
    }
}

#[test]
fn a_relayed_address_that_is_gone_gets_nothing() {
    let server = Server::with(super::server::BOTH, &["peers.allow=[]"]);
    for same in [true, false] {
        let mut alice = Client::udp(&server);
        let to_alice = alice.allocate();
        let (mut bob, to_bob) = client_by_shard(&server, Transport::Tcp, to_alice, same);
        alice.bind(0x4000, to_bob);
        bob.permit(to_alice);
        bob.release();
        let before = server.dropped(DropReason::NoRelay);
        alice.send_channel(0x4000, b"anybody?");
        until("the datagram is dropped", || {
            server.dropped(DropReason::NoRelay) == before + 1
        });
    }
}

/// A reader that does not read, behind another shard's mailbox: what is lost on the way is counted where it was lost.
#[test]
fn a_flood_across_shards_is_accounted_for_to_the_last_datagram() {
    const BURSTS: u32 = 120;
    const BURST: u32 = 100;
    let server = Server::with(super::server::BOTH, &["peers.allow=[]"]);
    let mut bob = Client::with_little_room(&server, Transport::Tcp);
    let to_bob = bob.allocate();
    let (mut alice, to_alice) = client_by_shard(&server, Transport::Udp, to_bob, false);
    alice.bind(0x4000, to_bob);
    bob.bind(0x4000, to_alice);
    for burst in 0..BURSTS {
        for number in burst * BURST..(burst + 1) * BURST {
            let mut data = [0; 1000];
            data[..4].copy_from_slice(&number.to_be_bytes());
            alice.send_channel(0x4000, &data);
        }
        // The listener has taken in one burst before the next one comes.
        until("the burst is relayed", || {
            let [sent, _] = server.allocation(to_alice).view.traffic;
            sent.packets == u64::from((burst + 1) * BURST)
        });
    }
    let sent = u64::from(BURSTS * BURST);
    let settled = || {
        let stats = server.snapshot().stats;
        let [there, arrived] = [Direction::ToPeer, Direction::ToClient]
            .map(|way| stats.relayed[way as usize][Path::Hairpin as usize].packets);
        let lost = stats.dropped[DropReason::Mailbox as usize];
        (there + lost == sent && arrived == there).then_some(arrived)
    };
    until("all is accounted for", || settled().is_some());
    let arrived = settled().unwrap();
    let dropped = server.dropped(DropReason::StreamQueue);
    assert!(dropped > 0, "the queue is bounded");

    let mut previous = None;
    for _ in 0..arrived - dropped {
        let data = bob.expect_channel(0x4000);
        let number = u32::from_be_bytes(data[..4].try_into().unwrap());
        assert!(previous < Some(number), "{number} after {previous:?}");
        previous = Some(number);
    }
    // Then nothing more.
    let binding = Request::binding();
    bob.send(&binding.bytes());
    match bob.expect() {
        super::client::Frame::Message(reply) => assert!(reply.is_success()),
        other => panic!("{other:?}"),
    }
}
