//! The life of a running server: signals and orders, one after the other, until it ends.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::base::Clock;
use crate::config::{Log, Sources, values};
use crate::http::{Order, Outcome};
use crate::lifecycle::{Signal, Signals, notify};
use crate::turn::Direction;

use super::Running;

/// Changes what is logged, and how, in the running process.
pub type SetLog = Box<dyn Fn(&Log) + Send>;

/// How often a drain is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How often systemd is told how it goes.
const STATUS_PAUSE: Duration = Duration::from_secs(5);

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
        if !self.shards.alive().await {
            tracing::warn!("a shard does not answer yet");
        }
        let mut successors = self.receive_successors();
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
                    Signal::Certificate => {
                        self.reload_certificate();
                    }
                },
                Some(asked) = self.orders.recv() => {
                    let outcome = match asked.order {
                        Order::Reload => self.reload_and_tell(sources, set_log).await,
                        Order::Drain { deadline } => self.ordered_drain(deadline.as_deref()),
                    };
                    let _ = asked.answer.send(outcome);
                }
                Some(knock) = successors.knocks.recv() => {
                    if self.answer(knock).await {
                        told.abort();
                        self.linger(&mut signals).await;
                        break;
                    }
                }
                _ = tick.tick() => {
                    let now = Clock.now();
                    if self.drain.is_over(now, self.shards.live()) {
                        let left = self.shards.live();
                        tracing::info!(left, "drained");
                        break;
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
        let remaining = self.drain.remaining(now).unwrap_or_default();
        tracing::info!(
            allocations = self.shards.live(),
            deadline_secs = remaining.as_secs_f64(),
            "draining: no new allocations"
        );
    }

    fn ordered_drain(&mut self, deadline: Option<&str>) -> Outcome {
        let patience = match deadline.map(values::duration) {
            None => self.config.drain.deadline,
            Some(Ok(patience)) => patience,
            Some(Err(wanted)) => {
                return Outcome {
                    done: false,
                    body: json!({ "error": format!("deadline: write {wanted}") }),
                };
            }
        };
        self.begin_drain(patience);
        Outcome {
            done: true,
            body: json!({
                "status": "draining",
                "allocations": self.shards.live(),
                "deadline": self.operator.drain_deadline_unix(),
            }),
        }
    }

    async fn reload_and_tell(&mut self, _sources: &Sources, _set_log: &SetLog) -> Outcome {
        notify::reloading();
        notify::ready();
        Outcome {
            done: false,
            body: json!({ "error": "not yet" }),
        }
    }

    fn reload_certificate(&mut self) {}

    /// Tells systemd every few seconds how it goes, until it is aborted.
    fn tell_status(&self) -> tokio::task::JoinHandle<()> {
        let (shards, drain) = (self.shards.clone(), self.drain.clone());
        let operator = self.operator.clone();
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
                    Some(deadline) if drain.is_on() => format!(
                        "draining: {live} allocations left, ended in {} s at the latest; {mbit:.1} Mbit/s",
                        deadline.saturating_sub(now.unix_secs())
                    ),
                    _ => format!("{live} allocations, {mbit:.1} Mbit/s"),
                };
                notify::status(&line);
            }
        })
    }
}
