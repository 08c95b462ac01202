//! Clients that have moved (RFC 8016) to where the kernel gives their datagrams to another shard than the one that has
//! their allocation.
//!
//! The shard that receives them, the *porter*, passes them on; the owner answers from its own socket of the same
//! listener, which has the same address. Both keep a table of such five-tuples. The porter's begins with a Refresh that
//! is authentic and whose ticket names the owner, and ends when the owner says so: it knows no such client, or not any
//! more.

use std::collections::HashMap;
use std::net::SocketAddr;

use ahash::RandomState;
use serde::{Deserialize, Serialize};

use crate::base::{FiveTuple, ListenerId, Transport};

/// Five-tuples that one shard passes on.
const MOST: usize = 16 * 1024;

/// Both tables of one shard.
pub(super) struct Steering {
    /// Who has the allocation, and how many Refreshes were passed on.
    away: HashMap<FiveTuple, Way, RandomState>,
    /// Who passes it on, and the number that came with the latest datagram.
    guests: HashMap<FiveTuple, Way, RandomState>,
}

/// Another shard, and a number that tells whether it speaks of the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub shard: u8,
    pub count: u32,
}

/// One entry for another process: client, listener, shard, number.
pub(super) type Entry = (SocketAddr, u16, u8, u32);

/// The tables for another process.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct SteeringImage {
    away: Vec<Entry>,
    guests: Vec<Entry>,
}

impl Steering {
    pub fn new(hasher: RandomState) -> Self {
        Self {
            away: HashMap::with_hasher(hasher.clone()),
            guests: HashMap::with_hasher(hasher),
        }
    }

    /// Where what comes on `five_tuple` goes, if that is another shard. Nearly always nobody has moved.
    pub fn away(&self, five_tuple: FiveTuple) -> Option<Way> {
        if self.away.is_empty() {
            return None;
        }
        self.away.get(&five_tuple).copied()
    }

    /// Passes `five_tuple` on to `shard` from now on; `None` if too many are passed on.
    pub fn send_away(&mut self, five_tuple: FiveTuple, shard: u8) -> Option<Way> {
        if self.away.len() >= MOST && !self.away.contains_key(&five_tuple) {
            return None;
        }
        let count = self.away.get(&five_tuple).map_or(0, |way| way.count);
        let way = Way { shard, count };
        self.away.insert(five_tuple, way);
        Some(way)
    }

    /// Another Refresh goes to the owner: what it said of those before counts no more.
    pub fn count_refresh(&mut self, five_tuple: FiveTuple) -> Option<Way> {
        let way = self.away.get_mut(&five_tuple)?;
        way.count = way.count.wrapping_add(1);
        Some(*way)
    }

    /// The owner knows no client on `five_tuple`, as of the Refresh of that number.
    pub fn call_back(&mut self, five_tuple: FiveTuple, count: u32) {
        if (self.away.get(&five_tuple)).is_some_and(|way| way.count == count) {
            self.away.remove(&five_tuple);
        }
    }

    /// Whether what comes on `five_tuple` is passed on to here; takes note of the number.
    pub fn greet(&mut self, five_tuple: FiveTuple, count: u32) -> bool {
        match self.guests.get_mut(&five_tuple) {
            Some(way) => {
                way.count = count;
                true
            }
            None => false,
        }
    }

    /// What comes on `five_tuple` is for an allocation of this shard.
    pub fn host(&mut self, five_tuple: FiveTuple, porter: Way) {
        self.guests.insert(five_tuple, porter);
    }

    /// It no longer is; who passes it on.
    pub fn take_leave(&mut self, five_tuple: FiveTuple) -> Option<Way> {
        self.guests.remove(&five_tuple)
    }

    /// Nobody is on `listener` any more.
    pub fn close(&mut self, listener: ListenerId) {
        (self.away).retain(|five_tuple, _| five_tuple.listener() != listener);
        (self.guests).retain(|five_tuple, _| five_tuple.listener() != listener);
    }

    pub fn export(&self) -> SteeringImage {
        SteeringImage {
            away: entries(&self.away),
            guests: entries(&self.guests),
        }
    }

    pub fn resume(&mut self, image: SteeringImage) {
        self.away.extend(image.away.into_iter().map(restored));
        self.guests.extend(image.guests.into_iter().map(restored));
    }
}

fn entries(table: &HashMap<FiveTuple, Way, RandomState>) -> Vec<Entry> {
    (table.iter())
        .map(|(five_tuple, way)| {
            let (client, listener) = (five_tuple.client(), five_tuple.listener().0);
            (client, listener, way.shard, way.count)
        })
        .collect()
}

fn restored((client, listener, shard, count): Entry) -> (FiveTuple, Way) {
    let five_tuple = FiveTuple::new(Transport::Udp, client, ListenerId(listener));
    (five_tuple, Way { shard, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_says_of_the_past_does_not_count() {
        let mut porter = Steering::new(RandomState::with_seeds(1, 2, 3, 4));
        let client = "192.0.2.1:5000".parse().unwrap();
        let from = FiveTuple::new(Transport::Udp, client, ListenerId(0));
        assert_eq!(porter.away(from), None);
        let way = porter.send_away(from, 1).unwrap();
        let first = porter.count_refresh(from).unwrap();
        assert_eq!((way.shard, first.count), (1, 1));
        let second = porter.count_refresh(from).unwrap();
        porter.call_back(from, first.count);
        assert_eq!(porter.away(from), Some(second));
        porter.call_back(from, second.count);
        assert_eq!(porter.away(from), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut porter = Steering::new(RandomState::with_seeds(1, 2, 3, 4));
        let from = |n: usize| {
            let client = SocketAddr::new([10, 0, (n >> 14) as u8, 1].into(), (n % 16384) as u16);
            FiveTuple::new(Transport::Udp, client, ListenerId(0))
        };
        for n in 0..MOST {
            assert!(porter.send_away(from(n), 1).is_some());
        }
        assert_eq!(porter.send_away(from(MOST), 1), None);
        assert!(porter.send_away(from(0), 1).is_some(), "known already");
    }
}
