//! The loop without its loop: takes in changes, plans, and takes in what became of the plan. No I/O and no clock.

use std::collections::BTreeMap;

use super::{
    installed::{Installed, Totals},
    round::{Report, Round, Unit},
};
use crate::{
    maps::{Outcome, Snapshot},
    model::{
        Change, Source,
        cluster::{Cluster, Dirty},
    },
    tables::Tables,
};

/// What is wanted, what is installed, and what has to be looked at.
#[derive(Clone, Debug)]
pub struct Core {
    cluster: Cluster,
    installed: Installed,
    dirty: Dirty,
    /// Whether what was installed before the start has been compared with the complete picture of the cluster.
    compared: bool,
}

impl Core {
    /// Starts with what the maps hold.
    pub fn new(node_name: &str, snapshot: Snapshot) -> Self {
        Self {
            cluster: Cluster::new(node_name),
            installed: Installed::new(snapshot),
            dirty: Dirty::default(),
            compared: false,
        }
    }

    /// Takes in one change.
    pub fn take(&mut self, change: Change) {
        let dirty = self.cluster.apply(change);
        self.dirty.merge(dirty);
        if !self.compared && self.waiting_for().next().is_none() {
            // Now what is missing is known to be gone.
            self.compared = true;
            self.dirty.services.extend(self.installed.service_names().cloned());
            self.dirty.addresses = true;
        }
    }

    /// Has `unit` looked at again.
    pub fn retry(&mut self, unit: Unit) {
        match unit {
            Unit::Addresses => self.dirty.addresses = true,
            Unit::Service(name) => drop(self.dirty.services.insert(name)),
        }
    }

    /// Whether there is work and all sources have delivered: until then nothing is planned, since an endpoint that has
    /// not arrived yet looks like one that is gone.
    pub fn has_work(&self) -> bool {
        self.compared && !self.dirty.is_empty()
    }

    /// Whether everything that has arrived has been planned, after all sources have delivered.
    pub fn is_settled(&self) -> bool {
        self.compared && self.dirty.is_empty()
    }

    /// The cluster as it is known.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Plans all that is dirty.
    pub fn plan(&mut self) -> Round {
        let dirty = std::mem::take(&mut self.dirty);
        self.installed.plan(&self.cluster, &dirty)
    }

    /// Takes in what became of the last plan.
    pub fn commit(&mut self, round: Round, outcome: Outcome) -> Report {
        self.installed.commit(round, outcome)
    }

    /// The sources that have not delivered everything.
    pub fn waiting_for(&self) -> impl Iterator<Item = Source> {
        self.cluster.waiting_for()
    }

    /// Counts of installed rows.
    pub fn totals(&self) -> Totals {
        self.installed.totals()
    }

    /// Frontends that several services claim, and who has them and who does not.
    pub fn conflicts(&self) -> BTreeMap<String, String> {
        let text = |conflict: &super::claims::Conflict| {
            let losers: Vec<_> = conflict.losers.iter().map(ToString::to_string).collect();
            format!("{} has it, {} not", conflict.winner, losers.join(", "))
        };
        self.installed.conflicts().iter().map(|(addr, conflict)| (addr.to_string(), text(conflict))).collect()
    }

    /// Everything that is installed, put together.
    pub fn tables(&self) -> Tables {
        self.installed.tables()
    }
}
