//! Captures: packets of one allocation on their way out of a shard, to whoever writes them down.
//!
//! A shard never waits for a reader: what does not fit into the bounded queue is counted and gone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::base::{FiveTuple, Now};
use crate::capture::{Packet, headers};
use crate::quality::Leg;
use crate::turn::{AllocationId, AllocationView};

use super::mailbox::{Mailbox, Message};
use super::{Shards, parse_name};

/// Packets that may wait for one reader.
const QUEUE: usize = 4096;

/// Bytes that may wait for one reader.
const QUEUE_BYTES: usize = 4 << 20;

/// What a shard is asked for.
pub(super) struct Wanted {
    id: AllocationId,
    payload: bool,
    number: u64,
    queue: mpsc::Sender<Packet>,
    shared: Arc<Shared>,
    answer: oneshot::Sender<Option<(AllocationView, Vec<IpAddr>)>>,
}

/// What both ends of a queue know.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Packets that found no room, by [`Leg`].
    lost: [AtomicU64; Leg::ALL.len()],
    /// Why there are no more; 0 while there are.
    over: AtomicU8,
}

const ALLOCATION_ENDED: u8 = 1;
const HANDED_OVER: u8 = 2;

/// The packets of one allocation, until it ends or this is dropped.
#[derive(Debug)]
pub struct Capture {
    packets: mpsc::Receiver<Packet>,
    shared: Arc<Shared>,
    /// Tells the shard that nobody reads any more.
    _end: End,
}

struct End {
    number: u64,
    mailbox: Mailbox,
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "End({})", self.number)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.mailbox.send(Message::EndCapture(self.number));
    }
}

/// A capture that has begun.
#[derive(Debug)]
pub struct Captured {
    /// What comes.
    pub capture: Capture,
    /// Whose packets these are.
    pub view: AllocationView,
    /// Addresses of the server that they show.
    pub own: Vec<IpAddr>,
}

impl Capture {
    /// The next packet; `None` when there are no more. Cancel safe.
    pub async fn next(&mut self) -> Option<Packet> {
        let packet = self.packets.recv().await?;
        Some(self.taken(packet))
    }

    /// The next packet if there is one already.
    pub fn try_next(&mut self) -> Option<Packet> {
        let packet = self.packets.try_recv().ok()?;
        Some(self.taken(packet))
    }

    fn taken(&self, packet: Packet) -> Packet {
        (self.shared.waiting).fetch_sub(cost(packet.bytes.len()), Ordering::Relaxed);
        packet
    }

    /// Packets that came too fast, by [`Leg`].
    pub fn lost(&self) -> [u64; Leg::ALL.len()] {
        (self.shared.lost)
            .each_ref()
            .map(|lost| lost.load(Ordering::Relaxed))
    }

    /// Why there are no more packets, once there are none.
    pub fn why(&self) -> &'static str {
        match self.shared.over.load(Ordering::Relaxed) {
            ALLOCATION_ENDED => "the allocation ended",
            HANDED_OVER => "another process took over",
            _ => "the server stops",
        }
    }
}

impl Shards {
    /// Copies the packets of the allocation named `name` from now on, whole ones if `payload`; `None` if there is none.
    pub async fn capture(&self, name: &str, payload: bool) -> Option<Captured> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let (shard, id) = parse_name(name)?;
        let handle = self.handles.get(shard)?;
        let (queue, packets) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let capture = Capture {
            packets,
            shared: Arc::clone(&shared),
            _end: End {
                number,
                mailbox: handle.mailbox.clone(),
            },
        };
        let wanted = |answer| {
            Message::Capture(Box::new(Wanted {
                id,
                payload,
                number,
                queue,
                shared,
                answer,
            }))
        };
        let (view, own) = handle.ask(wanted).await??;
        Some(Captured { capture, view, own })
    }
}

/// Who copies packets of a shard: usually nobody.
#[derive(Default)]
pub(super) struct Taps(Vec<Tap>);

struct Tap {
    id: AllocationId,
    /// Where its client is, or was last.
    client: FiveTuple,
    payload: bool,
    number: u64,
    queue: mpsc::Sender<Packet>,
    shared: Arc<Shared>,
    ended: bool,
}

/// A packet that somebody may want; its bytes may lie in several places.
pub(super) struct Seen<'a> {
    pub now: Now,
    pub leg: Leg,
    pub received: bool,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub parts: [&'a [u8]; 2],
    /// Zero bytes behind them.
    pub padding: usize,
    pub dropped: Option<&'static str>,
}

impl Taps {
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins what `wanted` wants of the allocation that it names, which is `view`, and whose client is there.
    pub fn begin(
        &mut self,
        wanted: Wanted,
        client: FiveTuple,
        view: AllocationView,
        own: Vec<IpAddr>,
    ) {
        if wanted.answer.send(Some((view, own))).is_ok() {
            self.0.push(Tap {
                id: wanted.id,
                client,
                payload: wanted.payload,
                number: wanted.number,
                queue: wanted.queue,
                shared: wanted.shared,
                ended: false,
            });
        }
    }

    pub fn remove(&mut self, number: u64) {
        self.0.retain(|tap| tap.number != number);
    }

    /// The allocation has ended; its last answer is still to come.
    pub fn end(&mut self, id: AllocationId) {
        for tap in self.0.iter_mut().filter(|tap| tap.id == id) {
            tap.ended = true;
            tap.shared.over.store(ALLOCATION_ENDED, Ordering::Relaxed);
        }
    }

    /// Lets go of those whose allocation has ended.
    pub fn forget_ended(&mut self) {
        if !self.0.is_empty() {
            self.0.retain(|tap| !tap.ended);
        }
    }

    /// Another process goes on with the allocations, and with no capture.
    pub fn leave(&mut self) {
        for tap in self.0.drain(..) {
            tap.shared.over.store(HANDED_OVER, Ordering::Relaxed);
        }
    }

    /// The tapped allocation whose client is on `five_tuple`, `id` by what the core says now.
    pub fn of_client(
        &mut self,
        five_tuple: FiveTuple,
        id: Option<AllocationId>,
    ) -> Option<AllocationId> {
        let mut found = None;
        for tap in &mut self.0 {
            if id == Some(tap.id) {
                tap.client = five_tuple;
                found = id;
            } else if id.is_none() && tap.client == five_tuple {
                // It ended by this very message, or has not moved yet.
                found = Some(tap.id);
            }
        }
        found
    }

    /// Whether anybody wants packets of `id`.
    pub fn has(&self, id: AllocationId) -> bool {
        self.0.iter().any(|tap| tap.id == id)
    }

    /// Copies a packet of `id` to everybody who wants it.
    pub fn take(&mut self, id: AllocationId, seen: &Seen<'_>) {
        for tap in self.0.iter().filter(|tap| tap.id == id) {
            tap.take(seen);
        }
    }
}

impl Tap {
    fn take(&self, seen: &Seen<'_>) {
        let mut bytes = seen.parts.concat();
        bytes.resize(bytes.len() + seen.padding, 0);
        let length = bytes.len();
        if !self.payload {
            bytes.truncate(headers(seen.leg, &bytes));
            bytes.shrink_to_fit();
        }
        let cost = cost(bytes.len());
        let packet = Packet {
            at: seen.now.unix,
            leg: seen.leg,
            received: seen.received,
            from: seen.from,
            to: seen.to,
            length,
            bytes,
            dropped: seen.dropped,
        };
        let waiting = self.shared.waiting.fetch_add(cost, Ordering::Relaxed);
        if waiting + cost > QUEUE_BYTES || self.queue.try_send(packet).is_err() {
            self.shared.waiting.fetch_sub(cost, Ordering::Relaxed);
            let lost = self.shared.lost.get(seen.leg as usize);
            lost.map(|lost| lost.fetch_add(1, Ordering::Relaxed));
        }
    }
}

/// What a packet takes of [`QUEUE_BYTES`].
const fn cost(bytes: usize) -> usize {
    bytes + size_of::<Packet>()
}

impl Wanted {
    pub const fn id(&self) -> AllocationId {
        self.id
    }

    /// There is no such allocation.
    pub fn refuse(self) {
        let _ = self.answer.send(None);
    }
}
