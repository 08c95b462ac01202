//! The file of records: appended to, and opened anew where it was moved away.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Its owner writes, its group may read.
const MODE: u32 = 0o640;

pub(super) struct File {
    path: PathBuf,
    open: Option<fs::File>,
    /// The last line has no end: a write failed in the middle of it.
    torn: bool,
}

impl File {
    /// Opens `path`, made if it does not exist.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let open = Some(open(&path)?);
        Ok(Self {
            path,
            open,
            torn: false,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the next write open it anew.
    pub fn forget(&mut self) {
        self.sync();
        self.open = None;
    }

    /// Appends whole lines.
    pub fn append(&mut self, lines: &str) -> io::Result<()> {
        if self.was_moved() {
            self.forget();
        }
        if self.open.is_none() {
            self.open = Some(open(&self.path)?);
            self.torn = false;
        }
        let Some(file) = &mut self.open else {
            return Ok(());
        };
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        let written = file.write_all(lines.as_bytes());
        // Nobody knows how much of it was written.
        self.torn = written.is_err();
        written
    }

    /// Puts what was written on the disk.
    pub fn sync(&mut self) {
        if let Some(file) = &self.open
            && let Err(error) = file.sync_data()
        {
            tracing::warn!(%error, file = %self.path.display(), "access records may not be on the disk yet");
        }
    }

    /// Whether the path names another file than the one that is open, or none.
    fn was_moved(&self) -> bool {
        let Some(file) = &self.open else {
            return false;
        };
        match (file.metadata(), fs::metadata(&self.path)) {
            (Ok(open), Ok(there)) => (open.dev(), open.ino()) != (there.dev(), there.ino()),
            (_, Err(error)) => error.kind() == io::ErrorKind::NotFound,
            (Err(_), _) => false,
        }
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    let made = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(MODE)
        .open(path);
    match made {
        Ok(file) => {
            // Whatever the umask is, which services have narrow: collectors of logs read as the group.
            file.set_permissions(Permissions::from_mode(MODE))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().append(true).open(path)
        }
        Err(error) => Err(error),
    }
}
