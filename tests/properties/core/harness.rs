//! Two servers and the model in lock-step. Everything the servers do is read by the `stun` and `turn` crates.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use stun::attributes::*;
use stun::fingerprint::FINGERPRINT;
use stun::message as m;
use turnix::access::{Access, rest};
use turnix::base::{Family, FiveTuple, ListenerId, Now, RelayedAddress, Secret, Transport};
use turnix::turn::{
    AllocationId, DropReason, EndReason, Forward, FromPeer, OpenError, Opened, Output, Path,
    Protocol, Seed, Server, Settings, Snapshot,
};
use turnix::wire::attribute;

use super::model::{self, Credential, Event, Kind, Model, Ms, Nonce, Verdict, Why};
use super::operations::{CLIENTS, CREDENTIALS, NonceChoice, Opening, Operation, Signature, Step};
use crate::common::security::{MD5, Modern, SHA256};
use crate::common::wire::{Reply, Request, Signer, channel_data, padded_channel_data};
use crate::common::world::{self, EPOCH, OLD_SECRET, RELAY_V4, RELAY_V6, SECRET, VISITS, World};

/// What a run came across, to see that runs get somewhere.
#[derive(Debug, Default)]
pub struct Reach(pub BTreeSet<String>);

impl Reach {
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    fn note(&mut self, what: impl Into<String>) {
        self.0.insert(what.into());
    }
}

/// What the caller of the core counts by itself.
#[derive(Debug, Default)]
struct Tally {
    inputs: u64,
    to_peer: u64,
    to_client: (u64, u64),
    consumed: u64,
    dropped: u64,
    answers: u64,
}

pub struct Harness {
    pub server: Server,
    twin: Server,
    settings: Settings,
    /// The one in force.
    access: Arc<Access>,
    /// The ordinary snapshot, and a stricter one.
    accesses: [Arc<Access>; 2],
    base: Now,
    /// What the clock says, and the latest time that the servers were told.
    at: Ms,
    latest: Ms,
    model: Model,
    pub reach: Reach,
    tally: Tally,
    ids: Vec<AllocationId>,
    /// Allocations for which the caller holds a socket or was asked for one.
    sockets: Vec<(usize, u8)>,
    nonces: [Option<(String, u64)>; CLIENTS],
    last_allocate: [u64; CLIENTS],
    transactions: u64,
    next_port: u16,
    /// Explicit record of what clients were granted: (allocation, peer IP, channel's peer, when).
    grants: Vec<(usize, IpAddr, Option<SocketAddr>, Ms)>,
}

pub fn clients() -> [FiveTuple; CLIENTS] {
    [
        world::udp("192.0.2.7:4000"),
        world::tcp("192.0.2.7:4000"),
        world::udp("192.0.2.7:4001"),
        world::udp("[2001:db8::7]:4000"),
        world::tcp("192.0.2.9:4000"),
        FiveTuple::new(Transport::Tls, world::addr("192.0.2.9:4001"), ListenerId(2)),
    ]
}

pub fn credentials() -> Vec<Credential> {
    let rest = |secret: &str, user: &'static str, secs: u64| {
        let secret = Secret::new(secret.to_owned());
        let (username, password) = rest::mint(&secret, Some(user), EPOCH.as_secs() + secs);
        Credential {
            username,
            password,
            user,
            expires_secs: Some(secs),
            valid: true,
            looping: secret.expose() == VISITS,
        }
    };
    let fixed = |user: &'static str, password: &str, valid| Credential {
        username: user.into(),
        password: password.into(),
        user,
        expires_secs: None,
        valid,
        looping: false,
    };
    let credentials = vec![
        fixed("alice", "wonderland", true),
        fixed("bob", "builder", true),
        rest(SECRET, "carol", 700),
        rest(SECRET, "carol", 5000),
        rest(OLD_SECRET, "dave", 2000),
        fixed("alice", "wrong", false),
        rest(SECRET, "alice", 5000),
        rest("nobody's", "carol", 5000),
        rest(VISITS, "turnix-test:0123", 4000),
    ];
    assert_eq!(credentials.len(), CREDENTIALS);
    let mut credentials = credentials;
    credentials[7].valid = false;
    credentials
}

/// What the servers go by: as the tests have it, and without Bob and some peers.
pub fn accesses(strict_expiry: bool) -> [Arc<Access>; 2] {
    let mut settings = world::access_settings();
    settings.strict_expiry = strict_expiry;
    let ordinary = Access::new(&settings, world::own_addresses());
    settings
        .users
        .retain(|(user, _)| user != model::REMOVED_USER);
    settings.peers.deny = (model::DENIED_BY_STRICTER.iter())
        .map(|rule| rule.parse().unwrap())
        .collect();
    let stricter = Access::new(&settings, world::own_addresses());
    [Arc::new(ordinary), Arc::new(stricter)]
}

/// The credential each client signs with unless the operation says otherwise.
pub const OWN: [usize; CLIENTS] = [0, 2, 1, 4, 3, 8];

impl Harness {
    pub fn new(strict_expiry: bool) -> Self {
        let settings = Settings {
            max_lifetime: Duration::from_secs(model::MAX_LIFETIME_SECS),
            nonce_lifetime: Duration::from_secs(model::NONCE_LIFETIME_SECS),
            permissions_per_allocation: model::MAX_PERMISSIONS,
            channels_per_allocation: model::MAX_CHANNELS,
            // The model knows nothing of them; `connections.rs` has one of its own.
            protocol: Protocol {
                tcp_allocations: false,
                ..Protocol::default()
            },
            ..Settings::default()
        };
        let accesses = accesses(strict_expiry);
        let base = World::new().start;
        let server =
            |seed: Seed| Server::new(base, settings.clone(), seed, Arc::clone(&accesses[0]));
        let mut harness = Self {
            server: server(world::seed()),
            twin: server(world::seed()),
            settings: settings.clone(),
            access: Arc::clone(&accesses[0]),
            accesses,
            base,
            at: 0,
            latest: 0,
            model: Model::new(credentials(), strict_expiry),
            reach: Reach::default(),
            tally: Tally::default(),
            ids: Vec::new(),
            sockets: Vec::new(),
            nonces: Default::default(),
            last_allocate: [0; CLIENTS],
            transactions: 0,
            next_port: 50_000,
            grants: Vec::new(),
        };
        for client in 0..CLIENTS {
            harness.request(
                client,
                Kind::Refresh {
                    lifetime: None,
                    family: None,
                },
                None,
                Extra::default(),
                0,
            );
        }
        harness
    }

    pub fn step(&mut self, step: &Step) {
        let back = step.back_ms;
        match step.operation.clone() {
            Operation::Pass {
                ms,
                unnoticed: true,
            } => self.at += ms,
            Operation::Pass {
                ms,
                unnoticed: false,
            } => self.pass(ms),
            Operation::PassToEnd { after, unnoticed } => {
                if let Some(end) = self.model.next_end(self.at) {
                    let ms = end + after - 1 - self.at;
                    match unnoticed {
                        true => self.at += ms,
                        false => self.pass(ms),
                    }
                    self.probe();
                }
            }
            Operation::Timeout => self.timeout(back),
            Operation::Request {
                client,
                kind,
                signature,
                fingerprint,
                unknown_attribute,
                retransmitted,
                opening,
            } => {
                let extra = Extra {
                    fingerprint,
                    unknown_attribute,
                    retransmitted,
                };
                let opened = self.request(client, kind, signature, extra, back);
                if let Some(number) = opened {
                    self.open(number, opening, back);
                    // The second family's is asked for once the first is answered.
                    let half = |model: &Model| {
                        let one = model.of_client(client);
                        one.is_some_and(|one| one.number == number && one.relayed.is_none())
                    };
                    if !matches!(opening, Opening::Later) && half(&self.model) {
                        let second = match number % 6 {
                            0 => Opening::Quota,
                            1 => Opening::Capacity,
                            2 => Opening::Later,
                            _ => Opening::Opens,
                        };
                        self.open(number, second, back);
                    }
                }
                self.refill_nonce(client, signature);
            }
            Operation::OpenLater { which, outcome } => {
                // One that is opening, or one whose allocation has gone while it was.
                let waiting: Vec<usize> = (self.sockets.iter().map(|(number, _)| *number))
                    .filter(|number| {
                        self.model
                            .allocations
                            .iter()
                            .any(|a| a.number == *number && a.relayed.is_none())
                    })
                    .chain(
                        (0..self.ids.len())
                            .filter(|number| !self.sockets.iter().any(|(held, _)| held == number)),
                    )
                    .collect();
                if !waiting.is_empty() {
                    self.open(waiting[which % waiting.len()], outcome, back);
                }
            }
            Operation::Send {
                client,
                peer,
                bytes,
            } => self.send(client, peer, bytes, back),
            Operation::ChannelData {
                client,
                channel,
                bytes,
            } => {
                self.channel_data(client, channel, bytes, back);
            }
            Operation::FromPeer { which, peer, bytes } => self.from_peer(which, peer, bytes, back),
            Operation::ClientClosed { client } => {
                let now = self.tell(back);
                let tuple = clients()[client];
                self.server.handle_client_closed(now, tuple);
                self.twin.handle_client_closed(now, tuple);
                let expected = self.model.client_closed(self.latest, client);
                self.expect(expected);
            }
            Operation::Administrative { which } => self.end(which, Why::Administrative, back),
            Operation::RelayFailed { which } => self.end(which, Why::RelayFailed, back),
            Operation::HandOver => self.hand_over(),
            Operation::SetAccess { stricter } => {
                let access = &self.accesses[usize::from(stricter)];
                let access = Arc::clone(access);
                self.access = Arc::clone(&access);
                let now = self.tell(back);
                self.server.set_access(now, Arc::clone(&access));
                self.twin.set_access(now, access);
                let mut numbers: Vec<usize> = (0..self.ids.len()).collect();
                numbers.sort_by_key(|number| self.ids[*number].slot);
                let expected = self.model.set_access(self.latest, stricter, &numbers);
                self.expect(expected);
            }
        }
        self.check_counts();
    }

    /// Law 5: a server that is restored from the other's snapshot goes on like the other.
    fn hand_over(&mut self) {
        let now = self.base + Duration::from_millis(self.latest);
        let bytes = self.twin.snapshot(now, |_| true).encode();
        let snapshot = Snapshot::decode(&bytes).expect("what was encoded");
        let (settings, access) = (self.settings.clone(), Arc::clone(&self.access));
        let families = world::seed().families;
        self.twin = Server::restore(now, settings, families, access, snapshot);
        if !self.ids.is_empty() {
            self.reach.note("handed over");
        }
    }

    /// Tries every road that the model knows of, open or just closed.
    fn probe(&mut self) {
        for allocation in self.model.allocations.clone() {
            for (channel, ..) in &allocation.channels {
                self.channel_data(allocation.client, *channel, 8, 0);
            }
            let known = |peer: &usize| {
                let ip = model::peer(*peer).ip();
                allocation.permissions.iter().any(|(known, _)| *known == ip)
            };
            for peer in (0..model::PEERS.len()).filter(known) {
                self.send(allocation.client, peer, 8, 0);
                self.from_peer_to(allocation.number, peer, 8, 0);
            }
        }
    }

    /// A client's nonce that is over is replaced at once, as clients do.
    fn refill_nonce(&mut self, client: usize, signature: Option<Signature>) {
        let own = signature.is_some_and(|signature| matches!(signature.nonce, NonceChoice::Own));
        let over =
            (self.nonces[client].as_ref()).is_some_and(|(_, until)| *until < self.latest / 1000);
        if own && over {
            self.request(
                client,
                Kind::Refresh {
                    lifetime: None,
                    family: None,
                },
                None,
                Extra::default(),
                0,
            );
        }
    }

    /// Time as the servers are told it, `back` ms late; they and the model go by the latest they heard of.
    fn tell(&mut self, back: Ms) -> Now {
        let at = self.at.saturating_sub(back);
        self.latest = self.latest.max(at);
        self.base + Duration::from_millis(at)
    }

    fn ms(&self, at: std::time::Instant) -> Ms {
        at.saturating_duration_since(self.base.mono).as_millis() as Ms
    }

    fn pass(&mut self, ms: Ms) {
        let target = self.at + ms;
        while let Some(at) = self
            .server
            .poll_timeout()
            .map(|at| self.ms(at))
            .filter(|at| *at <= target)
        {
            self.at = self.at.max(at);
            self.timeout(0);
        }
        self.at = target;
        let missed = self.model.timeout(target);
        assert_eq!(missed, [], "no timer was set for the end of an allocation");
    }

    fn timeout(&mut self, back: Ms) {
        let now = self.tell(back);
        self.server.handle_timeout(now);
        self.twin.handle_timeout(now);
        let next = self.server.poll_timeout();
        let latest = self.base.mono + Duration::from_millis(self.latest);
        assert!(next.is_none_or(|at| at > now.mono && at > latest), "law 1");
        let mut expected = self.model.timeout(self.latest);
        let most = 2 * self.sockets.len();
        let mut outputs = self.drain(most);
        // Several that end at once end in the order of their timers, which the model knows nothing of.
        let number = |event: &Event| match event {
            Event::Close(number, family) => (*number, usize::from(*family)),
            Event::Ended { allocation, .. } => (*allocation, 3),
            other => panic!("a timer caused {other:?}"),
        };
        for (at, event) in outputs.iter().enumerate() {
            if let Event::Ended { allocation, .. } = event {
                let before = at.checked_sub(1).map(|before| &outputs[before]);
                assert!(
                    matches!(before, Some(Event::Close(closed, _)) if closed == allocation),
                    "closed, then the last word"
                );
            }
        }
        outputs.sort_by_key(number);
        expected.sort_by_key(number);
        assert_eq!(outputs, expected);
        self.check_views();
    }

    /// Sends a request; the number of the allocation whose relay it asks for.
    fn request(
        &mut self,
        client: usize,
        kind: Kind,
        signature: Option<Signature>,
        extra: Extra,
        back: Ms,
    ) -> Option<usize> {
        self.transactions += 1;
        let mut transaction = self.transactions;
        if let Kind::Allocate { .. } = kind {
            if extra.retransmitted {
                transaction = self.last_allocate[client];
            }
            self.last_allocate[client] = transaction;
        }
        let signed = signature.map(|signature| {
            let credential = signature.credential.unwrap_or(OWN[client]);
            let (text, nonce) = match signature.nonce {
                NonceChoice::Own => self.nonce_of(client),
                NonceChoice::Of(other) if other == client => self.nonce_of(client),
                NonceChoice::Of(other) => (self.nonce_of(other).0, Nonce::Foreign),
                NonceChoice::Junk => ("0123456789abcdefghijklmn".to_owned(), Nonce::Foreign),
            };
            (credential, nonce, text)
        });
        let request = model::Request {
            client,
            kind: kind.clone(),
            signed: signed
                .as_ref()
                .map(|(credential, nonce, _)| (*credential, *nonce)),
            transaction,
            fingerprint: extra.fingerprint,
            unknown_attribute: extra.unknown_attribute,
        };
        let signer = signed.map(|(credential, _, text)| self.signer(credential, &text));
        let bytes = encode(&request, signer.as_ref());

        let late = self.is_late(back);
        let forward = self.input(client, &bytes, back);
        assert_eq!(forward, Forward::Consumed);
        let expected = self.model.request(self.latest, &request);
        self.grant(&request, &expected);
        if extra.retransmitted
            && matches!(
                expected[..],
                [Event::Answer {
                    method: "allocate",
                    code: 0,
                    ..
                }]
            )
        {
            self.reach.note("retransmitted allocate");
        }
        let opens = matches!(expected.last(), Some(Event::Open { .. }));
        if late && expected.len() > 1 {
            self.reach.note("ended by a request before its timer");
        }
        self.expect(expected);
        opens.then(|| self.ids.len() - 1)
    }

    fn grant(&mut self, request: &model::Request, expected: &[Event]) {
        let granted = matches!(expected.last(), Some(Event::Answer { code: 0, .. }));
        let Some(number) = self
            .model
            .of_client(request.client)
            .map(|a| a.number)
            .filter(|_| granted)
        else {
            return;
        };
        let at = self.latest;
        match &request.kind {
            Kind::CreatePermission(peers) => {
                let grants = peers
                    .iter()
                    .map(|index| (number, model::peer(*index).ip(), None, at));
                self.grants.extend(grants);
            }
            Kind::ChannelBind {
                peer: Some(index), ..
            } => {
                let peer = model::peer(*index);
                self.grants.push((number, peer.ip(), Some(peer), at));
            }
            _ => {}
        }
    }

    /// No datagram passes without a permission: a channel carries towards its peer for 600 s, everything else needs
    /// a grant for the peer's IP in the last 300 s.
    fn assert_granted(&self, number: usize, peer: SocketAddr, channel_to_peer: bool) {
        let granted = self.grants.iter().any(|(allocation, ip, bound, at)| {
            *allocation == number
                && (self.latest < at + 300_000 && *ip == peer.ip()
                    || channel_to_peer && self.latest < at + 600_000 && *bound == Some(peer))
        });
        assert!(granted, "forwarded without a permission for {peer}");
    }

    fn open(&mut self, number: usize, outcome: Opening, back: Ms) {
        let waiting =
            (self.model.allocations.iter()).find(|allocation| allocation.number == number);
        let family = waiting.map_or(1, |_| self.family(number));
        let ip: IpAddr = if family == 1 { RELAY_V4 } else { RELAY_V6 }
            .parse()
            .unwrap();
        let outcome = match outcome {
            Opening::Later => return,
            Opening::Opens => Ok(SocketAddr::new(ip, self.next_port)),
            Opening::Quota => Err((OpenError::Quota, 486)),
            Opening::Capacity => Err((OpenError::Capacity, 508)),
        };
        self.next_port = self.next_port.checked_add(1).unwrap_or(50_000);
        let orphan = waiting.is_none();
        match outcome {
            Ok(_) if orphan => {
                self.reach.note("late open closed");
                self.sockets.push((number, family));
            }
            Err(_) => self.sockets.retain(|socket| *socket != (number, family)),
            Ok(_) => {}
        }
        let now = self.tell(back);
        let id = self.ids[number];
        let opened = outcome
            .map(|relayed| Opened {
                relayed: RelayedAddress(relayed),
                token: (self.model.reserves(number)).then(|| model::token(number)),
            })
            .map_err(|(error, _)| error);
        self.server.handle_relay_opened(now, id, opened);
        self.twin.handle_relay_opened(now, id, opened);
        let expected = self
            .model
            .opened(self.latest, number, outcome.map_err(|(_, code)| code));
        self.expect(expected);
    }

    fn family(&self, number: usize) -> u8 {
        self.model.family(number)
    }

    fn end(&mut self, which: usize, why: Why, back: Ms) {
        if self.ids.is_empty() {
            return;
        }
        let number = which % self.ids.len();
        let id = self.ids[number];
        let now = self.tell(back);
        let family = Family::ALL[(which / 7 + number) % 2];
        let expected = match why {
            Why::RelayFailed => {
                let family = family as u8 + 1;
                self.model.fail(self.latest, number, family, why)
            }
            _ => self.model.end(self.latest, number, why),
        };
        match why {
            Why::RelayFailed => {
                self.server.handle_relay_failed(now, id, family);
                self.twin.handle_relay_failed(now, id, family);
            }
            _ => {
                let there = self
                    .server
                    .end_allocation(now, id, EndReason::Administrative);
                let twin = self.twin.end_allocation(now, id, EndReason::Administrative);
                assert_eq!((there, twin), (!expected.is_empty(), !expected.is_empty()));
            }
        }
        self.expect(expected);
    }

    fn send(&mut self, client: usize, peer: usize, bytes: usize, back: Ms) {
        let address = model::peer(peer);
        let data = payload(bytes, self.tally.inputs);
        self.transactions += 1;
        let message = with_id(m::METHOD_SEND, m::CLASS_INDICATION, self.transactions)
            .peer(address)
            .attr(ATTR_DATA.0, &data)
            .bytes();
        let late = self.is_late(back);
        let forward = self.input(client, &message, back);
        let expected = self.model.send(self.latest, client, peer, bytes);
        if self.judge(&expected, &forward, &message, &data, address, late) {
            self.reach.note("to peer from send");
            self.assert_granted(self.model.of_client(client).unwrap().number, address, false);
        }
        self.expect(Vec::new());
    }

    fn channel_data(&mut self, client: usize, channel: u16, bytes: usize, back: Ms) {
        let data = payload(bytes, self.tally.inputs);
        let message = if clients()[client].transport().is_stream() {
            padded_channel_data(channel, &data)
        } else {
            channel_data(channel, &data)
        };
        let late = self.is_late(back);
        let forward = self.input(client, &message, back);
        let expected = self.model.channel_data(self.latest, client, channel, bytes);
        let address = match expected {
            Verdict::ToPeer(_, address) => address,
            _ => model::peer(0),
        };
        if self.judge(&expected, &forward, &message, &data, address, late) {
            self.reach.note("to peer from channel");
            self.assert_granted(self.model.of_client(client).unwrap().number, address, true);
        }
        self.expect(Vec::new());
    }

    fn from_peer(&mut self, which: usize, peer: usize, bytes: usize, back: Ms) {
        if self.ids.is_empty() {
            return;
        }
        // Mostly to an allocation that lives; ids of the dead have to miss.
        let number = match self.model.allocations.len() {
            0 => which % self.ids.len(),
            live if !which.is_multiple_of(8) => self.model.allocations[which / 8 % live].number,
            _ => which / 8 % self.ids.len(),
        };
        self.from_peer_to(number, peer, bytes, back);
    }

    fn from_peer_to(&mut self, number: usize, peer: usize, bytes: usize, back: Ms) {
        let address = model::peer(peer);
        let data = payload(bytes, self.tally.inputs);
        let from = FromPeer {
            peer: address,
            path: Path::Kernel,
            scope: turnix::access::Scope::Policy,
        };
        let late = self.is_late(back);
        let now = self.tell(back);
        let id = self.ids[number];
        let forward = self.server.handle_peer_input(now, id, from, &data);
        assert_eq!(
            forward,
            self.twin.handle_peer_input(now, id, from, &data),
            "determinism"
        );
        self.count(&forward, &data);
        let expected = self.model.from_peer(self.latest, number, peer, bytes);
        let passed = self.judge(&expected, &forward, &data, &data, address, late);
        if passed {
            self.assert_granted(number, address, false);
        }
        self.expect(Vec::new());
    }

    /// Compares a verdict with the model's; whether the datagram went through.
    fn judge(
        &mut self,
        expected: &Verdict,
        forward: &Forward,
        input: &[u8],
        data: &[u8],
        peer: SocketAddr,
        late: bool,
    ) -> bool {
        let dropped = match expected {
            Verdict::ToPeer(number, address) => {
                let Forward::ToPeer {
                    allocation,
                    peer,
                    payload,
                    dont_fragment: false,
                } = forward
                else {
                    panic!("{forward:?} instead of {expected:?}");
                };
                assert_eq!((*allocation, peer.address()), (self.ids[*number], *address));
                let payload = usize::from(payload.start)..usize::from(payload.end);
                assert_eq!(&input[payload], data);
                return true;
            }
            Verdict::ChannelData(client, _) | Verdict::DataIndication(client) => {
                let Forward::ToClient { five_tuple, header } = forward else {
                    panic!("{forward:?} instead of {expected:?}");
                };
                assert_eq!(*five_tuple, clients()[*client]);
                let mut message = header.bytes().to_vec();
                message.extend_from_slice(data);
                message.resize(message.len() + header.padding(), 0);
                self.read_by_others(expected, &message, data, peer);
                return true;
            }
            Verdict::NoAllocation => DropReason::NoAllocation,
            Verdict::NoChannel => DropReason::NoChannel,
            Verdict::NoPermission => DropReason::NoPermission,
            Verdict::PeerDenied => DropReason::PeerDenied,
            Verdict::Family => DropReason::Family,
        };
        assert_eq!(*forward, Forward::Drop(dropped));
        self.reach.note(format!("drop {dropped:?}"));
        if late {
            self.reach.note(format!("drop {dropped:?} when late"));
        }
        false
    }

    fn read_by_others(
        &mut self,
        expected: &Verdict,
        message: &[u8],
        data: &[u8],
        peer: SocketAddr,
    ) {
        match expected {
            Verdict::ChannelData(client, channel) => {
                let mut read = turn::proto::chandata::ChannelData {
                    raw: message.to_vec(),
                    ..Default::default()
                };
                read.decode().expect("ChannelData");
                assert_eq!((read.number.0, &read.data[..]), (*channel, data));
                let padded = clients()[*client].transport().is_stream();
                let length = if padded {
                    (4 + data.len()).next_multiple_of(4)
                } else {
                    4 + data.len()
                };
                assert_eq!(message.len(), length);
                self.reach.note("to client on channel");
            }
            _ => {
                let reply = Reply::parse(message);
                assert_eq!(
                    reply.0.typ,
                    m::MessageType::new(m::METHOD_DATA, m::CLASS_INDICATION)
                );
                assert_eq!((reply.peer(), reply.data()), (peer, data.to_vec()));
                self.reach.note("to client as indication");
            }
        }
    }

    /// Any bytes from a client, to both servers.
    pub fn input(&mut self, client: usize, bytes: &[u8], back: Ms) -> Forward {
        let now = self.tell(back);
        let tuple = clients()[client];
        let forward = self.server.handle_input(now, tuple, bytes);
        assert_eq!(
            forward,
            self.twin.handle_input(now, tuple, bytes),
            "determinism"
        );
        self.count(&forward, &[]);
        forward
    }

    fn count(&mut self, forward: &Forward, from_peer: &[u8]) {
        self.tally.inputs += 1;
        match forward {
            Forward::ToPeer { payload, .. } => {
                self.tally.to_peer += 1;
                for server in [&mut self.server, &mut self.twin] {
                    server.count_to_peer(Path::Kernel, payload.len());
                }
            }
            Forward::ToClient { .. } => {
                self.tally.to_client.0 += 1;
                self.tally.to_client.1 += from_peer.len() as u64;
            }
            Forward::Consumed => self.tally.consumed += 1,
            Forward::Drop(_) => self.tally.dropped += 1,
            Forward::ToShard { .. } => panic!("no client has a ticket"),
        }
    }

    fn expect(&mut self, expected: Vec<Event>) {
        let events = self.drain(8);
        assert_eq!(events, expected);
    }

    /// Law 2, and law 4's bound.
    fn drain(&mut self, most: usize) -> Vec<Event> {
        let mut outputs = Vec::new();
        while let Some(output) = self.server.poll_output() {
            assert_eq!(
                Some(&output),
                self.twin.poll_output().as_ref(),
                "determinism"
            );
            outputs.push(output);
        }
        assert_eq!(self.twin.poll_output(), None, "determinism");
        assert_eq!(
            self.server.poll_timeout(),
            self.twin.poll_timeout(),
            "determinism"
        );
        assert!(outputs.len() <= most, "law 4: {outputs:?}");
        outputs
            .into_iter()
            .map(|output| self.event(output))
            .collect()
    }

    fn event(&mut self, output: Output) -> Event {
        match output {
            Output::ToClient {
                five_tuple,
                message,
            } => self.answer(five_tuple, &message),
            Output::OpenRelay {
                id,
                family,
                even_port,
                user,
                realm: _,
                scope: _,
                client,
                transport: _,
                reserve,
                token,
            } => {
                let known = self.ids.iter().position(|known| *known == id);
                let opening = |number: &usize| {
                    let mut all = self.model.allocations.iter();
                    all.any(|one| one.number == *number && one.relayed.is_none())
                };
                assert!(
                    known.is_none_or(|number| opening(&number)),
                    "an id names one allocation ever"
                );
                let taken = self.sockets.iter().any(|(number, of)| {
                    let other = self.ids[*number] != id || *of == family as u8 + 1;
                    self.ids[*number].slot == id.slot && other
                });
                assert!(!taken, "law 4: a slot is opened again before it was closed");
                let number = known.unwrap_or(self.ids.len());
                self.sockets.push((number, family as u8 + 1));
                if known.is_none() {
                    self.ids.push(id);
                }
                assert!(clients().iter().any(|tuple| tuple.client().ip() == client));
                let users = self
                    .model
                    .credentials
                    .iter()
                    .map(|credential| credential.user);
                Event::Open {
                    family: family as u8 + 1,
                    even: even_port,
                    user: users
                        .into_iter()
                        .find(|known| **known == *user)
                        .expect("a user"),
                    reserve,
                    token,
                }
            }
            Output::MoveClient { .. } | Output::Left { .. } => panic!("no client has a ticket"),
            Output::ConnectPeer { .. } | Output::BindPeer { .. } | Output::ClosePeer { .. } => {
                panic!("{output:?} without TCP allocations")
            }
            Output::CloseRelay { id, family } => {
                let socket = (self.number(id), family as u8 + 1);
                let held = self.sockets.iter().position(|held| *held == socket);
                self.sockets
                    .remove(held.expect("closed once, after it was asked for"));
                Event::Close(socket.0, socket.1)
            }
            Output::Ended(ended) => {
                self.reach.note(format!("ended {:?}", ended.reason));
                let traffic = ended
                    .view
                    .traffic
                    .map(|traffic| (traffic.packets, traffic.bytes));
                Event::Ended {
                    allocation: self.number(ended.view.id),
                    why: match ended.reason {
                        EndReason::Released => Why::Released,
                        EndReason::Expired => Why::Expired,
                        EndReason::ClientClosed => Why::ClientClosed,
                        EndReason::Administrative => Why::Administrative,
                        EndReason::RelayFailed => Why::RelayFailed,
                        EndReason::Revoked => Why::Revoked,
                        EndReason::ListenerClosed | EndReason::Shutdown => {
                            panic!("no listener closes and nobody shuts down")
                        }
                        EndReason::Abuse => panic!("abuse is noted and ends nothing"),
                    },
                    traffic,
                    lived: ended.duration.as_millis() as Ms,
                }
            }
        }
    }

    fn answer(&mut self, to: FiveTuple, message: &[u8]) -> Event {
        self.tally.answers += 1;
        let client = clients()
            .iter()
            .position(|tuple| *tuple == to)
            .expect("a client");
        let reply = Reply::parse(message);
        let code = reply.code();
        let method = match reply.0.typ.method {
            m::METHOD_BINDING => "binding",
            m::METHOD_ALLOCATE => "allocate",
            m::METHOD_REFRESH => "refresh",
            m::METHOD_CREATE_PERMISSION => "create_permission",
            m::METHOD_CHANNEL_BIND => "channel_bind",
            other => panic!("an answer to {other}"),
        };
        self.reach.note(format!("{method} {code}"));
        if reply.all_relayed().len() == 2 {
            self.reach.note("allocated in both families");
        }
        if reply.attr(AttrType(0x8001)).is_some() {
            self.reach.note("allocated in one family of two");
        }
        if reply.attr(ATTR_RESERVATION_TOKEN).is_some() {
            self.reach.note("reserved");
        }
        let challenge = reply.attr(ATTR_NONCE).is_some();
        if challenge {
            assert_eq!(
                reply.text(ATTR_REALM).as_deref(),
                Some(crate::common::wire::REALM)
            );
            let until = self.latest / 1000 + model::NONCE_LIFETIME_SECS;
            self.nonces[client] = Some((reply.nonce(), until));
        }
        let fingerprint = reply.attr(ATTR_FINGERPRINT).is_some();
        assert!(!fingerprint || FINGERPRINT.check(&reply.0).is_ok());
        if code == 0 && matches!(method, "binding" | "allocate") {
            assert_eq!(reply.mapped(), to.client());
        }
        let sha256 = reply.attr(AttrType(attribute::MESSAGE_INTEGRITY_SHA256));
        let signed_by = (reply.attr(ATTR_MESSAGE_INTEGRITY).or(sha256)).map(|_| {
            (0..CREDENTIALS)
                .map(|credential| (credential, self.signer(credential, "")))
                .find(|(_, signer)| reply.is_signed_by(signer) || modern(signer).has_signed(&reply))
                .expect("signed with somebody's key")
                .0
        });
        let transaction = u64::from_be_bytes(*reply.0.transaction_id.0.last_chunk().unwrap());
        Event::Answer {
            client,
            method,
            code,
            transaction,
            signed_by,
            challenge,
            fingerprint,
            lifetime: reply.attr(ATTR_LIFETIME).map(|_| reply.lifetime()),
            relayed: reply.all_relayed(),
            lacks: (reply.attr(AttrType(0x8001)))
                .map(|value| (value[0], u16::from(value[2]) * 100 + u16::from(value[3]))),
            token: (reply.attr(ATTR_RESERVATION_TOKEN))
                .map(|value| u64::from_be_bytes(value.try_into().expect("eight bytes"))),
        }
    }

    fn number(&self, id: AllocationId) -> usize {
        self.ids
            .iter()
            .position(|known| *known == id)
            .expect("a known id")
    }

    fn signer(&self, credential: usize, nonce: &str) -> Signer {
        let credential = &self.model.credentials[credential];
        Signer::new(&credential.username, &credential.password, nonce)
    }

    fn nonce_of(&self, client: usize) -> (String, Nonce) {
        let (text, until) = self.nonces[client]
            .clone()
            .expect("every client asked for one");
        (text, Nonce::Until(until))
    }

    /// Whether a timer should have fired by the time that the next input tells.
    fn is_late(&self, back: Ms) -> bool {
        let latest = self.latest.max(self.at.saturating_sub(back));
        self.server
            .poll_timeout()
            .is_some_and(|at| self.ms(at) <= latest)
    }

    /// Every input was forwarded, consumed or dropped and counted; no allocation is lost.
    pub fn check_counts(&self) {
        let Tally {
            inputs,
            to_peer,
            to_client,
            consumed,
            dropped,
            answers,
        } = &self.tally;
        assert_eq!(*inputs, to_peer + to_client.0 + consumed + dropped);
        let stats = self.server.stats();
        assert_eq!(stats, self.twin.stats(), "determinism");
        assert_eq!(stats.dropped.iter().sum::<u64>(), *dropped);
        let answered: u64 = stats.requests.as_flattened().as_flattened().iter().sum();
        assert_eq!(answered, *answers);
        let [peer, client] = stats.relayed.map(|paths| paths[Path::Kernel as usize]);
        assert_eq!(peer.packets, *to_peer);
        assert_eq!((client.packets, client.bytes), *to_client);

        let allocations = &self.model.allocations;
        assert_eq!(self.server.len(), allocations.len());
        assert_eq!(self.server.is_empty(), allocations.is_empty());
        let idle = self.server.poll_timeout().is_none();
        assert_eq!(idle, allocations.is_empty(), "a timer for each allocation");
        let live = allocations
            .iter()
            .filter(|allocation| allocation.relayed.is_some())
            .count();
        assert_eq!(stats.live.as_flattened().iter().sum::<u64>(), live as u64);
        for (client, tuple) in clients().into_iter().enumerate() {
            assert_eq!(
                self.server.has_allocation(tuple),
                self.model.of_client(client).is_some()
            );
        }
        let mut sockets = self.sockets.clone();
        sockets.sort_unstable();
        let mut asked: Vec<_> = allocations.iter().flat_map(|one| one.sockets()).collect();
        asked.sort_unstable();
        assert_eq!(sockets, asked, "one socket for each relayed address");
        for number in 0..self.ids.len() {
            assert_eq!(
                AllocationId::from_bits(self.ids[number].to_bits()),
                self.ids[number]
            );
        }
    }

    /// What operators see, right after timers fired.
    fn check_views(&self) {
        let now = self.base + Duration::from_millis(self.latest);
        let (views, more) = self.server.views(now, 0, 1000);
        assert!(!more);
        let live = self
            .model
            .allocations
            .iter()
            .filter(|allocation| allocation.relayed.is_some());
        assert_eq!(views.len(), live.clone().count());
        for allocation in live {
            let id = self.ids[allocation.number];
            let view = views
                .iter()
                .find(|view| view.id == id)
                .expect("a view of it");
            assert_eq!(view.client, clients()[allocation.client].client());
            assert_eq!(Some(view.relayed), allocation.relayed);
            let second = match allocation.second {
                model::Second::Live(address, _) => Some(address),
                _ => None,
            };
            assert_eq!(view.additional, second);
            assert_eq!(
                view.expires_unix,
                EPOCH + Duration::from_millis(allocation.ends_last())
            );
            let permissions = allocation
                .permissions
                .iter()
                .filter(|(_, until)| *until > self.latest);
            assert_eq!(view.permissions, permissions.count());
            let channels = allocation
                .channels
                .iter()
                .filter(|(_, _, until)| *until > self.latest);
            assert_eq!(view.channels, channels.count());
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Extra {
    fingerprint: bool,
    unknown_attribute: bool,
    retransmitted: bool,
}

/// A message with a transaction id of our choice, so that a run can be repeated.
pub fn with_id(method: m::Method, class: m::MessageClass, transaction: u64) -> Request {
    let mut request = Request::of_class(method, class);
    let id = &mut request.0.transaction_id.0;
    *id = [0; 12];
    id[4..].copy_from_slice(&transaction.to_be_bytes());
    request.0.write_header();
    request
}

fn encode(request: &model::Request, signer: Option<&Signer>) -> Vec<u8> {
    let start = |method| with_id(method, m::CLASS_REQUEST, request.transaction);
    let with = |built: Request, value: Option<Vec<u8>>, kind: AttrType| match value {
        Some(value) => built.attr(kind.0, &value),
        None => built,
    };
    let word = |byte: u8| vec![byte, 0, 0, 0];
    let secs = |lifetime: Option<u32>| lifetime.map(|secs| secs.to_be_bytes().to_vec());
    let mut built = match &request.kind {
        Kind::Binding => start(m::METHOD_BINDING),
        Kind::Allocate {
            transport,
            family,
            lifetime,
            even,
            dual,
            token,
        } => {
            let built = with(
                start(m::METHOD_ALLOCATE),
                transport.map(word),
                ATTR_REQUESTED_TRANSPORT,
            );
            let built = with(built, family.map(word), ATTR_REQUESTED_ADDRESS_FAMILY);
            let built = with(built, dual.then(|| word(2)), AttrType(0x8000));
            let token = token.map(|token| token.to_be_bytes().to_vec());
            let built = with(built, token, ATTR_RESERVATION_TOKEN);
            let even = even.map(|even| vec![u8::from(even) << 7]);
            with(
                with(built, secs(*lifetime), ATTR_LIFETIME),
                even,
                ATTR_EVEN_PORT,
            )
        }
        Kind::Refresh { lifetime, family } => {
            let built = with(start(m::METHOD_REFRESH), secs(*lifetime), ATTR_LIFETIME);
            with(built, family.map(word), ATTR_REQUESTED_ADDRESS_FAMILY)
        }
        Kind::CreatePermission(peers) => (peers.iter())
            .fold(start(m::METHOD_CREATE_PERMISSION), |built, index| {
                built.peer(model::peer(*index))
            }),
        Kind::ChannelBind { channel, peer } => {
            let built = start(m::METHOD_CHANNEL_BIND);
            let built = channel.map_or(built.clone(), |channel| built.channel(channel));
            peer.map_or(built.clone(), |index| built.peer(model::peer(index)))
        }
    };
    if request.unknown_attribute {
        built = built.attr(0x7F00, &[1, 2, 3, 4]);
    }
    if let Some(signer) = signer {
        // Every other client of a connection signs with SHA-256, also with a nonce that is none of its own: who signs otherwise
        // is not known by the key that its allocation keeps.
        let is_stream = clients()[request.client].transport().is_stream();
        built = if is_stream && request.client % 2 == 1 {
            modern(signer).sign(built)
        } else {
            built.sign(signer)
        };
    }
    if request.fingerprint {
        built = built.fingerprint();
    }
    built.bytes()
}

/// As a client of RFC 8489 signs, whose user has a password.
fn modern(signer: &Signer) -> Modern {
    let Signer {
        user,
        password,
        realm,
        nonce,
    } = signer.clone();
    Modern {
        user,
        password,
        realm,
        nonce,
        algorithms: Some([SHA256, MD5].concat()),
        algorithm: Some(SHA256),
        anonymous: false,
    }
}

fn payload(bytes: usize, salt: u64) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at ^ salt) as u8).collect()
}
