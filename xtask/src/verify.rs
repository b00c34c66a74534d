//! `cargo xtask verify`: every program in every configuration through the kernel's verifier, and what packets cost.

use std::process::ExitCode;

use anyhow::Result;

use crate::{demo, workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write the figures to docs/costs.json and docs/costs.md instead of comparing them
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = demo::of_the_bed("sluice-verify", "loading BPF programs")?;
    command.arg("--docs").arg(workspace::root().join("docs"));
    if arguments.write {
        command.arg("--write");
    }
    Err(demo::replace_by(command))
}
