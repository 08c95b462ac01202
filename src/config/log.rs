//! The keys of `[log]`.

use super::reader::Reader;
use super::source::Node;
use super::values::{self, Fault};
use super::{Log, LogFormat, LogLevel};
use crate::base::PiiMode;

pub(super) fn read_log(r: &mut Reader<'_>) -> Option<Log> {
    let format = r.key(
        "log.format",
        r#""auto""#,
        r#""auto", "text" or "json""#,
        |node: &Node| match values::text(node)?.as_str() {
            "journald" => Err(Fault::with(
                node,
                "found \"journald\", which this version does not write",
                "use \"json\" or \"text\": systemd puts standard error into the journal",
            )),
            _ => values::one_of(&[
                ("auto", LogFormat::Auto),
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
            ])(node),
        },
    );
    let level = r.key(
        "log.level",
        r#""info""#,
        r#""error", "warn", "info", "debug" or "trace""#,
        values::one_of(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]),
    );
    let ip_privacy = r.key(
        "log.ip_privacy",
        r#""full""#,
        r#""full", "truncate", "hash" or "off""#,
        values::one_of(&[
            ("full", PiiMode::Full),
            ("truncate", PiiMode::Truncate),
            ("hash", PiiMode::Hash),
            ("off", PiiMode::Off),
        ]),
    );
    Some(Log {
        format: format?,
        level: level?,
        ip_privacy: ip_privacy?,
    })
}
