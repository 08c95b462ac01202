//! The keys of `[server]`: threads, what they wait with and how much the kernel holds for them.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::Reader;
use super::source::Node;
use super::values::{self, Fault};
use super::{Handover, HandoverSocket, Server};

/// Below this a socket does not hold one datagram of the largest size.
const LEAST_BUFFER_BYTES: u64 = 64 << 10;

/// The kernel keeps buffer sizes in an `int`, doubled.
const MOST_BUFFER_BYTES: u64 = 512 << 20;

/// Longer than this is no wait for a packet but a core that is always busy.
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(10);

/// More often costs more than it tells, less often tells too late.
const CANARY_PAUSES: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// The longest that two versions serve side by side.
const LONGEST_GRACE_SECS: u64 = 7 * 86_400;

pub(super) fn read_handover(r: &mut Reader<'_>) -> Option<Handover> {
    let socket = r.key(
        "server.handover",
        r#""auto""#,
        r#""auto", the absolute path of a socket, or "" for none"#,
        |node: &Node| match values::text(node)?.as_str() {
            "auto" => Ok(HandoverSocket::Auto),
            "" => Ok(HandoverSocket::Off),
            path if path.starts_with('/') => Ok(HandoverSocket::At(path.into())),
            _ => Err(Fault::of(node)),
        },
    );
    let grace = r.key(
        "server.handover_grace",
        r#""1h""#,
        r#"a duration up to "168h""#,
        values::duration_within(0, LONGEST_GRACE_SECS),
    );
    Some(Handover {
        socket: socket?,
        grace: grace?,
    })
}

pub(super) fn read_server(r: &mut Reader<'_>) -> Option<Server> {
    const SIZE: &str = r#"a size from "64KiB" to "512MiB""#;
    let size = values::size_within(LEAST_BUFFER_BYTES, MOST_BUFFER_BYTES);
    let shards = r.key(
        "server.shards",
        "0",
        "a number from 0 (one per core) to 128",
        values::number(0..=crate::shard::MAX_SHARDS),
    );
    let pin_shards = r.key(
        "server.pin_shards",
        "false",
        "true or false",
        values::boolean,
    );
    let busy_poll = r.key(
        "server.busy_poll",
        r#""0""#,
        r#"a duration up to "10ms" such as "50us", or "0" to sleep at once"#,
        |node: &Node| match values::parsed(values::duration)(node)? {
            wait if wait <= LONGEST_BUSY_POLL => Ok(wait),
            _ => Err(Fault::of(node)),
        },
    );
    let canary = r.key(
        "server.canary",
        r#""5s""#,
        r#"a duration from "100ms" to "1h", or "0" for never"#,
        |node: &Node| match values::parsed(values::duration)(node)? {
            every if every.is_zero() || CANARY_PAUSES.contains(&every) => Ok(every),
            _ => Err(Fault::of(node)),
        },
    );
    let core_dumps = r.key(
        "server.core_dumps",
        "false",
        "true or false",
        values::boolean,
    );
    let listener_buffer = r.key("server.listener_buffer", r#""4MiB""#, SIZE, &size);
    let relay_buffer = r.key("server.relay_buffer", r#""256KiB""#, SIZE, &size);
    Some(Server {
        shards: shards? as usize,
        pin_shards: pin_shards?,
        busy_poll: busy_poll?,
        canary: canary?,
        core_dumps: core_dumps?,
        listener_buffer_bytes: listener_buffer?,
        relay_buffer_bytes: relay_buffer?,
    })
}
