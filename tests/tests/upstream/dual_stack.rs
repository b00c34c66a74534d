//! Suite `[Feature:IPv6DualStack]`: services of one family and of both, in either order.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use dataplane_tests::{
    expect::{self, eventually},
    objects::Service,
    scenario::POD_PORT,
    topology::IpVersion,
    traffic::Ask,
};
use serde_json::{Value, json};

use crate::bed::{BOTH, Bed, node_port_service, reached, refused, shared};

const PODS: [&str; 2] = ["web-1", "web-3"];

/// The families of a service as its specification has them, the first one first.
fn families(service: &Service, versions: &[IpVersion]) -> Value {
    let ips: Vec<IpAddr> = versions.iter().map(|&version| service.addresses.ip(version)).collect();
    let names: Vec<String> = versions.iter().map(ToString::to_string).collect();
    let policy = if versions.len() == 1 { "SingleStack" } else { "RequireDualStack" };
    json!({ "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": names, "ipFamilyPolicy": policy })
}

/// Where a service answers in one family: its cluster IP, and both nodes.
fn addresses(bed: &Bed, service: &Service, node_port: u16, version: IpVersion) -> Vec<SocketAddr> {
    let mut addresses = vec![service.cluster_ip(version)];
    addresses.extend(bed.node_ports(version, node_port));
    addresses
}

/// A service with `versions` is reached in these, and in no other.
fn check(name: &str, versions: &[IpVersion]) -> Result<()> {
    let bed = shared()?;
    let (service, node_port) = node_port_service(name);
    let service = service.clone().spec(families(&service, versions));
    // The controller writes slices of the service's own families only.
    let endpoints = PODS.map(|pod| bed.endpoint(pod));
    let mut objects = vec![service.object()];
    objects.extend(versions.iter().map(|&version| service.slice(version, &endpoints)));
    bed.0.put_manifest(&service.name, &objects)?;
    for version in IpVersion::BOTH {
        let addresses = addresses(&bed, &service, node_port, version);
        match versions.contains(&version) {
            true => reached(&bed.everyone(), &addresses, &BOTH, &PODS)?,
            false => refused(&bed.everyone(), &addresses, &BOTH)?,
        }
    }
    Ok(())
}

/// `should create service with ipv4 cluster ip`,
/// `should create a single stack service with cluster ip from primary service range`
#[test]
fn p01_a_service_of_ipv4_alone() -> Result<()> {
    check("ipv4", &[IpVersion::V4])
}

/// `should create service with ipv6 cluster ip`
#[test]
fn p01_a_service_of_ipv6_alone() -> Result<()> {
    check("ipv6", &[IpVersion::V6])
}

/// `should create service with ipv4,v6 cluster ip`
#[test]
fn p01_a_service_of_ipv4_and_ipv6() -> Result<()> {
    check("ipv4-ipv6", &[IpVersion::V4, IpVersion::V6])
}

/// `should create service with ipv6,v4 cluster ip`
#[test]
fn p01_a_service_of_ipv6_and_ipv4() -> Result<()> {
    check("ipv6-ipv4", &[IpVersion::V6, IpVersion::V4])
}

/// A service that gets its second family later, and loses it: an update that the API allows.
#[test]
fn p01_a_family_is_added_to_a_service_and_taken_away() -> Result<()> {
    let bed = shared()?;
    let (service, node_port) = node_port_service("upgraded");
    let single = service.clone().spec(families(&service, &[IpVersion::V4]));
    for (service, v6) in [(&single, false), (&service, true), (&single, false)] {
        bed.put(service, &PODS)?;
        reached(&bed.clients(), &addresses(&bed, service, node_port, IpVersion::V4), &BOTH, &PODS)?;
        let addresses = addresses(&bed, service, node_port, IpVersion::V6);
        match v6 {
            true => reached(&bed.clients(), &addresses, &BOTH, &PODS)?,
            false => refused(&bed.clients(), &addresses, &BOTH)?,
        }
    }
    Ok(())
}

/// `should be able to reach pod on ipv4 and ipv6 ip`
#[test]
fn p46_pods_are_reached_in_both_families() -> Result<()> {
    let bed = shared()?;
    for version in IpVersion::BOTH {
        for client in bed.everyone() {
            for pod in PODS {
                let ask = Ask::new(BOTH[0], (bed.0.pod(pod).ip(version), POD_PORT).into());
                // As in `networking`.
                let answer = eventually(|| expect::answered(client, &ask, &[pod]))?;
                ensure!(answer.seen == answer.local, "{} is seen as {}", answer.local, answer.seen);
            }
        }
    }
    Ok(())
}
