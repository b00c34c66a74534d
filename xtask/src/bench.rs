//! `cargo xtask bench`: how fast sluice is, beside iptables and nftables mode and plain routing.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;

use crate::{demo, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed on to the benchmark: `--quick`, `--full`, `--json FILE`, `control`, `packet`; `--help` shows all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let why = "laying out network namespaces and loading BPF programs";
    let mut command = demo::of_the_bed_optimized("sluice-bench", why)?;
    if !arguments.arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        setup::ensure_for_benchmarks()?;
    }
    command.arg("--docs").arg(workspace::root().join("docs/benchmarks")).args(&arguments.arguments);
    Err(demo::replace_by(command))
}
