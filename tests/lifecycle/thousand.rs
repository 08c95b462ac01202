//! The bar: a thousand calls do not notice a hundred reloads.

use std::sync::atomic::{AtomicBool, Ordering};

use turnix::net::host;

use super::client::Client;
use super::common::wire::Request;
use super::process::{CONFIG, Process};
use super::server::{PATIENCE, now, peer};

const ALLOCATIONS: usize = 1000;
const RELOADS: usize = 100;

/// Clients that have a datagram on its way at once: fewer than the smallest receive buffer holds.
const AT_ONCE: usize = 50;

const CHANNEL: u16 = 0x4000;

/// Everything that a reload can change and calls need not notice.
fn other_configuration() -> String {
    CONFIG
        .replace("example.org", "example.net")
        .replace("[auth]", "ports = \"20000-40000\"\n[auth]")
        .replace("[\"north\"]", "[\"south\", \"east\"]")
        .replace("bob = \"builder\"", "carol = \"painter\"")
        .replace("[http]", "deny = [\"203.0.113.0/24\"]\n[http]")
        .replace(
            "[server]",
            "[server]\nbusy_poll = \"20us\"\nrelay_buffer = \"128KiB\"\nlistener_buffer = \"2MiB\"",
        )
        + r#"
[[listen]]
address = "{ip}:3479"
protocols = ["udp", "tcp"]
[limits]
allocations = 5000
allocations_per_user = 4000
channels_per_allocation = 9
unauthenticated_per_address = 5000
[metrics]
per_allocation = 10
[cluster]
node = "other"
[log]
level = "warn"
[drain]
deadline = "2h"
"#
}

#[test]
fn a_thousand_calls_lose_nothing_in_a_hundred_reloads() {
    host::raise_open_files().unwrap();
    let process = Process::start(CONFIG);
    let echo = peer(process.ip);
    let at = echo.local_addr().unwrap();
    let mut clients: Vec<Client> = (0..ALLOCATIONS)
        .map(|_| {
            let mut client = process.client();
            client.allocate();
            client.bind(CHANNEL, at);
            client
        })
        .collect();
    process.until_live(ALLOCATIONS as u64);
    let other = other_configuration();
    let reloaded = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    let (rounds, echoed) = std::thread::scope(|scope| {
        let echoing = scope.spawn(|| {
            echo.set_read_timeout(Some(std::time::Duration::from_millis(100)))
                .unwrap();
            let mut echoed = 0u64;
            let mut buffer = [0; 2048];
            let deadline = now() + PATIENCE * 16;
            while !over.load(Ordering::Relaxed) && now() < deadline {
                if let Ok((length, from)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..length], from).unwrap();
                    echoed += 1;
                }
            }
            echoed
        });
        scope.spawn(|| {
            for at in 0..RELOADS {
                let config = if at % 2 == 0 { other.as_str() } else { CONFIG };
                let body = process.reload(config);
                let changed = body["changed"].as_array().unwrap().len();
                assert!(changed > 15, "{body:#}");
            }
            reloaded.store(true, Ordering::Relaxed);
        });
        let mut rounds = 0u64;
        let deadline = now() + PATIENCE * 12;
        // One more round when all is done.
        let mut last = false;
        while !last {
            assert!(
                now() < deadline,
                "the reloads take too long: {}",
                process.log()
            );
            last = reloaded.load(Ordering::Relaxed);
            for (group, clients) in clients.chunks_mut(AT_ONCE).enumerate() {
                let data = |at: usize| {
                    let number = (rounds << 16) | (group * AT_ONCE + at) as u64;
                    number.to_be_bytes()
                };
                for (at, client) in clients.iter_mut().enumerate() {
                    client.send_channel(CHANNEL, &data(at));
                }
                for (at, client) in clients.iter_mut().enumerate() {
                    assert_eq!(client.expect_channel(CHANNEL), data(at), "round {rounds}");
                }
            }
            rounds += 1;
        }
        over.store(true, Ordering::Relaxed);
        (rounds, echoing.join().unwrap())
    });
    println!("{rounds} rounds of {ALLOCATIONS} while {RELOADS} reloads were done");
    assert_eq!(echoed, rounds * ALLOCATIONS as u64);
    // Each of them is still the same allocation, and its client still its owner.
    assert_eq!(process.http("GET", "/ready").1["allocations"], ALLOCATIONS);
    for client in &mut clients {
        assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    }
}
