//! `bench control`: what it costs the agent to follow a large cluster.
//!
//! The agent is the real program with its real client, on a node of the test bed; the API server is the one of the tests, whose
//! answers are written before the agent asks. What the agent has done is read from its pinned maps, by this process.

mod changes;
mod installed;
mod node;
mod objects;
mod report;
mod start;

use anyhow::Result;

use self::{
    node::Bed,
    objects::{Endpoints, Service},
};
use super::{Scale, Settings, rows::Row};

/// Endpoints of each service.
const ENDPOINTS: usize = 5;
/// Endpoints of the service that is restarted.
const LARGE: usize = 1000;

/// Options of this part.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Services, with five endpoints each
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    services: u32,
    /// Seconds of a hundred changes each
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u32>,
    /// Starts of the agent with empty maps
    #[arg(long)]
    starts: Option<u32>,
    /// Wait for Enter after the first synchronization, to have a look at the agent
    #[arg(long)]
    pause: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { services: 10_000, seconds: None, starts: None, pause: false }
    }
}

/// The most system calls on maps that one changed endpoint takes an agent in a cluster of `count` services.
pub fn calls_per_change(count: u32) -> Result<u64> {
    let mut endpoints = Endpoints::default();
    let (mut bed, mut services) = cluster(count, &mut endpoints)?;
    start::measure(&mut bed, &services)?;
    let single = changes::single(&mut bed, &mut services, &mut endpoints)?;
    bed.stop()?;
    Ok(single.most())
}

/// A node without an agent, an API server with `count` services, and these.
fn cluster(count: u32, endpoints: &mut Endpoints) -> Result<(Bed, Vec<Service>)> {
    let bed = Bed::new()?;
    let services: Vec<Service> = (0..count).map(|number| Service::new(number, ENDPOINTS, endpoints)).collect();
    services.iter().try_for_each(|service| bed.apply(service))?;
    bed.server.prepare();
    Ok((bed, services))
}

/// Rows that this part measures.
const ROWS: [&str; 5] = ["sync_10k_s", "rss_10k_mb", "change_p99_ms", "change_map_ops", "maps_mb"];

/// Measures and returns the rows that are asked for.
pub fn run(settings: &Settings<'_>, arguments: &Arguments) -> Result<Vec<Row>> {
    if !ROWS.iter().any(|id| settings.wants(id)) {
        return Ok(Vec::new());
    }
    let is_quick = settings.scale == Scale::Quick;
    let seconds = arguments.seconds.unwrap_or(if is_quick { 10 } else { 60 });
    let starts = arguments.starts.unwrap_or(if is_quick { 5 } else { 7 }).max(1);
    let progress = &settings.progress;
    progress.set_length(u64::from(starts) + 5);
    progress.set_position(0);

    let say = |message: &'static str| -> Result<()> {
        settings.go_on()?;
        progress.inc(1);
        progress.set_message(message);
        Ok(())
    };
    say("the cluster's objects")?;
    let mut endpoints = Endpoints::default();
    let (mut bed, mut services) = cluster(arguments.services, &mut endpoints)?;

    let mut begun = Vec::new();
    for _ in 0..starts {
        say("starts with empty maps")?;
        if !begun.is_empty() {
            bed.stop()?;
            bed.clean()?;
        }
        begun.push(start::measure(&mut bed, &services)?);
    }
    if arguments.pause {
        progress.suspend(|| {
            eprintln!("the agent is process {}; Enter goes on", bed.agent_id().unwrap_or_default());
            std::io::stdin().read_line(&mut String::new())
        })?;
    }
    let maps = installed::memory(bed.node().bpffs.path())?;
    say("single changes")?;
    let single = changes::single(&mut bed, &mut services, &mut endpoints)?;
    say("a hundred changes per second")?;
    let steady = changes::steady(&mut bed, &mut services, &mut endpoints, seconds, settings)?;
    say("a rolling restart")?;
    let rolling = changes::rolling(&mut bed, arguments.services, &mut endpoints, settings)?;
    say("a restart of the agent")?;
    let again = start::again(&mut bed, &mut services, &mut endpoints)?;
    bed.stop()?;
    bed.clean()?;

    let report = report::Report { services: services.len(), begun, maps, single, steady, rolling, again };
    progress.suspend(|| println!("{}", report.text()));
    if let Some(folder) = &settings.report {
        report.write(folder)?;
    }
    let rows = report.rows()?;
    Ok(rows.into_iter().filter(|row| settings.wants(&row.id)).collect())
}
