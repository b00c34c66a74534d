//! A client that talks from one port to a backend itself and to a service that it serves: to the backend both would be one connection.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dataplane_tests::{
    scenario::{FAR, NEAR, POD_PORT, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

/// TCP asks again after a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// Both conversations work, whichever is first, and go on beside each other.
fn both_work(arguments: &[&str], wiring: Wiring) -> Result<()> {
    let scenario = Scenario::new(wiring, arguments)?;
    let (cluster, outside) = (&scenario.cluster, &scenario.cluster.external);
    let node = cluster.node("a");
    for version in IpVersion::BOTH {
        let via = node.host.ip(version);
        let routes = ["web-a", "web-b"].map(|name| format!("route add {} via {via}\n", cluster.pod(name).ip(version)));
        outside.netns().ip(&routes.concat())?;
    }
    let mut port = 45_000;
    for version in IpVersion::BOTH {
        let pods = ["web-a", "web-b"].map(|name| (cluster.pod(name).ip(version), POD_PORT).into());
        let ways = [
            (scenario.client(), pods[0], scenario.near.cluster_ip(version), "web-a"),
            (scenario.client(), pods[1], scenario.far.cluster_ip(version), "web-b"),
            (outside, pods[0], node.address(version, NEAR), "web-a"),
            (outside, pods[1], node.address(version, FAR), "web-b"),
        ];
        for (client, backend, service, server) in ways {
            for transport in [Transport::Tcp, Transport::Udp] {
                for order in [[backend, service], [service, backend]] {
                    port += 1;
                    let open = |to| client.open(&Ask::new(transport, to).from_port(port).patience(PATIENCE));
                    let [first, second] = order;
                    let about = || format!("{version} {transport}: port {port} to {first}, then to {second}");
                    let one = open(first).with_context(about)?;
                    let two = open(second).with_context(about)?;
                    for _ in 0..3 {
                        for connection in [&one, &two] {
                            let answer = connection.ping()?;
                            ensure!(answer.is_ok_and(|answer| answer.server == server), "{}", about());
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_backend_is_reached_from_one_port_by_its_service_and_directly() -> Result<()> {
    both_work(&[], Wiring::Routed)
}

#[test]
fn the_same_without_the_way_around_the_stack() -> Result<()> {
    both_work(&["--host-bypass=off"], Wiring::Bridge)
}
