//! What the quick start keeps from one run to the next: a directory of files that only their owner may read.
//!
//! | file | holds |
//! |---|---|
//! | `secret` | the TURN REST secret; made once |
//! | `user` | `name:password` of the static user; made once |
//! | `certificate.pem` | a self-signed certificate and its key; made anew when it is about to end |
//! | `turnix.toml` | what the last start chose, for `turnix credentials` and as a beginning of one's own |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::base::Secret;
use crate::config::{Problem, Problems, Sources, host_name};
use crate::net::host;
use crate::stream::certificates;

/// The static user's name.
const USER: &str = "turnix";
const CONFIGURATION: &str = "turnix.toml";
/// A certificate with less time left is replaced.
const RENEW_BEFORE_SECS: u64 = 30 * 86_400;

/// What was found or made.
#[derive(Debug)]
pub struct State {
    /// Where the files are.
    pub directory: PathBuf,
    /// The file of the TURN REST secret.
    pub secret_file: PathBuf,
    /// The static user.
    pub user: (String, Secret<String>),
    /// PEM of certificate and key in one file, so that they cannot disagree.
    pub certificate: PathBuf,
}

/// Where state is kept: `$STATE_DIRECTORY`, `$XDG_STATE_HOME/turnix`, `~/.local/state/turnix`, `/var/lib/turnix`.
pub fn directory(sources: &Sources) -> PathBuf {
    let variable = |wanted: &str| {
        sources
            .environment
            .iter()
            .find(|(name, value)| name == wanted && !value.is_empty())
            .map(|(_, value)| value.as_str())
    };
    if let Some(directories) = variable("STATE_DIRECTORY") {
        // systemd separates several by colons.
        let first = directories.split(':').next().unwrap_or(directories);
        return PathBuf::from(first);
    }
    // The XDG specification has relative paths ignored.
    if let Some(home) = variable("XDG_STATE_HOME").filter(|path| path.starts_with('/')) {
        return Path::new(home).join("turnix");
    }
    match variable("HOME").filter(|path| path.starts_with('/')) {
        Some(home) => Path::new(home).join(".local/state/turnix"),
        None => PathBuf::from("/var/lib/turnix"),
    }
}

/// Where what lives as long as the server is kept: `$RUNTIME_DIRECTORY`, else with the state, in a directory that is made
/// if need be.
pub fn runtime_directory(sources: &Sources) -> PathBuf {
    let runtime = (sources.environment.iter())
        .find(|(name, value)| name == "RUNTIME_DIRECTORY" && !value.is_empty())
        .and_then(|(_, value)| value.split(':').next());
    if let Some(runtime) = runtime {
        return PathBuf::from(runtime);
    }
    let directory = directory(sources);
    if let Err(error) = make_directory(&directory) {
        tracing::debug!("{error:#}");
    }
    directory
}

/// The configuration that the last quick start left, if there was one.
pub fn configuration(sources: &Sources) -> Option<PathBuf> {
    Some(directory(sources).join(CONFIGURATION)).filter(|file| file.exists())
}

/// What [`save_configuration`] kept last.
pub fn saved_configuration(state: &State) -> Option<String> {
    fs::read_to_string(state.directory.join(CONFIGURATION)).ok()
}

/// Finds the state, makes what is missing.
///
/// # Errors
/// A directory that cannot be written, a file that others may read.
pub fn prepare(sources: &Sources, now_unix: u64) -> anyhow::Result<State> {
    let directory = directory(sources);
    make_directory(&directory)?;
    let secret_file = directory.join("secret");
    keep(&secret_file, || random_text(32))?;
    let user_file = directory.join("user");
    let user = keep(&user_file, || format!("{USER}:{}", random_text(18)))?;
    let (name, password) = user.trim_end().split_once(':').ok_or_else(|| {
        unusable(
            &user_file,
            "does not hold name:password",
            "remove it: the next start makes another",
        )
    })?;
    let certificate = directory.join("certificate.pem");
    renew(&certificate, now_unix)?;
    Ok(State {
        secret_file,
        user: (name.to_owned(), Secret::new(password.to_owned())),
        certificate,
        directory,
    })
}

/// Keeps what a start chose.
///
/// # Errors
/// The directory cannot be written.
pub fn save_configuration(state: &State, text: &str) -> anyhow::Result<()> {
    replace(&state.directory.join(CONFIGURATION), text)
}

fn unusable(path: &Path, found: &str, remedy: &str) -> anyhow::Error {
    let subject = format!("state {}", path.display());
    Problems::from(Problem::host(subject, found, remedy)).into()
}

fn make_directory(directory: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|error| {
        unusable(
            directory,
            &format!("cannot be made: {error}"),
            "set XDG_STATE_HOME to a directory that this user may write, or give a configuration file with -c",
        )
    })
}

/// The content of `path`, made and kept if it does not exist.
fn keep(path: &Path, make: impl FnOnce() -> String) -> anyhow::Result<String> {
    if let Some(text) = read_private(path)? {
        return Ok(text);
    }
    let temporary = write_temporary(path, &(make() + "\n"))?;
    // A link, unlike a rename, never replaces what another process has just made.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)
        .with_context(|| format!("{} cannot be removed", temporary.display()))?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("{} cannot be written", path.display()))
        }
        _ => read_private(path)?
            .with_context(|| format!("{} vanished; start turnix again", path.display())),
    }
}

/// The content of a file that nobody else may read; `None` if there is no such file.
fn read_private(path: &Path) -> anyhow::Result<Option<String>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, &error)),
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(unusable(
            path,
            &format!("may be read or changed by others (mode {mode:04o})"),
            &format!(
                "if nobody has used that: chmod 600 {0}; else remove it and the next start makes another",
                path.display()
            ),
        ));
    }
    fs::read_to_string(path)
        .map(Some)
        .map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> anyhow::Error {
    unusable(
        path,
        &format!("cannot be read: {error}"),
        "run turnix as the user it belongs to, or set XDG_STATE_HOME to another directory",
    )
}

/// Writes `path` whole or not at all.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = write_temporary(path, text)?;
    fs::rename(&temporary, path).with_context(|| format!("{} cannot be written", path.display()))
}

fn write_temporary(path: &Path, text: &str) -> anyhow::Result<PathBuf> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}", rand::random::<u64>()));
    let temporary = PathBuf::from(temporary);
    let write = |mut file: File| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(write)
        .map_err(|error| {
            unusable(
                &temporary,
                &format!("cannot be written: {error}"),
                "make room, or set XDG_STATE_HOME to a directory that this user may write",
            )
        })?;
    Ok(temporary)
}

fn renew(path: &Path, now_unix: u64) -> anyhow::Result<()> {
    if read_private(path)?.is_some() {
        let current = certificates::load(path, path);
        if current.is_ok_and(|one| one.not_after_unix() > now_unix + RENEW_BEFORE_SECS) {
            return Ok(());
        }
    }
    let made = certificates::self_signed(&names(), now_unix)?;
    replace(path, &(made.certificate_pem + made.key_pem.expose()))
}

/// What clients may call this host; names that certificates cannot carry are left out.
fn names() -> Vec<String> {
    let plain = |name: &String| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        name.len() <= 253 && name.chars().all(allowed)
    };
    let mut names = vec!["localhost".to_owned()];
    names.extend(Some(host_name()).filter(plain));
    names.extend(host::interface_addresses().iter().map(ToString::to_string));
    names.sort();
    names.dedup();
    // The first becomes the subject.
    names.sort_by_key(|name| name != "localhost");
    names
}

pub fn random_text(bytes: usize) -> String {
    let random: Vec<u8> = rand::random_iter().take(bytes).collect();
    URL_SAFE_NO_PAD.encode(random)
}
