//! What systemd is told, by the protocol of sd_notify(3); nothing where nobody listens.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::shard::Shards;

/// The server serves: every socket is open and the shards answer. Also the end of a reload.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// This process is the service from now on: it has taken over, and serves.
pub fn main_process() {
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
}

/// A reload begins; `ready` ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic time for systemd"),
    }
}

/// The server stops soon.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line about how it goes, for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Stopping takes this much longer from now on.
pub fn extend(by: Duration) {
    let usec = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(usec)]);
}

/// Feeds the watchdog, if systemd has one for this process: only after every shard has answered within a third of its
/// interval. A shard that hangs starves it, and systemd starts the server again.
pub async fn feed_watchdog(shards: Shards) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let third = interval / 3;
    let mut hung = false;
    loop {
        if shards.answer_within(third).await {
            tell(&[NotifyState::Watchdog]);
            hung = false;
        } else if !std::mem::replace(&mut hung, true) {
            tracing::error!(
                "a shard does not answer: systemd is told nothing, and restarts the server if it stays so"
            );
        }
        tokio::time::sleep(third).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
