//! The keys of `[drain]`.

use super::Drain;
use super::reader::Reader;
use super::source::Node;
use super::values::{self, Fault};

/// Longer than this is no end.
const LONGEST_SECS: u64 = 30 * 86_400;

pub(super) fn read_drain(r: &mut Reader<'_>) -> Option<Drain> {
    let deadline = r.key(
        "drain.deadline",
        r#""1h""#,
        r#"a duration up to "30d""#,
        values::duration_within(0, LONGEST_SECS),
    );
    let grace = r.key(
        "drain.grace",
        r#""5s""#,
        r#"a duration up to "1h", or "0" to stop at once"#,
        values::duration_within(0, 3600),
    );
    let alternates = r.key(
        "drain.alternates",
        "[]",
        r#"a list of addresses and ports such as "198.51.100.8:3478""#,
        values::list(|item: &Node| {
            let address = values::parsed(values::socket_address)(item)?;
            if address.port() == 0 || address.ip().is_unspecified() {
                return Err(Fault::of(item));
            }
            Ok(address)
        }),
    );
    let overload = r.key(
        "drain.overload",
        "0",
        "a number from 0 (never) to 100, in percent",
        values::number(0..=100),
    );
    let (alternates, overload) = (alternates?, overload?);
    if overload > 0 && alternates.is_empty() {
        r.problem(
            "drain.overload",
            format!("{overload}, and drain.alternates names no other server"),
            "name the servers that take the clients in drain.alternates, or write 0",
        );
        return None;
    }
    Some(Drain {
        deadline: deadline?,
        grace: grace?,
        alternates,
        overload_percent: overload,
    })
}
