//! Whom an allocation addressed lately, and how many new peers it may address: against scans through the relay.
//!
//! A scan of ports or hosts is many peers, each addressed once; a call is few peers, each addressed again and again. The
//! last peers are remembered as hashes of 16 bits: forgetting one costs its sender a token more, confusing two of them
//! lets one in a thousand pass for known.

/// Peers that are remembered, the latest ones. More than a call tries at once, with all its candidates.
const REMEMBERED: usize = 128;

/// A bucket holds what comes in over this time, in seconds: calls begin with all their peers at once.
const DEPTH_SECS: u32 = 8;

/// Peers that were forgotten without having answered, from which on an allocation is suspected of a scan.
pub(super) const SUSPECT: u32 = 256;

/// What is kept of one allocation's peers, from its first permission on.
#[derive(Debug)]
pub(super) struct Contacts {
    /// Hashes of peers; 0 is none.
    marks: [u16; REMEMBERED],
    /// Which of them answered, a bit each.
    answered: u128,
    /// Which comes next.
    next: u8,
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
    /// Nobody known, with all tokens.
    pub fn new(per_second: u32, at: u64) -> Box<Self> {
        Box::new(Self {
            marks: [0; REMEMBERED],
            answered: 0,
            next: 0,
            tokens: depth(per_second),
            at,
            addressed: 0,
            silent: 0,
            refusal_logged: false,
        })
    }

    /// Whether the peer with `hash` was addressed lately.
    pub fn knows(&self, hash: u64) -> bool {
        self.marks.contains(&mark(hash))
    }

    /// Takes a token for each of `new` peers; false if they are not there, and none is taken. A full bucket is enough for
    /// any number.
    pub fn admit(&mut self, per_second: u32, at: u64, new: usize) -> bool {
        if new == 0 {
            return true;
        }
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
        let place = usize::from(self.next) % REMEMBERED;
        self.next = self.next.wrapping_add(1);
        let bit = 1_u128 << place;
        let forgotten = std::mem::replace(&mut self.marks[place], mark(hash));
        let silent = forgotten != 0 && self.answered & bit == 0;
        self.answered &= !bit;
        if answered {
            self.answered |= bit;
        }
        self.silent = self.silent.saturating_add(silent.into());
        silent && self.silent == SUSPECT
    }

    /// Takes note that the peer with `hash` sent something.
    pub fn answers(&mut self, hash: u64) {
        let mark = mark(hash);
        if let Some(place) = self.marks.iter().position(|known| *known == mark) {
            self.answered |= 1 << place;
        }
    }
}

/// What a full bucket holds. A rate of a few is meant for few peers, and still for a call.
fn depth(per_second: u32) -> f64 {
    per_second.saturating_mul(DEPTH_SECS).max(DEPTH_SECS * 4).into()
}

/// The hash as it is remembered, never 0.
const fn mark(hash: u64) -> u16 {
    let mark = hash as u16;
    if mark == 0 { 1 } else { mark }
}
