//! What happens to a running server as a whole: signals, draining, what systemd is told and what it gives.
//!
//! Decides nothing about configuration: `app.rs` carries out what is asked for here.

mod drain;
pub mod handover;
mod inherit;
pub mod notify;
mod signals;
pub mod store;

pub use drain::Drain;
pub use inherit::Inherited;
pub use signals::{Signal, Signals};
