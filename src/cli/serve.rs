//! `turnix serve`: configuration or quick start, logging, then the server.

use std::io::{self, IsTerminal};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;

use super::credentials::{Credential, mint};
use super::quick_start::{self, QuickStart};
use super::{Banner, Configuration, Exit, banner, print, state};
use crate::access::credentials::first_with_password;
use crate::app::ice::{self, Host};
use crate::app::{self, Started, TakeOver};
use crate::base::{Clock, Secret};
use crate::config::{Config, HandoverSocket, Problem, Problems, Sources};
use crate::logging;
use crate::net::host;

/// How long a credential in the banner is good for where only secrets are configured.
const BANNER_TTL: Duration = Duration::from_secs(24 * 3600);

/// What `turnix serve` is asked for.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Go on where the running server stops, without a packet lost; start anew if there is none.
    ///
    /// Takes its sockets and clients over through the socket server.handover. Clients on TLS stay with the old process,
    /// which ends when they are gone, after server.handover_grace at the latest. If anything is wrong with the new
    /// configuration or version the old process serves on.
    #[arg(long = "takeover")]
    take_over: bool,
}

/// Serves until told to stop.
///
/// # Errors
/// A bad configuration or host, or what ended the server.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let sources = arguments.configuration.sources();
    if sources.file.is_some() {
        let config = Config::load(&sources)?;
        let log = start_log(config.log)?;
        keep_memory_private(&config);
        let take_over = take_over(arguments, &config, &sources);
        let ended = app::run(config, sources, changing(&log), take_over, |_| {});
        log.report();
        return ended.map(|()| Exit::Done);
    }
    let mut quick = quick_start::prepare(sources.clone())?;
    if take_over(arguments, &quick.config, &quick.sources).has_somebody() {
        quick = quick_start::go_on(sources)?;
    }
    let log = start_log(quick.config.log)?;
    keep_memory_private(&quick.config);
    let (config, sources) = (quick.config.clone(), quick.sources.clone());
    let take_over = take_over(arguments, &config, &sources);
    let ended = app::run(config, sources, changing(&log), take_over, move |started| {
        if let Err(error) = quick.save() {
            tracing::warn!("`turnix credentials` will not know this server: {error:#}");
        }
        // A server whose standard output is closed serves all the same.
        if let Err(error) = print(&banner(&describe(quick, started))) {
            tracing::warn!("the start could not be described on standard output: {error}");
        }
    });
    log.report();
    ended.map(|()| Exit::Done)
}

/// What reloads change of the log.
fn changing(log: &logging::Control) -> app::SetLog {
    let log = log.clone();
    Box::new(move |settings| {
        // That the format differs is told by the reload.
        log.change(*settings);
    })
}

fn start_log(settings: logging::Settings) -> anyhow::Result<logging::Control> {
    logging::install(settings).map_err(|error| match error {
        logging::InstallError::NoJournal(_) => Problems::from(Problem::host(
            "log.format",
            error.to_string(),
            "start turnix under systemd, or write \"auto\"",
        ))
        .into(),
        logging::InstallError::Twice => error.into(),
    })
}

fn take_over(arguments: &Arguments, config: &Config, sources: &Sources) -> TakeOver {
    TakeOver {
        socket: match &config.handover.socket {
            HandoverSocket::Off => None,
            HandoverSocket::At(path) => Some(path.clone()),
            HandoverSocket::Auto => Some(state::runtime_directory(sources).join("handover.sock")),
        },
        wanted: arguments.take_over,
        state: Some(state::directory(sources)),
    }
}

/// A crash leaves nothing of the secrets on a disk.
fn keep_memory_private(config: &Config) {
    if config.server.core_dumps {
        tracing::warn!("server.core_dumps is on: a crash leaves a file that holds every secret");
    } else if let Err(error) = host::forbid_core_dumps() {
        tracing::warn!(%error, "core dumps cannot be turned off: a crash may leave a file that holds every secret");
    }
}

fn describe(quick: QuickStart, started: &Started) -> Banner {
    let config = quick.config;
    let credential = credential(&config);
    let mut notes = quick.notes;
    let preset = (config.warnings.iter()).filter(|warning| warning.key == "preset");
    notes.extend(preset.map(|warning| format!("{}; {}", warning.found, warning.remedy)));
    let host = Host {
        // That of the quick start's own certificate leads nobody here.
        name: (config.tls.as_ref().filter(|tls| tls.files().is_none()))
            .and_then(ice::certificate_name),
        external: config.relay.external,
        relays: started.relays.clone(),
    };
    let urls = ice::plain_urls(&started.listeners, &host);
    let servers = ice::ice_servers(&urls, &credential.username, credential.password.expose());
    let speak_http = || (started.listeners.iter()).filter(|one| one.streams.http);
    let page = speak_http()
        .find(|one| one.address.port() == 80)
        .or_else(|| speak_http().next());
    let test_page = page.map(|listener| {
        let name = host.of(listener);
        let port = match listener.address.port() {
            80 => String::new(),
            port => format!(":{port}"),
        };
        // Browsers keep the fragment to themselves: the credential stays out of requests and their logs.
        let fragment = URL_SAFE_NO_PAD.encode(servers.to_string());
        Secret::new(format!("http://{name}{port}/test#{fragment}"))
    });
    Banner {
        version: env!("CARGO_PKG_VERSION"),
        listeners: started.listeners.clone(),
        relays: started.outside.clone(),
        ports: config.relay.ports,
        admin: config.admin.map(|admin| {
            let scheme = if config.http.tls { "https" } else { "http" };
            format!("{scheme}://{admin}")
        }),
        ice_servers: Banner::paste(&servers),
        urls,
        test_page,
        state: quick.state.directory,
        notes: (notes.into_iter())
            .chain(started.warnings.iter().map(ToString::to_string))
            .collect(),
        terminal: io::stdout().is_terminal(),
    }
}

/// The static user, who needs no renewal; else a time-limited credential.
fn credential(config: &Config) -> Credential {
    let expires_unix = Clock.now().unix_secs() + BANNER_TTL.as_secs();
    let user = first_with_password(&config.access.users);
    match (user, config.access.secrets.first()) {
        (None, Some(secret)) => mint(secret, None, expires_unix),
        (user, _) => {
            let (username, password) = user
                .cloned()
                .unwrap_or_else(|| (String::new(), Secret::new(String::new())));
            Credential {
                username,
                password,
                expires_unix: None,
            }
        }
    }
}
