//! The load itself: one thread that sends what window or rate allow, and counts what arrives.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::base::Clock;
use crate::net::{Batch, HEADROOM, IpFields, Outgoing};
use crate::wire::Header;

use super::Direction;
use super::flows::{Flows, Ready, TIMERS, batch, peer_of};
use super::histogram::Histogram;
use super::ledger::{Arrival, Ledger, STAMP, Stamp};
use super::link::Link;
use super::process::{self, Cpu};

/// Without any arrival for this long, what is in flight counts as lost and the window is filled anew.
const STALL: Duration = Duration::from_millis(200);

/// How long what is in flight may still arrive after the last packet was sent.
const DRAIN: Duration = Duration::from_millis(500);

/// Packets sent between two looks at what arrived.
const PACKETS_PER_TURN: u64 = 1024;

/// So many packets are worth a call of their own; a window that has less room waits for more.
const BATCH: u64 = 64;

/// How long at most.
const HOLD: Duration = Duration::from_millis(1);

/// A rate's packets that are due within this time leave together.
const GRAIN: Duration = Duration::from_micros(50);

/// A rate that cannot be held is not caught up with further than this.
const CATCH_UP: f64 = 0.1;

/// What keeps packets coming.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// This many packets in flight, all lanes together.
    Window(u64),
    /// This many packets a second, all lanes together.
    Rate(f64),
}

/// What the load is made of.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Which way packets go.
    pub direction: Direction,
    /// Bytes of application data in a packet, at least [`STAMP`].
    pub size: usize,
    /// Packets that one lane sends before it is the next one's turn.
    pub burst: u64,
    /// When to send.
    pub pace: Pace,
    /// Time before anything counts.
    pub warmup: Duration,
    /// Time that counts.
    pub measure: Duration,
    /// Let the kernel cut bursts into datagrams.
    pub gso: bool,
    /// Take trains of datagrams in one piece.
    pub gro: bool,
    /// Whose CPU time to read.
    pub pid: Option<u32>,
}

/// Packets with the same way leave in one call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The clients' UDP socket of this index.
    Clients(usize),
    /// The connection of the client of this index.
    Stream(usize),
    /// The peer of this index.
    Peer(usize),
}

/// Packets that go one way between the same two ends.
struct Lane {
    way: Way,
    to: SocketAddr,
    /// Which address they come from, where the socket has several.
    from: Option<IpAddr>,
    /// What a client puts in front of the data.
    header: Option<Header>,
    ledger: Ledger,
}

/// Packets counted since the traffic began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Given to the kernel.
    pub sent: u64,
    /// Arrived where they should, each once.
    pub delivered: u64,
    /// Arrived again.
    pub duplicates: u64,
    /// Arrived after a later one of the same lane.
    pub reordered: u64,
    /// Not ours, or not whole.
    pub foreign: u64,
    /// Refused by our own kernel, not part of `sent`.
    pub unsent: u64,
    /// Not sent because the rate was too much for the generator or for a connection.
    pub missed: u64,
    /// How often nothing arrived for 200 ms while packets were in flight.
    pub stalls: u64,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// The moment.
    pub at: Instant,
    /// Packets so far.
    pub counts: Counts,
    /// The server's CPU time so far; zero without a process to look at.
    pub server: Cpu,
    /// This thread's CPU time so far, in nanoseconds.
    pub own_ns: u64,
}

/// What a run of traffic came to.
pub struct Outcome {
    /// When measuring began.
    pub begin: Mark,
    /// When measuring ended.
    pub end: Mark,
    /// All packets, warm-up and draining included.
    pub total: Counts,
    /// From a packet's sending to its arrival, in nanoseconds, while measuring.
    pub latency: Histogram,
}

/// Sends and counts.
pub struct Traffic {
    load: Load,
    lanes: Vec<Lane>,
    next_lane: usize,
    in_flight: u64,
    counts: Counts,
    latency: Histogram,
    recording: bool,
    tag: u32,
    start: Instant,
    scheduled: u64,
    outbox: Batch,
    outgoing: Vec<Outgoing>,
    way: Option<Way>,
    /// The last wait ended without anything to receive.
    quiet: bool,
    /// With a rate, nothing is sent before this.
    not_before: Instant,
    zeros: Vec<u8>,
    /// Clients whose connection did not take everything.
    blocked: Vec<usize>,
}

impl Traffic {
    /// Lanes for every flow, as the direction asks. `tag` tells this run's packets from others.
    ///
    /// # Errors
    /// The packets are longer than the protocol carries.
    pub fn new(flows: &mut Flows, load: Load, tag: u32) -> anyhow::Result<Self> {
        let mut lanes = Vec::new();
        if load.direction != Direction::ToClient {
            for (index, flow) in flows.all.iter_mut().enumerate() {
                let header = flow.client.header_to(flow.peer, load.size);
                let (way, from) = match flow.link {
                    Link::Udp { socket, from } => (Way::Clients(socket), from),
                    Link::Stream(_) => (Way::Stream(index), None),
                };
                lanes.push(Lane {
                    way,
                    to: flows.server,
                    from,
                    header: Some(
                        header.with_context(|| {
                            format!("a packet cannot carry {} bytes", load.size)
                        })?,
                    ),
                    ledger: Ledger::default(),
                });
            }
        }
        if matches!(load.direction, Direction::ToClient | Direction::Both) {
            for (index, flow) in flows.all.iter().enumerate() {
                lanes.push(Lane {
                    way: Way::Peer(peer_of(index, flows.all.len(), flows.peers.len())),
                    to: flow.client.relayed().context("an allocation is gone")?,
                    from: None,
                    header: None,
                    ledger: Ledger::default(),
                });
            }
        }
        let slots = (load.burst as usize).clamp(BATCH as usize, 1024);
        Ok(Self {
            load,
            lanes,
            next_lane: 0,
            in_flight: 0,
            counts: Counts::default(),
            latency: Histogram::new(),
            recording: false,
            tag,
            start: Clock.now().mono,
            scheduled: 0,
            outbox: batch(slots, load.gso),
            outgoing: Vec::with_capacity(slots),
            way: None,
            quiet: true,
            not_before: Clock.now().mono,
            zeros: vec![0; load.size + 4],
            blocked: Vec::new(),
        })
    }

    /// Warms up, measures, drains. `progress` is called once a second with the counts and the time since the last call.
    ///
    /// # Errors
    /// The server went away, or a connection to it.
    pub fn run(
        mut self,
        flows: &mut Flows,
        mut progress: impl FnMut(&Counts, Duration),
    ) -> anyhow::Result<Outcome> {
        self.start = Clock.now().mono;
        let begin_at = self.start + self.load.warmup;
        let end_at = begin_at + self.load.measure;
        let mut begin = None;
        let mut arrivals = (self.counts.delivered, self.start);
        let mut next_timers = self.start + TIMERS;
        let mut next_progress = self.start + Duration::from_secs(1);
        let end = loop {
            let now = Clock.now();
            if now.mono >= end_at {
                break self.mark()?;
            }
            if now.mono >= begin_at && begin.is_none() {
                self.recording = true;
                begin = Some(self.mark()?);
            }
            if now.mono >= next_timers {
                next_timers = now.mono + TIMERS;
                flows.timers(now)?;
            }
            if now.mono >= next_progress {
                progress(
                    &self.counts,
                    now.mono - (next_progress - Duration::from_secs(1)),
                );
                next_progress = now.mono + Duration::from_secs(1);
            }
            if self.counts.delivered != arrivals.0 || self.in_flight == 0 {
                arrivals = (self.counts.delivered, now.mono);
            } else if now.mono.saturating_duration_since(arrivals.1) >= STALL {
                arrivals.1 = now.mono;
                self.give_up();
            }
            let idle = self.send(flows, now.mono)?;
            let until_end = end_at.saturating_duration_since(now.mono);
            self.receive(flows, idle.min(until_end))?;
        };
        self.recording = false;
        let mut last = (self.counts.delivered, end.at);
        loop {
            let now = Clock.now();
            if self.counts.delivered != last.0 {
                last = (self.counts.delivered, now.mono);
            }
            let quiet = now.mono.saturating_duration_since(last.1);
            let all = self.counts.delivered == self.counts.sent && self.blocked.is_empty();
            if all || quiet > DRAIN || now.mono > end.at + 6 * DRAIN {
                break;
            }
            self.retry(flows)?;
            self.receive(flows, Duration::from_millis(10))?;
        }
        Ok(Outcome {
            begin: begin.unwrap_or(end),
            end,
            total: self.counts,
            latency: self.latency,
        })
    }

    fn mark(&self) -> anyhow::Result<Mark> {
        Ok(Mark {
            server: self
                .load
                .pid
                .map(process::cpu)
                .transpose()?
                .unwrap_or_default(),
            own_ns: process::own_cpu_ns(),
            counts: self.counts,
            at: Clock.now().mono,
        })
    }

    fn give_up(&mut self) {
        self.counts.stalls += 1;
        self.in_flight = 0;
        self.lanes.iter_mut().for_each(|lane| lane.ledger.give_up());
    }

    /// Sends what is due; returns how long there is nothing more to send.
    fn send(&mut self, flows: &mut Flows, now: Instant) -> anyhow::Result<Duration> {
        self.retry(flows)?;
        let due = match self.load.pace {
            Pace::Window(window) => {
                let due = window.saturating_sub(self.in_flight);
                // Many at once cost less each; after a pause nothing more is waited for.
                let worth_it = (window / 4).clamp(1, BATCH).max(self.load.burst);
                if due < worth_it && self.in_flight > 0 && !self.quiet {
                    0
                } else {
                    due
                }
            }
            Pace::Rate(_) if now < self.not_before => 0,
            Pace::Rate(rate) => {
                let elapsed = now.saturating_duration_since(self.start).as_secs_f64();
                let behind = (elapsed * rate) as u64 - self.scheduled.min((elapsed * rate) as u64);
                let most = (rate * CATCH_UP) as u64 + self.load.burst;
                if behind > most {
                    self.counts.missed += behind - most;
                    self.scheduled += behind - most;
                }
                behind.min(most)
            }
        };
        let bursts = due.min(PACKETS_PER_TURN.max(self.load.burst)) / self.load.burst;
        if bursts > 0 {
            let sent_ns = self.since_start(now);
            for _ in 0..bursts {
                self.send_burst(flows, sent_ns)?;
            }
            self.flush(flows)?;
            self.not_before = now + GRAIN;
        }
        let idle = match self.load.pace {
            _ if !self.blocked.is_empty() => Duration::from_micros(200),
            Pace::Window(window) if self.in_flight < window => HOLD,
            Pace::Window(_) => TIMERS / 2,
            Pace::Rate(rate) => {
                let next = (self.scheduled + self.load.burst) as f64 / rate;
                let at = self.start + Duration::from_secs_f64(next.min(1e9));
                let wait = at.max(self.not_before).saturating_duration_since(now);
                wait.min(TIMERS / 2)
            }
        };
        Ok(idle)
    }

    /// One burst of the next lane that can take one.
    fn send_burst(&mut self, flows: &mut Flows, sent_ns: u64) -> anyhow::Result<()> {
        self.scheduled += self.load.burst;
        for _ in 0..self.lanes.len() {
            let index = self.next_lane;
            self.next_lane = if index + 1 == self.lanes.len() {
                0
            } else {
                index + 1
            };
            let Some(lane) = self.lanes.get(index) else {
                break;
            };
            let way = lane.way;
            if let Way::Stream(client) = way
                && let Some(Link::Stream(stream)) = flows.all.get(client).map(|flow| &flow.link)
                && stream.is_full()
            {
                continue;
            }
            if self.way != Some(way) {
                self.flush(flows)?;
                self.way = Some(way);
            }
            for _ in 0..self.load.burst {
                self.push(flows, index, sent_ns)?;
            }
            return Ok(());
        }
        self.counts.missed += self.load.burst;
        Ok(())
    }

    fn push(&mut self, flows: &mut Flows, index: usize, sent_ns: u64) -> anyhow::Result<()> {
        if self.outgoing.len() == self.outbox.slots() {
            let way = self.way;
            self.flush(flows)?;
            self.way = way;
        }
        let Some(lane) = self.lanes.get_mut(index) else {
            return Ok(());
        };
        let stamp = Stamp {
            tag: self.tag,
            lane: index as u32,
            sequence: lane.ledger.next,
            sent_ns,
        }
        .encode();
        lane.ledger.next += 1;
        self.in_flight += 1;
        let header = lane.header.as_ref();
        let header_bytes = header.map_or(&[][..], Header::bytes);
        let padding = header.map_or(0, Header::padding);
        if let Way::Stream(client) = lane.way {
            if let Some(Link::Stream(stream)) = flows.all.get_mut(client).map(|flow| &mut flow.link)
            {
                stream.push(header_bytes);
                stream.push(&stamp);
                let rest = self.load.size - STAMP + padding;
                stream.push(self.zeros.get(..rest).unwrap_or_default());
                self.counts.sent += 1;
            }
            return Ok(());
        }
        let slot = self.outgoing.len();
        let start = HEADROOM - header_bytes.len();
        let buffer = self.outbox.buffer_mut(slot);
        buffer[start..HEADROOM].copy_from_slice(header_bytes);
        buffer[HEADROOM..HEADROOM + STAMP].copy_from_slice(&stamp);
        self.outgoing.push(Outgoing {
            slot: slot as u16,
            start: start as u32,
            len: (header_bytes.len() + self.load.size + padding) as u32,
            to: lane.to,
            from: lane.from,
            front: None,

            fields: IpFields::default(),
        });
        Ok(())
    }

    /// Sends what was gathered for one way.
    fn flush(&mut self, flows: &mut Flows) -> anyhow::Result<()> {
        let socket = match self.way.take() {
            None => return Ok(()),
            Some(Way::Stream(client)) => {
                if let Some(Link::Stream(stream)) =
                    flows.all.get_mut(client).map(|flow| &mut flow.link)
                    && !stream.flush().context("the server closed a connection")?
                {
                    self.blocked.push(client);
                }
                return Ok(());
            }
            Some(Way::Clients(socket)) => flows.sockets.get(socket),
            Some(Way::Peer(peer)) => flows.peers.get(peer),
        };
        let report = socket.map_or_else(Default::default, |socket| {
            self.outbox.send(socket, &self.outgoing)
        });
        let refused = self.outgoing.len() as u64 - u64::from(report.sent);
        self.counts.sent += u64::from(report.sent);
        self.counts.unsent += refused;
        self.in_flight = self.in_flight.saturating_sub(refused);
        self.outgoing.clear();
        Ok(())
    }

    /// Goes on with connections that did not take everything.
    fn retry(&mut self, flows: &mut Flows) -> anyhow::Result<()> {
        if self.blocked.is_empty() {
            return Ok(());
        }
        self.blocked.sort_unstable();
        self.blocked.dedup();
        let mut blocked = std::mem::take(&mut self.blocked);
        let mut outcome = Ok(());
        blocked.retain(
            |client| match flows.all.get_mut(*client).map(|flow| &mut flow.link) {
                Some(Link::Stream(stream)) => match stream.flush() {
                    Ok(done) => !done,
                    Err(error) => {
                        outcome = Err(error);
                        false
                    }
                },
                _ => false,
            },
        );
        self.blocked = blocked;
        outcome.context("the server closed a connection")
    }

    /// Waits for arrivals, at most `timeout`, and counts them.
    fn receive(&mut self, flows: &mut Flows, timeout: Duration) -> anyhow::Result<()> {
        let ready = flows.poller.wait(timeout).len();
        self.quiet = ready == 0;
        for event in 0..ready {
            match flows.ready(event) {
                Ready::Client(token) => flows.receive(token, |at, data| self.arrived(at, data))?,
                Ready::Peer(index) => self.receive_at_peer(flows, index)?,
            }
        }
        // Renewals need no attention, and their failure shows as loss.
        while flows.poll_event().is_some() {}
        Ok(())
    }

    fn receive_at_peer(&mut self, flows: &mut Flows, index: usize) -> anyhow::Result<()> {
        let Some(peer) = flows.peers.get(index) else {
            return Ok(());
        };
        let count = flows.inbox.receive(peer, 0)?;
        let now = Clock.now().mono;
        let echo = self.load.direction == Direction::Echo;
        for slot in 0..count {
            let received = flows.inbox.received(slot);
            let bytes = flows.inbox.payload(slot);
            for range in received.datagrams() {
                let datagram = bytes.get(range.clone()).unwrap_or_default();
                if !echo {
                    self.arrived(now, datagram);
                } else if Stamp::decode(datagram).is_some_and(|stamp| stamp.tag == self.tag) {
                    self.outgoing.push(Outgoing {
                        slot: slot as u16,
                        start: (HEADROOM + range.start) as u32,
                        len: datagram.len() as u32,
                        to: received.from,
                        from: None,
                        front: None,

                        fields: IpFields::default(),
                    });
                } else {
                    self.counts.foreign += 1;
                }
            }
        }
        if echo {
            let report = flows.inbox.send(peer, &self.outgoing);
            self.counts.unsent += self.outgoing.len() as u64 - u64::from(report.sent);
            self.outgoing.clear();
        }
        Ok(())
    }

    fn arrived(&mut self, at: Instant, data: &[u8]) {
        let stamp = Stamp::decode(data).filter(|stamp| stamp.tag == self.tag);
        let lane = stamp.and_then(|stamp| Some((stamp, self.lanes.get_mut(stamp.lane as usize)?)));
        let Some((stamp, lane)) = lane.filter(|_| data.len() == self.load.size) else {
            self.counts.foreign += 1;
            return;
        };
        match lane.ledger.arrived(stamp.sequence) {
            Arrival::Fresh(settled) => {
                self.in_flight = self.in_flight.saturating_sub(settled);
                self.counts.delivered += 1;
            }
            Arrival::Late => {
                self.counts.delivered += 1;
                self.counts.reordered += 1;
            }
            Arrival::Duplicate => {
                self.counts.duplicates += 1;
                return;
            }
            Arrival::Foreign => {
                self.counts.foreign += 1;
                return;
            }
        }
        if self.recording {
            let since = self.since_start(at).saturating_sub(stamp.sent_ns);
            self.latency.record(since);
        }
    }

    /// Nanoseconds since the traffic began.
    fn since_start(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_nanos() as u64
    }
}

/// How many packets the server relays for one that is delivered.
pub const fn relayed_per_delivered(direction: Direction) -> u64 {
    match direction {
        Direction::Echo => 2,
        _ => 1,
    }
}
