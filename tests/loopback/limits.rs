//! Quotas and relay ports: used up, refused, free again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use turnix::access::rest;
use turnix::base::{Clock, Family, Secret, Transport};
use turnix::turn::DropReason;

use super::client::Client;
use super::common::wire::Request;
use super::common::world::{PASSWORD, SECRET, USER};
use super::server::{BOTH, Server, loopback, peer, quiet_address, receive, until};

/// Four relay ports, all of them for whoever comes.
const FOUR_PORTS: [&str; 2] = ["relay.ports='21000-21003'", "limits.share_per_user=0"];

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
    let [ports, share] = FOUR_PORTS;
    let server = Server::with(&["127.0.0.1:0"], &[&relay, ports, share]);
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
    // A quota that is not given back would be used up.
    let [ports, share] = FOUR_PORTS;
    let set = [&relay, ports, share, "limits.allocations=4"];
    let server = Server::with(&["127.0.0.1:0"], &set);
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
    used_up_and_free_again(&server, 4, 486);
}

#[test]
fn an_even_port_is_even_and_none_is_508() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\"]");
    let [ports, share] = FOUR_PORTS;
    let server = Server::with(&["127.0.0.1:0"], &[&relay, ports, share]);
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

#[test]
fn a_released_port_is_given_again_only_after_all_others() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\"]");
    let [ports, share] = FOUR_PORTS;
    let server = Server::with(&["127.0.0.1:0"], &[&relay, ports, share]);
    let mut order = Vec::new();
    for number in 0..12 {
        let mut client = client(&server, number);
        order.push(client.allocate().port());
        client.release();
    }
    let mut first = order[..4].to_vec();
    first.sort_unstable();
    assert_eq!(first, [21000, 21001, 21002, 21003]);
    // A port that rests is free: it serves where there is no other, the oldest first.
    assert_eq!((&order[4..8], &order[8..]), (&order[..4], &order[..4]));
}

#[test]
fn a_user_leaves_relay_ports_to_others() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\", \"::1\"]");
    let server = Server::with(&["127.0.0.1:0"], &[&relay, "relay.ports='21000-21019'"]);
    let mut clients: Vec<Client> = (0..18).map(|number| client(&server, number)).collect();
    for client in &mut clients {
        client.allocate();
    }
    // Alice may have nine of ten, whatever she does with what she has.
    let mut more = client(&server, 0);
    assert_eq!(more.try_allocate().code(), 486);
    assert_eq!(clients[0].ask_signed(Request::refresh(600)).code(), 0);
    let login = |user: &str, password: &str| {
        let mut client = Client::udp(&server);
        client.login(user, password);
        client
    };
    let mut bob = login("bob", "builder");
    bob.allocate();
    assert_eq!(more.try_allocate().code(), 486);
    let secret = Secret::new(SECRET.to_owned());
    let (name, password) = rest::mint(&secret, Some("carol"), Clock.now().unix_secs() + 3600);
    let mut carol = login(&name, &password);
    carol.allocate();
    // What is not there is no matter of shares.
    assert_eq!(login("bob", "builder").try_allocate().code(), 508);
    assert_eq!(more.try_allocate().code(), 508);
    // Those of IPv6 are no help. One that rests is free.
    assert_eq!(server.capacity_ratio(), 1.0);
    carol.release();
    bob.release();
    clients[0].release();
    assert_eq!(server.capacity_ratio(), 0.85);
    more.allocate();
    assert_eq!(client(&server, 0).try_allocate().code(), 486);
}

#[test]
fn a_lone_user_has_all_relay_ports() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\"]");
    let users = format!("auth.users={{ {USER} = \"{PASSWORD}\" }}");
    let set = [
        &relay,
        "relay.ports='21000-21003'",
        &users,
        "auth.secrets=[]",
    ];
    let server = Server::with(&["127.0.0.1:0"], &set);
    used_up_and_free_again(&server, 4, 508);
}

/// What a peer sends to the last owner of a relay port is not for the next one.
#[test]
fn a_relay_port_brings_nothing_from_its_last_owner() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\"]");
    let set = [
        &relay,
        "relay.ports='21005-21005'",
        "limits.share_per_user=0",
    ];
    let server = Server::with(&["127.0.0.1:0"], &set);
    let peer = peer(loopback(Family::V4));
    let at = peer.local_addr().unwrap();
    let mut last: Option<SocketAddr> = None;
    for number in 0..6 {
        let mut owner = client(&server, number);
        let relayed = owner.allocate();
        assert_eq!(*last.get_or_insert(relayed), relayed);
        let dropped = || server.dropped(DropReason::NoPermission);
        let before = dropped();
        peer.send_to(b"for the last one", relayed).unwrap();
        until("it is dropped", || dropped() > before);
        // Neither a channel nor a permission of the last owner is left.
        owner.send_channel(0x4000, b"to nobody");
        owner.send_indication(at, b"to nobody");
        owner.bind(0x4000, at);
        owner.send_channel(0x4000, &[number as u8]);
        assert_eq!(receive(&peer), (vec![number as u8], relayed));
        for _ in 0..64 {
            peer.send_to(&[number as u8], relayed).unwrap();
        }
        assert_eq!(owner.expect_channel(0x4000), [number as u8]);
        // The rest may be on its way when the allocation ends.
        owner.release();
    }
}
