//! What a benchmark has to show: rows with targets, merged from all parts, as JSON and as a table.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One measured value beside its target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What is measured; one of [`TARGETS`].
    pub id: String,
    /// The measured value.
    pub value: f64,
    /// What it is to reach.
    pub target: f64,
    /// Which side of the target is the good one.
    pub better: Better,
    /// Whether it does.
    pub ok: bool,
}

/// Which way a value improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What a row is to reach.
#[derive(Debug)]
pub struct Target {
    /// The row's id.
    pub id: &'static str,
    /// What it says.
    pub what: &'static str,
    /// Which way it improves.
    pub better: Better,
    /// What is good enough.
    pub target: f64,
}

use Better::{Higher, Lower};

/// All rows, in the order of reports.
pub const TARGETS: &[Target] = &[
    target("crr_packet_vs_direct", "CRR via ClusterIP / direct, packet path only", Higher, 0.90),
    target("crr_default_vs_direct", "CRR via ClusterIP / direct, as installed by default", Higher, 1.00),
    target("crr_vs_iptables_10", "CRR via ClusterIP / iptables mode, 10 services", Higher, 1.20),
    target("crr_vs_nftables_10", "CRR via ClusterIP / nftables mode, 10 services", Higher, 1.20),
    target("crr_flat", "CRR at 10 000 services / at 10 services", Higher, 0.97),
    target("rr_p50_vs_direct", "RR p50 via ClusterIP / direct", Lower, 1.03),
    target("stream_vs_direct", "TCP stream via ClusterIP / direct", Higher, 0.98),
    target("nodeport_xdp_vs_iptables", "NodePort small packets, XDP / iptables mode", Higher, 4.0),
    target("sync_10k_s", "seconds from process start to 10 000 services x 5 endpoints fully programmed", Lower, 1.5),
    target("rss_10k_mb", "agent RSS at that size, MB", Lower, 80.0),
    target("change_p99_ms", "one endpoint change at 10 000 services, watch event to map, p99 in ms", Lower, 5.0),
    target("change_map_ops", "map system calls for it, a batch counts as one", Lower, 6.0),
    target("maps_mb", "memory of all maps at default sizes, MB", Lower, 150.0),
];

const fn target(id: &'static str, what: &'static str, better: Better, target: f64) -> Target {
    Target { id, what, better, target }
}

impl Row {
    /// The row `id` with its measured value.
    ///
    /// # Errors
    /// When [`TARGETS`] does not know the id.
    pub fn new(id: &str, value: f64) -> Result<Self> {
        let target = TARGETS.iter().find(|target| target.id == id).with_context(|| format!("no row is called {id}"))?;
        let ok = match target.better {
            Higher => value >= target.target,
            Lower => value <= target.target,
        };
        Ok(Self { id: id.to_owned(), value, target: target.target, better: target.better, ok })
    }

    /// What the row says, in words.
    pub fn what(&self) -> &'static str {
        TARGETS.iter().find(|target| target.id == self.id).map_or("", |target| target.what)
    }
}

/// The rows of all parts, in the order of [`TARGETS`].
pub fn sort(rows: &mut [Row]) {
    rows.sort_by_key(|row| TARGETS.iter().position(|target| target.id == row.id));
}

/// Writes `{"rows": [...]}` to `path`.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(&serde_json::json!({ "rows": rows }))?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// The rows as a table for a terminal.
pub fn table(rows: &[Row]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY).set_header(["row", "value", "target", "", "what"]);
    for row in rows {
        let sign = if row.better == Higher { "≥" } else { "≤" };
        let mark = if row.ok { "ok" } else { "MISSED" };
        let (value, target) = (format!("{:.3}", row.value), format!("{sign} {}", row.target));
        table.add_row([row.id.as_str(), &value, &target, mark, row.what()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_good_on_the_better_side_of_its_target_and_on_it() {
        for (id, value, ok) in [
            ("crr_flat", 0.97, true),
            ("crr_flat", 0.969, false),
            ("sync_10k_s", 1.5, true),
            ("sync_10k_s", 1.6, false),
        ] {
            assert_eq!(Row::new(id, value).unwrap().ok, ok, "{id} {value}");
        }
        Row::new("crr_flatter", 1.0).unwrap_err();
    }

    #[test]
    fn rows_are_written_as_they_are_read_by_others() {
        let row = serde_json::to_value(Row::new("rr_p50_vs_direct", 1.01).unwrap()).unwrap();
        let expected = serde_json::json!(
            { "id": "rr_p50_vs_direct", "value": 1.01, "target": 1.03, "better": "lower", "ok": true }
        );
        assert_eq!(row, expected);
    }
}
