//! `cargo xtask build`: the one binary, `sluice`, with the BPF programs inside.

use std::{
    path::PathBuf,
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// With optimizations
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure()?;
    binaries(&["--package", "dataplane-agent", "--bin", "sluice"], arguments.release)?;
    println!(
        "{}",
        workspace::target().join(if arguments.release { "release" } else { "debug" }).join("sluice").display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Builds what `selection` names and returns the executables, in cargo's order. Cargo shows its progress on standard error.
pub(crate) fn binaries(selection: &[&str], release: bool) -> Result<Vec<PathBuf>> {
    let mut command = workspace::cargo();
    command.arg("build").args(selection).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    if release {
        command.arg("--release");
    }
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the build failed; cargo's messages are above")
    }
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
    let executable = |message: serde_json::Value| message["executable"].as_str().map(PathBuf::from);
    Ok(messages.filter_map(Result::ok).filter_map(executable).collect())
}
