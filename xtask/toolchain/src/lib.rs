//! Finds the compiler and the linker that the BPF programs need, and builds the programs with them.
//!
//! The BPF target is tier 3: `core` is built from source with an unstable flag. So this takes a compiler that has its library
//! source beside it, whatever its channel, and sets `RUSTC_BOOTSTRAP` in the child process alone; the user's own toolchain and
//! environment stay as they are. `cargo xtask setup` installs what this crate does not find, `dataplane-agent/build.rs`
//! builds with what it finds.

mod child;
mod compiler;
mod linker;
mod object;
#[cfg(test)]
mod script;

pub use child::clean;
pub use compiler::{Compiler, MIN_RUST, NoCompiler, at_least, compiler};
pub use linker::{LINKER_VERSION, Linker, NoLinker, linker};
pub use object::{BuildError, OBJECT, build};

use std::{env, ffi::OsString, path::PathBuf};

/// Where to look; all of it comes from the environment, so that tests can say something else.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// `$BPF_RUSTC`: the one compiler to use.
    pub rustc: Option<PathBuf>,
    /// `$BPF_LINKER`: the one linker to use.
    pub linker: Option<PathBuf>,
    /// `$RUSTUP_HOME`, or `~/.rustup`.
    pub rustup_home: Option<PathBuf>,
    /// `$CARGO_HOME`, or `~/.cargo`.
    pub cargo_home: Option<PathBuf>,
    /// Folders of `$PATH`.
    pub path: Vec<PathBuf>,
    /// Where distributions put compilers, whatever `$PATH` says.
    pub distribution: Vec<PathBuf>,
}

impl Search {
    /// What this process' environment says.
    #[must_use]
    pub fn from_env() -> Self {
        let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let home = var("HOME").map(PathBuf::from);
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let path: OsString = var("PATH").unwrap_or_default();
        Self {
            rustc: var("BPF_RUSTC").map(PathBuf::from),
            linker: var("BPF_LINKER").map(PathBuf::from),
            rustup_home: var("RUSTUP_HOME").map(PathBuf::from).or_else(|| in_home(".rustup")),
            cargo_home: var("CARGO_HOME").map(PathBuf::from).or_else(|| in_home(".cargo")),
            path: env::split_paths(&path).collect(),
            distribution: vec![PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")],
        }
    }
}

/// The variables that change what [`Search::from_env`] says.
pub const VARIABLES: &[&str] = &["BPF_RUSTC", "BPF_LINKER", "RUSTUP_HOME", "CARGO_HOME"];
