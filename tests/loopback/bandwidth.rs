//! Limits of bandwidth on the whole server: every way, several shards, changed while it runs.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use turnix::base::{Family, Transport};
use turnix::turn::police::Limit;
use turnix::turn::{Bandwidth, Direction, DropReason};

use super::client::Client;
use super::server::{Server, now, peer, until};

const CHANNEL: u16 = 0x4001;

/// What is in the socket's queue: datagrams and bytes.
fn drain(socket: &UdpSocket) -> (u64, u64) {
    let mut buffer = [0; 2048];
    let mut got = (0, 0);
    while let Ok(length) = socket.recv(&mut buffer) {
        got = (got.0 + 1, got.1 + length as u64);
    }
    got
}

/// Two allocations of one user, in two shards, send twice the limit of both for some seconds.
#[test]
fn the_bandwidth_of_a_user_holds_across_shards() {
    const LIMIT: f64 = 4e6 / 8.0;
    let attempt = || {
        let server = Server::with(&["127.0.0.1:0"], &["limits.bandwidth_per_user=4Mbit"]);
        // Streams take the shards in turn.
        let mut clients = [Client::tcp(&server), Client::tcp(&server)];
        let peers = [(); 2].map(|()| peer(Ipv4Addr::LOCALHOST));
        let mut shards = Vec::new();
        for (client, peer) in clients.iter_mut().zip(&peers) {
            let relayed = client.allocate();
            shards.push(server.allocation(relayed).shard);
            client.bind(CHANNEL, peer.local_addr().unwrap());
            peer.set_nonblocking(true).unwrap();
        }
        assert_ne!(shards[0], shards[1]);
        let data = [7; 1000];
        let start = now();
        let mut received = (0, 0);
        let mut sent = 0;
        let take = |received: &mut (u64, u64)| {
            for peer in &peers {
                let (packets, bytes) = drain(peer);
                *received = (received.0 + packets, received.1 + bytes);
            }
        };
        while now() < start + Duration::from_secs(4) {
            let due = (now() - start).as_secs_f64() * LIMIT * 2.0;
            while (sent as f64) < due {
                for client in &mut clients {
                    client.send_channel(CHANNEL, &data);
                    sent += data.len() as u64;
                }
            }
            take(&mut received);
            std::thread::sleep(Duration::from_millis(1));
        }
        // What waits in a busy server still comes, and counts with the time that it takes.
        until("everything is relayed or dropped", || {
            take(&mut received);
            received.1 + server.dropped(DropReason::BandwidthUser) * 1000 >= sent
        });
        let elapsed = (now() - start).as_secs_f64();
        let policed = server.snapshot().stats.policed[Limit::User as usize];
        assert_eq!(policed[Direction::ToPeer as usize].bytes + received.1, sent);
        assert_eq!(policed[Direction::ToClient as usize].packets, 0);
        let most = LIMIT * elapsed * 1.02 + LIMIT * 0.15 * 1.25 + 2000.0;
        assert!(received.1 as f64 <= most, "{received:?} in {elapsed} s");
        received.1 as f64 / (LIMIT * elapsed)
    };
    // A machine that stops for a while loses what the limit would have carried.
    let mut ratios = Vec::new();
    while ratios.len() < 4 && ratios.iter().all(|ratio| *ratio < 0.9) {
        ratios.push(attempt());
    }
    assert!(
        ratios.iter().any(|ratio| *ratio >= 0.9),
        "{ratios:?} of the limit"
    );
}

/// A burst of ten times what the limit lets through at once, by every way there is.
#[test]
fn the_bandwidth_of_an_allocation_holds_on_every_way() {
    const BURST: u64 = 190;
    let server = Server::with(&["127.0.0.1:0"], &["limits.bandwidth_per_allocation=1Mbit"]);
    let data = [7; 1000];
    for transport in Transport::ALL {
        for indications in [false, true] {
            let peer = peer(Ipv4Addr::LOCALHOST);
            let at = peer.local_addr().unwrap();
            let mut client = Client::new(&server, transport, Family::V4);
            let relayed = client.allocate();
            if indications {
                client.permit(at);
            } else {
                client.bind(CHANNEL, at);
            }
            let reason = DropReason::BandwidthAllocation;
            let dropped = server.dropped(reason);
            let start = now();
            for _ in 0..BURST {
                if indications {
                    client.send_indication(at, &data);
                } else {
                    client.send_channel(CHANNEL, &data);
                }
                peer.send_to(&data, relayed).unwrap();
            }
            let passed = || {
                let view = server.allocation(relayed).view;
                view.traffic.map(|traffic| traffic.packets)
            };
            until("everything is relayed or dropped", || {
                let packets: u64 = passed().iter().sum();
                packets + server.dropped(reason) - dropped == 2 * BURST
            });
            let elapsed = (now() - start).as_secs_f64();
            let most = 1 + ((0.15 + elapsed) * 125.0) as u64;
            for packets in passed() {
                let expected = 6..=most;
                assert!(
                    expected.contains(&packets),
                    "{transport:?}: {packets} of {most}"
                );
            }
        }
    }
}

/// Relay to relay: the sender's limit and the receiver's.
#[test]
fn the_bandwidth_holds_between_two_clients_of_the_server() {
    let server = Server::with(&["127.0.0.1:0"], &["limits.bandwidth=1Mbit"]);
    let (mut one, mut other) = (Client::tcp(&server), Client::tcp(&server));
    let (one_at, other_at) = (one.allocate(), other.allocate());
    one.bind(CHANNEL, other_at);
    other.bind(CHANNEL, one_at);
    for _ in 0..200 {
        one.send_channel(CHANNEL, &[7; 1000]);
    }
    until("everything is relayed or dropped", || {
        let stats = server.snapshot().stats;
        let [to_peer, to_client] = stats.policed[Limit::Total as usize];
        let arrived: u64 = (stats.relayed[Direction::ToClient as usize].iter())
            .map(|traffic| traffic.packets)
            .sum();
        to_peer.packets > 0 && to_peer.packets + to_client.packets + arrived == 200
    });
}

/// What one allocation spent counts against the next one of the same user.
#[test]
fn a_new_allocation_brings_its_user_no_new_bandwidth() {
    let server = Server::with(&["127.0.0.1:0"], &["limits.bandwidth_per_user=1Mbit"]);
    let peer = peer(Ipv4Addr::LOCALHOST);
    let to_peer = || {
        let relayed = server.snapshot().stats.relayed[Direction::ToPeer as usize];
        relayed.iter().map(|traffic| traffic.packets).sum::<u64>()
    };
    let start = now();
    for round in 1..=20 {
        let mut client = Client::tcp(&server);
        client.allocate();
        client.bind(CHANNEL, peer.local_addr().unwrap());
        for _ in 0..40 {
            client.send_channel(CHANNEL, &[7; 1000]);
        }
        client.release();
        let dropped = server.dropped(DropReason::BandwidthUser);
        assert_eq!(to_peer() + dropped, round * 40);
    }
    let elapsed = (now() - start).as_secs_f64();
    let most = 125.0 * (elapsed + 0.15 * 1.25) + 2.0;
    assert!((to_peer() as f64) <= most, "{} of {most}", to_peer());
}

#[test]
fn limits_change_while_the_server_runs() {
    let server = Server::with(&["127.0.0.1:0"], &[]);
    let peer = peer(Ipv4Addr::LOCALHOST);
    let mut client = Client::tcp(&server);
    client.allocate();
    client.bind(CHANNEL, peer.local_addr().unwrap());
    let mut burst = || {
        for _ in 0..200 {
            client.send_channel(CHANNEL, &[7; 1000]);
        }
        // Its answer comes after all of them.
        client.bind(CHANNEL, peer.local_addr().unwrap());
        let stats = server.snapshot().stats;
        stats.policed.map(|[to_peer, _]| to_peer.packets > 0)
    };
    assert_eq!(burst(), [false; 3]);
    let mut expected = [false; 3];
    for limit in Limit::ALL {
        let bits = |of| if of == limit { 100_000 } else { 0 };
        let bandwidth = Bandwidth {
            per_allocation: bits(Limit::Allocation),
            per_user: bits(Limit::User),
            total: bits(Limit::Total),
        };
        server.set_limits(bandwidth, 50);
        expected[limit as usize] = true;
        assert_eq!(burst(), expected);
    }
}
