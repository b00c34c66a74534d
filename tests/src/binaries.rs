//! Where the binaries are that the bed runs.

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Context, Result, ensure};

/// The `sluice` binary: `$SLUICE_BIN`, or the one beside the running test, which cargo brings up to date first.
pub fn sluice() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    if let Some(path) = env::var_os("SLUICE_BIN") {
        return Ok(path.into());
    }
    let path = directory()?.join("sluice");
    // Cargo builds the binaries of this package for its tests, but not those of another one.
    if let Some(cargo) = env::var_os("CARGO") {
        let built = BUILT.get_or_init(|| build(&cargo.into()).map_err(|error| format!("{error:#}")));
        built.clone().map_err(anyhow::Error::msg)?;
    }
    ensure!(
        path.exists(),
        "{} is missing: build it with `cargo build -p dataplane-agent`, or set SLUICE_BIN",
        path.display()
    );
    Ok(path)
}

/// A binary of this package.
pub fn own(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    ensure!(path.exists(), "{} is missing: build it with `cargo build -p dataplane-tests --bins`", path.display());
    Ok(path)
}

/// `target/<profile>`: the directory of the running binary, or its parent for a test in `deps`.
fn directory() -> Result<PathBuf> {
    let running = env::current_exe().context("cannot find the running binary")?;
    let directory = running.parent().context("a binary has a directory")?;
    let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.to_owned())
}

fn build(cargo: &PathBuf) -> Result<()> {
    let mut command = Command::new(cargo);
    // Together with this package, so that shared dependencies keep the features that they have been built with.
    command.args([
        "build",
        "--quiet",
        "--package",
        "dataplane-tests",
        "--package",
        "dataplane-agent",
        "--bin",
        "sluice",
    ]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    if directory()?.ends_with("release") {
        command.arg("--release");
    }
    // What cargo tells the tests of one package would look like a changed environment to build scripts.
    for (key, _) in env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(key);
    }
    ensure!(command.status().context("cannot run cargo")?.success(), "cannot build sluice");
    Ok(())
}
