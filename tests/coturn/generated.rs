//! What is made from the definition of the command line: completions and man pages.

use std::process::{Command, Output};

use clap::CommandFactory;
use turnix::cli::Cli;

use crate::tools::find_tool;

fn turnix(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_turnix"))
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every command that people see.
fn commands() -> Vec<String> {
    Cli::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect()
}

#[test]
fn every_shell_completes_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(turnix(&["completions", shell]));
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
        }
        if shell == "bash" || shell == "zsh" {
            let Some(program) = find_program(shell) else {
                continue;
            };
            let file = folder.path().join(shell);
            std::fs::write(&file, script).unwrap();
            let parsed = Command::new(program).arg("-n").arg(&file).output().unwrap();
            assert!(parsed.status.success(), "{shell}: {parsed:?}");
        }
    }
    // As bash asks for what begins with "imp".
    let script = folder.path().join("bash");
    let asks = format!(
        ". {}; COMP_WORDS=(turnix imp); COMP_CWORD=1; _turnix turnix imp turnix; echo \"${{COMPREPLY[*]}}\"",
        script.display()
    );
    let answer = Command::new("bash").args(["-c", &asks]).output().unwrap();
    assert_eq!(text(answer).trim(), "import");
    assert_eq!(turnix(&["completions", "tcsh"]).status.code(), Some(2));
}

/// A shell that is there; whoever has none of that name needs no completions for it.
fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[test]
fn every_command_has_a_man_page() {
    const TEST: &str = "every_command_has_a_man_page";
    let folder = tempfile::tempdir().unwrap();
    text(turnix(&["man", folder.path().to_str().unwrap()]));
    let own = std::fs::read_to_string(folder.path().join("turnix.1")).unwrap();
    assert_eq!(text(turnix(&["man"])), own);
    let mut pages = vec![(String::new(), own)];
    for command in commands() {
        let file = folder.path().join(format!("turnix-{command}.1"));
        pages.push((command, std::fs::read_to_string(file).unwrap()));
    }
    assert_eq!(
        pages.len(),
        std::fs::read_dir(folder.path()).unwrap().count()
    );
    let mut examples = 0;
    for (command, page) in &pages {
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "\"EXIT STATUS\""] {
            assert!(
                page.contains(&format!(".SH {section}\n")),
                "{command}: {section}\n{page}"
            );
        }
        assert!(
            !page.contains("/work") && !page.contains("turnix-man"),
            "{page}"
        );
        // What an example says, the command line takes.
        for line in page
            .lines()
            .filter_map(|line| line.strip_prefix("\\fBturnix"))
        {
            let Some(line) = line.strip_suffix("\\fR") else {
                continue;
            };
            if command.is_empty() && line.starts_with("\\-") {
                continue;
            }
            let line = line
                .replace("\\-", "-")
                .replace("\\*(Aq", "")
                .replace("\\(aq", "")
                .replace('\'', "");
            let line = line.split(" > ").next().unwrap();
            let words = std::iter::once("turnix").chain(line.split_whitespace());
            if let Err(error) = Cli::command().try_get_matches_from(words) {
                panic!("{line}: {error}");
            }
            examples += 1;
        }
    }
    assert!(examples >= 8, "{examples} examples are found");
    if let Some(lexgrog) = find_tool(TEST, "lexgrog") {
        for (command, page) in &pages {
            let name = match command.as_str() {
                "" => "turnix".to_owned(),
                command => format!("turnix-{command}"),
            };
            let file = folder.path().join(format!("{name}.1"));
            let output = Command::new(&lexgrog).arg(&file).output().unwrap();
            let said = text(output);
            assert!(said.contains(&format!("{name} - ")), "{said}{page}");
        }
    }
    if let Some(man) = find_tool(TEST, "man") {
        for file in ["turnix.1", "turnix-import.1"] {
            let output = Command::new(&man)
                .args(["--warnings=all", "-l"])
                .arg(folder.path().join(file))
                .env("MANWIDTH", "80")
                .env("LC_ALL", "C.UTF-8")
                .output()
                .unwrap();
            assert!(
                output.stderr.is_empty(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(text(output).contains("EXIT STATUS"));
        }
    }
}
