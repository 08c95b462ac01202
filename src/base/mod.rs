//! Vocabulary every other module shares: time, addresses, secrets, whom to trace.
//!
//! Owns the only place that reads a clock. Imports nothing of turnix.

pub mod addr;
pub mod secret;
pub mod time;
pub mod trace;

pub use addr::{Family, FiveTuple, ListenerId, RelayedAddress, Transport};
pub use secret::{Pii, PiiMode, Secret};
pub use time::{Clock, Now};
