//! Starting: what the host refuses is told at once, all of it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use turnix::app;
use turnix::base::{Family, Transport};

use super::client::{Client, Ended};
use super::server::{PATIENCE, Server, config, quiet_address, until};

#[test]
fn everything_that_is_in_use_is_told_at_once() {
    let ip = quiet_address();
    let udp = UdpSocket::bind((ip, 0)).unwrap();
    let tcp = TcpListener::bind((ip, 0)).unwrap();
    let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let both = TcpListener::bind((ip, 0)).unwrap();
    let both_udp = UdpSocket::bind(both.local_addr().unwrap()).unwrap();
    let listen: Vec<_> = [
        udp.local_addr().unwrap(),
        tcp.local_addr().unwrap(),
        both_udp.local_addr().unwrap(),
    ]
    .map(|address| address.to_string())
    .into();
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    let set = vec![
        format!("http.admin={}", admin.local_addr().unwrap()),
        // An address that this host does not have (RFC 5737).
        "relay.addresses=['192.0.2.1']".to_owned(),
    ];
    let config = config(&listen, r#"["udp", "tcp"]"#, set);
    let error = app::start(config).err().expect("ports are in use");
    let told = format!("{error:#}");
    let bound = |what: &str, address: SocketAddr| format!("cannot bind {what} {address}");
    for expected in [
        bound("udp", udp.local_addr().unwrap()),
        bound("tcp", tcp.local_addr().unwrap()),
        bound("udp", both.local_addr().unwrap()),
        bound("tcp", both.local_addr().unwrap()),
        bound("tcp", admin.local_addr().unwrap()),
        "192.0.2.1".to_owned(),
    ] {
        assert_eq!(told.matches(&expected).count(), 1, "{expected} in {told}");
    }
}

#[test]
fn a_server_that_did_not_start_holds_nothing() {
    let ip = quiet_address();
    let udp = UdpSocket::bind((ip, 0)).unwrap();
    let free = SocketAddr::from((ip, 20_001));
    let listen = [free.to_string(), udp.local_addr().unwrap().to_string()];
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    let config = config(&listen, r#"["udp", "tcp"]"#, Vec::new());
    assert!(app::start(config.clone()).is_err());
    TcpListener::bind(free).unwrap();
    UdpSocket::bind(free).unwrap();
    drop(udp);
    let running = app::start(config).unwrap();
    // Another server on the same port would share the clients by chance: it has to be refused.
    UdpSocket::bind(free).unwrap_err();
    TcpListener::bind(free).unwrap_err();
    running.stop();
}

#[test]
fn stopping_gives_everything_back() {
    let server = Server::new();
    let mut clients: Vec<Client> = (Transport::ALL.into_iter())
        .map(|transport| Client::new(&server, transport, Family::V4))
        .collect();
    let mut ports: Vec<SocketAddr> = clients.iter_mut().map(Client::allocate).collect();
    ports.push(server.address(Family::V4));
    ports.push(server.address(Family::V6));
    for port in &ports {
        UdpSocket::bind(port).unwrap_err();
    }
    drop(server);
    for port in ports {
        until("the port is free", || UdpSocket::bind(port).is_ok());
    }
    for client in clients
        .iter_mut()
        .filter(|client| client.transport.is_stream())
    {
        let ended = client.next(PATIENCE).map(drop);
        assert!(
            matches!(ended, Err(Ended::Closed | Ended::Cut)),
            "{ended:?}"
        );
    }
}
