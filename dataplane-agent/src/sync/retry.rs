//! When units that failed are tried again: soon at first, then more and more rarely.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::round::Unit;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// The units that failed.
#[derive(Debug, Default)]
pub(super) struct Retries {
    waiting: BTreeMap<Unit, Retry>,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    attempts: u32,
    error: String,
}

impl Retries {
    /// Notes that `unit` failed at `now`; true when this error is new.
    pub(super) fn failed(&mut self, unit: Unit, error: String, now: Instant) -> bool {
        let (attempts, known) = match self.waiting.get(&unit) {
            Some(last) => (last.attempts + 1, last.error == error),
            None => (0, false),
        };
        let wait = FIRST.saturating_mul(1 << attempts.min(16)).min(LONGEST);
        self.waiting.insert(unit, Retry { at: now + wait, attempts, error });
        !known
    }

    /// Notes that `unit` succeeded.
    pub(super) fn succeeded(&mut self, unit: &Unit) {
        self.waiting.remove(unit);
    }

    /// When the next unit is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|retry| retry.at).min()
    }

    /// The units that are due. They are not due again until the attempt has been reported, or for a long time.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Unit> {
        let mut due = Vec::new();
        for (unit, retry) in self.waiting.iter_mut().filter(|(_, retry)| retry.at <= now) {
            retry.at = now + LONGEST;
            due.push(unit.clone());
        }
        due
    }

    /// The units that failed, and why.
    pub(super) fn errors(&self) -> impl Iterator<Item = (&Unit, &str)> {
        self.waiting.iter().map(|(unit, retry)| (unit, retry.error.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_half_a_minute_and_ends_with_success() {
        let start = Instant::now();
        let mut retries = Retries::default();
        assert!(retries.failed(Unit::Addresses, "full".to_owned(), start));
        assert!(!retries.failed(Unit::Addresses, "full".to_owned(), start));
        assert_eq!(retries.next(), Some(start + 2 * FIRST));
        assert_eq!(retries.take_due(start + FIRST), []);
        assert_eq!(retries.take_due(start + 2 * FIRST), [Unit::Addresses]);
        for _ in 0..40 {
            retries.failed(Unit::Addresses, "other".to_owned(), start);
        }
        assert_eq!(retries.next(), Some(start + LONGEST));
        retries.succeeded(&Unit::Addresses);
        assert_eq!(retries.next(), None);
    }
}
