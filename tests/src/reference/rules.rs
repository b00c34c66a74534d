//! What may become of the first packet of a flow.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use dataplane_common::{DropReason, Protocol};
use ipnetwork::IpNetwork;

use super::{Endpoint, Ingress, Kind, NODE, Port, Service, World, source::Source};
use crate::topology::IpVersion;

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod on this node.
    Pod(IpAddr),
    /// Someone outside of the node.
    Outside(IpAddr),
    /// A process of this node, whose socket was not translated.
    Host(IpAddr),
}

impl Client {
    /// Its address.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Pod(ip) | Self::Outside(ip) | Self::Host(ip) => ip,
        }
    }
}

/// What may become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No service has to do with it.
    Untouched,
    /// It reaches one of these.
    Sent(Backends),
    /// Its sender learns at once that nobody answers.
    Refused,
    /// It is dropped in silence, and counted.
    Dropped(DropReason),
}

/// Endpoints that a flow may reach, and whether each is on this node.
type Set = BTreeMap<SocketAddr, bool>;

/// Addresses and ports of endpoints, and how a packet gets to each.
pub type Backends = BTreeMap<SocketAddr, Arrival>;

/// How a packet gets to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Whether the backend is on this node.
    pub is_local: bool,
    /// Whose address it sees.
    pub source: Source,
    /// Why a packet to this one does not arrive.
    pub lost: Option<DropReason>,
}

/// What about a Service makes an address and port lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frontend {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// A service port: the unit that endpoints serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The Service.
    pub service: String,
    /// The port's name.
    pub port: &'static str,
    /// Its protocol.
    pub protocol: Protocol,
}

impl World {
    /// What may become of the first packet of a flow, and whose it is.
    pub fn fate(&self, client: Client, to: SocketAddr, protocol: Protocol) -> (Fate, Option<Owner>) {
        let Some((name, service, port, frontend)) = self.frontend(to, protocol) else {
            return (self.fate_without_service(to.ip()), None);
        };
        let owner = Some(Owner { service: name.to_owned(), port: port.name, protocol });
        if frontend == Frontend::LoadBalancer && !service.admits(client.ip()) {
            return (Fate::Dropped(DropReason::SourceRange), owner);
        }
        let endpoints = self.endpoints(name, port, IpVersion::of(to.ip()));
        // A client on the node short-circuits to all endpoints, whatever the external policy says (P34, P40).
        let outside = matches!(client, Client::Outside(_));
        let only_local = match frontend {
            Frontend::ClusterIp => service.internal_local,
            _ => service.external_local && outside,
        };
        let chosen = if only_local { local_set(&endpoints) } else { self.cluster_set(&endpoints) };
        let fate = match (chosen.is_empty(), only_local && endpoints.values().any(|endpoint| serves(endpoint))) {
            (false, _) => {
                let arrival = |addr: SocketAddr, is_local| Arrival {
                    is_local,
                    source: self.source(client, frontend == Frontend::ClusterIp, (addr.ip(), is_local)),
                    lost: lost(client, (to.port(), protocol), addr),
                };
                Fate::Sent(chosen.into_iter().map(|(addr, is_local)| (addr, arrival(addr, is_local))).collect())
            }
            // Others could answer, but not here (P31).
            (true, true) => Fate::Dropped(DropReason::NoLocalEndpoints),
            (true, false) => Fate::Refused,
        };
        (fate, owner)
    }

    /// The endpoints that flows of `owner` may stay with.
    pub fn serving(&self, owner: &Owner, version: IpVersion) -> BTreeSet<SocketAddr> {
        let service = self.services.get(&owner.service).filter(|service| service.is_ours());
        let service = service.filter(|service| service.has_family(version));
        let port = service.and_then(|service| {
            service.ports.iter().find(|port| (port.name, port.protocol) == (owner.port, owner.protocol))
        });
        let endpoints = port.map(|port| self.endpoints(&owner.service, port, version)).unwrap_or_default();
        endpoints.into_iter().filter(|(_, endpoint)| serves(endpoint)).map(|(addr, _)| addr).collect()
    }

    /// Whether some service has the address of its own.
    fn owns(&self, ip: IpAddr) -> bool {
        let ours = self.services.values().filter(|service| service.is_ours());
        let mut addresses = ours.flat_map(|service| service.cluster_ips.clone());
        addresses.any(|owned| owned == ip)
    }

    /// P10 and P32
    fn fate_without_service(&self, ip: IpAddr) -> Fate {
        let mut ranges = self.service_cidrs.values().flatten();
        let is_inside = ranges.clone().any(|range| range.contains(ip));
        match (ranges.next().is_some(), is_inside) {
            // Services get their addresses elsewhere.
            (true, false) => Fate::Untouched,
            // An active cluster IP without this port.
            _ if self.owns(ip) => Fate::Refused,
            (_, true) => Fate::Dropped(DropReason::UnownedServiceAddress),
            // Perhaps an old cluster, which has no ServiceCIDRs.
            (false, false) => Fate::Untouched,
        }
    }

    /// The service and port that `to` is a frontend of.
    fn frontend(&self, to: SocketAddr, protocol: Protocol) -> Option<(&str, &Service, &Port, Frontend)> {
        for (name, service) in self.services.iter().filter(|(_, service)| service.is_ours()) {
            if !service.has_family(IpVersion::of(to.ip())) {
                continue;
            }
            for port in service.ports.iter().filter(|port| port.protocol == protocol) {
                let of_address = service.address(to.ip()).filter(|_| port.port == to.port());
                let has_node_port = matches!(service.kind, Kind::NodePort | Kind::LoadBalancer);
                let is_node_port = has_node_port && port.node_port == to.port() && self.addresses.contains(&to.ip());
                if let Some(frontend) = of_address.or(is_node_port.then_some(Frontend::NodePort)) {
                    return Some((name, service, port, frontend));
                }
            }
        }
        None
    }

    /// The endpoints of a service port, by address and port; of those that several slices list, the most usable.
    fn endpoints(&self, service: &str, port: &Port, version: IpVersion) -> BTreeMap<SocketAddr, &Endpoint> {
        let mut endpoints = BTreeMap::<SocketAddr, &Endpoint>::new();
        let usability = |endpoint: &Endpoint| (is_ready(endpoint), serves(endpoint), is_local(endpoint));
        for slice in self.slices.values().filter(|slice| slice.service == service && slice.version == version) {
            for (name, protocol, number) in &slice.ports {
                if (*name, *protocol) != (port.name, port.protocol) {
                    continue;
                }
                for endpoint in &slice.endpoints {
                    let addr = SocketAddr::new(endpoint.ip, *number);
                    let known = endpoints.get(&addr);
                    if known.is_none_or(|known| usability(known) < usability(endpoint)) {
                        endpoints.insert(addr, endpoint);
                    }
                }
            }
        }
        endpoints
    }

    /// P20 and P23.
    fn cluster_set(&self, endpoints: &BTreeMap<SocketAddr, &Endpoint>) -> Set {
        let ready = select(endpoints, is_ready);
        if ready.is_empty() {
            return select(endpoints, serves);
        }
        let of_ready = || endpoints.values().filter(|endpoint| is_ready(endpoint));
        let names_node = |endpoint: &Endpoint| endpoint.for_nodes.contains(&NODE);
        if of_ready().all(|endpoint| !endpoint.for_nodes.is_empty()) && of_ready().any(|endpoint| names_node(endpoint))
        {
            return select(endpoints, |endpoint| is_ready(endpoint) && names_node(endpoint));
        }
        let names_zone = |endpoint: &Endpoint| self.zone.is_some_and(|zone| endpoint.for_zones.contains(&zone));
        if of_ready().all(|endpoint| !endpoint.for_zones.is_empty()) && of_ready().any(|endpoint| names_zone(endpoint))
        {
            return select(endpoints, |endpoint| is_ready(endpoint) && names_zone(endpoint));
        }
        ready
    }
}

impl Fate {
    /// Why the packet may be dropped.
    pub fn drop_reasons(&self) -> BTreeSet<DropReason> {
        match self {
            Self::Dropped(reason) => BTreeSet::from([*reason]),
            Self::Sent(backends) => backends.values().filter_map(|arrival| arrival.lost).collect(),
            Self::Untouched | Self::Refused => BTreeSet::new(),
        }
    }
}

impl Service {
    /// Whether sluice has to do with it at all (P05, P06).
    fn is_ours(&self) -> bool {
        self.left_to_others.is_none() && !matches!(self.kind, Kind::Headless | Kind::ExternalName)
    }

    /// What its address `ip` is; the first field that names it decides.
    fn address(&self, ip: IpAddr) -> Option<Frontend> {
        let is_balanced = |ingress: &Ingress| ingress.ip == Some(ip) && matches!(ingress.mode, None | Some("VIP"));
        if self.cluster_ips.contains(&ip) {
            Some(Frontend::ClusterIp)
        } else if self.external_ips.contains(&ip) {
            Some(Frontend::ExternalIp)
        } else {
            self.ingress.iter().any(is_balanced).then_some(Frontend::LoadBalancer)
        }
    }

    /// Whether `client` may use its load balancers' addresses (P02, P33): anyone of a family without ranges, else who is in one of them.
    fn admits(&self, client: IpAddr) -> bool {
        let ranges = self.source_ranges.iter().filter_map(|range| range.trim().parse::<IpNetwork>().ok());
        let mut ranges = ranges.filter(|range| range.is_ipv4() == client.is_ipv4()).peekable();
        ranges.peek().is_none() || ranges.any(|range| range.contains(client))
    }

    /// Whether it has a cluster IP of `version`: addresses of another family lead nowhere (P02).
    fn has_family(&self, version: IpVersion) -> bool {
        self.cluster_ips.iter().any(|ip| IpVersion::of(*ip) == version)
    }
}

/// Why what `client` sends to a port does not reach the backend `to`, if that is chosen.
fn lost(client: Client, (port, protocol): (u16, Protocol), to: SocketAddr) -> Option<DropReason> {
    // Its checksum covers the ports, and whoever translated them would have to read all of the packet (P42).
    if protocol == Protocol::Sctp && port != to.port() {
        return Some(DropReason::SctpPort);
    }
    // What has been on its way out does not come back in as the node's own.
    let is_own = matches!(client, Client::Host(ip) if ip == to.ip());
    is_own.then_some(DropReason::NoRoute)
}

/// P21
fn local_set(endpoints: &BTreeMap<SocketAddr, &Endpoint>) -> Set {
    let ready = select(endpoints, |endpoint| is_ready(endpoint) && is_local(endpoint));
    if ready.is_empty() { select(endpoints, |endpoint| serves(endpoint) && is_local(endpoint)) } else { ready }
}

fn select(endpoints: &BTreeMap<SocketAddr, &Endpoint>, wanted: impl Fn(&Endpoint) -> bool) -> Set {
    let wanted = endpoints.iter().filter(|(_, endpoint)| wanted(endpoint));
    wanted.map(|(addr, endpoint)| (*addr, is_local(endpoint))).collect()
}

/// Nil means yes (P07).
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.ready != Some(false)
}

/// Ready, or terminating and still serving (P20); what terminates and does not serve is never used (P25).
fn serves(endpoint: &Endpoint) -> bool {
    let serving = endpoint.serving.unwrap_or(is_ready(endpoint));
    is_ready(endpoint) || (serving && endpoint.terminating == Some(true))
}

fn is_local(endpoint: &Endpoint) -> bool {
    endpoint.node == Some(NODE)
}
