//! What the loop tells about itself: shown by `sluice status`, counted by metrics.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{Options, Usage, core::Core, retry::Retries};
use crate::{maps::Outcome, model::Source};

/// The shortest time between two writes of the status file.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// The state of the agent's loop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node whose maps these are.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Sources that have not yet delivered everything, before which nothing is written to the maps; then the programs, until they
    /// are attached.
    pub waiting_for: Vec<String>,
    /// Services whose rows are installed.
    pub services: usize,
    /// Frontends installed.
    pub frontends: usize,
    /// Backends that exist.
    pub backends: usize,
    /// Milliseconds since the epoch of the last application that changed something; zero when there was none.
    pub last_change_millis: u64,
    /// Map operations that succeeded since the agent started.
    pub operations: u64,
    /// System calls that these operations took.
    #[serde(default)]
    pub calls: u64,
    /// Map operations that failed since the agent started.
    pub failed_operations: u64,
    /// Applications of changes since the agent started; one that is done in parts counts once.
    pub rounds: u64,
    /// Services that are not installed as they should be, and why.
    pub errors: BTreeMap<String, String>,
    /// How full the maps are that the programs write.
    #[serde(default)]
    pub usage: BTreeMap<String, Usage>,
    /// Frontends that more than one service claims: who has it and who does not.
    pub conflicts: BTreeMap<String, String>,
}

/// What the status calls programs that are not attached yet.
const PROGRAMS: &str = "programs";

/// A source's name as the status shows it.
pub fn source_name(source: Source) -> &'static str {
    match source {
        Source::Services => "services",
        Source::EndpointSlices => "endpoint slices",
        Source::Nodes => "nodes",
        Source::ServiceCidrs => "service CIDRs",
        Source::Addresses => "addresses",
    }
}

impl Status {
    /// Whether the maps hold what the cluster wants, and programs run on them.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.waiting_for.is_empty() && self.rounds > 0
    }

    /// Reads what [`Reporter`] wrote to `path`.
    pub fn read(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
    }

    /// Replaces the file at `path` in one step, so that a reader sees the old status or the new one.
    fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, path)
    }
}

/// Publishes the status when it changes: to the watch channel at once, to the file at most once a second.
#[derive(Debug)]
pub(super) struct Reporter {
    status: watch::Sender<Arc<Status>>,
    current: Status,
    file: Option<PathBuf>,
    /// When the file is to be written; absent when it is up to date.
    write_at: Option<Instant>,
    last_write: Option<Instant>,
}

impl Reporter {
    pub(super) fn new(options: &Options, status: watch::Sender<Arc<Status>>) -> Self {
        let current = Status { node: options.node_name.clone(), pid: std::process::id(), ..Status::default() };
        Self { status, current, file: options.status_file.clone(), write_at: None, last_write: None }
    }

    /// Counts what was done.
    pub(super) fn count(&mut self, outcome: &Outcome) {
        let done = outcome.done.iter().filter(|done| **done).count() as u64;
        self.current.operations += done;
        self.current.calls += outcome.calls;
        self.current.failed_operations += outcome.failed.len() as u64;
        if done > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.current.last_change_millis = u64::try_from(now.as_millis()).unwrap_or_default();
        }
    }

    /// Notes that everything that was to be done has been tried.
    pub(super) fn count_round(&mut self) {
        self.current.rounds += 1;
    }

    /// Notes how full the maps are that the programs write.
    pub(super) fn set_usage(&mut self, usage: &BTreeMap<String, Usage>) {
        self.current.usage.clone_from(usage);
    }

    /// Publishes the state of the loop when it differs from what was published last, and writes the file when it is due.
    pub(super) fn update(&mut self, core: &Core, retries: &Retries, attached: bool) {
        let totals = core.totals();
        let sources = core.waiting_for().map(source_name);
        self.current.waiting_for = sources.chain((!attached).then_some(PROGRAMS)).map(str::to_owned).collect();
        self.current.services = totals.services;
        self.current.frontends = totals.frontends;
        self.current.backends = totals.backends;
        self.current.errors = retries.errors().map(|(unit, error)| (unit.to_string(), error.to_owned())).collect();
        self.current.conflicts = core.conflicts();
        let now = Instant::now();
        let first = self.last_write.is_none();
        if first || **self.status.borrow() != self.current {
            self.status.send_replace(Arc::new(self.current.clone()));
            self.write_at = self.write_at.or(Some(self.last_write.map_or(now, |last| now.max(last + FILE_INTERVAL))));
        }
        if self.write_at.is_some_and(|at| at <= now) {
            self.flush();
        }
    }

    /// When [`Self::update`] has a file to write.
    pub(super) fn next(&self) -> Option<Instant> {
        self.write_at
    }

    /// Writes the file if it is not up to date.
    pub(super) fn flush(&mut self) {
        if self.write_at.take().is_none() {
            return;
        }
        self.last_write = Some(Instant::now());
        if let Some(path) = &self.file
            && let Err(error) = self.current.write(path)
        {
            tracing::warn!(path = %path.display(), %error, "status not written");
        }
    }
}
