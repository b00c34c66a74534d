//! Uplinks that are VLAN interfaces (IEEE 802.1Q).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use dataplane_tests::{
    agent::AgentOptions,
    cluster::Site,
    expect,
    scenario::{FAR, Failures, NEAR, Scenario},
    topology::{self, IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

/// What clients outside reach the nodes by; the nodes' untagged network goes on beside it.
const DEVICE: &str = "eth0.7";

/// By what nodes reach each other's pods.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pods {
    /// The untagged network.
    BesideTheVlan,
    /// The VLAN, too.
    InTheVlan,
}

/// The address in the VLAN of who has `ip` beside it.
fn in_vlan(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::new(172, 27, 0, ip.octets()[3]).into(),
        IpAddr::V6(ip) => Ipv6Addr::new(0xfd27, 0, 0, 0, 0, 0, 0, ip.segments()[7]).into(),
    }
}

/// Puts `site` into the VLAN.
fn join(site: &Site) -> Result<()> {
    let (v4, v6) = (in_vlan(site.ip(IpVersion::V4)), in_vlan(site.ip(IpVersion::V6)));
    site.netns().ip(&format!(
        "link add link eth0 name {DEVICE} type vlan id 7
         link set {DEVICE} up
         addr add {v4}/24 dev {DEVICE}
         addr add {v6}/64 dev {DEVICE} nodad
        "
    ))
}

/// The cluster in the VLAN, whose interfaces are the nodes' ways to everywhere.
fn scenario(pods: Pods, arguments: &[&str]) -> Result<Scenario> {
    let mut scenario = Scenario::bare(Wiring::Routed)?;
    let cluster = &scenario.cluster;
    join(&cluster.external)?;
    let (router4, router6) = (in_vlan(topology::ROUTER.v4.into()), in_vlan(topology::ROUTER.v6.into()));
    for node in &cluster.nodes {
        join(&node.host)?;
        let mut script = format!("route replace default via {router4}\nroute replace default via {router6}\n");
        for other in cluster.nodes.iter().filter(|other| pods == Pods::InTheVlan && other.number != node.number) {
            let (cidr4, cidr6) = topology::pod_cidrs(other.number);
            let via = |version| in_vlan(other.host.ip(version));
            script.push_str(&format!("route replace {cidr4} via {}\n", via(IpVersion::V4)));
            script.push_str(&format!("route replace {cidr6} via {}\n", via(IpVersion::V6)));
        }
        node.host.netns().ip(&script)?;
    }
    scenario.options = AgentOptions::with(arguments);
    scenario.write_services()?;
    scenario.start_agents()?;
    Ok(scenario)
}

fn check(pods: Pods, arguments: &[&str]) -> Result<()> {
    let scenario = scenario(pods, arguments)?;
    let (client, outside, a) = (scenario.client(), &scenario.cluster.external, &scenario.cluster.node("a").host);
    let mut failures = Failures::default();
    for version in IpVersion::BOTH {
        let (node, seen) = (in_vlan(a.ip(version)), in_vlan(outside.ip(version)));
        let masqueraded = if pods == Pods::InTheVlan { node } else { a.ip(version) };
        for (what, client, to, server, seen) in [
            ("outside, NodePort, local backend", outside, (node, NEAR).into(), "web-a", seen),
            ("outside, NodePort, remote backend", outside, (node, FAR).into(), "web-b", masqueraded),
            ("pod, ClusterIP, remote backend", client, scenario.far.cluster_ip(version), "web-b", client.ip(version)),
        ] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let ask = Ask::new(transport, to).payload(if transport == Transport::Tcp { 100_000 } else { 1_200 });
                let outcome = expect::answered_seeing(client, &ask, &[server], seen);
                failures.note(what, version, transport, outcome);
            }
        }
    }
    failures.none()
}

#[test]
fn p34_node_ports_are_reached_over_a_vlan() -> Result<()> {
    check(Pods::BesideTheVlan, &[])
}

#[test]
fn p34_node_ports_are_reached_and_served_over_a_vlan() -> Result<()> {
    check(Pods::InTheVlan, &[])
}

#[test]
fn p34_a_vlan_may_be_the_only_uplink() -> Result<()> {
    check(Pods::InTheVlan, &["--uplinks=eth0.7"])
}
