//! Take-overs that come about.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use stun::attributes::AttrType;
use turnix::net::{Batch, UdpOptions, host};
use turnix::wire::attribute;

use super::flows::{Client, StreamClient, Traffic};
use super::process::{PATIENCE, Site, until};
use crate::common::dtls::DtlsLink;
use crate::common::wire::{Reply, Request, Signer};
use crate::common::world::{PASSWORD, USER};
use crate::pcapng::File;

/// Descriptors beside one for each client, in any of the processes.
const SPARE: u64 = 200;

/// `wanted` clients, or as many as the limit of descriptors allows.
fn clients(wanted: u64) -> u64 {
    let (_, limit) = host::raise_open_files().unwrap();
    // The test has a socket for each client and some for peers, the old process one for each relay.
    let possible = (limit.saturating_sub(SPARE) * 9 / 10).min(wanted);
    if possible < wanted {
        println!("{possible} clients instead of {wanted}: this host allows {limit} open files");
    }
    possible
}

/// `takeovers` in a row, with `wanted` clients that send `rate` packets a second in all.
fn lose_nothing(wanted: u64, rate: u64, takeovers: usize) {
    let count = clients(wanted);
    let site = Site::new();
    let mut server = site.start(&[]);
    let listener = server.listener();
    let own = server.admin().port();
    let clients: Vec<_> = (0..count)
        .map(|_| Client::allocate_beside(listener, own))
        .collect();
    let first_kib = server.resident_kib();
    let traffic = Traffic::start(clients, rate);
    std::thread::sleep(Duration::from_millis(700));
    let mut gaps = Vec::new();
    for _ in 0..takeovers {
        let successor = site.successor(&[]);
        successor.serves();
        gaps.push(server.gap_ms());
        assert_eq!(server.ended(), Some(0), "{}", server.log());
        assert_eq!(successor.listener(), listener);
        server = successor;
        std::thread::sleep(Duration::from_millis(700));
    }
    let tally = traffic.stop();
    println!(
        "{count} allocations, {rate} packets/s, {takeovers} take-overs: {} of {} packets lost, {} twice; the old process \
         stopped reading for {gaps:.1?} ms; longest trip {:.1?}, longest gap of a client {:.1?} (sends every {:.1?}); \
         resident {} KiB, {first_kib} KiB before",
        tally.sent - tally.received,
        tally.sent,
        tally.duplicates,
        tally.longest_trip,
        tally.longest_gap,
        Duration::from_secs(count) / u32::try_from(rate).unwrap(),
        server.resident_kib(),
    );
    assert_eq!(server.metric("turn_allocations"), count as f64);
    assert_eq!(tally.duplicates, 0);
    assert_eq!(tally.received, tally.sent);
}

#[test]
fn udp_clients_lose_nothing() {
    lose_nothing(300, 1000, 3);
}

#[test]
#[ignore = "thousands of sockets; in release"]
fn five_thousand_udp_clients_lose_nothing() {
    lose_nothing(5000, 5000, 4);
}

#[test]
fn what_clients_and_operators_know_goes_on() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let peer = UdpSocket::bind((site.address(), 0)).unwrap();
    let clients: Vec<_> = (0..20).map(|_| Client::allocate(old.listener())).collect();
    for client in &clients {
        client.bind(peer.local_addr().unwrap());
        assert!(client.echoes(&peer));
    }
    let named = |server: &super::process::Server| {
        let all = server.get("/api/v1/allocations");
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let mut names: Vec<_> = (all.as_array().unwrap().iter())
            .map(|one| (one["id"].to_string(), one["relayed"].to_string()))
            .collect();
        names.sort();
        names
    };
    let counters = [
        "turn_allocations_total",
        "turn_requests_total",
        "turn_relayed_packets_total",
        "turn_relayed_bytes_total",
        "turn_auth_failures_total",
    ];
    let before = counters.map(|name| old.metric(name));
    let names = named(&old);
    assert_eq!(names.len(), clients.len());

    let new = site.successor(&[]);
    new.serves();
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    assert!(!old.log().contains("allocation ended"), "{}", old.log());
    assert_eq!((new.listener(), new.admin()), (old.listener(), old.admin()));
    assert_eq!(counters.map(|name| new.metric(name)), before);
    assert_eq!(named(&new), names);
    for client in &clients {
        assert_eq!(client.refresh(), 0, "the nonce of the old process is good");
        assert!(client.echoes(&peer));
    }
    let newcomer = Client::allocate(new.listener());
    assert!(
        clients
            .iter()
            .all(|client| client.relayed != newcomer.relayed)
    );
    assert_eq!(new.metric("turn_allocations"), 21.0);
    // One that has the same peers reaches another in memory.
    newcomer.bind(clients[0].relayed);
}

/// DSCP and ECN, and ICMP errors: options of sockets that go along, as the process says that has them.
#[test]
fn sockets_tell_what_the_configuration_of_their_process_says() {
    let site = Site::new();
    let silent = "shards = 2\n[protocol]\nicmp = false\ndscp = \"zero\"";
    let mut server = site.spawn(silent, &[], &[]);
    server.serves();
    until("it can be taken over from", || site.socket().exists());
    let client = Client::allocate(server.listener());
    let options = UdpOptions::default();
    let peer = turnix::net::UdpSocket::bind((site.address(), 0).into(), &options).unwrap();
    peer.report_tos(true);
    let closed = UdpSocket::bind((site.address(), 0)).unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    SockRef::from(&client.socket).set_tos_v4(0xB9).unwrap();
    let mut batch = Batch::new(1);
    for (more, speaks) in [
        (None, false),
        (Some("shards = 2"), true),
        (Some(silent), false),
    ] {
        if let Some(more) = more {
            let successor = site.spawn(more, &["--takeover"], &[]);
            successor.serves();
            assert_eq!(server.ended(), Some(0), "{}", server.log());
            server = successor;
        }
        let told = || server.metric("turn_icmp_errors_total");
        let before = told();
        let send = |to| {
            let permission = Request::create_permission(&[to]);
            assert_eq!(client.ask_signed(permission).code(), 0);
            client.socket.send(&Request::send(to, b"x").bytes())
        };
        send(peer.local_addr()).unwrap();
        until("it arrives", || batch.receive_one(&peer, 0).unwrap());
        assert_eq!(batch.received(0).tos, if speaks { 0xB9 } else { 0 });
        send(nobody).unwrap();
        if speaks {
            let mut buffer = [0; 2048];
            let length = client.socket.recv(&mut buffer).expect("an ICMP error");
            let error = Reply::parse(&buffer[..length]);
            assert_eq!(error.peer(), nobody);
            assert!(error.0.contains(AttrType(attribute::ICMP)));
        }
        assert_eq!(client.refresh(), 0);
        assert_eq!(told() - before, f64::from(u8::from(speaks)));
    }
}

/// Clients on ports that the kernel gives to another shard than that of their allocation, and clients on the move.
#[test]
fn clients_that_have_moved_go_on() {
    let site = Site::new();
    let old = site.start(&[]);
    let peer = UdpSocket::bind((site.address(), 0)).unwrap();
    let moved: Vec<_> = (0..12)
        .map(|number| {
            let (before, ticket) = Client::allocate_mobile(old.listener());
            before.bind(peer.local_addr().unwrap());
            assert!(before.echoes(&peer));
            let (client, ticket) = before.go(&ticket);
            // Every second one has not sent anything from there yet.
            assert!(number % 2 == 0 || client.echoes(&peer));
            (client, ticket)
        })
        .collect();
    let new = site.successor(&[]);
    new.serves();
    for (client, ticket) in &moved {
        assert!(client.echoes(&peer));
        assert_eq!(client.refresh(), 0);
        let (next, _) = client.go(ticket);
        assert!(next.echoes(&peer));
    }
    assert_eq!(new.metric("turn_allocations"), 12.0);
    assert_eq!(new.metric("turn_mobility_total"), 24.0);
}

#[test]
fn connections_move_and_no_newcomer_is_turned_away() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let ask = |connection: &mut TcpStream| {
        use std::io::{Read, Write};
        let request = Request::binding();
        connection.write_all(&request.bytes())?;
        let mut header = [0; 20];
        connection.read_exact(&mut header)?;
        let mut rest = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]]))];
        connection.read_exact(&mut rest)?;
        let reply = Reply::parse(&[&header[..], &rest].concat());
        assert_eq!(reply.0.transaction_id, request.0.transaction_id);
        std::io::Result::Ok(())
    };
    let listener = old.listener();
    let mut moves = TcpStream::connect(listener).unwrap();
    ask(&mut moves).unwrap();

    // Newcomers all the time: none of them is turned away.
    let (stop, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let newcomers = std::thread::spawn({
        let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let mut connection = TcpStream::connect(listener).unwrap();
                ask(&mut connection).unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let new = site.successor(&[]);
    new.serves();
    old.says("\"taken over\"");
    let then = asked.load(Ordering::Relaxed);
    until("more newcomers", || {
        asked.load(Ordering::Relaxed) > then + 20
    });
    stop.store(true, Ordering::Relaxed);
    newcomers.join().unwrap();

    ask(&mut moves).unwrap();
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    ask(&mut moves).unwrap();
}

#[test]
fn a_call_over_tcp_goes_on() {
    let site = Site::new();
    let mut server = site.start(&[]);
    let peer = UdpSocket::bind((site.address(), 0)).unwrap();
    let address = peer.local_addr().unwrap();
    // Sends back what comes, until nothing has come for long.
    peer.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = peer.recv_from(&mut buffer) {
            peer.send_to(&buffer[..length], from).unwrap();
        }
    });
    let mut call = StreamClient::tcp(server.listener());
    call.bind(address);
    for _ in 0..2 {
        // Half a request before, half of it afterwards.
        let request = call.signed(Request::refresh(600)).bytes();
        let (half, rest) = request.split_at(request.len() / 2);
        call.send(b"before");
        assert_eq!(call.receive(), b"before");
        call.write(half);
        let successor = site.successor(&[]);
        while !successor.log().contains("turnix serves") {
            std::thread::sleep(Duration::from_millis(2));
        }
        call.write(rest);
        assert_eq!(call.answer().code(), 0);
        assert_eq!(server.ended(), Some(0), "{}", server.log());
        for number in 0..50_u64 {
            call.send(&number.to_be_bytes());
            assert_eq!(call.receive(), number.to_be_bytes());
        }
        server = successor;
    }
    // All the time.
    let successor = site.successor(&[]);
    let mut count = 0_u64;
    while !successor.log().contains("turnix serves") || !count.is_multiple_of(100) {
        call.send(&count.to_be_bytes());
        assert_eq!(call.receive(), count.to_be_bytes());
        count += 1;
    }
    assert_eq!(server.ended(), Some(0), "{}", server.log());
    assert!(
        !server.log().contains("allocation ended"),
        "{}",
        server.log()
    );
    assert_eq!(successor.metric("turn_allocations"), 1.0);
    drop(call);
    until("it ends with its connection", || {
        successor.metric("turn_allocations") == 0.0
    });
}

#[test]
fn clients_behind_a_proxy_stay_who_they_are() {
    let site = Site::new();
    let listen = format!(
        "listen=[{{ address = '{}:0', protocols = ['udp', 'tcp', 'tls'], trusted_proxies = ['127.0.0.0/8'] }}]",
        site.address()
    );
    let mut server = site.spawn("shards = 2", &["--set", &listen], &[]);
    server.serves();
    until("it can be taken over from", || site.socket().exists());
    let mut calls: Vec<_> = (1..=6)
        .map(|last| {
            let header = format!("PROXY TCP4 203.0.113.{last} 192.0.2.1 1000 443\r\n");
            StreamClient::behind(server.listener(), header.as_bytes())
        })
        .collect();
    let successor = site.spawn("", &["--takeover", "--set", &listen], &[]);
    successor.serves();
    assert_eq!(server.ended(), Some(0), "{}", server.log());
    for call in &mut calls {
        // A nonce is good for the address that it was given to.
        let request = call.signed(Request::refresh(600)).bytes();
        call.write(&request);
        assert_eq!(call.answer().code(), 0);
    }
    drop(calls);
    for last in 1..=6 {
        successor.says(&format!("\"client\":\"203.0.113.{last}:1000\""));
    }
}

#[test]
fn what_is_passed_through_stays_until_it_ends() {
    let site = Site::new();
    let behind = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!(
        "listen=[{{ address = '{}:0', protocols = ['udp', 'tcp', 'tls'], upstream = '{}' }}]",
        site.address(),
        behind.local_addr().unwrap()
    );
    let mut server = site.spawn("shards = 2", &["--set", &listen], &[]);
    server.serves();
    until("it can be taken over from", || site.socket().exists());
    let mut page = TcpStream::connect(server.listener()).unwrap();
    page.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let (mut other, _) = behind.accept().unwrap();
    let mut request = [0; 16];
    other.read_exact(&mut request).unwrap();

    let successor = site.spawn("", &["--takeover", "--set", &listen], &[]);
    successor.serves();
    server.says("\"taken over\"");
    for _ in 0..20 {
        other.write_all(b"still here").unwrap();
        let mut word = [0; 10];
        page.read_exact(&mut word).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(server.runs(), "{}", server.log());
    // The next one is the successor's.
    let mut next = TcpStream::connect(successor.listener()).unwrap();
    next.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let _second = behind.accept().unwrap();
    drop((page, other));
    assert_eq!(server.ended(), Some(0), "{}", server.log());
}

#[test]
fn one_who_stays_and_one_who_moves_go_on_talking() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let moves = Client::allocate(old.listener());
    let mut stays = StreamClient::tls(old.listener(), &site.tls);
    moves.bind(stays.relayed);
    stays.bind(moves.relayed);
    let talk = |stays: &mut StreamClient| {
        moves.send(b"to the stream");
        assert_eq!(stays.receive(), b"to the stream");
        stays.send(b"from the stream");
        assert_eq!(moves.receive(), b"from the stream");
    };
    talk(&mut stays);
    let new = site.successor(&[]);
    new.serves();
    old.says("\"taken over\"");
    for _ in 0..3 {
        talk(&mut stays);
    }
    // A newcomer gets none of the ports that the old process has.
    let newcomer = Client::allocate(new.listener());
    assert_ne!(newcomer.relayed, stays.relayed);
    drop(stays);
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    moves.send(b"to nobody");
    assert_eq!(moves.refresh(), 0);
    assert_eq!(new.metric("turn_allocations"), 2.0);
}

/// Connections with peers are sockets of one process: they go on in it until their client goes, over plain TCP as well.
#[test]
fn tcp_allocations_stay_with_the_connections_they_have() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let server = old.listener();
    let listener = TcpListener::bind((site.address(), 0)).unwrap();
    let mut stays = StreamClient::relaying_tcp(server);
    let connect = Request::connect(listener.local_addr().unwrap());
    let id = stays.ask_signed(connect).connection_id();
    let (mut peer, _) = listener.accept().unwrap();
    let mut data = stays.data(server, id);
    let mut moves = StreamClient::tcp(server);
    let mut talk = |bytes: &[u8]| {
        data.write(bytes);
        let mut got = vec![0; bytes.len()];
        peer.read_exact(&mut got).unwrap();
        assert!(got == bytes);
        peer.write_all(bytes).unwrap();
        assert!(data.read(bytes.len() as u64) == bytes);
    };
    talk(b"before");
    let new = site.successor(&[]);
    new.serves();
    old.says("\"taken over\"");
    for size in [1, 1000, 300_000] {
        talk(&vec![7; size]);
    }
    assert_eq!(moves.ask_signed(Request::refresh(600)).code(), 0);
    assert_eq!(stays.ask_signed(Request::refresh(600)).code(), 0);
    // What it would connect to now could be bound nowhere.
    let other = TcpListener::bind((site.address(), 0)).unwrap();
    let connect = Request::connect(other.local_addr().unwrap());
    assert_eq!(stays.ask_signed(connect).code(), 508);
    let newcomer = StreamClient::relaying_tcp(new.listener());
    assert_ne!(newcomer.relayed, stays.relayed);
    assert_eq!(new.metric("turn_allocations"), 2.0);
    drop(stays);
    assert_eq!(data.read(1), b"");
    let _ = peer.read_to_end(&mut Vec::new());
    drop(data);
    assert_eq!(old.ended(), Some(0), "{}", old.log());
}

#[test]
fn dtls_clients_are_told_to_come_again_and_leave_nothing_behind() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let stays = Client::allocate(old.listener());
    let connect = |server: SocketAddr| {
        let socket = UdpSocket::bind((server.ip(), 0)).unwrap();
        socket.connect(server).unwrap();
        DtlsLink::connect(socket, PATIENCE).unwrap()
    };
    let allocate = |link: &mut DtlsLink| {
        let mut ask = |request: Request| {
            link.send(&request.bytes()).unwrap();
            Reply::parse(&link.receive(PATIENCE).unwrap())
        };
        let challenge = ask(Request::allocate());
        let signer = Signer::new(USER, PASSWORD, &challenge.nonce());
        let reply = ask(Request::allocate().sign(&signer));
        assert_eq!(reply.code(), 0);
    };
    let mut link = connect(old.listener());
    allocate(&mut link);
    let new = site.successor(&[]);
    new.serves();
    old.says("\"taken over\"");
    assert_eq!(link.receive(PATIENCE).unwrap(), b"", "goodbye");
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    assert_eq!(new.metric("turn_allocations"), 1.0);
    assert_eq!(stays.refresh(), 0);
    // From the same port as well.
    let mut link = DtlsLink::connect(link.socket, PATIENCE).unwrap();
    allocate(&mut link);
    assert_eq!(new.metric("turn_allocations"), 2.0);
}

#[test]
fn a_quick_start_goes_on_with_what_the_last_one_chose() {
    let site = Site::new();
    let mut old = site.quick_start(&[]);
    old.serves();
    until("it can be taken over from", || site.socket().exists());
    let new = site.quick_start(&["--takeover"]);
    new.serves();
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    assert_eq!(new.listener(), old.listener());
}

#[test]
fn without_a_running_server_it_starts_anew() {
    let site = Site::new();
    let server = site.successor(&[]);
    server.serves();
    assert!(server.log().contains("nobody to take over from"));
    until("it can be taken over from", || site.socket().exists());
    Client::allocate(server.listener());
}

#[test]
fn what_is_revoked_stays_so_and_ends_clients_that_stayed_behind() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let order = |user: &str| format!("{{\"user\": \"{user}\"}}");
    let done = old.post("/api/v1/revocations", &order("mallory"));
    assert_eq!(done["kept"], true, "{done}");
    let moves = Client::allocate(old.listener());
    let _stays = StreamClient::tls(old.listener(), &site.tls);
    let new = site.successor(&[]);
    new.serves();
    assert!(new.get("/api/v1/revocations").contains("mallory"));
    assert_eq!(moves.refresh(), 0);
    assert!(old.is_running(), "{}", old.log());

    // One of the two lives in the process that serves, the other in the one that does not.
    let done = new.post("/api/v1/revocations", &order(USER));
    assert_eq!(done["ended"], 1, "{done}");
    assert_eq!(moves.refresh(), 401);
    old.says("\"revoked\"");
    let left = |log: String| {
        log.lines()
            .filter(|line| line.contains("\"revoked\""))
            .count()
    };
    until("both have ended", || left(old.log()) + left(new.log()) >= 2);
}

#[test]
fn relayed_addresses_that_look_another_from_outside_stay_what_clients_were_told() {
    let site = Site::new();
    let mapped = |external: &str| format!("[relay]\nexternal_address = \"{external}\"");
    let mut old = site.spawn(&format!("shards = 2\n{}", mapped("203.0.113.7")), &[], &[]);
    old.serves();
    until("it can be taken over from", || site.socket().exists());
    let listener = old.listener();
    // Enough of them for both shards.
    let callers: Vec<_> = (0..8).map(|_| Client::allocate(listener)).collect();
    let pairs = || callers.chunks_exact(2).map(|pair| (&pair[0], &pair[1]));
    let talk = |(a, b): (&Client, &Client)| {
        for (from, to) in [(a, b), (b, a)] {
            from.send(b"by the first address");
            assert_eq!(to.receive(), b"by the first address");
        }
    };
    for (a, b) in pairs() {
        assert_eq!(a.relayed.ip().to_string(), "203.0.113.7");
        a.bind(b.relayed);
        b.bind(a.relayed);
        talk((a, b));
    }
    for external in ["203.0.113.8", "203.0.113.9"] {
        let successor = site.spawn(&mapped(external), &["--takeover"], &[]);
        successor.serves();
        assert_eq!(old.ended(), Some(0), "{}", old.log());
        pairs().for_each(talk);
        // New ones get the new address, and reach the others by the old one.
        let new = Client::allocate(listener);
        assert_eq!(new.relayed.ip().to_string(), external);
        new.bind(callers[0].relayed);
        old = successor;
    }
}

/// Relayed addresses of both families, in one allocation of a client of each shard.
#[test]
fn both_addresses_of_an_allocation_move() {
    let site = Site::new();
    let relay = format!("[relay]\naddresses = [\"{}\", \"::1\"]", site.address());
    let mut old = site.spawn(&format!("shards = 2\n{relay}"), &[], &[]);
    old.serves();
    until("it can be taken over from", || site.socket().exists());
    let peers = ["127.0.0.1:0", "[::1]:0"].map(|at| UdpSocket::bind(at).unwrap());
    let clients: Vec<_> = (0..8)
        .map(|_| Client::allocate_both(old.listener()))
        .collect();
    let echoes = |client: &Client, second: std::net::SocketAddr| {
        client.echoes(&peers[0]) && client.echoes_by(0x4001, &peers[1], second)
    };
    for (client, second) in &clients {
        client.bind(peers[0].local_addr().unwrap());
        let bind = Request::channel_bind(0x4001, peers[1].local_addr().unwrap());
        assert_eq!(client.ask_signed(bind).code(), 0);
        assert!(echoes(client, *second));
    }
    // Ports that are kept stay behind.
    let reserving = Client::allocate_both(old.listener()).0;
    assert_eq!(reserving.ask_signed(Request::refresh(0)).code(), 0);
    let reply = reserving.ask_signed(Request::allocate().attr(0x0018, &[0x80]));
    let token = reply
        .attr(stun::attributes::ATTR_RESERVATION_TOKEN)
        .unwrap();

    let new = site.spawn(&relay, &["--takeover"], &[]);
    new.serves();
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    assert_eq!(new.metric("turn_allocations"), 9.0);
    for (client, second) in &clients {
        assert!(echoes(client, *second));
        assert_eq!(client.refresh(), 0);
    }
    let release = || Request::refresh(0).family(1);
    assert_eq!(reserving.ask_signed(release()).code(), 0);
    let claim = Request::allocate().attr(0x0022, &token);
    assert_eq!(reserving.ask_signed(claim).code(), 508);
    for (client, second) in &clients {
        assert_eq!(client.ask_signed(release()).code(), 0);
        assert!(client.echoes_by(0x4001, &peers[1], *second));
        assert_eq!(client.ask_signed(Request::refresh(0)).code(), 0);
    }
    until("nothing is left", || {
        new.metric("turn_allocations") == 0.0 && new.metric("turn_capacity_ratio") == 0.0
    });
}

/// A capture ends with the process that it is of, in order; the call goes on, and can be captured again.
#[test]
fn a_capture_ends_where_another_process_goes_on() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let peer = UdpSocket::bind((site.address(), 0)).unwrap();
    let client = Client::allocate(old.listener());
    client.bind(peer.local_addr().unwrap());
    let capture = |server: &super::process::Server, seconds: u64| {
        let all = server.get("/api/v1/allocations");
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let id = all[0]["id"].as_str().unwrap().to_owned();
        let mut connection = TcpStream::connect(server.admin()).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let path = format!("/api/v1/allocations/{id}/capture?seconds={seconds}");
        write!(connection, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
        let mut said = vec![0; 4096];
        let length = connection.read(&mut said).unwrap();
        said.truncate(length);
        assert!(
            said.starts_with(b"HTTP/1.0 200"),
            "{}",
            String::from_utf8_lossy(&said)
        );
        (connection, said)
    };
    let finish = |(mut connection, mut said): (TcpStream, Vec<u8>)| {
        connection.read_to_end(&mut said).unwrap();
        let head = said
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        File::read(&said[head + 4..])
    };
    let running = capture(&old, 600);
    until("something is captured", || {
        assert!(client.echoes(&peer));
        old.metric("turn_captures_total") == 1.0
    });
    let new = site.successor(&[]);
    new.serves();
    let file = finish(running);
    assert!(file.packets.len() >= 4, "{}", file.packets.len());
    let why: Vec<_> = file
        .statistics
        .iter()
        .map(|one| one.comment.as_str())
        .collect();
    assert_eq!(
        why,
        ["Ended: a reload, or another process, closed the admin listener."; 2]
    );
    assert_eq!(old.ended(), Some(0), "{}", old.log());

    let again = capture(&new, 2);
    assert!(client.echoes(&peer));
    assert_eq!(finish(again).packets.len(), 4);
}
