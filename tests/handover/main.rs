//! One process goes on where another stops: real processes, real traffic.

#[path = "../common/mod.rs"]
mod common;

#[path = "../common/pcapng.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod pcapng;

mod faults;
mod flows;
mod process;
mod restart;
mod upgrades;
