//! turnix: a TURN and STUN relay server.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]

pub mod access;
pub mod acme;
pub mod app;
pub mod base;
pub mod capture;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod external;
pub mod http;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod quality;
pub mod records;
pub mod shard;
pub mod stream;
pub mod turn;
pub mod why;
pub mod wire;
