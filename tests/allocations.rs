//! Relaying allocates nothing: the first allocation on the data path of the core fails.
#![expect(unsafe_code, reason = "an allocator that counts is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use turnix::turn::{AllocationId, Forward, FromPeer, Path};

use crate::common::wire::{Request, channel_data, padded_channel_data};
use crate::common::world::{World, addr, secs, tcp, udp};

#[path = "common/mod.rs"]
mod common;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`, which `System` asks for too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

fn relaying() -> (World, [AllocationId; 2]) {
    let mut world = World::new();
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
    let data = [7; 1200];
    let inputs = [
        (udp(CLIENT), channel_data(0x4001, &data)),
        (tcp(CLIENT), padded_channel_data(0x4001, &data[..1199])),
        (udp(CLIENT), Request::send(addr(BOUND), &data).bytes()),
        (udp(CLIENT), Request::send(addr(UNBOUND), &data).bytes()),
    ];
    let mut now = world.now;
    for round in 0..100 {
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
        now = now + secs(1);
    }
}

#[test]
fn peer_to_client_allocates_nothing() {
    let (mut world, ids) = relaying();
    let data = [7; 1200];
    let mut now = world.now;
    for round in 0..100 {
        for id in ids {
            for peer in [addr(BOUND), addr(UNBOUND)] {
                let from = FromPeer {
                    peer,
                    path: Path::Kernel,
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
        now = now + secs(1);
    }
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
    };
    let count = allocations(|| {
        let forward = server.handle_peer_input(now, ids[0], from, &garbage);
        assert!(matches!(forward, Forward::Drop(_)));
    });
    assert_eq!(count, 0);
}
