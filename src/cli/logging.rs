//! Logs: text on a terminal, JSON otherwise, on standard error.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::base::printable::{Form, Lines};
use crate::config::{Log, LogFormat, LogLevel};

/// Libraries that log what strangers send, or every step of a handshake.
const NOISY: [&str; 4] = ["stun_types", "turn_types", "rustls", "hyper"];

/// Starts logging as `log` says, and sets how much of an address is shown.
///
/// # Errors
/// Logging was started before.
pub fn install(log: Log) -> anyhow::Result<()> {
    log.ip_privacy.install();
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = Targets::new()
        .with_default(level)
        .with_targets(NOISY.map(|target| (target, LevelFilter::ERROR)));
    let terminal = io::stderr().is_terminal();
    let form = match log.format {
        LogFormat::Json => Form::Json,
        LogFormat::Auto if !terminal => Form::Json,
        LogFormat::Auto | LogFormat::Text if terminal => Form::Colour,
        LogFormat::Auto | LogFormat::Text => Form::Text,
    };
    let layer = fmt::layer().with_writer(move || Lines::new(io::stderr(), form));
    let layer = match form {
        Form::Json => layer.json().boxed(),
        Form::Text | Form::Colour => layer.with_ansi(terminal).with_target(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .context("logging was already started")
}
