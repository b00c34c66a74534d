//! What the loop does, told to health, metrics and sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use dataplane_common::Protocol;
use tokio::sync::watch;

use crate::{
    datapath::sockets::{Gone, StaleSockets},
    health::{
        Health,
        checks::{Check, Checks},
    },
    metrics::{Metrics, unix_seconds},
    model::{
        Change, ObjectName,
        cluster::Cluster,
        endpoint::EndpointState,
        selection::candidates,
        service::{Service, TrafficPolicy},
        settings::NodePortAddresses,
    },
    sync::{Applied, Observer, round::Unit},
    tables::{BackendId, BackendRow},
};

/// Tells everyone who wants to know.
pub(super) struct Told {
    /// Connected UDP sockets end with their backend, TCP connections by themselves.
    pub(super) sockets: StaleSockets,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) checks: watch::Sender<Checks>,
    pub(super) node_port_addresses: NodePortAddresses,
    pub(super) without_local: BTreeMap<ObjectName, WithoutLocal>,
    /// When the changes happened that wait to be applied.
    pub(super) triggered: Vec<SystemTime>,
    /// When the agent started.
    pub(super) started: SystemTime,
    /// Whether the kernel refused everything in the last round.
    pub(super) refused: bool,
    /// Services that were applied since everything was.
    pub(super) applied: usize,
}

/// A change of so many services leaves much memory behind.
const LARGE: usize = 1000;

/// Gives memory that is free back to the system, of which the allocator would keep most: lists and plans are made of many small
/// pieces.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, may be called at any time and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Ports of one Service whose traffic policy is Local while all endpoints are elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WithoutLocal {
    internal: i64,
    external: i64,
}

impl Observer for Told {
    fn taken(&mut self, change: &Change) {
        self.health.queued(Instant::now());
        let metrics = &self.metrics;
        metrics.sync_last_queued.set(unix_seconds());
        match change {
            Change::Service(..) => {
                metrics.service_changes_total.inc();
                metrics.service_changes_pending.inc();
            }
            Change::EndpointSlice(_, slice) => {
                metrics.endpoint_changes_total.inc();
                metrics.endpoint_changes_pending.inc();
                // What happened before the start took long for other reasons.
                let triggered = slice.as_ref().and_then(|slice| slice.triggered.0);
                self.triggered.extend(triggered.filter(|triggered| *triggered >= self.started));
            }
            _ => {}
        }
    }

    fn applied(&mut self, applied: &Applied<'_>) {
        // A service that does not fit is an error of its own, which metrics and status show; a kernel that refuses
        // everything is an agent that does not do its work.
        self.refused = applied.failed > 0 && applied.done == 0;
        let metrics = &self.metrics;
        metrics.sync_duration.observe(applied.duration.as_secs_f64());
        if !self.refused {
            metrics.sync_last.set(unix_seconds());
            let now = SystemTime::now();
            for triggered in self.triggered.drain(..) {
                // Clocks of other machines may be ahead.
                let latency = now.duration_since(triggered).unwrap_or_default();
                metrics.network_programming.observe(latency.as_secs_f64());
            }
        }
        let units: BTreeSet<_> = applied.report.succeeded.iter().chain(applied.report.failed.keys()).collect();
        let mut checks = self.checks.borrow().clone();
        for unit in units {
            if let Unit::Service(name) = unit {
                self.service(name, applied.cluster, &mut checks);
            }
        }
        let addresses = applied.cluster.addresses();
        let restricted = || addresses.node_port.union(&addresses.loopback).copied().collect();
        checks.addresses = (!self.node_port_addresses.is_all()).then(restricted);
        self.applied += applied.report.succeeded.len();
        self.checks.send_if_modified(|sent| {
            let changed = *sent != checks;
            *sent = checks;
            changed
        });
        let sum = |of: fn(&WithoutLocal) -> i64| self.without_local.values().map(of).sum::<i64>();
        self.metrics.no_local_endpoints.with_label_values(&["internal"]).set(sum(|service| service.internal));
        self.metrics.no_local_endpoints.with_label_values(&["external"]).set(sum(|service| service.external));
    }

    fn settled(&mut self) {
        self.metrics.service_changes_pending.set(0);
        self.metrics.endpoint_changes_pending.set(0);
        if !self.refused {
            self.health.updated(Instant::now());
        }
        if std::mem::take(&mut self.applied) >= LARGE {
            give_memory_back();
        }
    }

    fn backends_gone(&mut self, gone: &[(BackendId, BackendRow)]) {
        let mut udp = Gone::new();
        for (id, row) in gone.iter().filter(|(_, row)| row.protocol == Protocol::Udp) {
            udp.entry(row.addr).or_default().push((id.number, row.generation));
        }
        self.sockets.end(&udp);
    }
}

impl Told {
    /// Brings what is known of the Service `name` up to date.
    fn service(&mut self, name: &ObjectName, cluster: &Cluster, checks: &mut Checks) {
        let service = cluster.service(name);
        match service.and_then(|service| service.health_check_node_port) {
            Some(port) => {
                checks.services.insert(name.clone(), Check { port, local_endpoints: local_ready(name, cluster) });
            }
            None => _ = checks.services.remove(name),
        }
        let without_local = service.map(|service| without_local(name, service, cluster)).unwrap_or_default();
        if without_local == WithoutLocal::default() {
            self.without_local.remove(name);
        } else {
            self.without_local.insert(name.clone(), without_local);
        }
    }
}

/// Pods of the Service that are ready on this node: its addresses of the family that has more.
fn local_ready(name: &ObjectName, cluster: &Cluster) -> usize {
    let place = cluster.place();
    let endpoints = cluster.slices(name).flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.state == EndpointState::Ready && place.is_local(endpoint));
    let (v4, v6): (BTreeSet<_>, BTreeSet<_>) = ready.map(|endpoint| endpoint.addr).partition(IpAddr::is_ipv4);
    v4.len().max(v6.len())
}

fn without_local(name: &ObjectName, service: &Service, cluster: &Cluster) -> WithoutLocal {
    if [service.internal_policy, service.external_policy] == [TrafficPolicy::Cluster; 2] {
        return WithoutLocal::default();
    }
    let place = cluster.place();
    let mut ports = WithoutLocal::default();
    for port in &service.ports {
        let candidates = candidates(cluster.slices(name), port, place);
        let mut usable = candidates.values().filter(|endpoint| endpoint.state != EndpointState::Unready).peekable();
        if usable.peek().is_none() || usable.any(|endpoint| place.is_local(endpoint)) {
            continue;
        }
        let external =
            port.node_port.is_some() || !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty();
        ports.internal += i64::from(service.internal_policy == TrafficPolicy::Local);
        ports.external += i64::from(external && service.external_policy == TrafficPolicy::Local);
    }
    ports
}
