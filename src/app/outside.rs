//! How this server is reached from outside: found at start, looked at again while it runs.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::access::{Access, OwnAddresses};
use crate::config::{Config, External, Listener, Problem, Relay};
use crate::external::{self, Board, Changes, Cloud, Look, Seen, Source, Trouble};
use crate::shard::{self, RelayIp};

use super::sockets::own_addresses;
use super::{Running, mappings};

/// What there is to find out: which addresses are relayed from, and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    relay: Relay,
    listeners: Vec<Listener>,
}

impl Outside {
    /// What `config` asks for.
    pub fn new(config: &Config) -> Self {
        Self {
            relay: config.relay.clone(),
            listeners: config.listeners.clone(),
        }
    }

    /// One look, within [`external::PATIENCE`]. A host that has nothing but loopback shows nothing.
    pub async fn look(&self) -> Look {
        let locals = self.relay.locals(&self.listeners);
        match &self.relay.external {
            External::Auto => external::look(&self.relay.discovery, &locals).await,
            External::Mapped(_) => Look {
                seen: (locals.into_iter())
                    .map(|local| match self.relay.external.of(local) {
                        Some(external) => Seen {
                            local,
                            external,
                            source: Source::Configured,
                        },
                        None => Seen {
                            local,
                            external: local,
                            source: Source::Interface,
                        },
                    })
                    .collect(),
                troubles: Vec::new(),
            },
        }
    }

    /// The same before there is a runtime.
    ///
    /// # Errors
    /// The system refuses one.
    pub fn look_now(&self) -> std::io::Result<Look> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let look = runtime.block_on(self.look());
        // A resolver that hangs is not waited for.
        runtime.shutdown_background();
        Ok(look)
    }

    /// What a look says to people: what could not be found out, and which addresses nobody can use.
    pub fn complaints(&self, look: &Look) -> Vec<Problem> {
        let troubles = look.troubles.iter().map(problem);
        let ports = &self.relay.ports;
        let asked = self.relay.discovery.asks();
        troubles
            .chain(out_of_reach(&look.seen, ports, asked))
            .collect()
    }

    fn keep(&self, look: Look, before: &[Seen]) -> Look {
        look.keeping(&self.relay.discovery, before)
    }
}

fn problem(trouble: &Trouble) -> Problem {
    Problem::host(trouble.key, trouble.found.clone(), trouble.remedy.clone())
}

/// What is wrong with relayed addresses that only the network around this host can use; `asked` where somebody should
/// have told others.
fn out_of_reach(seen: &[Seen], ports: &RangeInclusive<u16>, asked: bool) -> Option<Problem> {
    let locals = seen.iter().filter(|seen| seen.is_out_of_reach());
    let locals: Vec<String> = locals.map(|seen| seen.local.to_string()).collect();
    if locals.is_empty() {
        return None;
    }
    let all = locals.join(", ");
    let line = match &locals[..] {
        [local] => format!("\"PUBLIC-ADDRESS/{local}\""),
        _ => {
            let each = locals
                .iter()
                .map(|local| format!("\"PUBLIC-ADDRESS/{local}\""));
            format!("[{}]", each.collect::<Vec<_>>().join(", "))
        }
    };
    let meant = match &locals[..] {
        [local] => format!("\"{local}\""),
        _ => format!("{locals:?}"),
    };
    let each = locals.iter().map(|local| format!("PUBLIC-ADDRESS/{local}"));
    let set = format!(
        "--set relay.external_address={}",
        each.collect::<Vec<_>>().join(",")
    );
    let (first, last) = (ports.start(), ports.end());
    let cloud = Cloud::of_this_host().filter(|_| !asked);
    let remedy = match cloud {
        Some(cloud) => format!(
            "write metadata = \"{0}\" under [relay], or start with --set relay.metadata={0}, and open UDP ports \
             {first}-{last} to this machine; or name the address: external_address = {line}",
            cloud.label()
        ),
        None => format!(
            "write external_address = {line} under [relay], or start with {set}, with the address that the router has \
             outside, and forward UDP ports {first}-{last} to {all}; two servers in relay.stun_servers find it out where it \
             changes; if all clients and peers are in this network, write external_address = {meant}"
        ),
    };
    Some(Problem::host(
        "relay.external_address",
        format!(
            "clients get relayed addresses of {all}, which only the network around this host can reach"
        ),
        remedy,
    ))
}

/// Every relay IP from both sides; those of loopback where a host has nothing else.
pub(super) fn relay_ips(seen: &[Seen]) -> Vec<RelayIp> {
    let relays = seen.iter().map(|seen| RelayIp {
        local: seen.local,
        external: seen.external,
    });
    relays.collect()
}

/// Relays from loopback where a host has nothing else.
pub(super) fn or_loopback(mut look: Look) -> Look {
    if look.seen.is_empty() {
        tracing::warn!(
            "this host has no address but loopback: relaying from 127.0.0.1, for clients on this host only"
        );
        let loopback = IpAddr::from([127, 0, 0, 1]);
        look.seen.push(Seen {
            local: loopback,
            external: loopback,
            source: Source::Interface,
        });
    }
    look
}

/// What was found before there is a runtime, going on from what another process knew.
pub(super) fn at_start(config: &Config, before: &[Seen]) -> anyhow::Result<Look> {
    let outside = Outside::new(config);
    let look = outside.keep(outside.look_now()?, before);
    Ok(or_loopback(look))
}

/// What is in effect, and who looks whether it still holds.
pub(super) struct Watched {
    seen: Vec<Seen>,
    /// What people were told last.
    told: Vec<Problem>,
    /// What the peer policy was made of.
    own: OwnAddresses,
    earlier: Vec<(IpAddr, RangeInclusive<u16>)>,
    board: Arc<Board>,
    question: watch::Sender<Outside>,
    looks: mpsc::Receiver<(Outside, Look)>,
}

impl Watched {
    /// Watches on `control` from now on; `look` is what the start found, `own` and `earlier` are what the policy
    /// was made of.
    pub fn new(
        config: &Config,
        look: Look,
        (own, earlier): (OwnAddresses, Vec<(IpAddr, RangeInclusive<u16>)>),
        control: &tokio::runtime::Handle,
    ) -> Self {
        let outside = Outside::new(config);
        let told = outside.complaints(&look);
        for problem in &told {
            tracing::warn!("{problem}");
        }
        // Whoever has not answered in time may do so now.
        let soon = !look.troubles.is_empty();
        let (question, asked) = watch::channel(outside);
        let (sender, looks) = mpsc::channel(1);
        control.spawn(keep_looking(asked, sender, soon));
        let board = Arc::new(Board::default());
        board.show(look.seen.clone(), 0);
        Self {
            seen: look.seen,
            told,
            own,
            earlier,
            board,
            question,
            looks,
        }
    }

    /// What is in effect.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// What people should know about it.
    pub fn told(&self) -> &[Problem] {
        &self.told
    }

    /// For metrics.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// The next look, with what it was about.
    pub async fn next(&mut self) -> (Outside, Look) {
        match self.looks.recv().await {
            Some(look) => look,
            None => std::future::pending().await,
        }
    }

    /// Puts what a look found into effect: says what is new, and counts what is another address than before.
    pub fn take(&mut self, outside: &Outside, look: Look) {
        let mut changes = 0;
        for seen in &look.seen {
            let before = self.seen.iter().find(|before| before.local == seen.local);
            if before.is_some_and(|before| before.external == seen.external) {
                continue;
            }
            changes += 1;
            match before {
                Some(before) => tracing::warn!(
                    local = %seen.local,
                    from = %before.external,
                    to = %seen.external,
                    source = seen.source.label(),
                    "the external address is another one: new allocations get it"
                ),
                None => tracing::warn!(
                    local = %seen.local,
                    external = %seen.external,
                    source = seen.source.label(),
                    "an address to relay from has come"
                ),
            }
        }
        for gone in &self.seen {
            if !look.seen.iter().any(|seen| seen.local == gone.local) {
                changes += 1;
                tracing::warn!(
                    local = %gone.local,
                    external = %gone.external,
                    "an address to relay from is gone"
                );
            }
        }
        self.tell(outside.complaints(&look));
        self.board.show(look.seen.clone(), changes);
        self.seen = look.seen;
    }

    fn tell(&mut self, problems: Vec<Problem>) {
        for problem in problems.iter().filter(|one| !self.told.contains(one)) {
            tracing::warn!("{problem}");
        }
        if problems.is_empty() && !self.told.is_empty() {
            tracing::info!("every relayed address is known from outside");
        }
        self.told = problems;
    }
}

/// Looks again and again, until nobody wants to know any more.
async fn keep_looking(
    mut question: watch::Receiver<Outside>,
    looks: mpsc::Sender<(Outside, Look)>,
    mut soon: bool,
) {
    let mut changes = Changes::listen()
        .inspect_err(|error| {
            tracing::debug!(%error, "changes of addresses are noticed only every minute");
        })
        .ok();
    loop {
        if !std::mem::take(&mut soon) {
            let pause = question.borrow().relay.discovery.every;
            tokio::select! {
                () = sleep(pause) => {}
                () = async {
                    match &mut changes {
                        Some(changes) => changes.settled().await,
                        None => std::future::pending().await,
                    }
                } => {}
                changed = question.changed() => if changed.is_err() {
                    return;
                },
            }
        }
        let asked = question.borrow_and_update().clone();
        let look = asked.look().await;
        if looks.send((asked, look)).await.is_err() {
            return;
        }
    }
}

impl Running {
    /// Finds out for `next` what it asks for, going on from what is known.
    pub(super) async fn look_for(&self, next: &Config) -> Look {
        let outside = Outside::new(next);
        or_loopback(outside.keep(outside.look().await, self.outside.seen()))
    }

    /// The peer policy and credentials of `config` on a server that is made of `own` addresses. With `all`, those that are
    /// relayed from now are about to be earlier ones.
    pub(super) fn access(&mut self, config: &Config, own: OwnAddresses, all: bool) -> Arc<Access> {
        let earlier = self.shards.earlier_relays(all);
        self.outside.own.clone_from(&own);
        self.outside.earlier.clone_from(&earlier);
        let mut access = Access::new(&config.access, own).with_revoked(self.ledger.revoked());
        access.peers = access.peers.with_earlier_relays(earlier);
        Arc::new(access)
    }

    /// Goes on with what a reload has looked up, and watches what it asks for.
    pub(super) fn look_at(&mut self, look: Look) {
        let outside = Outside::new(&self.config);
        self.outside.take(&outside, look);
        self.started.outside = self.outside.seen().to_vec();
        self.outside.question.send_if_modified(|asked| {
            let other = *asked != outside;
            asked.clone_from(&outside);
            other
        });
    }

    /// Puts what a look found into effect: new allocations get the addresses that are found now; those that live keep what
    /// their clients were told.
    pub(super) async fn take_look(&mut self, (outside, look): (Outside, Look)) {
        if outside != Outside::new(&self.config) {
            // A reload was faster, and its question is asked already.
            return;
        }
        let mut look = outside.keep(look, self.outside.seen());
        // IPv6 addresses cannot be bound before it is sure that nobody else has them; the kernel tells once it is.
        look.seen
            .retain(|seen| std::net::UdpSocket::bind((seen.local, 0)).is_ok());
        if look.seen.is_empty() {
            // Nothing else could be relayed from either.
            look.seen = self.outside.seen().to_vec();
        }
        let relays = relay_ips(&look.seen);
        let differ = relays != self.relays;
        let admin = self.started.admin;
        let own = own_addresses(&self.config, &self.started.listeners, &relays, admin);
        let gone = self.shards.earlier_relays(false) != self.outside.earlier;
        if differ || gone || own != self.outside.own {
            let config = self.config.clone();
            let access = self.access(&config, own, differ);
            let ports = config.relay.ports.clone();
            let change = shard::Change {
                access,
                turn: config.turn.clone(),
                limits: config.access.limits,
                relays: differ.then(|| (relays.clone(), ports)),
                listener_buffer_bytes: config.server.listener_buffer_bytes,
                relay_buffer_bytes: config.server.relay_buffer_bytes,
                busy_poll: config.server.busy_poll,
                close: Vec::new(),
                open: Vec::new(),
                spoken: None,
            };
            let (_, all) = self.shards.change(change).await;
            if !all {
                tracing::warn!("a shard is busy: it takes the addresses when it has time");
            }
        }
        self.outside.take(&outside, look);
        if differ {
            self.relays = relays;
            self.started.relays = mappings(&self.relays);
            self.started.outside = self.outside.seen().to_vec();
            self.renew_service(false);
        }
    }
}
