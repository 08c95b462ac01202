//! One process goes on where another stops: real processes, real traffic.

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod flows;
mod process;
mod restart;
mod upgrades;
