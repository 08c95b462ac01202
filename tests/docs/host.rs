//! A host that a page runs on: a network, processes and an `/etc` of its own, gone with the test.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::page::{Action, Block, matches};

/// No page takes longer, in seconds.
const BOUND_SECS: u32 = 240;

/// What stands before the page: names, `sudo` and `systemctl` as a page's reader has them.
const PRELUDE: &str = include_str!("prelude.sh");

/// Why namespaces cannot be had here; `None` if they can.
pub fn impossible() -> Option<String> {
    let tried = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "ip", "link"])
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Runs `blocks` of the page `name`, in their order and in one shell.
///
/// # Panics
/// Where a command fails, or prints other than the page shows.
pub fn run(name: &str, blocks: &[Block]) {
    let work = tempfile::tempdir().expect("a directory");
    let work = work.path();
    let (script, expected) = script(work, blocks);
    fs::write(work.join("script"), script).expect("the script");
    let status = Command::new("timeout")
        .args(["--kill-after=5", &BOUND_SECS.to_string()])
        .args(["unshare", "--net", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["bash", "script"])
        .env("WORK", work)
        .env("TURNIX", env!("CARGO_BIN_EXE_turnix"))
        .env("REPOSITORY", env!("CARGO_MANIFEST_DIR"))
        .current_dir(work)
        .stdin(Stdio::null())
        .stdout(fs::File::create(work.join("log")).expect("a log"))
        .stderr(fs::File::create(work.join("errors")).expect("a log"))
        .status()
        .expect("unshare");
    let read = |file: &str| fs::read_to_string(work.join(file)).unwrap_or_default();
    let background = || {
        let log = read("background");
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    };
    for (step, (line, command, shown)) in expected.iter().enumerate() {
        let printed = read(&format!("step.{step}"));
        let where_it_is = format!("{name}:{line}\n$ {}", command.trim_end());
        match read(&format!("status.{step}")).trim() {
            "0" => {}
            "" => panic!(
                "{where_it_is}\nnever ended ({status})\n{printed}{}{}",
                read("errors"),
                background()
            ),
            code => panic!(
                "{where_it_is}\nended with {code}\n{printed}\nin the background:\n{}",
                background()
            ),
        }
        if let Some(shown) = shown {
            assert!(
                matches(shown, &printed),
                "{where_it_is}\nprinted\n{printed}\nand the page shows\n{shown}"
            );
        }
    }
    assert!(status.success(), "{name}: {status}\n{}", read("errors"));
}

/// The page as a shell script, and its steps: line, command, what is shown of its output.
fn script(work: &Path, blocks: &[Block]) -> (String, Vec<(usize, String, Option<String>)>) {
    let mut script = String::from(PRELUDE);
    let mut steps = Vec::new();
    let mut step = |script: &mut String, line, command: &str, shown: Option<&String>| {
        let number = steps.len();
        let file = work.join(format!("command.{number}"));
        fs::write(&file, command).expect("a command");
        writeln!(script, "step {number}").expect("a string");
        steps.push((line, command.to_owned(), shown.cloned()));
    };
    for block in blocks {
        match &block.action {
            Action::Run(commands) => {
                for (command, shown) in commands {
                    step(&mut script, block.line, command, shown.as_ref());
                }
            }
            Action::Background(command) => {
                let file = work.join(format!("background.{}", block.line));
                fs::write(&file, command).expect("a command");
                let start = format!("in_background {}", block.line);
                step(&mut script, block.line, &start, None);
            }
            Action::Write { path, text } => {
                let file = work.join(format!("text.{}", block.line));
                fs::write(&file, text).expect("a text");
                let write = format!("write {} '{path}'", block.line);
                step(&mut script, block.line, &write, None);
            }
            Action::Skip { .. } | Action::Show { .. } => {}
        }
    }
    (script, steps)
}
