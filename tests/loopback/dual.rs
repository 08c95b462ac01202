//! Allocations in both families, and ports in a row, over real sockets.

use std::net::SocketAddr;

use turnix::base::{Family, Transport};
use turnix::turn::{Direction, Path, RelayKind};

use super::client::Client;
use super::common::wire::Request;
use super::server::{Server, loopback, peer, receive, until};

fn allocate(client: &mut Client) -> [SocketAddr; 2] {
    client.login("alice", crate::common::world::PASSWORD);
    let request = Request::allocate().attr(0x8000, &[2, 0, 0, 0]);
    let reply = client.ask_signed(request);
    assert_eq!(reply.code(), 0);
    let both = reply.all_relayed();
    assert!(both[0].is_ipv4() && both[1].is_ipv6());
    [both[0], both[1]]
}

fn dual(server: &Server) -> u64 {
    let live = server.snapshot().stats.live;
    live.iter()
        .map(|kinds| kinds[RelayKind::Dual as usize])
        .sum()
}

#[test]
fn one_client_talks_to_peers_of_both_families() {
    let server = Server::new();
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let relayed = allocate(&mut client);
        assert_eq!(dual(&server), 1);
        let name = server.allocation(relayed[0]);
        assert_eq!(name.view.additional, Some(relayed[1]));
        for (family, relayed) in Family::ALL.into_iter().zip(relayed) {
            let peer = peer(loopback(family));
            let at = peer.local_addr().unwrap();
            let channel = 0x4000 + family as u16;
            client.bind(channel, at);
            client.send_channel(channel, b"there");
            assert_eq!(receive(&peer), (b"there".to_vec(), relayed));
            peer.send_to(b"back", relayed).unwrap();
            assert_eq!(client.expect_channel(channel), b"back");
        }
        // The second one goes, and the first serves on.
        let release = Request::refresh(0).family(2);
        assert_eq!(client.ask_signed(release).lifetime(), 0);
        assert_eq!((dual(&server), server.live()), (0, 1));
        let peer = peer(loopback(Family::V4));
        client.permit(peer.local_addr().unwrap());
        client.send_indication(peer.local_addr().unwrap(), b"still");
        assert_eq!(receive(&peer), (b"still".to_vec(), relayed[0]));
        client.release();
        until("its ports are free", || server.capacity_ratio() == 0.0);
    }
}

/// Relay to relay in memory, from both addresses to both of the other, wherever the shards are.
#[test]
fn hairpins_of_both_families() {
    let server = Server::new();
    let mut alice = Client::tcp(&server);
    let to_alice = allocate(&mut alice);
    let others = [(); 4].map(|()| {
        let mut bob = Client::tcp(&server);
        let to_bob = allocate(&mut bob);
        (bob, to_bob)
    });
    for (sent, (mut bob, to_bob)) in (0_u16..).zip(others) {
        for (family, (a, b)) in Family::ALL
            .into_iter()
            .zip(to_alice.into_iter().zip(to_bob))
        {
            let channel = 0x4000 + 2 * sent + family as u16;
            alice.bind(channel, b);
            bob.bind(channel, a);
            alice.send_channel(channel, b"to bob");
            assert_eq!(bob.expect_channel(channel), b"to bob");
            bob.send_channel(channel, b"to alice");
            assert_eq!(alice.expect_channel(channel), b"to alice");
        }
    }
    let packets = |path| server.relayed(Direction::ToPeer, path).packets;
    assert_eq!(packets(Path::Hairpin), 16);
    assert_eq!(packets(Path::Kernel), 0);
}

/// The port above is claimed from another connection, and so from another shard.
#[test]
fn a_reservation_is_claimed_in_every_shard() {
    let server = Server::new();
    for _ in 0..3 {
        let mut rtp = Client::tcp(&server);
        rtp.login("alice", crate::common::world::PASSWORD);
        let reply = rtp.ask_signed(Request::allocate().attr(0x0018, &[0x80]));
        assert_eq!(reply.code(), 0);
        let token = reply
            .attr(stun::attributes::ATTR_RESERVATION_TOKEN)
            .expect("a token");
        let claim = || Request::allocate().attr(0x0022, &token);
        let mut thief = Client::tcp(&server);
        thief.login("bob", "builder");
        assert_eq!(thief.ask_signed(claim()).code(), 508, "it is alice's");
        let mut rtcp = Client::udp(&server);
        rtcp.login("alice", crate::common::world::PASSWORD);
        let claimed = rtcp.ask_signed(claim());
        assert_eq!(claimed.code(), 0);
        assert_eq!(claimed.relayed().port(), reply.relayed().port() + 1);
        assert_eq!(claimed.relayed().port() % 2, 1);
        let peer = peer(loopback(Family::V4));
        rtcp.permit(peer.local_addr().unwrap());
        rtcp.send_indication(peer.local_addr().unwrap(), b"report");
        assert_eq!(receive(&peer), (b"report".to_vec(), claimed.relayed()));
        let mut again = Client::tcp(&server);
        again.login("alice", crate::common::world::PASSWORD);
        assert_eq!(again.ask_signed(claim()).code(), 508, "it is good once");
        rtp.release();
        rtcp.release();
    }
    until("their ports are free", || server.capacity_ratio() == 0.0);
}
