//! `sluice map list`: the pinned maps, how full they are and what they cost.

pub mod dump;

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::Context as _;
use aya::maps::MapData;
use clap::Subcommand;
use dataplane_common::{
    V4, V6,
    map::{self, MapSpec, Role},
};
use serde::Serialize;

use super::{
    output::{Column, Output, Record},
    pins, read,
};
use crate::{
    maps::{
        observed,
        pinned::{self, Access, PinnedError},
    },
    tables::{IpFamily, Tables},
};

/// Commands about maps.
#[derive(Debug, Subcommand)]
pub enum Map {
    /// List maps with their size and cost
    List,
    /// Show every entry of a map as the datapath has it
    Dump(dump::Dump),
}

/// A map as the listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapLine {
    /// Its name.
    pub map: &'static str,
    /// Kind of map, as the kernel calls it.
    pub kind: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that it has room for.
    pub max_entries: u32,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Memory of the whole map.
    pub memory_bytes: u64,
    /// Who writes it: `agent` or `datapath`.
    pub writer: &'static str,
    /// What it holds.
    pub about: &'static str,
    /// Its id in the kernel.
    pub map_id: u32,
}

impl Record for MapLine {
    const COLUMNS: &'static [Column] = &[
        Column::new("map"),
        Column::new("kind"),
        Column::new("entries"),
        Column::new("max"),
        Column::new("memory"),
        Column::new("layout"),
        Column::wide("id"),
        Column::wide("writer"),
        Column::wide("about"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.map.into(),
            self.kind.clone(),
            self.entries.to_string(),
            self.max_entries.to_string(),
            indicatif::BinaryBytes(self.memory_bytes).to_string(),
            format!("{} -> {} bytes", self.key_bytes, self.value_bytes),
            self.map_id.to_string(),
            self.writer.into(),
            self.about.into(),
        ]
    }
}

/// Runs a command about maps.
pub fn run(command: &Map, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    match command {
        Map::List => output.list(&lines(bpffs)?),
        Map::Dump(args) => dump::run(args, bpffs, output),
    }
}

/// One line per pinned map.
pub fn lines(bpffs: &Path) -> anyhow::Result<Vec<MapLine>> {
    let mut used = used(&read::tables(bpffs)?);
    used.insert(map::CONNTRACK4.name, observed::conntrack::<V4>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    used.insert(map::CONNTRACK6.name, observed::conntrack::<V6>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    used.insert(map::SOCKETS4.name, observed::sockets::<V4>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    used.insert(map::SOCKETS6.name, observed::sockets::<V6>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    used.insert(map::AFFINITY4.name, observed::affinity::<V4>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    used.insert(map::AFFINITY6.name, observed::affinity::<V6>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    used.insert(map::FRAGMENTS4.name, observed::fragments::<V4>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    used.insert(map::FRAGMENTS6.name, observed::fragments::<V6>(bpffs, Access::ReadOnly)?.iter().count() as u64);
    let mut lines = Vec::new();
    for spec in map::ALL {
        match pinned::open(&pinned::directory(bpffs), spec, Access::ReadOnly) {
            Ok(map) => lines.push(line(spec, &map, used.get(spec.name).copied())?),
            // The agent pins the maps one after the other.
            Err(PinnedError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(lines)
}

fn line(spec: &MapSpec, map: &MapData, used: Option<u64>) -> anyhow::Result<MapLine> {
    let about = map.info().with_context(|| format!("{}: cannot be described", spec.name))?;
    Ok(MapLine {
        map: spec.name,
        kind: about.map_type().map_or_else(|_unknown| "unknown".to_owned(), |kind| format!("{kind:?}")),
        // Every element of an array of counters is in use.
        entries: used.unwrap_or_else(|| u64::from(about.max_entries())),
        max_entries: about.max_entries(),
        key_bytes: about.key_size(),
        value_bytes: about.value_size(),
        memory_bytes: memory(map)?,
        writer: match spec.role {
            Role::Desired => "agent",
            Role::Observed | Role::Statistics => "datapath",
        },
        about: spec.about,
        map_id: about.id(),
    })
}

/// Entries in use of the maps that the agent writes.
fn used(tables: &Tables) -> BTreeMap<&'static str, u64> {
    let mut used = BTreeMap::new();
    let mut count = |names: [&'static str; 2], families: &mut dyn Iterator<Item = IpFamily>| {
        for name in names {
            used.insert(name, 0);
        }
        for family in families {
            *used.entry(names[usize::from(family == IpFamily::V6)]).or_default() += 1;
        }
    };
    let names = |four: &MapSpec, six: &MapSpec| [four.name, six.name];
    count(
        names(&map::FRONTENDS4, &map::FRONTENDS6),
        &mut tables.frontends.keys().map(|frontend| IpFamily::of(frontend.addr)),
    );
    count(names(&map::BACKENDS4, &map::BACKENDS6), &mut tables.backends.keys().map(|id| id.family));
    count(
        names(&map::LOCAL_ADDRS4, &map::LOCAL_ADDRS6),
        &mut tables.local_addrs.keys().map(|addr| IpFamily::of(*addr)),
    );
    count(names(&map::SNAT_ADDRS4, &map::SNAT_ADDRS6), &mut tables.snat_addrs.keys().map(|key| key.family));
    count(
        names(&map::SOURCE_RANGES4, &map::SOURCE_RANGES6),
        &mut tables.source_ranges.iter().map(|row| IpFamily::of(row.range.ip())),
    );
    count(names(&map::CIDRS4, &map::CIDRS6), &mut tables.cidrs.keys().map(|range| IpFamily::of(range.ip())));
    used.insert(map::DEVICES.name, tables.devices.len() as u64);
    used.insert(map::SLOTS.name, tables.slots.len() as u64);
    used.insert(map::SERVICE_NAMES.name, tables.service_names.len() as u64);
    used
}

/// The memory that the kernel accounts for `map`.
fn memory(map: &MapData) -> anyhow::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("{path}: cannot be read"))?;
    Ok(memlock(&text).unwrap_or_default())
}

fn memlock(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixture;

    #[test]
    fn memory_is_read_from_what_the_kernel_says_of_the_descriptor() {
        assert_eq!(memlock("pos:\t0\nmap_type:\t1\nmemlock:\t4194304\nmap_id:\t3\n"), Some(4_194_304));
        assert_eq!(memlock("pos:\t0\n"), None);
    }

    #[test]
    fn entries_in_use_are_counted_per_family() {
        let used = used(&fixture::tables());
        let count = |spec: &MapSpec| used[spec.name];
        assert_eq!([count(&map::FRONTENDS4), count(&map::FRONTENDS6)], [3, 1]);
        assert_eq!([count(&map::BACKENDS4), count(&map::BACKENDS6)], [4, 1]);
        assert_eq!([count(&map::SLOTS), count(&map::SERVICE_NAMES), count(&map::SNAT_ADDRS6)], [4, 2, 0]);
    }
}
