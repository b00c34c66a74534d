//! Reads pinned maps for the listings, and shows that it is at work when that takes long.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::Pod;
use dataplane_common::{Flow, FlowKey, Ticks, V4, V6};
use indicatif::ProgressBar;
use nix::time::{ClockId, clock_gettime};

use super::{
    filter::FamilyFilter,
    flow::{Entries, FlowEntry},
};
use crate::{
    maps::{
        Maps as _,
        kernel::KernelMaps,
        observed::{self, ObservedFamily},
        pinned::Access,
    },
    tables::Tables,
};

/// Everything that the agent has written.
pub fn tables(bpffs: &Path) -> anyhow::Result<Tables> {
    Ok(KernelMaps::open(bpffs, Access::ReadOnly)?.read()?.tables)
}

/// The conntrack entries of the families that `family` admits.
pub fn entries(bpffs: &Path, family: FamilyFilter) -> anyhow::Result<Entries> {
    let mut progress = Progress::new("conntrack entries");
    let mut entries = Entries::default();
    if !family.ipv6 {
        read_family::<V4>(bpffs, &mut entries, &mut progress)?;
    }
    if !family.ipv4 {
        read_family::<V6>(bpffs, &mut entries, &mut progress)?;
    }
    Ok(entries)
}

fn read_family<F: ObservedFamily>(bpffs: &Path, entries: &mut Entries, progress: &mut Progress) -> anyhow::Result<()>
where
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
{
    let map = observed::conntrack::<F>(bpffs, Access::ReadOnly)?;
    // A key that is evicted while it is read sends the kernel back to the map's beginning; under heavy traffic that
    // could go on for ever.
    for entry in map.iter().take(2 * F::CONNTRACK.entries as usize) {
        let (key, value) = entry?;
        entries.extend([FlowEntry::new(&key, &value)]);
        progress.step();
    }
    Ok(())
}

/// The time on the datapath's clock.
pub fn now() -> anyhow::Result<Ticks> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(Ticks::from_nanos(Duration::from(time).as_nanos().try_into().unwrap_or(u64::MAX)))
}

/// A count on standard error, shown when it is a terminal and reading has gone on for two seconds.
struct Progress {
    what: &'static str,
    began: Instant,
    count: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    const PATIENCE: Duration = Duration::from_secs(2);

    fn new(what: &'static str) -> Self {
        Self { what, began: Instant::now(), count: 0, bar: None }
    }

    fn step(&mut self) {
        self.count += 1;
        if !self.count.is_multiple_of(4096) || self.began.elapsed() < Self::PATIENCE {
            return;
        }
        // Hides itself when standard error is not a terminal.
        let bar = self.bar.get_or_insert_with(ProgressBar::new_spinner);
        bar.set_message(format!("{} {} read", self.count, self.what));
        bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
