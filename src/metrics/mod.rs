//! Metric names and their Prometheus encoding, from values that shards hand out.
//!
//! Owns no counter: shards count, this module names and writes. Nothing here costs the data path anything.

mod encode;

pub use encode::{Context, Reading, encode};

use std::time::Duration;

use crate::base::Transport;
use crate::turn::{AllocationView, Stats};

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
    /// Open client connections by `Transport` (UDP stays 0).
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
