//! Users who have credentials, or captured what others sent, and mean harm; and peers that nobody permitted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use stun::attributes::AttrType;
use turnix::access::rest;
use turnix::base::{Family, FiveTuple, ListenerId, Secret, Transport};
use turnix::turn::{AllocationId, DropReason, Forward, IcmpFate, Settings};
use turnix::wire::attribute;

use super::client::{Client, Ended, Frame};
use super::common::wire::{Request, Signer, channel_data};
use super::common::world::{
    EPOCH, PASSWORD, SECRET, USER, World, access_settings, addr, secs, seed, tcp, udp,
};
use super::server::{Server, loopback, now, peer, receive, until};

const CLIENT: &str = "192.0.2.7:4000";

/// Who is permitted, on [`CHANNEL`].
const PEER: &str = "8.8.8.8:5000";
const CHANNEL: u16 = 0x4000;

/// Whom the attacker wants to be permitted, on [`OTHER_CHANNEL`].
const OTHER_PEER: &str = "9.9.9.9:9000";
const OTHER_CHANNEL: u16 = 0x4001;

/// Alice with an allocation, a permission and a channel.
fn victim() -> (World, Signer, AllocationId) {
    let mut world = World::new();
    let (alice, id, _) = world.allocate(udp(CLIENT));
    bind(&mut world, &alice);
    (world, alice, id)
}

fn bind(world: &mut World, signer: &Signer) {
    let bind = Request::channel_bind(CHANNEL, addr(PEER)).sign(signer);
    assert_eq!(world.code(udp(CLIENT), &bind), 0);
}

/// Whatever was tried, the allocation lives, relays as before, and permits nobody else.
#[track_caller]
fn unharmed(world: &mut World, id: AllocationId) {
    assert!(!world.closed.contains(&id) && world.server.has_allocation(udp(CLIENT)));
    let sent = world.input(udp(CLIENT), &channel_data(CHANNEL, b"data"));
    assert!(
        matches!(&sent, Forward::ToPeer { allocation, peer, .. }
            if *allocation == id && peer.address() == addr(PEER)),
        "{sent:?}"
    );
    let received = world.peer_input(id, addr(PEER), b"data");
    assert!(
        matches!(&received, Forward::ToClient { five_tuple, .. } if *five_tuple == udp(CLIENT)),
        "{received:?}"
    );
    let sent = world.input(udp(CLIENT), &channel_data(OTHER_CHANNEL, b"data"));
    assert_eq!(sent, Forward::Drop(DropReason::NoChannel));
    permits_nobody_else(world, id);
}

#[track_caller]
fn permits_nobody_else(world: &mut World, id: AllocationId) {
    let received = world.peer_input(id, addr(OTHER_PEER), b"data");
    assert_eq!(received, Forward::Drop(DropReason::NoPermission));
}

/// Another port of the victim's address, another address, another transport.
fn elsewhere() -> [FiveTuple; 3] {
    [udp("192.0.2.7:4001"), udp("192.0.2.8:4000"), tcp(CLIENT)]
}

/// What an attacker would send in the victim's name.
fn harmful() -> [Request; 4] {
    [
        Request::refresh(0),
        Request::refresh(600),
        Request::create_permission(&[addr(OTHER_PEER)]),
        Request::channel_bind(OTHER_CHANNEL, addr(OTHER_PEER)),
    ]
}

/// A request of alice's, captured and sent from elsewhere: by somebody without an allocation, by somebody who has one as
/// the same user, and over real sockets.
fn replayed_from_elsewhere(request: &Request) {
    for from in elsewhere() {
        for allocated in [false, true] {
            let (mut world, alice, id) = victim();
            let own = allocated.then(|| world.allocate(from).1);
            let reply = world.ask(from, &request.clone().sign(&alice));
            assert_eq!(reply.code(), 438);
            assert_ne!(reply.nonce(), alice.nonce);
            unharmed(&mut world, id);
            if let Some(own) = own {
                permits_nobody_else(&mut world, own);
            }
            assert_eq!(world.server.len(), 1 + usize::from(allocated));
            assert!(world.ended.is_empty());
        }
    }
    // Another address of the server makes another five-tuple of the same client: there is nothing there.
    let (mut world, alice, id) = victim();
    let other = FiveTuple::new(Transport::Udp, addr(CLIENT), ListenerId(7));
    assert_eq!(world.code(other, &request.clone().sign(&alice)), 437);
    unharmed(&mut world, id);

    let server = Server::new();
    for transport in Transport::ALL {
        let mut victim = Client::new(&server, transport, Family::V4);
        let permitted = peer(Ipv4Addr::LOCALHOST);
        let at = permitted.local_addr().unwrap();
        let relayed = victim.allocate();
        victim.bind(CHANNEL, at);
        let captured = request.clone().sign(&victim.signer.clone().unwrap());
        for elsewhere in Transport::ALL {
            let mut thief = Client::new(&server, elsewhere, Family::V4);
            assert_eq!(thief.ask(&captured).code(), 438);
            thief.allocate();
            assert_eq!(thief.ask(&captured).code(), 438);
            thief.release();
        }
        victim.send_channel(CHANNEL, b"as ever");
        assert_eq!(receive(&permitted), (b"as ever".to_vec(), relayed));
        permitted.send_to(b"and back", relayed).unwrap();
        assert_eq!(victim.expect_channel(CHANNEL), b"and back");
        victim.release();
    }
}

#[test]
fn a_captured_refresh_of_zero_from_another_five_tuple() {
    replayed_from_elsewhere(&Request::refresh(0));
}

#[test]
fn a_captured_create_permission_from_another_five_tuple() {
    replayed_from_elsewhere(&Request::create_permission(&[addr(OTHER_PEER)]));
}

#[test]
fn a_captured_channel_bind_from_another_five_tuple() {
    replayed_from_elsewhere(&Request::channel_bind(OTHER_CHANNEL, addr(OTHER_PEER)));
}

#[test]
fn captured_requests_after_the_allocation_ended() {
    for released in [true, false] {
        let (mut world, alice, id) = victim();
        if released {
            let zero = Request::refresh(0).sign(&alice);
            assert_eq!(world.code(udp(CLIENT), &zero), 0);
        } else {
            world.pass(secs(600));
        }
        assert_eq!(world.closed, [id]);
        for request in harmful() {
            let captured = request.sign(&alice);
            assert_eq!(world.code(udp(CLIENT), &captured), 437);
        }
        assert!(world.server.is_empty());
        let late = world.peer_input(id, addr(PEER), b"late");
        assert_eq!(late, Forward::Drop(DropReason::NoAllocation));
    }
}

/// The five-tuple is somebody else's by then: a NAT gave the port to another host.
#[test]
fn captured_requests_onto_the_next_allocation_of_the_five_tuple() {
    let (mut world, alice, _) = victim();
    let captured = harmful().map(|request| request.sign(&alice));
    let zero = Request::refresh(0).sign(&alice);
    assert_eq!(world.code(udp(CLIENT), &zero), 0);
    world.closed.clear();
    let bob = Signer::new("bob", "builder", &world.nonce(udp(CLIENT)));
    let allocate = Request::allocate().sign(&bob);
    assert_eq!(world.code(udp(CLIENT), &allocate), 0);
    let id = *world.opened.last().unwrap();
    bind(&mut world, &bob);
    for request in captured {
        assert_eq!(world.code(udp(CLIENT), &request), 441);
        unharmed(&mut world, id);
    }
}

/// As long as its nonce is good, a request that comes once more from where it came first is that user's own request: it
/// cannot be told from a retransmission. The nonce's lifetime bounds it.
#[test]
fn captured_requests_onto_the_same_users_next_allocation() {
    let settings = Settings {
        nonce_lifetime: secs(60),
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let (before, ..) = world.allocate(udp(CLIENT));
    let captured = harmful().map(|request| request.sign(&before));
    let zero = Request::refresh(0).sign(&before);
    assert_eq!(world.code(udp(CLIENT), &zero), 0);
    world.closed.clear();
    world.pass(secs(61));
    let (alice, id, _) = world.allocate(udp(CLIENT));
    bind(&mut world, &alice);
    for request in captured {
        assert_eq!(world.code(udp(CLIENT), &request), 438);
        unharmed(&mut world, id);
    }
}

#[test]
fn stolen_credentials_of_another_user_on_someones_allocation() {
    let (mut world, alice, id) = victim();
    let bob = Signer::new("bob", "builder", &alice.nonce);
    for request in harmful() {
        let reply = world.ask(udp(CLIENT), &request.sign(&bob));
        assert_eq!(reply.code(), 441);
        unharmed(&mut world, id);
    }
    let allocate = Request::allocate().sign(&bob);
    assert_eq!(world.code(udp(CLIENT), &allocate), 437);
    unharmed(&mut world, id);

    let server = Server::new();
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let relayed = client.allocate();
        let nonce = client.signer.as_ref().unwrap().nonce.clone();
        let bob = Signer::new("bob", "builder", &nonce);
        for request in harmful() {
            let reply = client.ask(&request.sign(&bob));
            assert_eq!(reply.code(), 441, "{transport:?}");
            assert!(reply.is_signed_by(&bob));
        }
        assert_eq!(server.allocation(relayed).view.user.as_ref(), USER);
        client.release();
    }
}

#[test]
fn a_nonce_of_another_address() {
    let mut world = World::new();
    let stolen = world.nonce(udp(CLIENT));
    for from in elsewhere() {
        let alice = Signer::new(USER, PASSWORD, &stolen);
        let reply = world.ask(from, &Request::allocate().sign(&alice));
        assert_eq!(reply.code(), 438);
        let fresh = alice.nonce(&reply.nonce());
        assert_eq!(world.code(from, &Request::allocate().sign(&fresh)), 0);
    }
    let server = Server::new();
    let mut client = Client::udp(&server);
    client.login(USER, PASSWORD);
    for transport in Transport::ALL {
        let mut thief = Client::new(&server, transport, Family::V4);
        thief.signer = client.signer.clone();
        let stolen = Request::allocate().sign(&client.signer.clone().unwrap());
        assert_eq!(thief.ask(&stolen).code(), 438);
    }
    assert_eq!(server.live(), 0);
}

#[test]
fn credentials_that_have_expired() {
    let mut access = access_settings();
    access.strict_expiry = true;
    let mut world = World::with(Settings::default(), &access, seed());
    let expires = EPOCH.as_secs() + 300;
    let (user, password) = rest::mint(&Secret::new(SECRET.into()), Some("carol"), expires);
    let carol = Signer::new(&user, &password, &world.nonce(udp(CLIENT)));
    let allocate = Request::allocate().sign(&carol);
    assert_eq!(world.code(udp(CLIENT), &allocate), 0);
    let id = *world.opened.last().unwrap();
    bind(&mut world, &carol);
    let other = udp("192.0.2.9:4000");
    let late = carol.nonce(&world.nonce(other));
    world.pass(secs(301));
    let reply = world.ask(other, &Request::allocate().sign(&late));
    assert_eq!(reply.code(), 401);
    let reply = world.ask(udp(CLIENT), &Request::refresh(600).sign(&carol));
    assert_eq!(reply.code(), 401);
    assert!(!reply.is_signed_by(&carol));
    // It lives on until its own end, and no longer.
    world.pass(secs(298));
    assert_eq!(world.server.len(), 1);
    world.pass(secs(1));
    assert_eq!(world.closed, [id]);
    let reply = world.ask(udp(CLIENT), &Request::allocate().sign(&carol));
    assert_eq!(reply.code(), 401);
}

#[test]
fn channel_data_and_send_from_another_five_tuple() {
    let data = channel_data(CHANNEL, b"stolen");
    let send = Request::send(addr(PEER), b"stolen").bytes();
    for from in elsewhere() {
        for allocated in [false, true] {
            let (mut world, _, id) = victim();
            let no_way = if allocated {
                world.allocate(from);
                DropReason::NoPermission
            } else {
                DropReason::NoAllocation
            };
            let forward = world.input(from, &data);
            assert_eq!(forward, Forward::Drop(DropReason::NoChannel));
            assert_eq!(world.input(from, &send), Forward::Drop(no_way));
            unharmed(&mut world, id);
        }
    }
    let server = Server::new();
    for transport in Transport::ALL {
        let mut victim = Client::new(&server, transport, Family::V4);
        let permitted = peer(Ipv4Addr::LOCALHOST);
        let at = permitted.local_addr().unwrap();
        let relayed = victim.allocate();
        victim.bind(CHANNEL, at);
        for elsewhere in Transport::ALL {
            let mut thief = Client::new(&server, elsewhere, Family::V4);
            // A connection has to begin with a message.
            assert_eq!(thief.ask(&Request::binding()).code(), 0);
            for allocated in [false, true] {
                if allocated {
                    thief.allocate();
                }
                thief.send_channel(CHANNEL, b"stolen");
                thief.send_indication(at, b"stolen");
                // Its answer says that what came before was looked at.
                assert_eq!(thief.ask(&Request::binding()).code(), 0);
            }
        }
        victim.send_channel(CHANNEL, b"mine");
        assert_eq!(receive(&permitted), (b"mine".to_vec(), relayed));
    }
}

#[test]
fn peers_that_nobody_permitted() {
    let server = Server::new();
    let dropped = || server.dropped(DropReason::NoPermission);
    for family in Family::ALL {
        for transport in Transport::ALL {
            let mut client = Client::new(&server, transport, family);
            let relayed = client.allocate();
            let stranger = peer(loopback(family));
            let send = |count: u64| {
                let before = dropped();
                for _ in 0..count {
                    stranger.send_to(b"let me in", relayed).unwrap();
                }
                until("they are dropped", || dropped() == before + count);
            };
            // A permission for somebody else is none.
            send(10);
            let other: IpAddr = match family {
                Family::V4 => Ipv4Addr::new(127, 0, 0, 2).into(),
                Family::V6 => "2a00::5".parse().unwrap(),
            };
            client.permit(SocketAddr::new(other, 4000));
            client.bind(CHANNEL, SocketAddr::new(other, 4001));
            send(10);
            assert_eq!(
                client.next(Duration::from_millis(1)).map(drop),
                Err(Ended::Silent)
            );
            client.permit(stranger.local_addr().unwrap());
            stranger.send_to(b"come in", relayed).unwrap();
            assert_eq!(client.expect_data().1, b"come in");
        }
    }
}

#[test]
fn peers_whose_permission_is_over() {
    for (family, right, other) in [
        (1, "8.8.8.8:5000", "8.8.4.4:5000"),
        (2, "[2a00:1::8]:5000", "[2a00:1::4]:5000"),
    ] {
        let mut world = World::new();
        let alice = world.alice(udp(CLIENT));
        let allocate = Request::allocate()
            .family(family)
            .lifetime(3600)
            .sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &allocate), 0);
        let id = *world.opened.last().unwrap();
        let bind = Request::channel_bind(CHANNEL, addr(right)).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &bind), 0);
        let passes = |world: &mut World, from: &str| {
            let forward = world.peer_input(id, addr(from), b"data");
            let passes = matches!(forward, Forward::ToClient { .. });
            assert!(passes || forward == Forward::Drop(DropReason::NoPermission));
            passes
        };
        world.pass(secs(299));
        assert_eq!(
            (passes(&mut world, right), passes(&mut world, other)),
            (true, false)
        );
        // The channel lasts for 600 seconds, the permission for 300, timers or not.
        world.pass_unnoticed(secs(1));
        assert!(!passes(&mut world, right));
        world.pass(secs(1));
        assert!(!passes(&mut world, right));
        let permit = Request::create_permission(&[addr(right)]).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &permit), 0);
        assert_eq!(
            (passes(&mut world, right), passes(&mut world, other)),
            (true, false)
        );
    }
}

/// Ports that nobody listens on: below those that the kernel gives to other tests.
fn closed_ports() -> impl Iterator<Item = u16> {
    let first = 10_000 + rand::random::<u16>() % 9000;
    first..first + 16
}

/// Every other datagram is for a port that is closed, which the kernel answers at once with an ICMP error for the
/// relay socket. Everything for the open one arrives, in order, and so does what it sends.
#[test]
fn port_unreachable_floods_cost_no_datagram() {
    const ROUNDS: u32 = 100;
    const BURST: u32 = 32;
    let server = Server::new();
    for family in Family::ALL {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mut client = Client::new(&server, transport, family);
            let relayed = client.allocate();
            let open = peer(loopback(family));
            client.bind(CHANNEL, open.local_addr().unwrap());
            let closed: Vec<u16> = (closed_ports().zip(CHANNEL + 1..))
                .map(|(port, channel)| {
                    client.bind(channel, SocketAddr::new(loopback(family), port));
                    channel
                })
                .collect();
            let mut closed = closed.iter().cycle();
            for round in 0..ROUNDS {
                let number = |at: u32| (round * BURST + at).to_be_bytes();
                let mut burst = Vec::new();
                for at in 0..BURST {
                    let nobody = *closed.next().unwrap();
                    burst.push(client.channel_frame(nobody, b"nobody"));
                    burst.push(client.channel_frame(CHANNEL, &number(at)));
                }
                if transport.is_stream() {
                    client.send(&burst.concat());
                } else {
                    burst.iter().for_each(|frame| client.send(frame));
                }
                for at in 0..BURST {
                    assert_eq!(
                        receive(&open),
                        (number(at).to_vec(), relayed),
                        "{round} {at}"
                    );
                    open.send_to(&number(at), relayed).unwrap();
                }
                for at in 0..BURST {
                    let data = client.expect_channel_among_errors(CHANNEL);
                    assert_eq!(data, number(at), "{round} {at}");
                }
            }
            assert_eq!(server.dropped(DropReason::SendError), 0);
            assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
            client.release();
        }
    }
}

/// Set where the test below runs in a network of its own.
const ALONE: &str = "TURNIX_TEST_NETWORK";

/// ICMP errors that somebody makes up about what the server sent to a peer and to a client: every kind there is.
#[test]
fn forged_icmp_errors_cost_no_datagram() {
    if std::env::var_os(ALONE).is_some() {
        return forge();
    }
    let possible = Command::new("unshare").args(["-rn", "ip", "link"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        let insist = std::env::var_os("INTEROP_REQUIRE_TOOLS").is_some();
        assert!(!insist, "a network of its own cannot be had");
        eprintln!("skipped: `unshare -rn` makes no network here");
        return;
    }
    let name = "hostile::forged_icmp_errors_cost_no_datagram";
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
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

/// Types and codes of errors, and what stands where Packet Too Big and Fragmentation Needed have the MTU.
fn icmp_errors(family: Family) -> Vec<(u8, u8, u32)> {
    let all = |kind: u8, codes: u8| (0..codes).map(move |code| (kind, code, 0));
    match family {
        Family::V4 => (all(3, 16)
            .chain(all(4, 1))
            .chain(all(11, 2))
            .chain(all(12, 3)))
        .chain([(3, 4, 68), (3, 4, 576), (3, 4, 1400)])
        .collect(),
        Family::V6 => (all(1, 8).chain(all(3, 2)).chain(all(4, 3)))
            .chain([(2, 0, 0), (2, 0, 1280), (2, 0, 1400)])
            .collect(),
    }
}

/// An ICMP error about a UDP datagram from `from` to `to`, checksum included where the kernel does not make it.
fn icmp_error((kind, code, rest): (u8, u8, u32), from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut packet = vec![kind, code, 0, 0];
    packet.extend_from_slice(&rest.to_be_bytes());
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend_from_slice(&[0x45, 0, 0, 200, 0, 1, 0x40, 0, 64, 17, 0, 0]);
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0, 0, 180, 17, 64]);
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
        }
        _ => panic!("one family"),
    }
    for port in [from.port(), to.port()] {
        packet.extend_from_slice(&port.to_be_bytes());
    }
    packet.extend_from_slice(&[0, 180, 0, 0]);
    if from.is_ipv4() {
        let words = packet
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        packet[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    packet
}

/// Errors as fast as they can be made: the client is told of a few, and its data passes meanwhile and afterwards.
fn flood(client: &mut Client, open: &UdpSocket, relayed: SocketAddr, forge: impl Fn()) {
    let begin = now();
    let mut told = 0;
    for round in 0..100_u32 {
        (0..100).for_each(|_| forge());
        let bytes = round.to_be_bytes();
        let frame = client.channel_frame(CHANNEL, &bytes);
        client.send(&frame);
        assert_eq!(receive(open), (bytes.to_vec(), relayed));
        open.send_to(&bytes, relayed).unwrap();
        loop {
            match client.expect() {
                Frame::Channel(CHANNEL, data) => {
                    assert_eq!(data, bytes);
                    break;
                }
                Frame::Message(reply) if reply.0.contains(AttrType(attribute::ICMP)) => told += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    let most = 20 + (now() - begin).as_millis() / 100 + 1;
    assert!(told <= most, "told {told}, {most} at most");
}

fn forge() {
    let server = Server::new();
    for family in Family::ALL {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let raw = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        let forge = |error, from: SocketAddr, to: SocketAddr| {
            let packet = icmp_error(error, from, to);
            let host = SocketAddr::new(from.ip(), 0);
            raw.send_to(&packet, &SockAddr::from(host)).unwrap();
        };
        // A connected socket is told, so the errors are ones that the kernel takes seriously.
        let connected = UdpSocket::bind((loopback(family), 0)).unwrap();
        let silent = peer(loopback(family));
        connected.connect(silent.local_addr().unwrap()).unwrap();
        let port_unreachable = match family {
            Family::V4 => (3, 3, 0),
            Family::V6 => (1, 4, 0),
        };
        let (from, to) = (
            connected.local_addr().unwrap(),
            silent.local_addr().unwrap(),
        );
        forge(port_unreachable, from, to);
        until("the error arrives", || {
            connected.take_error().unwrap().is_some()
        });

        for transport in [Transport::Udp, Transport::Tcp] {
            let mut client = Client::new(&server, transport, family);
            let relayed = client.allocate();
            let open = peer(loopback(family));
            let at = open.local_addr().unwrap();
            client.bind(CHANNEL, at);
            for error in icmp_errors(family) {
                for _ in 0..3 {
                    forge(error, relayed, at);
                    forge(error, server.address(family), client.local());
                }
                // Single ones, runs of one size, and one that has to be cut up.
                let sizes = [9, 1200, 1200, 1200, 500, 500, 4000, 1, 1, 1];
                let payload = |at: usize| vec![at as u8; sizes[at]];
                let frames: Vec<_> = (0..sizes.len())
                    .map(|at| client.channel_frame(CHANNEL, &payload(at)))
                    .collect();
                if transport.is_stream() {
                    client.send(&frames.concat());
                } else {
                    frames.iter().for_each(|frame| client.send(frame));
                }
                for at in 0..sizes.len() {
                    assert_eq!(receive(&open), (payload(at), relayed), "{error:?}");
                }
                for at in 0..sizes.len() {
                    open.send_to(&payload(at), relayed).unwrap();
                }
                for at in 0..sizes.len() {
                    assert_eq!(
                        client.expect_channel_among_errors(CHANNEL),
                        payload(at),
                        "{error:?}"
                    );
                }
                assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
            }
            flood(&mut client, &open, relayed, || {
                forge(port_unreachable, relayed, at)
            });
            client.release();
        }
    }
    let stats = server.snapshot().stats;
    assert!(stats.icmp[IcmpFate::RateLimited as usize] > 0);
    for reason in [DropReason::SendError, DropReason::TooLarge] {
        assert_eq!(server.dropped(reason), 0);
    }
}
