//! What the cluster wants, in plain Rust: no Kubernetes types, no BPF types and no I/O from here on down.

pub mod cluster;
pub mod device;
pub mod endpoint;
pub mod node;
pub mod selection;
pub mod service;
pub mod settings;

use std::{fmt, sync::Arc};

use ipnetwork::IpNetwork;

/// The name of a namespaced object; copies share the text, since a name is the key of many things.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The object's namespace.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name `namespace/name`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One difference between the world and what the agent knows of it. `None` means that the object is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service as sluice sees it: `None` also for one that is headless, an ExternalName or another proxy's.
    Service(ObjectName, Option<service::Service>),
    /// An EndpointSlice, by its own name.
    EndpointSlice(ObjectName, Option<endpoint::EndpointSlice>),
    /// A Node, by name.
    Node(String, Option<node::Node>),
    /// The ranges of a ServiceCIDR, by name: the cluster gives their addresses to Services.
    ServiceCidr(String, Option<Vec<IpNetwork>>),
    /// What the operator decides, once at the start.
    Settings(settings::Settings),
    /// The addresses of this node's interfaces, all of them.
    LocalAddresses(node::LocalAddresses),
    /// A source has delivered everything that existed when it began; nothing is deleted before every source has said so.
    Synced(Source),
}

/// Where changes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Nodes.
    Nodes,
    /// ServiceCIDRs, which old clusters lack: a source that has none says so by having synced.
    ServiceCidrs,
    /// Addresses of this node.
    Addresses,
}

impl Source {
    /// Every source, all of which must have synced before anything is deleted.
    pub const ALL: [Self; 5] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs, Self::Addresses];
}
