//! A contender at work: a cluster of its own with all services, and processes that wait to make load.

use std::{
    fs::File,
    io::{BufWriter, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dataplane_common::Protocol;
use serde_json::Value;

use super::{
    catalogue::{Catalogue, POD_PORT, Position, STREAM_PORT},
    contenders::{Abilities, Contender, Kind, NATIVE_XDP},
    iptables,
    kube_proxy::{KubeProxy, Running},
    nftables,
    programs::{Link, Program, Side},
    worker::{Kind as Work, Task, Worker},
};
use crate::{
    agent::AgentOptions,
    cluster::{Carrying, Cluster, Node, Site},
    netns::Netns,
    process::Process,
    topology::{self, IpVersion, Topology, Wiring},
};

/// How long it may take until services are reached: kube-proxy takes minutes for many.
const PATIENCE: Duration = Duration::from_secs(600);

/// The way that requests take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// From a pod to a pod of the same node.
    SameNode,
    /// From a pod to a pod of the other node.
    CrossNode,
    /// From outside to a node, and from there to a pod of the other node.
    NodePort,
}

impl Route {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::CrossNode => "cross node",
            Self::NodePort => "outside to NodePort",
        }
    }
}

/// What of a contender has to stay alive.
#[derive(Debug)]
enum Carrier {
    /// Nothing, or what belongs to the cluster.
    Cluster,
    Programs(#[expect(dead_code, reason = "held, and detached on drop")] Vec<Link>),
    Xdp(Carrying),
    KubeProxy(#[expect(dead_code, reason = "held, and ended on drop")] Running),
}

/// A contender with its cluster. Its processes end before the cluster does.
#[derive(Debug)]
pub struct Installed {
    /// Who it is.
    pub contender: &'static Contender,
    /// How many services there are.
    pub services: u32,
    /// How long it took to install them, on both nodes.
    pub took: Duration,
    client: Worker,
    outside: Worker,
    near: Worker,
    far: Worker,
    streams: OnceLock<Vec<Process>>,
    catalogue: Catalogue,
    carrier: Carrier,
    /// Its cluster.
    pub cluster: Cluster,
}

impl Installed {
    /// Builds the cluster and installs `contender` with `services` services; `None` when this build of sluice cannot.
    ///
    /// With `kube_proxy` the rules of its modes come from there.
    pub fn new(
        contender: &'static Contender,
        services: u32,
        abilities: &Abilities,
        kube_proxy: Option<&KubeProxy>,
    ) -> Result<Option<Self>> {
        let options = match contender.kind {
            Kind::Sluice(wanted) => match abilities.options(wanted) {
                Some(options) => options,
                None => return Ok(None),
            },
            _ => Vec::new(),
        };
        let mut cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &["client", "near"], &["far"]))?;
        // Plain routing to pods from outside, through the node whose NodePorts are asked.
        let via = cluster.node("a").host.ip(IpVersion::V4);
        cluster.external.netns().ip(&format!("route add {} via {via}\n", topology::POD_CIDRS.0))?;
        let [near, far] = ["near", "far"].map(|pod| v4(cluster.pod(pod)));
        let catalogue = Catalogue::new(services, near, far);
        let begun = Instant::now();
        let carrier = install(contender.kind, &mut cluster, &catalogue, &options, kube_proxy)?;
        let start = |site: &Site| Worker::start(site);
        let mut installed = Self {
            contender,
            services,
            took: Duration::ZERO,
            client: start(cluster.pod("client"))?,
            outside: start(&cluster.external)?,
            near: start(cluster.pod("near"))?,
            far: start(cluster.pod("far"))?,
            streams: OnceLock::new(),
            catalogue,
            carrier,
            cluster,
        };
        installed.near.serve(POD_PORT)?;
        installed.far.serve(POD_PORT)?;
        installed.wait_until_reached()?;
        installed.took = begun.elapsed();
        Ok(Some(installed))
    }

    /// Waits until the service that was created last is reached, from a pod of the other node.
    ///
    /// Not from the client: its connections to another service of the same backend would leave ports behind whose next connection the
    /// backend takes for an old one, as long as it waits for the last segments of that (`TIME_WAIT`).
    fn wait_until_reached(&self) -> Result<()> {
        let begun = Instant::now();
        let to = self.target(Route::SameNode, Position::Last, Protocol::Tcp, 80)?;
        let task = Task { kind: Work::Connections, to, clients: 1, time: Duration::from_millis(1) };
        while let Err(error) = self.far.load(task) {
            ensure!(begun.elapsed() < PATIENCE, "not reached after {PATIENCE:?}: {error:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What makes its links carry frames that are no socket buffers, where it sends such.
    pub fn carrying(&self) -> Option<&Carrying> {
        match &self.carrier {
            Carrier::Xdp(carrying) => Some(carrying),
            _ => None,
        }
    }

    /// Whether it translates at all.
    pub fn is_direct(&self) -> bool {
        matches!(self.contender.kind, Kind::Direct | Kind::Empty)
    }

    /// Whom a client asks that takes `route` to the service at `position`.
    pub fn target(&self, route: Route, position: Position, protocol: Protocol, port: u16) -> Result<SocketAddr> {
        let near = route == Route::SameNode;
        let service = self.catalogue.probed(position, near).context("a probed service")?;
        let service_port =
            service.port(protocol, port).with_context(|| format!("{} has no port {port}", service.name))?;
        if self.is_direct() {
            let endpoint = service.endpoints.first().context("a probed service has an endpoint")?;
            return Ok((*endpoint, service_port.target).into());
        }
        Ok(match route {
            Route::SameNode | Route::CrossNode => (service.ip, port).into(),
            Route::NodePort => {
                let node_port = service_port.node_port.with_context(|| format!("{} has no NodePort", service.name))?;
                (v4(&self.cluster.node("a").host), node_port).into()
            }
        })
    }

    /// The process that asks on `route`.
    pub fn client(&self, route: Route) -> &Worker {
        if route == Route::NodePort { &self.outside } else { &self.client }
    }

    /// The place that asks on `route`.
    pub fn client_site(&self, route: Route) -> &Site {
        if route == Route::NodePort { &self.cluster.external } else { self.cluster.pod("client") }
    }

    /// The process that answers on `route`.
    pub fn server(&self, route: Route) -> &Worker {
        if route == Route::SameNode { &self.near } else { &self.far }
    }

    /// Starts the servers of TCP streams, once.
    pub fn serve_streams(&self) -> Result<()> {
        if self.streams.get().is_some() {
            return Ok(());
        }
        let start = |pod: &str| {
            let site = self.cluster.pod(pod);
            let mut command = Command::new("iperf3");
            command.args(["--server", "--version4", "--port", &STREAM_PORT.to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Process::spawn(command, site.netns(), site.cgroup())
        };
        let servers = [start("near")?, start("far")?];
        self.streams.set(servers.into()).ok();
        Ok(())
    }
}

/// The IPv4 address of a site.
pub fn v4(site: &Site) -> Ipv4Addr {
    match site.ip(IpVersion::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

fn install(
    kind: Kind,
    cluster: &mut Cluster,
    catalogue: &Catalogue,
    options: &[&str],
    kube_proxy: Option<&KubeProxy>,
) -> Result<Carrier> {
    match (kind, kube_proxy) {
        (Kind::Direct, _) => {}
        (Kind::Empty, _) => return attach_empty(cluster).map(Carrier::Programs),
        (Kind::Sluice(_), _) => {
            write_manifests(cluster, catalogue)?;
            cluster.start_agents(&AgentOptions::with(options))?;
            if options.contains(&NATIVE_XDP) {
                return cluster.carry_xdp().map(Carrier::Xdp);
            }
        }
        (Kind::Iptables(_) | Kind::Nftables, Some(kube_proxy)) => {
            return kube_proxy.start(kind, cluster, &objects(cluster, catalogue)).map(Carrier::KubeProxy);
        }
        (Kind::Iptables(backend), None) => {
            let rules = iptables::rules(catalogue)?;
            on_every_node(cluster, |node| feed(node.host.netns(), backend.program(), &["--noflush"], &rules))?;
        }
        (Kind::Nftables, None) => on_every_node(cluster, |node| {
            let rules = nftables::rules(catalogue, v4(&node.host))?;
            feed(node.host.netns(), "nft", &["--file", "-"], &rules)
        })?,
    }
    Ok(Carrier::Cluster)
}

fn on_every_node(cluster: &Cluster, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = cluster.nodes.iter().map(|node| scope.spawn(|| work(node))).collect();
        let mut ended =
            running.into_iter().map(|node| node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.try_for_each(|result| result)
    })
}

fn objects(cluster: &Cluster, catalogue: &Catalogue) -> Vec<Value> {
    catalogue.objects(|ip| {
        let node = cluster.nodes.iter().find(|node| node.pods.iter().any(|pod| v4(pod) == ip))?;
        Some(node.name().to_owned())
    })
}

/// Objects as JSON, which is read much faster than YAML.
fn write_manifests(cluster: &Cluster, catalogue: &Catalogue) -> Result<()> {
    cluster.put_nodes()?;
    let path = cluster.manifests.join("catalogue.json");
    let mut file = BufWriter::new(File::create(&path).with_context(|| format!("cannot write {}", path.display()))?);
    for object in objects(cluster, catalogue) {
        serde_json::to_writer(&mut file, &object)?;
        file.write_all(b"\n")?;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

/// Attaches programs that do nothing where sluice attaches its own: both sides of pods' interfaces and of uplinks.
fn attach_empty(cluster: &Cluster) -> Result<Vec<Link>> {
    let program = Program::empty()?;
    let mut links = Vec::new();
    for node in &cluster.nodes {
        let devices = node.pods.iter().map(|pod| format!("veth-{}", pod.name())).chain(["eth0".to_owned()]);
        for device in devices {
            for side in [Side::Ingress, Side::Egress] {
                links.push(program.attach(node.host.netns(), &device, side)?);
            }
        }
    }
    Ok(links)
}

/// Runs `program` inside `netns` with `input`.
fn feed(netns: &Netns, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let output = netns.run(|| -> Result<_> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        let mut stdin = child.stdin.take().context("a child has an input")?;
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        // What the program says about its end says more than a broken pipe.
        if output.status.success() {
            written.with_context(|| format!("{program} does not read its input"))?;
        }
        Ok(output)
    })??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} failed in {}: {}",
        netns.name(),
        said.lines().take(5).collect::<Vec<_>>().join("; ")
    );
    if said.contains("rror") {
        bail!("{program} in {}: {}", netns.name(), said.trim());
    }
    Ok(())
}
