//! What the demo has found out: for people as it happens and as tables, for programs as one JSON object.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::{
    topology::IpVersion,
    traffic::{self, Answer},
};

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What, in words.
    pub name: String,
    /// Whether it went as it should.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// Everything found out so far.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether somebody reads along.
    verbose: bool,
    checks: Vec<Check>,
    reached: BTreeMap<(String, String), BTreeMap<IpVersion, String>>,
    spread: Vec<(IpVersion, traffic::Report)>,
    latency: Vec<(String, traffic::Report)>,
}

#[derive(Serialize)]
struct Summary<'a> {
    checks: &'a [Check],
    passed: usize,
    failed: usize,
}

impl Report {
    /// A report that tells everything as it happens.
    pub fn verbose() -> Self {
        Self { verbose: true, ..Self::default() }
    }

    /// Announces what comes next.
    pub fn step(&self, text: &str) {
        self.print(&format!("\n{text}"));
    }

    /// Tells something in passing.
    pub fn say(&self, text: &str) {
        self.print(&format!("   {text}"));
    }

    /// Records how a check went.
    pub fn record(&mut self, name: String, outcome: Result<String>) {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        self.print(&format!("{}  {name}\n       {detail}", if ok { " ok " } else { "FAIL" }));
        self.checks.push(Check { name, ok, detail });
    }

    /// Remembers an answer for the table; `name` begins with the IP version.
    pub(super) fn reached(&mut self, client: &str, name: &str, answer: &Answer) {
        let (_, what) = name.split_once(": ").unwrap_or(("", name));
        let version = IpVersion::of(answer.peer.ip());
        let cell = format!("{}, {}", answer.server, time(answer.took));
        self.reached.entry((client.to_owned(), what.to_owned())).or_default().insert(version, cell);
    }

    pub(super) fn spread(&mut self, version: IpVersion, report: &traffic::Report) {
        self.spread.push((version, report.clone()));
    }

    pub(super) fn latency(&mut self, what: &str, report: &traffic::Report) {
        self.latency.push((what.to_owned(), report.clone()));
    }

    /// Number of checks that went as they should.
    pub fn passed(&self) -> usize {
        self.checks.len() - self.failed()
    }

    /// Number of checks that did not.
    pub fn failed(&self) -> usize {
        self.checks.iter().filter(|check| !check.ok).count()
    }

    /// The checks as one JSON object.
    pub fn json(&self) -> Result<String> {
        let summary = Summary { checks: &self.checks, passed: self.passed(), failed: self.failed() };
        Ok(serde_json::to_string_pretty(&summary)?)
    }

    /// The tables at the end.
    pub fn tables(&self) -> Result<String> {
        let mut text = String::new();
        let mut table = headed(&["client", "what", "IPv4", "IPv6"]);
        for ((client, what), cells) in &self.reached {
            let cell = |version| cells.get(&version).map_or("-", String::as_str);
            table.add_row([client, what.as_str(), cell(IpVersion::V4), cell(IpVersion::V6)]);
        }
        writeln!(
            text,
            "\nWho reached what, and how long a connection with 50 kB (UDP: 1 kB) there and back took\n{table}"
        )?;
        let mut table = headed(&["", "backend", "connections", "share"]);
        for (version, report) in &self.spread {
            for (server, count) in &report.servers {
                let share = count * 100 / report.answered().max(1);
                table.add_row([version.to_string(), server.clone(), count.to_string(), format!("{share} %")]);
            }
        }
        writeln!(text, "\nHow connections to the service `web` spread over its backends\n{table}")?;
        let mut table = headed(&["TCP connection, question and answer", "median", "99 %"]);
        for (what, report) in &self.latency {
            table.add_row([what.clone(), time(report.quantile(0.5)), time(report.quantile(0.99))]);
        }
        writeln!(text, "\nLatency\n{table}")?;
        Ok(text)
    }

    fn print(&self, text: &str) {
        if self.verbose {
            // A reader that has gone away is no reason to stop halfway.
            writeln!(io::stdout(), "{text}").ok();
        }
    }
}

/// A time as people read it.
pub(super) fn time(took: Duration) -> String {
    format!("{:.2} ms", took.as_secs_f64() * 1000.0)
}

fn headed(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(columns);
    table
}
