//! Who may allocate, who may be reached, how many may live.

mod credentials;
mod peers;
mod ports;
mod quota;
mod rate;
mod revocations;
