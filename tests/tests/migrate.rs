//! What docs/migrate.md says of open connections when a node changes over, and what the manifest grants the agent.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dataplane_agent::sync::Status;
use dataplane_tests::{
    agent::AgentOptions,
    binaries,
    cluster::{Cluster, Node},
    expect::{answered, eventually},
    objects::{Endpoint, Service},
    process::Process,
    topology::{IpVersion, Topology, Wiring},
    traffic::{Ask, FailureKind, protocol::Transport},
};
use serde_json::Value;

const PORT: u16 = 8080;

/// Rules as kube-proxy's nftables mode writes them: the service is translated to one of its endpoints before routing.
fn kube_proxy_rules(cluster: &Cluster, service: &Service, pod: &str) -> Result<String> {
    let Some(port) = service.ports.first().map(|port| port.port) else { return Ok(String::new()) };
    let (from, to) = (service.addresses.v4, cluster.pod(pod).addresses().v4);
    let rules: String = ["tcp", "udp"]
        .map(|protocol| format!("ip daddr {from} {protocol} dport {port} dnat to {to}:{PORT}\n"))
        .concat();
    Ok(format!(
        "table ip kube-proxy {{
           chain nat-prerouting {{ type nat hook prerouting priority dstnat;\n{rules} }}
           chain nat-output {{ type nat hook output priority -100;\n{rules} }}
         }}"
    ))
}

fn nft(node: &Node, script: &str) -> Result<()> {
    node.host.netns().output("nft", &[script]).map(drop)
}

fn cleanup(node: &Node) -> Result<()> {
    let sluice = binaries::sluice()?;
    let (sluice, bpffs) = (sluice.to_str().context("a path")?, node.bpffs.path().to_str().context("a path")?);
    node.host.netns().output(sluice, &["cleanup", "--bpffs", bpffs]).map(drop)
}

#[test]
fn p52_p57_only_connections_of_pods_through_services_break_when_a_node_changes_over_and_back() -> Result<()> {
    let mut cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &["client"], &["web-a", "web-b"]))?;
    cluster.serve(&["web-a", "web-b"], PORT)?;
    cluster.put_nodes()?;
    let service = Service::new("web", 10).port(80, PORT);
    // kube-proxy has chosen one endpoint, and sluice will choose another.
    cluster.put_service(&service, &Endpoint::pods(&cluster, &["web-b"]))?;
    let rules = kube_proxy_rules(&cluster, &service, "web-a")?;
    // As CNI plugins have it: without the last NAT rule of a namespace, the kernel stops following connections at all, and
    // so translating those it has translated so far.
    nft(
        cluster.node("a"),
        "table ip cni {
           chain prerouting { type nat hook prerouting priority dstnat; }
           chain input { type nat hook input priority 100; }
           chain output { type nat hook output priority -100; }
           chain postrouting {
             type nat hook postrouting priority srcnat;
             ip saddr 198.51.100.0/24 masquerade
           }
         }",
    )?;
    nft(cluster.node("a"), &rules)?;
    let ask = Ask::new(Transport::Tcp, service.cluster_ip(IpVersion::V4));
    let datagram = Ask::new(Transport::Udp, ask.to);

    answered(cluster.pod("client"), &ask, &["web-a"])?;
    let manifests = cluster.manifests.clone();
    let mut node = cluster.nodes.remove(0);
    {
        let agent_of = |node: &mut Node| node.start_agent(&AgentOptions::default(), &manifests);
        let client = dataplane_tests::traffic::Traffic::start(node.pods[0].netns(), None)?;
        let host = dataplane_tests::traffic::Traffic::start(node.host.netns(), node.host.cgroup())?;
        let (old_of_pod, old_of_host, old_datagrams) = (client.open(&ask)?, host.open(&ask)?, client.open(&datagram)?);

        agent_of(&mut node)?;
        eventually(|| answered(&node.pods[0], &ask, &["web-b"]))?;
        ensure!(old_of_host.ping()??.server == "web-a", "a connection of the node's goes on");
        ensure!(old_datagrams.ping()??.server == "web-b", "a datagram goes where sluice sends it");
        let lost = old_of_pod.ping()?;
        ensure!(lost.as_ref().is_err_and(|failure| failure.kind == FailureKind::Reset), "{lost:?}");
        nft(&node, "delete table ip kube-proxy")?;
        ensure!(old_of_host.ping()??.server == "web-a", "it goes on without its rule");

        // And back.
        let (of_pod, of_host, datagrams) = (client.open(&ask)?, host.open(&ask)?, client.open(&datagram)?);
        nft(&node, &rules)?;
        node.agent.take().context("an agent runs")?.stop()?;
        answered(&node.pods[0], &ask, &["web-b"])?;
        ensure!(of_pod.ping()??.server == "web-b", "without an agent nothing changes");
        cleanup(&node)?;
        answered(&node.pods[0], &ask, &["web-a"])?;
        ensure!(of_host.ping()??.server == "web-b", "it has never been translated");
        ensure!(old_of_host.ping()??.server == "web-a", "neither way has ended it");
        ensure!(datagrams.ping()??.server == "web-a", "a datagram goes where kube-proxy sends it");
        let lost = of_pod.ping()?;
        ensure!(lost.as_ref().is_err_and(|failure| failure.kind == FailureKind::Reset), "{lost:?}");
    }
    drop(node);
    Ok(())
}

/// The capabilities that the manifest adds, as setpriv(1) takes them.
fn granted() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/sluice.yaml");
    let text = fs::read_to_string(path)?;
    for document in serde_norway::Deserializer::from_str(&text) {
        let document: Value = serde::Deserialize::deserialize(document)?;
        let container = &document["spec"]["template"]["spec"]["containers"][0];
        let Some(added) = container["securityContext"]["capabilities"]["add"].as_array() else { continue };
        let added = added.iter().filter_map(Value::as_str).map(|name| format!(",+{}", name.to_lowercase()));
        return Ok(format!("-all{}", added.collect::<String>()));
    }
    anyhow::bail!("the manifest adds no capabilities")
}

#[test]
fn the_manifests_capabilities_are_enough() -> Result<()> {
    let cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &["client", "web"], &[]))?;
    cluster.serve(&["web"], PORT)?;
    cluster.put_nodes()?;
    let service = Service::new("web", 10).port(80, PORT);
    cluster.put_service(&service, &Endpoint::pods(&cluster, &["web"]))?;
    let node = cluster.node("a");
    let status = cluster.directory().join("status.json");
    let mut command = Command::new("setpriv");
    let granted = granted()?;
    command.args(["--bounding-set", &granted, "--inh-caps", &granted, "--"]).arg(binaries::sluice()?);
    command.args(["agent", "--source", "file", "--node-name", "a", "--file-source"]).arg(&cluster.manifests);
    command.arg("--bpffs").arg(node.bpffs.path()).arg("--status-file").arg(&status);
    command.arg("--cgroup-root").arg(node.host.cgroup().context("a cgroup")?.path());
    let log = fs::File::create(cluster.directory().join("agent.log"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut agent = Process::spawn(command, node.host.netns(), node.host.cgroup())?;
    let told = || fs::read_to_string(cluster.directory().join("agent.log")).unwrap_or_default();
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        if serde_json::from_str::<Status>(&text).is_ok_and(|status| status.is_ready()) {
            break;
        }
        ensure!(agent.wait(Duration::ZERO)?.is_none() && begun.elapsed() < Duration::from_secs(30), "{}", told());
        thread::sleep(Duration::from_millis(20));
    }
    for version in IpVersion::BOTH {
        for transport in [Transport::Tcp, Transport::Udp] {
            let ask = Ask::new(transport, service.cluster_ip(version));
            for client in [cluster.pod("client"), &node.host] {
                eventually(|| answered(client, &ask, &["web"])).with_context(told)?;
            }
        }
    }
    // The connected sockets of vanished backends are ended, which takes a capability too.
    let ask = Ask::new(Transport::Udp, service.cluster_ip(IpVersion::V4));
    let socket = node.host.open(&ask)?;
    cluster.put_service(&service, &[])?;
    eventually(|| socket.ping()?.err().context("the socket still works")).with_context(told)?;
    let complaints: Vec<String> =
        told().lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).map(str::to_owned).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}
