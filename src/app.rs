//! Composition root: builds everything once, in rank order, and takes it down again.

mod host;
pub mod ice;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::access::{Access, OwnAddresses};
use crate::base::addr::is_private;
use crate::cluster;
use crate::config::{Config, External, Listener, Mapping, Problem, Problems, Sources};
use crate::http::{self, Front};
use crate::net;
use crate::records::{Emitter, Records};
use crate::shard::{self, RelayIp, Shards};
use crate::stream::{self, Admission, Certificates};

pub use host::shortages as host_shortages;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// Threads of the control runtime: accepting, TLS handshakes, HTTP.
const CONTROL_THREADS: usize = 2;

/// How much these threads stand back where they share a CPU with a shard, as nice(1) counts: a handshake takes longer
/// than relaying a hundred packets, and can wait for them.
const CONTROL_NICE: u8 = 10;

/// How long the receiver of access records has to take what is left at the end.
const RECORDS_GRACE: Duration = Duration::from_secs(5);

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
    shards: Shards,
    threads: Vec<JoinHandle<()>>,
    control: Runtime,
    records: Option<Records>,
}

/// Serves until told to stop; calls `started` once, when every socket is open. `sources` are for reloads.
///
/// # Errors
/// What keeps the server from starting or from going on; [`Problems`] for what the operator can change.
pub fn run(
    config: Config,
    _sources: Sources,
    started: impl FnOnce(&Started),
) -> anyhow::Result<()> {
    let running = start(config)?;
    started(&running.started);
    running.control.block_on(told_to_stop())?;
    running.stop();
    Ok(())
}

/// Opens every socket and starts every thread.
///
/// # Errors
/// All problems of the host at once, as [`Problems`].
pub fn start(config: Config) -> anyhow::Result<Running> {
    for shortage in host_shortages(&config) {
        tracing::warn!("{shortage}");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut problems = Vec::new();
    let certificates = config.tls.as_ref().and_then(|tls| {
        match stream::certificates::load(&tls.certificate, &tls.key) {
            Ok(certificate) => Some(Certificates::new(certificate)),
            Err(error) => {
                problems.push(Problem::host(
                    "tls",
                    error.to_string(),
                    "put it right and start again",
                ));
                None
            }
        }
    });
    let relays = relay_ips(&config, &mut problems);
    let (mut listeners, stream_sockets) = open_stream_listeners(&config, &mut problems);
    let admin = config
        .admin
        .and_then(|address| open("http.admin", address, &mut problems));
    let records = start_records(&config, &mut problems);
    if !problems.is_empty() {
        let udp: Vec<_> = (listeners.iter().filter(|listener| listener.udp))
            .map(|listener| listener.address)
            .collect();
        problems.extend(shard::unavailable(&udp).iter().map(udp_problem));
        return Err(Problems::new(problems).into());
    }

    let admin_address = (admin.as_ref()).and_then(|socket| socket.local_addr().ok());
    let decide = |listeners: &[Listener]| {
        let own = own_addresses(&config, listeners, &relays, admin_address);
        Arc::new(Access::new(&config.access, own))
    };
    let emitter = records.as_ref().map(Records::emitter);
    let settings = shard_settings(&config, &listeners, relays.clone(), emitter);
    let (shards, threads) = Shards::start(&settings, decide(&listeners))
        .map_err(|errors| Problems::new(errors.iter().map(udp_problem).collect()))?;
    if listeners
        .iter()
        .any(|listener| listener.address.port() == 0)
    {
        // The policy closes our own ports to peers, and only now it is known which these are.
        listeners = with_real_ports(listeners, shards.listeners());
        shards.set_access(&decide(&listeners));
    }

    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .on_thread_start(|| net::host::stand_back(CONTROL_NICE))
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    if let Some(every) = records.as_ref().and_then(Records::interim) {
        control.spawn(shards.clone().record_live_forever(every));
    }
    let draining = Arc::new(AtomicBool::new(false));
    let mappings: Vec<Mapping> = (relays.iter())
        .map(|ip| Mapping {
            local: Some(ip.local),
            external: ip.external,
        })
        .collect();
    let fleet = ice::fleet(&config);
    control.spawn(cluster::canary::watch(
        Arc::clone(&fleet),
        ice::mint(&config),
    ));
    let offer = ice::offer(&config, &listeners, mappings.clone(), fleet);
    let service = http::ice::Service::new(shards.clone(), offer);
    let front = Front::new(
        http::public::router(shards.clone(), Arc::clone(&draining), service),
        http::Limits::PUBLIC,
    );
    let admission = Admission::new(config.connections_per_address);
    for (socket, protocols) in stream_sockets {
        let settings = stream::Settings {
            protocols,
            ..stream::Settings::default()
        };
        let listener = stream::Listener::new(socket, settings, certificates.clone())?
            .within(Arc::clone(&admission));
        let (shards, front) = (shards.clone(), front.clone());
        control.spawn(async move {
            let serve_http = move |stream| {
                let front = front.clone();
                tokio::spawn(async move { front.serve(stream).await });
            };
            let error = listener
                .run(move |stream| shards.adopt(stream), serve_http)
                .await;
            tracing::error!(%error, "a stream listener cannot go on");
        });
    }
    let admin = match admin {
        None => None,
        Some(socket) => {
            let mut state = http::admin::AdminState::new(
                shards.clone(),
                draining,
                certificates.clone(),
                Arc::clone(&admission),
                http::admin::Settings {
                    node: config.cluster.node,
                    region: config.cluster.region,
                    version: env!("CARGO_PKG_VERSION"),
                    per_allocation: config.per_allocation,
                    hosts: config.http.hosts,
                    token: config.http.token,
                },
            );
            if let Some(records) = &records {
                state = state.with_records(records.counts());
            }
            let front = Front::new(http::admin::router(state), http::Limits::ADMIN);
            match certificates.filter(|_| config.http.tls) {
                None => control.spawn(async move {
                    let error = front.listen(socket).await;
                    tracing::error!(%error, "the admin listener cannot go on");
                }),
                Some(certificates) => {
                    let listener = stream::Listener::https(socket, certificates)?.within(admission);
                    control.spawn(async move {
                        let serve_http = move |stream| {
                            let front = front.clone();
                            tokio::spawn(async move { front.serve(stream).await });
                        };
                        let error = listener.run(drop, serve_http).await;
                        tracing::error!(%error, "the admin listener cannot go on");
                    })
                }
            };
            admin_address
        }
    };
    let started = Started {
        listeners,
        relays: mappings,
        admin,
    };
    log_started(&started, shards.count());
    Ok(Running {
        started,
        shards,
        threads,
        control,
        records,
    })
}

impl Running {
    /// The shards, for whoever wants to look at them.
    pub const fn shards(&self) -> &Shards {
        &self.shards
    }

    /// The access records, if anybody wants them.
    pub const fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }

    /// Ends every allocation, then every thread; what access records are left is written.
    pub fn stop(self) {
        self.shards.stop();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a shard had panicked");
            }
        }
        if let Some(records) = self.records {
            records.close(RECORDS_GRACE);
        }
        self.control.shutdown_background();
        tracing::info!("stopped");
    }
}

/// SIGTERM or SIGINT.
async fn told_to_stop() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    Ok(())
}

/// Every relay IP from both sides of a 1:1 NAT.
fn relay_ips(config: &Config, problems: &mut Vec<Problem>) -> Vec<RelayIp> {
    let mut locals = config.relay_locals();
    if locals.is_empty() {
        tracing::warn!(
            "this host has no address but loopback: relaying from 127.0.0.1, for clients on this host only"
        );
        locals.push(IpAddr::from([127, 0, 0, 1]));
    }
    let relays: Vec<_> = locals
        .into_iter()
        .map(|local| RelayIp {
            local,
            external: config.relay.external.of(local).unwrap_or(local),
        })
        .collect();
    for relay in &relays {
        if let Err(error) = std::net::UdpSocket::bind((relay.local, 0)) {
            problems.push(Problem::host(
                "relay.addresses",
                format!("cannot relay from {}: {error}", relay.local),
                "name addresses of this host's interfaces (see `ip address`)",
            ));
        }
    }
    let private = |ip: IpAddr| is_private(ip) || ip.is_loopback();
    if config.relay.external == External::Auto
        && relays.iter().all(|relay| private(relay.external))
        && !relays.iter().all(|relay| relay.external.is_loopback())
    {
        tracing::warn!(
            relayed = ?relays.iter().map(|relay| relay.external).collect::<Vec<_>>(),
            "relayed addresses are private: only clients in the same network can use them. Behind NAT, set \
             relay.external_address to the public address and forward the relay ports"
        );
    }
    relays
}

/// Binds the TCP side of every listener. Where port 0 is asked for, UDP and TCP get the same port.
fn open_stream_listeners(
    config: &Config,
    problems: &mut Vec<Problem>,
) -> (Vec<Listener>, Vec<(TcpListener, stream::Protocols)>) {
    let mut listeners = config.listeners.clone();
    let mut sockets = Vec::new();
    for listener in listeners
        .iter_mut()
        .filter(|listener| listener.has_streams())
    {
        if let Some(socket) = open("listen", listener.address, problems) {
            if let Ok(bound) = socket.local_addr() {
                listener.address = bound;
            }
            sockets.push((socket, listener.streams));
        }
    }
    (listeners, sockets)
}

/// Opens the file and starts the threads of access records, if anybody wants them.
fn start_records(config: &Config, problems: &mut Vec<Problem>) -> Option<Records> {
    let settings = Some(&config.records).filter(|settings| settings.is_wanted())?;
    match Records::start(settings) {
        Ok(records) => Some(records),
        Err(error) => {
            let file = (settings.file.as_ref()).map_or_else(
                || "the webhook".to_owned(),
                |file| file.display().to_string(),
            );
            problems.push(Problem::host(
                "records",
                format!("cannot keep access records in {file}: {error}"),
                "let the user that the server runs as write there, or leave records.file empty",
            ));
            None
        }
    }
}

fn open(key: &str, address: SocketAddr, problems: &mut Vec<Problem>) -> Option<TcpListener> {
    match net::tcp_listener(address, BACKLOG) {
        Ok(socket) => Some(socket),
        Err(error) => {
            let remedy = shard::way_out(&error).unwrap_or("see the system's message");
            let found = format!("cannot bind tcp {address}: {error}");
            problems.push(Problem::host(key, found, remedy));
            None
        }
    }
}

fn udp_problem(error: &shard::BindError) -> Problem {
    let remedy = shard::way_out(&error.source).unwrap_or("see the system's message");
    let found = format!("cannot bind udp {}: {}", error.address, error.source);
    Problem::host("listen", found, remedy)
}

/// Everything that is this server, for the peer policy.
fn own_addresses(
    config: &Config,
    listeners: &[Listener],
    relays: &[RelayIp],
    admin: Option<SocketAddr>,
) -> OwnAddresses {
    let mut host = net::host::interface_addresses();
    host.extend(listeners.iter().map(|l| l.address.ip().to_canonical()));
    host.extend(
        relays
            .iter()
            .flat_map(|relay| [relay.local, relay.external]),
    );
    host.retain(|ip| !ip.is_unspecified());
    host.sort_unstable();
    host.dedup();
    OwnAddresses {
        relays: relays.iter().map(|relay| relay.external).collect(),
        relay_ports: config.relay.ports.clone(),
        host,
        service_ports: listeners
            .iter()
            .map(|listener| listener.address.port())
            .chain(admin.map(|admin| admin.port()))
            .collect(),
    }
}

fn shard_settings(
    config: &Config,
    listeners: &[Listener],
    relays: Vec<RelayIp>,
    records: Option<Emitter>,
) -> shard::Settings {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    shard::Settings {
        shards: match config.server.shards {
            0 => cores().min(shard::MAX_SHARDS as usize),
            shards => shards,
        },
        listeners: (listeners.iter())
            .filter(|listener| listener.udp)
            .map(|listener| listener.address)
            .collect(),
        relays,
        ports: config.relay.ports.clone(),
        limits: config.access.limits,
        listener_buffer_bytes: config.server.listener_buffer_bytes,
        relay_buffer_bytes: config.server.relay_buffer_bytes,
        cpus: if config.server.pin_shards {
            net::host::usable_cpus()
        } else {
            Vec::new()
        },
        busy_poll: config.server.busy_poll,
        stream_idle: shard::STREAM_IDLE,
        records,
        turn: config.turn.clone(),
    }
}

/// `listeners` with the ports that UDP listeners got.
fn with_real_ports(mut listeners: Vec<Listener>, udp: &[SocketAddr]) -> Vec<Listener> {
    for (listener, bound) in listeners.iter_mut().filter(|l| l.udp).zip(udp) {
        listener.address = *bound;
    }
    listeners
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
