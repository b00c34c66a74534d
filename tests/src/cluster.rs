//! A cluster of network namespaces: nodes on a fabric, pods on nodes, and a client outside.

mod manifests;
mod site;
mod wiring;
mod xdp;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result};

pub use self::{
    site::{Role, Site},
    wiring::ROUTED_GATEWAY,
    xdp::Carrying,
};
use crate::{
    agent::{Agent, AgentOptions},
    bpffs::Bpffs,
    cgroup::Cgroup,
    leftovers,
    mode::Mode,
    netns::Netns,
    topology::{self, Addresses, Topology},
};

/// A running cluster; everything in it goes away on drop.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, in the order of their addresses.
    pub nodes: Vec<Node>,
    /// A client outside of the cluster.
    pub external: Site,
    /// The router of the network between the nodes.
    pub fabric: Netns,
    /// Manifests that the agents read, unless they have an API server.
    pub manifests: PathBuf,
    topology: Topology,
    /// In the mode whose agents run XDP, for all of the cluster's life.
    carrying: Option<Carrying>,
    // Last: it is removed after everything that lives in it.
    directory: Directory,
}

/// A node with its pods.
#[derive(Debug)]
pub struct Node {
    /// The running agent.
    pub agent: Option<Agent>,
    /// The pods on the node; before the host, whose cgroup holds theirs.
    pub pods: Vec<Site>,
    /// The node's own processes.
    pub host: Site,
    /// Where the agent pins.
    pub bpffs: Bpffs,
    /// The node's position, which its addresses come from.
    pub number: u8,
}

impl Cluster {
    /// Builds the cluster; agents are started separately.
    pub fn new(topology: Topology) -> Result<Self> {
        let prefix = leftovers::unique_prefix()?;
        let directory = Directory::create(&prefix)?;
        let manifests = directory.0.join("manifests");
        fs::create_dir(&manifests).with_context(|| format!("cannot create {}", manifests.display()))?;
        let fabric = wiring::fabric(&prefix)?;
        let external = Site::new(
            "external",
            Role::External,
            topology::EXTERNAL,
            Netns::create(&format!("{prefix}-external"))?,
            None,
        );
        wiring::attach(&fabric, external.netns(), "external", topology::EXTERNAL)?;
        let mut cluster = Self { nodes: Vec::new(), external, fabric, manifests, topology, carrying: None, directory };
        for (number, (name, pods)) in (0_u8..).zip(cluster.topology.nodes.clone()) {
            let node = cluster.build_node(&prefix, number, &name, &pods)?;
            cluster.nodes.push(node);
        }
        cluster.connect_nodes()?;
        if Mode::current()?.runs_xdp() {
            cluster.carrying = Some(cluster.carry_xdp()?);
        }
        Ok(cluster)
    }

    /// The topology it was built from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The directory of logs and other files.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// The node `name`.
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.unwrap_or_else(|| absent("node", name))
    }

    /// The node `name`, to start and stop its agent.
    #[track_caller]
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        let node = self.nodes.iter_mut().find(|node| node.host.name() == name);
        node.unwrap_or_else(|| absent("node", name))
    }

    /// The pod `name`, wherever it runs.
    #[track_caller]
    pub fn pod(&self, name: &str) -> &Site {
        let pod = self.nodes.iter().flat_map(|node| &node.pods).find(|pod| pod.name() == name);
        pod.unwrap_or_else(|| absent("pod", name))
    }

    /// The host processes of the node `name`.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Site {
        &self.node(name).host
    }

    /// The name of the node that the pod `name` runs on.
    #[track_caller]
    pub fn node_of(&self, pod: &str) -> &str {
        let node = self.nodes.iter().find(|node| node.pods.iter().any(|site| site.name() == pod));
        node.unwrap_or_else(|| absent("pod", pod)).name()
    }

    /// Serves TCP and UDP on `port`, both families, in each of the pods.
    pub fn serve(&self, pods: &[&str], port: u16) -> Result<()> {
        pods.iter().try_for_each(|pod| self.pod(pod).serve(port))
    }

    /// Starts the agent of every node, at once, and waits until all are ready.
    pub fn start_agents(&mut self, options: &AgentOptions) -> Result<()> {
        let manifests = self.manifests.clone();
        thread::scope(|scope| {
            let start = |node| scope.spawn(|| Node::start_agent(node, options, &manifests));
            let starts: Vec<_> = self.nodes.iter_mut().map(start).collect();
            starts
                .into_iter()
                .try_for_each(|start| start.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn build_node(&self, prefix: &str, number: u8, name: &str, pods: &[String]) -> Result<Node> {
        let cgroup = Cgroup::create(&format!("{prefix}-{name}"))?;
        let netns = Netns::create(&format!("{prefix}-{name}"))?;
        let bpffs = Bpffs::mount(&self.directory.0.join(name).join("bpf"))?;
        let host = Site::new(name, Role::Host, topology::node(number), netns, Some(cgroup));
        let mut node = Node { agent: None, host, pods: Vec::new(), bpffs, number };
        wiring::prepare_node(&self.fabric, &node, &self.topology)?;
        for pod in pods {
            self.add_pod(prefix, &mut node, pod)?;
        }
        Ok(node)
    }

    fn add_pod(&self, prefix: &str, node: &mut Node, name: &str) -> Result<()> {
        let number = u8::try_from(node.pods.len()).context("too many pods")?;
        let netns = Netns::create(&format!("{prefix}-{}-{name}", node.name()))?;
        // Below the node's, as a kubelet makes them: programs of the root cgroup see pods, too.
        let cgroup = node.host.cgroup().context("a node has a cgroup")?.child(name)?;
        let pod = Site::new(name, Role::Pod, topology::pod(node.number, number), netns, Some(cgroup));
        wiring::attach_pod(node, &pod, &self.topology)?;
        if self.carrying.is_some() {
            pod.compute_checksums()?;
        }
        node.pods.push(pod);
        Ok(())
    }

    /// Adds a pod to a running node, as a CNI plugin would.
    pub fn start_pod(&mut self, node: &str, name: &str) -> Result<()> {
        let position = self.nodes.iter().position(|other| other.name() == node);
        let mut node = self.nodes.remove(position.with_context(|| format!("no node {node}"))?);
        let prefix = self.fabric.name().trim_end_matches("-fabric").to_owned();
        let added = self.add_pod(&prefix, &mut node, name);
        self.nodes.insert(position.unwrap_or_default(), node);
        added
    }

    /// Routes to the pods of the other nodes, on each node and on the fabric.
    fn connect_nodes(&self) -> Result<()> {
        let mut to_all = String::new();
        for other in &self.nodes {
            let (v4, v6) = topology::pod_cidrs(other.number);
            let Addresses { v4: via4, v6: via6 } = other.host.addresses();
            let routes = format!("route add {v4} via {via4}\nroute add {v6} via {via6}\n");
            for node in self.nodes.iter().filter(|node| node.number != other.number) {
                node.host.netns().ip(&routes)?;
            }
            to_all.push_str(&routes);
        }
        self.fabric.ip(&to_all)
    }
}

impl Node {
    /// The node's name.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Where a NodePort answers on this node.
    pub fn address(&self, version: topology::IpVersion, port: u16) -> SocketAddr {
        (self.host.ip(version), port).into()
    }

    /// Starts the node's agent and waits until it is ready.
    pub fn start_agent(&mut self, options: &AgentOptions, manifests: &Path) -> Result<()> {
        self.agent = Some(Agent::start(self, options, manifests)?);
        Ok(())
    }
}

#[track_caller]
#[expect(clippy::panic, reason = "a name is written in the test itself: a wrong one is the test's mistake")]
fn absent(kind: &str, name: &str) -> ! {
    panic!("the cluster has no {kind} {name}")
}

/// A directory under [`leftovers::DIRECTORY`].
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create(prefix: &str) -> Result<Self> {
        let path = Path::new(leftovers::DIRECTORY).join(prefix);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        leftovers::remove_directory(&self.0);
    }
}
