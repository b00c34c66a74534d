//! The world as Kubernetes objects, and what the agent's own reading makes of them.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result, ensure};
use dataplane_agent::{
    model::{Change, ObjectName, node::LocalAddresses},
    watch::kind::{EndpointSlices, Kind as ObjectKind, Nodes, Services},
};
use serde_json::{Value, json};

use super::{Endpoint, Kind, NODE, Service, Slice, World};

/// What has changed in a [`World`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// A Service.
    Service(String),
    /// An EndpointSlice.
    Slice(String),
    /// This node's object.
    Node,
    /// This node's addresses.
    Addresses,
}

impl World {
    /// Everything there is.
    pub fn everything(&self) -> BTreeSet<Touched> {
        let services = self.services.keys().cloned().map(Touched::Service);
        let slices = self.slices.keys().cloned().map(Touched::Slice);
        services.chain(slices).chain([Touched::Node, Touched::Addresses]).collect()
    }

    /// The change that the agent hears of. `snat` is what the interface `uplink` sends from.
    pub fn change(&self, touched: &Touched, uplink: u32, snat: &[IpAddr]) -> Result<Change> {
        Ok(match touched {
            Touched::Service(name) => {
                let object = self.services.get(name).map(|service| service.object(name));
                Services::change(ObjectName::new("default", name), read::<Services>(object)?)
            }
            Touched::Slice(name) => {
                let object = self.slices.get(name).map(|slice| slice.object(name));
                EndpointSlices::change(ObjectName::new("default", name), read::<EndpointSlices>(object)?)
            }
            Touched::Node => Nodes::change(NODE.to_owned(), read::<Nodes>(Some(self.node()))?),
            Touched::Addresses => Change::LocalAddresses(LocalAddresses {
                node_port: self.addresses.clone(),
                loopback: ["127.0.0.1", "::1"].iter().filter_map(|ip| ip.parse().ok()).collect(),
                snat: [(uplink, snat.to_vec())].into(),
            }),
        })
    }

    fn node(&self) -> Value {
        let labels = self.zone.map_or_else(|| json!({}), |zone| json!({ "topology.kubernetes.io/zone": zone }));
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "labels": labels } })
    }
}

/// Reads an object as the agent does, which must find nothing wrong with it.
fn read<K: ObjectKind>(object: Option<Value>) -> Result<Option<K::Value>> {
    let Some(object) = object else { return Ok(None) };
    let object: K::Object = serde_json::from_value(object).context(K::NAME)?;
    let converted = K::convert(&object);
    ensure!(converted.faults.is_empty(), "{}: {:?}", K::NAME, converted.faults);
    Ok(converted.value)
}

impl Service {
    /// The Service object.
    fn object(&self, name: &str) -> Value {
        let has_node_ports = matches!(self.kind, Kind::NodePort | Kind::LoadBalancer);
        let ports = self.ports.iter().map(|port| {
            let mut object = json!({ "name": port.name, "protocol": port.protocol.name(), "port": port.port });
            if has_node_ports {
                object["nodePort"] = port.node_port.into();
            }
            object
        });
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let (of_type, cluster_ips) = match self.kind {
            Kind::ClusterIp => ("ClusterIP", json!(self.cluster_ips)),
            Kind::NodePort => ("NodePort", json!(self.cluster_ips)),
            Kind::LoadBalancer => ("LoadBalancer", json!(self.cluster_ips)),
            Kind::Headless => ("ClusterIP", json!(["None"])),
            Kind::ExternalName => ("ExternalName", Value::Null),
        };
        let ingress = self.ingress.iter().map(|ingress| match ingress.ip {
            Some(ip) => json!({ "ip": ip, "ipMode": ingress.mode }),
            None => json!({ "hostname": "balancer.example" }),
        });
        let labels = self.left_to_others.map_or_else(|| json!({}), |label| json!({ label: "other" }));
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default", "labels": labels },
            "spec": {
                "type": of_type,
                "clusterIP": cluster_ips.get(0),
                "clusterIPs": cluster_ips,
                "externalIPs": self.external_ips,
                "ports": ports.collect::<Vec<_>>(),
                "externalTrafficPolicy": policy(self.external_local),
                "internalTrafficPolicy": policy(self.internal_local),
            },
            "status": { "loadBalancer": { "ingress": ingress.collect::<Vec<_>>() } },
        })
    }
}

impl Slice {
    /// The EndpointSlice object.
    fn object(&self, name: &str) -> Value {
        let ports = self
            .ports
            .iter()
            .map(|(name, protocol, number)| json!({ "name": name, "protocol": protocol.name(), "port": number }));
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.service },
            },
            "addressType": self.version.to_string(),
            "ports": ports.collect::<Vec<_>>(),
            "endpoints": self.endpoints.iter().map(Endpoint::object).collect::<Vec<_>>(),
        })
    }
}

impl Endpoint {
    fn object(&self) -> Value {
        let named = |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
        json!({
            "addresses": [self.ip],
            "conditions": { "ready": self.ready, "serving": self.serving, "terminating": self.terminating },
            "nodeName": self.node,
            "hints": { "forNodes": named(&self.for_nodes), "forZones": named(&self.for_zones) },
        })
    }
}
