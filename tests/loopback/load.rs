//! Shards under load: who serves whom, what a flood may take from others, what is lost and counted.

use std::collections::HashSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use turnix::base::{Family, Transport};
use turnix::turn::DropReason;

use super::client::{Client, Link};
use super::common::wire::{REALM, Request, channel_data};
use super::common::world::{PASSWORD, USER};
use super::server::{PATIENCE, Server, loopback, now, peer, quiet_address, receive, until};

/// Datagrams of a paced exchange.
const PACED: usize = 100;

fn datagrams(client: &Client) -> UdpSocket {
    let Link::Udp(socket) = &client.link else {
        panic!("not a datagram client")
    };
    socket.try_clone().unwrap()
}

/// Sends `bytes` until `over`, or for as long as anything may take.
fn flood(socket: &UdpSocket, bytes: &[u8], to: Option<SocketAddr>, over: &AtomicBool) {
    let deadline = now() + PATIENCE;
    while !over.load(Ordering::Relaxed) && now() < deadline {
        // A full queue on the way is what a flood is about.
        let _ = match to {
            Some(to) => socket.send_to(bytes, to),
            None => socket.send(bytes),
        };
    }
}

/// One datagram after the other, each there and back before the next.
fn paced_exchange(client: &mut Client, channel: u16, peer: &UdpSocket, relayed: SocketAddr) {
    for at in 0..PACED as u32 {
        let data = at.to_be_bytes();
        client.send_channel(channel, &data);
        assert_eq!(receive(peer), (data.to_vec(), relayed), "{at}");
        peer.send_to(&data, relayed).unwrap();
        assert_eq!(client.expect_channel(channel), data, "{at}");
    }
}

#[test]
fn a_client_stays_with_the_shard_that_allocated() {
    let server = Server::with(&["127.0.0.1:0"], &["server.shards=4"]);
    let echo = peer(loopback(Family::V4));
    let at = echo.local_addr().unwrap();
    let mut clients: Vec<(Client, SocketAddr)> = Vec::new();
    for number in 0..64 {
        let mut client = Client::udp(&server);
        let relayed = client.allocate();
        client.bind(0x4000, at);
        clients.push((client, relayed));
        // Those who were there before are served by their shard whoever comes.
        let (earlier, relayed) = &mut clients[number / 2];
        earlier.send_channel(0x4000, b"still here");
        assert_eq!(receive(&echo), (b"still here".to_vec(), *relayed));
    }
    let before: Vec<_> = server.allocations().into_iter().map(|a| a.name).collect();
    for round in 0..4u8 {
        for (client, relayed) in &mut clients {
            // Another shard would say 437 or nothing.
            let refreshed = client.ask_signed(Request::refresh(600));
            assert_eq!((refreshed.code(), refreshed.lifetime()), (0, 600));
            client.permit(at);
            client.send_channel(0x4000, &[round]);
            assert_eq!(receive(&echo), (vec![round], *relayed));
            echo.send_to(&[!round], *relayed).unwrap();
            assert_eq!(client.expect_channel(0x4000), [!round]);
        }
    }
    let live = server.allocations();
    let shards: HashSet<usize> = live.iter().map(|allocation| allocation.shard).collect();
    // 64 clients in one of four shards: one in 10^36.
    assert!(shards.len() > 1, "{shards:?}");
    let names: HashSet<_> = live.into_iter().map(|a| a.name).collect();
    assert_eq!(names, before.into_iter().collect());
}

#[test]
fn who_knocks_while_the_server_starts_stays_with_one_shard() {
    let ip = quiet_address();
    let relay = format!("relay.addresses=[\"{ip}\"]");
    // A port each: the TCP listener of a server that has stopped may stay for a moment.
    for port in 20_010..20_013 {
        let at = SocketAddr::from((ip, port));
        // Clients of a server that was there before go on asking while it starts again, socket by socket.
        let over = AtomicBool::new(false);
        let (server, sockets) = std::thread::scope(|scope| {
            let knocks = scope.spawn(|| {
                let sockets: Vec<UdpSocket> = (0..32).map(|_| knocking(at)).collect();
                let deadline = now() + PATIENCE;
                while !over.load(Ordering::Relaxed) && now() < deadline {
                    for socket in &sockets {
                        let _ = socket.send(&Request::allocate().bytes());
                    }
                }
                sockets
            });
            let server = Server::with(&[&at.to_string()], &["server.shards=8", &relay]);
            over.store(true, Ordering::Relaxed);
            (server, knocks.join().unwrap())
        });
        let mut clients: Vec<Client> = (sockets.into_iter())
            .map(|socket| {
                // That nobody was there when it knocked is no error of what follows.
                let _ = socket.take_error();
                let mut client = Client::on(socket);
                client.allocate();
                client
            })
            .collect();
        assert_eq!(server.live(), 32);
        for client in &mut clients {
            client.release();
        }
        assert_eq!(server.live(), 0);
    }
}

/// A client's socket, connected to where nobody may be yet.
pub fn knocking(to: SocketAddr) -> UdpSocket {
    let socket = peer(to.ip());
    socket.connect(to).unwrap();
    socket
}

#[test]
fn shards_can_be_pinned_and_can_poll_busily() {
    let settings = [
        "server.shards=3",
        "server.pin_shards=true",
        "server.busy_poll=200us",
    ];
    let server = Server::with(&["127.0.0.1:0"], &settings);
    let echo = peer(loopback(Family::V4));
    let at = echo.local_addr().unwrap();
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let relayed = client.allocate();
        client.bind(0x4000, at);
        paced_exchange(&mut client, 0x4000, &echo, relayed);
        client.release();
    }
    // While it polls it counts, ends and stops as always.
    until("the last allocation has ended", || server.live() == 0);
}

/// A flood of one allocation's channel and of its relay socket, while another of the same shard has little to say.
#[test]
fn a_flooded_allocation_takes_nothing_from_its_neighbour() {
    // On a listener of its own: one socket is one queue, and what a flood fills is full for all who send to it.
    let server = Server::with(
        &["127.0.0.1:0", "[::1]:0"],
        &["server.shards=1", "limits.allocations=4"],
    );
    let mut loud = Client::new(&server, Transport::Udp, Family::V6);
    let loud_peer = peer(loopback(Family::V6));
    let loud_relayed = loud.allocate();
    loud.bind(0x4000, loud_peer.local_addr().unwrap());
    let mut quiet = Client::udp(&server);
    let quiet_peer = peer(loopback(Family::V4));
    let quiet_relayed = quiet.allocate();
    quiet.bind(0x4000, quiet_peer.local_addr().unwrap());

    let over = AtomicBool::new(false);
    let from_client = datagrams(&loud);
    let from_peer = loud_peer.try_clone().unwrap();
    std::thread::scope(|scope| {
        let frame = channel_data(0x4000, &[7; 1000]);
        let over = &over;
        let floods = [
            scope.spawn(move || flood(&from_client, &frame, None, over)),
            scope.spawn(move || flood(&from_peer, &[8; 1000], Some(loud_relayed), over)),
        ];
        paced_exchange(&mut quiet, 0x4000, &quiet_peer, quiet_relayed);
        let mut newcomer = Client::udp(&server);
        newcomer.allocate();
        newcomer.release();
        // The floods outlasted the exchange, or it would have proved nothing.
        assert!(
            floods.iter().any(|flood| !flood.is_finished()),
            "the flood was over too soon"
        );
        over.store(true, Ordering::Relaxed);
    });
    // And the loud one is served as ever.
    assert_eq!(loud.ask_signed(Request::refresh(600)).code(), 0);
}

#[test]
fn overload_is_counted_and_passes() {
    let ip: IpAddr = loopback(Family::V4);
    let server = Server::with(
        &["127.0.0.1:0"],
        &[
            "server.shards=1",
            "server.relay_buffer=64KiB",
            "server.listener_buffer=64KiB",
        ],
    );
    let mut client = Client::udp(&server);
    let sender = peer(ip);
    let relayed = client.allocate();
    client.bind(0x4000, sender.local_addr().unwrap());
    let memory = resident_bytes();
    let over = AtomicBool::new(false);
    let from_client = datagrams(&client);
    let frame = channel_data(0x4000, &[2; 1200]);
    std::thread::scope(|scope| {
        scope.spawn(|| flood(&sender, &[1; 1200], Some(relayed), &over));
        for _ in 0..2 {
            scope.spawn(|| flood(&from_client, &frame, None, &over));
        }
        until("something is lost", || {
            server.dropped(DropReason::ReceiveBuffer) > 0
        });
        over.store(true, Ordering::Relaxed);
    });
    // It counts what the kernel threw away, and nothing piles up in the server.
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 64 << 20, "{grown} bytes");
    // Once the flood is over the next datagram comes through.
    let end = [9; 16];
    let deadline = now() + PATIENCE;
    sender
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut buffer = [0; 2048];
    let mut came = false;
    while !came && now() < deadline {
        client.send_channel(0x4000, &end);
        while let Ok(length) = sender.recv(&mut buffer) {
            came |= buffer[..length] == end;
        }
    }
    assert!(came, "the server goes on");
    assert_eq!(server.live(), 1);
}

/// Memory of this process in bytes, the server in it included.
fn resident_bytes() -> usize {
    resident_bytes_of(std::process::id())
}

fn resident_bytes_of(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: usize = status.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A server in a process of its own, which may open few files. Ends with the test.
pub struct Confined(Child);

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Confined {
    pub fn start(at: SocketAddr, files: u32, more: &[&str]) -> Self {
        let ip = at.ip();
        let set = [
            "http.admin=".to_owned(),
            format!("realm={REALM}"),
            format!("auth.users={{ {USER} = \"{PASSWORD}\" }}"),
            format!("listen=[{{ address = \"{at}\", protocols = [\"udp\", \"tcp\"] }}]"),
            format!("relay.addresses=[\"{ip}\"]"),
            "peers.allow=[\"loopback\"]".to_owned(),
            "server.shards=2".to_owned(),
        ];
        let state = tempfile::tempdir().unwrap();
        let child = Command::new("sh")
            .args(["-c", "ulimit -n $0 && exec \"$@\"", &files.to_string()])
            .args([env!("CARGO_BIN_EXE_turnix"), "serve"])
            .args(set.iter().flat_map(|set| ["--set", set]))
            .args(more.iter().flat_map(|set| ["--set", set]))
            .env("XDG_STATE_HOME", state.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let knock = knocking(at);
        knock
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        until("the server answers", || {
            let sent = knock.send(&Request::binding().bytes());
            sent.is_ok() && knock.recv(&mut [0; 512]).is_ok()
        });
        Self(child)
    }

    pub fn resident_bytes(&self) -> usize {
        resident_bytes_of(self.0.id())
    }

    /// CPU time used so far, in ticks.
    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        // proc(5): utime and stime are fields 14 and 15, and the name is the second.
        let fields: Vec<&str> = fields.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn log(mut self) -> String {
        self.0.kill().unwrap();
        let mut log = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        log
    }
}

#[test]
fn without_descriptors_newcomers_are_refused_and_nobody_else_suffers() {
    const FILES: u32 = 64;
    let at = SocketAddr::from((quiet_address(), 20_004));
    // Few ports and a small quota: what is not given back after a failure is missed.
    let set = [
        &format!("relay.ports='21000-{}'", 21_000 + FILES - 1),
        &format!("limits.allocations={FILES}"),
    ];
    let server = Confined::start(at, FILES, &set.map(String::as_str));
    let mut clients = Vec::new();
    let refused = loop {
        let mut client = Client::on(knocking(at));
        let reply = client.try_allocate();
        if reply.code() != 0 {
            assert_eq!(reply.code(), 508);
            break client;
        }
        clients.push((client, reply.relayed()));
        assert!(
            clients.len() < FILES as usize,
            "more allocations than descriptors"
        );
    };
    assert!(clients.len() > FILES as usize / 3, "{}", clients.len());

    // Connections that cannot be accepted and clients that come again and again keep it busy no more than they must.
    let waiting: Vec<_> = (0..4).map(|_| TcpStream::connect(at).unwrap()).collect();
    let mut refused = refused;
    for _ in 0..3 * FILES {
        assert_eq!(refused.try_allocate().code(), 508);
    }
    let before = server.cpu_ticks();
    std::thread::sleep(Duration::from_secs(1));
    let ticks = server.cpu_ticks() - before;
    assert!(
        ticks < turnix::net::host::clock_ticks() / 2,
        "{ticks} ticks in a quiet second"
    );

    let echo = peer(at.ip());
    for (client, relayed) in &mut clients {
        assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
        client.bind(0x4000, echo.local_addr().unwrap());
        paced_exchange(client, 0x4000, &echo, *relayed);
    }

    // Every descriptor that comes back serves the next, the connections' too.
    drop(waiting);
    for (client, _) in clients.iter_mut().take(4) {
        client.release();
    }
    let mut relayed = None;
    until("there is room again", || {
        let reply = refused.try_allocate();
        relayed = (reply.code() == 0).then(|| reply.relayed());
        relayed.is_some()
    });
    // Ports that could not be opened are as good as ever: those that were released rest.
    let had = |relayed| clients.iter().any(|(_, had)| Some(*had) == relayed);
    assert!(!had(relayed), "{relayed:?}");
    let log = server.log();
    assert_eq!(
        log.matches("cannot open a relay socket").count(),
        1,
        "{log}"
    );
    assert!(log.contains("open files: at most 64"), "{log}");
}

/// Prints what TLS handshakes cost those who relay: `cargo test --release --test loopback -- --ignored --nocapture
/// handshakes`, on a machine with nothing else to do; `taskset -c 0` makes them share one CPU.
#[test]
#[ignore = "measures, and proves nothing"]
fn latency_under_handshakes() {
    const ROUNDS: usize = 20_000;
    const PER_SECOND: u32 = 200;
    const THREADS: u32 = 2;
    let server = Server::with(&["127.0.0.1:0"], &["server.shards=1"]);
    let echo = peer(loopback(Family::V4));
    let mut client = Client::udp(&server);
    let relayed = client.allocate();
    client.bind(0x4000, echo.local_addr().unwrap());
    for with_handshakes in [false, true, false, true] {
        let over = AtomicBool::new(false);
        let (mut micros, handshakes) = std::thread::scope(|scope| {
            let shake = || {
                let (begin, mut done) = (now(), 0);
                while with_handshakes && !over.load(Ordering::Relaxed) && done < 10_000 {
                    let due = begin + Duration::from_secs(1) * done * THREADS / PER_SECOND;
                    std::thread::sleep(due.saturating_duration_since(now()));
                    let mut client = Client::new(&server, Transport::Tls, Family::V4);
                    assert_eq!(client.ask(&Request::binding()).code(), 0);
                    done += 1;
                }
                done
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(shake)).collect();
            let begin = now();
            let mut micros = Vec::with_capacity(ROUNDS);
            for at in 0..ROUNDS as u32 {
                let due = begin + Duration::from_micros(200) * at;
                std::thread::sleep(due.saturating_duration_since(now()));
                let sent = now();
                client.send_channel(0x4000, &at.to_be_bytes());
                let (data, _) = receive(&echo);
                echo.send_to(&data, relayed).unwrap();
                client.expect_channel(0x4000);
                micros.push((now() - sent).as_micros());
            }
            over.store(true, Ordering::Relaxed);
            let done: u32 = threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum();
            (micros, f64::from(done) / (now() - begin).as_secs_f64())
        });
        micros.sort_unstable();
        let [p50, p99, p999] = [500, 990, 999].map(|at| micros[ROUNDS * at / 1000]);
        println!("{handshakes:4.0} handshakes/s: p50 {p50} us, p99 {p99} us, p99.9 {p999} us");
    }
}
