//! `sluice conntrack flush`: removes flows from the maps.

use std::path::Path;

use anyhow::Context as _;
use aya::Pod;
use clap::{Args, error::ErrorKind};
use dataplane_common::{Addr, BePort, Flow, FlowKey, V4, V6};
use serde::Serialize;

use super::FlowFilter;
use crate::{
    cli::{
        flow::{Entries, Tuple},
        output::Output,
        read,
    },
    maps::{
        observed::{self, ObservedFamily},
        pinned::Access,
    },
    tables::Tables,
};

/// Options of `sluice conntrack flush`.
#[derive(Args, Clone, Debug, Default)]
pub struct Flush {
    #[command(flatten)]
    pub(super) filter: FlowFilter,
    /// Every flow of the node; its connections through services end
    #[arg(long)]
    pub(super) all: bool,
}

impl Flush {
    /// Fails when neither a filter nor `--all` is given, or both are.
    pub fn check(&self) -> Result<(), clap::Error> {
        match (self.all, self.filter.is_empty()) {
            (false, true) => Err(clap::Error::raw(
                ErrorKind::MissingRequiredArgument,
                "which flows? Give a filter such as --service or --address, or --all for every flow of the node\n",
            )),
            (true, false) => Err(clap::Error::raw(ErrorKind::ArgumentConflict, "--all takes no filter beside it\n")),
            _ => Ok(()),
        }
    }
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flushed {
    /// Flows, also those of which only one direction was there.
    pub flows: u64,
    /// Map entries.
    pub entries: u64,
}

/// Removes the flows that pass the filter.
pub(super) fn run(args: &Flush, bpffs: &Path, tables: &Tables, output: Output) -> anyhow::Result<()> {
    let entries = read::entries(bpffs, args.filter.family)?;
    let chosen = keys(args, tables, &entries);
    let mut flushed = Flushed { flows: chosen.len() as u64, entries: 0 };
    let (four, six): (Vec<Tuple>, Vec<Tuple>) = chosen.into_iter().flatten().partition(|key| key.src.is_ipv4());
    flushed.entries += delete::<V4>(bpffs, &four)?;
    flushed.entries += delete::<V6>(bpffs, &six)?;
    output.object(&flushed, |flushed| format!("{} flows ({} entries) removed\n", flushed.flows, flushed.entries))
}

/// The keys of each flow with an entry that passes the filter: both directions go, or the rest would be a trap.
pub fn keys(args: &Flush, tables: &Tables, entries: &Entries) -> Vec<Vec<Tuple>> {
    entries
        .iter()
        .filter(|entry| args.all || args.filter.admits(entry, tables))
        .filter_map(|entry| match entries.other(entry) {
            // The pair is taken with its smaller key.
            Some(other) if other.key < entry.key && (args.all || args.filter.admits(other, tables)) => None,
            Some(other) => Some(vec![entry.key, other.key]),
            None => Some(vec![entry.key]),
        })
        .collect()
}

/// Deletes entries of one family; those that are gone by now do not count.
fn delete<F: ObservedFamily>(bpffs: &Path, keys: &[Tuple]) -> anyhow::Result<u64>
where
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
{
    if keys.is_empty() {
        return Ok(0);
    }
    let mut map = observed::conntrack::<F>(bpffs, Access::ReadWrite)?;
    let mut deleted = 0;
    for key in keys {
        let key = encode::<F::Addr>(key).context("a flow between two address families")?;
        deleted += u64::from(map.delete(&key)?);
    }
    Ok(deleted)
}

/// `tuple` as a map key.
fn encode<A: Addr>(tuple: &Tuple) -> Option<FlowKey<A>> {
    Some(FlowKey::new(
        A::from_ip(tuple.src.ip())?,
        A::from_ip(tuple.dst.ip())?,
        BePort::new(tuple.src.port()),
        BePort::new(tuple.dst.port()),
        tuple.protocol,
    ))
}

#[cfg(test)]
mod tests {
    use dataplane_common::Protocol;

    use super::*;
    use crate::cli::{filter::FamilyFilter, fixture, flow::tests::flow};

    #[test]
    fn both_directions_of_a_flow_go_together_and_count_once() {
        let [original, reply] = flow(Protocol::Tcp, ["10.0.0.9:1", "10.96.0.1:80", "10.0.0.9:1", "10.0.0.5:8080"]);
        let [_, lone] = flow(Protocol::Tcp, ["10.0.0.9:2", "10.96.0.1:80", "10.0.0.9:2", "10.0.0.5:8080"]);
        let entries: Entries = [original, reply, lone].into_iter().collect();
        let all = Flush { all: true, ..Flush::default() };
        let mut flows = keys(&all, &fixture::tables(), &entries);
        flows.sort_by_key(Vec::len);
        assert_eq!(flows.len(), 2);
        assert_eq!(flows[0], [lone.key]);
        assert_eq!(flows[1].len(), 2);
    }

    #[test]
    fn a_flush_needs_a_filter_or_all() {
        assert!(Flush::default().check().is_err());
        assert!(Flush { all: true, ..Flush::default() }.check().is_ok());
        let filter = FlowFilter { family: FamilyFilter { ipv4: true, ipv6: false }, ..FlowFilter::default() };
        assert!(Flush { filter: filter.clone(), all: false }.check().is_ok());
        assert!(Flush { filter, all: true }.check().is_err());
    }

    #[test]
    fn a_key_survives_decoding_and_encoding() {
        let [original, _] = flow(Protocol::Udp, ["[fd00::9]:1", "[fd00:96::1]:53", "[fd00::9]:1", "[fd00::5]:53"]);
        let key = encode::<[u32; 4]>(&original.key).unwrap();
        assert_eq!(Tuple::new(&key), original.key);
        assert!(encode::<[u32; 1]>(&original.key).is_none());
    }
}
