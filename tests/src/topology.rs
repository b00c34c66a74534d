//! The addresses of a test cluster, and what a cluster is made of.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The two versions of IP; every scenario runs with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The loopback address.
    pub const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    /// The version of `ip`.
    pub const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One address of each version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of `version`.
    pub const fn ip(&self, version: IpVersion) -> IpAddr {
        match version {
            IpVersion::V4 => IpAddr::V4(self.v4),
            IpVersion::V6 => IpAddr::V6(self.v6),
        }
    }
}

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wiring {
    /// A veth pair without addresses on the node's side and a host route per pod, as Calico does it.
    #[default]
    Routed,
    /// A bridge that has the pods' gateway address, as kubenet and the `bridge` plugin do it.
    Bridge,
}

impl Wiring {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Routed, Self::Bridge];
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The wiring of every node's pods.
    pub wiring: Wiring,
    /// Nodes with the names of their pods, in the order of their addresses.
    pub nodes: Vec<(String, Vec<String>)>,
}

impl Topology {
    /// Nodes `a` and `b` with the given pods each.
    pub fn two_nodes(wiring: Wiring, on_a: &[&str], on_b: &[&str]) -> Self {
        Self::new(wiring, &[("a", on_a), ("b", on_b)])
    }

    /// The given nodes with their pods.
    pub fn new(wiring: Wiring, nodes: &[(&str, &[&str])]) -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let nodes = nodes.iter().map(|(node, pods)| ((*node).to_owned(), owned(pods))).collect();
        Self { wiring, nodes }
    }
}

/// The network that the nodes are on, with its router at `.1` and `::1`.
pub const FABRIC: (&str, &str) = ("172.20.0.0/24", "fd20::/64");
/// What pods get their addresses from, all nodes together.
pub const POD_CIDRS: (&str, &str) = ("10.244.0.0/16", "fd44::/48");
/// What services get their addresses from.
pub const SERVICE_CIDRS: (&str, &str) = ("10.96.0.0/16", "fd96::/112");
/// The router of the fabric.
pub const ROUTER: Addresses = fabric_address(1);
/// The client outside the cluster: it has a route to the nodes and to nothing else.
pub const EXTERNAL: Addresses = fabric_address(200);

/// The addresses of the node with number `node`, from zero.
pub const fn node(node: u8) -> Addresses {
    fabric_address(10 + node)
}

/// The gateway of a node's pods, with [`Wiring::Bridge`].
pub const fn pod_gateway(node: u8) -> Addresses {
    pod_address(node, 1)
}

/// The addresses of the pod with number `pod` on the node with number `node`, both from zero.
pub const fn pod(node: u8, pod: u8) -> Addresses {
    pod_address(node, 10 + pod)
}

/// The pod CIDRs of a node.
pub fn pod_cidrs(node: u8) -> (String, String) {
    (format!("10.244.{node}.0/24"), format!("fd44:0:0:{node:x}::/64"))
}

/// The addresses of the service with number `service`.
pub const fn service(service: u8) -> Addresses {
    Addresses { v4: Ipv4Addr::new(10, 96, 0, service), v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, service as u16) }
}

const fn fabric_address(host: u8) -> Addresses {
    Addresses { v4: Ipv4Addr::new(172, 20, 0, host), v6: Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, host as u16) }
}

const fn pod_address(node: u8, host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node, host),
        v6: Ipv6Addr::new(0xfd44, 0, 0, node as u16, 0, 0, 0, host as u16),
    }
}
