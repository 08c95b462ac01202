//! The packets of one allocation as a file that Wireshark opens: what a shard hands out of its data path, what of it may be
//! shown, and how it is written.
//!
//! Pure: no clock, no socket. What is secret or personal and no header of a call is left out before a packet leaves its
//! shard ([`headers`]) or masked before it is written ([`scrub`]).

mod disguise;
mod packet;
mod pcapng;
mod scrub;
mod tally;

pub use disguise::Disguise;
pub use packet::Packet;
pub use pcapng::{About, Counted, Writer};
pub use scrub::{headers, scrub};
pub use tally::Tally;
