//! What a record says of a call.

use serde::Serialize;

use crate::quality::shown::{Legs, Ways, millis, share};
use crate::quality::{Quality, Rtt};

/// How the call went, in short.
#[derive(Serialize)]
pub(super) struct Summary {
    session: &'static str,
    rtt_ms: Legs<Option<RttSummary>>,
    loss: Ways<Option<f64>>,
    jitter_ms: Ways<Option<f64>>,
    first_data_ms: Ways<Option<f64>>,
}

#[derive(Serialize)]
struct RttSummary {
    smoothed: f64,
    least: f64,
}

impl From<Rtt> for RttSummary {
    fn from(rtt: Rtt) -> Self {
        Self {
            smoothed: millis(rtt.smoothed),
            least: millis(rtt.least),
        }
    }
}

impl From<&Quality> for Summary {
    fn from(quality: &Quality) -> Self {
        Self {
            session: quality.session.label(),
            rtt_ms: Legs::of(|leg| quality.rtt[leg as usize].map(RttSummary::from)),
            loss: Ways::of(|way| quality.flows[way as usize].loss_ratio().map(share)),
            jitter_ms: Ways::of(|way| quality.flows[way as usize].jitter.map(millis)),
            first_data_ms: Ways::of(|way| quality.first[way as usize].map(millis)),
        }
    }
}
