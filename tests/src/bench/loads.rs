//! `bench loads`: connections, requests, streams and packets over every contender, interleaved.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{
    Settings,
    contenders::{self, Abilities},
    findings::{self, Finding},
    installed::Installed,
    kube_proxy::KubeProxy,
    plan::{self, Phase},
    report,
    rounds::{self, Measured, Pace},
    rows::Row,
};

/// Options of this part.
#[derive(Clone, Debug, Default, clap::Args)]
// The program's own arguments, which these are part of, have a group of this name.
#[group(skip)]
pub struct Arguments {
    /// Measure only the contender TEXT, or those whose names contain it; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub contender: Vec<String>,
    /// Measure only loads whose name contains TEXT; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub load: Vec<String>,
    /// Rounds per load [default: 7 to 27 with --quick, else 11 to 33, by load]
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// Milliseconds per slice [default: 200 to 450 with --quick, else 350 to 1000, by load]
    #[arg(long, value_name = "MS")]
    pub slice: Option<u64>,
    /// Run this kube-proxy instead of generated rules
    #[arg(long, value_name = "PATH")]
    pub kube_proxy: Option<PathBuf>,
    /// The API server for it, which the nodes reach and which has the services [default: one of the test bed]
    #[arg(long, value_name = "FILE", requires = "kube_proxy")]
    pub kubeconfig: Option<PathBuf>,
}

/// Everything that one run has found out.
#[derive(Debug)]
pub struct Results {
    /// The phases.
    pub measured: Vec<Measured>,
    /// The rows with what is behind them.
    pub findings: Vec<Finding>,
    /// How long each contender took to install, by name and number of services.
    pub installs: Vec<(&'static str, u32, Duration)>,
    /// Contenders that this build or machine does not have.
    pub missing: Vec<&'static str>,
}

/// Measures, prints tables, and returns the rows that are asked for.
pub fn run(settings: &Settings<'_>, arguments: &Arguments) -> Result<Vec<Row>> {
    let results = measure(settings, arguments)?;
    settings.progress.suspend(|| println!("{}", report::terminal::all(&results)));
    if let Some(folder) = &settings.report {
        report::write(folder, &results)?;
    }
    Ok(results.findings.into_iter().map(|finding| finding.row).filter(|row| settings.wants(&row.id)).collect())
}

/// Installs all contenders and runs all phases.
pub fn measure(settings: &Settings<'_>, arguments: &Arguments) -> Result<Results> {
    let phases = phases(settings, arguments);
    let pace = |phase: &Phase| {
        let usual = Pace::of(settings.scale, phase.load);
        let slice = arguments.slice.map_or(usual.slice, Duration::from_millis);
        Pace { rounds: arguments.rounds.unwrap_or(usual.rounds), slice }
    };
    let entries = phases.iter().flat_map(|phase| &phase.entries);
    let mut wanted: Vec<_> = entries.map(|entry| (entry.contender, entry.services)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let slices = phases.iter().map(|phase| u64::from(pace(phase).rounds) * phase.entries.len() as u64);
    let total = wanted.len() as u64 + slices.sum::<u64>();
    settings.progress.set_length(settings.progress.position() + total);

    let kubeconfig = arguments.kubeconfig.clone();
    let kube_proxy = arguments.kube_proxy.clone().map(|program| KubeProxy { program, kubeconfig });
    let abilities = Abilities::find()?;
    let (mut installed, mut missing) = (Vec::new(), Vec::new());
    for (name, services) in wanted {
        settings.go_on()?;
        settings.progress.set_message(format!("installing {name} with {services} services"));
        let contender = contenders::named(name)?;
        match Installed::new(contender, services, &abilities, kube_proxy.as_ref())
            .with_context(|| format!("{name} with {services} services"))?
        {
            Some(one) => installed.push(one),
            None => missing.push(name),
        }
        settings.progress.inc(1);
    }
    let mut measured = Vec::new();
    for phase in &phases {
        measured.push(rounds::measure(settings, &installed, phase, pace(phase))?);
    }
    let installs = installed.iter().map(|one| (one.contender.name, one.services, one.took)).collect();
    Ok(Results { findings: findings::findings(&measured), measured, installs, missing })
}

/// The phases that are asked for, by rows or by name.
fn phases(settings: &Settings<'_>, arguments: &Arguments) -> Vec<Phase> {
    let matches =
        |texts: &[String], name: &str| texts.is_empty() || texts.iter().any(|text| name.contains(text.as_str()));
    // A whole name is not meant as a part of longer ones.
    let chosen = |name: &str| {
        let part = |text: &String| text == name || (name.contains(text.as_str()) && contenders::named(text).is_err());
        arguments.contender.is_empty() || arguments.contender.iter().any(part)
    };
    let mut phases = plan::phases(settings.scale);
    phases.retain(|phase| settings.only.is_empty() || findings::needs(phase.load, |id| settings.wants(id)));
    phases.retain(|phase| matches(&arguments.load, &phase.load.name()));
    for phase in &mut phases {
        phase.entries.retain(|entry| chosen(entry.contender));
    }
    phases
}
