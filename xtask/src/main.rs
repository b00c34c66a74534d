//! `cargo xtask`: everything a developer types, from the first build to the last check.

mod bench;
mod build;
mod demo;
mod kernels;
mod parity;
mod privilege;
mod progress;
mod setup;
mod test;
mod tidy;
mod verify;
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
    /// Lay out a small cluster of namespaces and carry traffic through real agents
    #[command(disable_help_flag = true)]
    Demo(demo::Arguments),
    /// Measure sluice beside iptables and nftables mode, and beside no service at all
    #[command(disable_help_flag = true)]
    Bench(bench::Arguments),
    /// Run every check and every test; the last line counts them
    Test(test::Arguments),
    /// Run suites of real packets on other kernels, in an emulator
    Kernels(kernels::Arguments),
    /// Say which tests show each behaviour of docs/parity.md; fails when one has neither test nor reason
    Parity,
    /// Check the house rules that no lint can see
    Tidy,
    /// Load every program in every configuration, and compare its costs with docs/costs.json
    Verify(verify::Arguments),
}

fn main() -> ExitCode {
    // A reader that has seen enough (`| head`) ends this quietly; the standard library would panic.
    // SAFETY: no handler of ours runs; the default action ends the process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let result: Result<ExitCode> = match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Kernels(arguments) => kernels::run(&arguments),
        Command::Parity => parity::run(),
        Command::Tidy => tidy::run(),
        Command::Verify(arguments) => verify::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
