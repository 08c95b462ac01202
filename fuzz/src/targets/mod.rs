//! One function per target: any bytes in, a panic if something does not hold. `tests/fuzzed.rs` runs them as well.

mod config;
mod input;
mod ledger;
mod message;
mod peers;
mod server;
mod stream;

use std::collections::BTreeSet;

pub use config::config;
pub use message::message;
pub use peers::peers;
pub use server::server;
pub use stream::stream;

/// What an input came across, to see that inputs get somewhere.
pub type Reach = BTreeSet<String>;

/// A target: its name and what it runs.
pub type Target = (&'static str, fn(&[u8]) -> Reach);

/// Every target.
pub const ALL: [Target; 5] = [
    ("config", config),
    ("message", message),
    ("peers", peers),
    ("server", server),
    ("stream", stream),
];
