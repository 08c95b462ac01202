//! TCP and TLS clients: one local task each, on the shard's own thread.
//!
//! A connection that waits costs no buffer: every read goes to the shard's one stream slot, and only what is left of a
//! half frame is kept. What waits for a client that does not read is bounded: the oldest media goes first, and a client
//! that lets answers pile up is disconnected.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::base::{Clock, FiveTuple};
use crate::net::{HEADROOM, MAX_DATAGRAM};
use crate::stream::{ClientIo, ClientStream};
use crate::wire::framing::{Frame, next_frame};

use super::engine::{STREAM, Shard};
use super::queue::Queue;

/// How long a connection without an allocation may stay silent.
const IDLE: Duration = Duration::from_secs(60);

/// How long a connection that has ended may take to hand over what waits for the client.
const LINGER: Duration = Duration::from_secs(1);

/// Reads one connection gets before the others have their turn.
const READS_PER_TURN: usize = 4;

/// Serves one client until its connection ends; its allocation ends with it.
pub(super) async fn serve(shard: Rc<RefCell<Shard>>, stream: ClientStream) {
    let (transport, client) = (stream.transport, stream.client);
    let Some(listener) = shard.borrow_mut().intern_stream(stream.local) else {
        return;
    };
    let five_tuple = FiveTuple::new(transport, client, listener);
    let queue = Rc::new(Queue::default());
    let mut stream = stream;
    let partial = std::mem::take(&mut stream.received);
    let Ok(io) = stream.into_io() else {
        return;
    };
    {
        let mut shard = shard.borrow_mut();
        shard.stream_connections[transport as usize] += 1;
        shard.streams.insert(five_tuple, Rc::clone(&queue));
    }
    let mut connection = Connection {
        shard: Rc::clone(&shard),
        five_tuple,
        queue,
        io,
        unparsed: !partial.is_empty(),
        partial,
        unflushed: false,
        active: true,
        idle: Box::pin(tokio::time::sleep(IDLE)),
    };
    let end = poll_fn(|cx| connection.poll(cx)).await;
    tracing::trace!(?end, "stream client gone");

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

struct Connection {
    shard: Rc<RefCell<Shard>>,
    five_tuple: FiveTuple,
    queue: Rc<Queue>,
    io: ClientIo,
    /// The start of a frame whose end has not come yet.
    partial: Vec<u8>,
    /// `partial` came with the connection and was not looked at yet.
    unparsed: bool,
    /// TLS holds bytes that the socket did not take yet.
    unflushed: bool,
    /// Something was read since the idle timer was set.
    active: bool,
    idle: Pin<Box<Sleep>>,
}

impl Connection {
    /// Writes what waits, reads what came, and ends with the connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..READS_PER_TURN {
            if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                return Poll::Ready(Err(error));
            }
            // One read can bring more requests than answers may wait, so this counts only what the socket refused.
            if self.queue.is_neglected() {
                return Poll::Ready(Err(io::Error::other(
                    "the client does not read its answers",
                )));
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.poll_idle(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Bytes that a full socket left in TLS count as unflushed however far the queue got.
        self.unflushed |= !self.queue.is_empty();
        ready!(self.queue.poll_write(cx, &mut self.io))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        // Whoever queues next wakes this task.
        self.queue.notify(cx);
        Poll::Pending
    }

    /// Writes what waits to the last byte, then closes.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_write(cx) {
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            _ if self.queue.is_empty() && !self.unflushed => {}
            _ => return Poll::Pending,
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// One read and the frames it completes; false at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut shard = self.shard.borrow_mut();
        let kept = self.partial.len();
        let slot = shard.batches[STREAM].buffer_mut(0);
        let room = &mut slot[HEADROOM..HEADROOM + MAX_DATAGRAM];
        let read = if std::mem::take(&mut self.unparsed) {
            0
        } else {
            let mut buffer = ReadBuf::new(&mut room[kept..]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(false));
            }
            buffer.filled().len()
        };
        room[..kept].copy_from_slice(&self.partial);
        self.partial.clear();
        self.active = true;

        let now = Clock.now();
        let end = HEADROOM + kept + read;
        let mut at = HEADROOM;
        let outcome = loop {
            match next_frame(shard.batches[STREAM].bytes(0, at..end)) {
                Frame::Complete { message: _, total } => {
                    shard.stream_input(now, self.five_tuple, at, total);
                    at += total;
                }
                Frame::Needs(bytes) if bytes <= MAX_DATAGRAM => break Ok(true),
                Frame::Needs(_) | Frame::Invalid => {
                    break Err(io::Error::other("the stream is not STUN"));
                }
            }
        };
        shard.flush();
        self.partial
            .extend_from_slice(shard.batches[STREAM].bytes(0, at..end));
        if self.partial.is_empty() && self.partial.capacity() > 4096 {
            self.partial = Vec::new();
        }
        Poll::Ready(outcome)
    }

    /// Ends a connection that neither speaks nor has an allocation.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.idle.as_mut().poll(cx).is_ready() {
            let allocated = self.shard.borrow().server.has_allocation(self.five_tuple);
            if !std::mem::take(&mut self.active) && !allocated {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.idle.as_mut().reset(tokio::time::Instant::now() + IDLE);
        }
        Poll::Pending
    }
}
