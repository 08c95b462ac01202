//! One client and one peer, end to end, over every transport and both families.

use turnix::base::{Family, Transport};

use super::client::Client;
use super::common::wire::Request;
use super::server::{Server, loopback, peer, receive, until};

const CHANNEL: u16 = 0x4001;
const SIZES: [usize; 6] = [0, 1, 3, 4, 1200, 8000];

fn payload(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|at| seed.wrapping_add(at as u8)).collect()
}

#[test]
fn binding_on_every_transport_and_family() {
    let server = Server::new();
    for transport in Transport::ALL {
        for family in Family::ALL {
            let mut client = Client::new(&server, transport, family);
            let reply = client.ask(&Request::binding().fingerprint());
            assert_eq!(reply.code(), 0, "{transport:?} {family:?}");
            assert_eq!(reply.mapped(), client.local(), "{transport:?} {family:?}");
        }
    }
}

fn call(transport: Transport, family: Family) {
    let server = Server::new();
    let mut client = Client::new(&server, transport, family);
    let relayed = client.allocate();
    assert_eq!(relayed.ip(), loopback(family));
    assert_eq!(server.live(), 1);

    let peer = peer(loopback(family));
    let at = peer.local_addr().unwrap();
    client.permit(at);
    for size in SIZES {
        let there = payload(size, 7);
        client.send_indication(at, &there);
        assert_eq!(receive(&peer), (there, relayed), "{size}");
        let back = payload(size, 11);
        peer.send_to(&back, relayed).unwrap();
        assert_eq!(client.expect_data(), (at, back), "{size}");
    }
    client.bind(CHANNEL, at);
    for size in SIZES {
        let there = payload(size, 13);
        client.send_channel(CHANNEL, &there);
        assert_eq!(receive(&peer), (there, relayed), "{size}");
        let back = payload(size, 17);
        peer.send_to(&back, relayed).unwrap();
        assert_eq!(client.expect_channel(CHANNEL), back, "{size}");
    }
    // What the peer sends in a burst comes in order, frame by frame.
    for size in SIZES {
        peer.send_to(&payload(size, 19), relayed).unwrap();
    }
    for size in SIZES {
        assert_eq!(client.expect_channel(CHANNEL), payload(size, 19), "{size}");
    }
    let view = server.allocation(relayed).view;
    let bytes: usize = SIZES.iter().sum();
    assert_eq!(view.transport, transport);
    assert_eq!(view.client, client.local());
    let counted = view.traffic.map(|traffic| (traffic.bytes, traffic.packets));
    let (bytes, packets) = (bytes as u64, SIZES.len() as u64);
    assert_eq!(
        counted,
        [(2 * bytes, 2 * packets), (3 * bytes, 3 * packets)]
    );

    client.release();
    until("the allocation is gone", || server.live() == 0);
    // The connection outlives the allocation, and the next one is as good.
    client.allocate();
    assert_eq!(server.live(), 1);
}

#[test]
fn call_udp_v4() {
    call(Transport::Udp, Family::V4);
}

#[test]
fn call_udp_v6() {
    call(Transport::Udp, Family::V6);
}

#[test]
fn call_tcp_v4() {
    call(Transport::Tcp, Family::V4);
}

#[test]
fn call_tcp_v6() {
    call(Transport::Tcp, Family::V6);
}

#[test]
fn call_tls_v4() {
    call(Transport::Tls, Family::V4);
}

#[test]
fn call_tls_v6() {
    call(Transport::Tls, Family::V6);
}

#[test]
fn a_client_of_one_family_may_relay_in_the_other() {
    let server = Server::new();
    let peer = peer(loopback(Family::V6));
    let at = peer.local_addr().unwrap();
    let mut client = Client::udp(&server);
    client.login("alice", "wonderland");
    let reply = client.ask_signed(Request::allocate().family(2));
    assert_eq!(reply.code(), 0);
    client.permit(at);
    client.send_indication(at, b"across");
    assert_eq!(receive(&peer), (b"across".to_vec(), reply.relayed()));
    peer.send_to(b"back", reply.relayed()).unwrap();
    assert_eq!(client.expect_data(), (at, b"back".to_vec()));
}
