//! turnix, coturn and others side by side on loopback: what a relayed packet and an allocation cost each of them.
//!
//! `cargo bench --bench compare -- --help` tells how; `docs/performance.md` tells what the figures mean.

mod cells;
mod chart;
mod machine;
mod process;
mod report;
mod servers;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::Value;

use cells::{CELLS, Cell, Leg};
use process::{Launcher, check_interrupted, output_of};
use report::{Comparison, Run};
use servers::{Certificate, PASSWORD, Server, TURNIX, USER, candidates, prepare};

/// What a run may take beyond its traffic: thousands of handshakes at most.
const RUN_SLACK: Duration = Duration::from_secs(30);

/// Runs TURN servers side by side on loopback and compares what they cost.
///
/// All servers run at the same time, each with one worker, on one CPU; `turnix bench` loads one after the other from another
/// CPU. Figures are medians over the repetitions. Needs taskset; chrt gives quieter figures where it is permitted.
#[derive(Parser)]
#[command(name = "compare")]
struct Options {
    /// Another server: NAME=COMMAND, where {port} {tls_port} {user} {password} {realm} {min} {max} {certificate} {key} are
    /// filled in. It stays in the foreground, listens at 127.0.0.1 and gets no shell.
    #[arg(long = "server", value_name = "NAME=COMMAND", value_parser = named)]
    servers: Vec<(String, String)>,
    /// The server that the others are compared with.
    #[arg(long, value_name = "NAME", default_value = "coturn")]
    baseline: String,
    /// Only cells of these names, or whose names contain these parts; separated by commas.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    cells: Vec<String>,
    /// How often each server gets each load.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// How long each load is measured.
    #[arg(long, value_name = "S", default_value_t = 1.5)]
    seconds: f64,
    /// How long each load runs before it is measured.
    #[arg(long, value_name = "S", default_value_t = 0.3)]
    warmup: f64,
    /// Everything once for tenths of a second: shows that it works, the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// CPU of the servers [default: the first that may be used].
    #[arg(long, value_name = "CPU")]
    server_cpu: Option<usize>,
    /// CPU of the generator [default: the second].
    #[arg(long, value_name = "CPU")]
    generator_cpu: Option<usize>,
    /// Write NAME.md, NAME.json and NAME.svg to this directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Name of the files.
    #[arg(long, value_name = "NAME", default_value = "loopback")]
    name: String,
    /// Print the names of all cells and their loads.
    #[arg(long)]
    list: bool,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, command)) if !name.is_empty() && command.contains("{port}") => {
            Ok((name.to_owned(), command.to_owned()))
        }
        _ => Err("expected NAME=COMMAND with {port} in it".into()),
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A line on standard error.
fn say(line: &str) {
    // Nobody is left to tell if it is gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether every run delivered packets.
fn run(options: &Options) -> anyhow::Result<bool> {
    if options.list {
        for cell in CELLS {
            writeln!(io::stdout(), "{:<16} {}", cell.name, cell.arguments)?;
        }
        return Ok(true);
    }
    let is_name = |pattern: &str| CELLS.iter().any(|cell| cell.name == pattern);
    let wanted = |cell: &&Cell| {
        let mut patterns = options.cells.iter();
        options.cells.is_empty()
            || patterns.any(|pattern| {
                cell.name == pattern || !is_name(pattern) && cell.name.contains(pattern)
            })
    };
    let cells: Vec<&'static Cell> = CELLS.iter().filter(wanted).collect();
    if cells.is_empty() {
        bail!("no cell has such a name; --list prints them");
    }
    let Some(help) = output_of(TURNIX, &["bench", "--help"]) else {
        bail!("turnix cannot be run");
    };
    process::watch_signals()?;
    let launcher = Launcher::new();
    let (candidates, notes) = candidates(&options.servers);
    for note in &notes {
        say(note);
    }
    if !launcher.real_time {
        say(
            "chrt -f is not permitted: without real-time priority, other programs show in the figures",
        );
    }
    let usable = machine::usable_cpus();
    let place = |index: usize| usable.get(index).or(usable.last()).copied().unwrap_or(0);
    let server_cpu = options.server_cpu.unwrap_or_else(|| place(0));
    let generator_cpu = options.generator_cpu.unwrap_or_else(|| place(1));
    if server_cpu == generator_cpu {
        say("servers and generator share a CPU: the figures mean little");
    }
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::make(directory.path())?;
    let mut comparison = Comparison {
        machine: machine::describe(launcher.real_time, (server_cpu, generator_cpu)),
        servers: candidates.clone(),
        baseline: options.baseline.clone(),
        notes,
        repeats: repeats(options),
        seconds: seconds(options),
        cells: Vec::new(),
    };
    if let (Some(commit), Some(turnix)) = (machine::commit(), comparison.servers.first_mut()) {
        turnix.version = format!("{}, {commit}", turnix.version);
    }
    let mut session = Session {
        options,
        server_cpu,
        generator_cpu,
        servers: prepare(candidates, directory.path())?,
        launcher,
        certificate,
        directory: directory.path(),
        help,
        failures: Vec::new(),
    };
    for (index, cell) in cells.iter().enumerate() {
        say(&format!(
            "[{}/{}] {}: {}",
            index + 1,
            cells.len(),
            cell.name,
            cell.title
        ));
        let runs = session.measure(cell)?;
        comparison.cells.push((cell, runs));
    }
    let failures = std::mem::take(&mut session.failures);
    // Servers end before anything is told.
    drop(session);
    comparison
        .machine
        .push(("load average at the end", machine::load_average()));
    let tables = comparison.markdown();
    io::stdout().write_all(tables.as_bytes())?;
    if let Some(out) = &options.out {
        write(out, &options.name, &comparison, &tables)?;
    }
    for failure in &failures {
        say(&format!("FAILED {failure}"));
    }
    Ok(failures.is_empty())
}

fn write(out: &Path, name: &str, comparison: &Comparison, tables: &str) -> anyhow::Result<()> {
    let save = |extension: &str, text: &str| {
        let path = out.join(format!("{name}.{extension}"));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(out)?;
    let chart = chart::draw(comparison);
    let picture = match chart {
        Some(_) => format!("\n![The same as a chart]({name}.svg)\n"),
        None => String::new(),
    };
    save(
        "md",
        &format!("# Side by side on loopback\n\n{tables}{picture}"),
    )?;
    save("json", &comparison.json())?;
    chart.map_or(Ok(()), |chart| save("svg", &chart))
}

fn repeats(options: &Options) -> u32 {
    if options.quick { 1 } else { options.repeats }
}

fn seconds(options: &Options) -> f64 {
    if options.quick { 0.2 } else { options.seconds }
}

struct Session<'a> {
    options: &'a Options,
    server_cpu: usize,
    generator_cpu: usize,
    servers: Vec<Server>,
    launcher: Launcher,
    certificate: Certificate,
    directory: &'a Path,
    /// What the generator can do.
    help: String,
    failures: Vec<String>,
}

impl Session<'_> {
    fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        let cpu = self.server_cpu;
        self.servers[index].restart(&self.launcher, cpu, &self.certificate)
    }

    /// Servers take turns, in another order each time.
    fn measure(&mut self, cell: &'static Cell) -> anyhow::Result<Vec<Run>> {
        let count = self.servers.len();
        let mut runs = Vec::new();
        for repetition in 0..repeats(self.options) as usize {
            for turn in 0..count {
                let index = (repetition + turn) % count;
                if !self.servers[index].speaks(cell.leg) {
                    continue;
                }
                check_interrupted()?;
                let report = self.one(index, cell);
                check_interrupted()?;
                let name = self.servers[index].candidate.name.clone();
                match report {
                    Ok(report) => {
                        let shown: Vec<String> = (cell.goals.iter())
                            .filter_map(|goal| {
                                let value = report.pointer(goal.measure.pointer())?.as_f64()?;
                                let unit = goal.measure.unit();
                                Some(format!("{} {unit}", goal.measure.show(value)))
                            })
                            .collect();
                        say(&format!("    {name:<18}{}", shown.join(", ")));
                        runs.push(Run {
                            server: index,
                            repetition,
                            report,
                        });
                    }
                    Err(error) => {
                        say(&format!("    {name:<18}failed: {error:#}"));
                        self.failures
                            .push(format!("{} {name}: {error:#}", cell.name));
                    }
                }
            }
        }
        Ok(runs)
    }

    fn one(&mut self, index: usize, cell: &Cell) -> anyhow::Result<Value> {
        // Memory counts from a process that has served nobody, and a server may hold on to five-tuples that the
        // generator's next sockets get again.
        self.restart(index)?;
        let server = &mut self.servers[index];
        let pid = server.pid().context("the server has ended")?;
        let seconds = seconds(self.options);
        let warmup = if self.options.quick {
            0.1
        } else {
            self.options.warmup
        };
        let mut command = vec![TURNIX.to_owned(), "bench".into(), server.uri(cell.leg)];
        let mut add = |arguments: &str| {
            command.extend(arguments.split_ascii_whitespace().map(str::to_owned));
        };
        add(cell.arguments);
        for flag in cell.optional {
            let name = flag.split(' ').next().unwrap_or(flag);
            if (self.help.split_ascii_whitespace()).any(|word| word == name) {
                add(flag);
            }
        }
        if cell.leg == Leg::Tls {
            add("--insecure");
        }
        add(&format!(
            "--user {USER} --password {PASSWORD} --pid {pid} --pin {} --seconds {seconds} --warmup {warmup} --json",
            self.generator_cpu
        ));
        let limit = Duration::from_secs_f64(seconds + warmup) + RUN_SLACK;
        let generator = (self.launcher).start(None, &command, self.directory, "generator")?;
        let report: Value = serde_json::from_str(&generator.finish(limit)?)?;
        let delivered = report.pointer("/delivered").and_then(Value::as_u64);
        if delivered.is_none_or(|delivered| delivered == 0) {
            bail!("no packet was delivered");
        }
        Ok(report)
    }
}
