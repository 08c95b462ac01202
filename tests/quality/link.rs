//! Links and senders in virtual time. Every draw comes from a seed.

use turnix::base::Direction;

pub const MILLISECOND: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MILLISECOND;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn happens(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    /// Of mean 0 and deviation 1, nearly.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Of each packet alone.
    Random(f64),
    /// In bursts of `length` on average (Gilbert).
    Bursts { share: f64, length: f64 },
}

pub struct Link {
    random: Random,
    /// In milliseconds.
    delay: f64,
    /// Its deviation.
    jitter: f64,
    loss: Loss,
    /// Share of packets that others overtake, and by how many milliseconds.
    late: (f64, f64),
    bad: bool,
    /// When the latest one arrives; `None`: each goes its own way.
    queue: Option<u64>,
    pub sent: u64,
    pub lost: u64,
}

impl Link {
    pub fn new(seed: u64, delay: f64, jitter: f64, loss: Loss) -> Self {
        Self {
            random: Random(seed),
            delay,
            jitter,
            loss,
            late: (0.0, 0.0),
            bad: false,
            queue: Some(0),
            sent: 0,
            lost: 0,
        }
    }

    pub fn late(mut self, share: f64, by: f64) -> Self {
        self.late = (share, by);
        self
    }

    /// For those who do not send in the order of time.
    pub fn unordered(mut self) -> Self {
        self.queue = None;
        self
    }

    /// When what is sent at `at` arrives.
    pub fn pass(&mut self, at: u64) -> Option<u64> {
        self.sent += 1;
        let lost = match self.loss {
            Loss::Random(share) => self.random.happens(share),
            Loss::Bursts { share, length } => {
                let leave = 1.0 / length;
                let change = if self.bad {
                    leave
                } else {
                    leave * share / (1.0 - share)
                };
                self.bad ^= self.random.happens(change);
                self.bad
            }
        };
        let jitter = self.jitter * self.random.normal();
        let arrival = at + ((self.delay + jitter).max(0.0) * MILLISECOND as f64) as u64;
        if lost {
            self.lost += 1;
            return None;
        }
        if self.random.happens(self.late.0) {
            return Some(arrival + (self.late.1 * MILLISECOND as f64) as u64);
        }
        self.queue = self.queue.map(|latest| latest.max(arrival));
        Some(self.queue.unwrap_or(arrival))
    }
}

/// What arrives at the relay.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: u64,
    pub direction: Direction,
    pub datagram: Vec<u8>,
}

pub struct Rtp {
    pub payload_type: u8,
    pub ssrc: u32,
    pub sequence: u16,
    pub timestamp: u32,
}

impl Rtp {
    pub fn packet(&mut self, timestamp: u32, marker: bool, padded: bool) -> Vec<u8> {
        let mut packet = vec![0x80 | if padded { 0x20 } else { 0 }];
        packet.push(self.payload_type | if marker { 0x80 } else { 0 });
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(timestamp.to_be_bytes());
        packet.extend(self.ssrc.to_be_bytes());
        packet.extend([0x5A; 60]);
        self.sequence = self.sequence.wrapping_add(1);
        packet
    }
}

/// What a stream was, for whoever knows all of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Truth {
    pub sent: u64,
    pub lost: u64,
    /// The mean difference of transit times of packets that begin another timestamp, in milliseconds.
    pub jitter: f64,
}

impl Truth {
    pub fn loss(self) -> f64 {
        self.lost as f64 / self.sent as f64
    }
}

/// Where a source sends what.
pub struct Call {
    pub arrivals: Vec<Arrival>,
    pub seconds: u64,
    pub random: Random,
}

impl Call {
    pub fn new(seed: u64, seconds: u64) -> Self {
        Self {
            arrivals: Vec::new(),
            seconds,
            random: Random(seed),
        }
    }

    fn arrive(&mut self, at: u64, direction: Direction, datagram: Vec<u8>) {
        self.arrivals.push(Arrival {
            at,
            direction,
            datagram,
        });
    }

    fn rtp(&mut self, payload_type: u8) -> Rtp {
        let bits = self.random.bits();
        Rtp {
            payload_type,
            ssrc: bits as u32,
            sequence: (bits >> 32) as u16,
            timestamp: self.random.bits() as u32,
        }
    }

    /// A packet every `every` milliseconds of a clock of `rate`; with `silence`, one of twenty then, for every other second
    /// (DTX).
    pub fn audio(
        &mut self,
        direction: Direction,
        link: &mut Link,
        rate: u32,
        every: u64,
        silence: bool,
    ) -> Truth {
        let mut rtp = self.rtp(111);
        let start = rtp.timestamp;
        let mut transits = Transits::default();
        let (sent, lost) = (link.sent, link.lost);
        for nth in 0..self.seconds * 1000 / every {
            let at = nth * every * MILLISECOND;
            if silence && at / SECOND % 2 == 1 && nth % 20 != 0 {
                continue;
            }
            let ticks = nth * every * u64::from(rate) / 1000;
            let packet = rtp.packet(start.wrapping_add(ticks as u32), nth == 0, false);
            if let Some(arrival) = link.pass(at) {
                transits.add(at, arrival);
                self.arrive(arrival, direction, packet);
            }
        }
        Truth {
            sent: link.sent - sent,
            lost: link.lost - lost,
            jitter: transits.jitter(),
        }
    }

    /// Thirty frames a second of 4 to 12 packets, what is lost sent again in a stream of its own `rtt` milliseconds later,
    /// and probes of nothing but padding in it.
    pub fn video(&mut self, direction: Direction, link: &mut Link, rtt: u64) -> Truth {
        let mut rtp = self.rtp(96);
        let mut again = self.rtp(97);
        let start = rtp.timestamp;
        let mut transits = Transits::default();
        let mut truth = Truth::default();
        let mut waiting: Vec<(u64, u32)> = Vec::new();
        for nth in 0..self.seconds * 30 {
            let at = nth * SECOND / 30;
            let timestamp = start.wrapping_add(nth as u32 * 3000);
            let packets = 4 + self.random.bits() % 9;
            let mut first = true;
            for part in 0..packets {
                // Paced.
                let sent = at + part * MILLISECOND / 5;
                let packet = rtp.packet(timestamp, part + 1 == packets, false);
                truth.sent += 1;
                match link.pass(sent) {
                    Some(arrival) => {
                        if std::mem::take(&mut first) {
                            transits.add(at, arrival);
                        }
                        self.arrive(arrival, direction, packet);
                    }
                    None => {
                        truth.lost += 1;
                        waiting.push((at + rtt * MILLISECOND, timestamp));
                    }
                }
            }
            let due = waiting.iter().take_while(|(due, _)| *due <= at).count();
            let mut probes: Vec<(u32, bool)> =
                waiting.drain(..due).map(|(_, of)| (of, false)).collect();
            if nth % 300 == 150 {
                probes.extend([(timestamp, true); 5]);
            }
            for (timestamp, padded) in probes {
                let packet = again.packet(timestamp, false, padded);
                if let Some(arrival) = link.pass(at + 4 * MILLISECOND) {
                    self.arrive(arrival, direction, packet);
                }
            }
        }
        truth.jitter = transits.jitter();
        truth
    }

    /// In the order of arrival.
    pub fn arrivals(mut self) -> Vec<Arrival> {
        self.arrivals.sort_by_key(|arrival| arrival.at);
        self.arrivals
    }
}

/// Interarrival jitter by definition: differences of transit times, with the sender's own clock known.
#[derive(Default)]
struct Transits {
    seen: Vec<(u64, u64)>,
}

impl Transits {
    fn add(&mut self, sent: u64, arrival: u64) {
        self.seen.push((arrival, sent));
    }

    fn jitter(mut self) -> f64 {
        // What was overtaken is not of the sequence.
        self.seen.sort_unstable();
        let mut latest = 0;
        self.seen.retain(|(_, sent)| {
            let fits = *sent >= latest;
            latest = latest.max(*sent);
            fits
        });
        let differences = self.seen.windows(2).map(|pair| {
            let [(a, sent_a), (b, sent_b)] = [pair[0], pair[1]];
            ((b - a) as f64 - (sent_b - sent_a) as f64).abs()
        });
        differences.sum::<f64>() / (self.seen.len() - 1) as f64 / MILLISECOND as f64
    }
}
