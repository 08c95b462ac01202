//! The loop of one shard: sockets, timers, the mailbox, and stream tasks in between.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::base::Clock;
use crate::net::host;

use super::engine::{Parts, Shard};
use super::handover::Start;
use super::mailbox::{Inbox, Message};
use super::streams::{self, STREAM_CREDIT};

/// How a shard's thread shares the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The only CPU to run on.
    pub cpu: Option<usize>,
    /// How long to ask for packets before sleeping.
    pub busy_poll: Duration,
}

/// Where a shard says that it is made, or why not; it begins frozen then.
pub(super) type Begin = std::sync::mpsc::Sender<std::io::Result<()>>;

/// Runs a shard until it is told to stop.
pub(super) fn run(parts: Parts, pace: Pace, inbox: Inbox, begin: Option<Begin>) {
    let index = parts.index;
    if let Some(cpu) = pace.cpu
        && let Err(error) = host::pin_thread(cpu)
    {
        tracing::warn!(shard = index, cpu, %error, "a shard runs on any CPU");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.and_then(|runtime| {
        let local = LocalSet::new();
        runtime.block_on(local.run_until(work(parts, pace.busy_poll, inbox, begin)))
    });
    if let Err(error) = result {
        tracing::error!(shard = index, %error, "a shard cannot go on");
    }
}

async fn work(
    mut parts: Parts,
    busy_poll: Duration,
    mut inbox: Inbox,
    begin: Option<Begin>,
) -> std::io::Result<()> {
    let wake = Rc::new(Notify::new());
    let resumed = parts
        .start
        .as_mut()
        .map(Start::take_streams)
        .unwrap_or_default();
    let shard = match Shard::new(parts, Rc::clone(&wake)) {
        Ok(shard) => shard,
        Err(error) => {
            if let Some(begin) = begin {
                let _ = begin.send(Err(error));
                return Ok(());
            }
            return Err(error);
        }
    };
    let watched = shard.poller.watch()?;
    let shard = Rc::new(RefCell::new(shard));
    shard.borrow_mut().itself = Rc::downgrade(&shard);
    let sleep = tokio::time::sleep(std::time::Duration::ZERO);
    tokio::pin!(sleep);
    let mut patience = Patience::new(busy_poll);
    if let Some(begin) = begin {
        shard.borrow_mut().frozen = true;
        for (stream, queue) in resumed {
            tokio::task::spawn_local(streams::serve_on(Rc::clone(&shard), stream, queue));
        }
        let _ = begin.send(Ok(()));
    }
    loop {
        let frozen = shard.borrow().frozen;
        if frozen {
            shard.borrow_mut().stream_credit = STREAM_CREDIT;
            // TLS clients go on: their tasks run while this one waits.
            match inbox.control.recv().await {
                Some(Message::Thaw) => shard.borrow_mut().thaw(),
                Some(Message::Export {
                    part,
                    mut sink,
                    answer,
                }) => {
                    // All shards are frozen by now: what they had for this one is here.
                    while let Ok(parcel) = inbox.parcels.try_recv() {
                        shard.borrow_mut().receive_parcel(parcel);
                    }
                    let _ = answer.send(shard.borrow().export(part, &mut *sink));
                }
                Some(Message::Stop) | None => {
                    shard.borrow_mut().end_all();
                    return Ok(());
                }
                Some(message) => {
                    handle(&shard, &mut patience, message);
                    // A connection that arrives is there before anything is exported.
                    tokio::task::yield_now().await;
                }
            }
            continue;
        }
        let deadline = shard.borrow_mut().arm();
        if let Some(deadline) = deadline {
            let deadline = tokio::time::Instant::from_std(deadline);
            if sleep.deadline() != deadline {
                sleep.as_mut().reset(deadline);
            }
        }
        tokio::select! {
            ready = watched.readable() => {
                let mut ready = ready?;
                // Until the descriptor is said to be empty the runtime does not sleep, and comes back here at once.
                let served = shard.borrow_mut().turn();
                if patience.ends(served) {
                    ready.clear_ready();
                }
            }
            Some(parcel) = inbox.parcels.recv() => shard.borrow_mut().receive_parcel(parcel),
            Some(message) = inbox.control.recv() => {
                if matches!(message, Message::Stop) {
                    shard.borrow_mut().end_all();
                    return Ok(());
                }
                handle(&shard, &mut patience, message);
            }
            () = &mut sleep, if deadline.is_some() => shard.borrow_mut().handle_timeout(),
            () = wake.notified() => {}
        }
        // Stream tasks run between turns, however busy the sockets are, and no longer than what a turn takes.
        shard.borrow_mut().stream_credit = STREAM_CREDIT;
        tokio::task::yield_now().await;
    }
}

/// How long a shard goes on asking sockets that have nothing. A wake-up costs more than many such questions.
struct Patience {
    most: Duration,
    /// Since the last datagram.
    idle_since: Option<Instant>,
}

impl Patience {
    const fn new(most: Duration) -> Self {
        Self {
            most,
            idle_since: None,
        }
    }

    /// Whether to sleep, after a turn that served datagrams or not.
    fn ends(&mut self, served: bool) -> bool {
        if served || self.most.is_zero() {
            self.idle_since = None;
            return !served;
        }
        let now = Clock.now().mono;
        let since = *self.idle_since.get_or_insert(now);
        let ends = now.saturating_duration_since(since) >= self.most;
        if ends {
            self.idle_since = None;
        }
        ends
    }
}

fn handle(shard: &Rc<RefCell<Shard>>, patience: &mut Patience, message: Message) {
    let now = Clock.now();
    match message {
        Message::Adopt(stream) => {
            tokio::task::spawn_local(streams::serve(Rc::clone(shard), *stream));
        }
        Message::Move(moved) => {
            let (stream, queue) = *moved;
            tokio::task::spawn_local(streams::serve_on(Rc::clone(shard), stream, queue));
        }
        Message::CallBack {
            endpoint,
            client,
            count,
        } => shard.borrow_mut().call_back(endpoint, client, count),
        Message::Snapshot(answer) => {
            let _ = answer.send(shard.borrow().snapshot());
        }
        Message::Views {
            from,
            count,
            answer,
        } => {
            let _ = answer.send(shard.borrow().server.views(now, from, count));
        }
        Message::End { id, reason, answer } => {
            let mut shard = shard.borrow_mut();
            let ended = shard.server.end_allocation(now, id, reason);
            shard.drain_outputs(now);
            let _ = answer.send(ended);
        }
        Message::Access(access, answer) => {
            let mut shard = shard.borrow_mut();
            let ended = shard.server.set_access(now, access);
            shard.drain_outputs(now);
            let _ = answer.send(ended);
        }
        Message::Change(change, done) => {
            patience.most = change.busy_poll;
            shard.borrow_mut().change(*change);
            let _ = done.send(());
        }
        Message::Newcomers(newcomers) => shard.borrow_mut().server.set_newcomers(newcomers),
        Message::Traces(traces) => shard.borrow_mut().server.set_traces(traces),
        Message::RecordLive {
            due,
            from,
            count,
            answer,
        } => {
            let _ = answer.send(shard.borrow().record_live(now, due, from, count));
        }
        Message::Limits {
            bandwidth,
            new_peers_per_second,
        } => {
            let mut shard = shard.borrow_mut();
            shard.server.set_bandwidth(now, bandwidth);
            shard.server.set_new_peers_per_second(new_peers_per_second);
            shard.settle(now);
        }
        Message::Ping(answer) => {
            let _ = answer.send(());
        }
        Message::Hold(time) => std::thread::sleep(time),
        Message::Freeze(answer) => {
            shard.borrow_mut().frozen = true;
            let _ = answer.send(());
        }
        Message::Leave(answer) => {
            let _ = answer.send(shard.borrow_mut().leave());
        }
        Message::Why {
            subject,
            live,
            answer,
        } => {
            let _ = answer.send(shard.borrow().server.remembered(&subject, &live));
        }
        Message::Capture(wanted) => shard.borrow_mut().begin_capture(now, *wanted),
        Message::EndCapture(number) => shard.borrow_mut().taps.remove(number),
        Message::Attempts(answer) => {
            // Whoever waits no more asks again.
            if !answer.is_closed() {
                let _ = answer.send(shard.borrow_mut().server.take_attempts());
            }
        }
        // Without a freeze before it there is nothing to give, and nothing to thaw.
        Message::Export { .. } | Message::Thaw | Message::Stop => {}
    }
}
