//! coturn's configuration file, read as coturn reads it and written as ours: text in, text and findings out.
//!
//! Every option of coturn 4.17, and those of older versions, stands in `options.rs` with what becomes of it. What is not
//! safe is refused and said; nothing is dropped in silence.

mod database;
mod lines;
mod options;
mod peers;
mod render;
mod take;
mod translate;

use std::path::Path;

use crate::base::Secret;

pub use database::{Database, Row};
pub use lines::{Setting, settings};

/// What an import starts from.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// What is called where the result says where it comes from.
    pub name: &'a str,
    /// The configuration file.
    pub text: &'a str,
    /// The folder of the file, which relative paths begin in.
    pub folder: &'a Path,
    /// coturn's SQLite database, where there is one.
    pub database: Option<&'a Database>,
    /// The secret that is written where nobody could authenticate otherwise.
    pub fresh_secret: &'a Secret<String>,
}

/// What an import comes to.
#[derive(Clone, Debug)]
pub struct Import {
    /// The configuration; holds secrets.
    pub toml: Secret<String>,
    /// What became of every option, in the order of the file; then of the database, then of coturn's defaults.
    pub findings: Vec<Finding>,
}

/// What became of one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where it was said.
    pub place: Place,
    /// The option, as coturn names it.
    pub option: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The keys that it went into; none where turnix does the same without.
    pub keys: Vec<&'static str>,
    /// Why, where the keys do not say it; never a secret.
    pub reason: String,
}

/// Where something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, counted from 1.
    Line(usize),
    /// A table of the database.
    Table(&'static str),
    /// Nowhere: what coturn does unless told otherwise.
    Default,
}

/// What becomes of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// turnix does the same.
    Mapped,
    /// turnix does something near it.
    Approximated,
    /// turnix does nothing of it.
    Refused,
    /// coturn has no such option.
    Unknown,
}

impl Outcome {
    /// Every outcome, in the order to tell them.
    pub const ALL: [Self; 4] = [
        Self::Mapped,
        Self::Approximated,
        Self::Refused,
        Self::Unknown,
    ];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Approximated => "approximated",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// Writes `input` as a configuration of turnix.
pub fn import(input: &Input<'_>) -> Import {
    translate::translate(input)
}

/// The long name of every option that is known.
pub fn names() -> impl Iterator<Item = &'static str> {
    options::OPTIONS.iter().map(|option| option.name)
}
