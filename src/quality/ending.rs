//! What became of the calls of allocations that have ended.

use crate::base::Direction;

use super::{Quality, Session};

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
    /// It ended before it could be told.
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

    /// That of an allocation that relayed so many `packets` over its life, by [`Direction`], and what was seen of them. What
    /// was not seen, such as before another process took over, is told by the packets alone.
    pub fn of(quality: Option<&Quality>, packets: [u64; Direction::ALL.len()]) -> Self {
        let only = |direction| match direction {
            Direction::ToPeer => Self::ToPeerOnly,
            Direction::ToClient => Self::ToClientOnly,
        };
        let [to_peer, to_client] = packets.map(|count| count > 0);
        match (quality.map(|quality| quality.session), to_peer, to_client) {
            (Some(Session::Established | Session::Silent), ..) => Self::Established,
            (Some(Session::OneWay(direction)), ..) => only(direction),
            (_, false, false) => Self::Unused,
            (_, true, true) => Self::Established,
            (Some(_), ..) => Self::Early,
            (None, true, false) => only(Direction::ToPeer),
            (None, false, true) => only(Direction::ToClient),
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
    fn what_was_seen_tells_and_else_what_was_relayed() {
        use Direction::{ToClient, ToPeer};
        use Session::{Established, OneWay, Silent, Unused, Waiting};
        for (session, packets, ending) in [
            (Some(Established), [9, 9], Ending::Established),
            (Some(Silent), [9, 9], Ending::Established),
            (Some(OneWay(ToPeer)), [9, 0], Ending::ToPeerOnly),
            (Some(OneWay(ToClient)), [1, 9], Ending::ToClientOnly),
            (Some(Unused), [0, 0], Ending::Unused),
            (Some(Waiting), [0, 0], Ending::Unused),
            (Some(Waiting), [3, 0], Ending::Early),
            (Some(Waiting), [3, 1], Ending::Established),
            (None, [0, 0], Ending::Unused),
            (None, [3, 0], Ending::ToPeerOnly),
            (None, [0, 3], Ending::ToClientOnly),
            (None, [3, 3], Ending::Established),
        ] {
            let quality = session.map(|session| Quality {
                session,
                ..Quality::default()
            });
            let found = Ending::of(quality.as_ref(), packets);
            assert_eq!(found, ending, "{session:?} {packets:?}");
        }
    }

    #[test]
    fn what_was_not_used_is_no_failure() {
        assert_eq!(Ending::success_ratio([0, 0, 0, 7, 2]), None);
        assert_eq!(Ending::success_ratio([3, 1, 0, 7, 2]), Some(0.75));
        assert_eq!(Ending::success_ratio([0, 1, 1, 0, 0]), Some(0.0));
    }
}
