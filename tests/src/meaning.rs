//! What maps mean to a packet, as lines of text: without ids, generations and the order of slots.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use dataplane_agent::{
    maps::{Maps as _, kernel::KernelMaps, pinned::Access},
    tables::Tables,
};
use dataplane_common::SlotRange;

/// What the maps pinned on `bpffs` mean.
pub fn of_pinned(bpffs: &Path) -> Result<BTreeSet<String>> {
    Ok(meaning(&KernelMaps::open(bpffs, Access::ReadOnly)?.read()?.tables))
}

fn meaning(tables: &Tables) -> BTreeSet<String> {
    let service = |id: u32| tables.service_names.get(&id).map_or_else(|| format!("nameless {id}"), Clone::clone);
    let backend = |index: u32| {
        let row = tables.slots.get(&index).and_then(|id| tables.backends.get(id));
        row.map_or_else(|| format!("nothing in slot {index}"), |row| row.addr.to_string())
    };
    // Sorted, and with repetitions: a backend in two slots would get twice its share.
    let set = |range: SlotRange| {
        let mut backends: Vec<_> = (range.first..range.first + range.count).map(backend).collect();
        backends.sort();
        backends.join(" ")
    };
    let mut lines: BTreeSet<String> = tables.service_names.values().map(|name| format!("service {name}")).collect();
    lines.extend(
        tables.backends.values().map(|row| {
            format!("backend {} {} of {} flags {}", row.addr, row.protocol, service(row.service), row.flags)
        }),
    );
    lines.extend(tables.frontends.iter().map(|(addr, frontend)| {
        let about = (frontend.kind, frontend.flags, frontend.affinity_seconds);
        let (inside, outside) = (set(frontend.inside), set(frontend.outside));
        format!("frontend {addr:?} of {} {about:?} inside {inside} outside {outside}", service(frontend.service))
    }));
    lines.extend(tables.source_ranges.iter().map(|range| format!("{} admits {}", service(range.service), range.range)));
    lines.extend(tables.local_addrs.iter().map(|row| format!("local {row:?}")));
    lines.extend(tables.snat_addrs.iter().map(|row| format!("SNAT {row:?}")));
    lines.extend(tables.cidrs.iter().map(|row| format!("CIDR {row:?}")));
    lines
}
