//! Messages in a byte stream (RFC 8489 §6.2.2, RFC 8656 §12.5).

use super::{Kind, MAGIC_COOKIE, STUN_HEADER, channel_data, classify};

/// What stands at the start of the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Not yet a whole frame: at least this many bytes in total are needed before asking again.
    Needs(usize),
    /// One frame.
    Complete {
        /// Bytes of the message itself.
        message: usize,
        /// Bytes of the message and its padding: where the next frame starts.
        total: usize,
    },
    /// Neither STUN nor ChannelData: the stream is out of step for good.
    Invalid,
}

/// Finds the first frame. STUN messages are as long as their header says; ChannelData is padded to four bytes.
pub fn next_frame(bytes: &[u8]) -> Frame {
    match classify(bytes) {
        Kind::Other if bytes.is_empty() => Frame::Needs(channel_data::HEADER),
        Kind::Other => Frame::Invalid,
        Kind::ChannelData => match bytes.get(2..4) {
            Some(&[high, low]) => {
                let message = channel_data::HEADER + usize::from(u16::from_be_bytes([high, low]));
                complete(bytes, message, message.next_multiple_of(4))
            }
            _ => Frame::Needs(channel_data::HEADER),
        },
        Kind::Stun => {
            let Some(&[_, _, high, low, c0, c1, c2, c3]) = bytes.first_chunk::<8>() else {
                return Frame::Needs(STUN_HEADER);
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if u32::from_be_bytes([c0, c1, c2, c3]) != MAGIC_COOKIE || length % 4 != 0 {
                return Frame::Invalid;
            }
            complete(bytes, STUN_HEADER + length, STUN_HEADER + length)
        }
    }
}

fn complete(bytes: &[u8], message: usize, total: usize) -> Frame {
    if bytes.len() < total {
        Frame::Needs(total)
    } else {
        Frame::Complete { message, total }
    }
}
