//! `turnix top`: the live allocations of a running server, busiest first.

mod terminal;
mod view;

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::Context;
use axum::http::{Method, StatusCode};
use clap::Args;
use serde_json::{Value, json};

use super::admin::{Line, Server, expect_success, print_json};
use super::{Exit, print};
use crate::base::Clock;
use crate::config::values;

use view::{Poll, Sort, View};

/// How long the server may take for a listing before that is shown.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `turnix top`.
#[derive(Args)]
pub struct Arguments {
    /// Print one listing and end, as if standard output were no terminal.
    #[arg(long)]
    once: bool,
    /// What comes first.
    #[arg(long, value_enum, default_value_t = Sort::Rate)]
    sort: Sort,
    /// Only users whose name holds this text.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
    /// Time between two looks; a server that takes long is asked less often.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    interval: Duration,
    #[command(flatten)]
    server: Server,
}

fn interval(text: &str) -> Result<Duration, String> {
    match values::duration(text) {
        Ok(time) if (500..=3_600_000).contains(&time.as_millis()) => Ok(time),
        Ok(_) => Err("expected 500ms to 1h".into()),
        Err(wanted) => Err(format!("expected {wanted}")),
    }
}

/// Shows the allocations until somebody has seen enough.
///
/// # Errors
/// The server cannot be asked.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let line = arguments.server.line()?;
    // Also on a terminal: what cannot be asked is said on it, not on a screen that is gone the next moment.
    let first = runtime.block_on(poll(&line))?;
    let mut view = View::new(arguments.sort, arguments.filter.clone());
    view.take(first, Clock.now());
    if arguments.server.json() {
        print_json(&document(&view))?;
    } else if arguments.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        print(&view.plain())?;
    } else {
        runtime.block_on(terminal::show(&mut view, line, arguments.interval))?;
    }
    runtime.shutdown_background();
    Ok(Exit::Done)
}

/// How the server is and what it relays.
///
/// # Errors
/// It does not answer, or refuses.
async fn poll(line: &Line) -> anyhow::Result<Poll> {
    let asking = async {
        let (status, allocations) = line.ask(&Method::GET, "/api/v1/allocations", None).await?;
        expect_success(status, &allocations)?;
        let (status, health) = line.ask(&Method::GET, "/health", None).await?;
        // A server that is not well says so in its answer.
        if status != StatusCode::SERVICE_UNAVAILABLE {
            expect_success(status, &health)?;
        }
        Ok(Poll::new(health, &allocations))
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .with_context(|| format!("the server did not answer within {PATIENCE:?}"))?
}

fn document(view: &View) -> Value {
    let totals = view.totals();
    json!({
        "server": view.health(),
        "users": totals.users,
        "bits_per_second": {
            "to_peer": totals.to_peer,
            "to_client": totals.to_client,
        },
        "allocations": view.documents(),
    })
}
