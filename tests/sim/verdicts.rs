//! A world for each verdict.

use std::collections::BTreeSet;
use std::time::Duration;

use stun::attributes::ATTR_REQUESTED_TRANSPORT;
use stun::message::METHOD_ALLOCATE;
use turnix::access::oauth::{TokenAlgorithm, TokenKey};
use turnix::access::{self, AuthFailure, DeniedRule, rest};
use turnix::base::{Direction, FiveTuple, Secret};
use turnix::quality::{self, Action, Mode};
use turnix::stream::FailedHandshakes;
use turnix::turn::{
    Bandwidth, DropReason, EndReason, Newcomers, OpenError, Reject, Settings, Subject,
};
use turnix::why::{Code, timeline};
use turnix::wire::{Icmp, Method};

use crate::call::{BOTH, CLIENT, Call, PEER, alice, evidence, verdict};
use crate::common::wire::{Request, Signer};
use crate::common::world::{
    EPOCH, PASSWORD, SECRET, USER, World, access_settings, addr, secs, seed, tcp, udp,
};

fn settings() -> Settings {
    Settings {
        quality: quality::Settings {
            mode: Mode::Full,
            ..quality::Settings::default()
        },
        ..Settings::default()
    }
}

fn world() -> World {
    World::with(settings(), &access_settings(), seed())
}

fn client() -> FiveTuple {
    udp(CLIENT)
}

/// The client at [`CLIENT`], by address: who has shown nothing has no name.
fn somebody() -> Subject {
    Subject::Address("192.0.2.7".into())
}

/// Asks for an allocation as `signer`, who is refused with `code`.
fn refused(world: &mut World, signer: &Signer, code: u16) {
    assert_eq!(
        world.code(client(), &Request::allocate().sign(signer)),
        code
    );
}

/// Somebody with a nonce, a name and a password.
fn signer(world: &mut World, user: &str, password: &str) -> Signer {
    Signer::new(user, password, &world.nonce(client()))
}

type Scene = fn() -> (World, Subject);

fn established() -> Call {
    Call::established(world(), client())
}

fn seen(call: Call) -> (World, Subject) {
    (call.world, alice())
}

/// Each verdict, what is to be found in its text, and how it comes about.
const SCENES: &[(Code, &str, Scene)] = &[
    (Code::NothingKnown, "nobody", || {
        let mut world = world();
        drop(world.allocate(client()));
        (world, Subject::User("bob".into()))
    }),
    (Code::NoCredentials, "192.0.2.7", || {
        let mut world = world();
        for _ in 0..3 {
            world.nonce(client());
        }
        (world, somebody())
    }),
    (Code::BadPassword, "\"alice\"", || {
        let mut world = world();
        let signer = signer(&mut world, USER, "looking-glass");
        refused(&mut world, &signer, 401);
        (world, alice())
    }),
    // A call that worked before does not hide that the next one may not begin.
    (Code::BadPassword, "2 times", || {
        let mut call = established();
        call.release();
        call.world.pass(secs(60));
        let signer = signer(&mut call.world, USER, "looking-glass");
        refused(&mut call.world, &signer, 401);
        refused(&mut call.world, &signer, 401);
        seen(call)
    }),
    (Code::UnknownUser, "\"mallory\"", || {
        let mut world = world();
        let signer = signer(&mut world, "mallory", PASSWORD);
        refused(&mut world, &signer, 401);
        (world, Subject::User("mallory".into()))
    }),
    (Code::CredentialExpired, "ended 60 min before", || {
        let mut world = world();
        let secret = Secret::new(SECRET.to_owned());
        let (user, password) = rest::mint(&secret, Some("carol"), EPOCH.as_secs() - 3600);
        let signer = signer(&mut world, &user, &password);
        refused(&mut world, &signer, 401);
        (world, Subject::User("carol".into()))
    }),
    (Code::WrongRealm, "another realm", || {
        let mut world = world();
        let mut signer = signer(&mut world, USER, PASSWORD);
        signer.realm = "example.com".into();
        refused(&mut world, &signer, 401);
        (world, alice())
    }),
    (Code::Revoked, "revoked", || {
        let mut call = established();
        let (now, id) = (call.world.now, call.id);
        call.world
            .server
            .end_allocation(now, id, EndReason::Revoked);
        call.world.drain();
        seen(call)
    }),
    (Code::BadToken, "token", || {
        let mut access = access_settings();
        access.oauth = access::oauth::Settings {
            server_name: Some("example.org".into()),
            keys: vec![TokenKey {
                kid: "north".into(),
                algorithm: TokenAlgorithm::A256Gcm,
                key: Secret::new(vec![7; 32]),
                not_before: None,
                not_after: None,
            }],
        };
        let mut world = World::with(settings(), &access, seed());
        let signer = signer(&mut world, "north", "session");
        let request = Request::allocate().attr(0x001B, &[1; 64]).sign(&signer);
        assert_eq!(world.code(client(), &request), 401);
        (world, Subject::User("north".into()))
    }),
    (Code::StaleNonce, "does not use", || {
        let mut world = world();
        // Another client's, as where a NAT gives each request another port.
        let nonce = world.nonce(udp("192.0.2.7:4001"));
        let signer = Signer::new(USER, PASSWORD, &nonce);
        for _ in 0..4 {
            refused(&mut world, &signer, 438);
        }
        (world, alice())
    }),
    (Code::BadRequest, "unsupported_transport", || {
        let mut world = world();
        let alice_signs = world.alice(client());
        let request =
            Request::new(METHOD_ALLOCATE).attr(ATTR_REQUESTED_TRANSPORT.0, &[99, 0, 0, 0]);
        assert_eq!(world.code(client(), &request.sign(&alice_signs)), 442);
        (world, alice())
    }),
    (Code::Quota, "quota", || {
        let mut world = world();
        let signer = world.alice(client());
        world.open = Some(Err(OpenError::Quota));
        refused(&mut world, &signer, 486);
        (world, alice())
    }),
    (Code::Capacity, "no free relay port", || {
        let mut world = world();
        let signer = world.alice(client());
        world.open = Some(Err(OpenError::Capacity));
        refused(&mut world, &signer, 508);
        (world, alice())
    }),
    (Code::Draining, "emptied", || {
        let mut world = world();
        world.server.set_newcomers(Newcomers {
            alternates: Vec::new(),
            refuse: true,
        });
        let signer = world.alice(client());
        refused(&mut world, &signer, 486);
        (world, alice())
    }),
    (Code::Redirected, "198.51.100.99:3478", || {
        let mut world = world();
        world.server.set_newcomers(Newcomers {
            alternates: vec![addr("198.51.100.99:3478")],
            refuse: true,
        });
        let signer = world.alice(client());
        refused(&mut world, &signer, 300);
        (world, alice())
    }),
    (Code::PeerRefused, "private addresses", || {
        let mut call = Call::allocated(world(), client());
        for peer in ["10.1.2.3:5000", "192.168.1.9:5000"] {
            let request = Request::create_permission(&[addr(peer)]).sign(&call.signer);
            assert_eq!(call.world.code(call.client, &request), 403);
        }
        call.world.pass(secs(20));
        seen(call)
    }),
    (Code::NewPeers, "new peers", || {
        let mut settings = settings();
        settings.new_peers_per_second = 1;
        let world = World::with(settings, &access_settings(), seed());
        let mut call = Call::allocated(world, client());
        // As many as anybody likes at once, and then one a second.
        for (network, code) in [("203.0.114", 0), ("203.0.115", 508)] {
            let peers: Vec<_> = (1..=60)
                .map(|host| addr(&format!("{network}.{host}:9")))
                .collect();
            let request = Request::create_permission(&peers).sign(&call.signer);
            assert_eq!(call.world.code(call.client, &request), code);
        }
        call.world.pass(secs(20));
        seen(call)
    }),
    (Code::ConnectFailed, "447", || {
        let mut world = world();
        let client = tcp(CLIENT);
        let (signer, ..) = world.allocate_tcp(client);
        let request = Request::connect(addr(PEER)).sign(&signer);
        assert!(world.ask_raw(client, &request.bytes()).is_empty());
        let (connection, ..) = world.connects[0];
        world.connected(connection, false);
        (world, alice())
    }),
    (Code::NoPermission, "never a permission", || {
        let mut call = Call::allocated(world(), client());
        call.world.pass(secs(20));
        seen(call)
    }),
    (Code::NoPermission, "1 packets without", || {
        let mut call = Call::allocated(world(), client());
        assert!(!call.relay(Direction::ToPeer, b"early"));
        call.world.pass(secs(20));
        seen(call)
    }),
    (Code::PeerNotPermitted, "5 packets came", || {
        let mut call = Call::permitted(world(), client());
        for _ in 0..5 {
            (call.world).peer_input(call.id, addr("203.0.115.1:1000"), b"behind another NAT");
        }
        seen(call)
    }),
    (Code::ClientSilent, "never sent", || {
        let mut call = Call::permitted(world(), client());
        call.world.pass(secs(20));
        seen(call)
    }),
    (Code::PeerUnreachable, "ICMP", || {
        let mut call = Call::permitted(world(), client());
        for _ in 0..5 {
            call.check(Direction::ToPeer);
            let icmp = Icmp {
                kind: 3,
                code: 3,
                data: 0,
            };
            (call.world.server).handle_icmp(call.world.now, call.id, addr(PEER), icmp);
            call.world.drain();
            call.world.pass(secs(4));
        }
        seen(call)
    }),
    (Code::PeerSilent, "sent 10 packets", || {
        let mut call = Call::permitted(world(), client());
        for _ in 0..10 {
            call.check(Direction::ToPeer);
            call.world.pass(secs(2));
        }
        seen(call)
    }),
    (Code::PeerSilent, "checks of its own", || {
        let mut call = Call::permitted(world(), client());
        for _ in 0..10 {
            call.check(Direction::ToPeer);
            call.answered(Direction::ToClient, Duration::from_millis(10));
            call.world.pass(secs(2));
        }
        seen(call)
    }),
    (Code::ClientUnanswering, "never sent any", || {
        let mut call = Call::permitted(world(), client());
        for _ in 0..10 {
            call.check(Direction::ToClient);
            call.world.pass(secs(2));
        }
        seen(call)
    }),
    (
        Code::ClientUnanswering,
        "UDP from the relay to the client is blocked",
        || {
            let mut call = Call::permitted(world(), client());
            for _ in 0..10 {
                call.check(Direction::ToClient);
                call.check(Direction::ToPeer);
                call.world.pass(secs(2));
            }
            seen(call)
        },
    ),
    (Code::ClientLost, "after it had answered", || {
        let mut call = established();
        call.talk(&[Direction::ToClient], 20, |_, _| false);
        seen(call)
    }),
    (Code::PeerLost, "The peer went silent", || {
        let mut call = established();
        call.talk(&[Direction::ToPeer], 20, |_, _| false);
        seen(call)
    }),
    // ICE found a shorter way, and left the one over the relay alone: while the call lasts, and after it.
    (Code::NotNominated, "another way", || {
        let mut call = Call::checked(world(), client());
        call.world.pass(secs(60));
        seen(call)
    }),
    (Code::NotNominated, "another way", || {
        let mut call = Call::checked(world(), client());
        call.world.pass(secs(12));
        call.release();
        call.world.pass(secs(60));
        seen(call)
    }),
    // One side gives it up later than the other.
    (Code::NotNominated, "another way", || {
        let mut call = Call::checked(world(), client());
        for _ in 0..10 {
            call.check(Direction::ToClient);
            call.world.pass(secs(2));
        }
        call.release();
        seen(call)
    }),
    (Code::NotNominated, "another way", || {
        let mut call = Call::checked(world(), client());
        for _ in 0..10 {
            call.check(Direction::ToPeer);
            call.world.pass(secs(2));
        }
        seen(call)
    }),
    // It is kept in reserve, and somebody asks right after a check.
    (Code::NotNominated, "another way", || {
        let mut call = Call::permitted(world(), client());
        for _ in 0..10 {
            call.connect();
            call.world.pass(secs(25));
        }
        call.connect();
        seen(call)
    }),
    (Code::NoDtls, "neither began", || {
        let mut call = Call::permitted(world(), client());
        call.consent(30);
        seen(call)
    }),
    (Code::NoDtls, "the peer never answered", || {
        let mut call = Call::permitted(world(), client());
        call.connect();
        call.handshake(Direction::ToPeer);
        call.consent(30);
        seen(call)
    }),
    (Code::NoMedia, "neither side sent media", || {
        let mut call = Call::permitted(world(), client());
        call.connect();
        call.handshakes();
        call.consent(30);
        seen(call)
    }),
    (Code::OneWayMedia, "the peer sends none", || {
        let mut call = Call::permitted(world(), client());
        call.connect();
        call.handshakes();
        for _ in 0..6 {
            call.talk(&[Direction::ToPeer], 4, |_, _| false);
            call.connect();
        }
        seen(call)
    }),
    (
        Code::OneWayMedia,
        "The client has sent no media for",
        || {
            let mut call = established();
            for _ in 0..6 {
                call.talk(&[Direction::ToClient], 4, |_, _| false);
                call.connect();
            }
            seen(call)
        },
    ),
    (Code::Silent, "nothing has for 60 s", || {
        let mut call = established();
        call.world.pass(secs(60));
        seen(call)
    }),
    (Code::BandwidthLimited, "for want of bandwidth", || {
        let mut settings = settings();
        settings.bandwidth = Bandwidth {
            per_allocation: 20_000,
            ..Bandwidth::default()
        };
        let world = World::with(settings, &access_settings(), seed());
        seen(Call::established(world, client()))
    }),
    (
        Code::BandwidthLimited,
        "quality.abuse throttles what",
        || {
            let mut settings = settings();
            settings.quality.abuse = Action::Throttle;
            let world = World::with(settings, &access_settings(), seed());
            let mut call = Call::permitted(world, client());
            call.tunnel(20);
            seen(call)
        },
    ),
    (Code::SlowConnection, "takes less than is sent", || {
        let mut call = Call::established(world(), tcp(CLIENT));
        let (client, server) = (call.client, &mut call.world.server);
        server.note_unsent(client, DropReason::StreamQueue, 500);
        seen(call)
    }),
    (Code::ClientLoss, "of the client's media is lost", || {
        let mut call = established();
        call.talk(&BOTH, 60, |direction, sequence| {
            direction == Direction::ToPeer && sequence % 10 == 0
        });
        seen(call)
    }),
    (Code::PeerLoss, "of the peer's media is lost", || {
        let mut call = established();
        call.talk(&BOTH, 60, |direction, sequence| {
            direction == Direction::ToClient && sequence % 10 == 0
        });
        seen(call)
    }),
    (Code::HighRtt, "A packet to the peer and back takes", || {
        let mut call = Call::permitted(world(), client());
        for _ in 0..10 {
            call.answered(Direction::ToPeer, Duration::from_millis(650));
            call.answered(Direction::ToClient, Duration::from_millis(30));
        }
        call.handshakes();
        call.talk(&BOTH, 4, |_, _| false);
        seen(call)
    }),
    (Code::EndedByOperator, "An operator", || {
        let mut call = established();
        let (now, id) = (call.world.now, call.id);
        call.world
            .server
            .end_allocation(now, id, EndReason::Administrative);
        call.world.drain();
        seen(call)
    }),
    (Code::EndedAsAbuse, "rather than a call", || {
        let mut call = established();
        let (now, id) = (call.world.now, call.id);
        call.world.server.end_allocation(now, id, EndReason::Abuse);
        call.world.drain();
        seen(call)
    }),
    (Code::RelayFailed, "socket failed", || {
        let mut call = established();
        let (now, id) = (call.world.now, call.id);
        (call.world.server).handle_relay_failed(now, id, turnix::base::Family::V4);
        call.world.drain();
        seen(call)
    }),
    (Code::ServerStopped, "The server stopped", || {
        let mut call = established();
        let (now, id) = (call.world.now, call.id);
        call.world
            .server
            .end_allocation(now, id, EndReason::Shutdown);
        call.world.drain();
        seen(call)
    }),
    (Code::ClientGone, "did not refresh", || {
        let mut call = established();
        call.world.pass(secs(700));
        seen(call)
    }),
    (Code::ConnectionClosed, "tcp connection closed", || {
        let mut call = Call::established(world(), tcp(CLIENT));
        (call.world.server).handle_client_closed(call.world.now, call.client);
        call.world.drain();
        seen(call)
    }),
    (Code::Waiting, "too early", || {
        let mut call = Call::allocated(world(), client());
        call.world.pass(secs(3));
        seen(call)
    }),
    (Code::Fine, "gave the allocation back", || {
        let mut call = established();
        call.release();
        seen(call)
    }),
    (Code::Fine, "Data goes both ways", || seen(established())),
    // A call by a data channel: no RTP is no fault.
    (Code::Fine, "Data goes both ways", || {
        let mut call = Call::permitted(world(), client());
        call.connect();
        call.handshakes();
        for _ in 0..100 {
            for direction in BOTH {
                call.relay(direction, &[23, 254, 253, 0]);
            }
            call.world.pass(Duration::from_millis(200));
        }
        seen(call)
    }),
    // Browsers make an allocation over each transport, and use one.
    (Code::Fine, "Data goes both ways", || {
        let mut call = Call::permitted(world(), client());
        call.world.pass(secs(1));
        drop(call.world.allocate(udp("192.0.2.7:4002")));
        call.connect();
        call.handshakes();
        call.talk(&BOTH, 15, |_, _| false);
        seen(call)
    }),
];

#[test]
fn every_verdict_has_a_world() {
    let mut met = BTreeSet::new();
    let mut wrong = Vec::new();
    for (code, said, scene) in SCENES {
        let Ok((world, subject)) = std::panic::catch_unwind(scene) else {
            wrong.push(format!("{code:?} ({said}): the scene itself failed"));
            continue;
        };
        let verdict = verdict(&world, &subject);
        if verdict.code != *code || !verdict.text.contains(said) {
            wrong.push(format!("{code:?} ({said}): {verdict:?}"));
        }
        met.insert(code.label());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let rest: Vec<_> = (Code::ALL.into_iter())
        .filter(|code| !met.contains(code.label()))
        .collect();
    // The core sees no handshake: tests/stream.rs has one that fails.
    assert_eq!(rest, [Code::TlsFailed]);
}

#[test]
fn a_failed_handshake_speaks_if_nothing_came_after_it() {
    let mut world = world();
    world.nonce(client());
    let mut evidence = evidence(&world, &somebody());
    let failed = |at: u64| FailedHandshakes {
        at,
        last: at,
        count: 2,
        client: addr(CLIENT),
        error: "received fatal alert: UnknownCA".into(),
    };
    evidence.handshakes = vec![failed(EPOCH.as_secs() + 5)];
    let verdict = evidence.verdict(world.now.unix);
    assert_eq!(verdict.code, Code::TlsFailed);
    assert!(verdict.text.contains("UnknownCA"), "{verdict:?}");
    assert_eq!(timeline(&evidence).last().unwrap().event, "tls_failed");
    evidence.handshakes = vec![failed(EPOCH.as_secs() - 60)];
    assert_eq!(evidence.verdict(world.now.unix).code, Code::NoCredentials);
}

#[test]
fn a_call_is_asked_about_by_name_address_and_allocation() {
    let mut call = established();
    call.release();
    let world = &call.world;
    let relayed = world.ended[0].view.relayed;
    for subject in [
        alice(),
        somebody(),
        Subject::Address(CLIENT.into()),
        Subject::Address(relayed.to_string()),
        Subject::Allocation(call.id),
    ] {
        let evidence = evidence(world, &subject);
        assert_eq!(
            evidence.verdict(world.now.unix).code,
            Code::Fine,
            "{subject:?}"
        );
        let lines = timeline(&evidence);
        let words: Vec<_> = lines.iter().map(|line| line.event).collect();
        let wanted = ["challenged", "allocated", "permission_created", "ended"];
        assert_eq!(words, wanted, "{subject:?}");
        assert_eq!(lines[3].reason, Some("released"));
        assert_eq!(lines[1].user.as_deref(), Some(USER));
    }
    for subject in [
        Subject::User("bob".into()),
        Subject::Address("192.0.2.70".into()),
        Subject::Address("192.0.2.7:4001".into()),
        Subject::Allocation(turnix::turn::AllocationId {
            slot: call.id.slot,
            generation: call.id.generation + 1,
        }),
    ] {
        assert!(evidence(world, &subject).is_empty(), "{subject:?}");
    }
}

#[test]
fn what_repeats_is_counted() {
    let mut call = Call::permitted(world(), client());
    for host in 1..=200 {
        let peer = addr(&format!("10.0.0.{host}:9"));
        let request = Request::create_permission(&[peer]).sign(&call.signer);
        assert_eq!(call.world.code(call.client, &request), 403);
        let stranger = addr(&format!("203.0.115.{host}:9"));
        call.world.peer_input(call.id, stranger, b"scan");
        call.world.pass(Duration::from_millis(100));
    }
    let evidence = evidence(&call.world, &Subject::Allocation(call.id));
    let lines = timeline(&evidence);
    let of = |event: &str| {
        lines
            .iter()
            .filter(|line| line.event == event)
            .collect::<Vec<_>>()
    };
    for event in ["peer_refused", "dropped"] {
        let [line] = of(event)[..] else {
            panic!("{event}: {lines:?}");
        };
        assert_eq!(line.count, 200);
        assert_eq!(line.last - line.at, 19_900);
    }
    assert_eq!(of("peer_refused")[0].peer.as_deref(), Some("10.0.0.200:9"));
}

#[test]
fn nothing_is_remembered_where_nothing_is_wanted() {
    let mut settings = settings();
    settings.quality.events = 0;
    let world = World::with(settings, &access_settings(), seed());
    let mut call = Call::established(world, client());
    assert_eq!(verdict(&call.world, &alice()).code, Code::Fine);
    call.release();
    assert!(evidence(&call.world, &alice()).is_empty());
}

#[test]
fn whoever_takes_over_begins_anew() {
    let mut call = established();
    call.world.hand_over();
    let told = evidence(&call.world, &alice());
    assert_eq!((told.events.len(), told.calls.len()), (0, 1));
    call.release();
    assert_eq!(evidence(&call.world, &alice()).events.len(), 1);
}

/// The first column of the table under `heading` in `docs/insight.md`.
fn told(heading: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/insight.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, section) = page.split_once(heading).expect(heading);
    let lines = section.lines().skip_while(|line| !line.starts_with('|'));
    (lines.take_while(|line| line.starts_with('|')).skip(2))
        .map(|line| line.split('`').nth(1).expect(line).to_owned())
        .collect()
}

#[test]
fn the_page_knows_every_verdict_and_every_reason() {
    let labels: Vec<_> = Code::ALL.iter().map(|code| code.label()).collect();
    assert_eq!(told("### Verdicts"), labels);
    // Nobody is told of what is no refusal.
    let reasons: Vec<_> = (Reject::LABELS.into_iter())
        .filter(|reason| *reason != "elsewhere")
        .collect();
    assert_eq!(told("### Reasons of refusals"), reasons);
}

#[test]
fn reasons_are_those_of_the_metrics() {
    for (place, failure) in AuthFailure::ALL.into_iter().enumerate() {
        assert_eq!(Reject::LABELS[place], failure.label());
        assert_eq!(Reject::Unauthenticated(failure).label(), failure.label());
    }
    let others = [
        (Reject::StaleNonce, "stale_nonce"),
        (Reject::WrongCredentials, "wrong_user"),
        (Reject::BidDown, "bid_down"),
        (Reject::TryAlternate(addr(PEER)), "try_alternate"),
        (Reject::BadRequest("x"), "bad_request"),
        (Reject::PeerDenied(DeniedRule::Private), "peer_denied"),
        (Reject::UnknownAttributes, "unknown_attributes"),
        (Reject::NoAllocation, "no_allocation"),
        (Reject::AllocationExists, "allocation_exists"),
        (Reject::AddressFamily, "address_family"),
        (Reject::UnsupportedTransport, "unsupported_transport"),
        (Reject::PeerFamily, "peer_family"),
        (Reject::Quota, "quota"),
        (Reject::Draining, "draining"),
        (Reject::Capacity, "capacity"),
        (Reject::NewPeers, "new_peers"),
        (Reject::ServerError, "server_error"),
        (Reject::RelayTransport, "relay_transport"),
        (Reject::ConnectionExists, "connection_exists"),
        (Reject::MobilityForbidden, "mobility_forbidden"),
        (Reject::Elsewhere(0), "elsewhere"),
    ];
    for (reject, label) in others {
        assert_eq!(reject.label(), label, "{reject:?}");
    }
}

#[test]
fn refusals_are_counted_by_reason() {
    let mut world = world();
    let signer = signer(&mut world, USER, "looking-glass");
    refused(&mut world, &signer, 401);
    let signer = world.alice(client());
    world.open = Some(Err(OpenError::Quota));
    refused(&mut world, &signer, 486);
    let refused = world.server.stats().refused[Method::Allocate as usize];
    let counted = (Reject::LABELS.into_iter().zip(refused)).filter(|(_, count)| *count > 0);
    let wanted = [("missing", 2), ("bad_password", 1), ("quota", 1)];
    assert_eq!(counted.collect::<Vec<_>>(), wanted);
}
