//! The rows of docs/parity.md.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

/// One behaviour.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// As `P23`.
    pub(super) id: String,
    pub(super) behaviour: String,
    /// Why no test shows it; empty when one should.
    pub(super) reason: String,
}

/// Every table row that begins with an id.
pub(super) fn parse(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.trim_end().strip_suffix('|')) else { continue };
        let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
        if !is_id(cells[0]) {
            continue;
        }
        let line = index + 1;
        ensure!(cells.len() == 3, "line {line}: {} has {} columns instead of 3", cells[0], cells.len());
        ensure!(seen.insert(cells[0]), "line {line}: {} is there twice", cells[0]);
        let [id, behaviour, reason] = [cells[0], cells[1], cells[2]].map(str::to_owned);
        rows.push(Row { id, behaviour, reason });
    }
    ensure!(!rows.is_empty(), "there is no row");
    Ok(rows)
}

/// A letter and two digits.
fn is_id(cell: &str) -> bool {
    matches!(cell.as_bytes(), [letter, tens, ones]
        if letter.is_ascii_uppercase() && tens.is_ascii_digit() && ones.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_and_text_are_no_rows() {
        let text = "# P01\n| id | behaviour | why |\n| --- | --- | --- |\n| P01 | a `b` | |\n\n| C01 | c | d |\n";
        let row = |id: &str, behaviour: &str, reason: &str| Row {
            id: id.into(),
            behaviour: behaviour.into(),
            reason: reason.into(),
        };
        assert_eq!(parse(text).unwrap(), [row("P01", "a `b`", ""), row("C01", "c", "d")]);
    }

    #[test]
    fn broken_lists_are_refused() {
        for (text, expected) in [
            ("", "no row"),
            ("| P01 | a |\n", "line 1: P01 has 2 columns"),
            ("| P01 | a | |\n| P01 | b | |\n", "line 2: P01 is there twice"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
