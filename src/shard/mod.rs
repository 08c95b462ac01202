//! Shards: each is one thread that owns its `turn::Server`, its sockets and its stream clients.
//!
//! ```text
//!               SO_REUSEPORT            one thread, one current-thread runtime, one epoll set behind one AsyncFd
//!  UDP clients ──────────────► listeners ─► engine ─► turn::Server ─► relay sockets ──► peers
//!  TCP/TLS clients ── adopt ─► streams ──────┘  └── hairpin: same shard in place, another shard by mailbox
//!  admin, metrics ── mailbox ─► snapshots, ends
//! ```
//!
//! What spans shards, relay ports and quotas, is settled where a relay is opened (`ports.rs`); shared bandwidth once for
//! many packets (`budgets.rs`). Nothing is shared per packet.

mod budgets;
mod capturing;
mod change;
mod connections;
mod dtls;
mod engine;
mod free_ports;
mod hairpin;
mod handover;
mod mailbox;
mod marks;
mod pipe;
mod ports;
mod queue;
mod relays;
mod reservations;
mod run;
mod steering;
mod streams;
mod survey;
mod trains;
mod why;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::access::{Access, Limits};
use crate::base::trace::Traces;
use crate::base::{Clock, Family};
use crate::metrics::ShardSnapshot;
use crate::net::{UdpOptions, UdpSocket};
use crate::records::{Due, Emitter};
use crate::stream::ClientStream;
use crate::turn::{self, AllocationId, AllocationView, Bandwidth, EndReason};

use budgets::Budgets;
use hairpin::Parcels;
use handover::Part;
use mailbox::{Mailbox, Message};
use ports::{RelayPool, lock};

pub use capturing::{Capture, Captured};
pub use change::{Change, ListenerSlot, Spoken, Unread};
pub use dtls::{Dtls, Speaks};

pub use free_ports::{Available, FreePorts, QUARANTINE};
pub use handover::{Legacy, Record, Sink};

/// A local address that relay sockets are bound to, and how clients and peers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayIp {
    /// What sockets bind to.
    pub local: IpAddr,
    /// What XOR-RELAYED-ADDRESS says; the same as `local` unless there is 1:1 NAT.
    pub external: IpAddr,
}

/// What the shards need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many shards; at least one.
    pub shards: usize,
    /// UDP listeners; every shard has a socket on each.
    pub listeners: Vec<SocketAddr>,
    /// What is spoken on each of them; on those beyond TURN alone.
    pub speaks: Vec<Speaks>,
    /// What DTLS needs.
    pub dtls: Dtls,
    /// Where relayed addresses come from.
    pub relays: Vec<RelayIp>,
    /// Ports of relayed addresses.
    pub ports: RangeInclusive<u16>,
    /// Quotas.
    pub limits: Limits,
    /// Receive and send buffer of a listener, in bytes.
    pub listener_buffer_bytes: usize,
    /// Receive and send buffer of a relay socket, in bytes.
    pub relay_buffer_bytes: usize,
    /// CPUs to pin the shards to, in turn; none: they run anywhere.
    pub cpus: Vec<usize>,
    /// How long a shard asks for packets again and again before it sleeps.
    pub busy_poll: Duration,
    /// How long a stream client without an allocation may go without a whole message; see [`STREAM_IDLE`].
    pub stream_idle: Duration,
    /// Where access records go, if anybody wants them.
    pub records: Option<Emitter>,
    /// The core's settings.
    pub turn: turn::Settings,
}

/// A socket that could not be opened.
#[derive(Debug)]
pub struct BindError {
    /// What it was to be bound to.
    pub address: SocketAddr,
    /// The system's refusal.
    pub source: io::Error,
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot listen on udp {}: {}", self.address, self.source)?;
        if let Some(way_out) = way_out(&self.source) {
            write!(f, "; {way_out}")?;
        }
        Ok(())
    }
}

impl std::error::Error for BindError {}

/// What an operator can do about a socket that could not be bound.
pub fn way_out(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            Some("another program has this port: stop it, or choose another port in listen.address")
        }
        io::ErrorKind::PermissionDenied => Some(
            "ports below 1024 need root or CAP_NET_BIND_SERVICE: the systemd unit grants it, \
             `setcap cap_net_bind_service=+ep` does by hand",
        ),
        io::ErrorKind::AddrNotAvailable => {
            Some("this host has no such address: see `ip address`, or listen on \"[::]\"")
        }
        _ => None,
    }
}

/// The only way other threads reach one shard.
#[derive(Clone)]
struct ShardHandle {
    mailbox: Mailbox,
}

/// Every shard of the server; cheap to clone.
#[derive(Clone)]
pub struct Shards {
    handles: Arc<[ShardHandle]>,
    /// Where relayed addresses come from: the pool in use is the last one, those before it have addresses that live.
    pools: Arc<Mutex<Vec<Arc<RelayPool>>>>,
    budgets: Arc<Budgets>,
    next: Arc<AtomicUsize>,
    /// Addresses the UDP listeners got, in their slots.
    listeners: Arc<Mutex<Vec<Option<SocketAddr>>>>,
    /// What decides access, in every shard once it has read its mailbox.
    access: Arc<Mutex<Arc<Access>>>,
}

/// The most shards there can be: a relay port names its shard in one byte.
pub const MAX_SHARDS: u32 = 128;

/// How long a stream client without an allocation may go without a whole message before it is disconnected.
pub const STREAM_IDLE: Duration = Duration::from_secs(60);

/// How many slots one mailbox message walks: a page takes well under a millisecond.
const PAGE_SLOTS: usize = 1024;

/// Looks for allocations that are due, in the time from one record of theirs to the next.
const LOOKS: u32 = 10;

/// Bounds of the time between two looks.
const SHORTEST_LOOK: Duration = Duration::from_millis(100);
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// How long a shard may take to answer before it counts as stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a shard may take to make itself from what another process left.
const MADE_TIMEOUT: Duration = Duration::from_secs(30);

impl Shards {
    /// Opens every listener and starts the threads. The joins end after `stop`.
    ///
    /// # Errors
    /// All listeners that could not be opened.
    pub fn start(
        settings: &Settings,
        access: Arc<Access>,
    ) -> Result<(Self, Vec<JoinHandle<()>>), Vec<BindError>> {
        Self::start_on(settings, access, Vec::new())
    }

    /// Goes on with what another process left, frozen until [`thaw`](Self::thaw). Listeners that it did not have are
    /// opened.
    ///
    /// # Errors
    /// What could not be opened, or why a shard could not be made.
    pub fn succeed(
        settings: &Settings,
        access: Arc<Access>,
        mut legacy: Legacy,
    ) -> Result<(Self, Vec<JoinHandle<()>>), Vec<BindError>> {
        let mut sockets: Vec<Vec<UdpSocket>> = (0..legacy.shards()).map(|_| Vec::new()).collect();
        let mut problems = Vec::new();
        for &address in &settings.listeners {
            let opened = match legacy.take_listener(address) {
                Some(given) => {
                    let bytes = settings.listener_buffer_bytes;
                    (given.iter())
                        .try_for_each(|socket| socket.size_buffers(bytes, bytes))
                        .map(|()| given)
                }
                None => open_listener(
                    address,
                    sockets.len(),
                    settings.listener_buffer_bytes,
                    Vec::new(),
                ),
            };
            match opened {
                Ok(opened) => (sockets.iter_mut().zip(opened)).for_each(|(shard, s)| shard.push(s)),
                Err(source) => problems.push(BindError { address, source }),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Self::launch(settings, access, sockets, Some(legacy))
    }

    /// The same, on sockets that are open already: for each listener those of its address come first, in their order.
    ///
    /// # Errors
    /// All listeners that could not be opened.
    pub fn start_on(
        settings: &Settings,
        access: Arc<Access>,
        mut open: Vec<UdpSocket>,
    ) -> Result<(Self, Vec<JoinHandle<()>>), Vec<BindError>> {
        let count = settings.shards.clamp(1, MAX_SHARDS as usize);
        let mut sockets: Vec<Vec<UdpSocket>> = (0..count).map(|_| Vec::new()).collect();
        let mut problems = Vec::new();
        for &address in &settings.listeners {
            let given = open
                .extract_if(.., |socket| socket.local_addr() == address)
                .collect();
            match open_listener(address, count, settings.listener_buffer_bytes, given) {
                Ok(opened) => {
                    for (shard, socket) in sockets.iter_mut().zip(opened) {
                        shard.push(socket);
                    }
                }
                Err(source) => problems.push(BindError { address, source }),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Self::launch(settings, access, sockets, None)
    }

    /// Starts a thread for each shard, on its `sockets`, one for each listener.
    fn launch(
        settings: &Settings,
        access: Arc<Access>,
        sockets: Vec<Vec<UdpSocket>>,
        legacy: Option<Legacy>,
    ) -> Result<(Self, Vec<JoinHandle<()>>), Vec<BindError>> {
        let count = sockets.len();
        let of_all = |source| {
            let address = SocketAddr::from(([0, 0, 0, 0], 0));
            vec![BindError { address, source }]
        };
        let addresses: Vec<_> = (sockets.iter().take(1).flatten())
            .map(UdpSocket::local_addr)
            .collect();
        let pool = Arc::new(RelayPool::new(
            &settings.relays,
            settings.ports.clone(),
            settings.limits,
            Clock.now().mono,
        ));
        pool.set_realms(&access.realms);
        let budgets = Arc::new(Budgets::new(Clock.now(), settings.turn.bandwidth, count));
        let mut seed = turn::Seed {
            nonce_key: rand::random(),
            hash: [0; 4],
            families: families(&settings.relays),
        };
        let mut mailboxes = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..count {
            let (mailbox, inbox, empties) = mailbox::open();
            mailboxes.push(mailbox);
            inboxes.push((inbox, empties));
        }
        let handles: Arc<[ShardHandle]> = (mailboxes.iter().cloned())
            .map(|mailbox| ShardHandle { mailbox })
            .collect();
        let (begin, begun) = std::sync::mpsc::channel();
        let begin = legacy.is_some().then_some(begin);
        let (starts, mut pools) = match legacy {
            Some(legacy) => legacy.starts(&addresses, &pool),
            None => ((0..count).map(|_| None).collect(), Vec::new()),
        };
        pools.push(pool);
        let mut joins = Vec::new();
        let shards = sockets.into_iter().zip(inboxes).zip(starts);
        for (index, ((sockets, (inbox, empties)), start)) in shards.enumerate() {
            seed.hash = rand::random();
            let parts = engine::Parts {
                index: index as u8,
                sockets,
                listener_buffer_bytes: settings.listener_buffer_bytes,
                relay_buffer_bytes: settings.relay_buffer_bytes,
                pools: pools.clone(),
                budgets: Arc::clone(&budgets),
                parcels: Parcels::new(index as u8, mailboxes.clone(), empties),
                stream_idle: settings.stream_idle,
                records: settings.records.clone(),
                turn: settings.turn.clone(),
                seed: seed.clone(),
                access: Arc::clone(&access),
                dtls: settings.dtls.clone(),
                speaks: settings.speaks.clone(),
                start,
            };
            let pace = run::Pace {
                cpu: (settings.cpus.iter().cycle()).nth(index).copied(),
                busy_poll: settings.busy_poll,
            };
            let begin = begin.clone();
            let join = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || run::run(parts, pace, inbox, begin));
            joins.push(join.map_err(of_all)?);
        }
        if begin.is_some() {
            for _ in 0..count {
                let made = begun.recv_timeout(MADE_TIMEOUT);
                made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(of_all)?;
            }
        }
        Ok((
            Self {
                handles,
                pools: Arc::new(Mutex::new(pools)),
                budgets,
                next: Arc::default(),
                listeners: Arc::new(Mutex::new(addresses.into_iter().map(Some).collect())),
                access: Arc::new(Mutex::new(access)),
            },
            joins,
        ))
    }

    /// Where the UDP listeners are that the shards started with, or got since, in that order: what port 0 became.
    pub fn listeners(&self) -> Vec<(ListenerSlot, SocketAddr)> {
        (lock(&self.listeners).iter().enumerate())
            .filter_map(|(slot, address)| Some((ListenerSlot(slot), (*address)?)))
            .collect()
    }

    /// How many shards there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Sums what all shards counted. A shard that does not answer counts nothing.
    pub async fn snapshot(&self) -> ShardSnapshot {
        let mut total = ShardSnapshot::default();
        for handle in self.handles.iter() {
            if let Some(snapshot) = handle.ask(Message::Snapshot).await {
                total.merge(&snapshot);
            }
        }
        total
    }

    /// Ends the allocation named `name`; false if there is none.
    pub async fn end_allocation(&self, name: &str) -> bool {
        let Some((shard, id)) = parse_name(name) else {
            return false;
        };
        let Some(handle) = self.handles.get(shard) else {
            return false;
        };
        let end = |answer| Message::End {
            id,
            reason: EndReason::Administrative,
            answer,
        };
        handle.ask(end).await.unwrap_or(false)
    }

    /// Ends every allocation of `user`; how many there were.
    pub async fn end_user(&self, user: &str) -> usize {
        let mut ended = 0;
        for (shard, handle) in self.handles.iter().enumerate() {
            let mut ids = Vec::new();
            self.each_page(shard, |view| {
                if &*view.user == user {
                    ids.push(view.id);
                }
            })
            .await;
            for id in ids {
                let end = |answer| Message::End {
                    id,
                    reason: EndReason::Administrative,
                    answer,
                };
                ended += usize::from(handle.ask(end).await.unwrap_or(false));
            }
        }
        ended
    }

    /// Whether every shard answers within a second.
    pub async fn alive(&self) -> bool {
        self.answer_within(ANSWER_TIMEOUT).await
    }

    /// Whether every shard answers within `patience`.
    pub async fn answer_within(&self, patience: Duration) -> bool {
        let answers: Vec<_> = (self.handles.iter())
            .map(|handle| {
                let (answer, answered) = oneshot::channel();
                handle.mailbox.send(Message::Ping(answer));
                answered
            })
            .collect();
        let all = async {
            for answered in answers {
                if answered.await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(patience, all).await.unwrap_or(false)
    }

    /// How many allocations there are, whether the shards answer or not.
    pub fn live(&self) -> usize {
        self.pool().live()
    }

    /// Keeps a shard from everything else for `time`: how tests see what watches over it.
    #[doc(hidden)]
    pub fn hold(&self, shard: usize, time: Duration) {
        if let Some(handle) = self.handles.get(shard) {
            handle.mailbox.send(Message::Hold(time));
        }
    }

    fn pool(&self) -> Arc<RelayPool> {
        self.pool_in(&lock(&self.pools))
    }

    fn pool_in(&self, pools: &[Arc<RelayPool>]) -> Arc<RelayPool> {
        let last = pools.last().map(Arc::clone);
        last.unwrap_or_else(|| unreachable!("there is always one pool"))
    }

    /// Hands a stream client to the next shard, which owns it from then on.
    pub fn adopt(&self, stream: ClientStream) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len();
        if let Some(handle) = self.handles.get(next) {
            handle.mailbox.send(Message::Adopt(Box::new(stream)));
        }
    }

    /// Stops reading, in every shard: what comes waits in the kernel, and nothing is on its way between shards any more.
    /// TLS clients are served on. False if a shard does not answer.
    pub async fn freeze(&self) -> bool {
        let mut all = true;
        for handle in self.handles.iter() {
            all &= handle.ask(Message::Freeze).await.is_some();
        }
        all
    }

    /// Reads on after [`freeze`](Self::freeze), or begins to after [`succeed`](Self::succeed).
    pub fn thaw(&self) {
        for handle in self.handles.iter() {
            handle.mailbox.send(Message::Thaw);
        }
    }

    /// Gives what another process needs to go on with the UDP clients: the listeners of all shards first. Changes
    /// nothing here; only after [`freeze`](Self::freeze).
    ///
    /// # Errors
    /// The sink takes no more, or a shard is gone.
    pub async fn export(&self, sink: impl Fn() -> Box<dyn Sink>) -> io::Result<()> {
        for part in [Part::Listeners, Part::State] {
            for handle in self.handles.iter() {
                let (answer, answered) = oneshot::channel();
                let sink = sink();
                handle.mailbox.send(Message::Export { part, sink, answer });
                answered.await.map_err(|_| io::ErrorKind::BrokenPipe)??;
            }
        }
        Ok(())
    }

    /// Lets go of what another process has now, and serves the stream clients on; how many connections there are.
    pub async fn leave(&self) -> u64 {
        let mut left = 0;
        for handle in self.handles.iter() {
            left += handle.ask(Message::Leave).await.unwrap_or(0);
        }
        self.thaw();
        left
    }

    /// The process that was taken over from has ended: its relay ports are free.
    pub fn come_home(&self) {
        let now = Clock.now().mono;
        for pool in lock(&self.pools).iter() {
            pool.come_home(now);
        }
    }

    /// Open connections of TCP and TLS clients.
    pub async fn connections(&self) -> u64 {
        self.snapshot().await.stream_connections.iter().sum()
    }

    /// Replaces whose doings are logged in detail, in every shard.
    pub fn set_traces(&self, traces: &Arc<Traces>) {
        for handle in self.handles.iter() {
            handle.mailbox.send(Message::Traces(Arc::clone(traces)));
        }
    }

    /// Lets the allocations that are due leave a record of how far they are.
    pub async fn record_live(&self, due: Due) {
        for handle in self.handles.iter() {
            let mut from = 0;
            loop {
                let page = |answer| Message::RecordLive {
                    due,
                    from,
                    count: PAGE_SLOTS,
                    answer,
                };
                if handle.ask(page).await != Some(true) {
                    break;
                }
                from += PAGE_SLOTS;
            }
        }
    }

    /// Lets each allocation leave a record when it has lived for `every` once more; never returns.
    pub async fn record_live_forever(self, every: Duration) {
        let pause = (every / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let mut after = Clock.now().mono;
        loop {
            tokio::time::sleep(pause).await;
            let until = Clock.now().mono;
            let due = Due {
                after,
                until,
                every,
            };
            self.record_live(due).await;
            after = until;
        }
    }

    /// Replaces the limits of bandwidth, and the new peers that an allocation may address each second.
    pub fn set_limits(&self, bandwidth: Bandwidth, new_peers_per_second: u32) {
        self.budgets.set(bandwidth);
        for handle in self.handles.iter() {
            let limits = Message::Limits {
                bandwidth,
                new_peers_per_second,
            };
            handle.mailbox.send(limits);
        }
    }

    /// Ends every allocation and the threads.
    pub fn stop(&self) {
        for handle in self.handles.iter() {
            handle.mailbox.send(Message::Stop);
        }
    }

    async fn each_page(&self, shard: usize, mut each: impl FnMut(AllocationView)) {
        let Some(handle) = self.handles.get(shard) else {
            return;
        };
        let mut from = 0;
        loop {
            let page = |answer| Message::Views {
                from,
                count: PAGE_SLOTS,
                answer,
            };
            let Some((views, more)) = handle.ask(page).await else {
                return;
            };
            views.into_iter().for_each(&mut each);
            if !more {
                return;
            }
            from += PAGE_SLOTS;
        }
    }
}

impl ShardHandle {
    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.send(message(answer));
        tokio::time::timeout(ANSWER_TIMEOUT, answered)
            .await
            .ok()?
            .ok()
    }
}

/// One socket per shard on `address`. Somebody else's socket on it is an error even where SO_REUSEPORT would share.
///
/// The kernel spreads clients over the sockets by a keyed hash of the four-tuple: a client stays with its shard as long
/// as the number of sockets stays the same, and nothing has to be loaded into the kernel. Steering by a BPF program
/// (SO_ATTACH_REUSEPORT_CBPF) would be by CPU, and a flow may change CPUs while its allocation cannot change shards.
///
/// While the group grows, here, a datagram may land in a socket that its client is not hashed to later. That leaves
/// nothing behind: no shard reads before all sockets are open, so no nonce of this run is known by then, and what needs
/// none is answered without state.
fn open_listener(
    address: SocketAddr,
    count: usize,
    buffer_bytes: usize,
    given: Vec<UdpSocket>,
) -> io::Result<Vec<UdpSocket>> {
    let options = listener_options(address, buffer_bytes);
    let mut sockets = given;
    for socket in &sockets {
        socket.size_buffers(buffer_bytes, buffer_bytes)?;
    }
    let mut bound = address;
    if sockets.is_empty() {
        probe(address)?;
        let first = UdpSocket::bind(address, &options)?;
        bound = first.local_addr();
        sockets.push(first);
    }
    while sockets.len() < count {
        sockets.push(UdpSocket::bind(bound, &options)?);
    }
    Ok(sockets)
}

/// How the socket of a UDP listener is opened.
pub fn listener_options(address: SocketAddr, buffer_bytes: usize) -> UdpOptions {
    UdpOptions {
        reuse_port: true,
        recv_buffer_bytes: buffer_bytes,
        send_buffer_bytes: buffer_bytes,
        packet_info: address.ip().is_unspecified(),
        only_v6: false,
        trains: false,
    }
}

/// Whether `address` is ours alone: without SO_REUSEPORT nobody else may have it.
fn probe(address: SocketAddr) -> io::Result<()> {
    UdpSocket::bind(address, &UdpOptions::default()).map(drop)
}

/// Those of `listeners` that UDP cannot be received on now, for a start that fails for another reason already.
pub fn unavailable(listeners: &[SocketAddr]) -> Vec<BindError> {
    (listeners.iter())
        .filter_map(|&address| {
            let source = probe(address).err()?;
            Some(BindError { address, source })
        })
        .collect()
}

fn families(relays: &[RelayIp]) -> Vec<Family> {
    (Family::ALL.into_iter())
        .filter(|family| relays.iter().any(|ip| Family::of(ip.local) == *family))
        .collect()
}

fn name(shard: usize, id: AllocationId) -> String {
    format!("{shard}-{}-{}", id.slot, id.generation)
}

fn parse_name(name: &str) -> Option<(usize, AllocationId)> {
    let mut parts = name.splitn(3, '-');
    let shard = parts.next()?.parse().ok()?;
    let slot = parts.next()?.parse().ok()?;
    let generation = parts.next()?.parse().ok()?;
    Some((shard, AllocationId { slot, generation }))
}
