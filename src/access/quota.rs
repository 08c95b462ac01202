//! Quotas on allocations.
use std::net::IpAddr;
use std::sync::Arc;

/// How many allocations may live at once; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In total.
    pub allocations: u32,
    /// Per user id.
    pub allocations_per_user: u32,
    /// Per client IPv4 address or IPv6 /64.
    pub allocations_per_address: u32,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaExceeded {
    /// `allocations`
    Total,
    /// `allocations_per_user`
    User,
    /// `allocations_per_address`
    Address,
}

/// Counts live allocations against the limits.
#[derive(Debug, Default)]
pub struct Quota {}

impl Quota {
    /// Starts with nothing counted.
    pub fn new(_limits: Limits) -> Self {
        todo!()
    }

    /// Counts one allocation of `user` from `client`.
    ///
    /// # Errors
    /// The limit that is reached; nothing is counted then.
    pub fn reserve(&mut self, _user: &Arc<str>, _client: IpAddr) -> Result<(), QuotaExceeded> {
        todo!()
    }

    /// Gives back what `reserve` counted.
    pub fn release(&mut self, _user: &Arc<str>, _client: IpAddr) {
        todo!()
    }
}
