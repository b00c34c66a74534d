//! The demo: builds a cluster, shows that its services carry traffic, and cleans up.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use dataplane_tests::{
    agent::AgentOptions,
    binaries,
    cluster::Cluster,
    demo::{Demo, Report},
    topology::Wiring,
};
use nix::sys::signal::{SigSet, Signal};

/// Two nodes, four pods and a client outside, in network namespaces, with the real agent on every node
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo", max_term_width = 120)]
struct Arguments {
    /// Print one JSON object with all checks, and nothing else
    #[arg(long)]
    json: bool,
    /// Leave the cluster running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// How pods are connected to their node
    #[arg(long, value_enum, default_value_t = WiringName::Routed)]
    wiring: WiringName,
    /// The folder that describes the cluster
    #[arg(long, value_name = "DIR", env = "SLUICE_EXAMPLES", default_value = EXAMPLES)]
    examples: PathBuf,
    /// Options for the agents, such as --socket-lb=off
    #[arg(last = true)]
    agent: Vec<String>,
}

/// The examples of the source tree that this was built from.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/examples");

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WiringName {
    /// A veth pair and a host route per pod
    Routed,
    /// A bridge with the pods' gateway address
    Bridge,
}

/// Set by the first Ctrl-C or SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match watch_signals().and_then(|()| run(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let wiring = match arguments.wiring {
        WiringName::Routed => Wiring::Routed,
        WiringName::Bridge => Wiring::Bridge,
    };
    let report = if arguments.json { Report::default() } else { Report::verbose() };
    let options = AgentOptions { kubeconfig: None, arguments: arguments.agent.clone() };
    let examples = arguments.examples.canonicalize().unwrap_or_else(|_| arguments.examples.clone());
    let mut demo = Demo::start(&examples, wiring, options, report, &STOP)?;
    demo.run()?;
    let mut out = io::stdout();
    if arguments.json {
        writeln!(out, "{}", demo.report.json()?)?;
    } else {
        writeln!(out, "{}", demo.report.tables()?)?;
        show_maps(&mut out, &demo.cluster)?;
        writeln!(out, "{} passed, {} failed", demo.report.passed(), demo.report.failed())?;
    }
    if arguments.keep {
        // With --json, standard output holds the object and nothing else.
        eprintln!("{}", look_around(&demo.cluster)?);
        while !STOP.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(if demo.report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has the first signal end the demo at the next step, so that everything is cleaned up, and the second one end it at once.
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

/// What the maps of the first node hold, in the words of `sluice`.
fn show_maps(out: &mut impl Write, cluster: &Cluster) -> Result<()> {
    let node = cluster.nodes.first().context("a cluster has nodes")?;
    for arguments in [["service", "list"], ["backend", "list"], ["map", "list"]] {
        writeln!(out, "On {}: sluice {}", node.name(), arguments.join(" "))?;
        let mut command = Command::new(binaries::sluice()?);
        command.arg("--bpffs").arg(node.bpffs.path()).args(arguments);
        let output = command.output().context("cannot run sluice")?;
        let text = if output.status.success() { output.stdout } else { output.stderr };
        writeln!(out, "{}", String::from_utf8_lossy(&text))?;
    }
    Ok(())
}

fn look_around(cluster: &Cluster) -> Result<String> {
    use std::fmt::Write as _;
    let mut text = String::from("\nThe cluster is left running. Look around from another terminal, as root:\n");
    let sluice = binaries::sluice()?;
    let sluice = sluice.canonicalize().unwrap_or(sluice);
    for node in &cluster.nodes {
        writeln!(text, "\n  node {}", node.name())?;
        writeln!(text, "    nsenter --net={}", node.host.netns().path().display())?;
        writeln!(text, "    {} --bpffs {} service list", sluice.display(), node.bpffs.path().display())?;
        for pod in &node.pods {
            writeln!(text, "    nsenter --net={}   # pod {}", pod.netns().path().display(), pod.name())?;
        }
    }
    let path = |path: &Path| path.display().to_string();
    writeln!(text, "\n  client outside\n    nsenter --net={}", path(cluster.external.netns().path()))?;
    writeln!(text, "\nThe agents follow the YAML in {}: change it.", path(&cluster.manifests))?;
    write!(text, "End it with Ctrl-C, or: kill {}", std::process::id())?;
    Ok(text)
}
