//! The commands: each reads its arguments, calls the library and prints.

mod admin;
mod banner;
mod bench;
mod capture;
mod check;
mod credentials;
mod generate;
mod holder;
mod import;
mod probe;
mod quality;
mod quick_start;
mod revoke;
mod serve;
mod state;
mod tls;
mod top;
mod trace;
mod turndb;
mod units;
mod why;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::base::Printable;
use crate::config::{Problems, Sources};

pub use banner::{Banner, banner};

/// The file that is read where `-c` names no other.
const DEFAULT_FILE: &str = "/etc/turnix/turnix.toml";

/// TURN and STUN relay server.
///
/// Without a command, serves. Without a configuration file, makes itself a secret, a user and a certificate, and prints
/// what to paste into a WebRTC application.
#[derive(Parser)]
#[command(name = "turnix", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 bad configuration or host, 3 a probe found a fault."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Arguments,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::Arguments),
    /// Check the configuration and the host: print every problem and what would solve it.
    ///
    /// Binds every port for a moment, reads the certificate, looks at clock, buffers, open files and addresses. Ends
    /// with 2 if the server could not serve; warnings alone end with 0. Without a configuration file it checks what
    /// the quick start would do, whose state it makes.
    Check(Configuration),
    /// Make time-limited credentials for WebRTC clients.
    Credentials(credentials::Arguments),
    /// Test STUN and TURN servers, this one or any other, from end to end.
    ///
    /// For each URI: resolves the name, connects, verifies the certificate, asks for a Binding, makes two allocations, and has
    /// them exchange data through their relayed addresses: in indications and channels, small and large packets, then a short
    /// burst. Says what is wrong in one line and what to do in the next. Latency is that of a packet that goes from here to the
    /// server, through both relayed addresses, and back here. Without credentials it only tests whether the server answers.
    ///
    /// Ends with 3 if it found a fault, and gives its allocations back, also on Ctrl-C.
    #[command(args_override_self = true)]
    Probe(Box<probe::Arguments>),
    /// Load any TURN server with relayed traffic and measure it.
    ///
    /// Makes allocations, sends through them for some seconds, and reports delivered packets per second, loss, latency
    /// and allocations per second; with --pid also what a packet and an allocation cost the server. One thread; ends by
    /// itself and releases its allocations.
    #[command(args_override_self = true)]
    Bench(Box<bench::Arguments>),
    /// Turn coturn's configuration into one of turnix.
    ///
    /// Prints turnix.toml, every key with the line it comes from; and, on standard error, what became of every option:
    /// mapped, approximated or refused, with the reason. Ends with 2 if turnix could not be configured with the result.
    Import(import::Arguments),
    /// Have a running server read its configuration again.
    ///
    /// Prints what changed, key by key, and what takes a restart. A configuration that cannot be used changes nothing
    /// and ends with 2. The same as SIGHUP.
    Reload(admin::Reload),
    /// Have a running server take no new allocations, and stop when the last one has ended.
    ///
    /// New clients are sent to drain.alternates. A second drain can only shorten the deadline. The same as SIGUSR1.
    Drain(admin::Drain),
    /// List the live allocations of a running server, busiest first.
    Allocations(admin::Allocations),
    /// End an allocation of a running server, or all of a user.
    Disconnect(admin::Disconnect),
    /// Revoke a credential, a user, or everything that an API key has minted; or list and undo that.
    ///
    /// Whoever is revoked gets no allocation any more, and what lives ends at once. It outlives restarts.
    Revoke(revoke::Revoke),
    /// Watch the live allocations of a running server, busiest first.
    ///
    /// Keys: q quits, s sorts by something else, r turns the order around, / filters by user, arrows scroll. Where standard
    /// output is no terminal, one listing is printed, of everything.
    Top(top::Arguments),
    /// Log what one user or address does, on a running server, for some minutes.
    ///
    /// The server logs at debug level what it is asked for, what it refuses and what it drops of that user or address alone,
    /// whatever log.level is. Without a user or address, lists what is traced; 16 traces at once.
    Trace(trace::Arguments),
    /// Tell what happened to a user, an address or an allocation, and why its call failed.
    ///
    /// Prints what a running server remembers of it, with the time since the first event, then a verdict in plain words and
    /// what to do. Calls that are over are remembered for a while (quality.events). Ends with 1 if nothing is known.
    Why(why::Arguments),
    /// Write the packets of one allocation of a running server into a file for Wireshark.
    ///
    /// Both sides of what is relayed, control messages, and what was dropped with the reason. Headers only, unless --payload
    /// says otherwise. What comes over TCP, TLS or DTLS is shown as if by UDP.
    Capture(capture::Arguments),
    /// Print what lets a shell complete the command line.
    #[command(after_help = generate::COMPLETIONS_HELP)]
    Completions(generate::Completions),
    /// Print the man page, or write the pages of all commands into a folder.
    #[command(hide = true)]
    Man(generate::Man),
}

/// Where the configuration comes from.
#[derive(Args)]
pub struct Configuration {
    /// Configuration file [default: /etc/turnix/turnix.toml if it exists].
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Override one key, such as --set limits.allocations=1000; repeatable.
    ///
    /// Wins over the environment (TURNIX_LIMITS__ALLOCATIONS) and the file.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Start from a whole configuration of this name, beneath all others: the same as --set preset=NAME.
    ///
    /// openrelay serves the user openrelayproject, whose password the whole world knows, on ports 80, 443 and 3478, with
    /// limits that keep one client from taking what others need.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

impl Configuration {
    /// The file, if there is one, the environment and every `--set`.
    fn sources(&self) -> Sources {
        let default = PathBuf::from(DEFAULT_FILE);
        Sources {
            file: self
                .file
                .clone()
                .or_else(|| default.exists().then_some(default)),
            base: None,
            environment: std::env::vars_os()
                .map(|(name, value)| {
                    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
                    (text(name), text(value))
                })
                .collect(),
            set: (self.preset.iter())
                .map(|name| format!("preset={name}"))
                .chain(self.set.iter().cloned())
                .collect(),
        }
    }
}

/// How a command ended, as the exit code says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it is for.
    Done = 0,
    /// It could not.
    Failed = 1,
    /// The configuration or the host has to change first.
    Unusable = 2,
    /// A probe found a fault.
    Fault = 3,
}

/// Runs the command.
///
/// # Errors
/// Why it could not do what it is for; [`report`] tells people.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Check(configuration) => check::run(&configuration),
        Command::Credentials(arguments) => credentials::run(&arguments),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Reload(arguments) => admin::reload(&arguments),
        Command::Drain(arguments) => admin::drain(&arguments),
        Command::Allocations(arguments) => admin::allocations(&arguments),
        Command::Disconnect(arguments) => admin::disconnect(&arguments),
        Command::Revoke(arguments) => revoke::revoke(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Why(arguments) => why::run(&arguments),
        Command::Capture(arguments) => capture::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Completions(arguments) => generate::completions(&arguments),
        Command::Man(arguments) => generate::man(&arguments),
    }
}

/// Prints why a command failed; returns how it ended.
pub fn report(error: &anyhow::Error) -> Exit {
    let mut stderr = io::stderr().lock();
    // There is nobody left to tell if standard error is gone.
    let _ = match error.downcast_ref::<Problems>() {
        Some(problems) => problems
            .iter()
            .try_for_each(|problem| writeln!(stderr, "error: {problem}")),
        None => writeln!(stderr, "error: {}", Printable(format_args!("{error:#}"))),
    };
    match error.downcast_ref::<Problems>() {
        Some(_) => Exit::Unusable,
        None => Exit::Failed,
    }
}

/// Writes to standard output; a reader that went away is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
