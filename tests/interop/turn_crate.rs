//! The `turn` crate's client over UDP: it sends indications until its channel is bound, then ChannelData.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

use crate::server::{Options, PASSWORD, REALM, SECRET, Server, USER};

const STEP: Duration = Duration::from_secs(5);

#[tokio::test]
async fn allocates_binds_and_relays_both_ways() {
    let server = Server::start(Options {
        loopback_peers: true,
        trace: true,
        ..Options::default()
    });
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("peer");
    let peer_address = peer.local_addr().expect("peer");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("client");
    let client_address = socket.local_addr().expect("client");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port)).to_string();
    let client = Client::new(ClientConfig {
        stun_serv_addr: address.clone(),
        turn_serv_addr: address,
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
        realm: REALM.to_owned(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::new(socket),
        vnet: None,
    });
    let client = client.await.expect("client");
    client.listen().await.expect("client");

    let mapped = timeout(STEP, client.send_binding_request())
        .await
        .expect("in time")
        .expect("Binding");
    assert_eq!(mapped, client_address);
    let relay = timeout(STEP, client.allocate())
        .await
        .expect("in time")
        .expect("Allocate");
    let relayed = relay.local_addr().expect("relayed address");
    assert_eq!(relayed.ip(), Ipv4Addr::LOCALHOST);

    let mut buffer = vec![0; 2048];
    for round in 0..40_usize {
        let message = vec![u8::try_from(round).expect("a small number"); 1 + round * 30];
        let sent = timeout(STEP, relay.send_to(&message, peer_address))
            .await
            .expect("in time");
        // It answers with the length of what it put on the wire.
        assert!(sent.expect("sent to the peer") >= message.len());
        let (length, from) = timeout(STEP, peer.recv_from(&mut buffer))
            .await
            .expect("in time")
            .expect("at the peer");
        assert_eq!((from, &buffer[..length]), (relayed, &message[..]));

        let answer: Vec<u8> = message.iter().map(|byte| byte ^ 0xff).collect();
        peer.send_to(&answer, relayed)
            .await
            .expect("sent by the peer");
        let (length, from) = timeout(STEP, relay.recv_from(&mut buffer))
            .await
            .expect("in time")
            .expect("relayed");
        assert_eq!((from, &buffer[..length]), (peer_address, &answer[..]));
    }

    server.wait_for_metrics("the client's requests and bytes are counted", |metrics| {
        let bytes: usize = (0..40).map(|round| 1 + round * 30).sum();
        let bytes = f64::from(u32::try_from(bytes).expect("a small number"));
        ["to_peer", "to_client"].iter().all(|direction| {
            metrics.sum(
                "turn_relayed_bytes_total",
                &[("direction", direction), ("path", "kernel")],
            ) >= bytes
        }) && ["allocate", "create_permission", "channel_bind"]
            .iter()
            .all(|method| {
                metrics.sum(
                    "turn_requests_total",
                    &[("method", method), ("result", "ok")],
                ) >= 1.0
            })
    });
    timeout(STEP, relay.close())
        .await
        .expect("in time")
        .expect("Refresh with lifetime 0");
    server.wait_until_idle();
    if !crate::server::is_stand_in() {
        // At its most talkative the log has the one line about the allocation, and no secret.
        let log = server.log();
        let ended = log.lines().filter(|line| line.contains("allocation ended"));
        let lines: Vec<_> = ended.collect();
        assert_eq!(lines.len(), 1, "{log}");
        for part in [USER, "released", "to_peer_bytes", &relayed.to_string()] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
        for secret in [PASSWORD, SECRET, "PRIVATE KEY"] {
            assert!(!log.contains(secret), "the log shows a secret");
        }
    }
}
