//! Whether a socket takes trains of datagrams as one message: decided by what arrives on it.
//!
//! Where the network stack aggregates, a train costs as much as one datagram. Where it does not, asking for trains
//! only makes the kernel look for them in vain.

use crate::net::Received;

/// Equal datagrams of one sender in a row that hint at a train.
const RUN: usize = 4;

/// Hints after which trains are tried for the first time.
const HINTS: u16 = 8;

/// Messages after which a trial is judged, again and again while it lasts.
const TRIAL: u16 = 512;

/// One message in so many has to be a train for the trial to go on.
const SHARE: u16 = 16;

/// How often a failed trial doubles the hints that the next one takes.
const MAX_DOUBLINGS: u8 = 8;

/// What one socket has shown so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trains {
    state: State,
    /// Hints seen while off, messages seen while on.
    seen: u16,
    /// Trains among the messages.
    trains: u16,
    doublings: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Off,
    On,
    /// The kernel does not know how.
    Never,
}

impl Trains {
    /// Takes note of what one call received; whether to switch trains on or off, if either.
    pub fn observe<'a>(&mut self, received: impl Iterator<Item = &'a Received>) -> Option<bool> {
        match self.state {
            State::Off => {
                self.seen += u16::from(has_run(received));
                if self.seen < HINTS << self.doublings {
                    return None;
                }
                self.turn(State::On);
                Some(true)
            }
            State::On => {
                for message in received {
                    self.seen += 1;
                    self.trains += u16::from(message.count() > 1);
                }
                if self.seen < TRIAL {
                    return None;
                }
                if self.trains >= self.seen / SHARE {
                    self.doublings = 0;
                    self.turn(State::On);
                    return None;
                }
                self.doublings = MAX_DOUBLINGS.min(self.doublings + 1);
                self.turn(State::Off);
                Some(false)
            }
            State::Never => None,
        }
    }

    /// Trains cannot be had here: they are not tried again.
    pub fn give_up(&mut self) {
        self.turn(State::Never);
    }

    fn turn(&mut self, state: State) {
        *self = Self {
            state,
            seen: 0,
            trains: 0,
            doublings: self.doublings,
        };
    }
}

/// Whether `RUN` neighbours have one sender and one size.
fn has_run<'a>(received: impl Iterator<Item = &'a Received>) -> bool {
    let mut last: Option<&Received> = None;
    let mut run = 1;
    for message in received {
        let continues = last.is_some_and(|last| {
            (last.len, last.from, last.local, last.tos)
                == (message.len, message.from, message.local, message.tos)
        });
        run = if continues { run + 1 } else { 1 };
        if run == RUN {
            return true;
        }
        last = Some(message);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(port: u16, len: usize, datagram_bytes: usize) -> Received {
        Received {
            from: ([192, 0, 2, 1], port).into(),
            local: None,
            len,
            datagram_bytes,
            truncated: false,
            tos: 0,
        }
    }

    fn interleaved() -> Vec<Received> {
        (0..64).map(|port| message(port % 3, 200, 200)).collect()
    }

    fn runs() -> Vec<Received> {
        (0..64).map(|port| message(port / 8, 200, 200)).collect()
    }

    #[test]
    fn single_datagrams_of_many_senders_never_start_a_trial() {
        let mut trains = Trains::default();
        for _ in 0..10_000 {
            assert_eq!(trains.observe(interleaved().iter()), None);
            assert_eq!(trains.observe(runs()[..3].iter()), None);
        }
    }

    #[test]
    fn runs_start_a_trial_that_ends_where_none_are_merged_and_the_next_takes_longer() {
        let mut trains = Trains::default();
        let mut calls = Vec::new();
        for _ in 0..4 {
            let mut hints = 1;
            while trains.observe(runs().iter()) != Some(true) {
                hints += 1;
            }
            calls.push(hints);
            let mut messages = 64;
            while trains.observe(runs().iter()) != Some(false) {
                messages += 64;
            }
            assert_eq!(messages, usize::from(TRIAL));
        }
        assert_eq!(calls, [8, 16, 32, 64]);
    }

    #[test]
    fn a_trial_goes_on_while_trains_come_and_stops_for_good_where_it_is_refused() {
        let mut trains = Trains::default();
        while trains.observe(runs().iter()) != Some(true) {}
        let merged: Vec<_> = (0..64).map(|port| message(port, 1600, 200)).collect();
        for _ in 0..100 {
            assert_eq!(trains.observe(merged.iter()), None);
        }
        trains.give_up();
        for _ in 0..100 {
            assert_eq!(trains.observe(runs().iter()), None);
        }
    }

    #[test]
    fn it_is_small() {
        assert!(size_of::<Trains>() <= 8);
    }
}
