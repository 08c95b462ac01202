//! `turnix probe`: any STUN or TURN server from end to end, as a client meets it.
//!
//! [`journey`] goes step by step and notes [`facts`], [`around`] looks for what may explain a failure, [`verdict`] says
//! what is wrong and what to do.

mod around;
mod facts;
mod journey;
mod path;
mod screen;
mod traffic;
mod verdict;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::credentials::{given_secret, mint};
use super::tls::{Trust, server_name};
use super::{Exit, print};
use crate::access::rest;
use crate::base::{Clock, Printable, Secret, printable};
use crate::cluster::IceUri;
use crate::config::{Config, Sources, values};

use facts::{Credentials, Facts};
use journey::{Journey, Order};
use path::Tls;
use screen::Screen;
use traffic::Plan;
use verdict::{Level, Verdict, judge};

/// How long a credential made from a secret is good for.
const CREDENTIAL_SECS: u64 = 3600;

/// Bytes of application data in a packet of the burst.
const BURST_BYTES: u64 = 1000;

/// The most that a burst may ask for, in bits per second.
const MOST_RATE: u64 = 100_000_000;

/// Arguments of `turnix probe`.
#[derive(Args)]
pub struct Arguments {
    /// What to probe, such as stun:host, turn:host:3478, turn:host?transport=tcp, turns:host:443 (RFC 7064, RFC 7065).
    #[arg(value_name = "URI", required = true)]
    uris: Vec<String>,
    /// User name; with a secret, the user id in the time-limited name [default: TURN_USERNAME of the environment].
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The user's password [default: TURN_CREDENTIAL of the environment].
    ///
    /// The command line is shown to everybody on this host (ps), and shells keep it: the environment tells nobody.
    #[arg(long, value_name = "PASSWORD", requires = "user", conflicts_with_all = ["secret", "secret_file"])]
    password: Option<String>,
    /// Make a time-limited credential with this shared secret [default: TURNIX_AUTH__SECRETS of the environment].
    #[arg(long, value_name = "SECRET", conflicts_with = "secret_file")]
    secret: Option<String>,
    /// As --secret, from the one line of this file.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Trust certificates below the roots in this PEM file [default: those that this host trusts].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Do not verify the server's certificate.
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,
    /// How long the burst lasts, 0 to 30; 0: none.
    #[arg(long, value_name = "S", default_value_t = 1.5, value_parser = seconds)]
    seconds: f64,
    /// How much the burst asks for, up to 100Mbit.
    #[arg(long, value_name = "RATE", default_value = "2400kbit", value_parser = rate)]
    rate: u64,
    /// How long one step may take, such as 5s.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = patience)]
    timeout: Duration,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if (0.0..=30.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, 0 to 30".into()),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    match values::rate(text) {
        Ok(rate) if (8 * BURST_BYTES..=MOST_RATE).contains(&rate) => Ok(rate),
        Ok(_) => Err("expected 8kbit to 100Mbit".into()),
        Err(wanted) => Err(format!("expected {wanted}")),
    }
}

fn patience(text: &str) -> Result<Duration, String> {
    match values::duration(text) {
        Ok(time) if (1..=60).contains(&time.as_secs()) => Ok(time),
        Ok(_) => Err("expected 1s to 60s".into()),
        Err(wanted) => Err(format!("expected {wanted}")),
    }
}

/// One URI and what came of it.
#[derive(Serialize)]
struct Probe {
    fault: bool,
    #[serde(flatten)]
    facts: Facts,
    verdicts: Vec<Verdict>,
}

/// Probes every URI in turn; says what is wrong with each, and what to do.
///
/// # Errors
/// What was asked for cannot be done here; a fault of a server is none.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let orders = orders(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let mut screen = Screen::new(arguments.json);
    let probed = runtime.block_on(probe_all(&orders, &mut screen));
    // A resolver that does not answer is not waited for.
    runtime.shutdown_background();
    let (probes, interrupted) = probed?;
    if arguments.json {
        let document = serde_json::json!({
            "fault": probes.iter().any(|probe| probe.fault),
            "interrupted": interrupted,
            "probes": &probes,
        });
        print(&printable::json(&format!("{document:#}\n")))?;
    } else if probes.len() > 1 {
        screen.line("");
        let width = probes
            .iter()
            .map(|probe| probe.facts.uri.chars().count())
            .max();
        for probe in &probes {
            screen.line(&row(&screen, probe, width.unwrap_or(0)));
        }
    }
    if interrupted {
        bail!("interrupted; what the server kept for this probe was given back");
    }
    Ok(match probes.iter().any(|probe| probe.fault) {
        true => Exit::Fault,
        false => Exit::Done,
    })
}

/// What came of each URI, and whether somebody put an end to it.
async fn probe_all(orders: &[Order], screen: &mut Screen) -> anyhow::Result<(Vec<Probe>, bool)> {
    let mut stop = Stop::new()?;
    let mut probes = Vec::new();
    for (index, order) in orders.iter().enumerate() {
        if index > 0 {
            screen.line("");
        }
        screen.line(&Printable(&order.text).to_string());
        let mut journey = Journey::new(order, screen);
        let stopped = tokio::select! {
            () = journey.run() => false,
            () = stop.asked() => true,
        };
        // Whoever asks twice is not kept waiting: the allocations end by themselves.
        let again = tokio::select! {
            () = journey.release() => false,
            () = stop.asked() => true,
        };
        let facts = journey.facts;
        screen.clear();
        if stopped || again {
            return Ok((probes, true));
        }
        let verdicts = judge(&facts);
        tell(screen, &verdicts, &facts);
        probes.push(Probe {
            fault: verdicts.iter().any(|verdict| verdict.level == Level::Fault),
            facts,
            verdicts,
        });
    }
    Ok((probes, false))
}

/// The verdicts, for people.
fn tell(screen: &mut Screen, verdicts: &[Verdict], facts: &Facts) {
    for verdict in verdicts {
        let (word, colour) = match verdict.level {
            Level::Fault => ("fault", "1;31"),
            Level::Warning => ("warning", "1;33"),
        };
        let word = screen.painted(word, colour);
        screen.line(&format!("{word}: {}", Printable(&verdict.wrong)));
        screen.line(&format!("  what to do: {}", Printable(&verdict.remedy)));
    }
    if verdicts.is_empty() {
        let word = screen.painted("no fault", "1;32");
        let works = match facts.relays {
            true => "the server answers, allocates and relays",
            false => "the server answers",
        };
        screen.line(&format!("{word}: {works}"));
    }
}

/// One line of the table.
fn row(screen: &Screen, probe: &Probe, width: usize) -> String {
    let worst = probe.verdicts.first();
    let (word, colour) = match worst.map(|verdict| verdict.level) {
        None => ("ok  ", "32"),
        Some(Level::Warning) => ("warn", "33"),
        Some(Level::Fault) => ("FAIL", "31"),
    };
    let latency = probe.facts.latency.as_ref().and_then(|latency| latency.rtt);
    let time = latency.map_or_else(String::new, |rtt| {
        format!("{:.1} ms", rtt.p50.as_secs_f64() * 1e3)
    });
    let why = worst.map_or("", |verdict| &verdict.wrong);
    let uri = Printable(&probe.facts.uri).to_string();
    let word = screen.painted(word, colour);
    let line = format!("{word}  {uri:<width$}  {time:>9}  {}", Printable(why));
    line.trim_end().to_owned()
}

/// Somebody wants an end: Ctrl-C, or SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn orders(arguments: &Arguments) -> anyhow::Result<Vec<Order>> {
    let (username, password, credentials) = credentials(arguments)?;
    let trust = Trust::of(arguments.insecure, arguments.ca.as_deref());
    let mut orders = Vec::new();
    for text in &arguments.uris {
        let uri: IceUri = text.parse().with_context(|| text.clone())?;
        let secure = uri.server.transport == crate::base::Transport::Tls;
        let tls = Tls {
            // Without TLS in the URI it is only asked whether the port speaks it.
            config: match secure {
                true => trust.config().context("--insecure skips verification")?,
                false => Trust::Anybody.config()?,
            },
            name: server_name(&uri.server.host)?,
        };
        let every = Duration::from_secs_f64(BURST_BYTES as f64 * 8.0 / arguments.rate as f64);
        let packets = (arguments.seconds / every.as_secs_f64()) as u32;
        orders.push(Order {
            text: text.clone(),
            uri,
            username: username.clone(),
            password: password.clone(),
            credentials,
            tls,
            verifies: !arguments.insecure,
            patience: arguments.timeout,
            burst: (packets > 0).then_some(Plan {
                packets,
                bytes: BURST_BYTES as usize,
                every,
            }),
        });
    }
    Ok(orders)
}

/// USERNAME, password, and what they are: of the command line, else of the environment.
fn credentials(arguments: &Arguments) -> anyhow::Result<(String, Secret<String>, Credentials)> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let secret = given_secret(
        arguments.secret.as_deref(),
        arguments.secret_file.as_deref(),
    )?;
    let password = |username: String, password: String| {
        let expires_unix = rest::parse(&username).map(|limited| limited.expires_unix);
        // A bare number is a name like any other unless it may be a time of this century.
        let expires_unix = expires_unix.filter(|unix| *unix > 1_000_000_000);
        let credentials = Credentials::Password { expires_unix };
        Ok((username, Secret::new(password), credentials))
    };
    let made = |secret: &Secret<String>| {
        let expires_unix = Clock.now().unix_secs() + CREDENTIAL_SECS;
        let made = mint(secret, arguments.user.as_deref(), expires_unix);
        let credentials = Credentials::Secret { expires_unix };
        Ok((made.username, made.password, credentials))
    };
    if let Some(secret) = secret {
        return made(&secret);
    }
    if let (Some(user), Some(given)) = (&arguments.user, &arguments.password) {
        return password(user.clone(), given.clone());
    }
    let (user, credential) = (variable("TURN_USERNAME"), variable("TURN_CREDENTIAL"));
    match (&arguments.user, user, credential) {
        (None, Some(user), Some(credential)) => password(user, credential),
        (Some(user), _, Some(credential)) => password(user.clone(), credential),
        (user, ..) => match (environment_secret()?, user) {
            (Some(secret), _) => made(&secret),
            (None, Some(_)) => bail!(
                "give the user's password with --password, or the server's secret with --secret-file"
            ),
            (None, None) => Ok((String::new(), Secret::new(String::new()), Credentials::None)),
        },
    }
}

/// The first secret in `TURNIX_AUTH__SECRETS`, read as a configuration reads it.
fn environment_secret() -> anyhow::Result<Option<Secret<String>>> {
    const NAME: &str = "TURNIX_AUTH__SECRETS";
    let Ok(secrets) = std::env::var(NAME) else {
        return Ok(None);
    };
    let config = Config::load(&Sources {
        file: None,
        base: None,
        environment: vec![(NAME.to_owned(), secrets)],
        set: Vec::new(),
    })?;
    Ok(config.access.secrets.first().cloned())
}
