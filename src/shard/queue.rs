//! What waits to be written to one stream client: bounded, oldest media first to go, answers never.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::AsyncWrite;

/// Media that may wait for one client, in bytes: a second of video at 2 Mbit/s.
const MEDIA_BYTES: usize = 256 * 1024;

/// Answers that may wait for one client, in bytes.
const ANSWER_BYTES: usize = 64 * 1024;

/// Frames one write gathers.
const FRAMES_PER_WRITE: usize = 32;

/// What waits to be written to one client.
#[derive(Default)]
pub(super) struct Queue {
    frames: RefCell<VecDeque<Pending>>,
    media_bytes: Cell<usize>,
    answer_bytes: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

struct Pending {
    bytes: Vec<u8>,
    written: usize,
    media: bool,
}

impl Queue {
    /// Queues application data behind its header, `padding` bytes behind it, and returns how many older datagrams were
    /// dropped for it.
    pub fn push_media(&self, header: &[u8], payload: &[u8], padding: usize) -> u64 {
        let mut bytes = Vec::with_capacity(header.len() + payload.len() + padding);
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len() + padding, 0);
        let mut frames = self.frames.borrow_mut();
        let mut dropped = 0;
        let mut waiting = self.media_bytes.get() + bytes.len();
        let mut index = 0;
        while waiting > MEDIA_BYTES {
            match frames.get(index) {
                None => break,
                // A frame that is half on its way cannot be taken back.
                Some(frame) if frame.media && frame.written == 0 => {
                    waiting -= frame.bytes.len();
                    frames.remove(index);
                    dropped += 1;
                }
                Some(_) => index += 1,
            }
        }
        self.media_bytes.set(waiting);
        frames.push_back(Pending {
            bytes,
            written: 0,
            media: true,
        });
        drop(frames);
        self.wake();
        dropped
    }

    /// Queues an answer. Answers are never dropped; a client that does not read them is disconnected.
    pub fn push_answer(&self, bytes: Vec<u8>) {
        self.answer_bytes.set(self.answer_bytes.get() + bytes.len());
        self.frames.borrow_mut().push_back(Pending {
            bytes,
            written: 0,
            media: false,
        });
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Takes `count` written bytes off the front.
    fn advance(&self, mut count: usize) {
        let mut frames = self.frames.borrow_mut();
        while count > 0 {
            let Some(front) = frames.front_mut() else {
                return;
            };
            let taken = count.min(front.bytes.len() - front.written);
            front.written += taken;
            count -= taken;
            if front.written == front.bytes.len() {
                let length = front.bytes.len();
                let bytes = if front.media {
                    &self.media_bytes
                } else {
                    &self.answer_bytes
                };
                bytes.set(bytes.get() - length);
                frames.pop_front();
            }
        }
        if frames.is_empty() && frames.capacity() > 64 {
            frames.shrink_to(16);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.borrow().is_empty()
    }

    /// Whether more answers wait than a client may leave unread.
    pub fn is_neglected(&self) -> bool {
        self.answer_bytes.get() > ANSWER_BYTES
    }

    /// Wakes the task of `cx` when something is queued next.
    pub fn notify(&self, cx: &Context<'_>) {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
    }

    /// Writes to `io` until nothing waits.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = {
                let frames = self.frames.borrow();
                let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE];
                let mut count = 0;
                for (slice, frame) in slices.iter_mut().zip(frames.iter()) {
                    *slice = IoSlice::new(frame.bytes.get(frame.written..).unwrap_or_default());
                    count += 1;
                }
                let slices = slices.get(..count).unwrap_or_default();
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}
