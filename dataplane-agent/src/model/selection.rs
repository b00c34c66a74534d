//! Which endpoints serve a service port on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    endpoint::{Endpoint, EndpointSlice, EndpointState},
    service::ServicePort,
};

/// Where the traffic is: this node.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// This node's name.
    pub node: &'a str,
    /// The zone it is in.
    pub zone: Option<&'a str>,
}

impl Place<'_> {
    /// Whether `endpoint` runs on this node.
    pub fn is_local(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node)
    }
}

/// The endpoints of one service port and family, each under the address and port to connect to.
pub type Candidates<'a> = BTreeMap<SocketAddr, &'a Endpoint>;

/// The endpoints that new flows may choose from; flows that exist stay with any endpoint that still serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// For traffic policy Cluster.
    pub cluster: BTreeSet<SocketAddr>,
    /// For traffic policy Local.
    pub local: BTreeSet<SocketAddr>,
}

/// The endpoints in `slices` that have the service port `port`.
///
/// A slice's port belongs to it when name and protocol are the same; its number may differ from slice to slice, as a named
/// target port may from pod to pod. The same address and port in several slices is one endpoint: while it moves from one
/// to another both may list it, so the most usable state counts, and among equals the one that is on this node.
pub fn candidates<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    place: Place<'_>,
) -> Candidates<'a> {
    let mut found = Candidates::new();
    for slice in slices {
        let ports = slice.ports.iter().filter(|other| other.name == port.name && other.protocol == port.protocol);
        for number in ports.map(|port| port.port.get()) {
            for endpoint in &slice.endpoints {
                let addr = SocketAddr::new(endpoint.addr, number);
                let rank = |endpoint: &Endpoint| (endpoint.state, !place.is_local(endpoint));
                if found.get(&addr).is_none_or(|other| rank(endpoint) < rank(other)) {
                    found.insert(addr, endpoint);
                }
            }
        }
    }
    found
}

/// Chooses among `candidates`, which are of one service port and one family.
///
/// * **Cluster**: the ready endpoints. When every one of them has node hints and one names this node, those that name this
///   node; else, when every one has zone hints and one names this zone, those that name this zone; else all. When none is
///   ready, all that drain (terminating but serving), hints or not: an answer from afar is better than none.
/// * **Local**: the ready endpoints on this node; when there is none, those on this node that drain; else nothing. The
///   Cluster set and hints have no part in it.
///
/// An endpoint that terminates and no longer serves is never chosen. This is what kube-proxy does (`CategorizeEndpoints`
/// in `pkg/proxy/topology.go`).
pub fn select(candidates: &Candidates<'_>, place: Place<'_>) -> Selection {
    Selection { cluster: cluster(candidates, place), local: local(candidates, place) }
}

fn cluster(candidates: &Candidates<'_>, place: Place<'_>) -> BTreeSet<SocketAddr> {
    let ready = || in_state(candidates, EndpointState::Ready);
    // Chooses by one kind of hints; empty when one ready endpoint has none, or none names this place.
    let hinted = |hints: fn(&Endpoint) -> &BTreeSet<String>, here: &str| -> BTreeSet<SocketAddr> {
        if ready().any(|(_, endpoint)| hints(endpoint).is_empty()) {
            return BTreeSet::new();
        }
        ready().filter(|(_, endpoint)| hints(endpoint).contains(here)).map(|(addr, _)| addr).collect()
    };
    let stages: [&dyn Fn() -> BTreeSet<SocketAddr>; 4] = [
        &|| hinted(|endpoint| &endpoint.for_nodes, place.node),
        &|| place.zone.map(|zone| hinted(|endpoint| &endpoint.for_zones, zone)).unwrap_or_default(),
        &|| ready().map(|(addr, _)| addr).collect(),
        &|| in_state(candidates, EndpointState::Draining).map(|(addr, _)| addr).collect(),
    ];
    first_not_empty(&stages)
}

fn local(candidates: &Candidates<'_>, place: Place<'_>) -> BTreeSet<SocketAddr> {
    let here = |state| -> BTreeSet<SocketAddr> {
        in_state(candidates, state).filter(|(_, endpoint)| place.is_local(endpoint)).map(|(addr, _)| addr).collect()
    };
    first_not_empty(&[&|| here(EndpointState::Ready), &|| here(EndpointState::Draining)])
}

fn in_state<'a>(
    candidates: &'a Candidates<'_>,
    state: EndpointState,
) -> impl Iterator<Item = (SocketAddr, &'a Endpoint)> {
    candidates.iter().filter(move |(_, endpoint)| endpoint.state == state).map(|(addr, endpoint)| (*addr, *endpoint))
}

fn first_not_empty(stages: &[&dyn Fn() -> BTreeSet<SocketAddr>]) -> BTreeSet<SocketAddr> {
    stages.iter().map(|stage| stage()).find(|set| !set.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
