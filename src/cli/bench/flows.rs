//! The clients of a run, their peers, and everything before and after the traffic: allocating, binding, releasing.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::base::{Clock, Now};
use crate::client::{Client, Event, Failure, Input, Step};
use crate::net::{Batch, Poller, UdpOptions, UdpSocket};
use crate::wire::ChannelNumber;

use super::link::{Link, SCRATCH_BYTES};

/// The channel that every client binds; each five-tuple has numbers of its own.
const CHANNEL: u16 = 0x4000;

/// No answer at all for this long ends the set-up.
const PATIENCE: Duration = Duration::from_secs(8);

/// How often timers of clients are looked at.
pub const TIMERS: Duration = Duration::from_millis(100);

/// Datagrams per receive call.
const SLOTS: usize = 64;

/// Reads one connection gets before the others have their turn.
const READS_PER_TURN: usize = 16;

/// One client, its way to the server, and the peer it exchanges data with.
pub struct Flow {
    /// The protocol.
    pub client: Client,
    /// The way to the server.
    pub link: Link,
    /// The other end: a peer's socket, or another client's relayed address.
    pub peer: SocketAddr,
}

impl Flow {
    /// Sends what the client has to say. False if the connection did not take all of it.
    pub fn pump(&mut self, server: SocketAddr) -> anyhow::Result<bool> {
        while let Some(message) = self.client.poll_transmit() {
            match &mut self.link {
                // What the kernel does not take is sent again by the client's timer.
                Link::Udp(socket) => drop(socket.send_to(&message, server, None)),
                Link::Stream(stream) => stream.push(&message),
            }
        }
        match &mut self.link {
            Link::Udp(_) => Ok(true),
            Link::Stream(stream) => stream.flush().context(GONE),
        }
    }
}

const GONE: &str = "the server closed a connection";

/// All clients and peers.
pub struct Flows {
    /// The server's address.
    pub server: SocketAddr,
    /// The clients; the token of a client's socket is its index.
    pub all: Vec<Flow>,
    /// Sockets of peers; their tokens come after those of the clients.
    pub peers: Vec<UdpSocket>,
    /// All sockets.
    pub poller: Poller,
    /// Where datagrams arrive.
    pub inbox: Batch,
    scratch: Vec<u8>,
}

impl Flows {
    /// No clients yet, and `peers` sockets of peers at `address`.
    ///
    /// # Errors
    /// The kernel refuses: no such address, no port or no descriptor left.
    pub fn new(
        server: SocketAddr,
        clients: Vec<Flow>,
        peers: Vec<UdpSocket>,
        segment: bool,
    ) -> anyhow::Result<Self> {
        let poller = Poller::new(256)?;
        for (token, flow) in clients.iter().enumerate() {
            poller.add(&flow.link, token as u64)?;
        }
        for (index, peer) in peers.iter().enumerate() {
            poller.add(peer, (clients.len() + index) as u64)?;
        }
        Ok(Self {
            server,
            all: clients,
            peers,
            poller,
            inbox: batch(SLOTS, segment),
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    /// Reads what came for client `index`: application data goes to `data` with the time it came, the rest to the
    /// client, whose events are left for the caller.
    ///
    /// # Errors
    /// The socket or the connection is gone.
    pub fn receive(
        &mut self,
        index: usize,
        mut data: impl FnMut(Instant, &[u8]),
    ) -> anyhow::Result<()> {
        let Some(flow) = self.all.get_mut(index) else {
            return Ok(());
        };
        let client = &mut flow.client;
        let mut control = false;
        match &mut flow.link {
            Link::Udp(socket) => {
                let count = self.inbox.receive(socket, 0)?;
                let now = Clock.now();
                for slot in 0..count {
                    if self.inbox.received(slot).from != self.server {
                        continue;
                    }
                    match client.handle_input(now, self.inbox.payload(slot)) {
                        Input::Channel(_, bytes) | Input::Data(_, bytes) => data(now.mono, bytes),
                        Input::Answer | Input::Ignored => control = true,
                    }
                }
            }
            Link::Stream(stream) => {
                for _ in 0..READS_PER_TURN {
                    let now = Clock.now();
                    stream
                        .read(&mut self.scratch, |frame| {
                            match client.handle_input(now, frame) {
                                Input::Channel(_, bytes) | Input::Data(_, bytes) => {
                                    data(now.mono, bytes);
                                }
                                Input::Answer | Input::Ignored => control = true,
                            }
                        })
                        .context(GONE)?;
                    if !stream.has_more() {
                        break;
                    }
                }
            }
        }
        if control {
            flow.pump(self.server)?;
        }
        Ok(())
    }

    /// Lets the timers of all clients fire.
    ///
    /// # Errors
    /// A connection is gone.
    pub fn timers(&mut self, now: Now) -> anyhow::Result<()> {
        for flow in &mut self.all {
            if flow.client.poll_timeout().is_some_and(|at| at <= now.mono) {
                flow.client.handle_timeout(now);
                flow.pump(self.server)?;
            }
        }
        Ok(())
    }

    /// Allocates for every client, at most `window` of them at a time. Returns how long it took.
    ///
    /// # Errors
    /// The server refuses or does not answer; the text says what to do.
    pub fn allocate(&mut self, window: usize) -> anyhow::Result<Duration> {
        let begin = |flow: &mut Flow, now| flow.client.begin(now, Step::Allocate);
        self.each(
            window,
            PATIENCE,
            |_| true,
            begin,
            |event| matches!(event, Event::Allocated { .. }),
        )
    }

    /// Binds a channel to every client's peer, or only permits it.
    ///
    /// # Errors
    /// The server refuses or does not answer; the text says what to do.
    pub fn admit(&mut self, window: usize, channels: bool) -> anyhow::Result<Duration> {
        let Some(channel) = ChannelNumber::new(CHANNEL) else {
            bail!("{CHANNEL:#x} is no channel");
        };
        let begin = |flow: &mut Flow, now| {
            let step = if channels {
                Step::ChannelBind(channel, flow.peer)
            } else {
                Step::CreatePermission(flow.peer)
            };
            flow.client.begin(now, step);
        };
        self.each(
            window,
            PATIENCE,
            |_| true,
            begin,
            |event| matches!(event, Event::ChannelBound(..) | Event::Permitted(_)),
        )
    }

    /// Ends every allocation that there is.
    ///
    /// # Errors
    /// The server refuses or does not answer; the allocations then end by themselves.
    pub fn release(&mut self, window: usize) -> anyhow::Result<Duration> {
        let begin = |flow: &mut Flow, now| flow.client.release(now);
        let allocated = |flow: &Flow| flow.client.relayed().is_some();
        self.each(window, PATIENCE / 4, allocated, begin, |event| {
            matches!(event, Event::Released)
        })
    }

    /// Begins one request for every client that is `wanted`, at most `window` at a time, and waits until all are `done`.
    fn each(
        &mut self,
        window: usize,
        patience: Duration,
        wanted: impl Fn(&Flow) -> bool,
        mut begin: impl FnMut(&mut Flow, Now),
        is_done: impl Fn(&Event) -> bool,
    ) -> anyhow::Result<Duration> {
        let wanted: Vec<bool> = self.all.iter().map(wanted).collect();
        let mut waiting = (0..self.all.len()).filter(|index| wanted.get(*index) == Some(&true));
        let total = wanted.iter().filter(|wanted| **wanted).count();
        let start = Clock.now();
        let mut progress = start.mono;
        let mut next_timers = start.mono + TIMERS;
        let (mut begun, mut done) = (0, 0);
        let mut failed = None;
        // After a failure nothing new begins; what is under way is waited for, so that it can be released.
        while done < if failed.is_some() { begun } else { total } {
            let now = Clock.now();
            while failed.is_none() && begun < total && begun - done < window {
                if let Some(flow) = waiting.next().and_then(|index| self.all.get_mut(index)) {
                    begin(flow, now);
                    flow.pump(self.server)?;
                }
                begun += 1;
            }
            let ready = self.poller.wait(TIMERS).len();
            for event in 0..ready {
                let token = self.poller.tokens().get(event).copied().unwrap_or(u64::MAX);
                let index = token as usize;
                if index >= self.all.len() {
                    // Nobody reads for peers yet; what comes is not ours.
                    if let Some(peer) = self.peers.get(index - self.all.len()) {
                        self.inbox.receive(peer, 0)?;
                    }
                    continue;
                }
                self.receive(index, |_, _| {})?;
                while let Some(event) = self.all.get_mut(index).and_then(|f| f.client.poll_event())
                {
                    match event {
                        Event::Failed(step, why) => {
                            done += 1;
                            failed.get_or_insert_with(|| advice(step, why));
                        }
                        event if is_done(&event) => {
                            done += 1;
                            progress = now.mono;
                        }
                        // The end of what an earlier phase had begun.
                        _ => {}
                    }
                }
            }
            let now = Clock.now();
            if now.mono >= next_timers {
                next_timers = now.mono + TIMERS;
                self.timers(now)?;
            }
            if now.mono.saturating_duration_since(progress) > patience {
                if failed.is_some() {
                    break;
                }
                bail!(
                    "no answer from {} for {} s ({done} of {total} done): is a TURN server listening there, and does no \
                     firewall stand between?",
                    self.server,
                    patience.as_secs(),
                );
            }
        }
        match failed {
            Some(advice) => bail!(advice),
            None => Ok(Clock.now().mono.saturating_duration_since(start.mono)),
        }
    }
}

/// `count` sockets at `address`, for peers.
///
/// # Errors
/// The kernel refuses: no such address, no port or no descriptor left.
pub fn open_peers(
    address: IpAddr,
    count: usize,
    buffer_bytes: usize,
) -> anyhow::Result<Vec<UdpSocket>> {
    let options = UdpOptions {
        recv_buffer_bytes: buffer_bytes,
        send_buffer_bytes: buffer_bytes,
        ..UdpOptions::default()
    };
    (0..count)
        .map(|_| {
            UdpSocket::bind(SocketAddr::new(address, 0), &options)
                .with_context(|| format!("cannot open a socket for a peer at {address}"))
        })
        .collect()
}

/// Slots for datagrams; without `segment`, the kernel gets every one by itself.
pub fn batch(slots: usize, segment: bool) -> Batch {
    let batch = Batch::new(slots);
    if segment {
        batch
    } else {
        batch.without_segmentation()
    }
}

/// What went wrong and what to do about it.
pub fn advice(step: Step, why: Failure) -> String {
    let what = match why {
        Failure::Refused(0) => format!("{step} was refused without an error code"),
        Failure::Refused(code) => format!("{step} was refused with {code}"),
        Failure::Timeout => format!("{step} was not answered"),
        Failure::Integrity => format!("{step} was answered with a wrong MESSAGE-INTEGRITY"),
        Failure::Malformed => format!("the answer to {step} lacks what it has to hold"),
    };
    let remedy = match (why, step) {
        (Failure::Refused(401), _) => {
            "give credentials that the server knows with --user and --password, or its shared secret with --secret"
        }
        (Failure::Refused(403), Step::Allocate) => "the server does not relay for this client",
        (Failure::Refused(403), _) => {
            "the server's peer policy forbids this peer; on one machine allow it with peers.allow = [\"loopback\"] \
             (coturn: allow-loopback-peers), or name another with --peer-address"
        }
        (Failure::Refused(400), Step::ChannelBind(..)) => {
            "the server takes no such channel or peer; try --indications"
        }
        (Failure::Refused(437), _) => "the server has, or lacks, an allocation on this five-tuple",
        (Failure::Refused(440 | 443), _) => {
            "relayed address and peer have to be of one family; name a peer of the other with --peer-address"
        }
        (Failure::Refused(486), _) => {
            "a quota is used up: raise it (limits.allocations_per_user, limits.allocations_per_address), or lower --allocations"
        }
        (Failure::Refused(508), _) => {
            "the server has no relay port left: widen its range (relay.ports), or lower --allocations"
        }
        (Failure::Timeout, _) => "the server is overloaded, or datagrams are lost on the way",
        (Failure::Integrity, _) => "the password is wrong, or somebody else answered",
        _ => "see the server's log",
    };
    format!("{what}: {remedy}")
}
