//! The bed itself, without any agent: what services are later expected to reach is reachable directly.

use std::time::Duration;

use anyhow::{Context, Result};
use dataplane_tests::{
    cluster::{Cluster, Role},
    topology::{self, IpVersion, Topology, Wiring},
    traffic::{Ask, FailureKind, protocol::Transport},
};

const PORT: u16 = 8080;

fn build(wiring: Wiring) -> Result<Cluster> {
    let cluster = Cluster::new(Topology::two_nodes(wiring, &["client", "web-a"], &["web-b"]))?;
    cluster.serve(&["web-a", "web-b"], PORT)?;
    for node in &cluster.nodes {
        node.host.serve(9090)?;
    }
    Ok(cluster)
}

#[track_caller]
fn check(cluster: &Cluster, from: &str, to: &str, transport: Transport, version: IpVersion) -> Result<()> {
    let site = |name: &str| match name {
        "external" => &cluster.external,
        "a" | "b" => cluster.host(name),
        pod => cluster.pod(pod),
    };
    let (client, server) = (site(from), site(to));
    let port = if server.role() == Role::Host { 9090 } else { PORT };
    let address = (server.ip(version), port).into();
    let answer = client.ask(&Ask::new(transport, address).payload(20_000))?;
    let answer = answer.with_context(|| format!("{from} -> {to} {transport} {version}"))?;
    assert_eq!(answer.server, to);
    assert_eq!(answer.seen.ip(), client.ip(version), "{from} -> {to} {transport} {version}");
    assert_eq!(answer.peer, address);
    Ok(())
}

#[test]
fn pods_hosts_and_the_external_client_reach_each_other_without_services() -> Result<()> {
    for wiring in Wiring::BOTH {
        let cluster = build(wiring)?;
        for version in IpVersion::BOTH {
            for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
                for (from, to) in [
                    ("client", "web-a"),
                    ("client", "web-b"),
                    ("client", "a"),
                    ("client", "b"),
                    ("b", "a"),
                    ("external", "a"),
                    ("external", "b"),
                ] {
                    check(&cluster, from, to, transport, version)?;
                }
            }
            // A host's address towards its own pods depends on the wiring; that it arrives is enough.
            let local = cluster.host("a").tcp((cluster.pod("web-a").ip(version), PORT).into())?;
            assert_eq!(local.expect("host to its own pod").server, "web-a");
        }
    }
    Ok(())
}

#[test]
fn service_addresses_are_refused_at_once_and_pods_are_out_of_reach_from_outside() -> Result<()> {
    let cluster = build(Wiring::Routed)?;
    for version in IpVersion::BOTH {
        let service = (topology::service(7).ip(version), 80).into();
        for site in [cluster.pod("client"), cluster.host("a")] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let failure = site.ask(&Ask::new(transport, service))?.expect_err("nobody owns the address");
                assert_eq!(failure.kind, FailureKind::Refused, "{version} {transport}: {failure}");
                assert!(failure.took < Duration::from_millis(100), "{version} {transport}: {failure}");
            }
        }
        for target in [topology::service(7).ip(version), cluster.pod("web-a").ip(version)] {
            let failure = cluster.external.tcp((target, 80).into())?.expect_err("no route");
            assert_eq!(failure.kind, FailureKind::Unreachable, "{version}: {failure}");
        }
    }
    Ok(())
}

#[test]
fn connections_stay_open_and_load_counts_what_fails() -> Result<()> {
    let cluster = build(Wiring::Routed)?;
    let client = cluster.pod("client");
    let to = (cluster.pod("web-b").ip(IpVersion::V6), PORT).into();
    let connection = client.open(&Ask::new(Transport::Tcp, to))?;
    assert_eq!(connection.ping()?.expect("still open").server, "web-b");
    let load = client.load(&Ask::new(Transport::Tcp, to), 100)?;
    let nobody = client.load(&Ask::new(Transport::Tcp, (to.ip(), PORT + 1).into()), 50)?;
    std::thread::sleep(Duration::from_millis(500));
    let (load, nobody) = (load.finish()?, nobody.finish()?);
    assert_eq!(load.failed(), 0, "{:?}", load.failures);
    assert!(load.answered() > 20, "{}", load.answered());
    assert_eq!(nobody.answered(), 0);
    assert!(nobody.failures.keys().all(|text| text.starts_with("Refused")), "{:?}", nobody.failures);
    Ok(())
}

#[test]
fn everything_is_gone_when_a_cluster_is_dropped() -> Result<()> {
    let cluster = build(Wiring::Bridge)?;
    let netns = cluster.nodes[0].host.netns().path().to_owned();
    let cgroup = cluster.nodes[0].host.cgroup().expect("a node has one").path().to_owned();
    let directory = cluster.directory().to_owned();
    assert!(netns.exists() && cgroup.exists() && directory.exists());
    drop(cluster);
    assert!(!netns.exists() && !cgroup.exists() && !directory.exists());
    Ok(())
}
