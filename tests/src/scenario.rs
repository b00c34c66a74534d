//! The cluster that most scenarios play in: one client, servers on both nodes, and services of every reach.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    agent::AgentOptions,
    cluster::{Cluster, Site},
    expect,
    objects::{Endpoint, Service},
    topology::{IpVersion, Topology, Wiring},
    traffic::{Ask, protocol::Transport},
};

/// The port that pods serve on.
pub const POD_PORT: u16 = 8080;
/// The port that the nodes' own processes serve on.
pub const HOST_PORT: u16 = 9090;

/// Long enough for many megabytes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes `a` (pods `client`, `web-a`) and `b` (pods `web-b`, `web-c`), all serving, with running agents and services.
#[derive(Debug)]
pub struct Scenario {
    /// The cluster.
    pub cluster: Cluster,
    /// How its agents were started.
    pub options: AgentOptions,
    /// Served by `web-a` alone; NodePort 30081.
    pub near: Service,
    /// Served by `web-b` alone; NodePort 30082.
    pub far: Service,
    /// Served by `web-a` and `web-b`; NodePort 30080.
    pub both: Service,
    /// Served by nobody; NodePort 30083.
    pub empty: Service,
    /// Served by a process of node `a` itself, as the API server is; NodePort 30084.
    pub host_near: Service,
    /// Served by a process of node `b` itself; NodePort 30085.
    pub host_far: Service,
}

/// NodePort of [`Scenario::both`].
pub const BOTH: u16 = 30080;
/// NodePort of [`Scenario::near`].
pub const NEAR: u16 = 30081;
/// NodePort of [`Scenario::far`].
pub const FAR: u16 = 30082;
/// NodePort of [`Scenario::empty`].
pub const EMPTY: u16 = 30083;
/// NodePort of [`Scenario::host_near`].
pub const HOST_NEAR: u16 = 30084;
/// NodePort of [`Scenario::host_far`].
pub const HOST_FAR: u16 = 30085;

impl Scenario {
    /// Builds the cluster, writes the services and starts the agents with `arguments`.
    pub fn new(wiring: Wiring, arguments: &[&str]) -> Result<Self> {
        Self::start(Self::topology(wiring), AgentOptions::with(arguments))
    }

    fn topology(wiring: Wiring) -> Topology {
        Topology::two_nodes(wiring, &["client", "web-a"], &["web-b", "web-c"])
    }

    fn start(topology: Topology, options: AgentOptions) -> Result<Self> {
        let mut scenario = Self::without_agents(topology, options)?;
        scenario.write_services()?;
        scenario.start_agents()?;
        Ok(scenario)
    }

    /// The cluster before any manifest is written and any agent runs.
    pub fn bare(wiring: Wiring) -> Result<Self> {
        Self::without_agents(Self::topology(wiring), AgentOptions::default())
    }

    fn without_agents(topology: Topology, options: AgentOptions) -> Result<Self> {
        let cluster = Cluster::new(topology)?;
        cluster.serve(&["web-a", "web-b", "web-c"], POD_PORT)?;
        for node in &cluster.nodes {
            node.host.serve(HOST_PORT)?;
        }
        let service = |name, number, node_port| Service::new(name, number).node_port(80, POD_PORT, node_port);
        Ok(Self {
            cluster,
            options,
            near: service("near", 11, NEAR),
            far: service("far", 12, FAR),
            both: service("both", 10, BOTH),
            empty: service("empty", 13, EMPTY),
            host_near: service("host-near", 14, HOST_NEAR).target(HOST_PORT),
            host_far: service("host-far", 15, HOST_FAR).target(HOST_PORT),
        })
    }

    /// Writes the nodes and the services to the folder of manifests.
    pub fn write_services(&self) -> Result<()> {
        let cluster = &self.cluster;
        cluster.put_nodes()?;
        for (service, endpoints) in self.services() {
            cluster.put_service(service, &endpoints)?;
        }
        Ok(())
    }

    /// The services with their endpoints.
    pub fn services(&self) -> Vec<(&Service, Vec<Endpoint>)> {
        let cluster = &self.cluster;
        let host = |name| vec![Endpoint::new(cluster.host(name), name)];
        vec![
            (&self.near, Endpoint::pods(cluster, &["web-a"])),
            (&self.far, Endpoint::pods(cluster, &["web-b"])),
            (&self.both, Endpoint::pods(cluster, &["web-a", "web-b"])),
            (&self.empty, Vec::new()),
            (&self.host_near, host("a")),
            (&self.host_far, host("b")),
        ]
    }

    /// Starts the agents with the scenario's options.
    pub fn start_agents(&mut self) -> Result<()> {
        self.cluster.start_agents(&self.options)
    }

    /// The pod that asks.
    pub fn client(&self) -> &Site {
        self.cluster.pod("client")
    }

    /// Every kind of client sends `size` bytes through every kind of frontend and gets the same ones back.
    pub fn echo(&self, transports: &[Transport], size: usize) -> Result<()> {
        let mut failures = Failures::default();
        for version in IpVersion::BOTH {
            for (what, client, to, server) in self.ways(version) {
                for transport in transports {
                    let ask = Ask::new(*transport, to).patience(PATIENCE).payload(size);
                    failures.note(what, version, *transport, expect::answered(client, &ask, &[server]));
                }
            }
        }
        failures.none()
    }

    /// Who asks whom, and who answers.
    fn ways(&self, version: IpVersion) -> [(&'static str, &Site, SocketAddr, &'static str); 5] {
        let (pod, outside, a) = (self.client(), &self.cluster.external, self.cluster.node("a"));
        [
            ("pod, ClusterIP, local backend", pod, self.near.cluster_ip(version), "web-a"),
            ("pod, ClusterIP, remote backend", pod, self.far.cluster_ip(version), "web-b"),
            ("host, ClusterIP, remote backend", &a.host, self.far.cluster_ip(version), "web-b"),
            ("outside, NodePort, local backend", outside, a.address(version, NEAR), "web-a"),
            ("outside, NodePort, remote backend", outside, a.address(version, FAR), "web-b"),
        ]
    }
}

/// Collects what went wrong, so that one run tells all of it.
#[derive(Debug, Default)]
pub struct Failures(Vec<String>);

impl Failures {
    /// Notes the outcome of `what`.
    pub fn note<T>(&mut self, what: &str, version: IpVersion, transport: Transport, outcome: Result<T>) {
        if let Err(error) = outcome {
            self.0.push(format!("{version} {transport}: {what}: {error:#}"));
        }
    }

    /// Fails when anything went wrong.
    pub fn none(self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} failures:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }
}
