//! The running agent: the source, the interfaces and the loop, until a signal.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Mutex, mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    kube_proxy::Decisions,
    options::{AgentArgs, SourceKind},
    surface::{Arrival, Surface},
};
use crate::{
    cli::cleanup::kube_proxy,
    datapath::{Datapath, attach::Applied, others, sockets::StaleSockets},
    maps::{Maps, expired::Sweep},
    model::{Change, Source},
    sync::{
        self, Status,
        conntrack_gc::{self, Alarm, Pace},
    },
    watch::{
        Sender,
        devices::{Devices, View, classify::Rules},
        events::Recorder,
        file, kube,
    },
};

/// Changes that may wait for the loop before sources have to.
const QUEUE: usize = 1024;

/// Changes that may wait for the programs to be loaded: those of a large cluster.
const FIRST_QUEUE: usize = 1 << 16;

/// How long the first look at the interfaces waits for the Node object, whose addresses tell an uplink from a pod.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// When to try again what could not be attached.
const ATTACH_RETRY: Duration = Duration::from_secs(1);

/// How long the loop may take to finish what it is doing after a signal.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Marks errors of an agent that had been ready: what it attached stays.
#[derive(Debug, thiserror::Error)]
#[error("the agent stops; the programs stay attached and traffic goes on")]
pub(super) struct WasReady;

/// Where Services, EndpointSlices and Nodes come from, known to be usable.
pub(super) enum Feed {
    Kube(kube::Connection),
    File(PathBuf),
}

impl Feed {
    /// Checks the configuration; an API server that does not answer is no error.
    pub(super) async fn open(args: &AgentArgs) -> anyhow::Result<Self> {
        match args.source {
            SourceKind::Kube => Ok(Self::Kube(kube::Connection::new(&args.kube()).await?)),
            SourceKind::File => {
                let folder = args.file_source.clone().context("--source file needs --file-source")?;
                // Broken files are the watch's to report; a folder that is not there ends the start.
                file::check(&folder)?;
                Ok(Self::File(folder))
            }
        }
    }

    /// What writes events.
    pub(super) fn recorder(&self, node: &str) -> Recorder {
        match self {
            Self::Kube(connection) => Recorder::new(Some(connection), node),
            Self::File(_) => Recorder::new(None, node),
        }
    }

    /// Begins to deliver.
    pub(super) fn start(self, node: &str) -> Delivery {
        let (found, changes) = mpsc::channel(FIRST_QUEUE);
        let mut task = JoinSet::new();
        task.spawn(self.run(node.to_owned(), found));
        Delivery { changes, task }
    }

    async fn run(self, node: String, changes: Sender) -> anyhow::Result<()> {
        match self {
            Self::Kube(connection) => kube::run(connection, &node, &changes).await,
            Self::File(folder) => file::run(folder, &node, &changes).await?,
        }
        Ok(())
    }
}

/// What a [`Feed`] delivers; it ends when this is dropped.
pub(super) struct Delivery {
    changes: mpsc::Receiver<Change>,
    task: JoinSet<anyhow::Result<()>>,
}

/// What was decided before the start.
pub(super) struct Setup<'a> {
    pub(super) args: &'a AgentArgs,
    pub(super) decisions: &'a Decisions,
    pub(super) node: String,
    pub(super) bpffs: &'a Path,
}

/// Keeps `maps` and the attachments of `datapath` as the world wants them, until SIGTERM or SIGINT. Returns whether they ever
/// were.
pub(super) async fn serve(
    setup: Setup<'_>,
    feed: Delivery,
    mut surface: Surface,
    datapath: Arc<Mutex<Datapath>>,
    maps: impl Maps + Send + 'static,
    sockets: StaleSockets,
    sweeps: Vec<Box<dyn Sweep>>,
) -> anyhow::Result<bool> {
    let Setup { args, decisions, node, bpffs } = setup;
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (changes, applied) = mpsc::channel(QUEUE);
    let (node_addresses, node_known) = watch::channel(Vec::new());
    let (status, mut ready) = watch::channel(Arc::new(Status::default()));
    let (stop, stopped) = oneshot::channel::<()>();

    let mut options = sync::Options::new(node.clone());
    options.status_file = Some(args.status_file.clone());
    options.min_interval = decisions.min_interval;
    let (usage, known) = watch::channel(BTreeMap::new());
    options.usage = Some(known);
    let (attached, known) = watch::channel(false);
    options.attached = Some(known);
    let alarm = Alarm::default();
    let sweeping = tokio::spawn(conntrack_gc::run(Pace::default(), sweeps, alarm.clone(), usage));
    let shutdown = async move { _ = stopped.await };
    send(&changes, Change::Settings(decisions.settings.clone())).await?;
    let told = (surface.told(sockets), alarm);
    let mut loop_task = tokio::spawn(sync::run(options, maps, applied, status, told, shutdown));
    let Delivery { changes: forwarded, task: mut feed_task } = feed;
    let forward_task = tokio::spawn(forward(node, forwarded, changes.clone(), node_addresses, surface.arrival()));
    surface.serve(bpffs, ready.clone());
    let rules = Rules {
        pods: args.pod_interfaces.clone(),
        uplinks: args.uplinks.clone(),
        node_port: decisions.settings.node_port_addresses.clone(),
        host_bypass: args.host_bypass,
        ..Rules::default()
    };
    let devices =
        Devices::open(rules, node_known.clone(), others::run_at).context("the node's interfaces cannot be watched")?;

    let announced = ready.clone();
    let announcement = tokio::spawn(announce(announced, args.kube_proxy.cleanup_kube_proxy));
    let result = tokio::select! {
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
        ended = &mut loop_task => Err(ended_early("the loop", flatten(ended.map(|result| result.map_err(Into::into))))),
        Some(ended) = feed_task.join_next() => Err(ended_early("the source", flatten(ended))),
        result = attach(devices, datapath, &changes, node_known, attached) => result,
    };
    let was_ready = ready.borrow_and_update().is_ready();
    feed_task.abort_all();
    for task in [sweeping.abort_handle(), forward_task.abort_handle(), announcement.abort_handle()] {
        task.abort();
    }
    // Fails when the loop has ended already.
    let _loop_ended = stop.send(());
    finish(loop_task).await;
    match result {
        Err(error) if was_ready => Err(error.context(WasReady)),
        result => result.map(|()| was_ready),
    }
}

/// Passes changes on, and notes the addresses of this node's Node object.
async fn forward(
    node: String,
    mut found: mpsc::Receiver<Change>,
    changes: Sender,
    addresses: watch::Sender<Vec<IpAddr>>,
    mut arrival: Arrival,
) {
    while let Some(change) = found.recv().await {
        arrival.of(&change);
        match &change {
            // A Node object that is deleted takes no address from the node itself.
            Change::Node(name, Some(object)) if *name == node => {
                addresses.send_replace(object.addresses.clone());
            }
            // There is no such Node: nothing to wait for.
            Change::Synced(Source::Nodes) => addresses.send_modify(|_| {}),
            _ => {}
        }
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

/// Loads the programs, and attaches them as interfaces come and go; ends with an error only. `attached` is told when those that
/// were there at the beginning run them.
async fn attach(
    mut devices: Devices,
    datapath: Arc<Mutex<Datapath>>,
    changes: &Sender,
    mut node_known: watch::Receiver<Vec<IpAddr>>,
    attached: watch::Sender<bool>,
) -> anyhow::Result<()> {
    // The maps are written while the kernel looks at the programs, which takes longer than all the rest.
    let loaded = Arc::clone(&datapath);
    let loading = spawn_blocking(move || loaded.blocking_lock().load());
    if timeout(NODE_PATIENCE, node_known.changed()).await.is_err() {
        warn!("no Node object of this node yet: interfaces are told apart without its addresses");
    }
    let mut view = devices.next().await.context("the node's interfaces cannot be read")?;
    send(changes, Change::LocalAddresses(view.addresses.clone())).await?;
    send(changes, Change::Synced(Source::Addresses)).await?;
    loading.await??;
    info!("programs loaded");
    loop {
        let mut datapath = datapath.lock().await;
        let applied = datapath.attach(&view.interfaces)?;
        let retry = report(&applied, &view);
        if !*attached.borrow() {
            if let Some(error) = applied.failed.into_iter().next().filter(|_| datapath.is_fresh()) {
                return Err(error.into());
            }
            attached.send_replace(true);
        }
        drop(datapath);
        let next = tokio::select! {
            next = devices.next() => next.context("the node's interfaces cannot be read")?,
            () = sleep(ATTACH_RETRY), if retry => continue,
        };
        if next.addresses != view.addresses {
            send(changes, Change::LocalAddresses(next.addresses.clone())).await?;
        }
        view = next;
    }
}

async fn send(changes: &Sender, change: Change) -> anyhow::Result<()> {
    changes.send(change).await.map_err(|_closed| anyhow!("the loop has ended"))
}

/// Logs what happened; tells whether something has to be tried again.
fn report(applied: &Applied, view: &View) -> bool {
    let name = |ifindex| view.interfaces.iter().find(|interface| interface.index == ifindex).map(|found| &*found.name);
    for (done, attachments) in
        [("attached", &applied.attached), ("replaced", &applied.replaced), ("detached", &applied.detached)]
    {
        for attachment in attachments {
            let (hook, ifindex) = (attachment.hook.name(), attachment.ifindex);
            debug!(hook, ifindex, interface = name(ifindex), "{done}");
        }
    }
    if !applied.attached.is_empty() || !applied.replaced.is_empty() || !applied.detached.is_empty() {
        info!(
            interfaces = view.interfaces.len(),
            attached = applied.attached.len(),
            replaced = applied.replaced.len(),
            detached = applied.detached.len(),
            "programs of interfaces"
        );
    }
    for error in &applied.failed {
        warn!(
            interface = name(error.attachment.ifindex),
            error = format!("{:#}", anyhow!("{error}: {}", error.source)),
            "tried again in a second"
        );
    }
    !applied.failed.is_empty()
}

/// Says so when the maps hold for the first time what the cluster wants, and then removes kube-proxy's rules if that is wanted.
async fn announce(mut status: watch::Receiver<Arc<Status>>, cleanup_kube_proxy: bool) {
    match status.wait_for(|status| status.is_ready()).await {
        Ok(status) => {
            info!(services = status.services, frontends = status.frontends, backends = status.backends, "ready");
        }
        Err(_loop_ended) => return,
    }
    if !cleanup_kube_proxy {
        return;
    }
    match spawn_blocking(kube_proxy::remove).await {
        Ok(Ok(removed)) => kube_proxy::text(&removed).lines().for_each(|line| info!("{line}")),
        Ok(Err(error)) => warn!("kube-proxy's rules are not removed; `sluice cleanup --kube-proxy` does it: {error:#}"),
        Err(error) => warn!(%error, "removing kube-proxy's rules ended badly"),
    }
}

async fn finish<E: std::fmt::Display>(mut task: JoinHandle<Result<(), E>>) {
    if task.is_finished() {
        return;
    }
    match timeout(STOP_PATIENCE, &mut task).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => warn!(%error, "the last changes are not all applied; the next start applies them"),
        Ok(Err(error)) => warn!(%error, "the loop ended badly"),
        Err(_elapsed) => {
            task.abort();
            warn!("the loop did not end in time; the next start applies what is missing");
        }
    }
}

fn flatten(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    ended?
}

fn ended_early(what: &'static str, result: anyhow::Result<()>) -> anyhow::Error {
    match result {
        Ok(()) => anyhow!("{what} has ended"),
        Err(error) => error.context(format!("{what} has ended")),
    }
}
