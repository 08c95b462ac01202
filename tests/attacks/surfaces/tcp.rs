//! TCP: connections that hang, stop half way, grow or never read; and how many one address may have.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use turnix::access::{Access, Limits};
use turnix::base::{Clock, Family, Transport};
use turnix::shard::{self, RelayIp, Shards};
use turnix::stream::{Admission, ClientStream, Refusal, certificates};
use turnix::turn;

use super::super::client::{Client, Ended, Frame, Link};
use super::super::common::wire::{Request, padded_channel_data};
use super::super::common::world::{access_settings, own_addresses};
use super::super::server::{BOTH, PATIENCE, Server, loopback, now, quiet_address, until};
use super::{answers, connect, exchange, metric, until_closed};

/// How long a connection may take to say what it is; see `stream::Settings`.
const HELLO: Duration = Duration::from_secs(10);

#[test]
fn connections_that_never_become_a_client_are_closed() {
    let server = Server::with(BOTH, &["http.admin='127.0.0.1:0'"]);
    let to = server.address(Family::V4);
    let hello = super::tls::client_hello([3, 3], &super::tls::extensions());
    let openings: [(&str, &[u8]); 7] = [
        ("silence", b""),
        ("half of a method", b"GE"),
        ("half of a request", b"GET /health HTTP/1.1\r\nHost: loc"),
        ("the first byte of TLS", &hello[..1]),
        ("the header of a TLS record", &hello[..5]),
        ("half of a ClientHello", &hello[..hello.len() / 2]),
        ("a whole ClientHello and nothing more", &hello),
    ];
    let begin = now();
    let mut drip = connect(to);
    let waiting: Vec<_> = (openings.into_iter())
        .map(|(name, opening)| {
            let mut connection = connect(to);
            connection.write_all(opening).unwrap();
            let ended = std::thread::spawn(move || {
                let socket = connection.try_clone().unwrap();
                let said = until_closed(&mut connection, &socket, HELLO + PATIENCE);
                said.map(|_| now())
            });
            (name, ended)
        })
        .collect();
    // A byte now and then is no reason to wait longer, and nobody else notices.
    let mut client = Client::udp(&server);
    let mut dripped = hello.iter();
    let mut cut = None;
    while now() - begin < HELLO + Duration::from_secs(3) {
        if cut.is_none() && drip.write_all(&[*dripped.next().unwrap()]).is_err() {
            cut = Some(now() - begin);
        }
        answers(&mut client);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(cut.is_some_and(|cut| cut >= HELLO / 2), "{cut:?}");
    for (name, ended) in waiting {
        let ended = ended
            .join()
            .unwrap()
            .unwrap_or_else(|| panic!("{name} is not closed"));
        let after = ended - begin;
        assert!(after >= HELLO / 2, "{name} was given only {after:?}");
        assert!(
            after < HELLO + Duration::from_secs(5),
            "{name} was given {after:?}"
        );
    }
    let refused = |reason| {
        metric(
            &server,
            &format!("turn_stream_refused_total{{reason=\"{reason}\"}}"),
        )
    };
    // The half request is HTTP, and ends there.
    assert_eq!((refused("silent"), refused("handshake")), (2.0, 5.0));
    assert_eq!(
        metric(&server, "turn_stream_connections{transport=\"tcp\"}"),
        0.0
    );
}

/// Shards that run out of patience with silent clients after `idle`.
struct Impatient {
    shards: Shards,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Impatient {
    fn new(idle: Duration) -> Self {
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        let settings = shard::Settings {
            shards: 1,
            listeners: Vec::new(),
            speaks: Vec::new(),
            dtls: shard::Dtls::default(),
            relays: vec![RelayIp {
                local: ip,
                external: ip,
            }],
            ports: 49152..=65535,
            limits: Limits::default(),
            listener_buffer_bytes: 64 << 10,
            relay_buffer_bytes: 64 << 10,
            cpus: Vec::new(),
            busy_poll: Duration::ZERO,
            stream_idle: idle,
            records: None,
            turn: turn::Settings::default(),
        };
        let access = Arc::new(Access::new(&access_settings(), own_addresses()));
        let (shards, threads) = Shards::start(&settings, access).unwrap();
        Self { shards, threads }
    }

    /// A connection of a TURN client.
    fn connection(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = connect(listener.local_addr().unwrap());
        let (accepted, _) = listener.accept().unwrap();
        self.shards.adopt(ClientStream::from_tcp(accepted).unwrap());
        connection
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        self.shards.stop();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

#[test]
fn clients_that_say_nothing_whole_are_disconnected() {
    const IDLE: Duration = Duration::from_millis(400);
    let server = Impatient::new(IDLE);
    let request = Request::binding().bytes();
    let closed = |connection: &mut TcpStream, patience| {
        let socket = connection.try_clone().unwrap();
        until_closed(connection, &socket, patience).is_some()
    };
    // Silent ones, and such as stop in the middle of a message.
    for said in [
        &b""[..],
        &request[..1],
        &request[..19],
        &[0x40, 0, 0, 100, 1],
    ] {
        let begin = now();
        let mut connection = server.connection();
        connection.write_all(said).unwrap();
        assert!(closed(&mut connection, PATIENCE), "{said:02x?}");
        assert!(now() - begin >= IDLE, "{said:02x?}");
    }
    // One byte of a long message at a time.
    let mut long = padded_channel_data(0x4000, &[7; 2000]).into_iter();
    let mut connection = server.connection();
    let begin = now();
    while connection
        .write_all(&[long.next().expect("cut off in time")])
        .is_ok()
    {
        std::thread::sleep(IDLE / 20);
    }
    assert!(now() - begin >= IDLE);

    // Whoever says something whole now and then stays; and whoever has an allocation stays silent as long as it lives.
    let mut talking = Client::on_stream(server.connection());
    let mut allocated = Client::on_stream(server.connection());
    allocated.allocate();
    for _ in 0..8 {
        std::thread::sleep(IDLE / 2);
        talking.ask(&Request::binding());
    }
    assert_eq!(allocated.ask_signed(Request::refresh(0)).code(), 0);
    assert_eq!(allocated.next(PATIENCE).map(drop), Err(Ended::Closed));
}

#[test]
fn strangers_cannot_leave_long_messages_unfinished() {
    let server = Server::new();
    let long = padded_channel_data(0x4000, &[7; 65_000]);
    for transport in [Transport::Tcp, Transport::Tls] {
        let mut client = Client::new(&server, transport, Family::V4);
        client.ask(&Request::binding());
        let _ = client.try_send(&long[..20_000]);
        let ended = client.next(PATIENCE).map(drop);
        assert!(
            matches!(ended, Err(Ended::Closed | Ended::Cut)),
            "{ended:?}"
        );

        // With an allocation such a frame is traffic, and half of one is waited for.
        let mut client = Client::new(&server, transport, Family::V4);
        client.allocate();
        client.send(&long[..60_000]);
        let silent = client.next(Duration::from_millis(300)).map(drop);
        assert_eq!(silent, Err(Ended::Silent));
        client.send(&long[60_000..]);
        client.ask(&Request::binding());
        // Longer than any datagram is never traffic.
        client.send(&[0x40, 0, 0xFF, 0xFF]);
        assert_eq!(client.next(PATIENCE).map(drop), Err(Ended::Closed));
        until("the allocation is gone", || server.live() == 0);
    }
}

/// A server in a process of its own, so that its memory is its own. Ends with the test.
struct Alone {
    child: Child,
    at: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Alone {
    fn start() -> Self {
        let at = SocketAddr::from((quiet_address(), 20_014));
        let directory = tempfile::tempdir().unwrap();
        let names = [at.ip().to_string()];
        let signed = certificates::self_signed(&names, Clock.now().unix_secs()).unwrap();
        let pem = directory.path().join("pem");
        std::fs::write(&pem, signed.certificate_pem + signed.key_pem.expose()).unwrap();
        let set = [
            "http.admin=".to_owned(),
            "auth.secrets=[\"north\"]".to_owned(),
            format!("tls.certificate='{}'", pem.display()),
            format!("tls.key='{}'", pem.display()),
            format!("listen=[{{ address = \"{at}\" }}]"),
            format!("relay.addresses=[\"{}\"]", at.ip()),
            "server.shards=1".to_owned(),
        ];
        let child = Command::new(env!("CARGO_BIN_EXE_turnix"))
            .arg("serve")
            .args(set.iter().flat_map(|set| ["--set", set]))
            .env("XDG_STATE_HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the server listens", || TcpStream::connect(at).is_ok());
        Self {
            child,
            at,
            _directory: directory,
        }
    }

    fn resident_bytes(&self) -> usize {
        let statm = format!("/proc/{}/statm", self.child.id());
        let status = std::fs::read_to_string(statm).unwrap();
        let pages: usize = status.split_whitespace().nth(1).unwrap().parse().unwrap();
        pages * 4096
    }
}

#[test]
fn strangers_hold_little_memory() {
    const CONNECTIONS: usize = 400;
    let binding = Request::binding().bytes();
    let long = padded_channel_data(0x4000, &[7; 65_000]);
    let half = padded_channel_data(0x4000, &[7; 4000]);
    // A hello of the most that is listened to.
    let hello = [
        &[0x16, 3, 1, 0x3E, 0x80, 1, 0, 0xFF, 0xFF][..],
        &[3; 15_000],
    ]
    .concat();
    // A few kilobytes each, with room for what else the process does meanwhile; all that was sent would be more.
    let openings: [(&str, Vec<u8>, usize); 5] = [
        ("nothing", Vec::new(), 24 << 10),
        ("a request", binding.clone(), 24 << 10),
        (
            "a message half sent",
            [&binding[..], &half[..3900]].concat(),
            24 << 10,
        ),
        (
            "most of a frame",
            [&binding[..], &long[..60_000]].concat(),
            24 << 10,
        ),
        ("most of a ClientHello", hello, 48 << 10),
    ];
    for (what, opening, most) in openings {
        let server = Alone::start();
        // What the first connections make once and for all.
        let _first: Vec<_> = (0..8).map(|_| exchange_half(&server, &opening)).collect();
        std::thread::sleep(Duration::from_millis(300));
        let before = server.resident_bytes();
        let _held: Vec<_> = (0..CONNECTIONS)
            .map(|_| exchange_half(&server, &opening))
            .collect();
        // Time to take it all in.
        std::thread::sleep(Duration::from_millis(700));
        let each = server.resident_bytes().saturating_sub(before) / CONNECTIONS;
        println!("{what}: {each} bytes a connection");
        assert!(each < most, "{what}: {each} bytes a connection");
    }
}

/// A connection on which `opening` was sent, as far as the server wanted it.
fn exchange_half(server: &Alone, opening: &[u8]) -> TcpStream {
    let mut connection = connect(server.at);
    let _ = connection.write_all(opening);
    connection
}

#[test]
fn ten_thousand_requests_at_once_hold_nobody_up() {
    const REQUESTS: usize = 10_000;
    let server = Server::with(&["127.0.0.1:0"], &["server.shards=1"]);
    let mut neighbour = Client::udp(&server);
    let bytes = Request::binding().bytes().repeat(REQUESTS);
    let mut client = Client::tcp(&server);
    let Link::Tcp(connection) = &client.link else {
        panic!("not over TCP");
    };
    let mut writing = connection.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writing.write_all(&bytes).unwrap());
        let reading = scope.spawn(|| {
            (0..REQUESTS)
                .filter(|_| matches!(client.expect(), Frame::Message(_)))
                .count()
        });
        while !reading.is_finished() {
            answers(&mut neighbour);
        }
        assert_eq!(reading.join().unwrap(), REQUESTS);
    });
}

#[test]
fn clients_that_never_read_are_cut_off_and_hold_nobody_up() {
    let server = Server::with(&["127.0.0.1:0"], &["server.shards=1"]);
    let mut neighbour = Client::udp(&server);
    let bytes = Request::binding().bytes().repeat(10_000);
    for transport in [Transport::Tcp, Transport::Tls] {
        let mut greedy: Vec<_> = (0..20)
            .map(|_| Client::with_little_room(&server, transport))
            .collect();
        std::thread::scope(|scope| {
            let sending: Vec<_> = (greedy.iter_mut())
                .map(|client| scope.spawn(|| (0..200).any(|_| client.try_send(&bytes).is_err())))
                .collect();
            while sending.iter().any(|thread| !thread.is_finished()) {
                answers(&mut neighbour);
            }
            // Those who do not read their answers are cut off before they have sent 40 MB.
            assert!(sending.into_iter().all(|cut_off| cut_off.join().unwrap()));
        });
        until("their connections are gone", || {
            server.snapshot().stream_connections == [0; 4]
        });
    }
}

/// Connects from `from`, an address of this host.
pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SockAddr::from(SocketAddr::from((from, 0))))
        .unwrap();
    socket.connect(&SockAddr::from(to)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

#[test]
fn one_address_has_its_share_of_connections_whatever_they_speak() {
    let server = Server::with(
        &["127.0.0.1:0"],
        &[
            "limits.connections_per_address=6",
            "http.admin='127.0.0.1:0'",
        ],
    );
    let to = server.address(Family::V4);
    let refused = || metric(&server, "turn_stream_refused_total{reason=\"address\"}");
    let mut turn = Client::tcp(&server);
    turn.ask(&Request::binding());
    let mut tls = Client::new(&server, Transport::Tls, Family::V4);
    tls.ask(&Request::binding());
    let silent = connect(to);
    let mut shaking = connect(to);
    shaking.write_all(&[0x16, 3, 1]).unwrap();
    let mut http = connect(to);
    http.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut half = connect(to);
    half.write_all(&Request::binding().bytes()[..10]).unwrap();

    // The seventh, again and again.
    for _ in 0..50 {
        assert_eq!(exchange(to, b""), b"");
    }
    assert_eq!(refused(), 50.0);
    // Everybody else comes in, UDP from the same address too, and those who are in stay in.
    answers(&mut Client::udp(&server));
    let elsewhere = Ipv4Addr::new(127, 0, 0, 9).into();
    answers(&mut Client::between(&server, Transport::Tcp, elsewhere, to));
    answers(&mut Client::between(&server, Transport::Tls, elsewhere, to));
    answers(&mut turn);
    answers(&mut tls);

    // Whichever ends makes room for one.
    let begin = now();
    let mut places = 0;
    let make_room: [Box<dyn FnOnce()>; 6] = [
        Box::new(move || drop(silent)),
        Box::new(move || drop(shaking)),
        Box::new(move || drop(http)),
        Box::new(move || drop(half)),
        Box::new(move || drop(turn)),
        Box::new(move || drop(tls)),
    ];
    let mut inside = Vec::new();
    for leave in make_room {
        leave();
        places += 1;
        until("there is a place", || {
            let mut client = Client::tcp(&server);
            let _ = client.try_send(&Request::binding().bytes());
            let answered = client.next(PATIENCE).is_ok();
            if answered {
                inside.push(client);
            }
            answered
        });
        assert_eq!(inside.len(), places);
        assert_eq!(exchange(to, b""), b"");
    }
    // It was not a timeout that made it.
    assert!(now() - begin < HELLO, "{:?}", now() - begin);
}

#[test]
fn a_flood_of_connections_from_one_address_leaves_the_others_alone() {
    const SHARE: usize = 64;
    let server = Server::with(
        &["127.0.0.1:0"],
        &[
            "limits.connections_per_address=64",
            "http.admin='127.0.0.1:0'",
        ],
    );
    let to = server.address(Family::V4);
    let flooding = Ipv4Addr::new(127, 0, 0, 66);
    let elsewhere: IpAddr = Ipv4Addr::new(127, 0, 0, 9).into();
    let mut udp = Client::udp(&server);
    let mut held = Vec::new();
    for round in 0..600 {
        let mut connection = connect_from(flooding, to);
        // Half of them begin a handshake.
        let _ = connection.write_all(if round % 2 == 0 {
            b""
        } else {
            &[0x16, 3, 1, 0, 200]
        });
        held.push(connection);
        if round % 50 == 0 {
            answers(&mut udp);
            answers(&mut Client::between(&server, Transport::Tls, elsewhere, to));
        }
    }
    until("the others are refused", || {
        metric(&server, "turn_stream_refused_total{reason=\"address\"}") == (600 - SHARE) as f64
    });
    answers(&mut Client::new(&server, Transport::Tcp, Family::V4));
}

#[test]
fn ipv6_counts_by_network_and_nothing_is_remembered() {
    let admission = Admission::new(2);
    let admit = |ip: &str| admission.admit(ip.parse().unwrap());
    let mut held: Vec<_> = ["2001:db8::1", "2001:db8::ffff:0:0:2"].map(admit).into();
    assert!(held.iter().all(Option::is_some));
    assert!(admit("2001:db8::3").is_none());
    // Another network, and an IPv4 address in both of its forms.
    held.push(admit("2001:db8:0:1::1"));
    held.push(admit("192.0.2.1"));
    held.push(admit("::ffff:192.0.2.1"));
    assert!(held.iter().all(Option::is_some));
    assert!(admit("192.0.2.1").is_none());
    assert_eq!(admission.refused()[Refusal::Address as usize], 2);
    assert_eq!(admission.addresses(), 3);
    drop(held);
    assert_eq!(admission.addresses(), 0);
    // A flood from everywhere leaves nothing.
    for number in 0..100_000u32 {
        drop(admission.admit(IpAddr::from(Ipv4Addr::from(number))));
    }
    assert_eq!(admission.addresses(), 0);
    let unlimited = Admission::new(0);
    let client = loopback(Family::V4);
    let all: Vec<_> = (0..5000).map(|_| unlimited.admit(client)).collect();
    assert!(all.iter().all(Option::is_some));
}
