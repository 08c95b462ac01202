//! What calls over UDP feel while somebody attacks the server over TCP, TLS and UDP.
//!
//! `cargo bench --bench attack -- --help` tells how.

mod attacks;
#[path = "../compare/machine.rs"]
#[expect(dead_code, reason = "made for the comparison of servers")]
mod machine;
#[path = "../compare/process.rs"]
#[expect(dead_code, reason = "made for the comparison of servers")]
mod process;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::Value;
use turnix::base::Clock;
use turnix::net::host;

use attacks::{ATTACKS, Attack, Running};
use process::{Launcher, Process, check_interrupted, nap};

/// The program under test, built for this run.
const TURNIX: &str = env!("CARGO_BIN_EXE_turnix");
const USER: &str = "load";
const PASSWORD: &str = "of-the-day";
const START_LIMIT: Duration = Duration::from_secs(15);
/// What a run may take beyond its traffic.
const RUN_SLACK: Duration = Duration::from_secs(30);

/// Measures the round trip of relayed packets while one attack after the other runs.
///
/// The server has one shard and one CPU; the calls and the attackers share another, the attackers at the least priority.
/// What the attackers cost the calls there shows in the figures, too: a ratio is what the server does at most. Figures
/// are medians over the repetitions, between which the attacks take turns. Needs taskset.
#[derive(Parser)]
#[command(name = "attack")]
struct Options {
    /// Only attacks whose names contain one of these parts; separated by commas.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    attacks: Vec<String>,
    /// Packets a second, to and fro.
    #[arg(long, value_name = "PPS", default_value_t = 2000)]
    rate: u32,
    /// How often each attack runs.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// How long each of them is measured.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// How long an attack runs before it is measured.
    #[arg(long, value_name = "S", default_value_t = 1.5)]
    warmup: f64,
    /// Everything once, small and for tenths of a second: shows that it works, the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// CPU of the server [default: the first that may be used].
    #[arg(long, value_name = "CPU")]
    server_cpu: Option<usize>,
    /// CPU of calls and attackers [default: the second].
    #[arg(long, value_name = "CPU")]
    generator_cpu: Option<usize>,
    /// Print the attacks.
    #[arg(long)]
    list: bool,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Figures {
    p50_us: f64,
    p99_us: f64,
    loss: f64,
    /// Of the attack, a second.
    attempts: f64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if it is gone.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let mut out = io::stdout();
    if options.list {
        for attack in ATTACKS {
            writeln!(out, "{:<16} {}", attack.name, attack.what)?;
        }
        return Ok(());
    }
    let wanted = |attack: &&Attack| {
        let mut parts = options.attacks.iter();
        options.attacks.is_empty() || parts.any(|part| attack.name.contains(part.as_str()))
    };
    let attacks: Vec<_> = ATTACKS.iter().filter(wanted).collect();
    if attacks.is_empty() {
        bail!("no attack has such a name; --list prints them");
    }
    host::raise_open_files().context("open files")?;
    process::watch_signals()?;
    let usable = machine::usable_cpus();
    let place = |index: usize| usable.get(index).or(usable.last()).copied().unwrap_or(0);
    let server_cpu = options.server_cpu.unwrap_or_else(|| place(0));
    let generator_cpu = options.generator_cpu.unwrap_or_else(|| place(1));
    let directory = tempfile::tempdir()?;
    // Not in the real-time class: there, the server's own threads would not stand back for each other.
    let launcher = Launcher::default();
    let bench = Bench {
        options,
        generator_cpu,
        directory: directory.path(),
        launcher: &launcher,
        server: start(&launcher, server_cpu, directory.path())?,
    };
    let (repeats, seconds) = if options.quick {
        (1, 0.5)
    } else {
        (options.repeats, options.seconds)
    };
    // Idle comes first in every round, so that it sees the same moments of the machine as the attacks.
    let mut idle = Vec::new();
    let mut attacked: Vec<Vec<Figures>> = vec![Vec::new(); attacks.len()];
    for round in 0..repeats as usize {
        idle.push(bench.measure(None, seconds)?);
        for turn in 0..attacks.len() {
            let index = (round + turn) % attacks.len();
            let figures = bench.measure(Some(attacks[index]), seconds)?;
            attacked[index].push(figures);
        }
    }
    for (name, value) in machine::describe(false, (server_cpu, generator_cpu)) {
        writeln!(out, "{name}: {value}")?;
    }
    writeln!(
        out,
        "load: echo of 200 B, 20 allocations over UDP, {} packets/s; {repeats} x {seconds} s each, medians\n",
        options.rate
    )?;
    let idle = median(&idle);
    writeln!(
        out,
        "| attack | attempts/s | p50 µs | p99 µs | p99 / idle | lost |"
    )?;
    writeln!(out, "|---|---:|---:|---:|---:|---:|")?;
    let mut row = |name: &str, figures: Figures| {
        let Figures {
            p50_us,
            p99_us,
            loss,
            attempts,
        } = figures;
        let ratio = p99_us / idle.p99_us;
        let lost = loss * 100.0;
        writeln!(
            out,
            "| {name} | {attempts:.0} | {p50_us:.1} | {p99_us:.1} | **{ratio:.2}** | {lost:.3} % |"
        )
    };
    row("idle", idle)?;
    for (attack, figures) in attacks.iter().zip(&attacked) {
        row(attack.what, median(figures))?;
    }
    Ok(())
}

/// The median of each figure on its own.
fn median(all: &[Figures]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = all.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Figures {
        p50_us: of(|one| one.p50_us),
        p99_us: of(|one| one.p99_us),
        loss: of(|one| one.loss),
        attempts: of(|one| one.attempts),
    }
}

struct Bench<'a> {
    options: &'a Options,
    generator_cpu: usize,
    directory: &'a Path,
    launcher: &'a Launcher,
    server: (Process, SocketAddr),
}

impl Bench<'_> {
    /// The calls' latency while `attack` runs. What is short is tried again: on a busy machine, nothing may happen in it.
    fn measure(&self, attack: Option<&'static Attack>, seconds: f64) -> anyhow::Result<Figures> {
        let mut left = if self.options.quick { 5 } else { 0 };
        loop {
            match self.once(attack, seconds) {
                Err(_) if left > 0 => left -= 1,
                result => return result,
            }
            check_interrupted()?;
        }
    }

    fn once(&self, attack: Option<&'static Attack>, seconds: f64) -> anyhow::Result<Figures> {
        let (_, server) = &self.server;
        let scale = if self.options.quick { 100 } else { 1 };
        let running =
            attack.map(|attack| Running::start(attack, *server, self.generator_cpu, scale));
        let warmup = if self.options.quick {
            0.2
        } else {
            self.options.warmup
        };
        let begin = Clock.now().mono;
        while Clock.now().mono - begin < Duration::from_secs_f64(warmup) {
            nap()?;
        }
        let command: Vec<String> = format!(
            "bench turn:{server} --user {USER} --password {PASSWORD} --direction echo --allocations 20 --size 200 \
             --rate {} --seconds {seconds} --warmup 0.2 --pin {} --json",
            self.options.rate, self.generator_cpu
        )
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect();
        let command = [&[TURNIX.to_owned()][..], &command].concat();
        let generator = self
            .launcher
            .start(None, &command, self.directory, "generator")?;
        let (from, before) = (
            Clock.now().mono,
            running.as_ref().map_or(0, Running::attempts),
        );
        let report = generator.finish(Duration::from_secs_f64(seconds) + RUN_SLACK)?;
        let lasted = (Clock.now().mono - from).as_secs_f64();
        let after = running.as_ref().map_or(0, Running::attempts);
        drop(running);
        check_interrupted()?;
        let report: Value = serde_json::from_str(&report)?;
        let number = |pointer: &str| {
            let value = report.pointer(pointer).and_then(Value::as_f64);
            value.with_context(|| format!("the generator tells no {pointer}"))
        };
        let name = attack.map_or("idle", |attack| attack.name);
        let figures = Figures {
            p50_us: number("/latency/p50_us")?,
            p99_us: number("/latency/p99_us")?,
            loss: number("/loss_ratio")?,
            attempts: (after - before) as f64 / lasted,
        };
        writeln!(io::stderr(), "{name:<16} {figures:?}")?;
        if number("/delivered")? == 0.0 {
            bail!("{name}: no packet was delivered");
        }
        if attack.is_some() && after == 0 {
            bail!("{name}: the attack did nothing");
        }
        Ok(figures)
    }
}

/// A server on one CPU that speaks everything on one port.
fn start(
    launcher: &Launcher,
    cpu: usize,
    directory: &Path,
) -> anyhow::Result<(Process, SocketAddr)> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
    std::fs::write(&chain, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let address = (9100..9999)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|address| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok())
        .context("no port is free to listen on")?;
    let file = directory.join("turnix.toml");
    let text = format!(
        "realm = \"turn.example.org\"\n\
         [[listen]]\naddress = \"{address}\"\nprotocols = [\"udp\", \"tcp\", \"tls\", \"http\"]\n\
         [relay]\naddresses = [\"127.0.0.1\"]\nexternal_address = \"127.0.0.1\"\nports = \"10000-32767\"\n\
         [auth]\nusers = {{ {USER} = \"{PASSWORD}\" }}\n\
         [peers]\nallow = [\"loopback\"]\n\
         [tls]\ncertificate = {chain:?}\nkey = {key:?}\n\
         [http]\nadmin = \"\"\n[server]\nshards = 1\n"
    );
    std::fs::write(&file, text)?;
    let command = [TURNIX, "serve", "-c", &file.to_string_lossy()].map(str::to_owned);
    let mut process = launcher.start(Some(cpu), &command, directory, "server")?;
    let deadline = Clock.now().mono + START_LIMIT;
    while TcpStream::connect(address).is_err() {
        if !process.is_alive() || Clock.now().mono >= deadline {
            bail!("the server does not serve: {}", process.last_words());
        }
        nap()?;
    }
    Ok((process, address))
}

impl Running {
    /// What it did so far.
    fn attempts(&self) -> u64 {
        Arc::as_ref(&self.shared).attempts.load(Ordering::Relaxed)
    }
}
