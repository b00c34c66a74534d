//! `sluice agent`: its options, and how its parts are wired together.

pub mod kube_proxy;
mod observe;
mod options;
mod serve;
mod surface;

use std::path::Path;

use anyhow::Context as _;
use dataplane_common::{NodeConfig, map::cidr};
use tracing::{info, warn};

pub use self::options::AgentArgs;
use self::{
    options::LogFormat,
    serve::{Feed, Setup},
    surface::Surface,
};
use crate::{
    datapath::{Datapath, Pins, sockets::StaleSockets},
    maps::{Maps as _, expired, kernel::KernelMaps, pinned::Access},
    watch::kube,
};

/// Runs the agent until SIGTERM or SIGINT. Programs, maps and links stay, so that traffic goes on.
pub async fn run(args: AgentArgs, bpffs: &Path) -> anyhow::Result<()> {
    let (args, decisions) = kube_proxy::decide(args)?;
    log_to_stderr(args.log_format.unwrap_or_default(), args.log.as_deref().unwrap_or("info"));
    for warning in &decisions.warnings {
        warn!("{warning}");
    }
    let node = args.node_name()?;
    // What is wrong with the options and the source is found before anything is touched.
    let feed = Feed::open(&args).await?;
    let mut options = args.datapath(Pins::new(bpffs), &decisions)?;
    let has_service_cidrs = feed.has_service_cidrs().await.unwrap_or_else(|| had_service_cidrs(bpffs));
    if has_service_cidrs {
        options.config.flags |= NodeConfig::SERVICE_CIDRS;
    }
    let status_file = args.status_file.clone();
    if let Some(directory) = status_file.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }

    let surface = Surface::new(&node, &decisions, feed.recorder(&node))?;
    let mut datapath = Datapath::open(options)?;
    info!(node, tc = ?datapath.tc(), bpffs = %bpffs.display(), fresh = datapath.is_fresh(), "programs loaded");
    let opened = KernelMaps::open(bpffs, Access::ReadWrite).map_err(anyhow::Error::from);
    let opened = opened.and_then(|maps| Ok((maps, StaleSockets::open(bpffs)?, expired::sweeps(bpffs)?)));
    let served = match opened {
        Ok((maps, sockets, sweeps)) => {
            let setup = Setup { args: &args, decisions: &decisions, node, bpffs };
            serve::serve(setup, feed, surface, &mut datapath, maps, sockets, sweeps).await
        }
        Err(error) => Err(error),
    };
    match served {
        Ok(()) => {
            info!("stopped; the programs stay attached and traffic goes on; `sluice cleanup` removes them");
            Ok(())
        }
        Err(error) if datapath.is_fresh() && !error.is::<serve::WasReady>() => {
            // A first start that never got anywhere leaves nothing behind.
            datapath.undo().context("a failed start left something behind: run `sluice cleanup`")?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Whether the agent before this one knew ServiceCIDRs: what to go by while the API server is away.
fn had_service_cidrs(bpffs: &Path) -> bool {
    let snapshot = KernelMaps::open(bpffs, Access::ReadOnly).ok().and_then(|maps| maps.read().ok());
    snapshot.is_some_and(|snapshot| snapshot.tables.cidrs.values().any(|bits| bits & cidr::SERVICE != 0))
}

fn log_to_stderr(format: LogFormat, filter: &str) {
    let filter = tracing_subscriber::EnvFilter::new(format!("{},{filter}", kube::LOG_FILTER));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only where a test has set up logging already.
    let _already_there = match format {
        LogFormat::Text => subscriber.with_ansi(false).try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
}
