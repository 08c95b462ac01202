//! What the test targets share: messages built and read by the `stun` crate, a second opinion on every byte, and a
//! world in virtual time around the core.
#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod codec;
pub mod dtls;
pub mod security;
pub mod wire;
pub mod world;
