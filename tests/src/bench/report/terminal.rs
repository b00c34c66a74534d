//! Results as tables of text.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use super::super::{
    catalogue::Position,
    contenders::DIRECT,
    findings::Figure,
    loads::Results,
    plan::{Entry, FEW},
    rounds::Measured,
    slice::Load,
    statistics::Spread,
};

/// All phases as tables.
pub fn all(results: &Results) -> String {
    let mut text = String::new();
    for measured in &results.measured {
        // Writing to a string cannot fail.
        writeln!(text, "\n{}\n{}", title(measured), table(measured)).ok();
    }
    if !results.missing.is_empty() {
        writeln!(text, "left out, since this build of sluice lacks the options: {}", results.missing.join(", ")).ok();
    }
    for finding in &results.findings {
        writeln!(
            text,
            "{}: {} on the route {}, compared with {}",
            finding.row.id,
            quartiles(finding.spread, 3),
            finding.route.name(),
            finding.against.contender
        )
        .ok();
    }
    text
}

pub(super) fn title(measured: &Measured) -> String {
    let (load, route) = (measured.phase.load, measured.phase.route);
    let mut text = format!("{}, {}", load.name(), route.name());
    if measured.repeated > 0 {
        write!(text, "; {} slices disturbed by others and repeated", measured.repeated).ok();
    }
    if measured.disturbed > 0 {
        write!(text, "; {} disturbed slices kept", measured.disturbed).ok();
    }
    text
}

/// One phase: a line per contender.
pub(super) fn table(measured: &Measured) -> Table {
    let mut table = Table::new();
    let unit = measured.phase.load.unit();
    let latency = matches!(measured.phase.load, Load::Crr(_) | Load::Rr | Load::UdpRr);
    let mut header = vec![
        "contender".to_owned(),
        "services".to_owned(),
        format!("{unit} per CPU s"),
        "to direct".to_owned(),
        format!("{unit} per s"),
        "to direct".to_owned(),
    ];
    if latency {
        header.extend(["p50 µs", "to direct", "p99 µs"].map(str::to_owned));
    }
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(header);
    let base = Entry { contender: DIRECT, services: FEW, position: Position::Middle };
    for entry in measured.phase.entries.iter().copied() {
        let of =
            |figure| measured.spread(entry, figure).map_or("-".to_owned(), |spread| format!("{:.0}", spread.median));
        let to = |figure| measured.ratio(entry, base, figure).map_or("-".to_owned(), |spread| quartiles(spread, 2));
        let mut row = vec![
            entry.contender.to_owned(),
            among(entry),
            of(Figure::PerCpu),
            to(Figure::PerCpu),
            of(Figure::PerWall),
            to(Figure::PerWall),
        ];
        if latency {
            let samples = measured.of(entry).unwrap_or_default();
            let micros =
                |spread: Option<Spread>| spread.map_or("-".to_owned(), |spread| format!("{:.1}", spread.median * 1e6));
            row.push(micros(measured.spread(entry, Figure::P50)));
            row.push(to(Figure::P50));
            row.push(micros(Spread::of(samples.iter().map(|sample| sample.p99.as_secs_f64()))));
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The number of services, and which is asked when it is not one in the middle.
pub(super) fn among(entry: Entry) -> String {
    match entry.position {
        Position::Middle => entry.services.to_string(),
        position => format!("{}, {}", entry.services, position.name()),
    }
}

/// A median with its quartiles.
pub(super) fn quartiles(spread: Spread, digits: usize) -> String {
    let Spread { lower, median, upper } = spread;
    format!("{median:.digits$} ({lower:.digits$}-{upper:.digits$})")
}
