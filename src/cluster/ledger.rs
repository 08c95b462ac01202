//! What is decided while the server runs and outlives it: revocations, and the credentials that API keys manage.
//!
//! Kept in memory and, where there is a directory for it, in a file of one process at a time (`journal.rs`). Every change
//! makes a new [`Revocations`], which whoever changed it gives to the shards. What a file of the operator says
//! ([`RevokedFile`](super::RevokedFile)) is part of it, and so is that an API key is gone from the configuration.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::access::{Revocation, Revocations, RevokedKind, rest};
use crate::wire::key::MAX_USERNAME_BYTES;

use super::directory::Version;
use super::journal::{self, Journal, Line};

/// Revocations there may be at once, those of files apart.
pub const MAX_REVOCATIONS: usize = 100_000;

/// How many of them no API key takes up: they are the operator's.
const OF_OPERATOR: usize = 10_000;

/// Revocations that one API key may have at once.
pub const MAX_REVOCATIONS_OF_KEY: usize = 25_000;

/// Credentials that one API key may have kept at once.
pub const MAX_CREDENTIALS: usize = 10_000;

/// Lines of history that are carried along before the file is written anew, beside as many as there are entries.
const HISTORY: usize = 1000;

/// Who revoked something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The operator, by the admin API.
    Operator,
    /// `auth.revoked_file`.
    File,
    /// The configuration, which has the API key no longer.
    Configuration,
    /// The API key of that id, which minted it.
    Key(String),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::File => f.write_str("file"),
            Self::Configuration => f.write_str("configuration"),
            Self::Key(id) => write!(f, "key:{id}"),
        }
    }
}

impl By {
    fn of(text: &str) -> Self {
        match text.strip_prefix("key:") {
            Some(id) => Self::Key(id.to_owned()),
            None if text == "configuration" => Self::Configuration,
            None => Self::Operator,
        }
    }
}

/// One revocation as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What is revoked, and until when.
    pub revocation: Revocation,
    /// Since when, in seconds since the Unix epoch; `None` where a file says so.
    pub since_unix: Option<u64>,
    /// Who did it.
    pub by: By,
}

/// A credential that an API key has kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Managed {
    /// Its USERNAME.
    pub username: String,
    /// What its owner calls it; may be empty.
    pub label: String,
    /// When it was made, in seconds since the Unix epoch.
    pub made_unix: u64,
    /// When it ends, in seconds since the Unix epoch.
    pub expires_unix: u64,
}

/// Why the ledger does not take a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerError {
    /// There are as many as there may be.
    Full,
    /// A name that no client can have.
    Name,
    /// Another process is about to serve in place of this one.
    Leaving,
}

impl LedgerError {
    /// What it is, and what to do.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Full => "there are as many as there may be; lift or delete some first",
            Self::Name => "a name is 1 to 508 bytes",
            Self::Leaving => "another process is about to take over; ask again in a second",
        }
    }
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl std::error::Error for LedgerError {}

/// A change that is in effect in the ledger, and not yet in the shards.
#[derive(Debug)]
pub struct Changed {
    /// Everything that is revoked from now on.
    pub revoked: Revocations,
    /// When what was revoked is so no longer, in seconds since the Unix epoch; `None` where that is for good, or where it
    /// was lifted.
    pub until_unix: Option<u64>,
    /// What has to be synchronised before it outlives the host; `None` where it is kept nowhere.
    pub written: Option<Arc<File>>,
}

#[derive(Clone, Debug)]
struct Entry {
    until_unix: Option<u64>,
    since_unix: u64,
    by: By,
}

impl Entry {
    fn is_over(&self, now_unix: u64) -> bool {
        self.until_unix.is_some_and(|until| until <= now_unix)
    }

    /// What it becomes where `earlier` is in force: only who revoked something makes that shorter, and what the operator has
    /// a hand in is the operator's.
    fn over(self, earlier: Option<&Self>, now_unix: u64) -> Self {
        let in_force = |earlier: &&Self| !earlier.is_over(now_unix) && earlier.by != self.by;
        let Some(earlier) = earlier.filter(in_force) else {
            return self;
        };
        let until_unix = (earlier.until_unix.zip(self.until_unix)).map(|(a, b)| a.max(b));
        let owner = match self.by {
            By::Operator => &self,
            By::File | By::Configuration | By::Key(_) => earlier,
        };
        Self {
            until_unix,
            since_unix: owner.since_unix,
            by: owner.by.clone(),
        }
    }
}

type Entries = BTreeMap<(RevokedKind, String), Entry>;

#[derive(Debug, Default)]
struct State {
    entries: Entries,
    /// How many of them each API key made.
    of_keys: HashMap<String, usize>,
    /// What the operator's file says.
    configured: Vec<Revocation>,
    managed: BTreeMap<String, BTreeMap<String, Managed>>,
    /// API keys of the configuration, and for how many seconds at most what they mint is good.
    keys: BTreeMap<String, u64>,
    revoked: Revocations,
    place: Place,
}

/// Where it is kept.
#[derive(Debug, Default)]
enum Place {
    /// Nowhere.
    #[default]
    Memory,
    /// In a file, from the first change on.
    Wanted(PathBuf),
    /// In a file, which this process writes.
    Open(Journal),
    /// In a file, which another process is about to write, or does.
    Left(PathBuf, Option<Version>),
}

/// The ledger. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<State>>);

impl Ledger {
    /// The ledger in `directory`, and what keeps it from being kept there, if anything does: what it says holds all the
    /// same, and changes are in memory only. Where there is none, the first change makes it.
    ///
    /// # Errors
    /// There may be one, and what it says cannot be read.
    pub fn open(directory: &Path, now_unix: u64) -> io::Result<(Self, Option<io::Error>)> {
        let mut state = State::default();
        let opened = if journal::exists(directory)? {
            state.read(journal::read(directory)?, now_unix);
            state.open(directory)
        } else {
            state.place = Place::Wanted(directory.to_owned());
            Ok(())
        };
        Ok((Self(Arc::new(Mutex::new(state))), opened.err()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is revoked.
    pub fn revoked(&self) -> Revocations {
        self.state().revoked.clone()
    }

    /// Revokes `name` until `until_unix`, in seconds since the Unix epoch, or for good. A time-limited credential is
    /// revoked until it ends by itself, at most. What another has revoked for longer stays so.
    ///
    /// # Errors
    /// The name cannot be anybody's, or there are too many.
    pub fn revoke(
        &self,
        kind: RevokedKind,
        name: &str,
        until_unix: Option<u64>,
        by: By,
        now_unix: u64,
    ) -> Result<Changed, LedgerError> {
        let mut state = self.state();
        state.writable()?;
        if !(1..=MAX_USERNAME_BYTES).contains(&name.len()) {
            return Err(LedgerError::Name);
        }
        let own_end = match kind {
            RevokedKind::Credential => rest::parse(name).map(|limited| limited.expires_unix),
            RevokedKind::User | RevokedKind::Key => None,
        };
        let until_unix = [until_unix, own_end].into_iter().flatten().min();
        state.make_room(kind, name, &by, now_unix)?;
        let entry = Entry {
            until_unix,
            since_unix: now_unix,
            by,
        };
        let entry = entry.over(state.entries.get(&(kind, name.to_owned())), now_unix);
        let until_unix = entry.until_unix;
        let written = state.write(&line(kind, name, &entry), now_unix);
        state.insert(kind, name, entry, now_unix);
        Ok(state.changed(until_unix, written))
    }

    /// Revokes `name` no longer; `None` if it was not revoked here, or by another than `only_of`. What a file says stands.
    ///
    /// # Errors
    /// Another process takes over.
    pub fn lift(
        &self,
        kind: RevokedKind,
        name: &str,
        only_of: Option<&By>,
        now_unix: u64,
    ) -> Result<Option<Changed>, LedgerError> {
        let mut state = self.state();
        state.writable()?;
        let entry = state.entries.get(&(kind, name.to_owned()));
        if only_of.is_some_and(|by| entry.is_some_and(|entry| entry.by != *by)) {
            return Ok(None);
        }
        if !state.lift(kind, name, now_unix) {
            return Ok(None);
        }
        let line = Line::Lift {
            kind: kind.label().to_owned(),
            name: name.to_owned(),
        };
        let written = state.write(&line, now_unix);
        Ok(Some(state.changed(None, written)))
    }

    /// Who revoked `name`, if it is revoked at `now_unix`; a file comes first, since it cannot be lifted here.
    pub fn revoked_by(&self, kind: RevokedKind, name: &str, now_unix: u64) -> Option<By> {
        let state = self.state();
        let configured = |one: &Revocation| one.kind == kind && one.name == name;
        if state.configured.iter().any(configured) {
            return Some(By::File);
        }
        let entry = state.entries.get(&(kind, name.to_owned()))?;
        (!entry.is_over(now_unix)).then(|| entry.by.clone())
    }

    /// Everything that is revoked at `now_unix`, files first, then by kind and name.
    pub fn list(&self, now_unix: u64) -> Vec<Listed> {
        let state = self.state();
        let configured = state.configured.iter().map(|revocation| Listed {
            revocation: revocation.clone(),
            since_unix: None,
            by: By::File,
        });
        let entries = state.entries.iter();
        let entries = entries.filter(|(_, entry)| !entry.is_over(now_unix));
        let entries = entries.map(|((kind, name), entry)| Listed {
            revocation: Revocation {
                kind: *kind,
                name: name.clone(),
                until_unix: entry.until_unix,
            },
            since_unix: Some(entry.since_unix),
            by: entry.by.clone(),
        });
        configured.chain(entries).collect()
    }

    /// How many revocations of each kind there are.
    pub fn counts(&self, now_unix: u64) -> [u64; RevokedKind::ALL.len()] {
        let state = self.state();
        let mut counts = [0; RevokedKind::ALL.len()];
        for one in &state.configured {
            counts[one.kind as usize] += 1;
        }
        for ((kind, _), entry) in &state.entries {
            counts[*kind as usize] += u64::from(!entry.is_over(now_unix));
        }
        counts
    }

    /// Takes over what the operator's file says, `configured`.
    pub fn configure(&self, configured: Vec<Revocation>, now_unix: u64) -> Revocations {
        let mut state = self.state();
        if state.configured != configured {
            state.configured = configured;
            state.derive(now_unix);
        }
        state.revoked.clone()
    }

    /// Takes over which API keys there are, and for how many seconds at most what each mints is good: what those have
    /// minted that are gone is revoked for that long; one that comes back is not. The ids of those that are gone.
    pub fn set_keys(&self, mut keys: BTreeMap<String, u64>, now_unix: u64) -> Vec<String> {
        let mut state = self.state();
        for (id, secs) in &mut keys {
            // What it minted before lasts as long as it was to.
            *secs = (*secs).max(state.outstanding(id, now_unix));
        }
        if state.keys == keys {
            return Vec::new();
        }
        let before = std::mem::replace(&mut state.keys, keys.clone());
        let _ = state.write(&Line::Keys(keys.clone()), now_unix);
        let gone: Vec<(String, u64)> = before
            .into_iter()
            .filter(|(id, _)| !keys.contains_key(id))
            .collect();
        for (id, secs) in &gone {
            let entry = Entry {
                until_unix: Some(now_unix.saturating_add(*secs)),
                since_unix: now_unix,
                by: By::Configuration,
            };
            let known = (RevokedKind::Key, id.clone());
            let entry = entry.over(state.entries.get(&known), now_unix);
            let _ = state.write(&line(RevokedKind::Key, id, &entry), now_unix);
            state.insert(RevokedKind::Key, id, entry, now_unix);
        }
        for id in keys.keys() {
            let known = (RevokedKind::Key, id.clone());
            if (state.entries.get(&known)).is_some_and(|entry| entry.by == By::Configuration) {
                state.lift(RevokedKind::Key, id, now_unix);
                let line = Line::Lift {
                    kind: RevokedKind::Key.label().to_owned(),
                    name: id.clone(),
                };
                let _ = state.write(&line, now_unix);
            }
        }
        gone.into_iter().map(|(id, _)| id).collect()
    }

    /// Keeps a credential of the API key `key`.
    ///
    /// # Errors
    /// The key has as many as it may.
    pub fn keep(
        &self,
        key: &str,
        managed: Managed,
        now_unix: u64,
    ) -> Result<Option<Arc<File>>, LedgerError> {
        let mut state = self.state();
        state.writable()?;
        let of_key = state.managed.entry(key.to_owned()).or_default();
        if of_key.len() >= MAX_CREDENTIALS {
            of_key.retain(|_, managed| managed.expires_unix > now_unix);
            if of_key.len() >= MAX_CREDENTIALS {
                return Err(LedgerError::Full);
            }
        }
        of_key.insert(managed.username.clone(), managed.clone());
        Ok(state.write(&kept(key, &managed), now_unix))
    }

    /// The credentials that `key` has kept, the latest first; those that are over as well if there still is a trace of them.
    pub fn managed(&self, key: &str) -> Vec<Managed> {
        let state = self.state();
        let of_key = state.managed.get(key).into_iter().flatten();
        let mut all: Vec<Managed> = of_key.map(|(_, managed)| managed.clone()).collect();
        all.sort_by(|a, b| (b.made_unix, &a.username).cmp(&(a.made_unix, &b.username)));
        all
    }

    /// The credential `username` that `key` has kept.
    pub fn find(&self, key: &str, username: &str) -> Option<Managed> {
        self.state().managed.get(key)?.get(username).cloned()
    }

    /// Keeps `username` of `key` no longer; revoking it is another matter.
    ///
    /// # Errors
    /// Another process takes over.
    pub fn forget(&self, key: &str, username: &str, now_unix: u64) -> Result<(), LedgerError> {
        let mut state = self.state();
        state.writable()?;
        let found = (state.managed.get_mut(key)).and_then(|all| all.remove(username));
        if found.is_some() {
            let line = Line::Drop {
                key: key.to_owned(),
                username: username.to_owned(),
            };
            state.write(&line, now_unix);
        }
        Ok(())
    }

    /// Lets another process have the file: no change is taken from now on.
    pub fn leave(&self) {
        let mut state = self.state();
        state.place = match std::mem::take(&mut state.place) {
            Place::Open(journal) => Place::Left(journal.directory().to_owned(), None),
            Place::Wanted(directory) => Place::Left(directory, None),
            other => other,
        };
    }

    /// Goes on where another process did not want the file after all: what that wrote does not count.
    pub fn come_back(&self) {
        let mut state = self.state();
        state.place = match std::mem::take(&mut state.place) {
            Place::Left(directory, _) => Place::Wanted(directory),
            other => other,
        };
    }

    /// Looks at what the process that has the file now wrote there; `None` if that is nothing new.
    pub fn follow(&self, now_unix: u64) -> Option<Revocations> {
        let mut state = self.state();
        let Place::Left(directory, seen) = &state.place else {
            return None;
        };
        let directory = directory.clone();
        let now = journal::state(&directory);
        if now == *seen {
            return None;
        }
        let lines = journal::read(&directory).ok()?;
        state.read(lines, now_unix);
        state.place = Place::Left(directory, now);
        Some(state.revoked.clone())
    }
}

impl State {
    fn writable(&self) -> Result<(), LedgerError> {
        match self.place {
            Place::Left(..) => Err(LedgerError::Leaving),
            Place::Memory | Place::Wanted(_) | Place::Open(_) => Ok(()),
        }
    }

    /// Takes the file, and writes down what is known.
    fn open(&mut self, directory: &Path) -> io::Result<()> {
        self.place = Place::Open(Journal::open(directory)?);
        self.rewrite(None)
    }

    /// Replaces what is known by what `lines` say.
    fn read(&mut self, lines: Vec<Line>, now_unix: u64) {
        self.entries.clear();
        self.managed.clear();
        for line in lines {
            match line {
                Line::Revoke {
                    kind,
                    name,
                    until,
                    since,
                    by,
                } => {
                    let Some(kind) = RevokedKind::of(&kind) else {
                        continue;
                    };
                    let entry = Entry {
                        until_unix: until,
                        since_unix: since,
                        by: By::of(&by),
                    };
                    self.entries.insert((kind, name), entry);
                }
                Line::Lift { kind, name } => {
                    if let Some(kind) = RevokedKind::of(&kind) {
                        self.entries.remove(&(kind, name));
                    }
                }
                Line::Keep {
                    key,
                    username,
                    label,
                    made,
                    expires,
                } => {
                    let managed = Managed {
                        username: username.clone(),
                        label,
                        made_unix: made,
                        expires_unix: expires,
                    };
                    let of_key = self.managed.entry(key).or_default();
                    of_key.insert(username, managed);
                }
                Line::Drop { key, username } => {
                    if let Some(all) = self.managed.get_mut(&key) {
                        all.remove(&username);
                    }
                }
                Line::Keys(keys) => self.keys = keys,
            }
        }
        self.prune(now_unix);
        self.derive(now_unix);
    }

    /// Forgets what is over.
    fn prune(&mut self, now_unix: u64) {
        self.entries.retain(|_, entry| !entry.is_over(now_unix));
        for all in self.managed.values_mut() {
            all.retain(|_, managed| managed.expires_unix > now_unix);
        }
        self.managed.retain(|_, all| !all.is_empty());
        self.of_keys.clear();
        for entry in self.entries.values() {
            if let By::Key(id) = &entry.by {
                *self.of_keys.entry(id.clone()).or_default() += 1;
            }
        }
    }

    /// Makes what the shards get of everything that is known.
    fn derive(&mut self, now_unix: u64) {
        let mut revoked = Revocations::default();
        for ((kind, name), entry) in &self.entries {
            revoked.revoke(*kind, name, entry.until_unix, now_unix);
        }
        for one in &self.configured {
            revoked.revoke(one.kind, &one.name, one.until_unix, now_unix);
        }
        self.revoked = revoked.after(&self.revoked);
    }

    /// For how many seconds at most what the API key `id` has minted is good.
    fn outstanding(&self, id: &str, now_unix: u64) -> u64 {
        let gone = (self.entries.get(&(RevokedKind::Key, id.to_owned())))
            .filter(|entry| entry.by == By::Configuration)
            .and_then(|entry| entry.until_unix)
            .map_or(0, |until| until.saturating_sub(now_unix));
        (self.keys.get(id)).map_or(gone, |secs| gone.max(*secs))
    }

    fn is_configured(&self, kind: RevokedKind, name: &str) -> bool {
        (self.configured.iter()).any(|one| one.kind == kind && one.name == name)
    }

    fn make_room(
        &mut self,
        kind: RevokedKind,
        name: &str,
        by: &By,
        now_unix: u64,
    ) -> Result<(), LedgerError> {
        let is_full = |state: &Self| {
            let (of_key, most) = match by {
                By::Key(id) => {
                    let of_key = state.of_keys.get(id).copied().unwrap_or_default();
                    (of_key, MAX_REVOCATIONS - OF_OPERATOR)
                }
                By::Operator | By::File | By::Configuration => (0, MAX_REVOCATIONS),
            };
            state.entries.len() >= most || of_key >= MAX_REVOCATIONS_OF_KEY
        };
        if self.entries.contains_key(&(kind, name.to_owned())) || !is_full(self) {
            return Ok(());
        }
        self.prune(now_unix);
        if is_full(self) {
            tracing::error!(%by, "too many revocations: one is refused");
            return Err(LedgerError::Full);
        }
        Ok(())
    }

    fn insert(&mut self, kind: RevokedKind, name: &str, entry: Entry, now_unix: u64) {
        // What a file says holds for good.
        if !self.is_configured(kind, name) {
            (self.revoked).revoke(kind, name, entry.until_unix, now_unix);
        }
        if let By::Key(id) = &entry.by {
            *self.of_keys.entry(id.clone()).or_default() += 1;
        }
        let before = self.entries.insert((kind, name.to_owned()), entry);
        self.uncount(before);
    }

    fn lift(&mut self, kind: RevokedKind, name: &str, now_unix: u64) -> bool {
        let Some(entry) = self.entries.remove(&(kind, name.to_owned())) else {
            return false;
        };
        let was_over = entry.is_over(now_unix);
        self.uncount(Some(entry));
        if !self.is_configured(kind, name) {
            self.revoked.lift(kind, name, now_unix);
        }
        !was_over
    }

    fn uncount(&mut self, entry: Option<Entry>) {
        if let Some(By::Key(id)) = entry.map(|entry| entry.by)
            && let Some(count) = self.of_keys.get_mut(&id)
        {
            *count = count.saturating_sub(1);
        }
    }

    fn changed(&self, until_unix: Option<u64>, written: Option<Arc<File>>) -> Changed {
        Changed {
            revoked: self.revoked.clone(),
            until_unix,
            written,
        }
    }

    /// Writes `line` down, where anything is; what is to be synchronised.
    fn write(&mut self, line: &Line, now_unix: u64) -> Option<Arc<File>> {
        if let Place::Wanted(directory) = &self.place
            && let directory = directory.clone()
            && let Err(error) = self.open(&directory)
        {
            tracing::error!(
                directory = %directory.display(),
                %error,
                "a change is in effect, and ends with this process: set STATE_DIRECTORY to a directory that it may write"
            );
        }
        let entries = self.entries.len() + self.managed.values().map(BTreeMap::len).sum::<usize>();
        let Place::Open(journal) = &mut self.place else {
            return None;
        };
        let written = journal.append(line);
        let file = journal.file();
        let is_long = journal.appended > entries + HISTORY;
        if let Err(error) = written {
            tracing::error!(%error, "a change is not written down: it is in effect, and ends with this process");
            return None;
        }
        if is_long {
            self.prune(now_unix);
            // The line itself is in the file that is there, whatever becomes of the new one.
            if let Err(error) = self.rewrite(Some(line)) {
                tracing::warn!(%error, "the ledger cannot be written anew: it grows");
            }
        }
        Some(file)
    }

    /// Writes everything down anew, and `last`, which is not in effect yet.
    fn rewrite(&mut self, last: Option<&Line>) -> io::Result<()> {
        let Self {
            entries,
            managed,
            keys,
            place,
            ..
        } = self;
        let Place::Open(journal) = place else {
            return Ok(());
        };
        let entries = (entries.iter()).map(|((kind, name), entry)| line(*kind, name, entry));
        let managed = managed
            .iter()
            .flat_map(|(key, all)| all.values().map(move |one| kept(key, one)));
        let all = std::iter::once(Line::Keys(keys.clone()))
            .chain(entries)
            .chain(managed)
            .chain(last.cloned());
        off_the_runtime(|| journal.rewrite(all))
    }
}

/// Does `work`, which waits for a disk, without keeping other tasks of the control thread from going on.
fn off_the_runtime<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn line(kind: RevokedKind, name: &str, entry: &Entry) -> Line {
    Line::Revoke {
        kind: kind.label().to_owned(),
        name: name.to_owned(),
        until: entry.until_unix,
        since: entry.since_unix,
        by: entry.by.to_string(),
    }
}

fn kept(key: &str, managed: &Managed) -> Line {
    Line::Keep {
        key: key.to_owned(),
        username: managed.username.clone(),
        label: managed.label.clone(),
        made: managed.made_unix,
        expires: managed.expires_unix,
    }
}
