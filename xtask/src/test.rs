//! `cargo xtask test`: every check and every test, and one line that counts them.

mod checks;
mod libtest;
mod suite;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;

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

/// What has been counted so far.
#[derive(Default)]
struct Tally {
    passed: usize,
    /// `suite: test`, or what else went wrong.
    failed: Vec<String>,
    /// `suite: test` of those that passed only when they ran once more.
    unsteady: Vec<String>,
    /// Suites with their number of tests and seconds.
    suites: Vec<(String, usize, f32)>,
}

impl Tally {
    /// Prints the summary; its last line counts.
    fn end(&self, start: Instant) -> ExitCode {
        self.print();
        println!("in {:.0} s", start.elapsed().as_secs_f32());
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn print(&self) {
        println!();
        for (suite, tests, seconds) in &self.suites {
            println!("{suite:<44} {tests:>5} tests {seconds:>8.1} s");
        }
        for (title, names) in [("failed", &self.failed), ("passed only when run once more, alone", &self.unsteady)] {
            if !names.is_empty() {
                println!("\n{title}:");
            }
            for name in names {
                println!("    {name}");
            }
        }
        println!();
    }
}
