//! Relaying allocates nothing, and strangers leave nothing: the first allocation on the data path of the core fails.
#![expect(unsafe_code, reason = "an allocator that counts is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use turnix::base::{FiveTuple, ListenerId, Transport};
use turnix::quality::{self, Mode};
use turnix::turn::police::{Budget, Rate};
use turnix::turn::{AllocationId, Bandwidth, DropReason, Forward, FromPeer, Path, Settings};

use crate::common::wire::{Request, Signer, channel_data, padded_channel_data};
use crate::common::world::{World, access_settings, addr, seed, tcp, udp};

#[path = "common/mod.rs"]
mod common;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// Bytes that this thread took and did not give back.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call is passed to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        hold(layout.size() as isize);
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`, which `System` asks for too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-(layout.size() as isize));
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        hold(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn hold(bytes: isize) {
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

const CLIENT: &str = "192.0.2.7:4000";
const BOUND: &str = "8.8.8.8:5000";
const UNBOUND: &str = "8.8.8.8:6000";
const STRANGER: &str = "9.9.9.9:5000";

/// Whatever is watched: RTP of another stream each time, a check, its answer, a handshake, and nothing of these.
fn payloads(round: u32) -> [[u8; 1200]; 5] {
    let mut rtp = [7; 1200];
    rtp[..2].copy_from_slice(&[0x80, 96]);
    rtp[2..4].copy_from_slice(&(round as u16).to_be_bytes());
    rtp[4..8].copy_from_slice(&(round * 3000).to_be_bytes());
    rtp[8..12].copy_from_slice(&(round / 4).to_be_bytes());
    let stun = |kind: u16| {
        let mut stun = [7; 1200];
        stun[..2].copy_from_slice(&kind.to_be_bytes());
        stun[2..4].copy_from_slice(&1180_u16.to_be_bytes());
        stun[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
        stun[8..12].copy_from_slice(&(round / 3).to_be_bytes());
        stun
    };
    let mut hello = [7; 1200];
    hello[..2].copy_from_slice(&[22, 254]);
    [rtp, stun(0x0001), stun(0x0101), hello, [7; 1200]]
}

fn relaying() -> (World, [AllocationId; 2]) {
    relaying_under(Bandwidth::default())
}

fn relaying_under(bandwidth: Bandwidth) -> (World, [AllocationId; 2]) {
    let quality = quality::Settings {
        mode: Mode::Full,
        ..quality::Settings::default()
    };
    let settings = Settings {
        bandwidth,
        quality,
        ..Settings::default()
    };
    let mut world = World::with(settings, &access_settings(), seed());
    let ids = [udp(CLIENT), tcp(CLIENT)].map(|client| {
        let (alice, id, _) = world.allocate(client);
        let bind = Request::channel_bind(0x4001, addr(BOUND)).sign(&alice);
        assert_eq!(world.ask(client, &bind).code(), 0);
        id
    });
    (world, ids)
}

#[test]
fn the_counter_counts() {
    assert_eq!(
        allocations(|| {
            black_box(1);
        }),
        0
    );
    assert!(
        allocations(|| {
            black_box(Box::new(1));
        }) > 0
    );
    let mut grows = vec![1_u8];
    assert!(allocations(|| grows.reserve(4096)) > 0);
}

#[test]
fn client_to_peer_allocates_nothing() {
    let (mut world, _) = relaying();
    let mut now = world.now;
    for round in 0..500 {
        let data = payloads(round / 5)[round as usize % 5];
        let inputs = [
            (udp(CLIENT), channel_data(0x4001, &data)),
            (tcp(CLIENT), padded_channel_data(0x4001, &data[..1199])),
            (udp(CLIENT), Request::send(addr(BOUND), &data).bytes()),
            (udp(CLIENT), Request::send(addr(UNBOUND), &data).bytes()),
        ];
        for (from, bytes) in &inputs {
            let server = &mut world.server;
            let count = allocations(|| {
                let forward = server.handle_input(now, *from, bytes);
                assert!(matches!(forward, Forward::ToPeer { .. }));
                server.count_to_peer(Path::Kernel, data.len());
                assert!(server.poll_output().is_none());
                black_box(server.poll_timeout());
            });
            assert_eq!(count, 0, "round {round}");
        }
        now = now + Duration::from_millis(200);
    }
}

#[test]
fn peer_to_client_allocates_nothing() {
    let (mut world, ids) = relaying();
    let mut now = world.now;
    for round in 0..500 {
        let data = payloads(round / 5)[round as usize % 5];
        for id in ids {
            for peer in [addr(BOUND), addr(UNBOUND)] {
                let from = FromPeer {
                    peer,
                    path: Path::Kernel,
                    scope: turnix::access::Scope::Policy,
                };
                let server = &mut world.server;
                let count = allocations(|| {
                    let forward = server.handle_peer_input(now, id, from, &data);
                    assert!(matches!(forward, Forward::ToClient { .. }));
                    assert!(server.poll_output().is_none());
                });
                assert_eq!(count, 0, "round {round}");
            }
        }
        now = now + Duration::from_millis(200);
    }
}

/// Below the limits and above them, purses that settle included.
#[test]
fn policing_allocates_nothing() {
    const MBIT: u64 = 1_000_000;
    let (mut world, ids) = relaying_under(Bandwidth {
        per_allocation: 2 * MBIT,
        per_user: 3 * MBIT,
        total: 4 * MBIT,
    });
    let rates = [4 * MBIT, 3 * MBIT].map(|bits| Rate::of(bits).unwrap());
    let mut budgets = rates.map(|rate| Budget::full(rate, 0));
    let data = [7; 1200];
    let input = channel_data(0x4001, &data);
    let from = FromPeer {
        peer: addr(BOUND),
        path: Path::Kernel,
        scope: turnix::access::Scope::Policy,
    };
    let (mut now, mut settled, mut dropped) = (world.now, 0, 0);
    for _ in 0..20_000 {
        now = now + Duration::from_millis(2);
        let at = now.mono.duration_since(world.start.mono).as_nanos() as u64;
        let server = &mut world.server;
        let count = allocations(|| {
            let forwards = [
                server.handle_input(now, udp(CLIENT), &input),
                server.handle_input(now, tcp(CLIENT), &input),
                server.handle_peer_input(now, ids[0], from, &data),
            ];
            let drops = forwards.iter().filter(|it| matches!(it, Forward::Drop(_)));
            dropped += drops.count();
            while let Some(due) = server.poll_purse() {
                settled += 1;
                let which = due.purse.0 as usize;
                let grants = budgets[which].settle(rates[which], at, 1, due.spent);
                server.fund(now, due.purse, grants);
            }
        });
        assert_eq!(count, 0);
    }
    assert!(dropped > 1000 && settled > 1000, "{dropped}, {settled}");
}

#[test]
fn dropping_allocates_nothing() {
    let (mut world, ids) = relaying();
    let stranger = udp("192.0.2.66:6666");
    let garbage = [0xFF; 600];
    let mut broken = Request::send(addr(BOUND), b"data").bytes();
    broken.truncate(30);
    let inputs = [
        (stranger, channel_data(0x4001, b"data")),
        (stranger, Request::send(addr(BOUND), b"data").bytes()),
        (udp(CLIENT), channel_data(0x4002, b"data")),
        (udp(CLIENT), Request::send(addr(STRANGER), b"data").bytes()),
        (udp(CLIENT), broken),
        (stranger, garbage.to_vec()),
        (stranger, Vec::new()),
    ];
    let server = &mut world.server;
    let now = world.now;
    for (from, bytes) in &inputs {
        let count = allocations(|| {
            let forward = server.handle_input(now, *from, bytes);
            assert!(matches!(forward, Forward::Drop(_)));
        });
        assert_eq!(count, 0);
    }
    let from = FromPeer {
        peer: addr(STRANGER),
        path: Path::Kernel,
        scope: turnix::access::Scope::Policy,
    };
    let count = allocations(|| {
        let forward = server.handle_peer_input(now, ids[0], from, &garbage);
        assert!(matches!(forward, Forward::Drop(_)));
    });
    assert_eq!(count, 0);
}

/// Every datagram from another source: what they are told and what they are not leaves nothing in the server.
#[test]
fn a_million_strangers_take_no_memory() {
    const STRANGERS: u32 = 1_000_000;
    let mut world = World::new();
    let nobody = Signer::new("nobody", "wrong", "gone");
    // The first two cost the most work without optimization.
    let kinds = [
        Request::allocate().bytes(),
        Request::refresh(600).sign(&nobody).bytes(),
    ];
    let binding = Request::binding().bytes();
    let (mut held, mut most) = (0, 0);
    for at in 0..STRANGERS {
        let ip = Ipv4Addr::from_bits(at.wrapping_mul(2_654_435_761));
        let from = FiveTuple::new(Transport::Udp, (ip, 4000).into(), ListenerId(0));
        let bytes = match at % 64 {
            0 => &kinds[0],
            1 => &kinds[1],
            _ => &binding,
        };
        world.server.handle_input(world.now, from, bytes);
        while world.server.poll_output().is_some() {}
        match at {
            // The queue of outputs and the like are there from now on.
            1000 => (held, most) = (HELD.get(), HELD.get()),
            _ => most = most.max(HELD.get()),
        }
    }
    assert_eq!(most, held);
    assert!(world.server.is_empty() && world.server.poll_timeout().is_none());
}

#[test]
fn what_is_over_the_limit_allocates_nothing() {
    let mut world = World::new();
    let stranger = udp("192.0.2.66:6666");
    let inputs = [Request::binding().bytes(), Request::allocate().bytes()];
    for _ in 0..1000 {
        world.input(stranger, &inputs[0]);
    }
    let server = &mut world.server;
    for bytes in &inputs {
        let count = allocations(|| {
            let forward = server.handle_input(world.now, stranger, bytes);
            assert_eq!(forward, Forward::Drop(DropReason::RateLimited));
        });
        assert_eq!(count, 0);
    }
}
