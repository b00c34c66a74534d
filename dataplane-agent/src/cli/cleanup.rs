//! `sluice cleanup`: takes everything of sluice off the node.

pub mod kube_proxy;

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::output::Output;
use crate::datapath::{self, Pins, Report};

/// Options of `sluice cleanup`.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Cleanup {
    /// Remove kube-proxy's iptables chains, nftables tables, IP sets and kube-ipvs0 instead, and nothing of sluice
    #[arg(long)]
    pub kube_proxy: bool,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Pins of links.
    pub links: Vec<String>,
    /// Filters of clsact qdiscs.
    pub filters: Vec<String>,
    /// Pins of programs.
    pub programs: Vec<String>,
    /// Pins of maps.
    pub maps: Vec<String>,
}

impl From<Report> for Removed {
    fn from(report: Report) -> Self {
        let paths = |paths: Vec<std::path::PathBuf>| paths.iter().map(|path| path.display().to_string()).collect();
        Self {
            links: paths(report.links),
            filters: report.filters,
            programs: paths(report.programs),
            maps: paths(report.maps),
        }
    }
}

/// Removes everything and prints what it was.
pub fn run(args: Cleanup, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    if args.kube_proxy {
        return output.object(&kube_proxy::remove()?, kube_proxy::text);
    }
    let removed = Removed::from(datapath::cleanup(&Pins::new(bpffs))?);
    output.object(&removed, text)
}

fn text(removed: &Removed) -> String {
    let Removed { links, filters, programs, maps } = removed;
    let mut text = String::new();
    for (what, names) in [("link", links), ("filter", filters), ("program", programs), ("map", maps)] {
        text.extend(names.iter().map(|name| format!("removed {what} {name}\n")));
    }
    if text.is_empty() {
        text.push_str("nothing to remove\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_removed_is_a_line() {
        let report = Report { links: vec!["/b/links/from_pod-x".into()], ..Report::default() };
        let removed = Removed { filters: vec!["to_pod on interface 3".into()], ..Removed::from(report) };
        assert_eq!(text(&removed), "removed link /b/links/from_pod-x\nremoved filter to_pod on interface 3\n");
        assert_eq!(text(&Removed::default()), "nothing to remove\n");
    }
}
