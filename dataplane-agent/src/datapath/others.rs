//! Programs of others at the hooks of tc.

use std::{collections::BTreeSet, io};

use aya::programs::{SchedClassifier, TcAttachType};

use super::hook::Hook;
use crate::netlink::{
    Netlink,
    filters::{self, Device, Direction},
};

/// Whether anything but our programs sees the packets of the interface `name` in this direction.
pub fn run_at(netlink: &mut Netlink, index: u32, name: &str, direction: Direction) -> io::Result<bool> {
    let attach_type = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    // Without TCX there is nothing to ask for, and an interface may be gone by now.
    let programs = SchedClassifier::query_tcx(name, attach_type).map_or_else(|_| Vec::new(), |(_, found)| found);
    // Told by their names: ids change while one agent's programs take the place of another's.
    if programs.iter().any(|program| program.name_as_str().is_none_or(|name| !is_ours(name))) {
        return Ok(true);
    }
    let device = Device { index, name: name.to_owned(), xdp: BTreeSet::new() };
    let filters = filters::filters_of(netlink, &device, direction)?;
    Ok(filters.iter().any(|filter| filter.name.as_deref().is_none_or(|name| !is_ours(name))))
}

fn is_ours(name: &str) -> bool {
    Hook::from_name(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_names() {
        assert!(is_ours("from_pod") && is_ours("to_uplink"));
        assert!(!is_ours("cil_from_container") && !is_ours(""));
    }
}
