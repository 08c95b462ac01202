//! Whether the files of the certificate are others than before.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::Tls;

/// What tells one state of a file from the next, symbolic links followed: a new target counts as well as new content.
type State = Option<(u64, u64, u64, i64, i64)>;

/// Looks at the files now and then: renewals replace files, links or whole directories, and this sees all of them alike.
#[derive(Debug, Default)]
pub(super) struct Watch {
    known: Option<[State; 2]>,
    /// Seen once; it counts once it is seen again, lest a pair is read of which one half is written.
    seen: Option<[State; 2]>,
}

impl Watch {
    /// Whether `tls` names other content than when this was last said, for two looks in a row.
    pub fn changed(&mut self, tls: &Tls) -> bool {
        let now = [state(&tls.certificate), state(&tls.key)];
        let Some(known) = self.known else {
            self.known = Some(now);
            return false;
        };
        if now == known {
            self.seen = None;
            return false;
        }
        if self.seen != Some(now) {
            self.seen = Some(now);
            return false;
        }
        self.known = Some(now);
        self.seen = None;
        true
    }
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
