//! From coturn to turnix: its options, its files as people have them, its database, the page that tells how.

// Tools that may be missing, processes that end with the test.
#[allow(dead_code, reason = "not every test directory uses all of it")]
#[path = "../interop/tools.rs"]
mod tools;

mod generated;
mod keys;
mod options;
mod page;
mod process;
