//! The life of a running server: signals and orders, one after the other, until it ends.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::base::Clock;
use crate::cluster::{Directory, RevokedFile, Version};
use crate::config::{Sources, Tls};
use crate::http::{LastReload, Order, Outcome};
use crate::lifecycle::{Signal, Signals, notify};
use crate::logging;
use crate::turn::Direction;

use super::Running;
use super::watch::{Watch, states};

/// Changes what is logged, and how, in the running process.
pub type SetLog = Box<dyn Fn(&logging::Settings) + Send>;

/// How often a drain is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How often systemd is told how it goes.
const STATUS_PAUSE: Duration = Duration::from_secs(5);

/// How often the files of the certificate and of users are looked at.
const FILES_PAUSE: Duration = Duration::from_secs(2);

/// How long connections that are passed through to another server may go on after a drain.
const PASSAGES_GRACE: Duration = Duration::from_secs(5);

/// How much longer than its own patience a stopping server asks systemd to wait.
const STOP_MARGIN: Duration = Duration::from_secs(10);

impl Running {
    /// Serves until told to stop.
    ///
    /// # Errors
    /// The system refuses signal handlers.
    pub fn serve(mut self, sources: &Sources, set_log: &SetLog) -> anyhow::Result<()> {
        let control = self.control.handle().clone();
        let result = control.block_on(self.live(sources, set_log));
        if !self.left {
            notify::stopping();
        }
        self.stop();
        result
    }

    async fn live(&mut self, sources: &Sources, set_log: &SetLog) -> anyhow::Result<()> {
        let mut signals = Signals::listen().context("cannot take signals")?;
        loop {
            tokio::select! {
                alive = self.shards.alive() => match alive {
                    true => break,
                    false => tracing::warn!("a shard does not answer yet"),
                },
                signal = signals.next() => {
                    if signal == Signal::Terminate {
                        self.store().await;
                    }
                    if matches!(signal, Signal::Interrupt | Signal::Terminate) {
                        return Ok(());
                    }
                }
            }
        }
        let mut successors = match self.reception.take() {
            Some(reception) => reception,
            None => self.receive_successors(),
        };
        if self.succeeded {
            notify::main_process();
        } else {
            notify::ready();
        }
        tokio::spawn(notify::feed_watchdog(self.shards.clone()));
        let told = self.tell_status();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut terminated = false;
        let mut certificate = Watch::new();
        let mut directory = Watch::new();
        let first = (self.config.revoked_file.as_ref()).map(RevokedFile::first_version);
        let mut revoked_file = first.map_or_else(Watch::new, Watch::since);
        let mut look = Clock.now().mono;
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Interrupt => {
                        tracing::info!("SIGINT: stopping at once");
                        break;
                    }
                    Signal::Terminate if terminated => {
                        tracing::info!("SIGTERM again: stopping at once");
                        break;
                    }
                    Signal::Terminate => {
                        terminated = true;
                        let grace = self.config.drain.grace;
                        tracing::info!(grace_secs = grace.as_secs_f64(), "SIGTERM: stopping");
                        notify::stopping();
                        if self.store().await {
                            break;
                        }
                        self.begin_drain(grace);
                    }
                    Signal::Reload => {
                        self.reload_and_tell(sources, set_log).await;
                    }
                    Signal::Drain => self.begin_drain(self.config.drain.deadline),
                    Signal::Certificate => self.renew_certificate(),
                },
                look = self.outside.next() => self.take_look(look).await,
                Some(asked) = self.orders.recv() => {
                    let outcome = match asked.order {
                        Order::Reload => self.reload_and_tell(sources, set_log).await,
                        Order::Drain { deadline } => self.ordered_drain(deadline),
                    };
                    let _ = asked.answer.send(outcome);
                }
                Some(knock) = successors.knocks.recv() => {
                    if self.answer(knock).await {
                        told.abort();
                        self.linger(&mut signals, &mut revoked_file).await;
                        break;
                    }
                    self.renew(&mut successors);
                }
                _ = tick.tick() => {
                    let now = Clock.now();
                    if self.drain.is_over(now, self.shards.live()) {
                        let left = self.shards.live();
                        tracing::info!(left, "drained");
                        self.lobby.accept(false);
                        self.lobby.admission.passages().end(PASSAGES_GRACE).await;
                        break;
                    }
                    self.balance();
                    self.renew_revoked(&mut revoked_file).await;
                    if now.mono >= look {
                        look = now.mono + FILES_PAUSE;
                        let own = self.config.tls.as_ref().and_then(Tls::files);
                        let files = own.into_iter().chain(&self.config.certificates);
                        let states: Vec<_> = files.map(states).collect();
                        let any = !states.is_empty();
                        if certificate.changed(states) && any {
                            self.renew_certificate();
                        }
                        let users = self.config.directory.as_ref();
                        if directory.changed(users.and_then(Directory::version)) {
                            tracing::info!("auth.users_file is another one: reloading");
                            self.reload_and_tell(sources, set_log).await;
                        }
                    }
                    if let Some(remaining) = self.drain.remaining(now)
                        && terminated
                    {
                        notify::extend(remaining + STOP_MARGIN);
                    }
                }
            }
        }
        told.abort();
        Ok(())
    }

    /// Takes no new allocations from now on; what lives gets `patience`.
    fn begin_drain(&mut self, patience: Duration) {
        let now = Clock.now();
        self.drain.begin(now, patience);
        self.update_newcomers();
        let remaining = self.drain.remaining(now).unwrap_or_default();
        tracing::info!(
            allocations = self.shards.live(),
            deadline_secs = remaining.as_secs_f64(),
            "draining: no new allocations"
        );
        let live = self.shards.live();
        let left = remaining.as_secs();
        notify::status(&format!(
            "draining: {live} allocations left, ended in {left} s at the latest"
        ));
    }

    fn ordered_drain(&mut self, deadline: Option<Duration>) -> Outcome {
        self.begin_drain(deadline.unwrap_or(self.config.drain.deadline));
        Outcome {
            done: true,
            body: json!({
                "status": "draining",
                "allocations": self.shards.live(),
                "deadline": self.operator.drain_deadline_unix(),
            }),
        }
    }

    async fn reload_and_tell(&mut self, sources: &Sources, set_log: &SetLog) -> Outcome {
        notify::reloading();
        let result = self.reload(sources, set_log).await;
        notify::ready();
        let problems = result.as_ref().err();
        self.operator.note_reload(LastReload {
            at: Clock.now().unix_secs(),
            applied: result.is_ok(),
            problems: (problems.into_iter().flat_map(|all| all.iter()))
                .map(ToString::to_string)
                .collect(),
        });
        match result {
            Ok(reloaded) => {
                for change in &reloaded.changed {
                    tracing::info!("reloaded: {change}");
                }
                for change in &reloaded.restart {
                    tracing::warn!("takes a restart: {change}");
                }
                for note in &reloaded.notes {
                    tracing::info!("reloaded: {note}");
                }
                notify::status("configuration reloaded");
                let mut body = json!(reloaded);
                body["applied"] = json!(true);
                Outcome { done: true, body }
            }
            Err(problems) => {
                tracing::error!("the configuration was not reloaded, nothing has changed");
                for problem in problems.iter() {
                    tracing::error!("{problem}");
                }
                notify::status("reload refused: the configuration before it is in effect");
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Outcome {
                    done: false,
                    body: json!({
                        "applied": false,
                        "error": "nothing has changed: the new configuration cannot be used",
                        "problems": problems,
                    }),
                }
            }
        }
    }

    /// Reads `auth.revoked_file` again if it is another one: by itself, so that no other mistake in the configuration
    /// keeps it from having effect.
    pub(super) async fn renew_revoked(&mut self, watch: &mut Watch<Option<Version>>) {
        let Some(file) = &self.config.revoked_file else {
            return;
        };
        if !watch.changed(file.version()) {
            return;
        }
        match file.read() {
            Ok(entries) => {
                self.config.revoked = entries.revoked;
                let revoked = self.config.revoked.clone();
                let count = revoked.len();
                let revoked = (self.ledger).configure(revoked, Clock.now().unix_secs());
                let ended = self.shards.revoke(revoked).await;
                tracing::info!(count, ended, "auth.revoked_file is another one");
            }
            Err(error) => tracing::error!(
                %error,
                "auth.revoked_file cannot be used: what it said before stays revoked"
            ),
        }
    }

    fn renew_certificate(&self) {
        if self.certification.poke() && self.config.certificates.is_empty() {
            return;
        }
        match self.reload_certificate() {
            Ok(true) => tracing::info!("the certificate is another one from now on"),
            Ok(false) => tracing::info!("the certificate is the same as before"),
            Err(error) => tracing::error!(
                %error,
                "the new certificate cannot be used: the one before is served on"
            ),
        }
    }

    /// Sends newcomers elsewhere as long as the server is nearly full, if it is to.
    fn balance(&mut self) {
        let percent = self.config.drain.overload_percent;
        let full = percent > 0 && self.shards.capacity_ratio() * 100.0 >= f64::from(percent);
        if std::mem::replace(&mut self.overloaded, full) != full {
            tracing::info!(full, "drain.overload: whether newcomers are sent elsewhere");
            self.update_newcomers();
        }
    }

    /// Tells systemd every few seconds how it goes, until it is aborted.
    fn tell_status(&self) -> tokio::task::JoinHandle<()> {
        let (shards, operator) = (self.shards.clone(), self.operator.clone());
        tokio::spawn(async move {
            let bytes = async || {
                let relayed = shards.snapshot().await.stats.relayed;
                let of = |direction: Direction| {
                    (relayed[direction as usize].iter())
                        .map(|traffic| traffic.bytes)
                        .sum::<u64>()
                };
                of(Direction::ToPeer) + of(Direction::ToClient)
            };
            let mut last = (Clock.now(), bytes().await);
            loop {
                tokio::time::sleep(STATUS_PAUSE).await;
                let (now, sum) = (Clock.now(), bytes().await);
                let secs = now
                    .mono
                    .saturating_duration_since(last.0.mono)
                    .as_secs_f64();
                let mbit = sum.saturating_sub(last.1) as f64 * 8.0 / 1e6 / secs.max(0.001);
                last = (now, sum);
                let live = shards.live();
                let line = match operator.drain_deadline_unix() {
                    Some(deadline) => format!(
                        "draining: {live} allocations left, ended in {} s at the latest; {mbit:.1} Mbit/s",
                        deadline.saturating_sub(now.unix_secs())
                    ),
                    None => format!("{live} allocations, {mbit:.1} Mbit/s"),
                };
                notify::status(&line);
            }
        })
    }
}
