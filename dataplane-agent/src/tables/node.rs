//! Compiles the node's own addresses.

use dataplane_common::map::local_addr;

use super::{IpFamily, SnatKey, Tables};
use crate::model::node::LocalAddresses;

/// The rows of `local_addrs*` and `snat_addrs*`.
pub fn compile(addresses: &LocalAddresses) -> Tables {
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
    tables
}
