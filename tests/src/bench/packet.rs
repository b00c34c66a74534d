//! `bench packet`: what one packet costs on each path.

use anyhow::Result;

use super::{Scale, Settings, rows::Row};
use crate::costs::{paths, record::PacketCost, report};

/// Options of this part.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Arguments {
    /// How often everything is measured; times are medians
    #[arg(long, value_name = "TIMES")]
    rounds: Option<usize>,
}

/// Measures and prints; there are no rows, since nanoseconds of a program on its own have no target.
pub fn run(settings: &Settings<'_>, arguments: &Arguments) -> Result<Vec<Row>> {
    if !settings.only.is_empty() {
        return Ok(Vec::new());
    }
    let rounds = arguments.rounds.unwrap_or(if settings.scale == Scale::Quick { 1 } else { 7 }).max(1);
    let runs = if settings.scale == Scale::Quick { 500 } else { paths::MANY_RUNS };
    settings.progress.set_length(rounds as u64);
    settings.progress.set_position(0);
    settings.progress.set_message("single packets");
    let mut measured = Vec::new();
    for _ in 0..rounds {
        settings.go_on()?;
        measured.push(paths::measure(runs)?);
        settings.progress.inc(1);
    }
    settings.progress.suspend(|| println!("{}", report::of_packets(&medians(&measured))));
    Ok(Vec::new())
}

/// Of each packet the median time of all rounds.
fn medians(rounds: &[Vec<PacketCost>]) -> Vec<PacketCost> {
    let Some(first) = rounds.first() else { return Vec::new() };
    let median = |index: usize, cost: &PacketCost| {
        let mut times: Vec<i64> =
            rounds.iter().filter_map(|round| round.get(index)).map(|cost| cost.nanoseconds).collect();
        times.sort_unstable();
        PacketCost { nanoseconds: times.get(times.len() / 2).copied().unwrap_or_default(), ..cost.clone() }
    };
    first.iter().enumerate().map(|(index, cost)| median(index, cost)).collect()
}
