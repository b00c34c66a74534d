//! Real clients and servers of clusters whose nodes answer directly.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane_agent::maps::{observed, pinned::Access};
use dataplane_common::{Direction, Next, Protocol, V4};
use dataplane_tests::{
    expect::{self, eventually},
    objects::{Endpoint, Service},
    scenario::{BOTH, FAR, Failures, HOST_FAR, NEAR, POD_PORT, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};
use serde_json::json;

const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];
const PATIENCE: Duration = Duration::from_secs(30);

/// Every combination of wiring and of the way around the stack.
fn each(check: impl Fn(&Scenario) -> Result<()>) -> Result<()> {
    for wiring in Wiring::BOTH {
        for bypass in ["--host-bypass=off", "--host-bypass=on"] {
            let scenario = Scenario::new(wiring, &["--dsr", bypass])?;
            check(&scenario).with_context(|| format!("{wiring:?} {bypass}"))?;
        }
    }
    Ok(())
}

/// Packets of direct flows that node `name` has seen in `direction`.
fn packets(scenario: &Scenario, name: &str, direction: Direction) -> Result<(usize, u64)> {
    let flows = observed::conntrack::<V4>(scenario.cluster.node(name).bpffs.path(), Access::ReadOnly)?;
    let (mut count, mut packets) = (0, 0);
    for entry in flows.iter() {
        let (_, flow) = entry?;
        if flow.next == Next::Direct as u8 && flow.direction == direction as u8 {
            count += 1;
            packets += flow.packets;
        }
    }
    Ok((count, packets))
}

#[test]
fn backends_see_the_client_and_answer_past_the_entry_node() -> Result<()> {
    each(|scenario| {
        sees_and_answers(scenario)?;
        carries_much(scenario)?;
        turns_round(scenario)
    })
}

fn sees_and_answers(scenario: &Scenario) -> Result<()> {
    let cluster = &scenario.cluster;
    let mut failures = Failures::default();
    for version in IpVersion::BOTH {
        // IPv6 keeps the entry node's address.
        let seen = if version == IpVersion::V4 { cluster.external.ip(version) } else { cluster.host("a").ip(version) };
        for transport in TRANSPORTS {
            for (what, port, server) in [("pod", FAR, "web-b"), ("process", HOST_FAR, "b")] {
                let ask = Ask::new(transport, cluster.node("a").address(version, port));
                let answered = eventually(|| expect::answered_seeing(&cluster.external, &ask, &[server], seen));
                failures.note(what, version, transport, answered);
            }
        }
    }
    failures.none()?;
    let (flows, answers) = packets(scenario, "a", Direction::Reply)?;
    ensure!(flows > 0 && answers == 0, "{flows} flows, {answers} answers passed the entry node");
    let (_, requests) = packets(scenario, "a", Direction::Original)?;
    ensure!(requests > 0, "no requests");
    Ok(())
}

fn carries_much(scenario: &Scenario) -> Result<()> {
    let cluster = &scenario.cluster;
    for (transport, size) in
        [(Transport::Tcp, 8 << 20), (Transport::Udp, 1000), (Transport::Udp, 1472), (Transport::Udp, 5000)]
    {
        let ask = Ask::new(transport, cluster.node("a").address(IpVersion::V4, FAR)).patience(PATIENCE).payload(size);
        expect::answered(&cluster.external, &ask, &["web-b"]).with_context(|| format!("{transport} {size}"))?;
    }
    Ok(())
}

/// Pods and processes that ask another node for what their own has.
fn turns_round(scenario: &Scenario) -> Result<()> {
    let cluster = &scenario.cluster;
    let mut failures = Failures::default();
    for transport in TRANSPORTS {
        let ask = Ask::new(transport, cluster.node("b").address(IpVersion::V4, NEAR));
        for client in [scenario.client(), cluster.host("a"), cluster.pod("web-a")] {
            let answered = eventually(|| expect::answered(client, &ask, &["web-a"]));
            failures.note(client.name(), IpVersion::V4, transport, answered);
        }
    }
    failures.none()
}

#[test]
fn many_connections_to_every_kind_of_frontend() -> Result<()> {
    for wiring in Wiring::BOTH {
        let scenario = Scenario::new(wiring, &["--dsr"])?;
        let cluster = &scenario.cluster;
        let outer = Service::new("outer", 30)
            .node_port(80, POD_PORT, 30_099)
            .spec(json!({ "type": "LoadBalancer", "externalIPs": ["192.0.2.10", "2001:db8::10"] }))
            .status(json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.20" }, { "ip": "2001:db8::20" }] } }));
        cluster.put_service(&outer, &Endpoint::pods(cluster, &["web-b", "web-c"]))?;
        cluster.external.netns().ip(&format!("route add 192.0.2.0/24 via {}", cluster.host("a").addresses().v4))?;
        let a = |port| cluster.node("a").address(IpVersion::V4, port);
        for transport in [Transport::Tcp, Transport::Udp] {
            for (to, servers) in [
                (a(BOTH), &["web-a", "web-b"][..]),
                (a(NEAR), &["web-a"]),
                (a(FAR), &["web-b"]),
                ("192.0.2.10:80".parse()?, &["web-b", "web-c"]),
                ("192.0.2.20:80".parse()?, &["web-b", "web-c"]),
            ] {
                let ask = Ask::new(transport, to);
                eventually(|| expect::spread(&cluster.external, &ask, 50, servers))
                    .with_context(|| format!("{wiring:?}"))?;
                let seen = cluster.external.ip(IpVersion::V4);
                expect::answered_seeing(&cluster.external, &ask, servers, seen)?;
            }
        }
    }
    Ok(())
}

#[test]
fn xdp_sends_what_need_not_tell() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &["--dsr", "--xdp", "native"])?;
    let cluster = &scenario.cluster;
    let _carrying = cluster.carry_xdp()?;
    let seen = cluster.external.ip(IpVersion::V4);
    for transport in TRANSPORTS {
        let ask = Ask::new(transport, cluster.node("a").address(IpVersion::V4, FAR));
        eventually(|| expect::answered_seeing(&cluster.external, &ask, &["web-b"], seen))?;
        expect::spread(&cluster.external, &ask, 30, &["web-b"])?;
    }
    let ask = Ask::new(Transport::Tcp, cluster.node("a").address(IpVersion::V4, FAR));
    expect::answered(&cluster.external, &ask.patience(PATIENCE).payload(1 << 20), &["web-b"]).map(drop)
}

#[test]
fn path_mtu_discovery_works_in_both_directions() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &["--dsr", "--host-bypass=off"])?;
    let cluster = &scenario.cluster;
    let (pod, client) = (cluster.pod("web-b").ip(IpVersion::V4), cluster.external.ip(IpVersion::V4));
    // The node that answers is the router that complains, to the client in the name of the frontend and to the pod.
    cluster.host("b").netns().ip(&format!(
        "route replace {pod}/32 dev veth-web-b mtu lock 1300\nroute add {client}/32 dev eth0 mtu lock 1200"
    ))?;
    let ask = Ask::new(Transport::Tcp, cluster.node("a").address(IpVersion::V4, FAR));
    eventually(|| expect::answered(&cluster.external, &ask, &["web-b"]))?;
    let ask = ask.patience(PATIENCE).payload(1_000_000);
    expect::answered_seeing(&cluster.external, &ask, &["web-b"], client).map(drop)
}

#[test]
fn connections_outlive_the_agents_of_both_nodes() -> Result<()> {
    let mut scenario = Scenario::new(Wiring::Routed, &["--dsr"])?;
    for name in ["a", "b"] {
        let ask = Ask::new(Transport::Tcp, scenario.cluster.node("a").address(IpVersion::V4, FAR));
        eventually(|| expect::answered(&scenario.cluster.external, &ask, &["web-b"]))?;
        scenario.cluster.node_mut(name).agent.take().context("the agent runs")?.kill()?;
        let open = scenario.cluster.external.open(&ask)?;
        ensure!(open.ping()?.is_ok(), "cut without the agent of {name}");
        drop(open);
        let (options, manifests) = (scenario.options.clone(), scenario.cluster.manifests.clone());
        scenario.cluster.node_mut(name).start_agent(&options, &manifests)?;
    }
    let ask = Ask::new(Protocol::Tcp, scenario.cluster.node("a").address(IpVersion::V4, FAR));
    expect::answered(&scenario.cluster.external, &ask, &["web-b"]).map(drop)
}
