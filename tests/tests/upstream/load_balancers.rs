//! Suites `LoadBalancers` and `LoadBalancers ExternalTrafficPolicy: Local`: the balancer's own addresses, and what it sends
//! to the nodes; the balancer itself is the network's.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dataplane_tests::{
    cluster::Site,
    expect::{self, eventually},
    objects::Service,
    topology::IpVersion,
    traffic::{Ask, FailureKind, protocol::Transport},
};
use serde_json::{Value, json};

use crate::bed::{BOTH, Bed, Shared, node_port_service, reached, refused, shared, silent};

/// A load-balancer service: the addresses it was given, and how the balancer reaches it.
struct Balanced {
    bed: Shared,
    service: Service,
    addresses: [SocketAddr; 2],
    node_port: u16,
}

impl Balanced {
    /// A service with `spec` and addresses of its own, which the outside client sends to the node `by`.
    fn new(name: &str, by: &str, spec: &Value) -> Result<Self> {
        let bed = shared()?;
        let (service, node_port) = node_port_service(name);
        let number = service.addresses.v4.octets()[3];
        let ips: [IpAddr; 2] = [format!("192.0.2.{number}").parse()?, format!("2001:db8::{number:x}").parse()?];
        let node = bed.0.host(by).addresses();
        bed.0.external.netns().ip(&format!(
            "route replace {}/32 via {}\nroute replace {}/128 via {}\n",
            ips[0], node.v4, ips[1], node.v6
        ))?;
        let ingress: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let service = service.status(json!({ "loadBalancer": { "ingress": ingress } }));
        let balanced = Self { bed, service, addresses: ips.map(|ip| (ip, 80).into()), node_port };
        Ok(Self { service: balanced.with(spec), ..balanced })
    }

    fn with(&self, spec: &Value) -> Service {
        let mut all = json!({ "type": "LoadBalancer" });
        if let (Some(all), Some(spec)) = (all.as_object_mut(), spec.as_object()) {
            all.extend(spec.clone());
        }
        self.service.clone().spec(all)
    }

    fn outside(&self) -> [&Site; 1] {
        [&self.bed.0.external]
    }

    fn everyone(&self) -> Vec<&Site> {
        let [a, b, c, d] = self.bed.everyone();
        vec![a, b, c, d, &self.bed.0.external]
    }
}

/// `should be able to change the type and ports of a TCP service`,
/// `should be able to change the type and ports of a UDP service`
#[test]
fn p03_p06_type_and_ports_of_a_service_change() -> Result<()> {
    let balanced = Balanced::new("mutability", "b", &json!({}))?;
    let Balanced { bed, service, addresses, node_port } = &balanced;
    let pods = ["web-1", "web-3"];
    let plain = || {
        let mut plain = service.clone().spec(json!({ "type": "ClusterIP" })).status(json!({}));
        plain.ports.iter_mut().for_each(|port| port.node_port = None);
        plain
    };
    let node = |port| IpVersion::BOTH.map(|version| bed.0.node("a").address(version, port));
    let ips = IpVersion::BOTH.map(|version| service.cluster_ip(version));
    bed.put(&plain(), &pods)?;
    reached(&bed.clients(), &ips, &BOTH, &pods)?;
    refused(&bed.clients(), &node(*node_port), &BOTH)?;
    // To NodePort, to LoadBalancer, to another node port, to another port, and back.
    bed.put(&service.clone().spec(json!({ "type": "NodePort" })).status(json!({})), &pods)?;
    reached(&balanced.everyone(), &node(*node_port), &BOTH, &pods)?;
    bed.put(service, &pods)?;
    reached(&balanced.everyone(), addresses, &BOTH, &pods)?;
    let mut moved = service.clone();
    moved.ports.iter_mut().for_each(|port| (port.node_port, port.port) = (Some(node_port + 400), 81));
    bed.put(&moved, &pods)?;
    let moved_to = addresses.map(|address| SocketAddr::new(address.ip(), 81));
    reached(&balanced.everyone(), &moved_to, &BOTH, &pods)?;
    reached(&balanced.everyone(), &node(node_port + 400), &BOTH, &pods)?;
    refused(&bed.clients(), &node(*node_port), &BOTH)?;
    bed.put(&plain(), &pods)?;
    refused(&bed.clients(), &node(node_port + 400), &BOTH)?;
    reached(&bed.clients(), &ips, &BOTH, &pods)
}

/// `should only allow access from service loadbalancer source ranges`
#[test]
fn p33_only_clients_in_the_source_ranges_reach_a_balancers_address() -> Result<()> {
    let balanced = Balanced::new("lb-sourcerange", "a", &json!({}))?;
    let Balanced { bed, addresses, .. } = &balanced;
    let [client_a, client_b] = bed.clients();
    let of = |site: &Site| vec![format!("{}/32", site.addresses().v4), format!("{}/128", site.addresses().v6)];
    let outside = &bed.0.external;
    bed.put(&balanced.with(&json!({ "loadBalancerSourceRanges": of(client_a) })), &["web-1"])?;
    reached(&[client_a], addresses, &BOTH, &["web-1"])?;
    silent(&[client_b, outside], addresses, &BOTH)?;
    bed.put(&balanced.with(&json!({ "loadBalancerSourceRanges": of(outside) })), &["web-1"])?;
    reached(&[outside], addresses, &BOTH, &["web-1"])?;
    silent(&[client_a, client_b], addresses, &BOTH)?;
    bed.put(&balanced.with(&json!({})), &["web-1"])?;
    reached(&[client_a, client_b, outside], addresses, &BOTH, &["web-1"])
}

/// kube-proxy checks the node's packets, too: they come from the node's address, or from that which a process chooses.
#[test]
fn p33_a_process_of_the_node_is_admitted_with_the_nodes_address_or_its_own() -> Result<()> {
    let balanced = Balanced::new("lb-sourcerange-host", "a", &json!({}))?;
    let Balanced { bed, addresses, .. } = &balanced;
    let [host_a, host_b] = ["a", "b"].map(|node| bed.0.host(node));
    let second: [IpAddr; 2] = ["172.20.0.77".parse()?, "fd20::77".parse()?];
    host_a.netns().ip(&format!("address add {}/32 dev lo\naddress add {}/128 dev lo\n", second[0], second[1]))?;
    let with = |v4: IpAddr, v6: IpAddr| {
        let ranges = [format!("{v4}/32"), format!("{v6}/128")];
        bed.put(&balanced.with(&json!({ "loadBalancerSourceRanges": ranges })), &["web-1"])
    };
    let all = [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];
    with(host_a.ip(IpVersion::V4), host_a.ip(IpVersion::V6))?;
    reached(&[host_a], addresses, &all, &["web-1"])?;
    silent(&[host_b], addresses, &all)?;
    bound(host_a, addresses, second, Err(FailureKind::Unreachable))?;
    with(second[0], second[1])?;
    silent(&[host_a, host_b], addresses, &all)?;
    bound(host_a, addresses, second, Ok("web-1"))?;
    host_a.netns().ip(&format!("address del {}/32 dev lo\naddress del {}/128 dev lo\n", second[0], second[1]))
}

/// Expects the same of datagrams from the address `from` of either family, with `connect(2)` and without.
fn bound(
    client: &Site,
    addresses: &[SocketAddr],
    from: [IpAddr; 2],
    expected: Result<&str, FailureKind>,
) -> Result<()> {
    for (&to, from) in addresses.iter().zip(from) {
        for transport in [Transport::Udp, Transport::UdpUnconnected] {
            let ask = Ask::new(transport, to).from_ip(from);
            let found = client.ask(&ask)?;
            let found = found.as_ref().map(|answer| answer.server.as_str()).map_err(|failure| failure.kind);
            ensure!(found == expected, "{from} -> {to} {transport}: {found:?}, not {expected:?}");
        }
    }
    Ok(())
}

/// A balanced service whose outside client must stay, change, and stay again as affinity is switched.
fn affinity(name: &str, policy: &str) -> Result<()> {
    let spec = |affinity: &str| json!({ "sessionAffinity": affinity, "externalTrafficPolicy": policy });
    let balanced = Balanced::new(name, "a", &spec("ClientIP"))?;
    let bed = &balanced.bed;
    let pods = ["web-1", "web-2"];
    for (affinity, servers) in [("ClientIP", 1), ("None", 2), ("ClientIP", 1)] {
        bed.put(&balanced.with(&spec(affinity)), &pods)?;
        for to in balanced.addresses {
            for transport in BOTH {
                eventually(|| answered_by(&bed.0.external, &Ask::new(transport, to), servers))?;
            }
        }
    }
    Ok(())
}

fn answered_by(client: &Site, ask: &Ask, servers: usize) -> Result<()> {
    let report = client.repeat(ask, 30)?;
    expect::lossless(client.name(), &report, 30)?;
    ensure!(report.servers.len() == servers, "{}: {:?}", ask.to, report.servers);
    Ok(())
}

/// `should have session affinity work for LoadBalancer service with Local traffic policy`,
/// `should be able to switch session affinity for LoadBalancer service with Local traffic policy`
#[test]
fn p27_p28_affinity_of_a_balancers_address_with_policy_local() -> Result<()> {
    affinity("affinity-lb-esipp", "Local")
}

/// `should have session affinity work for LoadBalancer service with Cluster traffic policy`,
/// `should be able to switch session affinity for LoadBalancer service with Cluster traffic policy`
#[test]
fn p27_p28_affinity_of_a_balancers_address_with_policy_cluster() -> Result<()> {
    affinity("affinity-lb", "Cluster")
}

/// `should be able to create LoadBalancer Service without NodePort and change it`
#[test]
fn p41_a_balancers_address_needs_no_node_port() -> Result<()> {
    let balanced = Balanced::new("reallocate", "a", &json!({ "allocateLoadBalancerNodePorts": false }))?;
    let Balanced { bed, addresses, node_port, .. } = &balanced;
    let node = IpVersion::BOTH.map(|version| bed.0.node("a").address(version, *node_port));
    let mut without = balanced.service.clone();
    without.ports.iter_mut().for_each(|port| port.node_port = None);
    bed.put(&without, &["web-1", "web-3"])?;
    reached(&balanced.everyone(), addresses, &BOTH, &["web-1", "web-3"])?;
    refused(&bed.clients(), &node, &BOTH)?;
    bed.put(&balanced.with(&json!({})), &["web-1", "web-3"])?;
    reached(&balanced.everyone(), &node, &BOTH, &["web-1", "web-3"])?;
    reached(&balanced.everyone(), addresses, &BOTH, &["web-1", "web-3"])
}

/// `should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on different nodes`,
/// `should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on the same nodes`
#[test]
fn p50_datagrams_to_a_balancers_address_follow_the_endpoints() -> Result<()> {
    let balanced = Balanced::new("udp-lb", "a", &json!({}))?;
    let bed = &balanced.bed;
    // From one port: what a flow remembers of an endpoint that is gone would swallow the questions.
    let asks = balanced.addresses.map(|to| Ask::new(Transport::Udp, to).from_port(24_000 + balanced.node_port % 256));
    for pods in [["web-1"], ["web-3"], ["web-4"], ["web-2"], ["web-1"]] {
        bed.put(&balanced.service, &pods)?;
        for ask in &asks {
            eventually(|| expect::answered(&bed.0.external, ask, &pods)).with_context(|| format!("{pods:?}"))?;
            for _ in 0..5 {
                expect::answered(&bed.0.external, ask, &pods)?;
            }
        }
    }
    Ok(())
}

/// A rolling restart under load: pods drain one after the other while their successors are ready. No request may fail.
fn rolling(name: &str, policy: &str) -> Result<()> {
    let balanced = Balanced::new(name, "a", &json!({ "externalTrafficPolicy": policy }))?;
    let Balanced { bed, service, addresses, .. } = &balanced;
    let put = |ready: &[&str], draining: &[&str]| {
        let mut endpoints: Vec<_> = ready.iter().map(|pod| bed.endpoint(pod)).collect();
        endpoints.extend(draining.iter().map(|pod| bed.endpoint(pod).draining()));
        bed.0.put_service(service, &endpoints)
    };
    put(&["web-1"], &[])?;
    reached(&balanced.outside(), addresses, &[Transport::Tcp], &["web-1"])?;
    let mut loads = Vec::new();
    for &to in addresses {
        for client in balanced.outside() {
            loads.push((to, client.load(&Ask::new(Transport::Tcp, to), 50)?));
        }
    }
    // With policy Local the pods of the node that the balancer sends to roll; else those of all nodes.
    let successors: &[&str] =
        if policy == "Local" { &["web-2", "web-1"] } else { &["web-3", "web-2", "web-4", "web-1"] };
    let mut current = "web-1";
    for successor in successors {
        put(&[current, successor], &[])?;
        thread::sleep(Duration::from_millis(150));
        put(&[successor], &[current])?;
        thread::sleep(Duration::from_millis(150));
        put(&[successor], &[])?;
        current = successor;
    }
    for (to, load) in loads {
        expect::lossless(&to.to_string(), &load.finish()?, 10)?;
    }
    Ok(())
}

/// `should not have connectivity disruption during rolling update with externalTrafficPolicy=Cluster`
#[test]
fn p52_a_rolling_restart_loses_nothing_with_policy_cluster() -> Result<()> {
    rolling("rolling-cluster", "Cluster")
}

/// `should not have connectivity disruption during rolling update with externalTrafficPolicy=Local`
#[test]
fn p52_a_rolling_restart_loses_nothing_with_policy_local() -> Result<()> {
    rolling("rolling-local", "Local")
}

fn sees_the_client(bed: &Bed, to: &[SocketAddr], server: &str) -> Result<()> {
    for &to in to {
        for transport in BOTH {
            let client = &bed.0.external;
            let seen = client.ip(IpVersion::of(to.ip()));
            eventually(|| expect::answered_seeing(client, &Ask::new(transport, to), &[server], seen))?;
        }
    }
    Ok(())
}

/// `should work for type=LoadBalancer` (policy Local): the client's address arrives, by the node that has the endpoint
#[test]
fn p34_policy_local_shows_the_client_to_the_server() -> Result<()> {
    let balanced = Balanced::new("external-local-lb", "a", &json!({ "externalTrafficPolicy": "Local" }))?;
    balanced.bed.put(&balanced.service, &["web-1"])?;
    sees_the_client(&balanced.bed, &balanced.addresses, "web-1")
}

/// `should work for type=NodePort` (policy Local)
#[test]
fn p34_policy_local_shows_the_client_to_the_server_at_a_node_port() -> Result<()> {
    let balanced = Balanced::new("external-local-nodeport", "a", &json!({ "externalTrafficPolicy": "Local" }))?;
    let bed = &balanced.bed;
    bed.put(&balanced.service, &["web-1"])?;
    let at_a = IpVersion::BOTH.map(|version| bed.0.node("a").address(version, balanced.node_port));
    sees_the_client(bed, &at_a, "web-1")
}

/// `should only target nodes with endpoints`, `should target all nodes with endpoints` (policy Local)
#[test]
fn p21_p34_policy_local_answers_only_where_endpoints_are() -> Result<()> {
    let balanced = Balanced::new("external-local-nodes", "b", &json!({ "externalTrafficPolicy": "Local" }))?;
    let Balanced { bed, service, addresses, .. } = &balanced;
    bed.put(service, &["web-1"])?;
    silent(&balanced.outside(), addresses, &BOTH)?;
    bed.put(service, &["web-1", "web-3"])?;
    reached(&balanced.outside(), addresses, &BOTH, &["web-3"])
}

/// `should work from pods` (policy Local)
#[test]
fn p40_pods_reach_a_balancers_address_with_policy_local_from_every_node() -> Result<()> {
    let balanced = Balanced::new("external-local-pods", "a", &json!({ "externalTrafficPolicy": "Local" }))?;
    balanced.bed.put(&balanced.service, &["web-1"])?;
    reached(&balanced.bed.everyone(), &balanced.addresses, &BOTH, &["web-1"])
}

/// `should handle updates to ExternalTrafficPolicy field`
#[test]
fn p34_a_policy_that_changes_is_followed() -> Result<()> {
    let balanced = Balanced::new("external-local-update", "b", &json!({}))?;
    let Balanced { bed, addresses, .. } = &balanced;
    for (policy, answered) in [("Local", false), ("Cluster", true), ("Local", false)] {
        bed.put(&balanced.with(&json!({ "externalTrafficPolicy": policy })), &["web-1"])?;
        match answered {
            true => reached(&balanced.outside(), addresses, &BOTH, &["web-1"])?,
            false => silent(&balanced.outside(), addresses, &BOTH)?,
        }
    }
    Ok(())
}
