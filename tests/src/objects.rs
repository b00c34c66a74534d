//! Kubernetes objects as the bed writes them: Services, EndpointSlices and Nodes, as JSON values.

use std::net::{IpAddr, SocketAddr};

use dataplane_common::Protocol;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Site},
    topology::{self, Addresses, IpVersion},
};

/// The namespace of everything.
pub const NAMESPACE: &str = "default";

/// A Service under construction.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its cluster IPs.
    pub addresses: Addresses,
    /// Its ports.
    pub ports: Vec<Port>,
    /// More fields of `spec`; they win over the others.
    pub spec: Value,
    /// Its labels.
    pub labels: Value,
    /// Its `status`.
    pub status: Value,
}

/// A port of a [`Service`].
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the cluster IPs.
    pub port: u16,
    /// The port of the endpoints.
    pub target: u16,
    /// The port on the nodes.
    pub node_port: Option<u16>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Addresses,
    /// The node it runs on.
    pub node: String,
    /// Its conditions, and hints where a test wants them.
    pub extra: Value,
}

impl Service {
    /// The service `name` at the cluster IPs with the number `number`, without ports.
    pub fn new(name: &str, number: u8) -> Self {
        let (addresses, none) = (topology::service(number), || json!({}));
        Self { name: name.to_owned(), addresses, ports: Vec::new(), spec: none(), labels: none(), status: none() }
    }

    /// The same with TCP and UDP on `port`, for endpoints on `target`.
    pub fn port(self, port: u16, target: u16) -> Self {
        self.one(Protocol::Tcp, port, target, None).one(Protocol::Udp, port, target, None)
    }

    /// The same with TCP and UDP on `port` and on the nodes' `node_port`.
    pub fn node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        let with = |service: Self, protocol| service.one(protocol, port, target, Some(node_port));
        with(with(self, Protocol::Tcp), Protocol::Udp)
    }

    /// The same with one more port.
    pub fn one(mut self, protocol: Protocol, port: u16, target: u16, node_port: Option<u16>) -> Self {
        let name = format!("{}-{port}", protocol.name().to_lowercase());
        self.ports.push(Port { name, protocol, port, target, node_port });
        self
    }

    /// The same with more fields of `spec`.
    pub fn spec(self, spec: Value) -> Self {
        Self { spec, ..self }
    }

    /// The same with every port served by endpoints on `target`.
    pub fn target(mut self, target: u16) -> Self {
        self.ports.iter_mut().for_each(|port| port.target = target);
        self
    }

    /// The same with `labels`.
    pub fn labels(self, labels: Value) -> Self {
        Self { labels, ..self }
    }

    /// The same with `status`.
    pub fn status(self, status: Value) -> Self {
        Self { status, ..self }
    }

    /// The first port on the cluster IP of `version`.
    pub fn cluster_ip(&self, version: IpVersion) -> SocketAddr {
        (self.addresses.ip(version), self.ports.first().map_or(0, |port| port.port)).into()
    }

    /// The Service object.
    pub fn object(&self) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(Port::object).collect();
        let typed = if self.ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
        let Addresses { v4, v6 } = self.addresses;
        let mut spec = json!({
            "type": typed,
            "clusterIP": v4,
            "clusterIPs": [v4, v6],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
        });
        merge(&mut spec, &self.spec);
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": NAMESPACE, "labels": self.labels },
            "spec": spec,
            "status": self.status,
        })
    }

    /// The EndpointSlice of one address family, with every port of the service.
    pub fn slice(&self, version: IpVersion, endpoints: &[Endpoint]) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(Port::slice_object).collect();
        let endpoints: Vec<Value> = endpoints.iter().map(|endpoint| endpoint.object(version)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.slice_name(version),
                "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": version.to_string(),
            "ports": ports,
            "endpoints": endpoints,
        })
    }

    /// The name of that slice.
    pub fn slice_name(&self, version: IpVersion) -> String {
        format!("{}-{}", self.name, version.to_string().to_lowercase())
    }

    /// The service and both of its slices.
    pub fn objects(&self, endpoints: &[Endpoint]) -> Vec<Value> {
        let slices = IpVersion::BOTH.map(|version| self.slice(version, endpoints));
        [self.object()].into_iter().chain(slices).collect()
    }
}

impl Port {
    fn object(&self) -> Value {
        let mut port = json!({
            "name": self.name,
            "protocol": self.protocol.name(),
            "port": self.port,
            "targetPort": self.target,
        });
        if let Some(node_port) = self.node_port {
            port["nodePort"] = node_port.into();
        }
        port
    }

    fn slice_object(&self) -> Value {
        json!({ "name": self.name, "protocol": self.protocol.name(), "port": self.target })
    }
}

impl Endpoint {
    /// A ready endpoint in `site`, which is on `node`.
    pub fn new(site: &Site, node: &str) -> Self {
        Self { addresses: site.addresses(), node: node.to_owned(), extra: json!({}) }
    }

    /// Ready endpoints in the pods `names`.
    #[track_caller]
    pub fn pods(cluster: &Cluster, names: &[&str]) -> Vec<Self> {
        names.iter().map(|name| Self::new(cluster.pod(name), cluster.node_of(name))).collect()
    }

    /// The same, terminating but still serving.
    pub fn draining(self) -> Self {
        self.with(json!({ "conditions": { "ready": false, "serving": true, "terminating": true } }))
    }

    /// The same, terminating and not serving.
    pub fn terminated(self) -> Self {
        self.with(json!({ "conditions": { "ready": false, "serving": false, "terminating": true } }))
    }

    /// The same with more fields.
    pub fn with(self, extra: Value) -> Self {
        Self { extra, ..self }
    }

    fn object(&self, version: IpVersion) -> Value {
        let address: IpAddr = self.addresses.ip(version);
        let mut endpoint = json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": self.node,
        });
        merge(&mut endpoint, &self.extra);
        endpoint
    }
}

/// The Node objects of a cluster.
pub fn nodes(cluster: &Cluster) -> Vec<Value> {
    let node = |node: &crate::cluster::Node| {
        let (cidr4, cidr6) = topology::pod_cidrs(node.number);
        let Addresses { v4, v6 } = node.host.addresses();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name() } },
            "spec": { "podCIDR": cidr4, "podCIDRs": [cidr4, cidr6] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": v4 },
                { "type": "InternalIP", "address": v6 },
                { "type": "Hostname", "address": node.name() },
            ] },
        })
    };
    cluster.nodes.iter().map(node).collect()
}

/// Puts the fields of `extra` into `object`, where they win.
fn merge(object: &mut Value, extra: &Value) {
    for (key, value) in extra.as_object().into_iter().flatten() {
        object[key.as_str()] = value.clone();
    }
}
