//! A fault that has begun and is not over before things have been fine for a while: what comes and goes counts as there.

use super::State;

/// For how long it is remembered that a fault came and went, in seconds.
pub(super) const MEMORY: u64 = 600;

/// Beginnings that are remembered.
const BEGINNINGS: usize = 4;

/// One fault, there or not.
#[derive(Debug, Default)]
pub(super) struct Latch {
    there: Option<(State, u64)>,
    /// When it was last seen.
    seen: u64,
    /// It is there, and was not seen the last time.
    fine: bool,
    /// When it began the last times, or began again before it was over, the latest first; 0: never.
    beginnings: [u64; BEGINNINGS],
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Begun,
    Same,
    /// It is gone; it was there since then.
    Over(u64),
}

impl Latch {
    /// How bad it is and since when, if it is there.
    pub const fn there(&self) -> Option<(State, u64)> {
        self.there
    }

    /// Whether it is there and was seen at `at`.
    pub const fn is_lasting(&self, at: u64) -> bool {
        self.there.is_some() && self.seen == at
    }

    /// Takes how bad things are at `at` and since when, if they are; `calm` says for how many seconds they have to be fine
    /// for it to be over, by how often it has begun of late.
    pub fn update(
        &mut self,
        at: u64,
        wanted: Option<(State, u64)>,
        calm: impl FnOnce(usize) -> u64,
    ) -> Turn {
        match (wanted, self.there) {
            (Some((state, since)), None) => {
                self.there = Some((state, since.min(at)));
                self.begin(at);
                Turn::Begun
            }
            (Some((state, _)), Some((_, since))) => {
                self.there = Some((state, since));
                if self.fine {
                    self.begin(at);
                }
                self.seen = at;
                Turn::Same
            }
            (None, None) => Turn::Same,
            (None, Some((_, since))) => {
                self.fine = true;
                let of_late = |begun: &&u64| **begun > 0 && at.saturating_sub(**begun) <= MEMORY;
                let times = self.beginnings.iter().filter(of_late).count();
                if at.saturating_sub(self.seen) < calm(times) {
                    return Turn::Same;
                }
                self.there = None;
                Turn::Over(since)
            }
        }
    }

    fn begin(&mut self, at: u64) {
        (self.seen, self.fine) = (at, false);
        self.beginnings.rotate_right(1);
        self.beginnings[0] = at;
    }
}
