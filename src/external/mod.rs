//! How relay addresses look from outside, where nobody wrote it down: a public address of an interface is used as it is;
//! for a private one the cloud's metadata service is asked, then STUN servers, both only if they are configured.
//!
//! Nothing is sent anywhere by default, and nothing here waits longer than [`PATIENCE`]. What was found once is kept while
//! nobody answers.

mod changes;
mod metadata;
mod stun;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::base::Family;
use crate::base::addr::is_private;
use crate::net::host;

pub use changes::Changes;
pub use metadata::Cloud;
pub use stun::server as stun_server;

/// How long one look may take at the longest.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// How long the metadata services may take of it.
const METADATA_PATIENCE: Duration = Duration::from_millis(1500);

/// Where every cloud serves metadata.
const METADATA: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)), 80);

/// How often what was found is looked at again.
const EVERY: Duration = Duration::from_secs(60);

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Clouds whose metadata service is asked; none: no request is made.
    pub metadata: Vec<Cloud>,
    /// Where it is; 169.254.169.254:80 but in tests.
    pub metadata_address: SocketAddr,
    /// STUN servers as `host:port`, two or more, or none. Every answer has to say the same.
    pub stun_servers: Vec<String>,
    /// How often to look again; a minute but in tests.
    pub every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            metadata: Vec::new(),
            metadata_address: METADATA,
            stun_servers: Vec::new(),
            every: EVERY,
        }
    }
}

impl Settings {
    /// Whether there is anybody to ask.
    pub const fn asks(&self) -> bool {
        !self.metadata.is_empty() || !self.stun_servers.is_empty()
    }

    /// Whether `source` is one of them.
    fn asks_at(&self, source: Source) -> bool {
        match source {
            Source::Configured | Source::Interface => false,
            Source::Metadata(cloud) => self.metadata.contains(&cloud),
            Source::Stun => !self.stun_servers.is_empty(),
        }
    }
}

/// Who told an external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The operator, in `relay.external_address`.
    Configured,
    /// The interface: the address is its own.
    Interface,
    /// A cloud's metadata service.
    Metadata(Cloud),
    /// STUN servers.
    Stun,
}

impl Source {
    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Interface => "interface",
            Self::Metadata(cloud) => cloud.label(),
            Self::Stun => "stun",
        }
    }

    /// The source of that label.
    pub fn from_label(label: &str) -> Option<Self> {
        [Self::Configured, Self::Interface, Self::Stun]
            .into_iter()
            .chain(Cloud::ALL.map(|(_, cloud)| Self::Metadata(cloud)))
            .find(|source| source.label() == label)
    }

    /// The same for people.
    pub const fn described(self) -> &'static str {
        match self {
            Self::Configured => "as configured",
            Self::Interface => "its own",
            Self::Metadata(cloud) => cloud.described(),
            Self::Stun => "by STUN",
        }
    }
}

/// A local relay address from both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What sockets bind to.
    pub local: IpAddr,
    /// What clients and peers use.
    pub external: IpAddr,
    /// Who says so.
    pub source: Source,
}

impl Seen {
    /// Whether only the network around this host can use it, and nobody has said that this is meant.
    pub const fn is_out_of_reach(&self) -> bool {
        matches!(self.source, Source::Interface) && is_private(self.external)
    }
}

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Every local address, in the order asked for.
    pub seen: Vec<Seen>,
    /// Who could not be asked or believed.
    pub troubles: Vec<Trouble>,
}

/// Why nothing was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// The key of the configuration that it is about.
    pub key: &'static str,
    /// What happened.
    pub found: String,
    /// The way out.
    pub remedy: String,
}

impl Look {
    /// Goes on with what `before` knew of addresses that nobody tells anything about any more, as long as `settings` still
    /// name who told: a service that is down for a moment takes no address away.
    #[must_use]
    pub fn keeping(mut self, settings: &Settings, before: &[Seen]) -> Self {
        for seen in self.seen.iter_mut().filter(|seen| seen.is_out_of_reach()) {
            let known = (before.iter())
                .find(|known| known.local == seen.local && settings.asks_at(known.source));
            if let Some(known) = known {
                *seen = *known;
            }
        }
        self
    }

    /// Whether there is an address that only the network around this host can use.
    pub fn out_of_reach(&self) -> bool {
        self.seen.iter().any(Seen::is_out_of_reach)
    }
}

/// Finds out how each of `locals` looks from outside, within [`PATIENCE`].
pub async fn look(settings: &Settings, locals: &[IpAddr]) -> Look {
    let mut found = Look {
        seen: (locals.iter())
            .map(|&local| Seen {
                local,
                external: local,
                source: Source::Interface,
            })
            .collect(),
        troubles: Vec::new(),
    };
    if !settings.metadata.is_empty() && found.out_of_reach() {
        ask_metadata(settings, &mut found).await;
    }
    if !settings.stun_servers.is_empty() && found.out_of_reach() {
        ask_stun(settings, &mut found).await;
    }
    found
}

async fn ask_metadata(settings: &Settings, found: &mut Look) {
    let interfaces = host::interface_addresses();
    let told = metadata::ask_all(
        &settings.metadata,
        settings.metadata_address,
        METADATA_PATIENCE,
    )
    .await;
    for (cloud, told) in told {
        match told {
            Ok(told) => {
                for seen in found.seen.iter_mut().filter(|seen| seen.is_out_of_reach()) {
                    if let Some(external) = metadata::external(&told, seen.local, &interfaces) {
                        seen.external = external;
                        seen.source = Source::Metadata(cloud);
                    }
                }
            }
            Err(trouble) => found.troubles.push(trouble),
        }
    }
    if found.troubles.is_empty() {
        let unknown = found.seen.iter().filter(|seen| seen.is_out_of_reach());
        let unknown: Vec<String> = unknown.map(|seen| seen.local.to_string()).collect();
        if !unknown.is_empty() {
            found.troubles.push(Trouble {
                key: "relay.metadata",
                found: format!(
                    "the service knows no public address of {}",
                    unknown.join(", ")
                ),
                remedy: "give the machine one, or name two servers in relay.stun_servers".into(),
            });
        }
    }
}

async fn ask_stun(settings: &Settings, found: &mut Look) {
    let mut asked = tokio::task::JoinSet::new();
    for (index, seen) in found.seen.iter().enumerate() {
        if seen.is_out_of_reach() {
            let (servers, local) = (settings.stun_servers.clone(), seen.local);
            asked.spawn(async move { (index, stun::agree(&servers, local).await) });
        }
    }
    let mut troubles = Vec::new();
    while let Some(answer) = asked.join_next().await {
        let Ok((index, answer)) = answer else {
            continue;
        };
        match (answer, found.seen.get_mut(index)) {
            (Ok(external), Some(seen)) => {
                seen.external = external;
                seen.source = Source::Stun;
            }
            (Err(trouble), _) => troubles.push((index, trouble)),
            (Ok(_), None) => {}
        }
    }
    troubles.sort_unstable();
    let troubles = troubles.into_iter().map(|(_, trouble)| trouble);
    found.troubles.extend(troubles);
}

/// Whether peers of the internet could be at `ip`.
fn is_credible(ip: IpAddr, local: IpAddr) -> bool {
    Family::of(ip) == Family::of(local)
        && !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !is_private(ip)
}

/// What is in effect, for metrics.
#[derive(Debug, Default)]
pub struct Board(Mutex<(Vec<Seen>, u64)>);

impl Board {
    /// Shows `seen`, and counts `changes` more.
    pub fn show(&self, seen: Vec<Seen>, changes: u64) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.1 += changes;
        board.0 = seen;
    }

    /// What is shown, and how many changes there have been.
    pub fn read(&self) -> (Vec<Seen>, u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
