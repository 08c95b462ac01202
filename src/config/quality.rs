//! The keys of `[quality]`: what is looked at of what is relayed, and what follows.

use crate::quality::{Action, Mode, Settings};

use super::problem::Problem;
use super::reader::Reader;
use super::values::{self, Fault};

pub(super) fn read_quality(r: &mut Reader<'_>) -> Option<Settings> {
    let mode = r.key(
        "quality.mode",
        r#""sampled""#,
        r#""sampled", "full" or "off""#,
        values::one_of(&[
            ("sampled", Mode::Sampled),
            ("full", Mode::Full),
            ("off", Mode::Off),
        ]),
    );
    let events = r.key(
        "quality.events",
        "4096",
        "a number of events from 64 to 65536, 0 for none",
        |node| {
            let events = values::number(0..=65_536)(node)?;
            match events {
                1..64 => Err(Fault::of(node)),
                _ => Ok(events),
            }
        },
    );
    let abuse = r.key(
        "quality.abuse",
        r#""note""#,
        r#""note", "throttle", "end" or "off""#,
        values::one_of(&[
            ("note", Action::Note),
            ("throttle", Action::Throttle),
            ("end", Action::End),
            ("off", Action::Off),
        ]),
    );
    let rate = r.key(
        "quality.abuse_bandwidth",
        r#""256kbit""#,
        r#"a rate such as "256kbit""#,
        values::parsed(values::rate),
    );
    if rate == Some(0) {
        r.problem(
            "quality.abuse_bandwidth",
            "nothing is left to whoever is throttled",
            r#"leave something, or end it: quality.abuse = "end""#,
        );
    }
    if let (Some(Mode::Off), Some(action @ (Action::Throttle | Action::End))) = (mode, abuse) {
        r.warn(Problem {
            origin: r.origin("quality.abuse"),
            key: "quality.abuse".into(),
            found: format!(
                "\"{}\", while quality.mode is \"off\": what nobody looks at is not judged",
                action.label()
            ),
            remedy: r#"quality.mode = "sampled" looks"#.into(),
        });
    }
    let capture = r.key("quality.capture", "true", "true or false", values::boolean);
    Some(Settings {
        mode: mode?,
        events: events? as usize,
        abuse: abuse?,
        abuse_bits_per_second: rate?,
        capture: capture?,
    })
}
