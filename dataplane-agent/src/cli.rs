//! The command line: reads pinned maps, so that inspecting never needs a living agent.

pub mod agent;
pub mod backend;
pub mod check;
pub mod cleanup;
pub mod completion;
pub mod conntrack;
pub mod drops;
pub mod failure;
pub mod filter;
#[cfg(test)]
mod fixture;
pub mod flow;
pub mod interfaces;
pub mod map;
pub mod nat;
pub mod output;
pub mod pins;
pub mod programs;
pub mod read;
pub mod service;
pub mod status;
pub mod version;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

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
    /// Run this node's agent until SIGTERM; traffic goes on after it
    Agent(Box<agent::AgentArgs>),
    /// Show on one page what the datapath holds and where it is attached
    Status,
    /// Show services and their frontends
    #[command(subcommand)]
    Service(service::Service),
    /// Show backends
    #[command(subcommand)]
    Backend(backend::Backend),
    /// Show, count or forget flows
    #[command(subcommand)]
    Conntrack(conntrack::Conntrack),
    /// Show flows whose source is translated
    #[command(subcommand)]
    Nat(nat::Nat),
    /// Show why packets were dropped
    Drops(drops::Drops),
    /// Show which programs are attached to which interfaces and cgroups
    Interfaces(interfaces::Interfaces),
    /// Show the maps of the datapath
    #[command(subcommand)]
    Map(map::Map),
    /// Check whether this node is fit for sluice, and say what to do where it is not
    Check(check::Check),
    /// Detach every program of sluice and remove everything it pinned; does nothing the second time
    Cleanup(cleanup::Cleanup),
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
        let Global { bpffs, output } = self.global;
        match self.command {
            Command::Agent(args) => tokio::runtime::Runtime::new()?.block_on(agent::run(*args, &bpffs))?,
            Command::Status => status::run(&bpffs, output)?,
            Command::Service(command) => service::run(command, &bpffs, output)?,
            Command::Backend(command) => backend::run(&command, &bpffs, output)?,
            Command::Conntrack(command) => {
                if let conntrack::Conntrack::Flush(flush) = &command
                    && let Err(error) = flush.check()
                {
                    error.format(&mut Self::command()).exit();
                }
                conntrack::run(&command, &bpffs, output)?;
            }
            Command::Nat(command) => nat::run(&command, &bpffs, output)?,
            Command::Drops(args) => drops::run(args, &bpffs, output)?,
            Command::Interfaces(args) => interfaces::run(&args, &bpffs, output)?,
            Command::Map(command) => map::run(&command, &bpffs, output)?,
            Command::Check(args) if !check::run(&args, &bpffs, output)? => return Ok(ExitCode::FAILURE),
            Command::Check(_) => {}
            Command::Cleanup(args) => cleanup::run(args, &bpffs, output)?,
            Command::Completion(args) => completion::run(args)?,
            Command::Version => version::run(output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
