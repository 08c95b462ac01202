//! What becomes of allocations that look like abuse rather than like calls ([`score`](crate::quality::score)).
//!
//! Judged once a second at most, and only while data is relayed: whoever sends nothing abuses nothing. An end is a
//! lifetime that is over, so that the data path queues nothing; the next timer carries it out.

use crate::base::{Now, Pii};
use crate::quality::score::{Signals, Signs, THRESHOLD};
use crate::quality::{Action, Mode, Watch};

use super::allocation::{Allocation, AllocationId};
use super::server::Server;

impl Allocation {
    /// Goes on with what another process knew.
    pub(super) fn resume_signs(&mut self, signs: Option<&Signs>) {
        if let Some(signs) = signs {
            self.throttled = signs.is_throttled();
            (self.watch.get_or_insert_with(|| Box::new(Watch::new(0)))).signs = signs.clone();
        }
    }
}

impl Server {
    /// Judges `id`, about which a second's data is known, and does what follows. True if it is over.
    #[cold]
    pub(super) fn judge(&mut self, now: Now, id: AllocationId) -> bool {
        let settings = self.settings.quality;
        let Some(allocation) = self.allocations.get_mut(id) else {
            return false;
        };
        let Some(watch) = &mut allocation.watch else {
            return false;
        };
        let signs = &mut watch.signs;
        if settings.abuse == Action::Off || allocation.scope.is_canary() {
            signs.pass();
            return false;
        }
        let peers = (allocation.contacts.as_ref()).map(|contacts| contacts.silence());
        let signals = signs.judge(peers.unwrap_or_default());
        if signals.score() < THRESHOLD {
            if allocation.throttled && signs.is_calm() {
                self.set_throttled(now, id, false);
                self.tell_of_release(id);
            }
            return false;
        }
        let new = signs.note(signals);
        let throttled = allocation.throttled;
        // What follows for the first time is told of with all its reasons.
        match settings.abuse {
            Action::Off => false,
            Action::Note => {
                self.tell_of_abuse(id, settings.abuse, signals, new);
                false
            }
            Action::Throttle => {
                let told = if throttled { new } else { signals };
                self.tell_of_abuse(id, settings.abuse, signals, told);
                if !throttled {
                    self.set_throttled(now, id, true);
                }
                false
            }
            Action::End => {
                self.tell_of_abuse(id, settings.abuse, signals, signals);
                self.touch(now, id, |allocation| {
                    allocation.abused = true;
                    allocation.end_by(now.mono);
                });
                true
            }
        }
    }

    /// Does what other settings ask for, for allocations that are throttled as well. The others are judged within a second.
    pub(super) fn settle_abuse(&mut self) {
        let now = self.latest;
        let settings = self.settings.quality;
        let throttles = settings.abuse == Action::Throttle && settings.mode != Mode::Off;
        let throttled: Vec<_> = (self.allocations.range(0, usize::MAX))
            .filter(|allocation| allocation.throttled)
            .map(|allocation| allocation.id)
            .collect();
        for id in throttled {
            self.set_throttled(now, id, throttles);
        }
    }

    /// Has `id` get no more than is left to abuse, or whatever others get.
    fn set_throttled(&mut self, now: Now, id: AllocationId, throttled: bool) {
        let bits = self.settings.quality.abuse_bits_per_second;
        let Some(allocation) = self.allocations.get_mut(id) else {
            return;
        };
        if let Some(watch) = &mut allocation.watch {
            watch.signs.throttle(throttled.then_some(bits));
        }
        if std::mem::replace(&mut allocation.throttled, throttled) != throttled {
            match throttled {
                true => self.stats.throttled += 1,
                false => self.stats.throttled -= 1,
            }
        }
        self.place_under_limits(now, id);
    }

    /// Counts `told`, and logs `signals`, if there is anything to tell.
    fn tell_of_abuse(&mut self, id: AllocationId, action: Action, signals: Signals, told: Signals) {
        if told.is_empty() {
            return;
        }
        for signal in told.iter() {
            self.stats.abuse[signal as usize][action as usize] += 1;
        }
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        tracing::info!(
            user = %allocation.user.escape_debug(),
            client = %Pii(allocation.five_tuple.client()),
            relayed = allocation.relayed().map(|relayed| tracing::field::display(relayed.0)),
            score = signals.score(),
            signals = %signals,
            action = action.label(),
            "an allocation looks like abuse rather than like a call; quality.abuse says what follows"
        );
    }

    fn tell_of_release(&self, id: AllocationId) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        tracing::info!(
            user = %allocation.user.escape_debug(),
            client = %Pii(allocation.five_tuple.client()),
            relayed = allocation.relayed().map(|relayed| tracing::field::display(relayed.0)),
            "an allocation that was throttled has looked like others for a minute; it gets what others get"
        );
    }
}
