//! Why a call failed: the timeline of a user, an address or an allocation, and a verdict.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query as Parameters, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::base::Clock;
use crate::metrics::NamedAllocation;
use crate::why::{Call, Evidence, Line, Query, Verdict, timeline};

use super::admin::{AdminState, AllocationJson};
use super::{ShardControl, json, refusal};

/// `?user=alice`, `?address=198.51.100.7` or `?allocation=0-17-3`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    user: Option<String>,
    address: Option<String>,
    allocation: Option<String>,
}

#[derive(Serialize)]
struct Shown<'e> {
    verdict: VerdictJson,
    subjects: Vec<Subject>,
    events: Vec<LineJson>,
    allocations: Vec<CallJson<'e>>,
}

#[derive(Serialize)]
struct VerdictJson {
    code: &'static str,
    text: String,
    advice: &'static str,
}

impl From<Verdict> for VerdictJson {
    fn from(verdict: Verdict) -> Self {
        Self {
            code: verdict.code.label(),
            advice: verdict.advice(),
            text: verdict.text,
        }
    }
}

/// Whom the answer is about.
#[derive(Serialize, PartialEq, Eq)]
struct Subject {
    kind: &'static str,
    name: String,
}

/// One event; times are seconds since the Unix epoch.
#[derive(Serialize)]
struct LineJson {
    at: f64,
    last: f64,
    count: u32,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    client: String,
    transport: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    text: String,
}

impl From<Line> for LineJson {
    fn from(line: Line) -> Self {
        Self {
            at: line.at as f64 / 1e3,
            last: line.last as f64 / 1e3,
            count: line.count,
            event: line.event,
            reason: line.reason,
            code: line.code,
            method: line.method,
            allocation: line.allocation,
            user: line.user,
            client: line.client,
            transport: line.transport,
            peer: line.peer,
            text: line.text,
        }
    }
}

/// An allocation as the API shows it, with what became of it.
#[derive(Serialize)]
struct CallJson<'e> {
    #[serde(flatten)]
    allocation: AllocationJson<'e>,
    permissions_made: u32,
    channels_made: u32,
    /// Whether it is over, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<&'static str>,
    /// How long it lived, in seconds, if it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    verdict: VerdictJson,
}

pub(super) async fn why<S: ShardControl>(
    State(state): State<AdminState<S>>,
    asked: Result<Parameters<Asked>, QueryRejection>,
) -> Response {
    let asked = match asked {
        Ok(Parameters(asked)) => asked,
        Err(error) => return refusal(error.status(), &error.body_text()),
    };
    let query = match (asked.user, asked.address, asked.allocation) {
        (Some(user), None, None) if !user.is_empty() => Query::User(user),
        (None, Some(address), None) if !address.is_empty() => Query::Address(address),
        (None, None, Some(allocation)) if !allocation.is_empty() => Query::Allocation(allocation),
        _ => {
            return refusal(
                StatusCode::BAD_REQUEST,
                "name a user, an address or an allocation, and one of them only",
            );
        }
    };
    let mut evidence = state.shards.why(&query).await;
    if let Query::Address(address) = &query {
        evidence.handshakes = state.admission.handshakes().of(address);
    }
    let now = Clock.now().unix;
    let named: Vec<_> = (evidence.calls.iter())
        .map(|call| NamedAllocation {
            name: call.name.clone(),
            shard: 0,
            view: call.view.clone(),
        })
        .collect();
    let allocations = (evidence.calls.iter().zip(&named)).map(|(call, named)| CallJson {
        allocation: AllocationJson::from(named),
        permissions_made: call.view.permissions_made,
        channels_made: call.view.channels_made,
        ended: call.ended.map(|(_, reason)| reason.label()),
        duration: call.ended.map(|(lived, _)| lived.as_secs()),
        verdict: evidence.verdict_of(call, now).into(),
    });
    let shown = Shown {
        verdict: evidence.verdict(now).into(),
        subjects: subjects(&query, &evidence),
        events: timeline(&evidence)
            .into_iter()
            .map(LineJson::from)
            .collect(),
        allocations: allocations.collect(),
    };
    json(StatusCode::OK, &shown)
}

/// Whom was asked about first, and whom else it concerns.
fn subjects(query: &Query, evidence: &Evidence) -> Vec<Subject> {
    let (kind, name) = match query {
        Query::User(user) => ("user", user),
        Query::Address(address) => ("address", address),
        Query::Allocation(allocation) => ("allocation", allocation),
    };
    let mut subjects = vec![Subject {
        kind,
        name: name.clone(),
    }];
    let users = (evidence.events.iter())
        .map(|told| told.event.user.as_str())
        .chain(evidence.calls.iter().map(|call: &Call| &*call.view.user))
        .filter(|user| !user.is_empty());
    for user in users {
        let subject = Subject {
            kind: "user",
            name: user.to_owned(),
        };
        if !subjects.contains(&subject) && subjects.len() < MOST_SUBJECTS {
            subjects.push(subject);
        }
    }
    subjects
}

/// Subjects that are named, at most.
const MOST_SUBJECTS: usize = 32;
