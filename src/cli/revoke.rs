//! `turnix revoke`: what must not allocate any more, on a running server.

use anyhow::bail;
use axum::http::Method;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::admin::{Server, expect_success, percent_encoded, print_json, table};
use super::credentials::utc;
use super::{Exit, print};
use crate::base::Printable;

/// Revoke something, undo that, or list.
#[derive(Args)]
pub struct Revoke {
    /// What to revoke.
    #[arg(value_enum, required_unless_present = "list")]
    kind: Option<Kind>,
    /// The username of the credential, the user id, or the id of the API key.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// For how long, such as 24h [default: for good; a time-limited credential until it ends by itself].
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "undo")]
    lasts: Option<String>,
    /// Revoke it no longer.
    #[arg(long)]
    undo: bool,
    /// List what is revoked.
    #[arg(long, conflicts_with_all = ["kind", "name", "lasts", "undo"])]
    list: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// One credential, by its exact username.
    Credential,
    /// A user, whatever its credentials are.
    User,
    /// Everything that an API key has minted, and the key.
    Key,
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::User => "user",
            Self::Key => "key",
        }
    }
}

/// Revokes, lifts or lists.
///
/// # Errors
/// The server cannot be asked, or refuses.
pub fn revoke(arguments: &Revoke) -> anyhow::Result<Exit> {
    let server = &arguments.server;
    if arguments.list {
        return list(server);
    }
    let (Some(kind), Some(name)) = (arguments.kind, &arguments.name) else {
        bail!("name what to revoke: turnix revoke credential|user|key NAME");
    };
    let kind = kind.label();
    if arguments.undo {
        let path = format!("/api/v1/revocations/{kind}/{}", percent_encoded(name));
        let (status, answer) = server.ask_with(&Method::DELETE, &path, None)?;
        expect_success(status, &answer)?;
        if server.json() {
            print(&format!("{}\n", json!({ "kind": kind, "name": name })))?;
        } else {
            print(&format!(
                "{kind} {} is revoked no longer\n",
                Printable(name)
            ))?;
        }
        return Ok(Exit::Done);
    }
    let mut order = json!({ kind: name });
    if let Some(lasts) = &arguments.lasts {
        order["for"] = json!(lasts);
    }
    let (status, answer) = server.ask_with(&Method::POST, "/api/v1/revocations", Some(&order))?;
    expect_success(status, &answer)?;
    if server.json() {
        print_json(&answer)?;
        return Ok(Exit::Done);
    }
    let ended = answer["ended"].as_u64().unwrap_or_default();
    let plural = if ended == 1 { "" } else { "s" };
    let until = match answer["until"].as_u64() {
        Some(unix) => format!(" until {}", utc(unix)),
        None => String::new(),
    };
    let mut text = format!(
        "{kind} {} is revoked{until}: ended {ended} allocation{plural}\n",
        Printable(name)
    );
    if answer["kept"].as_bool() == Some(false) {
        text += "note: the server keeps no state, so this ends with its process: see its log\n";
    }
    print(&text)?;
    Ok(Exit::Done)
}

fn list(server: &Server) -> anyhow::Result<Exit> {
    let (status, answer) = server.ask_with(&Method::GET, "/api/v1/revocations", None)?;
    expect_success(status, &answer)?;
    if server.json() {
        print_json(&answer)?;
        return Ok(Exit::Done);
    }
    let mut rows = vec![["kind", "name", "since", "until", "by"].map(str::to_owned)];
    for one in answer.as_array().into_iter().flatten() {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let time = |key: &str, absent: &str| {
            let unix = one[key].as_u64();
            unix.map_or_else(|| absent.to_owned(), utc)
        };
        rows.push([
            text("kind"),
            // A name is whatever its owner chose: nothing in it may speak to the terminal.
            Printable(text("name")).to_string(),
            time("since", "-"),
            time("until", "-"),
            Printable(text("by")).to_string(),
        ]);
    }
    print(&table(&rows))?;
    Ok(Exit::Done)
}
