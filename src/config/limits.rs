//! The keys of `[limits]`.

use std::time::Duration;

use super::reader::Reader;
use super::source::Node;
use super::values::{self, Fault};
use crate::access::Limits;
use crate::turn::Bandwidth;

/// What `[limits]` says, before it goes to the modules that hold to it.
pub(super) struct LimitKeys {
    pub quotas: Limits,
    pub connections_per_address: u32,
    pub upstream_connections: u32,
    pub max_lifetime: Duration,
    pub permissions: usize,
    pub channels: usize,
    pub unauthenticated: u32,
    pub auth_failures: u32,
    pub bandwidth: Bandwidth,
    pub new_peers: u32,
    pub peer_connections: usize,
}

/// What one user may have of the relay ports that others leave, where there are others.
const SHARE_PER_USER: u8 = 90;

/// Reads the table; `several_users` is whether more than one user can come.
pub(super) fn read_limits(r: &mut Reader<'_>, several_users: bool) -> Option<LimitKeys> {
    const COUNT: &str = "a number of allocations, 0 for no limit";
    const RATE: &str = "a number of answers per second up to 1000000, 0 for no limit";
    let all = values::number(0..=u32::MAX);
    let allocations = r.key("limits.allocations", "0", COUNT, &all);
    let per_user = r.key("limits.allocations_per_user", "0", COUNT, &all);
    let per_address = r.key("limits.allocations_per_address", "0", COUNT, &all);
    let share = r.key(
        "limits.share_per_user",
        r#""auto""#,
        r#"a percentage from 1 to 100, 0 for no limit, or "auto""#,
        |node: &Node| match values::text(node).as_deref() {
            Ok("auto") if several_users => Ok(SHARE_PER_USER),
            Ok("auto") => Ok(0),
            _ => values::number(0..=100)(node).map(|percent| percent as u8),
        },
    );
    let connections = r.key(
        "limits.connections_per_address",
        "1024",
        "a number of connections, 0 for no limit",
        &all,
    );
    let upstream = r.key(
        "limits.upstream_connections",
        "4096",
        "a number of connections from 1 to 1000000",
        values::number(1..=1_000_000),
    );
    let per_allocation = read_bandwidth(r, "limits.bandwidth_per_allocation");
    let of_user = read_bandwidth(r, "limits.bandwidth_per_user");
    let total = read_bandwidth(r, "limits.bandwidth");
    let max_lifetime = r.key(
        "limits.allocation_lifetime",
        r#""1h""#,
        r#"a duration of "1s" or more, or "0" for no limit"#,
        |node: &Node| {
            let lifetime = values::parsed(values::duration)(node)?;
            // LIFETIME counts seconds in 32 bits (RFC 8656 §18.2).
            let longest = Duration::from_secs(u32::MAX.into());
            match lifetime {
                Duration::ZERO => Ok(longest),
                some if some < Duration::from_secs(1) => Err(Fault::of(node)),
                some => Ok(some.min(longest)),
            }
        },
    );
    let permissions = r.key(
        "limits.permissions_per_allocation",
        "128",
        "a number from 1 to 65535",
        values::number(1..=65_535),
    );
    let channels = r.key(
        "limits.channels_per_allocation",
        "64",
        "a number from 1 to 16383",
        values::number(1..=16_383),
    );
    let rate = values::number(0..=1_000_000);
    let unauthenticated = r.key("limits.unauthenticated_per_address", "100", RATE, &rate);
    let auth_failures = r.key("limits.auth_failures_per_address", "10", RATE, &rate);
    let new_peers = r.key(
        "limits.new_peers_per_second",
        "50",
        "a number of peers per second up to 1000000, 0 for no limit",
        &rate,
    );
    let peer_connections = r.key(
        "limits.connections_per_allocation",
        "16",
        "a number from 1 to 65535",
        values::number(1..=65_535),
    );
    Some(LimitKeys {
        quotas: Limits {
            allocations: allocations?,
            allocations_per_user: per_user?,
            allocations_per_address: per_address?,
            share_per_user: share?,
        },
        connections_per_address: connections?,
        upstream_connections: upstream?,
        max_lifetime: max_lifetime?,
        permissions: permissions? as usize,
        channels: channels? as usize,
        unauthenticated: unauthenticated?,
        auth_failures: auth_failures?,
        bandwidth: Bandwidth {
            per_allocation: per_allocation?,
            per_user: of_user?,
            total: total?,
        },
        new_peers: new_peers?,
        peer_connections: peer_connections? as usize,
    })
}

/// Bits per second that no call gets by with.
const LEAST_BANDWIDTH: u64 = 32_000;

/// More than any network carries, and far from where counting ends.
const MOST_BANDWIDTH: u64 = 1_000_000_000_000;

fn read_bandwidth(r: &mut Reader<'_>, name: &'static str) -> Option<u64> {
    let takes = r#"a rate from "32kbit" to "1000Gbit" such as "8Mbit", or "0" for no limit"#;
    r.key(name, r#""0""#, takes, |node: &Node| {
        match values::parsed(values::rate)(node)? {
            rate @ (0 | LEAST_BANDWIDTH..=MOST_BANDWIDTH) => Ok(rate),
            _ => Err(Fault::of(node)),
        }
    })
}
