//! Changes of endpoints while the agent runs: from the write to the API server until the maps have it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{
    installed::Installed,
    node::{Bed, Time},
    objects::{Endpoint, Endpoints, SLICE, Service},
};
use crate::bench::Settings;

/// What is changed, one after the other.
const KINDS: [Kind; 3] = [Kind::Replace, Kind::Remove, Kind::Add];
/// Between two changes.
const PERIOD: Duration = Duration::from_millis(10);
/// Changes of each kind, one at a time, whose system calls are counted.
const SINGLE: usize = 10;
/// Endpoints of the large service that are replaced together.
const STEP: usize = 50;
/// Between two steps of a rolling restart.
const STEPS_APART: Duration = Duration::from_millis(100);

/// One kind of change.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Replace,
    Remove,
    Add,
}

/// What a series of changes took.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// From the write to the maps, for each change.
    pub(super) latencies: Vec<Duration>,
    /// From the first to the last.
    pub(super) took: Duration,
    /// Processor time.
    pub(super) time: Time,
    /// Map operations.
    pub(super) operations: u64,
    /// System calls for them.
    pub(super) calls: u64,
    /// Bytes of resident memory at the end.
    pub(super) resident: u64,
}

/// The most system calls that one change took, of each kind.
#[derive(Clone, Debug)]
pub(super) struct Single(pub(super) Vec<(&'static str, u64)>);

impl Single {
    /// The most of any kind.
    pub(super) fn most(&self) -> u64 {
        self.0.iter().map(|(_, calls)| *calls).max().unwrap_or_default()
    }
}

impl Series {
    /// The latency that `share` of the changes did not exceed.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(index.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Changes one endpoint at a time, and counts after each.
pub(super) fn single(bed: &mut Bed, services: &mut [Service], endpoints: &mut Endpoints) -> Result<Single> {
    let mut installed = Some(Installed::open(bed.node().bpffs.path())?);
    let mut most = Vec::new();
    for (index, kind) in KINDS.into_iter().enumerate() {
        let mut calls = 0;
        for (turn, service) in services.iter_mut().skip(1).step_by(7).take(SINGLE).enumerate() {
            let before = bed.counted()?;
            kind.apply(service, turn, endpoints);
            bed.server.apply(&service.slice(0))?;
            bed.wait(&mut installed, |installed| installed.has(service))?;
            // What is no longer needed goes last.
            std::thread::sleep(PERIOD);
            calls = calls.max(bed.counted()?.calls - before.calls);
        }
        most.push((["replaced", "removed", "added"][index], calls));
    }
    Ok(Single(most))
}

/// A hundred changes per second for `seconds`.
pub(super) fn steady(
    bed: &mut Bed,
    services: &mut [Service],
    endpoints: &mut Endpoints,
    seconds: u32,
    settings: &Settings<'_>,
) -> Result<Series> {
    let mut installed = Some(Installed::open(bed.node().bpffs.path())?);
    let count = seconds * 100;
    measure(bed, |bed| {
        let begun = Instant::now();
        let mut latencies = Vec::new();
        for turn in 0..count {
            if turn % 100 == 0 {
                settings.go_on()?;
            }
            std::thread::sleep((begun + PERIOD * turn).saturating_duration_since(Instant::now()));
            // A service has all three kinds of change behind it before the next one has its turn.
            let (round, kind) = (turn as usize / KINDS.len(), KINDS[turn as usize % KINDS.len()]);
            let position = round * 7919 % services.len();
            let service = services.get_mut(position).context("no services")?;
            kind.apply(service, round, endpoints);
            let slice = service.slice(0);
            let written = Instant::now();
            bed.server.apply(&slice)?;
            bed.wait(&mut installed, |installed| installed.has(service))?;
            latencies.push(written.elapsed());
        }
        Ok(latencies)
    })
}

/// Replaces all endpoints of a service with a thousand of them, a few at a time: the new ones come while the old ones drain, and
/// then the old ones go.
pub(super) fn rolling(
    bed: &mut Bed,
    number: u32,
    endpoints: &mut Endpoints,
    settings: &Settings<'_>,
) -> Result<Series> {
    let mut installed = Some(Installed::open(bed.node().bpffs.path())?);
    let mut service = Service::new(number, super::LARGE, endpoints);
    bed.apply(&service)?;
    bed.wait(&mut installed, |installed| installed.has(&service))?;
    measure(bed, |bed| {
        let begun = Instant::now();
        let mut latencies = Vec::new();
        for step in 0..super::LARGE / STEP {
            settings.go_on()?;
            std::thread::sleep((begun + STEPS_APART * step as u32).saturating_duration_since(Instant::now()));
            let old = step * STEP..(step + 1) * STEP;
            let slices = old.start / SLICE..=(old.end - 1) / SLICE;
            let fresh: Vec<Endpoint> = old.clone().map(|_| endpoints.next()).collect();
            for gone in [false, true] {
                let mut during = service.clone();
                if gone {
                    during.endpoints.splice(old.clone(), fresh.iter().copied());
                } else {
                    during.drain(old.clone(), &fresh);
                }
                let texts: Vec<_> = slices.clone().map(|index| during.slice(index)).collect();
                let written = Instant::now();
                texts.iter().try_for_each(|slice| bed.server.apply(slice).map(drop))?;
                bed.wait(&mut installed, |installed| installed.has(&during))?;
                latencies.push(written.elapsed());
                if gone {
                    service = during;
                }
            }
        }
        Ok(latencies)
    })
}

/// Runs `work` and sees what it costs.
fn measure(bed: &mut Bed, work: impl FnOnce(&mut Bed) -> Result<Vec<Duration>>) -> Result<Series> {
    let (time, counted, begun) = (bed.time()?, bed.counted()?, Instant::now());
    let latencies = work(bed)?;
    let took = begun.elapsed();
    let time = bed.time()?.since(time);
    std::thread::sleep(PERIOD);
    let now = bed.counted()?;
    let (resident, _) = bed.memory()?;
    Ok(Series {
        latencies,
        took,
        time,
        operations: now.operations - counted.operations,
        calls: now.calls - counted.calls,
        resident,
    })
}

impl Kind {
    fn apply(self, service: &mut Service, turn: usize, endpoints: &mut Endpoints) {
        let count = service.endpoints.len();
        match self {
            Self::Replace => service.endpoints[turn % count] = endpoints.next(),
            Self::Remove => drop(service.endpoints.remove(turn % count)),
            Self::Add => service.endpoints.push(endpoints.next()),
        }
    }
}
