//! What one packet and one request cost in the core and in the codec, next to the `stun` and `turn` crates.
//!
//! `cargo bench --bench micro` takes about a minute.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{Bencher, BenchmarkId, Criterion, criterion_group, criterion_main};
use stun::attributes::{ATTR_DATA, ATTR_XOR_PEER_ADDRESS};
use stun::integrity::MessageIntegrity;
use stun::message::Message as StunMessage;
use stun::xoraddr::XorMappedAddress;
use turn::proto::chandata::ChannelData;
use turnix::access::rest;
use turnix::base::{FiveTuple, ListenerId, Secret, Transport};
use turnix::quality::Mode;
use turnix::turn::police::{Budget, Rate};
use turnix::turn::{AllocationId, Bandwidth, Forward, FromPeer, Path, Server, Settings};
use turnix::wire::{Key, Kind, Message, Method, Response, channel_data, classify, indication};

use crate::common::wire::{REALM, Request, Signer, channel_data as encode_channel_data};
use crate::common::world::{
    EPOCH, PASSWORD, SECRET, USER, World, access_settings, addr, seed, udp,
};

#[path = "../tests/common/mod.rs"]
mod common;

const PAYLOAD: [u8; 1000] = [7; 1000];
const PEER: &str = "8.8.8.8:5000";
const CHANNEL: u16 = 0x4001;

fn integrity() -> MessageIntegrity {
    MessageIntegrity::new_long_term_integrity(USER.into(), REALM.into(), PASSWORD.into())
}

fn signed_allocate() -> Vec<u8> {
    let signer = Signer::new(USER, PASSWORD, "0123456789abcdefghijklmn");
    Request::allocate().sign(&signer).bytes()
}

fn wire(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire");
    let data = encode_channel_data(CHANNEL, &PAYLOAD);
    group.bench_function("channel_data", |b| {
        b.iter(|| {
            let bytes = black_box(&data[..]);
            assert_eq!(classify(bytes), Kind::ChannelData);
            channel_data::parse(bytes)
        });
    });
    let send = Request::send(addr(PEER), &PAYLOAD).bytes();
    group.bench_function("send", |b| {
        b.iter(|| indication::parse_send(black_box(&send)))
    });
    let allocate = signed_allocate();
    let key = Key::md5(integrity().0.try_into().expect("16 bytes"));
    group.bench_function("parse", |b| {
        b.iter(|| Message::parse(black_box(&allocate)).is_ok())
    });
    group.bench_function("parse_and_verify", |b| {
        b.iter(|| {
            Message::parse(black_box(&allocate)).is_ok_and(|message| message.verify_integrity(&key))
        });
    });
    let transaction = Message::parse(&allocate)
        .expect("a message")
        .transaction_id();
    group.bench_function("signed_response", |b| {
        b.iter(|| {
            Response::success(Method::Allocate, transaction)
                .relayed_address(addr(PEER))
                .mapped_address(addr(PEER))
                .lifetime(600)
                .finish(Some(black_box(&key)), false)
        });
    });
    group.finish();
}

fn baseline(c: &mut Criterion) {
    let mut group = c.benchmark_group("baseline");
    let data = encode_channel_data(CHANNEL, &PAYLOAD);
    group.bench_function("channel_data", |b| {
        b.iter(|| {
            let mut read = ChannelData {
                raw: black_box(&data[..]).to_vec(),
                ..Default::default()
            };
            read.decode().expect("ChannelData");
            read
        });
    });
    let send = Request::send(addr(PEER), &PAYLOAD).bytes();
    group.bench_function("send", |b| {
        b.iter(|| {
            let mut read = StunMessage::new();
            read.unmarshal_binary(black_box(&send)).expect("STUN");
            let mut peer = XorMappedAddress::default();
            peer.get_from_as(&read, ATTR_XOR_PEER_ADDRESS)
                .expect("a peer");
            (peer.port, read.get(ATTR_DATA))
        });
    });
    let allocate = signed_allocate();
    group.bench_function("parse", |b| {
        b.iter(|| {
            let mut read = StunMessage::new();
            read.unmarshal_binary(black_box(&allocate)).expect("STUN");
            read
        });
    });
    let key = integrity();
    group.bench_function("parse_and_verify", |b| {
        b.iter(|| {
            let mut read = StunMessage::new();
            read.unmarshal_binary(black_box(&allocate)).expect("STUN");
            key.check(&mut read).expect("signed");
        });
    });
    group.finish();
}

/// `count` clients, each with a channel to a peer of its own, in random order.
struct Population {
    world: World,
    /// How far time has gone on, for those who need it to.
    nanos: u64,
    all: Vec<(FiveTuple, AllocationId, SocketAddr)>,
}

impl Population {
    fn new(count: u32) -> Self {
        Self::under(Bandwidth::default(), count)
    }

    fn under(bandwidth: Bandwidth, count: u32) -> Self {
        let settings = Settings {
            bandwidth,
            ..Settings::default()
        };
        Self::with(settings, count)
    }

    fn with(settings: Settings, count: u32) -> Self {
        let settings = Settings {
            // All of them come from one network.
            unauthenticated_per_address: 0,
            ..settings
        };
        let mut world = World::with(settings, &access_settings(), seed());
        let mut all = Vec::new();
        for index in 0..count {
            let host = std::net::Ipv4Addr::from_bits(0xC000_0200 + index / 50);
            let client = SocketAddr::new(host.into(), 20_000 + (index % 50) as u16);
            let client = FiveTuple::new(Transport::Udp, client, ListenerId(0));
            let peer = SocketAddr::new(
                std::net::Ipv4Addr::from_bits(0x0808_0000 + index).into(),
                5000,
            );
            let (alice, id, _) = world.allocate(client);
            let bind = Request::channel_bind(CHANNEL, peer).sign(&alice);
            assert_eq!(world.ask(client, &bind).code(), 0);
            all.push((client, id, peer));
        }
        // A shuffle that is the same in every run.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for at in (1..all.len()).rev() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            all.swap(at, (state >> 33) as usize % (at + 1));
        }
        Self {
            world,
            nanos: 0,
            all,
        }
    }

    fn from_clients(&mut self, b: &mut Bencher<'_>, message: impl Fn(SocketAddr) -> Vec<u8>) {
        let messages: Vec<Vec<u8>> = self.all.iter().map(|(_, _, peer)| message(*peer)).collect();
        let now = self.world.now;
        let server = &mut self.world.server;
        let mut order = self.all.iter().zip(&messages).cycle();
        b.iter(|| {
            let ((from, ..), bytes) = order.next().expect("a cycle");
            let forward = server.handle_input(now, *from, black_box(bytes));
            assert!(matches!(forward, Forward::ToPeer { .. }));
            forward
        });
    }

    /// With time that goes on, a microsecond a datagram, and purses that settle.
    fn from_clients_policed(&mut self, b: &mut Bencher<'_>, rate: Rate) {
        let data = encode_channel_data(CHANNEL, &PAYLOAD);
        // Time goes on from one call to the next, too.
        let (start, mut at) = (self.world.start, self.nanos);
        let nanos = &mut self.nanos;
        let server = &mut self.world.server;
        let mut budgets = [Budget::full(rate, at); 2];
        let mut settle = |server: &mut Server, now, at| {
            while let Some(due) = server.poll_purse() {
                let budget = &mut budgets[due.purse.0 as usize];
                server.fund(now, due.purse, budget.settle(rate, at, 1, due.spent));
            }
        };
        settle(server, start + Duration::from_nanos(at), at);
        let mut order = self.all.iter().cycle();
        b.iter(|| {
            let (from, ..) = order.next().expect("a cycle");
            at += 1000;
            *nanos = at;
            let now = start + Duration::from_nanos(at);
            let forward = server.handle_input(now, *from, black_box(&data));
            if server.purses_are_due() {
                settle(server, now, at);
            }
            assert!(matches!(forward, Forward::ToPeer { .. }));
            forward
        });
    }

    /// Opus from every client in turn, a microsecond a datagram.
    fn media(&mut self, b: &mut Bencher<'_>) {
        let mut data = encode_channel_data(CHANNEL, &PAYLOAD);
        data[4..6].copy_from_slice(&[0x80, 111]);
        let (start, all) = (self.world.start, self.all.len() as u64);
        let server = &mut self.world.server;
        let nanos = &mut self.nanos;
        let mut order = self.all.iter().cycle();
        b.iter(|| {
            let (from, ..) = order.next().expect("a cycle");
            *nanos += 1000;
            let sequence = (*nanos / 1000 / all) as u16;
            let timestamp = (*nanos * 48 / 1_000_000) as u32;
            data[6..8].copy_from_slice(&sequence.to_be_bytes());
            data[8..12].copy_from_slice(&timestamp.to_be_bytes());
            let now = start + Duration::from_nanos(*nanos);
            let forward = server.handle_input(now, *from, black_box(&data));
            assert!(matches!(forward, Forward::ToPeer { .. }));
            forward
        });
    }

    fn from_peers(&mut self, b: &mut Bencher<'_>, port: u16) {
        let now = self.world.now;
        let server = &mut self.world.server;
        let mut order = self.all.iter().cycle();
        b.iter(|| {
            let (_, id, peer) = order.next().expect("a cycle");
            let peer = SocketAddr::new(peer.ip(), port);
            let from = FromPeer {
                peer,
                path: Path::Kernel,
                scope: turnix::access::Scope::Policy,
            };
            let forward = server.handle_peer_input(now, *id, from, black_box(&PAYLOAD));
            assert!(matches!(forward, Forward::ToClient { .. }));
            forward
        });
    }
}

fn route(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for count in [1, 1_000, 10_000] {
        let mut population = Population::new(count);
        let id = |name: &str| BenchmarkId::new(name, count);
        group.bench_function(id("channel_data"), |b| {
            population.from_clients(b, |_| encode_channel_data(CHANNEL, &PAYLOAD));
        });
        group.bench_function(id("send"), |b| {
            population.from_clients(b, |peer| Request::send(peer, &PAYLOAD).bytes());
        });
        group.bench_function(id("peer_with_channel"), |b| population.from_peers(b, 5000));
        group.bench_function(id("peer_with_permission"), |b| {
            population.from_peers(b, 5001)
        });
    }
    group.finish();
}

/// The same datagrams under no limit, under one of each allocation, and under all three.
fn police(c: &mut Criterion) {
    const BITS: u64 = 100_000_000_000;
    let mut group = c.benchmark_group("police");
    let rate = Rate::of(BITS).expect("a limit");
    let own = Bandwidth {
        per_allocation: BITS,
        ..Bandwidth::default()
    };
    let all = Bandwidth {
        per_user: BITS,
        total: BITS,
        ..own
    };
    for count in [1, 1_000] {
        for (name, bandwidth) in [
            ("none", Bandwidth::default()),
            ("allocation", own),
            ("all", all),
        ] {
            let mut population = Population::under(bandwidth, count);
            group.bench_function(BenchmarkId::new(name, count), |b| {
                population.from_clients_policed(b, rate);
            });
        }
    }
    group.finish();
}

/// The same media, looked at or not. Time goes on, so that windows come and go.
fn quality(c: &mut Criterion) {
    let mut group = c.benchmark_group("quality");
    for count in [1, 1_000] {
        for mode in [Mode::Off, Mode::Sampled, Mode::Full] {
            let quality = turnix::quality::Settings {
                mode,
                ..turnix::quality::Settings::default()
            };
            let settings = Settings {
                quality,
                ..Settings::default()
            };
            let mut population = Population::with(settings, count);
            let name = format!("{mode:?}").to_lowercase();
            group.bench_function(BenchmarkId::new(name, count), |b| population.media(b));
        }
    }
    group.finish();
}

fn auth(c: &mut Criterion) {
    let mut group = c.benchmark_group("auth");
    let mut world = World::new();
    let client = udp("192.0.2.7:4000");
    let first = Request::allocate().bytes();
    group.bench_function("challenge", |b| {
        b.iter(|| {
            world
                .server
                .handle_input(world.now, client, black_box(&first));
            world.server.poll_output().expect("401")
        });
    });
    let secret = Secret::new(SECRET.to_owned());
    let (name, password) = rest::mint(&secret, Some("carol"), EPOCH.as_secs() + 3600);
    for (label, name, password) in [("static", USER, PASSWORD), ("rest", &name, &password)] {
        let mut world = World::new();
        let nonce = world.nonce(client);
        let signer = Signer::new(name, password, &nonce);
        let allocate = Request::allocate().sign(&signer).bytes();
        // From the signed request to the signed success, and the end, so that the next round starts from nothing.
        group.bench_function(format!("allocate_{label}"), |b| {
            b.iter(|| {
                world.input(client, black_box(&allocate));
                world.drain();
                assert_eq!(world.sent.len(), 1);
                world.sent.clear();
                world.opened.clear();
                world.even_ports.clear();
                world.server.handle_client_closed(world.now, client);
                world.drain();
                world.closed.clear();
                world.ended.clear();
            });
        });
        world.input(client, &allocate);
        let refresh = Request::refresh(600).sign(&signer).bytes();
        group.bench_function(format!("refresh_{label}"), |b| {
            b.iter(|| {
                world
                    .server
                    .handle_input(world.now, client, black_box(&refresh));
                world.server.poll_output().expect("an answer")
            });
        });
    }
    group.finish();
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(40)
}

criterion_group! {
    name = micro;
    config = short();
    targets = wire, baseline, route, police, quality, auth
}
criterion_main!(micro);
