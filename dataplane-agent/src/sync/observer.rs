//! Whoever wants to know what the loop does: health, metrics, and sockets that end with their backend.

use std::time::Duration;

use super::round::Report;
use crate::{
    model::{Change, cluster::Cluster},
    tables::{BackendId, BackendRow},
};

/// Told of everything that the loop does; called between two rounds, so it must not take long.
pub trait Observer: Send {
    /// `change` has arrived.
    fn taken(&mut self, _change: &Change) {}
    /// A round is over.
    fn applied(&mut self, _applied: &Applied<'_>) {}
    /// Everything that has arrived is applied, or waits for another attempt.
    fn settled(&mut self) {}
    /// Backends have just ceased to exist; ids and rows are as they were last in use, and no map names them any more.
    fn backends_gone(&mut self, _gone: &[(BackendId, BackendRow)]) {}
}

/// Nobody wants to know.
impl Observer for () {}

/// Both want to know.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn taken(&mut self, change: &Change) {
        self.0.taken(change);
        self.1.taken(change);
    }

    fn applied(&mut self, applied: &Applied<'_>) {
        self.0.applied(applied);
        self.1.applied(applied);
    }

    fn settled(&mut self) {
        self.0.settled();
        self.1.settled();
    }

    fn backends_gone(&mut self, gone: &[(BackendId, BackendRow)]) {
        self.0.backends_gone(gone);
        self.1.backends_gone(gone);
    }
}

/// A round that is over.
#[derive(Debug)]
pub struct Applied<'a> {
    /// The cluster as it is known.
    pub cluster: &'a Cluster,
    /// What became of each unit.
    pub report: &'a Report,
    /// How long it took.
    pub duration: Duration,
    /// Operations that succeeded.
    pub done: usize,
    /// Groups of operations that failed.
    pub failed: usize,
}
