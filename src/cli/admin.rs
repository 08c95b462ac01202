//! The admin API from a shell: `turnix reload`, `drain`, `allocations`, `disconnect`, and the way there.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, Uri, header};
use clap::Args;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::credentials::utc;
use super::quality::Call;
use super::tls::Trust;
use super::{Exit, print};
use crate::base::printable::{self, Printable};

/// How long the server may take to answer: a reload opens sockets and reads files.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest answer that is read, in bytes: that of a hundred thousand allocations.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Which server, and how the answer is shown.
#[derive(Args)]
pub(super) struct Server {
    /// Where the admin listener of the server is (http.admin).
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9641")]
    admin: Uri,
    /// What the admin listener asks for (http.token), where it does.
    #[arg(long, env = "TURNIX_HTTP__TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Certificates, in PEM, that vouch for a https:// server [default: those that this host trusts].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print the server's answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Read the configuration again.
#[derive(Args)]
pub struct Reload {
    #[command(flatten)]
    server: Server,
}

/// Empty the server.
#[derive(Args)]
pub struct Drain {
    /// End what still lives after this time, such as 10m [default: drain.deadline].
    #[arg(long, value_name = "DURATION")]
    deadline: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// List allocations.
#[derive(Args)]
pub struct Allocations {
    #[command(flatten)]
    server: Server,
}

/// End allocations.
#[derive(Args)]
#[group(id = "which", required = true, multiple = false, args = ["id", "user"])]
pub struct Disconnect {
    /// The allocation's id, as `turnix allocations` shows it.
    id: Option<String>,
    /// Every allocation of this user instead.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// Reloads; prints what changed.
///
/// # Errors
/// The server cannot be asked.
pub fn reload(Reload { server }: &Reload) -> anyhow::Result<Exit> {
    let (status, answer) = server.ask(&Method::POST, "/api/v1/reload")?;
    if server.json {
        print_json(&answer)?;
    }
    if status == StatusCode::UNPROCESSABLE_ENTITY {
        if !server.json {
            let mut text = format!("{}\n", said(&answer));
            for problem in answer["problems"].as_array().into_iter().flatten() {
                let _ = writeln!(text, "error: {}", problem.as_str().unwrap_or_default());
            }
            print(&text)?;
        }
        return Ok(Exit::Unusable);
    }
    expect_success(status, &answer)?;
    if server.json {
        return Ok(Exit::Done);
    }
    let mut text = String::new();
    for (list, heading) in [("changed", ""), ("restart", "takes a restart: ")] {
        for change in answer[list].as_array().into_iter().flatten() {
            let of = |part: &str| change[part].as_str().unwrap_or_default();
            let (key, from, to) = (of("key"), of("from"), of("to"));
            let _ = if from == to {
                writeln!(text, "{heading}{key}: changed")
            } else {
                writeln!(text, "{heading}{key}: {from} -> {to}")
            };
        }
    }
    for note in answer["notes"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "note: {}", note.as_str().unwrap_or_default());
    }
    if text.is_empty() {
        text = "reloaded: nothing differs\n".into();
    }
    print(&text)?;
    Ok(Exit::Done)
}

/// Drains; says what is left.
///
/// # Errors
/// The server cannot be asked, or refuses.
pub fn drain(Drain { deadline, server }: &Drain) -> anyhow::Result<Exit> {
    let query = (deadline.as_deref())
        .map(|deadline| format!("?deadline={}", percent_encoded(deadline)))
        .unwrap_or_default();
    let (status, answer) = server.ask(&Method::POST, &format!("/api/v1/drain{query}"))?;
    expect_success(status, &answer)?;
    if server.json {
        print_json(&answer)?;
        return Ok(Exit::Done);
    }
    let left = answer["allocations"].as_u64().unwrap_or_default();
    let until = answer["deadline"]
        .as_u64()
        .map_or_else(String::new, |unix| {
            format!(", those that live then end at {}", utc(unix))
        });
    print(&format!(
        "draining: no new allocations, {left} left{until}\n"
    ))?;
    Ok(Exit::Done)
}

/// Lists every live allocation, busiest first; of each call the side of the client, then that of the peers.
///
/// # Errors
/// The server cannot be asked.
pub fn allocations(Allocations { server }: &Allocations) -> anyhow::Result<Exit> {
    let (status, answer) = server.ask(&Method::GET, "/api/v1/allocations")?;
    expect_success(status, &answer)?;
    if server.json {
        print_json(&answer)?;
        return Ok(Exit::Done);
    }
    let mut rows = vec![
        [
            "id",
            "user",
            "over",
            "client",
            "relayed",
            "to peer",
            "to client",
            "call",
            "rtt ms",
            "loss %",
            "jitter ms",
            "ends",
        ]
        .map(str::to_owned),
    ];
    for one in answer.as_array().into_iter().flatten() {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let rate = |way: &str| {
            let bits = one["bits_per_second"][way].as_u64().unwrap_or_default();
            format!("{:.1} kbit/s", bits as f64 / 1e3)
        };
        let call = Call::of(one);
        rows.push([
            text("id"),
            // A name is whatever its owner chose: nothing in it may speak to the terminal.
            Printable(text("user")).to_string(),
            text("transport"),
            text("client"),
            text("relayed"),
            rate("to_peer"),
            rate("to_client"),
            call.session,
            call.rtt,
            call.loss,
            call.jitter,
            one["expires"].as_u64().map(utc).unwrap_or_default(),
        ]);
    }
    print(&table(&rows))?;
    Ok(Exit::Done)
}

/// Ends one allocation, or all of a user.
///
/// # Errors
/// The server cannot be asked, or there is no such allocation.
pub fn disconnect(Disconnect { id, user, server }: &Disconnect) -> anyhow::Result<Exit> {
    let path = match (id, user) {
        (Some(id), _) => format!("/api/v1/allocations/{}", percent_encoded(id)),
        (None, Some(user)) => format!("/api/v1/users/{}/allocations", percent_encoded(user)),
        (None, None) => bail!("name an allocation, or a user with --user"),
    };
    let (status, answer) = server.ask(&Method::DELETE, &path)?;
    expect_success(status, &answer)?;
    let ended = answer["ended"].as_u64().unwrap_or(1);
    if server.json {
        print(&format!("{}\n", serde_json::json!({ "ended": ended })))?;
    } else {
        let plural = if ended == 1 { "" } else { "s" };
        print(&format!("ended {ended} allocation{plural}\n"))?;
    }
    Ok(Exit::Done)
}

impl Server {
    /// Whether JSON is wanted.
    pub(super) const fn json(&self) -> bool {
        self.json
    }

    /// Status and JSON of one request; `Null` where there is no body.
    fn ask(&self, method: &Method, path: &str) -> anyhow::Result<(StatusCode, Value)> {
        self.ask_with(method, path, None)
    }

    /// As [`Self::ask`], with a body.
    pub(super) fn ask_with(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let line = self.line()?;
        runtime
            .block_on(async { tokio::time::timeout(PATIENCE, line.ask(method, path, body)).await })
            .unwrap_or_else(|_| bail!("{} did not answer within {PATIENCE:?}", self.admin))
    }

    /// A line to the server for any number of requests.
    pub(super) fn line(&self) -> anyhow::Result<Line> {
        let (Some(scheme), Some(authority)) = (self.admin.scheme_str(), self.admin.authority())
        else {
            bail!("--admin: write a URL such as http://127.0.0.1:9641");
        };
        let trust = match scheme {
            "https" => Trust::of(false, self.ca.as_deref()),
            _ => Trust::Nobody,
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(Arc::unwrap_or_clone(trust.config()?))
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Line {
            client: Client::builder(TokioExecutor::new()).build(connector),
            origin: format!("{scheme}://{authority}"),
            token: self.token.clone(),
        })
    }
}

/// A line to the admin listener of a server.
pub(super) struct Line {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    origin: String,
    token: Option<String>,
}

impl Line {
    /// Status and JSON of one request; `Null` where there is no body. It takes as long as the server does.
    pub(super) async fn ask(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let (status, body) = self.send(method, path, body).await?;
        let body = axum::body::to_bytes(body, MAX_ANSWER_BYTES)
            .await
            .context("the answer broke off")?;
        let json = match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&body)
                .with_context(|| format!("{} is no admin listener of turnix", self.origin))?,
        };
        Ok((status, json))
    }

    /// Status and body of one request; the body comes as the server sends it.
    pub(super) async fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Body)> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.origin));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        let request = request.context("the token or the path cannot be sent")?;
        let response = self.client.request(request).await.with_context(|| {
            format!(
                "cannot reach the admin listener at {}: is the server running, and is this its http.admin?",
                self.origin
            )
        })?;
        Ok((response.status(), Body::new(response.into_body())))
    }
}

/// The answer as JSON; names in it are somebody's text, and may stand on a terminal.
pub(super) fn print_json(answer: &Value) -> anyhow::Result<()> {
    print(&printable::json(&format!("{answer:#}\n")))
}

pub(super) fn expect_success(status: StatusCode, answer: &Value) -> anyhow::Result<()> {
    if status.is_success() {
        return Ok(());
    }
    if status == StatusCode::UNAUTHORIZED {
        bail!("{}; give --token, or set TURNIX_HTTP__TOKEN", said(answer));
    }
    bail!("{}", said(answer))
}

fn said(answer: &Value) -> &str {
    answer["error"]
        .as_str()
        .unwrap_or("the server refused without a reason")
}

/// Every byte that is not plainly harmless in a path or query (RFC 3986 §2.3).
pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Columns as wide as what is in them.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        (rows.iter())
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
