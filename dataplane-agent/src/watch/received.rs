//! Objects as they arrive from the API server, and what is kept of them while they are read.
//!
//! Most of an object's text is of no use here: `managedFields` alone are often longer than all the rest. What is not needed is
//! skipped by the decoder, so that it costs no memory.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{Resource, core::DeserializeGuard};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use super::{endpoint_slice::TRIGGERED, kind::Kind};

/// How objects of the kind `K` may arrive.
pub(super) trait Received<K: Kind>:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static
{
    /// Whether one object that cannot be read takes those along that arrive with it.
    const IS_ALL_OR_NOTHING: bool;

    /// The object, or why it cannot be read.
    fn read(self) -> Result<K::Object, String>;
}

/// An object of which only the fields of [`Kind::Shape`] are read.
pub(super) struct Lean<K: Kind>(K::Object);

impl<K: Kind> Received<K> for Lean<K> {
    const IS_ALL_OR_NOTHING: bool = true;

    fn read(self) -> Result<K::Object, String> {
        Ok(self.0)
    }
}

impl<K: Kind> Received<K> for DeserializeGuard<Lean<K>> {
    const IS_ALL_OR_NOTHING: bool = false;

    fn read(self) -> Result<K::Object, String> {
        self.0.map(|lean| lean.0).map_err(|invalid| invalid.error)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::Shape::deserialize(deserializer).map(|shape| Self(shape.into()))
    }
}

impl<K: Kind> Clone for Lean<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Kind> fmt::Debug for Lean<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<K: Kind> Resource for Lean<K> {
    type DynamicType = ();
    type Scope = <K::Object as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::Object::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::Object::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::Object::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::Object::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

/// What is read of a Service.
#[derive(Deserialize)]
pub struct ServiceShape {
    metadata: Option<Meta>,
    spec: Option<core::ServiceSpec>,
    status: Option<core::ServiceStatus>,
}

impl From<ServiceShape> for core::Service {
    fn from(ServiceShape { metadata, spec, status }: ServiceShape) -> Self {
        Self { metadata: metadata.unwrap_or_default().into(), spec, status }
    }
}

/// What is read of an EndpointSlice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceShape {
    metadata: Option<Meta>,
    address_type: Option<String>,
    endpoints: Option<Vec<EndpointShape>>,
    ports: Option<Vec<discovery::EndpointPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointShape {
    addresses: Option<Vec<String>>,
    conditions: Option<discovery::EndpointConditions>,
    hints: Option<discovery::EndpointHints>,
    node_name: Option<String>,
    zone: Option<String>,
}

impl From<SliceShape> for discovery::EndpointSlice {
    fn from(SliceShape { metadata, address_type, endpoints, ports }: SliceShape) -> Self {
        let endpoint = |EndpointShape { addresses, conditions, hints, node_name, zone }| discovery::Endpoint {
            addresses: addresses.unwrap_or_default(),
            conditions,
            hints,
            node_name,
            zone,
            ..discovery::Endpoint::default()
        };
        Self {
            metadata: metadata.unwrap_or_default().into(),
            address_type: address_type.unwrap_or_default(),
            endpoints: endpoints.map(|endpoints| endpoints.into_iter().map(endpoint).collect()),
            ports,
        }
    }
}

/// What is read of the metadata of Services and slices.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Annotations>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
}

/// Annotations may be as long as the object, which some tools keep a copy of in one.
#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    triggered: Option<String>,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> Self {
        let triggered = meta.annotations.and_then(|annotations| annotations.triggered);
        Self {
            name: meta.name,
            namespace: meta.namespace,
            labels: meta.labels,
            annotations: triggered.map(|triggered| BTreeMap::from([(TRIGGERED.to_owned(), triggered)])),
            resource_version: meta.resource_version,
            deletion_timestamp: meta.deletion_timestamp,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::watch::kind::{EndpointSlices, Services};

    /// What the model makes of `object` must not depend on how it is read.
    #[track_caller]
    fn check<K: Kind>(object: Value)
    where
        K::Value: PartialEq,
    {
        let lean: Lean<K> = serde_json::from_value(object.clone()).unwrap();
        let whole: K::Object = serde_json::from_value(object).unwrap();
        let (name, version) = (K::name(lean.meta()).unwrap(), lean.meta().resource_version.clone());
        assert_eq!((K::name(whole.meta()), whole.meta().resource_version.clone()), (Some(name), version));
        assert_eq!(K::convert(&lean.0), K::convert(&whole));
    }

    fn metadata() -> Value {
        json!({
            "name": "web", "namespace": "shop", "uid": "1-2-3", "resourceVersion": "7", "creationTimestamp": null,
            "labels": { "kubernetes.io/service-name": "web", "app": "web" },
            "annotations": { TRIGGERED: "2026-01-02T03:04:05.678Z", "note": "x" },
            "managedFields": [{ "manager": "kubectl", "operation": "Update", "fieldsV1": { "f:spec": { "f:ports": {} } } }],
        })
    }

    #[test]
    fn a_service_read_in_part_means_the_same() {
        check::<Services>(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(),
            "spec": {
                "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "selector": { "app": "web" }, "type": "LoadBalancer",
                "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999, "sessionAffinity": "ClientIP",
                "ports": [{ "name": "http", "port": 80, "targetPort": "web", "nodePort": 30080 }],
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } },
        }));
        check::<Services>(json!({ "metadata": { "name": "empty" } }));
    }

    #[test]
    fn a_slice_read_in_part_means_the_same() {
        check::<EndpointSlices>(json!({
            "metadata": metadata(), "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["10.0.0.1"], "conditions": { "ready": false, "serving": true, "terminating": true },
                    "targetRef": { "kind": "Pod", "name": "web-1" }, "nodeName": "a", "zone": "z", "hostname": "h",
                    "hints": { "forZones": [{ "name": "z" }], "forNodes": [{ "name": "a" }] },
                },
                { "addresses": [] },
            ],
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }, {}],
        }));
        check::<EndpointSlices>(
            json!({ "metadata": metadata(), "addressType": "FQDN", "endpoints": null, "ports": null }),
        );
    }
}
