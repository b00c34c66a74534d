//! Builds the BPF programs and leaves the object in `$OUT_DIR/dataplane`, from where the agent embeds it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bpf_toolchain::{OBJECT, Search};

/// An object built elsewhere, for editors and machines without the toolchain.
const PREBUILT: &str = "SLUICE_BPF_OBJECT";

fn main() {
    if let Err(error) = object() {
        // One line of a message per directive; `Err` from `main` would print a debug dump instead.
        for line in format!("{error:#}").lines() {
            println!("cargo::error={line}");
        }
    }
}

fn object() -> anyhow::Result<()> {
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let object = match env::var_os(PREBUILT).filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build(&out)?,
    };
    let copy = out.join(OBJECT);
    fs::copy(&object, &copy).with_context(|| format!("cannot copy {} to {}", object.display(), copy.display()))?;
    Ok(())
}

fn build(out: &Path) -> anyhow::Result<PathBuf> {
    for variable in bpf_toolchain::VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let agent = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    let root = agent.parent().context("the agent lies in the workspace")?;
    let programs = root.join("dataplane-ebpf");
    for source in ["src", "Cargo.toml", "Cargo.lock", ".cargo/config.toml", "../common/src", "../common/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", programs.join(source).display());
    }
    let search = Search::from_env();
    let compiler = bpf_toolchain::compiler(&search).map_err(anyhow::Error::from);
    let found = compiler.and_then(|compiler| Ok((bpf_toolchain::linker(&search, &compiler)?, compiler)));
    let (linker, compiler) = match found {
        Ok(found) => found,
        Err(missing) => bail!("{missing}\n`cargo xtask setup` installs what is missing"),
    };
    Ok(bpf_toolchain::build(&programs, &shared_target(out), &compiler, &linker)?)
}

/// A folder beside the profiles' own, so that debug, release and clippy share one build of the programs.
fn shared_target(out: &Path) -> PathBuf {
    let target = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.unwrap_or(out).join("bpf")
}
