//! Credentials of the test page: a loop through relayed addresses of the same visit, and nothing else, on every
//! transport.

use std::net::{SocketAddr, UdpSocket};

use serde_json::Value;
use turnix::access::DeniedRule;
use turnix::base::{Family, Transport};
use turnix::turn::{Direction, DropReason, LOOP_BITS_PER_SECOND, Path};

use super::client::Client;
use super::common::wire::Request;
use super::server::{Server, until};
use super::service::ask;

const SAME: &[(&str, &str)] = &[("Sec-Fetch-Site", "same-origin")];

/// A visit of the test page.
struct Visit(Value);

impl Visit {
    #[track_caller]
    fn of(server: &Server) -> Self {
        let answer = ask(server.address(Family::V4), "POST", "/test/session", SAME);
        assert_eq!(answer.status, 200, "{}", answer.body);
        Self(serde_json::from_str(&answer.body).unwrap())
    }

    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap()
    }

    fn client(&self, server: &Server, transport: Transport) -> Client {
        let mut client = Client::new(server, transport, Family::V4);
        client.login(self.text("username"), self.text("credential"));
        client
    }
}

#[test]
fn a_visit_loops_on_every_transport() {
    let server = Server::new();
    for transport in Transport::ALL {
        let visit = Visit::of(&server);
        let mut one = visit.client(&server, transport);
        let mut other = visit.client(&server, transport);
        let (first, second) = (one.allocate(), other.allocate());
        one.permit(second);
        other.bind(0x4000, first);
        one.send_indication(second, b"there");
        assert_eq!(other.expect_channel(0x4000), b"there");
        other.send_channel(0x4000, b"and back");
        assert_eq!(one.expect_data(), (second, b"and back".to_vec()));
    }
    assert_eq!(server.relayed(Direction::ToPeer, Path::Kernel).packets, 0);
}

#[test]
fn a_visit_reaches_nothing_else() {
    // Loopback is allowed to everybody else.
    let server = Server::new();
    let mut alice = Client::udp(&server);
    let of_alice = alice.allocate();
    let outside = (0..100)
        .find_map(|_| UdpSocket::bind(("127.0.0.1", rand::random_range(20_000..30_000))).ok())
        .expect("a port below those of relayed addresses");
    let outside_address = outside.local_addr().unwrap();
    outside.set_nonblocking(true).unwrap();
    // Where a relayed address could be, and is not.
    let among_relays = (0..100)
        .find_map(|_| UdpSocket::bind(("127.0.0.1", rand::random_range(61_000..65_000))).ok())
        .expect("a port among those of relayed addresses");
    among_relays.set_nonblocking(true).unwrap();
    let stranger = Visit::of(&server);
    let mut other_visit = stranger.client(&server, Transport::Udp);
    let of_other_visit = other_visit.allocate();
    let denied =
        |server: &Server| server.snapshot().stats.peer_denied[DeniedRule::LoopOnly as usize];
    for transport in Transport::ALL {
        let visit = Visit::of(&server);
        let mut client = visit.client(&server, transport);
        let own = client.allocate();
        let listener = server.address(Family::V4);
        let forbidden: Vec<SocketAddr> = vec![
            // The Internet, the cloud's metadata, other hosts of the network.
            "8.8.8.8:53".parse().unwrap(),
            "169.254.169.254:80".parse().unwrap(),
            "10.0.0.1:80".parse().unwrap(),
            "127.0.0.2:9".parse().unwrap(),
            // A host's other ports, this server's own among them.
            outside_address,
            listener,
            (listener.ip(), 0).into(),
        ];
        for to in forbidden {
            let before = server.dropped(DropReason::PeerDenied);
            let reply = client.ask_signed(Request::channel_bind(0x4001, to));
            assert_eq!(reply.code(), 403, "{transport:?} {to}");
            if to.ip() != own.ip() {
                let reply = client.ask_signed(Request::create_permission(&[to]));
                assert_eq!(reply.code(), 403, "{transport:?} {to}");
                // All of the peers, or none.
                let reply = client.ask_signed(Request::create_permission(&[own, to]));
                assert_eq!(reply.code(), 403, "{transport:?} {to}");
            }
            client.permit(own);
            client.send_indication(to, b"out");
            until("it is dropped", || {
                server.dropped(DropReason::PeerDenied) > before
            });
        }
        // A permission is per IP, and all relayed addresses share one: what is of others is dropped on arrival.
        alice.permit(own);
        other_visit.permit(own);
        for (to, channel) in [(of_alice, 0x4002), (of_other_visit, 0x4003)] {
            let before = denied(&server);
            client.send_indication(to, b"to others");
            client.bind(channel, to);
            client.send_channel(channel, b"to others");
            until("others are spared", || denied(&server) == before + 2);
        }
        let before = server.dropped(DropReason::NoRelay);
        let to = among_relays.local_addr().unwrap();
        client.send_indication(to, b"out");
        client.bind(0x4004, to);
        client.send_channel(0x4004, b"out");
        until("nobody has it", || {
            server.dropped(DropReason::NoRelay) == before + 2
        });
        let before = denied(&server);
        alice.send_indication(own, b"from others");
        other_visit.send_indication(own, b"from others");
        outside.send_to(b"from outside", own).unwrap();
        until("it is spared", || denied(&server) == before + 3);
        // What comes first is what it sent itself.
        client.send_indication(own, b"mine");
        assert_eq!(client.expect_data(), (own, b"mine".to_vec()));
    }
    assert_eq!(server.relayed(Direction::ToPeer, Path::Kernel).packets, 0);
    for silent in [outside, among_relays] {
        assert!(silent.recv(&mut [0; 16]).is_err(), "nothing came");
    }
}

#[test]
fn a_visit_is_small_and_ends_with_its_credentials() {
    let server = Server::with(super::server::BOTH, &["limits.allocations_per_user=1000"]);
    let visit = Visit::of(&server);
    assert_eq!(visit.0["limits"]["allocations"], 16);
    assert_eq!(visit.0["limits"]["bits_per_second"], LOOP_BITS_PER_SECOND);
    assert_eq!(visit.0["ttl"], 300);
    let mut clients: Vec<_> = (0..17)
        .map(|_| visit.client(&server, Transport::Udp))
        .collect();
    for client in clients.iter_mut().take(16) {
        let reply = client.try_allocate();
        assert_eq!(reply.code(), 0);
        assert!(
            (1..=300).contains(&reply.lifetime()),
            "{}",
            reply.lifetime()
        );
        let reply = client.ask_signed(Request::refresh(3600));
        assert!(
            (1..=300).contains(&reply.lifetime()),
            "{}",
            reply.lifetime()
        );
    }
    assert_eq!(clients[16].try_allocate().code(), 486);
    clients[0].release();
    assert_eq!(clients[16].try_allocate().code(), 0);
    // It is nobody's quota but its own.
    let mut alice = Client::udp(&server);
    alice.allocate();
}

#[test]
fn only_the_page_of_this_server_asks() {
    let server = Server::new();
    let to = server.address(Family::V4);
    let same = format!("http://{to}");
    let status = |fields: &[(&str, &str)]| ask(to, "POST", "/test/session", fields).status;
    assert_eq!(status(&[("Origin", &same)]), 200);
    assert_eq!(
        status(&[("Origin", &same), ("Sec-Fetch-Site", "same-origin")]),
        200
    );
    assert_eq!(status(&[]), 200);
    let refused: [&[(&str, &str)]; 7] = [
        &[("Origin", "http://evil.example")],
        &[("Origin", "http://127.0.0.1:1")],
        &[("Origin", "null")],
        &[("Origin", "file:///etc/passwd")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Origin", &same), ("Sec-Fetch-Site", "none")],
    ];
    for fields in refused {
        let answer = ask(to, "POST", "/test/session", fields);
        assert_eq!(answer.status, 403, "{fields:?}");
        assert!(answer.field("access-control-allow-origin").is_none());
    }
    assert_eq!(ask(to, "GET", "/test/session", &[]).status, 405);
    assert_eq!(ask(to, "OPTIONS", "/test/session", &[]).status, 405);
}

#[test]
fn visits_of_a_network_are_few_and_none_without_a_page() {
    let server = Server::new();
    let to = server.address(Family::V4);
    let mut answers = (0..12).map(|_| ask(to, "POST", "/test/session", SAME));
    let refused = answers
        .find(|answer| answer.status != 200)
        .expect("a limit");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.field("retry-after"), Some("10"));

    let server = Server::with(super::server::BOTH, &["http.test_page=false"]);
    let to = server.address(Family::V4);
    assert_eq!(ask(to, "POST", "/test/session", SAME).status, 404);
    assert_eq!(ask(to, "GET", "/test", SAME).status, 404);
}
