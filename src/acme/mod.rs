//! Certificates from an authority that speaks ACME (RFC 8555): ordered, kept, renewed in time.
//!
//! ```text
//! keep ── is one kept that is good for long enough? ── yes ─▶ serve it, sleep until it is due
//!              │ no, and no pause is under way
//!              ▼
//!         lock the state ─▶ account ─▶ order ─▶ answer challenges ─▶ certificate ─▶ keep it, serve it
//!                                        │ what went wrong
//!                                        ▼
//!                                 keep that, too: nobody tries again before its pause is over, whoever restarts
//! ```
//!
//! Runs on the control runtime. Owns the state directory's `acme`; refuses to know listeners: it hands its answers to
//! `stream::Challenges`, which they look into.

mod client;
mod order;
mod pace;
mod store;
mod trouble;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::RootCertStore;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::base::{Clock, Printable};
use crate::stream::{Certificate, Certificates, Challenges};

pub use pace::Pace;
pub use store::Store;

use pace::renewal_unix;
use store::Failure;
use trouble::Trouble;

/// The directory of Let's Encrypt.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Its staging environment: the same without the limits, by an authority that nobody trusts.
pub const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// The most names of one certificate: more than authorities take.
pub const MAX_NAMES: usize = 100;

/// However long it is until something is due, so often the clock and the kept certificate are looked at: clocks are set,
/// hosts sleep, and another process may have renewed.
const LOOK: Duration = Duration::from_secs(600);

/// How often it is asked whether another process has ended its order.
const LOCKED: Duration = Duration::from_secs(5);

/// How long an order may take from its first request to the certificate.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);

/// So many times shorter is the pause where nobody answered.
const UNHEARD: u32 = 8;

/// With less than this left of the certificate a failure is an error rather than a warning.
const URGENT_SECS: u64 = 7 * 86_400;

/// What to order, from whom, and where to keep it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// DNS names of the certificate, in lower case, the first one first; 1 to [`MAX_NAMES`].
    pub names: Vec<String>,
    /// Where the authority writes to, if anywhere.
    pub email: Option<String>,
    /// The `https:` URL of the authority's directory (RFC 8555 §7.1.1).
    pub directory: String,
    /// Who may vouch for the authority's own certificate.
    pub roots: Arc<RootCertStore>,
    /// How names are proven: the first, after a failure the next. At least one.
    pub challenges: Vec<Challenge>,
    /// The directory of account, certificates and pauses.
    pub state: PathBuf,
    /// When to try again; [`Pace::default`] unless a test is in a hurry.
    pub pace: Pace,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.names == other.names
            && self.email == other.email
            && self.directory == other.directory
            && self.roots.roots == other.roots.roots
            && self.challenges == other.challenges
            && self.state == other.state
            && self.pace == other.pace
    }
}

/// A way to prove that a name leads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A TLS handshake on port 443 (RFC 8737).
    TlsAlpn01,
    /// A request on port 80 (RFC 8555 §8.3).
    Http01,
}

impl Challenge {
    /// Its name, as the RFCs write it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
        }
    }

    /// The port on which an authority looks.
    pub const fn port(self) -> u16 {
        match self {
            Self::TlsAlpn01 => 443,
            Self::Http01 => 80,
        }
    }
}

/// What became of orders, for metrics.
#[derive(Debug, Default)]
pub struct Counts {
    issued: AtomicU64,
    failed: AtomicU64,
    failures: AtomicU64,
    next_unix: AtomicU64,
}

/// A reading of [`Counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Orders that brought a certificate since the start.
    pub issued: u64,
    /// Orders that did not.
    pub failed: u64,
    /// Failures since the last certificate, those of earlier processes included.
    pub failures: u64,
    /// When the next order is due, in seconds since the Unix epoch.
    pub next_unix: u64,
}

impl Counts {
    /// What there is so far.
    pub fn read(&self) -> Tally {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            issued: of(&self.issued),
            failed: of(&self.failed),
            failures: of(&self.failures),
            next_unix: of(&self.next_unix),
        }
    }
}

/// Keeps one certificate good.
#[derive(Debug)]
pub struct Issuer {
    settings: Settings,
    store: Store,
    served: Arc<Certificates>,
    challenges: Arc<Challenges>,
    counts: Arc<Counts>,
    poke: Arc<Notify>,
    /// The last failure, where the state directory did not take it.
    remembered: Option<Failure>,
    /// No order before this time, in seconds since the Unix epoch, however short-lived certificates are.
    earliest_unix: u64,
}

impl Issuer {
    /// Orders what `settings` say, keeps it in `store`, has `served` serve it; authorities find their answers in
    /// `challenges`. A permit of `poke` ends the pause after a failure, but not one that the authority asked for.
    pub fn new(
        settings: Settings,
        store: Store,
        served: Arc<Certificates>,
        challenges: Arc<Challenges>,
        counts: Arc<Counts>,
        poke: Arc<Notify>,
    ) -> Self {
        Self {
            settings,
            store,
            served,
            challenges,
            counts,
            poke,
            remembered: None,
            earliest_unix: 0,
        }
    }

    /// Looks, orders and sleeps until it is dropped. `poked`: as by `poke`, from the beginning.
    pub async fn keep(mut self, mut poked: bool) {
        loop {
            let now = Clock.now().unix_secs();
            let due = self.due(now, poked);
            self.counts.next_unix.store(due, Ordering::Relaxed);
            if due > now {
                if std::mem::take(&mut poked) {
                    tracing::info!(
                        in_secs = due - now,
                        "tls.acme: there is nothing to order before its time"
                    );
                }
                tokio::select! {
                    () = sleep(Duration::from_secs(due - now).min(LOOK)) => {}
                    () = self.poke.notified() => poked = true,
                }
                continue;
            }
            let lock = match self.store.lock() {
                Ok(Some(lock)) => lock,
                Ok(None) => {
                    tracing::debug!("tls.acme: another process has an order under way");
                    sleep(LOCKED).await;
                    continue;
                }
                Err(error) => {
                    self.failed(now, &Trouble::state(&self.store, &error), 0);
                    poked = false;
                    sleep(LOCKED).await;
                    continue;
                }
            };
            // Whoever had the lock before may have left what is wanted.
            if self.due(now, poked) <= now {
                self.order(now).await;
            }
            poked = false;
            drop(lock);
        }
    }

    /// When to order, in seconds since the Unix epoch; what is kept and good is served from now on.
    fn due(&mut self, now: u64, poked: bool) -> u64 {
        let wanted = match self.store.certificate() {
            Ok(Some(kept)) if kept.not_after_unix() > now => {
                let due = renewal_unix(&kept);
                self.serve(kept);
                due
            }
            Ok(_) => now,
            Err(error) => {
                tracing::warn!(%error, "tls.acme: the kept certificate cannot be used; another is ordered");
                now
            }
        };
        let failure = self.failure();
        let failures = failure.as_ref().map_or(0, |failure| failure.failures);
        (self.counts.failures).store(u64::from(failures), Ordering::Relaxed);
        let pause = failure.map_or(0, |failure| failure.until(now, poked, &self.settings.pace));
        wanted.max(pause).max(self.earliest_unix)
    }

    fn failure(&self) -> Option<Failure> {
        // Beside a failure that could not be kept, what is kept is an earlier one.
        (self.remembered.clone()).or_else(|| self.store.failure())
    }

    fn serve(&self, certificate: Certificate) {
        let until = certificate.not_after_unix();
        if self.served.replace(certificate) {
            tracing::info!(
                names = self.settings.names.join(","),
                expires_in_days = until.saturating_sub(Clock.now().unix_secs()) / 86_400,
                "tls.acme: the certificate is another one from now on"
            );
        }
    }

    async fn order(&mut self, now: u64) {
        let earlier = self.failure().map_or(0, |failure| failure.failures);
        let turn = earlier as usize % self.settings.challenges.len().max(1);
        let Some(kind) = self.settings.challenges.get(turn).copied() else {
            return;
        };
        tracing::info!(
            names = self.settings.names.join(","),
            challenge = kind.label(),
            directory = self.settings.directory,
            "tls.acme: ordering a certificate"
        );
        let told = Arc::new(AtomicU64::new(0));
        let order = order::place(&self.settings, &self.store, &self.challenges, kind, &told);
        let ordered = timeout(ORDER_TIMEOUT, order)
            .await
            .unwrap_or_else(|_| Err(Trouble::slow(ORDER_TIMEOUT)));
        let told_unix = told.load(Ordering::Relaxed);
        match ordered {
            Ok((pem, certificate)) => {
                self.counts.issued.fetch_add(1, Ordering::Relaxed);
                self.earliest_unix = now.saturating_add(self.settings.pace.between.as_secs());
                let kept = self.store.keep_certificate(&pem);
                self.serve(certificate);
                match kept {
                    Ok(()) => {
                        self.remembered = None;
                        if let Err(error) = self.store.forget_failure() {
                            tracing::debug!(%error, "tls.acme: a pause that is over is still noted");
                        }
                    }
                    // It is served as long as this process lives; without a pause it would be ordered again at once.
                    Err(error) => self.failed(now, &Trouble::state(&self.store, &error), 0),
                }
            }
            Err(trouble) => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                self.failed(now, &trouble, told_unix);
            }
        }
    }

    /// Notes that an order came to nothing, and tells what would help.
    fn failed(&mut self, now: u64, trouble: &Trouble, told_unix: u64) {
        let failures = self.failure().map_or(0, |failure| failure.failures) + 1;
        let mut pause = self.settings.pace.pause(failures, rand::random());
        if trouble.unheard {
            pause /= UNHEARD;
        }
        let failure = Failure {
            failures,
            retry_unix: now.saturating_add(pause.as_secs()),
            told_unix,
            cause: trouble.to_string(),
        };
        let retry_in_secs = failure
            .until(now, false, &self.settings.pace)
            .saturating_sub(now);
        self.remembered = match self.store.keep_failure(&failure) {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%error, "tls.acme: the pause is not kept: a restart would not know of it");
                Some(failure)
            }
        };
        let names = self.settings.names.join(",");
        let trouble = Printable(trouble);
        if !self.has_time(now) || failures > 3 {
            tracing::error!(
                names,
                failures,
                retry_in_secs,
                "tls.acme: no certificate: {trouble}"
            );
        } else {
            tracing::warn!(
                names,
                failures,
                retry_in_secs,
                "tls.acme: no certificate: {trouble}"
            );
        }
    }

    /// Whether clients have a certificate that is good for a while.
    fn has_time(&self, now: u64) -> bool {
        let kept = self.store.certificate().ok().flatten();
        kept.is_some_and(|kept| kept.not_after_unix() > now.saturating_add(URGENT_SECS))
    }
}
