//! Builds `bpf-linker` against an LLVM that can read the compiler's bitcode, and installs that LLVM when there is none.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use bpf_toolchain::{Compiler, LINKER_VERSION, NoLinker, Search};

use super::{apt, find};
use crate::{progress, workspace};

/// The LLVM releases that this linker can be built against.
const LLVMS: [u32; 3] = [21, 22, 23];
/// The one to install when the compiler does not need a newer one.
const PREFERRED: u32 = 22;

/// Installs what makes [`bpf_toolchain::linker`] find one.
pub(super) fn install(search: &Search, compiler: &Compiler, none: &NoLinker) -> Result<()> {
    if search.linker.is_some() {
        bail!("$BPF_LINKER: {none}")
    }
    let (llvm, prefix) = match installed(compiler.llvm) {
        Some(found) => found,
        None => install_llvm(compiler)?,
    };
    if find("c++").is_none() && apt::available() {
        apt::install(&["g++"], "linking LLVM")?;
    }
    eprintln!("the BPF linker: building bpf-linker {LINKER_VERSION} against LLVM {llvm} (once, about a minute)");
    let mut command = workspace::cargo();
    command
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--no-default-features"])
        .arg(format!("--features=llvm-{llvm}"))
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        // Not into a folder that a workspace setting names, and kept apart from the workspace's own build.
        .env("CARGO_TARGET_DIR", workspace::target().join("bpf-linker"));
    progress::step("cargo install bpf-linker", command)?;
    if let Err(none) = bpf_toolchain::linker(search, compiler) {
        bail!("after the installation there is still {none}")
    }
    Ok(())
}

/// The oldest LLVM with its headers that reads the bitcode of LLVM `wanted`, and its prefix.
fn installed(wanted: u32) -> Option<(u32, PathBuf)> {
    LLVMS.into_iter().filter(|llvm| *llvm >= wanted).find_map(|llvm| {
        let packaged = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-config"));
        let config = find(&format!("llvm-config-{llvm}")).or_else(|| packaged.is_file().then_some(packaged))?;
        let output = Command::new(config).arg("--prefix").output().ok()?;
        let prefix = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        has_headers(&prefix).then_some((llvm, prefix))
    })
}

fn has_headers(prefix: &Path) -> bool {
    prefix.join("include/llvm-c/Core.h").exists() || prefix.join("include/llvm-c").exists()
}

fn install_llvm(compiler: &Compiler) -> Result<(u32, PathBuf)> {
    let llvm = PREFERRED.max(compiler.llvm);
    if !LLVMS.contains(&llvm) {
        bail!(
            "bpf-linker {LINKER_VERSION} knows no LLVM {llvm}, which {} uses: say with $BPF_RUSTC which older compiler to use",
            compiler.rustc.display()
        )
    }
    let package = format!("llvm-{llvm}-dev");
    if apt::known(&package)?.is_none() {
        bail!(
            "building bpf-linker needs LLVM {llvm} with its headers, and no package {package} is known here: install LLVM {llvm} \
             (https://apt.llvm.org has it for Debian and Ubuntu), or a released bpf-linker {LINKER_VERSION} anywhere in $PATH"
        )
    }
    apt::install(&[&package], "the BPF linker")?;
    installed(compiler.llvm).with_context(|| format!("{package} is installed, but its llvm-config is not to be found"))
}
