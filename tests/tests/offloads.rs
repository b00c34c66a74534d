//! Streams whose segments devices join and cut, or leave to others, on every interface that they pass.

use anyhow::{Context, Result};
use dataplane_tests::{
    cluster::Cluster,
    netns::Netns,
    offload::{Feature, set},
    scenario::Scenario,
    topology::Wiring,
    traffic::protocol::Transport,
};

/// Some hundred segments, and many times what one packet with GSO holds.
const SIZE: usize = 2_000_000;

/// Both ends of every pod's cable and of every uplink, and the client outside.
fn interfaces(cluster: &Cluster) -> Vec<(&Netns, String)> {
    let mut interfaces = vec![(cluster.external.netns(), "eth0".to_owned())];
    for node in &cluster.nodes {
        interfaces.push((node.host.netns(), "eth0".to_owned()));
        interfaces.push((&cluster.fabric, format!("up-{}", node.name())));
        for pod in &node.pods {
            interfaces.push((pod.netns(), "eth0".to_owned()));
            interfaces.push((node.host.netns(), format!("veth-{}", pod.name())));
        }
    }
    interfaces
}

/// Sends streams every way with each set of features.
fn check(arguments: &[&str]) -> Result<()> {
    use Feature::{Gro, Gso, TransmitChecksum, Tso};
    let scenario = Scenario::new(Wiring::Routed, arguments)?;
    let sets: [(&str, &[(Feature, bool)]); 4] = [
        ("segments are cut by the device and joined again", &[(Gro, true), (Gso, true), (Tso, true)]),
        ("cut by the stack", &[(Tso, false)]),
        ("neither cut nor joined", &[(Gso, false), (Gro, false)]),
        ("checksums are complete, too", &[(TransmitChecksum, false)]),
    ];
    for (what, features) in sets {
        for (netns, device) in interfaces(&scenario.cluster) {
            features.iter().try_for_each(|(feature, on)| set(netns, &device, *feature, *on))?;
        }
        scenario.echo(&[Transport::Tcp], SIZE).context(what)?;
    }
    Ok(())
}

#[test]
fn p30_streams_arrive_whole_whatever_devices_do_to_segments() -> Result<()> {
    check(&[])
}

#[test]
fn p30_streams_arrive_whole_whatever_devices_do_to_segments_through_the_stack() -> Result<()> {
    check(&["--host-bypass=off"])
}
