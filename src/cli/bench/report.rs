//! The result, for people and for programs.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::Transport;

use super::Direction;
use super::traffic::{Counts, Load, Outcome, Pace, relayed_per_delivered};

/// What allocations cost the server's memory.
pub struct Memory {
    /// Resident bytes of the server once all is set up.
    pub resident: u64,
    /// Bytes of growth per allocation.
    pub resident_per_allocation: f64,
    /// Bytes of kernel slab per allocation; the generator's own sockets were open before.
    pub slab_per_allocation: f64,
}

/// What happened before the traffic.
pub struct SetUp {
    /// Allocate with its challenge.
    pub allocations_per_second: f64,
    /// ChannelBind, or CreatePermission with --indications.
    pub admissions_per_second: f64,
    /// The server's CPU time, in microseconds.
    pub cpu_us_per_allocation: Option<f64>,
    /// With --pid.
    pub memory: Option<Memory>,
}

/// Everything there is to tell.
pub struct Report {
    /// The server's address.
    pub server: SocketAddr,
    /// How clients reached it.
    pub transport: Transport,
    /// Number of clients.
    pub allocations: u32,
    /// Whether Send and Data indications were used.
    pub indications: bool,
    /// What was sent.
    pub load: Load,
    /// Before the traffic.
    pub set_up: SetUp,
    /// The traffic.
    pub outcome: Outcome,
}

/// The line of one second.
pub fn progress(delivered: u64, elapsed: Duration, size: usize, counts: &Counts) -> String {
    let rate = delivered as f64 / elapsed.as_secs_f64();
    format!(
        "{rate:>10.0} packets/s  {:>7.3} Gbit/s  in flight or lost {}",
        gigabits(rate, size),
        counts.sent - counts.delivered.min(counts.sent)
    )
}

fn gigabits(packets_per_second: f64, size: usize) -> f64 {
    packets_per_second * size as f64 * 8.0 / 1e9
}

struct Numbers {
    delivered: u64,
    packets_per_second: f64,
    lost: u64,
    loss_ratio: f64,
    own_ns_per_packet: f64,
    own_share: f64,
    server: Option<Server>,
}

impl Numbers {
    /// The generator was busy all the time and the server was not, or nobody knows.
    fn limited(&self) -> bool {
        self.own_share >= 0.95 && self.server.as_ref().is_none_or(|server| server.cores < 0.9)
    }
}

struct Server {
    ns_per_packet: f64,
    cores: f64,
    user_share: f64,
}

impl Report {
    fn numbers(&self) -> Numbers {
        let Outcome {
            begin, end, total, ..
        } = &self.outcome;
        let elapsed = end.at.saturating_duration_since(begin.at);
        let elapsed_ns = (elapsed.as_nanos() as f64).max(1.0);
        let delivered = end.counts.delivered - begin.counts.delivered;
        let packets = delivered.max(1) as f64;
        let lost = total.sent.saturating_sub(total.delivered);
        let own_ns = end.own_ns.saturating_sub(begin.own_ns) as f64;
        let server = self.load.pid.map(|_| {
            let used = end.server.since(begin.server);
            let ticks = (used.user_ns + used.system_ns).max(1) as f64;
            Server {
                ns_per_packet: used.total_ns as f64
                    / (packets * relayed_per_delivered(self.load.direction) as f64),
                cores: used.total_ns as f64 / elapsed_ns,
                user_share: used.user_ns as f64 / ticks,
            }
        });
        Numbers {
            delivered,
            packets_per_second: delivered as f64 * 1e9 / elapsed_ns,
            lost,
            loss_ratio: lost as f64 / total.sent.max(1) as f64,
            own_ns_per_packet: own_ns / packets,
            own_share: own_ns / elapsed_ns,
            server,
        }
    }

    fn latency_kind(&self) -> &'static str {
        match self.load.direction {
            Direction::Echo => "round_trip",
            _ => "one_way",
        }
    }

    /// One JSON object and a line feed.
    pub fn json(&self) -> String {
        let numbers = self.numbers();
        let total = &self.outcome.total;
        let latency = &self.outcome.latency;
        let us = |share: f64| latency.quantile(share) as f64 / 1e3;
        let (window, rate) = match self.load.pace {
            Pace::Window(window) => (Some(window), None),
            Pace::Rate(rate) => (None, Some(rate)),
        };
        let memory = self.set_up.memory.as_ref();
        let server = numbers.server.as_ref().map(|server| {
            json!({
                "cpu_ns_per_packet": server.ns_per_packet,
                "cores": server.cores,
                "user_share": server.user_share,
                "cpu_us_per_allocation": self.set_up.cpu_us_per_allocation,
                "resident_bytes": memory.map(|memory| memory.resident),
                "resident_bytes_per_allocation": memory.map(|memory| memory.resident_per_allocation),
                "slab_bytes_per_allocation": memory.map(|memory| memory.slab_per_allocation),
            })
        });
        let report: Value = json!({
            "target": self.server.to_string(),
            "transport": self.transport.label(),
            "direction": self.load.direction.label(),
            "allocations": self.allocations,
            "size_bytes": self.load.size,
            "burst": self.load.burst,
            "window": window,
            "rate_pps": rate,
            "seconds": self.load.measure.as_secs_f64(),
            "gso": self.load.gso,
            "gro": self.load.gro,
            "indications": self.indications,
            "setup": {
                "allocations_per_second": self.set_up.allocations_per_second,
                "admissions_per_second": self.set_up.admissions_per_second,
            },
            "delivered": numbers.delivered,
            "packets_per_second": numbers.packets_per_second,
            "payload_bits_per_second": numbers.packets_per_second * self.load.size as f64 * 8.0,
            "sent_total": total.sent,
            "delivered_total": total.delivered,
            "lost": numbers.lost,
            "loss_ratio": numbers.loss_ratio,
            "duplicates": total.duplicates,
            "reordered": total.reordered,
            "foreign": total.foreign,
            "unsent": total.unsent,
            "missed": total.missed,
            "stalls": total.stalls,
            "latency": {
                "kind": self.latency_kind(),
                "samples": latency.total(),
                "p50_us": us(0.5),
                "p99_us": us(0.99),
                "p99_9_us": us(0.999),
                "max_us": latency.max() as f64 / 1e3,
            },
            "generator": {
                "cpu_ns_per_packet": numbers.own_ns_per_packet,
                "cores": numbers.own_share,
                "limited": numbers.limited(),
            },
            "server": server,
        });
        format!("{report}\n")
    }

    /// A dozen lines.
    pub fn text(&self) -> String {
        let numbers = self.numbers();
        let total = &self.outcome.total;
        let latency = &self.outcome.latency;
        let us = |share: f64| latency.quantile(share) as f64 / 1e3;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<12}{value}");
        };
        line(
            "target",
            format!(
                "{} over {}, {} allocations, {} x {} bytes {}{}",
                self.server,
                self.transport.label(),
                self.allocations,
                self.load.burst,
                self.load.size,
                self.load.direction.label(),
                if self.indications {
                    ", indications"
                } else {
                    ""
                },
            ),
        );
        line(
            "set-up",
            format!(
                "{:.0} allocations/s, then {:.0} {}/s",
                self.set_up.allocations_per_second,
                self.set_up.admissions_per_second,
                if self.indications {
                    "permissions"
                } else {
                    "channels"
                },
            ),
        );
        line(
            "delivered",
            format!(
                "{:.0} packets/s, {:.3} Gbit/s of payload",
                numbers.packets_per_second,
                gigabits(numbers.packets_per_second, self.load.size)
            ),
        );
        line(
            "lost",
            format!(
                "{} of {} ({:.4} %), {} duplicates, {} reordered, {} foreign",
                numbers.lost,
                total.sent,
                numbers.loss_ratio * 100.0,
                total.duplicates,
                total.reordered,
                total.foreign
            ),
        );
        if total.delivered == 0 {
            line(
                "",
                "nothing arrived: may the server reach the peers (--peer-address), and they its relayed addresses?"
                    .to_owned(),
            );
        }
        if total.stalls + total.unsent + total.missed > 0 {
            line(
                "not sent",
                format!(
                    "{} for want of speed, {} refused by this kernel; {} stalls",
                    total.missed, total.unsent, total.stalls
                ),
            );
        }
        line(
            "latency",
            format!(
                "{}: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, max {:.1} us",
                self.latency_kind().replace('_', " "),
                us(0.5),
                us(0.99),
                us(0.999),
                latency.max() as f64 / 1e3
            ),
        );
        if let Some(server) = &numbers.server {
            line(
                "server",
                format!(
                    "{:.0} ns CPU per relayed packet ({:.0} % in user mode), {:.2} cores",
                    server.ns_per_packet,
                    server.user_share * 100.0,
                    server.cores
                ),
            );
        }
        if let (Some(memory), Some(cpu_us)) =
            (&self.set_up.memory, self.set_up.cpu_us_per_allocation)
        {
            line(
                "",
                format!(
                    "{cpu_us:.1} us CPU, {:.0} bytes resident and {:.0} bytes kernel slab per allocation; {:.1} MiB resident",
                    memory.resident_per_allocation,
                    memory.slab_per_allocation,
                    memory.resident as f64 / f64::from(1 << 20)
                ),
            );
        }
        line(
            "generator",
            format!(
                "{:.0} ns CPU per packet, {:.2} cores{}",
                numbers.own_ns_per_packet,
                numbers.own_share,
                if numbers.limited() {
                    " (it was the bottleneck, not the server: give it less to do with --sources, --peers 1, --gso, --gro)"
                } else {
                    ""
                }
            ),
        );
        text
    }
}
