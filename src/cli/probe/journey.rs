//! One URI, step by step, as a client would go.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::around;
use super::facts::{Credentials, Dead, End, Facts, Stage, Traffic, Trouble};
use super::path::{Leg, Opened, Path, Tls, channel};
use super::screen::{Mark, Screen};
use super::traffic::{self, Plan};
use crate::base::{Clock, Family, Printable, Secret, Transport};
use crate::cli::units::{percent, rate};
use crate::client::{Event, Settings, Step};
use crate::cluster::IceUri;
use crate::cluster::locate::{Dns, Located, locate};

/// LIFETIME of allocations in seconds: they end soon if the probe is killed.
const LIFETIME_SECS: u32 = 600;

/// How often a server that does not relay is asked for the address.
const BINDINGS: u32 = 10;

/// How long giving an allocation back may take.
const RELEASE: Duration = Duration::from_secs(2);

/// A few packets, to see whether any arrives.
const PROOF: Plan = Plan {
    packets: 6,
    bytes: 100,
    every: Duration::from_millis(20),
};

/// What is measured.
const CALL: Plan = Plan {
    packets: 50,
    bytes: 160,
    every: Duration::from_millis(20),
};

/// As large as WebRTC makes packets.
const LARGE: Plan = Plan {
    packets: 6,
    bytes: 1200,
    every: Duration::from_millis(20),
};

/// How a URI is to be probed.
pub struct Order {
    /// As given.
    pub text: String,
    /// What it names.
    pub uri: IceUri,
    /// USERNAME; empty: none.
    pub username: String,
    /// The password that goes with it.
    pub password: Secret<String>,
    /// What these are.
    pub credentials: Credentials,
    /// What TLS connections are made with.
    pub tls: Tls,
    /// Whether certificates are verified.
    pub verifies: bool,
    /// How long one step may take.
    pub patience: Duration,
    /// The burst at the end; `None`: none.
    pub burst: Option<Plan>,
}

/// A probe of one URI under way.
pub struct Journey<'a> {
    order: &'a Order,
    screen: &'a mut Screen,
    /// What is known so far.
    pub facts: Facts,
    legs: Vec<Leg>,
}

type Ended = (Stage, Trouble);

impl<'a> Journey<'a> {
    /// A probe that has not begun.
    pub fn new(order: &'a Order, screen: &'a mut Screen) -> Self {
        let server = &order.uri.server;
        let mut facts = Facts::new(
            order.text.clone(),
            server.host.clone(),
            server.port,
            server.transport,
            order.uri.relays,
        );
        facts.credentials = order.credentials;
        facts.verified = order.verifies && server.transport == Transport::Tls;
        facts.now_unix = Clock.now().unix_secs();
        Self {
            order,
            screen,
            facts,
            legs: Vec::new(),
        }
    }

    /// Goes as far as it gets. [`Self::release`] has to follow, also where this is given up on the way.
    pub async fn run(&mut self) {
        if let Err((stage, trouble)) = self.go().await {
            let mark = match (&trouble, self.facts.credentials) {
                (Trouble::Refused { code: 401 }, Credentials::None) => Mark::Warn,
                _ => Mark::Fail,
            };
            self.screen.end(stage.label(), mark, &trouble.to_string());
            self.screen.begin("looking around");
            self.look_around(stage, &trouble).await;
            self.facts.end = Some(End { stage, trouble });
        }
    }

    /// Gives back what the server keeps for this probe.
    pub async fn release(&mut self) {
        let mut legs: Vec<_> = (self.legs.drain(..)).filter(|leg| leg.allocates).collect();
        let had = legs.iter().any(|leg| leg.client.relayed().is_some());
        if had {
            self.screen.begin(Stage::Release.label());
        }
        let mut released = true;
        for leg in &mut legs {
            let asked = leg.ask(Step::Refresh(0), RELEASE).await;
            released &= asked.is_ok() || leg.client.relayed().is_none();
        }
        if had {
            self.facts.released = Some(released);
            let (mark, text) = match released {
                true => (Mark::Ok, ""),
                false => (Mark::Warn, "not confirmed"),
            };
            self.screen.end(Stage::Release.label(), mark, text);
        }
    }

    async fn go(&mut self) -> Result<(), Ended> {
        let addresses = self.resolve().await?;
        let server = self.reach(&addresses).await?;
        if !self.facts.relays {
            return self.bindings().await;
        }
        let server = self.allocate(server).await?;
        self.allocate_second(server).await;
        self.permit().await?;
        self.facts.indications = Some(self.prove(Stage::Indications).await?);
        self.bind_channels().await?;
        self.facts.channel_data = Some(self.prove(Stage::ChannelData).await?);
        let arrives =
            |traffic: &Option<Traffic>| traffic.as_ref().is_some_and(|one| one.received > 0);
        if !arrives(&self.facts.indications) && !arrives(&self.facts.channel_data) {
            return Ok(());
        }
        let traffic = self.send(Stage::Latency, CALL).await?;
        self.facts.latency = Some(traffic);
        let traffic = self.send(Stage::Large, LARGE).await?;
        self.facts.large = Some(traffic);
        if let Some(burst) = self.order.burst {
            let traffic = self.send(Stage::Throughput, burst).await?;
            self.facts.burst = Some(traffic);
        }
        Ok(())
    }

    async fn resolve(&mut self) -> Result<Vec<Located>, Ended> {
        self.screen.begin(Stage::Resolve.label());
        let no_name = |why: &str| (Stage::Resolve, Trouble::NoName { why: why.into() });
        let dns = Dns::of_host();
        let found = timeout(self.order.patience, locate(&self.order.uri, &dns))
            .await
            .map_err(|_| no_name("the resolver does not answer"))?
            .map_err(|error| {
                let text = error.to_string();
                no_name(text.trim_start_matches("failed to lookup address information: "))
            })?;
        let server = &self.order.uri.server;
        let shown: Vec<_> = (found.iter())
            .map(|one| {
                let (address, over) = (one.address, one.transport.label());
                match (
                    one.transport == server.transport,
                    address.port() == server.port,
                ) {
                    (true, true) => address.ip().to_string(),
                    (true, false) => address.to_string(),
                    (false, _) => format!("{over} {address}"),
                }
            })
            .collect();
        self.screen
            .end(Stage::Resolve.label(), Mark::Ok, &shown.join(", "));
        self.facts.addresses = found.iter().map(|one| one.address).collect();
        Ok(found)
    }

    /// Looks at every address; the first that answers is used, the others are noted if they do not.
    /// A transport that is the next choice is not looked at once one answers.
    async fn reach(&mut self, servers: &[Located]) -> Result<SocketAddr, Ended> {
        let mut failed: Vec<(Located, Ended)> = Vec::new();
        let mut reached: Option<Located> = None;
        for server in servers {
            if reached.is_some_and(|reached| reached.transport != server.transport) {
                continue;
            }
            self.facts.transport = server.transport;
            let looked = self.look(server.address, reached.is_none()).await;
            match looked {
                Ok(()) => reached = reached.or(Some(*server)),
                Err(ended) => failed.push((*server, ended)),
            }
        }
        let Some(server) = reached else {
            // An address that this host cannot reach by itself says least.
            let no_route =
                |(_, (_, trouble)): &(_, Ended)| matches!(trouble, Trouble::NoRoute { .. });
            failed.sort_by_key(no_route);
            let Some((server, ended)) = failed.into_iter().next() else {
                return Err((Stage::Resolve, Trouble::Silence));
            };
            self.facts.server = Some(server.address);
            self.facts.transport = server.transport;
            return Err(ended);
        };
        self.facts.transport = server.transport;
        let server = server.address;
        for (Located { address, transport }, (stage, trouble)) in failed {
            let text = match transport == self.facts.transport {
                true => format!("{address}: {trouble}"),
                false => format!("{} {address}: {trouble}", transport.label()),
            };
            self.screen.end(stage.label(), Mark::Warn, &text);
            self.facts.dead.push(Dead { address, trouble });
        }
        Ok(server)
    }

    /// Connects to `address` and asks for a Binding. What follows goes on with this path if `keep`.
    async fn look(&mut self, address: SocketAddr, keep: bool) -> Result<(), Ended> {
        let transport = self.facts.transport;
        self.screen.begin(Stage::Connect.label());
        let opened = self.open(address).await?;
        if keep {
            let over = transport.label();
            let text = format!("{over} {} to {address}", opened.local);
            self.screen.end(Stage::Connect.label(), Mark::Ok, &text);
            if let Some(certificate) = &opened.certificate {
                let names = Printable(certificate.names.join(", ")).to_string();
                let (mark, text) = match self.facts.verified {
                    true => (Mark::Ok, format!("certificate for {names}")),
                    false => (Mark::Warn, format!("certificate for {names}, not verified")),
                };
                self.screen.end(Stage::Tls.label(), mark, &text);
            }
        }
        self.screen.begin(Stage::Binding.label());
        let mut leg = Leg::new(self.settings(None), opened.path);
        let bound = leg.ask(Step::Binding, self.order.patience).await;
        let trouble = match bound {
            Ok(Event::Mapped { mapped, rtt }) => {
                if keep {
                    self.facts.mapped = Some(mapped);
                    self.facts.binding = Some(rtt);
                    let text =
                        format!("{}, seen as {mapped}{}", ms(rtt), nat(opened.local, mapped));
                    self.screen.end(Stage::Binding.label(), Mark::Ok, &text);
                }
                None
            }
            Ok(_) => Some(Trouble::Malformed),
            // Where STUN is off, a server that relays may yet answer.
            Err(trouble @ (Trouble::Silence | Trouble::Refused { .. })) if self.facts.relays => {
                let asked = leg.ask(Step::Allocate, self.order.patience).await;
                match asked {
                    Ok(_) | Err(Trouble::Refused { .. } | Trouble::Integrity) => Some(trouble),
                    Err(_) => return Err((Stage::Binding, trouble)),
                }
            }
            Err(trouble) => return Err((Stage::Binding, trouble)),
        };
        if !keep {
            // A short visit: what Allocate may have made goes at once.
            if leg.client.relayed().is_some() {
                let _ = leg.ask(Step::Refresh(0), RELEASE).await;
            }
            return Ok(());
        }
        if let Some(trouble) = trouble {
            self.screen
                .end(Stage::Binding.label(), Mark::Warn, &trouble.to_string());
            self.facts.binding_trouble = Some(trouble);
        }
        self.facts.server = Some(address);
        self.facts.local = Some(opened.local);
        self.facts.certificate = opened.certificate;
        self.legs.push(leg);
        Ok(())
    }

    /// A server that does not relay is asked some more: how long does it take?
    async fn bindings(&mut self) -> Result<(), Ended> {
        self.screen.begin(Stage::Latency.label());
        let Some(leg) = self.legs.first_mut() else {
            return Ok(());
        };
        let begun = Instant::now();
        let mut times = Vec::new();
        for number in 1..=BINDINGS {
            match leg.ask(Step::Binding, self.order.patience).await {
                Ok(Event::Mapped { rtt, .. }) => times.push(rtt),
                Ok(_) | Err(Trouble::Silence) => {}
                Err(trouble) => return Err((Stage::Latency, trouble)),
            }
            self.screen.update(Stage::Latency.label(), number, BINDINGS);
        }
        let received = u32::try_from(times.len()).unwrap_or(BINDINGS);
        let traffic = Traffic {
            bytes: 0,
            sent: BINDINGS,
            received,
            sending: begun.elapsed(),
            receiving: begun.elapsed(),
            rtt: super::facts::Rtt::of(&times),
        };
        self.tell(Stage::Latency, &traffic);
        self.facts.latency = Some(traffic);
        Ok(())
    }

    /// The first allocation; where a 300 sends it elsewhere, there, once. Returns the server that has it.
    async fn allocate(&mut self, server: SocketAddr) -> Result<SocketAddr, Ended> {
        self.screen.begin(Stage::Allocate.label());
        let begun = Instant::now();
        let allocated = self.ask_allocate(0).await;
        let Err(Trouble::Refused { code: 300 }) = allocated else {
            return self.allocated(server, begun, allocated);
        };
        let alternate = self.legs.first().and_then(|leg| leg.client.alternate());
        self.facts.redirected = alternate;
        let Some(alternate) = alternate else {
            return Err((Stage::Allocate, Trouble::Refused { code: 300 }));
        };
        let text = format!("300: the server sends clients to {alternate}");
        self.screen.end(Stage::Allocate.label(), Mark::Warn, &text);
        self.legs.clear();
        self.look(alternate, true).await?;
        self.screen.begin(Stage::Allocate.label());
        let begun = Instant::now();
        let allocated = self.ask_allocate(0).await;
        self.allocated(alternate, begun, allocated)
    }

    /// Has client `index` allocate: IPv4 as every client gets it who asks for nothing, IPv6 where that is all there is.
    async fn ask_allocate(&mut self, index: usize) -> Result<Event, Trouble> {
        let patience = self.order.patience;
        let Some(leg) = self.legs.get_mut(index) else {
            return Err(Trouble::Silence);
        };
        if let Some(relayed) = leg.client.relayed() {
            return Ok(Event::Allocated {
                relayed,
                mapped: None,
                lifetime_secs: LIFETIME_SECS,
            });
        }
        let asked = leg.ask(Step::Allocate, patience).await;
        self.facts.realm = leg
            .client
            .realm()
            .map(str::to_owned)
            .or(self.facts.realm.take());
        let (Err(Trouble::Refused { code: 440 }), Some(server)) = (&asked, self.facts.server)
        else {
            return asked;
        };
        let opened = self.open(server).await.map_err(|(_, trouble)| trouble)?;
        let mut leg = Leg::new(self.settings(Some(Family::V6)), opened.path);
        let asked = leg.ask(Step::Allocate, patience).await;
        self.facts.ipv6_only = asked.is_ok();
        if let Some(old) = self.legs.get_mut(index) {
            *old = leg;
        }
        asked
    }

    fn allocated(
        &mut self,
        server: SocketAddr,
        begun: Instant,
        allocated: Result<Event, Trouble>,
    ) -> Result<SocketAddr, Ended> {
        match allocated {
            Ok(Event::Allocated {
                relayed,
                lifetime_secs,
                ..
            }) => {
                let took = begun.elapsed();
                self.facts.relayed = Some(relayed);
                self.facts.lifetime_secs = Some(lifetime_secs);
                self.facts.allocate = Some(took);
                let realm = match &self.facts.realm {
                    Some(realm) => format!(", realm {:?}", Printable(realm).to_string()),
                    None => String::new(),
                };
                let text = format!("{relayed} for {lifetime_secs} s{realm}, {}", ms(took));
                self.screen.end(Stage::Allocate.label(), Mark::Ok, &text);
                Ok(server)
            }
            Ok(_) => Err((Stage::Allocate, Trouble::Malformed)),
            Err(trouble) => Err((Stage::Allocate, trouble)),
        }
    }

    /// Another client for the first to talk to; without it, the first talks to itself.
    async fn allocate_second(&mut self, server: SocketAddr) {
        self.screen.begin("second client");
        let family = self.facts.ipv6_only.then_some(Family::V6);
        let allocated = match self.open(server).await {
            Ok(opened) => {
                self.legs.push(Leg::new(self.settings(family), opened.path));
                self.ask_allocate(1).await
            }
            Err((_, trouble)) => Err(trouble),
        };
        let (mark, text) = match allocated {
            Ok(Event::Allocated { relayed, .. }) => (Mark::Ok, relayed.to_string()),
            Ok(_) => (Mark::Ok, String::new()),
            Err(trouble) => {
                self.legs.truncate(1);
                let text = trouble.to_string();
                self.facts.single = Some(trouble);
                (Mark::Warn, text)
            }
        };
        self.screen.end("second client", mark, &text);
        let relayed: Vec<_> = self.legs.iter().map(|leg| leg.client.relayed()).collect();
        for (index, leg) in self.legs.iter_mut().enumerate() {
            leg.peer = relayed.get((index + 1) % relayed.len()).copied().flatten();
        }
    }

    async fn permit(&mut self) -> Result<(), Ended> {
        self.screen.begin(Stage::Permission.label());
        for leg in &mut self.legs {
            if let Some(peer) = leg.peer {
                (leg.ask(Step::CreatePermission(peer), self.order.patience)
                    .await)
                    .map_err(|trouble| (Stage::Permission, trouble))?;
            }
        }
        self.screen.end(Stage::Permission.label(), Mark::Ok, "");
        Ok(())
    }

    async fn bind_channels(&mut self) -> Result<(), Ended> {
        self.screen.begin(Stage::Channel.label());
        for leg in &mut self.legs {
            if let Some(peer) = leg.peer {
                let step = Step::ChannelBind(channel(), peer);
                (leg.ask(step, self.order.patience).await)
                    .map_err(|trouble| (Stage::Channel, trouble))?;
            }
        }
        self.screen.end(Stage::Channel.label(), Mark::Ok, "");
        Ok(())
    }

    async fn prove(&mut self, stage: Stage) -> Result<Traffic, Ended> {
        self.send(stage, PROOF).await
    }

    async fn send(&mut self, stage: Stage, plan: Plan) -> Result<Traffic, Ended> {
        self.screen.begin(stage.label());
        let screen = &mut *self.screen;
        let tell = |sent, _| screen.update(stage.label(), sent, plan.packets);
        let traffic = traffic::run(&mut self.legs, plan, self.order.patience, tell)
            .await
            .map_err(|trouble| (stage, trouble))?;
        self.tell(stage, &traffic);
        Ok(traffic)
    }

    fn tell(&mut self, stage: Stage, traffic: &Traffic) {
        let count = format!("{} of {}", traffic.received, traffic.sent);
        let text = match (stage, traffic.rtt) {
            (Stage::Throughput, Some(rtt)) => format!(
                "{} arrive, {} lost, p95 {}",
                rate(traffic.bits_per_second()),
                percent(traffic.loss()),
                ms(rtt.p95)
            ),
            (Stage::Latency, Some(rtt)) => format!(
                "p50 {}, p95 {}, p99 {}, jitter {}, {} lost",
                ms(rtt.p50),
                ms(rtt.p95),
                ms(rtt.p99),
                ms(rtt.jitter),
                percent(traffic.loss())
            ),
            (_, Some(rtt)) => format!("{count} arrive, {}", ms(rtt.p50)),
            (_, None) => format!("{count} arrive"),
        };
        let mark = match (traffic.received, traffic.loss()) {
            (0, _) => Mark::Fail,
            (_, loss) if loss > 0.0 => Mark::Warn,
            _ => Mark::Ok,
        };
        self.screen.end(stage.label(), mark, &text);
    }

    /// What may explain the `trouble`.
    async fn look_around(&mut self, stage: Stage, trouble: &Trouble) {
        let Some(server) = self.facts.server else {
            return;
        };
        let transport = self.facts.transport;
        match trouble {
            Trouble::Refused { code: 401 } if self.facts.credentials != Credentials::None => {
                self.facts.now_unix = Clock.now().unix_secs();
                self.facts.server_unix = around::server_unix(server, transport).await;
            }
            Trouble::Certificate(_) => {
                self.facts.certificate = around::certificate(server, &self.order.tls).await;
            }
            Trouble::Closed | Trouble::Silence | Trouble::Rejected { .. }
                if stage <= Stage::Binding && !transport.is_stream() =>
            {
                self.facts.around.tcp = Some(around::knock(Transport::Tcp, server).await);
            }
            Trouble::Closed | Trouble::Silence if stage == Stage::Connect => {
                self.facts.around.udp = Some(around::knock(Transport::Udp, server).await);
            }
            Trouble::NotTurn | Trouble::HungUp | Trouble::Silence | Trouble::Handshake { .. }
                if stage <= Stage::Binding && transport.is_stream() =>
            {
                self.facts.around.speaks = around::speech(server, transport, &self.order.tls).await;
            }
            _ => {}
        }
    }

    async fn open(&self, server: SocketAddr) -> Result<Opened, Ended> {
        let transport = self.facts.transport;
        let tls = (transport == Transport::Tls).then_some(&self.order.tls);
        Path::open(transport, server, tls, self.order.patience).await
    }

    fn settings(&self, family: Option<Family>) -> Settings {
        Settings {
            username: self.order.username.clone(),
            password: self.order.password.clone(),
            transport: self.facts.transport,
            family,
            lifetime_secs: Some(LIFETIME_SECS),
        }
    }
}

/// Whether a NAT is between.
fn nat(local: SocketAddr, mapped: SocketAddr) -> &'static str {
    if local.ip().to_canonical() == mapped.ip().to_canonical() {
        ""
    } else {
        ": this host is behind NAT"
    }
}

/// `12.3 ms`
fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
