//! `turnix why`: what happened to a user, an address or an allocation on a running server, and why its call failed.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use axum::http::{Method, StatusCode};
use clap::Args;
use serde_json::Value;

use super::admin::{Server, expect_success, percent_encoded, print_json};
use super::credentials::utc;
use super::units::span;
use super::{Exit, print};
use crate::base::Printable;

/// Where the admin API tells why.
const PATH: &str = "/api/v1/why";

/// Arguments of `turnix why`.
#[derive(Args)]
#[group(id = "whom", required = true, multiple = false, args = ["who", "user", "address", "allocation"])]
pub struct Arguments {
    /// The name of a user, a client's or relayed address with or without its port, or an allocation's id.
    #[arg(value_name = "USER|ADDRESS|ALLOCATION")]
    who: Option<String>,
    /// Name a user whose name looks like something else.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Name an address as log.ip_privacy shows it, such as a hash.
    #[arg(long)]
    address: Option<String>,
    /// Name an allocation.
    #[arg(long, value_name = "ID")]
    allocation: Option<String>,
    #[command(flatten)]
    server: Server,
}

impl Arguments {
    /// What is asked for, and about whom.
    fn asked(&self) -> Option<(&'static str, String)> {
        let named = [
            ("user", &self.user),
            ("address", &self.address),
            ("allocation", &self.allocation),
        ];
        for (kind, value) in named {
            if let Some(value) = value {
                return Some((kind, value.clone()));
            }
        }
        let who = self.who.as_deref()?;
        Some(if let Ok(address) = who.parse::<SocketAddr>() {
            ("address", address.to_string())
        } else if let Ok(ip) = who.trim_matches(['[', ']']).parse::<IpAddr>() {
            ("address", ip.to_string())
        } else if is_allocation(who) {
            ("allocation", who.to_owned())
        } else {
            ("user", who.to_owned())
        })
    }
}

/// Whether `who` looks like `0-17-3`.
fn is_allocation(who: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    who.split('-').count() == 3 && who.split('-').all(number)
}

/// Prints the timeline and the verdict; [`Exit::Failed`] if nothing is known.
///
/// # Errors
/// The server cannot be asked, or refuses.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let server = &arguments.server;
    let Some((kind, who)) = arguments.asked() else {
        bail!("name a user, an address or an allocation");
    };
    let path = format!("{PATH}?{kind}={}", percent_encoded(&who));
    let (status, answer) = server.ask_with(&Method::GET, &path, None)?;
    if status == StatusCode::NOT_FOUND {
        bail!("this server does not tell why: it is of an older version");
    }
    expect_success(status, &answer)?;
    if server.json() {
        print_json(&answer)?;
    } else {
        print(&told(kind, &who, &answer))?;
    }
    Ok(match answer["verdict"]["code"].as_str() {
        Some("nothing_known") => Exit::Failed,
        _ => Exit::Done,
    })
}

/// The answer as people read it. Everything in it may be what somebody else chose.
fn told(kind: &str, who: &str, answer: &Value) -> String {
    let mut text = String::new();
    let events = answer["events"].as_array().map_or(&[][..], Vec::as_slice);
    let first = events.first().and_then(|event| event["at"].as_f64());
    if let Some(first) = first {
        let _ = writeln!(
            text,
            "{kind} {}, since {}",
            Printable(who),
            utc(first as u64)
        );
    }
    for event in events {
        let at = event["at"].as_f64().unwrap_or_default() - first.unwrap_or_default();
        let last = event["last"].as_f64().unwrap_or_default() - first.unwrap_or_default();
        let until = match last - at {
            apart if apart >= 1.0 => format!(", until {}", relative(last)),
            _ => String::new(),
        };
        let allocation = match event["allocation"].as_str() {
            Some(allocation) => format!("[{}] ", Printable(allocation)),
            None => String::new(),
        };
        let said = event["text"].as_str().unwrap_or_default();
        let _ = writeln!(
            text,
            "{:>12}  {allocation}{}{until}",
            relative(at),
            Printable(said)
        );
    }
    for one in answer["allocations"].as_array().into_iter().flatten() {
        let word = |key: &str| Printable(one[key].as_str().unwrap_or_default().to_owned());
        let packets = |way: &str| one["packets"][way].as_u64().unwrap_or_default();
        let state = match one["ended"].as_str() {
            Some(reason) => format!(
                "ended after {}: {}",
                span(one["duration"].as_u64().unwrap_or_default()),
                Printable(reason)
            ),
            None => "live".to_owned(),
        };
        let _ = writeln!(
            text,
            "allocation {} over {}, {state}: {} packets to the peer, {} to the client\n    {}",
            word("id"),
            word("transport"),
            packets("to_peer"),
            packets("to_client"),
            Printable(one["verdict"]["text"].as_str().unwrap_or_default()),
        );
    }
    let verdict = |key: &str| Printable(answer["verdict"][key].as_str().unwrap_or_default());
    let _ = writeln!(
        text,
        "\nVerdict ({}): {}\n{}",
        verdict("code"),
        verdict("text"),
        verdict("advice")
    );
    text
}

/// Seconds since the first event, as a timeline shows them.
fn relative(secs: f64) -> String {
    match secs {
        secs if secs < 60.0 => format!("+{secs:.3} s"),
        secs => format!("+{}:{:02} min", secs as u64 / 60, secs as u64 % 60),
    }
}
