//! A server's state as a value, for a process that goes on with it: `restore(snapshot(s))` behaves as `s` from then on.
//!
//! Lifetimes are kept as what is left of them, counters by name. A field that a later version adds gets a default where
//! the writer did not know it, and one that the reader does not know is passed over, so that neighbouring versions
//! understand each other; what changes the meaning of a field changes [`SNAPSHOT_FORMAT`].
//!
//! A snapshot holds the keys of clients and of nonces: it is wiped when dropped, in either form.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::access::{Access, AddressRate, Debts, Denied, Key, RealmName, Scope, Visit};
use crate::base::{Family, FiveTuple, ListenerId, Now, RelayTransport, Transport};
use crate::quality::{self, Watch};
use crate::wire::{ChannelNumber, Integrity, TransactionId};

use super::allocation::{Allocation, AllocationId, Allocations, ChannelBinding, Permission, State};
use super::auth::Nonces;
use super::change::Newcomers;
use super::connections::Connections;
use super::contacts::Contacts;
use super::counters::{counters, stats};
use super::flight::Flight;
use super::icmp::Told;
use super::mobility::MobilityImage;
use super::police::ScopedRates;
use super::purses::{PurseId, Purses};
use super::relayed::AdditionalImage;
use super::routes::Routes;
use super::server::Server;
use super::stats::{Direction, RateWindow, Traffic};
use super::ticket::Tickets;
use super::timers::Timers;
use super::trace::Tracer;
use super::{Seed, Settings};

/// The format that is written, and the only one that is read.
pub const SNAPSHOT_FORMAT: u16 = 1;

/// What an encoded snapshot begins with.
const MAGIC: [u8; 6] = *b"turnix";

/// Magic, format, and the length of what follows.
const HEADER: usize = MAGIC.len() + 2 + 8;

/// One server's state at one moment.
#[derive(Clone)]
pub struct Snapshot(Image);

/// Why bytes are not a snapshot that can be gone on with.
#[derive(Debug)]
pub enum SnapshotError {
    /// They are something else, or not all of it.
    Malformed(Cow<'static, str>),
    /// They are of another format.
    Format(u16),
}

impl std::fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "the state is malformed: {what}"),
            Self::Format(format) => write!(
                f,
                "the state is of format {format}, and this version reads {SNAPSHOT_FORMAT} only"
            ),
        }
    }
}

impl std::error::Error for SnapshotError {}

#[derive(Clone, Serialize, Deserialize)]
struct Image {
    /// When it was taken, since the Unix epoch.
    taken: Duration,
    /// What the keys of clients are of.
    realm: String,
    redirected: u64,
    nonce_key: Zeroizing<[u8; 32]>,
    hash: Zeroizing<[u64; 4]>,
    /// What `second` counts from, before `taken`.
    started: Nanos,
    indications: u64,
    generations: Vec<u32>,
    free: Vec<u32>,
    allocations: Vec<AllocationImage>,
    /// Those that reach no further than a loop, and the number of their visit. A version that does not know them passes
    /// them over rather than let them reach anybody.
    #[serde(default)]
    loops: Vec<(u32, AllocationImage)>,
    counters: BTreeMap<String, u64>,
    #[serde(default)]
    unauthenticated: Debts,
    #[serde(default)]
    auth_failures: Debts,
}

/// Nanoseconds from the moment of the snapshot, negative before it.
pub(super) type Nanos = i64;

#[derive(Clone, Serialize, Deserialize)]
struct AllocationImage {
    slot: u32,
    generation: u32,
    transport: u8,
    client: SocketAddr,
    listener: u16,
    family: u8,
    /// None while its relay is being opened.
    relayed: Option<SocketAddr>,
    user: String,
    username: Box<[u8]>,
    /// The key that MD5 made; zero where something else did.
    key: Zeroizing<[u8; 16]>,
    /// The key that SHA-256 made.
    #[serde(default)]
    key_sha256: Option<Zeroizing<[u8; 32]>>,
    /// The key that a token brought.
    #[serde(default)]
    key_of_token: Option<Zeroizing<Vec<u8>>>,
    /// Whether answers are signed with MESSAGE-INTEGRITY-SHA256.
    #[serde(default)]
    signs_sha256: bool,
    credential_expires: Option<Duration>,
    #[serde(default)]
    realm: Option<String>,
    transaction: [u8; 12],
    fingerprint: bool,
    granted_secs: u32,
    created: Nanos,
    created_unix: Duration,
    expires: Nanos,
    permissions: Vec<(IpAddr, Nanos)>,
    channels: Vec<(u16, SocketAddr, Nanos)>,
    traffic: [Traffic; Direction::ALL.len()],
    rates: [RateWindow; Direction::ALL.len()],
    #[serde(default)]
    permissions_made: u32,
    #[serde(default)]
    channels_made: u32,
    denial_logged: bool,
    #[serde(default)]
    contacts: Option<Contacts>,
    #[serde(default)]
    additional: AdditionalImage,
    /// What the answer names; the reservation itself stays behind.
    #[serde(default)]
    token: Option<u64>,
    #[serde(default)]
    mobility: Option<MobilityImage>,
    #[serde(default)]
    watch: Option<quality::Image>,
}

impl Snapshot {
    /// As bytes, wiped when dropped.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        self.write(Wiped::default())
    }

    /// The same behind `first`, which is not part of it.
    pub fn encode_behind(&self, first: u8) -> Zeroizing<Vec<u8>> {
        let mut bytes = Wiped::default();
        bytes.push(&[first]);
        self.write(bytes)
    }

    fn write(&self, mut bytes: Wiped) -> Zeroizing<Vec<u8>> {
        let begin = bytes.0.len();
        bytes.push(&[0; HEADER]);
        let mut serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
        let written = self.0.serialize(&mut serializer);
        debug_assert!(written.is_ok(), "memory takes everything: {written:?}");
        let mut bytes = bytes.0;
        let length = (bytes.len() - begin - HEADER) as u64;
        let header = (MAGIC.into_iter())
            .chain(SNAPSHOT_FORMAT.to_be_bytes())
            .chain(length.to_be_bytes());
        (bytes.iter_mut().skip(begin).zip(header)).for_each(|(at, byte)| *at = byte);
        bytes
    }

    /// Reads what `encode` wrote.
    ///
    /// # Errors
    /// The bytes are something else, cut short, or of another format.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let malformed = |what| SnapshotError::Malformed(Cow::Borrowed(what));
        let rest = bytes.strip_prefix(&MAGIC);
        let rest = rest.ok_or_else(|| malformed("it begins with something else"))?;
        let (format, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| malformed("it is short"))?;
        match u16::from_be_bytes(*format) {
            SNAPSHOT_FORMAT => {}
            other => return Err(SnapshotError::Format(other)),
        }
        let (length, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| malformed("it is short"))?;
        if u64::from_be_bytes(*length) != rest.len() as u64 {
            return Err(malformed("its length is not what it says"));
        }
        match rmp_serde::from_slice(rest) {
            Ok(image) => Ok(Self(image)),
            Err(error) => Err(SnapshotError::Malformed(error.to_string().into())),
        }
    }
}

impl std::fmt::Debug for Snapshot {
    /// Shows no key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("allocations", &self.0.allocations.len())
            .finish_non_exhaustive()
    }
}

/// Bytes that leave no copy behind when they outgrow their memory.
#[derive(Default)]
struct Wiped(Zeroizing<Vec<u8>>);

impl Wiped {
    fn push(&mut self, bytes: &[u8]) {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.max(2 * self.0.capacity()).max(64 << 10));
            larger.extend_from_slice(&self.0);
            self.0 = Zeroizing::new(larger);
        }
        self.0.extend_from_slice(bytes);
    }
}

impl io::Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for AllocationImage {
    fn drop(&mut self) {
        self.username.zeroize();
    }
}

impl Server {
    /// The state at `now`, with the allocations of clients on those transports that `which` names. Outputs must have
    /// been drained.
    pub fn snapshot(&self, now: Now, which: impl Fn(Transport) -> bool) -> Snapshot {
        let Self {
            settings: _,
            access,
            nonces: _,
            seed,
            allocations,
            by_five_tuple: _,
            // Connections that say so stay.
            named: _,
            routes: _,
            stats,
            // What they hold is a moment's worth: buckets of bandwidth begin full.
            rates: _,
            purses: _,
            hasher: _,
            indications,
            unauthenticated,
            auth_failures,
            newcomers: _,
            vantages: _,
            redirected,
            tracer: _,
            tickets: _,
            timers: _,
            outputs,
            started,
            latest,
            // Connections are sockets of this process: they stay.
            connections: _,
            // Whoever goes on begins anew.
            flight: _,
        } = self;
        let Seed {
            nonce_key,
            hash,
            families: _,
        } = seed;
        debug_assert!(outputs.is_empty(), "outputs are not part of a snapshot");
        let now = if now.mono >= latest.mono {
            now
        } else {
            *latest
        };
        let at = now.mono.saturating_duration_since(*started);
        let (generations, free) = allocations.shape();
        let wanted = || {
            (allocations.range(0, usize::MAX))
                .filter(|allocation| allocation.moves() && which(allocation.five_tuple.transport()))
        };
        Snapshot(Image {
            taken: now.unix,
            realm: access.realm.to_string(),
            redirected: *redirected as u64,
            nonce_key: Zeroizing::new(*nonce_key),
            hash: Zeroizing::new(*hash),
            started: nanos(*started, now),
            indications: *indications,
            generations,
            free: free.to_vec(),
            allocations: wanted()
                .filter(|allocation| !allocation.scope.is_loop())
                .map(|allocation| AllocationImage::of(allocation, now, at))
                .collect(),
            loops: wanted()
                .filter_map(|allocation| match allocation.scope {
                    Scope::Policy => None,
                    Scope::Loop(visit) => {
                        Some((visit.number(), AllocationImage::of(allocation, now, at)))
                    }
                })
                .collect(),
            counters: counters(stats),
            unauthenticated: unauthenticated.debts(at),
            auth_failures: auth_failures.debts(at),
        })
    }

    /// A server that goes on where `snapshot` was taken, with settings and access of its own. What `access` forbids is
    /// not taken over: permissions and channels of refused peers, allocations of static users who are gone or have
    /// another password, and of whoever is revoked.
    ///
    /// The time in between counts, by the wall clock: lifetimes end when clients expect them to.
    pub fn restore(
        now: Now,
        settings: Settings,
        families: Vec<Family>,
        access: Arc<Access>,
        snapshot: Snapshot,
    ) -> Self {
        let Image {
            taken,
            realm,
            redirected,
            nonce_key,
            hash,
            started,
            indications,
            generations,
            free,
            allocations: images,
            loops,
            counters,
            unauthenticated,
            auth_failures,
        } = snapshot.0;
        let elapsed = now.unix.saturating_sub(taken);
        let taken = now.mono.checked_sub(elapsed).unwrap_or(now.mono);
        let [a, b, c, d] = *hash;
        let hasher = RandomState::with_seeds(a, b, c, d);
        let mut allocations = Allocations::with_generations(&generations);
        let mut by_five_tuple = HashMap::with_hasher(hasher.clone());
        let mut routes = Routes::new(hasher.clone());
        let mut timers = Timers::default();
        let mut stats = stats(&counters);
        let images = (images.iter().map(|image| (Some(Scope::Policy), image))).chain(
            (loops.iter())
                .map(|(visit, image)| (Visit::from_number(*visit).map(Scope::Loop), image)),
        );
        for (scope, image) in images {
            let Some(scope) = scope else {
                continue;
            };
            let key = (realm == *access.realm).then(|| image.key());
            let is_limited = image.credential_expires.is_some();
            let named = image.realm.as_deref().map(|name| access.realms.find(name));
            let of = named.flatten().map(|realm| realm.name);
            let gone = named.is_some() && of.is_none()
                || !is_limited && !access.holds(of, &image.username, key.as_ref());
            let revoked =
                (access.revoked).find(of, &image.username, &image.user, is_limited, now.unix);
            if gone || revoked.is_some() {
                continue;
            }
            let denied = |denied: Denied| stats.peer_denied[denied.rule as usize] += 1;
            let Some(allocation) = image.restored(taken, scope, of, &access, denied) else {
                continue;
            };
            let (id, five_tuple) = (allocation.id, allocation.five_tuple);
            let next = allocation.next_expiry();
            if by_five_tuple.contains_key(&five_tuple) || !allocations.put(allocation) {
                continue;
            }
            by_five_tuple.insert(five_tuple, id);
            timers.reschedule(id, next, Some(next));
            if let Some(allocation) = allocations.get(id) {
                routes.sync(allocation, now.mono);
                if allocation.relayed().is_some() && !allocation.scope.is_canary() {
                    let transport = five_tuple.transport() as usize;
                    stats.live[transport][allocation.kind() as usize] += 1;
                }
            }
        }
        allocations.free_rest(&free);
        let rate = |per_second, debts: &Debts| {
            let mut rate = AddressRate::new(per_second, hasher.clone());
            rate.owe(debts);
            rate
        };
        let mut purses = Purses::new(hasher.clone());
        let rates = ScopedRates::new(settings.bandwidth);
        if rates.total() {
            purses.call(PurseId::TOTAL);
        }
        let flight = Flight::new(settings.quality.events);
        let mut server = Self {
            rates,
            purses,
            hasher: hasher.clone(),
            nonces: Nonces::new(&nonce_key, settings.nonce_lifetime),
            unauthenticated: rate(settings.unauthenticated_per_address, &unauthenticated),
            auth_failures: rate(settings.auth_failures_per_address, &auth_failures),
            settings,
            access,
            seed: Seed {
                nonce_key: *nonce_key,
                hash: *hash,
                families,
            },
            allocations,
            by_five_tuple,
            named: HashMap::with_hasher(hasher.clone()),
            routes,
            stats,
            indications,
            tickets: Tickets::new(&nonce_key),
            timers,
            newcomers: Newcomers::default(),
            vantages: Vec::new(),
            tracer: Tracer::default(),
            redirected: redirected as usize,
            outputs: std::collections::VecDeque::new(),
            started: moment(started, taken),
            latest: now,
            connections: Connections::new(hasher),
            flight,
        };
        let live: Vec<_> = server.tenants().map(|tenant| tenant.id).collect();
        for id in live {
            server.place_under_limits(now, id);
            server.resume_move(now, id);
        }
        server.watch_as_set();
        server
    }
}

/// An allocation, for whoever has a relay socket for each.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Names it.
    pub id: AllocationId,
    /// Whose.
    pub five_tuple: FiveTuple,
    /// User id, for quotas.
    pub user: Arc<str>,
    /// The realm that knows the user, for quotas.
    pub realm: Option<RealmName>,
    /// How far its credentials reach, for quotas.
    pub scope: Scope,
    /// Whether somebody else can go on with it: not with connections, whose sockets are this process's.
    pub moves: bool,
    /// Families in which it has a relay, the first one first.
    pub families: Vec<Family>,
}

impl Tenant {
    /// Its relays.
    pub fn relays(&self) -> impl Iterator<Item = (AllocationId, Family)> + use<> {
        let id = self.id;
        self.families
            .clone()
            .into_iter()
            .map(move |family| (id, family))
    }
}

impl Server {
    /// Every allocation that has a relay, in the order of slots.
    pub fn tenants(&self) -> impl Iterator<Item = Tenant> {
        (self.allocations.range(0, usize::MAX))
            .filter(|allocation| allocation.relayed().is_some())
            .map(|allocation| Tenant {
                id: allocation.id,
                five_tuple: allocation.five_tuple,
                user: Arc::clone(&allocation.user),
                realm: allocation.realm,
                scope: allocation.scope,
                moves: allocation.moves(),
                families: allocation.families().collect(),
            })
    }

    /// Forgets the allocations of clients on those transports that `which` names, without an output: somebody else goes
    /// on with them. Which these were.
    pub fn leave(&mut self, which: impl Fn(Transport) -> bool) -> Vec<AllocationId> {
        self.connections.close();
        let gone: Vec<_> = (self.allocations.range(0, usize::MAX))
            .filter(|allocation| allocation.moves() && which(allocation.five_tuple.transport()))
            .map(|allocation| {
                (
                    allocation.id,
                    allocation.five_tuple.transport(),
                    (allocation.relayed())
                        .filter(|_| !allocation.scope.is_canary())
                        .map(|_| allocation.kind()),
                )
            })
            .collect();
        for (id, transport, kind) in &gone {
            self.forget(*id);
            if let Some(kind) = kind {
                self.stats.live[*transport as usize][*kind as usize] -= 1;
            }
        }
        gone.into_iter().map(|(id, ..)| id).collect()
    }
}

impl AllocationImage {
    const fn id(&self) -> AllocationId {
        AllocationId {
            slot: self.slot,
            generation: self.generation,
        }
    }

    fn key(&self) -> Key {
        let of_token = self.key_of_token.as_ref();
        let key = match (of_token.and_then(|key| Key::session(key)), &self.key_sha256) {
            (Some(key), _) => key,
            (None, Some(key)) => Key::sha256(**key),
            (None, None) => Key::md5(*self.key),
        };
        key.signing(match self.signs_sha256 {
            true => Integrity::Sha256,
            false => Integrity::Sha1,
        })
    }

    /// `elapsed`: since the server began.
    fn of(allocation: &Allocation, now: Now, elapsed: Duration) -> Self {
        // Named one by one: a field that is added has to be thought of here.
        let Allocation {
            id,
            five_tuple,
            family,
            state,
            additional,
            token,
            user,
            username,
            key,
            credential_expires,
            by_token,
            realm,
            scope: _,
            transaction,
            fingerprint,
            granted_secs,
            created,
            expires,
            permissions,
            channels,
            traffic,
            rates,
            permissions_made,
            channels_made,
            denial_logged,
            police: _,
            contacts,
            relay_transport: _,
            connections: _,
            // A moment's worth.
            told: _,
            mobility,
            watch,
            // It begins anew.
            flight: _,
        } = allocation;
        Self {
            slot: id.slot,
            generation: id.generation,
            transport: five_tuple.transport() as u8,
            client: five_tuple.client(),
            listener: five_tuple.listener().0,
            family: *family as u8,
            relayed: match state {
                State::Opening | State::Half(_) => None,
                State::Live(relayed) => Some(relayed.0),
            },
            user: user.to_string(),
            username: username.clone(),
            // The beginning of a longer one, for a version that knows none: as hard to guess.
            key: Zeroizing::new((key.as_bytes().first_chunk().copied()).unwrap_or_default()),
            key_sha256: key.as_bytes().try_into().ok().map(Zeroizing::new),
            key_of_token: by_token.then(|| Zeroizing::new(key.as_bytes().to_vec())),
            signs_sha256: key.integrity() == Integrity::Sha256,
            credential_expires: *credential_expires,
            realm: realm.map(|name| name.as_str().to_owned()),
            transaction: transaction.0,
            fingerprint: *fingerprint,
            granted_secs: *granted_secs,
            created: nanos(created.mono, now),
            created_unix: created.unix,
            expires: nanos(*expires, now),
            permissions: (permissions.iter())
                .map(|permission| (permission.ip.ip(), nanos(permission.expires, now)))
                .collect(),
            channels: (channels.iter())
                .map(|binding| {
                    let peer = binding.peer.address();
                    (binding.number.number(), peer, nanos(binding.expires, now))
                })
                .collect(),
            traffic: *traffic,
            rates: rates.clone(),
            permissions_made: *permissions_made,
            channels_made: *channels_made,
            denial_logged: *denial_logged,
            contacts: contacts.as_deref().cloned(),
            additional: AdditionalImage::of(state, additional, now),
            token: *token,
            mobility: (mobility.as_deref())
                .map(|mobility| MobilityImage::of(mobility, |at| nanos(at, now))),
            watch: (watch.as_deref()).map(|watch| watch.image(elapsed.as_nanos() as u64)),
        }
    }

    /// The allocation, if this version knows its transport and family.
    fn restored(
        &self,
        taken: Instant,
        scope: Scope,
        realm: Option<RealmName>,
        access: &Access,
        mut denied: impl FnMut(Denied),
    ) -> Option<Allocation> {
        let transport = *Transport::ALL.get(usize::from(self.transport))?;
        let family = *Family::ALL.get(usize::from(self.family))?;
        let mut permissions = Vec::with_capacity(self.permissions.len());
        for (ip, expires) in &self.permissions {
            match access.peers.permit_ip_within(scope, *ip) {
                Ok(ip) => permissions.push(Permission {
                    ip,
                    expires: moment(*expires, taken),
                }),
                Err(refused) => denied(refused),
            }
        }
        let mut channels = Vec::with_capacity(self.channels.len());
        for (number, peer, expires) in &self.channels {
            match access.peers.permit_within(scope, *peer) {
                Ok(peer) => channels.push(ChannelBinding {
                    number: ChannelNumber::new(*number)?,
                    peer,
                    expires: moment(*expires, taken),
                }),
                Err(refused) => denied(refused),
            }
        }
        Some(Allocation {
            id: self.id(),
            five_tuple: FiveTuple::new(transport, self.client, ListenerId(self.listener)),
            family,
            state: self.additional.state(self.relayed),
            additional: self.additional.restored(taken),
            token: self.token,
            user: self.user.as_str().into(),
            username: self.username.clone(),
            key: self.key(),
            credential_expires: self.credential_expires,
            by_token: self.key_of_token.is_some(),
            realm,
            scope,
            transaction: TransactionId(self.transaction),
            fingerprint: self.fingerprint,
            granted_secs: self.granted_secs,
            created: Now {
                mono: moment(self.created, taken),
                unix: self.created_unix,
            },
            expires: moment(self.expires, taken),
            permissions,
            channels,
            traffic: self.traffic,
            rates: self.rates.clone(),
            permissions_made: self.permissions_made,
            channels_made: self.channels_made,
            denial_logged: self.denial_logged,
            police: None,
            contacts: (self.contacts.clone())
                .filter(Contacts::is_sound)
                .map(Box::new),
            relay_transport: RelayTransport::Udp,
            connections: Vec::new(),
            told: Told::default(),
            mobility: (self.mobility.as_ref())
                .map(|image| Box::new(image.restored(|nanos| moment(nanos, taken)))),
            watch: (self.watch.as_ref()).map(|image| Box::new(Watch::resume(image))),
            flight: 0,
        })
    }
}

pub(super) fn nanos(at: Instant, now: Now) -> Nanos {
    let nanos = |by: Duration| Nanos::try_from(by.as_nanos()).unwrap_or(Nanos::MAX);
    match at.checked_duration_since(now.mono) {
        Some(ahead) => nanos(ahead),
        None => -nanos(now.mono.saturating_duration_since(at)),
    }
}

pub(super) fn moment(nanos: Nanos, taken: Instant) -> Instant {
    let by = Duration::from_nanos(nanos.unsigned_abs());
    let moment = if nanos < 0 {
        taken.checked_sub(by)
    } else {
        taken.checked_add(by)
    };
    moment.unwrap_or(taken)
}
