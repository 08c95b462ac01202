//! Whose fault an outage is, with the figures behind it: for operators, who may read networks and counts.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::base::{Clock, Pii};
use crate::cluster::detective::{Detective, Finding, Network, SLOT_SECS, Slot, Verdict};

use super::admin::AdminState;
use super::{ShardControl, refusal};

/// Minutes that figures are given of.
const WINDOWS: [u32; 3] = [5, 10, 30];

pub(super) async fn report<S: ShardControl>(State(state): State<AdminState<S>>) -> Response {
    match &state.board {
        Some(board) => super::json(StatusCode::OK, &board.investigated(shown)),
        None => refusal(StatusCode::NOT_FOUND, "this server does not look at itself"),
    }
}

fn shown(detective: &Detective, verdict: &Verdict) -> Value {
    let now = Clock.now();
    let (own, others) = detective.looks();
    let windows: Vec<_> = (WINDOWS.iter())
        .map(|minutes| {
            let figures = detective.figures(now, *minutes);
            json!({
                "minutes": minutes,
                "clients": { "ok": figures.clients_ok, "failed": figures.clients_failed },
                "attempts": { "ok": figures.attempts_ok, "failed": figures.attempts_failed },
                "affected_users": figures.users,
            })
        })
        .collect();
    json!({
        "status": verdict.state().label(),
        "causes": verdict.findings.iter().map(cause).collect::<Vec<_>>(),
        "windows": windows,
        "own": { "ways": own.ways, "closed": own.closed, "stuck": own.stuck },
        "nodes": { "others": others.nodes, "answering": others.answering },
        "ignored_attempts": detective.ignored(),
        "history": {
            "slot_seconds": SLOT_SECS,
            "slots": detective.history().map(slot).collect::<Vec<_>>(),
        },
    })
}

fn cause(finding: &Finding) -> Value {
    let networks: Vec<_> = (finding.networks.iter())
        .map(|(network, failed, ok)| {
            let mut shown = network_shown(*network);
            shown["clients"] = json!({ "ok": ok, "failed": failed });
            shown
        })
        .collect();
    json!({
        "cause": finding.cause.label(),
        "status": finding.state.label(),
        "text": finding.text,
        "since": finding.since_unix,
        "clients": finding.clients,
        "users": finding.users,
        "networks": networks,
    })
}

/// As `log.ip_privacy` allows.
fn network_shown(network: Network) -> Value {
    let (address, bits) = network.prefix();
    json!({ "network": Pii(address).to_string(), "bits": bits })
}

/// `null`: nobody wanted anything.
const fn slot(slot: Slot) -> Option<&'static str> {
    match slot {
        Slot { bad: true, .. } => Some("bad"),
        Slot { tried: true, .. } => Some("good"),
        Slot { tried: false, .. } => None,
    }
}
