//! placeholder for the shards; signatures are those that `http` relies on.
use crate::metrics::{NamedAllocation, ShardSnapshot};
use crate::stream::ClientStream;

/// Every shard of the server; cheap to clone.
#[derive(Clone)]
pub struct Shards {}

impl Shards {
    /// Sums what all shards counted. A shard that is gone counts nothing.
    pub async fn snapshot(&self) -> ShardSnapshot {
        todo!()
    }
    /// The busiest `most` live allocations by current bits/s, busiest first; all of them if `most` is `usize::MAX`.
    pub async fn allocations(&self, most: usize) -> Vec<NamedAllocation> {
        todo!()
    }
    /// Ends the allocation named `name`; false if there is none.
    pub async fn end_allocation(&self, name: &str) -> bool {
        todo!()
    }
    /// Ends every allocation of `user`; how many there were.
    pub async fn end_user(&self, user: &str) -> usize {
        todo!()
    }
    /// Whether every shard answered within a second.
    pub async fn alive(&self) -> bool {
        todo!()
    }
    /// Share of the most limiting resource in use (relay ports, or `limits.allocations`), 0.0 to 1.0.
    pub fn capacity_ratio(&self) -> f64 {
        todo!()
    }
    /// Hands a stream client to a shard, which owns it from then on.
    pub fn adopt(&self, stream: ClientStream) {
        todo!()
    }
}
