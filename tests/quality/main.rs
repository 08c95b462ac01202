//! What the relay says of calls, against links whose truth is known, in virtual time.

mod accuracy;
mod checks;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod link;
mod server;
mod sessions;
mod streams;

use turnix::base::Direction;
use turnix::quality::{Mode, Quality, Watch};

use link::Arrival;

/// What a watch says that saw `arrivals`, at the last of them.
fn watched(mode: Mode, began: u64, arrivals: &[Arrival]) -> Quality {
    let mut watch = Watch::new(began);
    for arrival in arrivals {
        watch.observe(mode, arrival.at, arrival.direction, &arrival.datagram);
    }
    watch.quality(arrivals.last().map_or(0, |last| last.at))
}

const TO_PEER: usize = Direction::ToPeer as usize;
const TO_CLIENT: usize = Direction::ToClient as usize;
