//! The agent's picture of the world: what the sources have told so far.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::{
    Change, ObjectName, Source,
    endpoint::EndpointSlice,
    node::{LocalAddresses, Node},
    selection::Place,
    service::Service,
    settings::Settings,
};

/// Everything known of the cluster and of this node.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    node_name: String,
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Names of the slices of a service, so that finding them does not mean looking at all.
    slices_of: BTreeMap<ObjectName, Vec<ObjectName>>,
    nodes: BTreeMap<String, Node>,
    service_cidrs: BTreeMap<String, Vec<IpNetwork>>,
    settings: Settings,
    addresses: LocalAddresses,
    synced: BTreeSet<Source>,
}

/// What has to be looked at again after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services by name.
    pub services: BTreeSet<ObjectName>,
    /// The node's addresses, and the prefixes that mean something to it.
    pub addresses: bool,
}

impl Dirty {
    /// Adds what `other` says.
    pub fn merge(&mut self, other: Self) {
        // Not `append`, which builds the whole set anew: thousands of changes of one service each are merged at the start.
        self.services.extend(other.services);
        self.addresses |= other.addresses;
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.addresses
    }
}

impl Cluster {
    /// The empty cluster, as seen from the node `node_name`.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self { node_name: node_name.into(), ..Self::default() }
    }

    /// Takes in `change` and tells what it affects; a change that changes nothing affects nothing.
    pub fn apply(&mut self, change: Change) -> Dirty {
        match change {
            Change::Service(name, service) => {
                if put(&mut self.services, name.clone(), service).is_some() {
                    service_dirty(name)
                } else {
                    Dirty::default()
                }
            }
            Change::EndpointSlice(name, slice) => self.put_slice(name, slice),
            Change::Node(name, node) => self.put_node(name, node),
            Change::ServiceCidr(name, ranges) => addresses_dirty(put(&mut self.service_cidrs, name, ranges).is_some()),
            Change::Settings(settings) => {
                let changed = self.settings != settings;
                self.settings = settings;
                addresses_dirty(changed)
            }
            Change::LocalAddresses(addresses) => {
                let changed = self.addresses != addresses;
                self.addresses = addresses;
                addresses_dirty(changed)
            }
            Change::Synced(source) => {
                self.synced.insert(source);
                Dirty::default()
            }
        }
    }

    fn put_slice(&mut self, name: ObjectName, slice: Option<EndpointSlice>) -> Dirty {
        let new_owner = slice.as_ref().map(|slice| slice.service.clone());
        let Some(old) = put(&mut self.slices, name.clone(), slice) else { return Dirty::default() };
        let old_owner = old.map(|slice| slice.service);
        if let Some(owner) = &old_owner
            && old_owner != new_owner
            && let Some(names) = self.slices_of.get_mut(owner)
        {
            names.retain(|other| *other != name);
            if names.is_empty() {
                self.slices_of.remove(owner);
            }
        }
        if let Some(owner) = &new_owner {
            let names = self.slices_of.entry(owner.clone()).or_default();
            if let Err(place) = names.binary_search(&name) {
                names.reserve_exact(1);
                names.insert(place, name);
            }
        }
        Dirty { services: old_owner.into_iter().chain(new_owner).collect(), addresses: false }
    }

    /// Only this node matters. Its zone changes perhaps once in a node's life, and then any service may be affected.
    fn put_node(&mut self, name: String, node: Option<Node>) -> Dirty {
        let before = self.node().cloned();
        let _previous = put(&mut self.nodes, name, node);
        let zone = |node: Option<&Node>| node.and_then(|node| node.zone.clone());
        let addresses = |node: Option<&Node>| node.map(|node| (node.addresses.clone(), node.pod_cidrs.clone()));
        let (before, after) = (before.as_ref(), self.node());
        let moved = zone(before) != zone(after);
        Dirty {
            services: if moved { self.services.keys().cloned().collect() } else { BTreeSet::new() },
            addresses: addresses(before) != addresses(after),
        }
    }

    /// This node's object.
    pub fn node(&self) -> Option<&Node> {
        self.nodes.get(&self.node_name)
    }

    /// This node, as endpoints are selected for it.
    pub fn place(&self) -> Place<'_> {
        let zone = self.node().and_then(|node| node.zone.as_deref());
        Place { node: &self.node_name, zone }
    }

    /// The service `name`.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Names of all services.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// The EndpointSlices of the service `name`, in the order of their names.
    pub fn slices(&self, name: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices_of.get(name).into_iter().flatten().filter_map(|slice| self.slices.get(slice))
    }

    /// The ranges of all ServiceCIDRs.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNetwork> {
        self.service_cidrs.values().flatten().copied()
    }

    /// The ranges of pods' addresses, as the operator wants pods told from others.
    pub fn pod_cidrs(&self) -> &[IpNetwork] {
        self.settings.local.pod_cidrs(self.node().map_or(&[], |node| &node.pod_cidrs))
    }

    /// The addresses of this node's interfaces.
    pub fn addresses(&self) -> &LocalAddresses {
        &self.addresses
    }

    /// The sources that have not delivered everything yet.
    pub fn waiting_for(&self) -> impl Iterator<Item = Source> {
        Source::ALL.into_iter().filter(|source| !self.synced.contains(source))
    }
}

fn service_dirty(name: ObjectName) -> Dirty {
    Dirty { services: BTreeSet::from([name]), addresses: false }
}

fn addresses_dirty(changed: bool) -> Dirty {
    Dirty { addresses: changed, ..Dirty::default() }
}

/// Stores or removes `value`; the value before when that made a difference.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<Option<V>> {
    if map.get(&key) == value.as_ref() {
        return None;
    }
    Some(match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    })
}
