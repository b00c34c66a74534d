//! Associations between real SCTP sockets.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use dataplane_common::Protocol;
use dataplane_tests::{
    agent::AgentOptions,
    cluster::{Cluster, Site},
    expect::{self, AT_ONCE},
    objects::{Endpoint, Service},
    scenario::Failures,
    topology::{IpVersion, Topology, Wiring},
    traffic::{Answer, Ask, protocol::Transport},
};

/// Ports stay, since the checksum covers them: they are the same on service, nodes and pods. This one is served by `web-a` alone.
const NEAR: u16 = 30_091;
/// Served by `web-b` alone.
const FAR: u16 = 30_092;
/// Served by nobody.
const EMPTY: u16 = 30_093;

/// Of a message: the smallest, and one that takes several packets.
const SIZES: [usize; 2] = [0, 20_000];

struct Bed {
    cluster: Cluster,
    near: Service,
    far: Service,
    empty: Service,
}

impl Bed {
    fn new(wiring: Wiring, arguments: &[&str]) -> Result<Self> {
        let service = |name, number, port| Service::new(name, number).one(Protocol::Sctp, port, port, Some(port));
        let mut bed = Self {
            cluster: Cluster::new(Topology::two_nodes(wiring, &["client", "web-a"], &["web-b"]))?,
            near: service("near", 11, NEAR),
            far: service("far", 12, FAR),
            empty: service("empty", 13, EMPTY),
        };
        let cluster = &bed.cluster;
        cluster.pod("web-a").serve_only(Protocol::Sctp, NEAR)?;
        cluster.pod("web-b").serve_only(Protocol::Sctp, FAR)?;
        cluster.put_nodes()?;
        cluster.put_service(&bed.near, &Endpoint::pods(cluster, &["web-a"]))?;
        cluster.put_service(&bed.far, &Endpoint::pods(cluster, &["web-b"]))?;
        cluster.put_service(&bed.empty, &[])?;
        bed.cluster.start_agents(&AgentOptions::with(arguments))?;
        Ok(bed)
    }

    /// Who asks whom, who answers, and how the server sees the client where that matters.
    fn ways(&self, version: IpVersion) -> Vec<(&'static str, &Site, Ask, &'static str, Option<&Site>)> {
        let (client, web_a, outside) = (self.cluster.pod("client"), self.cluster.pod("web-a"), &self.cluster.external);
        let (a, b) = (self.cluster.node("a"), self.cluster.node("b"));
        let ask = |to| Ask::new(Transport::Sctp, to);
        let (near, far) = (ask(self.near.cluster_ip(version)), ask(self.far.cluster_ip(version)));
        vec![
            ("pod, ClusterIP, local backend", client, near.clone(), "web-a", Some(client)),
            ("pod, ClusterIP, remote backend", client, far.clone(), "web-b", Some(client)),
            ("pod, NodePort of the other node", client, ask(b.address(version, NEAR)), "web-a", None),
            ("pod, hairpin by ClusterIP", web_a, near.clone(), "web-a", None),
            ("host, ClusterIP, local backend", &a.host, near, "web-a", None),
            ("host, ClusterIP, remote backend", &a.host, far, "web-b", None),
            ("outside, NodePort, local backend", outside, ask(a.address(version, NEAR)), "web-a", Some(outside)),
            ("outside, NodePort, remote backend", outside, ask(a.address(version, FAR)), "web-b", Some(&a.host)),
        ]
    }

    /// Who asks where nobody answers.
    fn refusals(&self, version: IpVersion) -> [(&'static str, &Site, SocketAddr); 3] {
        let (client, outside, a) = (self.cluster.pod("client"), &self.cluster.external, self.cluster.node("a"));
        [
            ("pod, ClusterIP without endpoints", client, self.empty.cluster_ip(version)),
            ("host, ClusterIP without endpoints", &a.host, self.empty.cluster_ip(version)),
            ("outside, NodePort without endpoints", outside, a.address(version, EMPTY)),
        ]
    }
}

/// An association, its end, and others by the same client.
fn associate(client: &Site, ask: &Ask, server: &str, seen: Option<&Site>) -> Result<()> {
    for size in SIZES {
        let ask = ask.clone().payload(size);
        let answer = match seen {
            Some(site) => expect::answered_seeing(client, &ask, &[server], site.ip(IpVersion::of(ask.to.ip())))?,
            None => expect::answered(client, &ask, &[server])?,
        };
        let Answer { seen, local, .. } = answer;
        ensure!(seen.port() == local.port(), "the port {} is seen as {}", local.port(), seen.port());
    }
    let open = client.open(ask)?;
    expect::spread(client, ask, 3, &[server])?;
    let server_now = open.ping()??.server;
    ensure!(server_now == server, "{server_now} has taken over");
    Ok(())
}

/// Everything with one cluster: in an emulator, that its agents start takes longer than all the rest.
fn check(wiring: Wiring, arguments: &[&str]) -> Result<()> {
    let bed = Bed::new(wiring, arguments)?;
    let mut failures = Failures::default();
    for version in IpVersion::BOTH {
        for (what, client, ask, server, seen) in bed.ways(version) {
            failures.note(what, version, Transport::Sctp, associate(client, &ask, server, seen));
        }
        for (what, client, to) in bed.refusals(version) {
            let outcome = expect::refused(client, &Ask::new(Transport::Sctp, to), AT_ONCE);
            failures.note(what, version, Transport::Sctp, outcome);
        }
    }
    failures.none()
}

#[test]
fn p42_routed_pods_associate_and_without_endpoints_are_told_at_once() -> Result<()> {
    check(Wiring::Routed, &[])
}

#[test]
fn p42_bridged_pods_associate_by_way_of_the_hosts_stack_and_clsact_filters() -> Result<()> {
    check(Wiring::Bridge, &["--host-bypass=off", "--tc=clsact"])
}
