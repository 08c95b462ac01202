//! Where one process stops and another goes on: what the running one gives, and how the next one begins.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::base::Clock;
use crate::cluster::Version;
use crate::config::{Config, Listener, Problem, Problems};
use crate::external::{Seen, Source};
use crate::lifecycle::handover::{
    self, Approach, Candidate, Failure, Giver, Inventory, Knock, Place,
};
use crate::lifecycle::store::{self, Store};
use crate::lifecycle::{Signal, Signals};
use crate::net::{Channel, Doorway};

use super::Running;
use super::doors::PreparedAdmin;
use super::watch::Watch;

/// How often connections that stayed are counted.
const TICK: Duration = Duration::from_millis(250);

/// Take-overs that may wait at once: one after the other is served.
const KNOCKS: usize = 4;

/// How a server and its next version find each other.
#[derive(Clone, Debug, Default)]
pub struct TakeOver {
    /// The socket that the running one listens at; none: it lets nobody take over.
    pub socket: Option<PathBuf>,
    /// Whether to take over from who listens there.
    pub wanted: bool,
    /// The directory of what both know: revocations, credentials of API keys. None: they are in memory only.
    pub state: Option<PathBuf>,
}

impl TakeOver {
    /// Whether it is wanted, and there is somebody to take over from.
    pub fn has_somebody(&self) -> bool {
        let socket = self.socket.as_ref().filter(|_| self.wanted);
        socket.is_some_and(|socket| Channel::connect(socket).is_ok())
    }

    /// The process to take over from, if that is wanted and there is one.
    ///
    /// # Errors
    /// It cannot be taken over from.
    pub(super) fn approach(&self) -> Result<Option<Approach>, Problems> {
        if !self.wanted {
            return Ok(None);
        }
        let Some(socket) = &self.socket else {
            return Err(Problem::host(
                "server.handover",
                "it is \"\", so there is no socket to take over through",
                "name the socket of the running server, or start without --takeover",
            )
            .into());
        };
        let approach = Approach::to(socket).map_err(|failure| refused(&failure))?;
        if approach.is_none() {
            tracing::info!(socket = %socket.display(), "nobody to take over from: starting anew");
        }
        Ok(approach)
    }
}

/// What an operator hears of a take-over that did not come about.
pub(super) fn refused(failure: &Failure) -> Problems {
    Problem::host(
        "take-over",
        format!("{failure}; the running server serves on"),
        "see its log; or stop it, which ends its calls, and start without --takeover",
    )
    .into()
}

/// The place of `listener` in the process before, taken out of `places`: the same address may be asked for twice where
/// its port is 0.
pub(super) fn place_of(listener: &Listener, places: &mut Vec<Place>) -> Option<Place> {
    let same = |place: &Place| place.wanted == listener.address;
    let index = places.iter().position(same)?;
    Some(places.remove(index))
}

/// How its relay addresses look from outside, as the process before knows.
pub(super) fn seen(inventory: &Inventory) -> Vec<Seen> {
    (inventory.outside.iter())
        .filter_map(|(local, external, source)| {
            Some(Seen {
                local: *local,
                external: *external,
                source: Source::from_label(source)?,
            })
        })
        .collect()
}

/// Relayed addresses of the process before that may live.
pub(super) fn earlier(inventory: &Inventory) -> Vec<(IpAddr, RangeInclusive<u16>)> {
    (inventory.relayed.iter())
        .map(|(ip, first, last)| (*ip, *first..=*last))
        .collect()
}

/// Shards cannot be split or merged: every client is mapped to one by the number of them.
pub(super) fn check_shards(config: &Config, inventory: &Inventory, problems: &mut Vec<Problem>) {
    let (wanted, running) = (config.server.shards, inventory.shards);
    if wanted != 0 && wanted != running {
        problems.push(Problem::host(
            "server.shards",
            format!(
                "{wanted}, and the running server has {running}: a take-over keeps their number"
            ),
            format!(
                "set server.shards = {running} or 0; for another number, stop it and start anew"
            ),
        ));
    }
}

/// The listening end of take-overs, while a server runs.
pub(super) struct Reception {
    /// Its file goes with it.
    doorway: Option<Doorway>,
    pub knocks: mpsc::Receiver<Knock>,
}

impl Running {
    /// Lets other processes ask to take over.
    pub(super) fn receive_successors(&self) -> Reception {
        let (sender, knocks) = mpsc::channel(KNOCKS);
        let doorway = self.take_over.socket.as_ref().and_then(|path| {
            match handover::listen(path, self.succeeded, sender) {
                Ok(doorway) => Some(doorway),
                Err(error) => {
                    tracing::warn!(
                        socket = %path.display(),
                        %error,
                        "no other process can take over from this one; give it a socket of its own in server.handover, \
                         or write \"\""
                    );
                    None
                }
            }
        });
        Reception { doorway, knocks }
    }

    /// Listens again where a process has put its own socket in the place that ended before it served.
    pub(super) fn renew(&self, reception: &mut Reception) {
        let lost = |doorway: &Doorway| !doorway.is_in_place();
        if reception.doorway.as_ref().is_some_and(lost) {
            *reception = self.receive_successors();
        }
    }

    /// Answers what a process that wants to take over says; whether it has.
    pub(super) async fn answer(&mut self, knock: Knock) -> bool {
        match knock {
            Knock::Inventory(answer) => {
                let mut inventory = self.inventory();
                let connections = self.shards.connections().await as usize;
                inventory.descriptors = self.shards.live() + connections;
                let _ = answer.send(inventory);
                false
            }
            Knock::Ready(candidate) => self.hand_over(candidate).await,
        }
    }

    fn inventory(&self) -> Inventory {
        let opened = self.listeners.iter().zip(&self.started.listeners);
        let admin = self.config.admin.zip(self.started.admin);
        Inventory {
            shards: self.shards.count(),
            descriptors: 0,
            listeners: opened
                .map(|(open, bound)| Place {
                    wanted: open.wanted.address,
                    bound: bound.address,
                    udp: bound.has_datagrams(),
                    tcp: open.door.is_some(),
                })
                .collect(),
            admin: admin.map(|(wanted, bound)| Place {
                wanted,
                bound,
                udp: false,
                tcp: true,
            }),
            outside: (self.outside.seen().iter())
                .map(|seen| (seen.local, seen.external, seen.source.label().to_owned()))
                .collect(),
            relayed: (self.shards.earlier_relays(true).into_iter())
                .map(|(ip, ports)| (ip, *ports.start(), *ports.end()))
                .collect(),
        }
    }

    /// Gives everything to `candidate`; false if it does not come about, and this process serves as before.
    async fn hand_over(&mut self, candidate: Candidate) -> bool {
        let (pid, program) = (candidate.peer.pid, candidate.program.clone());
        let begin = Clock.now().mono;
        self.pause().await;
        let frozen = self.shards.freeze().await;
        let giver = Giver::new(candidate);
        let given = if frozen {
            self.give(&giver).await
        } else {
            Err(Failure::Refused("a shard does not answer".to_owned()))
        };
        let stopped = Clock.now().mono.saturating_duration_since(begin);
        let released = match given {
            Ok(()) if giver.released() => true,
            Ok(()) => {
                tracing::error!(
                    pid,
                    "the process that was to take over has ended: serving on"
                );
                false
            }
            Err(failure) => {
                giver.refuse(&match &failure {
                    Failure::Broken(error) if error.kind() == ErrorKind::WouldBlock => {
                        "it took too long".to_owned()
                    }
                    failure => failure.to_string(),
                });
                tracing::error!(pid, program, %failure, "no take-over: serving on");
                false
            }
        };
        if released {
            self.left = true;
            // It orders from now on.
            self.certification.stop();
            self.successor = Some(giver);
            self.paused_admin = None;
            let left = self.shards.leave().await;
            tracing::info!(
                pid,
                program,
                gap_ms = stopped.as_secs_f64() * 1e3,
                connections = left,
                "taken over"
            );
        } else {
            self.shards.thaw();
            self.resume();
        }
        released
    }

    /// Leaves everything in systemd's keeping for the next start; false if that cannot be.
    pub(super) async fn store(&mut self) -> bool {
        let Some(room) = store::room() else {
            return false;
        };
        let listeners = self.listeners.len() * (self.shards.count() + 1) + 2;
        let connections = self.shards.connections().await as usize;
        let needed = self.shards.live() + connections + listeners;
        if needed > room {
            tracing::warn!(
                needed,
                room,
                "systemd keeps fewer sockets than there are: calls end; raise FileDescriptorStoreMax"
            );
            return false;
        }
        self.pause().await;
        let stored = if self.shards.freeze().await {
            self.put_into_store().await
        } else {
            Err(std::io::ErrorKind::TimedOut.into())
        };
        match stored {
            Ok(()) => {
                self.left = true;
                self.shards.leave().await;
                tracing::info!("sockets and state are in systemd's keeping");
                true
            }
            Err(error) => {
                tracing::error!(%error, "systemd could not keep sockets and state: calls end");
                self.shards.thaw();
                self.resume();
                false
            }
        }
    }

    async fn put_into_store(&self) -> std::io::Result<()> {
        let store = Store::new(self.inventory())?;
        let put = async {
            let doors = self.doors()?;
            let doors: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
            store.doors(&doors)?;
            self.shards.export(|| Box::new(store.clone())).await?;
            store.finish()
        };
        let put = put.await;
        if put.is_err() {
            store.discard();
        }
        put
    }

    /// The TCP listeners in the order of the inventory, the admin listener last.
    fn doors(&self) -> std::io::Result<Vec<TcpListener>> {
        let mut doors = Vec::new();
        for open in &self.listeners {
            doors.extend(open.door.as_ref().map(|door| door.socket()).transpose()?);
        }
        if let Some((_, admin)) = &self.paused_admin {
            doors.push(admin.try_clone()?);
        }
        Ok(doors)
    }

    async fn give(&self, giver: &Giver) -> Result<(), Failure> {
        let doors = self.doors()?;
        let doors: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
        giver.doors(&doors)?;
        self.shards.export(|| Box::new(giver.clone())).await?;
        giver.grant()
    }

    /// Accepts nobody any more: who comes waits in the kernel.
    async fn pause(&mut self) {
        self.lobby.accept(false);
        self.ledger.leave();
        if let Some(door) = self.admin.take() {
            let socket = door.socket();
            let address = door.address;
            door.close().await;
            self.events.dismiss();
            self.captures.dismiss();
            self.paused_admin = socket.ok().map(|socket| (address, socket));
        }
    }

    fn resume(&mut self) {
        self.ledger.come_back();
        self.lobby.accept(true);
        if let Some((address, socket)) = self.paused_admin.take() {
            let certificates = self.certificates.clone();
            let tls = certificates.filter(|_| self.config.http.tls);
            match PreparedAdmin::new(address, socket, tls) {
                Ok(prepared) => self.open_admin(prepared),
                Err(error) => tracing::error!(%error, "the admin listener cannot go on"),
            }
        }
    }

    /// Serves the connections that could not be handed over, until they are gone, `server.handover_grace` is over or a
    /// signal says so.
    pub(super) async fn linger(
        &mut self,
        signals: &mut Signals,
        revoked_file: &mut Watch<Option<Version>>,
    ) {
        self.close_eyes();
        let until = Clock.now().mono + self.config.handover.grace;
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                signal = signals.next() => {
                    if matches!(signal, Signal::Terminate | Signal::Interrupt) {
                        return;
                    }
                }
                _ = tick.tick() => {
                    // Who is revoked by the process that serves now has no business here either.
                    if let Some(revoked) = self.ledger.follow(Clock.now().unix_secs()) {
                        self.shards.revoke(revoked).await;
                    }
                    self.renew_revoked(revoked_file).await;
                    let passages = self.lobby.admission.passages().read().open;
                    if self.shards.connections().await == 0 && passages == 0 {
                        return;
                    }
                    if Clock.now().mono >= until {
                        tracing::info!("connections that stayed are ended");
                        return;
                    }
                }
            }
        }
    }
}
