//! What outlives the process: the account, certificates, and pauses that are under way.
//!
//! | file | holds |
//! |---|---|
//! | `account-HOST-HASH.json` | the account with one authority: its key and URL |
//! | `NAME-HASH.pem` | the certificate for these names by this authority, and its key |
//! | `NAME-HASH.failed.json` | why the last order for it failed, and when to try again |
//! | `lock` | nothing; whoever orders has it locked, so that two processes never order at once |
//!
//! Directory and files are their owner's alone (0700, 0600), and replaced whole.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Pace, Settings};
use crate::base::Secret;
use crate::stream::certificates::{self, Certificate, CertificateError};

/// The state of one certificate.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    account: PathBuf,
    certificate: PathBuf,
    failure: PathBuf,
}

/// An order that came to nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// How many there were in a row.
    pub failures: u32,
    /// When to try again, in seconds since the Unix epoch.
    pub retry_unix: u64,
    /// When the authority wants to be asked again, if it said so; else 0.
    pub told_unix: u64,
    /// For people.
    pub cause: String,
}

impl Failure {
    /// Until when not to order. Never longer than pauses get: a clock that was wrong may have written this. `poked`: an
    /// operator says that it is worth a try, which ends our pause, though not the authority's.
    pub fn until(&self, now: u64, poked: bool, pace: &Pace) -> u64 {
        let longest = pace.longest_pause + pace.longest_pause / 4;
        let own = self.retry_unix.min(now.saturating_add(longest.as_secs()));
        let told = self
            .told_unix
            .min(now.saturating_add(pace.longest_told.as_secs()));
        if poked { told } else { own.max(told) }
    }
}

impl Store {
    /// Finds or makes the directory.
    ///
    /// # Errors
    /// It cannot be made, or nothing can be written in it.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let directory = settings.state.clone();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let first = settings.names.first().map_or("", String::as_str);
        let certificate = format!(
            "{first}-{}",
            hash(settings.names.iter().chain([&settings.directory]))
        );
        let host = (settings.directory.split('/').nth(2).unwrap_or_default())
            .replace([':', '[', ']'], "_");
        let account = format!("account-{host}-{}.json", hash([&settings.directory]));
        let store = Self {
            account: directory.join(account),
            certificate: directory.join(format!("{certificate}.pem")),
            failure: directory.join(format!("{certificate}.failed.json")),
            directory,
        };
        drop(store.lock_file()?);
        Ok(store)
    }

    /// Where everything is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kept certificate, if there is one.
    ///
    /// # Errors
    /// What is wrong with its file.
    pub fn certificate(&self) -> Result<Option<Certificate>, CertificateError> {
        if !self.certificate.exists() {
            return Ok(None);
        }
        if others_may_read(&self.certificate) {
            tracing::warn!(
                file = %self.certificate.display(),
                "tls.acme: others may read the certificate's key: chmod 600 it, or remove it if somebody has, and another \
                 is ordered"
            );
        }
        certificates::load(&self.certificate, &self.certificate).map(Some)
    }

    /// Keeps a chain and its key.
    pub(super) fn keep_certificate(&self, pem: &Secret<String>) -> io::Result<()> {
        replace(&self.certificate, pem.expose().as_bytes())
    }

    /// The account, as [`keep_account`](Self::keep_account) was given it.
    pub(super) fn account(&self) -> io::Result<Option<Secret<String>>> {
        match fs::read_to_string(&self.account) {
            Ok(text) => Ok(Some(Secret::new(text))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn keep_account(&self, text: &Secret<String>) -> io::Result<()> {
        replace(&self.account, text.expose().as_bytes())
    }

    /// The last failure, if no order has succeeded since. What cannot be read counts as none.
    pub(super) fn failure(&self) -> Option<Failure> {
        serde_json::from_slice(&fs::read(&self.failure).ok()?).ok()
    }

    pub(super) fn keep_failure(&self, failure: &Failure) -> io::Result<()> {
        replace(&self.failure, &serde_json::to_vec(failure)?)
    }

    pub(super) fn forget_failure(&self) -> io::Result<()> {
        match fs::remove_file(&self.failure) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The right to order, until it is dropped; `None` while another process has it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn lock_file(&self) -> io::Result<File> {
        (OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600))
        .open(self.directory.join("lock"))
    }
}

/// Eight hexadecimal digits that stand for `parts`.
fn hash<'a>(parts: impl IntoIterator<Item = &'a String>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    (hash.finalize().iter().take(4))
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn others_may_read(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

/// Writes `path` whole or not at all.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}", rand::random::<u64>()));
    let written = (OpenOptions::new().write(true).create_new(true).mode(0o600))
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Of a disk that is full it may be the most there is to get.
        let _ = fs::remove_file(&temporary);
    }
    written
}
