//! The TURN server as a function of its inputs.
pub mod allocation;
pub mod stats;
pub use allocation::AllocationId;
pub use stats::{AllocationView, Direction, DropReason, Path, Stats, Traffic};

/// Which channel numbers clients may bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChannelRange {
    /// 0x4000 to 0x4FFF (RFC 8656 §12).
    #[default]
    Rfc8656,
    /// 0x4000 to 0x7FFE (RFC 5766 §11), for old clients.
    Rfc5766,
}

/// How the core behaves; everything random in it is an input, so that runs can be repeated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The longest lifetime a client may ask for.
    pub max_lifetime: std::time::Duration,
    /// How long a nonce is good for.
    pub nonce_lifetime: std::time::Duration,
    /// Channel numbers that may be bound.
    pub channels: ChannelRange,
    /// Live permissions one allocation may hold.
    pub permissions_per_allocation: usize,
    /// Live channel bindings one allocation may hold.
    pub channels_per_allocation: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_lifetime: std::time::Duration::from_secs(3600),
            nonce_lifetime: std::time::Duration::from_secs(3600),
            channels: ChannelRange::default(),
            permissions_per_allocation: 128,
            channels_per_allocation: 64,
        }
    }
}
