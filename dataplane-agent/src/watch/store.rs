//! What a source has sent of one kind, so that nothing is sent twice and a relist knows what is gone.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    hash::{DefaultHasher, Hash, Hasher as _},
};

use tracing::warn;

use super::{Converted, Fault, field::Reason, kind::Kind};
use crate::model::Change;

/// The last state of every object of one kind.
#[derive(Debug)]
pub(super) struct Store<K: Kind> {
    objects: BTreeMap<K::Name, Sent>,
    /// During a list: the names that it has delivered so far.
    listed: Option<BTreeSet<K::Name>>,
}

/// What the receiver knows of one object, and what was said about its faults.
#[derive(Debug)]
struct Sent {
    /// Of the value, which the receiver has and which need not be kept twice; `None` when nothing was sent.
    value: Option<Fingerprint>,
    faults: Vec<Fault>,
}

/// Two hashes of a value: that a changed one has the same two is less likely than that the memory fails.
type Fingerprint = [u64; 2];

fn fingerprint(value: &impl Hash) -> Fingerprint {
    [0_u8, 1].map(|seed| {
        let mut hasher = DefaultHasher::new();
        (seed, value).hash(&mut hasher);
        hasher.finish()
    })
}

impl<K: Kind> Store<K> {
    pub(super) const fn new() -> Self {
        Self { objects: BTreeMap::new(), listed: None }
    }

    /// Begins a complete list; an earlier one that did not reach its end counts for nothing.
    pub(super) fn begin_list(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// Ends a complete list: what it did not deliver is gone.
    pub(super) fn end_list(&mut self) -> Vec<Change> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        let gone: Vec<_> = self.objects.keys().filter(|name| !listed.contains(name)).cloned().collect();
        gone.into_iter().filter_map(|name| self.delete(name)).collect()
    }

    /// The object now converts to `converted`; a change when that differs from what was sent.
    pub(super) fn apply(&mut self, name: K::Name, converted: Converted<K::Value>) -> Option<Change> {
        self.mark_listed(&name);
        let Converted { value, faults } = converted;
        let sent = match self.objects.entry(name.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Sent { value: None, faults: Vec::new() }),
        };
        report_new::<K>(&name, &sent.faults, &faults);
        sent.faults = faults;
        let new = value.as_ref().map(fingerprint);
        if sent.value == new {
            return None;
        }
        sent.value = new;
        Some(K::change(name, value))
    }

    /// The object exists but cannot be read: what was sent of it stays.
    pub(super) fn malformed(&mut self, name: K::Name, error: String) {
        self.mark_listed(&name);
        let faults = vec![Fault { field: "the object".to_owned(), reason: Reason::Malformed(error) }];
        match self.objects.entry(name.clone()) {
            Entry::Occupied(mut entry) => {
                report_new::<K>(&name, &entry.get().faults, &faults);
                entry.get_mut().faults = faults;
            }
            Entry::Vacant(entry) => {
                report_new::<K>(&name, &[], &faults);
                entry.insert(Sent { value: None, faults });
            }
        }
    }

    /// The object is gone; a change when something was sent of it.
    pub(super) fn delete(&mut self, name: K::Name) -> Option<Change> {
        if let Some(listed) = &mut self.listed {
            listed.remove(&name);
        }
        self.objects.remove(&name)?.value?;
        Some(K::change(name, None))
    }

    fn mark_listed(&mut self, name: &K::Name) {
        if let Some(listed) = &mut self.listed {
            listed.insert(name.clone());
        }
    }
}

/// Logs each fault once, however often its object is delivered again.
fn report_new<K: Kind>(name: &K::Name, known: &[Fault], faults: &[Fault]) {
    for Fault { field, reason } in faults.iter().filter(|fault| !known.contains(fault)) {
        warn!("{} {name}: {field}: {reason}", K::NAME);
    }
}

#[cfg(test)]
mod tests;
