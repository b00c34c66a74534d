//! `sluice agent`: its options, and how its parts are wired together.

pub mod kube_proxy;
mod observe;
mod options;
mod serve;
mod surface;

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use tokio::sync::Mutex;
use tracing::{info, warn};

pub use self::options::AgentArgs;
use self::{
    options::LogFormat,
    serve::{Feed, Setup},
    surface::Surface,
};
use crate::{
    datapath::{Datapath, Pins, cgroup::SocketLb, sockets::StaleSockets, sockets_gone},
    maps::{expired, kernel::KernelMaps, pinned::Access},
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
    let options = args.datapath(Pins::new(bpffs), &decisions)?;
    let status_file = args.status_file.clone();
    if let Some(directory) = status_file.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }

    let surface = Surface::new(&node, &decisions, feed.recorder(&node))?;
    // It arrives while the kernel creates the maps and looks at the programs.
    let feed = feed.start(&node);
    let datapath = Datapath::open(options)?;
    let fresh = datapath.is_fresh();
    info!(node, tc = ?datapath.tc(), bpffs = %bpffs.display(), fresh, "starting");
    let opened = KernelMaps::open(bpffs, Access::ReadWrite).map_err(anyhow::Error::from);
    let opened = opened.map(|maps| maps.fresh(fresh));
    let opened = opened.and_then(|maps| {
        let mut sweeps = expired::sweeps(bpffs)?;
        // With those of pods among them, the kernel's list for one namespace says nothing about the others.
        if args.socket_lb == SocketLb::Host {
            sweeps.extend(sockets_gone::sweeps(bpffs)?);
        }
        Ok((maps, StaleSockets::open(bpffs)?, sweeps))
    });
    let datapath = Arc::new(Mutex::new(datapath));
    let served = match opened {
        Ok((maps, sockets, sweeps)) => {
            let setup = Setup { args: &args, decisions: &decisions, node, bpffs };
            serve::serve(setup, feed, surface, Arc::clone(&datapath), maps, sockets, sweeps).await
        }
        Err(error) => Err(error),
    };
    let was_ready = match &served {
        Ok(was_ready) => *was_ready,
        Err(error) => error.is::<serve::WasReady>(),
    };
    let stays = was_ready || !fresh;
    if !stays {
        // A first start that never got anywhere leaves nothing behind.
        datapath.lock().await.undo().context("a failed start left something behind: run `sluice cleanup`")?;
    }
    served?;
    if stays {
        info!("stopped; the programs stay attached and traffic goes on; `sluice cleanup` removes them");
    } else {
        info!("stopped before it was ready; nothing of it is left");
    }
    Ok(())
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
