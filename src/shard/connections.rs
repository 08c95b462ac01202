//! TCP allocations (RFC 6062): the listeners of relayed addresses, and connections with peers until a connection of the
//! client carries their data ([`pipe`](super::pipe)).
//!
//! A connection that waits is a socket and nothing else: what its peer sends stays in the kernel, whose window closes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ahash::RandomState;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;

use crate::access::PermittedPeer;
use crate::base::addr::canonical;
use crate::base::{Clock, FiveTuple, Now, Pii, RelayedAddress};
use crate::net::{Poller, relay_connector, relay_listener};
use crate::turn::{AllocationId, ConnectionId, OpenError, Opened};
use crate::wire::{Class, Message, Method};

use super::engine::{STREAM, Shard};
use super::relays::{Asked, Lease, Relays};

/// Connections that the kernel has made and nobody has accepted: a flood of a relayed address waits here, and the
/// kernel answers it with cookies.
const BACKLOG: i32 = 64;

/// Connections that one relayed address accepts in a turn.
const ACCEPTS: usize = 16;

/// How long a relayed address accepts nobody when descriptors have run out.
const PAUSE: Duration = Duration::from_secs(1);

/// The first bytes of a ConnectionBind request (RFC 8489 §5).
const CONNECTION_BIND: [u8; 2] = [0x00, 0x0B];

/// A shard's sockets of TCP allocations.
pub(super) struct Connections {
    listeners: HashMap<AllocationId, Listening, RandomState>,
    peers: HashMap<ConnectionId, Peer, RandomState>,
    /// The connection whose data the client is about to send, and the client, within one input.
    bound: Option<(ConnectionId, FiveTuple)>,
}

struct Listening {
    socket: std::net::TcpListener,
    lease: Lease,
}

struct Peer {
    /// None while it is being made, and once it is bound.
    stream: Option<TcpStream>,
    /// Tells the task that makes it, or copies its data, that it is over.
    over: Rc<Notify>,
}

impl Connections {
    pub fn new(hasher: RandomState) -> Self {
        Self {
            listeners: HashMap::with_hasher(hasher.clone()),
            peers: HashMap::with_hasher(hasher),
            bound: None,
        }
    }

    /// Reserves quota and a port, listens there and watches the listener.
    ///
    /// # Errors
    /// A quota is used up, or no port can be had.
    pub fn listen(
        &mut self,
        now: Instant,
        asked: Asked,
        relays: &mut Relays,
        poller: &Poller,
    ) -> Result<Opened, OpenError> {
        let id = asked.id;
        let bind = |local| relay_listener(local, BACKLOG);
        let (lease, socket) = relays.lease(now, asked, poller, bind)?;
        lease.set_listening(true);
        let relayed = RelayedAddress(lease.addresses().external);
        self.listeners.insert(id, Listening { socket, lease });
        Ok(relayed.into())
    }

    /// Closes the listener of `id` and gives back what opening it reserved. Nothing happens if there is none.
    pub fn stop_listening(
        &mut self,
        now: Instant,
        id: AllocationId,
        relays: &mut Relays,
        poller: &Poller,
    ) {
        if let Some(Listening { socket, lease }) = self.listeners.remove(&id) {
            lease.set_listening(false);
            poller.remove(&socket);
            // Closed before the port is free again, or the next owner could not bind it.
            drop(socket);
            relays.give_back(now, lease);
        }
    }

    /// Where the listener of `id` is bound.
    pub fn listener_of(&self, id: AllocationId) -> Option<SocketAddr> {
        let listening = self.listeners.get(&id)?;
        Some(listening.lease.addresses().local)
    }

    /// Closes `connection`, whatever becomes of it at the moment.
    pub fn close(&mut self, connection: ConnectionId) {
        if let Some(peer) = self.peers.remove(&connection) {
            peer.over.notify_one();
        }
    }

    /// What the client on `five_tuple` sends next is for `connection`.
    pub const fn bind(&mut self, connection: ConnectionId, five_tuple: FiveTuple) {
        self.bound = Some((connection, five_tuple));
    }

    /// The connection that the last input of `five_tuple` was bound to.
    pub fn take_bound(&mut self, five_tuple: FiveTuple) -> Option<ConnectionId> {
        let (connection, client) = self.bound.take()?;
        debug_assert!(client == five_tuple, "nobody else has sent anything");
        Some(connection)
    }

    /// The socket of a connection that is bound, and what tells that it is over.
    pub fn take_peer(&mut self, connection: ConnectionId) -> Option<(TcpStream, Rc<Notify>)> {
        let peer = self.peers.get_mut(&connection)?;
        Some((peer.stream.take()?, Rc::clone(&peer.over)))
    }

    /// Adds a connection, which is being made or waits to be bound.
    fn add(&mut self, connection: ConnectionId, stream: Option<TcpStream>) -> Rc<Notify> {
        let over = Rc::new(Notify::new());
        let peer = Peer {
            stream,
            over: Rc::clone(&over),
        };
        self.peers.insert(connection, peer);
        over
    }
}

impl Shard {
    /// Begins a connection to `peer` from the relayed address of `allocation`.
    pub(super) fn connect_peer(
        &mut self,
        now: Now,
        connection: ConnectionId,
        allocation: AllocationId,
        peer: PermittedPeer,
    ) {
        let local = self.connections.listener_of(allocation);
        let ends = local.zip(self.road_to(peer));
        let (Some((local, target)), Some(shard)) = (ends, self.itself.upgrade()) else {
            // An own relayed address that nobody has, and that the kernel must not look for either.
            self.server.handle_peer_connected(now, connection, false);
            return;
        };
        let over = self.connections.add(connection, None);
        tokio::task::spawn_local(async move {
            let made = tokio::select! {
                () = over.notified() => return,
                made = connect(local, target) => made,
            };
            let mut shard = shard.borrow_mut();
            let made = match made {
                Ok(stream) => match shard.connections.peers.get_mut(&connection) {
                    Some(peer) => {
                        peer.stream = Some(stream);
                        true
                    }
                    None => return,
                },
                Err(error) => {
                    tracing::debug!(peer = %Pii(target), %error, "cannot connect to a peer");
                    false
                }
            };
            let now = Clock.now();
            shard.server.handle_peer_connected(now, connection, made);
            shard.drain_outputs(now);
        });
    }

    /// Where the kernel finds `peer`: a TCP relayed address of ours by the address it is bound to. No other of our
    /// relayed addresses is reached, whatever listens there.
    fn road_to(&self, peer: PermittedPeer) -> Option<SocketAddr> {
        let own = (peer.may_be_own_relay())
            .then(|| self.relays.listener_of(peer.address()))
            .flatten();
        own.or_else(|| peer.may_use_kernel().then_some(peer.address()))
    }

    /// Accepts the peers that have connected to the relayed address of `id`, some at a time. Those whom the client does
    /// not expect are closed at once.
    pub(super) fn accept_peers(&mut self, now: Now, id: AllocationId) {
        for _ in 0..ACCEPTS {
            let Some(listening) = self.connections.listeners.get(&id) else {
                return;
            };
            let (stream, from) = match listening.socket.accept() {
                Ok((stream, from)) => (stream, canonical(from)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => {
                        self.pause_accepting(id, &error);
                        return;
                    }
                },
            };
            let own = listening.lease.pool().listener_at(from);
            let peer = own.unwrap_or(from);
            let waits = self
                .server
                .handle_peer_accepted(now, id, peer, own.is_some());
            if let Some(connection) = waits {
                match watched(stream) {
                    Ok(stream) => drop(self.connections.add(connection, Some(stream))),
                    Err(_) => self.server.handle_connection_closed(now, connection),
                }
            }
            self.drain_outputs(now);
        }
    }

    /// Does not look at the listener of `id` for a while: it would be ready again and again.
    fn pause_accepting(&self, id: AllocationId, error: &io::Error) {
        let Some(listening) = self.connections.listeners.get(&id) else {
            return;
        };
        tracing::warn!(
            %error,
            "a TCP allocation accepts nobody for a moment; if this says \"too many open files\", raise LimitNOFILE"
        );
        self.poller.remove(&listening.socket);
        let shard = Weak::clone(&self.itself);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(PAUSE).await;
            let Some(shard) = shard.upgrade() else {
                return;
            };
            let shard = shard.borrow();
            if let Some(listening) = shard.connections.listeners.get(&id) {
                let _ = shard.poller.add(&listening.socket, id.to_bits());
            }
        });
    }

    /// The shard that has the connection which the frame in the slot of streams asks for, if that is another one.
    pub(super) fn home_of(&self, from: FiveTuple, frame: Range<usize>) -> Option<u8> {
        let frame = self.batches[STREAM].bytes(0, frame);
        if frame.get(..2) != Some(&CONNECTION_BIND) {
            return None;
        }
        let message = Message::parse(frame).ok()?;
        debug_assert!(
            (message.class(), message.method()) == (Class::Request, Method::ConnectionBind)
        );
        let home = ConnectionId(message.connection_id().ok()??).shard();
        self.parcels.neighbour(home)?;
        // The client of an allocation stays with it, and is refused.
        (!self.server.has_allocation(from)).then_some(home)
    }

    /// Either end of `connection` is gone, and the other with it.
    pub(super) fn end_connection(&mut self, connection: ConnectionId) {
        let now = Clock.now();
        self.connections.close(connection);
        self.server.handle_connection_closed(now, connection);
        self.drain_outputs(now);
    }
}

async fn connect(local: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(relay_connector(local)?);
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn watched(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    TcpStream::from_std(stream)
}

/// For tasks that outlive a turn.
pub(super) type Shared = Rc<RefCell<Shard>>;
