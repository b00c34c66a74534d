//! More than a packet holds: streams over a narrow hop, fragmented datagrams, and streams of segments that the stack keeps
//! together, through every kind of frontend.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use dataplane_tests::{
    cluster::Site,
    expect,
    objects::{Endpoint, Service},
    scenario::{FAR, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

/// Makes the last hop to the pod narrow: the node forwards to it no more than 1300 bytes, and says so.
fn narrow(scenario: &Scenario, node: &str, pod: &str) -> Result<()> {
    let mut script = String::new();
    for version in IpVersion::BOTH {
        let (ip, bits) = (scenario.cluster.pod(pod).ip(version), if version == IpVersion::V4 { 32 } else { 128 });
        script.push_str(&format!("route replace {ip}/{bits} dev veth-{pod} mtu lock 1300\n"));
    }
    scenario.cluster.host(node).netns().ip(&script)
}

#[test]
fn p44_path_mtu_discovery_works_through_every_frontend() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    narrow(&scenario, "a", "web-a")?;
    narrow(&scenario, "b", "web-b")?;
    scenario.echo(&[Transport::Tcp], 1_000_000)
}

/// Makes the way from node `a` to the pod `web-b` narrower than any link that the client knows.
fn narrow_between_nodes(scenario: &Scenario) -> Result<()> {
    let cluster = &scenario.cluster;
    let mut script = String::new();
    for version in IpVersion::BOTH {
        let (pod, node) = (cluster.pod("web-b").ip(version), cluster.host("b").ip(version));
        let bits = if version == IpVersion::V4 { 32 } else { 128 };
        script.push_str(&format!("route add {pod}/{bits} via {node} mtu lock 1300\n"));
    }
    cluster.host("a").netns().ip(&script)
}

/// Expects that `client` reaches `web-b` with datagrams of several fragments: not at once, for what is too large is lost, and nobody
/// sends a datagram again by itself.
fn learns(client: &Site, to: SocketAddr) -> Result<()> {
    for transport in [Transport::Udp, Transport::UdpUnconnected] {
        let ask = Ask::new(transport, to).payload(4_000).patience(Duration::from_secs(1));
        expect::eventually(|| expect::answered(client, &ask, &["web-b"]))?;
    }
    Ok(())
}

#[test]
fn p44_p45_a_client_outside_learns_how_large_fragments_to_a_remote_backend_may_be() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    narrow_between_nodes(&scenario)?;
    for version in IpVersion::BOTH {
        learns(&scenario.cluster.external, scenario.cluster.node("a").address(version, FAR))?;
    }
    Ok(())
}

/// Senders that leave it to routers to cut never learn (RFC 791, 2.3); nor does a node have to be told about fragments.
#[test]
fn p45_datagrams_that_may_be_cut_are_cut_on_their_way() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    narrow_between_nodes(&scenario)?;
    let cluster = &scenario.cluster;
    let client = cluster.external.ip(IpVersion::V4);
    cluster.host("a").netns().ip(&format!("route add {client}/32 dev eth0 mtu lock 1300\n"))?;
    for site in [&cluster.external, cluster.pod("web-b")] {
        site.netns().sysctls(&["ipv4/ip_no_pmtu_disc=1"])?;
    }
    // Sockets made from now on leave it to routers.
    let (port, node_port) = (8081, 30_090);
    cluster.pod("web-b").serve(port)?;
    cluster
        .put_service(&Service::new("cut", 20).node_port(80, port, node_port), &Endpoint::pods(cluster, &["web-b"]))?;
    let to = cluster.node("a").address(IpVersion::V4, node_port);
    expect::eventually(|| expect::answered(&cluster.external, &Ask::new(Transport::Udp, to), &["web-b"]))?;
    for size in [1_400, 4_000, 9_001] {
        for transport in [Transport::Udp, Transport::UdpUnconnected, Transport::Tcp] {
            expect::answered(&cluster.external, &Ask::new(transport, to).payload(size), &["web-b"])?;
        }
    }
    Ok(())
}

/// Its packets are translated when they leave the node, so what is said about them has to come in there.
#[test]
fn p44_p45_a_process_of_the_node_learns_how_large_its_packets_may_be() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &["--socket-lb=off"])?;
    narrow_between_nodes(&scenario)?;
    let host = &scenario.cluster.node("a").host;
    for version in IpVersion::BOTH {
        let to = scenario.far.cluster_ip(version);
        expect::answered(host, &Ask::new(Transport::Tcp, to).payload(1_000_000), &["web-b"])?;
        learns(host, to)?;
    }
    Ok(())
}

#[test]
fn p45_datagrams_of_several_fragments_reach_every_frontend() -> Result<()> {
    for wiring in Wiring::BOTH {
        let scenario = Scenario::new(wiring, &[])?;
        for size in [1_473, 4_000, 9_001] {
            scenario.echo(&[Transport::Udp, Transport::UdpUnconnected], size)?;
        }
    }
    Ok(())
}

#[test]
fn p52_a_stream_of_twenty_megabytes_comes_back_byte_for_byte() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    scenario.echo(&[Transport::Tcp], 20_000_000)
}
