//! Suite `Services`: traffic policies, and endpoints that terminate.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use dataplane_tests::{expect::eventually, http, objects::Service, scenario::HOST_PORT, topology::IpVersion};
use serde_json::json;

use crate::bed::{BOTH, Bed, cluster_ips, node_port_service, reached, service, shared, silent};

fn internal_local(name: &str) -> Service {
    service(name).spec(json!({ "internalTrafficPolicy": "Local" }))
}

/// `should respect internalTrafficPolicy=Local Pod to Pod`,
/// `should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod`
#[test]
fn p21_internal_policy_local_keeps_requests_on_their_node() -> Result<()> {
    let bed = shared()?;
    let service = internal_local("svc-itp");
    bed.put(&service, &["web-1"])?;
    let ips = cluster_ips(&service, 80);
    reached(&[bed.0.pod("client-a"), bed.0.host("a")], &ips, &BOTH, &["web-1"])?;
    silent(&[bed.0.pod("client-b"), bed.0.host("b")], &ips, &BOTH)
}

/// `should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)`
#[test]
fn p21_p46_internal_policy_local_reaches_a_backend_in_the_nodes_network() -> Result<()> {
    let bed = shared()?;
    let service = internal_local("svc-itp-host").target(HOST_PORT);
    bed.0.put_service(&service, &[bed.host_endpoint("a")])?;
    let ips = cluster_ips(&service, 80);
    reached(&[bed.0.pod("client-a"), bed.0.host("a")], &ips, &BOTH, &["a"])?;
    silent(&[bed.0.pod("client-b"), bed.0.host("b")], &ips, &BOTH)
}

/// `should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster`
#[test]
fn p20_the_last_endpoint_serves_while_it_terminates() -> Result<()> {
    let bed = shared()?;
    let service = service("terminating");
    bed.put(&service, &["web-1"])?;
    reached(&bed.everyone(), &cluster_ips(&service, 80), &BOTH, &["web-1"])?;
    bed.0.put_service(&service, &[bed.endpoint("web-1").draining()])?;
    reached(&bed.everyone(), &cluster_ips(&service, 80), &BOTH, &["web-1"])
}

/// `should fallback to local terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Local`
#[test]
fn p21_the_last_local_endpoint_serves_while_it_terminates() -> Result<()> {
    let bed = shared()?;
    let service = internal_local("terminating-local");
    bed.0.put_service(&service, &[bed.endpoint("web-1").draining()])?;
    let ips = cluster_ips(&service, 80);
    reached(&[bed.0.pod("client-a"), bed.0.host("a")], &ips, &BOTH, &["web-1"])?;
    silent(&[bed.0.pod("client-b"), bed.0.host("b")], &ips, &BOTH)
}

/// `should fallback to terminating endpoints when there are no ready endpoints with externallTrafficPolicy=Cluster`
#[test]
fn p20_p22_a_node_port_serves_from_an_endpoint_that_terminates() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("terminating-nodeport");
    bed.0.put_service(&service, &[bed.endpoint("web-1").draining()])?;
    for version in IpVersion::BOTH {
        let nodes = bed.node_ports(version, port);
        reached(&bed.everyone(), &nodes, &BOTH, &["web-1"])?;
        reached(&[&bed.0.external], &nodes, &BOTH, &["web-1"])?;
    }
    Ok(())
}

/// `should fallback to local terminating endpoints when there are no ready endpoints with externalTrafficPolicy=Local`
#[test]
fn p21_p34_a_node_port_with_policy_local_serves_from_a_local_endpoint_that_terminates() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("terminating-external");
    let service = service.spec(json!({ "externalTrafficPolicy": "Local" }));
    bed.0.put_service(&service, &[bed.endpoint("web-1").draining()])?;
    let [client_a, client_b] = bed.clients();
    for version in IpVersion::BOTH {
        let [at_a, at_b] = bed.node_ports(version, port);
        reached(&[client_a, client_b, &bed.0.external], &[at_a], &BOTH, &["web-1"])?;
        // From another node it is from outside, and from its own node it is neither; so it is with kube-proxy.
        silent(&[&bed.0.external], &[at_b], &BOTH)?;
        reached(&[client_b], &[at_b], &BOTH, &["web-1"])?;
    }
    Ok(())
}

/// The status of a health check port on node `a`.
fn status(bed: &Bed, port: u16) -> Result<u16> {
    let node = bed.0.node("a").address(IpVersion::V4, port);
    Ok(http::get(bed.0.pod("client-a").netns(), node, "/healthz")?.status)
}

fn answers(bed: &Bed, port: u16, expected: u16) -> Result<()> {
    eventually(|| {
        let status = status(bed, port)?;
        ensure!(status == expected, "{status}, not {expected}");
        Ok(())
    })
    .with_context(|| format!("health check port {port}"))
}

/// `should fail health check node port if there are only terminating endpoints`
#[test]
fn p73_a_health_check_port_fails_while_the_last_endpoint_still_serves() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("terminating-health");
    let health = 32_500;
    let service = service.spec(json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": health,
    }));
    bed.put(&service, &["web-1"])?;
    answers(&bed, health, 200)?;
    bed.0.put_service(&service, &[bed.endpoint("web-1").draining()])?;
    answers(&bed, health, 503)?;
    let at: SocketAddr = bed.0.node("a").address(IpVersion::V4, port);
    reached(&[bed.0.pod("client-a"), &bed.0.external], &[at], &BOTH, &["web-1"])
}

/// `should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes`
#[test]
fn p34_p72_node_port_and_health_check_port_follow_the_external_policy() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("external-policy");
    let health = 32_501;
    let local = service.clone().spec(json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": health,
    }));
    let cluster = service.spec(json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Cluster" }));
    let outside = [&bed.0.external];
    for version in IpVersion::BOTH {
        let [at_a, at_b] = bed.node_ports(version, port);
        bed.put(&local, &["web-1"])?;
        answers(&bed, health, 200)?;
        reached(&outside, &[at_a], &BOTH, &["web-1"])?;
        silent(&outside, &[at_b], &BOTH)?;
        bed.put(&cluster, &["web-1"])?;
        reached(&outside, &[at_a, at_b], &BOTH, &["web-1"])?;
        eventually(|| {
            ensure!(status(&bed, health).is_err(), "the health check port still answers");
            Ok(())
        })?;
    }
    bed.put(&local, &["web-1"])?;
    answers(&bed, health, 200)
}
