//! What UDP brings with it: many addresses on one socket, batches, ICMP errors.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use turnix::base::{Family, Transport};
use turnix::turn::{Direction, Path};

use super::client::{Client, Ended};
use super::common::wire::Request;
use super::server::{Server, loopback, peer, quiet_address, receive, until};

const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// The client's socket is connected, so what comes from another address than it asked never arrives.
fn answers_from(server: &Server, asked: IpAddr, port: u16) {
    let to = SocketAddr::new(asked, port);
    let mut client = Client::between(server, Transport::Udp, loopback(Family::of(asked)), to);
    client.family = Family::V4;
    let relayed = client.allocate();
    let peer = peer(Ipv4Addr::LOCALHOST);
    let at = peer.local_addr().unwrap();
    client.permit(at);
    peer.send_to(b"indication", relayed).unwrap();
    assert_eq!(client.expect_data().1, b"indication");
    client.bind(0x4000, at);
    peer.send_to(b"channel", relayed).unwrap();
    assert_eq!(client.expect_channel(0x4000), b"channel");
}

#[test]
fn a_wildcard_answers_from_the_address_asked() {
    let server = Server::with(&["0.0.0.0:0"], &["relay.addresses=[\"127.0.0.1\"]"]);
    let port = server.address(Family::V4).port();
    answers_from(&server, loopback(Family::V4), port);
    answers_from(&server, OTHER, port);
}

#[test]
fn a_wildcard_of_both_families_answers_from_the_address_asked() {
    let server = Server::with(&["[::]:0"], &["relay.addresses=[\"127.0.0.1\"]"]);
    let port = server.address(Family::V6).port();
    for asked in [loopback(Family::V4), OTHER, loopback(Family::V6)] {
        answers_from(&server, asked, port);
    }
}

#[test]
fn one_client_address_on_two_server_addresses_is_two_clients() {
    let server = Server::with(&["0.0.0.0:0"], &["relay.addresses=[\"127.0.0.1\"]"]);
    let port = server.address(Family::V4).port();
    let one = SocketAddr::new(loopback(Family::V4), port);
    let mut first = Client::between(&server, Transport::Udp, loopback(Family::V4), one);
    let relayed = first.allocate();
    // The same socket asks the server's other address.
    if let super::client::Link::Udp(socket) = &first.link {
        socket.connect(SocketAddr::new(OTHER, port)).unwrap();
    }
    let other = first.allocate();
    assert_ne!(relayed, other);
    assert_eq!(server.live(), 2);
}

#[test]
fn bursts_arrive_whole_and_in_order_per_flow() {
    let server = Server::new();
    let mut flows: Vec<(Client, UdpSocket, SocketAddr)> = (0..2)
        .map(|_| {
            let mut client = Client::udp(&server);
            let peer = peer(Ipv4Addr::LOCALHOST);
            let relayed = client.allocate();
            client.bind(0x4000, peer.local_addr().unwrap());
            (client, peer, relayed)
        })
        .collect();
    let datagram = |flow: usize, number: u32| {
        let mut bytes = vec![flow as u8; 900];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    for burst in 0..5 {
        let numbers = burst * 100..(burst + 1) * 100;
        for number in numbers.clone() {
            for (flow, (client, ..)) in flows.iter_mut().enumerate() {
                client.send_channel(0x4000, &datagram(flow, number));
            }
        }
        for (flow, (_, peer, relayed)) in flows.iter().enumerate() {
            for number in numbers.clone() {
                assert_eq!(
                    receive(peer),
                    (datagram(flow, number), *relayed),
                    "{number}"
                );
            }
        }
        for number in numbers.clone() {
            for (flow, (_, peer, relayed)) in flows.iter().enumerate() {
                peer.send_to(&datagram(flow, number), *relayed).unwrap();
            }
        }
        for (flow, (client, ..)) in flows.iter_mut().enumerate() {
            for number in numbers.clone() {
                assert_eq!(
                    client.expect_channel(0x4000),
                    datagram(flow, number),
                    "{number}"
                );
            }
        }
    }
    assert_eq!(
        server.relayed(Direction::ToPeer, Path::Kernel).packets,
        1000
    );
}

/// Sizes around everything that merging several datagrams into one message depends on.
const BOUNDARIES: [usize; 40] = [
    1000, 1000, 1000, 400, 1000, 0, 1000, 1, 1, 1, 1, 0, 0, 1, 1400, 1400, 1400, 1232, 1232, 1232,
    1233, 1233, 1231, 8, 16, 8, 8, 8, 16, 4000, 4000, 500, 500, 500, 500, 501, 500, 499, 499, 3,
];

#[test]
fn merged_sends_keep_the_boundaries_of_datagrams() {
    let server = Server::new();
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let near = peer(Ipv4Addr::LOCALHOST);
        let far = peer(Ipv4Addr::LOCALHOST);
        let relayed = client.allocate();
        client.bind(0x4000, near.local_addr().unwrap());
        client.bind(0x4001, far.local_addr().unwrap());
        let payload = |at: usize| vec![at as u8; BOUNDARIES[at]];
        // Streams deliver all of it in one read, the best case for merging; every fifth goes elsewhere.
        let channel = |at: usize| if at % 5 == 4 { 0x4001 } else { 0x4000 };
        let frames: Vec<_> = (0..BOUNDARIES.len())
            .map(|at| client.channel_frame(channel(at), &payload(at)))
            .collect();
        if transport.is_stream() {
            client.send(&frames.concat());
        } else {
            frames.iter().for_each(|frame| client.send(frame));
        }
        for at in 0..BOUNDARIES.len() {
            let peer = if channel(at) == 0x4001 { &far } else { &near };
            assert_eq!(receive(peer), (payload(at), relayed), "{transport:?} {at}");
        }
        // And the other way.
        for at in 0..BOUNDARIES.len() {
            near.send_to(&payload(at), relayed).unwrap();
        }
        for at in 0..BOUNDARIES.len() {
            assert_eq!(
                client.expect_channel(0x4000),
                payload(at),
                "{transport:?} {at}"
            );
        }
    }
}

#[test]
fn a_peer_whose_port_is_closed_does_not_hurt_the_allocation() {
    let server = Server::new();
    let mut client = Client::udp(&server);
    let quiet = quiet_address();
    let closed = peer(quiet).local_addr().unwrap();
    let open = peer(Ipv4Addr::LOCALHOST);
    let at = open.local_addr().unwrap();
    let relayed = client.allocate();
    client.bind(0x4000, closed);
    client.bind(0x4001, at);
    for round in 0..50u8 {
        client.send_channel(0x4000, b"nobody there");
        client.send_channel(0x4001, &[round]);
        client.send_channel(0x4000, b"still nobody");
        assert_eq!(receive(&open), (vec![round], relayed));
        open.send_to(&[!round], relayed).unwrap();
        assert_eq!(client.expect_channel_among_errors(0x4001), [!round]);
    }
    assert_eq!(server.live(), 1);
}

#[test]
fn strangers_reach_no_client() {
    let server = Server::new();
    let mut client = Client::udp(&server);
    let permitted = peer(Ipv4Addr::LOCALHOST);
    let stranger = peer(OTHER);
    let relayed = client.allocate();
    client.permit(permitted.local_addr().unwrap());
    stranger.send_to(b"let me in", relayed).unwrap();
    let dropped = || server.dropped(turnix::turn::DropReason::NoPermission);
    until("the datagram is dropped", || dropped() == 1);
    // A permission is for the address, whatever the port.
    permitted.send_to(b"hello", relayed).unwrap();
    assert_eq!(client.expect_data().1, b"hello");
    let quiet = client.next(Duration::from_millis(1)).map(drop);
    assert_eq!(quiet, Err(Ended::Silent));
}

#[test]
fn an_external_address_is_what_clients_see_and_reach() {
    let set = [
        "relay.external_address='203.0.113.7/127.0.0.1'",
        "peers.allow=[]",
    ];
    let server = Server::with(&["127.0.0.1:0"], &set);
    let external: IpAddr = [203, 0, 113, 7].into();
    for (a, b) in [
        (Transport::Udp, Transport::Udp),
        (Transport::Udp, Transport::Tcp),
        (Transport::Tls, Transport::Tcp),
        (Transport::Tcp, Transport::Tcp),
    ] {
        let mut alice = Client::new(&server, a, Family::V4);
        let mut bob = Client::new(&server, b, Family::V4);
        let (to_alice, to_bob) = (alice.allocate(), bob.allocate());
        assert_eq!((to_alice.ip(), to_bob.ip()), (external, external));
        alice.permit(to_bob);
        bob.bind(0x4000, to_alice);
        alice.send_indication(to_bob, b"by the external address");
        assert_eq!(bob.expect_channel(0x4000), b"by the external address");
        bob.send_channel(0x4000, b"back");
        assert_eq!(alice.expect_data(), (to_bob, b"back".to_vec()));

        let local = SocketAddr::new(loopback(Family::V4), to_bob.port());
        let refused = alice.ask_signed(Request::create_permission(&[local]));
        assert_eq!(refused.code(), 403);
        let refused = alice.ask_signed(Request::channel_bind(0x4001, local));
        assert_eq!(refused.code(), 403);
    }
    assert_eq!(server.relayed(Direction::ToPeer, Path::Kernel).packets, 0);
    assert_eq!(
        server.relayed(Direction::ToClient, Path::Hairpin).packets,
        8
    );
}

#[test]
fn own_ports_are_closed_to_peers_even_if_the_kernel_chose_them() {
    let server = Server::with(&["127.0.0.1:0"], &["http.admin=127.0.0.1:0"]);
    let mut client = Client::udp(&server);
    client.allocate();
    for own in [server.address(Family::V4), server.admin()] {
        let refused = client.ask_signed(Request::channel_bind(0x4000, own));
        assert_eq!(refused.code(), 403, "{own}");
    }
    // Loopback itself is allowed here.
    let other = peer(loopback(Family::V4));
    client.bind(0x4000, other.local_addr().unwrap());
}

/// A client whose socket can send runs as trains.
fn client_with_trains(server: &Server) -> (Client, turnix::net::UdpSocket) {
    let socket = turnix::net::UdpSocket::bind(
        SocketAddr::new(loopback(Family::V4), 0),
        &turnix::net::UdpOptions {
            recv_buffer_bytes: 4 << 20,
            send_buffer_bytes: 4 << 20,
            ..turnix::net::UdpOptions::default()
        },
    )
    .unwrap();
    let mut client = Client::udp(server);
    let same = UdpSocket::from(
        std::os::fd::AsFd::as_fd(&socket)
            .try_clone_to_owned()
            .unwrap(),
    );
    same.connect(server.address(Family::V4)).unwrap();
    same.set_nonblocking(false).unwrap();
    client.link = super::client::Link::Udp(same);
    (client, socket)
}

/// Sends `datagrams`, which the kernel takes as one train where their sizes allow.
fn send_train(from: &turnix::net::UdpSocket, to: SocketAddr, datagrams: &[Vec<u8>]) {
    let mut batch = turnix::net::Batch::new(datagrams.len());
    let items: Vec<_> = (datagrams.iter().enumerate())
        .map(|(slot, bytes)| {
            let start = turnix::net::HEADROOM;
            batch.buffer_mut(slot)[start..start + bytes.len()].copy_from_slice(bytes);
            turnix::net::Outgoing {
                slot: slot as u16,
                start: start as u32,
                len: bytes.len() as u32,
                to,
                from: None,
                front: None,
                fields: turnix::net::IpFields::default(),
            }
        })
        .collect();
    assert_eq!(batch.send(from, &items).sent as usize, datagrams.len());
}

/// Payloads of one size but for the last, told apart by their bytes.
fn payloads(train: u8) -> Vec<Vec<u8>> {
    (0..40_u8)
        .map(|index| vec![train ^ (index * 3); if index == 39 { 33 } else { 101 }])
        .collect()
}

/// Enough for a socket to be tried with trains, and for the trial to be judged.
const TRAINS: u8 = 60;

#[test]
fn trains_from_a_client_reach_peers_and_other_clients_as_they_were() {
    let server = Server::new();
    let (mut client, socket) = client_with_trains(&server);
    let to = server.address(Family::V4);
    let relayed = client.allocate();
    let peer = peer(Ipv4Addr::LOCALHOST);
    let mut other = Client::udp(&server);
    let mut stream = Client::tcp(&server);
    let [other_at, stream_at] = [&mut other, &mut stream].map(|client| {
        let at = client.allocate();
        client.bind(0x4009, relayed);
        at
    });
    client.bind(0x4001, peer.local_addr().unwrap());
    client.bind(0x4002, other_at);
    client.bind(0x4003, stream_at);
    for train in 0..TRAINS {
        for channel in 0x4001..=0x4003 {
            let payloads = payloads(train);
            let frames: Vec<_> = (payloads.iter())
                .map(|payload| super::common::wire::channel_data(channel, payload))
                .collect();
            send_train(&socket, to, &frames);
            for payload in &payloads {
                match channel {
                    0x4001 => assert_eq!(&receive(&peer).0, payload),
                    0x4002 => assert_eq!(&other.expect_channel(0x4009), payload),
                    _ => assert_eq!(&stream.expect_channel(0x4009), payload),
                }
            }
        }
    }
}

#[test]
fn trains_from_a_peer_reach_clients_as_they_were() {
    let server = Server::new();
    let socket = turnix::net::UdpSocket::bind(
        SocketAddr::new(loopback(Family::V4), 0),
        &turnix::net::UdpOptions::default(),
    )
    .unwrap();
    for transport in [Transport::Udp, Transport::Tcp] {
        for channel in [false, true] {
            let mut client = Client::new(&server, transport, Family::V4);
            let relayed = client.allocate();
            if channel {
                client.bind(0x4001, socket.local_addr());
            } else {
                client.permit(socket.local_addr());
            }
            for train in 0..TRAINS {
                let payloads = payloads(train);
                send_train(&socket, relayed, &payloads);
                for payload in &payloads {
                    if channel {
                        assert_eq!(&client.expect_channel(0x4001), payload);
                    } else {
                        let (from, data) = client.expect_data();
                        assert_eq!((from, &data), (socket.local_addr(), payload));
                    }
                }
            }
        }
    }
}

/// TLS records in `bytes`.
fn records(bytes: &[u8]) -> usize {
    let (mut at, mut count) = (0, 0);
    while let Some(header) = bytes.get(at..at + 5) {
        at += 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        count += 1;
    }
    assert_eq!(at, bytes.len(), "whole records");
    count
}

#[test]
fn every_frame_for_a_tls_client_is_a_record_of_its_own() {
    let server = Server::new();
    let socket = turnix::net::UdpSocket::bind(
        SocketAddr::new(loopback(Family::V4), 0),
        &turnix::net::UdpOptions::default(),
    )
    .unwrap();
    let mut client = Client::new(&server, Transport::Tls, Family::V4);
    let relayed = client.allocate();
    client.bind(0x4001, socket.local_addr());
    let payloads = payloads(7);
    let relayed_before = server.relayed(Direction::ToClient, Path::Kernel).packets;
    send_train(&socket, relayed, &payloads);
    until("all of them are relayed", || {
        let relayed = server.relayed(Direction::ToClient, Path::Kernel).packets;
        relayed - relayed_before == payloads.len() as u64
    });
    let super::client::Link::Tls(stream) = &client.link else {
        panic!("a TLS client");
    };
    let mut bytes = [0; 65_536];
    let length = stream.get_ref().peek(&mut bytes).unwrap();
    assert_eq!(records(&bytes[..length]), payloads.len());
    for payload in &payloads {
        assert_eq!(&client.expect_channel(0x4001), payload);
    }
}
