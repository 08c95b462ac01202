//! What the server tells its operators: logs in every form, access records, traces, and addresses in none of them where
//! that is what they want.

#[path = "../common/mod.rs"]
mod common;

#[path = "../loopback/client.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod client;
#[path = "../common/quality.rs"]
mod quality;
#[path = "../loopback/server.rs"]
#[allow(dead_code, reason = "made for many tests")]
mod server;

mod binary;
mod journal;
mod rate;
mod receiver;
mod records;
mod sinks;
mod trace;
