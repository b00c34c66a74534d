//! `cargo xtask`: everything a developer types, from the first build to the last check.

mod build;
mod privilege;
mod progress;
mod setup;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs and checks sluice.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building and testing needs
    Setup(setup::Arguments),
    /// Build `sluice` with the BPF programs inside
    Build(build::Arguments),
}

fn main() -> ExitCode {
    let result: Result<ExitCode> = match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
