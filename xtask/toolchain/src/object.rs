//! Builds the BPF object from its crate.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use crate::{Compiler, Linker, clean};

/// The name of the binary in the crate, and so of the object.
pub const OBJECT: &str = "dataplane";

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Cargo did not start.
    #[error("cannot run {cargo}")]
    Start {
        /// The cargo beside the compiler.
        cargo: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Cargo said why on its standard error.
    #[error("building the BPF programs failed ({status})")]
    Failed {
        /// How cargo ended.
        status: ExitStatus,
    },
}

/// Builds the crate in `folder` and returns the path of the object.
///
/// The flags are in the crate's own `.cargo/config.toml`, where an editor and a hand-typed `cargo` find them too. `target` is not the
/// workspace's, whose lock the surrounding cargo holds.
///
/// # Errors
/// When cargo does not run or fails.
pub fn build(folder: &Path, target: &Path, compiler: &Compiler, linker: &Linker) -> Result<PathBuf, BuildError> {
    let status = clean(&compiler.cargo)
        .current_dir(folder)
        .args(["build", "--release", "--locked", "--bin", OBJECT, "--target-dir"])
        .arg(target)
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker.path)
        .status()
        .map_err(|source| BuildError::Start { cargo: compiler.cargo.clone(), source })?;
    if !status.success() {
        return Err(BuildError::Failed { status });
    }
    Ok(target.join("bpfel-unknown-none/release").join(OBJECT))
}
