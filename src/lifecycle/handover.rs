//! One process goes on where another stops, without a packet lost: the hand-over between two turnix on one host.
//!
//! ```text
//!  successor                                   predecessor, serving
//!     │ ── Hello: versions ────────────────────► │
//!     │ ◄──────────── Hello: shards, listeners ─ │
//!     │    reads its configuration, opens what is new
//!     │ ── Ready ──────────────────────────────► │ stops reading: packets wait in the kernel
//!     │ ── Next ───► ◄─── one record each time ─ │ listeners first, then shard by shard
//!     │ ◄─────────────────────────────────── End │
//!     │    makes its shards, frozen
//!     │ ── Commit ─────────────────────────────► │ ── in time: Granted; else Refused, and it reads on
//!     │ ◄─────────────────────────────── Granted │
//!     │    serves
//!     │ ── Serving ────────────────────────────► │ lets go
//! ```
//!
//! The predecessor alone decides, when it reads `Commit`. Until it reads `Serving` it keeps every socket, so the end of
//! the successor at any moment leaves it as it was; the end of the predecessor leaves the successor with what has arrived.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::base::Clock;
use crate::net::{Channel, Doorway, Parcel, Peer, expect_descriptors};
use crate::shard::{Legacy, MAX_SHARDS, Record, Sink};
use crate::turn::SNAPSHOT_FORMAT;

use super::store::{self, Stored, StoredRecord};

/// The version of this conversation.
const PROTOCOL: u16 = 1;

/// How long the predecessor stops reading for a successor that does not commit.
pub const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// How long one side waits for the next word of the other where nothing is frozen.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a successor may take to read its configuration and open what is new.
const PREPARATION: Duration = Duration::from_secs(60);

/// What a process opens besides, and what comes while it prepares itself.
const SPARE_DESCRIPTORS: usize = 256;

/// How often a successor that has the word and does not serve is complained about.
const COMPLAINT: Duration = Duration::from_secs(5);

/// What a message says; records of shards have numbers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Word {
    Hello = 1,
    Ready,
    Next,
    /// The TCP listeners.
    Doors,
    End,
    Commit,
    Granted,
    Serving,
    Refused,
}

impl Word {
    const ALL: [Self; 9] = [
        Self::Hello,
        Self::Ready,
        Self::Next,
        Self::Doors,
        Self::End,
        Self::Commit,
        Self::Granted,
        Self::Serving,
        Self::Refused,
    ];

    fn of(parcel: &Parcel) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|word| *word as u8 == parcel.kind)
    }
}

/// What each side says first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Versions {
    /// Of the conversation.
    protocol: u16,
    /// Of the state of shards.
    snapshot: u16,
    /// Of the program.
    pub program: String,
}

impl Versions {
    /// Those of this process.
    pub fn own() -> Self {
        Self {
            protocol: PROTOCOL,
            snapshot: SNAPSHOT_FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Why the two cannot understand each other, if so.
    fn refuse(&self, other: &Self) -> Option<String> {
        let (mine, theirs) = (&self.program, &other.program);
        if self.protocol != other.protocol {
            let (a, b) = (self.protocol, other.protocol);
            return Some(format!(
                "{mine} speaks hand-over {a}, and {theirs} speaks {b}"
            ));
        }
        let (a, b) = (self.snapshot, other.snapshot);
        (a != b).then(|| format!("{mine} reads state of format {a}, and {theirs} has {b}"))
    }
}

/// What is open in the predecessor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// How many shards it has.
    pub shards: usize,
    /// About how many descriptors it has.
    #[serde(default)]
    pub descriptors: usize,
    /// Its listeners.
    pub listeners: Vec<Place>,
    /// Its admin listener.
    pub admin: Option<Place>,
    /// How its relay addresses look from outside: local, external, who says so.
    #[serde(default)]
    pub outside: Vec<(IpAddr, IpAddr, String)>,
    /// Relayed addresses that may live: an IP as clients were told, first and last port.
    #[serde(default)]
    pub relayed: Vec<(IpAddr, u16, u16)>,
}

/// One listener.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Place {
    /// As its configuration has it: the port may be 0.
    pub wanted: SocketAddr,
    /// Where it is.
    pub bound: SocketAddr,
    /// Whether it is open for UDP.
    pub udp: bool,
    /// Whether it is open for TCP.
    pub tcp: bool,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    versions: Versions,
    inventory: Inventory,
}

/// Why there is no hand-over. The predecessor serves on.
#[derive(Debug)]
pub enum Failure {
    /// The other side says so.
    Refused(String),
    /// The other side says nothing that can be understood, or nothing at all.
    Broken(io::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(reason) => f.write_str(reason),
            Self::Broken(error) if error.kind() == io::ErrorKind::WouldBlock => {
                f.write_str("the other process does not answer")
            }
            Self::Broken(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(io::Error::other)
}

fn decode<'a, T: Deserialize<'a>>(parcel: &'a Parcel) -> io::Result<T> {
    rmp_serde::from_slice(&parcel.body).map_err(io::Error::other)
}

fn say(channel: &Channel, word: Word, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    channel.send(word as u8, body, fds)
}

/// Waits for `word`.
fn hear(channel: &Channel, word: Word) -> Result<Parcel, Failure> {
    let parcel = channel.receive()?;
    match Word::of(&parcel) {
        Some(heard) if heard == word => Ok(parcel),
        Some(Word::Refused) => Err(refusal(&parcel)),
        _ => Err(Failure::Broken(io::ErrorKind::InvalidData.into())),
    }
}

fn refusal(parcel: &Parcel) -> Failure {
    Failure::Refused(String::from_utf8_lossy(&parcel.body).into_owned())
}

/// Says why not, to somebody who may be gone.
fn refuse(channel: &Channel, reason: &str) {
    let _ = say(channel, Word::Refused, reason.as_bytes(), &[]);
}

/// Where tests end or halt a process: `HANDOVER_FAULT` names the point, with `hang:` before it to halt.
fn fault_point(point: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    let wanted = std::env::var("HANDOVER_FAULT").unwrap_or_default();
    if wanted == point {
        std::process::abort();
    }
    while wanted.strip_prefix("hang:") == Some(point) {
        std::thread::park();
    }
}

// ---- The predecessor.

/// What the process that serves hears from those that want to take over.
#[derive(Debug)]
pub enum Knock {
    /// What is open?
    Inventory(oneshot::Sender<Inventory>),
    /// Ready to take it.
    Ready(Candidate),
}

/// A process that is ready to take over.
#[derive(Debug)]
pub struct Candidate {
    channel: Channel,
    /// Who it is.
    pub peer: Peer,
    /// Its version.
    pub program: String,
}

/// Listens at `path` for processes that want to take over, on a thread of its own; the socket's file goes with the
/// returned value.
///
/// # Errors
/// Another process that lives listens there and `replace` does not say that it is the predecessor, or the path cannot
/// be used.
pub fn listen(path: &Path, replace: bool, knocks: mpsc::Sender<Knock>) -> io::Result<Doorway> {
    if !replace && Channel::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let doorway = Doorway::open(path)?;
    let listener = doorway.listener()?;
    std::thread::Builder::new()
        .name("handover".to_owned())
        .spawn(move || {
            while let Ok((channel, peer)) = listener.accept() {
                match receive(channel, peer, &knocks) {
                    Ok(candidate) => {
                        if knocks.blocking_send(Knock::Ready(candidate)).is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::info!(pid = peer.pid, %error, "no take-over"),
                }
            }
        })?;
    Ok(doorway)
}

/// Answers one process until it is ready.
fn receive(
    channel: Channel,
    peer: Peer,
    knocks: &mpsc::Sender<Knock>,
) -> Result<Candidate, Failure> {
    channel.set_patience(Some(PATIENCE))?;
    let versions: Versions = decode(&hear(&channel, Word::Hello)?)?;
    if let Some(reason) = Versions::own().refuse(&versions) {
        refuse(&channel, &reason);
        return Err(Failure::Refused(reason));
    }
    let (answer, answered) = oneshot::channel();
    let gone = || Failure::Broken(io::ErrorKind::BrokenPipe.into());
    (knocks.blocking_send(Knock::Inventory(answer))).map_err(|_| gone())?;
    let hello = Hello {
        versions: Versions::own(),
        inventory: answered.blocking_recv().map_err(|_| gone())?,
    };
    say(&channel, Word::Hello, &encode(&hello)?, &[])?;
    channel.set_patience(Some(PREPARATION))?;
    hear(&channel, Word::Ready)?;
    Ok(Candidate {
        channel,
        peer,
        program: versions.program,
    })
}

/// The predecessor's side from freezing on. Clones are one.
#[derive(Clone, Debug)]
pub struct Giver {
    channel: Arc<Channel>,
    until: Instant,
}

impl Giver {
    /// Begins; everything has to be over within [`FREEZE_LIMIT`].
    pub fn new(candidate: Candidate) -> Self {
        fault_point("old:frozen");
        Self {
            channel: Arc::new(candidate.channel),
            until: Clock.now().mono + FREEZE_LIMIT,
        }
    }

    /// Gives the TCP listeners, which are those of the inventory, in its order, the admin listener last.
    ///
    /// # Errors
    /// The successor is gone or slow.
    pub fn doors(&self, sockets: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.asked()?;
        say(&self.channel, Word::Doors, &[], sockets)?;
        Ok(())
    }

    /// Nothing more comes: waits for the successor to commit, and grants it. From then on only the end of the successor
    /// lets this process go on.
    ///
    /// # Errors
    /// The successor is gone or slow, or does not want it.
    pub fn grant(&self) -> Result<(), Failure> {
        self.asked()?;
        say(&self.channel, Word::End, &[], &[])?;
        fault_point("old:given");
        self.set_patience()?;
        hear(&self.channel, Word::Commit)?;
        say(&self.channel, Word::Granted, &[], &[])?;
        fault_point("old:granted");
        Ok(())
    }

    /// Waits until the successor serves. False if it ended before.
    pub fn released(&self) -> bool {
        loop {
            let _ = self.channel.set_patience(Some(COMPLAINT));
            match hear(&self.channel, Word::Serving) {
                Ok(_) => return true,
                Err(Failure::Broken(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    tracing::error!(
                        "the process that takes over neither serves nor ends: end it, and this one goes on"
                    );
                }
                Err(_) => return false,
            }
        }
    }

    /// Says that this process serves on.
    pub fn refuse(&self, reason: &str) {
        refuse(&self.channel, reason);
    }

    fn asked(&self) -> Result<(), Failure> {
        self.set_patience()?;
        hear(&self.channel, Word::Next).map(drop)
    }

    fn set_patience(&self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Clock.now().mono);
        if left.is_zero() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.channel.set_patience(Some(left))
    }
}

impl Sink for Giver {
    fn put(&mut self, kind: Record, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if kind == Record::Relays {
            fault_point("old:relays");
        }
        self.asked().map_err(|failure| match failure {
            Failure::Broken(error) => error,
            Failure::Refused(reason) => io::Error::other(reason),
        })?;
        self.channel.send(kind as u8, body, descriptors)?;
        if kind == Record::Listeners {
            fault_point("old:listeners");
        }
        Ok(())
    }
}

// ---- The successor.

/// A predecessor, and what it has.
pub struct Approach {
    from: Source,
    /// What is open there.
    pub inventory: Inventory,
}

enum Source {
    /// It serves.
    Process(Channel),
    /// It has ended, and systemd kept what it had.
    Store {
        names: Vec<String>,
        records: Vec<StoredRecord>,
    },
}

/// What has been taken.
#[derive(Default)]
pub struct Taken {
    /// `None` once the predecessor is gone.
    channel: Option<Channel>,
    /// What systemd keeps as long as it is not told that it is taken.
    stored: Vec<String>,
    /// TCP listeners.
    pub doors: Vec<TcpListener>,
    /// UDP listeners and the state of shards, if enough arrived to serve with.
    pub legacy: Option<Legacy>,
}

impl Approach {
    /// Asks the process that listens at `path`. `None` if there is none.
    ///
    /// # Errors
    /// It is of another user or version, or does not answer.
    pub fn to(path: &Path) -> Result<Option<Self>, Failure> {
        let channel = match Channel::connect(path) {
            Ok(channel) => channel,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        if !channel.peer()?.is_trusted() {
            return Err(Failure::Refused(
                "the process that listens there belongs to another user".to_owned(),
            ));
        }
        channel.set_patience(Some(PATIENCE))?;
        say(&channel, Word::Hello, &encode(&Versions::own())?, &[])?;
        let hello: Hello = decode(&hear(&channel, Word::Hello)?)?;
        if let Some(reason) = Versions::own().refuse(&hello.versions) {
            return Err(Failure::Refused(reason));
        }
        check_shards(&hello.inventory)?;
        Ok(Some(Self {
            from: Source::Process(channel),
            inventory: hello.inventory,
        }))
    }

    /// What a process left that has ended. `None` if it is of no use.
    pub fn to_stored(mut stored: Stored) -> Option<Self> {
        let names = stored.names();
        let read = stored.read().map_err(Failure::from);
        let read = read.and_then(|(versions, inventory, records)| {
            match Versions::own().refuse(&versions) {
                Some(reason) => Err(Failure::Refused(reason)),
                None => check_shards(&inventory).map(|()| (inventory, records)),
            }
        });
        match read {
            Ok((inventory, records)) => Some(Self {
                from: Source::Store { names, records },
                inventory,
            }),
            Err(failure) => {
                tracing::error!(%failure, "what systemd kept is of no use: starting anew");
                store::give_up(names);
                None
            }
        }
    }

    /// Says that this process is ready, and takes everything. What the predecessor could give before it ended, if it
    /// ends.
    ///
    /// # Errors
    /// The predecessor refuses, or what it gives is of no use: it serves on.
    pub fn take(self) -> Result<Taken, Failure> {
        expect_descriptors(self.inventory.descriptors + SPARE_DESCRIPTORS);
        let mut legacy = Legacy::new(self.inventory.shards);
        let mut doors = Vec::new();
        let channel = match self.from {
            Source::Process(channel) => channel,
            Source::Store { names, records } => {
                let mut taken = Taken {
                    stored: names,
                    ..Taken::default()
                };
                match unpack(records, &mut legacy, &mut taken.doors) {
                    Ok(()) => taken.legacy = Some(legacy).filter(Legacy::has_listeners),
                    Err(error) => tracing::error!(error, "what systemd kept is of no use"),
                }
                return Ok(taken);
            }
        };
        let taken = records(&channel, &mut legacy, &mut doors);
        let alive = match taken {
            Ok(()) => true,
            Err(Failure::Broken(error)) if is_gone(&error) => {
                tracing::warn!(
                    allocations = legacy.allocations(),
                    "the process that was to be taken over from has ended: going on with what it gave"
                );
                false
            }
            Err(failure) => {
                refuse(&channel, &failure.to_string());
                return Err(failure);
            }
        };
        fault_point("new:taken");
        let serves = legacy.has_listeners();
        Ok(Taken {
            channel: alive.then_some(channel),
            stored: Vec::new(),
            doors,
            legacy: serves.then_some(legacy),
        })
    }
}

/// Asks for record after record.
fn records(
    channel: &Channel,
    legacy: &mut Legacy,
    doors: &mut Vec<TcpListener>,
) -> Result<(), Failure> {
    say(channel, Word::Ready, &[], &[])?;
    fault_point("new:ready");
    loop {
        // An error is found out by whoever reads: something may have been said before.
        let _ = say(channel, Word::Next, &[], &[]);
        let parcel = channel.receive()?;
        match (Record::from_number(parcel.kind), Word::of(&parcel)) {
            (Some(record), _) => {
                let Parcel {
                    body, descriptors, ..
                } = parcel;
                legacy
                    .add(record, &body, descriptors)
                    .map_err(|reason| Failure::Broken(io::Error::other(reason)))?;
            }
            (None, Some(Word::Doors)) => {
                doors.extend(parcel.descriptors.into_iter().map(TcpListener::from));
            }
            (None, Some(Word::End)) => return Ok(()),
            (None, Some(Word::Refused)) => return Err(refusal(&parcel)),
            _ => return Err(Failure::Broken(io::ErrorKind::InvalidData.into())),
        }
    }
}

fn check_shards(inventory: &Inventory) -> Result<(), Failure> {
    if (1..=MAX_SHARDS as usize).contains(&inventory.shards) {
        return Ok(());
    }
    let shards = inventory.shards;
    Err(Failure::Refused(format!(
        "it claims to have {shards} shards"
    )))
}

/// What was stored, without its order.
fn unpack(
    records: Vec<StoredRecord>,
    legacy: &mut Legacy,
    doors: &mut Vec<TcpListener>,
) -> Result<(), String> {
    for record in records {
        match record.kind {
            None => doors.extend(record.descriptors.into_iter().map(TcpListener::from)),
            Some(kind) => legacy.add(kind, &record.body, record.descriptors)?,
        }
    }
    Ok(())
}

impl Taken {
    /// Asks for the word to serve. A predecessor that is gone has nothing against it.
    ///
    /// # Errors
    /// It serves on, because this took too long.
    pub fn commit(&mut self) -> Result<(), Failure> {
        let Some(channel) = &self.channel else {
            return Ok(());
        };
        channel.set_patience(Some(PREPARATION))?;
        let _ = say(channel, Word::Commit, &[], &[]);
        match hear(channel, Word::Granted) {
            Ok(_) => {}
            Err(Failure::Broken(error)) if is_gone(&error) => self.channel = None,
            Err(failure) => return Err(failure),
        }
        fault_point("new:granted");
        Ok(())
    }

    /// Says that this process serves: the predecessor lets go, and so does systemd. `gone` is called, on a thread of its
    /// own, when the predecessor has ended.
    pub fn serving(self, gone: impl FnOnce() + Send + 'static) {
        fault_point("new:serving");
        store::give_up(self.stored);
        let Some(channel) = self.channel else {
            return;
        };
        // One that is gone by now needs no word.
        let _ = say(&channel, Word::Serving, &[], &[]);
        let waits = std::thread::Builder::new().name("handover-end".to_owned());
        let spawned = waits.spawn(move || {
            let _ = channel.set_patience(None);
            while channel.receive().is_ok() {}
            gone();
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "relay ports of the old process stay reserved");
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}
