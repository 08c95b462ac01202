//! The clients of a run, their peers, and everything before and after the traffic: allocating, binding, releasing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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

/// How often timers of some clients are looked at.
pub const TIMERS: Duration = Duration::from_millis(10);

/// After this many looks the timers of all clients were seen.
const TIMER_PARTS: usize = 10;

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
    pub fn pump(&mut self, sockets: &[UdpSocket], server: SocketAddr) -> anyhow::Result<bool> {
        while let Some(message) = self.client.poll_transmit() {
            match &mut self.link {
                Link::Udp { socket, from } => {
                    if let Some(socket) = sockets.get(*socket) {
                        // What the kernel does not take is sent again by the client's timer.
                        let _ = socket.send_to(&message, server, *from);
                    }
                }
                Link::Stream(stream) => stream.push(&message),
            }
        }
        match &mut self.link {
            Link::Udp { .. } => Ok(true),
            Link::Stream(stream) => stream.flush().context(GONE),
        }
    }
}

const GONE: &str = "the server closed a connection";

/// The UDP sockets of clients.
pub enum Sockets {
    /// One per client, bound to this address.
    Own(IpAddr),
    /// Clients share sockets bound to the wildcard: on each, one has this address, the next the one after it, and so on.
    Shared {
        /// The first client's address.
        first: Ipv4Addr,
        /// How many clients share a socket.
        clients: usize,
    },
}

impl Sockets {
    /// How many sockets `count` clients need.
    pub const fn needed(&self, count: usize) -> usize {
        match *self {
            Self::Own(_) => count,
            Self::Shared { clients, .. } => count.div_ceil(clients),
        }
    }

    /// Opens the sockets of `count` clients.
    ///
    /// # Errors
    /// The kernel refuses: no such address, no port or no descriptor left.
    pub fn open(&self, count: usize, options: &UdpOptions) -> anyhow::Result<Vec<UdpSocket>> {
        let (address, options) = match *self {
            Self::Own(address) => (address, *options),
            Self::Shared { .. } => {
                let packet_info = true;
                let options = UdpOptions {
                    packet_info,
                    ..*options
                };
                (IpAddr::V4(Ipv4Addr::UNSPECIFIED), options)
            }
        };
        open_sockets(address, self.needed(count), &options)
    }

    /// The way of client `index`.
    pub fn link(&self, index: usize) -> Link {
        match *self {
            Self::Own(_) => Link::Udp {
                socket: index,
                from: None,
            },
            Self::Shared { first, clients } => {
                let address = first.to_bits() + (index % clients) as u32;
                Link::Udp {
                    socket: index / clients,
                    from: Some(IpAddr::V4(address.into())),
                }
            }
        }
    }

    /// The client that gets what came to `local` on socket `socket`.
    fn client(&self, socket: usize, local: Option<IpAddr>) -> Option<usize> {
        match (self, local) {
            (Self::Own(_), _) => Some(socket),
            (Self::Shared { first, clients }, Some(IpAddr::V4(local))) => {
                let nth = local.to_bits().checked_sub(first.to_bits())? as usize;
                (nth < *clients).then(|| socket * clients + nth)
            }
            _ => None,
        }
    }
}

/// All clients and peers.
pub struct Flows {
    /// The server's address.
    pub server: SocketAddr,
    /// The clients.
    pub all: Vec<Flow>,
    /// UDP sockets of clients. The token of one is its index; the token of a connection is its client's.
    pub sockets: Vec<UdpSocket>,
    sharing: Sockets,
    /// Sockets of peers; their tokens come after those of the clients.
    pub peers: Vec<UdpSocket>,
    first_peer: usize,
    /// All sockets.
    pub poller: Poller,
    /// Where datagrams arrive.
    pub inbox: Batch,
    scratch: Vec<u8>,
    /// Clients that may have events.
    answered: Vec<usize>,
    /// The client whose timers are looked at next.
    next_timer: usize,
}

/// Whose socket is ready.
pub enum Ready {
    /// The client socket or connection of this token.
    Client(usize),
    /// The peer of this index.
    Peer(usize),
}

impl Flows {
    /// These clients and peers; nothing is sent.
    ///
    /// # Errors
    /// The kernel refuses another descriptor or watch.
    pub fn new(
        server: SocketAddr,
        clients: Vec<Flow>,
        (sharing, sockets): (Sockets, Vec<UdpSocket>),
        peers: Vec<UdpSocket>,
        segment: bool,
    ) -> anyhow::Result<Self> {
        let poller = Poller::new(256)?;
        for (token, socket) in sockets.iter().enumerate() {
            poller.add(socket, token as u64)?;
        }
        let mut first_peer = sockets.len();
        for (token, flow) in clients.iter().enumerate() {
            if let Link::Stream(stream) = &flow.link {
                poller.add(stream, token as u64)?;
                first_peer = clients.len();
            }
        }
        for (index, peer) in peers.iter().enumerate() {
            poller.add(peer, (first_peer + index) as u64)?;
        }
        Ok(Self {
            server,
            all: clients,
            sockets,
            sharing,
            peers,
            first_peer,
            poller,
            inbox: batch(SLOTS, segment),
            scratch: vec![0; SCRATCH_BYTES],
            answered: Vec::new(),
            next_timer: 0,
        })
    }

    /// The owner of the `event`-th token that the last wait found.
    pub fn ready(&self, event: usize) -> Ready {
        let token = self.poller.tokens().get(event).copied();
        let token = token.unwrap_or(u64::MAX) as usize;
        match token.checked_sub(self.first_peer) {
            Some(peer) => Ready::Peer(peer),
            None => Ready::Client(token),
        }
    }

    /// Reads what came for the clients of `token`: application data goes to `data` with the time it came, the rest to
    /// the clients, whose events are left for [`Self::poll_event`].
    ///
    /// # Errors
    /// The socket or the connection is gone.
    pub fn receive(
        &mut self,
        token: usize,
        mut data: impl FnMut(Instant, &[u8]),
    ) -> anyhow::Result<()> {
        let answered = self.answered.len();
        if let Some(socket) = self.sockets.get(token) {
            let count = self.inbox.receive(socket, 0)?;
            let now = Clock.now();
            for slot in 0..count {
                let received = self.inbox.received(slot);
                if received.from != self.server {
                    continue;
                }
                let index = self.sharing.client(token, received.local);
                let Some((index, flow)) =
                    index.and_then(|index| Some((index, self.all.get_mut(index)?)))
                else {
                    continue;
                };
                let bytes = self.inbox.payload(slot);
                for datagram in received.datagrams() {
                    let datagram = bytes.get(datagram).unwrap_or_default();
                    match flow.client.handle_input(now, datagram) {
                        Input::Channel(_, bytes) | Input::Data(_, bytes) => data(now.mono, bytes),
                        Input::Answer => self.answered.push(index),
                        Input::Ignored => {}
                    }
                }
            }
        } else if let Some(flow) = self.all.get_mut(token)
            && let Link::Stream(stream) = &mut flow.link
        {
            let client = &mut flow.client;
            for _ in 0..READS_PER_TURN {
                let now = Clock.now();
                stream
                    .read(&mut self.scratch, |frame| {
                        match client.handle_input(now, frame) {
                            Input::Channel(_, bytes) | Input::Data(_, bytes) => {
                                data(now.mono, bytes);
                            }
                            Input::Answer => self.answered.push(token),
                            Input::Ignored => {}
                        }
                    })
                    .context(GONE)?;
                if !stream.has_more() {
                    break;
                }
            }
        }
        for index in self.answered.iter().skip(answered) {
            if let Some(flow) = self.all.get_mut(*index) {
                flow.pump(&self.sockets, self.server)?;
            }
        }
        Ok(())
    }

    /// What happened to a client, once for each event.
    pub fn poll_event(&mut self) -> Option<Event> {
        while let Some(index) = self.answered.last() {
            match self.all.get_mut(*index).and_then(|f| f.client.poll_event()) {
                Some(event) => return Some(event),
                None => self.answered.pop(),
            };
        }
        None
    }

    /// Lets the timers of the next tenth of the clients fire: a look at thousands of them takes too long for one turn.
    ///
    /// # Errors
    /// A connection is gone.
    pub fn timers(&mut self, now: Now) -> anyhow::Result<()> {
        for _ in 0..self.all.len().div_ceil(TIMER_PARTS) {
            if self.next_timer >= self.all.len() {
                self.next_timer = 0;
            }
            if let Some(flow) = self.all.get_mut(self.next_timer)
                && flow.client.poll_timeout().is_some_and(|at| at <= now.mono)
            {
                flow.client.handle_timeout(now);
                flow.pump(&self.sockets, self.server)?;
                // A request that is given up is an event.
                self.answered.push(self.next_timer);
            }
            self.next_timer += 1;
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
                    flow.pump(&self.sockets, self.server)?;
                }
                begun += 1;
            }
            let ready = self.poller.wait(TIMERS).len();
            for event in 0..ready {
                match self.ready(event) {
                    Ready::Client(token) => self.receive(token, |_, _| {})?,
                    // Nobody reads for peers yet; what comes is not ours.
                    Ready::Peer(index) => {
                        if let Some(peer) = self.peers.get(index) {
                            self.inbox.receive(peer, 0)?;
                        }
                    }
                }
            }
            while let Some(event) = self.poll_event() {
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

/// `count` sockets at `address`.
///
/// # Errors
/// The kernel refuses: no such address, no port or no descriptor left.
pub fn open_sockets(
    address: IpAddr,
    count: usize,
    options: &UdpOptions,
) -> anyhow::Result<Vec<UdpSocket>> {
    (0..count)
        .map(|_| {
            UdpSocket::bind(SocketAddr::new(address, 0), options)
                .with_context(|| format!("cannot open a socket at {address}"))
        })
        .collect()
}

/// The peer of client `index` of `clients`: neighbours share one, so that what it sends to them leaves together.
pub const fn peer_of(index: usize, clients: usize, peers: usize) -> usize {
    index * peers / clients
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
        Failure::BidDown => format!("the challenge to {step} lacks what its nonce promises"),
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
            "a quota is used up: raise it (limits.allocations_per_user, limits.allocations_per_address, \
             limits.share_per_user), or lower --allocations"
        }
        (Failure::Refused(508), _) => {
            "the server has no relay port left: widen its range (relay.ports), or lower --allocations"
        }
        (Failure::Timeout, Step::Allocate) => {
            "the server is overloaded, datagrams are lost on the way, or so many clients of one address are too many for \
             it (limits.unauthenticated_per_address = 0)"
        }
        (Failure::Timeout, _) => "the server is overloaded, or datagrams are lost on the way",
        (Failure::BidDown, _) => "somebody on the way to the server weakens the authentication",
        (Failure::Integrity, _) => "the password is wrong, or somebody else answered",
        _ => "see the server's log",
    };
    format!("{what}: {remedy}")
}
