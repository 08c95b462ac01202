//! What a way over the relay was used for: a call, or checks alone. ICE checks more ways than it takes.

use std::time::Duration;

use crate::base::Direction;
use crate::quality::Quality;

use super::Call;
use super::judge::{FLOWS, PATIENCE};

/// What was relayed beyond STUN, in either direction; all of it where no check was seen.
pub(super) fn beyond_stun(call: &Call, quality: &Quality) -> [u64; Direction::ALL.len()] {
    Direction::ALL.map(|direction| {
        let own = quality.checks[direction as usize];
        let other = quality.checks[1 - direction as usize];
        let stun = u64::from(own.sent) + u64::from(own.repeated) + u64::from(other.answered);
        call.view.traffic[direction as usize]
            .packets
            .saturating_sub(stun)
    })
}

/// Whether it carried anything but checks, and the few other packets that agents send beside.
pub(super) fn carried(call: &Call, quality: &Quality) -> bool {
    quality.media.contains(&true)
        || quality.dtls.contains(&true)
        || quality.checks.iter().all(|checks| checks.sent == 0)
        || beyond_stun(call, quality).iter().any(|rest| *rest > FLOWS)
}

/// Whether both sides went on to check the way for `open`, and to answer, as agents do that chose it (RFC 7675: every five
/// seconds). Of a way that they keep in reserve they think now and then.
pub(super) fn is_kept(quality: &Quality, open: Duration) -> bool {
    let heard = |idle: &Option<Duration>| idle.is_some_and(|idle| idle < PATIENCE);
    let checks: u64 = (quality.checks.iter())
        .map(|checks| u64::from(checks.sent) + u64::from(checks.repeated))
        .sum();
    open >= 2 * PATIENCE
        && quality.idle.iter().all(heard)
        && checks >= open.as_secs() / PATIENCE.as_secs()
}
