//! `turnix bench`: a load generator for any TURN server.
//!
//! One thread with one epoll set drives all clients and all their peers, so that what arrives can be compared with what
//! was sent, on one clock. [`flows`] sets clients up, [`traffic`] sends and counts, [`report`] tells.

mod flows;
mod histogram;
mod ledger;
mod link;
mod process;
mod report;
mod traffic;

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::credentials::mint;
use super::tls::{self, Trust};
use super::{Exit, print};
use crate::base::{Clock, Family, Secret, Transport};
use crate::client::{Client, Settings};
use crate::cluster::locate::{self, Dns, Located};
use crate::cluster::{IceUri, TurnUri};
use crate::net::{UdpOptions, host};
use crate::wire::{Method, Request, TransactionId};

use flows::{Flow, Flows, Sockets, open_sockets, peer_of};
use ledger::STAMP;
use link::Link;
use report::{Memory, Report, SetUp};
use traffic::{Load, Pace, Traffic};

/// Packets in flight where neither --window nor --rate is given.
const DEFAULT_WINDOW: u64 = 128;

/// Asked for every socket; the kernel clips it to its own limit.
const BUFFER_BYTES: usize = 1 << 20;

/// Time for the server to finish what it does after its last answer, before its memory is read.
const SETTLE: Duration = Duration::from_millis(200);

/// How long a first answer may take before the clients try on their own.
const KNOCK: Duration = Duration::from_millis(300);

/// LIFETIME of allocations in seconds: they end soon if the generator is killed.
const LIFETIME_SECS: u32 = 600;

/// How long a credential made from --secret is good for.
const CREDENTIAL_SECS: u64 = 24 * 3600;

/// Arguments of `turnix bench`.
#[derive(Args)]
pub struct Arguments {
    /// The server, such as turn:127.0.0.1:3478, turn:host?transport=tcp or turns:host:443.
    #[arg(value_name = "URI")]
    uri: TurnUri,
    /// User name; with --secret, the user id in the time-limited name.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The user's password.
    #[arg(
        long,
        value_name = "PASSWORD",
        conflicts_with = "secret",
        requires = "user"
    )]
    password: Option<String>,
    /// Make a time-limited credential with this shared secret.
    #[arg(long, value_name = "SECRET")]
    secret: Option<String>,

    /// Number of clients, each with an allocation of its own.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    allocations: u32,
    /// Which way packets go.
    #[arg(long, value_enum, default_value_t = Direction::Echo)]
    direction: Direction,
    /// Bytes of application data in a packet, 24 to 16000.
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(STAMP as i64..=16_000))]
    size: u32,
    /// Keep this many packets in flight, all flows together [default: 128].
    #[arg(long, value_name = "N", conflicts_with = "rate", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    window: Option<u64>,
    /// Send this many packets a second, all flows together.
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Packets a flow sends before it is the next one's turn.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    burst: u64,
    /// How long to measure.
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// How long to send before anything counts.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    warmup: f64,
    /// Send bursts in one piece for the kernel to cut up (UDP_SEGMENT).
    #[arg(long)]
    gso: bool,
    /// Take trains of datagrams in one piece where the kernel has them so (UDP_GRO).
    #[arg(long)]
    gro: bool,
    /// Send and Data indications instead of channels.
    #[arg(long)]
    indications: bool,

    /// Local address of the peers [default: the one that reaches the server].
    #[arg(long, value_name = "IP")]
    peer_address: Option<IpAddr>,
    /// Number of peers, at most one per allocation [default: one per allocation].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    peers: Option<u32>,
    /// Spread clients over this many addresses from 127.0.0.1 on; over UDP that many share a socket, which costs less
    /// than one each. For servers at 127.0.0.1.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=250))]
    sources: u32,
    /// How many clients allocate at the same time.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    setup_window: u32,
    /// Trust certificates below the roots in this PEM file [default: those that this host trusts].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Do not verify the server's certificate.
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,

    /// The server's process on this machine: report its CPU time per packet and its memory per allocation.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Run the generator on this CPU only.
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// Clients to peers.
    #[value(name = "to_peer", alias = "to-peer")]
    ToPeer,
    /// Peers to clients.
    #[value(name = "to_client", alias = "to-client")]
    ToClient,
    /// Both of them at once.
    Both,
    /// Clients to peers, which send every packet back.
    Echo,
    /// Clients to each other by their relayed addresses; an even number of them.
    Hairpin,
}

impl Direction {
    /// As on the command line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ToPeer => "to_peer",
            Self::ToClient => "to_client",
            Self::Both => "both",
            Self::Echo => "echo",
            Self::Hairpin => "hairpin",
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, 0 to 86400".into()),
    }
}

/// Loads a server and prints what it did.
///
/// # Errors
/// The server refuses, does not answer or goes away; the host has too few descriptors or ports.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    if arguments.direction == Direction::Hairpin && arguments.allocations % 2 == 1 {
        bail!("hairpin pairs clients with each other: give an even number with --allocations");
    }
    let pace = match (arguments.rate, arguments.window) {
        (Some(rate), _) => Pace::Rate(rate as f64),
        (None, Some(window)) if window < arguments.burst => {
            bail!("--window has to hold a whole burst of {}", arguments.burst)
        }
        (None, window) => Pace::Window(window.unwrap_or(DEFAULT_WINDOW.max(arguments.burst))),
    };
    if let Some(cpu) = arguments.pin {
        host::pin_thread(cpu).with_context(|| format!("cannot run on CPU {cpu}"))?;
    }
    if let Some(pid) = arguments.pid {
        process::cpu(pid)?;
    }
    let memory_bare = arguments.pid.map(process::resident_bytes);
    let server = locate(arguments)?;
    let mut flows = open(arguments, server)?;
    let outcome = load(arguments, server, pace, memory_bare, &mut flows);
    // Also after a failure: the server should not keep what nobody uses.
    let released = flows.release(arguments.setup_window as usize);
    let report = outcome?;
    if let Err(error) = released {
        let _ = writeln!(
            io::stderr(),
            "warning: allocations were left behind: {error:#}"
        );
    }
    print(&if arguments.json {
        report.json()
    } else {
        report.text()
    })?;
    Ok(Exit::Done)
}

/// Sets everything up, sends and measures.
fn load(
    arguments: &Arguments,
    server: Located,
    pace: Pace,
    memory_bare: Option<u64>,
    flows: &mut Flows,
) -> anyhow::Result<Report> {
    let window = arguments.setup_window as usize;
    let slab_bare = process::slab_bytes();
    let cpu_bare = arguments.pid.map(process::cpu).transpose()?;
    let allocated = flows.allocate(window)?;
    let cpu_allocated = arguments.pid.map(process::cpu).transpose()?;
    if arguments.direction == Direction::Hairpin {
        let relayed: Vec<_> = flows.all.iter().map(|flow| flow.client.relayed()).collect();
        for (index, flow) in flows.all.iter_mut().enumerate() {
            if let Some(Some(partner)) = relayed.get(index ^ 1) {
                flow.peer = *partner;
            }
        }
    }
    let admitted = flows.admit(window, !arguments.indications)?;
    std::thread::sleep(SETTLE);
    let count = f64::from(arguments.allocations);
    let set_up = SetUp {
        allocations_per_second: count / allocated.as_secs_f64(),
        admissions_per_second: count / admitted.as_secs_f64(),
        cpu_us_per_allocation: cpu_bare
            .zip(cpu_allocated)
            .map(|(before, after)| after.since(before).total_ns as f64 / 1e3 / count),
        memory: arguments.pid.zip(memory_bare).map(|(pid, bare)| {
            let resident = process::resident_bytes(pid);
            Memory {
                resident,
                resident_per_allocation: (resident as f64 - bare as f64) / count,
                slab_per_allocation: (process::slab_bytes() as f64 - slab_bare as f64) / count,
            }
        }),
    };
    let load = Load {
        direction: arguments.direction,
        size: arguments.size as usize,
        burst: arguments.burst,
        pace,
        warmup: Duration::from_secs_f64(arguments.warmup),
        measure: Duration::from_secs_f64(arguments.seconds),
        gso: arguments.gso,
        gro: arguments.gro,
        pid: arguments.pid,
    };
    let traffic = Traffic::new(flows, load, rand::random())?;
    let terminal = io::stderr().is_terminal();
    let mut last = 0;
    let outcome = traffic.run(flows, |counts, elapsed| {
        let delivered = counts.delivered - last;
        last = counts.delivered;
        if terminal {
            let line = report::progress(delivered, elapsed, load.size, counts);
            // Nobody is left to watch if standard error is gone.
            let _ = writeln!(io::stderr(), "{line}");
        }
    })?;
    Ok(Report {
        server: flows.server,
        transport: server.transport,
        allocations: arguments.allocations,
        indications: arguments.indications,
        load,
        set_up,
        outcome,
    })
}

/// The first server that the URI leads to.
fn locate(arguments: &Arguments) -> anyhow::Result<Located> {
    let uri = IceUri {
        relays: true,
        server: arguments.uri.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let found = runtime.block_on(locate::locate(&uri, &Dns::of_host()));
    // A resolver that does not answer is not waited for.
    runtime.shutdown_background();
    let found = found.with_context(|| format!("cannot resolve {:?}", arguments.uri.host))?;
    found.first().copied().context("it leads nowhere")
}

/// Every client with its socket or connection, and every peer; nothing is sent but handshakes of TCP and TLS.
fn open(arguments: &Arguments, server: Located) -> anyhow::Result<Flows> {
    let count = arguments.allocations as usize;
    let peers = match arguments.direction {
        Direction::Hairpin => 0,
        _ => arguments
            .peers
            .map_or(count, |peers| (peers as usize).min(count)),
    };
    let Located {
        address: server,
        transport,
    } = server;
    let local = source_of(server)?;
    let sources = arguments.sources as usize;
    let first = match local {
        IpAddr::V4(ip) if ip.is_loopback() => Some(ip),
        _ if sources > 1 => bail!(
            "--sources needs a server at 127.0.0.1: {local} is the one address here that reaches {server}"
        ),
        _ => None,
    };
    let sharing = match first {
        Some(first) if sources > 1 => Sockets::Shared {
            first,
            clients: sources,
        },
        _ => Sockets::Own(local),
    };
    let ends = match transport {
        Transport::Udp => sharing.needed(count),
        Transport::Tcp | Transport::Tls | Transport::Dtls => count,
    };
    if let Ok((soft, _)) = host::raise_open_files()
        && soft < (ends + peers + 32) as u64
    {
        bail!(
            "{} sockets are needed and {soft} open files allowed: raise the limit (ulimit -n), or lower --allocations or \
             --peers; over UDP on loopback, --sources lets clients share sockets",
            ends + peers
        );
    }
    let peer_address = arguments.peer_address.unwrap_or(local);
    let settings = settings(arguments, transport, Family::of(peer_address))?;
    let tls = match transport {
        Transport::Tls => Some((
            Trust::of(arguments.insecure, arguments.ca.as_deref())
                .config()
                .context("--insecure skips verification")?,
            tls::server_name(&arguments.uri.host)?,
        )),
        _ => None,
    };
    let options = UdpOptions {
        recv_buffer_bytes: BUFFER_BYTES,
        send_buffer_bytes: BUFFER_BYTES,
        trains: arguments.gro,
        ..UdpOptions::default()
    };
    let sockets = match transport {
        Transport::Udp => {
            knock(server)?;
            sharing.open(count, &options)?
        }
        Transport::Tcp | Transport::Tls | Transport::Dtls => Vec::new(),
    };
    let peers = open_sockets(peer_address, peers, &options)?;
    let mut clients = Vec::with_capacity(count);
    for index in 0..count {
        let link = match (transport, first) {
            (Transport::Udp, _) => sharing.link(index),
            (_, Some(first)) => {
                let source = Ipv4Addr::from_bits(first.to_bits() + (index % sources) as u32);
                Link::stream(source.into(), server, tls.as_ref())?
            }
            (_, None) => Link::stream(local, server, tls.as_ref())?,
        };
        let peer = match peers.get(peer_of(index, count, peers.len())) {
            Some(peer) => peer.local_addr(),
            // Hairpin: known once the partner has allocated.
            None => SocketAddr::new(peer_address, 0),
        };
        let client = Client::new(settings.clone(), Clock.now(), rand::random());
        clients.push(Flow { client, link, peer });
    }
    Flows::new(server, clients, (sharing, sockets), peers, arguments.gso)
}

/// Finds out at once if nobody listens at `server`: a connected socket learns it from the kernel.
///
/// # Errors
/// The port is closed. No answer at all is no error: packets get lost, and not every server answers Binding.
fn knock(server: SocketAddr) -> anyhow::Result<()> {
    let request = Request::new(Method::Binding, TransactionId(rand::random())).finish(None, true);
    let unspecified = crate::base::addr::unspecified(Family::of(server.ip()));
    let socket = std::net::UdpSocket::bind((unspecified, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(KNOCK))?;
    let refused = |result: io::Result<usize>| {
        result.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if refused(socket.send(&request)) || refused(socket.recv(&mut [0; 512])) {
        bail!(
            "nobody listens at {server} for UDP: start the server there, or give the address that it does listen on"
        );
    }
    Ok(())
}

fn settings(arguments: &Arguments, transport: Transport, peer: Family) -> anyhow::Result<Settings> {
    let (username, password) = match (&arguments.secret, &arguments.password) {
        (Some(secret), _) => {
            let expires_unix = Clock.now().unix_secs() + CREDENTIAL_SECS;
            let secret = Secret::new(secret.clone());
            let made = mint(&secret, arguments.user.as_deref(), expires_unix);
            (made.username, made.password)
        }
        (None, Some(password)) => (
            arguments.user.clone().unwrap_or_default(),
            Secret::new(password.clone()),
        ),
        (None, None) if arguments.user.is_some() => {
            bail!("give the user's password with --password, or the server's secret with --secret")
        }
        (None, None) => (String::new(), Secret::new(String::new())),
    };
    Ok(Settings {
        username,
        password,
        transport,
        // IPv4 is what servers give anyway; not every one knows the attribute.
        family: (peer == Family::V6).then_some(peer),
        lifetime_secs: Some(LIFETIME_SECS),
    })
}

/// The local address that reaches `server`. Sends nothing.
fn source_of(server: SocketAddr) -> anyhow::Result<IpAddr> {
    let unspecified = crate::base::addr::unspecified(Family::of(server.ip()));
    let probe = || {
        let socket = std::net::UdpSocket::bind((unspecified, 0))?;
        // connect(2) on a datagram socket only chooses route and source.
        socket.connect(server)?;
        socket.local_addr()
    };
    let local: io::Result<SocketAddr> = probe();
    Ok(local
        .with_context(|| format!("there is no route to {server}"))?
        .ip())
}
