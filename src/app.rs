//! Composition root: builds everything once, in rank order, and takes it down again.

mod canary;
mod certification;
mod doors;
mod handover;
mod host;
pub mod ice;
mod outside;
mod reload;
mod serve;
mod sockets;
mod watch;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::access::Access;
use crate::base::Clock;
use crate::base::trace::Traces;
use crate::cluster::{self, Fleet, Ledger};
use crate::config::{Config, Listener, Mapping, Problem, Problems, Sources};
use crate::external::Seen;
use crate::http::status::Board;
use crate::http::visits::Visits;
use crate::http::{self, Asked, Events, Front, Operator};
use crate::lifecycle::handover::{Approach, Giver, Place};
use crate::lifecycle::{Drain, Inherited};
use crate::net;
use crate::records::Records;
use crate::shard::{self, ListenerSlot, RelayIp, Shards};
use crate::stream::{Admission, Certificates};
use crate::turn::Newcomers;

use certification::{Certification, First};
use doors::{AdminDoor, Door, Lobby, Prepared, PreparedAdmin};
use handover::{Reception, check_shards, place_of, refused};
use outside::{Watched, relay_ips};
use sockets::{
    check_relays, inherited_udp, open_tcp, own_addresses, shard_count, shard_settings, udp_problem,
};

pub use handover::TakeOver;
pub use host::shortages as host_shortages;
pub use outside::Outside;
pub use reload::Reloaded;
pub use serve::SetLog;

/// Threads of the control runtime: accepting, TLS handshakes, HTTP.
const CONTROL_THREADS: usize = 2;

/// How much these threads stand back where they share a CPU with a shard, as nice(1) counts: a handshake takes longer
/// than relaying a hundred packets, and can wait for them.
const CONTROL_NICE: u8 = 10;

/// How long the shards may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How long the receiver of access records has to take what is left at the end.
const RECORDS_GRACE: Duration = Duration::from_secs(5);

/// A server whose sockets are open, as it really listens and relays.
#[derive(Clone, Debug)]
pub struct Started {
    /// The listeners, with the ports that the kernel chose where 0 was asked for.
    pub listeners: Vec<Listener>,
    /// Every local relay address and how clients and peers see it.
    pub relays: Vec<Mapping>,
    /// The same with who says so.
    pub outside: Vec<Seen>,
    /// What people should know about it.
    pub warnings: Vec<Problem>,
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
    relays: Vec<RelayIp>,
    /// How they look from outside, and who watches it.
    outside: Watched,
    shards: Shards,
    threads: Vec<JoinHandle<()>>,
    control: Runtime,
    lobby: Lobby,
    certificates: Option<Arc<Certificates>>,
    certification: Certification,
    admin: Option<AdminDoor>,
    /// The servers that the ICE configuration service speaks of, and who looks whether they answer.
    fleet: Arc<Fleet>,
    canary: tokio::task::JoinHandle<()>,
    service: http::ice::Service<Shards>,
    ledger: Ledger,
    /// What the test page is told.
    visits: Visits,
    /// What the status page says, and who finds it out.
    board: Board,
    eyes: Option<tokio::task::JoinHandle<()>>,
    drain: Drain,
    /// So much is in use that newcomers are better off elsewhere.
    overloaded: bool,
    operator: Operator,
    orders: mpsc::Receiver<Asked>,
    take_over: TakeOver,
    /// This process has taken over from another one.
    succeeded: bool,
    /// Where others ask to take over from this one, until `serve` answers.
    reception: Option<Reception>,
    /// Another process has taken over from this one.
    left: bool,
    /// The process that has, which wants to know when this one ends.
    successor: Option<Giver>,
    /// The admin listener while another process may be taking over.
    paused_admin: Option<(SocketAddr, TcpListener)>,
    records: Option<Records>,
    traces: Arc<Mutex<Traces>>,
    /// Who looks at the dashboard, and what there was to see before.
    events: Events,
    lookout: http::Lookout,
    captures: http::Captures,
}

/// One listener as it was asked for, and what is open for it.
struct Open {
    /// As configured: its port may be 0.
    wanted: Listener,
    udp: Option<ListenerSlot>,
    door: Option<Door>,
}

/// Serves until told to stop; calls `started` once, when every socket is open. `sources` are read again by reloads,
/// which change the log by `set_log`. `take_over` says whether to go on where a running server stops.
///
/// # Errors
/// What keeps the server from starting or from going on; [`Problems`] for what the operator can change.
pub fn run(
    config: Config,
    sources: Sources,
    set_log: SetLog,
    take_over: TakeOver,
    started: impl FnOnce(&Started),
) -> anyhow::Result<()> {
    let mut inherited = Inherited::from_environment();
    let approach = match take_over.approach()? {
        None => inherited.take_stored().and_then(Approach::to_stored),
        approach => approach,
    };
    let running = begin(config, inherited, approach, take_over)?;
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
pub fn start_on(config: Config, inherited: Inherited) -> anyhow::Result<Running> {
    begin(config, inherited, None, TakeOver::default())
}

/// The same, in the place of a process that serves.
fn begin(
    mut config: Config,
    mut inherited: Inherited,
    approach: Option<Approach>,
    take_over: TakeOver,
) -> anyhow::Result<Running> {
    for shortage in host_shortages(&config) {
        tracing::warn!("{shortage}");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut problems = Vec::new();
    let certification = Certification::default();
    let certificates = match certification.first(&config, false, &mut problems) {
        First::Load(certificate) => Some(certification.serving(certificate)),
        First::None | First::Current => None,
    };
    let others = certification::others(&config, &mut problems);
    if let Some(served) = &certificates {
        served.replace_others(others);
        served.claim(certification::own_names(&config));
    }
    let inventory = approach.as_ref().map(|approach| approach.inventory.clone());
    let known = inventory.as_ref().map_or_else(Vec::new, handover::seen);
    let look = outside::at_start(&config, &known)?;
    let relays = relay_ips(&look.seen);
    check_relays(&relays, &mut problems);
    let mut listeners = config.listeners.clone();
    if let Some(inventory) = &inventory {
        check_shards(&config, inventory, &mut problems);
    }
    let mut places = inventory.clone().unwrap_or_default().listeners;
    let mut kept = Vec::new();
    // Bound first: where port 0 is asked for, UDP gets the port that TCP got.
    let mut tcp = Vec::new();
    for listener in &mut listeners {
        let place = place_of(listener, &mut places);
        kept.push(place);
        if let Some(place) = place {
            listener.address = place.bound;
        }
        let opens = listener.has_streams() && !place.is_some_and(|place| place.tcp);
        let socket = opens.then(|| {
            let socket = open_tcp("listen", listener.address, &mut inherited, &mut problems)?;
            if let Ok(bound) = socket.local_addr() {
                listener.address = bound;
            }
            Some(socket)
        });
        tcp.push(socket.flatten());
    }
    let kept_admin = (inventory.as_ref().and_then(|inventory| inventory.admin))
        .filter(|place| config.admin == Some(place.wanted));
    let mut admin = (config.admin.filter(|_| kept_admin.is_none()))
        .and_then(|address| open_tcp("http.admin", address, &mut inherited, &mut problems));
    let udp = inherited_udp(
        &listeners,
        shard_count(&config),
        &mut inherited,
        &mut problems,
    );
    let records = start_records(&config, &mut problems);
    if !problems.is_empty() {
        problems.extend(unavailable(&listeners, &kept));
        return Err(Problems::new(problems).into());
    }
    for left in inherited.left() {
        tracing::warn!(
            socket = left,
            "systemd gave a socket that no [[listen]] names: closed"
        );
    }

    let admission = Admission::new(config.connections_per_address);
    admission.passages().set_limit(config.upstream_connections);
    let taken = match approach {
        None => None,
        Some(approach) => {
            let problems = unavailable(&listeners, &kept);
            if !problems.is_empty() {
                return Err(Problems::new(problems).into());
            }
            let mut taken = approach.take().map_err(|failure| refused(&failure))?;
            let Some(mut legacy) = taken.legacy.take() else {
                // It has ended, and gave nothing to serve with.
                drop((tcp, admin));
                taken.serving(|| {});
                return begin(config, Inherited::default(), None, take_over);
            };
            legacy.admit(&admission);
            inherited.add_tcp(std::mem::take(&mut taken.doors));
            let mut missing = Vec::new();
            let mut given = |address: SocketAddr| {
                let socket = inherited.take_tcp(address);
                if socket.is_none() {
                    missing.push(not_given(address));
                }
                socket
            };
            for ((listener, place), socket) in listeners.iter().zip(&kept).zip(&mut tcp) {
                if listener.has_streams() && place.is_some_and(|place| place.tcp) {
                    *socket = given(listener.address);
                }
            }
            if let Some(place) = kept_admin {
                admin = given(place.bound);
            }
            if !missing.is_empty() {
                return Err(Problems::new(missing).into());
            }
            Some((taken, legacy))
        }
    };

    // A process that gave everything away has let go of it.
    let ledger = open_ledger(take_over.state.as_deref(), &config).map_err(Problems::from)?;
    let told = ice::visits(&config, &listeners, mappings(&relays));
    let visits = Visits::new(Clock.now(), told);
    config.access.visits = Some(visits.secret());
    let admin_address = (admin.as_ref()).and_then(|socket| socket.local_addr().ok());
    let earlier = inventory.as_ref().map_or_else(Vec::new, handover::earlier);
    let decide = |listeners: &[Listener]| {
        let own = own_addresses(&config, listeners, &relays, admin_address);
        let mut access = Access::new(&config.access, own).with_revoked(ledger.revoked());
        access.peers = access.peers.with_earlier_relays(earlier.clone());
        Arc::new(access)
    };
    let emitter = records.as_ref().map(Records::emitter);
    let dtls = shard::Dtls {
        certificates: certificates.clone(),
        admission: Arc::clone(&admission),
    };
    let settings = shard_settings(&config, &listeners, relays.clone(), emitter, dtls);
    let access = decide(&listeners);
    let (made, mut taken) = match taken {
        Some((taken, legacy)) => (Shards::succeed(&settings, access, legacy), Some(taken)),
        None => (Shards::start_on(&settings, access, udp), None),
    };
    let (shards, threads) =
        made.map_err(|errors| Problems::new(errors.iter().map(udp_problem).collect()))?;
    if listeners
        .iter()
        .any(|listener| listener.address.port() == 0)
    {
        // The policy closes our own ports to peers, and only now it is known which these are.
        let udp = shards.listeners();
        for (listener, (_, bound)) in listeners.iter_mut().filter(|l| l.has_datagrams()).zip(udp) {
            listener.address = bound;
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
    if let Some(every) = records.as_ref().and_then(Records::interim) {
        control.spawn(shards.clone().record_live_forever(every));
    }
    let drain = Drain::default();
    let (operator, orders) = Operator::new(drain.deadline_unix_ms());
    let fleet = ice::fleet(&config);
    let board = Board::new(Clock.now(), config.http.status_page, true);
    visits.replace(ice::visits(&config, &listeners, mappings(&relays)));
    let offer = ice::offer(&config, &listeners, mappings(&relays), Arc::clone(&fleet));
    let lookout = http::Lookout::default();
    control.spawn((lookout.clone()).observe_forever(shards.clone()));
    let service = http::ice::Service::new(shards.clone(), offer, ledger.clone())
        .with_lookout(lookout.clone());
    let lobby = Lobby::new(
        shards.clone(),
        admission,
        control.handle().clone(),
        Front::new(
            http::public::router(
                shards.clone(),
                drain.flag(),
                service.clone(),
                visits.clone(),
                board.clone(),
            )
            .merge(http::challenges::routes(certification.challenges())),
            http::Limits::PUBLIC,
        ),
    );
    let mut slots = shards.listeners().into_iter().map(|(slot, _)| slot);
    let mut prepared = Vec::new();
    for (wanted, socket) in config.listeners.iter().zip(tcp) {
        prepared.push(
            socket
                .map(|socket| Prepared::new(socket, wanted, certificates.clone()))
                .transpose()?,
        );
    }
    // Nobody accepts before it is sure that this process serves.
    if let Some(taken) = &mut taken {
        taken.commit().map_err(|failure| refused(&failure))?;
    }
    let mut open = Vec::new();
    for (wanted, prepared) in config.listeners.iter().zip(prepared) {
        open.push(Open {
            wanted: wanted.clone(),
            udp: wanted.has_datagrams().then(|| slots.next()).flatten(),
            door: prepared.map(|prepared| lobby.open(prepared)),
        });
    }
    let canary = control.spawn(cluster::canary::watch(
        Arc::clone(&fleet),
        ice::mint(&config),
    ));
    let own = own_addresses(&config, &listeners, &relays, admin_address);
    let outside = Watched::new(&config, look, (own, earlier), control.handle());
    let mut running = Running {
        started: Started {
            listeners,
            relays: mappings(&relays),
            outside: outside.seen().to_vec(),
            warnings: outside.told().to_vec(),
            admin: admin_address,
        },
        config,
        listeners: open,
        relays,
        outside,
        shards,
        threads,
        control,
        lobby,
        certificates,
        certification,
        admin: None,
        fleet,
        canary,
        service,
        ledger,
        visits,
        board,
        eyes: None,
        drain,
        overloaded: false,
        operator,
        orders,
        take_over,
        succeeded: taken.is_some(),
        reception: None,
        left: false,
        successor: None,
        paused_admin: None,
        records,
        traces: Arc::default(),
        events: Events::default(),
        lookout,
        captures: http::Captures::default(),
    };
    running.remember();
    let admission = Arc::clone(&running.lobby.admission);
    let remembering = (running.events.clone()).remember_forever(
        running.shards.clone(),
        admission,
        running.lookout.clone(),
    );
    running.control.spawn(remembering);
    if let (Some(socket), Some(address)) = (admin, admin_address) {
        let certificates = running.certificates.clone();
        let tls = certificates.filter(|_| running.config.http.tls);
        let prepared = PreparedAdmin::new(address, socket, tls)?;
        running.open_admin(prepared);
    }
    if let Some(taken) = taken {
        // Before the other one takes its socket away: whoever asks next asks this process.
        running.reception = Some(running.receive_successors());
        running.shards.thaw();
        let shards = running.shards.clone();
        taken.serving(move || shards.come_home());
        tracing::info!(
            allocations = running.shards.live(),
            "taken over from the running server"
        );
    }
    running.open_eyes();
    log_started(&running.started, running.shards.count());
    running.certify();
    Ok(running)
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
        let deadline = Clock.now().mono + STOP_PATIENCE;
        for thread in self.threads {
            while !thread.is_finished() && Clock.now().mono < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                tracing::error!("a shard does not end: it is left to the end of the process");
                continue;
            }
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

    /// Tells the shards what newcomers get.
    fn update_newcomers(&self) {
        let elsewhere = self.drain.is_on() || self.overloaded;
        self.shards.set_newcomers(&Newcomers {
            alternates: if elsewhere {
                self.config.drain.alternates.clone()
            } else {
                Vec::new()
            },
            refuse: self.drain.is_on(),
        });
    }

    /// Remembers what the server does for as long as the configuration says, if anybody can ask.
    fn remember(&self) {
        let admin = self.config.admin;
        let history = admin.map(|_| self.config.http.history);
        self.events.set_history(history.unwrap_or_default());
    }

    /// Answers orders and questions from now on.
    fn open_admin(&mut self, prepared: PreparedAdmin) {
        let front = Front::new(http::admin::router(self.admin_state()), http::Limits::ADMIN);
        self.admin = Some(self.lobby.open_admin(prepared, front));
    }

    /// What the admin listener answers from, as the configuration in effect has it.
    fn admin_state(&self) -> http::admin::AdminState<Shards> {
        let config = &self.config;
        let state = http::admin::AdminState::new(
            self.shards.clone(),
            self.drain.flag(),
            self.certificates.clone(),
            Arc::clone(&self.lobby.admission),
            http::admin::Settings {
                node: config.cluster.node.clone(),
                region: config.cluster.region.clone(),
                version: env!("CARGO_PKG_VERSION"),
                per_allocation: config.per_allocation,
                quotas: config.access.limits,
                bandwidth: config.turn.bandwidth,
                hosts: config.http.hosts.clone(),
                token: config.http.token.clone(),
            },
        )
        .operated_by(self.operator.clone())
        .with_external(self.outside.board())
        .with_traces(Arc::clone(&self.traces))
        .with_ledger(self.ledger.clone(), self.service.meters())
        .with_board(self.board.clone())
        .with_events(self.events.clone())
        .with_lookout(self.lookout.clone())
        .with_captures(self.captures.clone(), config.turn.quality.capture)
        .with_acme(self.certification.counts(config));
        match &self.records {
            Some(records) => state.with_records(records.counts()),
            None => state,
        }
    }
}

/// What is revoked and kept, as it was left in `state`, and as `config` has it now.
fn open_ledger(state: Option<&Path>, config: &Config) -> Result<Ledger, Problem> {
    let now_unix = Clock.now().unix_secs();
    let ledger = match state {
        None => Ledger::default(),
        Some(directory) => {
            let (ledger, problem) = Ledger::open(directory, now_unix).map_err(|error| {
                Problem::host(
                    "revocations",
                    format!("the ledger in {} cannot be read: {error}", directory.display()),
                    "let the user that the server runs as read it, or move it away: what it revokes is good \
                     again then",
                )
            })?;
            if let Some(error) = problem {
                tracing::warn!(
                    directory = %directory.display(),
                    %error,
                    "revocations and credentials of API keys are forgotten when this process ends: set STATE_DIRECTORY to a \
                     directory of its own that it may write"
                );
            }
            ledger
        }
    };
    for id in ledger.set_keys(key_lifetimes(config), now_unix) {
        tracing::info!(
            key = id,
            "an API key is gone: what it has minted is revoked"
        );
    }
    ledger.configure(config.revoked.clone(), now_unix);
    Ok(ledger)
}

/// The API keys, and for how many seconds at most what they mint is good.
fn key_lifetimes(config: &Config) -> BTreeMap<String, u64> {
    (config.api_keys.iter())
        .map(|key| (key.id.clone(), key.ttl.as_secs()))
        .collect()
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

fn not_given(address: SocketAddr) -> Problem {
    Problem::host(
        "take-over",
        format!("the running server had tcp {address} and did not give it"),
        "it may have been reloaded meanwhile: try again",
    )
}

/// What UDP cannot be received on, of what the process before does not have open.
fn unavailable(listeners: &[Listener], kept: &[Option<Place>]) -> Vec<Problem> {
    let fresh = (listeners.iter().zip(kept)).filter(|(listener, place)| {
        listener.has_datagrams() && !place.is_some_and(|place| place.udp)
    });
    let udp: Vec<_> = fresh.map(|(listener, _)| listener.address).collect();
    shard::unavailable(&udp).iter().map(udp_problem).collect()
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
            (listener.dtls, "dtls"),
            (listener.streams.tcp, "tcp"),
            (listener.streams.tls, "tls"),
            (listener.streams.http, "http"),
        ];
        let speaks: Vec<_> = (speaks.iter())
            .filter_map(|(on, name)| on.then_some(*name))
            .collect();
        let upstream = (listener.sharing.upstream).map(|upstream| upstream.address.to_string());
        tracing::info!(address = %listener.address, protocols = speaks.join(","), upstream, "listening");
    }
    for Seen {
        local,
        external,
        source,
    } in &started.outside
    {
        tracing::info!(%local, %external, source = source.label(), "relaying");
    }
    if let Some(admin) = started.admin {
        tracing::info!(address = %admin, "admin API and metrics");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), shards, "turnix serves");
}
