//! Every kind of client reaches every kind of frontend, with both pod wirings and every way to attach.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use dataplane_tests::{
    cluster::Site,
    expect,
    scenario::{BOTH, EMPTY, FAR, Failures, HOST_FAR, HOST_NEAR, NEAR, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];

/// Whether the node's own processes are translated at connect time; without that they have no NodePorts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HostSockets {
    Translated,
    Untranslated,
}

/// One row: who asks whom, who answers, and how the server sees the client where that matters.
type Row<'s> = (&'s str, &'s Site, SocketAddr, &'s [&'s str], Option<IpAddr>);

fn rows(scenario: &Scenario, version: IpVersion, sockets: HostSockets) -> Vec<Row<'_>> {
    let cluster = &scenario.cluster;
    let (client, web_a, outside) = (scenario.client(), cluster.pod("web-a"), &cluster.external);
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (host, host_b) = (&a.host, &b.host);
    let pod_ip = Some(client.ip(version));
    let node_ip = Some(host.ip(version));
    let outside_ip = Some(outside.ip(version));
    let (near, far, both) =
        (scenario.near.cluster_ip(version), scenario.far.cluster_ip(version), scenario.both.cluster_ip(version));
    let (host_near, host_far) = (scenario.host_near.cluster_ip(version), scenario.host_far.cluster_ip(version));
    let mut rows: Vec<Row<'_>> = vec![
        ("pod, ClusterIP, local backend", client, near, &["web-a"], pod_ip),
        ("pod, ClusterIP, remote backend", client, far, &["web-b"], pod_ip),
        ("pod, ClusterIP, both", client, both, &["web-a", "web-b"], pod_ip),
        ("pod, ClusterIP, own node's process", client, host_near, &["a"], pod_ip),
        ("pod, ClusterIP, other node's process", client, host_far, &["b"], pod_ip),
        ("pod, NodePort of its node, local backend", client, a.address(version, NEAR), &["web-a"], None),
        ("pod, NodePort of its node, remote backend", client, a.address(version, FAR), &["web-b"], None),
        ("pod, NodePort of its node, own node's process", client, a.address(version, HOST_NEAR), &["a"], None),
        ("pod, NodePort of the other node", client, b.address(version, NEAR), &["web-a"], None),
        ("pod, hairpin by ClusterIP", web_a, near, &["web-a"], None),
        ("pod, hairpin by NodePort", web_a, a.address(version, NEAR), &["web-a"], None),
        ("outside, NodePort, local backend", outside, a.address(version, NEAR), &["web-a"], outside_ip),
        ("outside, NodePort, remote backend", outside, a.address(version, FAR), &["web-b"], node_ip),
        ("outside, NodePort, both", outside, b.address(version, BOTH), &["web-a", "web-b"], None),
        ("outside, NodePort, own node's process", outside, a.address(version, HOST_NEAR), &["a"], outside_ip),
        ("outside, NodePort, other node's process", outside, a.address(version, HOST_FAR), &["b"], node_ip),
    ];
    rows.extend([
        ("host, ClusterIP, local backend", host, near, &["web-a"] as &[_], None),
        ("host, ClusterIP, remote backend", host, far, &["web-b"], None),
        ("host, ClusterIP, other node's process", host, host_far, &["b"], None),
    ]);
    if sockets == HostSockets::Translated {
        rows.extend([
            ("host, ClusterIP, own process", host, host_near, &["a"] as &[_], None),
            ("host, NodePort of its address, local backend", host, a.address(version, NEAR), &["web-a"], None),
            ("host, NodePort of its address, remote backend", host, a.address(version, FAR), &["web-b"], None),
            ("host, NodePort on loopback, local", host, (version.loopback(), NEAR).into(), &["web-a"], None),
            ("host, NodePort on loopback, remote", host, (version.loopback(), FAR).into(), &["web-b"], None),
            ("host, NodePort of the other node", host_b, a.address(version, NEAR), &["web-a"], None),
        ]);
    }
    rows
}

fn refusals(scenario: &Scenario, version: IpVersion) -> Vec<(&str, &Site, SocketAddr)> {
    let cluster = &scenario.cluster;
    let empty = scenario.empty.cluster_ip(version);
    let node_port = cluster.node("a").address(version, EMPTY);
    vec![
        ("pod, ClusterIP without endpoints", scenario.client(), empty),
        ("host, ClusterIP without endpoints", cluster.host("a"), empty),
        ("pod, NodePort without endpoints", scenario.client(), node_port),
        ("outside, NodePort without endpoints", &cluster.external, node_port),
    ]
}

fn check(wiring: Wiring, arguments: &[&str], sockets: HostSockets) -> Result<()> {
    let scenario = Scenario::new(wiring, arguments)?;
    let mut failures = Failures::default();
    for version in IpVersion::BOTH {
        for (what, client, to, servers, seen) in rows(&scenario, version, sockets) {
            for transport in TRANSPORTS {
                let ask = Ask::new(transport, to).payload(if transport == Transport::Tcp { 100_000 } else { 1_200 });
                let outcome = match seen {
                    Some(seen) => expect::answered_seeing(client, &ask, servers, seen),
                    None => expect::answered(client, &ask, servers),
                };
                failures.note(what, version, transport, outcome);
            }
        }
        for (what, client, to) in refusals(&scenario, version) {
            for transport in [Transport::Tcp, Transport::Udp] {
                let outcome = expect::refused(client, &Ask::new(transport, to), expect::AT_ONCE);
                failures.note(what, version, transport, outcome);
            }
        }
    }
    failures.none()
}

#[test]
fn p30_p31_p36_p39_p46_routed_pods() -> Result<()> {
    check(Wiring::Routed, &[], HostSockets::Translated)
}

#[test]
fn p30_p31_p36_p39_p46_bridged_pods() -> Result<()> {
    check(Wiring::Bridge, &[], HostSockets::Translated)
}

#[test]
fn p30_p31_p36_p39_p46_routed_pods_with_clsact_filters() -> Result<()> {
    check(Wiring::Routed, &["--tc=clsact"], HostSockets::Translated)
}

#[test]
fn p30_p31_p36_p46_bridged_pods_with_clsact_filters_and_no_socket_programs() -> Result<()> {
    check(Wiring::Bridge, &["--tc=clsact", "--socket-lb=off"], HostSockets::Untranslated)
}

#[test]
fn p30_p31_p36_p46_routed_pods_without_socket_programs() -> Result<()> {
    check(Wiring::Routed, &["--tc=tcx", "--socket-lb=off"], HostSockets::Untranslated)
}

#[test]
fn p30_p31_p36_p39_p46_routed_pods_whose_own_sockets_are_translated() -> Result<()> {
    check(Wiring::Routed, &["--socket-lb=all"], HostSockets::Translated)
}
