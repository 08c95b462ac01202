//! TCP and TLS clients: one local task each, on the shard's own thread.
//!
//! A connection that waits costs no buffer: every read goes to the shard's one stream slot, and only what is left of a
//! half frame is kept. Frames for a client leave straight from where they arrived. What waits for a client that does not
//! read is bounded: the oldest media goes first, and a client that lets answers pile up is disconnected.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::base::{Clock, FiveTuple, Pii, Transport};
use crate::net::{Batch, HEADROOM, MAX_DATAGRAM, Outgoing};
use crate::stream::{ClientIo, ClientStream};
use crate::turn::ConnectionId;
use crate::wire::framing::{Frame, next_frame};

use super::engine::{STREAM, Shard};
use super::pipe;
use super::queue::Queue;

/// How long a connection that has ended may take to hand over what waits for the client.
const LINGER: Duration = Duration::from_secs(1);

/// The longest frame that is waited for from a client without an allocation, in bytes. No request is as long, and what
/// strangers may leave half finished bounds the memory that they hold.
const FRAME_WITHOUT_ALLOCATION: usize = 4096;

/// Slots full of frames that one connection may send before the others have their turn.
const FILLS_PER_TURN: usize = 2;

/// Frames of all stream clients together between two turns of the sockets: as many as one socket's datagrams in a turn.
/// What dozens of clients have sent ahead would else come before the next packet of anybody's call.
pub(super) const STREAM_CREDIT: usize = 64;

/// How much is read at once from a client without an allocation behind what is kept, in bytes: whole requests, and few
/// enough that nobody else waits for long.
const READ_WITHOUT_ALLOCATION: usize = 1024;

/// How often, and after what pause, it is looked again whether a connection of the same ends is over.
const VACANCY_LOOKS: u32 = 25;
const VACANCY_PAUSE: Duration = Duration::from_millis(20);

/// Pieces that one write gathers: more frames than a turn usually brings for one client.
const PIECES_PER_WRITE: usize = 64;

/// A frame of application data on its way to a stream client, in the current batch.
pub(super) struct ToStream {
    pub client: Rc<Client>,
    /// Keeps frames of one client in order.
    pub sequence: u32,
    pub outgoing: Outgoing,
}

/// What the shard and the task of a stream client share.
pub(super) struct Client {
    io: RefCell<ClientIo>,
    /// What the socket did not take.
    queue: RefCell<Queue>,
    /// The client's task.
    task: RefCell<Option<Waker>>,
    /// The task has written everything and wants to know of more.
    waits: Cell<bool>,
    /// The start of a frame whose end has not come yet.
    partial: RefCell<Vec<u8>>,
    pub five_tuple: FiveTuple,
    /// Whether another process has the connection, too.
    place: Cell<Place>,
}

/// In which process a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Here,
    /// In another one as well, which may go on with it.
    Exported,
    /// In another one.
    Gone,
}

impl Client {
    fn new(io: ClientIo, partial: Vec<u8>, queue: Queue, five_tuple: FiveTuple) -> Self {
        Self {
            five_tuple,
            io: RefCell::new(io),
            queue: RefCell::new(queue),
            task: RefCell::default(),
            waits: Cell::new(false),
            partial: RefCell::new(partial),
            place: Cell::default(),
        }
    }

    /// The connection for another process: its socket, what it began to say, and what waits for it.
    ///
    /// # Errors
    /// Descriptors ran out, or it is one of TLS.
    pub fn export(&self) -> io::Result<(OwnedFd, Vec<u8>, Queue)> {
        let socket = self.io.borrow().share()?;
        self.place.set(Place::Exported);
        Ok((
            socket,
            self.partial.borrow().clone(),
            self.queue.borrow().clone(),
        ))
    }

    /// Whom the socket is open to: the client, or a proxy in front of it.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.io.borrow().peer()
    }

    /// Another process goes on with it: its task ends and says nothing to the client. False if none has it.
    pub fn leave(&self) -> bool {
        let gone = self.place.get() != Place::Here;
        if gone {
            self.place.set(Place::Gone);
            self.wake_always();
        }
        gone
    }

    /// This process goes on with it.
    pub fn thaw(&self) {
        self.place.set(Place::Here);
        self.wake_always();
    }

    fn wake_always(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    /// Writes frames straight from the batch, and queues what the socket does not take; how many older datagrams were
    /// dropped for that.
    pub fn send(&self, batch: &Batch, items: &[ToStream]) -> u64 {
        if self.place.get() != Place::Here {
            // Half a frame of this process would end in one of the other's.
            return items.len() as u64;
        }
        let mut io = self.io.borrow_mut();
        let mut queue = self.queue.borrow_mut();
        let (taken, begun) = if queue.is_empty() && !io.is_unflushed() {
            write(&mut io, batch, items)
        } else {
            (0, 0)
        };
        let mut dropped = 0;
        let mut written = begun;
        for item in items.get(taken..).unwrap_or_default() {
            dropped += queue.push_media(&batch.pieces(&item.outgoing), written);
            written = 0;
        }
        if !queue.is_empty() || io.is_unflushed() {
            self.wake();
        }
        dropped
    }

    /// Queues an answer.
    pub fn answer(&self, message: &[u8]) {
        self.queue.borrow_mut().push_answer(message);
        self.wake();
    }

    fn wake(&self) {
        if self.waits.take()
            && let Some(task) = &*self.task.borrow()
        {
            task.wake_by_ref();
        }
    }

    /// Wakes the task of `cx` when something is queued next.
    fn notify(&self, cx: &Context<'_>) {
        self.waits.set(true);
        let mut task = self.task.borrow_mut();
        if !(task.as_ref()).is_some_and(|task| task.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
    }

    /// Writes until nothing waits, neither here nor in TLS.
    fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.io.borrow_mut();
        let mut queue = self.queue.borrow_mut();
        while !queue.is_empty() {
            let slices = if io.transport() == Transport::Tls {
                // A record each: there are clients that take one for a message.
                queue.first_frame()
            } else {
                queue.slices()
            };
            let written = ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            queue.advance(written);
        }
        if io.is_unflushed() {
            ready!(Pin::new(&mut *io).poll_flush(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes frames until the socket is full: how many whole ones, and bytes of the next.
///
/// An error is the task's to find: it writes what is queued.
fn write(io: &mut ClientIo, batch: &Batch, items: &[ToStream]) -> (usize, usize) {
    let mut taken = 0;
    while taken < items.len() {
        let rest = items.get(taken..).unwrap_or_default();
        let mut slices = [IoSlice::new(&[]); PIECES_PER_WRITE];
        let mut frames = [0; PIECES_PER_WRITE];
        let (mut count, mut bytes) = (0, 0);
        for (item, frame) in rest.iter().zip(&mut frames) {
            let pieces = batch.pieces(&item.outgoing);
            if count + pieces.len() > slices.len() {
                break;
            }
            for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                if let Some(slice) = slices.get_mut(count) {
                    *slice = IoSlice::new(piece);
                }
                count += 1;
                *frame += 1;
                bytes += piece.len();
            }
        }
        let written = io.try_write_frames(slices.get(..count).unwrap_or_default(), &frames);
        let written = written.unwrap_or(0);
        let mut left = written;
        for item in rest {
            let pieces = batch.pieces(&item.outgoing);
            let length = pieces.iter().map(|piece| piece.len()).sum();
            if left < length {
                break;
            }
            left -= length;
            taken += 1;
        }
        if written < bytes {
            return (taken, left);
        }
    }
    (taken, 0)
}

/// Serves one client until its connection ends; its allocation ends with it.
pub(super) async fn serve(shard: Rc<RefCell<Shard>>, stream: ClientStream) {
    serve_on(shard, stream, Queue::default()).await;
}

/// The same, for one for whom something waits.
pub(super) async fn serve_on(shard: Rc<RefCell<Shard>>, stream: ClientStream, queue: Queue) {
    let transport = stream.transport;
    let Some(listener) = shard.borrow_mut().intern_stream(stream.local) else {
        return;
    };
    let five_tuple = FiveTuple::new(transport, stream.client, listener);
    if !is_vacant(&shard, five_tuple).await {
        tracing::warn!(
            client = %Pii(stream.client),
            "proxies tell of two connections of one client address and port: the second one is closed"
        );
        return;
    }
    let local = stream.local;
    let mut stream = stream;
    let partial = std::mem::take(&mut stream.received);
    let server_name = stream.server_name.take();
    let Ok(io) = stream.into_io() else {
        return;
    };
    let unparsed = !partial.is_empty();
    let client = Rc::new(Client::new(io, partial, queue, five_tuple));
    let idle_after = {
        let mut shard = shard.borrow_mut();
        shard.stream_connections[transport as usize] += 1;
        shard.streams.insert(five_tuple, Rc::clone(&client));
        if let Some(name) = &server_name {
            shard.server.handle_client_named(five_tuple, name);
        }
        shard.stream_idle
    };
    let mut connection = Connection {
        shard: Rc::clone(&shard),
        five_tuple,
        client,
        unparsed,
        ended: None,
        turns: None,
        departs: None,
        drained: false,
        active: false,
        idle_after,
        idle: Box::pin(tokio::time::sleep(idle_after)),
    };
    let end = poll_fn(|cx| connection.poll(cx)).await;
    tracing::trace!(?end, "stream client gone");
    if let Some(bound) = connection.turns.take() {
        // Nobody else is to have it, and what it was answered so far goes first.
        {
            let mut shard = shard.borrow_mut();
            shard.streams.remove(&five_tuple);
            shard.server.handle_client_left(five_tuple);
        }
        let written = tokio::time::timeout(LINGER, poll_fn(|cx| connection.client.poll_write(cx)));
        let written = matches!(written.await, Ok(Ok(())));
        let rest = std::mem::take(&mut *connection.client.partial.borrow_mut());
        let Connection { client, .. } = connection;
        let io = Rc::into_inner(client).map(|client| client.io.into_inner());
        match io.filter(|_| written) {
            Some(io) => pipe::relay(&shard, bound, io, rest).await,
            None => shard.borrow_mut().end_connection(bound),
        }
        shard.borrow_mut().stream_connections[transport as usize] -= 1;
        return;
    }
    if connection.client.place.get() == Place::Gone {
        // Whatever is done to the socket is done to the other process's, too.
        shard.borrow_mut().stream_connections[transport as usize] -= 1;
        return;
    }

    if let Some(to) = connection.departs {
        connection.depart(to, local);
        return;
    }
    {
        let mut shard = shard.borrow_mut();
        let now = Clock.now();
        shard.server.handle_client_closed(now, five_tuple);
        shard.drain_outputs(now);
        shard.streams.remove(&five_tuple);
    }
    // The client may have ended only its own half: what it was answered before that is still for it.
    let _ = tokio::time::timeout(LINGER, poll_fn(|cx| connection.poll_close(cx))).await;
    shard.borrow_mut().stream_connections[transport as usize] -= 1;
}

/// Whether nobody has `five_tuple`, after a while in which a connection that is over may be seen to be.
///
/// What proxies tell is no five-tuple of this host's: ports of one client towards two addresses of theirs may be the same,
/// and whoever shared one with another client would act for them.
async fn is_vacant(shard: &Rc<RefCell<Shard>>, five_tuple: FiveTuple) -> bool {
    let vacant = || !shard.borrow().streams.contains_key(&five_tuple);
    for _ in 0..VACANCY_LOOKS {
        if vacant() {
            return true;
        }
        tokio::time::sleep(VACANCY_PAUSE).await;
    }
    vacant()
}

/// Why reading stopped.
enum Fill {
    /// There is no more room.
    Full,
    /// There is no more to read, and the task is woken when there is.
    Drained,
    /// Nothing comes any more.
    Ended(io::Result<()>),
}

/// Reads into `room` from `filled` on: one call takes all that plain TCP has, but only one record of TLS.
fn fill(cx: &mut Context<'_>, io: &mut ClientIo, room: &mut [u8], filled: &mut usize) -> Fill {
    while *filled < room.len() {
        let mut buffer = ReadBuf::new(&mut room[*filled..]);
        match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
            Poll::Pending => return Fill::Drained,
            Poll::Ready(Err(error)) => return Fill::Ended(Err(error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Fill::Ended(Ok(())),
            Poll::Ready(Ok(())) => *filled += buffer.filled().len(),
        }
    }
    Fill::Full
}

struct Connection {
    shard: Rc<RefCell<Shard>>,
    five_tuple: FiveTuple,
    client: Rc<Client>,
    /// What is left of a frame came with the connection and was not looked at yet.
    unparsed: bool,
    /// How the stream ended behind the bytes that were read last.
    ended: Option<io::Result<()>>,
    /// Its bytes are those of this connection with a peer from now on (RFC 6062 §5.4); what it has sent beyond messages is in
    /// the client's `partial`.
    turns: Option<ConnectionId>,
    /// The shard that goes on with it: what is left of the bytes is for that.
    departs: Option<u8>,
    /// This poll has emptied the socket, which wakes the task when more comes.
    drained: bool,
    /// A whole message came since the idle timer was set.
    active: bool,
    idle_after: Duration,
    idle: Pin<Box<Sleep>>,
}

impl Connection {
    /// Writes what waits, reads what came, and ends with the connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.client.place.get() {
            Place::Gone => return Poll::Ready(Ok(())),
            Place::Exported => return self.wait(cx),
            Place::Here if self.is_frozen() => return self.wait(cx),
            Place::Here => {}
        }
        {
            let shard = self.shard.borrow();
            if shard.stream_credit == 0 {
                shard.wake.notify_one();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.drained = false;
        for _ in 0..FILLS_PER_TURN {
            if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                return Poll::Ready(Err(error));
            }
            // One read can bring more requests than answers may wait, so this counts only what the socket refused.
            if self.client.queue.borrow().is_neglected() {
                return Poll::Ready(Err(io::Error::other(
                    "the client does not read its answers",
                )));
            }
            if self.drained {
                return self.poll_idle(cx);
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(_)) if self.departs.is_some() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.poll_idle(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Moves the connection to another shard, with what it has sent and what waits for it.
    fn depart(self, to: u8, local: SocketAddr) {
        let mut shard = self.shard.borrow_mut();
        shard.streams.remove(&self.five_tuple);
        shard.server.handle_client_left(self.five_tuple);
        shard.stream_connections[self.five_tuple.transport() as usize] -= 1;
        // The shard's and this one are all there are between two turns.
        let Some(client) = Rc::into_inner(self.client) else {
            return;
        };
        let received = client.partial.into_inner();
        let parked = (client.io.into_inner()).park(self.five_tuple.client(), local, received);
        match parked {
            Ok(stream) => shard.hand_on(to, stream, client.queue.into_inner()),
            Err(error) => tracing::debug!(%error, "a connection does not leave its shard"),
        }
    }

    /// Whether another process may be about to go on with the connection.
    fn is_frozen(&self) -> bool {
        self.five_tuple.transport() == Transport::Tcp && self.shard.borrow().frozen
    }

    /// Does nothing until somebody wakes this task.
    fn wait(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.client.notify(cx);
        Poll::Pending
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.client.poll_write(cx))?;
        // Whoever queues next wakes this task.
        self.client.notify(cx);
        Poll::Ready(Ok(()))
    }

    /// Writes what waits to the last byte, then closes.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.client.poll_write(cx))?;
        Pin::new(&mut *self.client.io.borrow_mut()).poll_shutdown(cx)
    }

    /// Reads what is there and handles the frames it completes; false at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(end) = self.ended.take() {
            return Poll::Ready(end.map(|()| false));
        }
        let mut shard = self.shard.borrow_mut();
        let mut partial = self.client.partial.borrow_mut();
        let kept = partial.len();
        let most = if shard.server.has_allocation(self.five_tuple) {
            MAX_DATAGRAM
        } else {
            MAX_DATAGRAM.min(kept + READ_WITHOUT_ALLOCATION)
        };
        let slot = shard.batches[STREAM].buffer_mut(0);
        let room = &mut slot[HEADROOM..HEADROOM + most];
        let mut filled = kept;
        if !std::mem::take(&mut self.unparsed) {
            let fill = fill(cx, &mut self.client.io.borrow_mut(), room, &mut filled);
            match fill {
                Fill::Full => {}
                Fill::Drained if filled == kept => return Poll::Pending,
                Fill::Drained => self.drained = true,
                Fill::Ended(end) if filled == kept => return Poll::Ready(end.map(|()| false)),
                Fill::Ended(end) => self.ended = Some(end),
            }
        }
        room[..kept].copy_from_slice(&partial);
        partial.clear();

        let now = Clock.now();
        let end = HEADROOM + filled;
        let mut at = HEADROOM;
        let outcome = loop {
            match next_frame(shard.batches[STREAM].bytes(0, at..end)) {
                Frame::Complete { message: _, total } => {
                    self.departs = shard.home_of(self.five_tuple, at..at + total);
                    if self.departs.is_none() {
                        shard.stream_input(now, self.five_tuple, at, total);
                        self.departs = shard.departure.take();
                    }
                    if self.departs.is_some() {
                        break Ok(true);
                    }
                    at += total;
                    self.active = true;
                    shard.stream_credit = shard.stream_credit.saturating_sub(1);
                    self.turns = shard.connections.take_bound(self.five_tuple);
                    if self.turns.is_some() {
                        break Ok(false);
                    }
                }
                Frame::Needs(bytes) if bytes <= FRAME_WITHOUT_ALLOCATION => break Ok(true),
                Frame::Needs(bytes)
                    if bytes <= MAX_DATAGRAM && shard.server.has_allocation(self.five_tuple) =>
                {
                    break Ok(true);
                }
                Frame::Needs(_) | Frame::Invalid => {
                    break Err(io::Error::other("the stream is not STUN"));
                }
            }
        };
        shard.flush();
        partial.extend_from_slice(shard.batches[STREAM].bytes(0, at..end));
        if partial.is_empty() && partial.capacity() > 4096 {
            *partial = Vec::new();
        }
        Poll::Ready(outcome)
    }

    /// Ends a connection that neither says anything whole nor has an allocation.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.idle.as_mut().poll(cx).is_ready() {
            let allocated = self.shard.borrow().server.has_allocation(self.five_tuple);
            if !std::mem::take(&mut self.active) && !allocated {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let next = tokio::time::Instant::now() + self.idle_after;
            self.idle.as_mut().reset(next);
        }
        Poll::Pending
    }
}
