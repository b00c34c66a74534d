//! The benchmark as a program: what `cargo xtask bench` runs as root.

use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use dataplane_tests::bench::{Scale, Settings, control, loads, packet, rows, worker};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};

/// Measures sluice beside iptables and nftables mode, and beside no service at all
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", max_term_width = 120)]
struct Arguments {
    /// Every row, within five minutes
    #[arg(long, global = true)]
    quick: bool,
    /// Larger clusters, too
    #[arg(long, global = true, conflicts_with = "quick")]
    full: bool,
    /// Write the rows to FILE as JSON
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    /// Measure only rows whose id contains TEXT; may be repeated
    #[arg(long, value_name = "TEXT", global = true)]
    only: Vec<String>,
    /// Write a report with plots
    #[arg(long, global = true)]
    report: bool,
    /// The folder of reports
    #[arg(long, value_name = "DIR", global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks"))]
    docs: PathBuf,
    #[command(flatten)]
    loads: loads::Arguments,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Connections, requests, streams and packets over every contender
    Loads(loads::Arguments),
    /// What it costs the agent to follow a large cluster
    Control(control::Arguments),
    /// What one packet costs on each path
    Packet(packet::Arguments),
    /// Make or serve load as told on standard input
    #[command(hide = true)]
    Worker,
}

/// Set by the first Ctrl-C or SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.part, Some(Part::Worker)) {
        return exit(worker::run(io::stdin(), io::stdout()).map(|()| ExitCode::SUCCESS));
    }
    exit(watch_signals().and_then(|()| run(&arguments)))
}

fn exit(result: Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let begun = Instant::now();
    if let Some(text) = arguments.only.iter().find(|text| !rows::TARGETS.iter().any(|target| target.id.contains(*text)))
    {
        bail!(
            "no row's id contains {text}; there are {}",
            rows::TARGETS.iter().map(|target| target.id).collect::<Vec<_>>().join(", ")
        );
    }
    let scale = match (arguments.quick, arguments.full) {
        (true, _) => Scale::Quick,
        (_, true) => Scale::Full,
        _ => Scale::Usual,
    };
    let progress = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos}/{len} {wide_msg}")?);
    progress.enable_steady_tick(Duration::from_millis(500));
    let settings = Settings {
        scale,
        only: arguments.only.clone(),
        report: arguments.report.then(|| arguments.docs.clone()),
        progress,
        stop: &STOP,
    };
    let mut measured = match &arguments.part {
        Some(Part::Control(arguments)) => control::run(&settings, arguments)?,
        Some(Part::Packet(arguments)) => packet::run(&settings, arguments)?,
        Some(Part::Loads(arguments)) => loads::run(&settings, arguments)?,
        Some(Part::Worker) => Vec::new(),
        None => {
            let mut all = loads::run(&settings, &arguments.loads)?;
            all.extend(control::run(&settings, &control::Arguments::default())?);
            all.extend(packet::run(&settings, &packet::Arguments::default())?);
            all
        }
    };
    settings.progress.finish_and_clear();
    rows::sort(&mut measured);
    println!("{}", rows::table(&measured));
    println!("in {:.0} s", begun.elapsed().as_secs_f32());
    if let Some(path) = &arguments.json {
        rows::write(path, &measured)?;
    }
    // A missed target is a result, not an error.
    Ok(ExitCode::SUCCESS)
}

/// Has the first signal end the run at the next step, so that everything is cleaned up, and the second one end it at once.
fn watch_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    // Blocked here, before any other thread exists; children unblock them.
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        while signals.wait().is_ok() {
            if STOP.swap(true, Ordering::Relaxed) {
                // What is left behind is removed by the next run.
                std::process::exit(130);
            }
        }
    });
    Ok(())
}
