//! Compiles one service: what its ports' frontends should offer, in terms of addresses, before any id is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use dataplane_common::{FrontendKind, Protocol, Scope};
use ipnetwork::IpNetwork;

use super::{BackendRow, FrontendAddr, IpFamily, canonical};
use crate::model::{
    ObjectName,
    endpoint::{EndpointSlice, EndpointState},
    selection::{self, Candidates, Place, Selection},
    service::{Service, ServicePort, ServicePortName, TrafficPolicy},
};

/// What one service port wants to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPort {
    /// Its name.
    pub name: ServicePortName,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its frontends.
    pub frontends: BTreeMap<FrontendAddr, WantedFrontend>,
    /// What answers, for each family that the service has.
    pub families: BTreeMap<IpFamily, WantedFamily>,
    /// The clients that its load-balancer addresses admit: everyone of a family that has none, as in kube-proxy, which filters the ranges
    /// to the family first (`MapCIDRsByIPFamily`).
    pub clients: BTreeSet<IpNetwork>,
}

/// One frontend of a [`WantedPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedFrontend {
    /// The field it comes from.
    pub kind: FrontendKind,
    /// The set of endpoints for clients on this node.
    pub inside: TrafficPolicy,
    /// The set of endpoints for clients outside.
    pub outside: TrafficPolicy,
    /// `ClientIP` affinity; zero for none.
    pub affinity_seconds: u32,
}

/// What answers in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedFamily {
    /// Every endpoint that serves, with its backend flags: also those that only existing flows use.
    pub backends: BTreeMap<SocketAddr, u8>,
    /// The endpoints that new flows may choose from.
    pub selection: Selection,
}

impl WantedFamily {
    /// The set that traffic policy `policy` chooses from.
    pub fn set(&self, policy: TrafficPolicy) -> &BTreeSet<SocketAddr> {
        match policy {
            TrafficPolicy::Cluster => &self.selection.cluster,
            TrafficPolicy::Local => &self.selection.local,
        }
    }

    /// Whether an empty set of `policy` drops instead of rejecting: others could answer, but not here.
    pub fn drops(&self, policy: TrafficPolicy) -> bool {
        policy == TrafficPolicy::Local && self.set(policy).is_empty() && !self.backends.is_empty()
    }
}

/// What the service `name` wants, port by port.
///
/// A service has the families of its cluster IPs; addresses of another family lead nowhere and are left out, as in
/// kube-proxy.
pub fn compile<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    place: Place<'_>,
) -> Vec<WantedPort> {
    let has: BTreeSet<IpFamily> = service.cluster_ips.iter().map(|ip| IpFamily::of(*ip)).collect();
    let clients: BTreeSet<_> = service.source_ranges.iter().copied().map(canonical).collect();
    let port = |(index, port): (usize, &ServicePort)| {
        let candidates = selection::candidates(slices.clone(), port, place);
        WantedPort {
            name: ServicePortName { service: name.clone(), port: port.name.clone() },
            protocol: port.protocol,
            // The ports that a cluster IP does not have are the first port's, so that they are somebody's.
            frontends: frontends(service, port, index == 0, &has),
            families: has.iter().map(|family| (*family, family_of(&candidates, *family, place))).collect(),
            clients: clients.clone(),
        }
    };
    service.ports.iter().enumerate().map(port).collect()
}

fn frontends(
    service: &Service,
    port: &ServicePort,
    is_first: bool,
    families: &BTreeSet<IpFamily>,
) -> BTreeMap<FrontendAddr, WantedFrontend> {
    let affinity_seconds = service.affinity.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1));
    let internal = WantedFrontend {
        kind: FrontendKind::ClusterIp,
        inside: service.internal_policy,
        outside: service.internal_policy,
        affinity_seconds,
    };
    // Clients on the node short-circuit to the Cluster set, whatever the external policy says.
    let external = |kind| WantedFrontend {
        kind,
        inside: TrafficPolicy::Cluster,
        outside: service.external_policy,
        affinity_seconds,
    };
    let at = |addr: IpAddr| FrontendAddr {
        addr,
        port: port.port.get(),
        protocol: Some(port.protocol),
        scope: Scope::Address,
    };
    let addresses = service
        .cluster_ips
        .iter()
        .map(|ip| (*ip, internal))
        .chain(service.external_ips.iter().map(|ip| (*ip, external(FrontendKind::ExternalIp))))
        .chain(service.load_balancer_ips.iter().map(|ip| (*ip, external(FrontendKind::LoadBalancer))));

    let mut wanted = BTreeMap::new();
    for (ip, frontend) in addresses.filter(|(ip, _)| families.contains(&IpFamily::of(*ip))) {
        // The first field that names an address decides: a cluster IP stays one.
        wanted.entry(at(ip)).or_insert(frontend);
    }
    if is_first {
        let others = WantedFrontend { affinity_seconds: 0, ..internal };
        wanted.extend(service.cluster_ips.iter().map(|ip| (FrontendAddr::other_ports(*ip), others)));
    }
    if let Some(node_port) = port.node_port {
        for family in families {
            let addr = FrontendAddr {
                addr: family.unspecified(),
                port: node_port.get(),
                protocol: Some(port.protocol),
                scope: Scope::NodePort,
            };
            wanted.insert(addr, external(FrontendKind::NodePort));
        }
    }
    wanted
}

fn family_of(candidates: &Candidates<'_>, family: IpFamily, place: Place<'_>) -> WantedFamily {
    let own: Candidates<'_> = candidates
        .iter()
        .filter(|(addr, _)| IpFamily::of(addr.ip()) == family)
        .map(|(addr, at)| (*addr, *at))
        .collect();
    let selection = selection::select(&own, place);
    let mut backends = BTreeMap::new();
    for (addr, endpoint) in &own {
        let mut flags = if place.is_local(endpoint) { BackendRow::LOCAL } else { 0 };
        match endpoint.state {
            EndpointState::Ready => {}
            EndpointState::Draining => flags |= BackendRow::TERMINATING,
            EndpointState::Unready => continue,
        }
        for (set, bit) in
            [(&selection.cluster, BackendRow::IN_CLUSTER_SET), (&selection.local, BackendRow::IN_LOCAL_SET)]
        {
            flags |= if set.contains(addr) { bit } else { 0 };
        }
        backends.insert(*addr, flags);
    }
    WantedFamily { backends, selection }
}
