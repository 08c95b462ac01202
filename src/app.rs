//! Composition root: builds everything once, in rank order, and takes it down again.

mod doors;
mod host;
mod serve;
mod sockets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::access::Access;
use crate::config::{Config, Listener, Mapping, Problem, Problems, Sources};
use crate::http::{self, Asked, Front, Operator};
use crate::lifecycle::{Drain, Inherited};
use crate::net;
use crate::shard::{self, RelayIp, Shards};
use crate::stream::{self, Admission, Certificates};

use doors::{AdminDoor, Door, Lobby};
use sockets::{
    inherited_udp, open_tcp, own_addresses, relay_ips, shard_count, shard_settings, udp_problem,
};

pub use host::shortages as host_shortages;
pub use serve::SetLog;

/// Threads of the control runtime: accepting, TLS handshakes, HTTP.
const CONTROL_THREADS: usize = 2;

/// How much these threads stand back where they share a CPU with a shard, as nice(1) counts: a handshake takes longer
/// than relaying a hundred packets, and can wait for them.
const CONTROL_NICE: u8 = 10;

/// A server whose sockets are open, as it really listens and relays.
#[derive(Clone, Debug)]
pub struct Started {
    /// The listeners, with the ports that the kernel chose where 0 was asked for.
    pub listeners: Vec<Listener>,
    /// Every local relay address and how clients and peers see it.
    pub relays: Vec<Mapping>,
    /// Where metrics and the admin API answer.
    pub admin: Option<SocketAddr>,
}

/// A running server; `stop` ends it in order.
pub struct Running {
    /// What is open.
    pub started: Started,
    /// What is in effect.
    config: Config,
    /// Beside `started.listeners`, one for one.
    listeners: Vec<Open>,
    shards: Shards,
    threads: Vec<JoinHandle<()>>,
    control: Runtime,
    lobby: Lobby,
    certificates: Option<Arc<Certificates>>,
    admin: Option<AdminDoor>,
    drain: Drain,
    operator: Operator,
    orders: mpsc::Receiver<Asked>,
}

/// One listener as it was asked for, and what is open for it.
struct Open {
    /// As configured: its port may be 0.
    wanted: Listener,
    door: Option<Door>,
}

/// Serves until told to stop; calls `started` once, when every socket is open. `sources` are read again by reloads,
/// which change the log by `set_log`.
///
/// # Errors
/// What keeps the server from starting or from going on; [`Problems`] for what the operator can change.
pub fn run(
    config: Config,
    sources: Sources,
    set_log: SetLog,
    started: impl FnOnce(&Started),
) -> anyhow::Result<()> {
    let running = start_on(config, Inherited::from_environment())?;
    started(&running.started);
    running.serve(&sources, &set_log)
}

/// Opens every socket and starts every thread.
///
/// # Errors
/// All problems of the host at once, as [`Problems`].
pub fn start(config: Config) -> anyhow::Result<Running> {
    start_on(config, Inherited::default())
}

/// The same, with sockets that systemd opened where it did.
///
/// # Errors
/// All problems of the host at once, as [`Problems`].
pub fn start_on(config: Config, mut inherited: Inherited) -> anyhow::Result<Running> {
    for shortage in host_shortages(&config) {
        tracing::warn!("{shortage}");
    }
    let mut problems = Vec::new();
    let certificates = load_certificate(&config, &mut problems).map(Certificates::new);
    let relays = relay_ips(&config, &mut problems);
    let mut listeners = config.listeners.clone();
    // Bound first: where port 0 is asked for, UDP gets the port that TCP got.
    let mut tcp = Vec::new();
    for listener in &mut listeners {
        let socket = listener.has_streams().then(|| {
            let socket = open_tcp("listen", listener.address, &mut inherited, &mut problems)?;
            if let Ok(bound) = socket.local_addr() {
                listener.address = bound;
            }
            Some(socket)
        });
        tcp.push(socket.flatten());
    }
    let admin = config
        .admin
        .and_then(|address| open_tcp("http.admin", address, &mut inherited, &mut problems));
    let udp = inherited_udp(
        &listeners,
        shard_count(&config),
        &mut inherited,
        &mut problems,
    );
    if !problems.is_empty() {
        let udp: Vec<_> = (listeners.iter().filter(|listener| listener.udp))
            .map(|listener| listener.address)
            .collect();
        problems.extend(shard::unavailable(&udp).iter().map(udp_problem));
        return Err(Problems::new(problems).into());
    }
    for left in inherited.left() {
        tracing::warn!(
            socket = left,
            "systemd gave a socket that no [[listen]] names: closed"
        );
    }

    let admin_address = (admin.as_ref()).and_then(|socket| socket.local_addr().ok());
    let decide = |listeners: &[Listener]| {
        let own = own_addresses(&config, listeners, &relays, admin_address);
        Arc::new(Access::new(&config.access, own))
    };
    let settings = shard_settings(&config, &listeners, relays.clone());
    let (shards, threads) = Shards::start_on(&settings, decide(&listeners), udp)
        .map_err(|errors| Problems::new(errors.iter().map(udp_problem).collect()))?;
    if listeners
        .iter()
        .any(|listener| listener.address.port() == 0)
    {
        // The policy closes our own ports to peers, and only now it is known which these are.
        let udp = shards.listeners();
        for (listener, bound) in listeners.iter_mut().filter(|l| l.udp).zip(udp) {
            listener.address = *bound;
        }
        shards.set_access(&decide(&listeners));
    }

    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .on_thread_start(|| net::host::stand_back(CONTROL_NICE))
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let drain = Drain::default();
    let (operator, orders) = Operator::new(drain.deadline_unix_ms());
    let lobby = Lobby::new(
        shards.clone(),
        Admission::new(config.connections_per_address),
        control.handle().clone(),
        public_front(&shards, &drain),
    );
    let mut open = Vec::new();
    for (wanted, socket) in config.listeners.iter().zip(tcp) {
        let door = socket
            .map(|socket| lobby.open(socket, wanted.streams, certificates.clone()))
            .transpose()?;
        open.push(Open {
            wanted: *wanted,
            door,
        });
    }
    let mut running = Running {
        started: Started {
            listeners,
            relays: mappings(&relays),
            admin: admin_address,
        },
        config,
        listeners: open,
        shards,
        threads,
        control,
        lobby,
        certificates,
        admin: None,
        drain,
        operator,
        orders,
    };
    if let Some(socket) = admin {
        let handle = running.control.handle();
        running.admin = Some(AdminDoor::open(socket, running.admin_state(), handle)?);
    }
    log_started(&running.started, running.shards.count());
    Ok(running)
}

impl Running {
    /// The shards, for whoever wants to look at them.
    pub const fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Ends every allocation, then every thread.
    pub fn stop(self) {
        self.shards.stop();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a shard had panicked");
            }
        }
        self.control.shutdown_background();
        tracing::info!("stopped");
    }

    /// What the admin listener answers from, as the configuration in effect has it.
    fn admin_state(&self) -> http::admin::AdminState<Shards> {
        let config = &self.config;
        http::admin::AdminState::new(
            self.shards.clone(),
            self.drain.flag(),
            self.certificates.clone(),
            Arc::clone(&self.lobby.admission),
            http::admin::Settings {
                node: config.node.clone(),
                region: config.region.clone(),
                version: env!("CARGO_PKG_VERSION"),
                per_allocation: config.per_allocation,
                hosts: (config.admin.iter())
                    .map(|admin| admin.ip().to_string())
                    .collect(),
            },
        )
        .operated_by(self.operator.clone())
    }
}

/// What strangers may ask over HTTP.
fn public_front(shards: &Shards, drain: &Drain) -> Front {
    Front::new(
        http::public::router(shards.clone(), drain.flag()),
        http::Limits::PUBLIC,
    )
}

fn load_certificate(
    config: &Config,
    problems: &mut Vec<Problem>,
) -> Option<stream::certificates::Certificate> {
    let tls = config.tls.as_ref()?;
    match stream::certificates::load(&tls.certificate, &tls.key) {
        Ok(certificate) => Some(certificate),
        Err(error) => {
            problems.push(Problem::host(
                "tls",
                error.to_string(),
                "put it right and start again",
            ));
            None
        }
    }
}

fn mappings(relays: &[RelayIp]) -> Vec<Mapping> {
    (relays.iter())
        .map(|ip| Mapping {
            local: Some(ip.local),
            external: ip.external,
        })
        .collect()
}

fn log_started(started: &Started, shards: usize) {
    for listener in &started.listeners {
        let speaks = [
            (listener.udp, "udp"),
            (listener.streams.tcp, "tcp"),
            (listener.streams.tls, "tls"),
            (listener.streams.http, "http"),
        ];
        let speaks: Vec<_> = (speaks.iter())
            .filter_map(|(on, name)| on.then_some(*name))
            .collect();
        tracing::info!(address = %listener.address, protocols = speaks.join(","), "listening");
    }
    for relay in &started.relays {
        let local = relay.local.unwrap_or(relay.external);
        tracing::info!(%local, external = %relay.external, "relaying");
    }
    if let Some(admin) = started.admin {
        tracing::info!(address = %admin, "admin API and metrics");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), shards, "turnix serves");
}
