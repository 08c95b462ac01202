//! A whole server that relays allocates nothing: sockets, loop and core together.
//!
//! One test only, because it counts what every thread but its own allocates.
#![expect(unsafe_code, reason = "an allocator that counts is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};

use turnix::base::{Family, Transport};

use crate::client::Client;
use crate::common::wire::{Request, channel_data};
use crate::server::{Server, peer};

#[path = "loopback/client.rs"]
#[expect(dead_code, reason = "made for many tests")]
mod client;
#[path = "common/mod.rs"]
mod common;
#[path = "loopback/server.rs"]
#[expect(dead_code, reason = "made for many tests")]
mod server;

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !EXEMPT.try_with(Cell::get).unwrap_or(true) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`, which `System` asks for too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of threads that only now get to run, on a busy machine. One for each datagram would be thousands.
const STRAY: u64 = 16;

const CHANNEL: u16 = 0x4001;

/// Sends `rounds` of eight frames through `client` to `peer` and back.
fn echo(client: &mut Client, frame: &[u8], peer: &UdpSocket, rounds: u32) {
    let mut buffer = [0; 2048];
    for _ in 0..rounds {
        for _ in 0..8 {
            client.send(frame);
        }
        for _ in 0..8 {
            let (length, relayed) = peer.recv_from(&mut buffer).unwrap();
            peer.send_to(&buffer[..length], relayed).unwrap();
        }
        for _ in 0..8 {
            drop(client.expect());
        }
    }
}

/// Clients of every kind, one after the other.
fn one_by_one(server: &Server, data: &[u8]) {
    let at = |peer: &UdpSocket| peer.local_addr().unwrap();

    let mut cases: Vec<(&str, Client, Vec<u8>, UdpSocket)> = Vec::new();
    for (name, transport, indications) in [
        ("channels", Transport::Udp, false),
        ("indications", Transport::Udp, true),
        ("channels over TCP", Transport::Tcp, false),
        ("indications over TCP", Transport::Tcp, true),
    ] {
        let peer = peer(Ipv4Addr::LOCALHOST);
        let mut client = Client::new(server, transport, Family::V4);
        client.allocate();
        let frame = if indications {
            client.permit(at(&peer));
            Request::send(at(&peer), data).bytes()
        } else {
            client.bind(CHANNEL, at(&peer));
            client.channel_frame(CHANNEL, data)
        };
        cases.push((name, client, frame, peer));
    }
    for (name, client, frame, peer) in &mut cases {
        echo(client, frame, peer, 1000);
        let before = COUNT.load(Ordering::Relaxed);
        echo(client, frame, peer, 2000);
        let allocations = COUNT.load(Ordering::Relaxed) - before;
        assert!(
            allocations <= STRAY,
            "{name}: {allocations} in 2 x 16000 datagrams"
        );
    }
}

#[test]
fn relaying_allocates_nothing() {
    EXEMPT.set(true);
    let data = [7; 201];
    one_by_one(&Server::with(&["127.0.0.1:0"], &["server.shards=1"]), &data);
    // Limits that this does not reach, and whose purses settle all the time.
    let limits = ["_per_allocation=300Mbit", "_per_user=300Mbit", "=300Mbit"];
    let limits = limits.map(|limit| format!("limits.bandwidth{limit}"));
    let mut set = vec!["server.shards=1"];
    set.extend(limits.iter().map(String::as_str));
    one_by_one(&Server::with(&["127.0.0.1:0"], &set), &data);

    // Two clients of one server, in one shard and in two.
    let mut server = Server::with(&["127.0.0.1:0"], &["server.shards=1"]);
    for across in [false, true] {
        if across {
            server = Server::with(&["127.0.0.1:0"], &["server.shards=2"]);
        }
        let server = &server;
        let mut one = Client::udp(server);
        let one_at = one.allocate();
        let shard = server.allocation(one_at).shard;
        let (mut other, other_at) = (0..64)
            .map(|_| {
                let mut other = Client::udp(server);
                let other_at = other.allocate();
                (other, other_at)
            })
            .find(|(_, at)| (server.allocation(*at).shard != shard) == across)
            .expect("clients in both shards");
        one.bind(CHANNEL, other_at);
        other.bind(CHANNEL, one_at);
        let frame = channel_data(CHANNEL, &data);
        let mut hairpin = |rounds: u32| {
            for _ in 0..rounds {
                for _ in 0..8 {
                    one.send(&frame);
                }
                for _ in 0..8 {
                    drop(other.expect());
                }
            }
        };
        hairpin(1000);
        let before = COUNT.load(Ordering::Relaxed);
        hairpin(2000);
        let allocations = COUNT.load(Ordering::Relaxed) - before;
        // Between shards, a busier moment than all before may take another parcel into use: three allocations each, and
        // never more than 64 parcels, whatever the number of datagrams.
        let most = if across { 3 * 64 } else { STRAY };
        assert!(
            allocations <= most,
            "hairpin, across shards: {across}: {allocations} in 16000 datagrams"
        );
    }

    // The counter does count this server.
    let before = COUNT.load(Ordering::Relaxed);
    Client::udp(&server).allocate();
    assert!(COUNT.load(Ordering::Relaxed) > before);
}
