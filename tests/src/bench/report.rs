//! Reports: tables for a terminal; a page of Markdown with plots for `docs/benchmarks`.

mod markdown;
mod plot;
pub mod terminal;

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{
    catalogue::Position,
    contenders::DIRECT,
    findings::Figure,
    installed::Route,
    loads::Results,
    plan::{Entry, FEW},
    rounds::Measured,
    slice::Load,
};
use plot::{Bar, Line};

/// Writes the page and its plots into `folder`.
pub fn write(folder: &Path, results: &Results) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut plots = Vec::new();
    for (name, load, title) in [
        ("crr", Load::Crr(1), "Short connections per CPU second, to direct"),
        ("rr", Load::Rr, "Requests on an open connection per CPU second, to direct"),
        ("stream", Load::Stream, "TCP stream per CPU second, to direct"),
        ("packets", Load::Packets, "Small packets per CPU second, to plain routing"),
    ] {
        let bars = bars(results, load);
        if !bars.is_empty() {
            plot::bars(&folder.join(name), title, &bars)?;
            plots.push((name, title));
        }
    }
    let lines = sizes(results);
    if lines.iter().any(|line| line.points.len() > 1) {
        let title = "Short connections per CPU second to direct, by number of services (cross node)";
        plot::lines(&folder.join("services"), title, &lines)?;
        plots.push(("services", title));
    }
    let path = folder.join("loads.md");
    let text = markdown::page(results, &plots);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What contenders are compared with.
const BASE: Entry = Entry { contender: DIRECT, services: FEW, position: Position::Middle };

/// One bar per contender and route, in small clusters.
fn bars(results: &Results, load: Load) -> Vec<Bar> {
    let mut bars = Vec::new();
    let phases: Vec<&Measured> = results.measured.iter().filter(|measured| measured.phase.load == load).collect();
    let Some(first) = phases.first() else { return bars };
    for entry in first.phase.entries.iter().filter(|entry| entry.services == FEW) {
        for measured in &phases {
            let route = measured.phase.route;
            if let Some(spread) = measured.ratio(*entry, BASE, Figure::PerCpu) {
                bars.push(Bar { name: format!("{}, {}", entry.contender, route.name()), spread });
            }
        }
    }
    bars
}

/// One line per contender that was measured in clusters of several sizes.
fn sizes(results: &Results) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let wanted = |measured: &&Measured| measured.phase.load == Load::Crr(1) && measured.phase.route == Route::CrossNode;
    let Some(measured) = results.measured.iter().find(wanted) else { return lines };
    for entry in measured.phase.entries.iter().filter(|entry| entry.position == Position::Middle) {
        let Some(spread) = measured.ratio(*entry, BASE, Figure::PerCpu) else { continue };
        let point = (f64::from(entry.services), spread.median);
        match lines.iter_mut().find(|line| line.name == entry.contender) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: entry.contender.to_owned(), points: vec![point] }),
        }
    }
    lines.retain(|line| line.points.len() > 1);
    lines
}
