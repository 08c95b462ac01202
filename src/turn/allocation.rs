//! Allocations and what hangs off them, in a slab that hands out ids which outlive nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::{Key, PermittedIp, PermittedPeer, RealmName, Scope};
use crate::base::{Family, FiveTuple, Now, RelayTransport, RelayedAddress, Transport};
use crate::quality::{Mode, Quality, Watch};
use crate::wire::{ChannelNumber, ErrorCode, TransactionId};

use super::connections::PeerConnection;
use super::contacts::Contacts;
use super::icmp::Told;
use super::mobility::Mobility;
use super::police::Police;
use super::stats::{Direction, RateWindow, RelayKind, Traffic};

/// Names an allocation within its server: a slot and how often the slot was filled, so that a stale id misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId {
    /// Place in the slab.
    pub slot: u32,
    /// How often that place was filled before.
    pub generation: u32,
}

impl AllocationId {
    /// The id as one number, for tokens of the poller.
    pub const fn to_bits(self) -> u64 {
        ((self.generation as u64) << 32) | self.slot as u64
    }

    /// The inverse of `to_bits`.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            slot: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// What an operator may know of one live allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct AllocationView {
    /// Names the allocation within its shard.
    pub id: AllocationId,
    /// The user id that quotas and metrics count, not the raw USERNAME.
    pub user: Arc<str>,
    /// The realm that knows the user; `None`: the default one.
    pub realm: Option<RealmName>,
    /// How far its credentials reach.
    pub scope: Scope,
    /// How the client reaches us.
    pub transport: Transport,
    /// The client's transport address.
    pub client: SocketAddr,
    /// The relayed transport address as clients see it: the IPv4 one where there are two.
    pub relayed: SocketAddr,
    /// The other one, of an allocation in both families.
    pub additional: Option<SocketAddr>,
    /// When it was made, since the Unix epoch.
    pub created_unix: Duration,
    /// Monotonic creation time.
    pub created: Instant,
    /// When it ends unless refreshed, since the Unix epoch.
    pub expires_unix: Duration,
    /// Application data so far, by `Direction`.
    pub traffic: [Traffic; Direction::ALL.len()],
    /// Bits/s over the last ten seconds, by `Direction`.
    pub bits_per_second: [u64; Direction::ALL.len()],
    /// Bits in the busiest second so far, by `Direction`.
    pub peak_bits_per_second: [u64; Direction::ALL.len()],
    /// Live permissions.
    pub permissions: usize,
    /// Live channel bindings.
    pub channels: usize,
    /// Permissions that were created so far, refreshes not counted.
    pub permissions_made: u32,
    /// Channels that were bound so far, refreshes not counted.
    pub channels_made: u32,
    /// What it relays.
    pub relay_transport: RelayTransport,
    /// Connections with peers, those that wait to be made or bound included; none but of a TCP allocation.
    pub connections: usize,
    /// How its call goes, where that is watched.
    pub quality: Option<Box<Quality>>,
}

/// What whole seconds are in times as the data path counts them.
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How long a permission lives after it was created or refreshed (RFC 8656 §9).
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// How long a channel binding lives after it was bound or refreshed (RFC 8656 §12).
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// A peer IP that the client may exchange data with (RFC 8656 §9).
#[derive(Clone, Copy, Debug)]
pub(super) struct Permission {
    pub ip: PermittedIp,
    pub expires: Instant,
}

/// A channel bound to one peer (RFC 8656 §12).
#[derive(Clone, Copy, Debug)]
pub(super) struct ChannelBinding {
    pub number: ChannelNumber,
    pub peer: PermittedPeer,
    pub expires: Instant,
}

/// Whether the relay socket is there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Asked for with `Output::OpenRelay`; the client has no answer yet.
    Opening,
    /// It is there, and that of the other family asked for; the client has no answer yet.
    Half(RelayedAddress),
    /// Answered with success.
    Live(RelayedAddress),
}

/// The relayed address in the other family, which ADDITIONAL-ADDRESS-FAMILY asks for (RFC 8656 §7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Additional {
    /// Nobody asked for it, or it is over.
    None,
    /// It is asked for, an even port or any.
    Wanted { even_port: bool },
    /// It is there, and ends on its own unless refreshed.
    Live {
        relayed: RelayedAddress,
        expires: Instant,
    },
    /// It could not be had: ADDRESS-ERROR-CODE.
    Refused(ErrorCode),
}

/// One allocation (RFC 8656 §3).
#[derive(Debug)]
pub(super) struct Allocation {
    pub id: AllocationId,
    pub five_tuple: FiveTuple,
    /// Of the one relayed address, or of the first.
    pub family: Family,
    pub state: State,
    pub additional: Additional,
    /// Names the port that is kept for the client, as the answer has it (RFC 8656 §7.2); until then, the one that is claimed.
    pub token: Option<u64>,
    /// User id for quotas, metrics and logs.
    pub user: Arc<str>,
    /// USERNAME as it was sent, to recognize the owner without deriving a key again.
    pub username: Box<[u8]>,
    pub key: Key,
    /// When the credential ends, if it is time-limited, or the token.
    pub credential_expires: Option<Duration>,
    /// The realm that knows the user; `None`: the default one.
    pub realm: Option<RealmName>,
    /// Whether it came with a token, after which it does not live (RFC 7635 §9).
    pub by_token: bool,
    /// How far it reaches.
    pub scope: Scope,
    /// The Allocate that made it: its retransmissions get the same answer.
    pub transaction: TransactionId,
    pub fingerprint: bool,
    pub granted_secs: u32,
    pub created: Now,
    pub expires: Instant,
    pub permissions: Vec<Permission>,
    pub channels: Vec<ChannelBinding>,
    pub permissions_made: u32,
    pub channels_made: u32,
    pub traffic: [Traffic; Direction::ALL.len()],
    pub rates: [RateWindow; Direction::ALL.len()],
    /// Whether a refused peer was logged already: one line per allocation is enough to find the rule.
    pub denial_logged: bool,
    /// Where bandwidth is limited, once it is live.
    pub police: Option<Box<Police>>,
    /// Where new peers are limited, from the first permission on.
    pub contacts: Option<Box<Contacts>>,
    /// What it relays.
    pub relay_transport: RelayTransport,
    /// With peers, in the order they were made; none but of a TCP allocation.
    pub connections: Vec<PeerConnection>,
    /// ICMP errors that its client was told of.
    pub told: Told,
    /// Where the client asked to be mobile.
    pub mobility: Option<Box<Mobility>>,
    /// How its call goes, where that is watched, from the first permission on.
    pub watch: Option<Box<Watch>>,
    /// The number of its latest event in the flight recorder; 0 before the first.
    pub flight: u64,
    /// Whether it gets less bandwidth, because it looks like abuse.
    pub throttled: bool,
    /// Whether that is what its end comes from.
    pub abused: bool,
}

impl Allocation {
    /// The relayed address once there is one.
    pub fn relayed(&self) -> Option<RelayedAddress> {
        match self.state {
            State::Opening | State::Half(_) => None,
            State::Live(relayed) => Some(relayed),
        }
    }

    /// That of the other family, if there is one.
    pub const fn additional(&self) -> Option<RelayedAddress> {
        match self.additional {
            Additional::Live { relayed, .. } => Some(relayed),
            Additional::None | Additional::Wanted { .. } | Additional::Refused(_) => None,
        }
    }

    /// Families in which a relay socket was asked for, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let wanted = match self.additional {
            Additional::Live { .. } => true,
            Additional::Wanted { .. } => matches!(self.state, State::Half(_)),
            Additional::None | Additional::Refused(_) => false,
        };
        let other = wanted.then(|| self.family.other());
        std::iter::once(self.family).chain(other)
    }

    /// What it counts as among live allocations.
    pub const fn kind(&self) -> RelayKind {
        RelayKind::of(self.family, self.additional().is_some())
    }

    /// When the relayed address in `family` ends; `None` if there is none.
    pub fn ends(&self, family: Family) -> Option<Instant> {
        match (family == self.family, self.additional) {
            (true, _) => Some(self.expires),
            (false, Additional::Live { expires, .. }) => Some(expires),
            (false, _) => None,
        }
    }

    /// Has the relayed address in `family` end at `expires`, or all of them.
    pub fn refresh(&mut self, family: Option<Family>, at: Instant) {
        let own = self.family;
        let meant = |of: Family| family.is_none_or(|family| family == of);
        if meant(own) {
            self.expires = at;
        }
        if let Additional::Live { expires, .. } = &mut self.additional
            && meant(own.other())
        {
            *expires = at;
        }
    }

    /// Has it end at `at`, if not before.
    pub fn end_by(&mut self, at: Instant) {
        self.expires = self.expires.min(at);
        if let Additional::Live { expires, .. } = &mut self.additional {
            *expires = (*expires).min(at);
        }
    }

    /// Whether all of it is over at `now`.
    pub fn is_over(&self, now: Instant) -> bool {
        let additional = self.ends(self.family.other());
        self.expires <= now && additional.is_none_or(|ends| ends <= now)
    }

    /// Whether it relays to and from peers of `peer`'s family at `now`.
    pub fn serves(&self, peer: IpAddr, now: Instant) -> bool {
        self.ends(Family::of(peer)).is_some_and(|ends| ends > now)
    }

    /// When the client's permission for `ip` ends, if it has one that is live at `now`.
    pub fn permitted_until(&self, ip: IpAddr, now: Instant) -> Option<Instant> {
        self.permissions
            .iter()
            .find(|permission| permission.ip.ip() == ip && permission.expires > now)
            .map(|permission| permission.expires)
    }

    /// Creates or refreshes the permission for `ip`.
    pub fn permit(&mut self, ip: PermittedIp, now: Instant) {
        let expires = now + PERMISSION_LIFETIME;
        match (self.permissions.iter_mut()).find(|permission| permission.ip.ip() == ip.ip()) {
            Some(permission) => *permission = Permission { ip, expires },
            None => {
                self.permissions_made = self.permissions_made.saturating_add(1);
                push_exact(&mut self.permissions, Permission { ip, expires });
            }
        }
    }

    /// Binds `binding.number`, or refreshes it.
    pub fn bind(&mut self, binding: ChannelBinding) {
        match (self.channels.iter_mut()).find(|bound| bound.number == binding.number) {
            Some(bound) => *bound = binding,
            None => {
                self.channels_made = self.channels_made.saturating_add(1);
                push_exact(&mut self.channels, binding);
            }
        }
    }

    /// The live binding of `number` or of `peer`.
    pub fn binding(
        &self,
        now: Instant,
        matches: impl Fn(&ChannelBinding) -> bool,
    ) -> Option<&ChannelBinding> {
        self.channels
            .iter()
            .find(|binding| binding.expires > now && matches(binding))
    }

    /// The earliest moment at which something of it ends.
    pub fn next_expiry(&self) -> Instant {
        let permissions = self.permissions.iter().map(|permission| permission.expires);
        let channels = self.channels.iter().map(|binding| binding.expires);
        let additional = match self.additional {
            Additional::Live { expires, .. } => Some(expires),
            _ => None,
        };
        let connections = (self.connections.iter()).filter_map(PeerConnection::until);
        (permissions
            .chain(channels)
            .chain(connections)
            .chain(additional))
        .fold(self.expires, Instant::min)
    }

    /// Counts `bytes` of application data.
    pub fn count(&mut self, direction: Direction, second: u32, bytes: usize) {
        self.traffic[direction as usize].add(bytes);
        self.rates[direction as usize].add(second, bytes);
    }

    /// Shows a datagram that is relayed to whoever watches, `at` nanoseconds since the server began. Whether it is time to
    /// judge what is relayed.
    pub fn observe(&mut self, mode: Mode, at: u64, direction: Direction, datagram: &[u8]) -> bool {
        let Some(watch) = &mut self.watch else {
            return false;
        };
        watch.observe(mode, at, direction, datagram);
        watch.signs.is_due()
    }

    /// What operators may see at `now`, which is `at` nanoseconds since the server began; `None` while it is opening.
    pub fn view(&self, now: Now, at: u64) -> Option<AllocationView> {
        let second = (at / NANOS_PER_SECOND) as u32;
        let relayed = self.relayed()?;
        let ends = self.ends(self.family.other()).max(Some(self.expires));
        let remaining = ends.map_or(Duration::ZERO, |ends| {
            ends.saturating_duration_since(now.mono)
        });
        Some(AllocationView {
            id: self.id,
            user: Arc::clone(&self.user),
            realm: self.realm,
            scope: self.scope,
            transport: self.five_tuple.transport(),
            client: self.five_tuple.client(),
            relayed: relayed.0,
            additional: self.additional().map(|relayed| relayed.0),
            created_unix: self.created.unix,
            created: self.created.mono,
            expires_unix: now.unix + remaining,
            traffic: self.traffic,
            bits_per_second: [
                self.rates[0].bits_per_second(second),
                self.rates[1].bits_per_second(second),
            ],
            peak_bits_per_second: [
                self.rates[0].peak_bits_per_second(),
                self.rates[1].peak_bits_per_second(),
            ],
            permissions: self.permissions.len(),
            channels: self.channels.len(),
            permissions_made: self.permissions_made,
            channels_made: self.channels_made,
            relay_transport: self.relay_transport,
            connections: self.connections.len(),
            // Streams of a TCP allocation pass it by.
            quality: (self.watch.as_ref())
                .filter(|_| self.relay_transport == RelayTransport::Udp)
                .map(|watch| Box::new(watch.quality(at))),
        })
    }

    /// Whether `peer` can be reached from a relayed address of this allocation at all.
    pub fn same_family(&self, peer: SocketAddr) -> bool {
        self.ends(Family::of(peer.ip())).is_some()
    }
}

/// Most allocations have one permission and one channel: room for four of each would cost more than the rest of it.
fn push_exact<T>(items: &mut Vec<T>, item: T) {
    if items.len() == items.capacity() {
        items.reserve_exact(items.len().max(1));
    }
    items.push(item);
}

/// 31 bits: tokens of the poller keep the top one for listeners.
const GENERATIONS: u32 = 0x7FFF_FFFF;

/// The slab of allocations.
#[derive(Debug, Default)]
pub(super) struct Allocations {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    allocation: Option<Box<Allocation>>,
}

impl Allocations {
    /// Stores what `make` builds for the id it is given.
    pub fn insert(&mut self, make: impl FnOnce(AllocationId) -> Allocation) -> AllocationId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        let id = AllocationId {
            slot,
            generation: entry.generation,
        };
        entry.allocation = Some(Box::new(make(id)));
        self.live += 1;
        id
    }

    pub fn get(&self, id: AllocationId) -> Option<&Allocation> {
        let slot = self.slots.get(id.slot as usize)?;
        (slot.generation == id.generation)
            .then_some(slot.allocation.as_deref())
            .flatten()
    }

    /// The id of the allocation in `slot`.
    pub fn id_in(&self, slot: u32) -> Option<AllocationId> {
        let allocation = self.slots.get(slot as usize)?.allocation.as_deref()?;
        Some(allocation.id)
    }

    pub fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation {
            slot.allocation.as_deref_mut()
        } else {
            None
        }
    }

    pub fn remove(&mut self, id: AllocationId) -> Option<Box<Allocation>> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let allocation = slot.allocation.take()?;
        slot.generation = slot.generation.wrapping_add(1) & GENERATIONS;
        self.free.push(id.slot);
        self.live -= 1;
        Some(allocation)
    }

    /// Allocations in the slots `from..from + count`, in slot order.
    pub fn range(&self, from: usize, count: usize) -> impl Iterator<Item = &Allocation> {
        self.slots
            .iter()
            .skip(from)
            .take(count)
            .filter_map(|slot| slot.allocation.as_deref())
    }

    /// How often each slot was filled, and the empty ones in the order in which they are given up.
    pub fn shape(&self) -> (Vec<u32>, &[u32]) {
        let generations = self.slots.iter().map(|slot| slot.generation).collect();
        (generations, &self.free)
    }

    /// Slots as [`shape`](Self::shape) described them, all of them empty.
    pub fn with_generations(generations: &[u32]) -> Self {
        let slots = (generations.iter())
            .map(|generation| Slot {
                generation: generation & GENERATIONS,
                allocation: None,
            })
            .collect();
        Self {
            slots,
            free: Vec::new(),
            live: 0,
        }
    }

    /// Puts an allocation into the slot and generation of its id; false if that is not free.
    pub fn put(&mut self, allocation: Allocation) -> bool {
        let id = allocation.id;
        let Some(slot) = self.slots.get_mut(id.slot as usize) else {
            return false;
        };
        if slot.generation != id.generation || slot.allocation.is_some() {
            return false;
        }
        slot.allocation = Some(Box::new(allocation));
        self.live += 1;
        true
    }

    /// Makes the empty slots available: those of `order` as it has them, the others, whose ids were given to
    /// allocations that are not here, under a new generation before all of them.
    pub fn free_rest(&mut self, order: &[u32]) {
        let mut listed = vec![false; self.slots.len()];
        let mut known = Vec::new();
        for &slot in order {
            if let Some(listed) = listed.get_mut(slot as usize)
                && !std::mem::replace(listed, true)
            {
                known.push(slot);
            }
        }
        for (index, (slot, listed)) in self.slots.iter_mut().zip(&listed).enumerate() {
            if slot.allocation.is_none() && !listed {
                slot.generation = slot.generation.wrapping_add(1) & GENERATIONS;
                self.free.push(index as u32);
            }
        }
        let slots = &self.slots;
        let empty =
            |slot: &u32| (slots.get(*slot as usize)).is_some_and(|s| s.allocation.is_none());
        self.free.extend(known.into_iter().filter(empty));
    }

    /// Every allocation, in slot order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Allocation> {
        (self.slots.iter_mut()).filter_map(|slot| slot.allocation.as_deref_mut())
    }

    /// How many slots there are, filled or not.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// How many allocations there are.
    pub fn len(&self) -> usize {
        self.live
    }
}
