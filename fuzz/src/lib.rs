//! What the fuzzer runs. The targets share the model, the harness and the second opinion on the codec with the tests.
#![allow(dead_code, reason = "the tests use the rest of it")]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/properties/core/harness.rs"]
mod harness;
#[path = "../../tests/properties/core/model.rs"]
mod model;
#[path = "../../tests/properties/core/operations.rs"]
mod operations;

pub mod targets;
