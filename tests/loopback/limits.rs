//! Quotas and relay ports: used up, refused, free again.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use turnix::access::rest;
use turnix::base::{Clock, Family, Secret, Transport};
use turnix::turn::police::Limit;
use turnix::turn::{Bandwidth, Direction, DropReason};

use super::client::Client;
use super::common::wire::Request;
use super::common::world::{PASSWORD, SECRET, USER};
use super::server::{BOTH, Server, now, peer, quiet_address, until};

/// A client for each transport in turn.
fn client(server: &Server, number: usize) -> Client {
    let transport = Transport::ALL[number % Transport::ALL.len()];
    Client::new(server, transport, Family::V4)
}

/// The `most`th client is served, the next is refused with `code` until one of the others has gone.
fn used_up_and_free_again(server: &Server, most: usize, code: u16) {
    let mut clients: Vec<Client> = (0..most).map(|number| client(server, number)).collect();
    for client in &mut clients {
        client.allocate();
    }
    let mut refused: Vec<Client> = (0..3).map(|number| client(server, number)).collect();
    for client in &mut refused {
        assert_eq!(client.try_allocate().code(), code, "{:?}", client.transport);
    }
    assert_eq!(server.live(), most as u64);
    for (leaving, coming) in clients.iter_mut().zip(&mut refused) {
        leaving.release();
        coming.allocate();
    }
    let mut last = client(server, 0);
    assert_eq!(last.try_allocate().code(), code);
    // A connection that closes gives back as much as a Refresh with zero.
    let datagrams = (clients.iter().chain(&refused)).filter(|client| !client.transport.is_stream());
    let staying = datagrams.count() as u64;
    drop(refused);
    drop(clients);
    until("streams are gone", || server.live() < staying);
}

#[test]
fn allocations_on_the_whole_server() {
    let server = Server::with(BOTH, &["limits.allocations=3"]);
    used_up_and_free_again(&server, 3, 486);
}

#[test]
fn allocations_per_user_count_every_shape_of_the_name() {
    let server = Server::with(BOTH, &["limits.allocations_per_user=3"]);
    let later = Clock.now().unix_secs() + 3600;
    let secret = Secret::new(SECRET.to_owned());
    let turned = format!("{USER}:{later}");
    let password = rest::password(&secret, turned.as_bytes());
    let turned_password: String = password.expose().iter().copied().map(char::from).collect();
    let named = rest::mint(&secret, Some(USER), later);
    let shapes = [
        (USER.to_owned(), PASSWORD.to_owned()),
        (turned, turned_password),
        named,
    ];
    let mut clients = Vec::new();
    for (number, (user, password)) in shapes.iter().enumerate() {
        let mut client = client(&server, number);
        client.login(user, password);
        client.allocate();
        assert_eq!(server.allocations()[0].view.user.as_ref(), USER);
        clients.push(client);
    }
    for (user, password) in &shapes {
        let mut client = Client::udp(&server);
        client.login(user, password);
        assert_eq!(client.try_allocate().code(), 486, "{user}");
    }
    let mut bob = Client::udp(&server);
    bob.login("bob", "builder");
    bob.allocate();
    for (client, (user, password)) in clients.iter_mut().zip(shapes.iter().rev()) {
        client.release();
        let mut next = Client::udp(&server);
        next.login(user, password);
        next.allocate();
    }
}

#[test]
fn allocations_per_address() {
    let server = Server::with(BOTH, &["limits.allocations_per_address=2"]);
    used_up_and_free_again(&server, 2, 486);

    let server = Server::with(BOTH, &["limits.allocations_per_address=1"]);
    let address = server.address(Family::V4);
    let other = IpAddr::from(Ipv4Addr::new(127, 0, 0, 2));
    for transport in Transport::ALL {
        let mut first = Client::new(&server, transport, Family::V4);
        first.allocate();
        assert_eq!(Client::udp(&server).try_allocate().code(), 486);
        let mut elsewhere = Client::between(&server, transport, other, address);
        elsewhere.allocate();
        elsewhere.release();
        first.release();
    }
}

#[test]
fn the_last_relay_port_is_as_good_as_the_first() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\"]");
    let server = Server::with(&["127.0.0.1:0"], &[&relay, "relay.ports='21000-21003'"]);
    for _ in 0..2 {
        let mut clients: Vec<Client> = (0..4).map(|number| client(&server, number)).collect();
        let mut ports: Vec<_> = (clients.iter_mut())
            .map(|client| {
                let relayed = client.allocate();
                assert_eq!(relayed.ip(), IpAddr::from(ip));
                relayed.port()
            })
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, [21000, 21001, 21002, 21003]);
        for number in 0..3 {
            assert_eq!(client(&server, number).try_allocate().code(), 508);
        }
        clients.iter_mut().for_each(Client::release);
    }
    used_up_and_free_again(&server, 4, 508);
}

#[test]
fn a_port_that_another_program_holds_is_passed_over() {
    let ip = quiet_address();
    let _held = [21001, 21002].map(|port| UdpSocket::bind((ip, port)).unwrap());
    let relay = format!("relay.addresses=[\"{ip}\"]");
    let server = Server::with(&["127.0.0.1:0"], &[&relay, "relay.ports='21000-21003'"]);
    for _ in 0..8 {
        let mut clients: Vec<Client> = (0..2).map(|number| client(&server, number)).collect();
        let mut ports: Vec<_> = (clients.iter_mut())
            .map(|client| client.allocate().port())
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, [21000, 21003]);
        assert_eq!(Client::udp(&server).try_allocate().code(), 508);
        clients.iter_mut().for_each(Client::release);
    }
    // Once the other program is gone its ports serve, too.
    drop(_held);
    used_up_and_free_again(&server, 4, 508);
}

#[test]
fn an_even_port_is_even_and_none_is_508() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\"]");
    let server = Server::with(&["127.0.0.1:0"], &[&relay, "relay.ports='21000-21003'"]);
    let even = || Request::allocate().attr(0x0018, &[0]);
    let mut clients = Vec::new();
    for expected in [0, 0, 508] {
        let mut client = Client::udp(&server);
        client.login(USER, PASSWORD);
        let reply = client.ask_signed(even());
        assert_eq!(reply.code(), expected);
        if expected == 0 {
            assert_eq!(reply.relayed().port() % 2, 0);
        }
        clients.push(client);
    }
    Client::udp(&server).allocate();
}

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
        let mut client = client(&server, 1);
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
    let mut client = client(&server, 1);
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
