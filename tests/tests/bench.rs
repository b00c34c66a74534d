//! The benchmark itself: every contender carries every load for a few moments.

use std::sync::atomic::AtomicBool;

use anyhow::{Result, ensure};
use dataplane_tests::bench::{
    Scale, Settings,
    loads::{self, Arguments, Results},
};
use indicatif::ProgressBar;

fn measure(contenders: &[&str], loads: &[&str]) -> Result<Results> {
    let stop = AtomicBool::new(false);
    let progress = ProgressBar::hidden();
    let settings = Settings { scale: Scale::Quick, only: Vec::new(), report: None, progress, stop: &stop };
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let (contender, load) = (owned(contenders), owned(loads));
    loads::measure(&settings, &Arguments { contender, load, rounds: Some(4), slice: Some(100), ..Arguments::default() })
}

#[test]
fn the_generated_rules_are_taken_by_their_tools_and_carry_connections() -> Result<()> {
    let results = measure(&["direct", "iptables", "nftables"], &["CRR"])?;
    for measured in &results.measured {
        ensure!(measured.phase.entries.len() == 4, "{:?}", measured.phase.entries);
        for samples in &measured.samples {
            // The machine may stand still for a round, not for all.
            ensure!(samples.len() == 4 && samples.iter().any(|sample| sample.done > 1.0), "{samples:?}");
            ensure!(samples.iter().all(|sample| sample.p50.as_micros() > 1), "{samples:?}");
        }
    }
    Ok(())
}

#[test]
fn sluice_is_compared_with_direct_by_what_needs_no_other_program() -> Result<()> {
    let results = measure(&["direct", "sluice packet path"], &["RR", "packets"])?;
    ensure!(results.measured.len() == 5, "{}", results.measured.len());
    let rows: Vec<&str> = results.findings.iter().map(|finding| finding.row.id.as_str()).collect();
    ensure!(rows == ["crr_packet_vs_direct"], "{rows:?}");
    let page = tempfile::tempdir()?;
    dataplane_tests::bench::report::write(page.path(), &results)?;
    let text = std::fs::read_to_string(page.path().join("loads.md"))?;
    ensure!(text.contains("| sluice packet path |") && text.contains("`crr_packet_vs_direct`"), "{text}");
    ensure!(page.path().join("crr.svg").exists() && page.path().join("crr.png").exists(), "no plot");
    Ok(())
}
