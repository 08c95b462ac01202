//! What became of the calls of allocations that have ended.

use std::time::Duration;

use crate::base::Direction;

/// How long an answer may take, before there is none.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// What became of the call of an allocation that has ended. Each is one label of `turn_sessions_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// Data was relayed in both directions.
    Established,
    /// Data came from the client alone: its peers never answered.
    ToPeerOnly,
    /// Data came from peers alone: the client never answered.
    ToClientOnly,
    /// Nothing was ever relayed, as where ICE found a better way.
    Unused,
    /// It ended within ten seconds, before it could be told.
    Early,
}

impl Ending {
    /// Every one, in the order of their discriminants.
    pub const ALL: [Self; 5] = [
        Self::Established,
        Self::ToPeerOnly,
        Self::ToClientOnly,
        Self::Unused,
        Self::Early,
    ];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::ToPeerOnly => "to_peer_only",
            Self::ToClientOnly => "to_client_only",
            Self::Unused => "unused",
            Self::Early => "early",
        }
    }

    /// That of an allocation which relayed so many `packets`, by [`Direction`], and lived for so long. Both outlive the process that
    /// it began in, unlike what is seen of it.
    pub fn of(packets: [u64; Direction::ALL.len()], lived: Duration) -> Self {
        match packets.map(|count| count > 0) {
            [true, true] => Self::Established,
            [false, false] => Self::Unused,
            _ if lived < TOLD_AFTER => Self::Early,
            [true, false] => Self::ToPeerOnly,
            [false, true] => Self::ToClientOnly,
        }
    }

    /// How many of those who called got through, of so many endings in the order of [`Self::ALL`]: 0.0 to 1.0, `None` if
    /// nobody called. What was not used is no failure, and what ended early is not known.
    pub fn success_ratio(counts: [u64; Self::ALL.len()]) -> Option<f64> {
        let count = |ending: Self| counts[ending as usize];
        let established = count(Self::Established);
        let called = established + count(Self::ToPeerOnly) + count(Self::ToClientOnly);
        (called > 0).then(|| established as f64 / called as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answered_tells_unless_it_was_early() {
        for (packets, lived, ending) in [
            ([9, 9], 1, Ending::Established),
            ([9, 1], 60, Ending::Established),
            ([9, 0], 10, Ending::ToPeerOnly),
            ([0, 9], 60, Ending::ToClientOnly),
            ([9, 0], 9, Ending::Early),
            ([0, 9], 0, Ending::Early),
            ([0, 0], 0, Ending::Unused),
            ([0, 0], 600, Ending::Unused),
        ] {
            let found = Ending::of(packets, Duration::from_secs(lived));
            assert_eq!(found, ending, "{packets:?} {lived}");
        }
    }

    #[test]
    fn what_was_not_used_is_no_failure() {
        assert_eq!(Ending::success_ratio([0, 0, 0, 7, 2]), None);
        assert_eq!(Ending::success_ratio([3, 1, 0, 7, 2]), Some(0.75));
        assert_eq!(Ending::success_ratio([0, 1, 1, 0, 0]), Some(0.0));
    }
}
