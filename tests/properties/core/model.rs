//! What RFC 8656 and RFC 8489 say, as plain lists, linear scans and absolute milliseconds. Shares nothing with the core.

use std::net::{IpAddr, SocketAddr};

/// Milliseconds since the world's start.
pub type Ms = u64;

pub const MAX_PERMISSIONS: usize = 2;
pub const MAX_CHANNELS: usize = 2;
pub const MAX_LIFETIME_SECS: u64 = 3600;
pub const NONCE_LIFETIME_SECS: u64 = 900;

/// A credential. `expires_secs` counts from the world's start.
#[derive(Clone, Debug)]
pub struct Credential {
    pub username: String,
    pub password: String,
    pub user: &'static str,
    pub expires_secs: Option<u64>,
    pub valid: bool,
    /// It is a visit's: good for a loop through relayed addresses of its own, which no peer here is, and no longer than
    /// it lasts.
    pub looping: bool,
}

/// Peers, and what policy says of the IP and of the transport address.
pub const PEERS: [(&str, bool, bool); 8] = [
    ("8.8.8.8:5000", true, true),
    ("8.8.8.8:5001", true, true),
    ("9.9.9.9:5000", true, true),
    ("[2a01::5]:6000", true, true),
    ("10.0.0.1:5000", false, false),
    ("8.8.8.8:0", true, false),
    ("198.51.100.1:50001", true, true),
    ("198.51.100.1:3478", true, false),
];

/// Which of them are on the address that is relayed from.
pub const OWN_RELAYS: [usize; 2] = [6, 7];

/// Whom the stricter snapshot does not know, and what it refuses beside the rest: peer 2, and peer 1 by its port.
pub const REMOVED_USER: &str = "bob";
pub const DENIED_BY_STRICTER: [&str; 2] = ["9.9.9.9", "8.8.8.8:5001"];

pub fn peer(index: usize) -> SocketAddr {
    PEERS[index].0.parse().unwrap()
}

/// The nonce of a request, as far as the model needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonce {
    /// Ours and for this client, good until the end of that second.
    Until(u64),
    /// Made up, or for another client.
    Foreign,
}

/// What a request carries.
#[derive(Clone, Debug)]
pub struct Request {
    pub client: usize,
    pub kind: Kind,
    /// Index of the credential, and the nonce.
    pub signed: Option<(usize, Nonce)>,
    pub transaction: u64,
    pub fingerprint: bool,
    pub unknown_attribute: bool,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Binding,
    Allocate {
        transport: Option<u8>,
        family: Option<u8>,
        lifetime: Option<u32>,
        even: Option<bool>,
        dual: bool,
        token: Option<u64>,
    },
    Refresh {
        lifetime: Option<u32>,
        family: Option<u8>,
    },
    CreatePermission(Vec<usize>),
    ChannelBind {
        channel: Option<u16>,
        peer: Option<usize>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Released,
    Expired,
    ClientClosed,
    Administrative,
    Revoked,
    RelayFailed,
}

/// An observable effect. Allocations are numbered in the order in which their relays are asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Answer {
        client: usize,
        method: &'static str,
        code: u16,
        transaction: u64,
        signed_by: Option<usize>,
        challenge: bool,
        fingerprint: bool,
        lifetime: Option<u32>,
        /// IPv4 first.
        relayed: Vec<SocketAddr>,
        /// The family that could not be had, and why.
        lacks: Option<(u8, u16)>,
        token: Option<u64>,
    },
    Open {
        family: u8,
        even: bool,
        user: &'static str,
        reserve: bool,
        token: Option<u64>,
    },
    /// The relay of an allocation in a family.
    Close(usize, u8),
    Ended {
        allocation: usize,
        why: Why,
        /// Packets and bytes to peers, then to the client.
        traffic: [(u64, u64); 2],
        lived: Ms,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    ToPeer(usize, SocketAddr),
    ChannelData(usize, u16),
    DataIndication(usize),
    NoAllocation,
    NoChannel,
    NoPermission,
    PeerDenied,
    Family,
}

#[derive(Clone, Debug)]
pub struct Allocation {
    pub number: usize,
    pub client: usize,
    /// Once it is answered.
    pub relayed: Option<SocketAddr>,
    pub ends: Ms,
    pub second: Second,
    /// The first of two, before it is answered.
    half: Option<SocketAddr>,
    even: bool,
    reserves: bool,
    pub permissions: Vec<(IpAddr, Ms)>,
    pub channels: Vec<(u16, SocketAddr, Ms)>,
    family: u8,
    credential: usize,
    /// The credential that signed the Allocate: the success response is signed with it.
    transaction: u64,
    fingerprint: bool,
    granted: u32,
    created: Ms,
    traffic: [(u64, u64); 2],
}

/// The relayed address in the other family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Second {
    None,
    Wanted,
    Live(SocketAddr, Ms),
    Refused(u16),
}

/// The token of an allocation's reservation.
pub fn token(number: usize) -> u64 {
    0xD0D0_0000_0000 + number as u64
}

impl Allocation {
    /// When the relayed address in a family ends.
    pub fn ends_in(&self, family: u8) -> Option<Ms> {
        match self.second {
            _ if family == self.family => Some(self.ends),
            Second::Live(_, ends) if family == 3 - self.family => Some(ends),
            _ => None,
        }
    }

    /// When the last of it ends.
    pub fn ends_last(&self) -> Ms {
        self.ends.max(self.ends_in(3 - self.family).unwrap_or(0))
    }

    fn serves(&self, address: SocketAddr, now: Ms) -> bool {
        self.ends_in(family_of(address))
            .is_some_and(|ends| ends > now)
    }

    /// Relays that were asked for, IPv4 first.
    pub fn sockets(&self) -> Vec<(usize, u8)> {
        let both = match self.second {
            Second::Live(..) => true,
            Second::Wanted => self.half.is_some(),
            Second::None | Second::Refused(_) => false,
        };
        let other = both.then_some(3 - self.family);
        let families = [self.family].into_iter().chain(other);
        families.map(|family| (self.number, family)).collect()
    }

    fn granted(&self) -> Granted {
        let second = match self.second {
            Second::Live(address, _) => Some(address),
            _ => None,
        };
        Granted {
            lifetime: Some(self.granted),
            relayed: self.relayed.into_iter().chain(second).collect(),
            lacks: match self.second {
                Second::Refused(code) => Some((3 - self.family, code)),
                _ => None,
            },
            token: self.reserves.then(|| token(self.number)),
        }
    }
}

#[derive(Debug)]
pub struct Model {
    pub allocations: Vec<Allocation>,
    pub credentials: Vec<Credential>,
    /// Whether the stricter snapshot holds.
    pub stricter: bool,
    strict_expiry: bool,
    opened: usize,
}

impl Model {
    pub fn new(credentials: Vec<Credential>, strict_expiry: bool) -> Self {
        Self {
            allocations: Vec::new(),
            credentials,
            stricter: false,
            strict_expiry,
            opened: 0,
        }
    }

    pub fn of_client(&self, client: usize) -> Option<&Allocation> {
        (self.allocations.iter()).find(|allocation| allocation.client == client)
    }

    /// What policy says of a peer's IP.
    fn permits_ip(&self, index: usize, looping: bool) -> bool {
        if looping {
            return OWN_RELAYS.contains(&index);
        }
        PEERS[index].1 && !(self.stricter && index == 2)
    }

    /// What policy says of a peer's transport address.
    fn permits(&self, index: usize, looping: bool) -> bool {
        if looping && !OWN_RELAYS.contains(&index) {
            return false;
        }
        PEERS[index].2 && !(self.stricter && matches!(index, 1 | 2))
    }

    /// The next moment at which an allocation, a permission or a channel ends.
    pub fn next_end(&self, now: Ms) -> Option<Ms> {
        let ends = self.allocations.iter().flat_map(|allocation| {
            let permissions = allocation.permissions.iter().map(|(_, until)| *until);
            let channels = allocation.channels.iter().map(|(_, _, until)| *until);
            let second = allocation.ends_in(3 - allocation.family);
            (permissions.chain(channels).chain(second)).chain([allocation.ends])
        });
        ends.filter(|end| *end > now).min()
    }

    /// The family of a relay that is asked for: 1 or 2.
    pub fn family(&self, number: usize) -> u8 {
        let mut all = self.allocations.iter();
        all.find(|allocation| allocation.number == number)
            .map_or(1, |allocation| match allocation.half {
                Some(_) => 3 - allocation.family,
                None => allocation.family,
            })
    }

    /// Everything whose time has come is over.
    pub fn timeout(&mut self, now: Ms) -> Vec<Event> {
        let all: Vec<usize> = self.allocations.iter().map(|one| one.number).collect();
        all.into_iter()
            .flat_map(|number| self.lapse(now, number))
            .collect()
    }

    /// What of an allocation is over is over.
    fn lapse(&mut self, now: Ms, number: usize) -> Vec<Event> {
        let found = self.allocations.iter().find(|one| one.number == number);
        let Some(allocation) = found else {
            return Vec::new();
        };
        if allocation.ends_last() <= now {
            return self.end(now, number, Why::Expired);
        }
        let over = |family: &u8| allocation.ends_in(*family).is_some_and(|ends| ends <= now);
        match [1, 2].into_iter().find(over) {
            Some(family) => self.fail(now, number, family, Why::Expired),
            None => Vec::new(),
        }
    }

    /// The relay in one family is over; with it the allocation, if it has no other.
    pub fn fail(&mut self, now: Ms, number: usize, family: u8, why: Why) -> Vec<Event> {
        let found = self.allocations.iter_mut().find(|one| one.number == number);
        let Some(allocation) = found else {
            return Vec::new();
        };
        let Second::Live(address, ends) = allocation.second else {
            return match family == allocation.family {
                true => self.end(now, number, why),
                false => Vec::new(),
            };
        };
        allocation.second = Second::None;
        if family == allocation.family {
            allocation.family = 3 - family;
            allocation.relayed = Some(address);
            allocation.ends = ends;
        }
        let stays = |ip: IpAddr| family_of(SocketAddr::new(ip, 0)) != family;
        allocation.permissions.retain(|(ip, _)| stays(*ip));
        allocation
            .channels
            .retain(|(_, bound, _)| stays(bound.ip()));
        vec![Event::Close(number, family)]
    }

    /// Whether the port above that of an allocation is to be kept.
    pub fn reserves(&self, number: usize) -> bool {
        let mut all = self.allocations.iter();
        all.any(|allocation| allocation.number == number && allocation.reserves)
    }

    pub fn end(&mut self, now: Ms, number: usize, why: Why) -> Vec<Event> {
        let at = (self.allocations.iter()).position(|allocation| allocation.number == number);
        let Some(at) = at else {
            return Vec::new();
        };
        let allocation = self.allocations.remove(at);
        let closed = allocation.sockets().into_iter();
        let mut events: Vec<_> = closed
            .map(|(number, family)| Event::Close(number, family))
            .collect();
        if allocation.relayed.is_some() {
            events.push(Event::Ended {
                allocation: number,
                why,
                traffic: allocation.traffic,
                lived: now - allocation.created,
            });
        }
        events
    }

    /// Another snapshot holds: who is gone from it ends, in the order of `numbers`, and so does whatever it refuses.
    pub fn set_access(&mut self, now: Ms, stricter: bool, numbers: &[usize]) -> Vec<Event> {
        self.stricter = stricter;
        if !stricter {
            return Vec::new();
        }
        let mut events = Vec::new();
        for number in numbers {
            let allocation = (self.allocations.iter()).find(|one| one.number == *number);
            let credential = allocation.map(|one| &self.credentials[one.credential]);
            if credential.is_some_and(|one| one.expires_secs.is_none() && one.user == REMOVED_USER)
            {
                events.extend(self.end(now, *number, Why::Revoked));
            }
        }
        for allocation in &mut self.allocations {
            (allocation.permissions).retain(|(ip, _)| *ip != peer(2).ip());
            (allocation.channels).retain(|(_, bound, _)| ![peer(1), peer(2)].contains(bound));
        }
        events
    }

    pub fn client_closed(&mut self, now: Ms, client: usize) -> Vec<Event> {
        match self.of_client(client).map(|allocation| allocation.number) {
            Some(number) => self.end(now, number, Why::ClientClosed),
            None => Vec::new(),
        }
    }

    /// The relay was opened, or `Err` with the code that says why not.
    pub fn opened(
        &mut self,
        now: Ms,
        number: usize,
        outcome: Result<SocketAddr, u16>,
    ) -> Vec<Event> {
        // A socket that nobody waits for any more is closed again.
        let orphan = |number| match outcome {
            Ok(address) => vec![Event::Close(number, family_of(address))],
            Err(_) => Vec::new(),
        };
        let at = (self.allocations.iter()).position(|allocation| allocation.number == number);
        let Some(at) = at else {
            return orphan(number);
        };
        let user = self.credentials[self.allocations[at].credential].user;
        let allocation = &mut self.allocations[at];
        // The answer grants the whole lifetime, so it counts from the answer.
        let ends = now + 1000 * u64::from(allocation.granted);
        let answered = match (allocation.second, allocation.half, outcome) {
            (Second::Wanted, None, outcome) => {
                match outcome {
                    Ok(address) => allocation.half = Some(address),
                    Err(code) => {
                        allocation.second = Second::Refused(code);
                        allocation.family = 3 - allocation.family;
                    }
                }
                return vec![Event::Open {
                    family: 2,
                    even: allocation.even,
                    user,
                    reserve: false,
                    token: None,
                }];
            }
            (Second::Wanted, Some(first), outcome) => {
                allocation.second = match outcome {
                    Ok(address) => Second::Live(address, ends),
                    Err(code) => Second::Refused(code),
                };
                Ok(first)
            }
            (Second::Refused(code), _, Err(_)) => Err(code),
            (_, _, outcome) => outcome,
        };
        let mut code = 0;
        let mut granted = Granted::default();
        match answered {
            Ok(address) => {
                allocation.half = None;
                allocation.relayed = Some(address);
                allocation.ends = ends;
                granted = allocation.granted();
            }
            Err(refused) => code = refused,
        }
        let answer = Event::Answer {
            client: allocation.client,
            method: "allocate",
            code,
            transaction: allocation.transaction,
            signed_by: Some(allocation.credential),
            challenge: false,
            fingerprint: allocation.fingerprint,
            lifetime: granted.lifetime,
            relayed: granted.relayed,
            lacks: granted.lacks,
            token: granted.token,
        };
        if code != 0 {
            self.allocations.remove(at);
        }
        vec![answer]
    }

    pub fn request(&mut self, now: Ms, request: &Request) -> Vec<Event> {
        let mut events = Vec::new();
        // What is over is over, whether or not a timer said so.
        if !matches!(request.kind, Kind::Binding)
            && let Some(number) = self.of_client(request.client).map(|one| one.number)
        {
            events.extend(self.lapse(now, number));
        }
        let mut answer = |signed_by, outcome: Result<Granted, u16>| {
            let (code, granted) = match outcome {
                Ok(granted) => (0, granted),
                Err(code) => (code, Granted::default()),
            };
            let challenge = code == 401 || code == 438;
            events.push(Event::Answer {
                client: request.client,
                method: match request.kind {
                    Kind::Binding => "binding",
                    Kind::Allocate { .. } => "allocate",
                    Kind::Refresh { .. } => "refresh",
                    Kind::CreatePermission(_) => "create_permission",
                    Kind::ChannelBind { .. } => "channel_bind",
                },
                code,
                transaction: request.transaction,
                // RFC 8489 §9.2.4: a challenge is not signed.
                signed_by: if challenge { None } else { signed_by },
                challenge,
                fingerprint: request.fingerprint,
                lifetime: granted.lifetime,
                relayed: granted.relayed,
                lacks: granted.lacks,
                token: granted.token,
            });
        };
        if matches!(request.kind, Kind::Binding) {
            let outcome = if request.unknown_attribute {
                Err(420)
            } else {
                Ok(Granted::default())
            };
            answer(None, outcome);
            return events;
        }
        let credential = match self.authenticate(now, request) {
            Ok(credential) => credential,
            Err(code) => {
                answer(None, Err(code));
                return events;
            }
        };
        if let Kind::Allocate { .. } = request.kind {
            match self.allocate(now, request, credential) {
                Ok(Some(done)) => answer(Some(credential), done),
                Ok(None) => {}
                Err(open) => events.push(open),
            }
            return events;
        }
        let outcome = match self.owned(request.client, credential) {
            Err(code) => Err(code),
            Ok(_) if request.unknown_attribute => Err(420),
            Ok(at) => match &request.kind {
                Kind::Refresh { lifetime, family } => {
                    self.refresh(now, at, *lifetime, *family, credential)
                }
                Kind::CreatePermission(peers) => self.create_permission(now, at, peers),
                Kind::ChannelBind { channel, peer } => self.channel_bind(now, at, *channel, *peer),
                Kind::Binding | Kind::Allocate { .. } => unreachable!(),
            },
        };
        let released = match (&request.kind, &outcome) {
            (
                Kind::Refresh { family, .. },
                Ok(Granted {
                    lifetime: Some(0), ..
                }),
            ) => (self.of_client(request.client)).map(|one| (one.number, *family)),
            _ => None,
        };
        let ended = match released {
            Some((number, Some(family))) => self.fail(now, number, family, Why::Released),
            Some((number, None)) => self.end(now, number, Why::Released),
            None => Vec::new(),
        };
        answer(Some(credential), outcome);
        // The relay is closed before the client hears of it.
        let answer = events.pop();
        events.extend(ended);
        events.extend(answer);
        events
    }

    /// RFC 8489 §9.2.4.
    fn authenticate(&self, now: Ms, request: &Request) -> Result<usize, u16> {
        let (index, nonce) = request.signed.ok_or(401_u16)?;
        let credential = &self.credentials[index];
        if !credential.valid {
            return Err(401);
        }
        // The owner of an allocation keeps being the owner when its time-limited name is over.
        let owner = self.of_client(request.client).is_some_and(|allocation| {
            self.credentials[allocation.credential].username == credential.username
        });
        let over = credential
            .expires_secs
            .is_some_and(|expires| now >= expires * 1000);
        let removed = self.stricter && credential.user == REMOVED_USER;
        if (over || removed) && !owner {
            return Err(401);
        }
        match nonce {
            Nonce::Until(second) if now / 1000 <= second => Ok(index),
            _ => Err(438),
        }
    }

    /// RFC 8656 §7.2: an answer now, none, or a relay to open first.
    fn allocate(
        &mut self,
        now: Ms,
        request: &Request,
        credential: usize,
    ) -> Result<Option<Outcome>, Event> {
        let Kind::Allocate {
            transport,
            family,
            lifetime,
            even,
            dual,
            token,
        } = request.kind
        else {
            unreachable!()
        };
        if let Some(allocation) = self.of_client(request.client) {
            let foreign = !self.same_user(allocation, credential);
            if allocation.transaction != request.transaction || foreign {
                return Ok(Some(Err(437)));
            }
            return Ok(allocation.relayed.map(|_| Ok(allocation.granted())));
        }
        let refused = match (transport, family, even) {
            (None, ..) => Some(400),
            (Some(17), ..) if request.unknown_attribute => Some(420),
            (Some(17), family, even)
                if token.is_some() && (family.is_some() || even.is_some() || dual) =>
            {
                Some(400)
            }
            (Some(17), Some(_), _) if dual => Some(400),
            (Some(17), None, Some(true)) if dual => Some(400),
            (Some(17), None | Some(1 | 2), _) => None,
            (Some(17), ..) => Some(440),
            _ => Some(442),
        };
        if let Some(code) = refused {
            return Ok(Some(Err(code)));
        }
        let granted = granted(now, lifetime, &self.credentials[credential]);
        self.allocations.push(Allocation {
            number: self.opened,
            client: request.client,
            relayed: None,
            ends: now + 1000 * u64::from(granted),
            second: if dual { Second::Wanted } else { Second::None },
            half: None,
            even: even.is_some(),
            reserves: even == Some(true),
            permissions: Vec::new(),
            channels: Vec::new(),
            family: family.unwrap_or(1),
            credential,
            transaction: request.transaction,
            fingerprint: request.fingerprint,
            granted,
            created: now,
            traffic: [(0, 0); 2],
        });
        self.opened += 1;
        Err(Event::Open {
            family: family.unwrap_or(1),
            even: even.is_some(),
            user: self.credentials[credential].user,
            reserve: even == Some(true),
            token,
        })
    }

    fn is_looping(&self, allocation: &Allocation) -> bool {
        self.credentials[allocation.credential].looping
    }

    fn owned(&self, client: usize, credential: usize) -> Result<usize, u16> {
        let at = (self.allocations.iter())
            .position(|allocation| allocation.client == client && allocation.relayed.is_some())
            .ok_or(437_u16)?;
        if self.same_user(&self.allocations[at], credential) {
            Ok(at)
        } else {
            Err(441)
        }
    }

    fn same_user(&self, allocation: &Allocation, credential: usize) -> bool {
        let owner = &self.credentials[allocation.credential];
        let asking = &self.credentials[credential];
        owner.user == asking.user
            && owner.expires_secs.is_some() == asking.expires_secs.is_some()
            && owner.looping == asking.looping
    }

    /// RFC 8656 §8.2.
    fn refresh(
        &mut self,
        now: Ms,
        at: usize,
        lifetime: Option<u32>,
        family: Option<u8>,
        credential: usize,
    ) -> Result<Granted, u16> {
        let allocation = &mut self.allocations[at];
        if family.is_some_and(|family| allocation.ends_in(family).is_none()) {
            return Err(443);
        }
        let mut secs = 0;
        if lifetime != Some(0) {
            let over = (self.credentials[credential].expires_secs)
                .is_some_and(|expires| now >= expires * 1000);
            if (self.strict_expiry || self.credentials[credential].looping) && over {
                return Err(401);
            }
            secs = granted(now, lifetime, &self.credentials[credential]);
            let ends = now + 1000 * u64::from(secs);
            let meant = |of: u8| family.is_none_or(|family| family == of);
            if meant(allocation.family) {
                allocation.ends = ends;
            }
            if let Second::Live(_, until) = &mut allocation.second
                && meant(3 - allocation.family)
            {
                *until = ends;
            }
            allocation.credential = credential;
        }
        Ok(Granted {
            lifetime: Some(secs),
            ..Granted::default()
        })
    }

    /// RFC 8656 §10.2.
    fn create_permission(&mut self, now: Ms, at: usize, peers: &[usize]) -> Result<Granted, u16> {
        let looping = self.is_looping(&self.allocations[at]);
        let refused = (peers.iter()).any(|index| !self.permits_ip(*index, looping));
        let allocation = &mut self.allocations[at];
        if peers.is_empty() {
            return Err(400);
        }
        if peers
            .iter()
            .any(|index| allocation.ends_in(family_of(peer(*index))).is_none())
        {
            return Err(443);
        }
        if refused {
            return Err(403);
        }
        let before = allocation.permissions.clone();
        for index in peers {
            permit(&mut allocation.permissions, peer(*index).ip(), now);
        }
        if live(&allocation.permissions, now) > MAX_PERMISSIONS {
            allocation.permissions = before;
            return Err(508);
        }
        Ok(Granted::default())
    }

    /// RFC 8656 §12.2.
    fn channel_bind(
        &mut self,
        now: Ms,
        at: usize,
        channel: Option<u16>,
        index: Option<usize>,
    ) -> Result<Granted, u16> {
        let (Some(channel), Some(index)) = (channel, index) else {
            return Err(400);
        };
        let refused = !self.permits(index, self.is_looping(&self.allocations[at]));
        let allocation = &mut self.allocations[at];
        let address = peer(index);
        if !(0x4000..=0x4FFF).contains(&channel) {
            return Err(400);
        }
        allocation.channels.retain(|(_, _, until)| *until > now);
        let in_family = allocation.ends_in(family_of(address)).is_some();
        let channels = &mut allocation.channels;
        if channels
            .iter()
            .any(|(number, bound, _)| (*number == channel) != (*bound == address))
        {
            return Err(400);
        }
        if !in_family {
            return Err(443);
        }
        if refused {
            return Err(403);
        }
        let mut permissions = allocation.permissions.clone();
        permit(&mut permissions, address.ip(), now);
        let known = channels.iter().position(|(number, ..)| *number == channel);
        if live(&permissions, now) > MAX_PERMISSIONS
            || (known.is_none() && channels.len() >= MAX_CHANNELS)
        {
            return Err(508);
        }
        allocation.permissions = permissions;
        match known {
            Some(known) => channels[known].2 = now + 600_000,
            None => channels.push((channel, address, now + 600_000)),
        }
        Ok(Granted::default())
    }

    /// A Send indication (RFC 8656 §11.2).
    pub fn send(&mut self, now: Ms, client: usize, index: usize, bytes: usize) -> Verdict {
        let address = peer(index);
        let found = (self.allocations.iter())
            .position(|a| a.client == client && a.relayed.is_some() && a.ends_last() > now);
        let Some(at) = found else {
            return Verdict::NoAllocation;
        };
        let refused = !self.permits(index, self.is_looping(&self.allocations[at]));
        let allocation = &mut self.allocations[at];
        if !allocation.serves(address, now) {
            return Verdict::Family;
        }
        if refused {
            return Verdict::PeerDenied;
        }
        if !permitted(&allocation.permissions, address.ip(), now) {
            return Verdict::NoPermission;
        }
        count(&mut allocation.traffic[0], bytes);
        Verdict::ToPeer(allocation.number, address)
    }

    /// ChannelData (RFC 8656 §12.6).
    pub fn channel_data(&mut self, now: Ms, client: usize, channel: u16, bytes: usize) -> Verdict {
        let allocation =
            (self.allocations.iter_mut()).find(|a| a.client == client && a.relayed.is_some());
        let bound = allocation.and_then(|allocation| {
            let binding = (allocation.channels.iter())
                .find(|(number, _, until)| *number == channel && *until > now)?
                .1;
            if !allocation.serves(binding, now) {
                return None;
            }
            Some((allocation, binding))
        });
        match bound {
            None => Verdict::NoChannel,
            Some((allocation, address)) => {
                count(&mut allocation.traffic[0], bytes);
                Verdict::ToPeer(allocation.number, address)
            }
        }
    }

    /// A peer's datagram (RFC 8656 §11.3, §12.7).
    pub fn from_peer(&mut self, now: Ms, number: usize, index: usize, bytes: usize) -> Verdict {
        let from = peer(index);
        // Of the two snapshots the stricter one has rules with ports, which hold in both directions.
        let refused = self.stricter && !self.permits(index, false);
        let Some(at) = (self.allocations.iter()).position(|a| a.number == number) else {
            return Verdict::NoAllocation;
        };
        // What comes through the kernel comes from no visit.
        if self.is_looping(&self.allocations[at]) {
            return Verdict::PeerDenied;
        }
        let allocation = &mut self.allocations[at];
        if allocation.relayed.is_none()
            || !allocation.serves(from, now)
            || !permitted(&allocation.permissions, from.ip(), now)
        {
            return Verdict::NoPermission;
        }
        let channel =
            (allocation.channels.iter()).find(|(_, bound, until)| *bound == from && *until > now);
        if channel.is_none() && refused {
            return Verdict::PeerDenied;
        }
        count(&mut allocation.traffic[1], bytes);
        match channel {
            Some((channel, ..)) => Verdict::ChannelData(allocation.client, *channel),
            None => Verdict::DataIndication(allocation.client),
        }
    }
}

type Outcome = Result<Granted, u16>;

#[derive(Clone, Debug, Default)]
struct Granted {
    lifetime: Option<u32>,
    relayed: Vec<SocketAddr>,
    lacks: Option<(u8, u16)>,
    token: Option<u64>,
}

fn granted(now: Ms, requested: Option<u32>, credential: &Credential) -> u32 {
    let granted = (requested.unwrap_or(600)).clamp(600, MAX_LIFETIME_SECS as u32);
    match credential.expires_secs {
        Some(expires) if credential.looping => {
            let left = (expires * 1000).saturating_sub(now) / 1000;
            granted.min(left.max(1) as u32)
        }
        _ => granted,
    }
}

pub fn family_of(address: SocketAddr) -> u8 {
    if address.is_ipv4() { 1 } else { 2 }
}

fn count(traffic: &mut (u64, u64), bytes: usize) {
    traffic.0 += 1;
    traffic.1 += bytes as u64;
}

fn permit(permissions: &mut Vec<(IpAddr, Ms)>, ip: IpAddr, now: Ms) {
    permissions.retain(|(known, _)| *known != ip);
    permissions.push((ip, now + 300_000));
}

fn permitted(permissions: &[(IpAddr, Ms)], ip: IpAddr, now: Ms) -> bool {
    (permissions.iter()).any(|(known, until)| *known == ip && *until > now)
}

fn live(permissions: &[(IpAddr, Ms)], now: Ms) -> usize {
    permissions.iter().filter(|(_, until)| *until > now).count()
}
