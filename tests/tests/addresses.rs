//! Addresses that only some nodes own, traffic policies seen from every side, and endpoints narrowed by hints.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dataplane_tests::{
    cluster::Cluster,
    expect::{self, eventually},
    objects::{Endpoint, Service},
    scenario::{POD_PORT, Scenario},
    topology::{self, IpVersion, Wiring},
    traffic::{Ask, FailureKind, protocol::Transport},
};
use serde_json::json;

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Addresses from the ranges for documentation: nobody's, unless a test gives them to somebody.
const EXTERNAL_IPS: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const LOAD_BALANCER_IPS: [&str; 2] = ["192.0.2.20", "2001:db8::20"];

fn frontend(ip: &str) -> Result<SocketAddr> {
    Ok((ip.parse::<IpAddr>()?, 80).into())
}

/// Sends the outside client's packets for the documentation ranges to the node `name`.
fn route_by(cluster: &Cluster, name: &str) -> Result<()> {
    let node = cluster.host(name).addresses();
    let routes = format!("route replace 192.0.2.0/24 via {}\nroute replace 2001:db8::/64 via {}\n", node.v4, node.v6);
    cluster.external.netns().ip(&routes)
}

fn outer(extra: serde_json::Value) -> Service {
    let ingress: Vec<_> = LOAD_BALANCER_IPS.iter().map(|ip| json!({ "ip": ip })).collect();
    let mut spec = json!({ "type": "LoadBalancer", "externalIPs": EXTERNAL_IPS });
    if let (Some(spec), Some(extra)) = (spec.as_object_mut(), extra.as_object()) {
        spec.extend(extra.clone());
    }
    Service::new("outer", 30)
        .node_port(80, POD_PORT, 30099)
        .spec(spec)
        .status(json!({ "loadBalancer": { "ingress": ingress } }))
}

#[test]
fn p11_p41_external_and_load_balancer_addresses_work_whether_a_node_owns_them_or_nobody() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    cluster.put_service(&outer(json!({})), &Endpoint::pods(cluster, &["web-a", "web-b"]))?;
    route_by(cluster, "a")?;
    let every_way = || -> Result<()> {
        for client in [scenario.client(), cluster.host("a"), cluster.host("b"), &cluster.external] {
            for ip in EXTERNAL_IPS.into_iter().chain(LOAD_BALANCER_IPS) {
                for transport in TRANSPORTS {
                    let ask = Ask::new(transport, frontend(ip)?);
                    eventually(|| expect::spread(client, &ask, 24, &["web-a", "web-b"]))?;
                }
            }
        }
        Ok(())
    };
    every_way()?;
    let mut owned = String::new();
    for ip in EXTERNAL_IPS.into_iter().chain(LOAD_BALANCER_IPS) {
        owned.push_str(&format!("addr add {ip} dev lo\n"));
    }
    cluster.host("a").netns().ip(&owned)?;
    every_way()
}

#[test]
fn p34_p40_with_external_policy_local_outside_clients_keep_their_address_and_inside_ones_reach_everything() -> Result<()>
{
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    let local = outer(json!({ "externalTrafficPolicy": "Local" }));
    cluster.put_service(&local, &Endpoint::pods(cluster, &["web-b", "web-c"]))?;
    for (ips, version) in [(0, IpVersion::V4), (1, IpVersion::V6)] {
        let node_port = |node: &str| cluster.node(node).address(version, 30099);
        for transport in TRANSPORTS {
            // Node `a` has no endpoint; its pods and its own processes reach those of node `b`.
            for client in [scenario.client(), cluster.host("a")] {
                for to in [frontend(LOAD_BALANCER_IPS[ips])?, frontend(EXTERNAL_IPS[ips])?, node_port("a")] {
                    let ask = Ask::new(transport, to);
                    eventually(|| expect::spread(client, &ask, 24, &["web-b", "web-c"]))?;
                }
            }
            let outside = &cluster.external;
            route_by(cluster, "b")?;
            for to in [frontend(LOAD_BALANCER_IPS[ips])?, frontend(EXTERNAL_IPS[ips])?, node_port("b")] {
                let ask = Ask::new(transport, to);
                expect::answered_seeing(outside, &ask, &["web-b", "web-c"], outside.ip(version))?;
            }
            // Elsewhere the packet is dropped, so that a load balancer notices.
            route_by(cluster, "a")?;
            let lost = outside.ask(&Ask::new(transport, node_port("a")))?;
            ensure!(lost.as_ref().is_err_and(|failure| failure.kind == FailureKind::TimedOut), "{lost:?}");
        }
    }
    Ok(())
}

#[test]
fn p21_with_internal_policy_local_only_the_nodes_own_endpoints_answer() -> Result<()> {
    let scenario = Scenario::new(Wiring::Bridge, &[])?;
    let cluster = &scenario.cluster;
    let local = Service::new("inner", 31).port(80, POD_PORT).spec(json!({ "internalTrafficPolicy": "Local" }));
    cluster.put_service(&local, &Endpoint::pods(cluster, &["web-a", "web-b"]))?;
    for version in IpVersion::BOTH {
        let ask = Ask::new(Transport::Tcp, local.cluster_ip(version));
        for (client, server) in
            [(scenario.client(), "web-a"), (cluster.host("a"), "web-a"), (cluster.host("b"), "web-b")]
        {
            eventually(|| expect::spread(client, &ask, 24, &[server]))?;
        }
    }
    Ok(())
}

#[test]
fn p24_traffic_distribution_arrives_as_hints_that_narrow_the_endpoints() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    let service = Service::new("close", 32).port(80, POD_PORT).spec(json!({ "trafficDistribution": "PreferSameNode" }));
    let hinted = |pod: &str, node: &str| {
        Endpoint::pods(cluster, &[pod]).remove(0).with(json!({ "hints": { "forNodes": [{ "name": node }] } }))
    };
    let each_its_own = [hinted("web-a", "a"), hinted("web-b", "b")];
    let one_without = [hinted("web-a", "a"), Endpoint::pods(cluster, &["web-b"]).remove(0)];
    let rows: [(&[Endpoint], [&[&str]; 2]); 2] =
        [(&each_its_own, [&["web-a"], &["web-b"]]), (&one_without, [&["web-a", "web-b"], &["web-a", "web-b"]])];
    for (endpoints, servers) in rows {
        cluster.put_service(&service, endpoints)?;
        for version in IpVersion::BOTH {
            let ask = Ask::new(Transport::Tcp, service.cluster_ip(version));
            for (node, servers) in ["a", "b"].into_iter().zip(servers) {
                eventually(|| expect::spread(cluster.host(node), &ask, 24, servers))?;
            }
        }
    }
    Ok(())
}

#[test]
fn p10_service_cidrs_count_as_soon_as_they_appear_and_until_they_go() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    let (v4, v6) = topology::SERVICE_CIDRS;
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": [v4, v6] },
    });
    let nobodys = IpVersion::BOTH.map(|version| SocketAddr::new(topology::service(250).ip(version), 80));
    let answered = || -> Result<()> {
        for version in IpVersion::BOTH {
            expect::answered(
                scenario.client(),
                &Ask::new(Transport::Tcp, scenario.far.cluster_ip(version)),
                &["web-b"],
            )?;
            // A port that the service has not is refused, whatever is known.
            let other = (scenario.far.addresses.ip(version), 81).into();
            expect::refusal(scenario.client(), &Ask::new(Transport::Tcp, other))?;
        }
        Ok(())
    };
    for known in [false, true, false] {
        match known {
            true => cluster.put_manifest("cidrs", std::slice::from_ref(&cidr))?,
            false => cluster.put_manifest("cidrs", &[])?,
        }
        for client in [scenario.client(), cluster.host("a")] {
            for to in nobodys {
                let ask = Ask::new(Transport::Tcp, to).patience(Duration::from_millis(250));
                // The router between the nodes refuses what gets that far.
                eventually(|| {
                    let failure = client.ask(&ask)?.err().context("answered")?;
                    let got_out = failure.kind == FailureKind::Refused;
                    ensure!(got_out != known, "{} -> {to}: {failure}", client.name());
                    Ok(())
                })?;
            }
        }
        answered()?;
    }
    Ok(())
}
