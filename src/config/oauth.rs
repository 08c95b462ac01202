//! The keys of `[auth.oauth]`: whose tokens clients may come with.

use std::time::Duration;

use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::GeneralPurposeConfig;
use toml::value::{Datetime, Offset};

use super::auth::secret_file;
use super::cluster::unique;
use super::exposure;
use super::problem::Sources;
use super::reader::{Given, Reader};
use super::source::{Node, Value};
use super::values::{self, Converted, Fault};
use crate::access::oauth::{Settings, TokenAlgorithm, TokenKey};
use crate::base::Secret;

pub(super) fn read_oauth(r: &mut Reader<'_>, sources: &Sources) -> Option<Settings> {
    let server_name = r.key(
        "auth.oauth.server_name",
        r#""""#,
        "at most 255 bytes, as the authorization server has it",
        |node: &Node| match values::text(node)? {
            name if name.is_empty() => Ok(None),
            name if name.len() <= 255 && !name.chars().any(char::is_control) => Ok(Some(name)),
            _ => Err(Fault::of(node)),
        },
    );
    let keys = r.tables(
        "auth.oauth.keys",
        "auth.oauth.keys.",
        "kid",
        "tables with a kid and a key each",
        &[],
        |entry| read_key(entry, sources),
    );
    Some(Settings {
        server_name: server_name?,
        keys: unique(r, keys?, "auth.oauth.keys.kid", |key| &key.kid),
    })
}

fn read_key(r: &mut Reader<'_>, sources: &Sources) -> Option<TokenKey> {
    let kid = r.key(
        "auth.oauth.keys.kid",
        r#""""#,
        "a name of 1 to 508 bytes",
        |node: &Node| match values::text(node)? {
            kid if (1..=508).contains(&kid.len()) && !kid.chars().any(char::is_control) => Ok(kid),
            _ => Err(Fault::of(node)),
        },
    );
    let algorithm = r.key(
        "auth.oauth.keys.algorithm",
        r#""A256GCM""#,
        r#""A256GCM" or "A128GCM""#,
        values::one_of(&[
            ("A256GCM", TokenAlgorithm::A256Gcm),
            ("A128GCM", TokenAlgorithm::A128Gcm),
        ]),
    );
    let in_clear = r.key(
        "auth.oauth.keys.key",
        r#""""#,
        "a key in base64",
        |node: &Node| match values::text(node)?.as_str() {
            "" => Ok(None),
            text => decoded(node, text).map(Some),
        },
    );
    let from_file = r.key(
        "auth.oauth.keys.key_file",
        r#""""#,
        r#"a path, or "cred:name" for systemd credentials"#,
        |node: &Node| {
            if values::text(node)?.is_empty() {
                return Ok(None);
            }
            let file = secret_file(node, sources)?;
            Ok(Some((decoded(node, file.secret.expose())?, file.path)))
        },
    );
    let not_before = r.key("auth.oauth.keys.not_before", r#""""#, MOMENT, moment);
    let not_after = r.key("auth.oauth.keys.not_after", r#""""#, MOMENT, moment);
    let given = (in_clear?, from_file?);
    let give = "give it a key in base64, or a key_file";
    let key = match r.one_of_both("auth.oauth.keys.key", given, give)? {
        Given::Value(key) => {
            exposure::warn_of_value(r, "auth.oauth.keys.key", sources);
            key
        }
        Given::File((key, path)) => {
            exposure::warn_of_file(r, "auth.oauth.keys.key_file", &path);
            key
        }
    };
    let algorithm = algorithm?;
    let (wanted, found) = (algorithm.key_bytes(), key.expose().len());
    if found != wanted {
        let line_end = found == wanted + 1 && key.expose().ends_with(b"\n");
        r.problem(
            "auth.oauth.keys.key",
            format!("a key of {found} bytes"),
            format!(
                "{} takes {wanted} bytes{}",
                algorithm.label(),
                if line_end {
                    ", and this one ends with a line feed: write the base64 of what precedes it"
                } else {
                    ""
                }
            ),
        );
        return None;
    }
    let (not_before, not_after) = (not_before?, not_after?);
    if let (Some(first), Some(last)) = (not_before, not_after)
        && first >= last
    {
        r.problem(
            "auth.oauth.keys.not_after",
            "not later than not_before",
            "write the moment at which the key ends",
        );
        return None;
    }
    Some(TokenKey {
        kid: kid?,
        algorithm,
        key,
        not_before,
        not_after,
    })
}

/// The bytes of base64, with padding or without.
fn decoded(node: &Node, text: &str) -> Converted<Secret<Vec<u8>>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    match engine.decode(text.trim()) {
        Ok(key) => Ok(Secret::new(key)),
        Err(_) => Err(Fault::with(
            node,
            "found something else than base64",
            "write the key in base64, as `openssl rand -base64 32` makes it",
        )),
    }
}

const MOMENT: &str = r#"a date and time such as "2027-01-31T12:00:00Z""#;

/// A moment since the Unix epoch; `None` where there is none.
fn moment(node: &Node) -> Converted<Option<Duration>> {
    let written = match &node.value {
        // A date as TOML has it.
        Value::Other(written) => written.clone(),
        _ => values::text(node)?,
    };
    if written.is_empty() {
        return Ok(None);
    }
    let moment = (written.parse::<Datetime>().ok()).and_then(|written| since_epoch(&written));
    moment.map(Some).ok_or_else(|| Fault::of(node))
}

/// The time since the Unix epoch, if it is a whole moment and not before that.
fn since_epoch(written: &Datetime) -> Option<Duration> {
    let (date, time) = (written.date?, written.time?);
    let minutes_east = match written.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => minutes,
    };
    // Days since 1970 by a calendar whose years begin in March, so that leap days come last.
    let (year, month) = (i64::from(date.year), i64::from(date.month));
    let year = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    let day_of_year = (153 * months + 2) / 5 + i64::from(date.day) - 1;
    let days =
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
            - 719_468;
    let minutes = (days * 24 + i64::from(time.hour)) * 60 + i64::from(time.minute);
    let secs = (minutes - i64::from(minutes_east)) * 60 + i64::from(time.second.unwrap_or(0));
    Some(Duration::from_secs(u64::try_from(secs).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        // date -u -d … +%s
        for (written, secs) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00Z", Some(951_825_600)),
            ("2026-11-26T17:41:33Z", Some(1_795_714_893)),
            ("2027-01-31T12:00:00+01:30", Some(1_801_391_400)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
            ("1969-12-31T23:59:59Z", None),
            ("2027-01-31T12:00:00", None),
            ("2027-01-31", None),
        ] {
            let moment = written
                .parse()
                .ok()
                .and_then(|written| since_epoch(&written));
            assert_eq!(moment, secs.map(Duration::from_secs), "{written}");
        }
    }
}
