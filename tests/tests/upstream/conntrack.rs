//! Suite `Conntrack`: datagrams follow their endpoints, and segments out of any window break nothing.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use dataplane_common::TcpFlags;
use dataplane_tests::{
    cluster::{ROUTED_GATEWAY, Site},
    expect::{self, eventually},
    mode::Mode,
    objects::Service,
    packet::Packet,
    raw,
    scenario::POD_PORT,
    topology::IpVersion,
    traffic::{Ask, protocol::Transport},
};
use serde_json::json;

use crate::bed::{Bed, cluster_ips, node_port_service, shared};

/// A client that asks from the same port again and again, with a socket of its own each time: what a flow remembers of an
/// endpoint that is gone would swallow its questions.
struct Probe<'b> {
    client: &'b Site,
    to: Vec<SocketAddr>,
    port: u16,
}

impl<'b> Probe<'b> {
    fn new(client: &'b Site, to: impl IntoIterator<Item = SocketAddr>, service: &Service) -> Self {
        // The backends are those of other titles too: a port of one's own keeps the flows apart. None that a node may take for
        // SNAT (12288 to 28671): the answer to a socket of the node would be that of a client outside.
        let port = 28_700 + u16::from(service.addresses.v4.octets()[3]);
        Self { client, to: to.into_iter().collect(), port }
    }

    fn asks(&self) -> impl Iterator<Item = Ask> {
        // One for each address too: two nodes that translate the same port to the same backend cannot tell the flows apart.
        let ports = (self.port..).step_by(300);
        self.to.iter().zip(ports).map(|(&to, port)| Ask::new(Transport::Udp, to).from_port(port))
    }

    /// Expects that before long one of `servers` answers, and keeps answering.
    fn reaches(&self, servers: &[&str]) -> Result<()> {
        for ask in self.asks() {
            // Several in a row: one of them may have served before, too, beside another that is gone now.
            eventually(|| (0..10).try_for_each(|_| expect::answered(self.client, &ask, servers).map(drop)))?;
            for _ in 0..5 {
                expect::answered(self.client, &ask, servers)?;
            }
        }
        Ok(())
    }

    fn is_refused(&self) -> Result<()> {
        self.asks().try_for_each(|ask| eventually(|| expect::refusal(self.client, &ask)).map(drop))
    }
}

/// A server, a second one, the first one gone; then all gone and a new one, as a rolling restart has it.
fn cycle(bed: &Bed, service: &Service, probe: &Probe<'_>) -> Result<()> {
    for pods in [&["web-3"] as &[_], &["web-3", "web-4"], &["web-4"], &["web-1"], &[], &["web-3"]] {
        bed.put(service, pods)?;
        match pods {
            [] => probe.is_refused()?,
            _ => probe.reaches(pods)?,
        }
    }
    Ok(())
}

/// `should be able to preserve UDP traffic when server pod cycles for a NodePort service`
#[test]
fn p50_datagrams_to_a_node_port_follow_the_endpoints() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("udp-nodeport");
    let nodes = IpVersion::BOTH.iter().flat_map(|&version| bed.node_ports(version, port));
    let nodes: Vec<_> = nodes.collect();
    cycle(&bed, &service, &Probe::new(bed.0.pod("client-a"), nodes.clone(), &service))?;
    cycle(&bed, &service, &Probe::new(&bed.0.external, nodes, &service))
}

/// `should be able to preserve UDP traffic when server pod cycles for a ClusterIP service`
#[test]
fn p50_datagrams_to_a_cluster_ip_follow_the_endpoints() -> Result<()> {
    let bed = shared()?;
    let (service, _) = node_port_service("udp-clusterip");
    cycle(&bed, &service, &Probe::new(bed.0.pod("client-a"), cluster_ips(&service, 80), &service))
}

/// `should be able to preserve UDP traffic when server pod cycles for a ClusterIP service and client is hostNetwork`
#[test]
fn p50_datagrams_of_a_node_itself_follow_the_endpoints() -> Result<()> {
    let bed = shared()?;
    let (service, _) = node_port_service("udp-hostnetwork");
    cycle(&bed, &service, &Probe::new(bed.0.host("a"), cluster_ips(&service, 80), &service))
}

/// `should be able to preserve UDP traffic when initial unready endpoints get ready`
#[test]
fn p50_datagrams_reach_an_endpoint_that_becomes_ready_late() -> Result<()> {
    let bed = shared()?;
    let (service, _) = node_port_service("udp-unready");
    let probe = Probe::new(bed.0.pod("client-a"), cluster_ips(&service, 80), &service);
    bed.put(&service, &[])?;
    probe.is_refused()?;
    let unready = json!({ "conditions": { "ready": false, "serving": false, "terminating": false } });
    bed.0.put_service(&service, &[bed.endpoint("web-3").with(unready)])?;
    probe.is_refused()?;
    bed.put(&service, &["web-3"])?;
    probe.reaches(&["web-3"])
}

/// `should be able to cleanup conntrack entries when UDP service target port changes for a NodePort service`
#[test]
fn p50_datagrams_follow_a_target_port_that_changes() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("udp-target");
    let nodes: Vec<_> = IpVersion::BOTH.iter().flat_map(|&version| bed.node_ports(version, port)).collect();
    // Each port of the node is served under a name of its own.
    for (name, port) in [("first", 9_200), ("second", 9_201)] {
        for version in IpVersion::BOTH {
            let host = bed.0.host("b");
            host.traffic()?.serve(name, dataplane_common::Protocol::Udp, (host.ip(version), port).into())?;
        }
    }
    for client in [bed.0.pod("client-a"), &bed.0.external] {
        let probe = Probe::new(client, nodes.clone(), &service);
        for (name, port) in [("first", 9_200), ("second", 9_201)] {
            bed.0.put_service(&service.clone().target(port), &[bed.host_endpoint("b")])?;
            probe.reaches(&[name])?;
        }
    }
    Ok(())
}

/// `should drop INVALID conntrack entries`
///
/// A segment of the server that is out of every window must not reach the client from an address that it has never spoken
/// to: the client would reset the connection. Here it arrives from the service's address, and the client's own stack sees
/// that it is old.
#[test]
fn a_segment_out_of_window_resets_nothing() -> Result<()> {
    let bed = shared()?;
    let (service, _) = node_port_service("boom-server");
    bed.put(&service, &["web-4"])?;
    let (client, server) = (bed.0.pod("client-a"), bed.0.pod("web-4"));
    for version in IpVersion::BOTH {
        let ask = Ask::new(Transport::Tcp, service.cluster_ip(version));
        eventually(|| expect::answered(client, &ask, &["web-4"]))?;
        let connection = client.open(&ask)?;
        let before = resets(client)?;
        let from = (server.ip(version), POD_PORT).into();
        for flags in [TcpFlags::ACK, TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0), TcpFlags::FIN] {
            let flags = TcpFlags(flags.0 | TcpFlags::ACK.0);
            let segment = Packet::tcp(from, connection.answer().seen, flags).with_payload(b"boom");
            raw::send(server.netns(), "eth0", ROUTED_GATEWAY, &segment.frame()?)?;
        }
        for _ in 0..3 {
            connection.ping()?.context("the connection has ended")?;
        }
        let after = resets(client)?;
        ensure!(
            Mode::current()?.translates_pods_at_connect() || before == after,
            "{} resets were sent",
            after - before
        );
    }
    Ok(())
}

/// How many resets a pod's own stack has sent.
fn resets(site: &Site) -> Result<u64> {
    let text = site.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let position = names.split(' ').position(|name| name == "OutRsts").context("OutRsts")?;
    Ok(values.split(' ').nth(position).context("a value")?.parse()?)
}
