//! Suite `Services`: endpoints, ports, types and labels. Traffic policies and affinity have files of their own.

use anyhow::{Context as _, Result};
use dataplane_common::Protocol;
use dataplane_tests::{
    agent::AgentOptions,
    expect::{self, eventually},
    objects::Service,
    scenario::POD_PORT,
    topology::IpVersion,
    traffic::{Ask, protocol::Transport},
};
use serde_json::json;

use crate::bed::{BOTH, Bed, cluster_ips, node_port_service, reached, refused, service, shared};

const TCP: [Transport; 1] = [Transport::Tcp];
const UDP: [Transport; 1] = [Transport::Udp];

/// `should serve a basic endpoint from pods`
#[test]
fn p07_endpoints_come_and_go_with_their_pods() -> Result<()> {
    let bed = shared()?;
    let (service, ips) = with_ips(service("basic"));
    for pods in [&[] as &[&str], &["web-1"], &["web-1", "web-3"], &["web-3"]] {
        bed.put(&service, pods)?;
        match pods {
            [] => refused(&bed.everyone(), &ips, &BOTH)?,
            _ => reached(&bed.everyone(), &ips, &BOTH, pods)?,
        }
    }
    bed.put(&service, &[])?;
    refused(&bed.everyone(), &ips, &BOTH)
}

/// `should serve multiport endpoints from pods`
#[test]
fn p07_p08_each_port_has_endpoints_of_its_own() -> Result<()> {
    let bed = shared()?;
    let service = multiport();
    let endpoints =
        |first: &[&str], second: &[&str]| bed.0.put_manifest(&service.name, &slices(&bed, &service, first, second));
    endpoints(&["web-1"], &[])?;
    reached(&bed.everyone(), &cluster_ips(&service, 80), &TCP, &["web-1"])?;
    refused(&bed.everyone(), &cluster_ips(&service, 81), &TCP)?;
    endpoints(&["web-1"], &["web-3"])?;
    reached(&bed.everyone(), &cluster_ips(&service, 80), &TCP, &["web-1"])?;
    reached(&bed.everyone(), &cluster_ips(&service, 81), &TCP, &["web-3"])?;
    endpoints(&[], &["web-3"])?;
    refused(&bed.everyone(), &cluster_ips(&service, 80), &TCP)?;
    reached(&bed.everyone(), &cluster_ips(&service, 81), &TCP, &["web-3"])?;
    endpoints(&[], &[])?;
    refused(&bed.everyone(), &cluster_ips(&service, 81), &TCP)
}

/// `should be updated after adding or deleting ports`
#[test]
fn p07_p32_ports_are_added_and_deleted() -> Result<()> {
    let bed = shared()?;
    let two = multiport();
    let one = Service { ports: two.ports[..1].to_vec(), ..two.clone() };
    for (service, second) in [(&one, false), (&two, true), (&one, false)] {
        bed.put(service, &["web-1", "web-3"])?;
        reached(&bed.everyone(), &cluster_ips(&two, 80), &TCP, &["web-1", "web-3"])?;
        match second {
            true => reached(&bed.everyone(), &cluster_ips(&two, 81), &TCP, &["web-1", "web-3"])?,
            false => refused(&bed.everyone(), &cluster_ips(&two, 81), &TCP)?,
        }
    }
    Ok(())
}

/// `should support named targetPorts that resolve to different ports on different pods`
#[test]
fn p08_a_named_port_is_another_number_on_each_pod() -> Result<()> {
    let bed = shared()?;
    let (service, ips) = with_ips(service("named"));
    let mut objects = vec![service.object()];
    for (pod, port) in [("web-1", POD_PORT), ("web-2", POD_PORT + 1), ("web-3", POD_PORT + 2)] {
        for version in IpVersion::BOTH {
            let mut slice = service.clone().target(port).slice(version, &[bed.endpoint(pod)]);
            slice["metadata"]["name"] = format!("{}-{pod}", service.slice_name(version)).into();
            objects.push(slice);
        }
    }
    bed.0.put_manifest(&service.name, &objects)?;
    reached(&bed.everyone(), &ips, &BOTH, &["web-1", "web-2", "web-3"])
}

/// `should preserve source pod IP for traffic thru service cluster IP`
#[test]
fn p34_a_server_sees_the_pod_that_asks_for_a_cluster_ip() -> Result<()> {
    let bed = shared()?;
    let (service, ips) = with_ips(service("source"));
    bed.put(&service, &["web-1"])?;
    reached(&bed.clients(), &ips, &BOTH, &["web-1"])?;
    for client in bed.clients() {
        for ip in ips {
            for transport in BOTH {
                let seen = client.ip(IpVersion::of(ip.ip()));
                expect::answered_seeing(client, &Ask::new(transport, ip), &["web-1"], seen)?;
            }
        }
    }
    Ok(())
}

/// `should allow pods to hairpin back to themselves through services`
#[test]
fn p36_a_pod_reaches_itself_through_its_service() -> Result<()> {
    let bed = shared()?;
    let (service, node_port) = node_port_service("hairpin");
    bed.put(&service, &["web-2"])?;
    let node = bed.0.node("a");
    for version in IpVersion::BOTH {
        let to = [service.cluster_ip(version), node.address(version, node_port)];
        reached(&[bed.0.pod("web-2")], &to, &BOTH, &["web-2"])?;
    }
    Ok(())
}

/// `should be able to up and down services`
#[test]
fn p06_services_go_up_and_down_without_touching_each_other() -> Result<()> {
    let bed = shared()?;
    let [first, second, third] = ["up-down-1", "up-down-2", "up-down-3"].map(service);
    let pods = ["web-1", "web-2", "web-3"];
    bed.put(&first, &pods)?;
    bed.put(&second, &pods)?;
    for service in [&first, &second] {
        reached(&bed.everyone(), &cluster_ips(service, 80), &TCP, &pods)?;
    }
    bed.0.delete_service(&first)?;
    refused(&bed.everyone(), &cluster_ips(&first, 80), &TCP)?;
    bed.put(&third, &pods)?;
    for service in [&second, &third] {
        reached(&bed.everyone(), &cluster_ips(service, 80), &TCP, &pods)?;
    }
    Ok(())
}

/// `should work after the service has been recreated`
#[test]
fn p06_a_service_that_is_made_again_works() -> Result<()> {
    let bed = shared()?;
    let (service, ips) = with_ips(service("again"));
    for _ in 0..2 {
        bed.put(&service, &["web-3"])?;
        reached(&bed.everyone(), &ips, &BOTH, &["web-3"])?;
        bed.0.delete_service(&service)?;
        refused(&bed.everyone(), &ips, &BOTH)?;
    }
    Ok(())
}

/// `should work after restarting kube-proxy`
#[test]
fn p52_services_work_after_a_restart() -> Result<()> {
    let mut bed = Bed::start(&[])?;
    let [first, second] = ["restart-proxy-1", "restart-proxy-2"].map(service);
    let pods = ["web-1", "web-2", "web-3"];
    let check = |bed: &Bed| -> Result<()> {
        for service in [&first, &second] {
            reached(&bed.everyone(), &cluster_ips(service, 80), &BOTH, &pods)?;
        }
        Ok(())
    };
    bed.put(&first, &pods)?;
    bed.put(&second, &pods)?;
    check(&bed)?;
    for node in &mut bed.0.nodes {
        node.agent.take().context("the agent runs")?.kill()?;
    }
    check(&bed)?;
    bed.0.start_agents(&AgentOptions::default())?;
    check(&bed)
}

/// `should be able to create a functioning NodePort service`
#[test]
fn p30_a_node_port_service_works_at_every_address() -> Result<()> {
    let bed = shared()?;
    let (service, node_port) = node_port_service("nodeport");
    bed.put(&service, &["web-1", "web-3"])?;
    for version in IpVersion::BOTH {
        let [a, b] = bed.node_ports(version, node_port);
        let all = [service.cluster_ip(version), a, b];
        reached(&bed.everyone(), &all, &BOTH, &["web-1", "web-3"])?;
        reached(&[&bed.0.external], &[a, b], &BOTH, &["web-1", "web-3"])?;
    }
    Ok(())
}

/// `should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node`
#[test]
fn p11_p41_an_external_ip_that_no_node_owns_works() -> Result<()> {
    let bed = shared()?;
    let external = json!({ "externalIPs": ["203.0.113.250", "2001:db8::cb00:71fa"] });
    let service = service("externalip").spec(external);
    bed.put(&service, &["web-1", "web-3"])?;
    let to = ["203.0.113.250:80".parse()?, "[2001:db8::cb00:71fa]:80".parse()?];
    reached(&bed.everyone(), &to, &BOTH, &["web-1", "web-3"])
}

/// `should be able to update service type to NodePort listening on same port number but different protocols`
#[test]
fn p43_a_service_becomes_a_node_port_of_two_protocols() -> Result<()> {
    let bed = shared()?;
    let (both, node_port) = node_port_service("update");
    let mut plain = both.clone();
    plain.ports.truncate(1);
    let tcp = plain.clone();
    plain.ports[0].node_port = None;
    let nodes = IpVersion::BOTH.map(|version| bed.0.node("a").address(version, node_port));
    bed.put(&plain, &["web-1", "web-3"])?;
    reached(&bed.everyone(), &cluster_ips(&both, 80), &TCP, &["web-1", "web-3"])?;
    refused(&bed.clients(), &nodes, &BOTH)?;
    bed.put(&tcp, &["web-1", "web-3"])?;
    reached(&bed.everyone(), &nodes, &TCP, &["web-1", "web-3"])?;
    refused(&bed.clients(), &nodes, &UDP)?;
    bed.put(&both, &["web-1", "web-3"])?;
    reached(&bed.everyone(), &nodes, &BOTH, &["web-1", "web-3"])
}

/// `should be able to change the type from ExternalName to ClusterIP`,
/// `should be able to change the type from ExternalName to NodePort`,
/// `should be able to change the type from ClusterIP to ExternalName`,
/// `should be able to change the type from NodePort to ExternalName`
#[test]
fn p06_a_service_changes_its_type_to_external_name_and_back() -> Result<()> {
    let bed = shared()?;
    let (node_port, port) = node_port_service("typed");
    let mut cluster_ip = node_port.clone();
    cluster_ip.ports.iter_mut().for_each(|port| port.node_port = None);
    let external_name = cluster_ip.clone().spec(json!({
        "type": "ExternalName", "externalName": "example.org", "clusterIP": null, "clusterIPs": null,
    }));
    let (ips, nodes) =
        (cluster_ips(&node_port, 80), IpVersion::BOTH.map(|version| bed.0.node("b").address(version, port)));
    let pods = ["web-2", "web-4"];
    for step in [&external_name, &cluster_ip, &external_name, &node_port, &external_name] {
        bed.put(step, &pods)?;
        let (is_named, has_node_port) =
            (std::ptr::eq(step, &raw const external_name), std::ptr::eq(step, &raw const node_port));
        match is_named {
            true => refused(&bed.everyone(), &ips, &BOTH)?,
            false => reached(&bed.everyone(), &ips, &BOTH, &pods)?,
        }
        match has_node_port {
            true => reached(&bed.everyone(), &nodes, &BOTH, &pods)?,
            false => refused(&bed.clients(), &nodes, &BOTH)?,
        }
    }
    Ok(())
}

/// `should release NodePorts on delete`
#[test]
fn p30_a_node_port_is_free_after_its_service() -> Result<()> {
    let bed = shared()?;
    let (first, port) = node_port_service("release");
    let mut second = service("release-again");
    second.ports.iter_mut().for_each(|other| other.node_port = Some(port));
    let nodes = IpVersion::BOTH.map(|version| bed.0.node("a").address(version, port));
    bed.put(&first, &["web-1"])?;
    reached(&bed.everyone(), &nodes, &BOTH, &["web-1"])?;
    bed.0.delete_service(&first)?;
    refused(&bed.everyone(), &nodes, &BOTH)?;
    // A process may listen there now.
    let free = (bed.0.host("a").ip(IpVersion::V4), port).into();
    bed.0.host("a").traffic()?.serve("a", Protocol::Udp, free)?;
    eventually(|| expect::answered(bed.0.pod("client-b"), &Ask::new(Transport::Udp, free), &["a"]))?;
    bed.put(&second, &["web-4"])?;
    reached(&bed.everyone(), &nodes, &BOTH, &["web-4"])
}

/// `should create endpoints for unready pods`,
/// `should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true`,
/// `should not be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is false`
#[test]
fn p07_p25_unready_pods_serve_only_where_they_are_published() -> Result<()> {
    let bed = shared()?;
    let (service, port) = node_port_service("unready");
    let mut to = cluster_ips(&service, 80).to_vec();
    to.extend(IpVersion::BOTH.iter().flat_map(|&version| bed.node_ports(version, port)));
    // What the controller of slices writes for a pod that is not ready, and then terminates.
    let with = |ready: bool, terminating: bool| {
        let conditions = json!({ "ready": ready, "serving": false, "terminating": terminating });
        bed.0.put_service(&service, &[bed.endpoint("web-1").with(json!({ "conditions": conditions }))])
    };
    with(true, false)?;
    reached(&bed.everyone(), &to, &BOTH, &["web-1"])?;
    with(false, true)?;
    refused(&bed.everyone(), &to, &BOTH)?;
    with(true, true)?;
    reached(&bed.everyone(), &to, &BOTH, &["web-1"])?;
    with(false, false)?;
    refused(&bed.everyone(), &to, &BOTH)
}

/// `should implement service.kubernetes.io/service-proxy-name`,
/// `should implement service.kubernetes.io/headless`
#[test]
fn p05_labels_take_a_service_away_and_give_it_back() -> Result<()> {
    let bed = shared()?;
    let labels = [
        json!({ "service.kubernetes.io/service-proxy-name": "foo-bar" }),
        json!({ "service.kubernetes.io/headless": "" }),
    ];
    for labels in labels {
        let (toggled, disabled) = (service("toggled"), service("disabled").labels(labels.clone()));
        let pods = ["web-1", "web-2", "web-3"];
        bed.put(&disabled, &pods)?;
        for service in [&toggled, &toggled.clone().labels(labels), &toggled] {
            bed.put(service, &pods)?;
            match service.labels == json!({}) {
                true => reached(&bed.everyone(), &cluster_ips(service, 80), &BOTH, &pods)?,
                false => refused(&bed.everyone(), &cluster_ips(service, 80), &BOTH)?,
            }
            refused(&bed.everyone(), &cluster_ips(&disabled, 80), &TCP)?;
        }
    }
    Ok(())
}

/// `should be rejected when no endpoints exist`,
/// `should be rejected for evicted pods (no endpoints exist)`
#[test]
fn p31_a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let bed = shared()?;
    // A pod that was evicted has left its slice, or is in it without any condition met.
    let evicted = json!({ "conditions": { "ready": false, "serving": false, "terminating": false } });
    for endpoints in [vec![], vec![bed.endpoint("web-1").with(evicted)]] {
        let service = service("no-pods").spec(json!({ "publishNotReadyAddresses": true }));
        bed.0.put_service(&service, &endpoints)?;
        refused(&bed.everyone(), &cluster_ips(&service, 80), &BOTH)?;
        for client in bed.everyone() {
            for to in cluster_ips(&service, 80) {
                expect::refused(client, &Ask::new(Transport::Tcp, to), expect::AT_ONCE)?;
            }
        }
    }
    Ok(())
}

/// `should serve endpoints on same port and different protocols`,
/// `should serve endpoints on same port and different protocol for internal traffic on Type LoadBalancer`
#[test]
fn p43_one_port_of_two_protocols_loses_and_gets_back_each() -> Result<()> {
    let bed = shared()?;
    for spec in [json!({}), json!({ "type": "LoadBalancer" })] {
        let (both, ips) = with_ips(service("multiprotocol").spec(spec));
        let only = |protocol| {
            let ports = both.ports.iter().filter(|port| port.protocol == protocol).cloned().collect();
            Service { ports, ..both.clone() }
        };
        bed.put(&both, &["web-1"])?;
        reached(&bed.everyone(), &ips, &BOTH, &["web-1"])?;
        bed.put(&only(Protocol::Tcp), &["web-1"])?;
        refused(&bed.everyone(), &ips, &UDP)?;
        reached(&bed.everyone(), &ips, &TCP, &["web-1"])?;
        bed.put(&only(Protocol::Udp), &["web-1"])?;
        refused(&bed.everyone(), &ips, &TCP)?;
        reached(&bed.everyone(), &ips, &UDP, &["web-1"])?;
    }
    Ok(())
}

fn with_ips(service: Service) -> (Service, [std::net::SocketAddr; 2]) {
    let ips = cluster_ips(&service, 80);
    (service, ips)
}

/// TCP on port 80 and 81, served on two ports.
fn multiport() -> Service {
    let service = service("multiport");
    Service { ports: Vec::new(), ..service }.one(Protocol::Tcp, 80, POD_PORT, None).one(
        Protocol::Tcp,
        81,
        POD_PORT + 1,
        None,
    )
}

/// The service with a slice for each of its ports, as pods have that offer only one of them.
fn slices(bed: &Bed, service: &Service, first: &[&str], second: &[&str]) -> Vec<serde_json::Value> {
    let mut objects = vec![service.object()];
    for (index, pods) in [first, second].into_iter().enumerate() {
        let one = Service { ports: vec![service.ports[index].clone()], ..service.clone() };
        let endpoints: Vec<_> = pods.iter().map(|pod| bed.endpoint(pod)).collect();
        for version in IpVersion::BOTH {
            let mut slice = one.slice(version, &endpoints);
            slice["metadata"]["name"] = format!("{}-{index}", one.slice_name(version)).into();
            objects.push(slice);
        }
    }
    objects
}
