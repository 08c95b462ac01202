//! Certificates by ACME from a real authority: Pebble, the test server of Let's Encrypt, on loopback, whose validation,
//! nonces and chains are what a server meets in the wild.
//!
//! A test whose tool is missing prints `SKIPPED` and passes, unless `INTEROP_REQUIRE_TOOLS=1`.

#[path = "../common/mod.rs"]
mod common;

#[path = "../loopback/client.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod client;
#[path = "../loopback/server.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod server;

#[path = "../lifecycle/process.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod process;

mod busy;
mod certificates;
mod pebble;
