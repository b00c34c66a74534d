//! Sources of change: Kubernetes watches, a folder of the same YAML, and netlink.
//!
//! Kubernetes objects become model values here, once. What is wrong with an object is a [`Fault`] that names the field; the
//! rest of the object keeps working. Both sources keep the last value they sent of every object (see `store`), so an object
//! that changes in ways that do not matter to this node costs nothing further down.

pub mod devices;
pub mod endpoint_slice;
pub mod events;
pub mod field;
pub mod file;
pub mod kind;
pub mod kube;
pub mod node;
mod received;
pub mod service;
pub mod service_cidr;
mod store;

use crate::model::Change;

pub use self::field::Fault;

/// Where sources send what they find.
pub type Sender = tokio::sync::mpsc::Sender<Change>;

/// Labels with which a Service, and the slices that mirror its labels, are left to somebody else.
///
/// kube-proxy selects on the absence of the same two, for both kinds.
pub const SKIP_LABELS: [&str; 2] = ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"];

/// A model value and what was wrong with the object that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<V> {
    /// The value; `None` when the object is none of this node's business or cannot be used at all.
    pub value: Option<V>,
    /// Every field that could not be used, in the order of the fields.
    pub faults: Vec<Fault>,
}

impl<V> Converted<V> {
    /// An object that is well-formed but not for this node.
    #[must_use]
    pub const fn not_ours() -> Self {
        Self { value: None, faults: Vec::new() }
    }
}
