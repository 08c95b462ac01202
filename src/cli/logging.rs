//! Logs: text on a terminal, JSON otherwise, on standard error.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, reload};

use crate::app::SetLog;
use crate::config::{Log, LogFormat, LogLevel};

/// Libraries that log what strangers send, or every step of a handshake.
const NOISY: [&str; 4] = ["stun_types", "turn_types", "rustls", "hyper"];

/// Starts logging as `log` says, and sets how much of an address is shown. The returned function changes both, the level
/// included, in the running process; the format stays.
///
/// # Errors
/// Logging was started before.
pub fn install(log: Log) -> anyhow::Result<SetLog> {
    log.ip_privacy.install();
    let (filtering, handle) = reload::Layer::new(filter(log.level));
    let terminal = io::stderr().is_terminal();
    let layer = fmt::layer().with_writer(io::stderr);
    let layer = match log.format {
        LogFormat::Json => layer.json().boxed(),
        LogFormat::Auto if !terminal => layer.json().boxed(),
        LogFormat::Auto | LogFormat::Text => layer.with_ansi(terminal).with_target(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filtering))
        .try_init()
        .context("logging was already started")?;
    Ok(Box::new(move |log: &Log| {
        log.ip_privacy.install();
        if let Err(error) = handle.reload(filter(log.level)) {
            tracing::error!(%error, "the log level could not be changed");
        }
    }))
}

fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(level)
        .with_targets(NOISY.map(|target| (target, LevelFilter::ERROR)))
}
