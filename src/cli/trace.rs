//! `turnix trace`: what one user or address does, in the log of a running server.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;
use axum::http::{Method, StatusCode};
use clap::Args;
use serde_json::{Value, json};

use super::admin::{Server, expect_success, print_json, table};
use super::units::span;
use super::{Exit, print};
use crate::base::Printable;
use crate::config::values;

/// Where the admin API has its traces.
const PATH: &str = "/api/v1/trace";

/// Arguments of `turnix trace`.
#[derive(Args)]
pub struct Arguments {
    /// A client's IP address, or the name of a user [default: list what is traced].
    #[arg(value_name = "USER|ADDRESS")]
    who: Option<String>,
    /// Name a user whose name looks like an address.
    #[arg(long, value_name = "NAME", conflicts_with = "who")]
    user: Option<String>,
    /// How long, up to 24h; whole minutes.
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = length)]
    length: Duration,
    /// End it.
    #[arg(long, conflicts_with = "length")]
    stop: bool,
    #[command(flatten)]
    server: Server,
}

fn length(text: &str) -> Result<Duration, String> {
    match values::duration(text) {
        Ok(time) if (1..=86_400).contains(&time.as_secs()) => Ok(time),
        Ok(_) => Err("expected 1m to 24h".into()),
        Err(wanted) => Err(format!("expected {wanted}")),
    }
}

/// Begins or ends a trace, or lists them.
///
/// # Errors
/// The server cannot be asked, or refuses.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let server = &arguments.server;
    let (key, who) = match (&arguments.user, &arguments.who) {
        (Some(user), _) => ("user", user.clone()),
        (None, Some(who)) => match who.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => ("address", ip.to_string()),
            Err(_) => ("user", who.clone()),
        },
        (None, None) if arguments.stop => {
            bail!("name the user or the address whose trace is to end")
        }
        (None, None) => return list(server),
    };
    let minutes = match arguments.stop {
        true => 0,
        false => arguments.length.as_secs().div_ceil(60),
    };
    let asked = json!({ key: who, "minutes": minutes });
    let (status, answer) = server.ask_with(&Method::POST, PATH, Some(&asked))?;
    if status == StatusCode::NOT_FOUND && arguments.stop {
        bail!("nobody traces {key} {}", Printable(&who));
    }
    expect_success(status, &answer)?;
    if server.json() {
        print_json(&match answer {
            Value::Null => json!({ key: who, "seconds_left": 0 }),
            answer => answer,
        })?;
        return Ok(Exit::Done);
    }
    let shown = Printable(&who);
    print(&match minutes {
        0 => format!("no trace of {key} {shown} any more\n"),
        minutes => format!(
            "tracing {key} {shown} for {}: the server logs what it asks for, what it is refused and what of it is dropped \
             (target turnix::trace)\n",
            span(minutes * 60)
        ),
    })?;
    Ok(Exit::Done)
}

fn list(server: &Server) -> anyhow::Result<Exit> {
    let (status, answer) = server.ask_with(&Method::GET, PATH, None)?;
    expect_success(status, &answer)?;
    if server.json() {
        print_json(&answer)?;
        return Ok(Exit::Done);
    }
    let mut rows = vec![["traced", "who", "ends in"].map(str::to_owned)];
    for one in answer.as_array().into_iter().flatten() {
        let left = span(one["seconds_left"].as_u64().unwrap_or_default());
        for key in ["user", "address"] {
            if let Some(who) = one[key].as_str() {
                rows.push([key.to_owned(), Printable(who).to_string(), left.clone()]);
            }
        }
    }
    let mut text = table(&rows);
    if rows.len() == 1 {
        text.clear();
        text.push_str("nothing is traced\n");
    }
    print(&text)?;
    Ok(Exit::Done)
}
