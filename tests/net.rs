//! The real kernel on loopback: sockets, batches, the poller.
#![expect(unsafe_code, reason = "tokio's AsyncFd asks for it around a `Poller`")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use turnix::base::Family;
use turnix::net::{
    Batch, HEADROOM, IpFields, MAX_DATAGRAM, Outgoing, Poller, SendFault, SendReport, TAILROOM,
    UdpOptions, UdpSocket, granted_buffers, host, tcp_listener,
};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V4_OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn plain() -> UdpOptions {
    UdpOptions {
        recv_buffer_bytes: 1 << 20,
        send_buffer_bytes: 1 << 20,
        ..UdpOptions::default()
    }
}

fn wildcard() -> UdpOptions {
    UdpOptions {
        packet_info: true,
        ..plain()
    }
}

fn open(ip: IpAddr, options: &UdpOptions) -> UdpSocket {
    UdpSocket::bind(SocketAddr::new(ip, 0), options).expect("a loopback socket")
}

fn at(ip: IpAddr, socket: &UdpSocket) -> SocketAddr {
    SocketAddr::new(ip, socket.local_addr().port())
}

/// Receives until `count` datagrams fill the slots from 0 on, for at most two seconds.
fn receive(batch: &mut Batch, socket: &UdpSocket, count: usize) -> usize {
    let mut filled = 0;
    for _ in 0..2000 {
        filled += batch.receive(socket, filled).expect("a living socket");
        if filled >= count {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    filled
}

fn receive_one(batch: &mut Batch, socket: &UdpSocket) -> Vec<u8> {
    assert_eq!(receive(batch, socket, 1), 1);
    batch.payload(0).to_vec()
}

/// Puts `bytes` where a received datagram would be and describes it.
fn place(batch: &mut Batch, slot: usize, bytes: &[u8], to: SocketAddr) -> Outgoing {
    batch.buffer_mut(slot)[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
    Outgoing {
        slot: slot as u16,
        start: HEADROOM as u32,
        len: bytes.len() as u32,
        to,
        from: None,
        front: None,
        fields: IpFields::default(),
    }
}

fn round_trip(ip: IpAddr) {
    let server = open(ip, &plain());
    let client = open(ip, &plain());
    let mut batch = Batch::new(4);
    assert_eq!(batch.receive(&server, 0), Ok(0), "nothing there yet");

    client
        .send_to(b"request", server.local_addr(), None)
        .unwrap();
    assert_eq!(receive_one(&mut batch, &server), b"request");
    let received = batch.received(0);
    assert_eq!(received.from, client.local_addr());
    assert_eq!(received.local, None);
    assert_eq!(received.len, 7);
    assert!(!received.truncated);

    let item = place(&mut batch, 0, b"answer", received.from);
    assert_eq!(
        batch.send(&server, &[item]),
        SendReport {
            sent: 1,
            ..SendReport::default()
        }
    );
    assert_eq!(receive_one(&mut batch, &client), b"answer");
    assert_eq!(batch.received(0).from, server.local_addr());
}

#[test]
fn round_trip_v4() {
    round_trip(V4);
}

#[test]
fn round_trip_v6() {
    round_trip(V6);
}

#[test]
fn an_empty_datagram_is_a_datagram() {
    let server = open(V4, &plain());
    let client = open(V4, &plain());
    let mut batch = Batch::new(4);
    let to = server.local_addr();
    let items = [
        place(&mut batch, 0, b"x", to),
        place(&mut batch, 1, b"", to),
        place(&mut batch, 2, b"", to),
    ];
    assert_eq!(batch.send(&client, &items).sent, 3);
    assert_eq!(receive(&mut batch, &server, 3), 3);
    assert_eq!(
        [0, 1, 2].map(|slot| batch.received(slot).len),
        [1, 0, 0],
        "none merged away"
    );
}

#[test]
fn a_dual_stack_socket_speaks_ipv4_in_its_own_form() {
    let server = open(ANY_V6, &wildcard());
    let mut batch = Batch::new(4);
    for (client_ip, server_ip) in [(V4, V4), (V4, V4_OTHER), (V6, V6)] {
        let client = open(client_ip, &plain());
        client
            .send_to(b"hello", at(server_ip, &server), None)
            .unwrap();
        assert_eq!(receive_one(&mut batch, &server), b"hello");
        let received = batch.received(0);
        assert_eq!(received.from, client.local_addr(), "canonical");
        assert_eq!(received.local, Some(server_ip), "canonical");

        let mut item = place(&mut batch, 0, b"batched", received.from);
        item.from = received.local;
        assert_eq!(batch.send(&server, &[item]).sent, 1);
        assert_eq!(receive_one(&mut batch, &client), b"batched");
        assert_eq!(batch.received(0).from, at(server_ip, &server));

        server
            .send_to(b"single", received.from, received.local)
            .unwrap();
        assert_eq!(receive_one(&mut batch, &client), b"single");
        assert_eq!(batch.received(0).from, at(server_ip, &server));
    }
}

#[test]
fn an_ipv4_wildcard_answers_from_the_address_that_was_asked() {
    let server = open(ANY_V4, &wildcard());
    let client = open(V4, &plain());
    let mut batch = Batch::new(4);
    for server_ip in [V4_OTHER, V4] {
        client
            .send_to(b"hello", at(server_ip, &server), None)
            .unwrap();
        assert_eq!(receive_one(&mut batch, &server), b"hello");
        let received = batch.received(0);
        assert_eq!(received.local, Some(server_ip));
        let mut item = place(&mut batch, 0, b"answer", received.from);
        item.from = received.local;
        assert_eq!(batch.send(&server, &[item]).sent, 1);
        assert_eq!(receive_one(&mut batch, &client), b"answer");
        assert_eq!(batch.received(0).from, at(server_ip, &server));
    }
}

#[test]
fn v6_only_leaves_ipv4_to_another_socket() {
    let v6 = open(
        ANY_V6,
        &UdpOptions {
            only_v6: true,
            ..plain()
        },
    );
    let v4 = UdpSocket::bind(at(V4_OTHER, &v6), &plain()).expect("the port is free for IPv4");
    let client = open(V4, &plain());
    let mut batch = Batch::new(4);
    client.send_to(b"four", v4.local_addr(), None).unwrap();
    assert_eq!(receive_one(&mut batch, &v4), b"four");
    assert_eq!(batch.receive(&v6, 0), Ok(0));
}

#[test]
fn a_full_batch_goes_through_without_a_copy() {
    let clients: Vec<_> = (0..4).map(|_| open(V4, &plain())).collect();
    let relay = open(V4, &plain());
    let peer = open(V4, &plain());
    let mut batch = Batch::new(64);
    for index in 0..64u8 {
        let client = &clients[usize::from(index) % clients.len()];
        let bytes = vec![index; 100 + usize::from(index)];
        client.send_to(&bytes, relay.local_addr(), None).unwrap();
    }
    assert_eq!(receive(&mut batch, &relay, 64), 64);
    assert_eq!(batch.receive(&relay, 64), Ok(0), "no slot left");

    // Four bytes of header grow in front of each payload, in place.
    let mut items = Vec::new();
    for slot in 0..64 {
        let len = batch.received(slot).len as u16;
        let before = batch.payload(slot).as_ptr();
        let buffer = batch.buffer_mut(slot);
        buffer[HEADROOM - 4..HEADROOM - 2].copy_from_slice(&[0x40, 0x01]);
        buffer[HEADROOM - 2..HEADROOM].copy_from_slice(&len.to_be_bytes());
        assert_eq!(batch.payload(slot).as_ptr(), before);
        items.push(Outgoing {
            slot: slot as u16,
            start: HEADROOM as u32 - 4,
            len: u32::from(len) + 4,
            to: peer.local_addr(),
            from: None,
            front: None,
            fields: IpFields::default(),
        });
    }
    let report = batch.send(&relay, &items);
    assert_eq!(report.sent, 64, "{report:?}");

    let mut arrived = Batch::new(64);
    assert_eq!(receive(&mut arrived, &peer, 64), 64);
    for slot in 0..64 {
        let payload = arrived.payload(slot);
        let len = 100 + slot;
        assert_eq!(payload.len(), 4 + len);
        assert_eq!(payload[..2], [0x40, 0x01]);
        assert_eq!(payload[2..4], (len as u16).to_be_bytes());
        assert!(payload[4..].iter().all(|byte| usize::from(*byte) == slot));
        assert_eq!(arrived.received(slot).from, relay.local_addr());
    }
}

#[test]
fn runs_of_equal_datagrams_arrive_as_they_were() {
    // Destination and length: runs, a shorter last one, a longer next one, an interruption by another peer.
    const PLAN: [(usize, usize); 16] = [
        (0, 200),
        (0, 200),
        (0, 200),
        (0, 100),
        (0, 100),
        (0, 300),
        (0, 300),
        (1, 300),
        (0, 300),
        (1, 1232),
        (1, 1232),
        (1, 1),
        (1, 0),
        (1, 0),
        (0, 1400),
        (0, 1400),
    ];
    for (bound, ip, from) in [
        (V4, V4, None),
        (V6, V6, None),
        (ANY_V4, V4, Some(V4_OTHER)),
        (ANY_V6, V4, Some(V4_OTHER)),
        (ANY_V6, V6, Some(V6)),
    ] {
        let relay = open(bound, &plain());
        let peers = [open(ip, &plain()), open(ip, &plain())];
        let mut batch = Batch::new(16);
        let mut items = Vec::new();
        let mut expected = [Vec::new(), Vec::new()];
        for (slot, (peer, len)) in PLAN.into_iter().enumerate() {
            let bytes = vec![slot as u8 + 1; len];
            let item = place(&mut batch, slot, &bytes, peers[peer].local_addr());
            items.push(Outgoing { from, ..item });
            expected[peer].push(bytes);
        }
        let report = batch.send(&relay, &items);
        assert_eq!(report.sent, 16, "{report:?}");
        for (peer, expected) in peers.iter().zip(expected) {
            assert_eq!(receive(&mut batch, peer, expected.len()), expected.len());
            for (slot, bytes) in expected.iter().enumerate() {
                assert_eq!(batch.payload(slot), bytes, "datagram {slot}");
                assert_eq!(batch.received(slot).from, at(from.unwrap_or(ip), &relay));
            }
        }
    }
}

#[test]
fn more_items_than_slots_and_the_same_slot_twice() {
    let relay = open(V4, &plain());
    let peer = open(V4, &plain());
    let mut batch = Batch::new(2);
    let item = place(&mut batch, 1, b"again", peer.local_addr());
    assert_eq!(batch.send(&relay, &[item; 9]).sent, 9);
    let mut arrived = Batch::new(16);
    assert_eq!(receive(&mut arrived, &peer, 9), 9);
    assert!((0..9).all(|slot| arrived.payload(slot) == b"again"));
}

#[test]
fn a_closed_port_harms_nobody_else() {
    let relay = open(V4, &plain());
    let peer = open(V4, &plain());
    // An address of its own, so that no other test takes the port meanwhile.
    let closed = open(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)), &plain()).local_addr();
    let mut batch = Batch::new(8);
    for round in 0..3 {
        let to_closed = place(&mut batch, 0, b"nobody", closed);
        let to_peer = place(&mut batch, 1, b"peer", peer.local_addr());
        let report = batch.send(&relay, &[to_closed, to_peer, to_closed, to_peer]);
        assert_eq!(report.sent, 4, "{report:?}");
        assert_eq!(batch.receive(&relay, 0), Ok(0), "round {round}");
        assert_eq!(receive(&mut batch, &peer, 2), 2);
        relay.send_to(b"nobody", closed, None).unwrap();
        peer.send_to(b"back", relay.local_addr(), None).unwrap();
        assert_eq!(receive_one(&mut batch, &relay), b"back");
    }
}

#[test]
fn a_failing_item_is_skipped_and_counted() {
    let relay = open(V4, &plain());
    let peer = open(V4, &plain());
    let mut batch = Batch::new(16);
    let good = place(&mut batch, 0, b"good", peer.local_addr());
    let too_large = Outgoing {
        slot: 1,
        start: 0,
        len: 65_508,
        ..good
    };
    let wrong_family = Outgoing {
        to: SocketAddr::new(V6, 9),
        ..good
    };
    let wrong_source = Outgoing {
        from: Some(V6),
        ..good
    };
    let not_our_source = Outgoing {
        from: Some(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1))),
        ..good
    };
    let report = batch.send(
        &relay,
        &[
            good,
            too_large,
            good,
            wrong_family,
            good,
            wrong_source,
            not_our_source,
            not_our_source,
            good,
            too_large,
        ],
    );
    assert_eq!(
        report,
        SendReport {
            sent: 4,
            too_large: 2,
            failed: 4,
            ..SendReport::default()
        }
    );
    assert_eq!(receive(&mut batch, &peer, 4), 4);

    assert_eq!(
        relay.send_to(&[0; 65_508], peer.local_addr(), None),
        Err(SendFault::TooLarge)
    );
    assert_eq!(
        relay.send_to(b"x", SocketAddr::new(V6, 9), None),
        Err(SendFault::Other)
    );
}

#[test]
fn the_longest_datagrams_arrive_whole() {
    for (ip, len) in [(V4, 65_507), (V6, 65_527)] {
        let relay = open(ip, &plain());
        let peer = open(ip, &plain());
        let mut batch = Batch::new(2);
        let bytes: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
        let item = place(&mut batch, 0, &bytes, peer.local_addr());
        assert_eq!(batch.send(&relay, &[item]).sent, 1);
        let mut arrived = Batch::new(2);
        assert!(receive_one(&mut arrived, &peer) == bytes);
        assert!(!arrived.received(0).truncated);
        assert_eq!(
            arrived.buffer_mut(0).len(),
            HEADROOM + MAX_DATAGRAM + TAILROOM
        );
        assert_eq!(arrived.bytes(0, HEADROOM..HEADROOM + 3), [0, 1, 2]);
    }
}

#[test]
fn slots_behind_the_first_are_filled_and_the_others_kept() {
    let first = open(V4, &plain());
    let second = open(V6, &plain());
    let client = open(V4, &plain());
    let client6 = open(V6, &plain());
    let mut batch = Batch::new(8);
    client.send_to(b"one", first.local_addr(), None).unwrap();
    assert_eq!(receive(&mut batch, &first, 1), 1);
    client6.send_to(b"two", second.local_addr(), None).unwrap();
    client6
        .send_to(b"three", second.local_addr(), None)
        .unwrap();
    let mut filled = 1;
    while filled < 3 {
        filled += batch.receive(&second, filled).unwrap();
    }
    assert_eq!(batch.payload(0), b"one");
    assert_eq!(batch.received(0).from, client.local_addr());
    assert_eq!(batch.payload(1), b"two");
    assert_eq!(batch.payload(2), b"three");
    assert_eq!(batch.received(2).from, client6.local_addr());
}

#[test]
fn reuse_port_shares_an_address_and_its_absence_does_not() {
    let shared = UdpOptions {
        reuse_port: true,
        ..plain()
    };
    let first = open(V4, &shared);
    UdpSocket::bind(first.local_addr(), &shared).expect("shared");
    assert!(UdpSocket::bind(first.local_addr(), &plain()).is_err());
}

#[test]
fn a_full_receive_queue_counts_drops() {
    let server = open(
        V4,
        &UdpOptions {
            recv_buffer_bytes: 4096,
            ..UdpOptions::default()
        },
    );
    assert_eq!(server.drops(), 0);
    let client = open(V4, &plain());
    for at in 0..100 {
        client
            .send_to(&[at; 1000], server.local_addr(), None)
            .unwrap();
    }
    let mut batch = Batch::new(128);
    let arrived = receive(&mut batch, &server, 1);
    assert!(server.drops() > 0);
    assert_eq!(arrived + server.drops() as usize, 100);
    // What waited longest is kept, the newest is lost.
    for slot in 0..arrived {
        let received = batch.received(slot);
        let bytes = batch.bytes(slot, HEADROOM..HEADROOM + received.len);
        assert_eq!(bytes, [slot as u8; 1000]);
    }
}

#[test]
fn buffer_sizes_are_reported_as_granted() {
    let options = UdpOptions {
        recv_buffer_bytes: 100_000,
        send_buffer_bytes: 120_000,
        ..UdpOptions::default()
    };
    let socket = open(V4, &options);
    assert_eq!(socket.recv_buffer_bytes(), 100_000);
    assert_eq!(socket.send_buffer_bytes(), 120_000);
    if let Some(most) = host::rmem_max().filter(|bytes| *bytes < 1 << 29) {
        let greedy = open(
            V4,
            &UdpOptions {
                recv_buffer_bytes: most * 2,
                ..UdpOptions::default()
            },
        );
        let granted = greedy.recv_buffer_bytes();
        let told = granted_buffers(most * 2).unwrap();
        assert_eq!(told.0, granted, "what the host is asked beforehand");
        // CAP_NET_ADMIN lifts the limit.
        assert!(granted == most || granted == most * 2, "{granted}");
    }
}

#[test]
fn a_poller_reports_readable_sockets_until_they_are_drained() {
    const BASE: u64 = 1 << 40;
    let mut poller = Poller::new(8).unwrap();
    let sockets: Vec<_> = (0..4).map(|_| open(V4, &plain())).collect();
    for (token, socket) in sockets.iter().enumerate() {
        poller.add(socket, token as u64 + BASE).unwrap();
    }
    assert!(poller.add(&sockets[0], 9).is_err(), "twice");
    assert!(poller.ready().is_empty());
    let client = open(V4, &plain());
    for index in [1, 3, 3] {
        client
            .send_to(b"x", sockets[index].local_addr(), None)
            .unwrap();
    }
    let tokens = |poller: &mut Poller| poller.ready().iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(tokens(&mut poller), BTreeSet::from([BASE + 1, BASE + 3]));
    let mut small = Batch::new(1);
    for index in [1, 3] {
        assert_eq!(small.receive(&sockets[index], 0), Ok(1));
    }
    assert_eq!(tokens(&mut poller), BTreeSet::from([BASE + 3]));
    assert_eq!(poller.tokens(), [BASE + 3]);
    poller.remove(&sockets[3]);
    assert!(poller.ready().is_empty());
    poller.remove(&sockets[3]);

    // A closed socket leaves by itself.
    let gone = open(V4, &plain());
    poller.add(&gone, 77).unwrap();
    client.send_to(b"x", gone.local_addr(), None).unwrap();
    assert_eq!(poller.ready(), [77]);
    drop(gone);
    assert!(poller.ready().is_empty());
}

#[test]
fn a_small_poller_takes_turns() {
    let mut poller = Poller::new(2).unwrap();
    let client = open(V4, &plain());
    let sockets: Vec<_> = (0..6).map(|_| open(V4, &plain())).collect();
    for (token, socket) in sockets.iter().enumerate() {
        poller.add(socket, token as u64).unwrap();
        client.send_to(b"x", socket.local_addr(), None).unwrap();
    }
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        assert_eq!(poller.ready().len(), 2);
        seen.extend(poller.tokens().iter().copied());
    }
    assert_eq!(seen.len(), 6, "nobody is starved though nobody is drained");
}

/// One `AsyncFd` over the set, told to sleep only after the set reported nothing.
#[test]
fn a_runtime_misses_no_wake_up() {
    const ROUNDS: usize = 1000;
    let server = open(V4, &plain());
    let server_address = server.local_addr();
    let client = open(V4, &plain());
    let client_address = client.local_addr();
    let sender = thread::spawn(move || {
        // One datagram at a time: each of them has to wake the other side.
        let mut batch = Batch::new(1);
        for round in 0..ROUNDS {
            client
                .send_to(&round.to_be_bytes(), server_address, None)
                .unwrap();
            let answered = (0..20_000).any(|_| {
                let got = batch.receive(&client, 0).unwrap() == 1;
                if !got {
                    thread::sleep(Duration::from_micros(50));
                }
                got
            });
            assert!(answered, "round {round} lost");
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    let echo = async {
        let poller = Poller::new(4).unwrap();
        poller.add(&server, 1).unwrap();
        let interest = Interest::READABLE;
        // SAFETY: a `Poller` owns its descriptor and never replaces it.
        let mut watched = unsafe { AsyncFd::register_with_interest(poller, interest) }.unwrap();
        let mut batch = Batch::new(8);
        let mut seen = 0;
        while seen < ROUNDS {
            let mut guard = watched.readable_mut().await.unwrap();
            while guard.get_inner_mut().ready() == [1] {
                let count = batch.receive(&server, 0).unwrap();
                for slot in 0..count {
                    assert_eq!(batch.received(slot).from, client_address);
                    server
                        .send_to(batch.payload(slot), client_address, None)
                        .unwrap();
                }
                seen += count;
            }
            guard.clear_ready();
        }
    };
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(30), echo).await })
        .expect("every datagram wakes the runtime");
    sender.join().unwrap();
}

#[test]
fn a_tcp_listener_on_the_ipv6_wildcard_takes_both_families() {
    let listener = tcp_listener(SocketAddr::new(ANY_V6, 0), 16).unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(
        listener.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    for ip in [V4, V6] {
        let mut client = std::net::TcpStream::connect((ip, port)).unwrap();
        client.write_all(b"hi").unwrap();
        let (mut server, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_canonical(), ip);
        server.set_nonblocking(false).unwrap();
        let mut bytes = [0; 2];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hi");
    }
    assert!(
        tcp_listener(SocketAddr::new(ANY_V6, port), 16).is_err(),
        "no REUSEPORT"
    );
}

#[test]
fn the_host_answers() {
    let (soft, hard) = host::raise_open_files().unwrap();
    assert_eq!(soft, hard);
    assert!(host::interface_addresses().contains(&V4));
    for family in Family::ALL {
        if let Some(source) = host::default_source(family) {
            assert_eq!(Family::of(source), family);
            assert!(!source.is_unspecified());
        }
    }
    assert!(host::rmem_max().is_none_or(|bytes| bytes > 0));
    assert!(host::wmem_max().is_none_or(|bytes| bytes > 0));
    assert!(host::ip_local_port_range().is_none_or(|range| !range.is_empty()));
}

/// Sends datagrams of these sizes from one socket to another, each filled with its index.
fn send_run(batch: &mut Batch, from: &UdpSocket, to: SocketAddr, sizes: &[usize]) {
    let items: Vec<_> = (sizes.iter().enumerate())
        .map(|(slot, size)| place(batch, slot, &vec![slot as u8; *size], to))
        .collect();
    let report = batch.send(from, &items);
    assert_eq!(report.sent as usize, sizes.len(), "{report:?}");
}

fn train(ip: IpAddr, options: UdpOptions) {
    let receiver = open(ip, &options);
    let sender = open(loopback_of(ip), &plain());
    let to = SocketAddr::new(loopback_of(ip), receiver.local_addr().port());
    let mut batch = Batch::new(32);
    let mut sizes = vec![100; 20];
    sizes.push(40);
    send_run(&mut batch, &sender, to, &sizes);
    if receive(&mut batch, &receiver, 1) > 1 {
        panic!("the kernel cut the train up");
    }
    let received = batch.received(0);
    assert_eq!((received.len, received.datagram_bytes), (2040, 100));
    assert_eq!(received.count(), 21);
    assert_eq!(received.from.port(), sender.local_addr().port());
    assert_eq!(received.local.is_some(), options.packet_info);
    for (index, range) in received.datagrams().enumerate() {
        assert_eq!(range.len(), sizes[index]);
        let bytes = batch.bytes(0, HEADROOM + range.start..HEADROOM + range.end);
        assert!(bytes.iter().all(|byte| usize::from(*byte) == index));
    }

    // One at a time is no train, and neither is nothing.
    sender.send_to(b"alone", to, None).unwrap();
    assert_eq!(receive(&mut batch, &receiver, 1), 1);
    assert_eq!(batch.received(0).count(), 1);
    sender.send_to(b"", to, None).unwrap();
    assert_eq!(receive(&mut batch, &receiver, 1), 1);
    let mut empty = batch.received(0).datagrams();
    assert_eq!((empty.next(), empty.next()), (Some(0..0), None));

    receiver.take_trains(false).unwrap();
    send_run(&mut batch, &sender, to, &sizes);
    assert_eq!(receive(&mut batch, &receiver, 21), 21);
    assert!((0..21).all(|slot| batch.received(slot).count() == 1));
}

fn loopback_of(ip: IpAddr) -> IpAddr {
    if ip.is_ipv6() { V6 } else { V4 }
}

#[test]
fn a_train_arrives_whole_where_it_is_wanted() {
    for (ip, packet_info) in [(V4, false), (V6, false), (ANY_V4, true), (ANY_V6, true)] {
        train(
            ip,
            UdpOptions {
                trains: true,
                packet_info,
                ..plain()
            },
        );
    }
}

#[test]
fn one_message_at_a_time() {
    for trains in [false, true] {
        let receiver = open(V4, &UdpOptions { trains, ..plain() });
        let sender = open(V4, &plain());
        let mut batch = Batch::new(4);
        assert_eq!(batch.receive_one(&receiver, 0), Ok(false));
        for text in [&b"first"[..], b"second"] {
            sender.send_to(text, receiver.local_addr(), None).unwrap();
        }
        for (slot, text) in [(2, &b"first"[..]), (0, b"second")] {
            assert_eq!(batch.receive_one(&receiver, slot), Ok(true));
            assert_eq!(batch.payload(slot), text);
            assert_eq!(batch.received(slot).from, sender.local_addr());
            assert_eq!(batch.received(slot).count(), 1);
        }
        assert_eq!(batch.receive_one(&receiver, 0), Ok(false));
        assert_eq!(batch.receive_one(&receiver, 4), Ok(false), "no such slot");
    }
}

#[test]
fn headers_in_side_memory_go_in_front_and_padding_behind() {
    let receiver = open(V4, &plain());
    let sender = open(V4, &plain());
    let to = receiver.local_addr();
    let mut batch = Batch::new(16);
    let mut expected = Vec::new();
    let mut items = Vec::new();
    // All of them from one slot, side by side: nothing may be written between them. Runs of one shape and changes
    // from shape to shape.
    let shapes = [
        (4, 0),
        (4, 0),
        (4, 0),
        (0, 0),
        (0, 0),
        (48, 3),
        (48, 3),
        (4, 1),
        (4, 0),
    ];
    for (index, (front, padding)) in shapes.into_iter().enumerate() {
        let start = HEADROOM + index * 10;
        batch.buffer_mut(0)[start..start + 10].fill(index as u8);
        let header = vec![0xF0 | index as u8; front];
        expected.push([header.clone(), vec![index as u8; 10], vec![0; padding]].concat());
        items.push(Outgoing {
            slot: 0,
            start: start as u32,
            len: 10,
            to,
            from: None,
            front: (front > 0).then(|| batch.front(&header, padding).unwrap()),
            fields: IpFields::default(),
        });
    }
    let report = batch.send(&sender, &items);
    assert_eq!(report.sent as usize, items.len(), "{report:?}");
    let mut arrived = Batch::new(16);
    assert_eq!(receive(&mut arrived, &receiver, items.len()), items.len());
    for (slot, bytes) in expected.iter().enumerate() {
        assert_eq!(arrived.payload(slot), bytes, "datagram {slot}");
    }

    let more = std::iter::from_fn(|| batch.front(b"x", 0))
        .take(10_000)
        .count();
    assert!(more < 1000, "the side memory has an end");
    batch.forget_fronts();
    assert!(batch.front(b"x", 0).is_some());
}
