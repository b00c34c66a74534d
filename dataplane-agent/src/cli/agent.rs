//! `sluice agent`: its options, and how its parts are wired together.

mod options;
mod serve;

use std::path::Path;

use anyhow::Context as _;
use tracing::info;

pub use self::options::AgentArgs;
use self::{options::LogFormat, serve::Feed};
use crate::{
    datapath::{Datapath, Pins},
    maps::{kernel::KernelMaps, pinned::Access},
    watch::kube,
};

/// Runs the agent until SIGTERM or SIGINT. Programs, maps and links stay, so that traffic goes on.
pub async fn run(args: AgentArgs, bpffs: &Path) -> anyhow::Result<()> {
    log_to_stderr(args.log_format, &args.log);
    let node = args.node_name()?;
    // What is wrong with the options and the source is found before anything is touched.
    let feed = Feed::open(&args).await?;
    let options = args.datapath(Pins::new(bpffs))?;
    let status_file = args.status_file.clone();
    if let Some(directory) = status_file.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }

    let mut datapath = Datapath::open(options)?;
    info!(node, tc = ?datapath.tc(), bpffs = %bpffs.display(), fresh = datapath.is_fresh(), "programs loaded");
    let served = match KernelMaps::open(bpffs, Access::ReadWrite) {
        Ok(maps) => serve::serve(&args, node, feed, &mut datapath, maps).await,
        Err(error) => Err(error.into()),
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

fn log_to_stderr(format: LogFormat, filter: &str) {
    let filter = tracing_subscriber::EnvFilter::new(format!("{},{filter}", kube::LOG_FILTER));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only where a test has set up logging already.
    let _already_there = match format {
        LogFormat::Text => subscriber.with_ansi(false).try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
}
