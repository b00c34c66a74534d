//! Tests of planning from changes to map operations, against maps in memory; here the fixture they share.

mod clients;
mod conflicts;
mod operations;
mod random;
mod restart;
mod running;

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16};

use dataplane_common::Protocol;

use super::{
    core::Core,
    round::{Report, Unit},
};
use crate::{
    maps::{self, Maps, memory::MemoryMaps},
    model::{
        Change, ObjectName, Source,
        endpoint::{Endpoint, EndpointPort, EndpointSlice, EndpointState},
        node::LocalAddresses,
        service::{Service, ServicePort, TrafficPolicy},
    },
};

/// An agent on the node `here` with maps in memory.
struct Agent {
    core: Core,
    maps: MemoryMaps,
}

impl Agent {
    /// Starts on what `maps` hold; every source has delivered nothing so far.
    fn start(maps: MemoryMaps) -> Self {
        Self { core: Core::new("here", maps.read().unwrap()), maps }
    }

    fn new() -> Self {
        let mut this = Self::start(MemoryMaps::default());
        this.sync();
        this
    }

    fn sync(&mut self) -> Report {
        Source::ALL.into_iter().for_each(|source| self.core.take(Change::Synced(source)));
        self.round()
    }

    /// Does what there is to do, all parts of it.
    fn round(&mut self) -> Report {
        let mut all = Report::default();
        while self.core.has_work() {
            let part = self.part();
            all.succeeded.extend(part.succeeded);
            all.failed.extend(part.failed);
            all.gone.extend(part.gone);
        }
        all
    }

    /// Plans and applies what is planned together, and checks that every single operation left the maps safe.
    fn part(&mut self) -> Report {
        let round = self.core.plan();
        let mut shadow = self.maps.rows.clone();
        // Each check looks at everything, so the thousands of steps that set up a large cluster are left out.
        let small = round.plan.steps.len() <= 500;
        for step in round.plan.steps.iter().filter(|_| small) {
            step.op.apply_to(&mut shadow);
            assert_safe(&shadow, &step.op.to_string());
        }
        let outcome = maps::apply(&round.plan, &mut self.maps);
        let report = self.core.commit(round, outcome);
        assert_safe(&self.maps.rows, "the round");
        assert_eq!(self.core.tables(), self.maps.read().unwrap().tables, "what is thought to be installed");
        report
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> String {
        changes.into_iter().for_each(|change| self.core.take(change));
        let report = self.round();
        assert_eq!(report.failed.into_iter().collect::<Vec<_>>(), []);
        self.maps.take_log()
    }
}

/// Every frontend counts only slots that hold an existing backend of its own service and family.
#[track_caller]
fn assert_safe(tables: &crate::tables::Tables, after: &str) {
    for (addr, frontend) in &tables.frontends {
        for index in crate::tables::counted_slots(frontend) {
            let backend = tables.slots.get(&index).and_then(|id| tables.backends.get(id));
            let backend = backend.unwrap_or_else(|| panic!("after {after}: slot {index} of {addr} has no backend"));
            assert_eq!(backend.service, frontend.service, "after {after}: slot {index} of {addr}");
            assert_eq!(backend.addr.is_ipv4(), addr.addr.is_ipv4(), "after {after}: slot {index} of {addr}");
            assert_eq!(Some(backend.protocol), addr.protocol, "after {after}: slot {index} of {addr}");
        }
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

/// A service with one TCP port 80.
fn service(cluster_ips: &[&str]) -> Service {
    Service {
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: port(80), node_port: None }],
    }
}

fn node_port_service(cluster_ips: &[&str], node_port: u16) -> Service {
    let mut service = service(cluster_ips);
    service.ports[0].node_port = Some(port(node_port));
    service
}

/// A slice of the service `of`: words are addresses, with `!` in front when draining and `@` when on this node.
fn slice(of: &str, endpoints: &str) -> EndpointSlice {
    let endpoints = endpoints.split_whitespace().map(|word| Endpoint {
        addr: word.trim_start_matches(['!', '@']).parse::<IpAddr>().unwrap(),
        state: if word.contains('!') { EndpointState::Draining } else { EndpointState::Ready },
        node: word.contains('@').then(|| "here".to_owned()),
        zone: None,
        for_nodes: BTreeSet::new(),
        for_zones: BTreeSet::new(),
    });
    EndpointSlice {
        triggered: Default::default(),
        service: name(of),
        ports: vec![EndpointPort { name: String::new(), protocol: Protocol::Tcp, port: port(8080) }],
        endpoints: endpoints.collect(),
    }
}

fn set_service(of: &str, service: Service) -> Change {
    Change::Service(name(of), Some(service))
}

fn set_slice(of: &str, endpoints: &str) -> Change {
    Change::EndpointSlice(name(&format!("{of}-slice")), Some(slice(of, endpoints)))
}

fn remove(of: &str) -> [Change; 2] {
    [Change::Service(name(of), None), Change::EndpointSlice(name(&format!("{of}-slice")), None)]
}

fn addresses(node_port: &[&str]) -> Change {
    let node_port = node_port.iter().map(|ip| ip.parse().unwrap()).collect();
    Change::LocalAddresses(LocalAddresses { node_port, ..LocalAddresses::default() })
}

fn unit(of: &str) -> Unit {
    Unit::Service(name(of))
}
