//! The admin listener of the running server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use turnix::base::{Family, Transport};

use super::client::{Client, Ended};
use super::server::{BOTH, PATIENCE, Server, peer, receive, until};

/// Status and body of one request on a connection of its own.
fn http(to: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(to).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn server() -> Server {
    Server::with(BOTH, &["http.admin='127.0.0.1:0'"])
}

fn listed(server: &Server) -> Vec<Value> {
    let (status, body) = http(server.admin(), "GET", "/api/v1/allocations");
    assert_eq!(status, 200);
    serde_json::from_str(&body).unwrap()
}

/// The sample of `name` whose labels hold all of `labels`.
fn sample(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut found = (metrics.lines()).filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next()?;
    assert_eq!(found.next(), None, "{name} {labels:?} is ambiguous");
    Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[test]
fn what_became_of_a_call_is_counted() {
    let server = server();
    let ended = |server: &Server, results: &[&str]| -> f64 {
        let text = http(server.admin(), "GET", "/metrics").1;
        let count = |result: &&str| {
            let label = format!("result=\"{result}\"");
            sample(&text, "turn_sessions_total", &[&label]).unwrap()
        };
        results.iter().map(count).sum()
    };
    // One who is answered, one who is not, and one who never calls.
    let all: [(bool, bool, &[&str]); 3] = [
        (true, true, &["established"]),
        // The latter where this takes ten seconds.
        (false, true, &["early", "to_peer_only"]),
        (false, false, &["unused"]),
    ];
    for (answered, called, results) in all {
        let mut client = Client::new(&server, Transport::Udp, Family::V4);
        let relayed = client.allocate();
        let peer = peer(relayed.ip());
        client.bind(0x4000, peer.local_addr().unwrap());
        if called {
            client.send_channel(0x4000, &[1; 100]);
            receive(&peer);
        }
        if answered {
            peer.send_to(&[2; 10], relayed).unwrap();
            client.expect_channel(0x4000);
            let quality = &listed(&server)[0]["quality"];
            assert_eq!(quality["session"], "established", "{quality}");
            assert!(quality["first_data_ms"]["to_client"].is_f64(), "{quality}");
        }
        client.release();
        until(results[0], || ended(&server, results) == 1.0);
    }
    assert_eq!(ended(&server, &["to_client_only"]), 0.0);

    let server = Server::with(BOTH, &["http.admin='127.0.0.1:0'", "quality.mode='off'"]);
    let mut client = Client::new(&server, Transport::Udp, Family::V4);
    let relayed = client.allocate();
    client.bind(0x4000, peer(relayed.ip()).local_addr().unwrap());
    assert_eq!(listed(&server)[0]["quality"], Value::Null);
    client.release();
    // What it relayed is counted either way.
    until("unused", || ended(&server, &["unused"]) == 1.0);
}

#[test]
fn an_allocation_is_shown_while_it_lives() {
    let server = server();
    let metrics = || http(server.admin(), "GET", "/metrics").1;
    assert!(listed(&server).is_empty());
    assert_eq!(sample(&metrics(), "turn_allocation_bytes_total", &[]), None);

    let mut client = Client::new(&server, Transport::Tls, Family::V6);
    let relayed = client.allocate();
    let peer = peer(relayed.ip());
    client.bind(0x4000, peer.local_addr().unwrap());
    client.send_channel(0x4000, &[1; 100]);
    receive(&peer);
    for _ in 0..3 {
        peer.send_to(&[2; 10], relayed).unwrap();
        client.expect_channel(0x4000);
    }
    let shown = listed(&server);
    assert_eq!(shown.len(), 1);
    let shown = &shown[0];
    let id = shown["id"].as_str().unwrap();
    assert_eq!(shown["user"], "alice");
    assert_eq!(shown["transport"], "tls");
    assert_eq!(shown["client"], client.local().to_string());
    assert_eq!(shown["relayed"], relayed.to_string());
    assert_eq!(
        (&shown["channels"], &shown["permissions"]),
        (&1.into(), &1.into())
    );
    assert_eq!(shown["bytes"]["to_peer"], 100);
    assert_eq!(shown["bytes"]["to_client"], 30);
    assert_eq!(shown["packets"]["to_client"], 3);

    let text = metrics();
    let named = format!("allocation=\"{id}\"");
    for (direction, bytes, packets) in [("to_peer", 100.0, 1.0), ("to_client", 30.0, 3.0)] {
        let direction = format!("direction=\"{direction}\"");
        let own = [named.as_str(), &direction];
        assert_eq!(
            sample(&text, "turn_allocation_bytes_total", &own),
            Some(bytes)
        );
        assert_eq!(
            sample(&text, "turn_allocation_packets_total", &own),
            Some(packets)
        );
        let total = ["path=\"kernel\"", direction.as_str()];
        assert_eq!(
            sample(&text, "turn_relayed_bytes_total", &total),
            Some(bytes)
        );
    }
    let tls = ["transport=\"tls\"", "family=\"ipv6\""];
    assert_eq!(sample(&text, "turn_allocations", &tls), Some(1.0), "{text}");
    let connections = ["transport=\"tls\""];
    assert_eq!(
        sample(&text, "turn_stream_connections", &connections),
        Some(1.0)
    );

    client.release();
    drop(client);
    let ended = || {
        let text = metrics();
        (listed(&server).is_empty())
            && sample(&text, "turn_allocation_bytes_total", &[&named]).is_none()
            && sample(&text, "turn_allocations", &tls) == Some(0.0)
            && sample(&text, "turn_stream_connections", &connections) == Some(0.0)
    };
    until("the allocation vanishes", ended);
    // What it relayed stays counted.
    let total = ["path=\"kernel\"", "direction=\"to_peer\""];
    assert_eq!(
        sample(&metrics(), "turn_relayed_bytes_total", &total),
        Some(100.0)
    );
}

#[test]
fn one_allocation_can_be_ended() {
    let server = server();
    for transport in Transport::ALL {
        let mut staying = Client::new(&server, transport, Family::V4);
        let mut ending = Client::new(&server, transport, Family::V4);
        let peer = peer(Ipv4Addr::LOCALHOST);
        let at = peer.local_addr().unwrap();
        for client in [&mut staying, &mut ending] {
            client.allocate();
            client.bind(0x4000, at);
        }
        let client = ending.local().to_string();
        let shown = listed(&server);
        let shown = shown
            .iter()
            .find(|shown| shown["client"] == client)
            .unwrap();
        let path = format!("/api/v1/allocations/{}", shown["id"].as_str().unwrap());
        assert_eq!(http(server.admin(), "DELETE", &path).0, 204);
        assert_eq!(http(server.admin(), "DELETE", &path).0, 404, "gone already");
        assert_eq!(server.live(), 1);

        ending.send_channel(0x4000, b"nowhere");
        staying.send_channel(0x4000, b"somewhere");
        assert_eq!(receive(&peer).0, b"somewhere");
        // The client hears of it when it asks, and may begin anew.
        let refresh = super::common::wire::Request::refresh(600);
        assert_eq!(
            {
                let signer = ending.signer.clone().unwrap();
                ending.ask(&refresh.sign(&signer)).code()
            },
            437
        );
        ending.allocate();
        ending.release();
        staying.release();
    }
}

#[test]
fn all_allocations_of_a_user_can_be_ended() {
    let server = server();
    let mut clients: Vec<_> = (0..9)
        .map(|number| {
            let transport = Transport::ALL[number % Transport::ALL.len()];
            let mut client = Client::new(&server, transport, Family::V4);
            if number < 3 {
                client.login("bob", "builder");
            }
            client.allocate();
            client
        })
        .collect();
    let (status, body) = http(server.admin(), "DELETE", "/api/v1/users/alice/allocations");
    assert_eq!(status, 200);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["ended"], 6);
    let left = listed(&server);
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|shown| shown["user"] == "bob"));
    // Ending an allocation does not close a connection.
    let quiet = clients[4].next(Duration::from_millis(1)).map(drop);
    assert_eq!(quiet, Err(Ended::Silent));
    clients[4].allocate();
}

#[test]
fn health_tells_how_many_there_are() {
    let server = server();
    let health = || {
        let (status, body) = http(server.admin(), "GET", "/health");
        assert_eq!(status, 200);
        serde_json::from_str::<Value>(&body).unwrap()["allocations"].clone()
    };
    assert_eq!(health(), 0);
    let _client = {
        let mut client = Client::udp(&server);
        client.allocate();
        client
    };
    assert_eq!(health(), 1);
}
