//! The objects of a large cluster, with everything that a real API server's objects carry along.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};

use crate::objects::NAMESPACE;

/// The port of every cluster IP.
pub(super) const PORT: u16 = 80;
/// The port of every endpoint.
pub(super) const TARGET: u16 = 8080;
/// Endpoints per slice at most, as Kubernetes' own controller has it.
pub(super) const SLICE: usize = 100;
/// Nodes that the endpoints are spread over.
const NODES: u32 = 100;
/// The first cluster IP.
const FIRST_SERVICE: u32 = u32::from_be_bytes([10, 96, 1, 0]);
/// The first endpoint.
const FIRST_ENDPOINT: u32 = u32::from_be_bytes([10, 128, 0, 1]);

/// A Service and its endpoints.
#[derive(Clone, Debug)]
pub(super) struct Service {
    number: u32,
    /// The endpoints in the order of the slices.
    pub(super) endpoints: Vec<Endpoint>,
    /// Endpoints that are about to go, and the slices that they are still in.
    draining: Vec<(usize, Endpoint)>,
}

/// One endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint {
    number: u32,
    /// Whether it is about to go, and still serves.
    is_draining: bool,
}

/// Numbers of endpoints, none of which is used twice.
#[derive(Debug, Default)]
pub(super) struct Endpoints(u32);

impl Endpoints {
    /// A new endpoint.
    pub(super) fn next(&mut self) -> Endpoint {
        self.0 += 1;
        Endpoint { number: self.0, is_draining: false }
    }
}

impl Endpoint {
    /// Where it answers.
    pub(super) fn address(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from_bits(FIRST_ENDPOINT + self.number), TARGET)
    }

    fn object(self, service: &str) -> Value {
        let node = self.number % NODES;
        json!({
            "addresses": [self.address().ip()],
            "conditions": { "ready": !self.is_draining, "serving": true, "terminating": self.is_draining },
            "targetRef": {
                "kind": "Pod",
                "namespace": NAMESPACE,
                "name": format!("{service}-6d4cf56db6-{:05x}", self.number),
                "uid": uid(self.number),
            },
            "nodeName": if node == 0 { "a".to_owned() } else { format!("worker-{node:03}") },
            "zone": format!("region-1{}", ["a", "b", "c"][node as usize % 3]),
        })
    }
}

impl Service {
    /// The service with the number `number` and `count` endpoints.
    pub(super) fn new(number: u32, count: usize, endpoints: &mut Endpoints) -> Self {
        Self { number, endpoints: (0..count).map(|_| endpoints.next()).collect(), draining: Vec::new() }
    }

    /// Its name; names are in the order of the numbers.
    pub(super) fn name(&self) -> String {
        format!("service-{:05}", self.number)
    }

    /// Where clients find it.
    pub(super) fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from_bits(FIRST_SERVICE + self.number), PORT)
    }

    /// The Service object.
    pub(super) fn object(&self) -> Value {
        let (name, ip) = (self.name(), *self.address().ip());
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": self.labels(&[]),
                "annotations": { "meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": NAMESPACE },
                "managedFields": [managed("helm", &json!({
                    "f:metadata": {
                        "f:annotations": { ".": {}, "f:meta.helm.sh/release-name": {}, "f:meta.helm.sh/release-namespace": {} },
                        "f:labels": { ".": {}, "f:app": {}, "f:app.kubernetes.io/managed-by": {} },
                    },
                    "f:spec": {
                        "f:internalTrafficPolicy": {}, "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
                        "f:ports": { ".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {
                            ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {},
                        } },
                    },
                }))],
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": ip,
                "clusterIPs": [ip],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
                "sessionAffinity": "None",
                "selector": { "app": name },
                "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET }],
            },
            "status": { "loadBalancer": {} },
        })
    }

    /// Has the endpoints at `old` drain, each with one of `fresh` beside it in the same slice.
    ///
    /// Slices stay where they are: the new ones are in the place of the old ones, which the slice holds in addition.
    pub(super) fn drain(&mut self, old: std::ops::Range<usize>, fresh: &[Endpoint]) {
        let draining = self.endpoints.splice(old.clone(), fresh.iter().copied());
        self.draining =
            draining.map(|endpoint| (old.start / SLICE, Endpoint { is_draining: true, ..endpoint })).collect();
    }

    /// All EndpointSlices.
    pub(super) fn slices(&self) -> impl Iterator<Item = Value> {
        (0..self.endpoints.len().div_ceil(SLICE)).map(|index| self.slice(index))
    }

    /// The EndpointSlice with the number `index`.
    pub(super) fn slice(&self, index: usize) -> Value {
        let name = self.name();
        let endpoints = self.endpoints.iter().skip(index * SLICE).take(SLICE);
        let draining = self.draining.iter().filter(|(slice, _)| *slice == index).map(|(_, endpoint)| endpoint);
        let endpoints = endpoints.chain(draining);
        let endpoints: Vec<Value> = endpoints.map(|endpoint| endpoint.object(&name)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{index:05}"),
                "generateName": format!("{name}-"),
                "namespace": NAMESPACE,
                "generation": 1,
                "labels": self.labels(&[
                    ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io"),
                    ("kubernetes.io/service-name", &name),
                ]),
                "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z" },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": name, "uid": uid(self.number),
                    "controller": true, "blockOwnerDeletion": true,
                }],
                "managedFields": [managed("kube-controller-manager", &json!({
                    "f:addressType": {}, "f:endpoints": {}, "f:ports": {},
                    "f:metadata": {
                        "f:annotations": { ".": {}, "f:endpoints.kubernetes.io/last-change-trigger-time": {} },
                        "f:generateName": {},
                        "f:labels": {
                            ".": {}, "f:app": {}, "f:app.kubernetes.io/managed-by": {}, "f:kubernetes.io/service-name": {},
                            "f:endpointslice.kubernetes.io/managed-by": {},
                        },
                        "f:ownerReferences": { ".": {}, format!("k:{{\"uid\":\"{}\"}}", uid(self.number)): {} },
                    },
                }))],
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET }],
        })
    }

    fn labels(&self, more: &[(&str, &str)]) -> Value {
        let mut labels = json!({ "app": self.name(), "app.kubernetes.io/managed-by": "Helm" });
        for (name, value) in more {
            labels[*name] = json!(value);
        }
        labels
    }
}

fn uid(number: u32) -> String {
    format!("{number:08x}-7a1c-4c1e-9d5f-0123456789ab")
}

fn managed(manager: &str, fields: &Value) -> Value {
    json!({
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    })
}
