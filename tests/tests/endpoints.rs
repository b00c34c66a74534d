//! Which endpoints answer for a service, as its objects come, change and go.

use anyhow::Result;
use dataplane_common::Protocol;
use dataplane_tests::{
    expect::{self, eventually},
    objects::{Endpoint, Service},
    scenario::{POD_PORT, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, FailureKind, protocol::Transport},
};
use serde_json::json;

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Expects that before long exactly `servers` answer at `service`, from a pod and from a host process.
fn answers(scenario: &Scenario, service: &Service, servers: &[&str]) -> Result<()> {
    for client in [scenario.client(), scenario.cluster.host("b")] {
        for version in IpVersion::BOTH {
            for transport in TRANSPORTS {
                let ask = Ask::new(transport, service.cluster_ip(version));
                eventually(|| expect::spread(client, &ask, 24, servers))?;
            }
        }
    }
    Ok(())
}

/// Expects that before long everybody is refused.
fn refuses(scenario: &Scenario, service: &Service) -> Result<()> {
    for client in [scenario.client(), scenario.cluster.host("b")] {
        for version in IpVersion::BOTH {
            for transport in TRANSPORTS {
                let ask = Ask::new(transport, service.cluster_ip(version));
                eventually(|| expect::refusal(client, &ask))?;
            }
        }
    }
    Ok(())
}

fn slices(service: &Service, endpoints: &[Endpoint], suffix: &str) -> Vec<serde_json::Value> {
    let renamed = |version| {
        let mut slice = service.slice(version, endpoints);
        slice["metadata"]["name"] = format!("{}-{suffix}", service.slice_name(version)).into();
        slice
    };
    IpVersion::BOTH.map(renamed).to_vec()
}

#[test]
fn p20_p25_draining_endpoints_serve_only_while_none_is_ready_and_terminated_ones_never() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    let [a, b, c] = ["web-a", "web-b", "web-c"].map(|pod| Endpoint::new(cluster.pod(pod), cluster.node_of(pod)));
    let both = &scenario.both;
    cluster.put_service(both, &[a.clone(), b.clone().draining(), c.clone().terminated()])?;
    answers(&scenario, both, &["web-a"])?;
    cluster.put_service(both, &[a.clone().draining(), b.clone().draining(), c.clone().terminated()])?;
    answers(&scenario, both, &["web-a", "web-b"])?;
    cluster.put_service(both, &[a.clone().terminated(), b.clone().draining(), c.clone()])?;
    answers(&scenario, both, &["web-c"])?;
    cluster.put_service(both, &[a.terminated(), b.terminated(), c.terminated()])?;
    refuses(&scenario, both)
}

#[test]
fn p07_p08_endpoints_come_from_several_slices_each_with_its_own_port() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    cluster.pod("web-c").serve(8081)?;
    let service = Service::new("several", 20).port(80, POD_PORT);
    let other_port = service.clone().target(8081);
    let pods = |names: &[&str]| Endpoint::pods(cluster, names);
    // `web-b` is in two slices; `web-c` has another port under the same name; nil conditions mean ready.
    let nil = pods(&["web-c"]).remove(0).with(json!({ "conditions": {} }));
    let objects = |first: &[&str]| {
        let mut objects = vec![service.object()];
        objects.extend(slices(&service, &pods(first), "one"));
        objects.extend(slices(&service, &pods(&["web-b"]), "two"));
        objects.extend(slices(&other_port, std::slice::from_ref(&nil), "three"));
        objects
    };
    cluster.put_manifest("several", &objects(&["web-a", "web-b"]))?;
    answers(&scenario, &service, &["web-a", "web-b", "web-c"])?;
    // `web-b` stays, though it has left one of its slices.
    cluster.put_manifest("several", &objects(&["web-a"]))?;
    answers(&scenario, &service, &["web-a", "web-b", "web-c"])?;
    // No slice at all any more, but the service is still there.
    cluster.put_manifest("several", &[service.object()])?;
    refuses(&scenario, &service)
}

#[test]
fn p08_p43_tcp_and_udp_on_the_same_port_may_have_different_targets() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    cluster.pod("web-c").serve_only(Protocol::Udp, 5353)?;
    cluster.pod("web-c").serve_only(Protocol::Tcp, 5354)?;
    let service = Service::new("dns", 21).one(Protocol::Udp, 53, 5353, None).one(Protocol::Tcp, 53, 5354, None);
    cluster.put_service(&service, &Endpoint::pods(cluster, &["web-c"]))?;
    answers(&scenario, &service, &["web-c"])
}

#[test]
fn p05_p06_other_proxies_services_headless_ones_and_external_names_are_left_alone() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    let service = Service::new("changing", 22).port(80, POD_PORT);
    let endpoints = Endpoint::pods(cluster, &["web-b"]);
    let variants = [
        service.clone().labels(json!({ "service.kubernetes.io/service-proxy-name": "another" })),
        service.clone().labels(json!({ "service.kubernetes.io/headless": "" })),
        service.clone().spec(json!({ "clusterIP": "None", "clusterIPs": ["None"] })),
        service.clone().spec(json!({ "type": "ExternalName", "externalName": "example.org", "clusterIP": null,
            "clusterIPs": null })),
    ];
    for variant in variants {
        cluster.put_service(&service, &endpoints)?;
        answers(&scenario, &service, &["web-b"])?;
        cluster.put_service(&variant, &endpoints)?;
        // The network between the nodes refuses what nobody has translated.
        refuses(&scenario, &service)?;
    }
    cluster.put_service(&service, &endpoints)?;
    answers(&scenario, &service, &["web-b"])
}

#[test]
fn p01_p02_p03_external_and_load_balancer_addresses_of_both_families() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    let vip = json!({ "loadBalancer": { "ingress": [
        { "ip": "192.0.2.20" }, { "ip": "2001:db8::20", "ipMode": "VIP" }, { "ip": "192.0.2.30", "ipMode": "Proxy" },
        { "hostname": "lb.example.org" },
    ] } });
    let service = Service::new("outer", 23)
        .node_port(80, POD_PORT, 30099)
        .spec(json!({ "type": "LoadBalancer", "externalIPs": ["192.0.2.10", "2001:db8::10"] }))
        .status(vip);
    cluster.put_service(&service, &Endpoint::pods(cluster, &["web-a"]))?;
    let node = cluster.host("b");
    cluster.external.netns().ip(&format!(
        "route add 192.0.2.0/24 via {}\nroute add 2001:db8::/64 via {}\n",
        node.addresses().v4,
        node.addresses().v6
    ))?;
    for client in [scenario.client(), cluster.host("a"), &cluster.external] {
        for to in ["192.0.2.10:80", "[2001:db8::10]:80", "192.0.2.20:80", "[2001:db8::20]:80"] {
            for transport in TRANSPORTS {
                let ask = Ask::new(transport, to.parse()?);
                eventually(|| expect::answered(client, &ask, &["web-a"]))?;
            }
        }
    }
    let proxied = scenario.client().tcp("192.0.2.30:80".parse()?)?;
    assert!(
        proxied.as_ref().is_err_and(|failure| failure.kind == FailureKind::Unreachable),
        "a load balancer in mode Proxy is left to the network: {proxied:?}"
    );
    Ok(())
}

#[test]
fn a_port_that_a_service_has_not_is_left_to_the_network() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    for version in IpVersion::BOTH {
        for client in [scenario.client(), scenario.cluster.host("a")] {
            for transport in TRANSPORTS {
                let to = (scenario.near.addresses.ip(version), 81).into();
                // The router between the nodes refuses it.
                expect::refusal(client, &Ask::new(transport, to))?;
            }
        }
    }
    Ok(())
}

#[test]
fn p46_the_api_servers_own_service_has_endpoints_on_a_node_that_they_do_not_name() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    cluster.host("a").serve_only(Protocol::Tcp, 6443)?;
    let service = Service::new("kubernetes", 1).one(Protocol::Tcp, 443, 6443, None);
    let endpoint = Endpoint::new(cluster.host("a"), "a").with(json!({ "nodeName": null }));
    cluster.put_service(&service, &[endpoint])?;
    for client in [scenario.client(), cluster.pod("web-c"), cluster.host("a"), cluster.host("b")] {
        for version in IpVersion::BOTH {
            let ask = Ask::new(Transport::Tcp, service.cluster_ip(version)).payload(50_000);
            eventually(|| expect::answered(client, &ask, &["a"]))?;
        }
    }
    Ok(())
}
