//! The loop that turns changes into map operations.

pub mod claims;
pub mod conntrack_gc;
pub mod core;
pub mod installed;
mod observer;
mod retry;
pub mod round;
pub mod status;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, future::Future, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

pub use self::{
    conntrack_gc::Usage,
    observer::{Applied, Observer},
    status::Status,
};
use self::{core::Core, retry::Retries, status::Reporter};
use crate::{
    maps::{self, MapError, Maps},
    model::Change,
};

/// How the loop runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub node_name: String,
    /// The shortest time from one application to the next, when the operator wants one; the first change after a quiet time is
    /// applied at once.
    pub min_interval: Duration,
    /// Where [`Status`] is written as JSON for `sluice status`; nowhere when absent.
    pub status_file: Option<PathBuf>,
    /// How full the maps are that the programs write, by name; from [`conntrack_gc`].
    pub usage: Option<watch::Receiver<BTreeMap<String, Usage>>>,
    /// Whether the programs are attached, which the loop does not wait for, but readiness does; they are when absent.
    pub attached: Option<watch::Receiver<bool>>,
}

impl Options {
    /// Defaults for the node `node_name`.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            min_interval: Duration::ZERO,
            status_file: None,
            usage: None,
            attached: None,
        }
    }
}

/// Applies `changes` to `maps` until the channel closes or `shutdown` completes.
///
/// What the maps hold at the beginning is taken as it is, so a start with an unchanged cluster writes nothing. The maps
/// are left as they are at the end: traffic flows on without an agent.
///
/// Applying blocks the thread for about a microsecond per operation; give the loop a task of its own.
pub async fn run<M: Maps + Send>(
    mut options: Options,
    mut maps: M,
    mut changes: mpsc::Receiver<Change>,
    status: watch::Sender<Arc<Status>>,
    mut observer: impl Observer,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), MapError> {
    let mut core = Core::new(&options.node_name, maps.read()?);
    let mut retries = Retries::default();
    let mut reporter = Reporter::new(&options, status);
    let mut next_round = Instant::now();
    reporter.update(&core, &retries, options.attached.is_none());
    let mut shutdown = pin!(shutdown);
    let mut open = true;
    while open {
        let round_due = core.has_work().then_some(next_round);
        let wake = [round_due, retries.next(), reporter.next()].into_iter().flatten().min();
        tokio::select! {
            () = &mut shutdown => break,
            change = changes.recv() => match change {
                Some(change) => {
                    observer.taken(&change);
                    core.take(change);
                }
                None => open = false,
            },
            () = changed(options.usage.as_mut()) => {}
            () = changed(options.attached.as_mut()) => {}
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
        // Everything that has arrived is one round's work, but a source that never pauses must not put the round off.
        for _ in 0..changes.max_capacity() {
            let Ok(change) = changes.try_recv() else { break };
            observer.taken(&change);
            core.take(change);
        }
        let now = Instant::now();
        retries.take_due(now).into_iter().for_each(|unit| core.retry(unit));
        if core.has_work() && (now >= next_round || !open) {
            run_round(&mut core, &mut maps, &mut retries, &mut reporter, &mut observer);
            // The rest of a large change follows at once.
            let pause = if core.has_work() { Duration::ZERO } else { pause(now.elapsed()).max(options.min_interval) };
            next_round = Instant::now() + pause;
        }
        let attached = options.attached.as_mut().is_none_or(|attached| *attached.borrow_and_update());
        if core.is_settled() && attached {
            observer.settled();
        }
        if let Some(usage) = &mut options.usage {
            reporter.set_usage(&usage.borrow_and_update());
        }
        reporter.update(&core, &retries, attached);
    }
    reporter.flush();
    Ok(())
}

/// How long to gather changes after a round that took `round`: a burst then costs half of a processor at most, and a single
/// change waits for no more than a moment.
fn pause(round: Duration) -> Duration {
    round.clamp(Duration::from_millis(1), Duration::from_millis(10))
}

/// Waits for `news`, for ever when nobody tells any.
async fn changed<T>(news: Option<&mut watch::Receiver<T>>) {
    if let Some(news) = news
        && news.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn run_round(
    core: &mut Core,
    maps: &mut impl Maps,
    retries: &mut Retries,
    reporter: &mut Reporter,
    observer: &mut impl Observer,
) {
    let begun = Instant::now();
    let round = core.plan();
    let outcome = maps::apply(&round.plan, maps);
    reporter.count(&outcome);
    let operations = outcome.done.len();
    let (done, failed) = (outcome.done.iter().filter(|done| **done).count(), outcome.failed.len());
    let report = core.commit(round, outcome);
    if !core.has_work() {
        reporter.count_round();
    }
    observer.applied(&Applied { cluster: core.cluster(), report: &report, duration: begun.elapsed(), done, failed });
    if operations > 0 {
        tracing::debug!(operations, units = report.succeeded.len(), "applied");
    }
    for unit in &report.succeeded {
        retries.succeeded(unit);
    }
    let now = Instant::now();
    for (unit, error) in report.failed {
        let text = unit.to_string();
        if retries.failed(unit, error.clone(), now) {
            tracing::error!(unit = text, error, "not installed as it should be; trying again");
        }
    }
    if !report.gone.is_empty() {
        observer.backends_gone(&report.gone);
    }
}
