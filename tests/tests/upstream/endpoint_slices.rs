//! Suites `EndpointSlice` and `EndpointSliceMirroring`: where a service's endpoints come from.

use anyhow::Result;
use dataplane_common::Protocol;
use dataplane_tests::{
    objects::{Endpoint, Service},
    scenario::POD_PORT,
    topology::IpVersion,
    traffic::protocol::Transport,
};
use serde_json::{Value, json};

use crate::bed::{BOTH, Bed, cluster_ips, reached, refused, service, shared};

/// Slices of `service` for both families with `endpoints`, named after `suffix`.
fn slices(service: &Service, suffix: &str, endpoints: &[Endpoint]) -> Vec<Value> {
    let slice = |version| {
        let mut slice = service.slice(version, endpoints);
        slice["metadata"]["name"] = format!("{}-{suffix}", service.slice_name(version)).into();
        slice
    };
    IpVersion::BOTH.map(slice).to_vec()
}

/// `should support a Service with multiple ports specified in multiple EndpointSlices`
#[test]
fn p07_two_slices_have_a_port_each() -> Result<()> {
    let bed = shared()?;
    let ports = |service: Service| {
        service.one(Protocol::Tcp, 8090, POD_PORT, None).one(Protocol::Tcp, 9090, POD_PORT + 1, None)
    };
    let service = ports(Service { ports: Vec::new(), ..service("example-int-port") });
    let one = |index: usize| Service { ports: vec![service.ports[index].clone()], ..service.clone() };
    let mut objects = vec![service.object()];
    objects.extend(slices(&one(0), "8090", &[bed.endpoint("web-1")]));
    objects.extend(slices(&one(1), "9090", &[bed.endpoint("web-3")]));
    bed.0.put_manifest(&service.name, &objects)?;
    reached(&bed.everyone(), &cluster_ips(&service, 8090), &[Transport::Tcp], &["web-1"])?;
    reached(&bed.everyone(), &cluster_ips(&service, 9090), &[Transport::Tcp], &["web-3"])
}

/// `should support a Service with multiple endpoint IPs specified in multiple EndpointSlices`
#[test]
fn p07_two_slices_have_endpoints_with_other_ports_each() -> Result<()> {
    let bed = shared()?;
    let service = service("example-custom-endpoints");
    let mut objects = vec![service.object()];
    objects.extend(slices(&service, "first", &[bed.endpoint("web-1"), bed.endpoint("web-2")]));
    let second = service.clone().target(POD_PORT + 1);
    objects.extend(slices(&second, "second", &[bed.endpoint("web-3"), bed.endpoint("web-4")]));
    bed.0.put_manifest(&service.name, &objects)?;
    reached(&bed.everyone(), &cluster_ips(&service, 80), &BOTH, &["web-1", "web-2", "web-3", "web-4"])
}

/// `should create Endpoints and EndpointSlices for Pods matching a Service`,
/// `should create and delete Endpoints and EndpointSlices for a Service with a selector specified`:
/// the objects are the controller's; what follows from them is shown here, slices that come, change hands and go.
#[test]
fn p07_a_service_follows_slices_that_come_and_go() -> Result<()> {
    let bed = shared()?;
    let service = service("example-slices");
    let put = |parts: &[(&str, &[&str])]| {
        let mut objects = vec![service.object()];
        for (suffix, pods) in parts {
            let endpoints: Vec<_> = pods.iter().map(|pod| bed.endpoint(pod)).collect();
            objects.extend(slices(&service, suffix, &endpoints));
        }
        bed.0.put_manifest(&service.name, &objects)
    };
    let ips = cluster_ips(&service, 80);
    put(&[])?;
    refused(&bed.everyone(), &ips, &BOTH)?;
    put(&[("one", &["web-1"])])?;
    reached(&bed.everyone(), &ips, &BOTH, &["web-1"])?;
    put(&[("one", &["web-1", "web-2"]), ("two", &["web-3"])])?;
    reached(&bed.everyone(), &ips, &BOTH, &["web-1", "web-2", "web-3"])?;
    // An endpoint moves from one slice to the other, and one slice becomes empty.
    put(&[("one", &[]), ("two", &["web-2", "web-3"])])?;
    reached(&bed.everyone(), &ips, &BOTH, &["web-2", "web-3"])?;
    put(&[("one", &[])])?;
    refused(&bed.everyone(), &ips, &BOTH)
}

/// `should have Endpoints and EndpointSlices pointing to API Server`:
/// endpoints of the API server are in the nodes' network and name no node.
#[test]
fn p46_endpoints_without_a_node_are_served() -> Result<()> {
    let bed = shared()?;
    let service = service("like-kubernetes").target(dataplane_tests::scenario::HOST_PORT);
    let endpoints = ["a", "b"].map(|node| bed.host_endpoint(node).with(json!({ "nodeName": null })));
    bed.0.put_service(&service, &endpoints)?;
    reached(&bed.clients(), &cluster_ips(&service, 80), &BOTH, &["a", "b"])?;
    reached(&[bed.0.host("a"), bed.0.host("b")], &cluster_ips(&service, 80), &BOTH, &["a", "b"])
}

/// `should mirror a custom Endpoints resource through create update and delete`,
/// `should mirror a custom Endpoint with multiple subsets and same IP address`:
/// mirroring is the controller's; it writes one slice per subset, in which an address may come again with other ports.
#[test]
fn p07_one_address_is_in_several_slices_with_other_ports() -> Result<()> {
    let bed = shared()?;
    let service = mirrored();
    let one = |index: usize| Service { ports: vec![service.ports[index].clone()], ..service.clone() };
    let write = |bed: &Bed, second: &[&str]| {
        let mut objects = vec![service.object()];
        objects.extend(slices(&one(0), "first", &[bed.endpoint("web-1")]));
        let endpoints: Vec<_> = second.iter().map(|pod| bed.endpoint(pod)).collect();
        objects.extend(slices(&one(1), "second", &endpoints));
        bed.0.put_manifest(&service.name, &objects)
    };
    let (first, second) = (cluster_ips(&service, 80), cluster_ips(&service, 81));
    write(&bed, &["web-1"])?;
    reached(&bed.everyone(), &first, &[Transport::Tcp], &["web-1"])?;
    reached(&bed.everyone(), &second, &[Transport::Tcp], &["web-1"])?;
    write(&bed, &["web-4"])?;
    reached(&bed.everyone(), &second, &[Transport::Tcp], &["web-4"])?;
    write(&bed, &[])?;
    reached(&bed.everyone(), &first, &[Transport::Tcp], &["web-1"])?;
    refused(&bed.everyone(), &second, &[Transport::Tcp])
}

fn mirrored() -> Service {
    Service { ports: Vec::new(), ..service("example-mirrored") }.one(Protocol::Tcp, 80, POD_PORT, None).one(
        Protocol::Tcp,
        81,
        POD_PORT + 1,
        None,
    )
}
