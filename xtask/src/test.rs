//! `cargo xtask test`: every check and every test, and one line that counts them.

mod checks;
mod libtest;
pub(crate) mod output;
pub(crate) mod suite;
pub(crate) mod tally;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;

use self::tally::Tally;
use crate::{build, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only the tests whose name contains this, without the checks
    filter: Option<String>,
    /// Run neither the checks nor what needs root
    #[arg(long)]
    unit: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let mut tally = Tally::default();
    if let Err(error) = setup::ensure() {
        eprintln!("error: {error:#}");
        tally.failed.push("setup".into());
        return Ok(tally.end(start));
    }
    if arguments.filter.is_none() && !arguments.unit {
        checks::run(&mut tally);
    }
    if let Err(error) = tests(arguments, &mut tally) {
        eprintln!("error: {error:#}");
        tally.failed.push("the build".into());
    }
    Ok(tally.end(start))
}

fn tests(arguments: &Arguments, tally: &mut Tally) -> Result<()> {
    let filter = arguments.filter.as_deref();
    // What the tests of the bed start: cargo builds the programs of a package for its own tests only.
    build::binaries(&["--workspace", "--bins"], false)?;
    let suites = suite::build()?;
    // The quick ones first; what needs root last, when everything it is made of is known to work.
    for suite in suites.iter().filter(|suite| !suite.needs_root) {
        suite.run(None, filter, tally);
    }
    suite::run_doctests(filter, tally);
    for suite in suites.iter().filter(|suite| suite.needs_root && !arguments.unit) {
        suite.run(None, filter, tally);
    }
    for mode in suite::MODES {
        for suite in suites.iter().filter(|suite| suite.modes.contains(&mode.name) && !arguments.unit) {
            suite.run(Some(mode.name), filter, tally);
        }
    }
    Ok(())
}
