//! What operators install and watch: the units and their sandbox, rules and dashboard, images, packages' metadata.
//!
//! Everything that Debian's tools can read is read by them. A test whose tool is missing prints `SKIPPED` and passes,
//! unless `INTEROP_REQUIRE_TOOLS=1`.

mod images;
mod monitoring;
mod sandbox;
#[path = "../interop/tools.rs"]
#[allow(dead_code, reason = "tests/interop uses the rest of it")]
mod tools;
mod units;

use std::fs;
use std::path::{Path, PathBuf};

/// A path in the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of the repository.
fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
