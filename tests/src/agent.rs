//! The real `sluice agent`, one per node.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dataplane_agent::{datapath::xdp::Running, sync::Status};
use nix::sys::signal::Signal;

use crate::{binaries, cluster::Node, mode::Mode, pace, process::Process};

/// How long an agent may take until it is ready: in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// How agents are started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Where objects come from; the cluster's manifests when there is none.
    pub kubeconfig: Option<PathBuf>,
    /// More options on the command line.
    pub arguments: Vec<String>,
}

impl AgentOptions {
    /// The usual options and `arguments`.
    pub fn with(arguments: &[&str]) -> Self {
        Self { kubeconfig: None, arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() }
    }
}

/// A running agent; killed on drop.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    /// Everything it has said since the cluster was built.
    pub log: PathBuf,
    /// Written by the agent at each change of its state.
    pub status: PathBuf,
}

impl Agent {
    /// Starts the agent of `node` and waits until it is ready.
    pub fn start(node: &Node, options: &AgentOptions, manifests: &Path) -> Result<Self> {
        let mut agent = Self::begin(node, options, manifests)?;
        agent.wait_until_ready().with_context(|| format!("the agent of node {}", node.name()))?;
        let added: Vec<_> = Mode::current()?.arguments(&options.arguments).collect();
        if added.contains(&Mode::NATIVE_XDP) {
            // A mode that is the default one in truth would show nothing.
            let pin = node.xdp_pin(Running::Native)?;
            ensure!(pin.exists(), "node {} does not run XDP: {}", node.name(), pin.display());
        }
        Ok(agent)
    }

    /// Starts the agent of `node` and waits for nothing.
    pub fn begin(node: &Node, options: &AgentOptions, manifests: &Path) -> Result<Self> {
        let directory = node.bpffs.path().parent().context("a node has a directory")?;
        let (log, status) = (directory.join("agent.log"), directory.join("status.json"));
        // What an earlier agent wrote says nothing about this one.
        fs::remove_file(&status).ok();
        let mut command = Command::new(binaries::sluice()?);
        command.arg("agent").arg("--node-name").arg(node.name());
        command.arg("--bpffs").arg(node.bpffs.path());
        command.arg("--cgroup-root").arg(node.host.cgroup().context("a node has a cgroup")?.path());
        command.arg("--status-file").arg(&status);
        match &options.kubeconfig {
            Some(kubeconfig) => command.args(["--source", "kube", "--kubeconfig"]).arg(kubeconfig),
            None => command.args(["--source", "file", "--file-source"]).arg(manifests),
        };
        command.args(Mode::current()?.arguments(&options.arguments)).args(&options.arguments);
        let output = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = Process::spawn(command, node.host.netns(), node.host.cgroup())?;
        Ok(Self { process, log, status })
    }

    /// Ends the agent as an orderly shutdown does, and waits for it.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(pace::allow(PATIENCE))?.context("the agent goes on after SIGTERM")?;
        ensure!(Process::ended_well(status, Signal::SIGTERM), "the agent ended with {status}");
        Ok(())
    }

    /// Ends the agent as a crash does.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Fails when the process has ended.
    pub fn is_alive(&mut self) -> Result<()> {
        match self.process.wait(Duration::ZERO)? {
            Some(status) => bail!("the agent ended with {status}:\n{}", self.tail()),
            None => Ok(()),
        }
    }

    /// What the agent says of itself.
    pub fn read_status(&self) -> Result<Status> {
        let text = fs::read_to_string(&self.status).with_context(|| format!("no {}", self.status.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let (begun, limit) = (Instant::now(), pace::allow(PATIENCE));
        while begun.elapsed() < limit {
            self.is_alive()?;
            if fs::read_to_string(&self.status).is_ok_and(|text| is_ready(&text, self.id())) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("not ready after {limit:?}:\n{}", self.tail())
    }

    /// The end of the log.
    pub fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.tail());
        }
    }
}

/// Whether a status file says that the agent `id` has heard of everything and installed it.
fn is_ready(text: &str, id: u32) -> bool {
    // The file may be seen half written; it is read again.
    let Ok(status) = serde_json::from_str::<Status>(text) else { return false };
    status.pid == id && status.is_ready()
}
