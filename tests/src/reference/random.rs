//! Random worlds, changes and packets. Few names, addresses and ports, so that much meets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane_common::Protocol;
use fastrand::Rng;

use super::{Endpoint, Ingress, Kind, NODE, Port, Service, Slice, World, objects::Touched, rules::Client};
use crate::topology::{self, Addresses, IpVersion};

/// Number of services.
const SERVICES: u8 = 6;
/// Number of cluster IPs per family.
const CLUSTER_IPS: u8 = 12;
/// Names, protocols and numbers of ports; endpoints serve under other numbers.
const PORTS: [(&str, Protocol, u16); 4] = [
    ("http", Protocol::Tcp, 80),
    ("quic", Protocol::Udp, 80),
    ("dns", Protocol::Udp, 53),
    ("alt", Protocol::Tcp, 8080),
];
const NODES: [&str; 3] = [NODE, "b", "c"];
const ZONES: [&str; 2] = ["x", "y"];
/// Pods per node.
const PODS: u8 = 4;

/// Which packets are made.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// To ports that a cluster IP does not have.
    pub undefined_ports: bool,
}

impl World {
    /// A world without services.
    pub fn empty() -> Self {
        let addresses = IpVersion::BOTH.map(|version| topology::node(0).ip(version));
        Self { zone: Some(ZONES[0]), addresses: addresses.into(), ..Self::default() }
    }

    /// Changes something.
    pub fn touch(&mut self, rng: &mut Rng) -> Touched {
        let number = rng.u8(0..SERVICES);
        match rng.u8(0..20) {
            0..7 => self.touch_service(rng, number),
            7..18 => self.touch_slice(rng, number),
            18 => {
                self.zone = rng.choice([None, Some(ZONES[0]), Some(ZONES[1])]).flatten();
                Touched::Node
            }
            _ => {
                let mut all = Vec::new();
                for version in IpVersion::BOTH {
                    all.extend([topology::node(0).ip(version), topology::node(20).ip(version)]);
                }
                self.addresses = all.into_iter().filter(|_| rng.u8(0..4) > 0).collect();
                Touched::Addresses
            }
        }
    }

    fn touch_service(&mut self, rng: &mut Rng, number: u8) -> Touched {
        let name = format!("s{number}");
        let known = self.services.remove(&name);
        if known.is_none() || rng.u8(0..8) > 0 {
            let mut service = known.unwrap_or_else(|| self.new_service(rng, number));
            for _ in 0..rng.u8(1..3) {
                self.vary(rng, number, &mut service);
            }
            self.services.insert(name.clone(), service);
        }
        Touched::Service(name)
    }

    fn new_service(&self, rng: &mut Rng, number: u8) -> Service {
        let mut service = Service { cluster_ips: self.free_cluster_ips(rng), ..Service::default() };
        service.ports = ports(rng, number);
        service.kind = kind(rng);
        service
    }

    fn vary(&self, rng: &mut Rng, number: u8, service: &mut Service) {
        match rng.u8(0..9) {
            0 => service.kind = kind(rng),
            1 => service.cluster_ips = self.free_cluster_ips(rng),
            2 => service.ports = ports(rng, number),
            3 => service.external_local = !service.external_local,
            4 => service.internal_local = !service.internal_local,
            5 => service.external_ips = some(rng, &external_ips(number)),
            6 | 7 => {
                let ingress = some(rng, &ingress_ips(number));
                let mode = |rng: &mut Rng| rng.choice([None, Some("VIP"), Some("Proxy")]).flatten();
                service.ingress = ingress.into_iter().map(|ip| Ingress { ip: Some(ip), mode: mode(rng) }).collect();
                if rng.u8(0..4) == 0 {
                    service.ingress.push(Ingress { ip: None, mode: None });
                }
            }
            _ => {
                let labels = ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"];
                service.left_to_others = rng.choice([None, None, Some(labels[0]), Some(labels[1])]).flatten();
            }
        }
    }

    /// Cluster IPs that no service has: one or both families.
    fn free_cluster_ips(&self, rng: &mut Rng) -> Vec<IpAddr> {
        let is_free = |ip: &IpAddr| !self.services.values().any(|service| service.cluster_ips.contains(ip));
        let mut families = IpVersion::BOTH.to_vec();
        rng.shuffle(&mut families);
        families.truncate(rng.usize(1..4));
        let ips = families.into_iter().filter_map(|version| {
            let all = (1..=CLUSTER_IPS).map(|number| topology::service(number).ip(version));
            rng.choice(all.filter(is_free).collect::<Vec<_>>())
        });
        ips.collect()
    }

    fn touch_slice(&mut self, rng: &mut Rng, number: u8) -> Touched {
        let part = rng.u8(0..4);
        let name = format!("s{number}-{part}");
        if self.slices.contains_key(&name) && rng.u8(0..6) == 0 {
            self.slices.remove(&name);
            return Touched::Slice(name);
        }
        let version = IpVersion::BOTH[usize::from(part % 2)];
        let fresh = || Slice { service: format!("s{number}"), version, ports: Vec::new(), endpoints: Vec::new() };
        let slice = self.slices.entry(name.clone()).or_insert_with(fresh);
        if slice.ports.is_empty() || rng.u8(0..4) == 0 {
            slice.ports = slice_ports(rng);
        }
        if rng.u8(0..3) == 0 {
            slice.endpoints = endpoints(rng, version);
        } else if let Some(position) = (!slice.endpoints.is_empty()).then(|| rng.usize(0..slice.endpoints.len())) {
            // One that goes, or whose conditions change.
            let old = slice.endpoints.remove(position);
            if rng.bool() {
                slice.endpoints.push(Endpoint {
                    for_nodes: old.for_nodes,
                    for_zones: old.for_zones,
                    ..endpoint(rng, old.ip)
                });
            }
        } else {
            slice.endpoints = endpoints(rng, version);
        }
        Touched::Slice(name)
    }

    /// Who sends what where.
    pub fn packet(&self, rng: &mut Rng, scope: Scope) -> (Client, SocketAddr, Protocol) {
        loop {
            let (to, protocol) = self.destination(rng);
            if !scope.undefined_ports
                && self.fate(Client::Outside(to.ip()), to, protocol) == (super::rules::Fate::Refused, None)
            {
                continue;
            }
            let version = IpVersion::of(to.ip());
            let client = match rng.u8(0..8) {
                0..4 => Client::Pod(topology::pod(0, rng.u8(0..PODS)).ip(version)),
                other => Client::Outside(outside(other % 2).ip(version)),
            };
            return (client, to, protocol);
        }
    }

    fn destination(&self, rng: &mut Rng) -> (SocketAddr, Protocol) {
        let version = IpVersion::BOTH[rng.usize(0..2)];
        let service = rng.u8(0..SERVICES);
        let (_, mut protocol, port) = PORTS[rng.usize(0..PORTS.len())];
        if rng.u8(0..12) == 0 {
            protocol = if protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        }
        let known = self.services.get(&format!("s{service}"));
        let own = known.map(|service| service.ports.clone()).unwrap_or_default();
        let node_port = rng.choice(own.iter().map(|port| (port.node_port, port.protocol)));
        let to = match rng.u8(0..12) {
            0..4 => {
                let ip = known.and_then(|service| rng.choice(service.cluster_ips.iter().copied()));
                (ip.unwrap_or_else(|| topology::service(rng.u8(1..=CLUSTER_IPS)).ip(version)), port)
            }
            4 | 5 => (pick(rng, &external_ips(service)), port),
            6 | 7 => (pick(rng, &ingress_ips(service)), port),
            8..11 => {
                let (port, of) = node_port.unwrap_or((30_000, protocol));
                protocol = of;
                (topology::node(if rng.bool() { 0 } else { 20 }).ip(version), port)
            }
            _ => (topology::pod(1, 0).ip(version), 8080),
        };
        (to.into(), protocol)
    }
}

/// A client outside the cluster.
fn outside(number: u8) -> Addresses {
    topology::node(190 + number)
}

fn external_ips(number: u8) -> [IpAddr; 3] {
    let shared = topology::node(20).v4;
    let own = Ipv4Addr::new(203, 0, 113, number);
    [
        // An address that a node may have, for one service only.
        if number == 0 { shared } else { own }.into(),
        own.into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)).into(),
    ]
}

fn ingress_ips(number: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(198, 51, 100, number).into(), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number)).into()]
}

fn kind(rng: &mut Rng) -> Kind {
    let kinds = [
        Kind::ClusterIp,
        Kind::NodePort,
        Kind::NodePort,
        Kind::LoadBalancer,
        Kind::LoadBalancer,
        Kind::LoadBalancer,
        Kind::Headless,
        Kind::ExternalName,
    ];
    kinds[rng.usize(0..kinds.len())]
}

/// Some of the ports, at least one, on node ports that no other service has.
fn ports(rng: &mut Rng, number: u8) -> Vec<Port> {
    let mut ports = Vec::new();
    let first = rng.usize(0..PORTS.len());
    for (index, (name, protocol, port)) in PORTS.into_iter().enumerate() {
        if index == first || rng.u8(0..3) > 0 {
            let moved = if rng.u8(0..4) == 0 { 1000 } else { 0 };
            let node_port = 30_000 + u16::from(number) * 10 + index as u16 + moved;
            ports.push(Port { name, protocol, port, node_port });
        }
    }
    ports
}

fn slice_ports(rng: &mut Rng) -> Vec<(&'static str, Protocol, u16)> {
    let mut ports = Vec::new();
    for (name, protocol, port) in PORTS {
        if rng.u8(0..10) > 0 {
            ports.push((name, protocol, port + 8000 + u16::from(rng.bool())));
        }
    }
    ports
}

/// A slice's endpoints, none of them twice.
fn endpoints(rng: &mut Rng, version: IpVersion) -> Vec<Endpoint> {
    let mut ips: Vec<IpAddr> =
        (0..3).flat_map(|node| (0..PODS).map(move |pod| topology::pod(node, pod).ip(version))).collect();
    ips.extend((0..3).map(|node| topology::node(node).ip(version)));
    rng.shuffle(&mut ips);
    ips.truncate(rng.usize(0..7));
    let hints = rng.u8(0..8);
    let mut endpoints: Vec<Endpoint> = ips.into_iter().map(|ip| endpoint(rng, ip)).collect();
    for endpoint in &mut endpoints {
        let complete = hints.is_multiple_of(2) || rng.u8(0..4) > 0;
        if complete && matches!(hints, 4 | 5 | 7) {
            endpoint.for_zones = some(rng, &ZONES);
        }
        if complete && matches!(hints, 6 | 7) {
            endpoint.for_nodes = some(rng, &NODES);
        }
    }
    endpoints
}

fn endpoint(rng: &mut Rng, ip: IpAddr) -> Endpoint {
    let node = (0..3_u8).find(|node| {
        let pods = (0..PODS).map(|pod| topology::pod(*node, pod));
        pods.chain([topology::node(*node)]).any(|site| site.ip(IpVersion::of(ip)) == ip)
    });
    let (ready, serving, terminating) = match rng.u8(0..20) {
        0..6 => (None, None, None),
        6..12 => (Some(true), Some(true), Some(false)),
        12 => (Some(true), Some(true), Some(true)),
        13..16 => (Some(false), Some(true), Some(true)),
        16 => (Some(false), Some(false), Some(true)),
        17 => (Some(false), Some(true), Some(false)),
        18 => (Some(false), None, Some(true)),
        _ => (Some(false), None, None),
    };
    let node = node.map(|node| NODES[usize::from(node)]);
    Endpoint { ip, ready, serving, terminating, node, for_nodes: Vec::new(), for_zones: Vec::new() }
}

fn some<T: Copy>(rng: &mut Rng, of: &[T]) -> Vec<T> {
    of.iter().copied().filter(|_| rng.bool()).collect()
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}
