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
        let store = Self::at(settings);
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&store.directory)?;
        drop(store.lock_file()?);
        Ok(store)
    }

    /// The same without touching anything: what is not there is not found.
    pub fn at(settings: &Settings) -> Self {
        let directory = settings.state.clone();
        let first = settings.names.first().map_or("", String::as_str);
        let parts = settings.names.iter().chain([&settings.directory]);
        let certificate = format!("{first}-{}", hash(parts));
        let host = settings.directory.split('/').nth(2).unwrap_or_default();
        let host = host.replace([':', '[', ']'], "_");
        let account = format!("account-{host}-{}.json", hash([&settings.directory]));
        Self {
            account: directory.join(account),
            certificate: directory.join(format!("{certificate}.pem")),
            failure: directory.join(format!("{certificate}.failed.json")),
            directory,
        }
    }

    /// Whether this process could write there; leaves nothing behind.
    ///
    /// # Errors
    /// Why it could not.
    pub fn probe(&self) -> io::Result<()> {
        let mut existing = self.directory.as_path();
        while !existing.exists() {
            existing = match existing.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
        }
        let probe = existing.join(format!(".turnix-{:016x}", rand::random::<u64>()));
        (OpenOptions::new().write(true).create_new(true).mode(0o600)).open(&probe)?;
        fs::remove_file(&probe)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::acme::{Challenge, LETS_ENCRYPT};

    fn settings(state: &Path) -> Settings {
        Settings {
            names: vec!["turn.example.org".to_owned()],
            email: None,
            directory: LETS_ENCRYPT.to_owned(),
            roots: Arc::new(rustls::RootCertStore::empty()),
            challenges: vec![Challenge::Http01],
            state: state.join("acme"),
            pace: Pace::default(),
        }
    }

    #[test]
    fn one_orders_while_others_wait() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| Store::open(&settings(directory.path())).unwrap());
        let lock = one.lock().unwrap().expect("nobody has it");
        assert!(other.lock().unwrap().is_none());
        drop(lock);
        assert!(other.lock().unwrap().is_some());
    }

    #[test]
    fn each_authority_and_each_set_of_names_has_files_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let first = settings(directory.path());
        let second = Settings {
            names: vec!["turn.example.org".to_owned(), "b.example.org".to_owned()],
            ..first.clone()
        };
        let third = Settings {
            directory: "https://[::1]:14000/dir".to_owned(),
            ..first.clone()
        };
        let [first, second, third] = [&first, &second, &third].map(Store::at);
        assert_ne!(first.certificate, second.certificate);
        assert_eq!(first.account, second.account);
        assert_ne!(first.certificate, third.certificate);
        assert_ne!(first.account, third.account);
        assert!(!first.directory().exists(), "nothing was made");
        first.probe().unwrap();
        assert!(!first.directory().exists(), "nor by a look");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_pause_is_kept_and_never_longer_than_pauses_get() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(directory.path())).unwrap();
        assert!(store.failure().is_none());
        let (pace, now) = (Pace::default(), 1_800_000_000);
        let kept = Failure {
            failures: 3,
            retry_unix: now + 600,
            told_unix: now + 3600,
            cause: "dns".to_owned(),
        };
        store.keep_failure(&kept).unwrap();
        let found = store.failure().unwrap();
        assert_eq!(found.failures, 3);
        // The authority's word counts, whatever an operator says.
        assert_eq!(found.until(now, false, &pace), now + 3600);
        assert_eq!(found.until(now, true, &pace), now + 3600);
        let ours = Failure {
            told_unix: 0,
            ..kept.clone()
        };
        assert_eq!(ours.until(now, false, &pace), now + 600);
        assert!(ours.until(now, true, &pace) <= now);
        // Written by a clock that was years ahead.
        let far = Failure {
            retry_unix: now * 2,
            told_unix: now * 2,
            ..kept
        };
        assert_eq!(far.until(now, false, &pace), now + 7 * 86_400);
        let far = Failure {
            told_unix: 0,
            ..far
        };
        assert_eq!(far.until(now, false, &pace), now + 15 * 3600);
        assert_eq!(pace.longest_told, Duration::from_secs(7 * 86_400));
        store.forget_failure().unwrap();
        store.forget_failure().unwrap();
        assert!(store.failure().is_none());
        fs::write(&store.failure, "half of i").unwrap();
        assert!(
            store.failure().is_none(),
            "what cannot be read keeps nobody waiting"
        );
    }
}
