//! Endpoints as EndpointSlices describe them.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    net::IpAddr,
    num::NonZeroU16,
    time::SystemTime,
};

use dataplane_common::Protocol;

use super::ObjectName;

/// One EndpointSlice of addressType IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// The Service it belongs to (label `kubernetes.io/service-name`).
    pub service: ObjectName,
    /// The ports that every endpoint of the slice has.
    pub ports: Vec<EndpointPort>,
    /// The endpoints; one per address.
    pub endpoints: Vec<Endpoint>,
    /// When what it tells of happened.
    pub triggered: Triggered,
}

/// When the pod or Service changed that an EndpointSlice tells of (annotation
/// `endpoints.kubernetes.io/last-change-trigger-time`).
///
/// It is for measuring only: slices that differ in nothing else are the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Triggered(pub Option<SystemTime>);

impl PartialEq for Triggered {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Triggered {}

impl Hash for Triggered {
    fn hash<H: Hasher>(&self, _state: &mut H) {}
}

/// A port of an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointPort {
    /// Matches a service port's name; empty for nil.
    pub name: String,
    /// Matches a service port's protocol.
    pub protocol: Protocol,
    /// The number to connect to.
    pub port: NonZeroU16,
}

/// One address that answers for a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// What it may be used for.
    pub state: EndpointState,
    /// The node it runs on.
    pub node: Option<String>,
    /// The zone it runs in.
    pub zone: Option<String>,
    /// `hints.forNodes`; empty when there is none.
    pub for_nodes: BTreeSet<String>,
    /// `hints.forZones`; empty when there is none.
    pub for_zones: BTreeSet<String>,
}

/// An endpoint's conditions, where nil means ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointState {
    /// Ready.
    Ready,
    /// Terminating, but still serving: used only when nothing is ready.
    Draining,
    /// Neither: never used.
    Unready,
}
