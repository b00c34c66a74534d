//! `sluice conntrack stats`: how many flows there are, of which kind, and how full the maps are.

use std::collections::BTreeMap;

use clap::Args;
use dataplane_common::{Direction, Ticks, map};
use serde::Serialize;

use super::FlowFilter;
use crate::{
    cli::{
        flow::{Entries, family_name, protocol_name},
        output::properties,
        service::service_name,
    },
    tables::Tables,
};

/// Options of `sluice conntrack stats`.
#[derive(Args, Clone, Debug, Default)]
pub struct Stats {
    #[command(flatten)]
    pub(super) filter: FlowFilter,
}

/// Counts of flows and entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Entries per family, each direction of a flow being one.
    pub entries: BTreeMap<&'static str, u64>,
    /// Entries that the families' maps have room for unless the agent chose otherwise.
    pub default_capacity: BTreeMap<&'static str, u32>,
    /// Flows: entries of the original direction.
    pub flows: u64,
    /// Flows per state.
    pub states: BTreeMap<&'static str, u64>,
    /// Flows per protocol.
    pub protocols: BTreeMap<String, u64>,
    /// Flows per service port.
    pub services: BTreeMap<String, u64>,
    /// Flows whose source is translated too.
    pub snat: u64,
    /// Entries without their flow's other direction.
    pub unpaired: u64,
    /// Entries past their deadline, waiting to be removed.
    pub expired: u64,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes, both directions.
    pub bytes: u64,
}

/// Counts the entries that pass `filter`.
pub fn count(tables: &Tables, entries: &Entries, filter: &FlowFilter, now: Ticks) -> Counts {
    let mut counts = Counts {
        default_capacity: [("IPv4", map::CONNTRACK4.entries), ("IPv6", map::CONNTRACK6.entries)].into(),
        ..Counts::default()
    };
    for entry in entries.iter().filter(|entry| filter.admits(entry, tables)) {
        *counts.entries.entry(family_name(entry.key.src.ip())).or_default() += 1;
        counts.packets += entry.packets;
        counts.bytes += entry.bytes;
        counts.unpaired += u64::from(entries.other(entry).is_none());
        counts.expired += u64::from(entry.expires_seconds(now) < 0);
        if entry.direction == Direction::Original {
            counts.flows += 1;
            counts.snat += u64::from(entry.changes_source());
            *counts.states.entry(entry.state_name()).or_default() += 1;
            *counts.protocols.entry(protocol_name(entry.key.protocol)).or_default() += 1;
            *counts.services.entry(service_name(tables, entry.service)).or_default() += 1;
        }
    }
    counts
}

/// The counts for people.
pub(super) fn text(counts: &Counts) -> String {
    let entries: Vec<_> = counts
        .default_capacity
        .iter()
        .map(|(family, capacity)| {
            let count = counts.entries.get(family).copied().unwrap_or_default();
            format!("{family} {count} (default capacity {capacity})")
        })
        .collect();
    let mut services: Vec<_> = counts.services.iter().collect();
    services.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    properties(&[
        ("Entries", entries.join(", ")),
        ("Flows", counts.flows.to_string()),
        ("States", listed(&counts.states)),
        ("Protocols", listed(&counts.protocols)),
        ("Services", listed(services.into_iter().take(10))),
        ("With SNAT", counts.snat.to_string()),
        ("Unpaired", counts.unpaired.to_string()),
        ("Expired", counts.expired.to_string()),
        ("Packets", counts.packets.to_string()),
        ("Bytes", counts.bytes.to_string()),
    ])
}

/// `name count, name count`.
fn listed<'a, N: std::fmt::Display + 'a>(counts: impl IntoIterator<Item = (&'a N, &'a u64)>) -> String {
    let texts: Vec<_> = counts.into_iter().map(|(name, count)| format!("{name} {count}")).collect();
    if texts.is_empty() { "none".into() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    use dataplane_common::Protocol;

    use super::*;
    use crate::cli::{fixture, flow::tests::flow};

    #[test]
    fn flows_are_counted_once_and_entries_per_family() {
        let tcp = flow(Protocol::Tcp, ["10.0.0.9:1", "10.96.0.1:80", "10.0.0.9:1", "10.0.0.5:8080"]);
        let [udp, _] = flow(Protocol::Udp, ["[fd00::9]:1", "[fd00:96::1]:80", "[fd00::1]:12288", "[fd00::5]:8080"]);
        let entries: Entries = tcp.into_iter().chain([udp]).collect();
        let counts = count(&fixture::tables(), &entries, &FlowFilter::default(), Ticks(2000));
        assert_eq!(
            text(&counts),
            "\
Entries    IPv4 2 (default capacity 262144), IPv6 1 (default capacity 131072)
Flows      2
States     established 1, stream 1
Protocols  TCP 1, UDP 1
Services   default/web:http 2
With SNAT  1
Unpaired   1
Expired    3
Packets    8
Bytes      480
"
        );
    }
}
