//! Agents that follow an API server, and what they do while it is away.

use std::{fs, net::TcpListener, time::Duration};

use anyhow::{Context, Result, ensure};
use dataplane_tests::{
    apiserver::{ApiServer, Bind, TestServer},
    expect::{self, eventually},
    netns, objects,
    objects::Endpoint,
    scenario::Scenario,
    topology::{IpVersion, ROUTER, Wiring},
    traffic::{Ask, protocol::Transport},
};
use tokio::runtime::Runtime;

/// The cluster's agents, fed by an API server that listens on the network between the nodes.
fn start(runtime: &Runtime) -> Result<(Scenario, TestServer)> {
    let mut scenario = Scenario::bare(Wiring::Routed)?;
    let fabric = scenario.cluster.fabric.file()?;
    let _entered = runtime.enter();
    let server =
        TestServer::start_with(Bind::new(move || netns::run_in(&fabric, || TcpListener::bind((ROUTER.v4, 6443)))?))?;
    for node in objects::nodes(&scenario.cluster) {
        server.apply(&node)?;
    }
    for (service, endpoints) in scenario.services() {
        for object in service.objects(&endpoints) {
            server.apply(&object)?;
        }
    }
    let kubeconfig = scenario.cluster.directory().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())?;
    scenario.options.kubeconfig = Some(kubeconfig);
    scenario.start_agents()?;
    Ok((scenario, server))
}

fn answers(scenario: &Scenario, servers: &[&str]) -> Result<()> {
    for version in IpVersion::BOTH {
        for transport in [Transport::Tcp, Transport::Udp] {
            let ask = Ask::new(transport, scenario.both.cluster_ip(version));
            eventually(|| expect::spread(scenario.client(), &ask, 20, servers))?;
        }
    }
    Ok(())
}

/// How much each agent has written, once that does not grow any more; agents tell it once a second.
fn settled_operations(scenario: &Scenario) -> Result<Vec<u64>> {
    eventually(|| {
        let before = operations(scenario)?;
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(operations(scenario)? == before, "still writing");
        Ok(before)
    })
}

fn operations(scenario: &Scenario) -> Result<Vec<u64>> {
    let status = |node: &dataplane_tests::cluster::Node| {
        Ok(node.agent.as_ref().context("the agent runs")?.read_status()?.operations)
    };
    scenario.cluster.nodes.iter().map(status).collect()
}

#[test]
fn p58_while_the_api_server_is_away_the_last_state_is_kept_and_then_watches_resume() -> Result<()> {
    let runtime = Runtime::new()?;
    let (scenario, mut server) = start(&runtime)?;
    answers(&scenario, &["web-a", "web-b"])?;

    runtime.block_on(server.go_away())?;
    std::thread::sleep(Duration::from_secs(1));
    answers(&scenario, &["web-a", "web-b"])?;
    // A change that nobody can tell the agents of yet.
    for object in scenario.both.objects(&Endpoint::pods(&scenario.cluster, &["web-c"])) {
        server.apply(&object)?;
    }
    answers(&scenario, &["web-a", "web-b"])?;
    runtime.block_on(server.come_back())?;
    answers(&scenario, &["web-c"])?;

    // Every watch broken and its history expired: the lists are read again, and hold nothing new.
    let before = settled_operations(&scenario)?;
    let seen = server.requests().len();
    server.drop_connections();
    server.expire(false);
    eventually(|| {
        ensure!(server.requests().len() > seen && server.open_watches() >= 6, "not all are back");
        Ok(())
    })?;
    assert_eq!(settled_operations(&scenario)?, before, "nothing is written again");

    // A later change arrives as ever.
    for object in scenario.both.objects(&Endpoint::pods(&scenario.cluster, &["web-a"])) {
        server.apply(&object)?;
    }
    answers(&scenario, &["web-a"])
}

#[test]
fn p58_an_agent_that_starts_while_the_api_server_is_away_keeps_what_is_pinned() -> Result<()> {
    let runtime = Runtime::new()?;
    let (mut scenario, mut server) = start(&runtime)?;
    runtime.block_on(server.go_away())?;
    for node in &mut scenario.cluster.nodes {
        node.agent.take().context("the agent runs")?.kill()?;
    }
    let starting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        runtime.block_on(server.come_back()).map(|()| (runtime, server))
    });
    // Ready only when the server is back; traffic goes on meanwhile.
    let ask = Ask::new(Transport::Tcp, scenario.both.cluster_ip(IpVersion::V6));
    expect::spread(scenario.client(), &ask, 20, &["web-a", "web-b"])?;
    scenario.start_agents()?;
    let (_runtime, server) = starting.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    answers(&scenario, &["web-a", "web-b"])?;
    ensure!(!server.requests().is_empty(), "the server is used again");
    Ok(())
}
