//! When something ends next: one entry per allocation, moved rather than added, so the queue is as long as the slab.

use std::collections::BTreeSet;
use std::time::Instant;

use super::allocation::AllocationId;

/// The queue. Ordered by time, then id, so that outputs come in a repeatable order.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, AllocationId)>,
}

impl Timers {
    /// The earliest entry.
    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes the earliest entry that is due at `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<AllocationId> {
        let &(at, id) = self.queue.first()?;
        if at > now {
            return None;
        }
        self.queue.pop_first();
        Some(id)
    }

    /// Moves the entry of `id` from `before`, if it is still there, to `after`.
    pub fn reschedule(&mut self, id: AllocationId, before: Instant, after: Option<Instant>) {
        self.queue.remove(&(before, id));
        if let Some(after) = after {
            self.queue.insert((after, id));
        }
    }
}
