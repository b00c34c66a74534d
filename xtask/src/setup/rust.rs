//! Installs a Rust compiler with its library source: Debian's packages beside rustup's, or rustup's `rust-src`.

use std::process::Command;

use anyhow::{Result, bail};
use bpf_toolchain::{Compiler, MIN_RUST, NoCompiler, Search};

use super::{apt, find};
use crate::progress;

/// Installs what makes [`bpf_toolchain::compiler`] find one.
pub(super) fn install(search: &Search, none: &NoCompiler) -> Result<Compiler> {
    if search.rustc.is_some() {
        bail!("$BPF_RUSTC: {none}")
    }
    if debian_has_it()? {
        apt::install(&["rustc-web", "rust-web-src", "cargo-web"], "the BPF compiler")?;
    } else if find("rustup").is_some() {
        eprintln!("the BPF compiler: adding the library source to rustup's toolchain");
        let mut command = Command::new("rustup");
        command.args(["component", "add", "rust-src"]);
        progress::step("rustup component add rust-src", command)?;
    } else {
        let (major, minor) = MIN_RUST;
        bail!(
            "{none}\ninstall one by hand: Debian's packages rustc-web, rust-web-src and cargo-web ({major}.{minor} or newer), or \
             rustup and then `rustup component add rust-src`; or say which one to use with $BPF_RUSTC"
        )
    }
    match bpf_toolchain::compiler(search) {
        Ok(compiler) => Ok(compiler),
        Err(none) => bail!("after the installation there is still {none}"),
    }
}

/// Whether Debian's compiler for web browsers, which follows upstream closely, is recent enough here.
fn debian_has_it() -> Result<bool> {
    let recent = |version: String| bpf_toolchain::at_least(&version, MIN_RUST);
    if !apt::available() {
        return Ok(false);
    }
    if apt::known("rustc-web")?.is_some_and(recent) {
        return Ok(true);
    }
    // The lists may be as old as the system's image.
    apt::update()?;
    Ok(apt::known("rustc-web")?.is_some_and(recent))
}
