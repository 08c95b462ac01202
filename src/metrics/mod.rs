//! Metric names and their Prometheus encoding, from values that shards hand out.
//!
//! Owns no counter: shards count, this module names and writes. Nothing here costs the data path anything.

mod calls;
mod encode;
mod passages;

pub use calls::{CallHistograms, Calls, OBSERVED_EVERY, Spread};
pub use encode::{Context, Reading, encode};

use std::time::Duration;

use crate::access::RealmName;
use crate::base::{Family, Transport};
use crate::turn::{AllocationView, Direction, Stats};

/// What the last looks of the server's own canary by one transport found.
#[derive(Clone, Copy, Debug)]
pub struct CanaryLook {
    /// How it reached the server.
    pub transport: Transport,
    /// Whether all of them came through the relay and back.
    pub success: bool,
    /// What the slowest of those that did took.
    pub duration: Option<Duration>,
}

/// What one shard counted, or the sum over all of them.
#[derive(Clone, Debug, Default)]
pub struct ShardSnapshot {
    /// Counters of the core.
    pub stats: Stats,
    /// Open client connections and sessions by `Transport` (UDP stays 0).
    pub stream_connections: [u64; Transport::ALL.len()],
    /// Sockets for which the kernel or the device refused UDP_SEGMENT, so that they send one by one.
    pub segmentation_fallbacks: u64,
}

impl ShardSnapshot {
    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.stats.merge(&other.stats);
        self.segmentation_fallbacks += other.segmentation_fallbacks;
        for (mine, theirs) in self
            .stream_connections
            .iter_mut()
            .zip(other.stream_connections)
        {
            *mine += theirs;
        }
    }
}

/// A live allocation, named across shards as `shard-slot-generation`.
#[derive(Clone, Debug)]
pub struct NamedAllocation {
    /// The id of the admin API and of the `allocation` label.
    pub name: String,
    /// The shard that owns it.
    pub shard: usize,
    /// What it is doing.
    pub view: AllocationView,
}

/// What a walk over all live allocations found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The busiest of those that were looked for, busiest first, as many as were asked for.
    pub busiest: Vec<NamedAllocation>,
    /// How many of those that were looked for there are.
    pub found: usize,
    /// Bits per second of all allocations over the last ten seconds: client's transport, direction.
    pub bits_per_second: [[u64; Direction::ALL.len()]; Transport::ALL.len()],
    /// How the calls of all allocations go.
    pub calls: Calls,
}

/// What allocations use up, and how much of it there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Relay ports that are taken, by `Family`.
    pub ports_in_use: [u64; Family::ALL.len()],
    /// Relay ports that there are, by `Family`.
    pub ports: [u64; Family::ALL.len()],
    /// Live allocations.
    pub allocations: u64,
    /// How many there may be; 0 is no limit.
    pub limit: u64,
    /// Live allocations of each realm but the default one, by name.
    pub realms: Vec<(RealmName, u32)>,
}

impl Capacity {
    /// Share of the most limiting resource in use, 0.0 to 1.0.
    pub fn ratio(&self) -> f64 {
        let ports = (self.ports_in_use.iter().zip(self.ports))
            .map(|(in_use, total)| *in_use as f64 / total.max(1) as f64)
            .fold(0.0, f64::max);
        let allocations = match self.limit {
            0 => 0.0,
            limit => self.allocations as f64 / limit as f64,
        };
        ports.max(allocations).min(1.0)
    }
}
