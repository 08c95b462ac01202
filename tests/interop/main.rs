//! Other implementations' clients against the built server: coturn's load generator, browsers, aiortc, the
//! `turn` crate, Twilio's library. Everything runs on loopback or in a network that the test makes, and ends by itself.
//!
//! The probe is a client too, and meets coturn's `turnserver`.
//!
//! A test whose tool is missing prints `SKIPPED` and passes, unless `INTEROP_REQUIRE_TOOLS=1`.
//! `INTEROP_SERVER=coturn` runs the same clients against coturn's `turnserver`, which tells a fault of the
//! harness from one of the server; what only turnix has (its metrics, its test page) is then not looked at.

mod aiortc;
mod browser;
mod capture;
mod chromium;
mod dashboard;
mod discovery;
mod dtls;
mod firefox;
mod kinesis;
mod metrics;
mod network;
mod probe;
mod prometheus;
mod promtool;
mod quality;
mod server;
mod sharing;
mod test_page;
mod tools;
mod turn_crate;
mod twilio;
mod uclient;
mod vendor;
