//! What open flows notice when endpoints, services and agents go, and come again.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dataplane_agent::{datapath::Pins, sync::Status};
use dataplane_tests::{
    agent::{Agent, AgentOptions},
    cluster::{Cluster, Role, Site},
    expect::{self, eventually},
    objects::{Endpoint, Service},
    scenario::{BOTH, FAR, POD_PORT, Scenario},
    topology::{IpVersion, Topology, Wiring},
    traffic::{Ask, Connection, protocol::Transport},
};

/// Requests per second and client while agents are restarted.
const RATE: u32 = 50;

/// How long a request may take meanwhile: agents that load their programs leave little of a small machine to others.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that `server` answers; backends are chosen at random.
fn open_to<'s>(client: &'s Site, ask: &Ask, server: &str) -> Result<Connection<'s>> {
    eventually(|| {
        let connection = client.open(ask)?;
        ensure!(connection.answer().server == server, "answered by {}", connection.answer().server);
        Ok(connection)
    })
}

/// Expects `server` to answer on an open connection.
fn pings(connection: &Connection<'_>, server: &str) -> Result<()> {
    let answer = connection.ping()?.context("the connection has ended")?;
    ensure!(answer.server == server, "answered by {}, not {server}", answer.server);
    Ok(())
}

fn clients(scenario: &Scenario) -> [&Site; 2] {
    [scenario.client(), scenario.cluster.host("a")]
}

#[test]
fn p52_an_endpoint_goes_its_open_connections_go_on_and_new_ones_go_elsewhere() -> Result<()> {
    for wiring in Wiring::BOTH {
        let scenario = Scenario::new(wiring, &[])?;
        let cluster = &scenario.cluster;
        let mut open = Vec::new();
        for version in IpVersion::BOTH {
            let node_port = cluster.node("a").address(version, BOTH);
            let cluster_ip = scenario.both.cluster_ip(version);
            for (client, to) in
                [(scenario.client(), cluster_ip), (cluster.host("a"), cluster_ip), (&cluster.external, node_port)]
            {
                let ask = Ask::new(Transport::Tcp, to);
                open.push((client, ask.clone(), open_to(client, &ask, "web-b")?));
            }
        }
        cluster.put_service(&scenario.both, &Endpoint::pods(cluster, &["web-a"]))?;
        for (client, ask, connection) in &open {
            eventually(|| expect::spread(client, ask, 20, &["web-a"]))?;
            pings(connection, "web-b").with_context(|| format!("{wiring:?} {} {}", client.name(), ask.to))?;
        }
        // Also when the whole service goes.
        cluster.delete_service(&scenario.both)?;
        for (client, ask, connection) in &open {
            eventually(|| expect::refusal(client, ask))?;
            pings(connection, "web-b").with_context(|| format!("deleted: {} {}", client.name(), ask.to))?;
        }
    }
    Ok(())
}

#[test]
fn p50_a_datagram_never_goes_to_an_endpoint_that_is_gone() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let cluster = &scenario.cluster;
    let service = &scenario.far;
    for version in IpVersion::BOTH {
        let ask = Ask::new(Transport::Udp, service.cluster_ip(version));
        for client in clients(&scenario) {
            cluster.put_service(service, &Endpoint::pods(cluster, &["web-b"]))?;
            let socket = open_to(client, &ask, "web-b")?;
            cluster.put_service(service, &Endpoint::pods(cluster, &["web-c"]))?;
            eventually(|| expect::answered(client, &ask, &["web-c"]))?;
            moved(client, &socket, "web-c")?;
        }
        // With no endpoint in between, and with the service deleted and made again.
        for client in clients(&scenario) {
            cluster.put_service(service, &Endpoint::pods(cluster, &["web-b"]))?;
            let socket = open_to(client, &ask, "web-b")?;
            cluster.put_service(service, &[])?;
            eventually(|| expect::refusal(client, &ask))?;
            ends(client, &socket).with_context(|| format!("{version} {}", client.name()))?;
            cluster.delete_service(service)?;
            eventually(|| expect::refusal(client, &ask))?;
            cluster.put_service(service, &Endpoint::pods(cluster, &["web-c"]))?;
            eventually(|| expect::answered(client, &ask, &["web-c"]))?;
            moved(client, &socket, "web-c")?;
        }
    }
    Ok(())
}

/// Expects that nobody answers on an old socket any more. One that was connected for a host process is ended a moment after the
/// programs have heard of the change.
fn ends(client: &Site, socket: &Connection<'_>) -> Result<()> {
    let silent = || {
        ensure!(socket.ping()?.is_err(), "an endpoint that is gone has answered");
        Ok(())
    };
    if client.role() == Role::Pod { silent() } else { eventually(silent) }
}

/// Expects that an old socket reaches `server` now. A socket that was connected for a host process is tied to its backend:
/// it ends with an error instead, and its owner opens another.
fn moved(client: &Site, socket: &Connection<'_>, server: &str) -> Result<()> {
    if client.role() == Role::Pod {
        return eventually(|| pings(socket, server));
    }
    // New sockets may reach the new backend a moment before the old one is ended.
    eventually(|| {
        match socket.ping()? {
            Ok(answer) => ensure!(answer.server == server, "{} has answered", answer.server),
            Err(failure) => ensure!(failure.took < Duration::from_secs(1), "it hangs: {failure}"),
        }
        Ok(())
    })
}

#[test]
fn p50_p52_what_changes_while_the_agent_is_dead_is_made_up_for() -> Result<()> {
    let mut scenario = Scenario::new(Wiring::Routed, &[])?;
    let (gone, made) = (scenario.near.clone(), Service::new("made", 30).port(80, POD_PORT));
    for node in &mut scenario.cluster.nodes {
        node.agent.take().context("the agent runs")?.kill()?;
    }
    let cluster = &scenario.cluster;
    let asks = |service: &Service| IpVersion::BOTH.map(|version| Ask::new(Transport::Udp, service.cluster_ip(version)));
    let client = scenario.client();
    let mut sockets = Vec::new();
    for ask in asks(&scenario.far) {
        // Everything goes on without an agent.
        sockets.push(open_to(client, &ask, "web-b")?);
    }
    cluster.put_service(&scenario.far, &Endpoint::pods(cluster, &["web-c"]))?;
    cluster.put_service(&made, &Endpoint::pods(cluster, &["web-a"]))?;
    cluster.delete_service(&gone)?;
    drop(sockets);
    scenario.start_agents()?;
    let client = scenario.client();
    for ask in asks(&scenario.far) {
        eventually(|| expect::spread(client, &ask, 10, &["web-c"]))?;
    }
    for ask in asks(&made) {
        eventually(|| expect::spread(client, &ask, 10, &["web-a"]))?;
    }
    for ask in asks(&gone) {
        eventually(|| expect::refusal(client, &ask))?;
    }
    Ok(())
}

/// How an agent ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    Stopped,
}

/// Restarts both agents `rounds` times while every kind of client asks; none of them may fail.
fn restart(wiring: Wiring, arguments: &[&str], ends: &[End]) -> Result<()> {
    let mut scenario = Scenario::new(wiring, arguments)?;
    let mut agents: Vec<_> = scenario.cluster.nodes.iter_mut().filter_map(|node| node.agent.take()).collect();
    let cluster = &scenario.cluster;
    let client = scenario.client();
    let (mut loads, mut open) = (Vec::new(), Vec::new());
    for version in IpVersion::BOTH {
        let cluster_ip = scenario.both.cluster_ip(version);
        let node_port = cluster.node("a").address(version, FAR);
        for (site, to) in [(client, cluster_ip), (cluster.host("a"), cluster_ip), (&cluster.external, node_port)] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let ask = Ask::new(transport, to).patience(PATIENCE);
                let what = format!("{version} {transport} from {}", site.name());
                open.push((what.clone(), site.open(&ask)?));
                loads.push((what, site.load(&ask, RATE)?));
            }
        }
    }
    for end in ends {
        thread::sleep(Duration::from_millis(300));
        for agent in agents.drain(..) {
            match end {
                End::Killed => agent.kill()?,
                End::Stopped => agent.stop()?,
            }
        }
        thread::sleep(Duration::from_millis(300));
        for node in &cluster.nodes {
            agents.push(Agent::start(node, &scenario.options, &cluster.manifests)?);
        }
    }
    thread::sleep(Duration::from_millis(300));
    for (what, load) in loads {
        expect::lossless(&what, &load.finish()?, RATE / 2)?;
    }
    for (what, connection) in open {
        let before = connection.answer().server.clone();
        pings(&connection, &before).context(what)?;
    }
    Ok(())
}

#[test]
fn p52_agents_killed_and_started_again_under_load_lose_nothing() -> Result<()> {
    restart(Wiring::Routed, &[], &[End::Killed, End::Stopped, End::Killed])
}

#[test]
fn p52_agents_with_clsact_filters_killed_and_started_again_under_load_lose_nothing() -> Result<()> {
    restart(Wiring::Bridge, &["--tc=clsact"], &[End::Killed, End::Stopped])
}

#[test]
fn one_backend_behind_two_services_is_reached_by_both_from_the_same_few_ports() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let client = scenario.client();
    // A backend's answers do not tell by which frontend it was reached: their flows must not take each other's tuples.
    client.netns().sysctls(&["ipv4/ip_local_port_range=40000 40499"])?;
    for version in IpVersion::BOTH {
        for _ in 0..8 {
            for service in [&scenario.far, &scenario.both, &scenario.near] {
                let report = client.repeat(&Ask::new(Transport::Tcp, service.cluster_ip(version)), 40)?;
                expect::lossless(&service.name, &report, 40)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_pod_that_starts_later_has_its_services_at_once() -> Result<()> {
    let mut scenario = Scenario::new(Wiring::Routed, &[])?;
    for (number, wiring_host) in ["a", "b"].into_iter().enumerate() {
        let name = format!("late-{number}");
        scenario.cluster.start_pod(wiring_host, &name)?;
        let late = scenario.cluster.pod(&name);
        for version in IpVersion::BOTH {
            let ask = Ask::new(Transport::Tcp, scenario.both.cluster_ip(version));
            eventually(|| expect::spread(late, &ask, 20, &["web-a", "web-b"]))?;
        }
    }
    Ok(())
}

#[test]
fn an_agent_that_is_stopped_before_it_is_ready_leaves_what_was_there_before() -> Result<()> {
    let mut cluster = Cluster::new(Topology::new(Wiring::Routed, &[("a", &["pod"])]))?;
    let stopped_early = |cluster: &Cluster| -> Result<BTreeSet<PathBuf>> {
        let node = cluster.node("a");
        let pins = Pins::new(node.bpffs.path());
        let begun = Instant::now();
        let agent = Agent::begin(node, &AgentOptions::default(), &cluster.manifests)?;
        while !agent.status.exists() {
            ensure!(begun.elapsed() < PATIENCE, "{}", agent.tail());
            thread::sleep(Duration::from_millis(1));
        }
        ensure!(pins.map("slots").exists(), "the maps are there before the programs are");
        let status = agent.status.clone();
        agent.stop()?;
        let ready = Status::read(&status).is_ok_and(|status| status.is_ready());
        ensure!(!ready, "it was stopped too late to show anything");
        ensure!(pins.root().exists() == pins.links().exists(), "half of it is left");
        let links = std::fs::read_dir(pins.links()).into_iter().flatten().flatten();
        Ok(links.map(|link| link.path()).collect())
    };
    ensure!(stopped_early(&cluster)?.is_empty(), "nothing was there before");
    cluster.start_agents(&AgentOptions::default())?;
    cluster.node_mut("a").agent.take().context("it runs")?.stop()?;
    ensure!(stopped_early(&cluster)?.len() > 4, "what was attached stays so");
    Ok(())
}
