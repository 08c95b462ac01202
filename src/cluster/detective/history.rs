//! How the last days were, half an hour at a time, and at which time of day failures begin.

use std::collections::VecDeque;

/// Days that are remembered.
pub const DAYS: usize = 7;

/// Half hours of a day.
pub const SLOTS_A_DAY: usize = 48;

/// Seconds of one.
pub const SLOT_SECS: u64 = 86_400 / SLOTS_A_DAY as u64;

/// Without attempts for longer than that, what follows is a new beginning.
const LONGEST_GAP: usize = SLOTS_A_DAY / 2;

/// What is known of half an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Somebody wanted an allocation.
    pub tried: bool,
    /// There was an outage.
    pub bad: bool,
}

#[derive(Debug, Default)]
pub(super) struct History {
    /// Which slot since the Unix epoch the last one is.
    last: u64,
    slots: VecDeque<Slot>,
}

impl History {
    /// Notes how it is at `unix`. A clock that went back stays in the last slot.
    pub fn mark(&mut self, unix: u64, tried: bool, bad: bool) {
        let number = unix / SLOT_SECS;
        let most = DAYS * SLOTS_A_DAY;
        let missing = match self.slots.len() {
            0 => 1,
            _ => number.saturating_sub(self.last).min(most as u64),
        };
        if missing > 0 {
            self.last = number;
        }
        for _ in 0..missing {
            if self.slots.len() == most {
                self.slots.pop_front();
            }
            self.slots.push_back(Slot::default());
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.tried |= tried;
            slot.bad |= bad;
        }
    }

    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter().copied()
    }

    /// The slot of the day in which outages begin more often than not, and on how many days they did.
    ///
    /// A job that starts on the hour is noticed a little sooner or later: slots next to each other count as one.
    pub fn pattern(&self) -> Option<(usize, usize)> {
        let mut days = [0; SLOTS_A_DAY];
        let mut begun = 0;
        let first = (self.last + 1).saturating_sub(self.slots.len() as u64);
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.bad && !self.was_bad_before(index) {
                begun += 1;
                days[(first + index as u64) as usize % SLOTS_A_DAY] += 1;
            }
        }
        let (slot, count) = (0..SLOTS_A_DAY)
            .map(|slot| {
                let next = days[(slot + 1) % SLOTS_A_DAY];
                // Named by the one that has more of them.
                let named = if next > days[slot] { slot + 1 } else { slot };
                (named % SLOTS_A_DAY, days[slot] + next)
            })
            .max_by_key(|(slot, count)| (*count, std::cmp::Reverse(*slot)))?;
        (count > 0 && 2 * count >= begun).then_some((slot, count.min(DAYS)))
    }

    /// Whether there was an outage when somebody tried last before `index`.
    fn was_bad_before(&self, index: usize) -> bool {
        let before = self.slots.range(..index).rev().take(LONGEST_GAP);
        (before.into_iter().find(|slot| slot.tried)).is_some_and(|slot| slot.bad)
    }
}
