//! Access records: what each allocation was, for billing and for the files of an operator.
//!
//! ```text
//!  shards ──try_send──► queue ──► "records", a thread: JSON ──► file
//!                                                         └───► queue ──► "webhook", a thread ──► HTTPS
//! ```
//!
//! Neither sink can hold a shard up: what a queue does not take is lost and counted. `docs/records.md` has the shape of a
//! record for those who read them.

mod file;
mod quality;
mod record;
pub mod webhook;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::turn::{AllocationView, EndReason, Ended};

use file::File;
use record::Writer;
use webhook::Webhook;

/// Records that may wait for the thread that writes them: a crowd that leaves at once fits.
const QUEUE: usize = 65_536;

/// Records that are written with one call.
const BATCH: usize = 256;

/// Where records go, and how often.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A file, one JSON object per line.
    pub file: Option<PathBuf>,
    /// Whom to post them to.
    pub webhook: Option<webhook::Settings>,
    /// How long until an allocation that lives leaves a record, again and again; zero: only at its end.
    pub interim: Duration,
    /// Name of this server among others.
    pub node: String,
    /// Its region; may be empty.
    pub region: String,
}

impl Settings {
    /// Whether anybody wants records.
    pub const fn is_wanted(&self) -> bool {
        self.file.is_some() || self.webhook.is_some()
    }
}

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sink {
    /// The file.
    File,
    /// The webhook.
    Webhook,
}

impl Sink {
    /// Every sink, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::File, Self::Webhook];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Webhook => "webhook",
        }
    }
}

/// What became of a record at a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Written, or taken by the receiver.
    Ok,
    /// The file could not be written, or the receiver will never take it.
    Failed,
    /// A queue was full, or the server ended before the receiver took it.
    Dropped,
}

impl Outcome {
    /// Every outcome, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Dropped];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// How many records went where.
#[derive(Debug)]
pub struct Counts {
    wanted: [bool; Sink::ALL.len()],
    counts: [[AtomicU64; Outcome::ALL.len()]; Sink::ALL.len()],
}

impl Counts {
    fn new(settings: &Settings) -> Self {
        Self {
            wanted: [settings.file.is_some(), settings.webhook.is_some()],
            counts: Default::default(),
        }
    }

    fn add(&self, sink: Sink, outcome: Outcome, records: u64) {
        self.counts[sink as usize][outcome as usize].fetch_add(records, Ordering::Relaxed);
    }

    /// A record that no sink will see.
    fn lost(&self) {
        for sink in Sink::ALL {
            self.add(sink, Outcome::Dropped, 1);
        }
    }

    /// How many records had `outcome` at `sink`.
    pub fn of(&self, sink: Sink, outcome: Outcome) -> u64 {
        self.counts[sink as usize][outcome as usize].load(Ordering::Relaxed)
    }

    /// Labels and counts of the sinks that are wanted.
    pub fn read(&self) -> Vec<(&'static str, &'static str, u64)> {
        (Sink::ALL.into_iter())
            .filter(|sink| self.wanted[*sink as usize])
            .flat_map(|sink| {
                Outcome::ALL.map(|outcome| (sink.label(), outcome.label(), self.of(sink, outcome)))
            })
            .collect()
    }
}

/// Which live allocations leave a record now: those whose age passed a multiple of `every` since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The last look.
    pub after: Instant,
    /// This one.
    pub until: Instant,
    /// How often an allocation leaves a record; not zero.
    pub every: Duration,
}

impl Due {
    /// The number of the record that an allocation of `created` leaves now, from 1 on, if it leaves one.
    pub fn sequence(&self, created: Instant) -> Option<u64> {
        let every = self.every.as_nanos().max(1);
        let passed = |at: Instant| at.saturating_duration_since(created).as_nanos() / every;
        let sequence = passed(self.until);
        (sequence > passed(self.after)).then_some(sequence as u64)
    }
}

/// What a record is made of.
#[derive(Debug)]
struct Event {
    shard: u8,
    view: AllocationView,
    duration: Duration,
    stage: Stage,
}

/// Why there is a record.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The allocation lives, and has for long; the number of the record.
    Interim(u64),
    /// It is over.
    Final(EndReason),
}

enum Message {
    Event(Box<Event>),
    Reopen,
    Close,
}

/// Where shards leave their records; never waits.
#[derive(Clone)]
pub struct Emitter {
    queue: SyncSender<Message>,
    counts: Arc<Counts>,
}

impl fmt::Debug for Emitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitter").finish_non_exhaustive()
    }
}

impl Emitter {
    /// The record of an allocation that is over.
    pub fn ended(&self, shard: u8, ended: Ended) {
        self.emit(Event {
            shard,
            view: ended.view,
            duration: ended.duration,
            stage: Stage::Final(ended.reason),
        });
    }

    /// The `sequence`-th record of an allocation that has lived for `duration`.
    pub fn lives(&self, shard: u8, view: AllocationView, duration: Duration, sequence: u64) {
        self.emit(Event {
            shard,
            view,
            duration,
            stage: Stage::Interim(sequence),
        });
    }

    fn emit(&self, event: Event) {
        if (self.queue.try_send(Message::Event(Box::new(event)))).is_err() {
            self.counts.lost();
        }
    }
}

/// The threads that write records.
pub struct Records {
    queue: SyncSender<Message>,
    counts: Arc<Counts>,
    interim: Duration,
    writer: JoinHandle<()>,
    webhook: Option<Webhook>,
}

impl Records {
    /// Opens the file and starts the threads.
    ///
    /// # Errors
    /// The file cannot be opened, or a thread not started.
    pub fn start(settings: &Settings) -> io::Result<Self> {
        let counts = Arc::new(Counts::new(settings));
        let file = (settings.file.clone()).map(File::open).transpose()?;
        let webhook = (settings.webhook.as_ref())
            .map(|settings| Webhook::start(settings, Arc::clone(&counts)))
            .transpose()?;
        let (queue, events) = sync_channel(QUEUE);
        let work = Work {
            events,
            writer: Writer::new(&settings.node, &settings.region),
            file,
            webhook: webhook.as_ref().map(Webhook::queue),
            counts: Arc::clone(&counts),
        };
        let writer = std::thread::Builder::new()
            .name("records".into())
            .spawn(move || work.run())?;
        Ok(Self {
            queue,
            counts,
            interim: settings.interim,
            writer,
            webhook,
        })
    }

    /// Where shards leave their records.
    pub fn emitter(&self) -> Emitter {
        Emitter {
            queue: self.queue.clone(),
            counts: Arc::clone(&self.counts),
        }
    }

    /// How many records went where.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// How long until an allocation that lives leaves a record, if it does.
    pub fn interim(&self) -> Option<Duration> {
        Some(self.interim).filter(|every| !every.is_zero())
    }

    /// Opens the file anew, as the next record would if it was moved. For SIGHUP.
    pub fn reopen(&self) {
        // A thread that is gone has no file.
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Writes what waits and ends the threads; the webhook's receiver has `grace` to take what is left.
    pub fn close(self, grace: Duration) {
        let _ = self.queue.send(Message::Close);
        if self.writer.join().is_err() {
            tracing::error!(
                "the thread that writes records had panicked: please report this as a bug of turnix"
            );
        }
        if let Some(webhook) = self.webhook {
            webhook.close(grace);
        }
    }
}

struct Work {
    events: Receiver<Message>,
    writer: Writer,
    file: Option<File>,
    webhook: Option<webhook::Queue>,
    counts: Arc<Counts>,
}

impl Work {
    fn run(mut self) {
        let mut lines = String::new();
        let mut open = true;
        while open {
            let Ok(first) = self.events.recv() else {
                break;
            };
            let mut next = Some(first);
            let mut records = 0;
            while let Some(message) = next.take() {
                match message {
                    Message::Event(event) => {
                        records += 1;
                        self.write(*event, &mut lines);
                    }
                    Message::Reopen => {
                        if let Some(file) = &mut self.file {
                            file.forget();
                        }
                    }
                    Message::Close => open = false,
                }
                if records < BATCH && open {
                    next = self.events.try_recv().ok();
                }
            }
            self.store(&mut lines, records as u64);
        }
        if let Some(file) = &mut self.file {
            file.sync();
        }
    }

    fn write(&mut self, event: Event, lines: &mut String) {
        let line = self.writer.line(&event);
        if self.file.is_some() {
            lines.push_str(&line);
            lines.push('\n');
        }
        if let Some(webhook) = &self.webhook
            && !webhook.offer(line)
        {
            self.counts.add(Sink::Webhook, Outcome::Dropped, 1);
        }
    }

    fn store(&mut self, lines: &mut String, records: u64) {
        if let Some(file) = &mut self.file
            && records > 0
        {
            let outcome = match file.append(lines) {
                Ok(()) => Outcome::Ok,
                Err(error) => {
                    tracing::error!(
                        %error, records, file = %file.path().display(),
                        "access records could not be written and are lost; make room, or put the file right"
                    );
                    Outcome::Failed
                }
            };
            self.counts.add(Sink::File, outcome, records);
        }
        lines.clear();
    }
}

/// Whether a thread that says so by closing `done` has ended within `patience`.
fn ends_within(done: &Receiver<()>, patience: Duration) -> bool {
    done.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
}
