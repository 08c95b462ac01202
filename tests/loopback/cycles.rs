//! Allocations that come and go: whatever they took is there again.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use turnix::access::{Limits, Quota, Wanted};
use turnix::base::{Family, RelayedAddress};
use turnix::shard::{Available, FreePorts, QUARANTINE};
use turnix::turn::{DropReason, Forward, OpenError, Settings};

use super::client::Client;
use super::common::wire::{Reply, Request, channel_data};
use super::common::world::{PASSWORD, RELAY_V4, USER, World, access_settings, secs, seed, udp};
use super::load::{Confined, knocking};
use super::server::{PATIENCE, now, quiet_address};

/// EVEN-PORT without a reservation.
const EVEN_PORT: u16 = 0x0018;

/// How often allocations come and go: a hundred thousand times, or as many as CYCLES says. Unoptimized code spends its
/// time on HMACs, so there it is less.
fn cycles() -> usize {
    let default = if cfg!(debug_assertions) {
        10_000
    } else {
        100_000
    };
    let wanted = std::env::var("CYCLES").ok();
    wanted.map_or(default, |text| text.parse().expect("CYCLES is a number"))
}

/// Whether `answer` is a success.
fn succeeds(answer: &[u8]) -> bool {
    answer.len() >= 20 && answer[0] == 0x01 && answer[1] & 0xF0 == 0
}

/// One client of several that come and go: the same two requests again and again.
struct Cyclist {
    socket: UdpSocket,
    even: bool,
    allocate: Vec<u8>,
    refresh: Vec<u8>,
}

impl Cyclist {
    fn new(at: SocketAddr, even: bool) -> Self {
        let socket = knocking(at);
        let mut client = Client::on(socket.try_clone().unwrap());
        client.login(USER, PASSWORD);
        let signer = client.signer.unwrap();
        let request = match even {
            true => Request::allocate().attr(EVEN_PORT, &[0]),
            false => Request::allocate(),
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            even,
            allocate: request.sign(&signer).bytes(),
            refresh: Request::refresh(0).sign(&signer).bytes(),
        }
    }
}

/// What each answers to `request` of its own.
fn all_ask(cyclists: &[Cyclist], request: impl Fn(&Cyclist) -> &Vec<u8>) -> Vec<Vec<u8>> {
    for cyclist in cyclists {
        cyclist.socket.send(request(cyclist)).unwrap();
    }
    let mut buffer = [0; 1500];
    (cyclists.iter())
        .map(|cyclist| {
            let length = cyclist.socket.recv(&mut buffer).expect("an answer");
            buffer[..length].to_vec()
        })
        .collect()
}

/// The real server in a process of its own: every port is there at the end, and no memory was kept.
#[test]
fn allocations_that_come_and_go_leave_ports_and_memory() {
    const PORTS: usize = 64;
    let at = SocketAddr::from((quiet_address(), 20_005));
    let set = [
        "relay.ports='21000-21063'",
        "limits.allocations=64",
        "log.level='error'",
    ];
    let server = Confined::start(at, 1024, &set);
    // A quarter of them wants even ports: with 8 at once there are always some.
    let cyclists: Vec<_> = (0..8)
        .map(|number| Cyclist::new(at, number % 4 == 0))
        .collect();
    let mut memory = 0;
    let rounds = cycles() / cyclists.len();
    let begin = now();
    for round in 0..rounds {
        let allocated = all_ask(&cyclists, |cyclist| &cyclist.allocate);
        for (cyclist, answer) in cyclists.iter().zip(&allocated) {
            assert!(succeeds(answer), "{round}");
            if cyclist.even && round % 100 == 0 {
                assert_eq!(Reply::parse(answer).relayed().port() % 2, 0);
            }
        }
        let released = all_ask(&cyclists, |cyclist| &cyclist.refresh);
        assert!(released.iter().all(|answer| succeeds(answer)), "{round}");
        if round == rounds / 10 {
            memory = server.resident_bytes();
        }
    }
    let grown = server.resident_bytes().saturating_sub(memory);
    println!("{rounds} rounds in {:?}, {grown} bytes more", now() - begin);
    assert!(grown < 1 << 20, "{grown} bytes");

    // Every port can be had at once, the even ones as even ones, and none is left then.
    let mut clients: Vec<Client> = (0..=PORTS).map(|_| Client::on(knocking(at))).collect();
    let mut refused = clients.pop().unwrap();
    let mut ports: Vec<u16> = (clients.iter_mut().enumerate())
        .map(|(number, client)| {
            client.login(USER, PASSWORD);
            let request = Request::allocate();
            let reply = client.ask_signed(match number < PORTS / 2 {
                true => request.attr(EVEN_PORT, &[0]),
                false => request,
            });
            assert_eq!(reply.code(), 0, "{number}");
            reply.relayed().port()
        })
        .collect();
    assert_eq!(refused.try_allocate().code(), 486);
    ports.sort_unstable();
    assert!(ports.iter().copied().eq(21_000..21_064), "{ports:?}");
    clients[0].release();
    refused.allocate();
}

/// The core, the quotas and the ports in virtual time, with what does not come back by itself: allocations that nobody
/// releases, sockets that cannot be opened.
#[test]
fn the_core_is_empty_after_allocations_that_came_and_went() {
    const PORTS: u16 = 512;
    let client = |number: u8| udp(&format!("192.0.2.{number}:4000"));
    // Nonces last, for virtual time passes.
    let settings = Settings {
        nonce_lifetime: secs(7 * 24 * 3600),
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    world.open = None;
    let limits = Limits {
        allocations: PORTS.into(),
        share_per_user: 90,
        ..Limits::default()
    };
    let mut quota = Quota::new(limits, [PORTS.into(), 0]);
    let mut free = FreePorts::new(1024..=1024 + PORTS - 1, world.now.mono);
    let user: Arc<str> = USER.into();
    // Those that are live: the id, its client and what opening it took.
    let mut live = Vec::new();
    let peer: SocketAddr = "8.8.8.8:5000".parse().unwrap();
    let requests: Vec<[Vec<u8>; 4]> = (1..=8)
        .map(|number| {
            let signer = world.alice(client(number));
            let even = Request::allocate().attr(EVEN_PORT, &[0]);
            let bind = Request::channel_bind(0x4000, peer);
            [Request::allocate(), even, bind, Request::refresh(0)]
                .map(|request| request.sign(&signer).bytes())
        })
        .collect();
    let (mut released, mut expired, mut failed, mut highest) = (0, 0, 0, 0);
    for cycle in 0..cycles() {
        let number = (cycle % 8) as u8 + 1;
        let from = client(number);
        let [any, even, bind, refresh] = &requests[usize::from(number) - 1];
        let wanted = Wanted {
            family: Family::V4,
            even_port: cycle % 3 == 0,
            scope: turnix::access::Scope::Policy,
            realm: None,
        };
        world.input(from, if wanted.even_port { even } else { any });
        let id = world.opened.pop().expect("a relay is to be opened");
        highest = highest.max(id.slot);
        let ip = from.client().ip();
        quota.reserve(&user, ip, wanted).unwrap();
        let port = free.take(world.now.mono, wanted.even_port).unwrap();
        if cycle % 5 == 4 {
            // The socket cannot be opened: nobody has had the port.
            free.put_back(port);
            quota.release(&user, ip, wanted);
            let refused = Err(OpenError::Capacity);
            world.server.handle_relay_opened(world.now, id, refused);
            world.drain();
            failed += 1;
        } else {
            let relayed = SocketAddr::new(RELAY_V4.parse().unwrap(), port);
            (world.server).handle_relay_opened(world.now, id, Ok(RelayedAddress(relayed).into()));
            world.drain();
            live.push((id, ip, wanted, port));
            world.input(from, bind);
            let data = world.peer_input(id, peer, b"data");
            assert!(matches!(data, Forward::ToClient { .. }), "{data:?}");
            if cycle % 1000 == 0 {
                // Nobody releases it.
                world.pass(secs(600));
                expired += 1;
            } else {
                world.input(from, refresh);
                released += 1;
            }
        }
        for id in std::mem::take(&mut world.closed) {
            let (live, ip, wanted, port) = live.pop().expect("it was opened");
            assert_eq!(live, id);
            free.release(world.now.mono, port);
            quota.release(&user, ip, wanted);
            // Nothing leads to it or from it.
            let data = channel_data(0x4000, b"data");
            assert_eq!(
                world.input(from, &data),
                Forward::Drop(DropReason::NoChannel)
            );
            let data = world.peer_input(id, peer, b"data");
            assert_eq!(data, Forward::Drop(DropReason::NoAllocation));
        }
        assert!(live.is_empty() && world.server.is_empty());
        assert_eq!(world.server.poll_timeout(), None);
        world.ended.clear();
        world.even_ports.clear();
        world.sent.clear();
    }
    assert!(released > 0 && expired > 0 && failed > 0);
    // One slot served them all.
    assert_eq!(highest, 0);
    assert_eq!((quota.live(), quota.live_of_user(USER)), (0, 0));
    let all = Available {
        rested: PORTS.into(),
        resting: 0,
    };
    assert_eq!(free.available(world.now.mono + 2 * QUARANTINE, false), all);
}
