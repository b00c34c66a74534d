//! More than a packet holds: streams over a narrow hop, fragmented datagrams, and streams of segments that the stack keeps
//! together, through every kind of frontend.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use dataplane_tests::{
    cluster::Site,
    expect,
    scenario::{FAR, Failures, NEAR, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

/// Long enough for many megabytes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who asks whom, and who answers.
fn rows(scenario: &Scenario, version: IpVersion) -> Vec<(&'static str, &Site, SocketAddr, &'static str)> {
    let (pod, outside, a) = (scenario.client(), &scenario.cluster.external, scenario.cluster.node("a"));
    vec![
        ("pod, ClusterIP, local backend", pod, scenario.near.cluster_ip(version), "web-a"),
        ("pod, ClusterIP, remote backend", pod, scenario.far.cluster_ip(version), "web-b"),
        ("host, ClusterIP, remote backend", &a.host, scenario.far.cluster_ip(version), "web-b"),
        ("outside, NodePort, local backend", outside, a.address(version, NEAR), "web-a"),
        ("outside, NodePort, remote backend", outside, a.address(version, FAR), "web-b"),
    ]
}

/// Everyone sends `size` bytes and gets the same ones back.
fn echo(scenario: &Scenario, transports: &[Transport], size: usize) -> Result<()> {
    let mut failures = Failures::default();
    for version in IpVersion::BOTH {
        for (what, client, to, server) in rows(scenario, version) {
            for transport in transports {
                let ask = Ask::new(*transport, to).patience(PATIENCE).payload(size);
                failures.note(what, version, *transport, expect::answered(client, &ask, &[server]));
            }
        }
    }
    failures.none()
}

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
    echo(&scenario, &[Transport::Tcp], 1_000_000)
}

#[test]
fn p45_datagrams_of_several_fragments_reach_every_frontend() -> Result<()> {
    for wiring in Wiring::BOTH {
        let scenario = Scenario::new(wiring, &[])?;
        for size in [1_473, 4_000, 9_001] {
            echo(&scenario, &[Transport::Udp, Transport::UdpUnconnected], size)?;
        }
    }
    Ok(())
}

#[test]
fn p52_a_stream_of_twenty_megabytes_comes_back_byte_for_byte() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    echo(&scenario, &[Transport::Tcp], 20_000_000)
}
