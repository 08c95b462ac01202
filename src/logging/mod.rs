//! Logs: text on a terminal, fields in the journal of systemd, JSON otherwise; how much of them, and how fast.
//!
//! ```text
//! event ─► level, by target (changes while it runs) ─► rate, by place in the source ─► text | JSON | journal
//! ```
//!
//! One subscriber serves the process, as `tracing` has it; [`installed`] finds what changes it.

pub mod journal;
pub mod rate;

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, OnceLock};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt as lines, reload};

use crate::base::printable::{Form, Lines};
use crate::base::{PiiMode, trace};

use journal::Journal;
use rate::{Limited, Rate};

/// Libraries that log what strangers send, or every step of a handshake.
const NOISY: [&str; 4] = ["stun_types", "turn_types", "rustls", "hyper"];

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The form of a record.
    pub format: Format,
    /// The least important level that is written.
    pub level: Level,
    /// Records a second of one kind that are written in the long run, ten seconds' worth at once; 0 is no limit.
    pub events_per_second: u32,
    /// How much of client and peer addresses is shown.
    pub ip_privacy: PiiMode,
}

/// The form of a log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, the journal where standard error is connected to it, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
    /// Fields in systemd's journal, by its native protocol.
    Journald,
}

/// How important a log record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The server or a part of it does not work.
    Error,
    /// It works, and somebody should look.
    Warn,
    /// Starts, stops, ended allocations.
    Info,
    /// Requests.
    Debug,
    /// Packets.
    Trace,
}

/// Why logging did not start.
#[derive(Debug)]
pub enum InstallError {
    /// It was started before in this process.
    Twice,
    /// `log.format` is "journald", and the journal's socket does not answer.
    NoJournal(io::Error),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice => f.write_str("logging was already started"),
            Self::NoJournal(error) => write!(f, "{} cannot be reached: {error}", journal::SOCKET),
        }
    }
}

impl std::error::Error for InstallError {}

/// Changes the log of a running server.
#[derive(Clone)]
pub struct Control {
    levels: reload::Handle<Targets, Registry>,
    rate: Arc<Rate>,
    format: Format,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Starts logging as `settings` say, and sets how much of an address is shown.
///
/// # Errors
/// Logging was started before, or there is no journal to write to.
pub fn install(settings: Settings) -> Result<Control, InstallError> {
    settings.ip_privacy.install();
    let terminal = io::stderr().is_terminal();
    let (output, missed) = output(settings.format, terminal)?;
    let (subscriber, control) = subscriber(settings, output);
    subscriber.try_init().map_err(|_| InstallError::Twice)?;
    let reporter = Arc::clone(&control.rate);
    let spawned = std::thread::Builder::new()
        .name("logging".into())
        .spawn(move || reporter.report_forever());
    if let Err(error) = spawned {
        tracing::warn!(%error, "suppressed records will not be counted");
    }
    if let Some(error) = missed {
        tracing::warn!(%error, "the journal cannot be reached by its own protocol: writing JSON");
    }
    // Whoever comes second has failed above.
    Ok(CONTROL.get_or_init(|| control).clone())
}

/// The control of this process's log, once it was started.
pub fn installed() -> Option<Control> {
    CONTROL.get().cloned()
}

type Output = Box<dyn Layer<Registry> + Send + Sync>;

/// The subscriber that `settings` make of `output`, and its control. [`install`] is what a server wants.
pub fn subscriber(
    settings: Settings,
    output: Output,
) -> (impl tracing::Subscriber + Send + Sync, Control) {
    let (levels, handle) = reload::Layer::new(targets(settings.level));
    let rate = Arc::new(Rate::new(settings.events_per_second));
    let limited = Limited {
        rate: Arc::clone(&rate),
        inner: output,
    };
    let control = Control {
        levels: handle,
        rate,
        format: settings.format,
    };
    (
        tracing_subscriber::registry().with(limited.with_filter(levels)),
        control,
    )
}

impl Control {
    /// Takes over level, rate and privacy of `settings`; whether the format, which stays, differs.
    pub fn change(&self, settings: Settings) -> bool {
        settings.ip_privacy.install();
        self.rate.set(settings.events_per_second);
        if let Err(error) = self.levels.reload(targets(settings.level)) {
            tracing::error!(%error, "the log level could not be changed");
        }
        settings.format != self.format
    }

    /// Tells of everything that was suppressed so far: for the end of a server.
    pub fn report(&self) {
        self.rate.report();
    }
}

/// What is written: `level` and above, less of noisy libraries, and always what is traced on purpose.
fn targets(level: Level) -> Targets {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(level)
        .with_targets(NOISY.map(|target| (target, LevelFilter::ERROR)))
        .with_target(trace::TARGET, LevelFilter::DEBUG)
}

/// As much of `text` as fits into `bytes` bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The layer that writes; with an error where the journal was wanted and JSON has to do.
fn output(format: Format, terminal: bool) -> Result<(Output, Option<io::Error>), InstallError> {
    let json = || {
        let layer = lines::layer().with_writer(|| Lines::new(io::stderr(), Form::Json));
        layer.json().boxed()
    };
    let text = || {
        let form = if terminal { Form::Colour } else { Form::Text };
        let layer = lines::layer().with_writer(move || Lines::new(io::stderr(), form));
        layer.with_ansi(terminal).with_target(false).boxed()
    };
    let journal = || Journal::connect(journal::SOCKET.as_ref()).map(Journal::boxed);
    match format {
        Format::Text => Ok((text(), None)),
        Format::Json => Ok((json(), None)),
        Format::Journald => match journal() {
            Ok(layer) => Ok((layer, None)),
            Err(error) => Err(InstallError::NoJournal(error)),
        },
        Format::Auto if terminal => Ok((text(), None)),
        Format::Auto if journal::is_standard_error() => match journal() {
            Ok(layer) => Ok((layer, None)),
            Err(error) => Ok((json(), Some(error))),
        },
        Format::Auto => Ok((json(), None)),
    }
}
