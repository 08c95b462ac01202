//! Clients without credentials, many of them, some of them lying about who they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stun::message::{CLASS_SUCCESS_RESPONSE, METHOD_BINDING};
use stun::message::{METHOD_ALLOCATE, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION};
use turnix::access::{AddressRate, AuthFailure};
use turnix::base::{Family, FiveTuple, ListenerId, Transport};
use turnix::net::{Batch, HEADROOM, IpFields, Outgoing, UdpOptions, UdpSocket};
use turnix::turn::{DropReason, Forward, Settings, Vantage};

use super::client::Client;
use super::common::wire::{REALM, Reply, Request, Signer, channel_data};
use super::common::world::{
    PASSWORD, RELAY_V4, RELAY_V6, USER, World, access_settings, seed, tcp, udp,
};
use super::server::{Server, loopback, peer, quiet_address, receive, until};

const LIMITED: Forward = Forward::Drop(DropReason::RateLimited);

/// What an address gets at once, and per second.
const BURST: usize = 1000;
const PER_SECOND: usize = 100;

fn from(ip: impl Into<IpAddr>, port: u16) -> FiveTuple {
    FiveTuple::new(
        Transport::Udp,
        SocketAddr::new(ip.into(), port),
        ListenerId(0),
    )
}

/// How many of `count` Binding requests from `client` are answered; the others are dropped in silence and counted.
fn answered(world: &mut World, client: FiveTuple, count: usize) -> usize {
    let request = Request::binding().bytes();
    let before = world.server.stats().dropped[DropReason::RateLimited as usize];
    let answers: usize = (0..count)
        .map(|_| {
            world.sent.clear();
            let forward = world.input(client, &request);
            match world.sent.len() {
                0 => assert_eq!(forward, LIMITED),
                _ => assert_eq!(forward, Forward::Consumed),
            }
            world.sent.len()
        })
        .sum();
    let silent = world.server.stats().dropped[DropReason::RateLimited as usize] - before;
    assert_eq!(answers + silent as usize, count);
    answers
}

#[test]
fn answers_are_hardly_larger_than_what_asks_for_them() {
    let mut world = World::new();
    let (v4, v6) = (udp("192.0.2.7:4000"), udp("[2001:db8::7]:4000"));
    let mut answer = |client: FiveTuple, request: Request| {
        let request = request.bytes();
        let answers = world.ask_raw(client, &request);
        assert_eq!(answers.len(), 1);
        (request.len(), answers[0].len())
    };
    assert_eq!(answer(v4, Request::binding()), (20, 32));
    assert_eq!(answer(v6, Request::binding()), (20, 44));
    let (asked, challenged) = answer(v4, Request::allocate());
    assert_eq!((asked, challenged, REALM.len()), (28, 72, 11));
    assert!(challenged * 10 <= asked * 26);
    // The shortest requests there are: with the headers of IPv4 and UDP the answer is twice as long.
    for method in [
        METHOD_ALLOCATE,
        METHOD_CREATE_PERMISSION,
        METHOD_CHANNEL_BIND,
    ] {
        assert_eq!(answer(v4, Request::new(method)), (20, 72));
    }
    // Nor does an answer grow with what it complains about.
    for unknown in [1, 2, 60, 300] {
        let request = (0..unknown).fold(Request::binding(), |request, kind| {
            request.attr(0x7000 + kind, &[])
        });
        let (asked, told) = answer(v4, request);
        assert!(told <= asked.max(24) + 12, "{unknown}: {asked} -> {told}");
    }
}

#[test]
fn discovery_tells_strangers_little_and_third_parties_nothing() {
    let mut world = World::new();
    let ids = |a, b| [ListenerId(a), ListenerId(b)];
    world.server.set_vantages(vec![Vantage {
        listeners: [ids(0, 11), ids(20, 21)],
        seen: [1, 2]
            .map(|ip| [3478, 3479].map(|port| SocketAddr::from(([198, 51, 100, ip], port)))),
    }]);
    let client = udp("192.0.2.7:4000");
    let mut told = |attributes: &[(u16, &[u8])]| {
        let request = (attributes.iter()).fold(Request::binding(), |request, (kind, value)| {
            request.attr(*kind, value)
        });
        world.sent.clear();
        world.input(client, &request.bytes());
        let length: usize = world.sent.iter().map(|(_, message)| message.len()).sum();
        for (to, _) in &world.sent {
            assert_eq!(
                to.client().ip(),
                client.client().ip(),
                "another host is told"
            );
        }
        (request.bytes().len(), length)
    };
    // What it costs at all is what an operator turns on; no attribute buys more than it weighs.
    assert_eq!(told(&[]), (20, 68));
    for attributes in [
        &[(0x0026, &[0; 0][..])][..],
        &[(0x0026, &[0; 1400])],
        &[(0x0003, &[0, 0, 0, 6]), (0x0026, &[0; 64])],
        &[(0x0003, &[0, 0, 0, 6]), (0x0027, &[0x17, 0x70])],
        // RESPONSE-ADDRESS of RFC 3489, which named anybody.
        &[(0x0002, &[0, 1, 0, 80, 203, 0, 113, 9])],
    ] {
        let (asked, answered) = told(attributes);
        assert!(answered <= asked + 48, "{asked} -> {answered}");
    }
}

#[test]
fn an_address_is_answered_so_often_and_then_again() {
    for (client, neighbour) in [
        (udp("192.0.2.7:4000"), udp("192.0.2.8:4000")),
        (udp("[2a00:1::7]:4000"), udp("[2a00:1:0:1::7]:4000")),
    ] {
        let mut world = World::new();
        assert_eq!(answered(&mut world, client, BURST + 500), BURST);
        // Port and method make no difference, and what is over is not so much as looked at.
        let ip = client.client().ip();
        assert_eq!(answered(&mut world, from(ip, 9), 10), 0);
        let broken = Request::allocate().attr(0x7ABC, &[]).bytes();
        assert_eq!(world.input(client, &broken), LIMITED);
        assert_eq!(answered(&mut world, neighbour, 10), 10);

        world.pass(Duration::from_millis(9));
        assert_eq!(answered(&mut world, client, 3), 0);
        world.pass(Duration::from_millis(1));
        assert_eq!(answered(&mut world, client, 3), 1);
        world.pass(Duration::from_secs(1));
        assert_eq!(answered(&mut world, client, 500), PER_SECOND);
        world.pass(Duration::from_secs(3600));
        assert_eq!(answered(&mut world, client, BURST + 1), BURST);
    }
}

#[test]
fn what_one_subscriber_can_change_at_will_is_one_address() {
    let mut world = World::new();
    let subscriber: u128 = 0x2a00_0001_0002_0003 << 64;
    let answers: usize = (0..2000)
        .map(|host| {
            let ip = Ipv6Addr::from_bits(subscriber | host << 13 | 1);
            answered(&mut world, from(ip, 4000), 1)
        })
        .sum();
    assert_eq!(answers, BURST);
}

#[test]
fn a_network_gets_four_times_what_an_address_gets() {
    let v4 = (0..=255).map(|host| IpAddr::from([198, 51, 7, host]));
    let v6 = (0..=255u128)
        .map(|net| IpAddr::from(Ipv6Addr::from_bits(0x2a00_0001_0002_0300 << 64 | net << 64)));
    let outside = ["198.51.8.1", "2a00:1:2:400::"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let networks: [Vec<IpAddr>; 2] = [v4.collect(), v6.collect()];
    for (network, outside) in networks.into_iter().zip(outside) {
        let mut world = World::new();
        let answers: usize = (network.iter())
            .map(|ip| answered(&mut world, from(*ip, 4000), 50))
            .sum();
        assert_eq!(answers, 4 * BURST, "{network:?}");
        assert_eq!(answered(&mut world, from(outside, 4000), 10), 10);
        world.pass(Duration::from_secs(1));
        let answers: usize = (network.iter())
            .map(|ip| answered(&mut world, from(*ip, 4000), 50))
            .sum();
        assert_eq!(answers, 4 * PER_SECOND);
    }
}

#[test]
fn a_limit_of_zero_is_none() {
    let settings = Settings {
        unauthenticated_per_address: 0,
        auth_failures_per_address: 0,
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let client = udp("192.0.2.7:4000");
    assert_eq!(answered(&mut world, client, 10_000), 10_000);
    let guess = guess(&mut world, client, USER, "wrong");
    for _ in 0..1000 {
        assert_eq!(world.ask_raw(client, &guess).len(), 1);
    }
}

#[test]
fn connections_and_loopback_are_not_limited() {
    let mut world = World::new();
    for client in [
        tcp("192.0.2.7:4000"),
        udp("127.0.0.1:4000"),
        udp("127.9.8.7:4000"),
        udp("[::1]:4000"),
        udp("[::ffff:127.0.0.1]:4000"),
    ] {
        assert_eq!(answered(&mut world, client, 2 * BURST), 2 * BURST);
    }
    // Nor did they take anything from a datagram client of the same address.
    assert_eq!(
        answered(&mut world, udp("192.0.2.7:4000"), 2 * BURST),
        BURST
    );
}

#[test]
fn two_hundred_users_behind_one_nat_join_at_once_and_again() {
    let mut world = World::new();
    let peer: SocketAddr = "8.8.8.8:5000".parse().unwrap();
    // A page load, and a reload before anything was given back.
    for round in 0..2 {
        for user in 0..200 {
            let client = udp(&format!("203.0.113.9:{}", 10_000 + 1000 * round + user));
            assert_eq!(world.ask(client, &Request::binding()).code(), 0);
            let (alice, _, _) = world.allocate(client);
            let bind = Request::channel_bind(0x4000, peer).sign(&alice);
            assert_eq!(world.ask(client, &bind).code(), 0);
        }
    }
    assert_eq!(
        world.server.stats().dropped[DropReason::RateLimited as usize],
        0
    );
    // Their nonces end together, too.
    world.pass(Duration::from_secs(10));
    let before = world.opened.len();
    for user in 0..200 {
        let client = udp(&format!("203.0.113.9:{}", 10_000 + user));
        let stale = Signer::new(USER, PASSWORD, "gone");
        assert_eq!(world.code(client, &Request::refresh(600).sign(&stale)), 438);
    }
    assert_eq!(world.opened.len(), before);
}

#[test]
fn who_has_credentials_is_served_while_strangers_are_not() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let newcomer = udp("192.0.2.7:4001");
    let (alice, _, _) = world.allocate(client);
    let bob = Signer::new("bob", "builder", &world.nonce(newcomer));
    answered(&mut world, client, 2 * BURST);
    assert_eq!(answered(&mut world, client, 1), 0);
    for _ in 0..2 * BURST {
        assert_eq!(world.code(client, &Request::refresh(600).sign(&alice)), 0);
    }
    assert_eq!(
        world.code(newcomer, &Request::allocate().sign(&bob)),
        0,
        "a nonce from before is as good as ever"
    );
    // What is wrong with a request of somebody known is told at any rate.
    for _ in 0..2 * BURST {
        assert_eq!(world.code(client, &Request::allocate().sign(&alice)), 437);
    }
    // They took nothing from the strangers either: a second is a hundred tokens.
    world.pass(Duration::from_secs(1));
    assert_eq!(answered(&mut world, client, 500), PER_SECOND);
}

/// An Allocate of `user` with `password` and a nonce that is right.
fn guess(world: &mut World, client: FiveTuple, user: &str, password: &str) -> Vec<u8> {
    let signer = Signer::new(user, password, &world.nonce(client));
    Request::allocate().sign(&signer).bytes()
}

#[test]
fn guesses_are_answered_ten_times_a_second_and_all_of_them_counted() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let (guesses, wrong_realm) = {
        let password = guess(&mut world, client, USER, "wrong");
        let name = guess(&mut world, client, "nobody", "wrong");
        let limited = guess(&mut world, client, "1999999999:carol", "wrong");
        let nonce = world.nonce(client);
        let mut elsewhere = Signer::new(USER, PASSWORD, &nonce);
        elsewhere.realm = "example.com".into();
        let realm = Request::allocate().sign(&elsewhere).bytes();
        ([password, name, limited], realm)
    };
    let counted = |world: &World| -> u64 {
        [
            AuthFailure::BadPassword,
            AuthFailure::UnknownUser,
            AuthFailure::WrongRealm,
        ]
        .map(|failure| world.server.stats().auth_failures[failure as usize])
        .iter()
        .sum()
    };
    let mut answers = 0;
    for at in 0..600 {
        let replies = world.ask_raw(client, &guesses[at % guesses.len()]);
        answers += replies.len();
        assert!(
            (replies.iter()).all(|reply| Reply::parse(reply).code() == 401),
            "{at}"
        );
    }
    assert_eq!(answers, BURST / 10);
    assert_eq!(counted(&world), 600);
    assert!(world.ask_raw(client, &wrong_realm).is_empty());
    assert_eq!(counted(&world), 601);

    // Who shares the guesser's address is served: a newcomer, and who has an allocation.
    let neighbour = udp("192.0.2.7:4001");
    let (alice, _, _) = world.allocate(neighbour);
    assert_eq!(
        world.code(neighbour, &Request::refresh(600).sign(&alice)),
        0
    );
    world.pass(Duration::from_secs(1));
    let answers: usize = (0..50)
        .map(|_| world.ask_raw(client, &guesses[0]).len())
        .sum();
    assert_eq!(answers, 10);
}

#[test]
fn half_of_the_credentials_is_none() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let signer = Signer::new(USER, PASSWORD, "");
    let half = Request::allocate().integrity(&signer).bytes();
    let answers: usize = (0..2 * BURST)
        .map(|_| world.ask_raw(client, &half).len())
        .sum();
    assert_eq!(answers, BURST);
    // A request that somebody recorded proves nothing about who sends it again from elsewhere.
    let (alice, _, _) = world.allocate(udp("192.0.3.7:4000"));
    let recorded = Request::refresh(600).sign(&alice).bytes();
    let victim = udp("192.0.4.7:4000");
    let answers: usize = (0..2 * BURST)
        .map(|_| world.ask_raw(victim, &recorded).len())
        .sum();
    assert_eq!(answers, BURST);
}

#[test]
fn buckets_take_the_same_memory_whoever_comes() {
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    let mut rate = AddressRate::new(100, hasher);
    let before = rate.bytes();
    assert!(before <= 128 * 1024);
    let admitted = (0..1_000_000u32)
        .filter(|at| {
            let ip = Ipv4Addr::from_bits(at.wrapping_mul(2_654_435_761));
            // A second in all: each of the 8192 buckets is asked for 122 tokens.
            rate.admit(Duration::from_micros((*at).into()), ip.into())
        })
        .count();
    assert_eq!(rate.bytes(), before);
    assert_eq!(admitted, 1_000_000, "a flood empties nobody's bucket soon");
}

#[test]
fn nothing_is_said_to_what_asked_for_nothing() {
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let response = Request::of_class(METHOD_BINDING, CLASS_SUCCESS_RESPONSE).bytes();
    let truncated = Request::allocate().bytes()[..21].to_vec();
    let binding = Request::binding().bytes();
    let own = |ip: &str, port| from(ip.parse::<IpAddr>().unwrap(), port);
    for (client, bytes, reason) in [
        (client, response, DropReason::Unexpected),
        (client, vec![0xFF; 600], DropReason::NotStun),
        (client, Vec::new(), DropReason::NotStun),
        (client, vec![0; 1], DropReason::NotStun),
        (client, truncated, DropReason::Malformed),
        (
            client,
            channel_data(0x4000, b"nobody's"),
            DropReason::NoChannel,
        ),
        (
            udp("192.0.2.7:0"),
            binding.clone(),
            DropReason::Unanswerable,
        ),
        (
            own(RELAY_V4, 3478),
            binding.clone(),
            DropReason::Unanswerable,
        ),
        (own(RELAY_V6, 443), binding, DropReason::Unanswerable),
        (
            own(RELAY_V4, 3478),
            Request::allocate().bytes(),
            DropReason::Unanswerable,
        ),
    ] {
        let forward = world.input(client, &bytes);
        assert_eq!(forward, Forward::Drop(reason), "{client:?} {bytes:?}");
        assert!(world.sent.is_empty());
    }
    // Another port of the same host is somebody else.
    assert_eq!(answered(&mut world, own(RELAY_V4, 3479), 1), 1);
}

#[test]
fn two_servers_that_are_told_of_each_other_stay_silent() {
    let (mut one, mut other) = (World::new(), World::new());
    let (at_one, at_other) = (udp("192.0.2.1:3478"), udp("192.0.2.2:3478"));
    for request in [Request::binding(), Request::allocate()] {
        let mut messages = one.ask_raw(at_other, &request.bytes());
        assert_eq!(messages.len(), 1);
        messages.extend(other.ask_raw(at_one, &request.bytes()));
        for answer in messages {
            assert!(other.ask_raw(at_one, &answer).is_empty());
            assert!(one.ask_raw(at_other, &answer).is_empty());
        }
    }
}

/// A socket whose datagrams claim to come from `source`, where another socket is.
fn forger(source: SocketAddr) -> UdpSocket {
    let elsewhere = SocketAddr::new(quiet_address().into(), source.port());
    UdpSocket::bind(elsewhere, &UdpOptions::default()).unwrap()
}

#[test]
fn a_server_does_not_talk_to_itself_nor_long_to_another() {
    let one = Server::with(&["127.0.0.1:0"], &[]);
    let other = Server::with(&["127.0.0.1:0"], &[]);
    let to = one.address(Family::V4);
    let mut client = Client::udp(&one);
    let relayed = client.allocate();
    let answers = |server: &Server| -> u64 {
        let stats = server.snapshot().stats;
        let requests = stats.requests.as_flattened().as_flattened();
        requests.iter().sum()
    };
    let before = answers(&one);

    // In the name of its own listener, and of a relayed address of its own.
    for (source, silent) in [(to, 1), (relayed, 2)] {
        let binding = Request::binding().bytes();
        forger(source)
            .send_to(&binding, to, Some(source.ip()))
            .unwrap();
        until("it was dropped", || {
            one.dropped(DropReason::Unanswerable) == silent
        });
    }
    // In the name of another server, which gets one answer, and says nothing to it.
    let source = other.address(Family::V4);
    for request in [Request::binding(), Request::allocate()] {
        let bytes = request.bytes();
        forger(source)
            .send_to(&bytes, to, Some(source.ip()))
            .unwrap();
    }
    until("both answers have arrived", || {
        other.dropped(DropReason::Unexpected) == 2
    });
    // Time enough for thousands of rounds, if there were any.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(answers(&other), 0);
    assert_eq!(one.dropped(DropReason::Unexpected), 0);
    assert_eq!(other.dropped(DropReason::Unexpected), 2);
    assert!(answers(&one) <= before + 3);
    assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
}

/// A server in a process of its own, so that its memory is its own. Ends with the test.
struct Apart(Child);

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Apart {
    fn start(at: SocketAddr) -> Self {
        let set = [
            "http.admin=".to_owned(),
            format!("realm={REALM}"),
            format!("auth.users={{ {USER} = \"{PASSWORD}\" }}"),
            format!("listen=[{{ address = \"{at}\", protocols = [\"udp\"] }}]"),
            "relay.addresses=[\"127.0.0.1\"]".to_owned(),
            "peers.allow=[\"loopback\"]".to_owned(),
            // One queue, so that an answer means that everything before it was taken.
            "server.shards=1".to_owned(),
        ];
        let state = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_turnix"))
            .arg("serve")
            .args(set.iter().flat_map(|set| ["--set", set]))
            .env("XDG_STATE_HOME", state.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self(child);
        let knock = peer(at.ip());
        knock.connect(at).unwrap();
        knock
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        until("the server answers", || {
            let sent = knock.send(&Request::binding().bytes());
            sent.is_ok() && knock.recv(&mut [0; 512]).is_ok()
        });
        server
    }

    fn resident_bytes(&self) -> usize {
        let path = format!("/proc/{}/statm", self.0.id());
        let status = std::fs::read_to_string(path).unwrap();
        let pages: usize = status.split_whitespace().nth(1).unwrap().parse().unwrap();
        pages * 4096
    }
}

/// From as many addresses as loopback has, every datagram from another one: none leaves anything in the server, and a
/// stream that is relayed meanwhile loses nothing.
#[test]
fn strangers_from_everywhere_leave_nothing_behind() {
    // A million takes too long without optimization, and proves no more.
    const STRANGERS: u32 = if cfg!(debug_assertions) {
        200_000
    } else {
        1_000_000
    };
    const BATCH: u32 = 64;
    /// Batches that the listener's queue holds whatever the host grants.
    const WINDOW: u32 = 2;
    let at = SocketAddr::from((quiet_address(), 20_021));
    let server = Apart::start(at);
    let echo = peer(loopback(Family::V4));
    let knocking = peer(at.ip());
    knocking.connect(at).unwrap();
    let mut client = Client::on(knocking);
    let relayed = client.allocate();
    client.bind(0x4000, echo.local_addr().unwrap());

    let options = UdpOptions::default();
    let socket = UdpSocket::bind("0.0.0.0:0".parse().unwrap(), &options).unwrap();
    let mut batch = Batch::new(BATCH as usize);
    let nobody = Signer::new("nobody", "wrong", "gone");
    let kinds = [
        Request::binding().bytes(),
        Request::allocate().bytes(),
        channel_data(0x4000, &[7; 100]),
        vec![0xA5; 300],
        Request::binding().attr(0x7ABC, &[]).bytes(),
        Request::refresh(600).sign(&nobody).bytes(),
        Request::send(relayed, b"data").bytes(),
        Request::of_class(METHOD_BINDING, CLASS_SUCCESS_RESPONSE).bytes(),
    ];
    let mut items: Vec<Outgoing> = (0..BATCH)
        .map(|slot| {
            let bytes = &kinds[slot as usize % kinds.len()];
            batch.buffer_mut(slot as usize)[HEADROOM..HEADROOM + bytes.len()]
                .copy_from_slice(bytes);
            Outgoing {
                slot: slot as u16,
                start: HEADROOM as u32,
                len: bytes.len() as u32,
                to: at,
                from: None,
                front: None,
                fields: IpFields::default(),
            }
        })
        .collect();
    let (mut sent, mut paced, mut resident) = (0, 0u32, 0);
    while sent < STRANGERS {
        for _ in 0..WINDOW {
            for item in &mut items {
                // Odd multipliers visit every address of 127.0.0.0/8 once.
                let host = sent.wrapping_mul(2_654_435_761) & 0x00FF_FFFF;
                item.from = Some(Ipv4Addr::from_bits(127 << 24 | host.max(1)).into());
                sent += 1;
            }
            let report = batch.send(&socket, &items);
            // An address of all ones is a broadcast address, and the kernel refuses to send from it.
            assert!(report.sent + 1 >= BATCH, "{report:?}");
        }
        let data = paced.to_be_bytes();
        client.send_channel(0x4000, &data);
        assert_eq!(receive(&echo), (data.to_vec(), relayed), "{paced}");
        echo.send_to(&data, relayed).unwrap();
        assert_eq!(client.expect_channel(0x4000), data, "{paced}");
        paced += 1;
        // What a server touches for the first time it has to touch some time.
        if resident == 0 && sent >= STRANGERS / 20 {
            resident = server.resident_bytes();
        }
    }
    let grown = server.resident_bytes().saturating_sub(resident);
    assert!(grown < 1 << 20, "{grown} bytes more after {sent} strangers");
    assert_eq!(client.ask_signed(Request::refresh(0)).code(), 0);
}
