//! `cargo xtask setup`: finds what building and testing needs, and installs what is missing.

pub(crate) mod apt;
mod linker;
mod rust;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};
use bpf_toolchain::{Compiler, Linker, MIN_RUST, Search};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only say what is there and what is missing
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.check {
        return Ok(check());
    }
    ensure()?;
    check();
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing; silent and fast when nothing is.
///
/// # Errors
/// When something can neither be found nor installed; the message says what to install by hand.
pub(crate) fn ensure() -> Result<()> {
    if let Err(old) = cargo_is_recent() {
        bail!("{old}")
    }
    let search = Search::from_env();
    let compiler = match bpf_toolchain::compiler(&search) {
        Ok(compiler) => compiler,
        Err(none) => rust::install(&search, &none)?,
    };
    if let Err(none) = bpf_toolchain::linker(&search, &compiler) {
        linker::install(&search, &compiler, &none)?;
    }
    install(TOOLS, "the test bed")
}

/// Installs what only benchmarks call.
///
/// # Errors
/// When it can neither be found nor installed.
pub(crate) fn ensure_for_benchmarks() -> Result<()> {
    install(BENCHMARK_TOOLS, "the benchmark")
}

fn install(tools: &[Tool], why: &str) -> Result<()> {
    let missing: Vec<&str> =
        tools.iter().filter(|tool| find(tool.program).is_none()).map(|tool| tool.package).collect();
    if missing.is_empty() { Ok(()) } else { apt::install(&missing, why) }
}

/// A program that running or testing calls.
struct Tool {
    program: &'static str,
    package: &'static str,
    needed: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", needed: "the test bed lays out its namespaces with it" },
    Tool { program: "iptables", package: "iptables", needed: "tests leave kube-proxy's rules behind with it" },
    Tool { program: "nft", package: "nftables", needed: "tests leave kube-proxy's tables behind with it" },
];

const BENCHMARK_TOOLS: &[Tool] =
    &[Tool { program: "iperf3", package: "iperf3", needed: "TCP streams are measured with it" }];

/// Prints one line per need; fails when one is not met.
fn check() -> ExitCode {
    let search = Search::from_env();
    let mut report = Report::default();
    report.line("cargo", cargo_is_recent());
    let compiler = bpf_toolchain::compiler(&search);
    let linker = match &compiler {
        Ok(compiler) => bpf_toolchain::linker(&search, compiler).map_err(|none| none.to_string()),
        Err(_) => Err("has to match the BPF compiler, which is missing".into()),
    };
    report.line("BPF compiler", compiler.as_ref().map(describe_compiler).map_err(ToString::to_string));
    report.line("BPF linker", linker.as_ref().map(describe_linker).map_err(Clone::clone));
    for tool in TOOLS {
        let found = find(tool.program).map(|path| path.display().to_string());
        report.line(tool.program, found.ok_or_else(|| format!("missing (package {}): {}", tool.package, tool.needed)));
    }
    if report.missing == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("`cargo xtask setup` installs what is missing");
    ExitCode::FAILURE
}

#[derive(Default)]
struct Report {
    missing: usize,
}

impl Report {
    fn line(&mut self, what: &str, found: Result<String, String>) {
        let (mark, text) = match found {
            Ok(text) => ("ok", text),
            Err(text) => {
                self.missing += 1;
                ("--", text)
            }
        };
        println!("{mark}  {what:<13} {text}");
    }
}

fn describe_compiler(compiler: &Compiler) -> String {
    format!("rustc {} with LLVM {} ({})", compiler.version, compiler.llvm, compiler.rustc.display())
}

fn describe_linker(linker: &Linker) -> String {
    format!("bpf-linker {} ({})", linker.version, linker.path.display())
}

/// Whether the cargo that runs this may build the workspace.
fn cargo_is_recent() -> Result<String, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let version = text.split_whitespace().nth(1).unwrap_or_default();
    let (major, minor) = MIN_RUST;
    if bpf_toolchain::at_least(version, MIN_RUST) {
        return Ok(format!("{text} ({})", Path::new(&cargo).display()));
    }
    Err(format!(
        "sluice needs Rust {major}.{minor} or newer, this is {}; `rustup update stable` gets it, or put a newer cargo first in $PATH",
        if text.is_empty() { "unknown" } else { &text }
    ))
}

/// A program in `$PATH` or where system tools lie, which a user's `$PATH` may leave out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| path.is_file())
}
