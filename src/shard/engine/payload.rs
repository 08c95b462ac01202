//! Application data on its way through a shard.

use std::ops::Range;

use crate::net::{Batch, HEADROOM, IpFields};

/// Where application data lies in the current batch.
#[derive(Clone, Copy)]
pub(super) struct Payload {
    pub slot: u16,
    pub start: usize,
    pub length: usize,
    /// Bytes in front that nobody else needs: a header that fits is written there.
    pub room: usize,
    /// What IP headers say of it.
    pub fields: IpFields,
}

impl Payload {
    pub fn bytes(self, batch: &Batch) -> &[u8] {
        batch.bytes(usize::from(self.slot), self.start..self.start + self.length)
    }

    /// Bytes `range` of it.
    pub fn part(self, range: Range<u16>) -> Self {
        Self {
            start: self.start + usize::from(range.start),
            length: usize::from(range.end - range.start),
            room: self.room + usize::from(range.start),
            ..self
        }
    }
}

/// The datagram at `range` of what was received into `slot`.
pub(super) fn received_at(slot: usize, range: &Range<usize>, tos: u8) -> Payload {
    Payload {
        slot: slot as u16,
        start: HEADROOM + range.start,
        length: range.len(),
        // In front of all but the first of a train lies the one before it.
        room: if range.start == 0 { HEADROOM } else { 0 },
        fields: IpFields {
            tos,
            dont_fragment: false,
        },
    }
}
