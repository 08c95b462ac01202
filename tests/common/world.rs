//! The core in virtual time: no socket, no clock. Relay sockets open at once unless the test says otherwise.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use turnix::access::peers::Settings as PeerSettings;
use turnix::access::{self, Access, Limits, OwnAddresses, PermittedPeer};
use turnix::base::{Family, FiveTuple, ListenerId, Now, RelayedAddress, Secret, Transport};
use turnix::turn::{
    AllocationId, ConnectionId, Ended, Forward, FromPeer, OpenError, Opened, Output, Path, Seed,
    Server, Settings,
};

use super::wire::{REALM, Reply, Request, Signer};

/// 2026-01-01, so that time-limited credentials look real.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600);

pub const RELAY_V4: &str = "198.51.100.1";
pub const RELAY_V6: &str = "2a00::1";

pub const USER: &str = "alice";
pub const PASSWORD: &str = "wonderland";
pub const SECRET: &str = "north";
pub const OLD_SECRET: &str = "south";

pub struct World {
    pub server: Server,
    pub start: Now,
    pub now: Now,
    /// Messages to clients that no test has taken yet.
    pub sent: Vec<(FiveTuple, Vec<u8>)>,
    pub opened: Vec<AllocationId>,
    pub even_ports: Vec<bool>,
    pub closed: Vec<AllocationId>,
    /// Families of relays that were asked for, and of those that were closed.
    pub opened_in: Vec<Family>,
    pub closed_in: Vec<Family>,
    /// What was asked of the latest relay beside: whether the port above it is kept, and which one that is kept is meant.
    pub reserve: (bool, Option<u64>),
    /// The token that answers a reservation.
    pub token: u64,
    pub ended: Vec<Ended>,
    /// Connections with peers that were asked for, and from whose relayed address.
    pub connects: Vec<(ConnectionId, AllocationId, PermittedPeer)>,
    /// Those that were bound, and to whom.
    pub bound: Vec<(ConnectionId, FiveTuple)>,
    /// Those that were to be closed.
    pub disconnects: Vec<ConnectionId>,
    /// What `OpenRelay` is answered with; `None` leaves it open.
    pub open: Option<Result<(), OpenError>>,
    pub access: Arc<Access>,
    /// Where clients moved to, as quotas count them, and what they are answered.
    pub counted: Vec<IpAddr>,
    pub moves: Result<(), OpenError>,
    /// Five-tuples that allocations moved away from.
    pub left: Vec<FiveTuple>,
    next_port: u16,
}

/// Signs for visits of the test page.
pub const VISITS: &str = "signs for visits";

pub fn access_settings() -> access::Settings {
    access::Settings {
        realm: REALM.into(),
        users: vec![
            (USER.into(), Secret::new(PASSWORD.into())),
            ("bob".into(), Secret::new("builder".into())),
        ],
        secrets: vec![Secret::new(SECRET.into()), Secret::new(OLD_SECRET.into())],
        visits: Some(Secret::new(VISITS.into())),
        strict_expiry: false,
        peers: PeerSettings::default(),
        limits: Limits::default(),
        oauth: access::oauth::Settings::default(),
        realms: Vec::new(),
    }
}

pub fn own_addresses() -> OwnAddresses {
    OwnAddresses {
        relays: vec![RELAY_V4.parse().unwrap(), RELAY_V6.parse().unwrap()],
        relay_ports: 49152..=65535,
        host: vec![RELAY_V4.parse().unwrap(), RELAY_V6.parse().unwrap()],
        service_ports: vec![3478, 443, 9641],
    }
}

pub fn seed() -> Seed {
    Seed {
        nonce_key: [7; 32],
        hash: [1, 2, 3, 4],
        families: vec![Family::V4, Family::V6],
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(Settings::default(), &access_settings(), seed())
    }

    pub fn with(settings: Settings, access: &access::Settings, seed: Seed) -> Self {
        Self::owning(settings, access, seed, own_addresses())
    }

    /// With addresses of its own that are not those of the other tests.
    pub fn owning(
        settings: Settings,
        access: &access::Settings,
        seed: Seed,
        own: OwnAddresses,
    ) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a base for virtual time; it never moves by itself"
        )]
        let mono = Instant::now();
        let now = Now { mono, unix: EPOCH };
        let access = Arc::new(Access::new(access, own));
        Self {
            server: Server::new(now, settings, seed, Arc::clone(&access)),
            start: now,
            now,
            sent: Vec::new(),
            opened: Vec::new(),
            even_ports: Vec::new(),
            closed: Vec::new(),
            opened_in: Vec::new(),
            closed_in: Vec::new(),
            reserve: (false, None),
            token: 0x0123_4567_89AB_CDEF,
            ended: Vec::new(),
            connects: Vec::new(),
            bound: Vec::new(),
            disconnects: Vec::new(),
            open: Some(Ok(())),
            access,
            counted: Vec::new(),
            moves: Ok(()),
            left: Vec::new(),
            next_port: 50_000,
        }
    }

    /// Moves time on, letting every timer fire at its own moment.
    pub fn pass(&mut self, by: Duration) {
        let target = self.now + by;
        while let Some(at) = self.server.poll_timeout().filter(|at| *at <= target.mono) {
            let by = at.saturating_duration_since(self.now.mono);
            self.now = self.now + by;
            self.timeout();
        }
        self.now = target;
    }

    /// Moves time on without telling the server: timers come late.
    pub fn pass_unnoticed(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    /// Fires timers, and holds law 1.
    pub fn timeout(&mut self) {
        self.server.handle_timeout(self.now);
        let next = self.server.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now.mono), "law 1: {next:?}");
        self.drain();
    }

    pub fn input(&mut self, from: FiveTuple, bytes: &[u8]) -> Forward {
        let forward = self.server.handle_input(self.now, from, bytes);
        self.drain();
        forward
    }

    pub fn peer_input(&mut self, to: AllocationId, peer: SocketAddr, bytes: &[u8]) -> Forward {
        let from = FromPeer {
            peer,
            path: Path::Kernel,
            scope: turnix::access::Scope::Policy,
        };
        let forward = self.server.handle_peer_input(self.now, to, from, bytes);
        self.drain();
        forward
    }

    pub fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::ToClient {
                    five_tuple,
                    message,
                } => self.sent.push((five_tuple, message)),
                Output::OpenRelay {
                    id,
                    family,
                    even_port,
                    reserve,
                    token,
                    ..
                } => {
                    self.opened.push(id);
                    self.opened_in.push(family);
                    self.reserve = (reserve, token);
                    self.even_ports.push(even_port);
                    if let Some(outcome) = self.open {
                        self.opened(id, family, outcome);
                    }
                }
                Output::CloseRelay { id, family } => {
                    self.closed.push(id);
                    self.closed_in.push(family);
                }
                Output::Ended(ended) => self.ended.push(*ended),
                Output::ConnectPeer {
                    connection,
                    allocation,
                    peer,
                } => self.connects.push((connection, allocation, peer)),
                Output::BindPeer {
                    connection,
                    five_tuple,
                } => self.bound.push((connection, five_tuple)),
                Output::ClosePeer { connection } => self.disconnects.push(connection),
                Output::MoveClient { id, client } => {
                    self.counted.push(client);
                    (self.server).handle_client_moved(self.now, id, self.moves);
                }
                Output::Left { five_tuple } => self.left.push(five_tuple),
            }
        }
    }

    pub fn opened(&mut self, id: AllocationId, family: Family, outcome: Result<(), OpenError>) {
        let ip: IpAddr = match family {
            Family::V4 => RELAY_V4.parse().unwrap(),
            Family::V6 => RELAY_V6.parse().unwrap(),
        };
        let opened = Opened {
            relayed: RelayedAddress(SocketAddr::new(ip, self.next_port)),
            token: self.reserve.0.then_some(self.token),
        };
        self.next_port += 1;
        self.server
            .handle_relay_opened(self.now, id, outcome.map(|()| opened));
    }

    /// Sends a request and takes its only answer.
    pub fn ask(&mut self, from: FiveTuple, request: &Request) -> Reply {
        let mut answers = self.ask_raw(from, &request.bytes());
        assert_eq!(answers.len(), 1, "exactly one answer");
        let reply = Reply::parse(&answers.remove(0));
        assert_eq!(reply.0.transaction_id, request.0.transaction_id);
        assert_eq!(reply.0.typ.method, request.0.typ.method);
        reply
    }

    /// The error code of the only answer to a request, 0 for success.
    pub fn code(&mut self, from: FiveTuple, request: &Request) -> u16 {
        self.ask(from, request).code()
    }

    /// Sends bytes and takes whatever is answered to that client.
    pub fn ask_raw(&mut self, from: FiveTuple, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.sent.clear();
        let forward = self.input(from, bytes);
        assert!(!matches!(forward, Forward::ToPeer { .. }));
        let (mine, others): (Vec<_>, Vec<_>) = self.sent.drain(..).partition(|(to, _)| *to == from);
        assert!(others.is_empty(), "answers go to who asked");
        mine.into_iter().map(|(_, message)| message).collect()
    }

    /// A nonce for `from`, by way of 401.
    pub fn nonce(&mut self, from: FiveTuple) -> String {
        let reply = self.ask(from, &Request::allocate());
        assert_eq!(reply.code(), 401);
        reply.nonce()
    }

    /// Alice with a fresh nonce.
    pub fn alice(&mut self, from: FiveTuple) -> Signer {
        Signer::new(USER, PASSWORD, &self.nonce(from))
    }

    /// The same for connections.
    pub fn allocate_tcp(&mut self, from: FiveTuple) -> (Signer, AllocationId, SocketAddr) {
        let alice = self.alice(from);
        let reply = self.ask(from, &Request::allocate_tcp().sign(&alice));
        assert_eq!(reply.code(), 0);
        (alice, *self.opened.last().unwrap(), reply.relayed())
    }

    /// Says what became of a connection; what is answered.
    pub fn connected(&mut self, connection: ConnectionId, made: bool) -> Vec<Reply> {
        self.sent.clear();
        self.server
            .handle_peer_connected(self.now, connection, made);
        self.drain();
        let sent = std::mem::take(&mut self.sent);
        sent.iter()
            .map(|(_, message)| Reply::parse(message))
            .collect()
    }

    /// A peer connects to the relayed address of `to`; the connection, if it may wait for the client.
    pub fn accepted(&mut self, to: AllocationId, peer: SocketAddr) -> Option<ConnectionId> {
        let own = peer.ip() == own_addresses().relays[0];
        let connection = (self.server).handle_peer_accepted(self.now, to, peer, own);
        self.drain();
        connection
    }

    /// The same where there is an allocation, by another method than Allocate.
    pub fn alice_at(&mut self, from: FiveTuple) -> Signer {
        let reply = self.ask(from, &Request::refresh(600));
        Signer::new(USER, PASSWORD, &reply.nonce())
    }

    /// Another server goes on with what this one has.
    pub fn hand_over(&mut self) {
        let snapshot = self.server.snapshot(self.now, |_| true);
        let families = vec![Family::V4, Family::V6];
        let access = Arc::clone(&self.access);
        let settings = Settings::default();
        self.server = Server::restore(self.now, settings, families, access, snapshot);
    }

    /// Alice's allocation with the default lifetime and IPv4.
    pub fn allocate(&mut self, from: FiveTuple) -> (Signer, AllocationId, SocketAddr) {
        let alice = self.alice(from);
        let reply = self.ask(from, &Request::allocate().sign(&alice));
        assert_eq!(reply.code(), 0);
        (alice, *self.opened.last().unwrap(), reply.relayed())
    }
}

/// A UDP client.
pub fn udp(client: &str) -> FiveTuple {
    FiveTuple::new(Transport::Udp, client.parse().unwrap(), ListenerId(0))
}

/// A TCP client.
pub fn tcp(client: &str) -> FiveTuple {
    FiveTuple::new(Transport::Tcp, client.parse().unwrap(), ListenerId(1))
}

pub fn addr(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
