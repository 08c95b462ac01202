//! `turnix credentials`: time-limited credentials (TURN REST API), or a static user's entry.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::{Configuration, Exit, print, state};
use crate::access::{rest, stored_key};
use crate::app::Outside;
use crate::app::ice::{self, Host};
use crate::base::{Clock, Printable, Secret, printable};
use crate::config::{
    Config, External, Listener, Mapping, Problem, Problems, Sources, read_secret, values,
};
use crate::external::Seen;

/// Arguments of `turnix credentials`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Use this secret instead of a configuration; the URLs then name port 3478.
    ///
    /// The command line is shown to everybody on this host (ps), and shells keep it: --secret-file or TURNIX_AUTH__SECRETS
    /// in the environment tell nobody.
    #[arg(long, value_name = "SECRET", conflicts_with_all = ["file", "set", "secret_file"])]
    secret: Option<String>,
    /// As --secret, from the one line of this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "set"])]
    secret_file: Option<PathBuf>,
    /// Who the credential is for: the user id that quotas and metrics count.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How long it is good for, such as 90s, 10m, 24h.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = ttl)]
    ttl: Duration,
    /// What to print [default: table on a terminal, ice otherwise].
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Name or address of the server in the URLs [default: the certificate's name, else the external address].
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// The iceServers array of an RTCConfiguration, as JSON.
    Ice,
    /// TURN_SERVER_URL, TURN_URLS, TURN_USERNAME and TURN_CREDENTIAL for a shell or an env file.
    Env,
    /// For people.
    Table,
}

fn ttl(text: &str) -> Result<Duration, String> {
    match values::duration(text) {
        Ok(ttl) if ttl >= Duration::from_secs(1) => Ok(ttl),
        Ok(_) => Err("it has to be good for 1s or longer".into()),
        Err(wanted) => Err(format!("expected {wanted}")),
    }
}

/// A user name with its password, and when both end.
#[derive(Debug)]
pub struct Credential {
    /// USERNAME.
    pub username: String,
    /// The password.
    pub password: Secret<String>,
    /// Seconds since the Unix epoch; `None`: until the configuration changes.
    pub expires_unix: Option<u64>,
}

/// A credential that ends at `expires_unix`, seconds since the Unix epoch.
pub fn mint(secret: &Secret<String>, user: Option<&str>, expires_unix: u64) -> Credential {
    let (username, password) = rest::mint(secret, user, expires_unix);
    Credential {
        username,
        password: Secret::new(password),
        expires_unix: Some(expires_unix),
    }
}

/// The secret that `--secret` or `--secret-file` gives.
///
/// # Errors
/// It is empty, or the file is of no use.
pub(super) fn given_secret(
    secret: Option<&str>,
    file: Option<&Path>,
) -> anyhow::Result<Option<Secret<String>>> {
    match (secret, file) {
        (Some(""), _) => bail!("--secret is empty; give the server's secret"),
        (Some(secret), _) => Ok(Some(Secret::new(secret.to_owned()))),
        (None, Some(file)) => match read_secret(file) {
            Ok(secret) => Ok(Some(secret)),
            Err((found, remedy)) => bail!("--secret-file: {found}; {remedy}"),
        },
        (None, None) => Ok(None),
    }
}

/// Prints one credential and the URLs it is good for.
///
/// # Errors
/// A bad configuration, or one without a secret.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let now_unix = Clock.now().unix_secs();
    let expires_unix = now_unix.saturating_add(arguments.ttl.as_secs());
    let user = arguments.user.as_deref();
    if user.is_some_and(|name| name.is_empty() || name.len() > 480) {
        bail!("--user takes 1 to 480 bytes");
    }
    let given = given_secret(
        arguments.secret.as_deref(),
        arguments.secret_file.as_deref(),
    )?;
    let (credential, listeners, mut host) = match given {
        Some(secret) => {
            let host = Host {
                name: None,
                external: External::Auto,
                relays: Vec::new(),
            };
            let credential = mint(&secret, user, expires_unix);
            (credential, vec![default_listener()], host)
        }
        None => {
            let config = load(&arguments.configuration)?;
            let credential = of(&config, user, expires_unix)?;
            let host = Host {
                name: config.tls.as_ref().and_then(ice::certificate_name),
                external: config.relay.external.clone(),
                relays: found(&config)?,
            };
            (credential, config.listeners, host)
        }
    };
    if arguments.host.is_some() {
        host.name.clone_from(&arguments.host);
    }
    let urls = ice::urls(&listeners, &host);
    let format = arguments.format.unwrap_or(if io::stdout().is_terminal() {
        Format::Table
    } else {
        Format::Ice
    });
    print(&match format {
        Format::Ice => as_ice(&urls, &credential)?,
        Format::Env => as_env(&urls, &credential),
        Format::Table => as_table(&urls, &credential, now_unix),
    })?;
    Ok(Exit::Done)
}

/// How the server is seen from outside, where it takes asking.
fn found(config: &Config) -> anyhow::Result<Vec<Mapping>> {
    if !config.relay.discovery.asks() {
        return Ok(Vec::new());
    }
    let look = Outside::new(config).look_now()?;
    let mapping = |seen: &Seen| Mapping {
        local: Some(seen.local),
        external: seen.external,
    };
    Ok(look.seen.iter().map(mapping).collect())
}

/// The configuration that a server started the same way would use; after a quick start, the one that it left behind.
fn load(configuration: &Configuration) -> anyhow::Result<Config> {
    let mut sources = configuration.sources();
    if sources.file.is_none() {
        match state::configuration(&sources) {
            Some(file) => sources.file = Some(file),
            None if !decides_access(&sources) => {
                return Err(Problems::from(Problem::host(
                    "configuration",
                    "there is none, and no quick start has left any",
                    "name a file with -c, a secret with --secret-file, or start `turnix` once",
                ))
                .into());
            }
            None => {}
        }
    }
    Ok(Config::load(&sources)?)
}

/// Whether the environment or `--set` say who may allocate.
pub fn decides_access(sources: &Sources) -> bool {
    [
        "auth.users",
        "auth.users_file",
        "auth.secrets",
        "auth.secret_files",
    ]
    .iter()
    .any(|key| sources.overrides(key))
}

fn default_listener() -> Listener {
    Listener {
        address: (std::net::Ipv6Addr::UNSPECIFIED, 3478).into(),
        udp: true,
        streams: crate::stream::Protocols {
            tcp: true,
            ..Default::default()
        },
        sharing: crate::stream::Sharing::default(),
        dtls: false,
    }
}

/// A time-limited credential by the first secret; without secrets, the static user of that name.
fn of(config: &Config, user: Option<&str>, expires_unix: u64) -> anyhow::Result<Credential> {
    if let Some(secret) = config.access.secrets.first() {
        return Ok(mint(secret, user, expires_unix));
    }
    let users = &config.access.users;
    if let Some((name, password)) = users.iter().find(|(name, _)| Some(name.as_str()) == user) {
        if stored_key(password.expose()).is_some() {
            bail!(
                "{name:?} is kept as a key (md5:…, sha256:…), and the password is not known here; ask whoever has it"
            );
        }
        return Ok(Credential {
            username: name.clone(),
            password: password.clone(),
            expires_unix: None,
        });
    }
    let names: Vec<&str> = users.iter().map(|(name, _)| name.as_str()).collect();
    let missing = match user {
        Some(name) => format!("no secret, and no static user {name:?}"),
        None => "no secret to make time-limited credentials with".to_owned(),
    };
    Err(Problems::from(Problem::host(
        "auth",
        missing,
        format!(
            "add auth.secrets = [\"a long random text\"], or name a static user with --user ({})",
            names.join(", ")
        ),
    ))
    .into())
}

fn as_ice(urls: &[String], credential: &Credential) -> anyhow::Result<String> {
    let servers = ice::ice_servers(urls, &credential.username, credential.password.expose());
    let text = serde_json::to_string_pretty(&servers).context("JSON could not be written")?;
    Ok(printable::json(&text).into_owned() + "\n")
}

fn as_env(urls: &[String], credential: &Credential) -> String {
    let first = urls.first().map_or("", String::as_str);
    let pairs = [
        ("TURN_SERVER_URL", first),
        ("TURN_URLS", &urls.join(",")),
        ("TURN_USERNAME", &credential.username),
        ("TURN_CREDENTIAL", credential.password.expose()),
    ];
    pairs
        .iter()
        .map(|(name, value)| format!("{name}={}\n", quoted(value)))
        .collect()
}

/// As a POSIX shell and an env file both read it.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=/:.,@%?[]".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

fn as_table(urls: &[String], credential: &Credential, now_unix: u64) -> String {
    let expires = match credential.expires_unix {
        None => "never (static user)".to_owned(),
        Some(unix) => {
            let left = unix.saturating_sub(now_unix);
            let (hours, minutes, seconds) = (left / 3600, left / 60 % 60, left % 60);
            format!("{}, in {hours}h {minutes}m {seconds}s", utc(unix))
        }
    };
    let mut text = format!(
        "username    {}\ncredential  {}\nexpires     {expires}\n",
        Printable(&credential.username),
        credential.password.expose(),
    );
    for (index, url) in urls.iter().enumerate() {
        let label = if index == 0 { "urls" } else { "" };
        text += &format!("{label:<12}{url}\n");
    }
    text
}

/// `2026-01-31 23:59:59 UTC`
pub fn utc(unix: u64) -> String {
    let (days, secs) = (unix / 86_400, unix % 86_400);
    // Years begin in March here, so that leap days come last; 719468 days lie between year 0 and 1970.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_704_067_199), "2023-12-31 23:59:59 UTC");
        assert_eq!(utc(4_102_444_800), "2100-01-01 00:00:00 UTC");
    }

    #[test]
    fn shell_words() {
        assert_eq!(quoted("17:alice+/="), "17:alice+/=");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted(""), "''");
    }
}
