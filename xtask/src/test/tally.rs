//! What a run has counted, and how it ends.

use std::{process::ExitCode, time::Instant};

/// What has been counted so far.
#[derive(Default)]
pub(crate) struct Tally {
    pub(super) passed: usize,
    /// `suite: test`, or what else went wrong.
    pub(super) failed: Vec<String>,
    /// `suite: test` of those that passed only when they ran once more.
    pub(super) unsteady: Vec<String>,
    /// Suites with their number of tests and seconds.
    pub(super) suites: Vec<(String, usize, f32)>,
}

impl Tally {
    /// Notes what went wrong before a test could run.
    pub(crate) fn fail(&mut self, what: String) {
        self.failed.push(what);
    }

    /// Prints the summary; its last line counts.
    pub(crate) fn end(&self, start: Instant) -> ExitCode {
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
