//! A server process from its start to its end: reloads, drains, signals, and what systemd is told.

#[path = "../common/mod.rs"]
mod common;

#[path = "../loopback/client.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod client;
#[path = "../loopback/server.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod server;

mod certificates;
mod drain;
mod dtls;
mod openrelay;
mod process;
mod reload;
mod revocation;
mod shell;
mod systemd;
mod thousand;
