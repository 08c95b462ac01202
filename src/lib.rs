//! turnix: a TURN and STUN relay server.

pub mod access;
pub mod app;
pub mod base;
pub mod cli;
pub mod client;
pub mod config;
pub mod http;
pub mod metrics;
pub mod net;
pub mod shard;
pub mod stream;
pub mod turn;
pub mod wire;
