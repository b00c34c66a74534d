//! Suites `Traffic Distribution` and `Topology Hints`: three zones, and hints as the controller of slices gives them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use dataplane_tests::{
    agent::AgentOptions,
    cluster::{Cluster, Site},
    objects::{self, Endpoint, Service},
    scenario::POD_PORT,
    topology::{IpVersion, Topology, Wiring},
};
use serde_json::json;

use crate::bed::{BOTH, cluster_ips, reached, service};

/// Nodes with their zones; each has a pod `client-<node>` that asks and a pod `web-<node>` that serves.
const NODES: [(&str, &str); 5] = [("a", "one"), ("b", "one"), ("c", "two"), ("d", "two"), ("e", "three")];

fn zones() -> Result<Cluster> {
    let pods: Vec<_> = NODES.iter().map(|(node, _)| [format!("client-{node}"), format!("web-{node}")]).collect();
    let pods: Vec<_> = pods.iter().map(|[client, web]| [client.as_str(), web.as_str()]).collect();
    let nodes: Vec<_> = NODES.iter().zip(&pods).map(|((node, _), pods)| (*node, pods.as_slice())).collect();
    let mut cluster = Cluster::new(Topology::new(Wiring::Routed, &nodes))?;
    for (node, _) in NODES {
        cluster.serve(&[&format!("web-{node}")], POD_PORT)?;
    }
    let mut objects = objects::nodes(&cluster);
    for (object, (_, zone)) in objects.iter_mut().zip(NODES) {
        object["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone.into();
    }
    cluster.put_manifest("nodes", &objects)?;
    cluster.start_agents(&AgentOptions::default())?;
    Ok(cluster)
}

/// Which hints the controller gives with each value of `trafficDistribution`.
#[derive(Clone, Copy)]
enum Hints {
    Zone,
    ZoneAndNode,
}

/// Writes a service with endpoints on `nodes`, with hints as the controller gives them for `distribution`.
fn put(cluster: &Cluster, distribution: &str, hints: Hints, nodes: &[&str]) -> Result<Service> {
    let service = service("traffic-dist").spec(json!({ "trafficDistribution": distribution }));
    let endpoint = |node: &&str| -> Result<Endpoint> {
        let (_, zone) = NODES.iter().find(|(name, _)| name == node).context("a node")?;
        let mut value = json!({ "zone": zone, "hints": { "forZones": [{ "name": zone }] } });
        if matches!(hints, Hints::ZoneAndNode) {
            value["hints"]["forNodes"] = json!([{ "name": node }]);
        }
        Ok(Endpoint::new(cluster.pod(&format!("web-{node}")), node).with(value))
    };
    cluster.put_service(&service, &nodes.iter().map(endpoint).collect::<Result<Vec<_>>>()?)?;
    Ok(service)
}

/// Expects that pod and process of `node` reach exactly the servers of `servers`.
fn goes(cluster: &Cluster, service: &Service, node: &str, servers: &[&str]) -> Result<()> {
    let clients: [&Site; 2] = [cluster.pod(&format!("client-{node}")), cluster.host(node)];
    let servers: Vec<_> = servers.iter().map(|node| format!("web-{node}")).collect();
    let servers: Vec<_> = servers.iter().map(String::as_str).collect();
    let addresses: [SocketAddr; IpVersion::BOTH.len()] = cluster_ips(service, 80);
    reached(&clients, &addresses, &BOTH, &servers)
}

/// One client and at most one endpoint per zone.
fn same_zone(cluster: &Cluster, distribution: &str) -> Result<()> {
    let service = put(cluster, distribution, Hints::Zone, &["a", "c"])?;
    goes(cluster, &service, "a", &["a"])?;
    goes(cluster, &service, "c", &["c"])?;
    // No endpoint in its zone: all of them.
    goes(cluster, &service, "e", &["a", "c"])
}

/// Two endpoints on the two nodes of one zone, one in another zone, on the other node than its client.
fn several_nodes(cluster: &Cluster, distribution: &str) -> Result<()> {
    let service = put(cluster, distribution, Hints::Zone, &["a", "b", "d"])?;
    goes(cluster, &service, "a", &["a", "b"])?;
    goes(cluster, &service, "b", &["a", "b"])?;
    goes(cluster, &service, "c", &["d"])?;
    goes(cluster, &service, "e", &["a", "b", "d"])
}

fn same_node(cluster: &Cluster) -> Result<()> {
    let service = put(cluster, "PreferSameNode", Hints::ZoneAndNode, &["a", "b", "d"])?;
    goes(cluster, &service, "a", &["a"])?;
    goes(cluster, &service, "b", &["b"])?;
    goes(cluster, &service, "c", &["d"])?;
    goes(cluster, &service, "e", &["a", "b", "d"])
}

/// `should route traffic to an endpoint in the same zone when using PreferClose`,
/// `should route traffic correctly between pods on multiple nodes when using PreferClose`,
/// `should route traffic to an endpoint in the same zone when using PreferSameZone`,
/// `should route traffic correctly between pods on multiple nodes when using PreferSameZone`,
/// `should route traffic to an endpoint on the same node or fall back to same zone when using PreferSameNode`,
/// `should route traffic to an endpoint on the same node when using PreferSameNode and fall back when the endpoint becomes unavailable`,
/// `should distribute endpoints evenly` (Topology Hints): that hints are given evenly is the controller's
#[test]
fn p23_p24_traffic_goes_where_hints_send_it() -> Result<()> {
    let cluster = zones()?;
    for distribution in ["PreferClose", "PreferSameZone"] {
        same_zone(&cluster, distribution).context(distribution)?;
        several_nodes(&cluster, distribution).context(distribution)?;
    }
    same_node(&cluster).context("PreferSameNode")?;
    becomes_unavailable(&cluster).context("an endpoint goes")
}

/// The node's own endpoint goes, and comes again.
fn becomes_unavailable(cluster: &Cluster) -> Result<()> {
    let service = put(cluster, "PreferSameNode", Hints::ZoneAndNode, &["a", "b"])?;
    goes(cluster, &service, "a", &["a"])?;
    let rewrite = |nodes: &[&str]| -> Result<()> {
        let endpoints = nodes.iter().map(|node| {
            let hints = json!({ "forZones": [{ "name": "one" }], "forNodes": [{ "name": node }] });
            Endpoint::new(cluster.pod(&format!("web-{node}")), node).with(json!({ "zone": "one", "hints": hints }))
        });
        cluster.put_service(&service, &endpoints.collect::<Vec<_>>())
    };
    rewrite(&["b"])?;
    goes(cluster, &service, "a", &["b"])?;
    rewrite(&["a", "b"])?;
    goes(cluster, &service, "a", &["a"])
}
