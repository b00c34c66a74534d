//! Compiles what is the node's own: its addresses, and the prefixes that mean something to it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use dataplane_common::{
    Device,
    map::{ANY_INTERFACE, cidr, local_addr},
};
use ipnetwork::IpNetwork;

use super::{IpFamily, SnatKey, Tables, canonical};
use crate::model::{cluster::Cluster, device::Passage, node::LocalAddresses};

/// The rows of `local_addrs*`, `snat_addrs*`, `cidrs*` and `devices`.
pub fn compile(cluster: &Cluster) -> Tables {
    let addresses = cluster.addresses();
    let mut tables = Tables::default();
    for (set, bit) in [(&addresses.node_port, local_addr::NODE_PORT), (&addresses.loopback, local_addr::LOOPBACK)] {
        for addr in set {
            *tables.local_addrs.entry(*addr).or_default() |= bit;
        }
    }
    for (interface, addrs) in &addresses.snat {
        for addr in addrs {
            // The first of a family is the primary one.
            let key = SnatKey { interface: *interface, family: IpFamily::of(*addr) };
            tables.snat_addrs.entry(key).or_insert(*addr);
        }
    }
    for family in IpFamily::ALL {
        if let Some(addr) = primary(family, cluster) {
            tables.snat_addrs.insert(SnatKey { interface: ANY_INTERFACE, family }, addr);
        }
    }
    let services = cluster.service_cidrs().map(|range| (range, cidr::SERVICE));
    let pods = cluster.pod_cidrs().iter().map(|range| (*range, cidr::POD));
    let knows_services = cluster.service_cidrs().next().is_some();
    let known = knows_services.then(|| everything().map(|range| (range, cidr::SERVICES_KNOWN)));
    tables.cidrs = cidrs(services.chain(pods).chain(known.into_iter().flatten()));
    tables.devices = addresses.passages.iter().map(|(index, passage)| (*index, device(*index, *passage))).collect();
    tables
}

/// The row of `devices` for the interface with this index.
fn device(index: u32, passage: Passage) -> Device {
    let (routed_as, flags) = match passage {
        Passage::Out => (index, Device::TRANSMIT),
        Passage::Bridge => (index, Device::TRANSMIT | Device::BRIDGE),
        Passage::Peer => (index, Device::PEER),
        Passage::Port(bridge) => (bridge, 0),
    };
    Device { routed_as, flags }
}

/// The address that stands for the node: the first one of its Node object that it really has, else the first uplink's.
fn primary(family: IpFamily, cluster: &Cluster) -> Option<IpAddr> {
    let LocalAddresses { node_port, loopback, snat, .. } = cluster.addresses();
    let of_uplinks = || snat.values().flatten();
    let is_here = |addr: &&IpAddr| node_port.contains(*addr) || of_uplinks().any(|other| other == *addr);
    let of_node = cluster.node().into_iter().flat_map(|node| &node.addresses).filter(is_here);
    of_node.chain(of_uplinks()).find(|addr| IpFamily::of(**addr) == family && !loopback.contains(*addr)).copied()
}

/// The default routes of both families.
fn everything() -> impl Iterator<Item = IpNetwork> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    // A prefix of no bits is always one.
    any.into_iter().filter_map(|addr| IpNetwork::new(addr, 0).ok())
}

/// The bits of every range, and of the ranges around it: the longest prefix of an address is the only one that is found.
fn cidrs(ranges: impl Iterator<Item = (IpNetwork, u32)>) -> BTreeMap<IpNetwork, u32> {
    let mut own = BTreeMap::<IpNetwork, u32>::new();
    for (range, bit) in ranges {
        *own.entry(canonical(range)).or_default() |= bit;
    }
    let around = |range: &IpNetwork| {
        let holds = |outer: &IpNetwork| outer.prefix() <= range.prefix() && outer.contains(range.ip());
        own.iter().filter(|(outer, _)| holds(outer)).fold(0, |bits, (_, more)| bits | more)
    };
    own.keys().map(|range| (*range, around(range))).collect()
}

#[cfg(test)]
mod tests;
