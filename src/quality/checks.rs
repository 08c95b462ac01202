//! STUN checks on their way through the relay: round-trip times of both legs, and what stays without an answer.
//!
//! A request that leaves towards a peer, and its answer that comes back, tell how long the peer's leg takes; one that leaves
//! towards the client tells of the client's. Whoever answers does so at once (RFC 8445 §7.3), so the time is the path's.
//!
//! Agents that send a request again do it under the same transaction id, and then an answer may belong to any of the copies.
//! Such a check gives a sample only once every copy of it was answered: then nothing was lost, and the first answer
//! belongs to the first copy. Otherwise it gives none (Karn's rule).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::Direction;
use crate::wire::{MAGIC_COOKIE, STUN_HEADER};

use super::{Checks, Leg, Rtt};

/// Checks that wait for an answer, of both directions.
const PENDING: usize = 16;

/// How long a check waits for an answer.
const PATIENCE: u32 = 10_000_000;

/// The two bits of a message type that tell its class (RFC 8489 §5).
const CLASS: u16 = 0x0110;
const SUCCESS: u16 = 0x0100;
const ERROR: u16 = 0x0110;

/// Binding, and the short check that Chromium's agents use among themselves (GOOG_PING).
const METHODS: [u16; 2] = [0x0001, 0x0200];

/// What a STUN message is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A check, with its transaction id.
    Request([u8; 12]),
    /// An answer, of either kind.
    Answer([u8; 12]),
}

/// Reads the header of `datagram`; `None`: nothing that asks or answers a check.
pub(super) fn read(datagram: &[u8]) -> Option<Message> {
    let header = datagram.first_chunk::<STUN_HEADER>()?;
    let [a, b, c, d, cookie @ ..] = header;
    let kind = u16::from_be_bytes([*a, *b]);
    let length = usize::from(u16::from_be_bytes([*c, *d]));
    let (cookie, transaction) = cookie.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*cookie) != MAGIC_COOKIE
        || length + STUN_HEADER != datagram.len()
        || !METHODS.contains(&(kind & !CLASS))
    {
        return None;
    }
    let transaction = *transaction.first_chunk::<12>()?;
    match kind & CLASS {
        0 => Some(Message::Request(transaction)),
        SUCCESS | ERROR => Some(Message::Answer(transaction)),
        _ => None,
    }
}

/// A check that passed and may be answered. Times are microseconds that wrap.
#[derive(Clone, Copy, Debug)]
struct Pending {
    transaction: [u8; 12],
    sent_at: u32,
    /// From the first copy to the first answer.
    delay: u32,
    direction: Direction,
    /// 0: nothing waits here.
    copies: u8,
    answers: u8,
    /// It has given its sample.
    sampled: bool,
}

impl Pending {
    const NONE: Self = Self {
        transaction: [0; 12],
        sent_at: 0,
        delay: 0,
        direction: Direction::ToPeer,
        copies: 0,
        answers: 0,
        sampled: false,
    };

    fn is(&self, direction: Direction, transaction: [u8; 12], now: u32) -> bool {
        self.copies > 0
            && self.transaction == transaction
            && self.direction == direction
            && !self.is_over(now)
    }

    const fn is_over(&self, now: u32) -> bool {
        now.wrapping_sub(self.sent_at) > PATIENCE
    }

    const fn is_unanswered(&self) -> bool {
        self.copies > 0 && self.answers == 0
    }
}

/// Round-trip times in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    latest: u32,
    smoothed: u32,
    least: u32,
    samples: u32,
}

impl Measured {
    fn add(&mut self, delay: u32) {
        self.latest = delay;
        if self.samples == 0 {
            self.smoothed = delay;
            self.least = delay;
        } else {
            // RFC 6298 §2.3: an eighth of the difference.
            let more = (i64::from(delay) - i64::from(self.smoothed)) / 8;
            self.smoothed = self.smoothed.saturating_add_signed(more as i32);
            self.least = self.least.min(delay);
        }
        self.samples = self.samples.saturating_add(1);
    }

    fn rtt(self) -> Option<Rtt> {
        let time = |micros: u32| Duration::from_micros(micros.into());
        (self.samples > 0).then(|| Rtt {
            latest: time(self.latest),
            smoothed: time(self.smoothed),
            least: time(self.least),
            samples: self.samples,
        })
    }
}

/// The checks of one allocation.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pending: [Pending; PENDING],
    counts: [Checks; Direction::ALL.len()],
    measured: [Measured; Leg::ALL.len()],
}

impl Table {
    pub const fn new() -> Self {
        const NONE: Checks = Checks {
            sent: 0,
            repeated: 0,
            answered: 0,
            unanswered: 0,
        };
        const UNKNOWN: Measured = Measured {
            latest: 0,
            smoothed: 0,
            least: 0,
            samples: 0,
        };
        Self {
            pending: [Pending::NONE; PENDING],
            counts: [NONE; Direction::ALL.len()],
            measured: [UNKNOWN; Leg::ALL.len()],
        }
    }

    /// Takes a message that passes in `direction` at `at` nanoseconds.
    pub fn observe(&mut self, at: u64, direction: Direction, message: Message) {
        let now = micros(at);
        match message {
            Message::Request(transaction) => self.request(now, direction, transaction),
            Message::Answer(transaction) => self.answer(now, direction, transaction),
        }
    }

    fn request(&mut self, now: u32, direction: Direction, transaction: [u8; 12]) {
        let counts = &mut self.counts[direction as usize];
        let again = (self.pending.iter_mut()).find(|check| check.is(direction, transaction, now));
        if let Some(check) = again {
            check.copies = check.copies.saturating_add(1);
            counts.repeated = counts.repeated.saturating_add(1);
            return;
        }
        counts.sent = counts.sent.saturating_add(1);
        for check in &mut self.pending {
            if check.copies > 0 && check.is_over(now) {
                give_up(&mut self.counts, check);
            }
        }
        // An empty place, else the oldest check that was answered, else the oldest.
        let worth = |check: &Pending| {
            let age = now.wrapping_sub(check.sent_at);
            (check.copies > 0, check.is_unanswered(), u32::MAX - age)
        };
        if let Some(place) = self.pending.iter_mut().min_by_key(|check| worth(check)) {
            give_up(&mut self.counts, place);
            *place = Pending {
                transaction,
                sent_at: now,
                direction,
                copies: 1,
                ..Pending::NONE
            };
        }
    }

    fn answer(&mut self, now: u32, direction: Direction, transaction: [u8; 12]) {
        let (asked, leg) = match direction {
            Direction::ToPeer => (Direction::ToClient, Leg::Client),
            Direction::ToClient => (Direction::ToPeer, Leg::Peer),
        };
        let check = (self.pending.iter_mut()).find(|check| check.is(asked, transaction, now));
        let Some(check) = check else { return };
        check.answers = check.answers.saturating_add(1);
        if check.answers == 1 {
            check.delay = now.wrapping_sub(check.sent_at);
            let answered = &mut self.counts[asked as usize].answered;
            *answered = answered.saturating_add(1);
        }
        if check.answers == check.copies && !check.sampled {
            check.sampled = true;
            self.measured[leg as usize].add(check.delay);
        }
    }

    /// By the direction that they were sent in, at `at` nanoseconds.
    pub fn counts(&self, at: u64) -> [Checks; Direction::ALL.len()] {
        let now = micros(at);
        let mut counts = self.counts;
        for check in &self.pending {
            if check.is_unanswered() && check.is_over(now) {
                let unanswered = &mut counts[check.direction as usize].unanswered;
                *unanswered = unanswered.saturating_add(1);
            }
        }
        counts
    }

    /// By leg.
    pub fn rtt(&self) -> [Option<Rtt>; Leg::ALL.len()] {
        self.measured.map(Measured::rtt)
    }

    /// What was counted and measured, without what is under way.
    pub fn image(&self, at: u64) -> Image {
        Image {
            counts: (self.counts(at)).map(|counts| {
                [
                    counts.sent,
                    counts.repeated,
                    counts.answered,
                    counts.unanswered,
                ]
            }),
            measured: (self.measured).map(|it| [it.latest, it.smoothed, it.least, it.samples]),
        }
    }

    /// Goes on from there.
    pub fn resume(image: &Image) -> Self {
        Self {
            counts: image
                .counts
                .map(|[sent, repeated, answered, unanswered]| Checks {
                    sent,
                    repeated,
                    answered,
                    unanswered,
                }),
            measured: image
                .measured
                .map(|[latest, smoothed, least, samples]| Measured {
                    latest,
                    smoothed,
                    least,
                    samples,
                }),
            ..Self::new()
        }
    }
}

/// Counters and times, in the order of their fields.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    counts: [[u32; 4]; Direction::ALL.len()],
    measured: [[u32; 4]; Leg::ALL.len()],
}

/// Empties a place.
fn give_up(counts: &mut [Checks; Direction::ALL.len()], check: &mut Pending) {
    if check.is_unanswered() {
        let unanswered = &mut counts[check.direction as usize].unanswered;
        *unanswered = unanswered.saturating_add(1);
    }
    check.copies = 0;
}

const fn micros(at: u64) -> u32 {
    (at / 1000) as u32
}
