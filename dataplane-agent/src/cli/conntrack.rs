//! `sluice conntrack`: the flows that the datapath translates.

pub mod flush;
pub mod list;
pub mod stats;

use std::path::Path;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    filter::{AddressFilter, FamilyFilter, ServiceFilter},
    flow::FlowEntry,
    output::Output,
    pins, read,
    service::service_name,
};
use crate::tables::Tables;

/// Commands about flows.
#[derive(Debug, Subcommand)]
pub enum Conntrack {
    /// List flows, one line each with the counters of both directions
    List(list::List),
    /// Count flows by state, protocol and service
    Stats(stats::Stats),
    /// Forget flows: their next packet is treated as a new flow's first
    Flush(flush::Flush),
}

/// Narrows by what a flow is about.
#[derive(Args, Clone, Debug, Default)]
pub struct FlowFilter {
    #[command(flatten)]
    pub(super) service: ServiceFilter,
    #[command(flatten)]
    pub(super) address: AddressFilter,
    #[command(flatten)]
    pub(super) family: FamilyFilter,
    /// Only flows in this state
    #[arg(long, value_enum, value_name = "STATE")]
    pub(super) state: Option<StateName>,
}

/// A conntrack state as users write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateName {
    /// TCP without an answer so far
    Opening,
    /// TCP after an answer
    Established,
    /// TCP after one side's FIN
    Closing,
    /// TCP after a RST or both FINs
    Closed,
    /// UDP without an answer so far
    Unreplied,
    /// UDP after an answer
    Stream,
}

impl StateName {
    const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Unreplied => "unreplied",
            Self::Stream => "stream",
        }
    }
}

impl FlowFilter {
    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        self.service.is_empty() && self.address.is_empty() && self.family.is_empty() && self.state.is_none()
    }

    /// Whether `entry` passes; an address or port matches on either side, before or after translation.
    pub fn admits(&self, entry: &FlowEntry, tables: &Tables) -> bool {
        let ends = [entry.key.src, entry.key.dst, entry.translated.src, entry.translated.dst];
        self.family.admits(entry.key.src.ip())
            && self.address.admits(&ends, entry.key.protocol)
            && self.state.is_none_or(|state| state.name() == entry.state_name())
            && (self.service.is_empty() || self.service.admits(&service_name(tables, entry.service)))
    }
}

/// Runs a command about flows.
pub fn run(command: &Conntrack, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    let tables = read::tables(bpffs)?;
    match command {
        Conntrack::List(args) => list::run(args, &tables, &read::entries(bpffs, args.filter.family)?, output),
        Conntrack::Stats(args) => {
            let entries = read::entries(bpffs, args.filter.family)?;
            output.object(&stats::count(&tables, &entries, &args.filter, read::now()?), stats::text)
        }
        Conntrack::Flush(args) => flush::run(args, bpffs, &tables, output),
    }
}

#[cfg(test)]
mod tests {
    use dataplane_common::Protocol;

    use super::*;
    use crate::cli::{filter::ServiceFilter, fixture, flow::tests::flow};

    #[track_caller]
    fn check(filter: FlowFilter, expected: bool) {
        let [original, reply] =
            flow(Protocol::Tcp, ["10.0.0.9:40000", "10.96.0.1:80", "192.168.0.1:12288", "10.0.1.5:8080"]);
        assert_eq!(filter.admits(&original, &fixture::tables()), expected, "{filter:?}");
        assert_eq!(filter.admits(&reply, &fixture::tables()), expected, "{filter:?}");
    }

    fn address(text: &str) -> FlowFilter {
        let address = AddressFilter { address: Some(text.parse().unwrap()), ..AddressFilter::default() };
        FlowFilter { address, ..FlowFilter::default() }
    }

    #[test]
    fn both_directions_match_by_every_address_of_the_flow() {
        for text in ["10.0.0.9", "10.96.0.1", "192.168.0.1", "10.0.1.0/24"] {
            check(address(text), true);
        }
        check(address("10.0.2.0/24"), false);
    }

    #[test]
    fn states_services_and_families_narrow() {
        check(FlowFilter { state: Some(StateName::Established), ..FlowFilter::default() }, true);
        check(FlowFilter { state: Some(StateName::Closed), ..FlowFilter::default() }, false);
        let namespace = |name: &str| ServiceFilter { namespace: Some(name.into()), service: None };
        check(FlowFilter { service: namespace("default"), ..FlowFilter::default() }, true);
        check(FlowFilter { service: namespace("kube-system"), ..FlowFilter::default() }, false);
        check(FlowFilter { family: FamilyFilter { ipv4: false, ipv6: true }, ..FlowFilter::default() }, false);
    }

    #[test]
    fn every_state_that_an_entry_can_have_can_be_asked_for() {
        let names: Vec<_> = StateName::value_variants().iter().map(|state| state.name()).collect();
        for bits in 0..16 {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                assert!(names.contains(&dataplane_common::FlowState(bits).name(protocol as u8)));
            }
        }
    }
}
