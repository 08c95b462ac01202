//! `turnix import`: coturn's configuration and database in, ours and a report out.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::state::random_text;
use super::{Exit, print, turndb};
use crate::base::Secret;
use crate::base::printable::{self, Printable};
use crate::config::coturn::{self, Database, Finding, Import, Input, Outcome, Place};
use crate::config::{Config, Problems, Sources};

/// Where coturn's packages keep their configuration: what is beside it on this host belongs to it.
const INSTALLED: [&str; 3] = [
    "/etc/turnserver.conf",
    "/etc/coturn/turnserver.conf",
    "/usr/local/etc/turnserver.conf",
];

/// Where coturn keeps its database unless told otherwise.
const DATABASES: [&str; 3] = [
    "/var/lib/turn/turndb",
    "/var/db/turndb",
    "/usr/local/var/db/turndb",
];

/// Group and owner: the service reads it, nobody else.
const OUTPUT_MODE: u32 = 0o640;

/// Arguments of `turnix import`.
#[derive(Args)]
pub struct Arguments {
    /// coturn's configuration; - for standard input.
    #[arg(value_name = "FILE", default_value = "/etc/turnserver.conf")]
    file: PathBuf,
    /// Write the result to this file, which must not be there yet, in place of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace what --output names; owner and mode stay.
    #[arg(long, requires = "output")]
    force: bool,
    /// Take users, secrets and peers from this SQLite database [default: userdb of the file; for the file of an installed
    /// coturn also its usual place].
    ///
    /// Needs the program sqlite3.
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
    /// Take nothing from a database.
    #[arg(long, conflicts_with = "database")]
    no_database: bool,
    /// Print result and report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Imports and reports.
///
/// # Errors
/// The file or the database cannot be read, or the result not be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let (text, folder) = read(&arguments.file)?;
    let database = database(arguments, &text, &folder)?;
    let name = match &database {
        Some((path, _)) => format!("{} and {}", arguments.file.display(), path.display()),
        None => arguments.file.display().to_string(),
    };
    let import = coturn::import(&Input {
        name: &name,
        text: &text,
        folder: &folder,
        database: database.as_ref().map(|(_, database)| database),
        fresh_secret: &Secret::new(random_text(32)),
    });
    if let Some(output) = &arguments.output {
        write_to(output, arguments.force, &import.toml)?;
    }
    let problems = problems(&import, arguments.output.as_deref());
    if arguments.json {
        print(&as_json(arguments, &import, problems.as_ref()))?;
    } else {
        if arguments.output.is_none() {
            print(import.toml.expose())?;
        }
        // There is nobody left to tell if standard error is gone.
        let _ = io::stderr().write_all(report(arguments, &import, problems.as_ref()).as_bytes());
    }
    Ok(if problems.is_none() {
        Exit::Done
    } else {
        Exit::Unusable
    })
}

/// The file and the folder that its relative paths begin in.
fn read(file: &Path) -> anyhow::Result<(String, PathBuf)> {
    let mut bytes = Vec::new();
    let folder = if file == Path::new("-") {
        io::stdin()
            .read_to_end(&mut bytes)
            .context("standard input cannot be read")?;
        std::env::current_dir().context("the current folder is not known")?
    } else {
        bytes = fs::read(file).with_context(|| {
            format!(
                "{} cannot be read; name coturn's configuration, which is often /etc/turnserver.conf",
                file.display()
            )
        })?;
        let file = std::path::absolute(file).context("the current folder is not known")?;
        file.parent()
            .map_or_else(|| PathBuf::from("/"), Path::to_owned)
    };
    // coturn takes bytes for text as they are; what is not UTF-8 no client could send.
    Ok((String::from_utf8_lossy(&bytes).into_owned(), folder))
}

/// The database that coturn would use, if there is one.
fn database(
    arguments: &Arguments,
    text: &str,
    folder: &Path,
) -> anyhow::Result<Option<(PathBuf, Database)>> {
    if arguments.no_database {
        return Ok(None);
    }
    let settings = coturn::settings(text);
    let last = |names: &[&str]| {
        settings
            .iter()
            .rev()
            .find(|setting| names.contains(&setting.written) && !setting.value.is_empty())
    };
    let named = last(&["userdb", "db"]).map(|setting| folder.join(setting.value));
    let elsewhere = last(&[
        "psql-userdb",
        "sql-userdb",
        "mysql-userdb",
        "mongo-userdb",
        "redis-userdb",
    ]);
    let is_installed = INSTALLED
        .iter()
        .any(|file| arguments.file == Path::new(file));
    let usual = (is_installed && elsewhere.is_none())
        .then(|| {
            DATABASES
                .iter()
                .map(PathBuf::from)
                .find(|path| path.exists())
        })
        .flatten();
    let Some(path) = arguments.database.clone().or(named).or(usual) else {
        return Ok(None);
    };
    let database = turndb::read(&path).with_context(|| {
        format!(
            "{}: coturn's database cannot be read (--database names another, --no-database leaves it out)",
            path.display()
        )
    })?;
    Ok(Some((path, database)))
}

fn write_to(output: &Path, force: bool, toml: &Secret<String>) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).mode(OUTPUT_MODE);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let written = options
        .open(output)
        .and_then(|mut file| file.write_all(toml.expose().as_bytes()));
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
            "{} is there already; name another file, or replace it with --force",
            output.display()
        ),
        other => other.with_context(|| format!("{} cannot be written", output.display())),
    }
}

/// What a server configured so would refuse.
fn problems(import: &Import, output: Option<&Path>) -> Option<Problems> {
    let sources = Sources {
        file: output.map(Path::to_owned),
        base: output.is_none().then(|| import.toml.expose().clone()),
        ..Sources::default()
    };
    Config::load(&sources).err()
}

fn count(findings: &[Finding], outcome: Outcome) -> usize {
    let alike = |finding: &&Finding| finding.outcome == outcome;
    findings.iter().filter(alike).count()
}

/// One line for each finding, a summary, and what is left to do.
fn report(arguments: &Arguments, import: &Import, problems: Option<&Problems>) -> String {
    let mut text = String::new();
    for finding in &import.findings {
        let mut line = format!(
            "{}: {}: {}",
            finding.place,
            finding.option,
            finding.outcome.word()
        );
        if !finding.keys.is_empty() {
            let by = match finding.outcome {
                Outcome::Mapped => "to",
                _ => "by",
            };
            let _ = write!(line, " {by} {}", finding.keys.join(", "));
        }
        if !finding.reason.is_empty() {
            let _ = write!(line, ": {}", finding.reason);
        }
        let _ = writeln!(text, "{}", Printable(line));
    }
    let counts = Outcome::ALL
        .map(|outcome| format!("{} {}", count(&import.findings, outcome), outcome.word()));
    let _ = writeln!(text, "{}", counts.join(", "));
    for problem in problems.into_iter().flat_map(Problems::iter) {
        let (key, found, remedy) = (&problem.key, &problem.found, &problem.remedy);
        let _ = writeln!(
            text,
            "error: {}",
            Printable(format_args!("{key}: {found}; {remedy}"))
        );
    }
    let file = match &arguments.output {
        Some(output) => output.display().to_string(),
        None => "FILE".to_owned(),
    };
    let next = if problems.is_some() {
        "turnix could not be configured so; put the errors right, then"
    } else {
        "next"
    };
    let _ = writeln!(text, "{next}: turnix check -c {}", Printable(file));
    text
}

fn as_json(arguments: &Arguments, import: &Import, problems: Option<&Problems>) -> String {
    let findings: Vec<_> = import
        .findings
        .iter()
        .map(|finding| {
            json!({
                "place": finding.place.to_string(),
                "line": match finding.place { Place::Line(number) => Some(number), _ => None },
                "option": finding.option,
                "outcome": finding.outcome.word(),
                "keys": finding.keys,
                "reason": finding.reason,
            })
        })
        .collect();
    let counts: serde_json::Map<_, _> = Outcome::ALL
        .iter()
        .map(|outcome| {
            (
                outcome.word().to_owned(),
                count(&import.findings, *outcome).into(),
            )
        })
        .collect();
    let problems: Vec<_> = problems
        .into_iter()
        .flat_map(Problems::iter)
        .map(|problem| json!({ "key": problem.key, "found": problem.found, "remedy": problem.remedy }))
        .collect();
    let toml = arguments.output.is_none().then(|| import.toml.expose());
    let object =
        json!({ "toml": toml, "findings": findings, "counts": counts, "problems": problems });
    printable::json(&format!("{object:#}")).into_owned() + "\n"
}
