//! The cluster that the titles share while they run at the same time, and what each of them makes for itself.

use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dataplane_tests::{
    agent::AgentOptions,
    cluster::{Cluster, Role, Site},
    expect::{self, eventually},
    mode::Mode,
    objects::{Endpoint, Service},
    scenario::{HOST_PORT, POD_PORT},
    topology::{IpVersion, Topology, Wiring},
    traffic::{Ask, FailureKind, protocol::Transport},
};

/// What upstream's "http" and "udp" titles use.
pub(crate) const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Udp];
/// Questions per client and address: enough to meet each of four servers, nearly always.
const QUESTIONS: u32 = 32;
/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nobody answers before that counts as silence.
const SILENCE: Duration = Duration::from_millis(250);
/// How long the last title waits for another one before the cluster goes.
const LINGER: Duration = Duration::from_millis(100);

/// Two nodes: `a` with the pods `client-a`, `web-1` and `web-2`, and `b` with `client-b`, `web-3` and `web-4`.
///
/// Pods named `web-…` serve on [`POD_PORT`] and the two ports above it, the nodes themselves on [`HOST_PORT`].
#[derive(Debug)]
pub(crate) struct Bed(pub(crate) Cluster);

/// A title's share in the cluster.
#[derive(Debug)]
pub(crate) struct Shared(Arc<Bed>);

static CURRENT: Mutex<Weak<Bed>> = Mutex::new(Weak::new());

/// The cluster that other titles use at this moment, or a new one.
pub(crate) fn shared() -> Result<Shared> {
    // Held while it is built: who comes meanwhile wants the same one.
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bed) = current.upgrade() {
        return Ok(Shared(bed));
    }
    let bed = Arc::new(Bed::start(&[])?);
    *current = Arc::downgrade(&bed);
    Ok(Shared(bed))
}

impl Deref for Shared {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Between two titles there is a moment in which nobody uses the cluster.
        if Arc::strong_count(&self.0) == 1 {
            thread::sleep(LINGER);
        }
    }
}

impl Bed {
    /// A cluster of its own, for a title that disturbs others.
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        let (on_a, on_b) = (["client-a", "web-1", "web-2"], ["client-b", "web-3", "web-4"]);
        let mut cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &on_a, &on_b))?;
        for port in POD_PORT..POD_PORT + 3 {
            cluster.serve(&["web-1", "web-2", "web-3", "web-4"], port)?;
        }
        for node in &cluster.nodes {
            node.host.serve(HOST_PORT)?;
        }
        cluster.put_nodes()?;
        cluster.start_agents(&AgentOptions::with(arguments))?;
        Ok(Self(cluster))
    }

    /// The pod that asks on node `a`, and that on node `b`.
    pub(crate) fn clients(&self) -> [&Site; 2] {
        ["client-a", "client-b"].map(|name| self.0.pod(name))
    }

    /// Pods and processes of both nodes.
    pub(crate) fn everyone(&self) -> [&Site; 4] {
        let [a, b] = self.clients();
        [a, b, self.0.host("a"), self.0.host("b")]
    }

    /// Writes `service` with ready endpoints in `pods`.
    pub(crate) fn put(&self, service: &Service, pods: &[&str]) -> Result<()> {
        self.0.put_service(service, &Endpoint::pods(&self.0, pods))
    }

    /// An endpoint in the pod `name`.
    #[track_caller]
    pub(crate) fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint::new(self.0.pod(name), self.0.node_of(name))
    }

    /// An endpoint in the network of the node `name` itself.
    #[track_caller]
    pub(crate) fn host_endpoint(&self, name: &str) -> Endpoint {
        Endpoint::new(self.0.host(name), name)
    }

    /// Where `node_port` answers on both nodes.
    pub(crate) fn node_ports(&self, version: IpVersion, node_port: u16) -> [SocketAddr; 2] {
        ["a", "b"].map(|node| self.0.node(node).address(version, node_port))
    }
}

/// A number that no other title uses.
fn number() -> u8 {
    static NEXT: AtomicU8 = AtomicU8::new(20);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A service of its own: TCP and UDP on port 80, served on [`POD_PORT`].
pub(crate) fn service(name: &str) -> Service {
    let number = number();
    Service::new(&format!("{name}-{number}"), number).port(80, POD_PORT)
}

/// The same with a NodePort.
pub(crate) fn node_port_service(name: &str) -> (Service, u16) {
    let number = number();
    let port = 31_000 + u16::from(number);
    (Service::new(&format!("{name}-{number}"), number).node_port(80, POD_PORT, port), port)
}

/// The cluster IPs of `service` with `port`.
pub(crate) fn cluster_ips(service: &Service, port: u16) -> [SocketAddr; 2] {
    IpVersion::BOTH.map(|version| (service.addresses.ip(version), port).into())
}

/// Expects that before long exactly `servers` answer, each of them, to each client at every address.
pub(crate) fn reached(
    clients: &[&Site],
    addresses: &[SocketAddr],
    transports: &[Transport],
    servers: &[&str],
) -> Result<()> {
    each(clients, addresses, transports, |client, ask| {
        let count = if servers.len() == 1 { 3 } else { QUESTIONS };
        // Many questions before the change has arrived would all wait for nothing.
        eventually(|| expect::answered(client, ask, servers))?;
        eventually(|| expect::spread(client, ask, count, servers)).map(drop)
    })
}

/// Expects that before long every client is refused at every address.
pub(crate) fn refused(clients: &[&Site], addresses: &[SocketAddr], transports: &[Transport]) -> Result<()> {
    each(clients, addresses, transports, |client, ask| eventually(|| expect::refusal(client, ask)).map(drop))
}

/// Expects that before long nobody says anything to any client: packets are dropped, and whoever is translated at connect
/// time learns that there is no way.
pub(crate) fn silent(clients: &[&Site], addresses: &[SocketAddr], transports: &[Transport]) -> Result<()> {
    let pods_at_connect = Mode::current()?.translates_pods_at_connect();
    each(clients, addresses, transports, |client, ask| {
        let expected: &[FailureKind] = match client.role() {
            Role::Host => &[FailureKind::Unreachable],
            // What depends on the client's address is a matter of packets even then.
            Role::Pod if pods_at_connect && ask.transport == Transport::Tcp => {
                &[FailureKind::Unreachable, FailureKind::TimedOut]
            }
            _ => &[FailureKind::TimedOut],
        };
        eventually(|| {
            let failure = client.ask(&ask.clone().patience(SILENCE))?.err().context("answered")?;
            ensure!(expected.contains(&failure.kind), "{failure}, not {expected:?}");
            Ok(())
        })
    })
}

fn each(
    clients: &[&Site],
    addresses: &[SocketAddr],
    transports: &[Transport],
    check: impl Fn(&Site, &Ask) -> Result<()>,
) -> Result<()> {
    for client in clients {
        for &address in addresses {
            for &transport in transports {
                check(client, &Ask::new(transport, address).patience(PATIENCE))
                    .with_context(|| format!("{} -> {address} {transport}", client.name()))?;
            }
        }
    }
    Ok(())
}
