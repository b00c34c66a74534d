//! The figures of this part, for people.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context, Result};

use super::{
    changes::{Series, Single},
    node::Time,
    start::{Again, Start},
};
use crate::bench::rows::Row;

const MIB: f64 = (1 << 20) as f64;

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) services: usize,
    pub(super) begun: Vec<Start>,
    pub(super) maps: BTreeMap<&'static str, u64>,
    pub(super) single: Single,
    pub(super) steady: Series,
    pub(super) rolling: Series,
    pub(super) again: Again,
}

impl Report {
    /// The rows of this part.
    pub(super) fn rows(&self) -> Result<Vec<Row>> {
        let resident = self.begun.iter().map(|start| start.resident).max().unwrap_or_default();
        Ok(vec![
            Row::new("sync_10k_s", seconds(self.start().took))?,
            Row::new("rss_10k_mb", resident as f64 / MIB)?,
            Row::new("change_p99_ms", seconds(self.steady.quantile(0.99)) * 1000.0)?,
            Row::new("change_map_ops", self.single.most() as f64)?,
            Row::new("maps_mb", self.maps.values().sum::<u64>() as f64 / MIB)?,
        ])
    }

    /// The start that took neither longest nor shortest.
    fn start(&self) -> Start {
        let mut begun = self.begun.clone();
        begun.sort_unstable_by_key(|start| start.took);
        begun[begun.len() / 2]
    }

    /// The figures as Markdown, which a terminal shows as well.
    pub(super) fn text(&self) -> String {
        let Self { services, begun, single, steady, rolling, again, maps } = self;
        let start = self.start();
        let spread: Vec<_> = begun.iter().map(|start| format!("{:.2}", seconds(start.took))).collect();
        let mut text = String::from("| what | value |\n| --- | --- |\n");
        let mut row = |what: &str, value: String| _ = writeln!(text, "| {what} | {value} |");
        row(
            &format!("start with empty maps, {services} services with 5 endpoints"),
            format!("{:.2} s (median of {})", seconds(start.took), spread.join(", ")),
        );
        row("… processor time", times(start.time));
        row("… map operations", format!("{} in {} system calls", start.operations, start.calls));
        row(
            "… resident memory of the agent",
            format!("{:.1} MiB, at most {:.1} MiB", start.resident as f64 / MIB, start.most as f64 / MIB),
        );
        let calls: Vec<_> = single.0.iter().map(|(kind, calls)| format!("{calls} {kind}")).collect();
        row("system calls for one changed endpoint, at most", calls.join(", "));
        for (what, series) in
            [("100 endpoint changes per second", steady), ("rolling restart of 1 000 endpoints", rolling)]
        {
            let count = series.latencies.len();
            row(what, format!("{count} changes in {:.1} s", seconds(series.took)));
            let quantile = |share| format!("{:.2}", seconds(series.quantile(share)) * 1000.0);
            row(
                "… from the API server to the maps",
                format!("p50 {}, p99 {}, most {} ms", quantile(0.5), quantile(0.99), quantile(1.0)),
            );
            row("… processor time", times(series.time));
            let each = |total: u64| format!("{:.1}", total as f64 / count as f64);
            row(
                "… map operations per change",
                format!("{} in {} system calls", each(series.operations), each(series.calls)),
            );
            row("… resident memory of the agent", format!("{:.1} MiB", series.resident as f64 / MIB));
        }
        row(
            "start with the maps of the agent before, one service changed",
            format!("{:.2} s, {}, {} system calls that write", seconds(again.took), times(again.time), again.calls),
        );
        let mut largest: Vec<_> = maps.iter().collect();
        largest.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        let largest = largest.iter().map(|(name, bytes)| format!("{name} {:.1}", **bytes as f64 / MIB));
        row(
            "memory of all maps",
            format!("{:.1} MiB: {}", maps.values().sum::<u64>() as f64 / MIB, largest.collect::<Vec<_>>().join(", ")),
        );
        text
    }

    /// Writes the figures to `control.md` in `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("control.md");
        let text = format!(
            "# The agent and a large cluster\n\nMeasured by `cargo xtask bench control --report`: the real agent on a node of the \
             test bed, following the API server of\nthe tests, which runs on one thread of another process and shares the machine's \
             {} processors with it. Times are from\noutside: from the start of the process, or from just before a write to the API \
             server, until the pinned maps are read\nand found to hold it. System calls are the agent's own count.\n\n{}",
            std::thread::available_parallelism().map_or(1, usize::from),
            self.text()
        );
        fs::create_dir_all(folder)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn times(time: Time) -> String {
    format!("{:.2} s of the agent, {:.2} s of the API server", seconds(time.agent), seconds(time.server))
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
