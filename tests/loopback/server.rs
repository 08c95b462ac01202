//! A server under test, and what a test may ask of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use turnix::app::{self, Running};
use turnix::base::{Clock, Family};
use turnix::config::{Config, Sources};
use turnix::metrics::{NamedAllocation, ShardSnapshot};
use turnix::stream::certificates;
use turnix::turn::stats::Traffic;
use turnix::turn::{Bandwidth, Direction, DropReason, Path};

use super::common::wire::REALM;
use super::common::world::{PASSWORD, SECRET, USER};

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Both families on loopback, as most tests want it.
pub const BOTH: &[&str] = &["127.0.0.1:0", "[::1]:0"];

pub fn now() -> Instant {
    Clock.now().mono
}

/// Waits until `reached` holds.
#[track_caller]
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !reached() {
        assert!(now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// An address of 127.0.0.0/8 that no other test uses, so that its ports are free.
pub fn quiet_address() -> Ipv4Addr {
    let [a, b, c]: [u8; 3] = rand::random();
    Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(1, 254))
}

/// A plain UDP peer with room for a burst.
pub fn peer(ip: impl Into<IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((ip.into(), 0)).unwrap();
    socket2::SockRef::from(&socket)
        .set_recv_buffer_size(4 << 20)
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram in time");
    buffer.truncate(length);
    (buffer, from)
}

pub struct Server {
    running: Option<Running>,
    runtime: tokio::runtime::Runtime,
    pub tls: Arc<ClientConfig>,
}

impl Server {
    /// Two shards on `127.0.0.1` and `::1`, every protocol on one port each; loopback peers are allowed.
    pub fn new() -> Self {
        Self::with(BOTH, &[])
    }

    /// Listening on `listen`, with `key=value` settings on top.
    pub fn with(listen: &[&str], set: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let names = ["127.0.0.1", "127.0.0.2", "::1"].map(str::to_owned);
        let signed = certificates::self_signed(&names, Clock.now().unix_secs()).unwrap();
        let (chain, key) = (
            directory.path().join("chain.pem"),
            directory.path().join("key.pem"),
        );
        std::fs::write(&chain, &signed.certificate_pem).unwrap();
        std::fs::write(&key, signed.key_pem.expose()).unwrap();
        let set = [
            format!("tls.certificate='{}'", chain.display()),
            format!("tls.key='{}'", key.display()),
        ]
        .into_iter()
        .chain(set.iter().map(|text| (*text).to_owned()))
        .collect();
        let config = config(listen, r#"["udp", "tcp", "tls", "http", "dtls"]"#, set);
        // The kernel chooses the TCP port; that the same UDP port is free is likely, no more.
        let running = (0..20)
            .find_map(|_| match app::start(config.clone()) {
                Ok(running) => Some(running),
                Err(error) if format!("{error:#}").contains("in use") => None,
                Err(error) => panic!("{error:#}"),
            })
            .expect("a port that is free for UDP and TCP");

        let mut roots = RootCertStore::empty();
        let leaf = CertificateDer::from_pem_slice(signed.certificate_pem.as_bytes()).unwrap();
        roots.add(leaf).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            running: Some(running),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            tls: Arc::new(tls),
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Where clients of `family` find the server, on loopback.
    pub fn address(&self, family: Family) -> SocketAddr {
        (self.running().started.listeners.iter())
            .map(|listener| listener.address)
            .find(|address| Family::of(address.ip()) == family)
            .expect("a listener of the family")
    }

    /// Replaces the limits of traffic while it runs.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn set_limits(&self, bandwidth: Bandwidth, new_peers_per_second: u32) {
        let shards = self.running().shards();
        shards.set_limits(bandwidth, new_peers_per_second);
    }

    pub fn admin(&self) -> SocketAddr {
        self.running().started.admin.unwrap()
    }

    pub fn snapshot(&self) -> ShardSnapshot {
        self.runtime.block_on(self.running().shards().snapshot())
    }

    /// Share of the scarcest resource in use, as `turn_capacity_ratio` has it.
    pub fn capacity_ratio(&self) -> f64 {
        self.running().shards().capacity_ratio()
    }

    pub fn allocations(&self) -> Vec<NamedAllocation> {
        (self.runtime).block_on(self.running().shards().allocations(usize::MAX))
    }

    /// Live allocations of each realm but the default one.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn realms(&self) -> Vec<(String, u32)> {
        let realms = self.running().shards().capacity().realms.into_iter();
        realms
            .map(|(name, live)| (name.as_str().to_owned(), live))
            .collect()
    }

    /// An operator ends all of `user`.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn end_user(&self, user: &str) {
        let ended = self
            .runtime
            .block_on(self.running().shards().end_user(user));
        assert!(ended > 0);
    }

    /// The allocation with the relayed address `relayed`.
    #[track_caller]
    pub fn allocation(&self, relayed: SocketAddr) -> NamedAllocation {
        (self.allocations().into_iter())
            .find(|named| named.view.relayed == relayed)
            .expect("a live allocation")
    }

    pub fn live(&self) -> u64 {
        self.snapshot().stats.live.as_flattened().iter().sum()
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.snapshot().stats.dropped[reason as usize]
    }

    pub fn relayed(&self, direction: Direction, path: Path) -> Traffic {
        self.snapshot().stats.relayed[direction as usize][path as usize]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

/// A configuration for tests; nothing of it touches the host beyond loopback.
pub fn config(listen: &[&str], protocols: &str, set: Vec<String>) -> Config {
    let listeners: String = listen
        .iter()
        .map(|address| format!("[[listen]]\naddress = \"{address}\"\nprotocols = {protocols}\n"))
        .collect();
    let base = format!(
        "realm = \"{REALM}\"\n\
         [auth]\nusers = {{ {USER} = \"{PASSWORD}\", bob = \"builder\" }}\nsecrets = [\"{SECRET}\"]\n\
         [peers]\nallow = [\"loopback\"]\n\
         [http]\nadmin = \"\"\n\
         [server]\nshards = 2\ncanary = \"0\"\n\
         {listeners}"
    );
    Config::load(&Sources {
        base: Some(base),
        set,
        ..Sources::default()
    })
    .unwrap_or_else(|problems| panic!("{problems}"))
}
