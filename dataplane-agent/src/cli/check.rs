//! `sluice check`: whether the node is fit for the datapath, and what to do where it is not.

mod cgroup;
mod hooks;
mod machine;
mod network;
mod rules;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::output::{Column, Format, Output, Record};

/// Options of `sluice check`.
#[derive(Args, Clone, Debug, Default)]
pub struct Check {
    /// Cgroup v2 directory whose processes' sockets are to be translated [default: the root of the hierarchy]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Source ports that SNAT takes, as given to `sluice agent`
    #[arg(long, value_name = "FIRST+COUNT", default_value_t)]
    pub snat_ports: PortRange,
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not always or not well.
    Warning,
    /// Does not work.
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How serious it is.
    pub level: Level,
    /// What was checked.
    pub check: &'static str,
    /// What was found.
    pub found: String,
    /// What to do; null where nothing needs doing.
    pub next: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, found: found.into(), next: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Warning, check, found: found.into(), next: Some(next.into()) }
    }

    fn error(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Error, check, found: found.into(), next: Some(next.into()) }
    }
}

impl Record for Finding {
    const COLUMNS: &'static [Column] =
        &[Column::new("level"), Column::new("check"), Column::new("found"), Column::new("next step")];

    fn cells(&self) -> Vec<String> {
        vec![self.level.name().into(), self.check.into(), self.found.clone(), self.next.clone().unwrap_or_default()]
    }
}

pub use network::PortRange;

/// Checks everything; false when something is an error.
pub fn run(args: &Check, bpffs: &Path, output: Output) -> anyhow::Result<bool> {
    let root = Path::new("/");
    let cgroup = args.cgroup_root.clone().or_else(machine::cgroup_root);
    let mut findings = machine::findings(bpffs, cgroup.as_deref());
    findings.extend(network::findings(root, args.snat_ports));
    findings.extend(hooks::findings(bpffs));
    if let Some(cgroup) = &cgroup {
        findings.extend(hooks::cgroup_findings(bpffs, cgroup));
    }
    findings.extend(rules::findings());
    match output.format {
        Format::Json | Format::Yaml => output.list(&findings)?,
        Format::Table | Format::Wide => super::output::print(&text(&findings))?,
    }
    Ok(findings.iter().all(|finding| finding.level != Level::Error))
}

/// One line per finding, and a count.
fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { level, check, found, next } in findings {
        text.push_str(&format!("{:7}  {check:width$}  {found}", level.name()));
        if let Some(next) = next {
            text.push_str(&format!(": {next}"));
        }
        text.push('\n');
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    text.push_str(&format!(
        "{} ok, {} warnings, {} errors\n",
        count(Level::Ok),
        count(Level::Warning),
        count(Level::Error)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_is_a_line_that_ends_with_the_next_step() {
        let findings = [
            Finding::ok("kernel", "6.18.0"),
            Finding::warning("rp_filter", "eth0 is strict", "set it to 2"),
            Finding::error("bpffs", "/x is none", "mount one"),
        ];
        assert_eq!(
            text(&findings),
            "\
ok       kernel     6.18.0
warning  rp_filter  eth0 is strict: set it to 2
error    bpffs      /x is none: mount one
1 ok, 1 warnings, 1 errors
"
        );
    }
}
