//! The keys of `[log]`.

use super::reader::Reader;
use super::values;
use crate::base::PiiMode;
use crate::logging::{Format, Level, Settings};

pub(super) fn read_log(r: &mut Reader<'_>) -> Option<Settings> {
    let format = r.key(
        "log.format",
        r#""auto""#,
        r#""auto", "text", "json" or "journald""#,
        values::one_of(&[
            ("auto", Format::Auto),
            ("text", Format::Text),
            ("json", Format::Json),
            ("journald", Format::Journald),
        ]),
    );
    let level = r.key(
        "log.level",
        r#""info""#,
        r#""error", "warn", "info", "debug" or "trace""#,
        values::one_of(&[
            ("error", Level::Error),
            ("warn", Level::Warn),
            ("info", Level::Info),
            ("debug", Level::Debug),
            ("trace", Level::Trace),
        ]),
    );
    let events_per_second = r.key(
        "log.events_per_second",
        "100",
        "a number from 0 (no limit) to 1000000",
        values::number(0..=1_000_000),
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
    Some(Settings {
        format: format?,
        level: level?,
        events_per_second: events_per_second?,
        ip_privacy: ip_privacy?,
    })
}
