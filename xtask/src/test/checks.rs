//! The checks before the tests: formatting, lints, documentation, and what only `tidy` sees.

use std::process::Command;

use anyhow::Result;
use bpf_toolchain::Search;

use super::tally::Tally;
use crate::{parity, progress, tidy, workspace};

/// Runs every check and counts each as one test, so that a failure shows in the last line too.
pub(super) fn run(tally: &mut Tally) {
    let mut check = |name: &str, result: Result<()>| match result {
        Ok(()) => tally.passed += 1,
        Err(error) => {
            eprintln!("error: {error:#}");
            tally.failed.push(format!("check: {name}"));
        }
    };
    check("tidy", tidy::check());
    check("parity", parity::check());
    if has("fmt") {
        check("format", progress::step("cargo fmt --check", cargo(&["fmt", "--all", "--check"])).map_err(fmt_hint));
        let programs = cargo(&["fmt", "--manifest-path", "dataplane-ebpf/Cargo.toml", "--check"]);
        check("format of the BPF programs", progress::step("cargo fmt --check (BPF programs)", programs));
    }
    if has("clippy") {
        let clippy = cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        check("lint", progress::step("cargo clippy", clippy));
    }
    if let Some(clippy) = bpf_clippy() {
        check("lint of the BPF programs", progress::step("cargo clippy (BPF programs)", clippy));
    }
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    // Links to private items resolve here, since those are documented too; nobody publishes these pages without them.
    doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    check("documentation", progress::step("cargo doc", doc));
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = workspace::cargo();
    command.args(arguments);
    command
}

fn fmt_hint(error: anyhow::Error) -> anyhow::Error {
    error.context("`cargo fmt --all` formats the files")
}

/// Whether this cargo has the command; distributions package some of them apart.
fn has(command: &str) -> bool {
    let there = cargo(&[command, "--version"]).output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("  cargo {command} is not installed with this toolchain: its check is left out");
    }
    there
}

/// Clippy for the BPF target, where the BPF compiler comes with one.
fn bpf_clippy() -> Option<Command> {
    let search = Search::from_env();
    let compiler = bpf_toolchain::compiler(&search).ok()?;
    let driver = compiler.cargo.with_file_name("cargo-clippy");
    if !driver.is_file() {
        return None;
    }
    let mut command = bpf_toolchain::clean(driver);
    command
        .current_dir(workspace::root().join("dataplane-ebpf"))
        .args(["clippy", "--release", "--target-dir"])
        .arg(workspace::target().join("bpf-clippy"))
        .args(["--", "-D", "warnings"])
        .env("CARGO", &compiler.cargo)
        .env("RUSTC_BOOTSTRAP", "1");
    Some(command)
}
