//! Suite `Services`: session affinity.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Result, ensure};
use dataplane_tests::{
    cluster::Site,
    expect::{self, eventually},
    objects::Service,
    topology::IpVersion,
    traffic::Ask,
};
use serde_json::{Value, json};

use crate::bed::{BOTH, Bed, cluster_ips, node_port_service, service, shared};

const PODS: [&str; 3] = ["web-1", "web-2", "web-3"];
/// The short timeout of the titles that wait for its end.
const SECONDS: u64 = 4;

fn sticky() -> Value {
    json!({ "sessionAffinity": "ClientIP" })
}

/// Every client with every address it asks at; the clients of one address are bound each for itself.
fn asks<'b>(bed: &'b Bed, addresses: &[SocketAddr]) -> Vec<(&'b Site, Ask)> {
    let each = |client| addresses.iter().flat_map(move |&to| BOTH.map(|transport| (client, Ask::new(transport, to))));
    bed.everyone().into_iter().flat_map(each).collect()
}

/// Expects that before long one server answers everything that a client asks.
fn stays(bed: &Bed, addresses: &[SocketAddr]) -> Result<()> {
    for (client, ask) in asks(bed, addresses) {
        eventually(|| {
            let report = client.repeat(&ask, 20)?;
            expect::lossless(client.name(), &report, 20)?;
            ensure!(
                report.servers.len() == 1,
                "{} -> {} {}: {:?}",
                client.name(),
                ask.to,
                ask.transport,
                report.servers
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Expects that before long every server answers.
fn changes(bed: &Bed, addresses: &[SocketAddr]) -> Result<()> {
    asks(bed, addresses)
        .iter()
        .try_for_each(|(client, ask)| eventually(|| expect::spread(client, ask, 32, &PODS)).map(drop))
}

/// A service and the addresses it is asked at: its cluster IPs, or one node's NodePort.
fn cluster_ip(name: &str) -> (Service, Vec<SocketAddr>) {
    let service = service(name);
    let addresses = cluster_ips(&service, 80).to_vec();
    (service, addresses)
}

fn node_port(bed: &Bed, name: &str) -> (Service, Vec<SocketAddr>) {
    let (service, port) = node_port_service(name);
    (service, IpVersion::BOTH.map(|version| bed.0.node("b").address(version, port)).to_vec())
}

fn works(bed: &Bed, (service, addresses): (Service, Vec<SocketAddr>)) -> Result<()> {
    bed.put(&service.spec(sticky()), &PODS)?;
    stays(bed, &addresses)
}

/// `should have session affinity work for service with type clusterIP`
#[test]
fn p27_affinity_works_for_cluster_ips() -> Result<()> {
    works(&*shared()?, cluster_ip("affinity-clusterip"))
}

/// `should have session affinity work for NodePort service`
#[test]
fn p27_affinity_works_for_node_ports() -> Result<()> {
    let bed = shared()?;
    works(&bed, node_port(&bed, "affinity-nodeport"))
}

fn switches(bed: &Bed, (service, addresses): (Service, Vec<SocketAddr>)) -> Result<()> {
    bed.put(&service.clone().spec(sticky()), &PODS)?;
    stays(bed, &addresses)?;
    bed.put(&service, &PODS)?;
    changes(bed, &addresses)?;
    bed.put(&service.spec(sticky()), &PODS)?;
    stays(bed, &addresses)
}

/// `should be able to switch session affinity for service with type clusterIP`
#[test]
fn p28_affinity_is_switched_for_cluster_ips() -> Result<()> {
    switches(&*shared()?, cluster_ip("affinity-clusterip-transition"))
}

/// `should be able to switch session affinity for NodePort service`
#[test]
fn p28_affinity_is_switched_for_node_ports() -> Result<()> {
    let bed = shared()?;
    switches(&bed, node_port(&bed, "affinity-nodeport-transition"))
}

/// The server that answers each question.
fn servers(asks: &[(&Site, Ask)]) -> Result<Vec<String>> {
    asks.iter().map(|(client, ask)| Ok(expect::answered(client, ask, &PODS)?.server)).collect()
}

/// Every use prolongs it; unused for long enough, it ends. Of sixteen clients one is bound to another server then, except
/// once in three to the sixteenth.
fn times_out(bed: &Bed, (service, addresses): (Service, Vec<SocketAddr>)) -> Result<()> {
    let timeout = json!({ "clientIP": { "timeoutSeconds": SECONDS } });
    bed.put(&service.spec(json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": timeout })), &PODS)?;
    let asks = asks(bed, &addresses);
    asks.iter().try_for_each(|(client, ask)| eventually(|| expect::answered(client, ask, &PODS)).map(drop))?;
    let bound = servers(&asks)?;
    // Together longer than the timeout, each pause much shorter: sixteen clients take their time on a busy machine.
    for _ in 0..=SECONDS {
        thread::sleep(Duration::from_secs(1));
        ensure!(servers(&asks)? == bound, "a client that goes on asking has changed its server");
    }
    thread::sleep(Duration::from_secs(SECONDS) + Duration::from_millis(1_500));
    ensure!(servers(&asks)? != bound, "nobody has changed its server after the timeout");
    Ok(())
}

/// `should have session affinity timeout work for service with type clusterIP`
#[test]
fn p27_affinity_times_out_for_cluster_ips() -> Result<()> {
    times_out(&*shared()?, cluster_ip("affinity-clusterip-timeout"))
}

/// `should have session affinity timeout work for NodePort service`
#[test]
fn p27_affinity_times_out_for_node_ports() -> Result<()> {
    let bed = shared()?;
    times_out(&bed, node_port(&bed, "affinity-nodeport-timeout"))
}
