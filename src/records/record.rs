//! One record as JSON.

use std::collections::HashMap;

use serde::Serialize;

use crate::access::RealmName;
use crate::base::Pii;
use crate::quality::score::Abuse;
use crate::turn::{AllocationView, Direction, Traffic};

use super::quality::Summary;
use super::{Event, Stage};

type BothTraffic = [Traffic; Direction::ALL.len()];

/// Writes records; remembers what was told already of allocations that live long.
pub(super) struct Writer {
    /// This run of the server, so that ids of another run differ.
    run: String,
    node: String,
    region: String,
    /// Totals of the last record, by shard and slot with its generation: bounded by the slots there are.
    told: HashMap<(u8, u32), (u32, BothTraffic)>,
}

#[derive(Serialize)]
struct Record<'a> {
    id: String,
    allocation: &'a str,
    kind: &'static str,
    node: &'a str,
    region: &'a str,
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    realm: Option<&'static str>,
    scope: &'static str,
    client: String,
    transport: &'static str,
    relayed: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    relayed_additional: Option<String>,
    start_ms: u64,
    end_ms: u64,
    duration_ms: u64,
    reason: Option<&'static str>,
    bytes: BothWays,
    packets: BothWays,
    since_last: SinceLast,
    mean_bits_per_second: BothWays,
    peak_bits_per_second: BothWays,
    permissions: u32,
    channels: u32,
    relay_transport: &'static str,
    quality: Option<Summary>,
    /// Where there is anything to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    abuse: Option<Abuse>,
}

#[derive(Serialize)]
struct SinceLast {
    bytes: BothWays,
    packets: BothWays,
}

#[derive(Serialize)]
struct BothWays {
    to_peer: u64,
    to_client: u64,
}

impl BothWays {
    fn of(count: impl Fn(usize) -> u64) -> Self {
        Self {
            to_peer: count(Direction::ToPeer as usize),
            to_client: count(Direction::ToClient as usize),
        }
    }
}

impl Writer {
    pub fn new(node: &str, region: &str) -> Self {
        Self {
            run: format!("{:016x}", rand::random::<u64>()),
            node: node.to_owned(),
            region: region.to_owned(),
            told: HashMap::new(),
        }
    }

    /// The record of `event`, without a line's end.
    pub fn line(&mut self, event: &Event) -> String {
        let view = &event.view;
        let before = self.told(event);
        let totals = &view.traffic;
        let allocation = format!(
            "{}-{}-{}-{}",
            self.run, event.shard, view.id.slot, view.id.generation
        );
        let (kind, number) = match event.stage {
            Stage::Interim(sequence) => ("interim", sequence.to_string()),
            Stage::Final(_) => ("final", "final".to_owned()),
        };
        let since = |pick: fn(&Traffic) -> u64| {
            BothWays::of(|at| pick(&totals[at]).saturating_sub(pick(&before[at])))
        };
        let record = Record {
            id: format!("{allocation}.{number}"),
            allocation: &allocation,
            kind,
            node: &self.node,
            region: &self.region,
            user: &view.user,
            realm: view.realm.map(RealmName::as_str),
            scope: view.scope.label(),
            client: Pii(view.client).to_string(),
            transport: view.transport.label(),
            relayed: view.relayed.to_string(),
            relayed_additional: view.additional.map(|relayed| relayed.to_string()),
            start_ms: view.created_unix.as_millis() as u64,
            end_ms: (view.created_unix + event.duration).as_millis() as u64,
            duration_ms: event.duration.as_millis() as u64,
            reason: match event.stage {
                Stage::Interim(_) => None,
                Stage::Final(reason) => Some(reason.label()),
            },
            bytes: BothWays::of(|at| totals[at].bytes),
            packets: BothWays::of(|at| totals[at].packets),
            since_last: SinceLast {
                bytes: since(|traffic| traffic.bytes),
                packets: since(|traffic| traffic.packets),
            },
            mean_bits_per_second: BothWays::of(|at| mean(&totals[at], event)),
            peak_bits_per_second: BothWays::of(|at| view.peak_bits_per_second[at]),
            permissions: view.permissions_made,
            channels: view.channels_made,
            relay_transport: view.relay_transport.label(),
            quality: view.quality.as_deref().map(Summary::from),
            abuse: (view.quality.as_ref())
                .map(|quality| quality.abuse)
                .filter(|abuse| !abuse.noted.is_empty()),
        };
        serde_json::to_string(&record).unwrap_or_else(|error| {
            debug_assert!(false, "a record does not encode: {error}");
            String::from("{}")
        })
    }

    /// What the last record said of the allocation; remembers what this one says if another follows.
    fn told(&mut self, event: &Event) -> BothTraffic {
        let AllocationView { id, traffic, .. } = &event.view;
        let key = (event.shard, id.slot);
        let before = match event.stage {
            Stage::Interim(_) => self.told.insert(key, (id.generation, *traffic)),
            Stage::Final(_) => self.told.remove(&key),
        };
        before
            .filter(|(generation, _)| *generation == id.generation)
            .map_or_else(Default::default, |(_, traffic)| traffic)
    }
}

/// Over the allocation's life, which counts as a second at least.
fn mean(traffic: &Traffic, event: &Event) -> u64 {
    (traffic.bytes as f64 * 8.0 / event.duration.as_secs_f64().max(1.0)) as u64
}
