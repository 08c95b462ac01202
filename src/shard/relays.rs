//! The relay sockets of one shard.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;

use crate::access::{QuotaExceeded, Wanted};
use crate::base::{Family, RelayedAddress};
use crate::net::{Batch, Poller, UdpOptions, UdpSocket};
use crate::turn::{AllocationId, OpenError, Opened, Tenant};

use super::handover::Settled;
use super::marks::Marks;
use super::ports::{ABROAD, ABROAD_TCP, Place, RelayAddresses, RelayPool};
use super::reservations::Reserved;
use super::trains::Trains;

/// How many ports are tried when other programs hold ports of the range.
const ATTEMPTS: usize = 256;

/// A busy shard looks at all of a hundred sockets within so many turns.
const GATHERING_TURNS: u32 = 2;

/// How often the log says that a user gets no more relay ports: clients try again and again.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What sockets tell beside datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reports {
    /// DSCP and ECN of each.
    pub tos: bool,
    /// ICMP errors about what relay sockets sent.
    pub errors: bool,
}

/// One relay socket and what opening it reserved.
pub(super) struct Relay {
    id: AllocationId,
    pub socket: UdpSocket,
    /// Where `place` is from.
    pool: Arc<RelayPool>,
    place: Place,
    wanted: Wanted,
    user: Arc<str>,
    client: IpAddr,
    trains: Trains,
    /// Where DSCP and ECN are of interest.
    marks: Option<Marks>,
    /// The last call received several messages.
    several: bool,
    /// Its client is on a stream: what is there at once leaves in one write.
    pub gathers: bool,
    /// The turn of the last call that received one.
    last_turn: u32,
    /// It tells of no errors for the moment.
    is_silent: bool,
}

impl Relay {
    /// Whether to ask for more than one message in `turn`: it had several, or has something again at once, or soon where
    /// a second frame in a write is worth a look.
    pub fn expects_more(&self, turn: u32) -> bool {
        let soon = if self.gathers { GATHERING_TURNS } else { 1 };
        self.several || turn.wrapping_sub(self.last_turn) <= soon
    }

    /// Whose it is.
    pub const fn id(&self) -> AllocationId {
        self.id
    }

    /// Whether it was asked for with EVEN-PORT.
    pub const fn is_even(&self) -> bool {
        self.wanted.even_port
    }

    /// Takes note of what a call in `turn` received into `slots`.
    pub fn observe(&mut self, batch: &Batch, slots: Range<usize>, turn: u32) {
        self.several = slots.len() > 1;
        if slots.is_empty() {
            return;
        }
        self.last_turn = turn;
        if let Some(marks) = &mut self.marks
            && let Some(on) = marks.observe(batch.all_received(slots.clone()))
        {
            self.socket.report_tos(on);
        }
        if let Some(on) = self.trains.observe(batch.all_received(slots))
            && self.socket.take_trains(on).is_err()
        {
            self.trains.give_up();
        }
    }
}

/// A relayed address whose socket is somebody else's, and what it reserved.
pub(super) struct Lease {
    pool: Arc<RelayPool>,
    place: Place,
    wanted: Wanted,
    user: Arc<str>,
    client: IpAddr,
}

impl Lease {
    /// Where its socket is bound, and how clients and peers see it.
    pub fn addresses(&self) -> RelayAddresses {
        self.pool.addresses(self.place)
    }

    /// Says whether the socket listens, for connections.
    pub fn set_listening(&self, listens: bool) {
        self.pool.set_listening(self.place, listens);
    }

    /// The pool it is from.
    pub fn pool(&self) -> &RelayPool {
        &self.pool
    }
}

/// Who has a relayed address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// An allocation of this shard.
    Here(AllocationId),
    /// An allocation of another one.
    Shard(u8),
    /// An allocation of another process, whose socket is bound there.
    Abroad(SocketAddr),
}

/// The table: two slots for each of the core's slab, one a family.
pub(super) struct Relays {
    shard: u8,
    buffer_bytes: usize,
    /// What the sockets tell.
    reports: Reports,
    /// Where new relayed addresses come from.
    pool: Arc<RelayPool>,
    /// Pools of earlier configurations, until the last relayed address of theirs is closed.
    older: Vec<Arc<RelayPool>>,
    slots: Vec<Option<Box<Relay>>>,
    /// By generation of the pool and place in it.
    by_place: HashMap<(u32, Place), AllocationId, RandomState>,
    /// Some relayed addresses belong to another process.
    pub abroad: bool,
    /// Datagrams the kernel dropped on sockets that are closed by now.
    drops_of_closed: u64,
    /// The last socket could not be opened, and the log says so.
    failing: bool,
    /// When the log last said that a user gets no more ports.
    share_told: Option<Instant>,
}

impl Relays {
    /// New relayed addresses come from the last of `pools`.
    pub fn new(
        shard: u8,
        buffer_bytes: usize,
        reports: Reports,
        mut pools: Vec<Arc<RelayPool>>,
        hasher: RandomState,
    ) -> Self {
        let pool = pools.pop();
        let pool = pool.unwrap_or_else(|| unreachable!("there is always one pool"));
        Self {
            shard,
            buffer_bytes,
            reports,
            pool,
            older: pools,
            slots: Vec::new(),
            by_place: HashMap::with_hasher(hasher),
            abroad: false,
            drops_of_closed: 0,
            failing: false,
            share_told: None,
        }
    }

    /// Reserves quota and a port, opens the socket and watches it.
    ///
    /// # Errors
    /// A quota is used up, or no port can be had.
    pub fn open(
        &mut self,
        now: Instant,
        asked: Asked,
        poller: &Poller,
    ) -> Result<Opened, OpenError> {
        self.pool.end_reservations(now);
        if let Some(token) = asked.token {
            return self.claim(now, asked, token, poller);
        }
        let Asked {
            id,
            wanted,
            user,
            client,
            reserve,
            ..
        } = asked;
        let beside = self.get(id, wanted.family.other()).is_some();
        let above = Wanted {
            even_port: false,
            ..wanted
        };
        let pool = Arc::clone(&self.pool);
        let reserved = match beside {
            true => pool.reserve_port(&user, wanted),
            false => pool.reserve(&user, client, wanted),
        };
        let release = |pool: &RelayPool| match beside {
            true => pool.release_port(&user, wanted),
            false => pool.release(&user, client, wanted),
        };
        let held = reserved.and_then(|()| match reserve {
            true => (pool.hold(&user, client, above)).inspect_err(|_| release(&pool)),
            false => Ok(()),
        });
        if let Err(exceeded) = held {
            if exceeded == QuotaExceeded::Share {
                self.tell_of_share(now, &user);
            }
            return Err(OpenError::Quota);
        }
        let options = UdpOptions {
            recv_buffer_bytes: self.buffer_bytes,
            send_buffer_bytes: self.buffer_bytes,
            only_v6: true,
            ..UdpOptions::default()
        };
        let open = |local| UdpSocket::bind(local, &options);
        let Some(bound) = self.bind(now, wanted, reserve, id, poller, open) else {
            release(&pool);
            if reserve {
                pool.release_held(&user, client, above);
            }
            return Err(OpenError::Capacity);
        };
        let token = bound.above.map(|(place, socket)| {
            let reserved = Reserved {
                pool: Arc::clone(&pool),
                place,
                socket,
                wanted: above,
                user: Arc::clone(&user),
                client,
            };
            pool.reservations().keep(now, reserved)
        });
        let relayed = RelayedAddress(pool.addresses(bound.place).external);
        self.put(id, pool, bound.place, bound.socket, user, client, wanted);
        Ok(Opened { relayed, token })
    }

    /// Reserves quota and a port, and watches the socket that `open` opens there, which is the caller's.
    ///
    /// # Errors
    /// A quota is used up, or no port can be had.
    pub fn lease<S: AsFd>(
        &mut self,
        now: Instant,
        asked: Asked,
        poller: &Poller,
        open: impl Fn(SocketAddr) -> io::Result<S>,
    ) -> Result<(Lease, S), OpenError> {
        self.pool.end_reservations(now);
        let Asked {
            id,
            wanted,
            user,
            client,
            ..
        } = asked;
        let pool = Arc::clone(&self.pool);
        if let Err(exceeded) = pool.reserve(&user, client, wanted) {
            if exceeded == QuotaExceeded::Share {
                self.tell_of_share(now, &user);
            }
            return Err(OpenError::Quota);
        }
        let Some(bound) = self.bind(now, wanted, false, id, poller, open) else {
            pool.release(&user, client, wanted);
            return Err(OpenError::Capacity);
        };
        pool.set_owner(bound.place, Some(self.shard));
        let lease = Lease {
            pool,
            place: bound.place,
            wanted,
            user,
            client,
        };
        Ok((lease, bound.socket))
    }

    /// Gives back what `lease` reserved, once its socket is closed.
    pub fn give_back(&mut self, now: Instant, lease: Lease) {
        let Lease {
            pool,
            place,
            wanted,
            user,
            client,
        } = lease;
        self.put_back(now, &pool, place, wanted);
        pool.release(&user, client, wanted);
        self.rest(now, &pool, place);
    }

    fn put_back(&self, now: Instant, pool: &RelayPool, place: Place, wanted: Wanted) {
        if wanted.scope.is_canary() {
            // Nobody but this server knew of it.
            pool.put_back(place);
        } else {
            pool.give_back(now, place);
        }
    }

    /// A port of an earlier pool rests in the newest, too, which may offer it.
    fn rest(&mut self, now: Instant, pool: &RelayPool, place: Place) {
        if pool.generation() != self.pool.generation() {
            self.pool.rest(now, pool.addresses(place).local);
            self.older.retain(|pool| !pool.is_idle());
        }
    }

    /// Goes on with a port that was kept for this.
    ///
    /// # Errors
    /// The user has none under `token`, a limit of the client's address, or the kernel watches no more sockets.
    fn claim(
        &mut self,
        now: Instant,
        asked: Asked,
        token: u64,
        poller: &Poller,
    ) -> Result<Opened, OpenError> {
        let (user, client) = (asked.user, asked.client);
        let claimed = (self.pool.reservations()).claim(token, &user, asked.wanted);
        let reserved = claimed.ok_or(OpenError::Capacity)?;
        let wanted = reserved.wanted;
        if let Err(error) = poller.add(&reserved.socket, token_of(asked.id, wanted.family)) {
            tracing::error!(%error, "cannot watch a relay socket");
            reserved.give_back(now);
            return Err(OpenError::Capacity);
        }
        let Reserved {
            pool,
            place,
            socket,
            client: before,
            ..
        } = reserved;
        if pool.reserve_held(&user, before, client, wanted).is_err() {
            poller.remove(&socket);
            drop(socket);
            pool.give_back(now, place);
            return Err(OpenError::Quota);
        }
        let relayed = RelayedAddress(pool.addresses(place).external);
        self.put(asked.id, pool, place, socket, user, client, wanted);
        Ok(Opened {
            relayed,
            token: None,
        })
    }

    /// Goes on with a socket that is open already, and whose place its pool has given.
    ///
    /// # Errors
    /// The kernel watches no more sockets.
    pub fn adopt(
        &mut self,
        tenant: &Tenant,
        (pool, place, (socket, even_port)): Settled,
        poller: &Poller,
    ) -> io::Result<()> {
        let id = tenant.id;
        let (user, client) = (Arc::clone(&tenant.user), tenant.five_tuple.client().ip());
        let family = Family::of(socket.local_addr().ip());
        if let Err(error) = poller.add(&socket, token_of(id, family)) {
            pool.put_back(place);
            return Err(error);
        }
        let wanted = Wanted {
            family,
            even_port,
            scope: tenant.scope,
            realm: tenant.realm,
        };
        match self.get(id, family.other()).is_some() {
            true => pool.adopt_port(&user, wanted),
            false => pool.adopt(&user, client, wanted),
        }
        self.put(id, pool, place, socket, user, client, wanted);
        Ok(())
    }

    /// Closes a socket that nobody has come for.
    pub fn refuse(&self, now: Instant, (pool, place, (socket, _)): Settled) {
        drop(socket);
        pool.give_back(now, place);
    }

    #[allow(clippy::too_many_arguments, reason = "one for each part of a relay")]
    fn put(
        &mut self,
        id: AllocationId,
        pool: Arc<RelayPool>,
        place: Place,
        socket: UdpSocket,
        user: Arc<str>,
        client: IpAddr,
        wanted: Wanted,
    ) {
        socket.let_fragment();
        socket.report_tos(self.reports.tos);
        socket.report_errors(self.reports.errors);
        pool.set_owner(place, Some(self.shard));
        let generation = pool.generation();
        self.by_place.insert((generation, place), id);
        let slot = slot_of(id, wanted.family) as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(Box::new(Relay {
            id,
            socket,
            pool,
            place,
            wanted,
            user,
            client,
            trains: Trains::default(),
            marks: self.reports.tos.then(Marks::default),
            several: false,
            gathers: false,
            last_turn: 0,
            is_silent: false,
        }));
    }

    /// Counts the relays of `id` for `client` rather than the address so far.
    ///
    /// # Errors
    /// The quota of `client` is used up; nothing changes then.
    pub fn move_client(&mut self, id: AllocationId, client: IpAddr) -> Result<(), OpenError> {
        let mut counted = Err(OpenError::Capacity);
        for family in Family::ALL {
            let Some(relay) = self.get_mut(id, family) else {
                continue;
            };
            // An allocation counts once, however many relayed addresses it has.
            if counted.is_err() {
                (relay.pool)
                    .move_client(relay.client, client, relay.wanted)
                    .map_err(|_| OpenError::Quota)?;
                counted = Ok(());
            }
            relay.client = client;
        }
        counted
    }

    /// Closes a socket that another process has open as well.
    pub fn hand_over(&mut self, id: AllocationId, family: Family, poller: &Poller) {
        if let Some(relay) = self.take(id, family) {
            // Closing alone would not do: the other descriptor keeps it in the set.
            poller.remove(&relay.socket);
            (self.by_place).remove(&(relay.pool.generation(), relay.place));
            relay.pool.set_abroad(relay.place);
            self.release(&relay.pool, &relay.user, relay.client, relay.wanted, id);
            self.abroad = true;
        }
    }

    /// Where a datagram came from, as peers are known: another process's relay socket by its relayed address.
    pub fn as_seen(&self, from: SocketAddr) -> SocketAddr {
        if !self.abroad {
            return from;
        }
        let mut pools = std::iter::once(&self.pool).chain(&self.older);
        pools
            .find_map(|pool| pool.seen_abroad(from))
            .unwrap_or(from)
    }

    /// Closes the socket and gives back what opening it reserved. Nothing happens if it is not open.
    pub fn close(&mut self, now: Instant, id: AllocationId, family: Family, poller: &Poller) {
        let Some(relay) = self.take(id, family) else {
            return;
        };
        self.drops_of_closed += u64::from(relay.socket.drops());
        poller.remove(&relay.socket);
        (self.by_place).remove(&(relay.pool.generation(), relay.place));
        // Closed before the port is free again, or the next owner could not bind it.
        let Relay {
            socket,
            pool,
            place,
            wanted,
            user,
            client,
            ..
        } = *relay;
        drop(socket);
        self.put_back(now, &pool, place, wanted);
        self.release(&pool, &user, client, wanted, id);
        self.rest(now, &pool, place);
    }

    /// Opens new relay sockets otherwise from now on; the families of their pool, if that is another.
    pub fn change(
        &mut self,
        buffer_bytes: usize,
        relays: Option<(Arc<RelayPool>, Vec<Family>)>,
    ) -> Option<Vec<Family>> {
        self.buffer_bytes = buffer_bytes;
        let (pool, families) = relays?;
        self.older.push(std::mem::replace(&mut self.pool, pool));
        self.older.retain(|pool| !pool.is_idle());
        Some(families)
    }

    /// Lets all sockets tell this from now on.
    pub fn set_reports(&mut self, reports: Reports) {
        if std::mem::replace(&mut self.reports, reports) != reports {
            for relay in self.slots.iter_mut().flatten() {
                relay.socket.report_tos(reports.tos);
                relay.marks = reports.tos.then(Marks::default);
                relay.socket.report_errors(reports.errors);
                relay.is_silent = false;
            }
        }
    }

    /// Lets the socket of `id` in `family` tell of no errors, and forget those it has; false if that is so already.
    pub fn silence(&mut self, id: AllocationId, family: Family) -> bool {
        let relay = self.get_mut(id, family).filter(|relay| !relay.is_silent);
        relay.is_some_and(|relay| {
            relay.socket.report_errors(false);
            relay.is_silent = true;
            true
        })
    }

    /// The contrary.
    pub fn end_silence(&mut self, id: AllocationId, family: Family) {
        let errors = self.reports.errors;
        if let Some(relay) = self.get_mut(id, family).filter(|relay| relay.is_silent) {
            relay.socket.report_errors(errors);
            relay.is_silent = false;
        }
    }

    pub fn get(&self, id: AllocationId, family: Family) -> Option<&Relay> {
        self.slots
            .get(slot_of(id, family) as usize)?
            .as_deref()
            .filter(|relay| relay.id == id)
    }

    fn take(&mut self, id: AllocationId, family: Family) -> Option<Box<Relay>> {
        let slot = self.slots.get_mut(slot_of(id, family) as usize)?;
        slot.take_if(|relay| relay.id == id)
    }

    /// Gives back what a relay of `id` counted that is gone.
    fn release(
        &self,
        pool: &RelayPool,
        user: &Arc<str>,
        client: IpAddr,
        wanted: Wanted,
        id: AllocationId,
    ) {
        match self.get(id, wanted.family.other()).is_some() {
            true => pool.release_port(user, wanted),
            false => pool.release(user, client, wanted),
        }
    }

    /// The same, to take note of what it receives.
    pub fn get_mut(&mut self, id: AllocationId, family: Family) -> Option<&mut Relay> {
        self.slots
            .get_mut(slot_of(id, family) as usize)?
            .as_deref_mut()
            .filter(|relay| relay.id == id)
    }

    /// The relay in `slot`, whatever its generation: for batches that are sent before anything can be closed.
    pub fn in_slot(&self, slot: u32) -> Option<&Relay> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// How clients and peers see the relayed address of `id` in `family`.
    pub fn relayed(&self, id: AllocationId, family: Family) -> Option<SocketAddr> {
        let relay = self.get(id, family)?;
        Some(relay.pool.addresses(relay.place).external)
    }

    /// Who has the relayed address `external`, if it is one of ours and allocated.
    pub fn find(&self, external: SocketAddr) -> Option<Owner> {
        self.find_in(&self.pool, external)
            .or_else(|| (self.older.iter()).find_map(|pool| self.find_in(pool, external)))
    }

    fn find_in(&self, pool: &RelayPool, external: SocketAddr) -> Option<Owner> {
        let place = pool.find(external)?;
        match self.by_place.get(&(pool.generation(), place)) {
            Some(id) => Some(Owner::Here(*id)),
            None => match pool.owner(place)? {
                ABROAD => Some(Owner::Abroad(pool.addresses(place).local)),
                ABROAD_TCP => None,
                shard if shard == self.shard => None,
                shard => Some(Owner::Shard(shard)),
            },
        }
    }

    /// Where the TCP relayed address `external` is bound, if any shard of this process has it.
    pub fn listener_of(&self, external: SocketAddr) -> Option<SocketAddr> {
        self.pool.listener_of(external)
    }

    /// Whether a relay socket of any shard is bound to `local`.
    pub fn is_bound(&self, local: SocketAddr) -> bool {
        self.pool.is_bound(local) || self.older.iter().any(|pool| pool.is_bound(local))
    }

    /// Datagrams the kernel dropped because a relay socket's buffer was full.
    pub fn drops(&self) -> u64 {
        let live = self.slots.iter().flatten();
        self.drops_of_closed
            + live
                .map(|relay| u64::from(relay.socket.drops()))
                .sum::<u64>()
    }

    /// Datagrams that were dropped on sockets that are closed by now.
    pub const fn drops_of_closed(&self) -> u64 {
        self.drops_of_closed
    }

    /// Goes on counting from there.
    pub const fn set_drops_of_closed(&mut self, drops: u64) {
        self.drops_of_closed = drops;
    }

    /// Says that `user` gets no more ports: behind one name there may be many people, who notice.
    fn tell_of_share(&mut self, now: Instant, user: &str) {
        let told = self.share_told;
        if told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY) {
            self.share_told = Some(now);
            tracing::warn!(
                user = %user.escape_debug(),
                "a user has the share of the relay ports that limits.share_per_user allows, and gets no more; if many \
                 people share the name, raise it or widen relay.ports"
            );
        }
    }

    /// Opens a socket, and with `pair` the one above it.
    fn bind<S: AsFd>(
        &mut self,
        now: Instant,
        wanted: Wanted,
        pair: bool,
        id: AllocationId,
        poller: &Poller,
        open: impl Fn(SocketAddr) -> io::Result<S>,
    ) -> Option<Bound<S>> {
        // Ports that other programs hold go back only afterwards, or chance could offer the same one again.
        let mut held_by_others = Vec::new();
        let bound = loop {
            let taken = match pair {
                true => self.pool.take_pair(now, wanted.family).map(Vec::from),
                false => self.pool.take(now, wanted).map(|place| vec![place]),
            };
            let Some(places) = taken else {
                break None;
            };
            let opened: io::Result<Vec<_>> = (places.iter())
                .map(|place| open(self.pool.addresses(*place).local))
                .collect();
            let watched = opened.and_then(|sockets| {
                let first = sockets.first();
                first.map_or(Ok(()), |socket| {
                    poller.add(socket, token_of(id, wanted.family))
                })?;
                Ok(sockets)
            });
            match watched {
                Ok(sockets) => {
                    self.failing = false;
                    let mut both = places.into_iter().zip(sockets);
                    let (place, socket) = both.next()?;
                    break Some(Bound {
                        place,
                        socket,
                        above: both.next(),
                    });
                }
                Err(error) => {
                    let in_use = error.kind() == io::ErrorKind::AddrInUse;
                    let local = places
                        .first()
                        .map(|place| self.pool.addresses(*place).local);
                    if in_use {
                        held_by_others.extend(places);
                    } else {
                        places
                            .into_iter()
                            .for_each(|place| self.pool.put_back(place));
                    }
                    if !in_use || held_by_others.len() >= ATTEMPTS {
                        // Clients try again and again: one line until it works again.
                        if !self.failing {
                            tracing::error!(
                                local = local.map(tracing::field::display),
                                %error,
                                "cannot open a relay socket, allocations are refused; if it says \"too many open \
                                 files\", raise LimitNOFILE"
                            );
                        }
                        self.failing = true;
                        break None;
                    }
                }
            }
        };
        for place in held_by_others {
            // Somebody had it, and may have it for long: others come first.
            self.pool.give_back(now, place);
        }
        bound
    }
}

/// What is asked of a relay socket.
pub(super) struct Asked {
    /// Whose.
    pub id: AllocationId,
    pub wanted: Wanted,
    pub user: Arc<str>,
    pub client: IpAddr,
    /// The port above it is to be kept.
    pub reserve: bool,
    /// It is one that was kept.
    pub token: Option<u64>,
}

/// A socket that was opened, and one to keep.
struct Bound<S> {
    place: Place,
    socket: S,
    above: Option<(Place, S)>,
}

/// Marks the poller's tokens of IPv6 relays: a slot's number has 31 bits.
const V6: u64 = 1 << 31;

/// The poller's token of the relay of `id` in `family`.
fn token_of(id: AllocationId, family: Family) -> u64 {
    match family {
        Family::V4 => id.to_bits(),
        Family::V6 => id.to_bits() | V6,
    }
}

/// Whose relay a token of the poller names.
pub(super) fn of_token(token: u64) -> (AllocationId, Family) {
    let family = match token & V6 {
        0 => Family::V4,
        _ => Family::V6,
    };
    (AllocationId::from_bits(token & !V6), family)
}

/// The place of a relay in the table.
pub(super) const fn slot_of(id: AllocationId, family: Family) -> u32 {
    id.slot << 1 | family as u32
}
