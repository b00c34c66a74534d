//! `cargo xtask demo`: a small cluster of namespaces with the real agent on every node, and real traffic through it.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, anyhow};

use crate::{build, privilege, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed on to the demo: `--json`, `--keep`; `--help` shows all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = of_the_bed("sluice-demo", "laying out network namespaces and loading BPF programs")?;
    command.args(&arguments.arguments);
    Err(replace_by(command))
}

/// The command that runs a program of the test bed as root, built together with the `sluice` that it starts.
pub(crate) fn of_the_bed(program: &str, why: &str) -> Result<Command> {
    built(program, why, false)
}

/// The same with optimizations, for what measures user space too.
pub(crate) fn of_the_bed_optimized(program: &str, why: &str) -> Result<Command> {
    built(program, why, true)
}

fn built(program: &str, why: &str, release: bool) -> Result<Command> {
    setup::ensure()?;
    let selection = ["--package", "dataplane-agent", "--bin", "sluice", "--package", "dataplane-tests", "--bins"];
    let built = build::binaries(&selection, release)?;
    let find = |name: &str| -> Result<&PathBuf> {
        let path = built.iter().find(|path| path.file_name().is_some_and(|file| file == name));
        path.with_context(|| format!("cargo built no program `{name}`"))
    };
    // Through env(1), since sudo may drop variables; without CARGO, so that nothing builds as root.
    let mut command = privilege::as_root("env", why)?;
    command.args(["-u", "CARGO"]).arg(format!("SLUICE_BIN={}", find("sluice")?.display())).arg(find(program)?);
    Ok(command)
}

/// Becomes `command`, so that Ctrl-C and the exit code are its own. Returns only when it does not start.
pub(crate) fn replace_by(mut command: Command) -> anyhow::Error {
    let error = command.exec();
    anyhow!(error).context(format!("cannot run {}", command.get_program().to_string_lossy()))
}
