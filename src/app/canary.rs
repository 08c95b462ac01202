//! The server looks at itself every few seconds, and puts what it finds on its status page.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;

use super::Running;
use crate::access::{Visit, rest};
use crate::base::addr::is_private;
use crate::base::{Clock, Family, Secret, Transport};
use crate::cluster::Fleet;
use crate::cluster::detective::Others;
use crate::cluster::own::{self, Fault, Seen};
use crate::config::{Config, External, Listener};
use crate::http::status::{Board, Circumstances, Way};
use crate::shard::{RelayIp, Shards};
use crate::stream::Certificates;

/// A way's place among them, and what was seen there.
type Looked = Result<(usize, Result<Seen, Fault>), JoinError>;

/// How often the rest is looked at where nobody looks through the listeners.
const CIRCUMSTANCES_PAUSE: Duration = Duration::from_secs(5);

/// How long the credential of one look is good for.
const TTL_SECS: u64 = 60;

/// How long a look may take, at least and at most: as long as the pause in between. A machine that is busy takes its time.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));

/// Ways that are looked at, at most: a look costs a few packets, and a handshake over TLS.
const MOST_WAYS: usize = 16;

/// Relay ports for each look that is under way: others need them more.
const PORTS_PER_LOOK: usize = 32;

/// Everything a look needs.
struct Eyes {
    ways: Vec<(Way, own::Way)>,
    /// Where relay sockets are bound; looks take turns.
    locals: Vec<IpAddr>,
    secret: Option<Secret<String>>,
    realm: Arc<str>,
    every: Duration,
    /// Looks that are under way at once, at most.
    at_once: usize,
    shards: Shards,
    draining: Arc<AtomicBool>,
    certificates: Option<Arc<Certificates>>,
    private: bool,
    fleet: Arc<Fleet>,
    board: Board,
}

impl Running {
    /// Looks at what is in effect from now on.
    pub(super) fn open_eyes(&mut self) {
        let every = self.config.server.canary;
        let http = &self.config.http;
        (self.board).set(http.status_page, http.test_page, !every.is_zero());
        let eyes = Eyes {
            ways: ways(&self.started.listeners),
            locals: self.relays.iter().map(|relay| relay.local).collect(),
            secret: self.config.access.visits.clone(),
            realm: self.config.access.realm.as_str().into(),
            every,
            at_once: self.config.relay.ports.clone().count() / PORTS_PER_LOOK,
            shards: self.shards.clone(),
            draining: self.drain.flag(),
            certificates: self.certificates.clone(),
            private: is_private_unasked(&self.config, &self.relays),
            fleet: Arc::clone(&self.fleet),
            board: self.board.clone(),
        };
        let watch = self.control.spawn(eyes.watch());
        if let Some(before) = self.eyes.replace(watch) {
            before.abort();
        }
    }

    /// Looks no more: another process serves.
    pub(super) fn close_eyes(&mut self) {
        if let Some(watch) = self.eyes.take() {
            watch.abort();
        }
    }
}

impl Eyes {
    async fn watch(self) {
        let pause = match self.every {
            Duration::ZERO => CIRCUMSTANCES_PAUSE,
            every => every,
        };
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0;
        loop {
            ticks.tick().await;
            let draining = self.draining.load(Ordering::Relaxed);
            // Nobody new gets in: there is nothing to find.
            let found = if self.every.is_zero() || draining {
                Vec::new()
            } else {
                self.look(round).await
            };
            round = round.wrapping_add(1);
            let certificates = self.certificates.as_ref();
            let circumstances = Circumstances {
                alive: self.shards.alive().await,
                draining,
                capacity_ratio: self.shards.capacity_ratio(),
                certificate_expiry_unix: certificates.map(|served| served.not_after_unix()),
                private: self.private,
            };
            let attempts = self.shards.attempts().await;
            let now = Clock.now();
            self.board.heard(now, &attempts);
            self.board.met(now, self.others());
            self.board.record(now, found, circumstances);
        }
    }

    /// The other servers of the service, as their canary finds them.
    fn others(&self) -> Others {
        let others = || (self.fleet.nodes()).filter(|(node, _)| !self.fleet.is_own(node));
        Others {
            nodes: others().count(),
            answering: others().filter(|(_, alive)| *alive).count(),
        }
    }

    /// One look by every way.
    async fn look(&self, round: usize) -> Vec<(Way, Result<Seen, Fault>)> {
        let (Some(secret), Some(local)) = (
            &self.secret,
            self.locals.get(round % self.locals.len().max(1)),
        ) else {
            return Vec::new();
        };
        let expires = Clock.now().unix_secs() + TTL_SECS;
        let (username, password) = rest::mint(secret, Some(Visit::CANARY_USER), expires);
        let mut found: Vec<_> = (self.ways.iter())
            .map(|(way, _)| (*way, Err(Fault::Broken)))
            .collect();
        let mut take = |look: Option<Looked>| {
            if let Some(Ok((index, seen))) = look
                && let Some(place) = found.get_mut(index)
            {
                place.1 = seen;
            }
        };
        let mut looks = JoinSet::new();
        for (index, (_, way)) in self.ways.iter().enumerate() {
            let credential = (username.clone(), Secret::new(password.clone()));
            let (way, local, patience) = (*way, *local, self.every.clamp(PATIENCE.0, PATIENCE.1));
            if looks.len() >= self.at_once.max(1) {
                take(looks.join_next().await);
            }
            let realm = Arc::clone(&self.realm);
            looks.spawn(async move {
                let seen = own::look(way, local, credential, &realm, patience).await;
                (index, seen)
            });
        }
        while let Some(look) = looks.join_next().await {
            take(Some(look));
        }
        found
    }
}

/// Every way into `listeners`, as the public and as this host know it.
fn ways(listeners: &[Listener]) -> Vec<(Way, own::Way)> {
    let ways = listeners.iter().flat_map(|listener| {
        let server = SocketAddr::new(reachable(listener.address.ip()), listener.address.port());
        let spoken = [
            (listener.udp, Transport::Udp),
            (listener.streams.tcp, Transport::Tcp),
            (listener.streams.tls, Transport::Tls),
        ];
        (spoken.into_iter().filter(|(spoken, _)| *spoken)).map(move |(_, transport)| {
            let way = Way {
                transport,
                port: server.port(),
                family: Family::of(server.ip()),
            };
            // Who connects to an address of this host comes from it.
            let introduced = transport.is_stream() && listener.sharing.trusts(server.ip());
            let own = own::Way {
                transport,
                server,
                introduced,
            };
            (way, own)
        })
    });
    ways.take(MOST_WAYS).collect()
}

/// An address of this host that leads to what is bound to `ip`.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // "[::]" takes IPv4 too, and there are hosts without IPv6.
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Whether other networks reach no relayed address and the operator has not said that it is so.
fn is_private_unasked(config: &Config, relays: &[RelayIp]) -> bool {
    config.relay.external == External::Auto
        && (relays.iter()).all(|relay| is_private(relay.external) || relay.external.is_loopback())
}
