//! Asking again and again, at a steady rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    client,
    protocol::{Ask, Report},
};

/// Threads that share the rate, so that one slow answer does not stop the others.
const WORKERS: u32 = 4;

/// A load that goes on until it is finished.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Report>>,
}

impl Running {
    /// Starts asking `per_second` times a second.
    pub fn start(ask: &Ask, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pause = Duration::from_secs(1) * WORKERS / per_second.max(1);
        let workers = (0..WORKERS).map(|index| {
            let (ask, stop) = (ask.clone(), Arc::clone(&stop));
            thread::spawn(move || work(&ask, &stop, pause, pause * index / WORKERS))
        });
        Self { workers: workers.collect(), stop }
    }

    /// Stops after the answers that are still awaited.
    pub fn finish(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for worker in self.workers {
            match worker.join() {
                Ok(part) => report.merge(&part),
                Err(_) => *report.failures.entry("a worker panicked".to_owned()).or_default() += 1,
            }
        }
        report
    }
}

/// Asks `count` times, one after the other.
pub fn repeat(ask: &Ask, count: u32) -> Report {
    let mut report = Report::default();
    for _ in 0..count {
        report.add(&client::ask(ask));
    }
    report.took.sort_unstable();
    report
}

fn work(ask: &Ask, stop: &AtomicBool, pause: Duration, offset: Duration) -> Report {
    let mut report = Report::default();
    let mut due = Instant::now() + offset;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        report.add(&client::ask(ask));
        // Never a burst to catch up: the rate is an upper bound.
        due = (due + pause).max(Instant::now());
    }
    report
}
