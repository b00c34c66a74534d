//! Packets with a VLAN's tag on an uplink. What belongs to a VLAN is for the VLAN's own interface; kernels of tests have none,
//! but take the tag out of the frame all the same, so that programs on the interface below see such packets.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use dataplane_agent::maps::{observed, pinned::Access};
use dataplane_common::{BePort, V4, V6};
use dataplane_tests::{
    bench::flood::mac,
    expect::{self, eventually},
    packet::Packet,
    raw,
    scenario::{FAR, NEAR, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

/// Which tag a frame carries (IEEE 802.1Q): priority 5, and the VLAN's number.
fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let tag = (5 << 13 | vlan).to_be_bytes();
    [&frame[..12], &[0x81, 0], &tag, &frame[12..]].concat()
}

/// Flows on node `a` whose packets come from the client's port `port`.
fn flows(scenario: &Scenario, port: u16) -> Result<usize> {
    let bpffs = scenario.cluster.node("a").bpffs.path();
    let port = BePort::new(port);
    let flows4 = observed::conntrack::<V4>(bpffs, Access::ReadOnly)?;
    let flows6 = observed::conntrack::<V6>(bpffs, Access::ReadOnly)?;
    let of4 = flows4.iter().filter(|flow| flow.as_ref().is_ok_and(|(key, _)| key.src_port == port)).count();
    let of6 = flows6.iter().filter(|flow| flow.as_ref().is_ok_and(|(key, _)| key.src_port == port)).count();
    Ok(of4 + of6)
}

#[test]
fn p34_a_vlans_packets_are_left_to_its_interface_and_priorities_make_no_difference() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let (outside, node) = (&scenario.cluster.external, scenario.cluster.node("a"));
    let to = mac(node.host.netns())?;
    let mut port = 40_000;
    for version in IpVersion::BOTH {
        for node_port in [NEAR, FAR] {
            let frontend = node.address(version, node_port);
            // Everybody's neighbours are known then.
            eventually(|| expect::answered(outside, &Ask::new(Transport::Udp, frontend), &["web-a", "web-b"]))?;
            for (what, tag, expected) in
                [("VLAN 7", Some(7), 0), ("a priority", Some(0), 1), ("no tag", None, 1), ("VLAN 4094", Some(4094), 0)]
            {
                port += 1;
                let frame = Packet::udp(SocketAddr::new(outside.ip(version), port), frontend).frame()?;
                let frame = tag.map_or_else(|| frame.clone(), |vlan| tagged(&frame, vlan));
                raw::send(outside.netns(), "eth0", to, &frame)?;
                // The program has run when the frame is sent: nothing waits on the way.
                let found = flows(&scenario, port)?;
                ensure!(found == expected, "{version} {node_port}, {what}: {found} flows, not {expected}");
            }
        }
    }
    Ok(())
}
