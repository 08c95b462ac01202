//! Whether a relay socket is asked for DSCP and ECN: decided by what arrives on it.
//!
//! Asking costs a twentieth of a packet, and nearly nobody marks anything. Whoever does begins with it, so a socket is
//! asked from the start on and for as long as marks come, and then for a few messages now and again. A flow that can
//! say that it met with congestion is marked all along.

use crate::net::Received;

/// Messages without a mark after which the socket is asked no more: more than finding a way to the peer takes.
const PATIENCE: u16 = 256;

/// The same for a look at a socket that is not asked.
const LOOK: u16 = 32;

/// Messages between two looks.
const PAUSE: u16 = 1024;

/// What one socket has shown so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    is_asked: bool,
    /// Messages until that changes.
    left: u16,
}

impl Default for Marks {
    /// Of a socket that is asked.
    fn default() -> Self {
        Self {
            is_asked: true,
            left: PATIENCE,
        }
    }
}

impl Marks {
    /// Takes note of what one call received; whether to ask from now on, if that changes.
    pub fn observe<'a>(&mut self, received: impl Iterator<Item = &'a Received>) -> Option<bool> {
        for message in received {
            self.left = match message.tos {
                0 => self.left.saturating_sub(1),
                _ => PATIENCE,
            };
        }
        if self.left > 0 {
            return None;
        }
        self.is_asked = !self.is_asked;
        self.left = if self.is_asked { LOOK } else { PAUSE };
        Some(self.is_asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tos: u8) -> Received {
        Received {
            from: ([192, 0, 2, 1], 9).into(),
            local: None,
            len: 200,
            datagram_bytes: 200,
            truncated: false,
            tos,
        }
    }

    /// Messages of `tos` until something changes, and what then.
    fn until_change(marks: &mut Marks, tos: u8) -> Option<(usize, bool)> {
        (1..5000).find_map(|count| Some((count, marks.observe([message(tos)].iter())?)))
    }

    #[test]
    fn marks_are_looked_for_now_and_again_where_none_come() {
        let mut marks = Marks::default();
        assert_eq!(until_change(&mut marks, 0), Some((256, false)));
        for _ in 0..3 {
            assert_eq!(until_change(&mut marks, 0), Some((1024, true)));
            assert_eq!(until_change(&mut marks, 0), Some((32, false)));
        }
    }

    #[test]
    fn whoever_marks_is_asked_for_it() {
        let mut marks = Marks::default();
        assert_eq!(until_change(&mut marks, 0xB8), None);
        // Found by a look, it counts as from the start.
        while until_change(&mut marks, 0) != Some((1024, true)) {}
        assert_eq!(marks.observe([message(0x03)].iter()), None);
        assert_eq!(until_change(&mut marks, 0), Some((256, false)));
        // One in a hundred is enough.
        let mut marks = Marks::default();
        for _ in 0..100 {
            let some: Vec<_> = (0..100).map(|at| message(u8::from(at == 50))).collect();
            assert_eq!(marks.observe(some.iter()), None);
        }
    }
}
