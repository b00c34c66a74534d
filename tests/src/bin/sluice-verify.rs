//! Measures what the programs cost and compares it with the checked-in record: what `cargo xtask verify` runs as root.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use dataplane_tests::costs::{paths, programs, record::Costs, report};

#[derive(Parser)]
struct Arguments {
    /// The folder of costs.json and costs.md
    #[arg(long)]
    docs: PathBuf,
    /// Write them instead of comparing
    #[arg(long)]
    write: bool,
}

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:?}");
        ExitCode::FAILURE
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let release = "/proc/sys/kernel/osrelease";
    let kernel = std::fs::read_to_string(release).with_context(|| format!("cannot read {release}"))?.trim().to_owned();
    let now = Costs { kernel, programs: programs::measure()?, packets: paths::measure(paths::MANY_RUNS)? };
    println!("{}", report::terminal(&now));
    let (record, table) = (arguments.docs.join("costs.json"), arguments.docs.join("costs.md"));
    if arguments.write {
        now.write(&record)?;
        std::fs::write(&table, report::markdown(&now)).with_context(|| format!("cannot write {}", table.display()))?;
        eprintln!("written to {} and {}", record.display(), table.display());
        return Ok(ExitCode::SUCCESS);
    }
    let then = Costs::read(&record)?;
    let differences = now.differences(&then);
    for difference in &differences {
        eprintln!("{difference}");
    }
    if differences.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "error: {} differs from what is measured; when that is meant, `cargo xtask verify --write`",
        record.display()
    );
    Ok(ExitCode::FAILURE)
}
