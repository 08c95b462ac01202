//! Streams of RTP: loss, reordering and jitter from their headers, which SRTP leaves in the clear (RFC 3711 §3.1).
//!
//! A stream counts from its second packet in a row on (RFC 3550 A.1), so what only looks like RTP counts for nothing and
//! takes no stream's place. The
//! latest 64 sequence numbers are a bit each: a packet that comes late fills its gap, a duplicate fills none. A sender that
//! begins anew is believed when two packets follow each other there.
//!
//! The clock of the timestamps is what they advance by while time does, rounded to a rate that media have.

use std::time::Duration;

use crate::base::Direction;

use super::{Flow, Media, Stream};

/// Streams that are told apart.
const STREAMS: usize = 8;
/// Beginnings that are remembered.
const BEGINNINGS: usize = 8;
/// A stream that is silent for as long, while it is looked, makes room for another.
const SILENCE: u64 = SECOND;

/// A gap that is loss, and not another beginning (MAX_DROPOUT of RFC 3550 A.1).
const DROPOUT: u16 = 3000;
/// As far behind, a packet is late rather than of another beginning.
const LATE: u16 = 1000;
/// Packets that have to follow each other to be believed where they may be late ones.
const BELIEVED: u8 = 16;

const SECOND: u64 = 1_000_000_000;

/// What media have as clock rates, in Hz. The first four are those of WebRTC (RFC 7874, RFC 7742), and the only ones that a
/// short look may find.
const RATES: [u32; 10] = [
    8000, 16_000, 48_000, 90_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100,
];
const COMMON: usize = 4;
const VIDEO_RATE: u32 = 90_000;

/// From here on a rate may be found, within 15 %; at `LONG`, within 3 %.
const SHORT: u64 = SECOND;
const LONG: u64 = 4 * SECOND;

/// Nanoseconds of one tick of each rate, times 2¹⁶.
const PER_TICK: [u64; RATES.len()] = {
    let mut per_tick = [0; RATES.len()];
    let mut at = 0;
    while at < per_tick.len() {
        per_tick[at] = (SECOND << 16) / RATES[at] as u64;
        at += 1;
    }
    per_tick
};

/// A step of timestamps that is another beginning: a minute of video.
const LEAP: u32 = 60 * VIDEO_RATE;

/// Times jitter is averaged over: more than the 16 of RFC 3550, so that two looks at one call agree.
const SMOOTH: u16 = 512;
/// Times before jitter is told.
const ENOUGH: u16 = 16;
/// A difference of transit times that is a pause of the sender, in nanoseconds.
const PAUSE: u64 = SECOND;

/// Timestamps of one clock are within so many ticks: five seconds of video.
const SAME_CLOCK: u32 = 5 * VIDEO_RATE;
/// Packets of a stream that are compared with the timestamps of others.
const COMPARED: u8 = 64;

/// After this long a stream says nothing of the present.
const STALE: u32 = 16_000;

/// The fixed header of RTP (RFC 3550 §5.1), as far as it is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    padded: bool,
    payload_type: u8,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
}

impl Header {
    /// Reads it from what begins with version 2 and is no RTCP.
    pub fn read(datagram: &[u8]) -> Option<Self> {
        let [flags, kind, s0, s1, t0, t1, t2, t3, a, b, c, d] = *datagram.first_chunk::<12>()?;
        let sources = usize::from(flags & 0x0F);
        (datagram.len() >= 12 + 4 * sources).then_some(Self {
            padded: flags & 0x20 != 0,
            payload_type: kind & 0x7F,
            sequence: u16::from_be_bytes([s0, s1]),
            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: u32::from_be_bytes([a, b, c, d]),
        })
    }
}

/// Whether the second byte of what looks like RTP is that of RTCP (RFC 5761 §4).
pub(super) const fn is_rtcp(second: u8) -> bool {
    matches!(second & 0x7F, 64..=95)
}

/// Where and when a packet was looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Nanoseconds.
    pub at: u64,
    /// When the window began.
    pub since: u64,
    pub direction: Direction,
    /// The number of the window.
    pub window: u32,
    /// The latest window before which something was not looked at.
    pub anew: u32,
}

/// Counters of a stream or of several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub received: u64,
    pub lost: u64,
    pub reordered: u64,
}

impl Counts {
    const NONE: Self = Self {
        received: 0,
        lost: 0,
        reordered: 0,
    };

    fn add(&mut self, other: Self) {
        self.received = self.received.saturating_add(other.received);
        self.lost = self.lost.saturating_add(other.lost);
        self.reordered = self.reordered.saturating_add(other.reordered);
    }
}

/// Packets of one window: received, lost.
type Recent = [u32; 2];

#[derive(Clone, Copy, Debug)]
struct Item {
    /// A bit for each of the latest sequence numbers, the latest lowest: whether it came.
    seen: u64,
    received: u64,
    lost: u32,
    reordered: u32,
    /// The window that is counted in, and the one before.
    recent: [Recent; 2],
    window: u32,
    /// When it was looked at last, in milliseconds that wrap.
    touched: u32,
    /// The latest timestamp, and when the first packet with it came.
    timestamp: u32,
    fresh_at: u64,
    /// From where the clock rate is inferred.
    anchor: u32,
    anchor_at: u64,
    /// In nanoseconds, of `samples`.
    jitter: u32,
    samples: u16,
    /// The latest sequence number.
    sequence: u16,
    /// The sequence number that would follow on one that did not fit.
    odd: u16,
    /// How many such have followed each other.
    odd_run: u8,
    payload_type: u8,
    /// An index of `RATES`, or beyond.
    rate: u8,
    /// The rate that a long look found last.
    other_rate: u8,
    /// Packets with another timestamp than the one before, and with the same; both are halved at times.
    fresh: u8,
    same: u8,
    /// Packets that were compared, those that had a timestamp of `leader`'s past, and padded ones.
    compared: u8,
    followed: u8,
    padded: u8,
    leader: u8,
}

const UNKNOWN_RATE: u8 = u8::MAX;

impl Item {
    const NONE: Self = Self {
        seen: u64::MAX,
        received: 0,
        lost: 0,
        reordered: 0,
        recent: [[0; 2]; 2],
        window: 0,
        touched: 0,
        timestamp: 0,
        fresh_at: 0,
        anchor: 0,
        anchor_at: 0,
        jitter: 0,
        samples: 0,
        sequence: 0,
        odd: 0,
        odd_run: 0,
        payload_type: 0,
        rate: UNKNOWN_RATE,
        other_rate: UNKNOWN_RATE,
        fresh: 0,
        same: 0,
        compared: 0,
        followed: 0,
        padded: 0,
        leader: 0,
    };

    fn counts(&self) -> Counts {
        Counts {
            received: self.received,
            lost: self.lost.into(),
            reordered: self.reordered.into(),
        }
    }

    fn rate(&self) -> Option<u32> {
        RATES.get(usize::from(self.rate)).copied()
    }

    /// The stream that `header` is the second packet of.
    fn new(look: Look, header: Header) -> Self {
        let mut item = Self {
            window: look.window,
            touched: millis(look.at),
            ..Self::NONE
        };
        item.count(2);
        item.begin(look.at, header);
        item.clock_from(look.at, header.timestamp);
        item
    }

    /// Takes a packet of it.
    fn take(&mut self, look: Look, header: Header) {
        if self.window != look.window {
            let next = look.window == self.window.wrapping_add(1);
            let before = if next { self.recent[0] } else { [0; 2] };
            self.recent = [[0; 2], before];
            let anew = self.window < look.anew;
            self.window = look.window;
            if anew {
                self.count(1);
                self.begin(look.at, header);
                return;
            }
        }
        let ahead = header.sequence.wrapping_sub(self.sequence);
        let behind = self.sequence.wrapping_sub(header.sequence);
        if ahead == 0 {
        } else if ahead <= DROPOUT {
            self.odd_run = 0;
            self.seen = self.seen.checked_shl(ahead.into()).unwrap_or(0) | 1;
            let missing = u32::from(ahead) - 1;
            self.lost = self.lost.saturating_add(missing);
            self.recent[0][1] = self.recent[0][1].saturating_add(missing);
            self.count(1);
            self.sequence = header.sequence;
            self.payload_type = header.payload_type;
            self.time(look.at, header.timestamp);
        } else if behind < u64::BITS as u16 {
            let bit = 1 << behind;
            if self.seen & bit == 0 {
                self.seen |= bit;
                self.lost = self.lost.saturating_sub(1);
                self.recent[0][1] = self.recent[0][1].saturating_sub(1);
                self.reordered = self.reordered.saturating_add(1);
                self.count(1);
            }
        } else {
            let follows = header.sequence == self.odd && self.odd_run > 0;
            self.odd_run = if follows { self.odd_run + 1 } else { 1 };
            self.odd = header.sequence.wrapping_add(1);
            let believed = if behind <= LATE { BELIEVED } else { 2 };
            if self.odd_run >= believed {
                self.count(self.odd_run.into());
                self.begin(look.at, header);
                self.clock_from(look.at, header.timestamp);
            }
        }
    }

    fn count(&mut self, packets: u32) {
        self.received = self.received.saturating_add(packets.into());
        self.recent[0][0] = self.recent[0][0].saturating_add(packets);
    }

    /// What comes before `header` is not known of: no gap there is loss.
    fn begin(&mut self, at: u64, header: Header) {
        self.seen = u64::MAX;
        self.odd_run = 0;
        self.sequence = header.sequence;
        self.payload_type = header.payload_type;
        self.timestamp = header.timestamp;
        self.fresh_at = at;
    }

    fn clock_from(&mut self, at: u64, timestamp: u32) {
        self.anchor = timestamp;
        self.anchor_at = at;
    }

    /// Takes the timestamp of a packet that is in order.
    fn time(&mut self, at: u64, timestamp: u32) {
        if self.fresh == u8::MAX || self.same == u8::MAX {
            self.fresh /= 2;
            self.same /= 2;
        }
        let step = timestamp.wrapping_sub(self.timestamp);
        if step == 0 {
            self.same += 1;
            return;
        }
        self.fresh += 1;
        if step > LEAP {
            // Frames that are sent out of order step back, and others will step forward.
            if step.wrapping_neg() > LEAP {
                self.timestamp = timestamp;
                self.fresh_at = at;
                self.clock_from(at, timestamp);
            }
            return;
        }
        if let Some(per_tick) = PER_TICK.get(usize::from(self.rate)) {
            let between = at.saturating_sub(self.fresh_at);
            let deviation = between.abs_diff((u64::from(step) * per_tick) >> 16);
            if deviation < PAUSE {
                self.samples = (self.samples + 1).min(SMOOTH);
                let more = (deviation as i64 - i64::from(self.jitter)) / i64::from(self.samples);
                self.jitter = self.jitter.saturating_add_signed(more as i32);
            }
        }
        self.timestamp = timestamp;
        self.fresh_at = at;
        self.infer(at, timestamp);
    }

    /// Looks for the clock rate.
    fn infer(&mut self, at: u64, timestamp: u32) {
        let elapsed = at.saturating_sub(self.anchor_at);
        if elapsed < SHORT || elapsed < LONG && self.rate != UNKNOWN_RATE {
            return;
        }
        let ticks = timestamp.wrapping_sub(self.anchor);
        let measured = u64::from(ticks) * SECOND / elapsed;
        let (among, percent) = if elapsed < LONG {
            (COMMON, 15)
        } else {
            (RATES.len(), 3)
        };
        let found = (RATES.iter().take(among))
            .position(|rate| measured.abs_diff((*rate).into()) * 100 <= u64::from(*rate) * percent)
            .map_or(UNKNOWN_RATE, |found| found as u8);
        if elapsed >= LONG {
            self.clock_from(at, timestamp);
            // What a short look found is known again by one long look, and replaced after two that agree.
            let agreed = found == self.other_rate;
            self.other_rate = found;
            if !agreed && self.rate != UNKNOWN_RATE {
                return;
            }
        }
        if found != UNKNOWN_RATE && found != self.rate {
            self.rate = found;
            (self.jitter, self.samples) = (0, 0);
        }
    }

    fn jitter(&self) -> Option<Duration> {
        (self.samples >= ENOUGH).then(|| Duration::from_nanos(self.jitter.into()))
    }
}

/// The first packet of what may be a stream.
#[derive(Clone, Copy, Debug)]
struct Beginning {
    ssrc: u32,
    /// The sequence number that would prove it.
    next: u16,
    /// `None`: there is none here.
    direction: Option<Direction>,
}

/// The streams of one allocation, in both directions.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    ssrcs: [u32; STREAMS],
    /// A bit for each: the place is taken; the stream flows to the client.
    used: u8,
    to_client: u8,
    items: [Item; STREAMS],
    beginnings: [Beginning; BEGINNINGS],
    /// What had to make room.
    past: [Counts; Direction::ALL.len()],
}

impl Streams {
    pub const fn new() -> Self {
        const NONE: Beginning = Beginning {
            ssrc: 0,
            next: 0,
            direction: None,
        };
        Self {
            ssrcs: [0; STREAMS],
            used: 0,
            to_client: 0,
            items: [Item::NONE; STREAMS],
            beginnings: [NONE; BEGINNINGS],
            past: [Counts::NONE; Direction::ALL.len()],
        }
    }

    /// Goes on from what was counted before.
    pub const fn after(past: [Counts; Direction::ALL.len()]) -> Self {
        Self {
            past,
            ..Self::new()
        }
    }

    /// Takes a packet. Whether it is of a stream that counts.
    pub fn observe(&mut self, look: Look, header: Header) -> bool {
        let Some(place) = self.find(look.direction, header.ssrc) else {
            return self.begin(look, header);
        };
        if self.items[place].compared < COMPARED {
            self.compare(place, header);
        }
        let item = &mut self.items[place];
        item.touched = millis(look.at);
        item.take(look, header);
        true
    }

    fn find(&self, direction: Direction, ssrc: u32) -> Option<usize> {
        let towards = match direction {
            Direction::ToPeer => !self.to_client,
            Direction::ToClient => self.to_client,
        };
        let candidates = self.used & towards;
        (self.ssrcs.iter().enumerate())
            .position(|(place, known)| *known == ssrc && candidates & (1 << place) != 0)
    }

    /// Takes a packet of no stream, which is one from here on if it follows on another. Whether it is.
    #[cold]
    fn begin(&mut self, look: Look, header: Header) -> bool {
        let next = header.sequence.wrapping_add(1);
        let known = (self.beginnings.iter_mut()).find(|beginning| {
            beginning.ssrc == header.ssrc && beginning.direction == Some(look.direction)
        });
        let Some(known) = known else {
            // Where all are taken any of them makes room: the oldest would, time and again, be that of the stream whose turn
            // is next.
            let draw = (header.ssrc ^ u32::from(header.sequence)).wrapping_mul(0x9E37_79B9);
            let free = (self.beginnings.iter()).position(|known| known.direction.is_none());
            let place = free.unwrap_or((draw >> 16) as usize % BEGINNINGS);
            self.beginnings[place] = Beginning {
                ssrc: header.ssrc,
                next,
                direction: Some(look.direction),
            };
            return false;
        };
        let proven = header.sequence == known.next;
        known.next = next;
        if !proven {
            return false;
        }
        known.direction = None;
        let Some(place) = self.room(look) else {
            return false;
        };
        let bit = 1 << place;
        if self.used & bit != 0 && self.is_media(place) {
            let counts = self.items[place].counts();
            self.past[self.direction(place) as usize].add(counts);
        }
        self.used |= bit;
        match look.direction {
            Direction::ToPeer => self.to_client &= !bit,
            Direction::ToClient => self.to_client |= bit,
        }
        self.ssrcs[place] = header.ssrc;
        self.items[place] = Item::new(look, header);
        true
    }

    /// An empty place, or that of the stream that was silent the longest, if it was for long.
    fn room(&self, look: Look) -> Option<usize> {
        let free = (!self.used).trailing_zeros() as usize;
        if free < STREAMS {
            return Some(free);
        }
        let now = millis(look.at);
        let silent = |place: &usize| now.wrapping_sub(self.items[*place].touched);
        let looked = look.at.saturating_sub(look.since);
        (0..STREAMS)
            .max_by_key(silent)
            .filter(|place| looked >= SILENCE && silent(place) >= millis(SILENCE))
    }

    const fn direction(&self, place: usize) -> Direction {
        if self.to_client & (1 << place) == 0 {
            Direction::ToPeer
        } else {
            Direction::ToClient
        }
    }

    /// Whether the packet repeats a timestamp of a richer stream's past, as retransmissions and probes do: the timestamps of
    /// unrelated streams are random (RFC 3550 §5.1).
    fn compare(&mut self, place: usize, header: Header) {
        let direction = self.direction(place);
        let received = self.items[place].received;
        let leader = (0..STREAMS).find(|other| {
            let item = &self.items[*other];
            *other != place
                && self.used & (1 << *other) != 0
                && item.received > received
                && self.direction(*other) == direction
                && item.timestamp.wrapping_sub(header.timestamp) <= SAME_CLOCK
        });
        let item = &mut self.items[place];
        item.compared += 1;
        item.padded += u8::from(header.padded);
        if let Some(leader) = leader {
            item.followed += 1;
            item.leader = leader as u8;
        }
    }

    fn media(&self, place: usize) -> Media {
        let item = &self.items[place];
        let [compared, followed, padded] =
            [item.compared, item.followed, item.padded].map(u32::from);
        if compared > 0 {
            let leader = &self.items[usize::from(item.leader) % STREAMS];
            // The steps of retransmissions are not those of a clock: what a short look makes of them is no proof of another.
            let one_clock = match (item.rate(), leader.rate()) {
                (Some(own), Some(leaders)) if item.rate == item.other_rate => own == leaders,
                _ => true,
            };
            if padded * 2 > compared || one_clock && followed * 10 >= compared * 8 {
                return Media::Auxiliary;
            }
        }
        match item.rate() {
            Some(VIDEO_RATE) => Media::Video,
            Some(_) => Media::Audio,
            None if item.same >= 8 && item.same >= item.fresh / 4 => Media::Video,
            None => Media::Unknown,
        }
    }

    fn is_media(&self, place: usize) -> bool {
        self.media(place) != Media::Auxiliary
    }

    fn places(&self) -> impl Iterator<Item = usize> {
        (0..STREAMS).filter(|place| self.used & (1 << *place) != 0)
    }

    fn of_media(&self) -> impl Iterator<Item = usize> {
        self.places().filter(|place| self.is_media(*place))
    }

    /// All that have a place.
    pub fn streams(&self) -> Vec<Stream> {
        (self.places())
            .map(|place| {
                let item = &self.items[place];
                Stream {
                    ssrc: self.ssrcs[place],
                    direction: self.direction(place),
                    media: self.media(place),
                    payload_type: item.payload_type,
                    received: item.received,
                    lost: item.lost.into(),
                    reordered: item.reordered.into(),
                    jitter: item.jitter(),
                    clock_rate: item.rate(),
                }
            })
            .collect()
    }

    /// What was counted of media, by direction.
    pub fn counts(&self) -> [Counts; Direction::ALL.len()] {
        let mut counts = self.past;
        for place in self.of_media() {
            counts[self.direction(place) as usize].add(self.items[place].counts());
        }
        counts
    }

    /// All media together, by direction, at `at` nanoseconds in `window`.
    pub fn flows(&self, at: u64, window: u32) -> [Flow; Direction::ALL.len()] {
        let now = millis(at);
        let mut flows = [Flow::default(); Direction::ALL.len()];
        for (flow, counts) in flows.iter_mut().zip(self.counts()) {
            flow.received = counts.received;
            flow.lost = counts.lost;
            flow.reordered = counts.reordered;
        }
        let mut recent = [[0_u64; 2]; Direction::ALL.len()];
        let mut most = [0; Direction::ALL.len()];
        for place in self.of_media() {
            let (item, of) = (&self.items[place], self.direction(place) as usize);
            if item.jitter().is_some() && item.received > most[of] {
                most[of] = item.received;
                flows[of].jitter = item.jitter();
            }
            let latest = window.wrapping_sub(item.window) <= 1;
            if latest && now.wrapping_sub(item.touched) <= STALE {
                for [received, lost] in item.recent {
                    recent[of][0] += u64::from(received);
                    recent[of][1] += u64::from(lost);
                }
            }
        }
        for (flow, [received, lost]) in flows.iter_mut().zip(recent) {
            let expected = received + lost;
            flow.recent_loss = (expected > 0).then(|| lost as f64 / expected as f64);
        }
        flows
    }
}

const fn millis(at: u64) -> u32 {
    (at / 1_000_000) as u32
}
