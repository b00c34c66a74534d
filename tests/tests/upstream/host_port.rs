//! Suite `HostPort`: what listens on a node's own addresses is left alone.

use anyhow::Result;
use dataplane_common::Protocol;
use dataplane_tests::{
    expect,
    topology::IpVersion,
    traffic::{Ask, protocol::Transport},
};

use crate::bed::shared;

const PORT: u16 = 54_323;

/// `validates that there is no conflict between pods with same hostPort but different hostIP and protocol`:
/// the mapping from host to pod is the network plugin's; here the node's own addresses stand in for it. A service's
/// translation must not tell one address or protocol for another.
#[test]
fn p46_one_port_on_two_addresses_and_with_two_protocols_stays_three_servers() -> Result<()> {
    let bed = shared()?;
    let host = bed.0.host("a");
    for version in IpVersion::BOTH {
        let (loopback, node) = ((version.loopback(), PORT).into(), (host.ip(version), PORT).into());
        host.traffic()?.serve("pod1", Protocol::Tcp, loopback)?;
        host.traffic()?.serve("pod2", Protocol::Tcp, node)?;
        host.traffic()?.serve("pod3", Protocol::Udp, node)?;
        expect::answered(host, &Ask::new(Transport::Tcp, loopback), &["pod1"])?;
        for client in [bed.0.pod("client-a"), bed.0.pod("client-b"), host, bed.0.host("b"), &bed.0.external] {
            expect::answered(client, &Ask::new(Transport::Tcp, node), &["pod2"])?;
            expect::answered(client, &Ask::new(Transport::Udp, node), &["pod3"])?;
        }
    }
    Ok(())
}
