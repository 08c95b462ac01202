//! What the ledger writes down: a file of lines, appended to at every change and written anew at every start.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::{Version, version};

/// The file of the ledger in the directory of the state.
const FILE: &str = "ledger";
/// Held by the process that writes it.
const LOCK: &str = "ledger.lock";
/// Where what could not be read is put aside.
const DAMAGED: &str = "ledger.damaged";

/// One change.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Revoke {
        kind: String,
        name: String,
        until: Option<u64>,
        since: u64,
        by: String,
    },
    Lift {
        kind: String,
        name: String,
    },
    Keep {
        key: String,
        username: String,
        label: String,
        made: u64,
        expires: u64,
    },
    Drop {
        key: String,
        username: String,
    },
    /// The API keys there are, and how long what they mint lasts at most, in seconds.
    Keys(BTreeMap<String, u64>),
}

/// The file, open for this process alone.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    file: Arc<File>,
    _lock: File,
    /// Bytes of whole lines.
    end: u64,
    /// Whether half a line may be behind them, which would spoil the next one.
    is_torn: bool,
    /// Lines appended since it was written anew.
    pub appended: usize,
}

impl Journal {
    /// Takes the ledger in `directory` for this process alone; makes the directory if need be.
    pub fn open(directory: &Path) -> io::Result<Self> {
        (DirBuilder::new().recursive(true).mode(0o700)).create(directory)?;
        let lock = private().open(directory.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(ErrorKind::ResourceBusy, "another process has it")
            }
            TryLockError::Error(error) => error,
        })?;
        let path = directory.join(FILE);
        let file = Arc::new(private().append(true).open(&path)?);
        let text = fs::read(path)?;
        let end = (text.iter().rposition(|byte| *byte == b'\n')).map_or(0, |last| last + 1);
        Ok(Self {
            directory: directory.to_owned(),
            file,
            _lock: lock,
            end: end as u64,
            is_torn: end < text.len(),
            appended: 0,
        })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Appends `line`, so that it outlives the process. [`file`](Self::file) makes it outlive the host.
    pub fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        if self.is_torn {
            self.file.set_len(self.end)?;
        }
        self.is_torn = true;
        (&*self.file).write_all(&text)?;
        self.is_torn = false;
        self.end += text.len() as u64;
        self.appended += 1;
        Ok(())
    }

    /// Replaces everything by `lines`, whole or not at all.
    pub fn rewrite(&mut self, lines: impl Iterator<Item = Line>) -> io::Result<()> {
        let temporary = self
            .directory
            .join(format!("{FILE}.{:016x}", rand::random::<u64>()));
        let write = || {
            let file = private().append(true).create_new(true).open(&temporary)?;
            let mut file = io::BufWriter::new(file);
            for line in lines {
                serde_json::to_writer(&mut file, &line)?;
                file.write_all(b"\n")?;
            }
            let file = file.into_inner()?;
            file.sync_all()?;
            let end = file.metadata()?.len();
            fs::rename(&temporary, self.directory.join(FILE))?;
            Ok((file, end))
        };
        let written: io::Result<_> = write();
        if written.is_err() {
            // What is left of the attempt is in nobody's way.
            let _ = fs::remove_file(&temporary);
        }
        let (file, end) = written?;
        // The file that is in place: whatever fails from here on, no line goes to the one that is gone.
        self.file = Arc::new(file);
        self.end = end;
        self.is_torn = false;
        self.appended = 0;
        if let Err(error) = File::open(&self.directory).and_then(|it| it.sync_all()) {
            tracing::error!(
                directory = %self.directory.display(),
                %error,
                "the directory cannot be synchronised: changes of the ledger may not outlive the host"
            );
        }
        Ok(())
    }

    /// The file that was appended to, to be synchronised without holding the ledger.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

/// Every line there is. What cannot be read is put aside and said.
pub(super) fn read(directory: &Path) -> io::Result<Vec<Line>> {
    let path = directory.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut lines = Vec::new();
    let mut unreadable = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(line) => lines.push(line),
            // A process that ended while it wrote its last line had not answered whoever asked for it.
            Err(_) if !line.ends_with(b"\n") => {}
            Err(_) => unreadable += 1,
        }
    }
    if unreadable > 0 {
        let aside = directory.join(DAMAGED);
        let kept = fs::copy(&path, &aside).is_ok();
        tracing::error!(
            file = %path.display(),
            unreadable,
            copy = %aside.display(),
            kept,
            "lines of the ledger cannot be read: revocations may be missing, see GET /api/v1/revocations"
        );
    }
    Ok(lines)
}

/// Whether there is a file; an error where that cannot be told.
pub(super) fn exists(directory: &Path) -> io::Result<bool> {
    match directory.join(FILE).try_exists() {
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(false),
        known => known,
    }
}

/// What changes whenever the file does.
pub(super) fn state(directory: &Path) -> Option<Version> {
    version(&directory.join(FILE))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}
