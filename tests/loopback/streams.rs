//! What byte streams bring with them: pieces, backlogs, readers that do not read, ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use turnix::base::{Family, Transport};
use turnix::net::host::raise_open_files;
use turnix::turn::{Direction, DropReason, Path};

use super::client::{Client, Ended, Frame, Link};
use super::common::wire::{Request, padded_channel_data};
use super::common::world::{PASSWORD, USER};
use super::server::{BOTH, PATIENCE, Server, peer, receive, until};

const STREAMS: [Transport; 2] = [Transport::Tcp, Transport::Tls];

fn connections(server: &Server, transport: Transport) -> u64 {
    server.snapshot().stream_connections[transport as usize]
}

#[test]
fn one_byte_at_a_time() {
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::new(&server, transport, Family::V4);
        let trickle = |client: &mut Client, bytes: &[u8]| {
            for byte in bytes {
                client.send(&[*byte]);
            }
        };
        let binding = Request::binding();
        trickle(&mut client, &binding.bytes());
        assert_eq!(client.answer_to(&binding).mapped(), client.local());

        client.login(USER, PASSWORD);
        let signer = client.signer.clone().unwrap();
        let allocate = Request::allocate().sign(&signer);
        trickle(&mut client, &allocate.bytes());
        let relayed = client.answer_to(&allocate).relayed();
        let peer = peer(Ipv4Addr::LOCALHOST);
        let at = peer.local_addr().unwrap();
        client.permit(at);
        trickle(&mut client, &Request::send(at, b"bit by bit").bytes());
        assert_eq!(receive(&peer), (b"bit by bit".to_vec(), relayed));
        client.bind(0x4000, at);
        for size in [0, 1, 2, 3, 4, 5] {
            let data = vec![7; size];
            trickle(&mut client, &padded_channel_data(0x4000, &data));
            assert_eq!(receive(&peer), (data, relayed));
        }
    }
}

#[test]
fn many_requests_in_one_write() {
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::new(&server, transport, Family::V6);
        // More answers than may wait for a client, to one that does read.
        let requests: Vec<_> = (0..3000).map(|_| Request::binding()).collect();
        let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
        client.send(&bytes);
        for request in &requests {
            match client.expect() {
                Frame::Message(reply) => {
                    assert_eq!(reply.0.transaction_id, request.0.transaction_id);
                    assert_eq!(reply.mapped(), client.local());
                }
                other => panic!("{other:?}"),
            }
        }
        client.ask(&Request::binding());
    }
}

#[test]
fn the_largest_datagram_there_is() {
    // 65 535 without the headers of IPv4 and UDP.
    const LARGEST: usize = 65_507;
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::new(&server, transport, Family::V4);
        let peer = peer(Ipv4Addr::LOCALHOST);
        let at = peer.local_addr().unwrap();
        let relayed = client.allocate();
        client.bind(0x4000, at);
        for size in [LARGEST, 1, LARGEST - 1, LARGEST - 2, LARGEST] {
            let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            client.send_channel(0x4000, &data);
            assert!(receive(&peer) == (data.clone(), relayed), "{size}");
            peer.send_to(&data, relayed).unwrap();
            assert!(client.expect_channel(0x4000) == data, "{size}");
        }
        // One byte more cannot leave; it costs a counter and nothing else.
        client.send_channel(0x4000, &[0; LARGEST + 1]);
        client.send_channel(0x4000, b"next");
        assert_eq!(receive(&peer).0, b"next");
    }
    until("the oversized are counted", || {
        server.dropped(DropReason::TooLarge) == 2
    });
}

#[test]
fn a_whole_call_in_one_write() {
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::new(&server, transport, Family::V4);
        let peer = peer(Ipv4Addr::LOCALHOST);
        let at = peer.local_addr().unwrap();
        client.login(USER, PASSWORD);
        let signer = client.signer.clone().unwrap();
        let allocate = Request::allocate().sign(&signer);
        let bind = Request::channel_bind(0x4000, at).sign(&signer);
        let release = Request::refresh(0).sign(&signer);
        let mut bytes = [allocate.bytes(), bind.bytes()].concat();
        for number in 0..50u8 {
            bytes.extend(padded_channel_data(
                0x4000,
                &vec![number; usize::from(number)],
            ));
        }
        bytes.extend(release.bytes());
        client.send(&bytes);
        let relayed = client.answer_to(&allocate).relayed();
        assert_eq!(client.answer_to(&bind).code(), 0);
        assert_eq!(client.answer_to(&release).code(), 0);
        // What was sent before the allocation ended went out before it ended.
        for number in 0..50u8 {
            let expected = (vec![number; usize::from(number)], relayed);
            assert_eq!(receive(&peer), expected);
        }
    }
}

#[test]
fn frames_cut_anywhere_arrive_whole_on_many_streams_at_once() {
    let server = Server::new();
    let mut lanes: Vec<_> = (STREAMS.into_iter().cycle().take(12))
        .map(|transport| {
            let mut client = Client::new(&server, transport, Family::V4);
            let peer = peer(Ipv4Addr::LOCALHOST);
            let relayed = client.allocate();
            client.bind(0x4000, peer.local_addr().unwrap());
            (client, peer, relayed)
        })
        .collect();
    for round in 0..30 {
        let data: Vec<Vec<u8>> = (0..8)
            .map(|_| (0..rand::random::<u16>() % 1300).map(|at| (at ^ round) as u8))
            .map(Iterator::collect)
            .collect();
        let bytes: Vec<u8> = data
            .iter()
            .flat_map(|data| padded_channel_data(0x4000, data))
            .collect();
        let mut rests = vec![bytes.as_slice(); lanes.len()];
        while rests.iter().any(|rest| !rest.is_empty()) {
            for ((client, ..), rest) in lanes.iter_mut().zip(&mut rests) {
                let length = usize::from(rand::random::<u16>()) % 700 + 1;
                let (chunk, behind) = rest.split_at(length.min(rest.len()));
                client.send(chunk);
                *rest = behind;
            }
        }
        for (_, peer, relayed) in &lanes {
            for data in &data {
                assert!(receive(peer) == (data.clone(), *relayed), "round {round}");
            }
        }
        for data in &data {
            for (_, peer, relayed) in &lanes {
                peer.send_to(data, *relayed).unwrap();
            }
        }
        for (client, ..) in &mut lanes {
            for data in &data {
                assert!(client.expect_channel(0x4000) == *data, "round {round}");
            }
        }
    }
}

#[test]
fn answers_come_through_a_backlog_of_media() {
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::with_little_room(&server, transport);
        let relayed = client.allocate();
        let peer = peer(Ipv4Addr::LOCALHOST);
        client.bind(0x4000, peer.local_addr().unwrap());
        let before = server.dropped(DropReason::StreamQueue);
        let mut number = 0u32;
        let flood = |number: &mut u32| {
            for _ in 0..64 {
                peer.send_to(&[&number.to_be_bytes()[..], &[7; 996]].concat(), relayed)
                    .unwrap();
                *number += 1;
            }
        };
        until("the backlog is full", || {
            flood(&mut number);
            server.dropped(DropReason::StreamQueue) > before + 50
        });
        let requests: Vec<_> = (0..20).map(|_| Request::binding()).collect();
        let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
        client.send(&bytes);
        let answered = server.dropped(DropReason::StreamQueue);
        until("more is dropped from between the answers", || {
            flood(&mut number);
            server.dropped(DropReason::StreamQueue) > answered + 500
        });
        let mut previous = None;
        let mut answers = requests.iter();
        while answers.len() > 0 {
            match client.expect() {
                Frame::Message(reply) => {
                    let request = answers.next().unwrap();
                    assert_eq!(reply.0.transaction_id, request.0.transaction_id);
                }
                Frame::Channel(channel, data) => {
                    assert_eq!((channel, data.len()), (0x4000, 1000));
                    let number = u32::from_be_bytes(data[..4].try_into().unwrap());
                    assert!(previous < Some(number), "{number} after {previous:?}");
                    previous = Some(number);
                }
            }
        }
    }
}

#[test]
fn the_end_of_a_clients_stream_does_not_swallow_its_answers() {
    let server = Server::new();
    for transport in STREAMS {
        for _ in 0..10 {
            let mut client = Client::new(&server, transport, Family::V4);
            let requests: Vec<_> = (0..20).map(|_| Request::binding()).collect();
            client.send(&requests.iter().flat_map(Request::bytes).collect::<Vec<_>>());
            client.finish();
            for request in &requests {
                assert_eq!(client.answer_to(request).code(), 0);
            }
            assert_eq!(client.next(PATIENCE).map(drop), Err(Ended::Closed));
        }
    }
}

#[test]
fn garbage_after_a_request_ends_the_connection() {
    let server = Server::new();
    let garbage: [&[u8]; 5] = [
        // Neither STUN nor ChannelData.
        &[0xFF; 40],
        b"GET / HTTP/1.1\r\n\r\n\xFF\xFF\xFF\xFF",
        // STUN without the magic cookie, and of a length that no STUN message has.
        &[0; 40],
        &[0, 1, 0, 3, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0],
        // ChannelData longer than any datagram.
        &[0x40, 0, 0xFF, 0xFF],
    ];
    for transport in STREAMS {
        for garbage in garbage {
            for at_once in [true, false] {
                let mut client = Client::new(&server, transport, Family::V4);
                client.allocate();
                let binding = Request::binding();
                if at_once {
                    client.send(&[&binding.bytes(), garbage].concat());
                    assert_eq!(client.answer_to(&binding).code(), 0);
                } else {
                    client.ask(&binding);
                    client.send(garbage);
                }
                // "GET " is also the beginning of ChannelData that never becomes whole.
                if garbage[0] == b'G' {
                    client.finish();
                }
                assert_eq!(client.next(PATIENCE).map(drop), Err(Ended::Closed));
                until("the allocation is gone", || server.live() == 0);
            }
        }
    }
    for transport in STREAMS {
        until("the connections are gone", || {
            connections(&server, transport) == 0
        });
    }
}

#[test]
fn a_frame_that_is_cut_off_is_never_relayed() {
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::new(&server, transport, Family::V4);
        let peer = peer(Ipv4Addr::LOCALHOST);
        client.allocate();
        client.bind(0x4000, peer.local_addr().unwrap());
        let whole = padded_channel_data(0x4000, &[1; 100]);
        client.send(&whole[..whole.len() - 1]);
        drop(client);
        until("the allocation is gone", || server.live() == 0);
        assert_eq!(server.relayed(Direction::ToPeer, Path::Kernel).packets, 0);
    }
}

#[test]
fn the_end_of_a_connection_ends_its_allocation() {
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::new(&server, transport, Family::V4);
        let relayed = client.allocate();
        UdpSocket::bind(relayed).expect_err("the relay port is taken");
        assert_eq!(connections(&server, transport), 1);
        drop(client);
        until("the allocation is gone", || server.live() == 0);
        until("the relay port is free", || {
            UdpSocket::bind(relayed).is_ok()
        });
        until("the connection is gone", || {
            connections(&server, transport) == 0
        });
    }
}

#[test]
fn a_reset_ends_an_allocation_as_well() {
    let server = Server::new();
    let mut client = Client::tcp(&server);
    client.allocate();
    if let Link::Tcp(socket) = &client.link {
        let socket = socket2::SockRef::from(socket);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop(client);
    until("the allocation is gone", || server.live() == 0);
}

/// Nothing but its own timer wakes the shard of a client that has gone quiet.
#[test]
fn an_allocation_that_is_not_refreshed_ends_and_its_connection_stays() {
    let server = Server::with(super::server::BOTH, &["limits.allocation_lifetime='1s'"]);
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let reply = client.try_allocate();
        assert_eq!((reply.code(), reply.lifetime()), (0, 1));
        let relayed = reply.relayed();
        UdpSocket::bind(relayed).expect_err("the relay port is taken");
        until("the relay port is free", || {
            UdpSocket::bind(relayed).is_ok()
        });
        assert_eq!(server.live(), 0);
        client.ask(&Request::binding());
        client.allocate();
        client.release();
    }
}

/// The most that a flood sends, in datagrams of `FLOOD_BYTES`; `FLOOD_BURST` of them a millisecond.
const FLOOD: u32 = 600_000;
const FLOOD_BURST: u32 = 64;
const FLOOD_BYTES: usize = 1200;

fn flood(transport: Transport) {
    let server = Server::new();
    let mut client = Client::with_little_room(&server, transport);
    let relayed = client.allocate();
    let peer = peer(Ipv4Addr::LOCALHOST);
    client.bind(0x4000, peer.local_addr().unwrap());
    let shard = server.allocation(relayed).shard;
    // A UDP client that the flooded shard serves.
    let mut neighbour = (0..64)
        .find_map(|_| {
            let mut client = Client::udp(&server);
            let relayed = client.allocate();
            (server.allocation(relayed).shard == shard).then_some(client)
        })
        .expect("a client of that shard");

    let stop = Arc::new(AtomicBool::new(false));
    let flooding = {
        let (stop, peer) = (Arc::clone(&stop), peer.try_clone().unwrap());
        thread::spawn(move || {
            let mut number = 0u32;
            while number < FLOOD && !stop.load(Ordering::Relaxed) {
                let mut data = vec![0; FLOOD_BYTES];
                data[..4].copy_from_slice(&number.to_be_bytes());
                peer.send_to(&data, relayed).unwrap();
                number += 1;
                // Fast enough for any client, and leaves the processor to those who watch.
                if number.is_multiple_of(FLOOD_BURST) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            number
        })
    };
    until("the oldest media are dropped", || {
        neighbour.ask(&Request::binding());
        assert_eq!(server.live(), server.allocations().len() as u64);
        server.dropped(DropReason::StreamQueue) > 1000
    });
    assert!(
        !flooding.is_finished(),
        "it answered while the flood went on"
    );
    stop.store(true, Ordering::Relaxed);
    let sent = flooding.join().unwrap();

    // The newest, once the relay socket has room for it again.
    let accepted = || server.relayed(Direction::ToClient, Path::Kernel).packets;
    let mut newest = vec![0; FLOOD_BYTES];
    newest[..4].copy_from_slice(&sent.to_be_bytes());
    let mut last = accepted();
    until("the flood has ebbed away", || {
        thread::sleep(Duration::from_millis(20));
        let ebbed = accepted() == last;
        last = accepted();
        ebbed
    });
    peer.send_to(&newest, relayed).unwrap();
    until("the newest is queued", || accepted() == last + 1);
    let dropped = server.dropped(DropReason::StreamQueue);

    let mut previous = None;
    let mut received = 0;
    loop {
        let data = client.expect_channel(0x4000);
        assert_eq!(data.len(), FLOOD_BYTES);
        let number = u32::from_be_bytes(data[..4].try_into().unwrap());
        assert!(previous < Some(number), "{number} after {previous:?}");
        previous = Some(number);
        received += 1;
        if number == sent {
            break;
        }
    }
    // Nothing is lost without being counted, and nothing is made up.
    assert_eq!(received + dropped, accepted());
    // The queue and what the kernel holds for both ends, not what the peer sent.
    assert!(received < accepted(), "{received} of {}", accepted());
    // The connection works as before.
    client.ask(&Request::binding());
    client.send_channel(0x4000, b"I am back");
    assert_eq!(receive(&peer), (b"I am back".to_vec(), relayed));
}

#[test]
fn a_flooded_tcp_client_that_does_not_read() {
    flood(Transport::Tcp);
}

#[test]
fn a_flooded_tls_client_that_does_not_read() {
    flood(Transport::Tls);
}

#[test]
fn a_client_that_reads_no_answers_is_disconnected() {
    let server = Server::new();
    for transport in STREAMS {
        let mut client = Client::with_little_room(&server, transport);
        client.allocate();
        let requests: Vec<u8> = (0..500).flat_map(|_| Request::binding().bytes()).collect();
        // 32 MiB is more than any kernel holds for both ends.
        let cut_off =
            (0..32 * 1024 * 1024 / requests.len()).any(|_| client.try_send(&requests).is_err());
        assert!(cut_off, "{transport:?}");
        until("its allocation is gone", || server.live() == 0);
    }
}

/// Opens `count` connections that then say nothing, and relays beside them.
fn idle_connections(count: usize) {
    let server = Server::with(BOTH, &["limits.connections_per_address=0"]);
    let mut idle: Vec<_> = (0..count)
        .map(|_| {
            let mut client = Client::tcp(&server);
            client.send(&Request::binding().bytes());
            client
        })
        .collect();
    for client in &mut idle {
        assert!(matches!(client.expect(), Frame::Message(reply) if reply.is_success()));
    }
    assert_eq!(connections(&server, Transport::Tcp), count as u64);

    let mut client = Client::udp(&server);
    let relayed = client.allocate();
    let peer = peer(Ipv4Addr::LOCALHOST);
    client.bind(0x4000, peer.local_addr().unwrap());
    for round in 0..50u8 {
        client.send_channel(0x4000, &[round; 500]);
        assert_eq!(receive(&peer), (vec![round; 500], relayed));
        peer.send_to(&[!round; 500], relayed).unwrap();
        assert_eq!(client.expect_channel(0x4000), [!round; 500]);
    }
    // Every one of them still works.
    for client in idle.iter_mut().step_by(97) {
        client.ask(&Request::binding());
    }
    drop(idle);
    until("the connections are gone", || {
        connections(&server, Transport::Tcp) == 0
    });
    assert_eq!(server.live(), 1);
}

#[test]
fn two_thousand_idle_connections() {
    idle_connections(2000);
}

#[test]
#[ignore = "takes 20 000 descriptors and half of the ports of loopback"]
fn ten_thousand_idle_connections() {
    let (limit, _) = raise_open_files().unwrap();
    assert!(
        limit > 20_500,
        "the limit of open files is {limit}: raise it"
    );
    idle_connections(10_000);
}

fn health(mut stream: impl Read + Write) -> String {
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn http_on_the_same_port() {
    let server = Server::new();
    for family in Family::ALL {
        let address = server.address(family);
        let connect = || {
            let socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let name = ServerName::IpAddress(address.ip().into());
        let tls = ClientConnection::new(std::sync::Arc::clone(&server.tls), name).unwrap();
        for answer in [health(connect()), health(StreamOwned::new(tls, connect()))] {
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with("{\"status\":\"ok\"}"), "{answer}");
        }
    }
    // HTTP clients are not counted as TURN clients.
    assert_eq!(server.snapshot().stream_connections, [0; 4]);
}
