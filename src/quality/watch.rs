//! What hangs off an allocation and sees its datagrams.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::Direction;

use super::rtp::{self, Counts, Look, Streams};
use super::{Mode, Quality, Session, checks};

const BOTH: usize = Direction::ALL.len();

/// A moment that did not come.
const NEVER: u64 = u64::MAX;

const SECOND: u64 = 1_000_000_000;

/// How long one direction may wait for the other, and how long silence is none.
const PATIENCE: u64 = 10 * SECOND;

/// Media is looked at for this long when it begins, whatever the mode is.
const FIRST: u64 = 4 * SECOND;
/// After that, where it is sampled, for this long out of so long.
const WINDOW: u64 = 2 * SECOND;
const PERIOD: u64 = 8 * SECOND;

/// The content type of a DTLS handshake, and the high byte of all DTLS versions (RFC 6347 §4.1).
const HANDSHAKE: u8 = 22;
const DTLS: u8 = 254;

/// What an allocation's datagrams have told so far. It takes its memory when it is made and none after.
#[derive(Clone, Debug)]
pub struct Watch {
    /// When media is looked at: from, until.
    from: u64,
    until: u64,
    /// By [`Direction`], as what follows.
    last: [u64; BOTH],
    media_last: [u64; BOTH],
    first: [u64; BOTH],
    began: u64,
    /// The number of the window, and that of the latest before which something was not looked at.
    window: u32,
    anew: u32,
    dtls: [bool; BOTH],
    media: [bool; BOTH],
    checks: checks::Table,
    streams: Streams,
}

const _: () = assert!(size_of::<Watch>() <= 1536, "the bound of ARCHITECTURE.md");

impl Watch {
    /// Nothing was seen. `at`: nanoseconds since the server began, as everywhere here.
    pub const fn new(at: u64) -> Self {
        Self {
            from: 0,
            until: 0,
            last: [NEVER; BOTH],
            media_last: [NEVER; BOTH],
            first: [NEVER; BOTH],
            began: at,
            window: 0,
            anew: 0,
            dtls: [false; BOTH],
            media: [false; BOTH],
            checks: checks::Table::new(),
            streams: Streams::new(),
        }
    }

    /// Takes one datagram that is relayed in `direction`.
    pub fn observe(&mut self, mode: Mode, at: u64, direction: Direction, datagram: &[u8]) {
        let of = direction as usize;
        if self.last[of] == NEVER {
            self.first[of] = at;
        }
        self.last[of] = at;
        // RFC 7983 §7.
        match *datagram {
            [128..=191, second, ..] => {
                if !rtp::is_rtcp(second) {
                    self.media_last[of] = at;
                }
                if at >= self.from && mode != Mode::Off {
                    self.look(mode, at, direction, datagram);
                }
            }
            [0..=3, ..] => {
                if let Some(message) = checks::read(datagram) {
                    self.checks.observe(at, direction, message);
                }
            }
            [HANDSHAKE, DTLS, ..] => self.dtls[of] = true,
            _ => {}
        }
    }

    /// Looks at RTP or RTCP, unless the window is over.
    fn look(&mut self, mode: Mode, at: u64, direction: Direction, datagram: &[u8]) {
        if at >= self.until {
            self.next_window(mode, at);
            if at < self.from {
                return;
            }
        }
        let [_, second, length @ ..] = datagram else {
            return;
        };
        let of = direction as usize;
        if rtp::is_rtcp(*second) {
            // The first packet of a compound one, which SRTCP leaves in the clear to here.
            let words = length.first_chunk().copied().map(u16::from_be_bytes);
            self.media[of] |=
                words.is_some_and(|words| 4 * (usize::from(words) + 1) <= datagram.len());
        } else if let Some(header) = rtp::Header::read(datagram) {
            let look = Look {
                at,
                since: self.from,
                direction,
                window: self.window,
                anew: self.anew,
            };
            self.media[of] |= self.streams.observe(look, header);
        }
    }

    /// Begins another window, at once or later.
    #[cold]
    fn next_window(&mut self, mode: Mode, at: u64) {
        let (wait, length) = if self.window == 0 || mode == Mode::Full {
            (0, FIRST)
        } else {
            // Not all allocations look at once: when a watch began decides.
            let phase = self.began.wrapping_mul(0x9E37_79B9_7F4A_7C15) % PERIOD;
            let since = at.wrapping_add(phase) % PERIOD;
            if since < WINDOW {
                (0, WINDOW - since)
            } else {
                (PERIOD - since, WINDOW)
            }
        };
        self.window = self.window.wrapping_add(1);
        // The first packet after a window comes here, so nothing was missed before it.
        if wait > 0 {
            self.anew = self.window;
        }
        self.from = at.saturating_add(wait);
        self.until = self.from.saturating_add(length);
    }

    /// What is known at `at`.
    pub fn quality(&self, at: u64) -> Quality {
        let moment = |at: u64| (at != NEVER).then_some(at);
        let nanos = Duration::from_nanos;
        let since = |then: u64| moment(then).map(|then| nanos(at.saturating_sub(then)));
        let mut media_idle = [None; BOTH];
        for (of, idle) in media_idle.iter_mut().enumerate() {
            if self.media[of] {
                *idle = since(self.media_last[of]);
            }
        }
        Quality {
            rtt: self.checks.rtt(),
            checks: self.checks.counts(at),
            flows: self.streams.flows(at, self.window),
            streams: self.streams.streams(),
            first: (self.first)
                .map(|first| moment(first).map(|at| nanos(at.saturating_sub(self.began)))),
            idle: self.last.map(since),
            dtls: self.dtls,
            media: self.media,
            session: self.session(at),
            media_idle,
        }
    }

    fn session(&self, at: u64) -> Session {
        let lately = |then: u64| at.saturating_sub(then) < PATIENCE;
        let one_way = |direction: Direction| {
            if lately(self.first[direction as usize]) {
                Session::Waiting
            } else {
                Session::OneWay(direction)
            }
        };
        let [to_peer, to_client] = self.last;
        match [to_peer, to_client].map(|last| last != NEVER) {
            [false, false] if lately(self.began) => Session::Waiting,
            [false, false] => Session::Unused,
            [true, false] => one_way(Direction::ToPeer),
            [false, true] => one_way(Direction::ToClient),
            [true, true] => {
                let [a, b] = self.first;
                // Who is called may take long to answer.
                let met = a.abs_diff(b) <= PATIENCE || to_peer.abs_diff(to_client) <= PATIENCE;
                match (met, lately(to_peer.max(to_client))) {
                    (true, true) => Session::Established,
                    (true, false) => Session::Silent,
                    (false, _) if to_peer > to_client => Session::OneWay(Direction::ToPeer),
                    (false, _) => Session::OneWay(Direction::ToClient),
                }
            }
        }
    }
}

/// What goes along to another process: what was counted and measured. Its streams begin anew there, since nobody saw what
/// came in between, and checks that are under way give no time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    began: u64,
    looks: [u64; 2],
    first: [Option<u64>; BOTH],
    last: [Option<u64>; BOTH],
    media_last: [Option<u64>; BOTH],
    dtls: [bool; BOTH],
    media: [bool; BOTH],
    checks: checks::Image,
    counts: [[u64; 3]; BOTH],
}

impl Watch {
    /// What another process goes on with, at `at`.
    pub fn image(&self, at: u64) -> Image {
        let moments = |moments: [u64; BOTH]| moments.map(|at| (at != NEVER).then_some(at));
        Image {
            began: self.began,
            looks: [self.from, self.until],
            first: moments(self.first),
            last: moments(self.last),
            media_last: moments(self.media_last),
            dtls: self.dtls,
            media: self.media,
            checks: self.checks.image(at),
            counts: (self.streams.counts())
                .map(|counts| [counts.received, counts.lost, counts.reordered]),
        }
    }

    /// Goes on with what another process had.
    pub fn resume(image: &Image) -> Self {
        let moments = |moments: [Option<u64>; BOTH]| moments.map(|at| at.unwrap_or(NEVER));
        let [from, until] = image.looks;
        let window = u32::from(until > 0);
        Self {
            from,
            until,
            last: moments(image.last),
            media_last: moments(image.media_last),
            first: moments(image.first),
            began: image.began,
            window,
            anew: window,
            dtls: image.dtls,
            media: image.media,
            checks: checks::Table::resume(&image.checks),
            streams: Streams::after(image.counts.map(|[received, lost, reordered]| Counts {
                received,
                lost,
                reordered,
            })),
        }
    }
}
