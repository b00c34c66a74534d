//! Suites `Networking Granular Checks: Services` and `Networking Granular Checks: Pods`; upstream's http is TCP here.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use dataplane_tests::{
    cluster::{Node, Site},
    expect::{self, eventually},
    http,
    mode::Mode,
    objects::Service,
    scenario::{HOST_PORT, POD_PORT},
    topology::IpVersion,
    traffic::{Ask, protocol::Transport},
};
use serde_json::json;

use crate::bed::{BOTH, Bed, Shared, cluster_ips, node_port_service, reached, refused, shared};

const SERVERS: [&str; 4] = ["web-1", "web-2", "web-3", "web-4"];

/// A NodePort service with an endpoint in every pod that serves, and everywhere it answers.
fn nettest() -> Result<(Shared, Service, Vec<SocketAddr>)> {
    let bed = shared()?;
    let (service, port) = node_port_service("nettest");
    bed.put(&service, &SERVERS)?;
    let mut addresses = cluster_ips(&service, 80).to_vec();
    addresses.extend(IpVersion::BOTH.iter().flat_map(|&version| bed.node_ports(version, port)));
    Ok((bed, service, addresses))
}

/// `should function for pod-Service: http`, `should function for pod-Service: udp`
#[test]
fn p30_pods_reach_every_endpoint_of_a_service() -> Result<()> {
    let (bed, _, addresses) = nettest()?;
    reached(&bed.clients(), &addresses, &BOTH, &SERVERS)
}

/// `should function for node-Service: http`, `should function for node-Service: udp`
#[test]
fn p30_nodes_reach_every_endpoint_of_a_service() -> Result<()> {
    let (bed, _, addresses) = nettest()?;
    reached(&[bed.0.host("a"), bed.0.host("b")], &addresses, &BOTH, &SERVERS)
}

/// Clients outside reach every endpoint of a service; where XDP runs, it is what sends their packets on to other nodes, and
/// elsewhere nothing of the kind happens.
#[test]
fn p34_clients_outside_reach_every_endpoint_of_a_service_by_xdp_where_it_runs() -> Result<()> {
    let (bed, _, addresses) = nettest()?;
    let sent = || -> Result<u64> { bed.0.nodes.iter().map(Node::sent_by_xdp).sum() };
    let before = sent()?;
    let node_ports: Vec<_> = addresses.into_iter().filter(|address| address.port() != 80).collect();
    reached(&[&bed.0.external], &node_ports, &BOTH, &SERVERS)?;
    assert_eq!(sent()? > before, Mode::current()?.runs_xdp());
    Ok(())
}

/// `should function for endpoint-Service: http`, `should function for endpoint-Service: udp`
#[test]
fn p30_p36_endpoints_reach_every_endpoint_of_their_service() -> Result<()> {
    let (bed, _, addresses) = nettest()?;
    reached(&[bed.0.pod("web-1"), bed.0.pod("web-3")], &addresses, &BOTH, &SERVERS)
}

/// `should function for multiple endpoint-Services with same selector`
#[test]
fn p01_two_services_share_their_endpoints() -> Result<()> {
    let (bed, first, addresses) = nettest()?;
    let (second, port) = node_port_service("nettest-second");
    bed.put(&second, &SERVERS)?;
    let mut others = cluster_ips(&second, 80).to_vec();
    others.extend(IpVersion::BOTH.map(|version| bed.0.node("a").address(version, port)));
    let endpoint = [bed.0.pod("web-1")];
    reached(&endpoint, &addresses, &BOTH, &SERVERS)?;
    reached(&endpoint, &others, &BOTH, &SERVERS)?;
    bed.0.delete_service(&first)?;
    refused(&endpoint, &addresses, &BOTH)?;
    reached(&endpoint, &others, &BOTH, &SERVERS)
}

/// `should update endpoints: http`, `should update endpoints: udp`
#[test]
fn p07_an_endpoint_less_is_an_answer_less() -> Result<()> {
    let (bed, service, addresses) = nettest()?;
    reached(&bed.clients(), &addresses, &BOTH, &SERVERS)?;
    bed.put(&service, &SERVERS[1..])?;
    reached(&bed.clients(), &addresses, &BOTH, &SERVERS[1..])
}

/// `should update nodePort: http`, `should update nodePort: udp`
#[test]
fn p30_a_node_port_that_is_taken_away_is_refused() -> Result<()> {
    let (bed, mut service, addresses) = nettest()?;
    let (ips, nodes) = addresses.split_at(2);
    reached(&bed.everyone(), nodes, &BOTH, &SERVERS)?;
    service.ports.iter_mut().for_each(|port| port.node_port = None);
    bed.put(&service, &SERVERS)?;
    refused(&bed.everyone(), nodes, &BOTH)?;
    reached(&bed.everyone(), ips, &BOTH, &SERVERS)
}

/// `should function for client IP based session affinity: http`,
/// `should function for client IP based session affinity: udp`
#[test]
fn p27_a_client_stays_with_its_endpoint() -> Result<()> {
    let (bed, service, addresses) = nettest()?;
    bed.put(&service.spec(json!({ "sessionAffinity": "ClientIP" })), &SERVERS)?;
    for client in bed.clients() {
        for &to in &addresses[..2] {
            for transport in BOTH {
                eventually(|| one_server(client, &Ask::new(transport, to)))?;
            }
        }
    }
    Ok(())
}

fn one_server(client: &Site, ask: &Ask) -> Result<()> {
    let report = client.repeat(ask, 20)?;
    expect::lossless(client.name(), &report, 20)?;
    ensure!(report.servers.len() == 1, "{:?}", report.servers);
    Ok(())
}

/// `should be able to handle large requests: http`, `should be able to handle large requests: udp`
#[test]
fn p45_large_requests_arrive_whole() -> Result<()> {
    let (bed, _, addresses) = nettest()?;
    for client in bed.everyone() {
        for &to in &addresses {
            // Two thousand bytes of a datagram are two fragments.
            for (transport, size) in [(Transport::Tcp, 200_000), (Transport::Udp, 2_000)] {
                let ask = Ask::new(transport, to).payload(size);
                eventually(|| expect::answered(client, &ask, &SERVERS))?;
            }
        }
    }
    Ok(())
}

/// `should function for service endpoints using hostNetwork`
#[test]
fn p46_endpoints_in_the_nodes_own_network_are_reached() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("nettest-host");
    bed.0.put_service(&service.clone().target(HOST_PORT), &["a", "b"].map(|node| bed.host_endpoint(node)))?;
    for version in IpVersion::BOTH {
        let [a, b] = bed.node_ports(version, port);
        let all = [service.cluster_ip(version), a, b];
        reached(&bed.everyone(), &all, &BOTH, &["a", "b"])?;
        reached(&[&bed.0.external], &[a, b], &BOTH, &["a", "b"])?;
    }
    Ok(())
}

/// `should check kube-proxy urls`
#[test]
fn p70_p76_kube_proxys_addresses_answer() -> Result<()> {
    let bed = shared()?;
    let node = bed.0.node("a");
    for (port, path, expected) in [(10_256, "/healthz", "lastUpdated"), (10_249, "/proxyMode", "")] {
        let at = (IpVersion::V4.loopback(), port).into();
        let answer = http::get(node.host.netns(), at, path)?;
        ensure!(answer.status == 200 && answer.body.contains(expected), "{at}{path}: {answer:?}");
    }
    Ok(())
}

/// `should function for intra-pod communication: http`, `should function for intra-pod communication: udp`,
/// `should function for node-pod communication: http`, `should function for node-pod communication: udp`,
/// `Should be able to send traffic between Pods without SNAT`: what is addressed to no service is left as it is.
#[test]
fn p46_pods_reach_pods_and_nodes_reach_pods_without_any_service() -> Result<()> {
    let bed = shared()?;
    for version in IpVersion::BOTH {
        for client in bed.everyone() {
            for server in SERVERS {
                directly(&bed, client, server, version).with_context(|| format!("{version}: {}", client.name()))?;
            }
        }
    }
    Ok(())
}

fn directly(bed: &Bed, client: &Site, server: &str, version: IpVersion) -> Result<()> {
    for transport in BOTH {
        let ask = Ask::new(transport, (bed.0.pod(server).ip(version), POD_PORT).into());
        // The other titles' flows may have the tuple of this one (docs/datapath.md): the next try is from another port.
        let answer = eventually(|| expect::answered(client, &ask, &[server]))?;
        ensure!(answer.seen == answer.local, "{} is seen as {}", answer.local, answer.seen);
    }
    Ok(())
}
