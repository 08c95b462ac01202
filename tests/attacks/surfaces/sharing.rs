//! Ports shared with others: who passes for somebody else, and what reaches the server behind.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use turnix::base::Family;
use turnix::stream::proxy::{self, Route};

use super::super::client::{Client, Ended};
use super::super::common::wire::Request;
use super::super::server::{PATIENCE, Server, until};
use super::tcp::connect_from;
use super::{answers, exchange, metric};

/// The one proxy that is trusted.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 7, 0, 1);

fn server(more: &[&str]) -> Server {
    let listen = "listen=[{ address = '127.0.0.1:0', protocols = ['udp', 'tcp', 'tls'], \
                  trusted_proxies = ['127.7.0.0/16'] }]";
    let set = [&[listen, "http.admin='127.0.0.1:0'"], more].concat();
    Server::with(&["127.0.0.1:0"], &set)
}

fn header(client: &str) -> Vec<u8> {
    proxy::header(Route {
        client: client.parse().unwrap(),
        server: "192.0.2.1:443".parse().unwrap(),
    })
}

/// Allocates as `client`, an address that a proxy told; the relayed address.
#[track_caller]
fn allocate(client: &mut Client, told: &str) -> SocketAddr {
    let reply = client.try_allocate();
    assert_eq!(reply.code(), 0);
    assert_eq!(reply.mapped(), told.parse().unwrap());
    reply.relayed()
}

/// The server ends the connection and says nothing; whether it is reset is a matter of what it had not read.
#[track_caller]
fn is_closed(client: &mut Client) {
    let ended = client.next(PATIENCE).map(drop);
    assert!(
        matches!(ended, Err(Ended::Closed | Ended::Cut)),
        "{ended:?}"
    );
}

/// What the trusted proxy brings for `client`.
fn through_proxy(server: &Server, client: &str) -> TcpStream {
    let mut connection = connect_from(PROXY, server.address(Family::V4));
    connection.set_nodelay(true).unwrap();
    connection.write_all(&header(client)).unwrap();
    connection
}

fn refused(server: &Server) -> f64 {
    metric(server, "turn_stream_refused_total{reason=\"proxy\"}")
}

#[test]
fn nobody_passes_for_another_address() {
    let server = server(&["limits.allocations_per_address=1"]);
    let to = server.address(Family::V4);
    // Strangers who say that they are somebody else are closed unheard.
    let lies = [
        header("203.0.113.7:1000"),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 1000 443\r\n".to_vec(),
        proxy::LOCAL.to_vec(),
    ];
    for (index, lie) in lies.iter().enumerate() {
        let request = Request::binding().bytes();
        assert_eq!(exchange(to, &[&lie[..], &request].concat()), b"");
        until("it is counted", || refused(&server) == index as f64 + 1.0);
    }
    // A second header, of the client behind the proxy, is as bad.
    let mut twice = through_proxy(&server, "203.0.113.7:1000");
    twice.write_all(&header("203.0.113.9:1000")).unwrap();
    let _ = twice.write_all(&Request::binding().bytes());
    is_closed(&mut Client::on_stream(twice));
    until("it is counted", || {
        refused(&server) == lies.len() as f64 + 1.0
    });

    // Quotas, nonces and what operators see go by the client's address.
    let mut first = Client::on_stream(through_proxy(&server, "203.0.113.7:1001"));
    let relayed = allocate(&mut first, "203.0.113.7:1001");
    let seen = server.allocation(relayed);
    assert_eq!(
        seen.view.client,
        "203.0.113.7:1001".parse::<SocketAddr>().unwrap()
    );
    let mut again = Client::on_stream(through_proxy(&server, "203.0.113.7:1002"));
    assert_eq!(again.try_allocate().code(), 486);
    let mut other = Client::on_stream(through_proxy(&server, "203.0.113.8:1001"));
    allocate(&mut other, "203.0.113.8:1001");
    // The proxy's own address has a share of its own.
    let direct = connect_from(Ipv4Addr::new(127, 0, 0, 9), to);
    Client::on_stream(direct).allocate();
}

#[test]
fn two_connections_of_one_address_and_port_never_act_for_each_other() {
    let server = server(&["server.shards=1"]);
    let mut first = Client::on_stream(through_proxy(&server, "203.0.113.7:1001"));
    allocate(&mut first, "203.0.113.7:1001");
    let mut second = Client::on_stream(through_proxy(&server, "203.0.113.7:1001"));
    let _ = second.try_send(&Request::binding().bytes());
    is_closed(&mut second);
    answers(&mut first);
    assert_eq!(first.ask_signed(Request::refresh(600)).code(), 0);
    drop(first);
    until("the first one is gone", || server.live() == 0);
    let mut third = Client::on_stream(through_proxy(&server, "203.0.113.7:1001"));
    allocate(&mut third, "203.0.113.7:1001");
}

#[test]
fn a_flood_of_headers_holds_nobody_up() {
    let server = server(&["limits.connections_per_address=64"]);
    let to = server.address(Family::V4);
    let line = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
    let endless = [&proxy::LOCAL[..14], &[0xFF, 0xFF], &[0; 4000]].concat();
    let mut held = Vec::new();
    for round in 0..300_u32 {
        let mut connection = connect_from(PROXY, to);
        let opening = match round % 3 {
            0 => &line[..],
            1 => &endless,
            // Half a header, and silence.
            _ => &line[..20],
        };
        let _ = connection.write_all(opening);
        held.push(connection);
    }
    answers(&mut Client::tcp(&server));
    answers(&mut Client::udp(&server));
    let client = IpAddr::from([203, 0, 113, 7]);
    let behind = through_proxy(&server, &format!("{client}:1001"));
    answers(&mut Client::on_stream(behind));
    until("those that are none are counted", || {
        refused(&server) == 200.0
    });
    drop(held);
}

#[test]
fn what_is_passed_through_reaches_one_server_and_no_peer() {
    let behind = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!(
        "listen=[{{ address = '127.0.0.1:0', protocols = ['tcp', 'tls'], upstream = '{}' }}]",
        behind.local_addr().unwrap()
    );
    let set = [
        &*listen,
        "limits.upstream_connections=5",
        "http.admin='127.0.0.1:0'",
    ];
    let server = Server::with(&["127.0.0.1:0"], &set);
    let to = server.address(Family::V4);
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut connection = connect_from(Ipv4Addr::LOCALHOST, to);
        // Whatever it asks for, it is the one server's to answer.
        connection
            .write_all(b"GET http://127.0.0.1:22/ HTTP/1.1\r\n")
            .unwrap();
        open.push((connection, behind.accept().unwrap()));
    }
    for _ in 0..5 {
        assert_eq!(exchange(to, b"GET / HTTP/1.1\r\n\r\n"), b"");
    }
    let of = |name: &str| metric(&server, name);
    until("they are counted", || {
        of("turn_upstream_connections_total{result=\"limit\"}") == 5.0
    });
    assert_eq!(of("turn_upstream_connections"), 5.0);
    answers(&mut Client::tcp(&server));
    drop(open);
    until("they are gone", || of("turn_upstream_connections") == 0.0);
}
