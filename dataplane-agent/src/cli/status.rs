//! `sluice status`: what the datapath holds and where it is attached, on one page.

use std::{collections::BTreeMap, path::Path};

use dataplane_common::map::{self, LAYOUT_VERSION, Role};
use serde::Serialize;

use super::{
    interfaces::{self, Attached},
    map::{MapLine, lines},
    output::{Output, properties},
    pins, read,
};
use crate::{
    datapath::Pins,
    maps::observed,
    sync::Usage,
    tables::{BackendRow, Tables},
};

/// What `sluice status` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The directory of the pins.
    pub path: String,
    /// The version of the map layouts.
    pub layout_version: u32,
    /// The running agent's process id; null when none runs.
    pub agent_pid: Option<u32>,
    /// Service ports.
    pub services: usize,
    /// Addresses and ports that clients send to.
    pub frontends: usize,
    /// Of these, without a backend for clients on this node.
    pub frontends_without_backends: usize,
    /// Endpoints, counted once per service port.
    pub backends: usize,
    /// Of these, on this node.
    pub local_backends: usize,
    /// Of these, terminating.
    pub draining_backends: usize,
    /// Entries in use per map.
    pub entries: BTreeMap<&'static str, u64>,
    /// Maps that packets fill and that are nearly full, with the part of their room that is used, in per cent.
    pub nearly_full: BTreeMap<&'static str, u64>,
    /// Memory of all maps.
    pub memory_bytes: u64,
    /// Packets dropped, by reason; only reasons that occurred.
    pub drops: BTreeMap<&'static str, u64>,
    /// Interfaces or cgroups per hook.
    pub attached: BTreeMap<String, usize>,
    /// Pins of links whose interface or cgroup is gone.
    pub leftover_links: usize,
}

/// Prints the status.
pub fn run(bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    let paths = Pins::new(bpffs);
    let status = Status {
        path: paths.layout().display().to_string(),
        layout_version: LAYOUT_VERSION,
        agent_pid: paths.holder(),
        drops: observed::drops(bpffs)?
            .into_iter()
            .filter(|(_, packets)| *packets > 0)
            .map(|(reason, packets)| (reason.name(), packets))
            .collect(),
        ..gather(&read::tables(bpffs)?, &lines(bpffs)?, &interfaces::attached(bpffs)?)
    };
    output.object(&status, text)
}

/// The counts.
fn gather(tables: &Tables, maps: &[MapLine], attached: &[Attached]) -> Status {
    let flagged = |flag| tables.backends.values().filter(|backend| backend.flags & flag != 0).count();
    let served = || tables.frontends.iter().filter(|(frontend, _)| frontend.is_served());
    let mut status = Status {
        services: tables.service_names.len(),
        frontends: served().count(),
        frontends_without_backends: served().filter(|(_, value)| value.inside.count == 0).count(),
        backends: tables.backends.len(),
        local_backends: flagged(BackendRow::LOCAL),
        draining_backends: flagged(BackendRow::TERMINATING),
        entries: maps.iter().map(|line| (line.map, line.entries)).collect(),
        nearly_full: maps.iter().filter_map(nearly_full).collect(),
        memory_bytes: maps.iter().map(|line| line.memory_bytes).sum(),
        ..Status::default()
    };
    for each in attached {
        if each.attached {
            *status.attached.entry(each.hook.clone()).or_default() += 1;
        } else {
            status.leftover_links += 1;
        }
    }
    status
}

/// The map's name and how full it is, when that is nearly full and not by design.
fn nearly_full(line: &MapLine) -> Option<(&'static str, u64)> {
    let spec = map::ALL.iter().find(|spec| spec.name == line.map)?;
    let usage = Usage { used: line.entries, capacity: line.max_entries.into() };
    (spec.role == Role::Observed && usage.is_high()).then(|| (spec.name, usage.per_cent()))
}

fn text(status: &Status) -> String {
    let entries = |spec: &map::MapSpec| status.entries.get(spec.name).copied().unwrap_or_default();
    let listed = |texts: Vec<String>| if texts.is_empty() { "none".into() } else { texts.join(", ") };
    let agent = match status.agent_pid {
        Some(pid) => format!("running, pid {pid}"),
        None => "not running; traffic goes on with what is in the maps".into(),
    };
    let mut attached = listed(status.attached.iter().map(|(hook, count)| format!("{hook} {count}")).collect());
    if status.leftover_links > 0 {
        attached.push_str(&format!(" ({} more on interfaces that are gone)", status.leftover_links));
    }
    properties(&[
        ("Agent", agent),
        ("Pins", format!("{}, layout v{}", status.path, status.layout_version)),
        ("Services", format!("{} service ports", status.services)),
        ("Frontends", format!("{}, {} of them without a backend", status.frontends, status.frontends_without_backends)),
        (
            "Backends",
            format!(
                "{}, {} of them on this node, {} draining",
                status.backends, status.local_backends, status.draining_backends
            ),
        ),
        ("Flow entries", format!("IPv4 {}, IPv6 {}", entries(&map::CONNTRACK4), entries(&map::CONNTRACK6))),
        ("Sockets", format!("IPv4 {}, IPv6 {}", entries(&map::SOCKETS4), entries(&map::SOCKETS6))),
        ("Nearly full", listed(status.nearly_full.iter().map(|(map, part)| format!("{map} {part} %")).collect())),
        ("Drops", listed(status.drops.iter().map(|(reason, packets)| format!("{reason} {packets}")).collect())),
        ("Attached", attached),
        ("Map memory", indicatif::BinaryBytes(status.memory_bytes).to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixture;

    #[test]
    fn maps_that_packets_have_nearly_filled_are_named() {
        let line = |map: &'static str, entries, max_entries| MapLine {
            map,
            kind: String::new(),
            entries,
            max_entries,
            key_bytes: 4,
            value_bytes: 4,
            memory_bytes: 0,
            writer: "",
            about: "",
            map_id: 1,
        };
        let maps = [line("conntrack4", 850, 1000), line("conntrack6", 799, 1000), line("drops", 16, 16)];
        let status = gather(&fixture::tables(), &maps, &[]);
        assert_eq!(status.nearly_full, BTreeMap::from([("conntrack4", 85)]));
        assert!(text(&status).contains("Nearly full   conntrack4 85 %"));
    }

    #[test]
    fn the_page_counts_what_the_maps_hold() {
        let attached = |hook: &str, attached| Attached {
            target: "veth0".into(),
            hook: hook.into(),
            mechanism: "tcx",
            ifindex: None,
            link_id: None,
            program_id: 1,
            program: hook.into(),
            tag: String::new(),
            attached,
        };
        let all = [attached("from_pod", true), attached("from_pod", true), attached("to_pod", false)];
        let mut status = gather(&fixture::tables(), &[], &all);
        status.path = "/sys/fs/bpf/sluice/v1".into();
        status.layout_version = 1;
        status.drops.insert("no_route", 4);
        assert_eq!(
            text(&status),
            "\
Agent         not running; traffic goes on with what is in the maps
Pins          /sys/fs/bpf/sluice/v1, layout v1
Services      2 service ports
Frontends     4, 1 of them without a backend
Backends      5, 2 of them on this node, 2 draining
Flow entries  IPv4 0, IPv6 0
Sockets       IPv4 0, IPv6 0
Nearly full   none
Drops         no_route 4
Attached      from_pod 2 (1 more on interfaces that are gone)
Map memory    0 B
"
        );
    }
}
