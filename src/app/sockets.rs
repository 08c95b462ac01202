//! What the server listens on and relays from: opened all at once, so that all refusals are told at once.

use std::net::{SocketAddr, TcpListener};

use crate::access::OwnAddresses;
use crate::config::{Config, Listener, Problem};
use crate::lifecycle::Inherited;
use crate::net::{self, UdpSocket};
use crate::records::Emitter;
use crate::shard::{self, RelayIp, Speaks};

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// Whether sockets can be bound to every relay IP.
pub(super) fn check_relays(relays: &[RelayIp], problems: &mut Vec<Problem>) {
    for relay in relays {
        if let Err(error) = std::net::UdpSocket::bind((relay.local, 0)) {
            problems.push(Problem::host(
                "relay.addresses",
                format!("cannot relay from {}: {error}", relay.local),
                "name addresses of this host's interfaces (see `ip address`)",
            ));
        }
    }
}

/// A TCP port: one that systemd opened, else one of our own.
pub(super) fn open_tcp(
    key: &str,
    address: SocketAddr,
    inherited: &mut Inherited,
    problems: &mut Vec<Problem>,
) -> Option<TcpListener> {
    if let Some(socket) = inherited.take_tcp(address) {
        return Some(socket);
    }
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

/// The UDP sockets that systemd opened for `listeners`, as far as `shards` can share them.
pub(super) fn inherited_udp(
    listeners: &[Listener],
    shards: usize,
    inherited: &mut Inherited,
    problems: &mut Vec<Problem>,
) -> Vec<UdpSocket> {
    let mut sockets = Vec::new();
    for listener in listeners.iter().filter(|listener| listener.has_datagrams()) {
        let Some(socket) = inherited.take_udp(listener.address) else {
            continue;
        };
        match UdpSocket::adopt(socket, &shard::listener_options(listener.address, 0)) {
            Ok(socket) if shards > 1 && !socket.reuses_port() => problems.push(Problem::host(
                "listen",
                format!(
                    "systemd opened udp {} without SO_REUSEPORT, so {shards} shards cannot share it",
                    listener.address
                ),
                "write ReusePort=yes into the .socket unit, or set server.shards = 1",
            )),
            Ok(socket) => sockets.push(socket),
            Err(error) => problems.push(Problem::host(
                "listen",
                format!("the socket that systemd opened for udp {} is of no use: {error}", listener.address),
                "see the system's message",
            )),
        }
    }
    sockets
}

pub(super) fn udp_problem(error: &shard::BindError) -> Problem {
    let remedy = shard::way_out(&error.source).unwrap_or("see the system's message");
    let found = format!("cannot bind udp {}: {}", error.address, error.source);
    Problem::host("listen", found, remedy)
}

/// Everything that is this server, for the peer policy.
pub(super) fn own_addresses(
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

/// What is spoken with datagrams on `listener`.
pub(super) const fn speaks(listener: &Listener) -> Speaks {
    Speaks {
        plain: listener.udp,
        dtls: listener.dtls,
    }
}

pub(super) fn shard_settings(
    config: &Config,
    listeners: &[Listener],
    relays: Vec<RelayIp>,
    records: Option<Emitter>,
    dtls: shard::Dtls,
) -> shard::Settings {
    shard::Settings {
        shards: shard_count(config),
        listeners: (listeners.iter())
            .filter(|listener| listener.has_datagrams())
            .map(|listener| listener.address)
            .collect(),
        speaks: (listeners.iter())
            .filter(|listener| listener.has_datagrams())
            .map(speaks)
            .collect(),
        dtls,
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

pub(super) fn shard_count(config: &Config) -> usize {
    match config.server.shards {
        0 => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(shard::MAX_SHARDS as usize),
        shards => shards,
    }
}
