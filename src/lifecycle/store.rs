//! What outlives a restart in systemd's keeping: sockets and state (sd_notify(3), FDSTORE=1; `FileDescriptorStoreMax=`).
//!
//! Every record's descriptors are stored under a name of the record's own. What the records say lies in memory that
//! has no name in any file system, sealed, under [`STATE`]. Nothing of it is written to a disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::net;
use crate::shard::{Record, Sink};

use super::handover::{Inventory, Versions};

/// What the names of stored descriptors begin with.
pub(super) const PREFIX: &str = "turnix-";

/// The name of what the records say.
const STATE: &str = "turnix-state";

/// The kind of the record of TCP listeners.
const DOORS: u8 = 0;

/// How long systemd may take to have seen everything.
const BARRIER: Duration = Duration::from_secs(5);

/// More than any state needs, in bytes.
const MOST: u64 = 4 << 30;

#[derive(Serialize, Deserialize)]
struct Head {
    versions: Versions,
    inventory: Inventory,
}

/// How many descriptors systemd keeps for this service; none where it keeps none.
pub fn room() -> Option<usize> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let most = std::env::var("FDSTORE").ok()?.parse().ok()?;
    (most > 0).then_some(most)
}

/// What is being stored. Clones are one.
#[derive(Clone)]
pub struct Store(Arc<Mutex<Pages>>);

struct Pages {
    bytes: Zeroizing<Vec<Zeroizing<Vec<u8>>>>,
    records: u32,
}

impl Store {
    /// Begins, for a process with that inventory.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn new(inventory: Inventory) -> io::Result<Self> {
        let head = Head {
            versions: Versions::own(),
            inventory,
        };
        let head = rmp_serde::to_vec_named(&head).map_err(io::Error::other)?;
        let mut page = (head.len() as u32).to_be_bytes().to_vec();
        page.extend(head);
        Ok(Self(Arc::new(Mutex::new(Pages {
            bytes: Zeroizing::new(vec![Zeroizing::new(page)]),
            records: 0,
        }))))
    }

    /// Stores the TCP listeners.
    ///
    /// # Errors
    /// systemd takes no more.
    pub fn doors(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.put(DOORS, &[], sockets)
    }

    /// Stores what the records say, and waits until systemd has everything.
    ///
    /// # Errors
    /// It has not, or there is no such memory.
    pub fn finish(&self) -> io::Result<()> {
        let pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = File::from(net::sealable_memory(STATE)?);
        for page in pages.bytes.iter() {
            memory.write_all(page)?;
        }
        net::seal(&memory)?;
        keep(STATE, &[memory.as_fd()])?;
        let (mut seen, unseen) = io::pipe()?;
        sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[unseen.as_fd()])?;
        drop(unseen);
        net::wait_readable(&seen, BARRIER)?;
        seen.read(&mut [0]).map(drop)
    }

    /// Has systemd give up what it keeps so far.
    pub fn discard(&self) {
        let records = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .records;
        forget((0..records).map(name).chain([STATE.to_owned()]));
    }

    fn put(&self, kind: u8, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !descriptors.is_empty() {
            keep(&name(pages.records), descriptors)?;
        }
        pages.records += 1;
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut page = Vec::with_capacity(body.len() + 5);
        page.push(kind);
        page.extend(length.to_be_bytes());
        page.extend_from_slice(body);
        pages.bytes.push(Zeroizing::new(page));
        Ok(())
    }
}

impl Sink for Store {
    fn put(&mut self, kind: Record, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        Self::put(self, kind as u8, body, descriptors)
    }
}

fn name(record: u32) -> String {
    format!("{PREFIX}{record}")
}

fn keep(name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    // Sockets with an error pending are no reason to give them up.
    let states = [
        NotifyState::FdStore,
        NotifyState::FdName(name),
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&states, descriptors)
}

fn forget(names: impl Iterator<Item = String>) {
    for name in names {
        let states = [NotifyState::FdStoreRemove, NotifyState::FdName(&name)];
        if let Err(error) = sd_notify::notify(&states) {
            tracing::warn!(%error, name, "systemd could not be told to give up a socket");
        }
    }
}

/// What systemd kept for this process.
#[derive(Debug, Default)]
pub struct Stored {
    descriptors: HashMap<String, Vec<OwnedFd>>,
}

/// One record of what was stored.
pub(super) struct StoredRecord {
    /// `None`: the TCP listeners.
    pub kind: Option<Record>,
    pub body: Zeroizing<Vec<u8>>,
    pub descriptors: Vec<OwnedFd>,
}

impl Stored {
    /// Adds a descriptor that came under `name`.
    pub(super) fn add(&mut self, name: &str, descriptor: OwnedFd) {
        (self.descriptors.entry(name.to_owned()).or_default()).push(descriptor);
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// Has systemd give everything up: it is in this process, or of no use.
    pub(super) fn names(&self) -> Vec<String> {
        self.descriptors.keys().cloned().collect()
    }

    /// Whose it was, and what the records say.
    pub(super) fn read(&mut self) -> io::Result<(Versions, Inventory, Vec<StoredRecord>)> {
        let state = self.descriptors.remove(STATE).and_then(|mut all| all.pop());
        let mut state = File::from(state.ok_or(io::ErrorKind::NotFound)?);
        state.rewind()?;
        let length = state.metadata()?.len().min(MOST);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize));
        state.take(length).read_to_end(&mut bytes)?;
        let mut rest = bytes.as_slice();
        let head: Head = rmp_serde::from_slice(piece(&mut rest)?).map_err(io::Error::other)?;
        let mut records = Vec::new();
        while let Some((kind, behind)) = rest.split_first() {
            rest = behind;
            let body = Zeroizing::new(piece(&mut rest)?.to_vec());
            let name = name(records.len() as u32);
            records.push(StoredRecord {
                kind: match *kind {
                    DOORS => None,
                    kind => Some(Record::from_number(kind).ok_or(io::ErrorKind::InvalidData)?),
                },
                body,
                descriptors: self.descriptors.remove(&name).unwrap_or_default(),
            });
        }
        Ok((head.versions, head.inventory, records))
    }
}

/// What follows its length.
fn piece<'a>(rest: &mut &'a [u8]) -> io::Result<&'a [u8]> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (length, behind) = rest.split_first_chunk().ok_or_else(short)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (piece, behind) = behind.split_at_checked(length).ok_or_else(short)?;
    *rest = behind;
    Ok(piece)
}

/// Has systemd give up `names`.
pub(super) fn give_up(names: Vec<String>) {
    forget(names.into_iter());
}
