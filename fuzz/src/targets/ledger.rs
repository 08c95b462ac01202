//! Anything at all into one server, and a ledger of what it granted, kept from what passed on the wire alone.
//!
//! The ledger says nothing of what has to be answered. It holds what must never be: an answer that only an owner may
//! have to anybody else, a packet that passes without a permission, state beyond its bounds or its time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use stun::attributes::*;
use stun::message as m;
use turnix::access::Access;
use turnix::base::{Family, FiveTuple, ListenerId, Now, RelayedAddress, Transport};
use turnix::turn::{
    AllocationId, EndReason, Forward, FromPeer, OpenError, Output, Path, Server, Settings,
};
use turnix::wire::Icmp;

use super::Reach;
use super::input::Input;
use super::server::{OFTEN, STEPS, pass};
use crate::common::wire::{REALM, Reply, Request, Signer, channel_data};
use crate::common::world::{self, RELAY_V4, RELAY_V6, World};
use crate::harness::{OWN, accesses, clients, credentials, with_id};
use crate::model::{self, Credential, Ms};
use crate::operations::{CLIENTS, CREDENTIALS};

/// Answers to strangers per second and address; ten times as many at once.
const RATE: u32 = 1;

/// The largest answer to who has proven nothing, unless it asked with more: a challenge with FINGERPRINT.
const SMALL: usize = 80;

/// By how much more over connections, which have proven their address: the nonce cookie and PASSWORD-ALGORITHMS.
const OFFER: usize = 28;

/// An allocation, as far as its client, the caller and the peers could see.
#[derive(Debug)]
struct Held {
    id: AllocationId,
    tuple: FiveTuple,
    /// Where it moves to (RFC 8016).
    next: Option<FiveTuple>,
    /// It may move.
    mobile: bool,
    /// The connection of `tuple` has closed.
    adrift: bool,
    /// The transaction of its last move.
    moved: Option<Vec<u8>>,
    /// Families in which a relay was asked for, and when what it is there for ends.
    relays: HashMap<Family, Ms>,
    /// The relay that is waited for.
    opening: Option<Family>,
    /// Those that were opened, in order.
    opened: Vec<SocketAddr>,
    /// The request that asked for it.
    request: Vec<u8>,
    /// It was answered.
    answered: bool,
    permissions: HashMap<IpAddr, Ms>,
    channels: HashMap<u16, (SocketAddr, Ms)>,
    /// Packets to peers and to the client.
    packets: [u64; 2],
}

impl Held {
    /// When the last of it ends.
    fn ends(&self) -> Ms {
        self.relays.values().copied().max().expect("a relay")
    }

    fn serves(&self, address: SocketAddr, now: Ms) -> bool {
        let ends = self.relays.get(&Family::of(address.ip()));
        self.answered && ends.is_some_and(|ends| now < *ends)
    }

    /// Whether a client on `from` is its client.
    fn is_at(&self, from: FiveTuple) -> bool {
        (self.tuple == from && !self.adrift) || self.next == Some(from)
    }
}

struct Ledger {
    server: Server,
    base: Now,
    at: Ms,
    latest: Ms,
    accesses: [Arc<Access>; 2],
    stricter: bool,
    credentials: Vec<Credential>,
    held: Vec<Held>,
    /// Every id that there was.
    ids: Vec<AllocationId>,
    /// Nonces that the server gave, for whom, and until which second.
    nonces: HashMap<String, (FiveTuple, u64)>,
    /// The last one of each client.
    last_nonce: HashMap<FiveTuple, String>,
    /// When which address was answered that had proven nothing.
    answered: Vec<(IpAddr, Ms)>,
    transactions: u64,
    /// Every ticket that there was.
    tickets: Vec<Vec<u8>>,
    next_port: u16,
    reach: Reach,
}

/// MOBILITY-TICKET.
const TICKET: u16 = 0x8030;

/// Where datagrams come from: the clients, and who has no business here.
fn sources() -> Vec<FiveTuple> {
    let mut all = clients().to_vec();
    all.extend([
        world::udp("203.0.113.66:6666"),
        world::udp("[2001:db8:66::1]:9"),
        world::udp("192.0.2.7:0"),
        world::udp("198.51.100.1:3478"),
        world::udp("127.0.0.1:5000"),
        world::tcp("203.0.113.66:6666"),
        FiveTuple::new(
            Transport::Tls,
            world::addr("[2001:db8:66::1]:9"),
            ListenerId(2),
        ),
    ]);
    all
}

pub fn run(input: &mut Input<'_>, strict_expiry: bool) -> Reach {
    let mut ledger = Ledger::new(strict_expiry);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        ledger.step(input);
        ledger.balance();
    }
    ledger.reach
}

impl Ledger {
    fn new(strict_expiry: bool) -> Self {
        let settings = Settings {
            max_lifetime: Duration::from_secs(model::MAX_LIFETIME_SECS),
            nonce_lifetime: Duration::from_secs(model::NONCE_LIFETIME_SECS),
            permissions_per_allocation: model::MAX_PERMISSIONS,
            channels_per_allocation: model::MAX_CHANNELS,
            unauthenticated_per_address: RATE,
            auth_failures_per_address: RATE,
            ..Settings::default()
        };
        let accesses = accesses(strict_expiry);
        let base = World::new().start;
        let mut ledger = Self {
            server: Server::new(base, settings, world::seed(), Arc::clone(&accesses[0])),
            base,
            at: 0,
            latest: 0,
            accesses,
            stricter: false,
            credentials: credentials(),
            held: Vec::new(),
            ids: Vec::new(),
            nonces: HashMap::new(),
            last_nonce: HashMap::new(),
            answered: Vec::new(),
            transactions: 0,
            tickets: Vec::new(),
            next_port: 50_000,
            reach: Reach::new(),
        };
        for tuple in clients() {
            let request = ledger.with_id(m::METHOD_ALLOCATE, m::CLASS_REQUEST);
            ledger.client(tuple, &request.bytes(), 0);
        }
        ledger
    }

    fn with_id(&mut self, method: m::Method, class: m::MessageClass) -> Request {
        self.transactions += 1;
        with_id(method, class, self.transactions)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let back = match choice >> 5 {
            7 => 60 * u64::from(input.word()),
            _ => 0,
        };
        match choice & 0x1F {
            0..=5 => {
                let (from, bytes) = self.sensible(input);
                self.client(from, &bytes, back);
            }
            6..=9 => {
                let (from, bytes) = self.sensible(input);
                let bytes = mutated(bytes, input);
                self.client(from, &bytes, back);
            }
            10..=14 => {
                let (from, bytes) = self.soup(input);
                self.client(from, &bytes, back);
            }
            15..=16 => {
                let sources = sources();
                let from = sources[input.below(sources.len())];
                let length = input.byte().into();
                let bytes = input.take(length).to_vec();
                self.client(from, &bytes, back);
            }
            17..=20 => self.peer(input, back),
            21..=22 => self.at += pass(input),
            23 => self.timeout(back),
            24 => {
                let waiting: Vec<AllocationId> = (self.held.iter())
                    .filter(|held| held.opening.is_some())
                    .map(|held| held.id)
                    .collect();
                if !waiting.is_empty() {
                    let id = waiting[input.below(waiting.len())];
                    self.open(id, input.byte(), back);
                }
            }
            25 => {
                // A socket that was opened for an allocation that has gone is given back.
                if let Some(id) = self.any_id(input)
                    && !self.held.iter().any(|held| held.id == id)
                {
                    let now = self.tell(back);
                    let opened = RelayedAddress(SocketAddr::new(ip(RELAY_V4), 49_999));
                    self.server.handle_relay_opened(now, id, Ok(opened.into()));
                    assert_eq!(
                        self.server.poll_output(),
                        Some(Output::CloseRelay {
                            id,
                            family: Family::V4
                        })
                    );
                    assert_eq!(self.server.poll_output(), None);
                    self.note("late open closed");
                }
            }
            26 => {
                let tuple = sources()[input.below(CLIENTS)];
                let now = self.tell(back);
                self.server.handle_client_closed(now, tuple);
                self.drain(None, false, Some(EndReason::ClientClosed));
                assert!(!self.server.has_allocation(tuple));
                let latest = self.latest;
                if let Some(held) = self.held.iter_mut().find(|held| held.is_at(tuple)) {
                    assert!(held.mobile && tuple.transport().is_stream());
                    held.adrift = true;
                    for ends in held.relays.values_mut() {
                        *ends = (*ends).min(latest + 30_000);
                    }
                    self.note("adrift");
                }
            }
            27 => {
                if let Some(id) = self.any_id(input) {
                    let now = self.tell(back);
                    let there = self.held.iter().any(|held| held.id == id);
                    let reason = EndReason::Administrative;
                    assert_eq!(self.server.end_allocation(now, id, reason), there);
                    self.drain(None, false, Some(reason));
                }
            }
            28 => {
                if let Some(id) = self.any_id(input) {
                    let now = self.tell(back);
                    let held = self.held.iter().find(|held| held.id == id);
                    let has =
                        |family: &Family| held.is_some_and(|held| held.relays.contains_key(family));
                    let any = Family::ALL[input.below(2)];
                    let family = if has(&any) { any } else { any.other() };
                    self.server.handle_relay_failed(now, id, family);
                    self.drain(None, false, Some(EndReason::RelayFailed));
                }
            }
            _ => {
                self.stricter = input.once_in(2);
                let access = Arc::clone(&self.accesses[usize::from(self.stricter)]);
                let now = self.tell(back);
                self.server.set_access(now, access);
                self.drain(None, false, Some(EndReason::Revoked));
                if self.stricter {
                    let refused = [model::peer(1), model::peer(2)];
                    for held in &mut self.held {
                        (held.permissions).retain(|ip, _| *ip != refused[1].ip());
                        (held.channels).retain(|_, (bound, _)| !refused.contains(bound));
                    }
                }
            }
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        self.reach.insert(format!("ledger: {}", what.into()));
    }

    fn tell(&mut self, back: Ms) -> Now {
        let at = self.at.saturating_sub(back);
        self.latest = self.latest.max(at);
        self.base + Duration::from_millis(at)
    }

    fn any_id(&self, input: &mut Input<'_>) -> Option<AllocationId> {
        let which = usize::from(input.byte());
        (!self.ids.is_empty()).then(|| self.ids[which % self.ids.len()])
    }

    fn signer(&self, input: &mut Input<'_>, from: FiveTuple, client: Option<usize>) -> Signer {
        let credential = match (input.byte(), client) {
            (0..=219, Some(client)) => OWN[client],
            (other, _) => usize::from(other) % CREDENTIALS,
        };
        let credential = &self.credentials[credential];
        let nonce = match input.byte() {
            other @ 240..=250 => {
                let tuple = sources()[usize::from(other) % CLIENTS];
                self.last_nonce.get(&tuple)
            }
            251.. => None,
            _ => self.last_nonce.get(&from),
        };
        let nonce = nonce.map_or("0123456789abcdefghijklmn", String::as_str);
        Signer::new(&credential.username, &credential.password, nonce)
    }

    fn source(input: &mut Input<'_>) -> (FiveTuple, Option<usize>) {
        let sources = sources();
        let which = match input.byte() {
            which @ 0..=223 => usize::from(which) % CLIENTS,
            other => usize::from(other) % sources.len(),
        };
        (sources[which], (which < CLIENTS).then_some(which))
    }

    /// A message such as clients send.
    fn sensible(&mut self, input: &mut Input<'_>) -> (FiveTuple, Vec<u8>) {
        let (from, client) = Self::source(input);
        let choice = input.byte();
        let signer = self.signer(input, from, client);
        let request = match choice % 16 {
            0..=3 => {
                let request = self.with_id(m::METHOD_ALLOCATE, m::CLASS_REQUEST);
                let request = request.attr(ATTR_REQUESTED_TRANSPORT.0, &[17, 0, 0, 0]);
                let request = match choice / 16 % 4 {
                    0 if choice & 64 == 0 => request.family(2),
                    0 => request.attr(0x8000, &[2, 0, 0, 0]),
                    1 => request.lifetime(input.one_of(&[0, 1, 700, 3600, u32::MAX])),
                    2 => request.attr(TICKET, &[]),
                    _ => request,
                };
                request.sign(&signer)
            }
            4 => {
                let secs = input.one_of(&[0, 600, 3600]);
                let request = self.with_id(m::METHOD_REFRESH, m::CLASS_REQUEST);
                let request = request.lifetime(secs);
                let which = usize::from(choice / 32);
                match (choice / 16 % 2, self.tickets.iter().rev().nth(which % 4)) {
                    (1, Some(ticket)) => request.attr(TICKET, ticket).sign(&signer),
                    _ => request.sign(&signer),
                }
            }
            5..=7 => {
                let mut request = self.with_id(m::METHOD_CREATE_PERMISSION, m::CLASS_REQUEST);
                for _ in 0..=input.below(3) {
                    request = request.peer(peer(input));
                }
                request.sign(&signer)
            }
            8..=10 => {
                let request = self.with_id(m::METHOD_CHANNEL_BIND, m::CLASS_REQUEST);
                let channel = 0x4000 + u16::from(input.byte() % 3);
                request.channel(channel).peer(peer(input)).sign(&signer)
            }
            11..=12 => {
                let data = input.byte();
                let request = self.with_id(m::METHOD_SEND, m::CLASS_INDICATION);
                let data = vec![data; usize::from(data % 9)];
                request.peer(peer(input)).attr(ATTR_DATA.0, &data)
            }
            13..=14 => {
                let number = 0x4000 + u16::from(input.byte() % 3);
                let length = usize::from(input.byte() % 9);
                let mut bytes = channel_data(number, &vec![choice; length]);
                if from.transport().is_stream() {
                    bytes.resize(bytes.len().next_multiple_of(4), 0);
                }
                return (from, bytes);
            }
            _ => self.with_id(m::METHOD_BINDING, m::CLASS_REQUEST),
        };
        (from, request.bytes())
    }

    /// Attributes of any kind with any value, in any order and number, in a message that is signed all the same.
    fn soup(&mut self, input: &mut Input<'_>) -> (FiveTuple, Vec<u8>) {
        let (from, client) = Self::source(input);
        let method = input.one_of(&[
            m::METHOD_ALLOCATE,
            m::METHOD_CREATE_PERMISSION,
            m::METHOD_CHANNEL_BIND,
            m::METHOD_REFRESH,
            m::METHOD_SEND,
            m::METHOD_BINDING,
            m::METHOD_DATA,
            m::METHOD_CONNECT,
        ]);
        let class = match (method, input.byte()) {
            (m::METHOD_SEND | m::METHOD_DATA, 0..=199) | (_, 200..=207) => m::CLASS_INDICATION,
            (_, 208..=211) => m::CLASS_SUCCESS_RESPONSE,
            (_, 212..=215) => m::CLASS_ERROR_RESPONSE,
            _ => m::CLASS_REQUEST,
        };
        let signer = self.signer(input, from, client);
        let shape = input.byte();
        let mut request = self.with_id(method, class);
        if shape & 1 == 0 && method == m::METHOD_ALLOCATE {
            request = request.attr(ATTR_REQUESTED_TRANSPORT.0, &[17, 0, 0, 0]);
        }
        for _ in 0..shape >> 5 {
            request = attribute(request, input);
        }
        request = match shape & 6 {
            0 | 2 => request.sign(&signer),
            4 => request.integrity(&signer),
            _ => request,
        };
        if shape & 8 != 0 {
            // Behind the integrity: to be overlooked.
            request = attribute(request, input);
        }
        if shape & 16 != 0 {
            request = request.fingerprint();
        }
        (from, request.bytes())
    }

    /// A datagram from a client, and everything that comes of it.
    fn client(&mut self, from: FiveTuple, bytes: &[u8], back: Ms) {
        let now = self.tell(back);
        let proven = self.proves(from, bytes);
        let dropped: u64 = self.server.stats().dropped.iter().sum();
        let forward = self.server.handle_input(now, from, bytes);
        let counted = self.server.stats().dropped.iter().sum::<u64>() - dropped;
        assert_eq!(counted, u64::from(matches!(forward, Forward::Drop(_))));
        match &forward {
            Forward::ToPeer {
                allocation,
                peer,
                payload,
                dont_fragment: _,
            } => {
                let payload = &bytes[payload.start.into()..payload.end.into()];
                let address = peer.address();
                self.may_reach(*allocation, from, bytes, address, payload);
                let path = if peer.may_use_kernel() {
                    Path::Kernel
                } else {
                    assert!(peer.may_be_own_relay(), "no road leads to {address}");
                    Path::Hairpin
                };
                self.server.count_to_peer(path, payload.len());
            }
            Forward::ToClient { .. } => panic!("a client's datagram goes to no client"),
            Forward::Drop(reason) => self.note(format!("drop {reason:?}")),
            Forward::ToShard { .. } => panic!("there is one shard"),
            Forward::Consumed => {}
        }
        let silent = !matches!(forward, Forward::Consumed);
        let asked = self.drain(Some((from, bytes, silent)), proven, None);
        // Most relays open at once: which ones do not, the request's last byte says.
        if let Some(id) = asked
            && bytes.last().is_none_or(|last| last % 8 != 7)
        {
            self.open(id, 0, 0);
        }
    }

    /// RFC 8656 §9, §11.2 and §12.6, of the ledger.
    fn may_reach(
        &mut self,
        id: AllocationId,
        from: FiveTuple,
        bytes: &[u8],
        address: SocketAddr,
        payload: &[u8],
    ) {
        let (latest, stricter) = (self.latest, self.stricter);
        let held = (self.held.iter_mut().find(|held| held.id == id)).expect("an allocation");
        assert!(held.is_at(from), "it is another client's");
        assert!(held.answered, "it was never answered");
        assert!(
            held.serves(address, latest),
            "it is over, or in the other family"
        );
        held.packets[0] += 1;
        let what = if bytes[0] & 0xC0 == 0x40 {
            let number = u16::from_be_bytes([bytes[0], bytes[1]]);
            let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
            let (bound, until) = held.channels[&number];
            assert!(latest < until, "channel {number:#x} is over");
            assert_eq!(bound, address);
            assert_eq!(payload, &bytes[4..4 + length]);
            "to peer from channel"
        } else {
            assert_eq!(bytes[..2], [0x00, 0x16], "neither ChannelData nor Send");
            let until = held.permissions.get(&address.ip()).copied();
            assert!(until.is_some_and(|until| latest < until), "no permission");
            assert!(!is_refused(address, stricter), "policy refuses {address}");
            let data = attributes(bytes).find(|(kind, _)| *kind == ATTR_DATA.0);
            assert_eq!(payload, data.expect("DATA").1);
            let peers = peers_of(bytes);
            assert_eq!(peers.first(), Some(&address), "the first address counts");
            "to peer from send"
        };
        self.note(what);
    }

    /// A datagram from a peer.
    fn peer(&mut self, input: &mut Input<'_>, back: Ms) {
        let live = (self.held.iter()).map(|held| held.id).collect::<Vec<_>>();
        let id = match (input.byte(), live.len()) {
            (which, count @ 1..) if which < 224 => live[usize::from(which) % count],
            (which, _) => match self.ids.len() {
                0 => return,
                count => self.ids[usize::from(which) % count],
            },
        };
        let address = peer(input);
        let length = match input.byte() {
            253 => return self.icmp(input, id, address, back),
            254 => 65_500 + input.below(60),
            255 => 1200,
            length => usize::from(length % 9),
        };
        let data = vec![0x40; length];
        let from = FromPeer {
            peer: address,
            path: Path::Kernel,
            scope: turnix::access::Scope::Policy,
        };
        let now = self.tell(back);
        match self.server.handle_peer_input(now, id, from, &data) {
            Forward::ToClient { five_tuple, header } => {
                let (latest, stricter) = (self.latest, self.stricter);
                let held = (self.held.iter_mut().find(|held| held.id == id))
                    .expect("to the client of an allocation");
                assert!(held.tuple == five_tuple && !held.adrift);
                assert!(held.serves(address, latest));
                let until = held.permissions.get(&address.ip()).copied();
                assert!(until.is_some_and(|until| latest < until), "no permission");
                held.packets[1] += 1;
                let bound = (held.channels.iter())
                    .find(|(_, (bound, until))| *bound == address && latest < *until)
                    .map(|(number, _)| *number);
                let mut message = header.bytes().to_vec();
                message.extend_from_slice(&data);
                message.resize(message.len() + header.padding(), 0);
                let what = match bound {
                    Some(number) => {
                        assert_eq!(message[..2], number.to_be_bytes());
                        assert_eq!(message[2..4], (length as u16).to_be_bytes());
                        assert_eq!(message[4..4 + length], data);
                        "to client on channel"
                    }
                    None => {
                        // The stricter snapshot has rules with ports, which hold in both directions.
                        assert!(!stricter || !is_refused(address, true));
                        let reply = Reply::parse(&message);
                        assert_eq!((reply.peer(), reply.data()), (address, data));
                        "to client as indication"
                    }
                };
                self.note(what);
            }
            Forward::Drop(reason) => self.note(format!("drop {reason:?} of a peer")),
            other => panic!("{other:?} for a peer's datagram"),
        }
        assert_eq!(self.server.poll_output(), None, "peers get no answers");
    }

    /// An ICMP error about what was sent to a peer, or was not.
    fn icmp(&mut self, input: &mut Input<'_>, id: AllocationId, peer: SocketAddr, back: Ms) {
        let icmp = Icmp {
            kind: input.byte() % 16,
            code: input.byte(),
            data: input.word().into(),
        };
        let now = self.tell(back);
        self.server.handle_icmp(now, id, peer, icmp);
        let what = match self.server.poll_output() {
            None => "icmp error kept",
            Some(Output::ToClient {
                five_tuple,
                message,
            }) => {
                let held = (self.held.iter().find(|held| held.id == id))
                    .expect("to the client of an allocation");
                assert_eq!(held.tuple, five_tuple);
                assert!(held.serves(peer, self.latest));
                let until = held.permissions.get(&peer.ip()).copied();
                assert!(
                    until.is_some_and(|until| self.latest < until),
                    "no permission"
                );
                assert!(!self.stricter || !is_refused(peer, true));
                let reply = Reply::parse(&message);
                assert_eq!((reply.0.typ.value(), reply.peer()), (0x0017, peer));
                assert!(reply.attr(ATTR_DATA).is_none() && message.len() <= 56);
                "icmp error told"
            }
            other => panic!("{other:?} for an ICMP error"),
        };
        assert_eq!(self.server.poll_output(), None, "one message at most");
        self.note(what);
    }

    fn timeout(&mut self, back: Ms) {
        let now = self.tell(back);
        self.server.handle_timeout(now);
        let latest = self.base.mono + Duration::from_millis(self.latest);
        let next = self.server.poll_timeout();
        assert!(next.is_none_or(|at| at > now.mono && at > latest), "law 1");
        self.drain(None, false, None);
        for held in &self.held {
            let mut ends = held.relays.values();
            assert!(ends.all(|ends| self.latest < *ends), "a timer was missed");
        }
    }

    /// The outcome of a relay that was asked for.
    fn open(&mut self, id: AllocationId, outcome: u8, back: Ms) {
        let at = (self.held.iter().position(|held| held.id == id)).expect("it is asked for");
        let tuple = self.held[at].tuple;
        let family = self.held[at].opening.take().expect("it is waited for");
        let ip = match family {
            Family::V4 => ip(RELAY_V4),
            Family::V6 => ip(RELAY_V6),
        };
        let opened = match outcome % 16 {
            14 => Err(OpenError::Quota),
            15 => Err(OpenError::Capacity),
            _ => Ok(RelayedAddress(SocketAddr::new(ip, self.next_port))),
        };
        self.next_port = self.next_port.checked_add(1).unwrap_or(50_000);
        let now = self.tell(back);
        self.server
            .handle_relay_opened(now, id, opened.map(Into::into));
        let held = &mut self.held[at];
        match opened {
            Ok(RelayedAddress(address)) => held.opened.push(address),
            Err(_) => drop(held.relays.remove(&family)),
        }
        let output = self.server.poll_output();
        assert_eq!(self.server.poll_output(), None);
        let (five_tuple, message) = match output {
            Some(Output::ToClient {
                five_tuple,
                message,
            }) => (five_tuple, message),
            Some(Output::OpenRelay {
                id: other,
                family: second,
                reserve: false,
                token: None,
                ..
            }) => {
                // Both families: one after the other.
                assert_eq!((other, family, second), (id, Family::V4, Family::V6));
                held.relays.insert(second, Ms::MAX);
                held.opening = Some(second);
                return;
            }
            other => panic!("{other:?}, though its relay is open or cannot be"),
        };
        assert_eq!(five_tuple, tuple);
        let reply = Reply::parse(&message);
        let opened = held.opened.clone();
        match opened.first() {
            Some(_) => {
                assert_eq!((reply.code(), reply.all_relayed()), (0, opened));
                let secs = u64::from(reply.lifetime());
                assert!(
                    (1..=model::MAX_LIFETIME_SECS).contains(&secs),
                    "600 and more, but for a visit"
                );
                held.answered = true;
                let ends = self.latest + 1000 * secs;
                held.relays.values_mut().for_each(|known| *known = ends);
                if let Some(ticket) = reply.attr(AttrType(TICKET)) {
                    held.mobile = true;
                    self.tickets.push(ticket);
                }
            }
            None => {
                assert_ne!(reply.code(), 0);
                self.held.remove(at);
            }
        }
        self.note(format!("allocate {}", reply.code()));
    }

    /// Carries out what the server wants done: law 4, and everything that an answer may say. The relay asked for.
    fn drain(
        &mut self,
        asked: Option<(FiveTuple, &[u8], bool)>,
        proven: bool,
        ends_by: Option<EndReason>,
    ) -> Option<AllocationId> {
        let most = (4 + Settings::default().connections_per_allocation) * self.held.len() + 4;
        let mut closed: Vec<Held> = Vec::new();
        let mut opening = None;
        let mut answers = 0;
        let mut count = 0;
        while let Some(output) = self.server.poll_output() {
            count += 1;
            assert!(count <= most, "law 4");
            match output {
                Output::CloseRelay { id, family } => {
                    let at = self.held.iter().position(|held| held.id == id);
                    let at = at.expect("an allocation's");
                    let held = &mut self.held[at];
                    if held.relays.len() > 1 {
                        // What hangs off it goes with it.
                        let ends = held.relays.remove(&family).expect("closed once");
                        let ours = |ip: &IpAddr| Family::of(*ip) != family;
                        held.permissions.retain(|ip, _| ours(ip));
                        held.channels.retain(|_, (bound, _)| ours(&bound.ip()));
                        let asked = proven && asked.is_some_and(|(from, ..)| held.is_at(from));
                        // What waits for its answer may end earlier than it is known to.
                        let over = ends <= self.latest || !held.answered;
                        assert!(asked || over || ends_by.is_some());
                        continue;
                    }
                    assert!(held.relays.contains_key(&family), "closed once");
                    closed.push(self.held.remove(at));
                }
                Output::Ended(ended) => {
                    let last = closed.last().expect("closed, then the last word");
                    assert_eq!(last.id, ended.view.id);
                    assert!(last.answered, "it was never answered");
                    match ended.reason {
                        EndReason::Expired => assert!(self.latest >= last.ends(), "too early"),
                        EndReason::Released => {
                            let (from, bytes, _) = asked.expect("a request releases it");
                            assert!(proven && (last.is_at(from) || ticket_of(bytes).is_some()));
                        }
                        EndReason::ClientClosed if last.adrift => {
                            assert!(self.latest >= last.ends(), "too early");
                        }
                        reason => assert_eq!(Some(reason), ends_by),
                    }
                    let packets = ended.view.traffic.map(|traffic| traffic.packets);
                    assert_eq!(packets, last.packets, "the last word on its traffic");
                    self.note(format!("ended {:?}", ended.reason));
                }
                Output::ConnectPeer {
                    connection,
                    allocation,
                    peer,
                } => {
                    assert!(proven, "a connection for who has proven nothing");
                    let held = self.held.iter().find(|held| held.id == allocation);
                    let held = held.expect("an allocation to connect from");
                    assert!(held.answered && held.tuple.transport().is_stream());
                    assert!(!is_refused(peer.address(), self.stricter));
                    let now = self.tell(0);
                    let made = connection.0 % 2 == 0;
                    (self.server).handle_peer_connected(now, connection, made);
                    self.note(format!("connect {made}"));
                }
                Output::BindPeer { .. } => panic!("nobody guesses the id of a connection"),
                Output::ClosePeer { .. } => self.note("connection closed"),
                Output::OpenRelay { id, family, .. } => {
                    let (from, bytes, _) = asked.expect("a request asks for relays");
                    assert!(proven, "a relay for who has proven nothing");
                    assert!(!self.held.iter().any(|held| held.is_at(from)));
                    assert!(!self.ids.contains(&id), "an id names one allocation ever");
                    self.ids.push(id);
                    opening = Some(id);
                    self.held.push(Held {
                        id,
                        tuple: from,
                        next: None,
                        mobile: false,
                        adrift: false,
                        moved: None,
                        relays: HashMap::from([(
                            family,
                            self.latest + 1000 * model::MAX_LIFETIME_SECS,
                        )]),
                        opening: Some(family),
                        opened: Vec::new(),
                        request: bytes.to_vec(),
                        answered: false,
                        permissions: HashMap::new(),
                        channels: HashMap::new(),
                        packets: [0; 2],
                    });
                }
                Output::MoveClient { id, client } => {
                    let held = self.held.iter_mut().find(|held| held.id == id);
                    let held = held.expect("an allocation");
                    assert!(held.mobile && held.answered);
                    let mut counted = Ok(());
                    if let Some((from, bytes, _)) = asked {
                        assert!(proven && from.client().ip() == client && !held.is_at(from));
                        assert!(
                            ticket_of(bytes).is_some_and(|ticket| self.tickets.contains(&ticket))
                        );
                        if bytes[19] % 8 == 7 {
                            counted = Err(OpenError::Quota);
                        } else if held.adrift {
                            (held.tuple, held.adrift) = (from, false);
                        } else {
                            held.next = Some(from);
                        }
                    } else {
                        assert_eq!(ends_by, Some(EndReason::ClientClosed), "it goes back");
                        assert_eq!(held.tuple.client().ip(), client);
                    }
                    let now = self.base + Duration::from_millis(self.latest);
                    self.server.handle_client_moved(now, id, counted);
                    self.note("moved");
                }
                Output::Left { five_tuple } => {
                    let held = self.held.iter_mut().find(|held| held.is_at(five_tuple));
                    if let Some(held) = held {
                        assert!(held.mobile);
                        match held.next {
                            Some(next) if held.tuple == five_tuple => {
                                (held.tuple, held.next) = (next, None);
                                self.note("settled");
                            }
                            Some(_) => held.next = None,
                            // It ends.
                            None => {}
                        }
                    }
                }
                Output::ToClient {
                    five_tuple,
                    message,
                } => {
                    let (from, bytes, silent) = asked.expect("answers have requests");
                    answers += 1;
                    assert!(answers == 1 && !silent, "one answer at most");
                    assert_eq!(five_tuple, from, "answers go to who asked");
                    self.answered(from, bytes, &message, proven, &closed);
                }
            }
        }
        opening
    }

    fn answered(
        &mut self,
        from: FiveTuple,
        bytes: &[u8],
        message: &[u8],
        proven: bool,
        closed: &[Held],
    ) {
        let reply = Reply::parse(message);
        let code = reply.code();
        let method = reply.0.typ.method;
        assert_eq!(reply.0.transaction_id.0, bytes[8..20], "of this request");
        assert_ne!(from.client().port(), 0, "nothing is sent to port 0");
        let own = from.client() == world::addr("198.51.100.1:3478");
        assert!(
            !own || from.transport().is_stream(),
            "a loop with ourselves"
        );
        if reply.attr(ATTR_NONCE).is_some() {
            assert!(code == 401 || code == 438);
            let until = self.latest / 1000 + model::NONCE_LIFETIME_SECS;
            self.nonces.insert(reply.nonce(), (from, until));
            self.last_nonce.insert(from, reply.nonce());
        }
        if !proven {
            assert!(
                code != 0 || method == m::METHOD_BINDING,
                "{method} for who has proven nothing"
            );
            let offer = if from.transport().is_stream() {
                OFFER
            } else {
                0
            };
            let most = (SMALL + offer).max(bytes.len());
            assert!(message.len() <= most, "{} bytes", message.len());
            if from.transport() == Transport::Udp && !from.client().ip().is_loopback() {
                self.budget(from.client().ip());
            }
        }
        self.note(format!("{method} {code}"));
        if code != 0 || method == m::METHOD_BINDING {
            return;
        }
        let latest = self.latest;
        let ticket = ticket_of(bytes);
        let Some(held) = self.held.iter_mut().find(|held| held.is_at(from)) else {
            let released = (closed.last()).is_some_and(|held| held.is_at(from) || ticket.is_some());
            assert!(method == m::METHOD_REFRESH && released && reply.lifetime() == 0);
            return;
        };
        assert!(held.answered && latest < held.ends());
        match method {
            // The same answer to the same request.
            m::METHOD_ALLOCATE => {
                assert_eq!(held.request[8..20], bytes[8..20]);
                let there = |at: &SocketAddr| held.relays.contains_key(&Family::of(at.ip()));
                let opened: Vec<_> = held.opened.iter().copied().filter(there).collect();
                assert_eq!(reply.all_relayed(), opened);
                self.note("retransmitted allocate");
            }
            m::METHOD_REFRESH => {
                let secs = u64::from(reply.lifetime());
                let family = attributes(bytes)
                    .find(|(kind, _)| *kind == ATTR_REQUESTED_ADDRESS_FAMILY.0)
                    .map(|(_, value)| Family::ALL[usize::from(value[0]) - 1]);
                if secs == 0 {
                    let gone = family.expect("one of two has gone");
                    assert!(!held.relays.contains_key(&gone));
                    return;
                }
                assert!(
                    (1..=model::MAX_LIFETIME_SECS).contains(&secs),
                    "600 and more, but for a visit"
                );
                let again = ticket.is_some() && held.moved.as_deref() == Some(&bytes[8..20]);
                for (of, ends) in &mut held.relays {
                    if !again && family.is_none_or(|family| family == *of) {
                        *ends = latest + 1000 * secs;
                    }
                }
                if ticket.is_some() {
                    held.moved = Some(bytes[8..20].to_vec());
                    self.tickets.extend(reply.attr(AttrType(TICKET)));
                }
            }
            m::METHOD_CREATE_PERMISSION => {
                for peer in peers_of(bytes) {
                    held.permissions.insert(peer.ip(), latest + 300_000);
                }
            }
            m::METHOD_CHANNEL_BIND => {
                let number = attributes(bytes).find(|(kind, _)| *kind == ATTR_CHANNEL_NUMBER.0);
                let number = number.expect("CHANNEL-NUMBER").1;
                let number = u16::from_be_bytes([number[0], number[1]]);
                let address = *peers_of(bytes).first().expect("XOR-PEER-ADDRESS");
                let served = held.relays.contains_key(&Family::of(address.ip()));
                assert!(!is_refused(address, self.stricter) && served);
                let elsewhere = |(other, (bound, until)): (&u16, &(SocketAddr, Ms))| {
                    latest < *until && (*other == number) != (*bound == address)
                };
                assert!(!held.channels.iter().any(elsewhere), "bound elsewhere");
                (held.channels).insert(number, (address, latest + 600_000));
                held.permissions.insert(address.ip(), latest + 300_000);
            }
            // Over at once, or in half a minute.
            m::METHOD_CONNECT => assert!(reply.0.contains(ATTR_CONNECTION_ID)),
            other => panic!("success of {other}"),
        }
    }

    /// Answers to an address that has proven nothing, over every time up to now.
    fn budget(&mut self, ip: IpAddr) {
        self.answered.push((ip, self.latest));
        let mut count = 0;
        for (other, at) in self.answered.iter().rev() {
            count += u64::from(*other == ip);
            let secs = (self.latest - at) / 1000 + 1;
            // Two buckets: requests without credentials, and with wrong ones.
            let most = 2 * u64::from(RATE) * (10 + secs);
            assert!(count <= most, "{count} answers to {ip} in {secs} s");
        }
    }

    /// Whether the bytes are a request that a user signed who may, with a nonce of his own: by the `stun` crate.
    fn proves(&self, from: FiveTuple, bytes: &[u8]) -> bool {
        let value = |kind: AttrType| {
            let found = attributes(bytes).find(|(other, _)| *other == kind.0);
            found.map(|(_, value)| value)
        };
        let text = |kind| value(kind).and_then(|value| std::str::from_utf8(value).ok());
        let (Some(username), Some(realm), Some(nonce)) =
            (text(ATTR_USERNAME), value(ATTR_REALM), text(ATTR_NONCE))
        else {
            return false;
        };
        let owner = self.held.iter().any(|held| held.is_at(from));
        // What a ticket names knows its owner by the key as well.
        let named = ticket_of(bytes).is_some_and(|ticket| self.tickets.contains(&ticket));
        // The owner of an allocation is known by its key, whatever the realm is called by now.
        if realm != REALM.as_bytes() && !owner {
            return false;
        }
        let Some((tuple, until)) = self.nonces.get(nonce) else {
            return false;
        };
        if *tuple != from || self.latest / 1000 > *until {
            return false;
        }
        let mut message = m::Message::new();
        if message.unmarshal_binary(bytes).is_err() {
            return false;
        }
        let reply = Reply(message);
        let valid = self.credentials.iter().filter(|known| known.valid);
        (valid.filter(|known| known.username == username)).any(|known| {
            let over = (known.expires_secs).is_some_and(|secs| self.latest >= 1000 * secs);
            let removed = self.stricter && known.user == model::REMOVED_USER;
            let signer = Signer::new(&known.username, &known.password, nonce);
            (owner || named || !(over || removed)) && reply.is_signed_by(&signer)
        })
    }

    /// What the server counts is what the ledger holds.
    fn balance(&mut self) {
        assert_eq!(self.server.len(), self.held.len());
        let settled = self.held.iter().filter(|held| !held.adrift);
        assert!(settled.count() <= sources().len());
        assert_eq!(self.server.poll_timeout().is_none(), self.held.is_empty());
        let live = self.held.iter().filter(|held| held.answered);
        let counted: u64 = self.server.stats().live.as_flattened().iter().sum();
        assert_eq!(counted, live.clone().count() as u64);
        for held in &self.held {
            assert!(held.adrift || self.server.has_allocation(held.tuple));
            assert!((held.next).is_none_or(|next| self.server.has_allocation(next)));
            let permissions = held.permissions.values();
            let permissions = permissions.filter(|until| self.latest < **until).count();
            assert!(permissions <= model::MAX_PERMISSIONS);
            let channels = held.channels.values();
            let channels = channels.filter(|(_, until)| self.latest < *until).count();
            assert!(channels <= model::MAX_CHANNELS);
        }
        let (views, more) = self.server.views(self.base, 0, 1000);
        assert!(!more && views.len() == live.clone().count());
        for held in live {
            let view = views.iter().find(|view| view.id == held.id);
            let view = view.expect("a view of it");
            let there = |at: &SocketAddr| held.relays.contains_key(&Family::of(at.ip()));
            let opened = held.opened.iter().copied().filter(there);
            let seen = std::iter::once(view.relayed).chain(view.additional);
            assert!(opened.eq(seen));
            assert_eq!(view.client, held.tuple.client());
            assert!(view.permissions <= model::MAX_PERMISSIONS);
            assert!(view.channels <= model::MAX_CHANNELS);
        }
    }
}

/// MOBILITY-TICKET of a request.
fn ticket_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let found = attributes(bytes).find(|(kind, _)| *kind == TICKET);
    found.map(|(_, value)| value.to_vec())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Peers of the model, and any others.
fn peer(input: &mut Input<'_>) -> SocketAddr {
    match input.byte() {
        248..=251 => {
            let ip: [u8; 4] = input.array();
            SocketAddr::new(ip.into(), input.word())
        }
        252.. => {
            let ip: [u8; 16] = input.array();
            let ip = IpAddr::from(ip).to_canonical();
            SocketAddr::new(ip, input.word())
        }
        which => model::peer(OFTEN[usize::from(which) % OFTEN.len()]),
    }
}

/// What no snapshot may permit, looked up without the server's tables; of other peers this says nothing.
fn is_refused(peer: SocketAddr, stricter: bool) -> bool {
    let known = (0..model::PEERS.len()).find(|index| model::peer(*index) == peer);
    if known.is_some_and(|index| !model::PEERS[index].2) || peer.port() == 0 {
        return true;
    }
    if stricter && known.is_some_and(|index| matches!(index, 1 | 2)) {
        return true;
    }
    match peer.ip() {
        IpAddr::V4(ip) => {
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
        }
    }
}

/// An attribute with a likely kind and any value.
fn attribute(request: Request, input: &mut Input<'_>) -> Request {
    let kind = match input.byte() {
        252.. => input.word(),
        which => {
            let likely = [
                ATTR_XOR_PEER_ADDRESS.0,
                ATTR_CHANNEL_NUMBER.0,
                ATTR_LIFETIME.0,
                ATTR_DATA.0,
                ATTR_REQUESTED_TRANSPORT.0,
                ATTR_REQUESTED_ADDRESS_FAMILY.0,
                ATTR_EVEN_PORT.0,
                ATTR_DONT_FRAGMENT.0,
                ATTR_RESERVATION_TOKEN.0,
                ATTR_USERNAME.0,
                ATTR_REALM.0,
                ATTR_NONCE.0,
                ATTR_SOFTWARE.0,
                ATTR_MESSAGE_INTEGRITY.0,
                ATTR_XOR_RELAYED_ADDRESS.0,
                ATTR_ERROR_CODE.0,
                // ADDITIONAL-ADDRESS-FAMILY, PASSWORD-ALGORITHM, USERHASH, MOBILITY-TICKET.
                0x8000,
                0x001D,
                0x001E,
                0x8030,
            ];
            likely[usize::from(which) % likely.len()]
        }
    };
    if kind == ATTR_XOR_PEER_ADDRESS.0 && !input.once_in(8) {
        return request.peer(peer(input));
    }
    if kind == ATTR_CHANNEL_NUMBER.0 && !input.once_in(8) {
        return request.channel(0x4000 + u16::from(input.byte() % 3));
    }
    let length = usize::from(input.byte() % 24);
    request.attr(kind, input.take(length))
}

fn mutated(mut bytes: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    for _ in 0..=input.below(4) {
        let at = usize::from(input.byte());
        let length = bytes.len();
        match input.byte() {
            0..=7 => bytes.truncate(at % (length + 1)),
            8..=15 => bytes.extend_from_slice(input.take(at % 16)),
            16..=23 if length > 0 => {
                let count = (at / 8).min(length - at % length);
                bytes.copy_within(at % length..at % length + count, 0);
            }
            bits if length > 0 => bytes[at % length] ^= bits,
            _ => {}
        }
    }
    bytes
}

/// Attributes up to MESSAGE-INTEGRITY, read one after the other.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes.get(20..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&[a, b, c, d], behind) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([c, d]));
        let value = behind.get(..length)?;
        rest = behind.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_be_bytes([a, b]), value))
    })
    .take_while(|(kind, _)| *kind != ATTR_MESSAGE_INTEGRITY.0)
}

/// XOR-PEER-ADDRESS, every one of them.
fn peers_of(bytes: &[u8]) -> Vec<SocketAddr> {
    (attributes(bytes).filter(|(kind, _)| *kind == ATTR_XOR_PEER_ADDRESS.0))
        .map(|(_, value)| {
            let port = u16::from_be_bytes([value[2] ^ 0x21, value[3] ^ 0x12]);
            let mut octets = value[4..].to_vec();
            for (octet, mask) in octets.iter_mut().zip(&bytes[4..20]) {
                *octet ^= mask;
            }
            let ip = match <[u8; 4]>::try_from(&octets[..]) {
                Ok(ip) => IpAddr::from(ip),
                Err(_) => {
                    let ip: [u8; 16] = octets.try_into().expect("16 bytes");
                    IpAddr::from(ip).to_canonical()
                }
            };
            SocketAddr::new(ip, port)
        })
        .collect()
}
