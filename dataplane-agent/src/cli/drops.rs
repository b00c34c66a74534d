//! `sluice drops`: packets that the datapath ended, by reason.

use std::path::Path;

use clap::Args;
use dataplane_common::DropReason;
use serde::Serialize;

use super::{
    output::{Column, Output, Record},
    pins,
};
use crate::maps::observed;

/// Options of `sluice drops`.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Drops {
    /// Also show reasons that have not occurred
    #[arg(long)]
    pub all: bool,
}

/// A reason and how often it occurred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropLine {
    /// The reason's name, also the label of the metric.
    pub reason: &'static str,
    /// Packets since the maps were made.
    pub packets: u64,
    /// What the reason means.
    pub description: &'static str,
}

impl Record for DropLine {
    const COLUMNS: &'static [Column] = &[Column::new("reason"), Column::new("packets"), Column::new("description")];

    fn cells(&self) -> Vec<String> {
        vec![self.reason.into(), self.packets.to_string(), self.description.into()]
    }
}

/// Prints the drop counters.
pub fn run(args: Drops, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    output.list_or(&rows(&observed::drops(bpffs)?, args.all), "nothing was dropped; --all shows every reason")
}

/// The counters, only those above zero unless `all`.
pub fn rows(counters: &[(DropReason, u64)], all: bool) -> Vec<DropLine> {
    counters
        .iter()
        .filter(|(_, packets)| all || *packets > 0)
        .map(|(reason, packets)| DropLine { reason: reason.name(), packets: *packets, description: reason.describe() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_that_occurred_are_shown_unless_asked() {
        let counters: Vec<_> =
            DropReason::ALL.iter().map(|reason| (*reason, u64::from(*reason == DropReason::NoRoute) * 5)).collect();
        assert_eq!(
            Output::default().table(&rows(&counters, false), false),
            "REASON    PACKETS  DESCRIPTION\nno_route  5        no route to the backend or back to the client\n"
        );
        assert_eq!(rows(&counters, true).len(), DropReason::ALL.len());
    }
}
