//! More than a packet holds: streams over a narrow hop, fragmented datagrams, and streams of segments that the stack keeps
//! together, through every kind of frontend.

use anyhow::Result;
use dataplane_tests::{
    scenario::Scenario,
    topology::{IpVersion, Wiring},
    traffic::protocol::Transport,
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
