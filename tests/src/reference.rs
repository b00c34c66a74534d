//! The rules of Services once more, in plain Rust: what a cluster wants, and what may become of a packet.
//!
//! Written after the Kubernetes documentation and kube-proxy's behaviour, as docs/parity.md lists it, and not after the agent or
//! the programs: it shares no code with them, is slow and has no state but the objects. What both say must be the same.

pub mod affinity;
pub mod edit;
pub mod objects;
pub mod random;
pub mod rules;
pub mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use dataplane_common::Protocol;
use ipnetwork::IpNetwork;

use self::source::Masquerade;
use crate::topology::IpVersion;

/// Everything that decides about a packet on one node.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// This node's zone.
    pub zone: Option<&'static str>,
    /// Addresses of this node that take NodePorts.
    pub addresses: BTreeSet<IpAddr>,
    /// Services by name.
    pub services: BTreeMap<String, Service>,
    /// EndpointSlices by name.
    pub slices: BTreeMap<String, Slice>,
    /// What the operator decides about source addresses, once at the start.
    pub masquerade: Masquerade,
    /// The ranges of ServiceCIDRs by name.
    pub service_cidrs: BTreeMap<String, Vec<IpNetwork>>,
}

/// The name of this node.
pub const NODE: &str = "a";

/// For how many seconds clients stay where a Service with affinity says no number.
pub const DEFAULT_AFFINITY: u32 = 10_800;

/// What a Service's `type` and `clusterIP` say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Cluster IPs.
    #[default]
    ClusterIp,
    /// And a port on every node.
    NodePort,
    /// And load balancers.
    LoadBalancer,
    /// No cluster IP.
    Headless,
    /// A DNS alias.
    ExternalName,
}

/// A Service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Its type.
    pub kind: Kind,
    /// `clusterIPs`; without meaning for headless ones and aliases.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`
    pub ingress: Vec<Ingress>,
    /// `ports`
    pub ports: Vec<Port>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds
    pub affinity: Option<u32>,
    /// `loadBalancerSourceRanges`
    pub source_ranges: Vec<&'static str>,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// A label that leaves the Service to others.
    pub left_to_others: Option<&'static str>,
}

/// An ingress point of a load balancer.
#[derive(Clone, Copy, Debug)]
pub struct Ingress {
    /// Its address; none when it has a host name instead.
    pub ip: Option<IpAddr>,
    /// `ipMode`
    pub mode: Option<&'static str>,
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number on the Service's addresses.
    pub port: u16,
    /// Its number on nodes.
    pub node_port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: String,
    /// Its address type.
    pub version: IpVersion,
    /// Name, protocol and number of its ports.
    pub ports: Vec<(&'static str, Protocol, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// `conditions.ready`
    pub ready: Option<bool>,
    /// `conditions.serving`
    pub serving: Option<bool>,
    /// `conditions.terminating`
    pub terminating: Option<bool>,
    /// `nodeName`
    pub node: Option<&'static str>,
    /// `hints.forNodes`
    pub for_nodes: Vec<&'static str>,
    /// `hints.forZones`
    pub for_zones: Vec<&'static str>,
}
