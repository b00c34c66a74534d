//! Objects by version, with a history that lists and watches go back to.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, Deref},
    sync::{Arc, OnceLock},
};

use serde_json::{Value, json};

use super::{selector::Selector, status::Failure, target::Resource};

/// How many events are kept; older ones are compacted away, as the real server's are after some minutes.
const HISTORY: usize = 10_000;

/// Namespace (empty for objects without) and name.
pub(super) type Key = (String, String);

/// An object as it is stored, and its text, which is written once however often it is sent.
#[derive(Debug)]
pub(super) struct Stored {
    object: Value,
    text: OnceLock<String>,
}

impl Stored {
    fn new(object: Value) -> Arc<Self> {
        Arc::new(Self { object, text: OnceLock::new() })
    }

    /// The object as JSON.
    pub(super) fn text(&self) -> &str {
        self.text.get_or_init(|| self.object.to_string())
    }
}

impl Deref for Stored {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.object
    }
}

/// The objects of every resource and how they came to be.
#[derive(Debug)]
pub(super) struct Storage {
    version: u64,
    /// Watches and lists at versions before this one are refused.
    oldest: u64,
    objects: BTreeMap<(Resource, Key), Arc<Stored>>,
    history: VecDeque<Event>,
}

/// One write.
#[derive(Clone, Debug)]
struct Event {
    version: u64,
    resource: Resource,
    key: Key,
    before: Option<Arc<Stored>>,
    after: Option<Arc<Stored>>,
}

/// What a watch sends of one write.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) kind: &'static str,
    pub(super) object: Arc<Stored>,
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Stored>>,
    /// The last key of this page, and how many objects follow it; `None` on the last page. What is selected is not counted,
    /// as in the real server.
    pub(super) more: Option<(Key, Option<usize>)>,
}

impl Storage {
    pub(super) const fn new() -> Self {
        // A real server is never at version zero, which means "any" in requests.
        Self { version: 1, oldest: 1, objects: BTreeMap::new(), history: VecDeque::new() }
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Writes every text.
    pub(super) fn prepare(&self) {
        self.objects.values().for_each(|object| _ = object.text());
    }

    pub(super) fn object(&self, resource: Resource, key: &Key) -> Option<Arc<Stored>> {
        self.objects.get(&(resource, key.clone())).cloned()
    }

    /// Writes an object, or removes it, and returns it as it is stored or was when it went.
    pub(super) fn write(&mut self, resource: Resource, key: Key, object: Option<Value>) -> Option<Arc<Stored>> {
        self.version += 1;
        let versioned = |mut object: Value, version: u64| {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            Stored::new(object)
        };
        let before = self.objects.get(&(resource, key.clone())).cloned();
        let after = object.map(|object| versioned(object, self.version));
        match &after {
            Some(after) => drop(self.objects.insert((resource, key.clone()), Arc::clone(after))),
            None => drop(self.objects.remove(&(resource, key.clone()))),
        }
        // A deleted object goes with the version of its deletion.
        let last = after.clone().or_else(|| before.as_deref().map(|b| versioned(Value::clone(b), self.version)));
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
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut objects: BTreeMap<&Key, &Arc<Stored>> = BTreeMap::new();
        let newer = self.history.iter().rev().take_while(|event| event.version > version);
        let newer: Vec<&Event> = newer.filter(|event| event.resource == resource).collect();
        if !newer.is_empty() {
            objects.extend(self.of(resource, start));
        }
        for event in &newer {
            match &event.before {
                Some(before) if after.is_none_or(|after| event.key > *after) => {
                    _ = objects.insert(&event.key, before);
                }
                Some(_) => {}
                None => _ = objects.remove(&event.key),
            }
        }
        // Going through what is stored without a copy matters with ten thousand objects and twenty pages.
        let now = newer.is_empty().then(|| self.of(resource, start)).into_iter().flatten();
        let mut rest = now.chain(objects).filter(|(_, object)| selector.matches(object));
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let next = page.last().filter(|_| rest.next().is_some()).map(|(key, _)| Key::clone(key));
        Ok(Page {
            version,
            items: page.iter().map(|(_, object)| Arc::clone(object)).collect(),
            more: next.map(|key| (key, selector.is_everything().then(|| 1 + rest.count()))),
        })
    }

    /// The objects of `resource` as they are now, behind `start`.
    fn of(&self, resource: Resource, start: Bound<&Key>) -> impl Iterator<Item = (&Key, &Arc<Stored>)> {
        let first = match start {
            Bound::Excluded(key) => Bound::Excluded((resource, key.clone())),
            _ => Bound::Included((resource, Key::default())),
        };
        let behind = self.objects.range((first, Bound::Unbounded));
        behind.take_while(move |((of, _), _)| *of == resource).map(|((_, key), object)| (key, object))
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
            let selected = |object: &Option<Arc<Stored>>| object.clone().filter(|object| selector.matches(object));
            match (selected(&event.before), selected(&event.after)) {
                (None, None) => None,
                (None, Some(object)) => Some(Seen { kind: "ADDED", object }),
                (Some(_), Some(object)) => Some(Seen { kind: "MODIFIED", object }),
                (Some(gone), None) => {
                    let mut gone = Value::clone(&gone);
                    gone["metadata"]["resourceVersion"] = json!(event.version.to_string());
                    Some(Seen { kind: "DELETED", object: Stored::new(gone) })
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
        assert_eq!((names(&first), first.more.clone()), (vec!["a", "b"], Some((key("b"), Some(2)))));
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
