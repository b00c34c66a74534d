//! One round of work: what is planned together, and what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    model::ObjectName,
    plan::{self, Op, Plan},
    tables::{BackendId, BackendRow, FrontendAddr, Tables, pools::NoRoom},
};

/// What succeeds or fails as a whole, for reports and retries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// The node's addresses.
    Addresses,
    /// A service.
    Service(ObjectName),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses => f.write_str("node addresses"),
            Self::Service(name) => name.fmt(f),
        }
    }
}

/// Work that has been planned and not yet been done.
#[derive(Debug, Default)]
pub struct Round {
    /// The operations.
    pub plan: Plan,
    /// Services that cannot be installed as they should be; the maps keep what they hold for them.
    pub refused: BTreeMap<Unit, NoRoom>,
    /// What the operations are for, by the number of their group.
    pub(super) groups: Vec<Group>,
}

/// Rows that change together: those of the node's addresses, of one service, or of services between which a frontend moves.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) before: Tables,
    pub(super) after: Tables,
    /// Whether these are the node's addresses.
    pub(super) addresses: bool,
    /// `after` by service and port.
    pub(super) services: BTreeMap<ObjectName, BTreeMap<String, Tables>>,
}

/// What came of a [`Round`].
#[derive(Debug, Default)]
pub struct Report {
    /// Units that are as they should be.
    pub succeeded: BTreeSet<Unit>,
    /// Units that are not, and why.
    pub failed: BTreeMap<Unit, String>,
    /// Backends that have ceased to exist.
    pub gone: Vec<(BackendId, BackendRow)>,
}

impl Round {
    /// The round that turns each group's rows from `before` to `after`.
    pub(super) fn new(groups: Vec<Group>, refused: BTreeMap<Unit, NoRoom>) -> Self {
        let groups = join_by_moved_frontends(groups);
        let plan = Plan::of(groups.iter().map(|group| plan::between(&group.before, &group.after)));
        Self { plan, refused, groups }
    }
}

impl Group {
    /// The group of one service.
    pub(super) fn of_service(name: ObjectName, before: Tables, ports: BTreeMap<String, Tables>) -> Self {
        let after = union(ports.values().cloned());
        Self { before, after, addresses: false, services: BTreeMap::from([(name, ports)]) }
    }

    /// The units that the group consists of.
    pub(super) fn units(&self) -> impl Iterator<Item = Unit> + use<> {
        let services: Vec<_> = self.services.keys().cloned().map(Unit::Service).collect();
        services.into_iter().chain(self.addresses.then_some(Unit::Addresses))
    }

    /// What the maps hold after only the operations `done`.
    pub(super) fn after_only<'a>(mut self, done: impl Iterator<Item = &'a Op>) -> Self {
        done.for_each(|op| op.apply_to(&mut self.before));
        self.after = self.before.clone();
        self
    }

    fn merge(&mut self, other: Self) {
        self.before.extend(other.before);
        self.after.extend(other.after);
        self.addresses |= other.addresses;
        self.services.extend(other.services);
    }
}

/// The rows of several ports together.
pub(super) fn union(mut parts: impl Iterator<Item = Tables>) -> Tables {
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |mut all, part| {
        all.extend(part);
        all
    })
}

/// A frontend that leaves one group and arrives in another is one write, not a write and a deletion that undoes it.
fn join_by_moved_frontends(groups: Vec<Group>) -> Vec<Group> {
    fn root(joins: &[usize], mut index: usize) -> usize {
        while joins[index] != index {
            index = joins[index];
        }
        index
    }
    fn only_in<'a>(these: &'a Tables, those: &'a Tables) -> impl Iterator<Item = &'a FrontendAddr> {
        these.frontends.keys().filter(|addr| !those.frontends.contains_key(addr))
    }
    let mut arrives = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        arrives.extend(only_in(&group.after, &group.before).map(|addr| (*addr, index)));
    }
    let mut joins: Vec<usize> = (0..groups.len()).collect();
    for (index, group) in groups.iter().enumerate() {
        for to in only_in(&group.before, &group.after).filter_map(|addr| arrives.get(addr)) {
            let (from, to) = (root(&joins, index), root(&joins, *to));
            joins[from] = to;
        }
    }
    let mut joined = BTreeMap::<usize, Group>::new();
    for (index, group) in groups.into_iter().enumerate() {
        joined.entry(root(&joins, index)).or_default().merge(group);
    }
    joined.into_values().collect()
}
