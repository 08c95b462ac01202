//! `turnix capture`: the packets of one allocation of a running server, as a file for Wireshark.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::http::{Method, StatusCode};
use clap::Args;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::admin::{Line, Server, expect_success, percent_encoded, print_json};
use super::{Exit, print};
use crate::base::Printable;
use crate::capture::Tally;

/// How long the server may be silent beyond the time that a capture takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Arguments of `turnix capture`.
#[derive(Args)]
#[group(id = "whose", required = true, multiple = false, args = ["id", "user"])]
pub struct Arguments {
    /// The allocation's id, as `turnix allocations` shows it.
    #[arg(value_name = "ALLOCATION")]
    id: Option<String>,
    /// The busiest allocation of this user instead.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How long, up to 600.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// End after so many packets.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    packets: Option<u64>,
    /// Whole packets, with what people say in them; as they are relayed, so media stays encrypted.
    #[arg(long)]
    payload: bool,
    /// Where to; - is standard output [default: turnix-ALLOCATION.pcapng, which must not exist].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

/// Where a capture goes.
enum Target {
    Output(io::Stdout),
    File(std::fs::File, PathBuf),
}

impl Target {
    /// Nobody else may read it, and only a file that was named is written over.
    fn open(named: Option<&Path>, id: &str) -> anyhow::Result<Self> {
        if named == Some(Path::new("-")) {
            let stdout = io::stdout();
            if stdout.is_terminal() {
                bail!(
                    "a capture is no text for a terminal: name a file with -o, or pipe it, such as into `tshark -r -`"
                );
            }
            return Ok(Self::Output(stdout));
        }
        let path = match named {
            Some(path) => path.to_owned(),
            None => PathBuf::from(format!("turnix-{id}.pcapng")),
        };
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        match named {
            Some(_) => options.create(true).truncate(true),
            None => options.create_new(true),
        };
        let file = options.open(&path).with_context(|| {
            format!("cannot write {}: name another file with -o", path.display())
        })?;
        // One that was there keeps its mode, unless it is told otherwise; a pipe or a device is none of ours.
        if file.metadata().is_ok_and(|there| there.is_file()) {
            (file.set_permissions(Permissions::from_mode(0o600)))
                .with_context(|| format!("cannot keep {} for its owner alone", path.display()))?;
        }
        Ok(Self::File(file, path))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Output(stdout) => {
                let mut stdout = stdout.lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            Self::File(file, _) => file.write_all(bytes),
        }
    }
}

/// Captures until the time is over, the allocation ends, or Ctrl-C.
///
/// # Errors
/// The server cannot be asked, or refuses; or the file cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let line = arguments.server.line()?;
    let done = runtime.block_on(capture(arguments, &line));
    runtime.shutdown_background();
    done
}

async fn capture(arguments: &Arguments, line: &Line) -> anyhow::Result<Exit> {
    // Nothing is asked for what cannot be written.
    let named = arguments.output.as_deref();
    let to_stdout = match named {
        Some(path) if path == Path::new("-") => Some(Target::open(named, "")?),
        _ => None,
    };
    let id = match (&arguments.id, &arguments.user) {
        (Some(id), _) => id.clone(),
        (None, Some(user)) => busiest(line, user).await?,
        (None, None) => bail!("name an allocation, or a user with --user"),
    };
    let seconds = arguments.seconds;
    let mut path = format!(
        "/api/v1/allocations/{}/capture?seconds={seconds}",
        percent_encoded(&id)
    );
    if let Some(packets) = arguments.packets {
        path += &format!("&packets={packets}");
    }
    if arguments.payload {
        path += "&payload=true";
    }
    let (status, mut body) = line.send(&Method::GET, &path, None).await?;
    if !status.is_success() {
        let answer = body
            .collect()
            .await
            .context("the answer broke off")?
            .to_bytes();
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if status == StatusCode::NOT_FOUND {
            bail!(
                "no live allocation is named {}: see `turnix allocations`",
                Printable(&id)
            );
        }
        return expect_success(status, &answer).map(|()| Exit::Failed);
    }
    let mut target = match to_stdout {
        Some(target) => target,
        None => Target::open(named, &id)?,
    };
    let mut tally = Tally::default();
    let mut bytes = 0_u64;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let patience = Duration::from_secs(seconds) + PATIENCE;
    let mut broken = false;
    loop {
        let frame = tokio::select! {
            _ = &mut interrupted => break,
            frame = tokio::time::timeout(patience, body.frame()) => frame,
        };
        let data = match frame {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(None) => break,
            // What has come is good.
            Ok(Some(Err(_))) | Err(_) => {
                broken = true;
                break;
            }
        };
        (tally.feed(&data)).map_err(|_| {
            anyhow::anyhow!("this is no capture: is this the admin listener of turnix?")
        })?;
        bytes += data.len() as u64;
        match target.write(&data) {
            // Whoever read standard output has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            written => written.context("the capture cannot be written")?,
        }
    }
    // Readers complain of half a block.
    let bytes = bytes - tally.unfinished() as u64;
    if let Target::File(file, _) = &target
        && tally.unfinished() > 0
    {
        file.set_len(bytes)
            .context("the capture cannot be written")?;
    }
    tell(arguments, &target, &id, &tally, bytes, broken)
}

/// Says what was captured; on standard error where the capture itself went to standard output.
fn tell(
    arguments: &Arguments,
    target: &Target,
    id: &str,
    tally: &Tally,
    bytes: u64,
    broken: bool,
) -> anyhow::Result<Exit> {
    let end = match broken {
        true => Exit::Failed,
        false => Exit::Done,
    };
    let Target::File(_, path) = target else {
        let _ = writeln!(io::stderr(), "{}{}", packets(tally), broke_off(broken));
        return Ok(end);
    };
    if arguments.server.json() {
        print_json(&json!({
            "allocation": id,
            "file": path.display().to_string(),
            "packets": tally.packets,
            "lost": tally.lost,
            "bytes": bytes,
            "complete": !broken,
        }))?;
        return Ok(end);
    }
    let shown = Printable(path.display().to_string()).to_string();
    print(&format!(
        "{} in {shown}{}\nread it with: wireshark {shown}\n",
        packets(tally),
        broke_off(broken)
    ))?;
    Ok(end)
}

fn packets(tally: &Tally) -> String {
    let plural = if tally.packets == 1 { "" } else { "s" };
    let lost = match tally.lost {
        0 => String::new(),
        lost => format!(" ({lost} more came too fast and are missing)"),
    };
    format!("{} packet{plural}{lost}", tally.packets)
}

const fn broke_off(broken: bool) -> &'static str {
    match broken {
        true => "; the connection to the server broke off",
        false => "",
    }
}

/// The allocation of `user` that relays most.
async fn busiest(line: &Line, user: &str) -> anyhow::Result<String> {
    let path = format!("/api/v1/allocations?limit=1&user={}", percent_encoded(user));
    let (status, answer) = line.ask(&Method::GET, &path, None).await?;
    expect_success(status, &answer)?;
    match answer[0]["id"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => bail!("{} has no live allocation", Printable(user)),
    }
}
