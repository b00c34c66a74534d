//! The kinds of Kubernetes objects that sources deliver, and what each becomes in the model.

use std::{
    fmt::{Debug, Display},
    hash::Hash,
};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Converted,
    endpoint_slice::from_endpoint_slice,
    node::from_node,
    received::{ServiceShape, SliceShape},
    service::from_service,
    service_cidr::from_service_cidr,
};
use crate::model::{self, Change, ObjectName, Source};

/// One kind of object.
pub trait Kind: Send + 'static {
    /// The object as Kubernetes writes it.
    type Object: kube::Resource<DynamicType = ()> + serde::de::DeserializeOwned + Clone + Debug + Send + Sync + 'static;
    /// What is read of an object that the API server sends.
    type Shape: Into<Self::Object> + serde::de::DeserializeOwned;
    /// What tells objects of the kind apart.
    type Name: Ord + Clone + Debug + Display + Send + Sync;
    /// What the model makes of an object.
    type Value: Clone + Hash + Debug + Send;

    /// The kind's name, for people.
    const NAME: &'static str;
    /// What is synced when all objects of the kind have been delivered.
    const SOURCE: Source;
    /// Whether an API server may not know the kind, or not show it, which then counts as if there were no object.
    const IS_OPTIONAL: bool = false;

    /// The object's name; `None` when it has none, which no API server lets through.
    fn name(meta: &ObjectMeta) -> Option<Self::Name>;

    /// Reads the object.
    fn convert(object: &Self::Object) -> Converted<Self::Value>;

    /// The change to `value`.
    fn change(name: Self::Name, value: Option<Self::Value>) -> Change;
}

/// Services.
#[derive(Debug)]
pub struct Services;

impl Kind for Services {
    type Object = core::Service;
    type Shape = ServiceShape;
    type Name = ObjectName;
    type Value = model::service::Service;

    const NAME: &'static str = "Service";
    const SOURCE: Source = Source::Services;

    fn name(meta: &ObjectMeta) -> Option<ObjectName> {
        namespaced(meta)
    }

    fn convert(object: &core::Service) -> Converted<Self::Value> {
        from_service(object)
    }

    fn change(name: ObjectName, value: Option<Self::Value>) -> Change {
        Change::Service(name, value)
    }
}

/// EndpointSlices.
#[derive(Debug)]
pub struct EndpointSlices;

impl Kind for EndpointSlices {
    type Object = discovery::EndpointSlice;
    type Shape = SliceShape;
    type Name = ObjectName;
    type Value = model::endpoint::EndpointSlice;

    const NAME: &'static str = "EndpointSlice";
    const SOURCE: Source = Source::EndpointSlices;

    fn name(meta: &ObjectMeta) -> Option<ObjectName> {
        namespaced(meta)
    }

    fn convert(object: &discovery::EndpointSlice) -> Converted<Self::Value> {
        from_endpoint_slice(object)
    }

    fn change(name: ObjectName, value: Option<Self::Value>) -> Change {
        Change::EndpointSlice(name, value)
    }
}

/// Nodes.
#[derive(Debug)]
pub struct Nodes;

impl Kind for Nodes {
    type Object = core::Node;
    type Shape = core::Node;
    type Name = String;
    type Value = model::node::Node;

    const NAME: &'static str = "Node";
    const SOURCE: Source = Source::Nodes;

    fn name(meta: &ObjectMeta) -> Option<String> {
        meta.name.clone()
    }

    fn convert(object: &core::Node) -> Converted<Self::Value> {
        from_node(object)
    }

    fn change(name: String, value: Option<Self::Value>) -> Change {
        Change::Node(name, value)
    }
}

/// ServiceCIDRs.
#[derive(Debug)]
pub struct ServiceCidrs;

impl Kind for ServiceCidrs {
    type Object = networking::ServiceCIDR;
    type Shape = networking::ServiceCIDR;
    type Name = String;
    type Value = Vec<ipnetwork::IpNetwork>;

    const NAME: &'static str = "ServiceCIDR";
    const SOURCE: Source = Source::ServiceCidrs;
    // Part of Kubernetes since 1.33.
    const IS_OPTIONAL: bool = true;

    fn name(meta: &ObjectMeta) -> Option<String> {
        meta.name.clone()
    }

    fn convert(object: &networking::ServiceCIDR) -> Converted<Self::Value> {
        from_service_cidr(object)
    }

    fn change(name: String, value: Option<Self::Value>) -> Change {
        Change::ServiceCidr(name, value)
    }
}

/// The name of a namespaced object; a file may leave the namespace out, as with `kubectl apply`.
fn namespaced(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.clone()?))
}
