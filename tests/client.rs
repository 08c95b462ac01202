//! The sans-IO client against the sans-IO server, in virtual time, over a network that loses and reorders.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::wire::{REALM, Reply, Request};
use common::world::{PASSWORD, RELAY_V4, RELAY_V6, USER, World, addr, secs, tcp, udp};
use turnix::base::{Family, FiveTuple, Now, Secret, Transport};
use turnix::client::{Client, Event, Failure, Input, Settings, Step};
use turnix::turn::{Forward, Newcomers};
use turnix::wire::ChannelNumber;

const PEER: &str = "9.9.9.9:4000";

fn settings(transport: Transport) -> Settings {
    Settings {
        username: USER.into(),
        password: Secret::new(PASSWORD.into()),
        transport,
        family: None,
        lifetime_secs: None,
    }
}

fn channel() -> ChannelNumber {
    ChannelNumber::new(0x4001).unwrap()
}

/// A small generator, so that a seed names a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

enum Way {
    ToServer,
    ToClient,
}

/// One client, one server, and what is on its way between them.
struct Net {
    world: World,
    client: Client,
    from: FiveTuple,
    dice: Dice,
    loss_percent: u64,
    jitter_ms: u64,
    flying: Vec<(Instant, Way, Vec<u8>)>,
    events: Vec<Event>,
    requests: u32,
}

impl Net {
    fn new(settings: Settings, from: FiveTuple, seed: u64) -> Self {
        let world = World::new();
        let client = Client::new(settings, world.now, [seed as u8; 32]);
        Self {
            world,
            client,
            from,
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            loss_percent: 0,
            jitter_ms: 0,
            flying: Vec::new(),
            events: Vec::new(),
            requests: 0,
        }
    }

    fn now(&self) -> Now {
        self.world.now
    }

    fn launch(&mut self, way: Way, bytes: Vec<u8>) {
        if self.dice.roll(100) < self.loss_percent {
            return;
        }
        let delay = 5 + self.dice.roll(self.jitter_ms + 1);
        let at = self.world.now.mono + Duration::from_millis(delay);
        self.flying.push((at, way, bytes));
    }

    fn exchange(&mut self) {
        while let Some(bytes) = self.client.poll_transmit() {
            self.requests += 1;
            self.launch(Way::ToServer, bytes);
        }
        for (to, bytes) in std::mem::take(&mut self.world.sent) {
            assert_eq!(to, self.from);
            self.launch(Way::ToClient, bytes);
        }
        while let Some(event) = self.client.poll_event() {
            self.events.push(event);
        }
    }

    /// Lets `time` go by, everything happening at its own moment.
    fn pass(&mut self, time: Duration) {
        let end = self.world.now.mono + time;
        loop {
            self.exchange();
            let flying = self.flying.iter().map(|(at, ..)| *at);
            let next = flying.chain(self.client.poll_timeout()).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.world
                .pass(next.saturating_duration_since(self.world.now.mono));
            let now = self.now();
            self.client.handle_timeout(now);
            let again = self.client.poll_timeout();
            assert!(again.is_none_or(|at| at > now.mono), "law 1: {again:?}");
            let (due, later) = std::mem::take(&mut self.flying)
                .into_iter()
                .partition(|(at, ..)| *at <= now.mono);
            self.flying = later;
            for (_, way, bytes) in due {
                match way {
                    Way::ToServer => drop(self.world.input(self.from, &bytes)),
                    Way::ToClient => drop(self.client.handle_input(now, &bytes)),
                }
            }
        }
        self.world
            .pass(end.saturating_duration_since(self.world.now.mono));
    }

    /// Begins a request and waits for its outcome.
    fn ask(&mut self, step: Step) -> Event {
        let now = self.now();
        self.client.begin(now, step);
        self.outcome()
    }

    fn outcome(&mut self) -> Event {
        self.events.clear();
        for _ in 0..2_000 {
            self.pass(Duration::from_millis(100));
            if let Some(event) = self.events.first() {
                return *event;
            }
        }
        panic!("nothing happened for 200 s");
    }

    fn set_up(&mut self) -> SocketAddr {
        let Event::Allocated { relayed, .. } = self.ask(Step::Allocate) else {
            panic!("{:?}", self.events);
        };
        let bound = self.ask(Step::ChannelBind(channel(), addr(PEER)));
        assert_eq!(bound, Event::ChannelBound(channel(), addr(PEER)));
        relayed
    }
}

#[test]
fn a_server_that_sends_clients_elsewhere() {
    let mut net = Net::new(settings(Transport::Udp), udp("192.0.2.7:4000"), 1);
    assert_eq!((net.client.realm(), net.client.alternate()), (None, None));
    let other = addr("198.51.100.8:3478");
    net.world.server.set_newcomers(Newcomers {
        alternates: vec![other],
        refuse: true,
    });
    let failed = Event::Failed(Step::Allocate, Failure::Refused(300));
    assert_eq!(net.ask(Step::Allocate), failed);
    assert_eq!(net.client.alternate(), Some(other));
    assert_eq!(net.client.realm(), Some(REALM));
}

#[test]
fn every_step_succeeds_and_the_server_sees_it() {
    let from = udp("192.0.2.1:5000");
    let mut net = Net::new(settings(Transport::Udp), from, 1);
    let Event::Mapped { mapped, rtt } = net.ask(Step::Binding) else {
        panic!("{:?}", net.events);
    };
    assert_eq!(mapped, addr("192.0.2.1:5000"));
    assert_eq!(rtt, Duration::from_millis(10));
    let Event::Allocated {
        relayed,
        mapped,
        lifetime_secs,
    } = net.ask(Step::Allocate)
    else {
        panic!("{:?}", net.events);
    };
    assert_eq!(relayed.ip().to_string(), RELAY_V4);
    assert_eq!(mapped, Some(addr("192.0.2.1:5000")));
    assert_eq!(lifetime_secs, 600);
    assert_eq!(net.client.relayed(), Some(relayed));
    let permitted = net.ask(Step::CreatePermission(addr(PEER)));
    assert_eq!(permitted, Event::Permitted(addr(PEER).ip()));
    let bound = net.ask(Step::ChannelBind(channel(), addr(PEER)));
    assert_eq!(bound, Event::ChannelBound(channel(), addr(PEER)));
    assert_eq!(net.ask(Step::Refresh(900)), Event::Refreshed(900));
    let now = net.now();
    net.client.release(now);
    assert_eq!(net.outcome(), Event::Released);
    assert_eq!(net.client.relayed(), None);
    assert_eq!(net.world.ended.len(), 1);
    // Binding, two Allocates because of the challenge, and one of each other.
    assert_eq!(net.requests, 7);
    assert_eq!(net.client.poll_timeout(), None);
}

#[test]
fn loss_and_reordering_cost_time_only() {
    for seed in 1..=60 {
        let mut net = Net::new(settings(Transport::Udp), udp("192.0.2.1:5000"), seed);
        net.loss_percent = 15;
        net.jitter_ms = 900;
        net.set_up();
        assert!(matches!(
            net.ask(Step::Refresh(1200)),
            Event::Refreshed(1200)
        ));
        let now = net.now();
        net.client.release(now);
        assert_eq!(net.outcome(), Event::Released, "seed {seed}");
        assert_eq!(net.world.ended.len(), 1, "seed {seed}");
    }
}

#[test]
fn an_idle_allocation_lives_for_hours_through_stale_nonces() {
    let mut net = Net::new(settings(Transport::Udp), udp("192.0.2.1:5000"), 3);
    net.loss_percent = 5;
    net.set_up();
    net.events.clear();
    net.pass(secs(5 * 3600));
    let failed = |event: &&Event| matches!(event, Event::Failed(..));
    assert_eq!(net.events.iter().find(failed), None);
    let refreshed = |event: &&Event| matches!(event, Event::Refreshed(600));
    assert!(net.events.iter().filter(refreshed).count() >= 33);
    assert!(net.world.ended.is_empty());
    // The channel is alive as well, in both directions.
    let header = net.client.header_to(addr(PEER), 4).unwrap();
    let packet = [header.bytes(), b"data"].concat();
    let forward = net.world.input(net.from, &packet);
    assert!(matches!(forward, Forward::ToPeer { .. }), "{forward:?}");
    let id = net.world.opened[0];
    let forward = net.world.peer_input(id, addr(PEER), b"data");
    assert!(matches!(forward, Forward::ToClient { .. }), "{forward:?}");
}

#[test]
fn a_stale_nonce_is_replaced_without_a_word() {
    let mut net = Net::new(settings(Transport::Udp), udp("192.0.2.1:5000"), 4);
    net.set_up();
    let other = udp("192.0.2.2:5000");
    let (alice, ..) = net.world.allocate(other);
    let stale = net
        .world
        .ask(other, &Request::refresh(600).sign(&alice.nonce("stale")));
    assert_eq!(stale.code(), 438);
    // A day's gap of the server's clock alone makes every nonce stale; the client is not told.
    net.world.now.unix += secs(24 * 3600);
    let before = net.requests;
    assert_eq!(net.ask(Step::Refresh(600)), Event::Refreshed(600));
    assert_eq!(net.requests - before, 2);
}

#[test]
fn wrong_credentials_end_in_401() {
    for settings in [
        Settings {
            password: Secret::new("wrong".into()),
            ..settings(Transport::Udp)
        },
        Settings {
            username: "nobody".into(),
            ..settings(Transport::Udp)
        },
        Settings {
            username: String::new(),
            ..settings(Transport::Udp)
        },
    ] {
        let mut net = Net::new(settings, udp("192.0.2.1:5000"), 5);
        let refused = Event::Failed(Step::Allocate, Failure::Refused(401));
        assert_eq!(net.ask(Step::Allocate), refused);
    }
}

#[test]
fn refusals_are_events() {
    let mut net = Net::new(settings(Transport::Udp), udp("192.0.2.1:5000"), 6);
    let step = Step::Refresh(600);
    assert_eq!(net.ask(step), Event::Failed(step, Failure::Refused(437)));
    net.set_up();
    assert_eq!(
        net.ask(Step::Allocate),
        Event::Failed(Step::Allocate, Failure::Refused(437))
    );
    let step = Step::CreatePermission(addr("127.0.0.1:1"));
    assert_eq!(net.ask(step), Event::Failed(step, Failure::Refused(403)));
    let step = Step::CreatePermission(addr("[2620:fe::fe]:1"));
    assert_eq!(net.ask(step), Event::Failed(step, Failure::Refused(443)));
}

#[test]
fn an_allocation_in_ipv6() {
    let settings = Settings {
        family: Some(Family::V6),
        lifetime_secs: Some(1800),
        ..settings(Transport::Udp)
    };
    let mut net = Net::new(settings, udp("192.0.2.1:5000"), 7);
    let Event::Allocated {
        relayed,
        lifetime_secs,
        ..
    } = net.ask(Step::Allocate)
    else {
        panic!("{:?}", net.events);
    };
    assert_eq!(relayed.ip().to_string(), RELAY_V6);
    assert_eq!(lifetime_secs, 1800);
}

#[test]
fn rfc8489_6_2_1_seven_tries_in_39_and_a_half_seconds() {
    let mut net = Net::new(settings(Transport::Udp), udp("192.0.2.1:5000"), 8);
    let start = net.now().mono;
    net.client.begin(net.world.now, Step::Binding);
    let mut sent_ms = Vec::new();
    loop {
        while net.client.poll_transmit().is_some() {
            sent_ms.push((net.now().mono - start).as_millis());
        }
        let Some(at) = net.client.poll_timeout() else {
            break;
        };
        net.world.pass(at - net.world.now.mono);
        net.client.handle_timeout(net.world.now);
    }
    assert_eq!(sent_ms, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
    assert_eq!((net.now().mono - start).as_millis(), 39_500);
    let timeout = Event::Failed(Step::Binding, Failure::Timeout);
    assert_eq!(net.client.poll_event(), Some(timeout));
}

#[test]
fn rfc8489_6_2_2_one_try_over_a_stream() {
    let mut net = Net::new(settings(Transport::Tcp), tcp("192.0.2.1:5000"), 9);
    net.loss_percent = 100;
    let start = net.now().mono;
    let timeout = Event::Failed(Step::Binding, Failure::Timeout);
    assert_eq!(net.ask(Step::Binding), timeout);
    assert_eq!(net.requests, 1);
    assert!((net.now().mono - start) < secs(40));
}

#[test]
fn an_answer_with_wrong_integrity_does_not_count() {
    for (transport, from) in [
        (Transport::Udp, udp("192.0.2.1:5000")),
        (Transport::Tcp, tcp("192.0.2.1:5000")),
    ] {
        let mut net = Net::new(settings(transport), from, 10);
        net.set_up();
        net.client.begin(net.world.now, Step::Refresh(600));
        let request = net.client.poll_transmit().unwrap();
        net.world.input(from, &request);
        let (_, answer) = net.world.sent.pop().unwrap();
        let mut forged = answer.clone();
        // The lifetime: its value stands right behind the header and its own.
        forged[24 + 3] ^= 1;
        assert_ne!(Reply::parse(&forged).lifetime(), 600);
        let now = net.now();
        let input = net.client.handle_input(now, &forged);
        if transport.is_stream() {
            assert_eq!(input, Input::Answer);
            let failed = Event::Failed(Step::Refresh(600), Failure::Integrity);
            assert_eq!(net.client.poll_event(), Some(failed));
        } else {
            assert_eq!(input, Input::Ignored);
            assert_eq!(net.client.poll_event(), None);
            assert_eq!(net.client.handle_input(now, &answer), Input::Answer);
            assert_eq!(net.client.poll_event(), Some(Event::Refreshed(600)));
            assert_eq!(net.client.handle_input(now, &answer), Input::Ignored);
        }
    }
}

#[test]
fn application_data_goes_by_channel_or_indication() {
    let other = addr("9.9.9.10:4001");
    for (transport, from) in [
        (Transport::Udp, udp("192.0.2.1:5000")),
        (Transport::Tcp, tcp("192.0.2.1:5000")),
    ] {
        let mut net = Net::new(settings(transport), from, 11);
        net.set_up();
        net.ask(Step::CreatePermission(other));
        let id = net.world.opened[0];
        for peer in [addr(PEER), other] {
            let data = b"five!";
            let header = net.client.header_to(peer, data.len()).unwrap();
            let padding = vec![0; header.padding()];
            let packet = [header.bytes(), data, &padding].concat();
            match net.world.input(from, &packet) {
                Forward::ToPeer {
                    peer: to, payload, ..
                } => {
                    assert_eq!(to.address(), peer);
                    let range = usize::from(payload.start)..usize::from(payload.end);
                    assert_eq!(&packet[range], data);
                }
                other => panic!("{other:?}"),
            }
            let Forward::ToClient { header, .. } = net.world.peer_input(id, peer, data) else {
                panic!("not for the client");
            };
            let padding = vec![0; header.padding()];
            let packet = [header.bytes(), data, &padding].concat();
            let expected = if peer == other {
                Input::Data(other, data)
            } else {
                Input::Channel(channel(), data)
            };
            assert_eq!(net.client.handle_input(net.world.now, &packet), expected);
        }
    }
}

#[test]
fn garbage_is_ignored() {
    let mut net = Net::new(settings(Transport::Udp), udp("192.0.2.1:5000"), 12);
    net.client.begin(net.world.now, Step::Allocate);
    let request = net.client.poll_transmit().unwrap();
    let now = net.now();
    for garbage in [
        &b""[..],
        &[0x40],
        &[0x40, 0, 0, 9, 1],
        &[0xff; 40],
        &[0; 20],
        &request,
        &[0, 0x17, 0, 0, 0x21, 0x12, 0xa4, 0x42],
    ] {
        assert_eq!(net.client.handle_input(now, garbage), Input::Ignored);
    }
    assert_eq!(net.client.poll_event(), None);
}
