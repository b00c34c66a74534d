//! Removes flows that are over, forgotten clients, old fragments and notes about sockets that are gone, and watches how full their maps are.
//!
//! The programs meet an entry only with a packet, so what falls silent stays until somebody looks. Looking is cheap but not
//! free: a pass goes through the maps in small steps with pauses between them, a few thousand entries each, and the next
//! pass waits. When a backend of a datagram service goes, its flows go at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dataplane_common::{Protocol, Ticks};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use super::Observer;
use crate::{
    maps::{MapError, expired::Sweep},
    tables::{BackendId, BackendRow},
};

/// How much work there is in which time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two steps.
    pub pause: Duration,
    /// From the beginning of one pass to that of the next.
    pub pass: Duration,
    /// The shortest time between two passes that are made at once.
    pub urgent: Duration,
}

impl Default for Pace {
    /// About 40 000 entries per second, so that a full map of 256 Ki takes seven seconds.
    fn default() -> Self {
        Self { pause: Duration::from_millis(100), pass: Duration::from_secs(10), urgent: Duration::from_millis(500) }
    }
}

/// Per cent of a map's room from which on it counts as nearly full.
const HIGH: u64 = 80;

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Entries in use.
    pub used: u64,
    /// Entries that it has room for.
    pub capacity: u64,
}

impl Usage {
    /// The part of the room that is used, in per cent.
    pub fn per_cent(&self) -> u64 {
        (self.used * 100).checked_div(self.capacity).unwrap_or_default()
    }

    /// Whether the map is nearly full: beyond that, the entries used longest ago make room for new ones.
    pub fn is_high(&self) -> bool {
        self.per_cent() >= HIGH
    }
}

/// Calls for a pass at once when a backend of a datagram service goes.
#[derive(Clone, Debug, Default)]
pub struct Alarm(Arc<Notify>);

impl Observer for Alarm {
    fn backends_gone(&mut self, gone: &[(BackendId, BackendRow)]) {
        if gone.iter().any(|(_, row)| row.protocol != Protocol::Tcp) {
            self.0.notify_one();
        }
    }
}

/// Sweeps `maps` for ever, and tells through `usage` what it found; a map that cannot be read is logged and tried again.
pub async fn run(
    pace: Pace,
    mut maps: Vec<Box<dyn Sweep>>,
    alarm: Alarm,
    usage: watch::Sender<BTreeMap<String, Usage>>,
) {
    let mut complaint = None;
    // What a stopped agent has missed is removed at once.
    let mut is_urgent = true;
    loop {
        let begun = Instant::now();
        let mut found = BTreeMap::new();
        let mut removed = 0;
        for map in &mut maps {
            match pass(pace.pause, &mut **map, &alarm, &mut is_urgent).await {
                Ok((used, over)) => {
                    removed += over;
                    found.insert(map.map().to_owned(), Usage { used, capacity: map.capacity().into() });
                }
                Err(error) => {
                    let text = error.in_full();
                    if complaint.as_ref() != Some(&text) {
                        warn!(error = text, "entries that are over cannot be removed; tried again");
                        complaint = Some(text);
                    }
                }
            }
        }
        if removed > 0 {
            debug!(removed, elapsed = ?begun.elapsed(), "entries that were over");
        }
        usage.send_if_modified(|known| std::mem::replace(known, found.clone()) != found);
        is_urgent = tokio::select! {
            () = sleep_until(begun + pace.pass) => false,
            () = alarm.0.notified() => {
                sleep_until(begun + pace.urgent).await;
                true
            }
        };
    }
}

/// One pass through one map: entries that remain, and entries that were removed.
async fn pass(
    pause: Duration,
    map: &mut dyn Sweep,
    alarm: &Alarm,
    is_urgent: &mut bool,
) -> Result<(u64, u64), MapError> {
    let (mut seen, mut removed) = (0_u64, 0_u64);
    loop {
        let swept = map.step(now())?;
        seen += u64::from(swept.seen);
        removed += u64::from(swept.removed);
        if swept.is_complete {
            return Ok((seen.saturating_sub(removed), removed));
        }
        if *is_urgent {
            yield_now().await;
        } else {
            tokio::select! {
                () = sleep(pause) => {}
                () = alarm.0.notified() => {
                    *is_urgent = true;
                    // What this pass has seen already, the next one looks at.
                    alarm.0.notify_one();
                }
            }
        }
    }
}

/// The maps that have become nearly full, and those that no longer are.
pub fn turns<'u>(before: &BTreeMap<String, Usage>, after: &'u BTreeMap<String, Usage>) -> Vec<(&'u str, Usage, bool)> {
    let was_high = |map: &String| before.get(map).is_some_and(Usage::is_high);
    let turned = after.iter().filter(|(map, usage)| usage.is_high() != was_high(map));
    turned.map(|(map, usage)| (map.as_str(), *usage, usage.is_high())).collect()
}

/// The present tick of the programs' clock.
fn now() -> Ticks {
    // The clock is always there; tick zero would only mean that nothing is over.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    Ticks::from_nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
