//! Quotas and relay ports: used up, refused, free again.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use turnix::access::rest;
use turnix::base::{Clock, Family, Secret, Transport};

use super::client::Client;
use super::common::wire::Request;
use super::common::world::{PASSWORD, SECRET, USER};
use super::server::{BOTH, Server, quiet_address, until};

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
