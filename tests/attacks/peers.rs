//! Peers that must not be reached: every special range and every disguise, by every way that leads to a peer, over every
//! transport, from clients and to relayed addresses of both families.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use turnix::access::{self, Access, DeniedRule, OwnAddresses, Scope, Visit, rest};
use turnix::base::{Family, FiveTuple, ListenerId, Secret, Transport};
use turnix::turn::{AllocationId, Direction, DropReason, Forward, FromPeer, Path, Settings};
use turnix::wire::Method;

use super::client::Client;
use super::common::wire::{Request, Signer};
use super::common::world::{
    EPOCH, PASSWORD, RELAY_V4, RELAY_V6, USER, VISITS, World, access_settings, addr, own_addresses,
    seed, udp,
};
use super::server::{BOTH, Server, peer, quiet_address, receive, until};

/// First and last address of every range that is refused, and what hides in IPv6, each with the rule it falls under.
///
/// None is an address that the host of the test could have, but for loopback.
pub(super) const REFUSED: &[(&str, DeniedRule)] = &[
    ("0.0.0.0", DeniedRule::Unspecified),
    ("0.255.255.255", DeniedRule::Unspecified),
    ("10.0.0.0", DeniedRule::Private),
    ("10.255.255.255", DeniedRule::Private),
    ("100.64.0.0", DeniedRule::Cgnat),
    ("100.127.255.255", DeniedRule::Cgnat),
    ("127.0.0.1", DeniedRule::Loopback),
    ("127.255.255.255", DeniedRule::Loopback),
    ("169.254.0.0", DeniedRule::LinkLocal),
    ("169.254.255.255", DeniedRule::LinkLocal),
    ("172.16.0.0", DeniedRule::Private),
    ("172.31.255.255", DeniedRule::Private),
    ("192.0.0.0", DeniedRule::Reserved),
    ("192.0.0.255", DeniedRule::Reserved),
    ("192.0.2.0", DeniedRule::Documentation),
    ("192.0.2.255", DeniedRule::Documentation),
    ("192.88.99.0", DeniedRule::Reserved),
    ("192.88.99.255", DeniedRule::Reserved),
    ("192.168.0.0", DeniedRule::Private),
    ("192.168.255.255", DeniedRule::Private),
    ("198.18.0.0", DeniedRule::Benchmarking),
    ("198.19.255.255", DeniedRule::Benchmarking),
    ("198.51.100.0", DeniedRule::Documentation),
    ("198.51.100.255", DeniedRule::Documentation),
    ("203.0.113.0", DeniedRule::Documentation),
    ("203.0.113.255", DeniedRule::Documentation),
    ("224.0.0.0", DeniedRule::Multicast),
    ("239.255.255.255", DeniedRule::Multicast),
    ("240.0.0.0", DeniedRule::Reserved),
    ("255.255.255.254", DeniedRule::Reserved),
    ("255.255.255.255", DeniedRule::Broadcast),
    ("::", DeniedRule::Unspecified),
    ("::1", DeniedRule::Loopback),
    ("100::", DeniedRule::Reserved),
    ("100::ffff:ffff:ffff:ffff", DeniedRule::Reserved),
    ("2001:1::", DeniedRule::Reserved),
    (
        "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    ("2001:2::", DeniedRule::Benchmarking),
    ("2001:db8::", DeniedRule::Documentation),
    (
        "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Documentation,
    ),
    ("3fff::", DeniedRule::Documentation),
    (
        "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Documentation,
    ),
    ("4000::", DeniedRule::Reserved),
    ("5f00::", DeniedRule::Reserved),
    (
        "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    ("fc00::", DeniedRule::UniqueLocal),
    (
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::UniqueLocal,
    ),
    ("fe80::", DeniedRule::LinkLocal),
    (
        "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::LinkLocal,
    ),
    ("fec0::", DeniedRule::Reserved),
    (
        "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    ("ff00::", DeniedRule::Multicast),
    (
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Multicast,
    ),
    // Instance metadata.
    ("169.254.169.254", DeniedRule::Metadata),
    ("169.254.170.2", DeniedRule::Metadata),
    ("100.100.100.200", DeniedRule::Metadata),
    ("168.63.129.16", DeniedRule::Metadata),
    ("192.0.0.192", DeniedRule::Metadata),
    ("fd00:ec2::254", DeniedRule::Metadata),
    // Mapped.
    ("::ffff:127.0.0.2", DeniedRule::Loopback),
    ("::ffff:10.254.253.252", DeniedRule::Private),
    ("::ffff:169.254.169.254", DeniedRule::Metadata),
    // SIIT.
    ("::ffff:0:127.0.0.1", DeniedRule::Loopback),
    ("::ffff:0:169.254.169.254", DeniedRule::Metadata),
    // Compatible.
    ("::127.0.0.1", DeniedRule::Loopback),
    ("::10.254.253.252", DeniedRule::Private),
    ("::8.8.8.8", DeniedRule::Reserved),
    // NAT64: the well-known prefix, the local one, one that is configured.
    ("64:ff9b::7f00:1", DeniedRule::Loopback),
    ("64:ff9b::10.254.253.252", DeniedRule::Private),
    ("64:ff9b::169.254.169.254", DeniedRule::Metadata),
    ("64:ff9b:1::127.0.0.1", DeniedRule::Translated),
    ("64:ff9b:1::8.8.8.8", DeniedRule::Translated),
    ("2a01:64::127.0.0.1", DeniedRule::Loopback),
    ("2a01:64::192.168.253.252", DeniedRule::Private),
    ("2a01:64::169.254.169.254", DeniedRule::Metadata),
    // 6to4.
    ("2002:7f00:1::", DeniedRule::Loopback),
    ("2002:a9fe:a9fe::1", DeniedRule::Metadata),
    // Teredo: the server, the client with its bits inverted, neither.
    ("2001:0:7f00:1::f7f7:f7f7", DeniedRule::Loopback),
    ("2001:0:808:808::80ff:fffe", DeniedRule::Loopback),
    ("2001:0:808:808::f7f7:f7f7", DeniedRule::Reserved),
    // ISATAP.
    ("2a00::5efe:127.0.0.1", DeniedRule::Loopback),
    ("2a00::200:5efe:10.254.253.252", DeniedRule::Private),
    ("fe80::5efe:127.0.0.1", DeniedRule::LinkLocal),
];

/// Right beside what is refused, and what carries public addresses.
pub(super) const PERMITTED: &[&str] = &[
    "1.0.0.0",
    "8.8.8.8",
    "9.255.255.255",
    "100.63.255.255",
    "128.0.0.0",
    "172.32.0.0",
    "203.0.114.0",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "2000::",
    "2606:4700::1111",
    "3fff:1000::",
    "64:ff9b::8.8.8.8",
    "2a01:64::8.8.8.8",
    "2002:808:808::1",
    "2a00::5efe:8.8.8.8",
];

/// A prefix that a translator of the operator uses.
pub(super) const NAT64: &str = "2a01:64::/96";

/// A port that neither services nor relayed addresses have.
pub(super) const PORT: u16 = 4000;

/// What a client sends to reach `peer` by `method`; `None` if the method leads to no peer.
///
/// Here every method there is has to say which it is, so that a new way to a peer cannot be left out.
fn attempt(method: Method, peer: SocketAddr) -> Option<Request> {
    match method {
        Method::CreatePermission => Some(Request::create_permission(&[peer])),
        Method::ChannelBind => Some(Request::channel_bind(0x4000, peer)),
        Method::Send => Some(Request::send(peer, b"attack")),
        // On a TCP allocation: `tcp.rs` tries it, and what comes in.
        Method::Connect | Method::ConnectionBind | Method::ConnectionAttempt => None,
        Method::Binding | Method::Allocate | Method::Refresh | Method::Data | Method::Unknown => {
            None
        }
    }
}

/// A client of the core: every transport there is.
pub(super) fn five_tuple(transport: Transport, family: Family) -> FiveTuple {
    let listener = match transport {
        Transport::Udp => ListenerId(0),
        Transport::Tcp => ListenerId(1),
        Transport::Tls => ListenerId(2),
        Transport::Dtls => ListenerId(3),
    };
    let client = match family {
        Family::V4 => "192.0.2.7:4000",
        Family::V6 => "[2001:db8::7]:4000",
    };
    FiveTuple::new(transport, addr(client), listener)
}

/// Every transport, family of the client and family of the relayed address.
fn everywhere() -> impl Iterator<Item = (Transport, Family, Family)> {
    Transport::ALL.into_iter().flat_map(|transport| {
        Family::ALL
            .into_iter()
            .flat_map(move |client| Family::ALL.map(|relay| (transport, client, relay)))
    })
}

fn allocate(family: Family) -> Request {
    match family {
        Family::V4 => Request::allocate(),
        Family::V6 => Request::allocate().family(2),
    }
}

pub(super) fn peer_at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().unwrap(), port)
}

/// The family that the address belongs to whatever it is written as.
pub(super) fn family_of(peer: SocketAddr) -> Family {
    Family::of(peer.ip().to_canonical())
}

pub(super) fn access(deny: &[&str], allow: &[&str]) -> access::Settings {
    let mut access = access_settings();
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    access.peers.deny = rules(deny);
    access.peers.allow = rules(allow);
    access.peers.nat64 = vec![NAT64.parse().unwrap()];
    access
}

/// Rooms enough for one permission and one channel per case.
pub(super) fn roomy() -> Settings {
    Settings {
        permissions_per_allocation: 1000,
        channels_per_allocation: 1000,
        ..Settings::default()
    }
}

/// What became of an attempt in the core.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Granted.
    Granted,
    /// Application data left for this address; (in memory, through the kernel).
    Sent(SocketAddr, (bool, bool)),
    /// An error response.
    Error(u16),
    /// No answer, nothing sent.
    Dropped(DropReason),
}

/// A client of the core with an allocation.
struct Attacker {
    world: World,
    from: FiveTuple,
    signer: Signer,
    id: AllocationId,
    relayed: SocketAddr,
}

impl Attacker {
    fn new(mut world: World, from: FiveTuple, relay: Family) -> Self {
        let signer = world.alice(from);
        Self::signed(world, from, relay, signer)
    }

    /// A visitor of the test page.
    fn visiting(mut world: World, from: FiveTuple, relay: Family) -> Self {
        let expires = EPOCH.as_secs() + 300;
        let secret = Secret::new(VISITS.to_owned());
        let (username, password) = rest::mint(&secret, Some(VISITOR), expires);
        let signer = Signer::new(&username, &password, &world.nonce(from));
        Self::signed(world, from, relay, signer)
    }

    fn signed(mut world: World, from: FiveTuple, relay: Family, signer: Signer) -> Self {
        let reply = world.ask(from, &allocate(relay).sign(&signer));
        assert_eq!(reply.code(), 0);
        let id = *world.opened.last().unwrap();
        Self {
            world,
            from,
            signer,
            id,
            relayed: reply.relayed(),
        }
    }

    fn outcome(&mut self, method: Method, request: &Request) -> Outcome {
        if method != Method::Send {
            let request = request.clone().sign(&self.signer);
            return match self.world.code(self.from, &request) {
                0 => Outcome::Granted,
                code => Outcome::Error(code),
            };
        }
        self.world.sent.clear();
        let outcome = match self.world.input(self.from, &request.bytes()) {
            Forward::ToPeer { peer, .. } => Outcome::Sent(
                peer.address(),
                (peer.may_be_own_relay(), peer.may_use_kernel()),
            ),
            Forward::Drop(reason) => Outcome::Dropped(reason),
            other => panic!("{other:?}"),
        };
        assert!(self.world.sent.is_empty(), "an indication has no answer");
        outcome
    }

    /// Tries `method`; the rules that were counted meanwhile come with the outcome.
    fn try_out(&mut self, method: Method, request: &Request) -> (Outcome, Vec<DeniedRule>) {
        let before = self.world.server.stats().peer_denied;
        let outcome = self.outcome(method, request);
        let after = self.world.server.stats().peer_denied;
        let counted = DeniedRule::ALL.into_iter().flat_map(|rule| {
            let times = after[rule as usize] - before[rule as usize];
            std::iter::repeat_n(rule, times as usize)
        });
        (outcome, counted.collect())
    }

    /// Tries everything that leads to `peer`.
    #[track_caller]
    fn is_refused(&mut self, peer: SocketAddr, rule: DeniedRule) {
        for method in Method::ALL {
            let Some(request) = attempt(method, peer) else {
                continue;
            };
            let expected = match method {
                Method::Send => Outcome::Dropped(DropReason::PeerDenied),
                _ => Outcome::Error(403),
            };
            let found = self.try_out(method, &request);
            assert_eq!(found, (expected, vec![rule]), "{method:?} {peer}");
        }
    }
}

#[test]
fn refused_peers_are_reached_by_no_way() {
    for (transport, client, relay) in everywhere() {
        let world = World::with(roomy(), &access(&[], &[]), seed());
        let mut attacker = Attacker::new(world, five_tuple(transport, client), relay);
        for &(text, rule) in REFUSED {
            for port in [1, 53, PORT, 49_152, 65_535] {
                let peer = peer_at(text, port);
                if family_of(peer) == relay {
                    attacker.is_refused(peer, rule);
                    continue;
                }
                for method in Method::ALL {
                    let Some(request) = attempt(method, peer) else {
                        continue;
                    };
                    let expected = match method {
                        Method::Send => Outcome::Dropped(DropReason::Family),
                        _ => Outcome::Error(443),
                    };
                    let found = attacker.try_out(method, &request);
                    assert_eq!(found, (expected, vec![]), "{method:?} {peer}");
                }
            }
        }
        let (views, _) = attacker.world.server.views(attacker.world.now, 0, 10);
        assert_eq!((views[0].permissions, views[0].channels), (0, 0));
        assert_eq!(views[0].traffic[Direction::ToPeer as usize].packets, 0);
    }
}

/// One allocation in both families reaches no more than one in each.
#[test]
fn refused_peers_are_reached_through_neither_of_two_relayed_addresses() {
    for transport in Transport::ALL {
        let mut world = World::with(roomy(), &access(&[], &[]), seed());
        let from = five_tuple(transport, Family::V4);
        let signer = world.alice(from);
        let both = Request::allocate().attr(0x8000, &[2, 0, 0, 0]);
        let reply = world.ask(from, &both.sign(&signer));
        assert_eq!(reply.all_relayed().len(), 2);
        let mut attacker = Attacker {
            id: world.opened[0],
            relayed: reply.relayed(),
            world,
            from,
            signer,
        };
        for &(text, rule) in REFUSED {
            attacker.is_refused(peer_at(text, PORT), rule);
        }
        // Its own addresses are reached in memory, and its services by neither.
        for own in reply.all_relayed() {
            let permit = Request::create_permission(&[own]);
            let permitted = attacker.outcome(Method::CreatePermission, &permit);
            assert_eq!(permitted, Outcome::Granted);
            let sent = attacker.outcome(Method::Send, &Request::send(own, b"attack"));
            assert_eq!(sent, Outcome::Sent(own, (true, false)));
            let service = SocketAddr::new(own.ip(), 3478);
            let sent = attacker.outcome(Method::Send, &Request::send(service, b"attack"));
            assert_eq!(sent, Outcome::Dropped(DropReason::PeerDenied));
        }
    }
}

/// Where none of the clients here is.
const PUBLIC_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 99));

/// The user id of a visit.
const VISITOR: &str = "turnix-test:0123456789abcdef";

/// What a visitor of the test page may reach is no more than others may, and of that relayed addresses only.
#[test]
fn a_visitor_reaches_relayed_addresses_and_nobody_else_by_any_way() {
    let loop_only = DeniedRule::LoopOnly;
    // Whatever the operator allows to others.
    let everything = &["0.0.0.0/0", "::/0", "64:ff9b:1::/48", "metadata"];
    for (allow, opened) in [(&[][..], false), (everything, true)] {
        for (transport, client, relay) in everywhere() {
            let world = World::with(roomy(), &access(&[], allow), seed());
            let mut visitor = Attacker::visiting(world, five_tuple(transport, client), relay);
            for &(text, rule) in REFUSED {
                let peer = peer_at(text, PORT);
                if family_of(peer) == relay {
                    visitor.is_refused(peer, if opened { loop_only } else { rule });
                }
            }
            for text in PERMITTED {
                let peer = peer_at(text, PORT);
                if family_of(peer) == relay {
                    visitor.is_refused(peer, loop_only);
                }
            }
            let (relayed, now) = (visitor.relayed, visitor.world.now);
            let permit = Request::create_permission(&[relayed]);
            let found = visitor.outcome(Method::CreatePermission, &permit);
            assert_eq!(found, Outcome::Granted);
            // The permission is per IP; neither services nor what is no relay port is reached by it.
            for port in [0, 80, 443, 3478, 9641, PORT] {
                let peer = SocketAddr::new(relayed.ip(), port);
                let send = Request::send(peer, b"attack");
                let found = visitor.outcome(Method::Send, &send);
                assert_eq!(found, Outcome::Dropped(DropReason::PeerDenied), "{peer}");
                let bind = Request::channel_bind(0x4000, peer);
                assert_eq!(
                    visitor.outcome(Method::ChannelBind, &bind),
                    Outcome::Error(403),
                    "{peer}"
                );
            }
            // In memory, even where others may use the kernel.
            let send = Request::send(relayed, b"loop");
            let found = visitor.outcome(Method::Send, &send);
            assert_eq!(found, Outcome::Sent(relayed, (true, false)));
            let bind = Request::channel_bind(0x4000, relayed);
            assert_eq!(
                visitor.outcome(Method::ChannelBind, &bind),
                Outcome::Granted
            );
            // And back: only what the same visit sent, whether a channel or a permission lets it in.
            let client = visitor.from.client().ip();
            let mine = Scope::Loop(Visit::of(VISITOR).at(client));
            let other = Scope::Loop(Visit::of("turnix-test:fedcba9876543210").at(client));
            // With the same credentials: whoever the visitor told them.
            let told = Scope::Loop(Visit::of(VISITOR).at(PUBLIC_CLIENT));
            let elsewhere = SocketAddr::new(relayed.ip(), 60_000);
            for peer in [relayed, elsewhere] {
                for (path, scope, passes) in [
                    (Path::Hairpin, mine, true),
                    (Path::Hairpin, other, false),
                    (Path::Hairpin, told, false),
                    (Path::Hairpin, Scope::Policy, false),
                    (Path::Kernel, Scope::Policy, false),
                ] {
                    let from = FromPeer { peer, path, scope };
                    let id = visitor.id;
                    let forward = visitor.world.server.handle_peer_input(now, id, from, b"in");
                    let passed = matches!(forward, Forward::ToClient { .. });
                    assert!(passed || forward == Forward::Drop(DropReason::PeerDenied));
                    assert_eq!(passed, passes, "{path:?} {scope:?}");
                }
            }
        }
    }
}

/// Who has an ordinary allocation gets nothing of a visit, whatever it permits.
#[test]
fn a_visitor_sends_to_no_user() {
    let mut alice = Attacker::new(World::new(), udp("192.0.2.7:4000"), Family::V4);
    let visit = SocketAddr::new(alice.relayed.ip(), 60_000);
    let permit = Request::create_permission(&[visit]);
    assert_eq!(
        alice.outcome(Method::CreatePermission, &permit),
        Outcome::Granted
    );
    let bind = Request::channel_bind(0x4000, visit);
    assert_eq!(alice.outcome(Method::ChannelBind, &bind), Outcome::Granted);
    for visitor in [Visit::of(VISITOR), Visit::CANARY] {
        let from = FromPeer {
            peer: visit,
            path: Path::Hairpin,
            scope: Scope::Loop(visitor),
        };
        let forward =
            (alice.world.server).handle_peer_input(alice.world.now, alice.id, from, b"in");
        assert_eq!(forward, Forward::Drop(DropReason::PeerDenied));
    }
}

/// The table refuses what it does for the reason it gives: everything else is reached by the very same ways.
#[test]
fn public_peers_are_reached_by_every_way() {
    for (transport, client, relay) in everywhere() {
        let world = World::with(roomy(), &access(&[], &[]), seed());
        let mut attacker = Attacker::new(world, five_tuple(transport, client), relay);
        let peers = PERMITTED.iter().map(|text| peer_at(text, PORT));
        for (channel, peer) in (0x4000..).zip(peers.filter(|peer| family_of(*peer) == relay)) {
            let canonical = SocketAddr::new(peer.ip().to_canonical(), PORT);
            let send = Request::send(peer, b"x");
            let found = attacker.try_out(Method::Send, &send);
            assert_eq!(
                found,
                match canonical {
                    // Written in another way, and permitted since.
                    _ if peer != canonical => (Outcome::Sent(canonical, (false, true)), Vec::new()),
                    _ => (Outcome::Dropped(DropReason::NoPermission), Vec::new()),
                },
                "{peer}"
            );
            let permit = Request::create_permission(&[peer]);
            let found = attacker.outcome(Method::CreatePermission, &permit);
            assert_eq!(found, Outcome::Granted, "{peer}");
            let sent = Outcome::Sent(canonical, (false, true));
            assert_eq!(attacker.outcome(Method::Send, &send), sent, "{peer}");
            if peer == canonical {
                let bind = Request::channel_bind(channel, peer);
                let found = attacker.outcome(Method::ChannelBind, &bind);
                assert_eq!(found, Outcome::Granted, "{peer}");
            }
        }
        assert_eq!(
            attacker
                .world
                .server
                .stats()
                .peer_denied
                .iter()
                .sum::<u64>(),
            0
        );
    }
}

/// A permission that was given under another policy is no proof: what is sent is judged when it is sent.
#[test]
fn permissions_of_an_older_policy_reach_nobody() {
    let everything = &["0.0.0.0/0", "::/0", "64:ff9b:1::/48", "metadata"];
    let now = Arc::new(Access::new(&access(&[], &[]), own_addresses()));
    for (transport, client, relay) in everywhere() {
        let world = World::with(roomy(), &access(&[], everything), seed());
        let mut attacker = Attacker::new(world, five_tuple(transport, client), relay);
        let peers: Vec<_> = (REFUSED.iter())
            .map(|&(text, rule)| (peer_at(text, PORT), rule))
            .filter(|(peer, _)| family_of(*peer) == relay)
            .collect();
        for (peer, _) in &peers {
            let permit = Request::create_permission(&[*peer]);
            let found = attacker.outcome(Method::CreatePermission, &permit);
            assert_eq!(found, Outcome::Granted, "{peer}");
        }
        let at = attacker.world.now;
        (attacker.world.server).set_access(at, Arc::clone(&now));
        for (peer, rule) in peers {
            attacker.is_refused(peer, rule);
        }
    }
}

#[test]
fn port_zero_and_ports_that_no_rule_allows() {
    for (transport, client, relay) in everywhere() {
        let (server, other, public) = match relay {
            Family::V4 => ("10.1.2.3", "10.1.2.4", "8.8.8.8"),
            Family::V6 => ("fd00::3", "fd00::4", "2606:4700::1111"),
        };
        let allow = ["10.1.2.3:5004", "[fd00::3]:5004"];
        let world = World::with(roomy(), &access(&["public:25"], &allow), seed());
        let mut attacker = Attacker::new(world, five_tuple(transport, client), relay);
        let private = match relay {
            Family::V4 => DeniedRule::Private,
            Family::V6 => DeniedRule::UniqueLocal,
        };
        attacker.is_refused(peer_at(other, 5004), private);
        for (text, bad, rule, good) in [
            (server, 5005, private, 5004),
            (server, 0, DeniedRule::PortZero, 5004),
            (public, 25, DeniedRule::Configured, 26),
            (public, 0, DeniedRule::PortZero, 26),
        ] {
            let (bad, good) = (peer_at(text, bad), peer_at(text, good));
            // Of an IP, whichever port stands beside it.
            let permit = Request::create_permission(&[bad]);
            let found = attacker.try_out(Method::CreatePermission, &permit);
            assert_eq!(found, (Outcome::Granted, vec![]), "{bad}");
            let refused = (Outcome::Dropped(DropReason::PeerDenied), vec![rule]);
            let send = Request::send(bad, b"x");
            assert_eq!(attacker.try_out(Method::Send, &send), refused, "{bad}");
            let bind = Request::channel_bind(0x4001, bad);
            let refused = (Outcome::Error(403), vec![rule]);
            let found = attacker.try_out(Method::ChannelBind, &bind);
            assert_eq!(found, refused, "{bad}");
            let send = Request::send(good, b"x");
            let found = attacker.outcome(Method::Send, &send);
            assert_eq!(found, Outcome::Sent(good, (false, true)));

            let (id, world) = (attacker.id, &mut attacker.world);
            let before = world.server.stats().peer_denied[rule as usize];
            let inbound = world.peer_input(id, bad, b"x");
            assert_eq!(inbound, Forward::Drop(DropReason::PeerDenied), "{bad}");
            let after = world.server.stats().peer_denied[rule as usize];
            assert_eq!(after, before + 1);
            let inbound = world.peer_input(id, good, b"x");
            assert!(matches!(inbound, Forward::ToClient { .. }), "{good}");
        }
    }
}

#[test]
fn own_addresses_are_reached_in_memory_at_relay_ports_only() {
    const INSIDE: &str = "10.9.9.9";
    const ELSEWHERE: &str = "8.8.8.2";
    const ELSEWHERE_V6: &str = "2a00::2";
    let mut own: OwnAddresses = own_addresses();
    (own.host)
        .extend([INSIDE, ELSEWHERE, ELSEWHERE_V6].map(|text| text.parse::<IpAddr>().unwrap()));
    let services = own.service_ports.clone();
    for (transport, client, relay) in everywhere() {
        for allow in [
            &[][..],
            &["0.0.0.0/0", "::/0", "64:ff9b:1::/48", "metadata"],
        ] {
            let settings = access(&[], allow);
            let world = World::owning(roomy(), &settings, seed(), own.clone());
            let mut attacker = Attacker::new(world, five_tuple(transport, client), relay);
            let (relays, others, disguises): (_, &[_], &[_]) = match relay {
                Family::V4 => (RELAY_V4, &[INSIDE, ELSEWHERE], &["::ffff:8.8.8.2"]),
                Family::V6 => (
                    RELAY_V6,
                    &[ELSEWHERE_V6],
                    &[
                        "64:ff9b::8.8.8.2",
                        "2a01:64::8.8.8.2",
                        "2002:808:802::",
                        "::ffff:0:8.8.8.2",
                    ],
                ),
            };
            // The IP of relayed addresses is permitted, its services are not.
            let permit = Request::create_permission(&[peer_at(relays, 1)]);
            let found = attacker.outcome(Method::CreatePermission, &permit);
            assert_eq!(found, Outcome::Granted);
            let refuse = |attacker: &mut Attacker, peer: SocketAddr, methods: &[Method]| {
                for &method in methods {
                    let request = attempt(method, peer).unwrap();
                    let (outcome, rules) = attacker.try_out(method, &request);
                    let expected = match method {
                        Method::Send => Outcome::Dropped(DropReason::PeerDenied),
                        _ => Outcome::Error(403),
                    };
                    let counted = vec![DeniedRule::OwnAddress];
                    assert_eq!((outcome, rules), (expected, counted), "{method:?} {peer}");
                }
            };
            let by_port = [Method::ChannelBind, Method::Send];
            for &port in &services {
                for text in others.iter().chain(disguises).chain([&relays]) {
                    refuse(&mut attacker, peer_at(text, port), &by_port);
                }
            }
            if allow.is_empty() {
                refuse(&mut attacker, peer_at(relays, 49_151), &by_port);
                refuse(&mut attacker, peer_at(relays, 22), &by_port);
                for text in others.iter().chain(disguises) {
                    for port in [22, PORT, 50_000] {
                        attacker.is_refused(peer_at(text, port), DeniedRule::OwnAddress);
                    }
                }
            }
            let itself = attacker.relayed;
            let sent = attacker.outcome(Method::Send, &Request::send(itself, b"x"));
            assert_eq!(sent, Outcome::Sent(itself, (true, !allow.is_empty())));
        }
    }
}

/// What the real server counted between two looks.
fn denied(server: &Server) -> [u64; DeniedRule::ALL.len()] {
    server.snapshot().stats.peer_denied
}

pub(super) fn quiet_server(set: &[&str]) -> (Server, Ipv4Addr) {
    let relay = quiet_address();
    let relays = format!("relay.addresses=['{relay}', '::1']");
    let nat64 = format!("peers.nat64=['{NAT64}']");
    let set: Vec<&str> = [&*relays, &*nat64]
        .into_iter()
        .chain(set.iter().copied())
        .collect();
    (Server::with(BOTH, &set), relay)
}

#[test]
fn the_server_sends_nothing_to_refused_peers() {
    let (server, _) = quiet_server(&["peers.allow=[]"]);
    let trap = peer(quiet_address());
    let trapped = trap.local_addr().unwrap();
    let disguised = SocketAddr::new(
        match trapped.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
            ip => ip,
        },
        trapped.port(),
    );
    let cases: Vec<(SocketAddr, DeniedRule)> = (REFUSED.iter())
        .map(|&(text, rule)| (peer_at(text, PORT), rule))
        .chain([trapped, disguised].map(|trap| (trap, DeniedRule::Loopback)))
        .collect();
    for (transport, family, relay) in everywhere() {
        let mut client = Client::new(&server, transport, family);
        client.login(USER, PASSWORD);
        assert_eq!(client.ask_signed(allocate(relay)).code(), 0);
        let before = denied(&server);
        let mut expected = before;
        for &(peer, rule) in &cases {
            for method in Method::ALL {
                let Some(request) = attempt(method, peer) else {
                    continue;
                };
                let same = family_of(peer) == relay;
                // Other clients' relayed addresses are there, so the IP is permitted; what is asked for is not.
                let granted =
                    method == Method::CreatePermission && peer.ip() == peer_at("::1", 0).ip();
                if same && !granted {
                    expected[rule as usize] += 1;
                }
                if method == Method::Send {
                    client.send(&request.bytes());
                    continue;
                }
                let code = match (same, granted) {
                    (false, _) => 443,
                    (true, false) => 403,
                    (true, true) => 0,
                };
                let found = client.ask_signed(request).code();
                assert_eq!(found, code, "{method:?} {peer} {transport:?} {family:?}");
            }
        }
        // Datagrams and frames of one client are judged in order: the answer tells that all of them were.
        client.release();
        assert_eq!(
            denied(&server),
            expected,
            "{transport:?} {family:?} {relay:?}"
        );
    }
    for path in Path::ALL {
        assert_eq!(server.relayed(Direction::ToPeer, path).packets, 0);
    }
    trap.set_nonblocking(true).unwrap();
    let caught = trap.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(caught.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn the_server_does_not_reach_its_own_services() {
    let open = "peers.allow=['0.0.0.0/0', '::/0']";
    let (server, relay) = quiet_server(&[open, "http.admin='127.0.0.1:0'"]);
    let ports = [
        server.address(Family::V4).port(),
        server.address(Family::V6).port(),
        server.admin().port(),
    ];
    let here = relay.to_string();
    for (transport, family, relay) in everywhere() {
        let texts: &[&str] = match relay {
            Family::V4 => &["127.0.0.1", "127.9.9.9", "0.0.0.0", &here],
            Family::V6 => &["::1", "::", "64:ff9b::127.0.0.1", "2a01:64::127.0.0.1"],
        };
        let mut client = Client::new(&server, transport, family);
        client.login(USER, PASSWORD);
        assert_eq!(client.ask_signed(allocate(relay)).code(), 0);
        let before = denied(&server);
        let mut attempts = 0;
        for text in texts {
            for port in ports {
                let peer = peer_at(text, port);
                client.permit(peer);
                client.send_indication(peer, &Request::binding().bytes());
                let bound = client.ask_signed(Request::channel_bind(0x4000, peer));
                assert_eq!(bound.code(), 403, "{peer}");
                attempts += 2;
            }
        }
        client.release();
        let mut expected = before;
        expected[DeniedRule::OwnAddress as usize] += attempts;
        assert_eq!(
            denied(&server),
            expected,
            "{transport:?} {family:?} {relay:?}"
        );
    }
    for path in Path::ALL {
        assert_eq!(server.relayed(Direction::ToPeer, path).packets, 0);
    }
}

/// A relay port where nobody has an allocation belongs to somebody else on the host: it is not reached.
#[test]
fn a_stranger_among_the_relay_ports_is_not_reached() {
    let (server, relay) = quiet_server(&["peers.allow=[]"]);
    let trap = (49_152..=u16::MAX)
        .find_map(|port| std::net::UdpSocket::bind((relay, port)).ok())
        .unwrap();
    let trapped = trap.local_addr().unwrap();
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let relayed = client.allocate();
        client.permit(trapped);
        let before = server.dropped(DropReason::NoRelay);
        client.send_indication(trapped, b"attack");
        client.bind(0x4000, trapped);
        client.send_channel(0x4000, b"attack");
        client.permit(relayed);
        client.send_indication(relayed, b"to myself");
        assert_eq!(client.expect_data(), (relayed, b"to myself".to_vec()));
        assert_eq!(server.dropped(DropReason::NoRelay), before + 2);
    }
    assert_eq!(server.relayed(Direction::ToPeer, Path::Kernel).packets, 0);
    trap.set_nonblocking(true).unwrap();
    assert!(trap.recv(&mut [0; 64]).is_err());
}

/// An allow-list of media servers, with ports: one port of an IP is a peer, its other ports are not, either way.
#[test]
fn one_port_of_an_ip_is_a_peer_and_no_other() {
    let ip = quiet_address();
    let (media, other) = (peer(ip), peer(ip));
    let (at_media, at_other) = (media.local_addr().unwrap(), other.local_addr().unwrap());
    let allow = format!("peers.allow=['{at_media}']");
    let (server, _) = quiet_server(&["peers.deny=['public']", &allow]);
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        let relayed = client.allocate();
        client.permit(at_other);
        let bound = client.ask_signed(Request::channel_bind(0x4000, at_other));
        assert_eq!(bound.code(), 403);
        client.send_indication(at_other, b"attack");
        client.send_indication(at_media, b"media");
        let (data, from) = receive(&media);
        assert_eq!(&data, b"media");
        let before = denied(&server)[DeniedRule::Loopback as usize];
        other.send_to(b"attack", from).unwrap();
        until("the other port is refused", || {
            denied(&server)[DeniedRule::Loopback as usize] == before + 1
        });
        media.send_to(b"answer", from).unwrap();
        assert_eq!(client.expect_data(), (at_media, b"answer".to_vec()));
        client.bind(0x4000, at_media);
        client.send_channel(0x4000, b"channel");
        assert_eq!(receive(&media).0, b"channel");
        assert_eq!(from, relayed);
    }
    other.set_nonblocking(true).unwrap();
    assert!(other.recv(&mut [0; 64]).is_err());
}

/// Lines of the log, as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_flood_of_refused_peers_is_one_line_with_the_rule() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let world = World::with(roomy(), &access(&[], &[]), seed());
        let mut attacker = Attacker::new(world, udp("192.0.2.7:4000"), Family::V4);
        for host in 0..200 {
            attacker.is_refused(addr(&format!("10.0.0.{host}:80")), DeniedRule::Private);
        }
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("peer refused by policy").count(), 1, "{text}");
    assert!(text.contains("rule=\"private\""), "{text}");
}
