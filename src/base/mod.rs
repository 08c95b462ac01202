//! Vocabulary every other module shares: time, addresses, secrets, text that is safe to print, whom to trace.
//!
//! Owns the only place that reads a clock. Imports nothing of turnix.

pub mod addr;
pub mod printable;
pub mod secret;
pub mod time;
pub mod trace;

pub use addr::{
    Direction, Family, FiveTuple, ListenerId, RelayTransport, RelayedAddress, Transport,
};
pub use printable::Printable;
pub use secret::{Pii, PiiMode, Secret};
pub use time::{Clock, Now};
