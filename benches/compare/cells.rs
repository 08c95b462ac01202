//! What is measured: one row per load, with the generator's arguments.

/// One load that every server gets.
pub struct Cell {
    /// Short name, for `--cells` and the tables.
    pub name: &'static str,
    /// What it is, for the chart.
    pub title: &'static str,
    /// How clients reach the server.
    pub leg: Leg,
    /// Arguments of `turnix bench`, separated by spaces.
    pub arguments: &'static str,
    /// Flags that are added where `turnix bench --help` lists them.
    pub optional: &'static [&'static str],
    /// What is read from the result, each with the ratio to the baseline that turnix has to reach.
    pub goals: &'static [Goal],
}

/// Transport of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Datagrams.
    Udp,
    /// A TCP connection per client.
    Tcp,
    /// A TLS connection per client, to a port of its own.
    Tls,
}

/// A figure, and how it should compare.
pub struct Goal {
    /// The figure.
    pub measure: Measure,
    /// Ratio to the baseline: at most this, or at least where more is better.
    pub target: Option<f64>,
}

/// A figure in the generator's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The server's CPU time per relayed packet.
    PacketCpu,
    /// Median round trip.
    RoundTrip,
    /// Allocations made in a second.
    AllocationRate,
    /// The server's CPU time per allocation.
    AllocationCpu,
    /// Growth of the server's resident memory per allocation with a permission and a channel.
    AllocationMemory,
}

impl Measure {
    /// Where the generator's JSON has it.
    pub const fn pointer(self) -> &'static str {
        match self {
            Self::PacketCpu => "/server/cpu_ns_per_packet",
            Self::RoundTrip => "/latency/p50_us",
            Self::AllocationRate => "/setup/allocations_per_second",
            Self::AllocationCpu => "/server/cpu_us_per_allocation",
            Self::AllocationMemory => "/server/resident_bytes_per_allocation",
        }
    }

    /// What one is counted in.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::PacketCpu => "ns CPU/packet",
            Self::RoundTrip => "µs p50",
            Self::AllocationRate => "allocations/s",
            Self::AllocationCpu => "µs CPU/allocation",
            Self::AllocationMemory => "bytes/allocation",
        }
    }

    /// Whether a larger figure is the better one.
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::AllocationRate)
    }

    /// A figure with as many digits as mean something.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::RoundTrip | Self::AllocationCpu => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        }
    }
}

const fn packet_cpu(target: f64) -> Goal {
    Goal {
        measure: Measure::PacketCpu,
        target: Some(target),
    }
}

const UNBOUND: &[Goal] = &[Goal {
    measure: Measure::PacketCpu,
    target: None,
}];
const TO_PEER: &[Goal] = &[packet_cpu(0.85)];
const TO_CLIENT: &[Goal] = &[packet_cpu(0.62)];
const BURSTS: &[Goal] = &[packet_cpu(0.62)];
const TRAINS: &[Goal] = &[packet_cpu(0.08)];
const HAIRPIN: &[Goal] = &[packet_cpu(0.5)];
const STREAMS: &[Goal] = &[packet_cpu(0.7)];
const ROUND_TRIP: &[Goal] = &[Goal {
    measure: Measure::RoundTrip,
    target: Some(1.0),
}];
const ALLOCATIONS: &[Goal] = &[
    Goal {
        measure: Measure::AllocationRate,
        target: Some(4.0),
    },
    Goal {
        measure: Measure::AllocationCpu,
        target: None,
    },
    Goal {
        measure: Measure::AllocationMemory,
        target: Some(0.1),
    },
];

/// The flag of a receiver that takes a train whole, as a network card with receive offload gives it.
const GRO: &[&str] = &["--gro"];

const fn cell(
    name: &'static str,
    title: &'static str,
    leg: Leg,
    arguments: &'static str,
    goals: &'static [Goal],
) -> Cell {
    Cell {
        name,
        title,
        leg,
        arguments,
        optional: &[],
        goals,
    }
}

/// Everything, in the order of the tables.
///
/// Packets in flight keep a server busy; with a hundred flows and more there is about one of a flow at a time, as calls
/// send them. A wider window queues several packets in each relay socket, which no mix of calls does. Clients share sockets
/// (`--sources`), which costs the generator less; for a server they are as many as ever. Peers do not: a coturn that
/// multiplexes tells allocations apart by their peers. Bursts leave the generator in one piece (`--gso`) and are cut up before
/// they reach the server, as they arrive from a network: sent one by one, a server that is faster than the generator never
/// sees more than the first of them.
#[rustfmt::skip]
pub const CELLS: &[Cell] = &[
    cell("to_peer_1", "to peer, 200 B, 1 flow", Leg::Udp, "--direction to_peer --allocations 1 --size 200 --window 128", UNBOUND),
    cell("to_peer_100", "to peer, 200 B, 100 flows", Leg::Udp, "--direction to_peer --allocations 100 --sources 100 --size 200 --window 128", TO_PEER),
    cell("to_peer_1000", "to peer, 200 B, 1000 flows", Leg::Udp, "--direction to_peer --allocations 1000 --sources 250 --size 200 --window 512", TO_PEER),
    cell("to_client_1", "to client, 200 B, 1 flow", Leg::Udp, "--direction to_client --allocations 1 --size 200 --window 128", UNBOUND),
    cell("to_client_100", "to client, 200 B, 100 flows", Leg::Udp, "--direction to_client --allocations 100 --sources 100 --size 200 --window 128", TO_CLIENT),
    cell("to_client_1000", "to client, 200 B, 1000 flows", Leg::Udp, "--direction to_client --allocations 1000 --sources 250 --size 200 --window 512", TO_CLIENT),
    cell("both_100", "both ways, 200 B, 100 flows", Leg::Udp, "--direction both --allocations 100 --sources 100 --size 200 --window 128", UNBOUND),
    cell("burst_to_peer", "to peer, bursts of 8 × 1200 B at once", Leg::Udp, "--direction to_peer --allocations 100 --sources 100 --size 1200 --burst 8 --window 128 --gso", BURSTS),
    cell("burst_to_client", "to client, bursts of 8 × 1200 B at once", Leg::Udp, "--direction to_client --allocations 100 --sources 100 --size 1200 --burst 8 --window 128 --gso", BURSTS),
    Cell { optional: GRO, ..cell("train_to_peer", "to peer, trains of 64 × 200 B", Leg::Udp, "--direction to_peer --allocations 100 --sources 100 --size 200 --burst 64 --window 2048 --gso", TRAINS) },
    Cell { optional: GRO, ..cell("train_to_client", "to client, trains of 64 × 200 B", Leg::Udp, "--direction to_client --allocations 100 --sources 100 --size 200 --burst 64 --window 2048 --gso", TRAINS) },
    cell("hairpin_200", "client to client, 200 B", Leg::Udp, "--direction hairpin --allocations 100 --size 200 --window 128", HAIRPIN),
    cell("hairpin_1200", "client to client, 1200 B", Leg::Udp, "--direction hairpin --allocations 100 --size 1200 --window 128", HAIRPIN),
    cell("tcp_to_peer", "TCP to peer, 200 B", Leg::Tcp, "--direction to_peer --allocations 100 --size 200 --window 128", STREAMS),
    cell("tcp_to_client", "TCP to client, 200 B", Leg::Tcp, "--direction to_client --allocations 100 --size 200 --window 128", STREAMS),
    cell("tls_to_peer", "TLS to peer, 200 B", Leg::Tls, "--direction to_peer --allocations 100 --size 200 --window 128", STREAMS),
    cell("tls_to_client", "TLS to client, 200 B", Leg::Tls, "--direction to_client --allocations 100 --size 200 --window 128", STREAMS),
    cell("round_trip", "echo at 20 000 packets/s", Leg::Udp, "--direction echo --allocations 100 --size 200 --rate 20000", ROUND_TRIP),
    cell("allocations", "5000 allocations", Leg::Udp, "--direction to_peer --allocations 5000 --sources 250 --setup-window 128 --size 200 --window 128", ALLOCATIONS),
];
