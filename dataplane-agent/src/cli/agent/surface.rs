//! What the agent shows to its cluster: health, metrics and events, in kube-proxy's own words.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use axum::Router;
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tracing::{debug, info, warn};

use super::{kube_proxy::Decisions, observe::Told};
use crate::{
    datapath::sockets::StaleSockets,
    health::{Eligibility, Health, checks, checks::Checks, listen::listen, serve},
    maps::observed,
    metrics::{self, Metrics},
    model::{Change, Source},
    sync::{
        Status,
        conntrack_gc::{Usage, turns},
    },
    watch::events::{About, Event, Recorder},
};

/// When an address that is taken is tried again, as kube-proxy does.
const RETRY: Duration = Duration::from_secs(5);

/// Health, metrics and events of a running agent; the servers end when it is dropped.
pub(super) struct Surface {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    checks: watch::Sender<Checks>,
    decisions: Decisions,
    recorder: Recorder,
    node: String,
    tasks: JoinSet<()>,
}

impl Surface {
    /// Nothing is served yet.
    pub(super) fn new(node: &str, decisions: &Decisions, recorder: Recorder) -> anyhow::Result<Self> {
        Ok(Self {
            health: Arc::new(Health::new(decisions.health_timeout)),
            metrics: Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")).context("the metrics contradict each other")?),
            checks: watch::Sender::new(Checks::default()),
            decisions: decisions.clone(),
            recorder,
            node: node.to_owned(),
            tasks: JoinSet::new(),
        })
    }

    /// What the loop is to tell.
    pub(super) fn told(&self, sockets: StaleSockets) -> Told {
        Told {
            sockets,
            health: Arc::clone(&self.health),
            metrics: Arc::clone(&self.metrics),
            checks: self.checks.clone(),
            node_port_addresses: self.decisions.settings.node_port_addresses.clone(),
            without_local: Default::default(),
            triggered: Vec::new(),
            started: SystemTime::now(),
            refused: false,
            applied: 0,
        }
    }

    /// What is to hear of each change before the loop does: a loop that hangs hears of nothing.
    pub(super) fn arrival(&self) -> Arrival {
        Arrival { health: Arc::clone(&self.health), node: self.node.clone(), is_known: false }
    }

    /// Begins to serve; `status` is what the loop says of itself.
    pub(super) fn serve(&mut self, bpffs: &Path, status: watch::Receiver<Arc<Status>>) {
        let Decisions { healthz, metrics, .. } = self.decisions;
        let pressure = status.clone();
        if let Some(address) = healthz {
            let count = Arc::clone(&self.metrics);
            let count = move |path: &'static str, code: u16| {
                let counter = if path == "livez" { &count.livez } else { &count.healthz };
                counter.with_label_values(&[code.to_string()]).inc();
            };
            let router = serve::router(Arc::clone(&self.health), Arc::new(count));
            self.tasks.spawn(serve_on("health", address, router));
        }
        if let Some(address) = metrics {
            let refresh = Refresh { bpffs: bpffs.to_owned(), status, setting: Mutex::new(()) };
            let router =
                metrics::serve::router(Arc::clone(&self.metrics), Arc::new(move |metrics| refresh.run(metrics)));
            self.tasks.spawn(serve_on("metrics", address, router));
        }
        let recorder = self.recorder.clone();
        let node = self.node.clone();
        let failed = move |error: &checks::CheckFailed| {
            recorder.publish(Event {
                about: About::Service(error.service.clone()),
                is_warning: true,
                reason: "FailedToStartServiceHealthcheck",
                action: "Listen",
                note: format!("node {node} {error}"),
            });
        };
        self.tasks.spawn(checks::run(self.checks.subscribe(), Arc::clone(&self.health), failed));
        self.tasks.spawn(tell_pressure(self.recorder.clone(), pressure));
        self.recorder.publish(Event {
            about: About::Node,
            is_warning: false,
            reason: "Starting",
            action: "StartSluice",
            note: format!("sluice {} starts on node {}", env!("CARGO_PKG_VERSION"), self.node),
        });
    }
}

/// Hears of each change as it arrives from the sources.
pub(super) struct Arrival {
    health: Arc<Health>,
    node: String,
    is_known: bool,
}

impl Arrival {
    /// `change` has arrived.
    pub(super) fn of(&mut self, change: &Change) {
        match change {
            Change::Node(name, node) if *name == self.node => {
                self.is_known = node.is_some();
                let stays = node.as_ref().is_some_and(|node| !node.to_be_deleted);
                self.health.node(if stays { Eligibility::Eligible } else { Eligibility::Ineligible });
            }
            Change::Synced(Source::Nodes) if !self.is_known => self.health.node(Eligibility::Ineligible),
            Change::Service(..) | Change::EndpointSlice(..) => self.health.queued(Instant::now()),
            _ => {}
        }
    }
}

/// Serves `router` on `address`, as soon as it can be had.
async fn serve_on(what: &'static str, address: SocketAddr, router: Router) {
    let mut said = String::new();
    loop {
        match listen(address) {
            Ok(listener) => {
                info!(%address, "{what} is served");
                said.clear();
                if let Err(error) = axum::serve(listener, router.clone()).await {
                    warn!(%address, %error, "{what} is not served any more");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    warn!(%address, %error, "{what} is not served; tried again every {} s", RETRY.as_secs());
                    said = text;
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// Reads at a scrape what is not counted as it happens.
struct Refresh {
    bpffs: PathBuf,
    status: watch::Receiver<Arc<Status>>,
    /// Held while counters are set, each by its difference.
    setting: Mutex<()>,
}

impl Refresh {
    fn run(&self, metrics: &Metrics) {
        let _setting = self.setting.lock().unwrap_or_else(PoisonError::into_inner);
        let status = Arc::clone(&self.status.borrow());
        for (gauge, count) in [
            (&metrics.installed.services, status.services),
            (&metrics.installed.frontends, status.frontends),
            (&metrics.installed.backends, status.backends),
            (&metrics.sync_errors, status.errors.len()),
        ] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for (result, total) in [("done", status.operations), ("failed", status.failed_operations)] {
            let counter = metrics.map_operations.with_label_values(&[result]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        metrics.map_calls.inc_by(status.calls.saturating_sub(metrics.map_calls.get()));
        match observed::drops(&self.bpffs) {
            Ok(drops) => drops.iter().for_each(|(reason, packets)| metrics.set_drops(reason.name(), *packets)),
            Err(error) => debug!(%error, "drops are not read"),
        }
        for (map, usage) in &status.usage {
            for (gauge, count) in
                [(&metrics.datapath.map_entries, usage.used), (&metrics.datapath.map_capacity, usage.capacity)]
            {
                gauge.with_label_values(&[map]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }
}

/// Writes an event when a map becomes nearly full, and when it no longer is.
async fn tell_pressure(recorder: Recorder, mut status: watch::Receiver<Arc<Status>>) {
    let mut before = BTreeMap::new();
    loop {
        let now = status.borrow_and_update().usage.clone();
        for (map, usage, is_high) in turns(&before, &now) {
            let Usage { used, capacity } = usage;
            let (reason, note) = if is_high {
                (
                    "MapNearlyFull",
                    format!(
                        "{map} has {used} of {capacity} entries: those used longest ago will make room for new ones; \
                         --map-size {map}=N gives it more"
                    ),
                )
            } else {
                ("MapNoLongerFull", format!("{map} has {used} of {capacity} entries"))
            };
            recorder.publish(Event { about: About::Node, is_warning: is_high, reason, action: "Sweep", note });
        }
        before = now;
        if status.changed().await.is_err() {
            return;
        }
    }
}
