//! What a shard leaves to the same shard of another process: its sockets, and the state of its clients on UDP and TCP.
//!
//! The sockets stay what they are, so a listener's group of sockets (SO_REUSEPORT) maps every client to the shard that
//! has its allocation, and what arrives while nobody reads waits in the kernel. Records are small, so that they can be
//! sent one by one; each may have descriptors beside it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::base::{Clock, Family};
use crate::net::{MAX_DESCRIPTORS, UdpSocket};
use crate::stream::{Admission, ClientStream};
use crate::turn::{AllocationId, Snapshot};

use super::engine::Endpoint;
use super::ports::{Place, RelayPool};
use super::queue::Queue;
use super::steering::SteeringImage;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Record {
    /// The UDP listeners' sockets of one shard.
    Listeners = 32,
    /// What else a shard is made of.
    Shard = 33,
    /// The core's state.
    Snapshot = 34,
    /// Some relay sockets.
    Relays = 35,
    /// Some TCP clients.
    Streams = 36,
}

impl Record {
    /// Every kind of record.
    pub const ALL: [Self; 5] = [
        Self::Listeners,
        Self::Shard,
        Self::Snapshot,
        Self::Relays,
        Self::Streams,
    ];

    /// The kind with that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Where records go.
pub trait Sink: Send {
    /// Takes one record, with at most [`MAX_DESCRIPTORS`] beside it.
    ///
    /// # Errors
    /// Whoever was to have it is gone.
    fn put(&mut self, kind: Record, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()>;
}

/// Which records a shard is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `Listeners`.
    Listeners,
    /// The others.
    State,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Listeners {
    pub shard: u8,
    pub sockets: Vec<ListenerImage>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct ListenerImage {
    /// The number that endpoints call it by.
    pub slot: usize,
    pub address: SocketAddr,
    pub took_trains: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Rest {
    pub shard: u8,
    pub endpoints: Vec<Endpoint>,
    pub drops: u64,
    pub segmentation_fallbacks: u64,
    /// Who has moved.
    #[serde(default)]
    pub steering: SteeringImage,
    /// Where the relay sockets are bound that stay.
    pub stays: Vec<SocketAddr>,
    /// Those that listen, for connections.
    #[serde(default)]
    pub stays_tcp: Vec<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct RelaySockets {
    pub shard: u8,
    pub relays: Vec<RelayImage>,
    /// Those of allocations in both families that are of the second one: a version that does not know them closes them.
    #[serde(default)]
    pub additional: Vec<RelayImage>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct RelayImage {
    pub slot: u32,
    pub generation: u32,
    /// Where the socket is bound: descriptors may come in any order.
    pub local: SocketAddr,
    pub took_trains: bool,
    /// Asked for with EVEN-PORT, for quotas.
    #[serde(default)]
    pub even_port: bool,
    /// What its client was told, which may look another today.
    #[serde(default)]
    pub external: Option<IpAddr>,
}

/// A relay socket and whether it was asked for with EVEN-PORT.
pub(super) type RelaySocket = (UdpSocket, bool);

/// A relay socket, and the place in a pool that goes with it.
pub(super) type Settled = (Arc<RelayPool>, Place, RelaySocket);

#[derive(Serialize, Deserialize)]
pub(super) struct StreamSockets {
    pub shard: u8,
    pub streams: Vec<StreamImage>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StreamImage {
    /// Both ends: descriptors may come in any order.
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// Whom the socket is open to, where that is a proxy in front of the client.
    #[serde(default)]
    pub proxy: Option<SocketAddr>,
    /// The start of a frame.
    pub partial: Vec<u8>,
    pub queue: Queue,
}

/// Sockets that one record carries.
pub(super) const SOCKETS_PER_RECORD: usize = MAX_DESCRIPTORS;

pub(super) fn encode(record: &impl Serialize) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec_named(record).map_err(io::Error::other)
}

/// What another process left, as it arrives.
#[derive(Default)]
pub struct Legacy {
    shards: Vec<Estate>,
}

/// What it left of one shard.
#[derive(Default)]
struct Estate {
    /// With the numbers that endpoints call them by.
    listeners: Vec<(usize, UdpSocket)>,
    rest: Option<Rest>,
    snapshot: Option<Snapshot>,
    relays: Vec<Arrived>,
    streams: Vec<(ClientStream, Queue)>,
}

/// A relay socket that has arrived.
struct Arrived {
    id: AllocationId,
    /// It is the second of its allocation.
    additional: bool,
    relay: RelaySocket,
    /// What its client was told, if that is known.
    external: Option<IpAddr>,
}

/// What a shard begins with.
pub(super) struct Start {
    snapshot: Snapshot,
    sockets: Sockets,
    streams: Vec<(ClientStream, Queue)>,
}

/// What the allocations of the core need beside it.
pub(super) struct Sockets {
    /// With the listeners' places in this process; those that are not there have none.
    pub endpoints: Vec<Endpoint>,
    pub relays: HashMap<(AllocationId, Family), Settled>,
    pub drops: u64,
    pub segmentation_fallbacks: u64,
    pub steering: SteeringImage,
    /// Some relayed addresses belong to the other process still.
    pub abroad: bool,
    /// Both ends of TCP clients, the local one first.
    pub streams: HashSet<(SocketAddr, SocketAddr)>,
}

impl Legacy {
    /// Of a process with so many shards.
    pub fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Estate::default()).collect(),
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// It is malformed, or of a format that this version does not read.
    pub fn add(
        &mut self,
        kind: Record,
        body: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        match kind {
            Record::Listeners => {
                let record: Listeners = decode(body)?;
                let mut sockets = resumed(descriptors)?;
                let estate = self.of(record.shard)?;
                for image in record.sockets {
                    let socket = sockets.remove(&image.address);
                    let socket = socket.ok_or_else(|| format!("{} is missing", image.address))?;
                    let socket = settled(socket, image.took_trains)?;
                    estate.listeners.push((image.slot, socket));
                }
            }
            Record::Shard => {
                let record: Rest = decode(body)?;
                let estate = self.of(record.shard)?;
                estate.rest = Some(record);
            }
            Record::Snapshot => {
                let (shard, bytes) = body.split_first().ok_or("a record is empty")?;
                let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
                self.of(*shard)?.snapshot = Some(snapshot);
            }
            Record::Relays => {
                let record: RelaySockets = decode(body)?;
                let mut sockets = resumed(descriptors)?;
                let estate = self.of(record.shard)?;
                let first = record.relays.into_iter().map(|image| (image, false));
                let second = record.additional.into_iter().map(|image| (image, true));
                for (image, additional) in first.chain(second) {
                    let id = AllocationId {
                        slot: image.slot,
                        generation: image.generation,
                    };
                    if let Some(socket) = sockets.remove(&image.local) {
                        let socket = settled(socket, image.took_trains)?;
                        estate.relays.push(Arrived {
                            id,
                            additional,
                            relay: (socket, image.even_port),
                            external: image.external,
                        });
                    }
                }
            }
            Record::Streams => {
                let record: StreamSockets = decode(body)?;
                let mut streams: HashMap<_, _> = (descriptors.into_iter())
                    // One that has closed meanwhile is no loss.
                    .filter_map(|fd| ClientStream::from_tcp(TcpStream::from(fd)).ok())
                    .map(|stream| ((stream.client, stream.local), stream))
                    .collect();
                let estate = self.of(record.shard)?;
                for image in record.streams {
                    let peer = image.proxy.unwrap_or(image.client);
                    if let Some(stream) = streams.remove(&(peer, image.local)) {
                        let mut stream = stream.for_client(image.client);
                        stream.received = image.partial;
                        estate.streams.push((stream, image.queue));
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts the connections that have arrived; those that are too many are closed.
    pub fn admit(&mut self, admission: &Arc<Admission>) {
        for estate in &mut self.shards {
            estate.streams = std::mem::take(&mut estate.streams)
                .into_iter()
                .filter_map(|(stream, queue)| {
                    let place = admission.admit(stream.client.ip())?;
                    Some((stream.counted(place), queue))
                })
                .collect();
        }
    }

    /// Whether every shard's listeners have arrived: enough to serve with.
    pub fn has_listeners(&self) -> bool {
        let count = self
            .shards
            .first()
            .map_or(0, |estate| estate.listeners.len());
        self.shards
            .iter()
            .all(|estate| estate.listeners.len() == count)
            && (count > 0 || self.shards.iter().all(|estate| estate.snapshot.is_some()))
    }

    /// How many allocations have arrived.
    pub fn allocations(&self) -> usize {
        (self.shards.iter())
            .flat_map(|estate| &estate.relays)
            .filter(|arrived| !arrived.additional)
            .count()
    }

    /// How many shards the other process has.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The sockets of the listener at `address`, one for each shard; none if it was not there.
    pub(super) fn take_listener(&mut self, address: SocketAddr) -> Option<Vec<UdpSocket>> {
        let index = self.listener(address)?;
        let sockets: Vec<_> = (self.shards.iter())
            .filter_map(|estate| {
                let (_, socket) = estate.listeners.get(index)?;
                let packet_info = address.ip().is_unspecified();
                socket.share(packet_info).ok()
            })
            .collect();
        (sockets.len() == self.shards.len()).then_some(sockets)
    }

    fn listener(&self, address: SocketAddr) -> Option<usize> {
        let first = self.shards.first()?;
        (first.listeners.iter()).position(|(_, socket)| socket.local_addr() == address)
    }

    /// What each shard begins with, `None` where its state did not arrive, and the pools that were before `pool`.
    /// `listeners` are those of this process.
    pub(super) fn starts(
        self,
        listeners: &[SocketAddr],
        pool: &Arc<RelayPool>,
    ) -> (Vec<Option<Start>>, Vec<Arc<RelayPool>>) {
        let places: HashMap<usize, usize> = (self.shards.first().into_iter())
            .flat_map(|estate| &estate.listeners)
            .filter_map(|(slot, socket)| {
                let same = |address: &SocketAddr| *address == socket.local_addr();
                Some((*slot, listeners.iter().position(same)?))
            })
            .collect();
        let rests = || self.shards.iter().flat_map(|estate| &estate.rest);
        let stays: Vec<_> = rests().flat_map(|rest| &rest.stays).copied().collect();
        for place in pool.claim(&stays).into_iter().flatten() {
            pool.set_abroad(place);
        }
        let tcp: Vec<_> = rests().flat_map(|rest| &rest.stays_tcp).copied().collect();
        for place in pool.claim(&tcp).into_iter().flatten() {
            pool.set_abroad_tcp(place);
        }
        let abroad = !stays.is_empty();
        let mut pools = Pools {
            current: Arc::clone(pool),
            before: Vec::new(),
        };
        let starts = (self.shards.into_iter())
            .map(|estate| estate.start(&places, &mut pools, abroad))
            .collect();
        (starts, pools.before)
    }

    fn of(&mut self, shard: u8) -> Result<&mut Estate, String> {
        (self.shards.get_mut(usize::from(shard)))
            .ok_or_else(|| format!("there is no shard {shard}"))
    }
}

/// Where relayed addresses come from that were told before.
struct Pools {
    current: Arc<RelayPool>,
    before: Vec<Arc<RelayPool>>,
}

impl Pools {
    /// The pool of what is bound to an address `local` and was told as `external`.
    fn of(&mut self, local: IpAddr, external: Option<IpAddr>) -> Arc<RelayPool> {
        let current = self.current.external(local);
        let told = external.filter(|external| current.is_some_and(|current| current != *external));
        let Some(told) = told else {
            return Arc::clone(&self.current);
        };
        let same = |pool: &&Arc<RelayPool>| pool.external(local) == Some(told);
        if let Some(pool) = self.before.iter().find(same) {
            return Arc::clone(pool);
        }
        let index = self.before.len() as u32;
        match (self.current).before(local, told, index, Clock.now().mono) {
            Some(pool) => {
                let pool = Arc::new(pool);
                self.before.push(Arc::clone(&pool));
                pool
            }
            None => Arc::clone(&self.current),
        }
    }

    /// Finds each socket its place; those that have none are closed.
    fn settle(&mut self, relays: Vec<Arrived>) -> HashMap<(AllocationId, Family), Settled> {
        type OfOnePool = (Arc<RelayPool>, Vec<Arrived>);
        let mut by_pool: Vec<OfOnePool> = Vec::new();
        for arrived in relays {
            let pool = self.of(arrived.relay.0.local_addr().ip(), arrived.external);
            match (by_pool.iter_mut()).find(|(known, _)| Arc::ptr_eq(known, &pool)) {
                Some((_, relays)) => relays.push(arrived),
                None => by_pool.push((pool, vec![arrived])),
            }
        }
        let mut settled = HashMap::new();
        for (pool, relays) in by_pool {
            let locals: Vec<_> = (relays.iter())
                .map(|arrived| arrived.relay.0.local_addr())
                .collect();
            for (arrived, place) in relays.into_iter().zip(pool.claim(&locals)) {
                if let Some(place) = place {
                    let family = Family::of(arrived.relay.0.local_addr().ip());
                    let whole = (Arc::clone(&pool), place, arrived.relay);
                    settled.insert((arrived.id, family), whole);
                }
            }
        }
        settled
    }
}

impl Estate {
    fn start(
        self,
        places: &HashMap<usize, usize>,
        pools: &mut Pools,
        abroad: bool,
    ) -> Option<Start> {
        let (rest, snapshot) = self.rest.zip(self.snapshot)?;
        let sockets = Sockets {
            endpoints: (rest.endpoints.into_iter())
                .map(|endpoint| match endpoint {
                    Endpoint::Udp { socket, local } => Endpoint::Udp {
                        socket: places.get(&socket).copied().unwrap_or(usize::MAX),
                        local,
                    },
                    other @ (Endpoint::Stream(_) | Endpoint::Free) => other,
                })
                .collect(),
            relays: pools.settle(self.relays),
            drops: rest.drops,
            segmentation_fallbacks: rest.segmentation_fallbacks,
            steering: rest.steering,
            abroad,
            streams: (self.streams.iter())
                .map(|(stream, _)| (stream.local, stream.client))
                .collect(),
        };
        Some(Start {
            snapshot,
            sockets,
            streams: self.streams,
        })
    }
}

impl Start {
    /// The connections, for tasks of their own.
    pub fn take_streams(&mut self) -> Vec<(ClientStream, Queue)> {
        std::mem::take(&mut self.streams)
    }

    /// The core's part and the others'.
    pub fn split(self) -> (Snapshot, Sockets) {
        (self.snapshot, self.sockets)
    }
}

/// The sockets by where they are bound.
fn resumed(descriptors: Vec<OwnedFd>) -> Result<HashMap<SocketAddr, UdpSocket>, String> {
    (descriptors.into_iter())
        .map(|fd| UdpSocket::resume(fd).map(|socket| (socket.local_addr(), socket)))
        .collect::<io::Result<_>>()
        .map_err(|error| format!("a socket is of no use: {error}"))
}

fn settled(socket: UdpSocket, took_trains: bool) -> Result<UdpSocket, String> {
    if took_trains {
        (socket.leave_trains()).map_err(|error| format!("a socket is of no use: {error}"))?;
    }
    Ok(socket)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(body).map_err(|error| format!("a record is malformed: {error}"))
}
