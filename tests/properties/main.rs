//! Random operations against naive models.

mod access;
#[path = "../common/mod.rs"]
mod common;
mod core;
mod policies;
mod relay_ports;
mod wire;
