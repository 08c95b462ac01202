//! The `turnix` command.

use std::process::ExitCode;

use clap::Parser;
use turnix::cli;

fn main() -> ExitCode {
    let exit = match cli::run(cli::Cli::parse()) {
        Ok(exit) => exit,
        Err(error) => cli::report(&error),
    };
    ExitCode::from(exit as u8)
}
