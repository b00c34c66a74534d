//! The command line: reads pinned maps, so that inspecting never needs a living agent.

pub mod completion;
pub mod failure;
pub mod filter;
pub mod output;
pub mod pins;
pub mod version;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use self::output::Output;

/// Kubernetes Services in eBPF: the agent of a node, and a look into what it does
///
/// Every command but `agent` reads what is pinned in the BPF file system and works without a running agent.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 120, propagate_version = false)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
struct Global {
    /// The BPF file system that the agent pins maps, programs and links in
    #[arg(long, global = true, env = "SLUICE_BPFFS", default_value = "/sys/fs/bpf", value_name = "DIR")]
    bpffs: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a completion script for a shell
    Completion(completion::Completion),
    /// Print the version of this program and of the map layouts it knows
    Version,
}

/// Parses the command line, runs the command and says how it went: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

impl Cli {
    fn run(self) -> anyhow::Result<ExitCode> {
        let Global { bpffs: _, output } = self.global;
        match self.command {
            Command::Completion(args) => completion::run(args)?,
            Command::Version => version::run(output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
