//! The loop without its loop: takes in changes, plans, and takes in what became of the plan. No I/O and no clock.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    installed::{Installed, Totals},
    round::{Report, Round, Unit},
};
use crate::{
    maps::{Outcome, Snapshot},
    model::{
        Change, ObjectName, Source,
        cluster::{Cluster, Dirty},
    },
    tables::Tables,
};

/// Services that are planned together.
const AT_ONCE: usize = 512;

/// What is wanted, what is installed, and what has to be looked at.
#[derive(Clone, Debug)]
pub struct Core {
    cluster: Cluster,
    installed: Installed,
    dirty: Dirty,
    /// Services that leave a frontend, which are planned when everything else has been.
    put_off: BTreeSet<ObjectName>,
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
            put_off: BTreeSet::new(),
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
        self.compared && !(self.dirty.is_empty() && self.put_off.is_empty())
    }

    /// Whether everything that has arrived has been planned, after all sources have delivered.
    pub fn is_settled(&self) -> bool {
        self.compared && self.dirty.is_empty() && self.put_off.is_empty()
    }

    /// The cluster as it is known.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Plans what is dirty; of a large change a part, so that what the plan needs does not grow with the cluster. There is work
    /// left then.
    pub fn plan(&mut self) -> Round {
        let mut dirty = std::mem::take(&mut self.dirty);
        if let Some(first) = dirty.services.iter().nth(AT_ONCE).cloned() {
            self.dirty.services = dirty.services.split_off(&first);
        } else {
            dirty.services.append(&mut self.put_off);
        }
        let (round, put_off) = self.installed.plan(&self.cluster, &dirty, !self.dirty.is_empty());
        self.put_off.extend(put_off);
        round
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
