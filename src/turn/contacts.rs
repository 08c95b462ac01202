//! Whom an allocation addressed lately, and how many new peers it may address: against scans through the relay.
//!
//! A scan of ports or hosts is many peers, each addressed once; a call is few peers, each addressed again and again. The
//! latest peers are remembered as hashes, in a ring that grows with the permissions. To forget one that is still
//! addressed costs its sender a token more.

use serde::{Deserialize, Serialize};

use crate::quality::score::Peers;

/// Peers that are remembered for each permission, within bounds: more than a call tries at once, with all its
/// candidates.
const PER_PERMISSION: usize = 8;
const LEAST: usize = 64;
const MOST: usize = 512;

/// Hashes that are compared at once.
const TOGETHER: usize = 16;

/// A bucket holds what comes in over this time, in seconds: calls begin with all their peers at once.
const DEPTH_SECS: u32 = 8;

/// Peers that were forgotten without having answered, from which on an allocation is suspected of a scan.
const SUSPECT: u32 = 256;

/// Set in the hash of a peer that answered.
const ANSWERED: u32 = 1 << 31;

/// What is kept of one allocation's peers, from its first permission on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Contacts {
    /// Hashes of peers, the oldest at `next`; 0 is none.
    marks: Vec<u32>,
    next: usize,
    tokens: f64,
    /// Until when tokens came in, in nanoseconds.
    at: u64,
    /// New peers so far.
    pub addressed: u32,
    /// Peers that were forgotten without having answered.
    pub silent: u32,
    /// Whether the log says that it was over the rate.
    pub refusal_logged: bool,
}

impl Contacts {
    /// Whether it can be gone on with.
    pub fn is_sound(&self) -> bool {
        (LEAST..=MOST).contains(&self.marks.len())
    }

    /// Nobody known, with all tokens.
    pub fn new(per_second: u32, at: u64) -> Box<Self> {
        Box::new(Self {
            marks: vec![0; LEAST],
            next: 0,
            tokens: depth(per_second),
            at,
            addressed: 0,
            silent: 0,
            refusal_logged: false,
        })
    }

    /// Makes room for what so many permissions may be used for.
    pub fn grow(&mut self, permissions: usize) {
        let wanted = (permissions * PER_PERMISSION)
            .clamp(LEAST, MOST)
            .next_power_of_two();
        if wanted > self.marks.len() {
            // The oldest comes first, so that what is added is filled before it is overwritten.
            self.marks.rotate_left(self.next);
            self.next = self.marks.len();
            self.marks.reserve_exact(wanted - self.next);
            self.marks.resize(wanted, 0);
        }
    }

    /// Whether the peer with `hash` was addressed lately.
    pub fn knows(&self, hash: u64) -> bool {
        let mark = mark(hash);
        let is = |known: &u32| known & !ANSWERED == mark;
        self.holds(is)
    }

    /// Takes a token for each of `new` peers; false if they are not there, and none is taken. A full bucket is enough for
    /// any number.
    pub fn admit(&mut self, per_second: u32, at: u64, new: usize) -> bool {
        let depth = depth(per_second);
        let nanos = at.saturating_sub(self.at);
        self.at += nanos;
        self.tokens = (self.tokens + nanos as f64 * 1e-9 * f64::from(per_second)).min(depth);
        let new = new as f64;
        let enough = self.tokens >= new.min(depth);
        if enough {
            self.tokens -= new;
        }
        enough
    }

    /// Remembers a peer that was not known, in the place of the oldest one. True once, when too many never answered.
    pub fn add(&mut self, hash: u64, answered: bool) -> bool {
        self.addressed = self.addressed.saturating_add(1);
        let place = self.next % self.marks.len();
        self.next = place + 1;
        let mark = mark(hash) | if answered { ANSWERED } else { 0 };
        let forgotten = std::mem::replace(&mut self.marks[place], mark);
        let silent = forgotten != 0 && forgotten & ANSWERED == 0;
        self.silent = self.silent.saturating_add(silent.into());
        silent && self.silent == SUSPECT
    }

    /// Takes note that the peer with `hash` sent something.
    pub fn answers(&mut self, hash: u64) {
        let mark = mark(hash);
        if self.holds(|known| *known == mark | ANSWERED) {
            return;
        }
        if let Some(known) = self.marks.iter_mut().find(|known| **known == mark) {
            *known |= ANSWERED;
        }
    }

    /// Those that are remembered, and how many of them never answered.
    pub fn silence(&self) -> Peers {
        let remembered = self.marks.iter().filter(|mark| **mark != 0);
        Peers {
            remembered: remembered.clone().count(),
            silent: remembered.filter(|mark| **mark & ANSWERED == 0).count(),
        }
    }

    /// Several at once, without leaving early: the compiler makes one comparison of them.
    fn holds(&self, is: impl Fn(&u32) -> bool) -> bool {
        (self.marks.chunks(TOGETHER)).any(|some| some.iter().fold(false, |any, it| any | is(it)))
    }
}

/// What a full bucket holds. A rate of a few is meant for few peers, and still for a call.
fn depth(per_second: u32) -> f64 {
    per_second.max(4).saturating_mul(DEPTH_SECS).into()
}

/// The hash as it is remembered, never 0.
const fn mark(hash: u64) -> u32 {
    let mark = hash as u32 & !ANSWERED;
    if mark == 0 { 1 } else { mark }
}
