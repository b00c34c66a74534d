//! The figures as tables.

use std::cmp::Reverse;

use comfy_table::{CellAlignment, Table, presets};

use super::record::{Costs, PacketCost};

/// For a terminal.
#[must_use]
pub fn terminal(costs: &Costs) -> String {
    [table(&PROGRAMS, programs(costs)), of_packets(&costs.packets)].join("\n")
}

/// What packets cost, for a terminal.
#[must_use]
pub fn of_packets(costs: &[PacketCost]) -> String {
    table(&PACKETS, packets(costs))
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(header.to_vec()).add_rows(rows);
    for (index, title) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index).filter(|_| is_number(title)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// For `docs/costs.md`.
#[must_use]
pub fn markdown(costs: &Costs) -> String {
    let mut text = format!(
        "# What the programs cost\n\nMeasured by `cargo xtask verify` on kernel {}, written by `cargo xtask verify --write`.\n",
        costs.kernel
    );
    text += "\n## Programs\n\nInstructions that the verifier walks (its limit is a million) in the default configuration and in \
             the one\nthat costs most, and bytes of machine code.\n\n";
    draw(&mut text, &PROGRAMS, &programs(costs));
    text += "\n## Packets\n\nMap operations at the hook, and the median time by `BPF_PROG_TEST_RUN` over that of an empty \
             program of the same type.\nEach run is a system call of its own with a fresh packet; the times are of one machine, \
             only their relation means\nsomething. To `xdp_from_uplink` packets come first: it sends those for remote backends on, \
             and passes all others to\n`from_uplink`, whose cost is on top. Making a packet of a frame, which it saves, is in no \
             row.\n\n";
    draw(&mut text, &PACKETS, &packets(&costs.packets));
    text
}

const PROGRAMS: [&str; 5] = ["program", "verified", "most verified", "with", "bytes"];
const PACKETS: [&str; 6] = ["flow", "packet", "hook", "lookups", "updates", "ns"];

fn is_number(title: &str) -> bool {
    ["verified", "most verified", "bytes", "lookups", "updates", "ns"].contains(&title)
}

fn programs(costs: &Costs) -> Vec<Vec<String>> {
    let rows = costs.programs.iter().filter_map(|(program, configurations)| {
        let default = configurations.get("default")?;
        let (name, most) = configurations.iter().max_by_key(|(name, size)| (size.verified, Reverse(name.len())))?;
        let figures =
            [default.verified.to_string(), most.verified.to_string(), name.clone(), default.jitted.to_string()];
        Some([program.clone()].into_iter().chain(figures).collect())
    });
    rows.collect()
}

fn packets(costs: &[PacketCost]) -> Vec<Vec<String>> {
    let row = |cost: &PacketCost| {
        let numbers = [cost.lookups.to_string(), cost.updates.to_string(), cost.nanoseconds.to_string()];
        [cost.flow.clone(), cost.packet.clone(), cost.hook.clone()].into_iter().chain(numbers).collect()
    };
    costs.iter().map(row).collect()
}

fn draw(text: &mut String, header: &[&str], rows: &[Vec<String>]) {
    let rule: Vec<&str> = header.iter().map(|title| if is_number(title) { "---:" } else { "---" }).collect();
    for cells in [header, &rule] {
        text.push_str(&line(cells));
    }
    for row in rows {
        text.push_str(&line(row));
    }
}

fn line<T: AsRef<str>>(cells: &[T]) -> String {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |\n", cells.join(" | "))
}
