//! What is made from the definition of the command line: completions for shells, man pages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Cli, Exit, print};

/// Where completions go.
pub const COMPLETIONS_HELP: &str = "\
bash: turnix completions bash > /etc/bash_completion.d/turnix
zsh:  turnix completions zsh > \"${fpath[1]}/_turnix\"
fish: turnix completions fish > ~/.config/fish/completions/turnix.fish";

/// What shows how a command is used: its name, none for `turnix` itself; what an example does, and how it is written.
type Example = (&'static str, &'static str, &'static str);

const EXAMPLES: [Example; 14] = [
    (
        "",
        "Serve without a configuration and print what to paste into an application:",
        "turnix",
    ),
    (
        "",
        "Serve as a service does:",
        "turnix serve -c /etc/turnix/turnix.toml",
    ),
    (
        "serve",
        "Serve on another port than the file says:",
        "turnix serve --set 'listen=[::]:3479'",
    ),
    (
        "serve",
        "Replace the running server by a new version, with no call lost:",
        "turnix serve --takeover",
    ),
    (
        "check",
        "What keeps this host from serving:",
        "turnix check -c /etc/turnix/turnix.toml",
    ),
    (
        "credentials",
        "A credential that is good for an hour:",
        "turnix credentials --user alice --ttl 1h",
    ),
    (
        "probe",
        "Whether a server relays, and if not, why:",
        "turnix probe --user alice --password wonder turn:turn.example.org",
    ),
    (
        "trace",
        "What becomes of a user's requests, for the next ten minutes:",
        "turnix trace alice",
    ),
    ("top", "Who is busy:", "turnix top"),
    (
        "bench",
        "What a server of one's own carries:",
        "turnix bench --user alice --password wonder turn:127.0.0.1:3478",
    ),
    (
        "import",
        "From coturn to turnix:",
        "turnix import /etc/turnserver.conf -o turnix.toml",
    ),
    (
        "drain",
        "Stop when the last call has ended, in an hour at the latest:",
        "turnix drain --deadline 1h",
    ),
    (
        "disconnect",
        "End every allocation of a user:",
        "turnix disconnect --user alice",
    ),
    (
        "completions",
        "For every user of this host:",
        "turnix completions bash > /etc/bash_completion.d/turnix",
    ),
];

const FILES: [(&str, &str); 2] = [
    (
        "/etc/turnix/turnix.toml",
        "The configuration; every key stands in it at its default, with a comment.",
    ),
    (
        "$STATE_DIRECTORY, /var/lib/turnix, ~/.local/state/turnix",
        "What the quick start makes: a secret, a user, a certificate.",
    ),
];

const ENVIRONMENT: [(&str, &str); 1] = [(
    "TURNIX_SECTION__KEY",
    "Any key of the configuration, such as TURNIX_AUTH__SECRETS; wins over the file.",
)];

const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "It did what it is for."),
    ("1", "It could not."),
    (
        "2",
        "The configuration or the host has to change first, or the command line is wrong.",
    ),
    ("3", "A probe found a fault."),
];

/// Arguments of `turnix completions`.
#[derive(Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `turnix man`.
#[derive(Args)]
pub struct Man {
    /// Write a page for each command, turnix.1, turnix-serve.1, …, into this folder.
    folder: Option<PathBuf>,
}

/// Prints completions.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(arguments: &Completions) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "turnix", &mut script);
    print(&String::from_utf8(script).context("completions are text")?)?;
    Ok(Exit::Done)
}

/// Prints the page of `turnix`, or writes all pages.
///
/// # Errors
/// They cannot be written.
pub fn man(arguments: &Man) -> anyhow::Result<Exit> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    match &arguments.folder {
        None => print(&String::from_utf8(page(&command)?).context("a man page is text")?)?,
        Some(folder) => {
            fs::create_dir_all(folder)
                .and_then(|()| write_all(&command, folder))
                .with_context(|| format!("{} cannot be written", folder.display()))?;
        }
    }
    Ok(Exit::Done)
}

fn write_all(command: &Command, folder: &Path) -> io::Result<()> {
    let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
    for one in shown.chain([command]) {
        fs::write(folder.join(format!("{}.1", name(one))), page(one)?)?;
    }
    Ok(())
}

/// `turnix` or `turnix-serve`.
fn name(command: &Command) -> String {
    match command.get_name() {
        "turnix" => "turnix".to_owned(),
        own => format!("turnix-{own}"),
    }
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let is_whole = command.get_name() == "turnix";
    let manual = clap_mangen::Man::new(command.clone())
        .title(name(command).to_uppercase())
        .section("1")
        .source(format!("turnix {}", env!("CARGO_PKG_VERSION")))
        .manual("turnix");
    let mut page = Vec::new();
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    manual.render_synopsis_section(&mut page)?;
    manual.render_description_section(&mut page)?;
    manual.render_options_section(&mut page)?;
    if is_whole {
        manual.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    let own = if is_whole { "" } else { command.get_name() };
    let examples: Vec<_> = EXAMPLES.iter().filter(|(of, ..)| *of == own).collect();
    if !examples.is_empty() {
        rest.control("SH", ["EXAMPLES"]);
        for (_, what, written) in examples {
            rest.control("PP", []);
            rest.text([roman(*what)]);
            rest.control("PP", []);
            rest.control("RS", ["4"]);
            rest.control("nf", []);
            rest.text([bold(*written)]);
            rest.control("fi", []);
            rest.control("RE", []);
        }
    }
    // Only a probe finds faults of another server.
    let (general, probes) = EXIT_STATUS.split_at(3);
    terms(&mut rest, "EXIT STATUS", general);
    if is_whole || own == "probe" {
        entries(&mut rest, probes);
    }
    if is_whole {
        terms(&mut rest, "FILES", &FILES);
        terms(&mut rest, "ENVIRONMENT", &ENVIRONMENT);
    }
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn terms(page: &mut Roff, heading: &str, terms: &[(&str, &str)]) {
    page.control("SH", [heading]);
    entries(page, terms);
}

fn entries(page: &mut Roff, terms: &[(&str, &str)]) {
    for (term, meaning) in terms {
        page.control("TP", []);
        page.text([bold(*term)]);
        page.text([roman(*meaning)]);
    }
}
