//! Traces in virtual time: who is traced, until when, and how little a flood of dropped datagrams says.

use std::sync::Arc;

use turnix::base::trace::{MOST, Subject, Trace, Traces};
use turnix::logging::subscriber;
use turnix::turn::{DropReason, Forward};

use super::common::wire::{Request, channel_data};
use super::common::world::{World, addr, secs, udp};
use super::rate::{Kept, SETTINGS};

const CLIENT: &str = "192.0.2.10:5000";
const PEER: &str = "93.184.216.34:4000";

fn traced(world: &World, subject: Subject, minutes: u64) -> Arc<Traces> {
    let mut traces = Traces::default();
    let until = world.now.mono + secs(60 * minutes);
    assert!(traces.begin(world.now.mono, Trace { subject, until }));
    Arc::new(traces)
}

/// Runs `test` with what it logs at target `turnix::trace` kept; the level itself lets errors through only.
fn keeping(test: impl FnOnce(&Kept)) {
    let kept = Kept::default();
    let settings = turnix::logging::Settings {
        level: turnix::logging::Level::Error,
        events_per_second: 0,
        ..SETTINGS
    };
    let (subscriber, _control) = subscriber(settings, Box::new(kept.clone()));
    tracing::subscriber::with_default(subscriber, || test(&kept));
}

#[test]
fn a_users_requests_are_told_and_nobody_elses() {
    keeping(|kept| {
        let mut world = World::new();
        world
            .server
            .set_traces(traced(&world, Subject::User("alice".into()), 5));
        let (alice, _, _) = world.allocate(udp(CLIENT));
        let begun = kept.take().join("\n");
        assert!(begun.contains("method=\"allocate\""), "{begun}");
        assert!(begun.contains("allocation begins"), "{begun}");

        let bind = Request::channel_bind(0x4001, addr(PEER)).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &bind), 0);
        let bound = kept.take().join("\n");
        assert!(bound.contains("channel=16385"), "{bound}");
        assert!(bound.contains(PEER), "{bound}");

        let denied = Request::create_permission(&[addr("10.1.2.3:1")]).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &denied), 403);
        let refused = kept.take().join("\n");
        assert!(refused.contains("code=403"), "{refused}");
        assert!(refused.contains("10.1.2.3:1"), "{refused}");

        let other = udp("192.0.2.11:5000");
        world.ask(other, &Request::binding());
        assert_eq!(kept.take(), Vec::<String>::new());

        let release = Request::refresh(0).sign(&alice);
        assert_eq!(world.code(udp(CLIENT), &release), 0);
        assert!(kept.take().join("\n").contains("allocation ended"));
    });
}

#[test]
fn drops_are_counted_and_told_once_a_second() {
    keeping(|kept| {
        let mut world = World::new();
        let (_, id, _) = world.allocate(udp(CLIENT));
        let ip = addr(CLIENT).ip();
        world
            .server
            .set_traces(traced(&world, Subject::Address(ip), 5));
        let unbound = channel_data(0x4002, b"data");
        let drop = |world: &mut World| {
            let forward = world.input(udp(CLIENT), &unbound);
            assert_eq!(forward, Forward::Drop(DropReason::NoChannel));
        };
        world.pass(secs(1));
        (0..1000).for_each(|_| drop(&mut world));
        let first = kept.take();
        assert_eq!(first.len(), 1, "{first:?}");
        assert!(first[0].contains("datagrams=1 "), "{first:?}");
        assert!(first[0].contains("reason=\"no_channel\""), "{first:?}");
        world.pass(secs(1));
        drop(&mut world);
        let second = kept.take();
        assert!(second[0].contains("datagrams=1000 "), "{second:?}");
        let stranger = world.peer_input(id, addr(PEER), b"uninvited");
        assert_eq!(stranger, Forward::Drop(DropReason::NoPermission));
        let third = kept.take();
        assert!(third[0].contains(PEER), "{third:?}");
        let own_relay = addr("198.51.100.1:50500");
        (world.server).count_undelivered(world.now, id, own_relay, DropReason::NoRelay);
        let fourth = kept.take();
        assert!(fourth[0].contains("no_relay"), "{fourth:?}");
        assert_eq!(
            world.server.stats().dropped[DropReason::NoRelay as usize],
            1
        );
    });
}

#[test]
fn a_trace_ends_by_itself() {
    keeping(|kept| {
        let mut world = World::new();
        let ip = addr(CLIENT).ip();
        world
            .server
            .set_traces(traced(&world, Subject::Address(ip), 5));
        world.pass(secs(299));
        world.ask(udp(CLIENT), &Request::binding());
        assert_eq!(kept.take().len(), 1);
        world.pass(secs(1));
        world.ask(udp(CLIENT), &Request::binding());
        assert_eq!(kept.take().len(), 0);
    });
}

#[test]
fn there_is_a_bounded_number_of_traces() {
    let now = World::new().now.mono;
    let mut traces = Traces::default();
    let trace = |number: usize, seconds| Trace {
        subject: Subject::User(number.to_string()),
        until: now + secs(seconds),
    };
    assert!((0..MOST).all(|number| traces.begin(now, trace(number, 60))));
    assert!(!traces.begin(now, trace(MOST, 60)));
    assert!(
        traces.begin(now, trace(3, 90)),
        "the same again is no other"
    );
    assert!(traces.end(now, &Subject::User("5".into())));
    assert!(!traces.end(now, &Subject::User("5".into())));
    assert!(traces.begin(now, trace(MOST, 60)));
    // What is over makes room.
    assert!(traces.begin(now + secs(61), trace(99, 200)));
    assert_eq!(traces.live(now + secs(61)).count(), 2);
}
