//! Prints records as a table, JSON or YAML.

use std::io::{self, IsTerminal as _, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns that fit the terminal.
    #[default]
    Table,
    /// The same with every column.
    Wide,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Options that every listing takes.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Output {
    /// Output format
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Print tables without the header line
    #[arg(long, global = true)]
    pub no_headers: bool,
}

/// One column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The header.
    pub name: &'static str,
    /// Whether only [`Format::Wide`] shows it.
    pub wide: bool,
}

impl Column {
    /// A column of every table.
    pub const fn new(name: &'static str) -> Self {
        Self { name, wide: false }
    }

    /// A column of wide tables only.
    pub const fn wide(name: &'static str) -> Self {
        Self { name, wide: true }
    }
}

/// Something that is a line of a table and an object in JSON and YAML.
pub trait Record: Serialize {
    /// The columns, wide ones included.
    const COLUMNS: &'static [Column];

    /// One text per column.
    fn cells(&self) -> Vec<String>;
}

impl Output {
    /// Prints `records`: an array in JSON and YAML; as a table, one line each.
    pub fn list<R: Record>(self, records: &[R]) -> anyhow::Result<()> {
        self.list_or(records, "nothing found")
    }

    /// As [`Self::list`]; `when_empty` tells people on standard error why the table has no lines.
    pub fn list_or<R: Record>(self, records: &[R], when_empty: &str) -> anyhow::Result<()> {
        match self.format {
            Format::Json | Format::Yaml => self.document(&records),
            Format::Table | Format::Wide if records.is_empty() => {
                eprintln!("{when_empty}");
                Ok(())
            }
            Format::Table | Format::Wide => print(&self.table(records, io::stdout().is_terminal())),
        }
    }

    /// Prints one value: an object in JSON and YAML, else what `text` makes of it.
    pub fn object<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self.format {
            Format::Json | Format::Yaml => self.document(value),
            Format::Table | Format::Wide => print(&text(value)),
        }
    }

    /// The table of `records`; on a terminal it is arranged to the width, elsewhere every record is one line.
    pub fn table<R: Record>(self, records: &[R], terminal: bool) -> String {
        let shown = |column: &Column| self.format == Format::Wide || !column.wide;
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_content_arrangement(if terminal {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        });
        if !self.no_headers {
            table.set_header(R::COLUMNS.iter().filter(|column| shown(column)).map(|column| column.name.to_uppercase()));
        }
        for record in records {
            let cells = record.cells();
            table.add_row(R::COLUMNS.iter().zip(cells).filter(|(column, _)| shown(column)).map(|(_, cell)| cell));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        tidy(&table.to_string())
    }

    /// `value` in JSON or YAML.
    fn document<T: Serialize>(self, value: &T) -> anyhow::Result<()> {
        let mut text = match self.format {
            Format::Yaml => serde_norway::to_string(value)?,
            Format::Json | Format::Table | Format::Wide => serde_json::to_string_pretty(value)?,
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        print(&text)
    }
}

/// Lines of `name  value`, the values aligned.
pub fn properties(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Writes `text` to standard output; a reader that has gone away is an error of kind `BrokenPipe`, not a panic.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// `table` without the padding at the end of its lines.
fn tidy(table: &str) -> String {
    let mut text = String::with_capacity(table.len());
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Fruit {
        name: &'static str,
        count: u32,
        origin: &'static str,
    }

    impl Record for Fruit {
        const COLUMNS: &'static [Column] = &[Column::new("name"), Column::new("count"), Column::wide("origin")];

        fn cells(&self) -> Vec<String> {
            vec![self.name.into(), self.count.to_string(), self.origin.into()]
        }
    }

    const FRUITS: &[Fruit] =
        &[Fruit { name: "apple", count: 12, origin: "orchard" }, Fruit { name: "fig", count: 3, origin: "tree" }];

    #[track_caller]
    fn check(format: Format, no_headers: bool, expected: &str) {
        assert_eq!(Output { format, no_headers }.table(FRUITS, false), expected);
    }

    #[test]
    fn a_table_has_one_line_per_record_and_no_padding_at_its_end() {
        check(Format::Table, false, "NAME   COUNT\napple  12\nfig    3\n");
    }

    #[test]
    fn a_wide_table_has_every_column() {
        check(Format::Wide, false, "NAME   COUNT  ORIGIN\napple  12     orchard\nfig    3      tree\n");
    }

    #[test]
    fn no_headers_leaves_the_records() {
        check(Format::Table, true, "apple  12\nfig    3\n");
    }

    #[test]
    fn properties_are_aligned() {
        assert_eq!(properties(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
