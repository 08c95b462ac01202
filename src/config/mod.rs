//! The configuration: one TOML file, the environment and `--set`, read into each module's `Settings`.
//!
//! Knows every module's settings; no module knows this one. Refuses what it does not understand, what cannot be
//! meant and what this version does not enforce, all problems at once.
//!
//! ```text
//! --set key=value  >  TURNIX_SECTION__KEY  >  file  >  what the quick start chose  >  default
//! ```

mod acme;
mod auth;
mod changes;
mod cluster;
pub mod coturn;
mod drain;
mod exposure;
mod http;
mod limits;
mod listen;
mod load;
mod log;
mod oauth;
mod preset;
mod problem;
mod protocol;
mod quality;
mod reader;
mod realms;
mod records;
mod server;
mod sharing;
mod source;
mod tls;
pub mod values;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::access::Revocation;
use crate::base::Family;
use crate::base::addr::is_link_local;
use crate::cluster::{RevokedFile, UsersFile};
use crate::http::Token;
use crate::http::ice::ApiKey;
use crate::net::host;
use crate::{access, external, logging, stream, turn};

pub use auth::read_secret;
pub use changes::{Change, Keys};
pub use cluster::Cluster;
pub use load::{declared, host_name};
pub use problem::{Origin, Problem, Problems, Sources};
pub use reader::Declared;

/// Everything the operator decided.
#[derive(Clone, Debug)]
pub struct Config {
    /// Realm, credentials, peer policy, quotas.
    pub access: access::Settings,
    /// One or more server transport addresses.
    pub listeners: Vec<Listener>,
    /// Where relayed addresses come from.
    pub relay: Relay,
    /// How the core behaves.
    pub turn: turn::Settings,
    /// Open TCP connections per client IPv4 address or IPv6 /64; 0 is no limit.
    pub connections_per_address: u32,
    /// Connections that are passed through to other servers at once.
    pub upstream_connections: u32,
    /// The certificate; always there if a listener speaks TLS.
    pub tls: Option<Tls>,
    /// More certificates, for other names.
    pub certificates: Vec<PemFiles>,
    /// The address of metrics and admin API; `None` turns it off. Beyond loopback only with TLS and a token.
    pub admin: Option<SocketAddr>,
    /// Who may use the admin listener.
    pub http: Http,
    /// How many of the busiest allocations get series of their own.
    pub per_allocation: usize,
    /// How it is emptied and stopped.
    pub drain: Drain,
    /// How it runs on the host.
    pub server: Server,
    /// How another process takes over.
    pub handover: Handover,
    /// How to log.
    pub log: logging::Settings,
    /// Where access records go.
    pub records: crate::records::Settings,
    /// Where users are kept outside the configuration; a change there is a reload.
    pub directory: Option<UsersFile>,
    /// What is revoked, as a file says it that is read again when it changes.
    pub revoked: Vec<Revocation>,
    /// That file.
    pub revoked_file: Option<RevokedFile>,
    /// Who may ask the ICE configuration service.
    pub api_keys: Vec<ApiKey>,
    /// The servers of the service.
    pub cluster: Cluster,
    /// Every key and what it was given, to tell what a reload changes.
    pub keys: Keys,
    /// What works and should be put right: secrets that others can see.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// The local addresses that relay sockets are bound to: configured ones, else the listeners' own, else the host's.
    /// None on a host that has nothing but loopback.
    pub fn relay_locals(&self) -> Vec<IpAddr> {
        self.relay.locals(&self.listeners)
    }
}

/// A port and what is spoken on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where to listen; `[::]` takes IPv4 too. Port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// TURN over UDP.
    pub udp: bool,
    /// What is spoken over TCP.
    pub streams: stream::Protocols,
    /// TURN inside of DTLS, over UDP.
    pub dtls: bool,
    /// With whom its TCP port is shared.
    pub sharing: stream::Sharing,
}

impl Listener {
    /// Whether anything is spoken over UDP.
    pub const fn has_datagrams(&self) -> bool {
        self.udp || self.dtls
    }

    /// Whether anything is spoken over TCP.
    pub const fn has_streams(&self) -> bool {
        self.streams.tcp || self.streams.tls || self.streams.http
    }
}

/// Where relayed addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Local addresses to relay from; none: the listeners' own, else the host's.
    pub addresses: Vec<IpAddr>,
    /// What clients and peers are told instead.
    pub external: External,
    /// Whom to ask how private addresses look from outside, where `external` is [`External::Auto`].
    pub discovery: external::Settings,
    /// Ports of relayed addresses.
    pub ports: RangeInclusive<u16>,
}

impl Relay {
    /// The local addresses that relay sockets are bound to, with these listeners; see [`Config::relay_locals`].
    pub fn locals(&self, listeners: &[Listener]) -> Vec<IpAddr> {
        if !self.addresses.is_empty() {
            return self.addresses.clone();
        }
        let own = |listener: &Listener| listener.address.ip().to_canonical();
        let specific = |ip: &IpAddr| !ip.is_unspecified();
        let mut locals: Vec<IpAddr> = (listeners.iter().map(own)).filter(specific).collect();
        if locals.is_empty() {
            locals.extend(Family::ALL.into_iter().filter_map(host::default_source));
        }
        if locals.is_empty() {
            let usable = |ip: &IpAddr| !ip.is_loopback() && !is_link_local(*ip);
            locals.extend(host::interface_addresses().into_iter().filter(usable));
        }
        let mut seen = HashSet::new();
        locals.retain(|ip| seen.insert(*ip));
        locals
    }
}

/// How local relay addresses look from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum External {
    /// As the host's interfaces tell, and whoever `relay.metadata` and `relay.stun_servers` name.
    Auto,
    /// As the operator wrote.
    Mapped(Vec<Mapping>),
}

/// One 1:1 NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The local address; `None`: every local address of the same family.
    pub local: Option<IpAddr>,
    /// The address that clients and peers use.
    pub external: IpAddr,
}

impl External {
    /// The mapped external address of `local`, if the operator wrote one.
    pub fn of(&self, local: IpAddr) -> Option<IpAddr> {
        let Self::Mapped(mappings) = self else {
            return None;
        };
        mappings
            .iter()
            .find(|mapping| mapping.local == Some(local))
            .or_else(|| {
                mappings.iter().find(|mapping| {
                    mapping.local.is_none() && mapping.external.is_ipv4() == local.is_ipv4()
                })
            })
            .map(|mapping| mapping.external)
    }
}

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Tls {
    /// Somebody else renews it.
    Files(PemFiles),
    /// It is ordered and renewed here.
    Acme(crate::acme::Settings),
}

impl Tls {
    /// The files, if it comes from files.
    pub const fn files(&self) -> Option<&PemFiles> {
        match self {
            Self::Files(files) => Some(files),
            Self::Acme(_) => None,
        }
    }
}

/// Where a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFiles {
    /// PEM chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// PEM private key; may be the same file.
    pub key: PathBuf,
}

/// How the server is emptied and stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long a drain lasts at most, unless its order says otherwise.
    pub deadline: Duration,
    /// How long a server that is told to stop waits for allocations to end.
    pub grace: Duration,
    /// Servers that new clients are sent to instead.
    pub alternates: Vec<SocketAddr>,
    /// The share of its capacity in percent from which new clients are sent there without a drain; 0: never.
    pub overload_percent: u32,
}

/// What is spoken over HTTP besides the ICE configuration service.
#[derive(Clone, Debug)]
pub struct Http {
    /// Whether it speaks HTTPS, with the certificate of `tls`.
    pub tls: bool,
    /// What has to be shown; `None`: nothing.
    pub token: Option<Token>,
    /// Names and addresses it may be asked by besides its own.
    pub hosts: Vec<String>,
    /// How far back the dashboard sees.
    pub history: Duration,
    /// Whether listeners that speak `http` have the test page, with credentials for each visit.
    pub test_page: bool,
    /// Whether they have the status page.
    pub status_page: bool,
}

/// How the server runs on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Threads that relay; 0 is one per core.
    pub shards: usize,
    /// Whether each of them keeps to a CPU of its own.
    pub pin_shards: bool,
    /// How long a shard asks for packets again and again before it sleeps.
    pub busy_poll: Duration,
    /// How often the server looks at itself through its own listeners; zero: never.
    pub canary: Duration,
    /// Whether a crash may leave a core dump, which holds every secret.
    pub core_dumps: bool,
    /// Receive and send buffer of a listener, in bytes.
    pub listener_buffer_bytes: usize,
    /// Receive and send buffer of a relay socket, in bytes.
    pub relay_buffer_bytes: usize,
}

/// How another process takes over from the running one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Where it asks.
    pub socket: HandoverSocket,
    /// How long TLS connections, which cannot change processes, are served on.
    pub grace: Duration,
}

/// Where a process that wants to take over asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverSocket {
    /// `$RUNTIME_DIRECTORY/handover.sock`, else in the state directory.
    Auto,
    /// Nowhere.
    Off,
    /// There.
    At(PathBuf),
}
