//! Everything changes at once while connections and datagrams go on.
//!
//! `SLUICE_CHURN_SECONDS` sets how long, `SLUICE_CHURN_SEED` repeats the order of changes.

use std::{
    collections::BTreeSet,
    env,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dataplane_tests::{
    agent::AgentOptions,
    binaries,
    cluster::{Cluster, Site},
    expect::{self, eventually},
    meaning,
    objects::{Endpoint, Service},
    topology::{IpVersion, Topology, Wiring},
    traffic::{Ask, Connection, protocol::Transport},
};
use fastrand::Rng;
use serde_json::json;

/// Services that come, change and go.
const SERVICES: u8 = 200;
/// Their first number among cluster IPs.
const FIRST: u8 = 30;
/// Seconds of a usual run.
const SECONDS: u64 = 60;
/// How long a datagram may still reach an endpoint that has been removed.
const GRACE: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;
const STEADY: u16 = 31_000;
const MIXED: u16 = 31_001;
const PODS: [&str; 4] = ["web-a", "web-b", "web-c", "web-d"];
/// Pods that stay endpoints of the service `mixed`; the others come and go.
const STABLE: [&str; 2] = ["web-a", "web-c"];

#[test]
fn p38_p50_p52_p55_nothing_stable_is_lost_while_everything_changes() -> Result<()> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let duration = Duration::from_secs(number("SLUICE_CHURN_SECONDS").unwrap_or(SECONDS));
    let seed = number("SLUICE_CHURN_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("SLUICE_CHURN_SEED={seed}");
    let begun = Instant::now();
    let mut cluster =
        Cluster::new(Topology::two_nodes(Wiring::Routed, &["client", "web-a", "web-b"], &["web-c", "web-d"]))?;
    cluster.serve(&PODS, PORT)?;
    cluster.put_nodes()?;
    let churn = Churn {
        cluster: &cluster,
        steady: Service::new("steady", 10).node_port(80, PORT, STEADY),
        mixed: Service::new("mixed", 11).node_port(80, PORT, MIXED),
        present: Mutex::new(vec![(Instant::now(), PODS.into())]),
        over: AtomicBool::new(false),
    };
    cluster.put_service(&churn.steady, &Endpoint::pods(&cluster, &STABLE))?;
    cluster.put_service(&churn.mixed, &Endpoint::pods(&cluster, &PODS))?;
    let mut rng = Rng::with_seed(seed);
    for number in 0..SERVICES {
        churn.change_service(&mut rng, number)?;
    }
    let Churn { steady, mixed, present, over, .. } = churn;
    // Small arrays are read back sooner.
    let options = AgentOptions::with(&["--map-size", "slots=16384,backends4=8192,backends6=8192"]);
    cluster.start_agents(&options)?;
    println!("agents run after {:.1?}", begun.elapsed());
    let churn = Churn { cluster: &cluster, steady, mixed, present, over };
    churn.run(&mut rng, duration)?;

    println!("traffic ends after {:.1?}", begun.elapsed());
    // What is there now is what an agent makes that has never seen anything else.
    let settled = cluster.nodes.iter().map(|node| settled(node.bpffs.path())).collect::<Result<Vec<_>>>()?;
    for (node, settled) in ["a", "b"].into_iter().zip(settled) {
        let agent = cluster.node_mut(node).agent.take().context("an agent runs")?;
        agent.stop()?;
        let bpffs = cluster.node(node).bpffs.path().to_owned();
        let bpffs_argument = bpffs.to_str().context("a path")?;
        let sluice = binaries::sluice()?;
        cluster
            .host(node)
            .netns()
            .output(sluice.to_str().context("a path")?, &["cleanup", "--bpffs", bpffs_argument])?;
        let manifests = cluster.manifests.clone();
        cluster.node_mut(node).start_agent(&options, &manifests)?;
        let fresh = meaning::of_pinned(&bpffs)?;
        let (missing, left) = (fresh.difference(&settled), settled.difference(&fresh));
        let (missing, left) = (missing.collect::<Vec<_>>(), left.collect::<Vec<_>>());
        ensure!(missing.is_empty() && left.is_empty(), "node {node}: missing {missing:#?}, left over {left:#?}");
        println!("node {node} is compared after {:.1?}", begun.elapsed());
        ensure!(fresh.len() > usize::from(SERVICES), "node {node}: only {} rows", fresh.len());
    }
    Ok(())
}

/// What the maps mean when they have stopped changing.
fn settled(bpffs: &std::path::Path) -> Result<BTreeSet<String>> {
    let mut last = meaning::of_pinned(bpffs)?;
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(50));
        let now = meaning::of_pinned(bpffs)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

struct Churn<'a> {
    cluster: &'a Cluster,
    /// Its endpoints stay.
    steady: Service,
    /// Some of its endpoints stay.
    mixed: Service,
    /// Which pods were endpoints of `mixed` from when on.
    present: Mutex<Vec<(Instant, BTreeSet<&'static str>)>>,
    over: AtomicBool,
}

impl Churn<'_> {
    /// Changes everything under traffic for `duration`.
    fn run(&self, rng: &mut Rng, duration: Duration) -> Result<()> {
        let (client, external) = (self.cluster.pod("client"), &self.cluster.external);
        let at_node_b = |version, port| self.cluster.node("b").address(version, port);
        let mut loads = Vec::new();
        let mut flows: Vec<(&Site, Ask)> = Vec::new();
        for version in IpVersion::BOTH {
            for transport in [Transport::Tcp, Transport::Udp] {
                let inside = Ask::new(transport, self.steady.cluster_ip(version));
                let outside = Ask::new(transport, at_node_b(version, STEADY));
                eventually(|| expect::answered(client, &inside, &STABLE))?;
                eventually(|| expect::answered(external, &outside, &STABLE))?;
                loads.push((format!("pod {transport} {version}"), client.load(&inside, 20)?));
                loads.push((format!("outside {transport} {version}"), external.load(&outside, 20)?));
                let mixed = Ask::new(transport, self.mixed.cluster_ip(version));
                for _ in 0..4 {
                    flows.extend([(client, mixed.clone()), (self.cluster.host("a"), mixed.clone())]);
                    flows.push((external, Ask::new(transport, at_node_b(version, MIXED))));
                }
            }
        }
        let (streams, datagrams): (Vec<_>, Vec<_>) =
            flows.into_iter().partition(|(_, ask)| ask.transport == Transport::Tcp);
        // Before any change: a connection from one of the node's addresses that come and go would go with it.
        let streams = streams.iter().map(|(site, ask)| Ok((*site, ask.to, open(site, ask)?)));
        let streams = streams.collect::<Result<Vec<_>>>()?;
        let result = thread::scope(|scope| {
            let streams = scope.spawn(move || self.streams_survive(&streams));
            let datagrams = scope.spawn(move || self.datagrams_leave(&datagrams));
            let changes = self.change_for(rng, duration);
            self.over.store(true, Ordering::Relaxed);
            let join = |thread: thread::ScopedJoinHandle<'_, Result<u32>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let (pings, datagrams) = (join(streams), join(datagrams));
            println!("{:?} changes, {pings:?} pings of streams, {datagrams:?} datagrams", changes.as_ref().ok());
            changes.and(pings).and(datagrams)
        });
        for (what, load) in loads {
            expect::lossless(&what, &load.finish()?, 20)?;
        }
        result.map(drop)
    }

    /// Bursts of changes, and pauses.
    fn change_for(&self, rng: &mut Rng, duration: Duration) -> Result<u32> {
        let begun = Instant::now();
        let mut changes = 0;
        while begun.elapsed() < duration {
            for _ in 0..rng.u8(1..12) {
                match rng.u8(0..12) {
                    0 => self.change_address(rng)?,
                    1 => self.change_mixed(rng)?,
                    _ => {
                        let number = rng.u8(0..SERVICES);
                        self.change_service(rng, number)?;
                    }
                }
                changes += 1;
            }
            thread::sleep(Duration::from_millis(rng.u64(1..250)));
        }
        Ok(changes)
    }

    /// Writes or removes a service that carries no traffic.
    fn change_service(&self, rng: &mut Rng, number: u8) -> Result<()> {
        let name = format!("churn-{number}");
        if rng.u8(0..6) == 0 {
            // It may not be there.
            self.cluster.delete_manifest(&name).ok();
            return Ok(());
        }
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let service = Service::new(&name, FIRST + number);
        let service =
            if rng.bool() { service.node_port(80, PORT, 30_000 + u16::from(number)) } else { service.port(80, PORT) };
        let external = if rng.u8(0..4) == 0 { json!([format!("203.0.113.{number}")]) } else { json!([]) };
        let service = service.spec(json!({
            "externalTrafficPolicy": policy(rng.bool()),
            "internalTrafficPolicy": policy(rng.u8(0..4) == 0),
            "sessionAffinity": if rng.u8(0..4) == 0 { "ClientIP" } else { "None" },
            "externalIPs": external,
        }));
        let mut pods = PODS.to_vec();
        rng.shuffle(&mut pods);
        pods.truncate(rng.usize(0..5));
        let endpoints = Endpoint::pods(self.cluster, &pods).into_iter().map(|endpoint| match rng.u8(0..5) {
            0 => endpoint.draining(),
            1 => endpoint.terminated(),
            _ => endpoint,
        });
        self.cluster.put_service(&service, &endpoints.collect::<Vec<_>>())
    }

    /// Takes endpoints out of `mixed` or back in; its policies and ports stay.
    fn change_mixed(&self, rng: &mut Rng) -> Result<()> {
        let mut present: BTreeSet<&'static str> = STABLE.into();
        present.extend(PODS.into_iter().filter(|_| rng.bool()));
        let pods: Vec<&str> = present.iter().copied().collect();
        let mut history = lock(&self.present);
        self.cluster.put_service(&self.mixed, &Endpoint::pods(self.cluster, &pods))?;
        history.push((Instant::now(), present));
        Ok(())
    }

    /// Adds an address to a node, or takes it away.
    fn change_address(&self, rng: &mut Rng) -> Result<()> {
        // Each node has addresses of its own: neighbours would go on sending to where one was before.
        let (name, hosts) = if rng.bool() { ("a", 60..65) } else { ("b", 65..70) };
        let (node, host) = (self.cluster.host(name), rng.u8(hosts));
        let verb = if rng.bool() { "replace" } else { "del" };
        let address = if rng.bool() { format!("172.20.0.{host}/24") } else { format!("fd20::{host:x}/64") };
        // Taking away what is not there fails, and that is all it does.
        let changed = node.netns().ip(&format!("addr {verb} {address} dev eth0"));
        if verb == "replace" { changed } else { Ok(()) }
    }

    /// Connections stay with their servers, whatever becomes of the service.
    fn streams_survive(&self, open: &[(&Site, SocketAddr, Connection<'_>)]) -> Result<u32> {
        let mut pings = 0;
        while !self.over.load(Ordering::Relaxed) {
            for (site, to, connection) in open {
                let server = &connection.answer().server;
                let answer = connection.ping()?.with_context(|| format!("{} -> {to} lost {server}", site.name()))?;
                ensure!(answer.server == *server, "{} -> {to} moved from {server} to {}", site.name(), answer.server);
                pings += 1;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(pings)
    }

    /// Datagrams leave an endpoint that has been removed.
    fn datagrams_leave(&self, flows: &[(&Site, Ask)]) -> Result<u32> {
        let mut sockets = Vec::new();
        for (site, ask) in flows {
            sockets.push(open(site, ask)?);
        }
        let mut servers: Vec<String> = sockets.iter().map(|socket| socket.answer().server.clone()).collect();
        let (mut datagrams, mut moved) = (0, 0);
        while !self.over.load(Ordering::Relaxed) {
            for (((site, ask), socket), server) in flows.iter().zip(&mut sockets).zip(&mut servers) {
                let asked = Instant::now();
                match socket.ping()? {
                    Ok(answer) => {
                        self.was_present(asked, &answer.server).with_context(|| from_to(site, ask.to))?;
                        datagrams += 1;
                        moved += u32::from(*server != answer.server);
                        *server = answer.server;
                    }
                    // A socket that was translated when it was connected ends with its backend.
                    Err(_) if site.cgroup().is_some() => *socket = open(site, ask)?,
                    Err(failure) => return Err(failure).with_context(|| from_to(site, ask.to)),
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        ensure!(moved > 0, "no endpoint that was removed has ever had a datagram");
        Ok(datagrams)
    }

    /// Whether `server` was an endpoint at `asked`, or not longer than [`GRACE`] before.
    fn was_present(&self, asked: Instant, server: &str) -> Result<()> {
        let history = lock(&self.present);
        let mut until = None;
        for (from, present) in history.iter().rev() {
            if present.contains(server) {
                // `until` is when it was removed; none: it is there.
                let late = until.map_or(Duration::ZERO, |until| asked.saturating_duration_since(until));
                ensure!(late < GRACE, "{server} still got a datagram {late:?} after its removal");
                return Ok(());
            }
            until = Some(*from);
        }
        Ok(())
    }
}

fn open<'a>(site: &'a Site, ask: &Ask) -> Result<Connection<'a>> {
    eventually(|| site.open(ask))
}

fn from_to(site: &Site, to: SocketAddr) -> String {
    format!("{} -> {to}", site.name())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
