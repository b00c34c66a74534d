//! A node whose agent follows a large cluster, and what that costs it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::runtime::{self, Runtime};

use super::{installed::Installed, objects::Service};
use crate::{
    agent::{Agent, AgentOptions},
    apiserver::{Bind, TestServer},
    binaries,
    cluster::{Cluster, Node},
    http, netns, objects,
    topology::{Topology, Wiring},
};

/// The name of the API server's thread, whose time is counted.
const SERVER: &str = "apiserver";
/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the maps.
pub(super) const LOOK: Duration = Duration::from_micros(50);

/// The node and the API server that its agent follows.
pub(super) struct Bed {
    agent: Option<Agent>,
    /// The server; it runs on a thread of its own.
    pub(super) server: TestServer,
    cluster: Cluster,
    kubeconfig: PathBuf,
    _runtime: Runtime,
}

/// Processor time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Time {
    /// Of the agent, in the kernel too.
    pub(super) agent: Duration,
    /// Of the API server's thread.
    pub(super) server: Duration,
}

/// What the agent has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// Map operations.
    pub(super) operations: u64,
    /// System calls for them.
    pub(super) calls: u64,
}

impl Bed {
    /// A node and a server without services.
    pub(super) fn new() -> Result<Self> {
        let cluster = Cluster::new(Topology::new(Wiring::Routed, &[("a", &["pod"])]))?;
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(1).thread_name(SERVER).enable_all().build()?;
        let inside = cluster.host("a").netns().file()?;
        let bind = move || netns::run_in(&inside, || TcpListener::bind((Ipv4Addr::LOCALHOST, 6443)))?;
        let server = {
            let _entered = runtime.enter();
            TestServer::start_with(Bind::new(bind))?
        };
        for object in objects::nodes(&cluster) {
            server.apply(&object)?;
        }
        let kubeconfig = cluster.directory().join("kubeconfig");
        fs::write(&kubeconfig, server.kubeconfig())?;
        Ok(Self { agent: None, server, cluster, kubeconfig, _runtime: runtime })
    }

    /// The node.
    pub(super) fn node(&self) -> &Node {
        self.cluster.node("a")
    }

    /// Creates or replaces the service with all its slices.
    pub(super) fn apply(&self, service: &Service) -> Result<()> {
        self.server.apply(&service.object())?;
        service.slices().try_for_each(|slice| self.server.apply(&slice).map(drop))
    }

    /// Starts the agent and waits for nothing.
    pub(super) fn start(&mut self) -> Result<()> {
        let options = AgentOptions { kubeconfig: Some(self.kubeconfig.clone()), ..AgentOptions::default() };
        self.agent = Some(Agent::begin(self.node(), &options, &self.cluster.manifests)?);
        Ok(())
    }

    /// The agent's process.
    pub(super) fn agent_id(&self) -> Option<u32> {
        self.agent.as_ref().map(Agent::id)
    }

    /// Ends the agent in order.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.agent.take().map_or(Ok(()), Agent::stop)
    }

    /// Removes everything that the agent has left.
    pub(super) fn clean(&self) -> Result<()> {
        let (sluice, node) = (binaries::sluice()?, self.node());
        let sluice = sluice.to_str().context("a path that is no text")?;
        let bpffs = node.bpffs.path().to_str().context("a path that is no text")?;
        node.host.netns().output(sluice, &["cleanup", "--bpffs", bpffs]).map(drop)
    }

    /// Waits until the maps are there, and then until `done` says so; how long both took.
    pub(super) fn wait(
        &mut self,
        installed: &mut Option<Installed>,
        mut done: impl FnMut(&mut Installed) -> Result<bool>,
    ) -> Result<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if installed.is_none() {
                *installed = Installed::open(self.node().bpffs.path()).ok();
            }
            if let Some(installed) = installed
                && done(installed)?
            {
                return Ok(begun.elapsed());
            }
            self.agent.as_mut().context("no agent runs")?.is_alive()?;
            thread::sleep(LOOK);
        }
        anyhow::bail!("not within {PATIENCE:?}:\n{}", self.agent.as_ref().map(Agent::tail).unwrap_or_default())
    }

    /// The agent's resident memory, now and at most, in bytes.
    pub(super) fn memory(&self) -> Result<(u64, u64)> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        let path = format!("/proc/{}/status", agent.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let value = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok((value("VmRSS:")?, value("VmHWM:")?))
    }

    /// Processor time so far.
    pub(super) fn time(&self) -> Result<Time> {
        let cgroup = self.node().host.cgroup().context("a node has a cgroup")?.path().join("cpu.stat");
        let text = fs::read_to_string(&cgroup).with_context(|| format!("cannot read {}", cgroup.display()))?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec")?;
        Ok(Time { agent: Duration::from_micros(used.parse()?), server: server_time()? })
    }

    /// What the agent's metrics say.
    pub(super) fn counted(&self) -> Result<Counted> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10249));
        let answer = http::get(self.node().host.netns(), address, "/metrics")?;
        ensure!(answer.status == 200, "the metrics answer {}", answer.status);
        let value = |name: &str| -> Result<u64> {
            let line = answer.body.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.with_context(|| format!("no {name} among the metrics"))?.trim().parse()?)
        };
        Ok(Counted {
            operations: value("sluice_map_operations_total{result=\"done\"}")?,
            calls: value("sluice_map_calls_total")?,
        })
    }
}

impl Time {
    /// What was used since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self { agent: self.agent.saturating_sub(earlier.agent), server: self.server.saturating_sub(earlier.server) }
    }
}

/// Processor time of the threads named [`SERVER`].
fn server_time() -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task")?.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.trim() == SERVER {
            let text = fs::read_to_string(task.path().join("schedstat"))?;
            nanoseconds += text.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}
