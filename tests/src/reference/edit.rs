//! Changes of a world as values, which can be told again, left out and made simpler.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::{Endpoint, Kind, Service, Slice, World, objects::Touched, source::Masquerade};

/// What an object of a [`World`] becomes.
#[derive(Clone, Debug)]
pub enum Edit {
    /// A Service, or that there is none of the name.
    Service(String, Option<Service>),
    /// An EndpointSlice, or that there is none of the name.
    Slice(String, Option<Slice>),
    /// The ranges of a ServiceCIDR, or that there is none of the name.
    ServiceCidr(String, Option<Vec<IpNetwork>>),
    /// The zone of this node.
    Zone(Option<&'static str>),
    /// This node's addresses that take NodePorts.
    Addresses(BTreeSet<IpAddr>),
    /// What the operator decides.
    Masquerade(Masquerade),
}

impl World {
    /// What has become of `touched`.
    pub fn edit(&self, touched: &Touched) -> Edit {
        match touched {
            Touched::Service(name) => Edit::Service(name.clone(), self.services.get(name).cloned()),
            Touched::Slice(name) => Edit::Slice(name.clone(), self.slices.get(name).cloned()),
            Touched::ServiceCidr(name) => Edit::ServiceCidr(name.clone(), self.service_cidrs.get(name).cloned()),
            Touched::Node => Edit::Zone(self.zone),
            Touched::Addresses => Edit::Addresses(self.addresses.clone()),
            Touched::Settings => Edit::Masquerade(self.masquerade),
        }
    }

    /// Lets something become what `edit` says.
    pub fn apply(&mut self, edit: &Edit) -> Touched {
        match edit.clone() {
            Edit::Service(name, service) => {
                match service {
                    Some(service) => self.services.insert(name.clone(), service),
                    None => self.services.remove(&name),
                };
                Touched::Service(name)
            }
            Edit::Slice(name, slice) => {
                match slice {
                    Some(slice) => self.slices.insert(name.clone(), slice),
                    None => self.slices.remove(&name),
                };
                Touched::Slice(name)
            }
            Edit::ServiceCidr(name, ranges) => {
                match ranges {
                    Some(ranges) => self.service_cidrs.insert(name.clone(), ranges),
                    None => self.service_cidrs.remove(&name),
                };
                Touched::ServiceCidr(name)
            }
            Edit::Zone(zone) => {
                self.zone = zone;
                Touched::Node
            }
            Edit::Addresses(addresses) => {
                self.addresses = addresses;
                Touched::Addresses
            }
            Edit::Masquerade(masquerade) => {
                self.masquerade = masquerade;
                Touched::Settings
            }
        }
    }

    /// Whether an API server would have it so: no two Services have a cluster IP in common.
    pub fn is_possible(&self) -> bool {
        let mut seen = BTreeSet::new();
        self.services.values().flat_map(|service| &service.cluster_ips).all(|ip| seen.insert(ip))
    }
}

impl Edit {
    /// The same with less in it, in one respect each.
    pub fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Service(name, Some(service)) => {
                let named = |service| Self::Service(name.clone(), Some(service));
                service.simpler().into_iter().map(named).collect()
            }
            Self::Slice(name, Some(slice)) => {
                let named = |slice| Self::Slice(name.clone(), Some(slice));
                slice.simpler().into_iter().map(named).collect()
            }
            Self::ServiceCidr(name, Some(ranges)) if ranges.len() > 1 => {
                let named = |ranges| Self::ServiceCidr(name.clone(), Some(ranges));
                without_one(ranges).into_iter().map(named).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Service {
    fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut with = |differs: bool, change: &dyn Fn(&mut Self)| {
            if differs {
                let mut simpler = self.clone();
                change(&mut simpler);
                all.push(simpler);
            }
        };
        with(self.kind != Kind::ClusterIp, &|service| service.kind = Kind::ClusterIp);
        with(self.left_to_others.is_some(), &|service| service.left_to_others = None);
        with(self.affinity.is_some(), &|service| service.affinity = None);
        with(self.external_local, &|service| service.external_local = false);
        with(self.internal_local, &|service| service.internal_local = false);
        for fewer in without_one(&self.external_ips) {
            with(true, &|service| service.external_ips.clone_from(&fewer));
        }
        for fewer in without_one(&self.ingress) {
            with(true, &|service| service.ingress.clone_from(&fewer));
        }
        for fewer in without_one(&self.source_ranges) {
            with(true, &|service| service.source_ranges.clone_from(&fewer));
        }
        // An API server wants one of each of these.
        for fewer in without_one(&self.ports).into_iter().filter(|fewer| !fewer.is_empty()) {
            with(true, &|service| service.ports.clone_from(&fewer));
        }
        for fewer in without_one(&self.cluster_ips).into_iter().filter(|fewer| !fewer.is_empty()) {
            with(true, &|service| service.cluster_ips.clone_from(&fewer));
        }
        all
    }
}

impl Slice {
    fn simpler(&self) -> Vec<Self> {
        let ports = without_one(&self.ports).into_iter().map(|ports| Self { ports, ..self.clone() });
        let fewer = without_one(&self.endpoints).into_iter();
        let plainer = self.endpoints.iter().enumerate().flat_map(|(position, endpoint)| {
            endpoint.simpler().into_iter().map(move |simpler| {
                let mut endpoints = self.endpoints.clone();
                endpoints[position] = simpler;
                endpoints
            })
        });
        ports.chain(fewer.chain(plainer).map(|endpoints| Self { endpoints, ..self.clone() })).collect()
    }
}

impl Endpoint {
    fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if !self.for_nodes.is_empty() {
            all.push(Self { for_nodes: Vec::new(), ..self.clone() });
        }
        if !self.for_zones.is_empty() {
            all.push(Self { for_zones: Vec::new(), ..self.clone() });
        }
        if (self.ready, self.serving, self.terminating) != (None, None, None) {
            all.push(Self { ready: None, serving: None, terminating: None, ..self.clone() });
        }
        all
    }
}

fn without_one<T: Clone>(all: &[T]) -> Vec<Vec<T>> {
    let without = |position| {
        let mut fewer = all.to_vec();
        fewer.remove(position);
        fewer
    };
    (0..all.len()).map(without).collect()
}

impl Display for Edit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, Some(service)) => write!(f, "Service {name}: {service}"),
            Self::Slice(name, Some(slice)) => write!(f, "EndpointSlice {name}: {slice}"),
            Self::ServiceCidr(name, Some(ranges)) => write!(f, "ServiceCIDR {name}: {}", words(ranges)),
            Self::Service(name, None) => write!(f, "Service {name} is deleted"),
            Self::Slice(name, None) => write!(f, "EndpointSlice {name} is deleted"),
            Self::ServiceCidr(name, None) => write!(f, "ServiceCIDR {name} is deleted"),
            Self::Zone(zone) => write!(f, "the node's zone is {}", zone.unwrap_or("none")),
            Self::Addresses(addresses) => write!(f, "the node's addresses are [{}]", words(addresses)),
            Self::Masquerade(masquerade) => write!(f, "masquerade {masquerade:?}"),
        }
    }
}

/// What differs from a plain Service.
impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, words(&self.cluster_ips))?;
        for port in &self.ports {
            write!(f, ", port {} {}/{}", port.name, port.port, port.protocol)?;
            if matches!(self.kind, Kind::NodePort | Kind::LoadBalancer) {
                write!(f, " on node port {}", port.node_port)?;
            }
        }
        if !self.external_ips.is_empty() {
            write!(f, ", externalIPs {}", words(&self.external_ips))?;
        }
        for ingress in &self.ingress {
            match ingress.ip {
                Some(ip) => write!(f, ", ingress {ip}")?,
                None => f.write_str(", ingress by name")?,
            }
            write_some(f, " of ipMode", ingress.mode.as_ref())?;
        }
        if !self.source_ranges.is_empty() {
            write!(f, ", loadBalancerSourceRanges {:?}", self.source_ranges)?;
        }
        write_some(f, ", ClientIP affinity for seconds:", self.affinity.as_ref())?;
        if self.external_local {
            f.write_str(", externalTrafficPolicy Local")?;
        }
        if self.internal_local {
            f.write_str(", internalTrafficPolicy Local")?;
        }
        write_some(f, ", label", self.left_to_others.as_ref())
    }
}

impl Display for Slice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "of {}, {}", self.service, self.version)?;
        for (name, protocol, number) in &self.ports {
            write!(f, ", port {name} {number}/{protocol}")?;
        }
        self.endpoints.iter().try_for_each(|endpoint| write!(f, ", {endpoint}"))
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ip)?;
        write_some(f, " on node", self.node.as_ref())?;
        write_some(f, " ready:", self.ready.as_ref())?;
        write_some(f, " serving:", self.serving.as_ref())?;
        write_some(f, " terminating:", self.terminating.as_ref())?;
        for (what, names) in [("nodes", &self.for_nodes), ("zones", &self.for_zones)] {
            if !names.is_empty() {
                write!(f, " for {what} {}", names.join(" "))?;
            }
        }
        Ok(())
    }
}

fn write_some<T: Display>(f: &mut Formatter<'_>, what: &str, value: Option<&T>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, "{what} {value}"))
}

fn words<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" ")
}
