//! Calls that fail, each in a world of its own in virtual time, and what `turnix why` says of them.

#[path = "../common/mod.rs"]
mod common;

mod call;
mod verdicts;
