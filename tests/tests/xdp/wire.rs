//! Real connections and datagrams to frontends whose backend is on another node, with XDP on the nodes' uplinks.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use dataplane_agent::datapath::xdp::Running;
use dataplane_tests::{
    agent::Agent,
    cluster::Carrying,
    expect::{self, eventually},
    objects::{Endpoint, Service},
    scenario::{BOTH, EMPTY, FAR, Failures, HOST_FAR, NEAR, POD_PORT, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};
use serde_json::json;

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];
/// Requests per second and client while agents are restarted.
const RATE: u32 = 50;

/// The usual cluster with XDP on every uplink.
fn scenario(running: Running) -> Result<(Scenario, Carrying)> {
    let scenario = Scenario::new(Wiring::Routed, &["--xdp", running.name()])?;
    let carrying = scenario.cluster.carry_xdp()?;
    for node in &scenario.cluster.nodes {
        let pin = node.xdp_pin(running)?;
        ensure!(pin.exists(), "{} does not run XDP: {}", node.name(), pin.display());
    }
    Ok((scenario, carrying))
}

/// Every frontend that a client outside can reach, with every kind of backend.
fn check_every_frontend(running: Running) -> Result<()> {
    let (scenario, _carrying) = scenario(running)?;
    let cluster = &scenario.cluster;
    let outer = Service::new("outer", 30)
        .node_port(80, POD_PORT, 30_099)
        .spec(json!({ "type": "LoadBalancer", "externalIPs": ["192.0.2.10", "2001:db8::10"] }))
        .status(json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.20" }, { "ip": "2001:db8::20" }] } }));
    cluster.put_service(&outer, &Endpoint::pods(cluster, &["web-b", "web-c"]))?;
    let a = cluster.host("a").addresses();
    cluster
        .external
        .netns()
        .ip(&format!("route add 192.0.2.0/24 via {}\nroute add 2001:db8::/64 via {}", a.v4, a.v6))?;
    let mut failures = Failures::default();
    for version in IpVersion::BOTH {
        let node_port = |port| cluster.node("a").address(version, port);
        let outer = |last: u8| -> Result<SocketAddr> {
            Ok(match version {
                IpVersion::V4 => format!("192.0.2.{last}:80").parse()?,
                IpVersion::V6 => format!("[2001:db8::{last}]:80").parse()?,
            })
        };
        for transport in TRANSPORTS {
            for (what, to, servers) in [
                ("remote backend", node_port(FAR), &["web-b"][..]),
                ("local backend", node_port(NEAR), &["web-a"]),
                ("both", node_port(BOTH), &["web-a", "web-b"]),
                ("a process of another node", node_port(HOST_FAR), &["b"]),
                ("external IP", outer(10)?, &["web-b", "web-c"]),
                ("load-balancer IP", outer(20)?, &["web-b", "web-c"]),
            ] {
                let ask = Ask::new(transport, to);
                let spread = eventually(|| expect::spread(&cluster.external, &ask, 30, servers));
                failures.note(what, version, transport, spread);
            }
            let refused = Ask::new(transport, node_port(EMPTY));
            failures.note("nobody", version, transport, expect::refusal(&cluster.external, &refused));
            // Pods are no business of XDP, and their node's uplink carries them all the same.
            let inside = Ask::new(transport, scenario.far.cluster_ip(version));
            failures.note("pod", version, transport, expect::spread(scenario.client(), &inside, 10, &["web-b"]));
        }
    }
    failures.none()
}

#[test]
fn p11_p34_every_frontend_answers_clients_outside_with_native_xdp() -> Result<()> {
    check_every_frontend(Running::Native)
}

#[test]
fn p11_p34_every_frontend_answers_clients_outside_with_generic_xdp() -> Result<()> {
    check_every_frontend(Running::Generic)
}

/// Without the tc program at the uplink's ingress, nothing else could have translated.
fn check_alone(running: Running) -> Result<()> {
    let (mut scenario, _carrying) = scenario(running)?;
    let node = scenario.cluster.node_mut("a");
    node.agent.take().context("the agent runs")?.kill()?;
    // Neighbours are resolved by what the stack sends: it has to have met both.
    for version in IpVersion::BOTH {
        let ask = Ask::new(Transport::Udp, scenario.cluster.node("a").address(version, FAR));
        eventually(|| expect::answered(&scenario.cluster.external, &ask, &["web-b"]))?;
    }
    scenario.cluster.node("a").detach_from_uplink()?;
    for version in IpVersion::BOTH {
        let to = scenario.cluster.node("a").address(version, FAR);
        let ask = Ask::new(Transport::Udp, to).payload(1000).patience(Duration::from_millis(300));
        let report = scenario.cluster.external.repeat(&ask, 60)?;
        // What is left to tc now and then, so that it asks for neighbours, is lost.
        ensure!(report.failed() <= 10 && report.servers.keys().eq(["web-b"]), "{version}: {report:?}");
    }
    Ok(())
}

#[test]
fn native_xdp_does_it_without_the_tc_program() -> Result<()> {
    check_alone(Running::Native)
}

#[test]
fn generic_xdp_does_it_without_the_tc_program() -> Result<()> {
    check_alone(Running::Generic)
}

#[test]
fn p44_path_mtu_discovery_and_large_datagrams_work_with_xdp() -> Result<()> {
    for running in [Running::Native, Running::Generic] {
        let (scenario, _carrying) = scenario(running)?;
        let cluster = &scenario.cluster;
        let mut failures = Failures::default();
        for narrow in [false, true] {
            if narrow {
                let pod = cluster.pod("web-b").addresses();
                cluster.host("b").netns().ip(&format!(
                    "route replace {}/32 dev veth-web-b mtu lock 1300\nroute replace {}/128 dev veth-web-b mtu lock 1300",
                    pod.v4, pod.v6
                ))?;
            }
            for version in IpVersion::BOTH {
                let ask = |transport, payload| {
                    let to = cluster.node("a").address(version, FAR);
                    Ask::new(transport, to).patience(Duration::from_secs(30)).payload(payload)
                };
                let stream = expect::answered(&cluster.external, &ask(Transport::Tcp, 1_000_000), &["web-b"]);
                failures.note(&format!("{running:?}, narrow {narrow}"), version, Transport::Tcp, stream);
                if !narrow {
                    let fragments = expect::answered(&cluster.external, &ask(Transport::Udp, 4_000), &["web-b"]);
                    failures.note(&format!("{running:?}"), version, Transport::Udp, fragments);
                }
            }
        }
        failures.none()?;
    }
    Ok(())
}

#[test]
fn p31_native_xdp_spreads_connections_evenly_between_here_and_elsewhere() -> Result<()> {
    let (scenario, _carrying) = scenario(Running::Native)?;
    for version in IpVersion::BOTH {
        for transport in TRANSPORTS {
            let ask = Ask::new(transport, scenario.cluster.node("a").address(version, BOTH));
            let report = expect::spread(&scenario.cluster.external, &ask, 600, &["web-a", "web-b"])?;
            // Six standard deviations of 600 fair choices.
            let here = report.servers.get("web-a").copied().unwrap_or_default();
            ensure!((226..=374).contains(&here), "{version} {transport}: {:?}", report.servers);
        }
    }
    Ok(())
}

#[test]
fn p52_agents_killed_and_started_again_under_load_lose_nothing_with_native_xdp() -> Result<()> {
    let (mut scenario, _carrying) = scenario(Running::Native)?;
    let mut agents: Vec<_> = scenario.cluster.nodes.iter_mut().filter_map(|node| node.agent.take()).collect();
    let cluster = &scenario.cluster;
    let (mut loads, mut open) = (Vec::new(), Vec::new());
    for version in IpVersion::BOTH {
        for (port, transport) in [FAR, BOTH].into_iter().flat_map(|port| TRANSPORTS.map(|transport| (port, transport)))
        {
            let ask = Ask::new(transport, cluster.node("a").address(version, port));
            let what = format!("{version} {transport} {port}");
            open.push((what.clone(), cluster.external.open(&ask)?));
            loads.push((what, cluster.external.load(&ask, RATE)?));
        }
    }
    for round in 0..4 {
        thread::sleep(Duration::from_millis(300));
        for agent in agents.drain(..) {
            if round % 2 == 0 { agent.kill()? } else { agent.stop()? }
        }
        thread::sleep(Duration::from_millis(300));
        for node in &cluster.nodes {
            agents.push(Agent::start(node, &scenario.options, &cluster.manifests)?);
        }
    }
    thread::sleep(Duration::from_millis(300));
    for (what, load) in loads {
        println!("{what}: {}", expect::lossless(&what, &load.finish()?, RATE / 2)?);
    }
    for (what, connection) in open {
        let before = connection.answer().server.clone();
        let after = connection.ping()?.with_context(|| what.clone())?;
        ensure!(after.server == before, "{what}: {before} became {}", after.server);
    }
    Ok(())
}
