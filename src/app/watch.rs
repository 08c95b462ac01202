//! Whether what lies in files is other than before.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::PemFiles;

/// What tells one state of a file from the next, symbolic links followed: a new target counts as well as new content.
type State = Option<(u64, u64, u64, i64, i64)>;

/// Compares states that are looked at now and then: renewals replace files, links or whole directories, and this sees all
/// of them alike.
#[derive(Debug)]
pub(super) struct Watch<S> {
    known: Option<S>,
    /// Seen once; it counts once it is seen again, lest something is read of which one half is written.
    seen: Option<S>,
}

impl<S: Clone + PartialEq> Watch<S> {
    pub const fn new() -> Self {
        Self {
            known: None,
            seen: None,
        }
    }

    /// One that knows a state already, lest a change be missed before the first look.
    pub const fn since(known: S) -> Self {
        Self {
            known: Some(known),
            seen: None,
        }
    }

    /// Whether `now` is another state than when this was last said, for two looks in a row.
    pub fn changed(&mut self, now: S) -> bool {
        let Some(known) = &self.known else {
            self.known = Some(now);
            return false;
        };
        if now == *known {
            self.seen = None;
            return false;
        }
        if self.seen.as_ref() != Some(&now) {
            self.seen = Some(now);
            return false;
        }
        self.known = Some(now);
        self.seen = None;
        true
    }
}

/// The state of a certificate and its key.
pub(super) fn states(files: &PemFiles) -> [State; 2] {
    [state(&files.certificate), state(&files.key)]
}

fn state(file: &Path) -> State {
    let metadata = fs::metadata(file).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}
