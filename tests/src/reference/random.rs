//! Random worlds, changes and packets. Few names, addresses and ports, so that much meets.

mod packet;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_common::Protocol;
use fastrand::Rng;
use ipnetwork::IpNetwork;

use super::{DEFAULT_AFFINITY, Endpoint, Ingress, Kind, NODE, Port, Service, Slice, World, objects::Touched};
use crate::topology::{self, IpVersion};

/// Number of services.
const SERVICES: u8 = 6;
/// Number of cluster IPs per family.
const CLUSTER_IPS: u8 = 12;
/// Names, protocols and numbers of ports; endpoints mostly serve under other numbers.
const PORTS: [(&str, Protocol, u16); 5] = [
    ("http", Protocol::Tcp, 80),
    ("quic", Protocol::Udp, 80),
    ("dns", Protocol::Udp, 53),
    ("alt", Protocol::Tcp, 8080),
    ("signals", Protocol::Sctp, 3868),
];
/// Ranges with some of the cluster IPs, within those of the cluster.
const SERVICE_CIDR_PARTS: (&str, &str) = ("10.96.0.0/29", "fd96::/125");
/// Ranges that admit some clients: pods, others, the node, one or some, with blanks and host bits, of a family that few clients have.
const SOURCE_RANGES: [&str; 8] = [
    "10.244.0.10/31",
    " 10.244.0.12/24 ",
    "172.20.0.200/32",
    "fd44::/62",
    "fd20::c9/128",
    "172.20.0.8/29",
    "fd20::a/128",
    "::/1",
];
/// An affinity's timeout in seconds.
const AFFINITY: u32 = 1000;
/// Spans in seconds that pass at once. However many of them are put together, the sum is minutes away from either timeout.
pub const SPANS: [u64; 2] = [420, 8000];
const NODES: [&str; 3] = [NODE, "b", "c"];
const ZONES: [&str; 2] = ["x", "y"];
/// Pods per node.
const PODS: u8 = 4;

impl World {
    /// A world without services, on a node with one address of each family.
    pub fn empty() -> Self {
        let addresses = IpVersion::BOTH.map(|version| topology::node(0).ip(version));
        Self { zone: Some(ZONES[0]), addresses: addresses.into(), ..Self::default() }
    }

    /// Changes something.
    pub fn touch(&mut self, rng: &mut Rng) -> Touched {
        let number = rng.u8(0..SERVICES);
        match rng.u8(0..21) {
            0..7 => self.touch_service(rng, number),
            7..18 => self.touch_slice(rng, number),
            18 => self.touch_service_cidr(rng),
            19 => {
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

    /// The cluster's own ranges, which some clusters do not tell, and additional ones.
    fn touch_service_cidr(&mut self, rng: &mut Rng) -> Touched {
        let name = ["kubernetes", "more"][rng.usize(0..2)].to_owned();
        self.service_cidrs.remove(&name);
        let (v4, v6) = topology::SERVICE_CIDRS;
        let (part4, part6) = SERVICE_CIDR_PARTS;
        let ranges = [vec![], vec![v4], vec![v6], vec![v4, v6], vec![v4, v6], vec![part4], vec![part4, part6]];
        let ranges: Vec<IpNetwork> =
            rng.choice(ranges).into_iter().flatten().filter_map(|range| range.parse().ok()).collect();
        if !ranges.is_empty() {
            self.service_cidrs.insert(name.clone(), ranges);
        }
        Touched::ServiceCidr(name)
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
        service.affinity = rng.choice([None, None, Some(AFFINITY)]).flatten();
        service
    }

    fn vary(&self, rng: &mut Rng, number: u8, service: &mut Service) {
        match rng.u8(0..11) {
            0 => service.kind = kind(rng),
            1 => service.cluster_ips = self.free_cluster_ips(rng),
            2 => service.ports = ports(rng, number),
            3 => service.external_local = !service.external_local,
            4 => service.internal_local = !service.internal_local,
            5 => service.source_ranges = if rng.bool() { Vec::new() } else { some(rng, &SOURCE_RANGES) },
            6 => {
                let affinity = [None, Some(AFFINITY), Some(DEFAULT_AFFINITY)];
                service.affinity = rng.choice(affinity).flatten();
            }
            7 => service.external_ips = some(rng, &external_ips(number)),
            8 | 9 => {
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
            // SCTP's ports should stay as they are.
            let keeps = protocol == Protocol::Sctp && rng.u8(0..3) > 0;
            ports.push((name, protocol, if keeps { port } else { port + 8000 + u16::from(rng.bool()) }));
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
