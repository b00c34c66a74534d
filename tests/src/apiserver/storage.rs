//! Objects by version, with a history that lists and watches go back to.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{selector::Selector, status::Failure, target::Resource};

/// How many events are kept; older ones are compacted away, as the real server's are after some minutes.
const HISTORY: usize = 10_000;

/// Namespace (empty for objects without) and name.
pub(super) type Key = (String, String);

/// The objects of every resource and how they came to be.
#[derive(Debug)]
pub(super) struct Storage {
    version: u64,
    /// Watches and lists at versions before this one are refused.
    oldest: u64,
    objects: BTreeMap<(Resource, Key), Arc<Value>>,
    history: VecDeque<Event>,
}

/// One write.
#[derive(Clone, Debug)]
struct Event {
    version: u64,
    resource: Resource,
    key: Key,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

/// What a watch sends of one write.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) kind: &'static str,
    pub(super) object: Arc<Value>,
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Value>>,
    /// The last key of this page, and how many objects follow it; `None` on the last page.
    pub(super) more: Option<(Key, usize)>,
}

impl Storage {
    pub(super) const fn new() -> Self {
        // A real server is never at version zero, which means "any" in requests.
        Self { version: 1, oldest: 1, objects: BTreeMap::new(), history: VecDeque::new() }
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn object(&self, resource: Resource, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(&(resource, key.clone())).cloned()
    }

    /// Writes an object, or removes it, and returns it as it is stored or was when it went.
    pub(super) fn write(&mut self, resource: Resource, key: Key, object: Option<Value>) -> Option<Arc<Value>> {
        self.version += 1;
        let versioned = |mut object: Value, version: u64| {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            Arc::new(object)
        };
        let before = self.objects.get(&(resource, key.clone())).cloned();
        let after = object.map(|object| versioned(object, self.version));
        match &after {
            Some(after) => drop(self.objects.insert((resource, key.clone()), Arc::clone(after))),
            None => drop(self.objects.remove(&(resource, key.clone()))),
        }
        // A deleted object goes with the version of its deletion.
        let last = after.clone().or_else(|| before.as_deref().map(|b| versioned(b.clone(), self.version)));
        self.history.push_back(Event { version: self.version, resource, key, before, after });
        while self.history.len() > HISTORY {
            self.oldest = self.history.pop_front().map_or(self.oldest, |event| event.version);
        }
        last
    }

    /// Forgets everything that led here.
    pub(super) fn compact(&mut self) {
        // One more version, so that every version handed out so far is too old.
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
    }

    /// Objects at `version` (or now) after the key `after`, at most `limit`.
    pub(super) fn list(
        &self,
        resource: Resource,
        selector: &Selector,
        version: Option<u64>,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, Failure> {
        let version = version.unwrap_or(self.version);
        if version < self.oldest {
            return Err(Failure::expired(version, self.oldest));
        }
        let mut objects: BTreeMap<&Key, &Arc<Value>> =
            self.objects.iter().filter(|((r, _), _)| *r == resource).map(|((_, key), object)| (key, object)).collect();
        for event in self.history.iter().rev().take_while(|event| event.version > version) {
            if event.resource == resource {
                match &event.before {
                    Some(before) => drop(objects.insert(&event.key, before)),
                    None => drop(objects.remove(&event.key)),
                }
            }
        }
        let rest: Vec<_> = objects
            .into_iter()
            .filter(|(key, object)| after.is_none_or(|after| *key > after) && selector.matches(object))
            .collect();
        let page = &rest[..rest.len().min(limit)];
        let more = page.last().filter(|_| rest.len() > page.len());
        Ok(Page {
            version,
            items: page.iter().map(|(_, object)| Arc::clone(object)).collect(),
            more: more.map(|(key, _)| ((*key).clone(), rest.len() - page.len())),
        })
    }

    /// What a watch with `selector` sees of the writes after `version`.
    ///
    /// An object that a write takes out of the selection is seen as deleted, one that it brings in as added.
    pub(super) fn events(&self, resource: Resource, selector: &Selector, version: u64) -> Result<Vec<Seen>, Failure> {
        if version < self.oldest {
            return Err(Failure::expired(version, self.oldest));
        }
        let start = self.history.partition_point(|event| event.version <= version);
        let events = self.history.range(start..).filter(|event| event.resource == resource);
        let seen = events.filter_map(|event| {
            let selected = |object: &Option<Arc<Value>>| object.clone().filter(|object| selector.matches(object));
            match (selected(&event.before), selected(&event.after)) {
                (None, None) => None,
                (None, Some(object)) => Some(Seen { kind: "ADDED", object }),
                (Some(_), Some(object)) => Some(Seen { kind: "MODIFIED", object }),
                (Some(gone), None) => {
                    let mut gone = Value::clone(&gone);
                    gone["metadata"]["resourceVersion"] = json!(event.version.to_string());
                    Some(Seen { kind: "DELETED", object: Arc::new(gone) })
                }
            }
        });
        Ok(seen.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (String::new(), name.to_owned())
    }

    fn put(storage: &mut Storage, name: &str, label: &str) {
        let object = json!({"metadata": {"name": name, "labels": {"x": label}}});
        storage.write(Resource::Nodes, key(name), Some(object));
    }

    fn names(page: &Page) -> Vec<&str> {
        page.items.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn pages_of_a_list_are_of_one_version_whatever_is_written_between_them() {
        let mut storage = Storage::new();
        for name in ["a", "b", "c", "d"] {
            put(&mut storage, name, "1");
        }
        let all = Selector::default();
        let first = storage.list(Resource::Nodes, &all, None, None, 2).unwrap();
        assert_eq!((names(&first), first.more.clone()), (vec!["a", "b"], Some((key("b"), 2))));
        storage.write(Resource::Nodes, key("c"), None);
        put(&mut storage, "cc", "1");
        let rest = storage.list(Resource::Nodes, &all, Some(first.version), Some(&key("b")), 2).unwrap();
        assert_eq!((names(&rest), rest.more.clone()), (vec!["c", "d"], None));
        storage.compact();
        assert_eq!(storage.list(Resource::Nodes, &all, Some(first.version), None, 2).unwrap_err().reason, "Expired");
    }

    #[test]
    fn a_watch_sees_objects_come_into_its_selection_and_leave_it() {
        let mut storage = Storage::new();
        let start = storage.version();
        put(&mut storage, "a", "no");
        put(&mut storage, "a", "yes");
        put(&mut storage, "a", "yes");
        put(&mut storage, "a", "no");
        put(&mut storage, "a", "yes");
        storage.write(Resource::Nodes, key("a"), None);
        let selector = Selector::parse(None, Some("x=yes"), None).unwrap();
        let seen = storage.events(Resource::Nodes, &selector, start).unwrap();
        let kinds: Vec<_> = seen.iter().map(|seen| seen.kind).collect();
        assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]);
        let last = storage.version().to_string();
        assert_eq!(seen.last().unwrap().object["metadata"]["resourceVersion"], last);
        storage.compact();
        assert_eq!(storage.events(Resource::Nodes, &selector, start).unwrap_err().code, 410);
        assert!(storage.events(Resource::Nodes, &selector, storage.version()).unwrap().is_empty());
    }
}
