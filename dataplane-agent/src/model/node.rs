//! Nodes: this one's labels and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::device::Passage;

/// A Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `status.addresses` of type InternalIP and ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<ipnetwork::IpNetwork>,
    /// Whether it carries the taint `ToBeDeletedByClusterAutoscaler` or is under deletion.
    pub to_be_deleted: bool,
}

/// What this node's interfaces carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    /// Addresses that take NodePort traffic.
    pub node_port: BTreeSet<IpAddr>,
    /// Loopback addresses, on which only the node's own processes reach a NodePort.
    pub loopback: BTreeSet<IpAddr>,
    /// Per external interface index, the addresses that SNAT uses there: one per family.
    pub snat: BTreeMap<u32, Vec<IpAddr>>,
    /// Interfaces that packets may pass between without the host's stack, by their index.
    pub passages: BTreeMap<u32, Passage>,
}
