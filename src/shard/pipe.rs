//! The data of a TCP allocation: bytes between a client's data connection and a connection with a peer, as they are
//! (RFC 6062 §5.4, §5.5).
//!
//! Each direction reads into the shard's stream slot and writes from there; only what the other side does not take is
//! kept, and nothing more is read until it has left. So an idle connection has no buffer, and whoever reads slowly
//! slows its sender down through the windows of TCP.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::base::Clock;
use crate::stream::ClientIo;
use crate::turn::{ConnectionId, Direction};

use super::connections::Shared;
use super::engine::STREAM;

/// What is read at once, and so the most that is kept of a direction, in bytes.
const READ: usize = 16 * 1024;

/// Reads of one direction before others have their turn.
const READS_PER_TURN: usize = 4;

/// What counts as much as a frame between two turns of the sockets, in bytes.
const BYTES_PER_CREDIT: usize = 2048;

/// How long one side may be silent after the other has said its last word. Either side's end is the other's (RFC 6062
/// §5.5), but who has ended only its own half may wait for an answer.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// One direction.
#[derive(Default)]
struct Lane {
    /// What the other side did not take, from `at` on.
    kept: Vec<u8>,
    at: usize,
    /// There is no more to read.
    ended: bool,
    /// The other side knows.
    done: bool,
    /// Over its bandwidth until then.
    pause: Option<Pin<Box<Sleep>>>,
    /// Something was read since the other direction has looked.
    moved: bool,
}

/// Relays between `client` and the peer of `connection` until one of them ends, or the allocation. `first` was read
/// from the client already.
pub(super) async fn relay(
    shard: &Shared,
    connection: ConnectionId,
    mut client: ClientIo,
    first: Vec<u8>,
) {
    let taken = shard.borrow_mut().connections.take_peer(connection);
    let Some((mut peer, over)) = taken else {
        return;
    };
    if !first.is_empty() {
        let mut shard = shard.borrow_mut();
        let now = Clock.now();
        (shard.server).count_stream(now, connection, Direction::ToPeer, first.len());
        shard.settle(now);
    }
    let mut to_peer = Lane {
        kept: first,
        ..Lane::default()
    };
    let mut to_client = Lane::default();
    let mut silence: Option<Pin<Box<Sleep>>> = None;
    let copied = poll_fn(|cx| {
        if is_spent(shard, cx) {
            return Poll::Pending;
        }
        let up = Way {
            shard,
            connection,
            direction: Direction::ToPeer,
        };
        let down = Way {
            direction: Direction::ToClient,
            ..up
        };
        let ends = [
            up.poll(cx, &mut to_peer, &mut client, &mut peer),
            down.poll(cx, &mut to_client, &mut peer, &mut client),
        ];
        let mut done = 0;
        for end in ends {
            match end {
                Poll::Ready(Ok(())) => done += 1,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        let moved = std::mem::take(&mut to_peer.moved) | std::mem::take(&mut to_client.moved);
        match done {
            0 => Poll::Pending,
            1 => poll_silence(cx, &mut silence, moved),
            _ => Poll::Ready(Ok(())),
        }
    });
    let end = tokio::select! {
        () = over.notified() => Ok(()),
        end = copied => end,
    };
    tracing::trace!(?end, "a data connection ends");
    shard.borrow_mut().end_connection(connection);
}

/// Whether the streams have had their turn; this one goes on after the sockets.
fn is_spent(shard: &Shared, cx: &Context<'_>) -> bool {
    let shard = shard.borrow();
    let spent = shard.stream_credit == 0 && !shard.frozen;
    if spent {
        shard.wake.notify_one();
        cx.waker().wake_by_ref();
    }
    spent
}

/// Ends what one side has left and the other is silent on.
fn poll_silence(
    cx: &mut Context<'_>,
    silence: &mut Option<Pin<Box<Sleep>>>,
    moved: bool,
) -> Poll<io::Result<()>> {
    if moved {
        *silence = None;
    }
    let silence = silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED)));
    ready!(silence.as_mut().poll(cx));
    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
}

#[derive(Clone, Copy)]
struct Way<'a> {
    shard: &'a Shared,
    connection: ConnectionId,
    direction: Direction,
}

impl Way<'_> {
    /// Copies what there is; ready once `from` has ended and `to` knows it.
    fn poll<R, W>(
        self,
        cx: &mut Context<'_>,
        lane: &mut Lane,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if lane.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..READS_PER_TURN {
            while let Some(kept) = lane.kept.get(lane.at..).filter(|kept| !kept.is_empty()) {
                match ready!(Pin::new(&mut *to).poll_write(cx, kept))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => lane.at += written,
                }
            }
            lane.kept = Vec::new();
            lane.at = 0;
            if lane.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                lane.done = true;
                return Poll::Ready(Ok(()));
            }
            // TLS may hold what it was given.
            ready!(Pin::new(&mut *to).poll_flush(cx))?;
            if let Some(pause) = &mut lane.pause {
                ready!(pause.as_mut().poll(cx));
                lane.pause = None;
            }
            let pause = self.pause();
            if let Some(pause) = pause {
                lane.pause = Some(Box::pin(tokio::time::sleep(pause)));
                continue;
            }
            ready!(self.poll_once(cx, lane, from, to))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// How long the bandwidth has been used up for.
    fn pause(self) -> Option<Duration> {
        let mut shard = self.shard.borrow_mut();
        let now = Clock.now();
        shard
            .server
            .stream_pause(now, self.connection, self.direction)?;
        // What is shared may be funded at once.
        shard.settle(now);
        (shard.server).stream_pause(now, self.connection, self.direction)
    }

    /// Reads once, and writes what `to` takes.
    fn poll_once<R, W>(
        self,
        cx: &mut Context<'_>,
        lane: &mut Lane,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut shard = self.shard.borrow_mut();
        let slot = shard.batches[STREAM].buffer_mut(0);
        let mut room = ReadBuf::new(slot.get_mut(..READ).unwrap_or_default());
        match ready!(Pin::new(&mut *from).poll_read(cx, &mut room)) {
            Ok(()) => {}
            // TLS without its closing word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        let length = room.filled().len();
        if length == 0 {
            lane.ended = true;
            return Poll::Ready(Ok(()));
        }
        lane.moved = true;
        let now = Clock.now();
        (shard.server).count_stream(now, self.connection, self.direction, length);
        shard.settle(now);
        let credit = 1 + length / BYTES_PER_CREDIT;
        shard.stream_credit = shard.stream_credit.saturating_sub(credit);
        let read = shard.batches[STREAM].bytes(0, 0..length);
        let written = match Pin::new(&mut *to).poll_write(cx, read) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        lane.kept = read.get(written..).unwrap_or_default().to_vec();
        Poll::Ready(Ok(()))
    }
}
