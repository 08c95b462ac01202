//! What IP headers carry over real sockets, and the ICMP errors that come back (RFC 8656 §11.5, §13 to §16).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use stun::attributes::{ATTR_DONT_FRAGMENT, AttrType};
use turnix::base::{Family, Transport};
use turnix::net::{self, Batch, HEADROOM, IpFields, Outgoing, Received, UdpOptions};
use turnix::turn::{Direction, DropReason, IcmpFate, Path};
use turnix::wire::attribute;

use super::client::{Client, Frame, Link};
use super::common::wire::{Reply, Request};
use super::server::{BOTH, PATIENCE, Server, loopback, now, peer, receive, until};

/// Best effort, every codepoint of ECN, two classes of DSCP with and without it.
const MARKS: [u8; 8] = [0, 0x01, 0x02, 0x03, 0xB8, 0xBA, 0x88, 0];

/// A socket that sees and sets DSCP and ECN.
struct Marked {
    socket: net::UdpSocket,
    batch: Batch,
}

impl Marked {
    fn new(ip: IpAddr) -> Self {
        let options = UdpOptions {
            recv_buffer_bytes: 1 << 20,
            ..UdpOptions::default()
        };
        let socket = net::UdpSocket::bind(SocketAddr::new(ip, 0), &options).unwrap();
        Self::of(socket)
    }

    fn of(socket: net::UdpSocket) -> Self {
        socket.report_tos(true);
        Self {
            socket,
            batch: Batch::new(1),
        }
    }

    /// The socket of a UDP client, as it is.
    fn on(client: &Client) -> Self {
        let Link::Udp(socket) = &client.link else {
            panic!("a UDP client");
        };
        let socket = socket.try_clone().unwrap();
        Self::of(net::UdpSocket::adopt(socket, &UdpOptions::default()).unwrap())
    }

    fn receive(&mut self) -> (Received, Vec<u8>) {
        let deadline = now() + PATIENCE;
        while !self.batch.receive_one(&self.socket, 0).unwrap() {
            assert!(now() < deadline, "nothing comes");
            std::thread::sleep(Duration::from_millis(1));
        }
        (self.batch.received(0), self.batch.payload(0).to_vec())
    }

    fn send(&mut self, bytes: &[u8], to: SocketAddr, tos: u8) {
        self.batch.buffer_mut(0)[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        let item = Outgoing {
            slot: 0,
            start: HEADROOM as u32,
            len: bytes.len() as u32,
            to,
            from: None,
            front: None,
            fields: IpFields {
                tos,
                dont_fragment: false,
            },
        };
        assert_eq!(self.batch.send(&self.socket, &[item]).sent, 1);
    }
}

/// What the client sends from now on says so.
fn mark(client: &Client, tos: u8) {
    let Link::Udp(socket) = &client.link else {
        return;
    };
    let socket = SockRef::from(socket);
    match Family::of(client.local().ip()) {
        Family::V4 => socket.set_tos_v4(tos.into()).unwrap(),
        Family::V6 => socket.set_tclass_v6(tos.into()).unwrap(),
    }
}

/// Marks that a peer and a client see where the other one set all of [`MARKS`], on a channel and in indications.
fn seen(server: &Server, transport: Transport, family: Family) -> [Vec<u8>; 2] {
    seen_across(server, transport, family, family)
}

/// The same with a relayed address of the family `relay`.
fn seen_across(
    server: &Server,
    transport: Transport,
    family: Family,
    relay: Family,
) -> [Vec<u8>; 2] {
    let mut client = Client::new(server, transport, family);
    client.family = relay;
    let relayed = client.allocate();
    let mut peer = Marked::new(loopback(relay));
    let at = peer.socket.local_addr();
    let mut seen = [Vec::new(), Vec::new()];
    for channel in [false, true] {
        match channel {
            false => client.permit(at),
            true => client.bind(0x4000, at),
        }
        for tos in MARKS {
            mark(&client, tos);
            match channel {
                false => client.send_indication(at, &[tos; 100]),
                true => client.send_channel(0x4000, &[tos; 100]),
            }
        }
        for tos in MARKS {
            let (received, bytes) = peer.receive();
            assert_eq!(bytes, [tos; 100], "in order");
            seen[0].push(received.tos);
        }
        if transport.is_stream() {
            continue;
        }
        let mut at_client = Marked::on(&client);
        for tos in MARKS {
            peer.send(&[tos; 100], relayed, tos);
        }
        for tos in MARKS {
            let (received, bytes) = at_client.receive();
            assert!(bytes.ends_with(&[tos; 100]), "in order");
            seen[1].push(received.tos);
        }
    }
    seen
}

#[test]
fn rfc8656_14_dscp_and_ecn_stay_between_udp_clients_and_peers() {
    let server = Server::new();
    let all = [MARKS, MARKS].concat();
    for family in Family::ALL {
        assert_eq!(
            seen(&server, Transport::Udp, family),
            [all.clone(), all.clone()]
        );
    }
}

#[test]
fn rfc8656_13_dscp_and_ecn_stay_between_families() {
    let server = Server::new();
    let all = [MARKS, MARKS].concat();
    for (client, relay) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        assert_eq!(
            seen_across(&server, Transport::Udp, client, relay),
            [all.clone(), all.clone()]
        );
    }
}

/// However long nobody has marked anything, whoever begins to is noticed.
#[test]
fn marks_that_begin_late_are_noticed() {
    let server = Server::new();
    let mut client = Client::udp(&server);
    let relayed = client.allocate();
    let mut peer = Marked::new(loopback(Family::V4));
    client.bind(0x4000, peer.socket.local_addr());
    let mut at_client = Marked::on(&client);
    let mut pass = |tos| {
        peer.send(&[tos], relayed, tos);
        at_client.receive().0.tos
    };
    for _ in 0..3 {
        for _ in 0..400 {
            assert_eq!(pass(0), 0);
        }
        let unnoticed = (0..2000).take_while(|_| pass(0xBA) == 0).count();
        assert!(unnoticed < 1100, "{unnoticed}");
        for _ in 0..400 {
            assert_eq!(pass(0xBB), 0xBB);
        }
    }
}

#[test]
fn rfc8656_15_a_connection_marks_nothing() {
    let server = Server::new();
    let [to_peer, _] = seen(&server, Transport::Tcp, Family::V4);
    assert_eq!(to_peer, [0; 2 * MARKS.len()]);
}

#[test]
fn dscp_and_ecn_are_zero_where_the_configuration_says_so() {
    let server = Server::with(BOTH, &["protocol.dscp='zero'"]);
    for family in Family::ALL {
        let zero = vec![0; 2 * MARKS.len()];
        assert_eq!(seen(&server, Transport::Udp, family), [zero.clone(), zero]);
    }
}

/// On a socket of both families, which tells of IPv4 by other options.
#[test]
fn dscp_and_ecn_stay_on_a_wildcard_of_both_families() {
    let server = Server::with(&["[::]:0"], &["relay.addresses=[\"127.0.0.1\"]"]);
    let port = server.address(Family::V6).port();
    for asked in Family::ALL.map(loopback) {
        let mut client =
            Client::between(&server, Transport::Udp, asked, SocketAddr::new(asked, port));
        client.family = Family::V4;
        let relayed = client.allocate();
        let mut peer = Marked::new(loopback(Family::V4));
        client.bind(0x4000, peer.socket.local_addr());
        let mut at_client = Marked::on(&client);
        for tos in MARKS {
            mark(&client, tos);
            client.send_channel(0x4000, &[tos]);
            assert_eq!(peer.receive().0.tos, tos, "{asked}");
            peer.send(&[tos], relayed, tos);
            assert_eq!(at_client.receive().0.tos, tos, "{asked}");
        }
    }
}

/// Within a shard and across: every pair of clients is on its own shards.
#[test]
fn dscp_and_ecn_stay_from_relay_to_relay() {
    let server = Server::new();
    for _ in 0..8 {
        let (mut alice, mut bob) = (Client::udp(&server), Client::udp(&server));
        let (at_alice, at_bob) = (alice.allocate(), bob.allocate());
        alice.bind(0x4000, at_bob);
        bob.bind(0x4000, at_alice);
        let mut ears = Marked::on(&bob);
        for tos in MARKS {
            mark(&alice, tos);
            alice.send_channel(0x4000, &[tos; 9]);
            assert_eq!(ears.receive().0.tos, tos);
        }
    }
}

/// Datagrams of one size that differ in nothing else leave as one message, those that do differ do not.
#[test]
fn trains_are_of_one_mark() {
    let server = Server::new();
    let mut client = Client::udp(&server);
    client.allocate();
    let mut peer = Marked::new(loopback(Family::V4));
    client.bind(0x4000, peer.socket.local_addr());
    for round in 0..200_u32 {
        for at in 0..16 {
            let tos = MARKS[(at as usize / 3 + round as usize) % MARKS.len()];
            mark(&client, tos);
            client.send_channel(0x4000, &[&[tos][..], &[at; 500]].concat());
        }
        for at in 0..16 {
            let (received, bytes) = peer.receive();
            assert_eq!((bytes[0], bytes[1]), (received.tos, at));
        }
    }
    assert_eq!(
        server.relayed(Direction::ToPeer, Path::Kernel).packets,
        200 * 16
    );
}

/// The next Data indication with ICMP: whom it is about, type, code, data.
#[track_caller]
fn expect_icmp(client: &mut Client) -> (SocketAddr, u8, u8, u32) {
    match client.expect() {
        Frame::Message(reply) => icmp(&reply).expect("an ICMP error"),
        other => panic!("{other:?}"),
    }
}

fn icmp(reply: &Reply) -> Option<(SocketAddr, u8, u8, u32)> {
    let value = reply.attr(AttrType(attribute::ICMP))?;
    let [0, 0, kind, code, data @ ..] = value.as_slice() else {
        panic!("{value:?}");
    };
    let data = u32::from_be_bytes(data.try_into().unwrap());
    Some((reply.peer(), *kind, *code, data))
}

fn closed(family: Family) -> SocketAddr {
    UdpSocket::bind((loopback(family), 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A port that nobody has open: the kernel's own ICMP error comes to the client, as a Data indication.
#[test]
fn rfc8656_11_5_a_closed_port_is_told() {
    let server = Server::new();
    for transport in Transport::ALL {
        for family in Family::ALL {
            let mut client = Client::new(&server, transport, family);
            client.allocate();
            let nobody = closed(family);
            let (kind, code) = match family {
                Family::V4 => (3, 3),
                Family::V6 => (1, 4),
            };
            client.permit(nobody);
            client.send_indication(nobody, b"anybody?");
            assert_eq!(expect_icmp(&mut client), (nobody, kind, code, 0));
            let other = closed(family);
            client.bind(0x4000, other);
            client.send_channel(0x4000, b"anybody?");
            assert_eq!(expect_icmp(&mut client), (other, kind, code, 0));
            // And what comes for others arrives.
            let open = peer(loopback(family));
            let at = open.local_addr().unwrap();
            client.bind(0x4001, at);
            client.send_channel(0x4001, b"somebody");
            assert_eq!(receive(&open).0, b"somebody");
        }
    }
    assert_eq!(server.dropped(DropReason::SendError), 0);
    until("errors are counted", || {
        server.snapshot().stats.icmp[IcmpFate::Told as usize] >= 12
    });
}

#[test]
fn a_closed_port_is_not_told_where_the_configuration_says_so() {
    let server = Server::with(BOTH, &["protocol.icmp=false"]);
    let mut client = Client::udp(&server);
    client.allocate();
    let nobody = closed(Family::V4);
    client.permit(nobody);
    for _ in 0..10 {
        client.send_indication(nobody, b"anybody?");
    }
    let open = peer(loopback(Family::V4));
    client.send_indication(open.local_addr().unwrap(), b"somebody");
    assert_eq!(receive(&open).0, b"somebody");
    assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    let stats = server.snapshot().stats;
    assert_eq!(stats.icmp, [0; IcmpFate::ALL.len()]);
}

/// Set where the test below runs in a network of its own.
const ALONE: &str = "TURNIX_TEST_NETWORK";

/// This host, and a router with a link of 1300 bytes behind it.
const NETWORK: &str = "
set -e
mount -t tmpfs none /run
ip link set lo up mtu 1500
ip netns add router
ip link add here type veth peer name there netns router
ip addr add 203.0.115.1/24 dev here
ip addr add 203.0.115.5/24 dev here
ip link set here up
ip netns exec router sh -c '
    ip link set lo up
    ip addr add 203.0.115.2/24 dev there
    ip link set there up
    ip link add near type veth peer name far
    ip addr add 203.0.114.1/24 dev near
    ip link set near mtu 1300 up
    ip link set far mtu 1300 up
    ip neigh add 203.0.114.9 lladdr 02:00:00:00:00:09 dev near
    echo 1 > /proc/sys/net/ipv4/ip_forward
'
ip route add 203.0.114.0/24 via 203.0.115.2
exec \"$0\" \"$@\"
";

/// Real routers, and the headers that a raw socket sees.
#[test]
fn rfc8656_14_dont_fragment_on_a_real_path() {
    if std::env::var_os(ALONE).is_some() {
        return path();
    }
    let possible = Command::new("unshare")
        .args(["-rnm", "ip", "link"])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        let insist = std::env::var_os("INTEROP_REQUIRE_TOOLS").is_some();
        assert!(!insist, "a network of its own cannot be had");
        eprintln!("skipped: `unshare -rnm` makes no network here");
        return;
    }
    let name = "headers::rfc8656_14_dont_fragment_on_a_real_path";
    let output = Command::new("unshare")
        .args(["-rnm", "sh", "-c", NETWORK])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "yes")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

/// The next datagram that arrives for `port`: its IPv4 header's second word, of which 0x4000 is DF, and its size.
fn next_header(raw: &mut Socket, port: u16) -> (u16, usize) {
    use std::io::Read;
    let mut packet = [0; 65_536];
    loop {
        let length = raw.read(&mut packet).expect("a datagram in time");
        let to = u16::from_be_bytes([packet[22], packet[23]]);
        if to == port {
            return (u16::from_be_bytes([packet[6], packet[7]]), length - 28);
        }
    }
}

fn path() {
    let server = Server::with(
        &["127.0.0.1:0"],
        &[
            "relay.addresses=['127.0.0.1', '203.0.115.1']",
            "peers.allow=['loopback', '203.0.115.5', '203.0.114.9']",
        ],
    );
    let whole = |to: SocketAddr, bytes: usize| {
        Request::send(to, &vec![7; bytes])
            .attr(ATTR_DONT_FRAGMENT.0, &[])
            .bytes()
    };
    for transport in [Transport::Udp, Transport::Tcp] {
        near(&server, transport, whole);
        far(&server, transport, whole);
    }
    let kinds = [DropReason::SendError, DropReason::SendBuffer];
    assert_eq!(kinds.map(|reason| server.dropped(reason)), [0, 0]);
}

/// On loopback, with an MTU of 1500.
fn near(server: &Server, transport: Transport, whole: impl Fn(SocketAddr, usize) -> Vec<u8>) {
    let mut raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = from(server, transport, "127.0.0.1");
    let open = peer(loopback(Family::V4));
    let at = open.local_addr().unwrap();
    client.bind(0x4000, at);
    // Each is longer than the one before: equal ones would pass loopback as one.
    let steps = [
        (false, 100),
        (true, 200),
        (true, 300),
        (false, 400),
        (false, 500),
        (true, 1471),
        (false, 1472),
        (true, 1472),
    ];
    let mut burst = Vec::new();
    for (df, bytes) in steps {
        let frame = if df {
            whole(at, bytes)
        } else {
            client.channel_frame(0x4000, &vec![7; bytes])
        };
        if transport.is_stream() {
            burst.extend(frame);
        } else {
            client.send(&frame);
        }
    }
    if transport.is_stream() {
        client.send(&burst);
    }
    for (df, bytes) in steps {
        let (word, length) = next_header(&mut raw, at.port());
        assert_eq!((word & 0x4000 != 0, length), (df, bytes), "{transport:?}");
        assert_eq!(receive(&open).0.len(), bytes);
    }
    // Nothing forbids to cut these up.
    client.send_channel(0x4000, &[7; 4000]);
    assert_eq!(receive(&open).0.len(), 4000);
    // What the first link does not take does not leave, and the client hears how much it does take.
    client.send(&whole(at, 1473));
    assert_eq!(expect_icmp(&mut client), (at, 3, 4, 1500));
    client.send_channel(0x4000, b"and on");
    assert_eq!(receive(&open).0, b"and on");
}

/// Through a router whose next link takes 1300 bytes.
fn far(server: &Server, transport: Transport, whole: impl Fn(SocketAddr, usize) -> Vec<u8>) {
    let mut client = from(server, transport, "203.0.115.1");
    let at: SocketAddr = "203.0.114.9:9".parse().unwrap();
    let open = peer("203.0.115.5".parse::<IpAddr>().unwrap());
    client.permit(at);
    client.permit(open.local_addr().unwrap());
    for _ in 0..3 {
        // Fits, may be cut up: nobody complains.
        client.send(&whole(at, 1272));
        client.send_indication(at, &[7; 1400]);
        client.send(&whole(at, 1273));
        assert_eq!(expect_icmp(&mut client), (at, 3, 4, 1300), "{transport:?}");
        // What a router said of one datagram is not held against the next.
        client.send_indication(open.local_addr().unwrap(), &[7; 1400]);
        assert_eq!(receive(&open).0.len(), 1400);
    }
}

/// A client with an allocation on the relay address `ip`.
fn from(server: &Server, transport: Transport, ip: &str) -> Client {
    let ip: IpAddr = ip.parse().unwrap();
    for _ in 0..200 {
        let mut client = Client::new(server, transport, Family::V4);
        let relayed = client.allocate();
        if relayed.ip() == ip {
            return client;
        }
        client.release();
    }
    panic!("no allocation on {ip}");
}
