//! What an attacker would try, one test for each attempt: the real server on loopback, and the core in virtual time.
//!
//! `SECURITY.md` lists them with what they prove.

#[path = "../common/mod.rs"]
mod common;

#[path = "../common/pcapng.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod pcapng;

#[path = "../loopback/client.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod client;
#[path = "../loopback/server.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod server;

mod abuse;
mod bid_down;
mod flight;
mod handover;
mod hostile;
mod limits;
mod mobility;
mod peers;
mod process;
mod realms;
mod revocation;
mod sinks;
mod strangers;
mod surfaces;
mod tcp;
