//! A client that others wrote, in this process.

use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::time::timeout;
use turn::client::{Client, ClientConfig};
use turnix::base::Family;
use webrtc_util::Conn;

use super::common::wire::REALM;
use super::common::world::{PASSWORD, USER};
use super::server::{PATIENCE, Server};

#[tokio::test]
async fn turn_client_round_trip() {
    let server = tokio::task::spawn_blocking(Server::new).await.unwrap();
    let address = server.address(Family::V4).to_string();
    let client = Client::new(ClientConfig {
        stun_serv_addr: address.clone(),
        turn_serv_addr: address,
        username: USER.into(),
        password: PASSWORD.into(),
        realm: REALM.into(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap()),
        vnet: None,
    })
    .await
    .unwrap();
    client.listen().await.unwrap();
    let relayed = client.allocate().await.unwrap();
    let relayed_address = relayed.local_addr().unwrap();

    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = peer.local_addr().unwrap();
    let mut buffer = [0; 2048];
    // Permission on the first datagram, a channel from then on.
    for round in 0..20u8 {
        let there = vec![round; 100 + usize::from(round)];
        relayed.send_to(&there, at).await.unwrap();
        let got = timeout(PATIENCE, peer.recv_from(&mut buffer)).await;
        let (length, from) = got.expect("in time").unwrap();
        assert_eq!((&buffer[..length], from), (&there[..], relayed_address));

        let back = vec![!round; 200 + usize::from(round)];
        peer.send_to(&back, relayed_address).await.unwrap();
        let got = timeout(PATIENCE, relayed.recv_from(&mut buffer)).await;
        let (length, from) = got.expect("in time").unwrap();
        assert_eq!((&buffer[..length], from), (&back[..], at));
    }
    client.close().await.unwrap();
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .unwrap();
}
