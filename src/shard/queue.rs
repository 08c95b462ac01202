//! What waits to be written to one stream client: bounded, oldest media first to go, answers never.

use std::collections::VecDeque;
use std::io::IoSlice;

use serde::{Deserialize, Serialize};

/// Media that may wait for one client, in bytes: a second of video at 2 Mbit/s.
const MEDIA_BYTES: usize = 256 * 1024;

/// Answers that may wait for one client, in bytes.
const ANSWER_BYTES: usize = 64 * 1024;

/// What a full socket left over, in the order it leaves. Takes no memory while it is empty.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Queue {
    /// The frames' bytes, one behind the other.
    bytes: VecDeque<u8>,
    frames: VecDeque<Pending>,
    media_bytes: usize,
    answer_bytes: usize,
}

#[derive(Clone, Serialize, Deserialize)]
struct Pending {
    /// Bytes not written yet.
    waiting: usize,
    media: bool,
    /// Half on its way: it cannot be taken back, because the client waits for its end.
    begun: bool,
}

impl Queue {
    /// Queues a frame of application data, of which the first `written` bytes are on their way already, and returns how
    /// many older datagrams were dropped for it.
    pub fn push_media(&mut self, pieces: &[&[u8]], written: usize) -> u64 {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        debug_assert!(written < total && (written == 0 || self.is_empty()));
        let waiting = total - written;
        let dropped = self.make_room(waiting);
        let mut skipped = written;
        for piece in pieces {
            let skip = skipped.min(piece.len());
            skipped -= skip;
            self.bytes.extend(piece.get(skip..).unwrap_or_default());
        }
        self.media_bytes += waiting;
        self.frames.push_back(Pending {
            waiting,
            media: true,
            begun: written > 0,
        });
        dropped
    }

    /// Drops media, the oldest first, until `length` more bytes may wait; how many datagrams.
    fn make_room(&mut self, length: usize) -> u64 {
        let (mut dropped, mut index, mut at) = (0, 0, 0);
        while self.media_bytes + length > MEDIA_BYTES {
            let Some(frame) = self.frames.get(index) else {
                break;
            };
            let end = at + frame.waiting;
            if frame.media && !frame.begun {
                self.media_bytes -= frame.waiting;
                self.bytes.drain(at..end);
                self.frames.remove(index);
                dropped += 1;
            } else {
                at = end;
                index += 1;
            }
        }
        dropped
    }

    /// Queues an answer. Answers are never dropped; a client that does not read them is disconnected.
    pub fn push_answer(&mut self, bytes: &[u8]) {
        self.answer_bytes += bytes.len();
        self.bytes.extend(bytes);
        self.frames.push_back(Pending {
            waiting: bytes.len(),
            media: false,
            begun: false,
        });
    }

    /// What leaves next.
    pub fn slices(&self) -> [IoSlice<'_>; 2] {
        let (front, back) = self.bytes.as_slices();
        [IoSlice::new(front), IoSlice::new(back)]
    }

    /// What is left of the frame that leaves next.
    pub fn first_frame(&self) -> [IoSlice<'_>; 2] {
        let length = self.frames.front().map_or(0, |frame| frame.waiting);
        let (front, back) = self.bytes.as_slices();
        let (front, left) = match front.get(..length) {
            Some(front) => (front, 0),
            None => (front, length - front.len()),
        };
        [
            IoSlice::new(front),
            IoSlice::new(back.get(..left).unwrap_or(back)),
        ]
    }

    /// Takes `count` written bytes off the front.
    pub fn advance(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
        let mut left = count;
        while left > 0 {
            let Some(front) = self.frames.front_mut() else {
                break;
            };
            let taken = left.min(front.waiting);
            front.waiting -= taken;
            front.begun = true;
            left -= taken;
            let kind = if front.media {
                &mut self.media_bytes
            } else {
                &mut self.answer_bytes
            };
            *kind -= taken;
            if front.waiting == 0 {
                self.frames.pop_front();
            }
        }
        if self.bytes.is_empty() {
            *self = Self::default();
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether more answers wait than a client may leave unread.
    pub fn is_neglected(&self) -> bool {
        self.answer_bytes > ANSWER_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes up to `most` bytes off the front as a socket would.
    fn write(queue: &mut Queue, most: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = queue.slices().iter().flat_map(|s| s.to_vec()).collect();
        bytes.truncate(most);
        queue.advance(bytes.len());
        bytes
    }

    #[test]
    fn what_is_queued_leaves_in_order_whatever_the_socket_takes() {
        let mut queue = Queue::default();
        let (mut expected, mut written) = (Vec::new(), Vec::new());
        for number in 0..1000usize {
            let frame: Vec<u8> = (0..number % 97 + 1).map(|at| (at ^ number) as u8).collect();
            expected.extend_from_slice(&frame);
            if number.is_multiple_of(5) {
                queue.push_answer(&frame);
            } else {
                let (header, rest) = frame.split_at(frame.len().min(4));
                assert_eq!(queue.push_media(&[header, rest, &[]], 0), 0);
            }
            written.extend(write(&mut queue, number * 7919 % 61));
        }
        written.extend(write(&mut queue, usize::MAX));
        assert!(written == expected);
        assert!(queue.is_empty());
        assert_eq!((queue.media_bytes, queue.answer_bytes), (0, 0));
        assert_eq!((queue.bytes.capacity(), queue.frames.capacity()), (0, 0));
    }

    #[test]
    fn the_oldest_media_goes_and_what_is_half_written_stays() {
        let mut queue = Queue::default();
        // The socket took the header and one byte.
        assert_eq!(queue.push_media(&[&[1; 4], &[2; 9], &[3; 3]], 5), 0);
        queue.push_answer(&[9; 20]);
        let mut dropped = 0;
        for number in 0..1000u32 {
            dropped += queue.push_media(&[&number.to_be_bytes(), &[7; 1020]], 0);
        }
        // 256 KiB hold 256 frames of 1 KiB, of which the rest of the first one takes some bytes.
        assert_eq!(dropped, 1000 - 255);
        assert_eq!(write(&mut queue, 11), [[2; 8].as_slice(), &[3; 3]].concat());
        assert_eq!(write(&mut queue, 10), [9; 10]);
        // An answer that is half written is no obstacle for what is behind it.
        assert_eq!(queue.push_media(&[&[8; 1024]], 0), 0);
        assert_eq!(queue.push_media(&[&[8; 1024]], 0), 1);
        assert_eq!(write(&mut queue, 10), [9; 10]);
        assert_eq!(write(&mut queue, 4), 746u32.to_be_bytes());
    }

    #[test]
    fn answers_are_counted_until_they_are_written() {
        let mut queue = Queue::default();
        queue.push_answer(&[0; ANSWER_BYTES]);
        assert!(!queue.is_neglected());
        queue.push_answer(&[0]);
        assert!(queue.is_neglected());
        queue.push_media(&[&[1; MEDIA_BYTES]], 0);
        assert_eq!(queue.push_media(&[&[2; MEDIA_BYTES]], 0), 1);
        write(&mut queue, 1);
        assert!(!queue.is_neglected());
        write(&mut queue, ANSWER_BYTES);
        assert_eq!(queue.answer_bytes, 0);
        assert_eq!(write(&mut queue, usize::MAX), [2; MEDIA_BYTES]);
    }

    #[test]
    fn frames_can_be_told_apart() {
        let mut queue = Queue::default();
        queue.push_media(&[b"half"], 2);
        queue.push_answer(b"answer");
        queue.push_media(&[b"da", b"", b"ta"], 0);
        let mut frames = Vec::new();
        while !queue.is_empty() {
            let frame: Vec<u8> = queue
                .first_frame()
                .iter()
                .flat_map(|s| s.to_vec())
                .collect();
            queue.advance(frame.len());
            frames.push(frame);
        }
        assert_eq!(frames, [&b"lf"[..], b"answer", b"data"]);
        assert!(queue.first_frame().iter().all(|slice| slice.is_empty()));
    }
}
