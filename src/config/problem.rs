//! What is wrong with a configuration, said so that it can be put right.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::Printable;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the configuration file, counted from 1; `None` for the file as a whole.
    File(Arc<Path>, Option<usize>),
    /// An environment variable, by name.
    Environment(String),
    /// A `--set` of the command line.
    Set,
    /// What the quick start chose.
    QuickStart,
    /// What the preset of that name says.
    Preset(&'static str),
    /// Nobody wrote it.
    Default,
    /// The machine, not the configuration.
    Host,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Set => f.write_str("--set"),
            Self::QuickStart => f.write_str("quick start"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::Default => f.write_str("configuration"),
            Self::Host => f.write_str("host"),
        }
    }
}

/// One thing that is wrong, and the way out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub origin: Origin,
    /// The key in its dotted form, such as `relay.ports`; on the host, the thing that was looked at.
    pub key: String,
    /// What is there; never the value of a secret.
    pub found: String,
    /// What would do.
    pub remedy: String,
}

impl Problem {
    /// A problem of the machine with `subject`.
    pub fn host(
        subject: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            origin: Origin::Host,
            key: subject.into(),
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    /// A problem with a whole file.
    pub(super) fn file(path: &Path, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            origin: Origin::File(path.into(), None),
            key: String::new(),
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys, values and paths are somebody's text.
        write!(f, "{}: ", Printable(&self.origin))?;
        if !self.key.is_empty() {
            write!(f, "{}: ", Printable(&self.key))?;
        }
        write!(f, "{}; {}", Printable(&self.found), Printable(&self.remedy))
    }
}

/// Every problem of one configuration, in the order of the file; never empty where it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts `problems` by where they were written.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| a.origin.cmp(&b.origin));
        problems.dedup();
        Self(problems)
    }

    /// The problems, one by one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Where configuration comes from; kept by a running server, so that a reload reads the same places again.
#[derive(Clone, Default)]
pub struct Sources {
    /// The TOML file, if there is one.
    pub file: Option<PathBuf>,
    /// TOML that lies beneath the file: what the quick start chose.
    pub base: Option<String>,
    /// Environment variables; those that begin with `TURNIX_` are keys, `CREDENTIALS_DIRECTORY` finds `cred:name`.
    pub environment: Vec<(String, String)>,
    /// `key=value` of each `--set`, in order.
    pub set: Vec<String>,
}

impl Sources {
    /// Where state is kept: `$STATE_DIRECTORY`, `$XDG_STATE_HOME/turnix`, `~/.local/state/turnix`, `/var/lib/turnix`.
    pub fn state_directory(&self) -> PathBuf {
        let variable = |wanted: &str| {
            (self.environment.iter())
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
}

impl fmt::Debug for Sources {
    /// Shows the file only: everything else may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
