//! `GET /api/v1/allocations/{id}/capture`: the packets of one allocation for some seconds, as a file that Wireshark opens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::base::{Clock, Pii, PiiMode};
use crate::capture::{About, Counted, Disguise, Packet, Writer};
use crate::quality::Leg;
use crate::shard::{Capture, Captured};

use super::admin::{AdminState, is_from_elsewhere, unreadable};
use super::serve::{Cut, Peer};
use super::{ShardControl, refusal};

/// Captures that may run at once.
pub const MOST_CAPTURES: usize = 4;

/// How long a capture takes where nobody says.
const SECONDS: u64 = 30;

/// The longest capture, in seconds: a connection to the admin listener lives as long.
const MOST_SECONDS: u64 = 600;

/// The most packets of one capture.
const MOST_PACKETS: u64 = 1_000_000;

/// The most that one capture writes, in bytes.
const MOST_BYTES: u64 = 64 << 20;

/// What is written at once, in bytes; one packet more at most.
const CHUNK: usize = 64 * 1024;

/// Chunks that may wait for the reader. More waits in the queue of packets, which is bounded as well.
const WAITING: usize = 4;

/// What a reader gets for the last word.
const GRACE: Duration = Duration::from_secs(5);

/// Between two looks whether the last word was taken.
const LOOK: Duration = Duration::from_millis(10);

/// The captures of one server; cheap to clone, outlives what the admin listener answers from.
#[derive(Clone, Debug)]
pub struct Captures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    /// Counts the states of the admin listener: what an earlier one let in is over.
    epoch: watch::Sender<u64>,
    /// Begun, of headers and of whole packets.
    begun: [AtomicU64; 2],
}

impl Default for Captures {
    fn default() -> Self {
        Self(Arc::new(Shared {
            places: Arc::new(Semaphore::new(MOST_CAPTURES)),
            epoch: watch::Sender::new(0),
            begun: Default::default(),
        }))
    }
}

impl Captures {
    /// Ends everything that runs: who may look is decided anew.
    pub fn dismiss(&self) {
        self.0.epoch.send_modify(|epoch| *epoch += 1);
    }

    pub(super) fn epoch(&self) -> u64 {
        *self.0.epoch.borrow()
    }

    /// How many have begun: of headers, of whole packets.
    pub(super) fn begun(&self) -> [u64; 2] {
        (self.0.begun)
            .each_ref()
            .map(|begun| begun.load(Ordering::Relaxed))
    }
}

/// What is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    seconds: Option<u64>,
    packets: Option<u64>,
    #[serde(default)]
    payload: bool,
}

/// Streams a capture until its time is over, a bound is reached, the allocation ends or the reader goes away.
pub(super) async fn stream<S: ShardControl>(
    State(state): State<AdminState<S>>,
    id: Result<Path<String>, PathRejection>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
    cut: Option<Extension<Cut>>,
    peer: Option<Extension<Peer>>,
) -> Response {
    let Ok(Path(id)) = id else {
        return unreadable();
    };
    let wanted = match wanted {
        Ok(Query(wanted)) => wanted,
        Err(error) => return refusal(error.status(), &error.body_text()),
    };
    // A link on a page is no operator.
    let site = headers.get("sec-fetch-site");
    let linked = site.is_some_and(|site| site != "same-origin" && site != "none");
    if linked || is_from_elsewhere(&headers) {
        return refusal(
            StatusCode::FORBIDDEN,
            "pages of other origins get no packets here",
        );
    }
    if !state.may_capture {
        return refusal(
            StatusCode::FORBIDDEN,
            "this server hands out no packets: set quality.capture = true in its configuration and reload",
        );
    }
    if wanted.payload && PiiMode::current() != PiiMode::Full {
        return refusal(
            StatusCode::FORBIDDEN,
            "whole packets show addresses, which log.ip_privacy hides: ask without payload, or set log.ip_privacy = \"full\"",
        );
    }
    let seconds = wanted.seconds.unwrap_or(SECONDS);
    let packets = wanted.packets.unwrap_or(MOST_PACKETS);
    if !(1..=MOST_SECONDS).contains(&seconds) || !(1..=MOST_PACKETS).contains(&packets) {
        return refusal(
            StatusCode::BAD_REQUEST,
            "a capture takes 1 to 600 seconds and 1 to 1000000 packets",
        );
    }
    let captures = state.captures.clone();
    let Ok(place) = Arc::clone(&captures.0.places).try_acquire_owned() else {
        let mut response = refusal(
            StatusCode::TOO_MANY_REQUESTS,
            "4 captures run already: end one, or wait for its end",
        );
        let soon = HeaderValue::from_static("30");
        response.headers_mut().insert(header::RETRY_AFTER, soon);
        return response;
    };
    let epoch = captures.0.epoch.subscribe();
    let Some(captured) = state.shards.capture(&id, wanted.payload).await else {
        return super::admin::unknown();
    };
    if *epoch.borrow() != state.capture_epoch {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "the configuration has changed: ask again",
        );
    }
    let (body, channel) = Channel::new(WAITING);
    let (here, gone) = oneshot::channel::<()>();
    // What the body holds is dropped with it: nothing else tells that a reader has left while nothing is written.
    let channel = channel.map_frame(move |frame| {
        let _ = &here;
        frame
    });
    captures.0.begun[usize::from(wanted.payload)].fetch_add(1, Ordering::Relaxed);
    let run = Run {
        asker: peer
            .map(|Extension(Peer(peer))| Pii(peer).to_string())
            .unwrap_or_default(),
        allocation: id.clone(),
        payload: wanted.payload,
        seconds,
        packets,
        cut: cut.map(|Extension(cut)| cut).unwrap_or_default(),
        _place: place,
    };
    tokio::spawn(run.write(captured, body, epoch, gone));
    let kind = (
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-pcapng"),
    );
    let mut response = ([kind], Body::new(channel)).into_response();
    // The id was found, so it is digits and dashes.
    if let Ok(name) = HeaderValue::try_from(format!("attachment; filename=\"turnix-{id}.pcapng\""))
    {
        response
            .headers_mut()
            .insert(header::CONTENT_DISPOSITION, name);
    }
    response
}

/// A capture that runs.
struct Run {
    asker: String,
    allocation: String,
    payload: bool,
    seconds: u64,
    packets: u64,
    cut: Cut,
    _place: OwnedSemaphorePermit,
}

/// What was written so far.
#[derive(Default)]
struct Written {
    counted: [Counted; Leg::ALL.len()],
    bytes: u64,
}

impl Written {
    fn packets(&self) -> u64 {
        self.counted.iter().map(|counted| counted.written).sum()
    }
}

impl Run {
    async fn write(
        self,
        captured: Captured,
        mut body: Sender<Bytes>,
        mut epoch: watch::Receiver<u64>,
        mut gone: oneshot::Receiver<()>,
    ) {
        let Captured {
            mut capture,
            view,
            own,
        } = captured;
        tracing::info!(
            allocation = self.allocation,
            user = %view.user,
            asked_by = self.asker,
            seconds = self.seconds,
            payload = self.payload,
            "a capture of packets begins"
        );
        let deadline = Instant::now() + Duration::from_secs(self.seconds);
        let disguise = Disguise::new(PiiMode::current(), own, rand::random());
        let about = About {
            allocation: &self.allocation,
            transport: view.transport,
            payload: self.payload,
            began: Clock.now().unix,
        };
        let mut chunk = Vec::with_capacity(CHUNK);
        let writer = Writer::new(&about, disguise, &mut chunk);
        let mut written = Written::default();
        let why = loop {
            if !chunk.is_empty() {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                written.bytes += full.len() as u64;
                let sent = timeout_at(deadline, body.send_data(full.into()));
                match sent.await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break "its reader left",
                    Err(_) => break "its reader does not read",
                }
            }
            if written.packets() >= self.packets {
                break "it has as many packets as it may";
            }
            if written.bytes >= MOST_BYTES {
                break "it is as long as it may be";
            }
            tokio::select! {
                biased;
                _ = epoch.changed() => break "a reload, or another process, closed the admin listener",
                _ = &mut gone => break "its reader left",
                () = sleep_until(deadline) => break "its time is over",
                packet = capture.next() => match packet {
                    Some(packet) => self.gather(packet, &mut capture, &writer, &mut chunk, &mut written),
                    None => break capture.why(),
                },
            }
        };
        for (counted, lost) in written.counted.iter_mut().zip(capture.lost()) {
            counted.lost = lost;
        }
        // The shard copies nothing for a capture that only has its last word to say.
        drop(capture);
        writer.finish(Clock.now().unix, why, written.counted, &mut chunk);
        written.bytes += chunk.len() as u64;
        if timeout(GRACE, last_word(&mut body, chunk.into()))
            .await
            .is_err()
        {
            self.cut.cut();
        }
        tracing::info!(
            allocation = self.allocation,
            user = %view.user,
            asked_by = self.asker,
            payload = self.payload,
            packets = written.packets(),
            lost = written.counted.iter().map(|counted| counted.lost).sum::<u64>(),
            bytes = written.bytes,
            why,
            "a capture of packets ends"
        );
    }

    /// Writes `packet` and those that wait behind it, as many as fit.
    fn gather(
        &self,
        packet: Packet,
        capture: &mut Capture,
        writer: &Writer,
        chunk: &mut Vec<u8>,
        written: &mut Written,
    ) {
        let mut next = Some(packet);
        while let Some(packet) = next {
            if let Some(counted) = written.counted.get_mut(packet.leg as usize) {
                counted.written += 1;
            }
            writer.packet(packet, chunk);
            let more = chunk.len() < CHUNK
                && written.packets() < self.packets
                && written.bytes + (chunk.len() as u64) < MOST_BYTES;
            next = more.then(|| capture.try_next()).flatten();
        }
    }
}

/// Sends the end of a body, and waits until it is taken: a sender that is gone may hide what it sent.
async fn last_word(body: &mut Sender<Bytes>, bytes: Bytes) {
    if body.send_data(bytes).await.is_err() {
        return;
    }
    while body.capacity() < body.max_capacity() {
        sleep(LOOK).await;
    }
}
