//! The services of a measured cluster: many that nobody asks, and the few that are asked, created first, in the middle and last.

use std::net::Ipv4Addr;

use dataplane_common::Protocol;
use serde_json::{Value, json};

use crate::topology;

/// The port that the probed services' pods serve requests on.
pub const POD_PORT: u16 = 8080;
/// The port of TCP streams.
pub const STREAM_PORT: u16 = 5201;
/// Endpoints of a service that nobody asks.
const OTHERS_ENDPOINTS: u32 = 2;

/// All services, in the order in which they are created.
#[derive(Clone, Debug)]
pub struct Catalogue {
    /// The services.
    pub services: Vec<Service>,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its cluster IP.
    pub ip: Ipv4Addr,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints' addresses.
    pub endpoints: Vec<Ipv4Addr>,
}

/// A service port.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the cluster IP.
    pub port: u16,
    /// The endpoints' port.
    pub target: u16,
    /// The port on the nodes.
    pub node_port: Option<u16>,
}

/// Which of the services is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Position {
    /// The one that was created first.
    First,
    /// One from the middle.
    Middle,
    /// The one that was created last.
    Last,
}

impl Position {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::First, Self::Middle, Self::Last];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Middle => "middle",
            Self::Last => "last",
        }
    }

    /// The index of the first service of the pair at this position among `count`.
    const fn index(self, count: u32) -> u32 {
        match self {
            Self::First => 0,
            Self::Middle => count / 2,
            Self::Last => count - 2,
        }
    }
}

impl Catalogue {
    /// `count` services, at least six; at each position one served by the pods `near` and one served by `far`.
    pub fn new(count: u32, near: Ipv4Addr, far: Ipv4Addr) -> Self {
        let probed = |index: u32| {
            let position =
                Position::ALL.into_iter().find(|position| index - index % 2 == even(position.index(count)))?;
            Some(Service::probed(position, index, if index.is_multiple_of(2) { near } else { far }))
        };
        let services = (0..count).map(|index| probed(index).unwrap_or_else(|| Service::other(index))).collect();
        Self { services }
    }

    /// The probed service at `position`, served on the same node or on the other one.
    pub fn probed(&self, position: Position, near: bool) -> Option<&Service> {
        let count = u32::try_from(self.services.len()).ok()?;
        let index = even(position.index(count)) + u32::from(!near);
        self.services.get(usize::try_from(index).ok()?)
    }

    /// Every service port with its service, in the order of creation.
    pub fn ports(&self) -> impl Iterator<Item = (&Service, &Port)> {
        self.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)))
    }

    /// The Kubernetes objects; `node_of` names the node of an endpoint.
    pub fn objects(&self, node_of: impl Fn(Ipv4Addr) -> Option<String>) -> Vec<Value> {
        let services = self.services.iter().flat_map(|service| service.objects(&node_of));
        std::iter::once(service_cidr()).chain(services).collect()
    }
}

/// The object that says which addresses services have; clusters keep one since Kubernetes 1.33.
fn service_cidr() -> Value {
    let (v4, v6) = topology::SERVICE_CIDRS;
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": [v4, v6] },
    })
}

const fn even(index: u32) -> u32 {
    index - index % 2
}

impl Service {
    fn probed(position: Position, index: u32, endpoint: Ipv4Addr) -> Self {
        // The first of Kubernetes' range on; each protocol has its own numbers.
        let node_port =
            |port: u16| u16::try_from(index % 2).ok().map(|far| 30_000 + 100 * position as u16 + 10 * far + port);
        let ports = vec![
            Port { name: "web", protocol: Protocol::Tcp, port: 80, target: POD_PORT, node_port: node_port(0) },
            Port { name: "web-udp", protocol: Protocol::Udp, port: 80, target: POD_PORT, node_port: node_port(0) },
            Port { name: "stream", protocol: Protocol::Tcp, port: STREAM_PORT, target: STREAM_PORT, node_port: None },
        ];
        Self { name: format!("probed-{index}"), ip: cluster_ip(index), ports, endpoints: vec![endpoint] }
    }

    fn other(index: u32) -> Self {
        let port = Port { name: "web", protocol: Protocol::Tcp, port: 80, target: POD_PORT, node_port: None };
        let endpoints = (0..OTHERS_ENDPOINTS).map(|number| nobody(index * OTHERS_ENDPOINTS + number)).collect();
        Self { name: format!("other-{index}"), ip: cluster_ip(index), ports: vec![port], endpoints }
    }

    /// The service port of `protocol` and `port`.
    pub fn port(&self, protocol: Protocol, port: u16) -> Option<&Port> {
        self.ports.iter().find(|candidate| candidate.protocol == protocol && candidate.port == port)
    }

    fn objects(&self, node_of: &impl Fn(Ipv4Addr) -> Option<String>) -> [Value; 2] {
        let typed = if self.ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
        let ports = |target: bool| -> Vec<Value> {
            let one = |port: &Port| {
                let mut value = json!({ "name": port.name, "protocol": port.protocol.name() });
                value["port"] = if target { port.target } else { port.port }.into();
                if let (false, Some(node_port)) = (target, port.node_port) {
                    value["nodePort"] = node_port.into();
                }
                value
            };
            self.ports.iter().map(one).collect()
        };
        let endpoints: Vec<Value> = (self.endpoints.iter())
            .map(|address| json!({ "addresses": [address], "conditions": { "ready": true }, "nodeName": node_of(*address) }))
            .collect();
        let namespace = crate::objects::NAMESPACE;
        [
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": self.name, "namespace": namespace },
                "spec": {
                    "type": typed, "clusterIP": self.ip, "clusterIPs": [self.ip], "ipFamilies": ["IPv4"],
                    "ipFamilyPolicy": "SingleStack", "ports": ports(false),
                },
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{}-v4", self.name), "namespace": namespace,
                    "labels": { "kubernetes.io/service-name": self.name },
                },
                "addressType": "IPv4", "ports": ports(true), "endpoints": endpoints,
            }),
        ]
    }
}

/// The cluster IP of the service with the number `index`, behind those of the API server and DNS.
fn cluster_ip(index: u32) -> Ipv4Addr {
    let network = u32::from(topology::service(0).v4);
    Ipv4Addr::from(network + 256 + index)
}

/// The address of an endpoint that no packet is sent to, in the ranges of nodes that do not exist.
fn nobody(number: u32) -> Ipv4Addr {
    let network = u32::from(topology::pod(100, 0).v4) & 0xffff_ff00;
    Ipv4Addr::from(network + number % (100 * 256))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(count: u32) -> Catalogue {
        Catalogue::new(count, Ipv4Addr::new(10, 244, 0, 11), Ipv4Addr::new(10, 244, 1, 10))
    }

    #[test]
    fn the_probed_services_are_first_in_the_middle_and_last() {
        for count in [10, 1000, 10_000] {
            let catalogue = catalogue(count);
            assert_eq!(catalogue.services.len(), count as usize);
            let names: Vec<&str> = Position::ALL
                .iter()
                .flat_map(|position| [true, false].map(|near| catalogue.probed(*position, near).unwrap().name.as_str()))
                .collect();
            let middle = even(count / 2);
            let expected = [0, 1, middle, middle + 1, count - 2, count - 1].map(|index| format!("probed-{index}"));
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn no_address_and_no_node_port_is_given_twice() {
        let catalogue = catalogue(30_000);
        let ips: std::collections::BTreeSet<_> = catalogue.services.iter().map(|service| service.ip).collect();
        assert_eq!(ips.len(), 30_000);
        let ports: Vec<_> =
            catalogue.ports().filter_map(|(_, port)| Some((port.protocol.name(), port.node_port?))).collect();
        let unique: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!((ports.len(), unique.len()), (12, 12));
    }
}
