//! Where users, secrets and revocations are kept outside the configuration.
//!
//! A directory is read whole, and what it says becomes part of one snapshot ([`Access`](crate::access::Access)) that every
//! shard gets: no request ever waits for it, and one that cannot be read leaves the last snapshot in force. A store that
//! is asked over a network implements the same two functions.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::access::{Revocation, RevokedKind};
use crate::base::Secret;
use crate::wire::key::{MAX_USERNAME_BYTES, NotAKey, stored_key};

/// Who may allocate, as a directory has it.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// Long-term users and their passwords.
    pub users: Vec<(String, Secret<String>)>,
    /// TURN REST shared secrets.
    pub secrets: Vec<Secret<String>>,
    /// Who may allocate no longer, whoever else says so.
    pub revoked: Vec<Revocation>,
}

/// What tells one state of a directory from the next; it has no other meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version([u64; 7]);

/// A store of users, secrets and revocations, or of some of them.
pub trait Directory {
    /// Everything it holds.
    ///
    /// # Errors
    /// It cannot be read, or not be understood; nothing of what it holds is in the error.
    fn read(&self) -> Result<Entries, DirectoryError>;

    /// What changes whenever `read` would give something else; `None` while it cannot be looked at.
    fn version(&self) -> Option<Version>;
}

/// Why a directory is of no use, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryError {
    /// What was found.
    pub found: String,
    /// What would do.
    pub remedy: &'static str,
}

impl fmt::Display for DirectoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found, self.remedy)
    }
}

impl std::error::Error for DirectoryError {}

/// A file of users: `name:password` on each line. Empty lines and lines that begin with `#` mean nothing; a name has no
/// colon, a password may, and `md5:…` is a key in place of one.
#[derive(Clone, Debug)]
pub struct UsersFile {
    path: PathBuf,
}

impl UsersFile {
    /// The file at `path`, whether there is one or not.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Directory for UsersFile {
    fn read(&self) -> Result<Entries, DirectoryError> {
        let path = self.path.display();
        let text = fs::read_to_string(&self.path).map_err(|error| DirectoryError {
            found: format!("{path} cannot be read: {error}"),
            remedy: "name a file that this user may read",
        })?;
        let text = Secret::new(text);
        let mut names = HashSet::new();
        let mut entries = Entries::default();
        for (index, line) in text.expose().lines().enumerate() {
            let line = line.trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str, remedy| DirectoryError {
                found: format!("{path}:{}: {what}", index + 1),
                remedy,
            };
            const FORM: &str =
                "write name:password, 1 to 508 bytes before the colon and something behind it";
            let (name, password) = line
                .split_once(':')
                .ok_or_else(|| wrong("no colon", FORM))?;
            if name.is_empty() || name.len() > MAX_USERNAME_BYTES || password.is_empty() {
                return Err(wrong("no user and password", FORM));
            }
            if matches!(stored_key(password), Some(Err(_))) {
                return Err(wrong(
                    "a password that begins with md5: or sha256: and is no key",
                    NotAKey::REMEDY,
                ));
            }
            if !names.insert(name) {
                return Err(wrong(
                    "a user for the second time",
                    "keep one line for each user",
                ));
            }
            let password = Secret::new(password.to_owned());
            entries.users.push((name.to_owned(), password));
        }
        Ok(entries)
    }

    fn version(&self) -> Option<Version> {
        version(&self.path)
    }
}

/// A file of revocations: `credential`, `user` or `key` and its name, on each line. Empty lines and lines that begin with
/// `#` mean nothing; a name goes on to the end of its line.
#[derive(Clone, Debug)]
pub struct RevokedFile {
    path: PathBuf,
    first: Option<Version>,
}

impl RevokedFile {
    /// The file at `path`, whether there is one or not.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let first = version(&path);
        Self { path, first }
    }

    /// The version that it had when this was made: what is read later may be newer, and never older.
    pub const fn first_version(&self) -> Option<Version> {
        self.first
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Directory for RevokedFile {
    fn read(&self) -> Result<Entries, DirectoryError> {
        let path = self.path.display();
        let text = fs::read_to_string(&self.path).map_err(|error| DirectoryError {
            found: format!("{path} cannot be read: {error}"),
            remedy: "name a file that this user may read; it may be empty",
        })?;
        let mut entries = Entries::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = line.split_once(char::is_whitespace);
            let read = entry.and_then(|(kind, name)| {
                let (kind, name) = (RevokedKind::of(kind)?, name.trim());
                (1..=MAX_USERNAME_BYTES)
                    .contains(&name.len())
                    .then(|| Revocation {
                        kind,
                        name: name.to_owned(),
                        until_unix: None,
                    })
            });
            let revocation = read.ok_or_else(|| DirectoryError {
                found: format!("{path}:{}: no revocation", index + 1),
                remedy: "write credential, user or key, and its name of 1 to 508 bytes",
            })?;
            entries.revoked.push(revocation);
        }
        Ok(entries)
    }

    fn version(&self) -> Option<Version> {
        version(&self.path)
    }
}

/// What tells one state of a file from the next.
pub(super) fn version(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some(Version([
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime() as u64,
        metadata.mtime_nsec() as u64,
        // Who may read it is part of what it says.
        metadata.ctime() as u64,
        metadata.ctime_nsec() as u64,
    ]))
}
