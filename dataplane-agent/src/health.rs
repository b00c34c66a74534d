//! Whether this node's agent keeps up, and whether the node wants traffic: `/healthz`, `/livez` and healthCheckNodePorts.

pub mod checks;
pub mod listen;
pub mod serve;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// What Go writes for a time that never was.
const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

/// The health of the agent; written by its tasks, read by the servers.
#[derive(Debug)]
pub struct Health {
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When the maps were last known to be as the cluster wants them.
    updated: Option<Instant>,
    /// When the oldest change arrived that has not been applied.
    queued: Option<Instant>,
    node: Eligibility,
}

/// Whether new traffic should come to this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eligibility {
    /// Nothing is known yet: traffic goes on as before the agent started.
    #[default]
    Unheard,
    /// The Node object is there and stays.
    Eligible,
    /// The Node object is about to be deleted, or there is none.
    Ineligible,
}

/// The health as kube-proxy writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When changes were last applied; now as long as everything is well, for readers of old.
    pub last_updated: Timestamp,
    /// Now.
    pub current_time: Timestamp,
    /// Whether new traffic should come to this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// Whether the agent keeps up.
    pub healthy: bool,
    /// The same per IP family; none before the first application.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub status: BTreeMap<&'static str, FamilyReport>,
}

/// The health of one IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyReport {
    /// When changes were last applied.
    pub last_updated: Timestamp,
    /// Whether the agent keeps up.
    pub healthy: bool,
}

impl Health {
    /// Healthy until a change has waited for `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every state is valid, whatever became of the thread that wrote it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change has arrived at `now`.
    pub fn queued(&self, now: Instant) {
        self.state().queued.get_or_insert(now);
    }

    /// Every change that arrived is applied at `now`.
    pub fn updated(&self, now: Instant) {
        let mut state = self.state();
        state.queued = None;
        state.updated = Some(now);
    }

    /// The node wants traffic, or not.
    pub fn node(&self, eligibility: Eligibility) {
        self.state().node = eligibility;
    }

    /// Whether the agent keeps up, at `now`.
    pub fn is_healthy(&self, now: Instant) -> bool {
        let state = *self.state();
        // Before the first application it is starting up, which is no illness.
        let late = |queued| now.saturating_duration_since(queued) >= self.timeout;
        state.updated.is_none() || !state.queued.is_some_and(late)
    }

    /// Whether new traffic should come to this node.
    pub fn is_node_eligible(&self) -> bool {
        self.state().node != Eligibility::Ineligible
    }

    /// What `/livez` says at `now`, which clocks show as `clock`, and whether that is good.
    pub fn livez(&self, now: Instant, clock: Timestamp) -> (Report, bool) {
        let report = self.report(now, clock, None);
        let good = report.healthy;
        (report, good)
    }

    /// What `/healthz` says at `now`, which clocks show as `clock`, and whether that is good.
    pub fn healthz(&self, now: Instant, clock: Timestamp) -> (Report, bool) {
        let eligible = self.is_node_eligible();
        let report = self.report(now, clock, Some(eligible));
        let good = report.healthy && eligible;
        (report, good)
    }

    fn report(&self, now: Instant, clock: Timestamp, node_eligible: Option<bool>) -> Report {
        let healthy = self.is_healthy(now);
        let updated = self.state().updated.map(|updated| {
            let age = SignedDuration::try_from(now.saturating_duration_since(updated)).unwrap_or_default();
            clock.checked_sub(age).unwrap_or(NEVER)
        });
        // One loop applies the changes of both families.
        let status = updated.map(|last_updated| FamilyReport { last_updated, healthy });
        let status = status.into_iter().flat_map(|status| ["IPv4", "IPv6"].map(|family| (family, status))).collect();
        let good = healthy && node_eligible != Some(false);
        let last_updated = if good { clock } else { updated.unwrap_or(NEVER) };
        Report { last_updated, current_time: clock, node_eligible, healthy, status }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Timestamp = Timestamp::constant(1_700_000_000, 0);

    fn check(health: &Health, now: Instant, expected: &str) {
        let (report, good) = health.healthz(now, CLOCK);
        assert_eq!(format!("{} {}", if good { 200 } else { 503 }, serde_json::to_string(&report).unwrap()), expected);
    }

    #[test]
    fn p70_healthz_fails_when_a_change_waits_longer_than_the_timeout() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let health = Health::new(Duration::from_secs(60));
        let unheard = r#"200 {"lastUpdated":"2023-11-14T22:13:20Z","currentTime":"2023-11-14T22:13:20Z","nodeEligible":true,"healthy":true}"#;
        check(&health, start, unheard);
        // Starting up is no illness, however long it takes.
        health.queued(start);
        check(&health, at(600), unheard);
        health.updated(at(600));
        let well = r#"200 {"lastUpdated":"2023-11-14T22:13:20Z","currentTime":"2023-11-14T22:13:20Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2023-11-14T22:13:10Z","healthy":true},"IPv6":{"lastUpdated":"2023-11-14T22:13:10Z","healthy":true}}}"#;
        check(&health, at(610), well);
        // Quiet is no illness either.
        assert!(health.is_healthy(at(10_000)));
        // The oldest change counts.
        health.queued(at(610));
        health.queued(at(660));
        assert!(health.is_healthy(at(669)));
        let ill = r#"503 {"lastUpdated":"2023-11-14T22:12:10Z","currentTime":"2023-11-14T22:13:20Z","nodeEligible":true,"healthy":false,"status":{"IPv4":{"lastUpdated":"2023-11-14T22:12:10Z","healthy":false},"IPv6":{"lastUpdated":"2023-11-14T22:12:10Z","healthy":false}}}"#;
        check(&health, at(670), ill);
        health.updated(at(671));
        assert!(health.is_healthy(at(671)));
    }

    #[test]
    fn p70_healthz_fails_on_a_node_that_goes_or_is_unknown_and_p71_livez_does_not() {
        let now = Instant::now();
        let health = Health::new(Duration::from_secs(60));
        health.updated(now);
        for (eligibility, good) in
            [(Eligibility::Unheard, true), (Eligibility::Ineligible, false), (Eligibility::Eligible, true)]
        {
            health.node(eligibility);
            assert_eq!(health.healthz(now, CLOCK).1, good, "{eligibility:?}");
            let (report, live) = health.livez(now, CLOCK);
            assert!(live && report.node_eligible.is_none());
        }
    }
}
