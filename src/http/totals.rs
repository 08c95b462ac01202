//! `GET /api/webrtc/stats`: totals that an application may watch, and how calls go.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::base::Transport;
use crate::metrics::Survey;
use crate::quality::Ending;
use crate::turn::{Direction, DropReason, Stats};
use crate::wire::ErrorCode;

use super::lookout::CallsJson;

/// What was counted since the start, and what `seen` tells of live allocations.
pub(super) fn totals(stats: &Stats, seen: &Survey) -> Value {
    let live: u64 = stats.live.as_flattened().iter().sum();
    let relayed = |direction: Direction| {
        let paths = &stats.relayed[direction as usize];
        let rates = Transport::ALL
            .map(|transport| seen.bits_per_second[transport as usize][direction as usize]);
        json!({
            "bytes": paths.iter().map(|path| path.bytes).sum::<u64>(),
            "packets": paths.iter().map(|path| path.packets).sum::<u64>(),
            "bitsPerSecond": rates.iter().sum::<u64>(),
        })
    };
    let allocated = stats.allocated();
    let failures: BTreeMap<_, _> = (ErrorCode::ALL.into_iter().zip(allocated.refused))
        .map(|(code, count)| (code.label(), count))
        .filter(|(_, count)| *count > 0)
        .collect();
    let wrong_credentials: u64 = allocated.wrong_credentials.iter().sum();
    let succeeded = allocated.succeeded;
    let attempts = succeeded + allocated.failed();
    let dropped: BTreeMap<_, _> = (DropReason::ALL.into_iter())
        .map(|reason| (reason.label(), stats.dropped[reason as usize]))
        .filter(|(_, count)| *count > 0)
        .collect();
    let calls = CallsJson::from(&seen.calls);
    json!({
        "allocations": live,
        "toPeer": relayed(Direction::ToPeer),
        "toClient": relayed(Direction::ToClient),
        "allocationsTotal": succeeded,
        "wrongCredentials": wrong_credentials,
        "failures": failures,
        "successRatio": (attempts > 0).then(|| succeeded as f64 / attempts as f64),
        "dropped": dropped,
        "sessions": sessions(stats),
        "rttMs": calls.rtt_ms,
        "loss": { "toPeer": calls.loss.to_peer, "toClient": calls.loss.to_client },
        "jitterMs": { "toPeer": calls.jitter_ms.to_peer, "toClient": calls.jitter_ms.to_client },
    })
}

/// What became of the calls of ended allocations.
fn sessions(stats: &Stats) -> Value {
    let mut sessions: Map<_, _> = (Ending::ALL.into_iter().zip(stats.sessions))
        .map(|(ending, count)| (camel(ending.label()), count.into()))
        .collect();
    let ratio = Ending::success_ratio(stats.sessions);
    sessions.insert("successRatio".into(), json!(ratio));
    Value::Object(sessions)
}

/// `to_peer_only` as `toPeerOnly`.
fn camel(label: &str) -> String {
    let mut words = label.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| {
        let (initial, rest) = word.split_at(word.len().min(1));
        text + &initial.to_uppercase() + rest
    })
}
